//! `enable` and `disable`: whether machines start with the host.

use clap::Args;

use super::output::status;
use crate::ops::Ops;
use crate::report::OpError;

#[derive(Debug, Args)]
pub(crate) struct EnableArguments {
    /// Machines
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Also start or stop them now
    #[arg(long)]
    now: bool,
}

/// `machinist enable`
pub(super) fn enable(ops: &Ops, args: &EnableArguments) -> Result<u8, OpError> {
    ops.enable(&args.names, args.now)?;
    Ok(status::OK)
}

/// `machinist disable`
pub(super) fn disable(ops: &Ops, args: &EnableArguments) -> Result<u8, OpError> {
    ops.disable(&args.names, args.now)?;
    Ok(status::OK)
}
