//! `list`: machines that run, or are defined.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::Value;

use super::machine::state_of;
use super::output::{self, Failure, age, seconds_since, status, table, written};
use super::remote;
use crate::config;
use crate::running::state;
use crate::spec::Layout;

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Also machines that are defined and not running
    #[arg(long, short)]
    all: bool,
    /// Only the names, one a line
    #[arg(long, conflicts_with = "json")]
    names: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Every machine that runs, with `all` also those that are only defined, by name.
fn machines(layout: &Layout, all: bool) -> Result<Vec<Value>, Failure> {
    let mut machines: BTreeMap<String, Value> = BTreeMap::new();
    if all {
        let defined = config::list(layout).into_iter().map(|(name, _)| name.as_str().to_owned());
        machines.extend(defined.map(|name| (name.clone(), state::summary(&name, None))));
    }
    for name in state::names(layout) {
        if let Some(state) = state_of(layout, &name)? {
            machines.insert(name.as_str().to_owned(), state::summary(name.as_str(), Some(&state)));
        }
    }
    Ok(machines.into_values().collect())
}

/// `machinist list`
pub(super) fn list(layout: &Layout, args: &ListArguments) -> Result<u8, Failure> {
    let machines = remote::list(layout, args.all).unwrap_or_else(|| machines(layout, args.all))?;
    if args.names {
        let names = machines.iter().filter_map(|machine| machine["name"].as_str());
        return written(|out| names.into_iter().try_for_each(|name| writeln!(out, "{name}")));
    }
    if args.json {
        return written(|out| writeln!(out, "{:#}", Value::from(machines)));
    }
    if machines.is_empty() {
        output::say(
            false,
            if args.all { "No machines." } else { "No machines are running; `--all` shows defined ones, too." },
        );
        return Ok(status::OK);
    }
    let rows: Vec<Vec<String>> = machines.iter().map(row).collect();
    written(|out| out.write_all(table(&["NAME", "STATE", "INIT", "LEADER", "IDS", "SINCE"], &rows).as_bytes()))
}

/// One machine's line of the list.
fn row(machine: &Value) -> Vec<String> {
    let dash = || "-".to_owned();
    let word = |key: &str| machine[key].as_str().map_or_else(dash, str::to_owned);
    if machine["leader"].is_null() {
        return vec![word("name"), word("state"), dash(), dash(), dash(), dash()];
    }
    vec![
        word("name"),
        word("state"),
        machine["init"].as_str().unwrap_or("command").to_owned(),
        machine["leader"].to_string(),
        machine["ids"]["shift"].as_u64().map_or_else(|| "host".into(), |shift| shift.to_string()),
        age(seconds_since(machine["since"].as_u64().unwrap_or(0))),
    ]
}
