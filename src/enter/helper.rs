//! A helper: our program again, for calls that a machine may delay without limit.
//!
//! ```text
//! who asks ── request + pidfd of the leader ──> helper (`serve`)
//!          <── answers, or why not ───────────  does it, and ends
//! ```
//!
//! The caller waits up to its own limit, and then kills it. A process is needed anyway: one with a single thread may fork
//! and change its namespaces. What is asked and answered is up to both sides, as long as serde knows it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Serialize, de::DeserializeOwned};

use crate::sys::process::THIS_PROGRAM;
use crate::sys::{self, Context as _, Errno, Error, channel, socket, worker};

/// Most bytes of a request or an answer; arguments and variables of a command take this much. A socket takes no more than
/// 208 KiB at once.
const LIMIT: usize = 192 << 10;

/// A helper just started.
#[derive(Debug)]
pub struct Helper {
    /// Its process.
    pub child: Child,
    /// Readable when it has answered or ended.
    pub socket: OwnedFd,
}

impl Helper {
    /// Starts a helper as `command`, which has our program serve, and asks it for something in the machine of `leader`.
    ///
    /// # Errors
    /// EMSGSIZE for a request that is too long.
    pub fn start(mut command: Command, leader: impl AsFd, request: &impl Serialize) -> sys::Result<Self> {
        let (ours, theirs) = socket::pair()?;
        command.env_clear().envs(worker::asked_to_panic()).stdin(Stdio::from(theirs)).stdout(Stdio::null());
        let mut child = command.spawn().call(|| format!("running '{THIS_PROGRAM}' again"))?;
        // It holds the other end, which is to be closed with the helper.
        drop(command);
        match channel::send_within(LIMIT, &ours, request, &[leader.as_fd()]) {
            Ok(()) => Ok(Self { child, socket: ours }),
            Err(e) => {
                stop(&mut child);
                Err(e)
            }
        }
    }

    /// Its next answer; `None` if it has ended.
    ///
    /// # Errors
    /// ETIMEDOUT if there was none within `limit`.
    pub fn answer<A: DeserializeOwned>(&self, limit: Option<Duration>) -> sys::Result<Option<(A, Vec<OwnedFd>)>> {
        let end = limit.and_then(|limit| Instant::now().checked_add(limit));
        if !channel::wait(&self.socket, end)? {
            return Err(Error { call: "waiting for a helper".into(), errno: Errno::ETIMEDOUT });
        }
        answer(&self.socket)
    }

    /// Ends it, and what it has not executed yet.
    pub fn stop(mut self) {
        stop(&mut self.child);
    }
}

/// Takes an answer from a helper's socket; `None` if it has ended.
pub fn answer<A: DeserializeOwned>(socket: impl AsFd) -> sys::Result<Option<(A, Vec<OwnedFd>)>> {
    channel::receive_within(LIMIT, socket)
}

/// Kills and reaps a helper.
pub fn stop(child: &mut Child) {
    // It fails only for one that has ended.
    let _ = child.kill();
    let _ = child.wait();
}

/// Is the helper on `socket`: takes the request and does `work`, whose failure or panic is an answer, too.
pub fn serve<R: DeserializeOwned, A: Serialize, E: Serialize + From<Error>>(
    socket: BorrowedFd<'_>,
    work: impl FnOnce(R, OwnedFd) -> Result<Option<(A, Vec<OwnedFd>)>, E>,
) -> u8 {
    let whole = || {
        let lost = || Error { call: "reading what a helper is to do".into(), errno: Errno::EPROTO };
        let (request, fds) = channel::receive_within(LIMIT, socket)?.ok_or_else(lost)?;
        work(request, fds.into_iter().next().ok_or_else(lost)?)
    };
    let result = worker::catch(c"helper", whole).unwrap_or_else(|why| Err(worker::panicked(c"helper", &why).into()));
    // Who asked may have gone away.
    let sent = match &result {
        Ok(None) => Ok(()),
        Ok(Some((answer, fds))) => {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            say::<_, E>(socket, Ok(answer), &fds)
        }
        Err(error) => say::<A, E>(socket, Err(error), &[]),
    };
    u8::from(result.is_err() || sent.is_err())
}

/// Gives an answer before the last one.
pub fn say<A: Serialize, E: Serialize>(
    socket: impl AsFd,
    answer: Result<&A, &E>,
    fds: &[BorrowedFd<'_>],
) -> sys::Result<()> {
    channel::send_within(LIMIT, socket, &answer, fds)
}
