//! `machinist daemon`.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::output::Failure;
use crate::daemon::{self, Machine1, Options};
use crate::spec::Layout;

/// Whether to serve `org.freedesktop.machine1`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Whether {
    /// If nobody else does, nor could be started to
    Auto,
    /// Yes, or fail
    Yes,
    /// No
    No,
}

#[derive(Debug, Args)]
pub(crate) struct DaemonArguments {
    /// Serve org.freedesktop.machine1, as systemd-machined does
    #[arg(long, value_enum, default_value = "auto", value_name = "WHETHER")]
    machine1: Whether,
    /// End after so long without machines and calls
    #[arg(long, value_name = "TIME", value_parser = super::parse_time)]
    idle_timeout: Option<Duration>,
    /// Address of the bus instead of the system's
    #[arg(long, value_name = "ADDRESS")]
    bus: Option<String>,
}

/// Serves until it is ended.
pub(crate) fn run(layout: &Layout, arguments: DaemonArguments) -> Result<u8, Failure> {
    let machine1 = match arguments.machine1 {
        Whether::Auto => Machine1::Auto,
        Whether::Yes => Machine1::Yes,
        Whether::No => Machine1::No,
    };
    let idle = arguments.idle_timeout.filter(|t| *t != Duration::MAX);
    let options = Options { layout: layout.clone(), bus: arguments.bus, machine1, idle, say };
    daemon::run(&options).map(|()| 0).map_err(|e| Failure::new(e.to_string()))
}

/// One line on standard error, with the priority that the journal reads where nobody watches.
fn say(priority: u8, text: &str) {
    let mut err = std::io::stderr().lock();
    let result = if err.is_terminal() { writeln!(err, "{text}") } else { writeln!(err, "<{priority}>{text}") };
    // There is nobody left to tell.
    let _ = result;
}
