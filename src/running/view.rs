//! What users see of machines: the objects of `list`, `status` and `stats` with `--json`, whose keys stay.
//!
//! They are made of the [`State`] file, which may change with each version. The bus has the same objects as dictionaries
//! without what is null; read back as these types they are whole again.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::state::State;
use crate::cgroup;
use crate::plan::seccomp::SyscallPolicy;
use crate::spec::{IdRange, InitKind, MachineName, ProcessLimits, RestartPolicy};

/// A machine in `machinist list --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Summary {
    /// One that runs.
    Running(RunningSummary),
    /// One that is only defined, or has ended.
    Stopped {
        /// The machine.
        name: String,
        /// `stopped`
        state: String,
    },
}

/// A running machine in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunningSummary {
    /// The machine.
    pub name: String,
    /// The word for what it does.
    pub state: String,
    /// Kind of its init; null for a command without one.
    pub init: Option<String>,
    /// PID 1 of the machine as the host sees it; null while it is to be started again.
    pub leader: Option<i32>,
    /// The supervisor's process.
    pub supervisor: i32,
    /// Its host ids; null if it has no user namespace.
    pub ids: Option<IdRange>,
    /// Start of this boot of the machine, in seconds since 1970.
    pub since: u64,
}

impl Summary {
    /// A machine that does not run.
    pub fn stopped(name: impl Into<String>) -> Self {
        Self::Stopped { name: name.into(), state: "stopped".into() }
    }

    /// One that runs.
    pub fn of(s: &State) -> Self {
        let init = s.init.as_ref().map(|_| s.init_kind.map_or("unknown", InitKind::as_str).to_owned());
        Self::Running(RunningSummary {
            name: s.name.clone(),
            state: s.word().to_owned(),
            init,
            leader: s.leader(),
            supervisor: s.supervisor,
            ids: s.ids,
            since: s.since,
        })
    }

    /// The machine's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Running(RunningSummary { name, .. }) | Self::Stopped { name, .. } => name,
        }
    }

    /// The object.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// What `machinist status --json` says of a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Status {
    /// It runs.
    Running(Box<Details>),
    /// It is only defined.
    Stopped {
        /// The machine.
        name: String,
        /// `stopped`
        state: String,
        /// The file it is defined by.
        definition: PathBuf,
    },
}

impl Status {
    /// A machine that does not run.
    pub fn stopped(name: &MachineName, definition: PathBuf) -> Self {
        Self::Stopped { name: name.to_string(), state: "stopped".into(), definition }
    }

    /// One that runs, looked at now.
    pub fn of(state: &State) -> Self {
        Self::Running(Box::new(Details::of(state)))
    }

    /// The object.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// Everything that is said of a running machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Details {
    /// The machine.
    pub name: String,
    /// Its id in the host's table of machines; null if it is not to be there.
    pub machine_id: Option<String>,
    /// The word for what it does.
    pub state: String,
    /// PID 1 of the machine as the host sees it; null while there is none.
    pub leader: Option<i32>,
    /// When the leader started, in clock ticks since boot.
    pub leader_start: u64,
    /// The supervisor's process.
    pub supervisor: i32,
    /// Start of this boot of the machine, in seconds since 1970.
    pub since: u64,
    /// Its host ids; null if it has no user namespace.
    pub ids: Option<IdRange>,
    /// Whether its network is its own.
    pub private_network: bool,
    /// Whether its boot clock is its own.
    pub own_clock: bool,
    /// Its control group on the host.
    pub cgroup: PathBuf,
    /// The unit whose group that is; null if it is ours.
    pub unit: Option<String>,
    /// Mask of its capabilities.
    pub capabilities: u64,
    /// Whether setuid programs have no effect.
    pub no_new_privileges: bool,
    /// Limits of its processes one by one.
    pub process_limits: ProcessLimits,
    /// Changes to the system call filter.
    pub seccomp: SyscallPolicy,
    /// Its limits as the kernel has them, by key.
    pub limits: Value,
    /// Path of its init; null if it has none.
    pub init: Option<String>,
    /// Kind of its init; null if we do not know it.
    pub init_kind: Option<InitKind>,
    /// What its root is made of, in words.
    pub root: String,
    /// The file it is defined by.
    pub definition: Option<PathBuf>,
    /// What the guest last said of itself (`STATUS=`).
    pub status: Option<String>,
    /// What has to happen before it counts as ready, in words.
    pub waits_for: Option<String>,
    /// How often it has been started again after it had ended by itself.
    pub restarts: u32,
    /// What happened to it before the last of these, to follow its name.
    pub last_end: Option<String>,
    /// By which rules the daemon starts it again if its supervisor is gone.
    pub restart: Option<RestartPolicy>,
    /// What it uses now.
    pub usage: cgroup::Usage,
}

impl Details {
    fn of(state: &State) -> Self {
        let s = state.clone();
        Self {
            state: s.word().to_owned(),
            leader: s.leader(),
            limits: s.limits_in_force(),
            usage: cgroup::usage(&s.cgroup),
            name: s.name,
            machine_id: s.machine_id,
            leader_start: s.leader_start,
            supervisor: s.supervisor,
            since: s.since,
            ids: s.ids,
            private_network: s.private_network,
            own_clock: s.own_clock,
            cgroup: s.cgroup,
            unit: s.unit,
            capabilities: s.capabilities,
            no_new_privileges: s.no_new_privileges,
            process_limits: s.process_limits,
            seccomp: s.seccomp,
            init: s.init,
            init_kind: s.init_kind,
            root: s.root,
            definition: s.definition,
            status: s.status,
            waits_for: s.waits_for,
            restarts: s.restarts,
            last_end: s.last_end,
            restart: s.restart,
        }
    }
}

/// What a machine uses at one moment. What it does in a second is the difference of two.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Statistics {
    /// The machine.
    pub name: String,
    /// The word for what it does.
    pub state: String,
    /// PID 1 of the machine as the host sees it, if it has one now: another one has begun with new counters.
    pub leader: Option<i32>,
    /// Start of this boot of the machine, in seconds since 1970.
    pub since: u64,
    /// The moment, on the host's monotonic clock in microseconds.
    pub monotonic_usec: u64,
    /// What it uses.
    pub usage: cgroup::Usage,
}

impl Statistics {
    /// What a machine uses now.
    pub fn of(state: &State) -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let usec = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1000);
        Self {
            name: state.name.clone(),
            state: state.word().to_owned(),
            leader: state.leader(),
            since: state.since,
            monotonic_usec: u64::try_from(usec).unwrap_or(0),
            usage: cgroup::usage(&state.cgroup),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the bus has it.
    fn without_nulls(value: Value) -> Value {
        match value {
            Value::Object(keys) => {
                keys.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect()
            }
            Value::Array(list) => list.into_iter().map(without_nulls).collect(),
            other => other,
        }
    }

    #[test]
    fn what_loses_its_nulls_on_the_bus_gets_them_back() {
        let text = r#"{"name": "a", "phase": "restarting", "leader": 0, "leader-start": 1, "supervisor": 3, "since": 4,
            "private-network": true, "own-clock": false, "cgroup": "/nonexistent", "capabilities": 0,
            "no-new-privileges": false, "seccomp": {"allow": [], "deny": []}, "root": "x"}"#;
        let state: State = serde_json::from_str(text).expect("all that must be there");
        let (status, summary) = (Status::of(&state), Summary::of(&state));
        assert!(status.to_json()["last-end"].is_null() && summary.to_json()["leader"].is_null());
        assert_eq!(serde_json::from_value::<Status>(without_nulls(status.to_json())).expect("status"), status);
        assert_eq!(serde_json::from_value::<Summary>(without_nulls(summary.to_json())).expect("summary"), summary);
        let stopped = Summary::stopped("b");
        assert_eq!(serde_json::from_value::<Summary>(stopped.to_json()).expect("summary"), stopped);
    }
}
