//! Messages between processes of ours: one value is one datagram of a SEQPACKET socket, with descriptors beside it.
//!
//! A message that is longer than agreed, that brings more descriptors than fit, or that is no value of its type is an
//! error, never a part of one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Serialize, de::DeserializeOwned};

use super::{Errno, Error, Result, socket};

/// Most bytes of a message, unless both sides agree on another limit.
pub const LIMIT: usize = 16 << 10;

/// Sends one message of at most [`LIMIT`] bytes.
pub fn send<T: Serialize>(socket: impl AsFd, message: &T, fds: &[BorrowedFd<'_>]) -> Result<()> {
    send_within(LIMIT, socket, message, fds)
}

/// Receives one message of at most [`LIMIT`] bytes, with its descriptors; `None` at the end of the connection.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> Result<Option<(T, Vec<OwnedFd>)>> {
    receive_within(LIMIT, socket)
}

/// The same as [`send`] with another limit.
pub fn send_within<T: Serialize>(limit: usize, socket: impl AsFd, message: &T, fds: &[BorrowedFd<'_>]) -> Result<()> {
    let data = serde_json::to_vec(message).map_err(|_| error("encoding a message", Errno::EPROTO))?;
    if data.len() > limit {
        return Err(error("sending a message", Errno::EMSGSIZE));
    }
    socket::send(socket, &data, fds)
}

/// The same as [`receive`] with another limit.
pub fn receive_within<T: DeserializeOwned>(limit: usize, socket: impl AsFd) -> Result<Option<(T, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; limit];
    let received = match socket::receive(&socket, &mut buffer) {
        // The other side has ended without reading all of ours, which is told once; what it said before is there.
        Err(e) if e.errno == Errno::ECONNRESET => socket::receive(&socket, &mut buffer)?,
        other => other?,
    };
    if received.truncated {
        return Err(error("receiving a message", Errno::EMSGSIZE));
    }
    match buffer.get(..received.len) {
        None | Some([]) => Ok(None),
        Some(data) => match serde_json::from_slice(data) {
            Ok(message) => Ok(Some((message, received.fds))),
            Err(_) => Err(error("decoding a message", Errno::EPROTO)),
        },
    }
}

/// Waits until there is something to receive, or until `end`; says whether there is.
pub fn wait(socket: impl AsFd, end: Option<Instant>) -> Result<bool> {
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let timeout = left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if left.is_some_and(|left| left.is_zero()) => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(error("poll", errno)),
        }
    }
}

fn error(call: &str, errno: Errno) -> Error {
    Error { call: call.to_owned(), errno }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sys::StepError;

    fn errno<T>(result: Result<T>) -> Option<Errno> {
        result.err().map(|e| e.errno)
    }

    #[test]
    fn messages_arrive_whole_with_their_descriptors_and_end_of_file_is_none() {
        let (a, b) = socket::pair().unwrap();
        let cause = Some(Error { call: "open('y')".into(), errno: Errno::ENOSPC });
        let step = StepError { doing: "cannot x".into(), cause, hint: Some("z".into()) };
        send(&a, &step, &[]).unwrap();
        send(&a, &7, &[a.as_fd(), b.as_fd()]).unwrap();
        let (message, fds) = receive::<StepError>(&b).unwrap().unwrap();
        assert_eq!((message, fds.len()), (step, 0));
        let (message, fds) = receive::<i32>(&b).unwrap().unwrap();
        assert_eq!((message, fds.len()), (7, 2));
        drop((a, fds));
        assert!(receive::<i32>(&b).unwrap().is_none());
    }

    #[test]
    fn last_words_of_one_that_does_not_listen_arrive() {
        let (a, b) = socket::pair().unwrap();
        send(&b, &1, &[]).unwrap();
        send(&a, &7, &[]).unwrap();
        drop(a);
        assert_eq!(receive::<i32>(&b).unwrap().map(|(message, _)| message), Some(7));
        assert!(receive::<i32>(&b).unwrap().is_none());
    }

    #[test]
    fn what_is_not_of_the_type_is_a_protocol_error() {
        let (a, b) = socket::pair().unwrap();
        for data in [&b"{"[..], b"\"text\"", b"7 8", b"\xff"] {
            socket::send(&a, data, &[]).unwrap();
            assert_eq!(errno(receive::<i32>(&b)), Some(Errno::EPROTO), "{data:?}");
        }
    }

    #[test]
    fn what_is_too_long_is_refused_on_both_sides_and_the_next_message_is_whole() {
        let (a, b) = socket::pair().unwrap();
        let fits = "x".repeat(LIMIT - 2);
        assert_eq!(errno(send(&a, &format!("{fits}x"), &[])), Some(Errno::EMSGSIZE));
        send_within(usize::MAX, &a, &format!("{fits}x"), &[b.as_fd()]).unwrap();
        send(&a, &fits, &[]).unwrap();
        assert_eq!(errno(receive::<String>(&b)), Some(Errno::EMSGSIZE));
        assert_eq!(receive::<String>(&b).unwrap().map(|(text, _)| text.len()), Some(fits.len()));
        // Cut at the limit this would be a number, too.
        send(&a, &12345, &[]).unwrap();
        assert_eq!(errno(receive_within::<i32>(3, &b)), Some(Errno::EMSGSIZE));
    }

    #[test]
    fn waiting_ends_with_a_message_or_the_end_or_the_time() {
        let (a, b) = socket::pair().unwrap();
        let soon = || Some(Instant::now() + Duration::from_millis(20));
        assert_eq!(wait(&b, soon()), Ok(false));
        send(&a, &1, &[]).unwrap();
        assert_eq!((wait(&b, soon()), wait(&b, Some(Instant::now()))), (Ok(true), Ok(true)));
        receive::<i32>(&b).unwrap();
        drop(a);
        assert_eq!(wait(&b, None), Ok(true));
    }

    #[test]
    fn descriptors_that_do_not_fit_are_an_error_too() {
        let (a, b) = socket::pair().unwrap();
        send(&a, &1, &[a.as_fd(); 64]).unwrap();
        assert_eq!(errno(receive::<i32>(&b)), Some(Errno::ENOBUFS));
    }
}
