//! Requests to a running supervisor: one SEQPACKET connection each, on a socket only root can reach.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{Mode, OFlags};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::plan::limits::Limit;
use crate::spec::{Layout, MachineName, Resources};
use crate::sys::{self, Context as _, channel, socket};

/// Name of the socket in the run directory.
pub const SOCKET: &str = "control";

/// Largest request; limits of many disks take this much.
const MESSAGE: usize = 64 << 10;

/// What a machine's limits are to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NewLimits {
    /// As requested.
    pub resources: Resources,
    /// What that means on this host.
    pub limits: Vec<Limit>,
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Become a viewer of the console.
    Console,
    /// Stop in order; kill after `timeout`, or the machine's own one.
    Stop {
        /// Instead of the machine's own.
        timeout: Option<Duration>,
    },
    /// Stop in order and start again.
    Reboot,
    /// Change the limits, for later boots of the machine, too.
    Limit(Box<NewLimits>),
    /// Announces that an end within the stop timeout is intended.
    Expect,
}

/// What is answered; the connection ends when the machine has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is being done.
    Accepted,
    /// The machine has ended; nothing of it is left.
    Ended {
        /// It had to be killed.
        killed: bool,
        /// Exit status of its payload.
        status: u8,
    },
    /// The machine has been started again.
    Rebooted {
        /// It had to be killed.
        killed: bool,
    },
    /// The limits are as asked.
    Limited,
    /// A limit cannot be had, and all are as before.
    NotLimited {
        /// Which, and why.
        why: String,
        /// What the user can do about it.
        hint: Option<String>,
    },
    /// It cannot be done.
    Refused(String),
}

/// How long a supervisor may take to answer the announcement.
const PATIENCE: Duration = Duration::from_secs(2);

/// Announces to the supervisor of `name` that the next action is meant to end the machine, so that it is not started
/// again.
///
/// The next action does not depend on it: a supervisor that does not answer is no reason to spare its machine.
pub fn announce(layout: &Layout, name: &MachineName) {
    let Ok(connection) = ask(layout, name, &Request::Expect) else { return };
    let patience = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    // Readable when it has answered or gone.
    let _ = poll(&mut [PollFd::new(connection.as_fd(), PollFlags::POLLIN)], patience);
}

/// Connections that have not sent their request yet.
#[derive(Debug, Default)]
pub struct Callers(Vec<Option<OwnedFd>>);

impl Callers {
    /// More than these wait until others have spoken.
    const MOST: usize = 64;

    /// The connections to wait for, each with its number.
    pub fn poll_fds(&self) -> impl Iterator<Item = (BorrowedFd<'_>, usize)> {
        self.0.iter().enumerate().filter_map(|(index, connection)| Some((connection.as_ref()?.as_fd(), index)))
    }

    /// Accepts every connection that is waiting.
    pub fn accept(&mut self, listener: impl AsFd) {
        while let Ok(Some(connection)) = socket::accept(&listener) {
            if self.0.len() < Self::MOST {
                self.0.push(Some(connection));
            }
        }
    }

    /// Takes the request of the caller `index`; what is none is refused.
    pub fn receive(&mut self, index: usize) -> Option<(Request, OwnedFd)> {
        let connection = self.0.get_mut(index).and_then(Option::take)?;
        match self::receive::<Request>(&connection) {
            Ok(request) => Some((request?, connection)),
            Err(e) => {
                let _ = send(&connection, &Answer::Refused(e.to_string()));
                None
            }
        }
    }

    /// Forgets those that have sent their request.
    pub fn tidy(&mut self) {
        self.0.retain(Option::is_some);
    }
}

/// Connects to the supervisor of `name` and sends `request`.
pub fn ask(layout: &Layout, name: &MachineName, request: &Request) -> sys::Result<OwnedFd> {
    let path = layout.run_dir(name);
    let dir = rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .call(|| format!("open('{}')", path.display()))?;
    let connection = socket::connect_in(&dir, SOCKET)?;
    send(&connection, request)?;
    Ok(connection)
}

/// Sends one request or answer.
pub fn send<T: Serialize>(connection: &OwnedFd, message: &T) -> sys::Result<()> {
    channel::send_within(MESSAGE, connection, message, &[])
}

/// Receives one request or answer; `None` at the end.
pub fn receive<T: DeserializeOwned>(connection: &OwnedFd) -> sys::Result<Option<T>> {
    Ok(channel::receive_within(MESSAGE, connection)?.map(|(message, _)| message))
}
