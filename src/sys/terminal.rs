//! Terminals: the raw mode of the caller's, its size, and the key sequence `^]^]^]`.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::termios::{OptionalActions, Termios, Winsize, tcgetattr, tcgetwinsize, tcsetattr};

use super::{Context, Result};

/// Puts a terminal into raw mode and back when dropped, panics included.
///
/// Signals must not kill the process meanwhile: take them through a signalfd, so that every exit drops this.
#[derive(Debug)]
pub struct Terminal {
    tty: OwnedFd,
    saved: Termios,
}

impl Terminal {
    /// Remembers the settings of `tty` and makes it raw.
    pub fn acquire(tty: impl AsFd) -> Result<Self> {
        let tty = rustix::io::fcntl_dupfd_cloexec(tty, 3).call(|| "fcntl(terminal, F_DUPFD_CLOEXEC)".into())?;
        let saved = tcgetattr(&tty).call(|| "tcgetattr(terminal)".into())?;
        let mut raw = saved.clone();
        raw.make_raw();
        let guard = Self { tty, saved };
        tcsetattr(&guard.tty, OptionalActions::Now, &raw).call(|| "tcsetattr(terminal, raw)".into())?;
        Ok(guard)
    }

    /// Rows and columns of the terminal.
    pub fn winsize(&self) -> Result<Winsize> {
        winsize(&self.tty)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Not TCSADRAIN: output that a stopped terminal never takes must not keep us here. A terminal that is
        // gone needs no settings, so failure means nothing.
        let _ = tcsetattr(&self.tty, OptionalActions::Now, &self.saved);
    }
}

/// Rows and columns of the terminal `tty`.
pub fn winsize(tty: impl AsFd) -> Result<Winsize> {
    tcgetwinsize(tty).call(|| "ioctl(terminal, TIOCGWINSZ)".into())
}

/// Looks for `^]` typed three times within a second.
#[derive(Debug, Default)]
pub struct Escape {
    first: Option<Instant>,
    count: u8,
}

impl Escape {
    const KEY: u8 = 0x1d;
    const WINDOW: Duration = Duration::from_secs(1);

    /// Whether `bytes`, typed at `now`, complete the sequence. The first two keys of it are input like any other.
    pub fn completes(&mut self, bytes: &[u8], now: Instant) -> bool {
        for &byte in bytes {
            if byte != Self::KEY {
                self.first = None;
                continue;
            }
            match self.first {
                Some(first) if now.saturating_duration_since(first) <= Self::WINDOW => self.count += 1,
                _ => (self.first, self.count) = (Some(now), 1),
            }
            if self.count == 3 {
                self.first = None;
                return true;
            }
        }
        false
    }
}
