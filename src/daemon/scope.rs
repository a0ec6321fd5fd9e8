//! Units of the host's systemd for machines that are not ours.

use std::sync::Arc;

use zbus::wire::OwnedVariant;

use super::Daemon;
use super::call::Outcome;
use super::registry::{Class, Machine, Process};
use crate::sys::process;

/// Puts a leader into a scope of its own; without systemd on the host it stays where it is.
pub(super) async fn create(
    _daemon: &Arc<Daemon>,
    _name: &str,
    _class: Class,
    _leader: &Process,
    _uid: u32,
    _properties: Vec<(String, OwnedVariant)>,
) -> Outcome<()> {
    Ok(())
}

/// Ends a machine at once.
pub(super) async fn terminate(_daemon: &Arc<Daemon>, machine: &Machine) -> Outcome<()> {
    // The end of the first process of a PID namespace is the end of all.
    Ok(process::pidfd_send_signal(machine.leader.pidfd(), libc::SIGKILL)?)
}

/// Signals every process of a machine.
pub(super) async fn kill_all(_daemon: &Arc<Daemon>, machine: &Machine, signal: i32) -> Outcome<()> {
    Ok(process::pidfd_send_signal(machine.leader.pidfd(), signal)?)
}
