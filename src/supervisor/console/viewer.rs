//! Viewers: others who watch the console and type into it over a SEQPACKET socket.
//!
//! Each message is one datagram; its first byte says what follows: [`DATA`], [`WINSIZE`] or [`CLOSED`].

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::termios::Winsize;

use crate::sys::{Context, Errno, Result, socket};

/// Bytes of the console, either way.
pub(super) const DATA: u8 = b'd';
/// Rows and columns, two bytes each, least significant first; from the viewer.
pub(super) const WINSIZE: u8 = b'w';
/// Nothing follows, for the reason given as text; to the viewer.
pub(super) const CLOSED: u8 = b'x';

/// How far a viewer may fall behind before it is dropped.
pub(super) const BACKLOG: usize = 256 << 10;

/// One connected viewer.
#[derive(Debug)]
pub(super) struct Viewer {
    pub(super) id: u32,
    socket: OwnedFd,
    queue: VecDeque<u8>,
    closing: Option<&'static str>,
    dead: bool,
}

impl Viewer {
    /// Takes a connected socket, which becomes non-blocking.
    pub(super) fn new(id: u32, socket: OwnedFd) -> Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true).call(|| "ioctl(viewer, FIONBIO)".into())?;
        Ok(Self { id, socket, queue: VecDeque::new(), closing: None, dead: false })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn is_behind(&self) -> bool {
        !self.queue.is_empty() || self.closing.is_some()
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead
    }

    /// Sends `message`, which begins with [`DATA`], or queues it.
    pub(super) fn send(&mut self, message: &[u8]) {
        if self.closing.is_some() || self.dead || (self.queue.is_empty() && self.send_now(message)) {
            return;
        }
        if self.queue.len() + message.len() > BACKLOG {
            self.queue = VecDeque::new();
            self.closing = Some("the viewer is too slow");
        } else {
            self.queue.extend(&message[1..]);
        }
    }

    /// Sends more of what is queued.
    pub(super) fn flush(&mut self) {
        let mut message = [DATA; 4097];
        while !self.queue.is_empty() && !self.dead {
            let len = self.queue.len().min(message.len() - 1);
            for (to, from) in message[1..].iter_mut().zip(&self.queue) {
                *to = *from;
            }
            if !self.send_now(&message[..=len]) {
                return;
            }
            self.queue.drain(..len);
        }
        self.queue = VecDeque::new();
        if let Some(reason) = self.closing {
            self.close(reason);
        }
    }

    /// Says goodbye if the socket takes it; nothing is sent afterwards.
    pub(super) fn close(&mut self, reason: &str) {
        let mut message = vec![CLOSED];
        message.extend_from_slice(reason.as_bytes());
        self.dead |= self.send_now(&message);
    }

    /// False if the socket is full; a broken one marks the viewer dead.
    fn send_now(&mut self, message: &[u8]) -> bool {
        match socket::send(&self.socket, message, &[]) {
            Ok(()) => true,
            Err(e) if e.errno == Errno::EAGAIN => false,
            Err(_) => {
                self.dead = true;
                true
            }
        }
    }

    /// Receives one message into `buffer` and gives its length; 0 means none.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> usize {
        match socket::receive(&self.socket, buffer) {
            Ok(message) if message.len > 0 => message.len,
            Err(e) if e.errno == Errno::EAGAIN => 0,
            _ => {
                self.dead = true;
                0
            }
        }
    }
}

/// The size in the body of a [`WINSIZE`] message.
pub(super) fn parse_winsize(body: &[u8]) -> Option<Winsize> {
    let [r0, r1, c0, c1] = *body else { return None };
    let (ws_row, ws_col) = (u16::from_le_bytes([r0, r1]), u16::from_le_bytes([c0, c1]));
    (ws_row > 0 && ws_col > 0).then_some(Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 })
}

/// A whole [`WINSIZE`] message.
pub(super) fn winsize_message(size: Winsize) -> [u8; 5] {
    let ([r0, r1], [c0, c1]) = (size.ws_row.to_le_bytes(), size.ws_col.to_le_bytes());
    [WINSIZE, r0, r1, c0, c1]
}

/// The last output, so that a new viewer sees the prompt the machine is waiting at.
#[derive(Debug, Default)]
pub(super) struct Recent {
    bytes: VecDeque<u8>,
    cut: bool,
}

impl Recent {
    const SIZE: usize = 4096;

    pub(super) fn push(&mut self, data: &[u8]) {
        let data = &data[data.len().saturating_sub(Self::SIZE)..];
        let over = (self.bytes.len() + data.len()).saturating_sub(Self::SIZE);
        self.cut |= over > 0;
        self.bytes.drain(..over);
        self.bytes.extend(data);
    }

    /// Whether the last output ended a line.
    pub(super) fn is_at_line_start(&self) -> bool {
        self.bytes.back().is_none_or(|last| *last == b'\n')
    }

    /// A [`DATA`] message that begins at a whole line, if there is something to show.
    pub(super) fn message(&self) -> Option<Vec<u8>> {
        // A line cut in half may begin inside an escape sequence.
        let line_end = self.bytes.iter().position(|b| *b == b'\n').filter(|_| self.cut);
        let mut message = vec![DATA];
        message.extend(self.bytes.iter().skip(line_end.map_or(0, |at| at + 1)));
        (message.len() > 1).then_some(message)
    }
}
