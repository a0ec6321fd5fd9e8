//! A login without a daemon, by the same helper: for root's command line.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;

use super::helper::{self, Answer, LIMIT, Visit};
use super::job::Job;
use crate::daemon::core::error::Outcome;
use crate::enter::helper::Helper;
use crate::spec::{Layout, MachineName};
use crate::sys::Errno;
use crate::sys::process::this_program;

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
        let mut command = this_program();
        command.arg("--root").arg(layout.root()).process_group(0);
        let visit = Visit { name: name.as_str().to_owned(), job: Job::Login { root_shell: true } };
        let helper = helper::start(command, leader, &visit, sealed).map_err(|failure| failure.text)?;
        let error = match helper.answer::<Outcome<Answer>>(Some(LIMIT)) {
            Ok(Some((Ok(Answer::Opened { stays, .. }), fds))) => {
                return Ok(Self { helper, stays, master: fds.into_iter().next() });
            }
            Ok(Some((Err(failure), _))) => failure.text,
            Ok(Some((Ok(Answer::Ended(_)), _)) | None) => "the helper ended".into(),
            Err(e) if e.errno == Errno::ETIMEDOUT => {
                format!("timed out after {} s opening a terminal in the machine", LIMIT.as_secs())
            }
            Err(e) => e.to_string(),
        };
        helper.stop();
        Err(error)
    }

    /// The terminal's master, once.
    pub fn take_master(&mut self) -> Option<OwnedFd> {
        self.master.take()
    }

    /// Readable when the login is over; nothing if only the machine's systemd knows that.
    pub fn over(&self) -> Option<BorrowedFd<'_>> {
        self.stays.then(|| self.helper.socket.as_fd())
    }
}
