//! `status`: what a machine is and does.

use clap::Args;
use serde_json::Value;

use super::output::{Printer, age, clean, print_json, seconds_since, size, written};
use crate::cgroup::Usage;
use crate::config;
use crate::ops::{Ops, machine_name};
use crate::report::OpError;
use crate::running::view::{Details, Status};
use crate::spec::{InitKind, MachineName};

#[derive(Debug, Args)]
pub(crate) struct StatusArguments {
    /// The machine
    name: String,
}

/// `machinist status`
pub(super) fn status(ops: &Ops, args: &StatusArguments, printer: &Printer) -> Result<u8, OpError> {
    let name = machine_name(&args.name)?;
    let found = match ops.status_via_daemon(name.as_str())? {
        Some(found) => found,
        None => look(ops, &name)?,
    };
    if printer.json() {
        return print_json(&found.to_json());
    }
    written(|out| out.write_all(describe(&found).as_bytes()))
}

/// What is known of a machine that runs or is defined.
fn look(ops: &Ops, name: &MachineName) -> Result<Status, OpError> {
    if let Some(state) = ops.state_of(name)? {
        return Ok(Status::of(&state));
    }
    match config::list(ops.layout()).into_iter().find(|(n, _)| n == name) {
        Some((_, path)) => Ok(Status::stopped(name, path)),
        None => Err(OpError::new(format!("machine '{name}' is neither running nor defined"))
            .hint("`machinist list --all` shows what there is")),
    }
}

/// The text for people of what is known of a machine.
fn describe(machine: &Status) -> String {
    let line = |text: &mut String, key: &str, value: Option<String>| {
        text.extend(value.map(|value| format!("{key:>11}: {}\n", clean(&value))));
    };
    match machine {
        Status::Stopped { name, state, definition } => {
            let mut text = format!("{name} - {state}\n");
            line(&mut text, "Definition", Some(definition.display().to_string()));
            text
        }
        Status::Running(machine) => {
            let mut text = format!("{} - {}\n", machine.name, machine.state);
            describe_running(machine, |key, value| line(&mut text, key, value));
            text
        }
    }
}

fn describe_running(machine: &Details, mut line: impl FnMut(&str, Option<String>)) {
    let path = |path: &std::path::Path| path.display().to_string();
    let last = machine.last_end.as_ref().map_or(String::new(), |last| format!(", the last after it {last}"));
    line("Restarts", (machine.restarts > 0).then(|| format!("{}{last}", machine.restarts)));
    line("Waits for", machine.waits_for.clone());
    if let Some(leader) = machine.leader {
        line("Since", Some(format!("{} ago", age(seconds_since(machine.since)))));
        line("Leader", Some(format!("{leader} (supervisor {})", machine.supervisor)));
        let kind = machine.init_kind.map_or("unknown kind", InitKind::as_str);
        let init = machine.init.as_ref().map(|path| format!("{path} ({kind})"));
        line("Init", Some(init.unwrap_or_else(|| "none, a command".into())));
        line("Root", Some(machine.root.clone()));
        let ids = machine.ids.map(|ids| format!("{}..{}", ids.shift, u64::from(ids.shift) + u64::from(ids.size)));
        line("Ids", Some(ids.unwrap_or_else(|| "the host's".into())));
        line("Network", Some(if machine.private_network { "private" } else { "the host's" }.into()));
        line("Unit", machine.unit.clone());
        line("Cgroup", Some(path(&machine.cgroup)));
        describe_usage(&machine.usage, &mut line);
        line("Limits", describe_limits(&machine.limits));
    }
    line("Definition", machine.definition.as_deref().map(path));
    line("Status", machine.status.clone());
}

/// The limits in force that what is used does not already tell.
fn describe_limits(limits: &Value) -> Option<String> {
    let told = limits.as_object()?.iter().filter(|(key, _)| !matches!(key.as_str(), "memory-max" | "pids-max"));
    let told = told.map(|(key, value)| {
        let bytes = key.starts_with("hugetlb") || matches!(key.as_str(), "memory-high" | "swap-max");
        let words = value.as_str().and_then(|text| text.split_once(' ')).filter(|_| key == "cpu-max");
        let time = words.and_then(|(quota, period)| Some((quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?)));
        match (value.as_u64(), time) {
            (Some(number), _) if bytes => format!("{key} {}", size(number)),
            (_, Some((quota, period))) if period > 0 => format!("{key} {}%", quota * 100 / period),
            _ => format!("{key} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned)),
        }
    });
    Some(told.collect::<Vec<_>>().join(", ")).filter(|text| !text.is_empty())
}

/// What a machine uses, as far as it is known.
fn describe_usage(usage: &Usage, mut line: impl FnMut(&str, Option<String>)) {
    let of = |used: String, most: Option<String>| match most {
        Some(most) => format!("{used} of {most}"),
        None => used,
    };
    line("Tasks", usage.tasks.map(|tasks| of(tasks.to_string(), usage.tasks_max.map(|n| n.to_string()))));
    let peak = usage.memory_peak_bytes.map_or_else(String::new, |peak| format!(" (peak {})", size(peak)));
    line("Memory", usage.memory_bytes.map(|bytes| of(size(bytes), usage.memory_max_bytes.map(size)) + &peak));
    line("Swap", usage.swap_bytes.filter(|bytes| *bytes > 0).map(size));
    let kills = |kills: u64| format!("{kills} for want of memory");
    line("Killed", usage.oom_kills.filter(|kills| *kills > 0).map(kills));
    let seconds = |cpu: u64| format!("{}.{:03}s", cpu / 1_000_000, cpu / 1000 % 1000);
    line("CPU", usage.cpu_usec.map(seconds));
    let io = usage.io_read_bytes.zip(usage.io_written_bytes);
    line("I/O", io.map(|(read, written)| format!("{} read, {} written", size(read), size(written))));
    let stalls = [("cpu", &usage.pressure.cpu), ("memory", &usage.pressure.memory), ("io", &usage.pressure.io)];
    let told: Vec<String> = stalls
        .iter()
        .filter_map(|(what, stall)| Some(format!("{what} {:.1}%", stall.as_ref()?.some_percent?)))
        .collect();
    line("Pressure", Some(told.join(", ")).filter(|told| !told.is_empty()));
}
