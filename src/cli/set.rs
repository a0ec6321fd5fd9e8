//! `set`: other limits for a machine.

use clap::Args;

use super::output::status;
use crate::ops::Ops;
use crate::report::OpError;

#[derive(Debug, Args)]
pub(crate) struct SetArguments {
    /// The machine
    name: String,
    /// Keys of `[resources]`, as in `memory-max=1G`; without a value, back to what the definition says
    #[arg(required = true, value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Keep them for later starts, too, in a drop-in of the definition
    #[arg(long)]
    save: bool,
}

/// `machinist set`
pub(super) fn set(ops: &Ops, args: &SetArguments) -> Result<u8, OpError> {
    ops.set(&args.name, &args.settings, args.save)?;
    Ok(status::OK)
}
