//! Machines by their definitions: listed, looked at, started, stopped, limited, and commands run in them.
//!
//! What changes one is done by this program's own verbs ([`super::program`]), so that a machine that is started over
//! the bus is no other than one that was started by hand, and errors are the same to the letter ([`perform`]).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::time::Duration;

use serde_json::Value;

use super::caller::Caller;
use super::error::{Failure, Outcome};
use super::program::{check, warnings};
use super::registry::Process;
use super::state::Daemon;
use crate::config;
use crate::report::{Event, OpError, Request};
use crate::running::state::{self, State};
use crate::running::view::{Statistics, Status, Summary};
use crate::spec::MachineName;

/// Actions of polkit, as `packaging/polkit` defines them.
const INSPECT: &str = "org.machinist1.inspect";
const MANAGE: &str = "org.machinist1.manage";
const EXEC: &str = "org.machinist1.exec";
const LIMIT: &str = "org.machinist1.limit";

/// Names of all machines that run or are defined.
pub(crate) fn names(daemon: &Daemon) -> BTreeSet<String> {
    let defined = config::list(&daemon.layout).into_iter().map(|(name, _)| name);
    let running = state::names(&daemon.layout).into_iter().filter(|name| read(daemon, name).is_some());
    defined.chain(running).map(|name| name.as_str().to_owned()).collect()
}

/// Whether a machine of that name runs or is defined.
pub(crate) fn exists(daemon: &Daemon, name: &str) -> bool {
    find(daemon, name).is_ok()
}

fn read(daemon: &Daemon, name: &MachineName) -> Option<State> {
    // One that cannot be read is one that does not run, as far as can be told.
    state::read(&daemon.layout, name).ok().flatten()
}

/// What is known of a machine: its details if it runs, else where it is defined.
pub(crate) fn find(daemon: &Daemon, text: &str) -> Outcome<Value> {
    let name = MachineName::parse(text).map_err(|_| Failure::invalid_args("Invalid machine name"))?;
    if let Some(state) = read(daemon, &name) {
        return Ok(Status::of(&state).to_json());
    }
    let defined = config::list(&daemon.layout).into_iter().find(|(defined, _)| *defined == name);
    let (_, path) = defined.ok_or_else(|| Failure::no_such_machine(text))?;
    Ok(Status::stopped(&name, path).to_json())
}

/// A summary of all machines that run, or that are defined, too.
pub(crate) async fn list(daemon: &Daemon, caller: &Caller, all: bool) -> Outcome<Vec<Value>> {
    daemon.authorise(caller, INSPECT, &[("verb", "list")]).await?;
    let names = names(daemon);
    let states = names.iter().map(|name| (name, MachineName::parse(name).ok().and_then(|n| read(daemon, &n))));
    let shown = states.filter(|(_, state)| all || state.is_some());
    let summary = |(name, state): (&String, Option<State>)| match state {
        Some(state) => Summary::of(&state).to_json(),
        None => Summary::stopped(name).to_json(),
    };
    Ok(shown.map(summary).collect())
}

/// What is known of one machine.
pub(crate) async fn get(daemon: &Daemon, caller: &Caller, name: &str) -> Outcome<Value> {
    let machine = find(daemon, name)?;
    daemon.authorise(caller, INSPECT, &[("machine", name), ("verb", "status")]).await?;
    Ok(machine)
}

/// What these machines use, or all that run if none is named. It is asked for every second by some, so there is one
/// question to polkit at most.
pub(crate) async fn statistics(daemon: &Daemon, caller: &Caller, wanted: &[String]) -> Outcome<Vec<Statistics>> {
    let states: Vec<State> = match wanted {
        [] => state::names(&daemon.layout).iter().filter_map(|name| read(daemon, name)).collect(),
        names => names.iter().map(|name| running(daemon, name)).collect::<Outcome<_>>()?,
    };
    match wanted {
        [name] => authorise(daemon, caller, name, INSPECT, "stats").await?,
        _ => daemon.authorise(caller, INSPECT, &[("verb", "stats")]).await?,
    }
    Ok(states.iter().map(Statistics::of).collect())
}

/// The state of a machine that must be running, or what the command line says of one that is not.
fn running(daemon: &Daemon, name: &str) -> Outcome<State> {
    let parsed = MachineName::parse(name).map_err(Failure::invalid_args)?;
    read(daemon, &parsed).ok_or_else(|| Failure::failed(format!("machine '{name}' is not running")))
}

async fn authorise(daemon: &Daemon, caller: &Caller, name: &str, action: &str, verb: &str) -> Outcome {
    daemon.authorise(caller, action, &[("machine", name), ("verb", verb)]).await
}

/// Does what root's command line does by itself, and gives what was told of it; if it failed, the last is why.
pub(crate) async fn perform(daemon: &Daemon, caller: &Caller, request: &Request) -> Outcome<Vec<Event>> {
    let name = request.name();
    let parsed = MachineName::parse(name).map_err(Failure::invalid_args)?;
    let missing = match request {
        // A name and nothing else: this program takes files, too.
        Request::Start { .. } if !exists(daemon, name) => config::load(&daemon.layout, name).err().map(OpError::from),
        Request::Stop { .. } | Request::Reboot { .. } | Request::Set { save: false, .. } => {
            read(daemon, &parsed).is_none().then(|| OpError::not_running(name))
        }
        Request::Start { .. } | Request::Set { save: true, .. } => None,
    };
    if let Some(error) = missing {
        return Ok(vec![Event::Failed(error)]);
    }
    let (action, verb) = match request {
        Request::Start { .. } => (MANAGE, "start"),
        Request::Stop { .. } => (MANAGE, "stop"),
        Request::Reboot { .. } => (MANAGE, "restart"),
        Request::Set { .. } => (LIMIT, "set"),
    };
    authorise(daemon, caller, name, action, verb).await?;
    let mut words: Vec<String> = Vec::new();
    let mut settings: &[String] = &[];
    match request {
        Request::Start { alone, .. } => {
            words.push("start".into());
            words.extend(alone.then(|| "--alone".into()));
        }
        Request::Stop { timeout, .. } => {
            words.push("stop".into());
            words.extend(timeout.map(|time| format!("--timeout={}ms", time.as_micros().div_ceil(1000))));
        }
        Request::Reboot { .. } => words.push("reboot".into()),
        Request::Set { settings: wanted, save, .. } => {
            words.push("set".into());
            words.extend(save.then(|| "--save".into()));
            settings = wanted;
        }
    }
    let words = words.iter().map(String::as_str).chain(["--", name]).chain(settings.iter().map(String::as_str));
    daemon.run(&words.collect::<Vec<_>>()).await
}

/// The same, failing if it failed.
async fn perform_well(daemon: &Daemon, caller: &Caller, request: &Request) -> Outcome<Vec<Event>> {
    let events = perform(daemon, caller, request).await?;
    check(&events)?;
    Ok(events)
}

/// Starts a machine with what it needs.
pub(crate) async fn start(daemon: &Daemon, caller: &Caller, name: &str) -> Outcome {
    perform_well(daemon, caller, &Request::Start { name: name.to_owned(), alone: false }).await.map(drop)
}

/// Stops a machine, within so many microseconds; gives what there was to warn of.
pub(crate) async fn stop(daemon: &Daemon, caller: &Caller, name: &str, timeout: Option<u64>) -> Outcome<String> {
    let request = Request::Stop { name: name.to_owned(), timeout: timeout.map(Duration::from_micros) };
    Ok(remark(&perform_well(daemon, caller, &request).await?))
}

/// Reboots a machine; gives what there was to warn of.
pub(crate) async fn restart(daemon: &Daemon, caller: &Caller, name: &str) -> Outcome<String> {
    Ok(remark(&perform_well(daemon, caller, &Request::Reboot { name: name.to_owned() }).await?))
}

/// Changes limits and gives what was done, in words, a line each.
pub(crate) async fn set_limits(
    daemon: &Daemon,
    caller: &Caller,
    name: &str,
    settings: Vec<String>,
    save: bool,
) -> Outcome<String> {
    let events = perform_well(daemon, caller, &Request::Set { name: name.to_owned(), settings, save }).await?;
    let lines = events.iter().filter_map(|event| match event {
        Event::Warning(text) => Some(format!("warning: {text}")),
        Event::Done(done) => Some(done.to_string()),
        _ => None,
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// What was warned of, a line each.
fn remark(events: &[Event]) -> String {
    warnings(events).collect::<Vec<_>>().join("\n")
}

/// Checks every definition and says which are wrong. Nothing is kept of them that could be stale.
pub(crate) async fn reload(daemon: &Daemon, caller: &Caller) -> Outcome<Vec<(String, String)>> {
    daemon.authorise(caller, MANAGE, &[("verb", "reload")]).await?;
    let layout = daemon.layout.clone();
    let problems: Vec<(String, String)> = daemon
        .blocking(move || {
            let names = config::list(&layout).into_iter().map(|(name, _)| name.as_str().to_owned());
            let check = |name: String| config::load(&layout, &name).err().map(|e| (name, e.to_string()));
            names.filter_map(check).collect()
        })
        .await?;
    daemon.event("", "reloaded", Value::Null).await;
    Ok(problems)
}

/// A command to be run in a machine.
#[derive(Debug, Default)]
pub(crate) struct Exec {
    pub(crate) user: String,
    pub(crate) command: Vec<String>,
    pub(crate) environment: Vec<String>,
    pub(crate) directory: String,
    /// In microseconds; nothing or the greatest number is none.
    pub(crate) timeout: u64,
    /// Standard input, output and error.
    pub(crate) files: Vec<OwnedFd>,
}

impl Exec {
    fn arguments(&self, name: &str) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["exec".into()];
        for (option, value) in [("--user", &self.user), ("--directory", &self.directory)] {
            if !value.is_empty() {
                arguments.push(format!("{option}={value}").into());
            }
        }
        arguments.extend(self.environment.iter().map(|e| format!("--env={e}").into()));
        if ![0, u64::MAX].contains(&self.timeout) {
            arguments.push(format!("--timeout={}ms", self.timeout.div_ceil(1000)).into());
        }
        arguments.extend(["--".into(), name.into()]);
        arguments.extend(self.command.iter().map(Into::into));
        arguments
    }
}

/// Runs a command in a machine, for as long as the caller lives; gives its exit status.
pub(crate) async fn exec(daemon: &Daemon, caller: &Caller, name: &str, wanted: Exec) -> Outcome<i32> {
    let machine = find(daemon, name)?;
    if wanted.command.first().is_none_or(String::is_empty) {
        return Err(Failure::invalid_args("No command given"));
    }
    let arguments = wanted.arguments(name);
    let command_line = wanted.command.join(" ");
    let files: [OwnedFd; 3] = wanted
        .files
        .try_into()
        .map_err(|_| Failure::invalid_args("Three files are needed: standard input, output and error"))?;
    if machine["leader"].is_null() {
        return Err(Failure::failed(format!("machine '{name}' is not running")));
    }
    let details = [("machine", name), ("user", wanted.user.as_str()), ("command_line", command_line.as_str())];
    daemon.authorise(caller, EXEC, &details).await?;
    // Its root would be root of the host.
    if machine["ids"].is_null() {
        daemon.require_root(caller, "Exec").await?;
    }
    let process = Process::open(daemon.credentials(caller).await?.pid).ok();
    daemon.run_for(arguments, files, process).await
}
