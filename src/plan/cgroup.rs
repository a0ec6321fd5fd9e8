//! [`CgroupPlan`]: the machine's control group, and whose it is.

use std::path::PathBuf;

use serde::Serialize;

use crate::host::CgroupFacts;
use crate::spec::{Layout, MachineName, MachineSpec};

/// The machine's control group, relative to the cgroup2 mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CgroupPlan {
    /// Where cgroup2 is mounted.
    pub mount: PathBuf,
    /// The machine's group, beginning with a slash; `supervisor` and `payload` are made in it.
    pub group: String,
    /// Whose it is.
    pub unit: UnitPlan,
}

/// Whose the machine's control group is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum UnitPlan {
    /// Of no unit: the supervisor makes and removes the group.
    None,
    /// Of the unit whose main process the supervisor is.
    Own(String),
    /// Of a scope that the service manager makes; the group is where that is expected.
    Scope {
        /// Name of the scope.
        unit: String,
        /// The machine's group, of no unit, if the service manager cannot be reached.
        otherwise: String,
    },
}

impl CgroupPlan {
    /// What is done if the service manager does not make the scope; the plan itself if it asks for none.
    pub fn without_scope(&self) -> Self {
        match &self.unit {
            UnitPlan::Scope { otherwise, .. } => {
                Self { mount: self.mount.clone(), group: otherwise.clone(), unit: UnitPlan::None }
            }
            UnitPlan::None | UnitPlan::Own(_) => self.clone(),
        }
    }
}

/// A machine with a unit of its own runs in the unit's group; without one, we ask systemd for a scope, because groups
/// below other units are not ours. A group from the definition takes precedence over both.
pub(super) fn plan(spec: &MachineSpec, systemd: bool, cgroup: &CgroupFacts, layout: &Layout) -> CgroupPlan {
    let mount = cgroup.mount.clone();
    let name = layout.cgroup_name(&spec.name);
    if let Some(parent) = &spec.cgroup_parent {
        let group = format!("{}/{name}", parent.trim_end_matches('/'));
        return CgroupPlan { mount, group, unit: UnitPlan::None };
    }
    if let Some(unit) = &cgroup.unit {
        return CgroupPlan { mount, group: cgroup.delegated().to_owned(), unit: UnitPlan::Own(unit.clone()) };
    }
    // systemd knows nothing of other roots.
    if systemd && layout.is_host() {
        let unit = format!("{name}.scope");
        let group = format!("/machine.slice/{unit}");
        let otherwise = group_below_own(cgroup, layout, &spec.name);
        return CgroupPlan { mount, group, unit: UnitPlan::Scope { unit, otherwise } };
    }
    CgroupPlan { mount, group: group_below_own(cgroup, layout, &spec.name), unit: UnitPlan::None }
}

/// The machine's group below the one we run in.
pub fn group_below_own(cgroup: &CgroupFacts, layout: &Layout, name: &MachineName) -> String {
    format!("{}/{}", cgroup.delegated().trim_end_matches('/'), layout.cgroup_name(name))
}
