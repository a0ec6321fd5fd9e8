//! `copy-to` and `copy-from`: files into and out of a machine.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::enter::files::{self, Copy, Direction, Request};
use crate::ops::Ops;
use crate::report::OpError;

#[derive(Debug, Args)]
pub(crate) struct CopyToArguments {
    /// The machine
    name: String,
    /// File or directory of the host
    source: PathBuf,
    /// Path in the machine [default: the same path]
    #[arg(value_name = "TARGET")]
    target: Option<String>,
    /// Replace files that are there
    #[arg(long, short)]
    force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CopyFromArguments {
    /// The machine
    name: String,
    /// File or directory of the machine
    source: String,
    /// Path on the host [default: the same path]
    #[arg(value_name = "TARGET")]
    target: Option<PathBuf>,
    /// Replace files that are there
    #[arg(long, short)]
    force: bool,
}

/// `machinist copy-to`
pub(super) fn copy_to(ops: &Ops, args: CopyToArguments) -> Result<u8, OpError> {
    let source = on_host(&args.source)?;
    let target = in_machine(args.target, &source)?;
    let request = Copy { direction: Direction::ToMachine, source, target, replace: args.force };
    ask(ops, &args.name, &Request::Copy(request), "cannot copy to")
}

/// `machinist copy-from`
pub(super) fn copy_from(ops: &Ops, args: CopyFromArguments) -> Result<u8, OpError> {
    let source = in_machine(Some(args.source), "")?;
    let target = args.target.as_deref().map(on_host).transpose()?.unwrap_or_else(|| source.clone());
    let request = Copy { direction: Direction::FromMachine, source, target, replace: args.force };
    ask(ops, &args.name, &Request::Copy(request), "cannot copy from")
}

/// A path of the host, which may be relative to where we are.
pub(super) fn on_host(path: &Path) -> Result<String, OpError> {
    let path = std::path::absolute(path).map_err(|e| OpError::new(format!("no path '{}': {e}", path.display())))?;
    let text = path.to_str().ok_or_else(|| OpError::usage(format!("'{}' is no text", path.display())))?;
    Ok(text.to_owned())
}

/// A path of the machine, which has no place that it could be relative to.
pub(super) fn in_machine(path: Option<String>, same: &str) -> Result<String, OpError> {
    let path = path.unwrap_or_else(|| same.to_owned());
    if path.starts_with('/') { Ok(path) } else { Err(OpError::usage(format!("'{path}' is no absolute path"))) }
}

pub(super) fn ask(ops: &Ops, name: &str, request: &Request, doing: &str) -> Result<u8, OpError> {
    let (name, state) = ops.running(name)?;
    let leader = state.open_leader().map_err(|e| OpError::call(format!("{doing} machine '{name}'"), &e))?;
    let done = files::ask(leader, request, None);
    done.map(|_| 0).map_err(|e| OpError::new(format!("{doing} machine '{name}'")).cause(e.to_string()))
}
