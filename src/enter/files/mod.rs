//! What is done with files inside of a running machine: by a [`helper`], with the machine's rights.
//!
//! A machine can make every access to its files wait without limit, so a helper makes them, not the caller. The helper
//! gives up the rights of the host before it touches a file of a machine with a user namespace; what the machine's root
//! could not do cannot be done for it.

mod bind;
mod copy;
mod error;
mod leader;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

pub use bind::Bind;
pub use copy::{Copy, Direction};
pub use error::InsideError;

use super::helper::{self, Helper};
use crate::sys::Errno;
use crate::sys::path::RootFd;
use crate::sys::process::this_program;
use crate::tree::metadata;
use error::Outcome;
use leader::Leader;

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

/// Has `request` done in the machine of `leader`, and waits for it.
///
/// # Errors
/// ETIMEDOUT when it took longer than `limit`, ESRCH when the machine has ended, else what went wrong there.
pub fn ask(leader: impl AsFd, request: &Request, limit: Option<Duration>) -> Outcome<(Answer, Option<OwnedFd>)> {
    let mut command = this_program();
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
