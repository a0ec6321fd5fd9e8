//! [`Errand`]: a child of ours that speaks to the bus and comes back with one answer.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Serialize, de::DeserializeOwned};

use super::{BusError, Errno, local};
use crate::sys::worker::{Child, Worker};
use crate::sys::{self, Error, socket};

/// Largest message between us and the child.
const MESSAGE: usize = 16 << 10;

/// A child on its way; killed and reaped when dropped.
#[derive(Debug)]
pub struct Errand {
    channel: OwnedFd,
    child: Child,
}

/// The child's end: where it hears from its parent and answers.
#[derive(Debug)]
pub(super) struct Parent(OwnedFd);

impl Errand {
    /// Starts a child that holds `stream` and nothing else of ours, and leaves it alone with `work`.
    ///
    /// The caller must have one thread (see [`Worker::spawn`]).
    pub(super) fn start(stream: OwnedFd, work: impl FnOnce(OwnedFd, &Parent)) -> Result<Self, BusError> {
        let (ours, theirs) = socket::pair().map_err(|e| local(&e))?;
        let parent = Parent(theirs);
        let lost = |why: &str| parent.tell::<()>(&Err(lost(&format!("panicked: {why}"))));
        let kept = [stream.as_fd(), parent.0.as_fd()];
        let worker = Worker::new(c"machinist-bus").tied().kill_on_drop().keep(&kept).on_panic(&lost);
        let child = worker.spawn(|| {
            work(stream, &parent);
            0
        });
        Ok(Self { channel: ours, child: child.map_err(|e| local(&e))? })
    }

    /// Tells the child something. One that has ended does not hear it; its answer says why.
    pub(super) fn tell<T: Serialize>(&self, message: &T) {
        // A child that is gone is reported by `answer`.
        let _ = serde_json::to_vec(message).map(|data| socket::send(&self.channel, &data, &[]));
    }

    /// The child's answer, which must come within `limit`.
    pub(super) fn answer<T: DeserializeOwned>(&self, limit: Duration) -> Result<T, BusError> {
        let deadline = Instant::now() + limit;
        while !readable(&self.channel, deadline).map_err(|e| local(&e))? {
            if Instant::now() >= deadline {
                return Err(BusError::TimedOut(limit));
            }
        }
        let answer: Option<Result<T, BusError>> = receive(&self.channel).map_err(|e| local(&e))?;
        answer.unwrap_or_else(|| Err(lost("died")))
    }
}

impl Errand {
    /// Waits for the child to end by itself.
    pub(super) fn wait(&mut self) -> sys::Result<()> {
        self.child.wait().map(drop)
    }
}

impl Parent {
    /// What the parent says; `None` if it went away or has nothing to say any more.
    pub(super) fn hear<T: DeserializeOwned>(&self) -> Option<T> {
        receive(&self.0).ok().flatten()
    }

    /// Gives the parent the answer.
    pub(super) fn tell<T: Serialize>(&self, answer: &Result<T, BusError>) {
        // A parent that is gone does not need it.
        let _ = serde_json::to_vec(answer).map(|data| socket::send(&self.0, &data, &[]));
    }
}

/// Something has happened to the child.
fn lost(how: &str) -> BusError {
    BusError::Failed { call: "speaking to the bus".into(), why: format!("the child for it {how}") }
}

fn receive<T: DeserializeOwned>(channel: &OwnedFd) -> sys::Result<Option<T>> {
    let mut buffer = vec![0; MESSAGE];
    let len = match socket::receive(channel, &mut buffer) {
        Err(e) if e.errno == Errno::ECONNRESET => 0,
        other => other?.len,
    };
    match buffer.get(..len) {
        None | Some([]) => Ok(None),
        Some(data) => serde_json::from_slice(data)
            .map(Some)
            .map_err(|_| Error { call: "decoding a message".into(), errno: Errno::EPROTO }),
    }
}

/// Waits until there is something to read, or something interrupts, or the time is up.
fn readable(fd: &OwnedFd, deadline: Instant) -> sys::Result<bool> {
    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, wait) {
        Ok(_) => Ok(fds[0].any().unwrap_or(false)),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(Error { call: "poll".into(), errno }),
    }
}
