//! How bytes are buffered and waited for, on both sides of a console.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Size of the one buffer everything passes through.
pub(super) const BUFFER: usize = 16 << 10;
/// Input the machine does not read is kept up to this size, then keys are lost.
pub(super) const TYPE_AHEAD: usize = 16 << 10;
/// Frees what a burst made an empty queue take.
pub(super) fn give_back(queue: &mut VecDeque<u8>) {
    if queue.is_empty() && queue.capacity() > 4096 {
        *queue = VecDeque::new();
    }
}

/// Waits until one of `fds` is ready; false when `timeout` passed first.
pub(super) fn poll_once(fds: &[(BorrowedFd<'_>, PollFlags)], timeout: Option<Duration>) -> bool {
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|(fd, flags)| PollFd::new(*fd, *flags)).collect();
    let timeout = timeout.map_or(PollTimeout::NONE, |t| PollTimeout::try_from(t).unwrap_or(PollTimeout::MAX));
    loop {
        match poll(&mut polled, timeout) {
            Err(nix::errno::Errno::EINTR) => {}
            result => return result.is_ok_and(|ready| ready > 0),
        }
    }
}
