//! The caller's side: standard input and output, as terminal or pipe.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use rustix::fs::{FileType, Mode as FileMode, OFlags};
use rustix::io::Errno;
use rustix::termios::{Winsize, isatty};

use super::flow::{give_back, poll_once};
use super::mode::Mode;
use crate::sys::terminal::{Escape, Terminal, winsize};
use crate::sys::{Context, Result};

/// What one read of standard input gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// So many bytes.
    Bytes(usize),
    /// The keys that leave.
    Leave,
    /// Nothing now.
    Nothing,
    /// Nothing ever again.
    End,
}

/// Standard output no longer takes anything.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gone;

/// The caller's side of a console or of a viewer.
#[derive(Debug)]
pub(super) struct Local {
    mode: Mode,
    stdin: Option<OwnedFd>,
    stdout: Sink,
    escape: Escape,
    _raw: Option<Terminal>,
}

impl Local {
    /// Opens both sides; in [`Mode::Interactive`] the terminal `stdin` is raw from now until the drop.
    pub(super) fn open(mode: Mode, stdin: BorrowedFd<'_>, stdout: BorrowedFd<'_>) -> Result<Self> {
        let stdout = Sink::open(stdout)?;
        let input = match mode {
            Mode::Interactive | Mode::Pipe => Some(reopen(stdin, OFlags::RDONLY)?.0),
            Mode::ReadOnly | Mode::Detached => None,
        };
        let raw = if mode == Mode::Interactive { Some(Terminal::acquire(stdin)?) } else { None };
        Ok(Self { mode, stdin: input, stdout, escape: Escape::default(), _raw: raw })
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) fn stdin(&self) -> Option<BorrowedFd<'_>> {
        self.stdin.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn stdout(&self) -> BorrowedFd<'_> {
        self.stdout.fd.as_fd()
    }

    /// Whether output is waiting for standard output.
    pub(super) fn is_behind(&self) -> bool {
        !self.stdout.pending.is_empty()
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.stdout.terminal
    }

    /// Size of the terminal we show the machine on, if it is one.
    pub(super) fn winsize(&self) -> Option<Winsize> {
        if self.stdout.terminal { winsize(&self.stdout.fd).ok() } else { None }
    }

    /// Reads once; call it when poll says so.
    pub(super) fn read(&mut self, buffer: &mut [u8], now: Instant) -> Input {
        let Some(stdin) = &self.stdin else { return Input::Nothing };
        match rustix::io::read(stdin, &mut *buffer) {
            Ok(0) => Input::End,
            Ok(n) if self.mode == Mode::Interactive && self.escape.completes(&buffer[..n], now) => Input::Leave,
            Ok(n) => Input::Bytes(n),
            Err(Errno::AGAIN | Errno::INTR) => Input::Nothing,
            Err(_) => Input::End,
        }
    }

    /// Reads no more.
    pub(super) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Writes what standard output takes now and keeps the rest.
    pub(super) fn write(&mut self, bytes: &[u8]) -> std::result::Result<(), Gone> {
        self.stdout.write(bytes)
    }

    /// Writes more of what is waiting.
    pub(super) fn flush(&mut self) -> std::result::Result<(), Gone> {
        self.stdout.flush()
    }

    /// Writes everything that is waiting unless standard output takes nothing for as long as `patience`.
    pub(super) fn flush_all(&mut self, patience: Duration) -> std::result::Result<(), Gone> {
        while self.is_behind() {
            if !poll_once(&[(self.stdout(), PollFlags::POLLOUT)], Some(patience)) {
                return Err(Gone);
            }
            self.flush()?;
        }
        Ok(())
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        if self.mode == Mode::Interactive && self.is_terminal() && self.stdout.last.is_some() && !self.is_behind() {
            // The machine may have left colours on or the cursor hidden.
            let _ = self.stdout.write(b"\x1b[0m\x1b[?25h");
            if self.stdout.last != Some(b'\n') {
                let _ = self.stdout.write(b"\r\n");
            }
        }
    }
}

/// Standard output that never blocks us.
#[derive(Debug)]
struct Sink {
    fd: OwnedFd,
    nonblocking: bool,
    terminal: bool,
    pending: VecDeque<u8>,
    /// Last byte of the machine's that was handed over.
    last: Option<u8>,
}

impl Sink {
    fn open(fd: BorrowedFd<'_>) -> Result<Self> {
        let (fd, nonblocking) = reopen(fd, OFlags::WRONLY)?;
        Ok(Self { terminal: isatty(&fd), fd, nonblocking, pending: VecDeque::new(), last: None })
    }

    fn write(&mut self, bytes: &[u8]) -> std::result::Result<(), Gone> {
        self.last = bytes.last().copied().or(self.last);
        let mut rest = bytes;
        if self.pending.is_empty() {
            let written = self.write_now(rest)?;
            rest = &rest[written..];
        }
        self.pending.extend(rest);
        Ok(())
    }

    fn flush(&mut self) -> std::result::Result<(), Gone> {
        while !self.pending.is_empty() {
            let written = self.write_now(self.pending.as_slices().0)?;
            if written == 0 {
                break;
            }
            self.pending.drain(..written);
        }
        give_back(&mut self.pending);
        Ok(())
    }

    fn write_now(&self, bytes: &[u8]) -> std::result::Result<usize, Gone> {
        // A pipe or socket that polls writable takes a page without blocking.
        let most = if self.nonblocking { usize::MAX } else { 4096 };
        let mut done = 0;
        while done < bytes.len() {
            if !self.nonblocking && !poll_once(&[(self.fd.as_fd(), PollFlags::POLLOUT)], Some(Duration::ZERO)) {
                break;
            }
            let end = bytes.len().min(done.saturating_add(most));
            match rustix::io::write(&self.fd, &bytes[done..end]) {
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return Err(Gone),
            }
        }
        Ok(done)
    }
}

/// Gives a descriptor for the same file, and whether it is non-blocking.
///
/// `O_NONBLOCK` belongs to the open file, which we share with the caller's shell; setting it there would break
/// the shell after us. So terminals and pipes are opened again. A regular file is not (that would lose its
/// position and `O_APPEND`), nor can a socket be.
pub fn reopen(fd: BorrowedFd<'_>, access: OFlags) -> Result<(OwnedFd, bool)> {
    let stat = rustix::fs::fstat(fd).call(|| format!("fstat(descriptor {})", fd.as_raw_fd()))?;
    if isatty(fd) || FileType::from_raw_mode(stat.st_mode).is_fifo() {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        // It may belong to another user; then the shared one has to do.
        if let Ok(own) = rustix::fs::open(path, flags, FileMode::empty()) {
            return Ok((own, true));
        }
    }
    let copy = rustix::io::fcntl_dupfd_cloexec(fd, 3).call(|| format!("dup(descriptor {})", fd.as_raw_fd()))?;
    Ok((copy, false))
}
