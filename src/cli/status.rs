//! `status`: what a machine is and does.

use clap::Args;
use serde_json::{Value, json};

use super::machine::{machine_name, state_of};
use super::output::{Failure, age, clean, seconds_since, size, written};
use super::remote;
use crate::cgroup::Usage;
use crate::config;
use crate::spec::{Layout, MachineName};

#[derive(Debug, Args)]
pub(crate) struct StatusArguments {
    /// The machine
    name: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// `machinist status`
pub(super) fn status(layout: &Layout, args: &StatusArguments) -> Result<u8, Failure> {
    let name = machine_name(&args.name)?;
    let details = remote::machine(layout, name.as_str()).unwrap_or_else(|| details(layout, &name))?;
    written(|out| if args.json { writeln!(out, "{details:#}") } else { out.write_all(describe(&details).as_bytes()) })
}

/// What is known of a machine that runs or is defined.
fn details(layout: &Layout, name: &MachineName) -> Result<Value, Failure> {
    if let Some(state) = state_of(layout, name)? {
        return Ok(state.details());
    }
    match config::list(layout).into_iter().find(|(n, _)| n == name) {
        Some((_, path)) => Ok(json!({ "name": name.as_str(), "state": "stopped", "definition": path })),
        None => Err(Failure::new(format!("machine '{name}' is neither running nor defined"))
            .hint("`machinist list --all` shows what there is")),
    }
}

/// The text for people of what is known of a machine.
fn describe(machine: &Value) -> String {
    let word = |key: &str| machine[key].as_str().map(str::to_owned);
    let number = |value: &Value| value.as_u64();
    let mut text = format!("{} - {}\n", word("name").unwrap_or_default(), word("state").unwrap_or_default());
    let mut line = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            text.push_str(&format!("{key:>11}: {}\n", clean(&value)));
        }
    };
    let restarts = number(&machine["restarts"]).filter(|restarts| *restarts > 0);
    let last = word("last-end").map_or(String::new(), |last| format!(", the last after it {last}"));
    line("Restarts", restarts.map(|restarts| format!("{restarts}{last}")));
    line("Waits for", word("waits-for"));
    if !machine["leader"].is_null() {
        line("Since", number(&machine["since"]).map(|since| format!("{} ago", age(seconds_since(since)))));
        line("Leader", Some(format!("{} (supervisor {})", machine["leader"], machine["supervisor"])));
        let kind = word("init-kind").unwrap_or_else(|| "unknown kind".into());
        line("Init", Some(word("init").map_or("none, a command".into(), |path| format!("{path} ({kind})"))));
        line("Root", word("root"));
        let ids = number(&machine["ids"]["shift"]).zip(number(&machine["ids"]["size"]));
        line("Ids", Some(ids.map_or("the host's".into(), |(shift, size)| format!("{shift}..{}", shift + size))));
        let private = machine["private-network"].as_bool() == Some(true);
        line("Network", Some(if private { "private" } else { "the host's" }.into()));
        line("Unit", word("unit"));
        line("Cgroup", word("cgroup"));
        let usage: Usage = serde_json::from_value(machine["usage"].clone()).unwrap_or_default();
        describe_usage(&usage, &mut line);
        line("Limits", describe_limits(&machine["limits"]));
    }
    line("Definition", word("definition"));
    line("Status", word("status"));
    text
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
