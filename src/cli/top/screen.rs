//! The terminal while it shows our picture, and its way back.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr,
};

use super::render::{Drawn, Size};
use crate::supervisor::console::reopen;
use crate::sys::{Context as _, Result};

/// The other screen, no cursor, no wrapping.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J";
/// Back from all of it.
const LEAVE: &[u8] = b"\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l";

/// How long a terminal that takes nothing can keep us from ending.
const PATIENCE: Duration = Duration::from_secs(1);

/// The terminal is gone.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gone;

/// A terminal that is ours until the drop, panics included.
///
/// Signals must not kill the process meanwhile: take them through a signalfd.
#[derive(Debug)]
pub(super) struct Screen {
    input: OwnedFd,
    output: OwnedFd,
    saved: Termios,
    /// Of the last picture, what the terminal has not taken.
    pending: Vec<u8>,
    entered: bool,
    /// Whether the terminal is on the other screen, for a panic that must not be said there.
    shown: Arc<AtomicBool>,
}

impl Screen {
    /// Takes the terminal.
    pub(super) fn open(stdin: BorrowedFd<'_>, stdout: BorrowedFd<'_>) -> Result<Self> {
        let saved = tcgetattr(stdin).call(|| "tcgetattr(terminal)".into())?;
        let (input, _) = reopen(stdin, OFlags::RDONLY)?;
        let (output, _) = reopen(stdout, OFlags::WRONLY)?;
        let shown = Arc::new(AtomicBool::new(false));
        let mut screen = Self { input, output, saved, pending: Vec::new(), entered: false, shown };
        screen.enter()?;
        Ok(screen)
    }

    /// Makes the terminal ready for pictures; again does no harm.
    pub(super) fn enter(&mut self) -> Result<()> {
        let mut modes = self.saved.clone();
        // Keys come at once and unseen. Ctrl-C and the like stay signals, which are for the whole job.
        modes.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::IEXTEN);
        modes.local_modes.insert(LocalModes::ISIG);
        modes.input_modes.remove(InputModes::IXON | InputModes::ICRNL);
        modes.special_codes[SpecialCodeIndex::VMIN] = 1;
        modes.special_codes[SpecialCodeIndex::VTIME] = 0;
        // Marked first: a failure in between is undone, too.
        self.entered = true;
        self.set(&modes).call(|| "tcsetattr(terminal)".into())?;
        self.shown.store(true, Ordering::Relaxed);
        self.pending.clear();
        self.pending.extend(ENTER);
        // One that is gone is noticed when it is read.
        let _ = self.flush();
        Ok(())
    }

    /// Gives the terminal back as it was.
    pub(super) fn leave(&mut self) {
        if !std::mem::take(&mut self.entered) {
            return;
        }
        // After a panic it has been written. The rest of a picture is no loss.
        self.pending.clear();
        if self.shown.swap(false, Ordering::Relaxed) {
            self.pending.extend(LEAVE);
        }
        while !self.pending.is_empty() && self.flush().is_ok() && !self.pending.is_empty() {
            let wait = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::ZERO);
            if !matches!(poll(&mut [PollFd::new(self.output.as_fd(), PollFlags::POLLOUT)], wait), Ok(1..)) {
                break;
            }
        }
        // A terminal that is gone needs no settings.
        let saved = self.saved.clone();
        let _ = self.set(&saved);
    }

    /// Lets a panic of this program be said where it can be read.
    pub(super) fn leave_before_panics(&self) {
        let (shown, usual) = (Arc::clone(&self.shown), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |info| {
            if shown.swap(false, Ordering::Relaxed) {
                let _ = rustix::io::write(rustix::stdio::stdout(), LEAVE);
            }
            usual(info);
        }));
    }

    fn set(&self, modes: &Termios) -> rustix::io::Result<()> {
        loop {
            match tcsetattr(&self.input, OptionalActions::Now, modes) {
                // We were stopped because the terminal was another job's, and are back.
                Err(Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Whether the terminal is ours now, and not another job's.
    pub(super) fn is_foreground(&self) -> bool {
        tcgetpgrp(&self.input).is_ok_and(|group| group == rustix::process::getpgrp())
    }

    /// The terminal for reading keys.
    pub(super) fn input(&self) -> BorrowedFd<'_> {
        self.input.as_fd()
    }

    /// The terminal for writing, if it has to take more.
    pub(super) fn output(&self) -> Option<BorrowedFd<'_>> {
        (!self.pending.is_empty()).then(|| self.output.as_fd())
    }

    /// Its size; the usual one if it does not say.
    pub(super) fn size(&self) -> Size {
        let (columns, rows) = tcgetwinsize(&self.output).map_or((0, 0), |size| (size.ws_col, size.ws_row));
        let or = |value: u16, usual| if value == 0 { usual } else { usize::from(value) };
        Size { columns: or(columns, 80), rows: or(rows, 24) }
    }

    /// Reads keys; call it when poll says so.
    pub(super) fn read(&self, buffer: &mut [u8]) -> std::result::Result<usize, Gone> {
        match rustix::io::read(&self.input, &mut *buffer) {
            Ok(0) => Err(Gone),
            Ok(len) => Ok(len),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(_) => Err(Gone),
        }
    }

    /// Shows a picture in one piece, over the last one so that nothing flickers. One that the terminal could not take yet
    /// is finished first, and this one not shown.
    pub(super) fn show(&mut self, lines: &[Drawn]) -> std::result::Result<bool, Gone> {
        if !self.pending.is_empty() {
            return Ok(false);
        }
        self.pending.extend(b"\x1b[H");
        for (index, line) in lines.iter().enumerate() {
            let begin: &[u8] = if index == 0 { b"" } else { b"\r\n" };
            self.pending.extend(begin);
            self.pending.extend(line.text.as_bytes());
            let end: &[u8] = if line.full { b"" } else { b"\x1b[K" };
            self.pending.extend(end);
        }
        self.flush().map(|()| true)
    }

    /// Writes what the terminal takes now.
    pub(super) fn flush(&mut self) -> std::result::Result<(), Gone> {
        while !self.pending.is_empty() {
            match rustix::io::write(&self.output, &self.pending) {
                Ok(len) => drop(self.pending.drain(..len)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    self.pending.clear();
                    return Err(Gone);
                }
            }
        }
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.leave();
    }
}
