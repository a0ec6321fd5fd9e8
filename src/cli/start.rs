//! `start`: one machine, or many in their order.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};

use clap::Args;

use super::conduct::{self, Channel, Work};
use super::machine::{Spinner, cannot_start, prepare, state_of};
use super::output::{self, Failure, Failures, say};
use super::{carried, remote};
use crate::config::{self, Family, Loaded, Member};
use crate::host;
use crate::plan::dependencies::{Graph, Skipped};
use crate::running::{autostart, state, wait_ready};
use crate::spec::{Layout, MachineName, Ready, UserMode};
use crate::supervisor::{self, Exit, MachineError, Prepared};
use crate::sys::exe_seal;
use crate::sys::worker::Worker;
use crate::sys::{process, socket};

#[derive(Debug, Args)]
pub(crate) struct StartArguments {
    /// Machines or files
    #[arg(required_unless_present = "autostart", value_name = "NAME|FILE")]
    pub(super) names: Vec<String>,
    /// Also every machine that starts with the host, and none that runs already
    #[arg(long)]
    pub(super) autostart: bool,
    /// Only these and not what they need, which whoever calls has seen to
    #[arg(long, hide = true)]
    pub(super) alone: bool,
    /// Return as soon as the init has begun
    #[arg(long)]
    pub(super) no_wait: bool,
    /// Start at most N machines at once [default: twice the number of processors]
    #[arg(long, short, value_name = "N")]
    pub(super) jobs: Option<std::num::NonZeroUsize>,
}

/// The graph of the definitions; those with faults are in it, alone.
pub(super) fn graph(family: &Family) -> Graph {
    let mut graph = Graph::default();
    for (name, member) in family.members() {
        let order = member.loaded().map(|loaded| loaded.spec.boot.order.clone());
        graph.insert(name.clone(), order.unwrap_or_default());
    }
    graph
}

/// Machines that are to be started, with what they lead to.
pub(super) struct Wanted {
    pub(super) family: Family,
    pub(super) graph: Graph,
    /// Those asked for, of which nothing is wrong.
    asked: BTreeSet<MachineName>,
    /// These, and all that are started because of them.
    all: BTreeSet<MachineName>,
}

impl Wanted {
    /// Gathers definitions; those that can be told at once to be wrong are.
    pub(super) fn gather(layout: &Layout, names_or_files: &[String], failures: &mut Failures) -> Self {
        let (family, asked) = Family::gather(layout, names_or_files);
        let graph = graph(&family);
        let mut wanted = Self { family, graph, asked: BTreeSet::new(), all: BTreeSet::new() };
        for name in asked {
            match name.map_err(Failure::from).and_then(|name| wanted.check(&name).map(|()| name)) {
                Ok(name) => drop(wanted.asked.insert(name)),
                Err(failure) => failures.add(failure),
            }
        }
        wanted.all = wanted.graph.pulled_in(&wanted.asked);
        wanted
    }

    fn check(&self, name: &MachineName) -> Result<(), Failure> {
        if let Some(Err(error)) = self.family.get(name).map(Member::loaded) {
            return Err(Failure::config(error));
        }
        self.graph.circle(name).map_or(Ok(()), |circle| Err(self.family.circle(&circle).into()))
    }

    /// Those asked for, and all that are started because of them.
    pub(super) fn members(&self) -> impl Iterator<Item = (&MachineName, &Member)> {
        self.family.members().filter(|(name, _)| self.all.contains(*name))
    }

    /// The definition of the only one asked for.
    pub(super) fn take_only(&mut self) -> Option<Loaded> {
        let name = self.asked.pop_first()?;
        self.family.take(&name)
    }

    /// Says what they do without.
    pub(super) fn warn(&self) {
        self.members().flat_map(|(_, member)| &member.warnings).for_each(|warning| output::warn(warning));
    }
}

/// `machinist start`
pub(super) fn start(layout: &Layout, args: &StartArguments, quiet: bool) -> Result<u8, Failure> {
    // The supervisor outlives its caller, whose pipes and locks must not wait for it.
    process::close_all_except(&[]).map_err(|e| Failure::call("cannot close the caller's files", &e))?;
    if !nix::unistd::geteuid().is_root() && !args.autostart {
        // The daemon does it all; without one it is told that only root may.
        return super::machine::each(&args.names, |name| {
            remote::start(layout, name).map_or_else(
                || start_one(layout, name, args.no_wait, quiet, &mut None),
                |result| result.map(|()| say(quiet, &format!("Machine '{name}' is running."))),
            )
        });
    }
    if args.alone {
        return super::machine::each(&args.names, |name| start_one(layout, name, args.no_wait, quiet, &mut None));
    }
    let mut failures = Failures::default();
    let names = if args.autostart { autostart(layout, &args.names) } else { args.names.clone() };
    let wanted = Wanted::gather(layout, &names, &mut failures);
    seal_for_all(&wanted)?;
    wanted.warn();
    let mut schedule = wanted.graph.starting(&wanted.all);
    for name in &wanted.all {
        let Some(state) = state_of(layout, name)? else { continue };
        if wanted.asked.contains(name) {
            if !args.autostart {
                let running = MachineError::AlreadyRunning(name.clone());
                failures.add(Failure::machine(&cannot_start(name), &running));
            }
            schedule.ended(name, true);
        } else if state.phase == state::Phase::Running {
            schedule.ended(name, true);
        }
    }
    let units = carried::by_systemd(layout);
    if units && !schedule.is_over() {
        carried::refresh(layout, &wanted)?;
    }
    let limit = args.jobs.map_or_else(default_jobs, NonZeroUsize::get);
    let awaited = wanted.all.iter().filter(|name| schedule.is_awaited(name)).cloned().collect();
    let mut work = Starting {
        layout,
        wanted: &wanted,
        units,
        no_wait: args.no_wait,
        quiet,
        awaited,
        failures,
        unasked: BTreeMap::new(),
    };
    conduct::conduct(schedule, limit, &mut work).map_err(|e| Failure::call("cannot start machines", &e))?;
    work.unasked.values().filter(|(_, told)| !told).for_each(|(failure, _)| output::warn(&failure.line()));
    work.failures.result()
}

/// Twice as many as there are processors: about half the time of a start is waiting.
pub(super) fn default_jobs() -> usize {
    2 * std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// A sealed program begins anew, which must not happen in the midst of starting.
fn seal_for_all(wanted: &Wanted) -> Result<(), Failure> {
    if wanted.members().any(|(_, member)| member.loaded().is_ok_and(|l| l.spec.users.mode == UserMode::Host)) {
        let facts = host::probe().map_err(|e| Failure::call("cannot look at this host", &e))?;
        if facts.authority == host::Authority::Root {
            exe_seal::seal_own_program().map_err(|e| Failure::new(e.to_string()))?;
        }
    }
    Ok(())
}

/// The machines that start with the host, by definition or because they are enabled, and these.
fn autostart(layout: &Layout, names: &[String]) -> Vec<String> {
    let mut all: BTreeSet<String> = names.iter().cloned().collect();
    all.extend(autostart::enabled(layout).into_iter().map(|name| name.to_string()));
    for (name, path) in config::list(layout) {
        match config::load(layout, name.as_str()) {
            Ok(loaded) if loaded.spec.boot.autostart => drop(all.insert(name.to_string())),
            Ok(_) => {}
            // Whether it was to start cannot be known.
            Err(_) if !all.contains(name.as_str()) => {
                output::warn(&format!("'{}' is wrong; `machinist check {name}` shows why", path.display()));
            }
            Err(_) => {}
        }
    }
    all.into_iter().collect()
}

/// Machines on their way.
struct Starting<'a> {
    layout: &'a Layout,
    wanted: &'a Wanted,
    /// systemd is asked first.
    units: bool,
    no_wait: bool,
    quiet: bool,
    /// Those that others wait for.
    awaited: BTreeSet<MachineName>,
    failures: Failures,
    /// Failures of machines that nobody has asked for, and whether they have been told.
    unasked: BTreeMap<MachineName, (Failure, bool)>,
}

impl Starting<'_> {
    /// Waits for a machine that somebody else is starting.
    fn wait(&self, name: &MachineName) -> Result<(), Failure> {
        match wait_ready::ready(self.layout, name) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::new(cannot_start(name)).cause("it ended before it was ready")),
            Err(e) => Err(Failure::call(format!("cannot wait for machine '{name}'"), &e)),
        }
    }
}

impl Work for Starting<'_> {
    fn work(&self, name: &MachineName, channel: &mut Channel) -> Result<(), Failure> {
        let Some(member) = self.wanted.family.get(name) else { return Ok(()) };
        if let Err(error) = member.loaded() {
            return Err(Failure::config(error));
        }
        let is_owned = || state::is_owned(self.layout, name).unwrap_or(false);
        let asked = self.wanted.asked.contains(name);
        if !asked && is_owned() {
            return self.wait(name);
        }
        let no_wait = self.no_wait && !self.awaited.contains(name);
        // A file is the caller's own business; units are made of names.
        if self.units && member.source == name.as_str() && carried::start(self.layout, name, !no_wait)? {
            say(self.quiet, &format!("Machine '{name}' is running."));
            return Ok(());
        }
        match start_one(self.layout, &member.source, no_wait, self.quiet, channel) {
            // Somebody else was faster.
            Err(failure) if !asked && is_owned() => self.wait(name).map_err(|_| failure),
            result => result,
        }
    }

    fn failed(&mut self, name: &MachineName, failure: Failure) {
        if self.wanted.asked.contains(name) {
            self.failures.add(failure.clone());
        }
        let told = self.wanted.asked.contains(name);
        self.unasked.insert(name.clone(), (failure, told));
    }

    fn skipped(&mut self, skipped: Skipped) {
        if self.wanted.asked.contains(&skipped.name)
            && let Some((failure, told)) = self.unasked.get_mut(&skipped.failed)
        {
            *told = true;
            self.failures.add(failure.then(&not_started(&skipped)));
        }
    }
}

/// Why a machine was not started, up to the reason of the one that failed.
pub(super) fn not_started(skipped: &Skipped) -> String {
    let Skipped { name, by, failed } = skipped;
    let by = if by == name { "it".to_owned() } else { format!("'{by}'") };
    format!("machine '{name}' was not started: machine '{failed}', which {by} requires, failed")
}

/// Starts a background supervisor and waits for its word.
fn start_one(layout: &Layout, source: &str, no_wait: bool, quiet: bool, channel: &mut Channel) -> Result<(), Failure> {
    // One of several at once does not draw.
    let no_spinner = quiet || channel.is_some();
    if !no_wait {
        let spinner = || Spinner::new(no_spinner, format!("starting machine '{source}'"));
        let done = remote::start_alone(layout, source, spinner);
        if let Some(result) = done {
            result?;
            say(quiet, &format!("Machine '{source}' is running."));
            return Ok(());
        }
    }
    let mut job = prepare(layout, source)?;
    let name = job.plan.name.clone();
    let doing = cannot_start(&name);
    let call = |e: &crate::sys::Error| Failure::call(doing.clone(), e);
    if no_wait {
        job.plan.exec.ready = Ready::Started;
    }
    job.background = true;
    let prepared = supervisor::prepare(job).map_err(|e| Failure::machine(&doing, &e))?;
    let ours = match go_to_background(prepared, &doing, channel) {
        Ok(ours) => ours,
        Err(failed) => {
            let (e, prepared) = *failed;
            // The first failure is what the user needs.
            let _ = prepared.abandon();
            return Err(call(&e));
        }
    };
    // The next machine's supervisor must not inherit this one's locks. Nothing else of ours is open.
    let keep = std::iter::once(ours.as_fd()).chain(channel.as_ref().map(AsFd::as_fd));
    process::close_all_except(&keep.collect::<Vec<_>>()).map_err(|e| call(&e))?;
    let spinner = Spinner::new(no_spinner, format!("starting machine '{name}'"));
    let mut buffer = vec![0; 16 << 10];
    let received = socket::receive(&ours, &mut buffer).map_err(|e| call(&e))?;
    drop(spinner);
    match buffer.get(..received.len) {
        Some(word) if word.starts_with(b"ready") => {
            String::from_utf8_lossy(word).lines().skip(1).for_each(output::warn);
            say(quiet, &format!("Machine '{name}' is running."));
            Ok(())
        }
        Some([]) | None => Err(Failure::new(doing)
            .hint(format!("its supervisor ended without a word; `machinist logs {name}` may tell why"))),
        Some(failure) => Err(Failure::from_wire(failure)),
    }
}

/// Hands the machine to a supervisor of its own, born in its own control group, and gives a socket on which it
/// reports.
fn go_to_background(
    prepared: Prepared,
    doing: &str,
    channel: &mut Channel,
) -> Result<OwnedFd, Box<(crate::sys::Error, Prepared)>> {
    let made = prepared.supervisor_group().and_then(|group| Ok((group, socket::pair()?)));
    let (group, (ours, theirs)) = match made {
        Ok(made) => made,
        Err(e) => return Err(Box::new((e, prepared))),
    };
    let lost = |why: &str| tell(&theirs, &Failure::new(doing).cause(format!("its supervisor panicked: {why}")));
    let worker = Worker::unnamed(c"supervisor").cgroup(Some(group.as_fd())).on_panic(&lost);
    let ((prepared, ours), born) = worker.spawn_with((prepared, ours), |(mut prepared, ours)| {
        drop(ours);
        *channel = None;
        let _ = theirs.try_clone().map(|reports| prepared.report_to(reports));
        tell(&theirs, &background(prepared, doing));
        0
    });
    match born {
        Ok(_) => {
            // Everything it holds, locks included, belongs to the supervisor now.
            std::mem::forget(prepared);
            Ok(ours)
        }
        Err(e) => Err(Box::new((e, prepared))),
    }
}

/// Tells `start` why its machine is over. Read only while it waits; later it goes nowhere.
fn tell(start: &OwnedFd, failure: &Failure) {
    let _ = socket::send(start, &failure.to_wire(), &[]);
}

/// Is the background supervisor: own session, no terminal. What it gives matters while `start` waits.
fn background(prepared: Prepared, doing: &str) -> Failure {
    let name = prepared.name().clone();
    if nix::unistd::setsid().is_err() || !to_dev_null() {
        // What stays is removed by the next start.
        let _ = prepared.abandon();
        return Failure::new(doing).hint("cannot leave the terminal");
    }
    match prepared.run() {
        Ok(exit) => not_ready(&name, doing, &exit),
        Err(e) => Failure::machine(doing, &e),
    }
}

/// What `start` says of a machine that has ended too early.
fn not_ready(name: &MachineName, doing: &str, exit: &Exit) -> Failure {
    let failure = match &exit.gave_up {
        Some(text) => Failure::new(doing).cause(text.clone()).cause(format!("the last time it {}", exit.reason())),
        None if exit.asked => Failure::new(doing).cause("it was stopped before it was ready"),
        None => Failure::new(doing).cause(format!("it {} before it was ready", exit.reason())),
    };
    failure.hint(format!("`machinist logs {name}` shows what it said"))
}

fn to_dev_null() -> bool {
    let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") else { return false };
    rustix::stdio::dup2_stdin(&null).is_ok()
        && rustix::stdio::dup2_stdout(&null).is_ok()
        && rustix::stdio::dup2_stderr(&null).is_ok()
}
