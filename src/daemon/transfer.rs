//! Files into and out of a running machine: binds and copies.

use std::sync::Arc;

use super::Daemon;
use super::call::{Call, Failure, Outcome};
use super::machine::Subject;

/// The arguments of `BindMount`.
#[derive(Debug)]
pub(super) struct Bind {
    pub(super) source: String,
    pub(super) destination: String,
    pub(super) read_only: bool,
    pub(super) mkdir: bool,
}

/// The arguments of the four copying methods.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) to: bool,
    pub(super) source: String,
    pub(super) destination: String,
    pub(super) flags: u64,
}

pub(super) async fn bind(_daemon: &Arc<Daemon>, _call: &Call, _subject: &Subject, _bind: Bind) -> Outcome {
    Err(Failure::not_supported("Not there yet."))
}

pub(super) async fn copy(_daemon: &Arc<Daemon>, _call: &Call, _subject: &Subject, _copy: Copy) -> Outcome {
    Err(Failure::not_supported("Not there yet."))
}
