//! What a machine uses, read with the library for control groups.

use std::path::Path;

use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{Cgroup, Hierarchy, Subsystem};
use serde::Serialize;

/// Controllers of the group at `path`, wherever cgroup2 is mounted: the library's own search finds only
/// `/sys/fs/cgroup`.
#[derive(Debug)]
struct Delegated(std::path::PathBuf);

impl Hierarchy for Delegated {
    fn subsystems(&self) -> Vec<Subsystem> {
        let names = std::fs::read_to_string(self.0.join("cgroup.controllers")).unwrap_or_default();
        let root = self.0.clone();
        let make = |name: &str| match name {
            "cpu" => Some(Subsystem::Cpu(CpuController::new(root.clone(), root.clone(), true))),
            "memory" => Some(Subsystem::Mem(MemController::new(root.clone(), root.clone(), true))),
            "pids" => Some(Subsystem::Pid(PidController::new(root.clone(), root.clone(), true))),
            _ => None,
        };
        names.split_ascii_whitespace().filter_map(make).collect()
    }

    fn root(&self) -> std::path::PathBuf {
        self.0.clone()
    }

    fn root_control_group(&self) -> Cgroup {
        Cgroup::load(Box::new(Self(self.0.clone())), "")
    }

    fn parent_control_group(&self, _path: &str) -> Cgroup {
        self.root_control_group()
    }

    fn v2(&self) -> bool {
        true
    }
}

/// What a machine uses, as far as the host's controllers tell.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Usage {
    /// Processes and threads.
    pub tasks: Option<u64>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Processor time in microseconds.
    #[serde(rename = "cpu-usec")]
    pub cpu_microseconds: Option<u64>,
}

/// What the payload of the machine's group uses.
pub fn usage(machine: &Path) -> Usage {
    let payload = machine.join("payload");
    let group = Cgroup::load(Box::new(Delegated(payload)), "");
    let cpu = group.controller_of::<CpuController>().map(|c| c.cpu().stat);
    let field = |text: &str| text.lines().find_map(|l| l.strip_prefix("usage_usec ")?.trim().parse().ok());
    Usage {
        tasks: group.controller_of::<PidController>().and_then(|c| c.get_pid_current().ok()),
        memory: group.controller_of::<MemController>().map(|c| c.memory_stat().usage_in_bytes),
        cpu_microseconds: cpu.as_deref().and_then(field),
    }
}
