//! The machine's control group: our own, its unit's, or that of a scope which systemd makes for it.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use super::error::MachineError;
use super::job::Job;
use crate::bus::systemd1::{self, Scope, ScopeRequest};
use crate::bus::{Bus, BusError};
use crate::cgroup::limits::{self, LimitError};
use crate::cgroup::{self, MachineGroup};
use crate::host::CgroupFacts;
use crate::plan::{CgroupPlan, UnitPlan};
use crate::sys::StepError;
use crate::sys::worker::{Child, Worker};
use crate::sys::{self, Errno};

/// A machine's control group, and what came with it.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) group: MachineGroup,
    /// Keeps the scope until the supervisor is in it.
    pub(super) scope_holder: Option<ScopeHolder>,
    /// Why systemd could not be asked for one, which has been said.
    pub(super) no_bus: Option<BusError>,
}

impl Group {
    /// Makes the group where the plan has it.
    pub(super) fn make(job: &Job, owner: u32) -> Result<Self, MachineError> {
        let plan = &job.plan.cgroup;
        let doing = |cause: sys::Error| {
            let hint = match cause.errno {
                Errno::EACCES | Errno::EPERM | Errno::EROFS => {
                    Some("this group is not delegated to us; name one that is with `[cgroup] parent`")
                }
                Errno::EBUSY => Some("the group above holds processes; name an empty one with `[cgroup] parent`"),
                _ => None,
            };
            StepError {
                doing: "cannot make the machine's control group".into(),
                cause: Some(cause),
                hint: hint.map(Into::into),
            }
        };
        let ours = |plan: &CgroupPlan| MachineGroup::create(plan, owner, job.background);
        let group = match (&plan.unit, &job.facts.cgroup) {
            (UnitPlan::Own(unit), Some(facts)) => own_unit(plan, unit, facts, owner),
            (UnitPlan::Scope { unit, .. }, _) => match start_scope(job, unit) {
                Ok(scope) => return in_scope(job, unit, scope, owner).map_err(|e| doing(e).into()),
                Err(error) => {
                    job.events.warn(&format!("machine '{}' has no unit of its own: {error}", job.plan.name));
                    let group = ours(&plan.without_scope()).map_err(doing)?;
                    return Ok(Self { group, scope_holder: None, no_bus: Some(error) });
                }
            },
            _ => ours(plan),
        };
        Ok(Self { group: group.map_err(doing)?, scope_holder: None, no_bus: None })
    }
}

/// Keeps the machine within its limits; each start of the payload's group begins without.
pub(super) fn limit(job: &Job, group: &MachineGroup) -> Result<(), StepError> {
    let plan = &job.plan;
    let doing = |e: LimitError| StepError {
        doing: format!("cannot limit the machine by `resources.{}`", e.key),
        hint: e.hint().map(Into::into),
        cause: Some(e.cause),
    };
    if group.unit().is_none() {
        limits::hand_down(&plan.cgroup.mount, group.path(), &job.limits.limits).map_err(doing)?;
    }
    for limit in &job.limits.limits {
        match limits::set(group.path(), limit) {
            Err(e) if limit.optional => {
                let text = format!("machine '{}' is not limited by `resources.{}`: {}", plan.name, e.key, e.cause);
                job.events.warn(&text);
            }
            other => other.map_err(doing)?,
        }
    }
    Ok(())
}

/// The unit that we are the main process of becomes the machine's.
fn own_unit(plan: &CgroupPlan, unit: &str, facts: &CgroupFacts, owner: u32) -> sys::Result<MachineGroup> {
    let path = cgroup::host_path(plan);
    let supervisor = cgroup::make_supervisor(&path)?;
    if facts.own == plan.group {
        // systemd before 254 has no DelegateSubgroup=.
        cgroup::enter(&supervisor)?;
    }
    MachineGroup::in_unit(&path, unit, owner)
}

fn start_scope(job: &Job, unit: &str) -> Result<Scope, BusError> {
    let request = ScopeRequest {
        unit,
        description: &format!("Machine {}", job.plan.name),
        // What is killed when our own time is up needs a moment to be cleared away.
        stop_timeout: job.plan.exec.stop_timeout.map(|seconds| Duration::from_secs(seconds.saturating_add(10))),
        own_tasks_max: job.limits.resources.pids_max.is_some(),
    };
    systemd1::start_scope(&Bus::of(&job.layout), &request)
}

/// The machine's group is the scope's. A supervisor in the foreground moves there; one in the background will be born
/// there.
fn in_scope(job: &Job, unit: &str, scope: Scope, owner: u32) -> sys::Result<Group> {
    let path = job.plan.cgroup.mount.join(scope.group().trim_start_matches('/'));
    let supervisor = cgroup::make_supervisor(&path)?;
    let scope_holder = if job.background {
        Some(ScopeHolder::start(&supervisor)?)
    } else {
        cgroup::enter(&supervisor)?;
        None
    };
    scope.go()?;
    let group = MachineGroup::in_unit(&path, unit, owner)?;
    Ok(Group { group, scope_holder, no_bus: None })
}

/// A process that does nothing but be in a group, since systemd forgets a scope without any; gone when dropped.
#[derive(Debug)]
pub(super) struct ScopeHolder {
    _child: Child,
}

impl ScopeHolder {
    fn start(dir: &Path) -> sys::Result<Self> {
        let group = cgroup::open(dir)?;
        let worker = Worker::new(c"machinist-keep").cgroup(Some(group.as_fd())).tied().kill_on_drop().keep(&[]);
        let child = worker.spawn(|| {
            nix::unistd::pause();
            0
        })?;
        Ok(Self { _child: child })
    }
}
