//! The client of a viewer: `machinist console NAME`.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;

use super::flow::{BUFFER, TYPE_AHEAD};
use super::local::{Gone, Input, Local};
use super::mode::Mode;
use super::viewer::{CLOSED, DATA, winsize_message};
use crate::sys::{Context, Errno, Error, Result, process, socket};

/// Why watching ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttachEnd {
    /// The user typed `^]` three times.
    Left,
    /// The supervisor closed the connection, for this reason.
    Closed(String),
    /// This signal came.
    Signal(i32),
    /// Our own terminal or pipe is gone.
    LocalGone,
}

/// Shows the console behind `socket`, a connection that [`super::Console::add_viewer`] was given the other end
/// of, on standard output, and types standard input into it.
///
/// Signals that end a program end this function, and the terminal is restored before it returns.
pub fn attach(socket: OwnedFd, machine: &str, mode: Mode) -> Result<AttachEnd> {
    attach_local(socket, machine, || Local::open(mode, rustix::stdio::stdin(), rustix::stdio::stdout()))
}

/// Same for another caller's side, which `open` makes raw only when no signal can kill us any more.
pub(super) fn attach_local(socket: OwnedFd, machine: &str, open: impl FnOnce() -> Result<Local>) -> Result<AttachEnd> {
    let mask = SigSet::thread_get_mask().call(|| "sigprocmask".into())?;
    let signals =
        process::signal_fd(&[Signal::SIGWINCH, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT])?;
    // The terminal is restored in there, before a signal can act again.
    let end = Client::watch(socket, signals, machine, open);
    mask.thread_set_mask().call(|| "sigprocmask(restore)".into())?;
    end
}

struct Client {
    socket: OwnedFd,
    signals: SignalFd,
    local: Local,
    /// Input the supervisor has not taken yet.
    outgoing: VecDeque<u8>,
    buffer: Box<[u8; BUFFER]>,
}

/// Most bytes of input in one message.
const PIECE: usize = 4096;

const LEAVE_HINT: &str = " Press ^] three times within 1s to leave.";

impl Client {
    fn watch(
        socket: OwnedFd,
        signals: SignalFd,
        machine: &str,
        open: impl FnOnce() -> Result<Local>,
    ) -> Result<AttachEnd> {
        rustix::io::ioctl_fionbio(&socket, true).call(|| "ioctl(console connection, FIONBIO)".into())?;
        let local = open()?;
        let mut client = Self { socket, signals, local, outgoing: VecDeque::new(), buffer: Box::new([0; BUFFER]) };
        let leave = if client.local.mode() == Mode::Interactive { LEAVE_HINT } else { "" };
        client.remark(&format!("Connected to machine '{machine}'.{leave}\r\n"));
        let end = client.run()?;
        let reason = match &end {
            AttachEnd::Closed(reason) => format!(": {reason}"),
            _ => String::new(),
        };
        client.remark(&format!("\x1b[0m\r\nDisconnected from machine '{machine}'{reason}.\r\n"));
        let _ = client.local.flush_all(Duration::from_secs(5));
        Ok(end)
    }

    /// Says something of our own, which must not get between the bytes of a pipe.
    fn remark(&mut self, text: &str) {
        if self.local.is_terminal() {
            // A terminal that is gone is noticed with the machine's own output.
            let _ = self.local.write(text.as_bytes());
        }
    }

    fn run(&mut self) -> Result<AttachEnd> {
        self.send_winsize()?;
        loop {
            let [signals, socket, stdin, stdout] = self.wait()?;
            let end = if !signals.is_empty() {
                self.take_signal()?
            } else if !stdout.is_empty() && self.local.flush() == Err(Gone) {
                Some(AttachEnd::LocalGone)
            } else if !stdin.is_empty() {
                self.take_input()
            } else {
                None
            };
            if let Some(end) = end {
                return Ok(end);
            }
            self.send_outgoing()?;
            let readable = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
            if socket.intersects(readable)
                && !self.local.is_behind()
                && let Some(end) = self.receive()?
            {
                return Ok(end);
            }
        }
    }

    /// Waits; what is not waited for reports nothing.
    fn wait(&self) -> Result<[PollFlags; 4]> {
        let mut socket = PollFlags::empty();
        socket.set(PollFlags::POLLIN, !self.local.is_behind());
        socket.set(PollFlags::POLLOUT, !self.outgoing.is_empty());
        let reads = self.outgoing.is_empty() || self.local.mode() == Mode::Interactive;
        let entries = [
            Some((self.signals.as_fd(), PollFlags::POLLIN)),
            Some((self.socket.as_fd(), socket)).filter(|_| !socket.is_empty()),
            self.local.stdin().filter(|_| reads).map(|fd| (fd, PollFlags::POLLIN)),
            Some((self.local.stdout(), PollFlags::POLLOUT)).filter(|_| self.local.is_behind()),
        ];
        let mut fds: Vec<PollFd<'_>> = entries.iter().flatten().map(|(fd, flags)| PollFd::new(*fd, *flags)).collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => return Ok([PollFlags::empty(); 4]),
            result => result.call(|| "poll".into())?,
        };
        let mut results = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        Ok(entries.map(|entry| entry.and_then(|_| results.next()).unwrap_or(PollFlags::empty())))
    }

    fn take_signal(&mut self) -> Result<Option<AttachEnd>> {
        while let Some(info) = self.signals.read_signal().call(|| "read(signalfd)".into())? {
            let signal = i32::try_from(info.ssi_signo).unwrap_or(0);
            if signal != Signal::SIGWINCH as i32 {
                return Ok(Some(AttachEnd::Signal(signal)));
            }
            self.send_winsize()?;
        }
        Ok(None)
    }

    fn send_winsize(&self) -> Result<()> {
        let Some(size) = self.local.winsize() else { return Ok(()) };
        match socket::send(&self.socket, &winsize_message(size), &[]) {
            // A supervisor that is stuck or gone shows itself on the way of the data.
            Err(e) if !matches!(e.errno, Errno::EAGAIN | Errno::EPIPE | Errno::ECONNRESET) => Err(e),
            _ => Ok(()),
        }
    }

    fn take_input(&mut self) -> Option<AttachEnd> {
        match self.local.read(&mut self.buffer[..PIECE], Instant::now()) {
            Input::Bytes(len) => {
                let room = TYPE_AHEAD.saturating_sub(self.outgoing.len());
                self.outgoing.extend(&self.buffer[..len.min(room)]);
            }
            Input::Leave => return Some(AttachEnd::Left),
            Input::End if self.local.mode() == Mode::Interactive => return Some(AttachEnd::LocalGone),
            // Others may be using the console, so the end of our input is not the machine's business.
            Input::End => self.local.close_stdin(),
            Input::Nothing => {}
        }
        None
    }

    fn send_outgoing(&mut self) -> Result<()> {
        while !self.outgoing.is_empty() {
            let len = self.outgoing.len().min(PIECE);
            let message: Vec<u8> = std::iter::once(DATA).chain(self.outgoing.iter().take(len).copied()).collect();
            match socket::send(&self.socket, &message, &[]) {
                Ok(()) => drop(self.outgoing.drain(..len)),
                Err(e) if e.errno == Errno::EAGAIN => return Ok(()),
                // The reason may still be waiting to be read.
                Err(e) if matches!(e.errno, Errno::EPIPE | Errno::ECONNRESET) => self.outgoing.clear(),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Option<AttachEnd>> {
        let message = match socket::receive(&self.socket, &mut self.buffer[..]) {
            Ok(received) => &self.buffer[..received.len],
            Err(Error { errno: Errno::EAGAIN, .. }) => return Ok(None),
            Err(Error { errno: Errno::ECONNRESET, .. }) => &[],
            Err(e) => return Err(e),
        };
        Ok(match message.split_first() {
            None => Some(AttachEnd::Closed("the supervisor is gone".into())),
            Some((&DATA, data)) => self.local.write(data).err().map(|Gone| AttachEnd::LocalGone),
            Some((&CLOSED, reason)) => Some(AttachEnd::Closed(String::from_utf8_lossy(reason).into_owned())),
            Some(_) => None,
        })
    }
}
