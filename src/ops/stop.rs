//! Machines stopped, and before each of them those that do not run without it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::context::{Failures, Ops, machine_name};
use super::jobs::{self, Work};
use super::systemd;
use super::via::{Verb, Via};
use super::via_daemon;
use crate::config;
use crate::plan::dependencies::{Graph, Skipped};
use crate::report::{OpError, What};
use crate::running::control::{Answer, Request};
use crate::running::state::{self, State};
use crate::spec::{Layout, MachineName, Order};

/// Machines to be stopped.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// These, and what requires them.
    pub names: Vec<String>,
    /// All that run.
    pub all: bool,
    /// Kill what has not ended after this long, instead of the machine's own limit.
    pub timeout: Option<Duration>,
}

impl Ops {
    /// Stops machines in their init's own way.
    pub fn stop(&self, request: &Stop) -> Result<(), OpError> {
        let Stop { names, all, timeout } = request;
        if self.via(Verb::Stop { named: !all }) == Via::Daemon {
            return self.each(names, |name| {
                match self.perform(&via_daemon::stop(machine_name(name)?.as_str(), *timeout))? {
                    Some(()) => Ok(()),
                    None => self.stop_one(&self.running(name)?.0, *timeout, true),
                }
            });
        }
        let mut failures = Failures::new(&self.events);
        let mut graph = Graph::default();
        let mut wanted: BTreeSet<MachineName> = BTreeSet::new();
        for name in state::names(&self.layout) {
            if let Some(state) = self.state_of(&name)? {
                graph.insert(name.clone(), order(&self.layout, &name, &state));
                wanted.insert(name);
            }
        }
        if !all {
            wanted = self.with_requirers(names, &graph, &wanted, &mut failures);
        }
        let schedule = graph.stopping(&wanted, !all);
        let mut work = Stopping { timeout: *timeout, alone: wanted.len() == 1, failures, failed: BTreeMap::new() };
        // Nearly all of a stop is waiting.
        jobs::run(self, schedule, usize::MAX, &mut work).map_err(|e| OpError::call("cannot stop machines", &e))?;
        work.failures.result()
    }

    /// These machines, as far as they run, and those that require them.
    fn with_requirers(
        &self,
        names: &[String],
        graph: &Graph,
        running: &BTreeSet<MachineName>,
        failures: &mut Failures,
    ) -> BTreeSet<MachineName> {
        let mut asked: BTreeSet<MachineName> = BTreeSet::new();
        for name in names {
            match self.running(name) {
                Ok((name, _)) => drop(asked.insert(name)),
                Err(error) => failures.add(error),
            }
        }
        let all: BTreeSet<_> = graph.requirers(&asked).into_iter().filter(|name| running.contains(name)).collect();
        for name in all.difference(&asked) {
            let needed = asked.iter().find(|asked| graph.requirers([*asked]).contains(name));
            self.events.done(name, What::StoppedFirst { requires: needed.map(ToString::to_string) });
        }
        all
    }

    fn stop_one(&self, name: &MachineName, timeout: Option<Duration>, alone: bool) -> Result<(), OpError> {
        let state = if self.facts.get().systemd { self.state_of(name)? } else { None };
        let unit = state.is_some_and(|state| systemd::is_unit(&self.layout, name, &state));
        if self.via(Verb::StopOne { unit, timeout: timeout.is_some() }) == Via::Systemd {
            self.stop_unit(name)?;
            self.events.done(name, What::Stopped);
            return Ok(());
        }
        let text = alone.then(|| format!("stopping machine '{name}'"));
        match self.ask(name, &Request::Stop { timeout }, text)? {
            Some(Answer::Ended { killed, .. }) => self.warn_killed(name, killed),
            Some(Answer::Refused(why)) => return Err(OpError::new(format!("cannot stop machine '{name}': {why}"))),
            Some(Answer::Rebooted { .. }) => {
                return Err(OpError::new(format!("machine '{name}' was rebooted instead")));
            }
            // These are no answers to this.
            Some(Answer::Accepted | Answer::Limited | Answer::NotLimited { .. }) | None => {}
        }
        self.events.done(name, What::Stopped);
        Ok(())
    }
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
struct Stopping {
    timeout: Option<Duration>,
    alone: bool,
    failures: Failures,
    failed: BTreeMap<MachineName, OpError>,
}

impl Work for Stopping {
    fn work(&self, ops: &Ops, name: &MachineName, _: bool) -> Result<(), OpError> {
        ops.stop_one(name, self.timeout, self.alone)
    }

    fn failed(&mut self, name: &MachineName, error: OpError) {
        self.failed.insert(name.clone(), error.clone());
        self.failures.add(error);
    }

    fn skipped(&mut self, Skipped { name, failed, .. }: Skipped) {
        let what = format!("machine '{name}' was not stopped: machine '{failed}', which requires it, still runs");
        if let Some(error) = self.failed.get(&failed) {
            self.failures.add(error.then(&what));
        }
    }
}
