//! A login without a daemon, by the same helper: for root's command line.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::helper::{Answer, Helper, LIMIT, Visit};
use super::job::Job;
use crate::spec::{Layout, MachineName};

/// A login on a new terminal of a machine.
#[derive(Debug)]
pub struct Login {
    helper: Helper,
    stays: bool,
    master: Option<OwnedFd>,
}

impl Login {
    /// Opens a login; `sealed` if the machine has no user namespace.
    ///
    /// # Errors
    /// One line that says why.
    pub fn open(layout: &Layout, name: &MachineName, leader: &OwnedFd, sealed: bool) -> Result<Self, String> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("machinist").arg("--root").arg(layout.root()).process_group(0);
        let visit = Visit { name: name.as_str().to_owned(), job: Job::Login { root_shell: true } };
        let mut helper = Helper::start(command, leader, &visit, sealed).map_err(|failure| failure.text)?;
        match helper.wait(LIMIT) {
            Ok(Some((Answer::Opened { stays, .. }, fds))) => Ok(Self { helper, stays, master: fds.into_iter().next() }),
            other => {
                helper.stop();
                Err(match other {
                    Ok(Some((Answer::Failed(failure), _))) => failure.text,
                    Ok(Some(_)) => "the helper ended".into(),
                    Ok(None) => format!("the machine did not let us within {} s", LIMIT.as_secs()),
                    Err(failure) => failure.text,
                })
            }
        }
    }

    /// The terminal's master, once.
    pub fn take_master(&mut self) -> Option<OwnedFd> {
        self.master.take()
    }

    /// Readable when the login is over; nothing if only the machine's systemd knows that.
    pub fn over(&self) -> Option<BorrowedFd<'_>> {
        self.stays.then(|| self.helper.socket())
    }
}
