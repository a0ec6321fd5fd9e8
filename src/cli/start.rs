//! `start`: machines in the background.

use std::num::NonZeroUsize;

use clap::Args;

use super::output::status;
use crate::ops::{Ops, Start};
use crate::report::OpError;

#[derive(Debug, Args)]
pub(crate) struct StartArguments {
    /// Machines or files
    #[arg(required_unless_present = "autostart", value_name = "NAME|FILE")]
    names: Vec<String>,
    /// Also every machine that starts with the host, and none that runs already
    #[arg(long)]
    autostart: bool,
    /// Only these and not what they need, which the caller has seen to
    #[arg(long, hide = true)]
    alone: bool,
    /// Return as soon as the init has begun
    #[arg(long)]
    no_wait: bool,
    /// Start at most N machines at once [default: twice the number of processors]
    #[arg(long, short, value_name = "N")]
    jobs: Option<std::num::NonZeroUsize>,
}

/// `machinist start`
pub(super) fn start(ops: &Ops, args: StartArguments) -> Result<u8, OpError> {
    let StartArguments { names, autostart, alone, no_wait, jobs } = args;
    ops.start(&Start { names, autostart, alone, no_wait, jobs: jobs.map(NonZeroUsize::get) })?;
    Ok(status::OK)
}
