//! One boot of a machine.

use std::os::fd::OwnedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::unistd::Pid;

use super::held::Held;
use super::session::Session;
use crate::cgroup;
use crate::plan::TreePlan;
use crate::running::state::{Phase, State, start_time};
use crate::spec::{InitKind, Restart};
use crate::sys::process;

/// What belongs to one boot, and is gone with its leader.
#[derive(Debug)]
pub(super) struct Boot {
    /// The pidfd of PID 1.
    pub(super) leader: OwnedFd,
    /// The socket to which its init sends what it has to say of itself.
    pub(super) notify: OwnedFd,
    pub(super) state: State,
}

impl Boot {
    /// Kills every process of the machine.
    pub(super) fn kill(&self) {
        // Both: a group that cannot be killed still loses its PID 1, and with it every process of the machine.
        let _ = cgroup::kill_payload(&self.state.cgroup);
        let _ = process::pidfd_send_signal(&self.leader, libc::SIGKILL);
    }
}

/// The state file of a boot that begins.
pub(super) fn state(
    held: &Held,
    session: &Session,
    leader: i32,
    init: Option<String>,
    init_kind: Option<InitKind>,
) -> State {
    let job = &session.job;
    let plan = &job.plan;
    State {
        name: plan.name.as_str().to_owned(),
        machine_id: None,
        phase: Phase::Starting,
        leader,
        leader_start: start_time(leader).unwrap_or(0),
        supervisor: Pid::this().as_raw(),
        since: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        ids: held.range(plan.ids),
        private_network: plan.namespaces.network.is_own(),
        own_clock: plan.namespaces.time.is_own(),
        cgroup: held.group.path().to_owned(),
        unit: held.group.unit().map(str::to_owned),
        capabilities: plan.privileges.capabilities,
        no_new_privileges: plan.privileges.no_new_privileges,
        process_limits: plan.privileges.limits.clone(),
        seccomp: plan.seccomp.clone(),
        resources: job.limits.resources.clone(),
        limits: job.limits.limits.clone(),
        init,
        init_kind,
        root: match &plan.root.source {
            TreePlan::Directory(path) => path.display().to_string(),
            TreePlan::Overlay(overlay) => overlay.describe(),
        },
        definition: job.definition.clone(),
        status: None,
        waits_for: None,
        restarts: session.history.restarts(),
        last_end: session.history.last().map(str::to_owned),
        // Who runs it in the foreground sees to it.
        restart: Some(plan.exec.restart).filter(|policy| job.background && policy.when != Restart::No),
    }
}
