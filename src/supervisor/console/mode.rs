//! The caller's side of a console, by its kind.

use rustix::termios::isatty;

/// What the caller's side of the console is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Keys go to the machine, its output to the terminal, which is raw meanwhile.
    Interactive,
    /// Output only.
    ReadOnly,
    /// Bytes go both ways unchanged; the end of input is passed on.
    Pipe,
    /// None: only log and viewers.
    Detached,
}

impl Mode {
    /// Interactive if standard input and output are terminals, else a pipe.
    pub fn of_stdio() -> Self {
        let terminals = isatty(rustix::stdio::stdin()) && isatty(rustix::stdio::stdout());
        if terminals { Self::Interactive } else { Self::Pipe }
    }
}
