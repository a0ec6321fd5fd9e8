//! Machines started in the background: one, or many in their order.

use std::collections::{BTreeMap, BTreeSet};

use super::context::{Failures, Ops};
use super::error;
use super::jobs::{self, Work};
use super::prepare::{cannot_start, default_jobs, seal};
use super::start_set::StartSet;
use super::via::{Verb, Via};
use crate::config;
use crate::host;
use crate::plan::dependencies::Skipped;
use crate::report::{OpError, Request, What};
use crate::running::{autostart, state, wait_ready};
use crate::spec::{MachineName, Ready, UserMode};
use crate::supervisor::{self, MachineError};

/// Machines to be started.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// Names or files.
    pub names: Vec<String>,
    /// Also every machine that starts with the host, and none that runs already.
    pub autostart: bool,
    /// Only these and not what they need, which the caller has seen to.
    pub alone: bool,
    /// Come back as soon as the init has begun.
    pub no_wait: bool,
    /// At most so many at once.
    pub jobs: Option<usize>,
}

impl Ops {
    /// Starts machines in the background, and waits until they are ready.
    pub fn start(&self, request: &Start) -> Result<(), OpError> {
        let Start { names, autostart, alone, no_wait, jobs } = request;
        // The supervisor outlives its caller, whose pipes and locks must not wait for it.
        self.close_others(&[])?;
        if !self.facts.get().root && !autostart {
            // The daemon does it all; without one it is told that only root may.
            return self.each(names, |name| self.start_whole(name, *no_wait));
        }
        if *alone {
            return self.each(names, |name| self.start_one(name, true, *no_wait, true));
        }
        let mut failures = Failures::new(&self.events);
        let names = if *autostart { self.with_autostart(names) } else { names.clone() };
        let wanted = StartSet::gather(self, &names, &mut failures);
        seal_for_all(&wanted)?;
        let mut schedule = wanted.graph.starting(&wanted.all);
        for name in &wanted.all {
            let Some(state) = self.state_of(name)? else { continue };
            if wanted.asked.contains(name) {
                if !autostart {
                    let running = MachineError::AlreadyRunning(name.clone());
                    failures.add(error::machine(&cannot_start(name), &running));
                }
                schedule.ended(name, true);
            } else if state.phase == state::Phase::Running {
                schedule.ended(name, true);
            }
        }
        if self.facts.get().systemd && !schedule.is_over() {
            self.refresh_units(&wanted)?;
        }
        let awaited = wanted.all.iter().filter(|name| schedule.is_awaited(name)).cloned().collect();
        let mut work = Starting { wanted: &wanted, no_wait: *no_wait, awaited, failures, unasked: BTreeMap::new() };
        jobs::run(self, schedule, jobs.unwrap_or_else(default_jobs), &mut work)
            .map_err(|e| OpError::call("cannot start machines", &e))?;
        work.unasked.values().filter(|(_, told)| !told).for_each(|(error, _)| self.events.warn(&error.line()));
        work.failures.result()
    }

    /// Starts a machine with what it needs, for users other than root.
    fn start_whole(&self, name: &str, no_wait: bool) -> Result<(), OpError> {
        let named = MachineName::parse(name).is_ok();
        if self.via(Verb::Start { named }) == Via::Daemon
            && self.perform(&Request::Start { name: name.to_owned(), alone: false })?.is_some()
        {
            return Ok(());
        }
        self.start_one(name, true, no_wait, true)
    }

    /// These, and the machines that start with the host, by definition or because they are enabled.
    fn with_autostart(&self, names: &[String]) -> Vec<String> {
        let mut all: BTreeSet<String> = names.iter().cloned().collect();
        all.extend(autostart::enabled(&self.layout).into_iter().map(|name| name.to_string()));
        for (name, path) in config::list(&self.layout) {
            match config::load(&self.layout, name.as_str()) {
                Ok(loaded) if loaded.spec.boot.autostart => drop(all.insert(name.to_string())),
                Ok(_) => {}
                // Whether it was to start cannot be known.
                Err(_) if !all.contains(name.as_str()) => {
                    let text = format!("'{}' is wrong; `machinist check {name}` shows why", path.display());
                    self.events.warn(&text);
                }
                Err(_) => {}
            }
        }
        all.into_iter().collect()
    }

    /// Waits for a machine that another process is starting.
    fn wait_for(&self, name: &MachineName) -> Result<(), OpError> {
        match wait_ready::ready(&self.layout, name) {
            Ok(true) => Ok(()),
            Ok(false) => Err(OpError::new(cannot_start(name)).cause("it ended before it was ready")),
            Err(e) => Err(OpError::call(format!("cannot wait for machine '{name}'"), &e)),
        }
    }

    /// Starts one machine; `only` if no other is started meanwhile.
    fn start_one(&self, source: &str, alone: bool, no_wait: bool, only: bool) -> Result<(), OpError> {
        let name = MachineName::parse(source);
        let verb = Verb::StartOne { named: name.is_ok(), alone, wait: !no_wait };
        if let (Ok(name), Via::Systemd) = (&name, self.via(verb))
            && self.start_unit(name, !no_wait)?
        {
            self.events.done(name, What::Started);
            return Ok(());
        }
        // systemd has no unit for it.
        let verb = Verb::StartOne { named: name.is_ok(), alone: true, wait: !no_wait };
        if self.via(verb) == Via::Daemon {
            let request = Request::Start { name: source.to_owned(), alone: true };
            let text = only.then(|| format!("starting machine '{source}'"));
            if self.perform_aside(&request, text)?.is_some() {
                return Ok(());
            }
        }
        let mut job = self.prepare(source, no_wait.then_some(Ready::Started))?;
        let name = job.plan.name.clone();
        job.background = true;
        let prepared = supervisor::prepare(job).map_err(|e| error::machine(&cannot_start(&name), &e))?;
        self.run_in_background(prepared, only)?;
        self.events.done(&name, What::Started);
        Ok(())
    }
}

/// A sealed program executes itself again, which must not happen in the midst of starting.
fn seal_for_all(wanted: &StartSet) -> Result<(), OpError> {
    if wanted.members().any(|(_, member)| member.loaded().is_ok_and(|l| l.spec.users.mode == UserMode::Host)) {
        let facts = host::probe().map_err(|e| OpError::call("cannot look at this host", &e))?;
        if facts.authority == host::Authority::Root {
            seal()?;
        }
    }
    Ok(())
}

/// Machines on their way.
struct Starting<'a> {
    wanted: &'a StartSet,
    no_wait: bool,
    /// Those that others wait for.
    awaited: BTreeSet<MachineName>,
    failures: Failures,
    /// Failures of machines that were not named, and whether they have been reported.
    unasked: BTreeMap<MachineName, (OpError, bool)>,
}

impl Work for Starting<'_> {
    fn work(&self, ops: &Ops, name: &MachineName, alone: bool) -> Result<(), OpError> {
        let Some(member) = self.wanted.family.get(name) else { return Ok(()) };
        if let Err(error) = member.loaded() {
            return Err(error.into());
        }
        let is_owned = || state::is_owned(&ops.layout, name).unwrap_or(false);
        let asked = self.wanted.asked.contains(name);
        if !asked && is_owned() {
            return ops.wait_for(name);
        }
        let no_wait = self.no_wait && !self.awaited.contains(name);
        match ops.start_one(&member.source, false, no_wait, alone) {
            // Another process was faster.
            Err(error) if !asked && is_owned() => ops.wait_for(name).map_err(|_| error),
            result => result,
        }
    }

    fn failed(&mut self, name: &MachineName, error: OpError) {
        let asked = self.wanted.asked.contains(name);
        if asked {
            self.failures.add(error.clone());
        }
        self.unasked.insert(name.clone(), (error, asked));
    }

    fn skipped(&mut self, skipped: Skipped) {
        if self.wanted.asked.contains(&skipped.name)
            && let Some((error, told)) = self.unasked.get_mut(&skipped.failed)
        {
            *told = true;
            self.failures.add(error.then(&not_started(&skipped)));
        }
    }
}

/// Why a machine was not started, up to the reason of the one that failed.
fn not_started(skipped: &Skipped) -> String {
    let Skipped { name, by, failed } = skipped;
    let by = if by == name { "it".to_owned() } else { format!("'{by}'") };
    format!("machine '{name}' was not started: machine '{failed}', which {by} requires, failed")
}
