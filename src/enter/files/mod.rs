//! What is done with files inside of a running machine: by a [`helper`], with the machine's rights.
//!
//! A machine can make every access to its files wait without limit, so a helper makes them, not the caller. The helper
//! gives up the rights of the host before it touches a file of a machine with a user namespace; what the machine's root
//! could not do cannot be done for it.

mod bind;
mod copy;

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

pub use bind::Bind;
pub use copy::{Copy, Direction};

use super::helper::{self, Helper};
use crate::sys::namespace::{self, Kind};
use crate::sys::path::RootFd;
use crate::sys::process::ns;
use crate::sys::{self, Context as _, Errno, mount, process};
use crate::tree::metadata;

/// The verb, hidden from users, by which this program is run again for [`serve`].
pub const VERB: &str = "inside";

/// What to do in a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Read the variables of its `os-release(5)`.
    OsRelease,
    /// Open its root directory for reading.
    Root,
    /// Show a part of the host.
    Bind(Bind),
    /// Copy files.
    Copy(Copy),
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// It is done.
    Done,
    /// The variables, in order.
    Variables(Vec<(String, String)>),
    /// The descriptor comes along.
    Opened,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InsideError {
    #[serde(with = "sys::errno_as_number")]
    errno: Errno,
    /// One line.
    text: String,
}

impl InsideError {
    fn new(errno: Errno, text: impl Into<String>) -> Self {
        Self { errno, text: text.into() }
    }

    /// The errno that tells programs.
    pub fn errno(&self) -> Errno {
        self.errno
    }
}

impl From<sys::Error> for InsideError {
    fn from(e: sys::Error) -> Self {
        Self::new(e.errno, e.to_string())
    }
}

impl fmt::Display for InsideError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for InsideError {}

type Outcome<T> = Result<T, InsideError>;

/// Has `request` done in the machine of `leader`, and waits for it.
///
/// # Errors
/// ETIMEDOUT when it took longer than `limit`, ESRCH when the machine has ended, else what went wrong there.
pub fn ask(leader: impl AsFd, request: &Request, limit: Option<Duration>) -> Outcome<(Answer, Option<OwnedFd>)> {
    let mut command = Command::new(helper::PROGRAM);
    command.arg(VERB).current_dir("/");
    let helper = Helper::start(command, leader, request)?;
    let answer = helper.answer::<Outcome<Answer>>(limit);
    // Before the answer is given on, so that no zombie stays.
    helper.stop();
    match answer {
        Ok(Some((answer, fds))) => answer.map(|answer| (answer, fds.into_iter().next())),
        Err(e) if e.errno == Errno::ETIMEDOUT => Err(InsideError::new(e.errno, "the machine did not answer in time")),
        Ok(None) | Err(_) => {
            Err(InsideError::new(Errno::EIO, "the process that entered the machine ended without an answer"))
        }
    }
}

/// Is the other process, and gives its exit status.
pub fn serve() -> u8 {
    helper::serve(std::io::stdin().as_fd(), |request, leader| {
        let (answer, fd) = work(&request, &Leader::new(leader)?)?;
        Ok::<_, InsideError>(Some((answer, fd.into_iter().collect())))
    })
}

/// First process of the machine.
struct Leader {
    pid: i32,
    pidfd: OwnedFd,
}

impl Leader {
    fn new(pidfd: OwnedFd) -> Outcome<Self> {
        // A process that inspects this one while it is in a machine would see our memory.
        process::set_undumpable()?;
        let pid = process::pidfd_number(&pidfd)?.as_raw();
        Ok(Self { pid, pidfd })
    }

    /// Fails if it has ended, and so what was opened by its number may be another's.
    fn check(&self) -> Outcome<()> {
        match process::pidfd_send_signal(&self.pidfd, 0) {
            Ok(()) => Ok(()),
            Err(e) if e.errno == Errno::ESRCH => Err(InsideError::new(Errno::ESRCH, "the machine has ended")),
            Err(e) => Err(e.into()),
        }
    }

    /// The machine's root directory as its leader sees it.
    fn root(&self, flags: OFlags) -> Outcome<OwnedFd> {
        let path = format!("/proc/{}/root", self.pid);
        let fd = rustix::fs::open(&path, flags | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let fd = fd.call(|| format!("open('{path}')"));
        self.check()?;
        Ok(fd?)
    }
}

impl Leader {
    /// The machine's user namespace; none if it is our own.
    fn user_namespace(&self) -> Outcome<Option<OwnedFd>> {
        let own = namespace::own(Kind::User)?;
        let theirs = namespace::open(self.pid, Kind::User);
        self.check()?;
        let theirs = theirs?;
        Ok(if namespace::is_same(&own, &theirs)? { None } else { Some(theirs) })
    }
}

/// Takes a mount namespace of our own, in which nothing that happens is seen elsewhere.
fn leave_mounts() -> Outcome<()> {
    process::unshare(ns::MOUNT)?;
    Ok(mount::set_propagation(host_root()?, true, mount::Propagation::Private)?)
}

/// The root directory, in the mount namespace where we are now.
fn host_root() -> sys::Result<OwnedFd> {
    rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).call(|| "open('/')".into())
}

/// Becomes root of the machine and nothing else.
fn become_guest_root(userns: &OwnedFd) -> sys::Result<()> {
    nix::unistd::setgroups(&[]).call(|| "setgroups(none)".into())?;
    process::setns(userns, ns::USER)?;
    process::become_root()?;
    // Other ids have made us dumpable again where fs.suid_dumpable is set so.
    process::set_undumpable()
}

/// Text that came from elsewhere, without anything a terminal would act on.
fn shown(path: &str) -> String {
    format!("'{}'", path.escape_debug())
}

fn work(request: &Request, leader: &Leader) -> Outcome<(Answer, Option<OwnedFd>)> {
    match request {
        Request::OsRelease => {
            let root = RootFd::from_fd(leader.root(OFlags::PATH)?);
            Ok((Answer::Variables(metadata::os_release(&root)?), None))
        }
        Request::Bind(request) => bind::bind(request, leader).map(|()| (Answer::Done, None)),
        Request::Copy(request) => copy::copy(request, leader).map(|()| (Answer::Done, None)),
        Request::Root => Ok((Answer::Opened, Some(leader.root(OFlags::RDONLY)?))),
    }
}
