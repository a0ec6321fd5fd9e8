//! Removes what a killed supervisor left.

use std::path::{Path, PathBuf};

use super::error::MachineError;
use crate::host::HostFacts;
use crate::plan::mounts::MountOp;
use crate::plan::{self, OverlayPlan, Plan, TreePlan, UnitPlan, UpperPlan, group_below_own};
use crate::rootfs::idmap;
use crate::running::state::{RunDir, RunDirError};
use crate::spec::{Layout, MachineName, MachineSpec, UserMode};
use crate::sys::StepError;
use crate::{cgroup, image};

/// Removes what a killed supervisor left of a machine; says whether there was anything.
///
/// `spec` is its definition, if there still is one: it names ids and a control group of its own.
pub fn reap(
    layout: &Layout,
    facts: &HostFacts,
    name: &MachineName,
    spec: Option<&MachineSpec>,
) -> Result<bool, MachineError> {
    let doing = |cause| {
        let doing = "cannot remove what is left of it".into();
        MachineError::Step(StepError { doing, cause: Some(cause), hint: None })
    };
    let mut found = layout.run_dir(name).exists();
    let run_dir = match RunDir::acquire(layout, name) {
        Ok(dir) => dir,
        Err(RunDirError::Running) => return Err(MachineError::AlreadyRunning(name.clone())),
        Err(RunDirError::Call(cause)) => return Err(doing(cause)),
    };
    let last = run_dir.left_over();
    let planned = spec.and_then(|spec| plan::build(spec, facts, layout).ok());
    for path in planned.iter().flat_map(locked_directories) {
        image::lock::reap(layout, path).map_err(doing)?;
    }
    let groups = last.iter().map(|state| (state.cgroup.clone(), state.unit.is_some()));
    let groups = groups.chain(planned.map(|p| (cgroup::host_path(&p.cgroup), p.cgroup.unit != UnitPlan::None)));
    let ours = default_cgroup(layout, facts, name).map(|path| (path, false));
    for (path, unit) in groups.chain(ours) {
        found |= !unit && path.exists();
        cgroup::clear(&path, unit).map_err(doing)?;
    }
    let ranges = last.and_then(|state| state.ids).map(UserMode::Range);
    for mode in ranges.into_iter().chain(spec.map(|s| s.users.mode)).chain([UserMode::Auto]) {
        idmap::reap(layout, name, mode).map_err(MachineError::Ids)?;
    }
    run_dir.release().map_err(doing)?;
    Ok(found)
}

fn directories_of(overlay: &OverlayPlan) -> impl Iterator<Item = &PathBuf> {
    let upper = match &overlay.upper {
        Some(UpperPlan::Directory(path)) => Some(path),
        Some(UpperPlan::Memory) | None => None,
    };
    overlay.lower.iter().chain(upper)
}

/// Every directory of the host that a plan locks as an image.
fn locked_directories(plan: &Plan) -> impl Iterator<Item = &Path> {
    let overlays = plan.mounts.iter().filter_map(|op| match op {
        MountOp::Overlay { overlay, .. } => Some(overlay),
        _ => None,
    });
    let (root, overlay) = match &plan.root.source {
        TreePlan::Directory(path) => (Some(path), None),
        TreePlan::Overlay(overlay) => (None, Some(overlay)),
    };
    root.into_iter().chain(overlays.chain(overlay).flat_map(directories_of)).map(PathBuf::as_path)
}

/// Where a machine's group would be if nothing else is said.
fn default_cgroup(layout: &Layout, facts: &HostFacts, name: &MachineName) -> Option<PathBuf> {
    let cgroup = facts.cgroup.as_ref()?;
    Some(cgroup.path(&group_below_own(cgroup, layout, name)))
}
