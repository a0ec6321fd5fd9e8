//! `list`: machines that run, or are defined.

use std::collections::BTreeMap;

use clap::Args;

use super::output::{Printer, age, note, print_json, seconds_since, status, table, written};
use crate::config;
use crate::ops::Ops;
use crate::report::OpError;
use crate::running::state;
use crate::running::view::Summary;

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Also machines that are defined and not running
    #[arg(long, short)]
    all: bool,
    /// Only the names, one a line
    #[arg(long, conflicts_with = "json")]
    names: bool,
}

/// Every machine that runs, with `all` also those that are only defined, by name.
fn machines(ops: &Ops, all: bool) -> Result<Vec<Summary>, OpError> {
    let layout = ops.layout();
    let mut machines: BTreeMap<String, Summary> = BTreeMap::new();
    if all {
        let defined = config::list(layout).into_iter().map(|(name, _)| name.as_str().to_owned());
        machines.extend(defined.map(|name| (name.clone(), Summary::stopped(&name))));
    }
    for name in state::names(layout) {
        if let Some(state) = ops.state_of(&name)? {
            machines.insert(name.as_str().to_owned(), Summary::of(&state));
        }
    }
    Ok(machines.into_values().collect())
}

/// `machinist list`
pub(super) fn list(ops: &Ops, args: &ListArguments, printer: &Printer) -> Result<u8, OpError> {
    let machines = match ops.list_via_daemon(args.all)? {
        Some(machines) => machines,
        None => machines(ops, args.all)?,
    };
    if args.names {
        let names = machines.iter().map(Summary::name);
        return written(|out| names.into_iter().try_for_each(|name| writeln!(out, "{name}")));
    }
    if printer.json() {
        return print_json(&machines.iter().map(Summary::to_json).collect());
    }
    if machines.is_empty() {
        note(if args.all { "No machines." } else { "No machines are running; `--all` shows defined ones, too." });
        return Ok(status::OK);
    }
    let rows: Vec<Vec<String>> = machines.iter().map(row).collect();
    written(|out| out.write_all(table(&["NAME", "STATE", "INIT", "LEADER", "IDS", "SINCE"], &rows).as_bytes()))
}

/// One machine's line of the list.
fn row(machine: &Summary) -> Vec<String> {
    let nothing = |name: &str, state: &str| [name, state, "-", "-", "-", "-"].map(str::to_owned).to_vec();
    let machine = match machine {
        Summary::Stopped { name, state } => return nothing(name, state),
        Summary::Running(machine) => machine,
    };
    let Some(leader) = machine.leader else { return nothing(&machine.name, &machine.state) };
    vec![
        machine.name.clone(),
        machine.state.clone(),
        machine.init.clone().unwrap_or_else(|| "command".into()),
        leader.to_string(),
        machine.ids.map_or_else(|| "host".into(), |ids| ids.shift.to_string()),
        age(seconds_since(machine.since)),
    ]
}
