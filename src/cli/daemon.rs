//! `machinist daemon`.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::daemon::{self, Machine1, Options};
use crate::ops;
use crate::report::OpError;
use crate::spec::Layout;

/// Whether to serve `org.freedesktop.machine1`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Whether {
    /// If no other service has it or can be activated for it
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
    #[arg(long, value_name = "TIME", value_parser = super::words::parse_time)]
    idle_timeout: Option<Duration>,
    /// Group whose members may list and look at machines, also where there is no polkit
    #[arg(long, value_name = "GROUP")]
    read_group: Option<String>,
    /// Address of the bus instead of the system's
    #[arg(long, value_name = "ADDRESS")]
    bus: Option<String>,
}

/// Serves until it is ended.
pub(crate) fn run(layout: &Layout, arguments: DaemonArguments) -> Result<u8, OpError> {
    let machine1 = match arguments.machine1 {
        Whether::Auto => Machine1::Auto,
        Whether::Yes => Machine1::Yes,
        Whether::No => Machine1::No,
    };
    let idle = arguments.idle_timeout.filter(|t| *t != Duration::MAX);
    let read_group = arguments.read_group.as_deref().map(group).transpose()?;
    let options = Options { read_group, layout: layout.clone(), bus: arguments.bus, machine1, idle, say };
    daemon::run(&options).map(|()| 0).map_err(|e| OpError::new(e.to_string()))
}

/// The number of a group of the host, by name or number.
fn group(text: &str) -> Result<u32, OpError> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    match nix::unistd::Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        _ => Err(OpError::usage(format!("there is no group '{text}'"))),
    }
}

/// Is a helper of a daemon: what may wait for a machine.
pub(crate) fn help(layout: &Layout, sealed: bool) -> Result<u8, OpError> {
    if sealed {
        ops::seal()?;
    }
    daemon::help(layout).map_err(|e| OpError::new(e.to_string()))
}

/// One line on standard error, with the priority that the journal reads where no terminal is attached.
fn say(priority: u8, text: &str) {
    let mut err = std::io::stderr();
    let line = if err.is_terminal() { format!("{text}\n") } else { format!("<{priority}>{text}\n") };
    // In one go: standard error keeps nothing back. Who cannot be told is not there any more.
    let _ = err.write_all(line.as_bytes());
}
