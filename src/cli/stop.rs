//! `stop`: machines in their init's own way.

use std::time::Duration;

use clap::Args;

use super::output::status;
use super::words::parse_time;
use crate::ops::{Ops, Stop};
use crate::report::OpError;

#[derive(Debug, Args)]
pub(crate) struct StopArguments {
    /// Machines
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "NAME")]
    names: Vec<String>,
    /// Every running machine
    #[arg(long)]
    all: bool,
    /// Kill what has not ended after this long, instead of the machine's own `stop-timeout`
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    timeout: Option<Duration>,
}

/// `machinist stop`
pub(super) fn stop(ops: &Ops, args: StopArguments) -> Result<u8, OpError> {
    let StopArguments { names, all, timeout } = args;
    ops.stop(&Stop { names, all, timeout })?;
    Ok(status::OK)
}
