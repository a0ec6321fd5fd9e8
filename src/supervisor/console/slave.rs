//! The machine's side of the console's pty.

use std::os::fd::AsFd;

use rustix::termios::{
    InputModes, LocalModes, OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize,
};

use super::mode::Mode;
use crate::sys::{Context, Result};

/// Sets the machine's terminal up before its payload starts; either end of the pty will do.
///
/// In [`Mode::Pipe`] it echoes nothing and leaves output alone. It stays line-oriented there, because only
/// then can the end of standard input reach the payload.
pub fn prepare_slave(pty: impl AsFd, mode: Mode, winsize: Option<Winsize>) -> Result<()> {
    if let Some(size) = winsize {
        tcsetwinsize(&pty, size).call(|| "ioctl(console, TIOCSWINSZ)".into())?;
    }
    if mode != Mode::Pipe {
        return Ok(());
    }
    let mut line = tcgetattr(&pty).call(|| "tcgetattr(console)".into())?;
    line.output_modes.remove(OutputModes::OPOST);
    line.local_modes.remove(LocalModes::ECHO | LocalModes::ECHONL);
    // The kernel obeys ^S and ^Q ahead of time, whether quoted or not, so they must mean nothing.
    line.input_modes.remove(InputModes::IXON | InputModes::IXOFF | InputModes::ICRNL);
    tcsetattr(&pty, OptionalActions::Now, &line).call(|| "tcsetattr(console)".into())
}
