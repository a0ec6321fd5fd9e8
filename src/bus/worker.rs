//! [`BusWorker`]: a child process that calls methods on the bus and gives its parent one answer.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use serde::{Serialize, de::DeserializeOwned};

use super::error::BusError;
use crate::sys::worker::{Child, Worker};
use crate::sys::{self, channel, socket};

/// A child on its way; killed and reaped when dropped.
#[derive(Debug)]
pub struct BusWorker {
    channel: OwnedFd,
    child: Child,
}

/// The child's end of the channel to its parent.
#[derive(Debug)]
pub(super) struct Parent(OwnedFd);

impl BusWorker {
    /// Starts a child that holds `stream` and nothing else of ours, and leaves it alone with `work`.
    ///
    /// The caller must have one thread (see [`Worker::spawn`]).
    pub(super) fn start(stream: OwnedFd, work: impl FnOnce(OwnedFd, &Parent)) -> Result<Self, BusError> {
        let (ours, theirs) = socket::pair()?;
        let parent = Parent(theirs);
        let lost = |why: &str| parent.answer::<()>(&Err(lost(&format!("panicked: {why}"))));
        let kept = [stream.as_fd(), parent.0.as_fd()];
        let worker = Worker::new(c"machinist-bus").tied().kill_on_drop().keep(&kept).on_panic(&lost);
        let child = worker.spawn(|| {
            work(stream, &parent);
            0
        });
        Ok(Self { channel: ours, child: child? })
    }

    /// Sends the child a message. One that has ended does not receive it; its answer says why.
    pub(super) fn send<T: Serialize>(&self, message: &T) {
        // A child that is gone is reported by `answer`.
        let _ = channel::send(&self.channel, message, &[]);
    }

    /// The child's answer, which must come within `limit`.
    pub(super) fn answer<T: DeserializeOwned>(&self, limit: Duration) -> Result<T, BusError> {
        if !channel::wait(&self.channel, Instant::now().checked_add(limit))? {
            return Err(BusError::TimedOut(limit));
        }
        let answer = channel::receive::<Result<T, BusError>>(&self.channel)?;
        answer.map_or_else(|| Err(lost("died")), |(answer, _)| answer)
    }

    /// Waits for the child to end by itself.
    pub(super) fn wait(&mut self) -> sys::Result<()> {
        self.child.wait().map(drop)
    }
}

impl Parent {
    /// The parent's next message; `None` if it has ended or sends no more.
    pub(super) fn receive<T: DeserializeOwned>(&self) -> Option<T> {
        Some(channel::receive(&self.0).ok()??.0)
    }

    /// Sends the parent the answer.
    pub(super) fn answer<T: Serialize>(&self, answer: &Result<T, BusError>) {
        // A parent that is gone does not need it.
        let _ = channel::send(&self.0, answer, &[]);
    }
}

/// The error of a child that ended without an answer.
fn lost(how: &str) -> BusError {
    BusError::Failed { call: "speaking to the bus".into(), why: format!("the child for it {how}") }
}
