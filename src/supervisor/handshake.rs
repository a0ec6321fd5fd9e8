//! What the supervisor and its two children say to each other while a machine is made.
//!
//! One SEQPACKET pair between the supervisor and both children, another between the two children; one datagram
//! is one message. End of file after [`Go`](ToInner::Go) means that the payload has been executed, because
//! every other copy of the children's end is closed by then.
//!
//! ```text
//! supervisor            outer child                      inner child
//!    | -- clone3 ---------> |                                 |
//!    |                      | -- clone3 (sibling) ----------> |
//!    |                      |    writes the id maps           |
//!    |                      | -- Mapped --------------------> |  makes proc, sysfs, devpts ...
//!    |                      |    builds the root              |
//!    |                      | <- api mounts (descriptors) --- |
//!    |                      |    mounts, masks, pivots        |
//!    | <- Ready (+ master) -|                                 |
//!    |                      | -- Entered(init) -------------> |  own mount namespace: all is locked
//!    |  state file, log     `- exits                          |  host name, terminal
//!    | -- Go ----------------------------------------------> |  limits, filter, exec
//!    | <- end of file, or Failed ---------------------------- |  (the stub of a command: Waiting, then these)
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::spec::InitKind;
use crate::sys::StepError;
use crate::sys::{self, Errno, Error, socket};

/// A child's failure on its way to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildFailure {
    doing: String,
    call: Option<String>,
    errno: i32,
    hint: Option<String>,
}

impl From<StepError> for ChildFailure {
    fn from(e: StepError) -> Self {
        let (call, errno) = e.cause.map_or((None, 0), |c| (Some(c.call), c.errno as i32));
        Self { doing: e.doing, call, errno, hint: e.hint }
    }
}

impl From<ChildFailure> for StepError {
    fn from(f: ChildFailure) -> Self {
        let cause = f.call.map(|call| Error { call, errno: Errno::from_raw(f.errno) });
        Self { doing: f.doing, cause, hint: f.hint }
    }
}

/// From either child to the supervisor.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromChild {
    /// The root is complete; the console's master comes along. Sent by the outer child.
    Ready {
        /// The leader's process id as the host sees it.
        leader: i32,
        /// Path of the init that will be executed, if it is one.
        init: Option<String>,
        /// Its kind, if we know it.
        kind: Option<InitKind>,
    },
    /// The stub of a command has begun to wait for it. Sent by the inner child, which never executes a program
    /// then.
    Waiting,
    /// A step failed; the sender is about to exit.
    Failed(ChildFailure),
}

/// From the outer child to the inner one.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromOuter {
    /// Your ids are mapped.
    Mapped,
    /// The root is complete and is your root; execute this init, of this kind.
    Entered(Option<String>, Option<InitKind>),
}

/// From the supervisor to the inner child.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToInner {
    /// The host is done with you: execute the payload.
    Go,
}

/// Largest message.
const LIMIT: usize = 16 << 10;

/// Sends one message.
pub fn send<T: Serialize>(socket: impl AsFd, message: &T, fds: &[BorrowedFd<'_>]) -> sys::Result<()> {
    let data = serde_json::to_vec(message).map_err(|_| bad("encoding a message"))?;
    socket::send(socket, &data, fds)
}

/// Receives one message; `None` at the end of the connection.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> sys::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; LIMIT];
    let received = match socket::receive(socket, &mut buffer) {
        Err(e) if e.errno == Errno::ECONNRESET => return Ok(None),
        other => other?,
    };
    if received.len == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(&buffer[..received.len]).map_err(|_| bad("decoding a message"))?;
    Ok(Some((message, received.fds)))
}

fn bad(call: &str) -> Error {
    Error { call: call.to_owned(), errno: Errno::EPROTO }
}

/// The places at which a test may have a process die, in the order of the drawing above.
pub const STEPS: [&str; 14] = [
    "supervisor:prepared",
    "outer:started",
    "outer:cloned",
    "outer:mapped",
    "outer:root",
    "outer:mounts",
    "outer:entered",
    "inner:started",
    "inner:api",
    "supervisor:ready",
    "inner:entered",
    "inner:go",
    "inner:limited",
    "supervisor:running",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_and_end_of_file_is_none() {
        let (a, b) = socket::pair().expect("pair");
        let failure = ChildFailure { doing: "x".into(), call: Some("open".into()), errno: 2, hint: None };
        send(&a, &FromChild::Failed(failure.clone()), &[]).expect("send");
        send(&a, &FromOuter::Mapped, &[a.as_fd()]).expect("send");
        let (message, fds) = receive::<FromChild>(&b).expect("receive").expect("a message");
        assert_eq!((message, fds.len()), (FromChild::Failed(failure), 0));
        let (message, fds) = receive::<FromOuter>(&b).expect("receive").expect("a message");
        assert_eq!((message, fds.len()), (FromOuter::Mapped, 1));
        drop((a, fds));
        assert!(receive::<FromChild>(&b).expect("receive").is_none());
    }

    #[test]
    fn garbage_is_a_protocol_error() {
        let (a, b) = socket::pair().expect("pair");
        socket::send(&a, b"{", &[]).expect("send");
        assert_eq!(receive::<FromChild>(&b).map_err(|e| e.errno).err(), Some(Errno::EPROTO));
    }

    #[test]
    fn failures_keep_call_errno_and_hint() {
        let error = StepError {
            doing: "cannot x".into(),
            cause: Some(Error { call: "open('y')".into(), errno: Errno::ENOSPC }),
            hint: Some("z".into()),
        };
        assert_eq!(StepError::from(ChildFailure::from(error.clone())), error);
    }
}
