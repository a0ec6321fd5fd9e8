//! `list`, `status` and `logs`.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{Cgroup, Hierarchy, Subsystem};
use serde_json::{Value, json};

use super::output::{self, Failure, age, clean, size, status, table, written};
use super::{ListArguments, StatusArguments};
use crate::spec::{Layout, MachineName};
use crate::supervisor::console::{Shown, print_log};
use crate::supervisor::state::{self, State};
use crate::sys::Errno;
use crate::{cgroup, config};

/// Parses a name given on the command line.
pub(super) fn machine_name(text: &str) -> Result<MachineName, Failure> {
    MachineName::parse(text).map_err(|e| Failure::usage(e.to_string()))
}

fn seconds_since(then: u64) -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()).saturating_sub(then)
}

/// The word for what a machine does now.
fn phase(state: &State) -> &'static str {
    if cgroup::is_frozen(&state.cgroup) { "frozen" } else { state.phase.as_str() }
}

/// `machinist list`
pub(super) fn list(layout: &Layout, args: &ListArguments) -> Result<u8, Failure> {
    let mut machines: BTreeMap<String, Option<State>> = BTreeMap::new();
    if args.all {
        machines.extend(config::list(layout).into_iter().map(|(name, _)| (name.as_str().to_owned(), None)));
    }
    for name in state::names(layout) {
        let state =
            state::read(layout, &name).map_err(|e| Failure::call(format!("cannot look at machine '{name}'"), &e))?;
        if let Some(state) = state {
            machines.insert(name.as_str().to_owned(), Some(state));
        }
    }
    if args.names {
        return written(|out| machines.keys().try_for_each(|name| writeln!(out, "{name}")));
    }
    if args.json {
        let list: Vec<Value> = machines.iter().map(|(name, state)| summary(name, state.as_ref())).collect();
        return written(|out| writeln!(out, "{:#}", Value::from(list)));
    }
    if machines.is_empty() {
        output::say(
            false,
            if args.all { "No machines." } else { "No machines are running; `--all` shows defined ones, too." },
        );
        return Ok(status::OK);
    }
    let dash = || "-".to_owned();
    let rows: Vec<Vec<String>> = machines
        .iter()
        .map(|(name, state)| match state {
            None => vec![name.clone(), "stopped".into(), dash(), dash(), dash(), dash()],
            Some(s) => vec![
                name.clone(),
                phase(s).into(),
                s.init_kind.map_or_else(
                    || if s.init.is_some() { "unknown".into() } else { "command".into() },
                    |k| k.as_str().to_owned(),
                ),
                s.leader.to_string(),
                s.ids.map_or_else(|| "host".into(), |r| r.shift.to_string()),
                age(seconds_since(s.since)),
            ],
        })
        .collect();
    written(|out| out.write_all(table(&["NAME", "STATE", "INIT", "LEADER", "IDS", "SINCE"], &rows).as_bytes()))
}

fn summary(name: &str, state: Option<&State>) -> Value {
    match state {
        None => json!({ "name": name, "state": "stopped" }),
        Some(s) => json!({
            "name": name,
            "state": phase(s),
            "init": s.init_kind.map(|k| k.as_str()),
            "leader": s.leader,
            "supervisor": s.supervisor,
            "ids": s.ids,
            "since": s.since,
        }),
    }
}

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

/// What the payload uses, as far as the host's controllers tell.
#[derive(Debug, Default)]
struct Usage {
    tasks: Option<u64>,
    memory: Option<u64>,
    cpu_microseconds: Option<u64>,
}

fn usage(machine: &Path) -> Usage {
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

/// `machinist status`
pub(super) fn status(layout: &Layout, args: &StatusArguments) -> Result<u8, Failure> {
    let name = machine_name(&args.name)?;
    let state =
        state::read(layout, &name).map_err(|e| Failure::call(format!("cannot look at machine '{name}'"), &e))?;
    let Some(state) = state else {
        let definition = config::list(layout).into_iter().find(|(n, _)| *n == name);
        let Some((_, path)) = definition else {
            return Err(Failure::new(format!("machine '{name}' is neither running nor defined"))
                .hint("`machinist list --all` shows what there is"));
        };
        return written(|out| {
            if args.json {
                writeln!(out, "{:#}", json!({ "name": name.as_str(), "state": "stopped", "definition": path }))
            } else {
                writeln!(out, "{name} - stopped\n{:>11}: {}", "Definition", path.display())
            }
        });
    };
    let usage = usage(&state.cgroup);
    written(|out| {
        if args.json {
            let mut value = serde_json::to_value(&state).map_err(std::io::Error::other)?;
            if let Some(object) = value.as_object_mut() {
                object.remove("phase");
                object.insert("state".into(), phase(&state).into());
                object.insert(
                    "usage".into(),
                    json!({ "tasks": usage.tasks, "memory": usage.memory, "cpu-usec": usage.cpu_microseconds }),
                );
            }
            writeln!(out, "{value:#}")
        } else {
            out.write_all(describe(&state, &usage).as_bytes())
        }
    })
}

fn describe(state: &State, usage: &Usage) -> String {
    let mut text = format!("{} - {}\n", state.name, phase(state));
    let mut line = |key: &str, value: String| text.push_str(&format!("{key:>11}: {}\n", clean(&value)));
    line("Since", format!("{} ago", age(seconds_since(state.since))));
    line("Leader", format!("{} (supervisor {})", state.leader, state.supervisor));
    let kind = state.init_kind.map_or("unknown kind", |k| k.as_str());
    line("Init", state.init.as_ref().map_or("none, a command".into(), |path| format!("{path} ({kind})")));
    line("Root", state.root.clone());
    line(
        "Ids",
        match state.ids {
            Some(range) => format!("{}..{}", range.shift, u64::from(range.shift) + u64::from(range.size)),
            None => "the host's".into(),
        },
    );
    line("Network", if state.private_network { "private".into() } else { "the host's".into() });
    line("Cgroup", state.cgroup.display().to_string());
    if let Some(tasks) = usage.tasks {
        line("Tasks", tasks.to_string());
    }
    if let Some(memory) = usage.memory {
        line("Memory", size(memory));
    }
    if let Some(cpu) = usage.cpu_microseconds {
        line("CPU", format!("{}.{:03}s", cpu / 1_000_000, cpu / 1000 % 1000));
    }
    if let Some(path) = &state.definition {
        line("Definition", path.display().to_string());
    }
    if let Some(status) = &state.status {
        line("Status", status.clone());
    }
    text
}

/// `machinist logs`
pub(super) fn logs(layout: &Layout, name: &str, follow: bool, lines: Option<usize>) -> Result<u8, Failure> {
    let name = machine_name(name)?;
    let dir = layout.state_dir(&name);
    let shown = if std::io::stdout().is_terminal() { Shown::Safe } else { Shown::Raw };
    match print_log(&dir, lines, follow, shown, &mut std::io::stdout().lock()) {
        Ok(()) => Ok(status::OK),
        Err(e) if e.errno == Errno::ENOENT => Err(Failure::new(format!("there is no console log of machine '{name}'"))
            .hint("`machinist list --all` shows which machines there are")),
        Err(e) => Err(Failure::call(format!("cannot show the console log of machine '{name}'"), &e)),
    }
}
