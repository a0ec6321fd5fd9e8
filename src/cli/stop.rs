//! `stop`: machines, and before each of them those that do not run without it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clap::Args;

use super::conduct::{self, Channel, Work};
use super::machine::{ask, each, machine_name, remarked, running, state_of};
use super::output::{self, Failure, Failures, say};
use super::words::parse_time;
use super::{carried, remote};
use crate::config;
use crate::plan::dependencies::{Graph, Skipped};
use crate::running::control::{Answer, Request};
use crate::running::state::{self, State};
use crate::spec::{Layout, MachineName, Order};

#[derive(Debug, Args)]
pub(crate) struct StopArguments {
    /// Machines
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "NAME")]
    pub(super) names: Vec<String>,
    /// Every running machine
    #[arg(long)]
    pub(super) all: bool,
    /// Kill what has not ended after this long, instead of the machine's own `stop-timeout`
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(super) timeout: Option<Duration>,
}

/// `machinist stop`
pub(super) fn stop(layout: &Layout, args: &StopArguments, quiet: bool) -> Result<u8, Failure> {
    if !nix::unistd::geteuid().is_root() && !args.all {
        return each(&args.names, |name| match remote::stop(layout, machine_name(name)?.as_str(), args.timeout) {
            Some(remark) => {
                remarked(&remark?);
                say(quiet, &format!("Machine '{name}' has ended."));
                Ok(())
            }
            None => running(layout, name).and_then(|(name, _)| stop_one(layout, &name, args.timeout, quiet, true)),
        });
    }
    let mut failures = Failures::default();
    let mut graph = Graph::default();
    let mut all: BTreeSet<MachineName> = BTreeSet::new();
    for name in state::names(layout) {
        if let Some(state) = state_of(layout, &name)? {
            graph.insert(name.clone(), order(layout, &name, &state));
            all.insert(name);
        }
    }
    if !args.all {
        let mut asked: BTreeSet<MachineName> = BTreeSet::new();
        for name in &args.names {
            match running(layout, name) {
                Ok((name, _)) => drop(asked.insert(name)),
                Err(failure) => failures.add(failure),
            }
        }
        let running = all;
        all = graph.requirers(&asked).into_iter().filter(|name| running.contains(name)).collect();
        for name in all.difference(&asked) {
            let needed = asked.iter().find(|asked| graph.requirers([*asked]).contains(name));
            let needed = needed.map_or_else(String::new, |asked| format!(", as it requires '{asked}'"));
            say(quiet, &format!("Machine '{name}' is stopped first{needed}."));
        }
    }
    let schedule = graph.stopping(&all, !args.all);
    let alone = all.len() == 1;
    let mut work = Stopping { layout, timeout: args.timeout, quiet, alone, failures, failed: BTreeMap::new() };
    // Nearly all of a stop is waiting.
    conduct::conduct(schedule, usize::MAX, &mut work).map_err(|e| Failure::call("cannot stop machines", &e))?;
    work.failures.result()
}

/// What a running machine's definition says now; nothing, if it is gone or has become wrong.
fn order(layout: &Layout, name: &MachineName, state: &State) -> Order {
    let by_name = config::definition(layout, name);
    let source = match &state.definition {
        Some(file) if by_name.as_ref() != Some(file) && file.exists() => file.to_str().map(str::to_owned),
        _ => None,
    };
    let loaded = config::load(layout, source.as_deref().unwrap_or(name.as_str()));
    loaded.map(|loaded| loaded.spec.boot.order).unwrap_or_default()
}

/// Machines on their way out.
struct Stopping<'a> {
    layout: &'a Layout,
    timeout: Option<Duration>,
    quiet: bool,
    alone: bool,
    failures: Failures,
    failed: BTreeMap<MachineName, Failure>,
}

impl Work for Stopping<'_> {
    fn work(&self, name: &MachineName, _: &mut Channel) -> Result<(), Failure> {
        stop_one(self.layout, name, self.timeout, self.quiet, self.alone)
    }

    fn failed(&mut self, name: &MachineName, failure: Failure) {
        self.failed.insert(name.clone(), failure.clone());
        self.failures.add(failure);
    }

    fn skipped(&mut self, Skipped { name, failed, .. }: Skipped) {
        let what = format!("machine '{name}' was not stopped: machine '{failed}', which requires it, still runs");
        if let Some(failure) = self.failed.get(&failed) {
            self.failures.add(failure.then(&what));
        }
    }
}

fn stop_one(
    layout: &Layout,
    name: &MachineName,
    timeout: Option<Duration>,
    quiet: bool,
    alone: bool,
) -> Result<(), Failure> {
    // A limit is told to the supervisor, which systemd cannot.
    if timeout.is_none()
        && let Some(state) = state_of(layout, name)?
        && carried::is_unit(layout, name, &state)
    {
        carried::stop(layout, name)?;
        say(quiet, &format!("Machine '{name}' has ended."));
        return Ok(());
    }
    let text = format!("stopping machine '{name}'");
    match ask(layout, name, &Request::Stop { timeout }, text, quiet || !alone)? {
        Some(Answer::Ended { killed: true, .. }) => {
            output::warn(&format!("machine '{name}' did not stop in time and was killed"));
        }
        Some(Answer::Refused(why)) => return Err(Failure::new(format!("cannot stop machine '{name}': {why}"))),
        Some(Answer::Rebooted { .. }) => {
            return Err(Failure::new(format!("machine '{name}' was rebooted instead")));
        }
        // The last two are no answers to this.
        Some(Answer::Ended { .. } | Answer::Accepted | Answer::Limited | Answer::NotLimited { .. }) | None => {}
    }
    say(quiet, &format!("Machine '{name}' has ended."));
    Ok(())
}
