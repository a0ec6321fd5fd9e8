//! What can be read of a machine: addresses, release, ids, its root.

use std::sync::Arc;

use super::Daemon;
use super::call::{Call, Failure, Outcome};
use super::machine::Subject;

pub(super) async fn addresses(_daemon: &Arc<Daemon>, _call: &Call, _subject: &Subject) -> Outcome {
    Err(Failure::not_supported("Not there yet."))
}

pub(super) fn ssh_info(call: &Call, subject: &Subject) -> Outcome {
    match subject {
        Subject::Machine(m) if !m.ssh_address.is_empty() && !m.ssh_key.is_empty() => {
            call.reply(&(&m.ssh_address, &m.ssh_key))
        }
        _ => Err(Failure::errno(nix::errno::Errno::ENOENT, "The machine has no SSH address.")),
    }
}

pub(super) async fn os_release(_daemon: &Arc<Daemon>, _call: &Call, _subject: &Subject) -> Outcome {
    Err(Failure::not_supported("Not there yet."))
}

pub(super) fn uid_shift(_call: &Call, _subject: &Subject) -> Outcome {
    Err(Failure::not_supported("Not there yet."))
}

pub(super) async fn root_directory(_daemon: &Arc<Daemon>, _call: &Call, _subject: &Subject) -> Outcome {
    Err(Failure::not_supported("Not there yet."))
}

pub(super) fn map_ids(_daemon: &Daemon, _call: &Call, _member: &str) -> Outcome {
    Err(Failure::not_supported("Not there yet."))
}
