//! `bind`: a file or directory of the host shown in a machine.

use std::path::PathBuf;

use clap::Args;

use super::copy::{ask, in_machine, on_host};
use crate::enter::files::{Bind, Request};
use crate::ops::Ops;
use crate::report::OpError;

#[derive(Debug, Args)]
pub(crate) struct BindArguments {
    /// The machine
    name: String,
    /// File or directory of the host
    source: PathBuf,
    /// Where the machine is to see it [default: the same path]
    #[arg(value_name = "TARGET")]
    target: Option<String>,
    /// The machine cannot write to it
    #[arg(long)]
    read_only: bool,
    /// Make what is missing of the target
    #[arg(long)]
    mkdir: bool,
}

/// `machinist bind`
pub(super) fn bind(ops: &Ops, args: BindArguments) -> Result<u8, OpError> {
    let source = on_host(&args.source)?;
    let target = in_machine(args.target, &source)?;
    let request = Request::Bind(Bind { source, target, read_only: args.read_only, make: args.mkdir });
    ask(ops, &args.name, &request, "cannot bind in")
}
