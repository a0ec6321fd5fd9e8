//! A terminal, a login, a shell in a machine.

use std::sync::Arc;

use super::Daemon;
use super::call::{Call, Failure, Outcome};
use super::machine::Subject;

/// The arguments of `OpenShell`.
#[derive(Debug)]
pub(super) struct Shell {
    pub(super) user: String,
    pub(super) path: String,
    pub(super) args: Vec<String>,
    pub(super) environment: Vec<String>,
}

pub(super) async fn pty(_daemon: &Arc<Daemon>, _call: &Call, _subject: &Subject) -> Outcome {
    Err(Failure::not_supported("Not there yet."))
}

pub(super) async fn login(_daemon: &Arc<Daemon>, _call: &Call, _subject: &Subject) -> Outcome {
    Err(Failure::not_supported("Not there yet."))
}

pub(super) async fn shell(_daemon: &Arc<Daemon>, _call: &Call, _subject: &Subject, _shell: Shell) -> Outcome {
    Err(Failure::not_supported("Not there yet."))
}
