//! Machines by their definitions: listed, looked at, started, stopped, limited, and commands run in them.
//!
//! What changes one is done by this program's own verbs ([`super::program`]), so that a machine that is started over
//! the bus is no other than one that was started by hand, and errors are the same to the letter.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::OwnedFd;

use serde_json::Value;

use super::caller::Caller;
use super::error::{Failure, Outcome};
use super::registry::Process;
use super::state::Daemon;
use crate::config;
use crate::running::state::{self, State, Statistics};
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
        return Ok(state.details());
    }
    let defined = config::list(&daemon.layout).into_iter().find(|(defined, _)| *defined == name);
    let (_, path) = defined.ok_or_else(|| Failure::no_such_machine(text))?;
    Ok(serde_json::json!({ "name": text, "state": "stopped", "definition": path }))
}

/// A summary of all machines that run, or that are defined, too.
pub(crate) async fn list(daemon: &Daemon, caller: &Caller, all: bool) -> Outcome<Vec<Value>> {
    daemon.authorise(caller, INSPECT, &[("verb", "list")]).await?;
    let names = names(daemon);
    let states = names.iter().map(|name| (name, MachineName::parse(name).ok().and_then(|n| read(daemon, &n))));
    let shown = states.filter(|(_, state)| all || state.is_some());
    Ok(shown.map(|(name, state)| state::summary(name, state.as_ref())).collect())
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
    Ok(states.iter().map(State::statistics).collect())
}

/// The state of a machine that must be running, or what the command line says of one that is not.
fn running(daemon: &Daemon, name: &str) -> Outcome<State> {
    let parsed = MachineName::parse(name).map_err(Failure::invalid_args)?;
    read(daemon, &parsed).ok_or_else(|| Failure::failed(format!("machine '{name}' is not running")))
}

async fn authorise(daemon: &Daemon, caller: &Caller, name: &str, action: &str, verb: &str) -> Outcome {
    daemon.authorise(caller, action, &[("machine", name), ("verb", verb)]).await
}

/// Starts a machine; `alone` if the caller sees to what it needs.
pub(crate) async fn start(daemon: &Daemon, caller: &Caller, name: &str, alone: bool) -> Outcome {
    // A name and nothing else: this program takes files, too.
    MachineName::parse(name).map_err(Failure::invalid_args)?;
    if !exists(daemon, name) {
        let error = config::load(&daemon.layout, name).err().map(|e| e.render(false)).unwrap_or_default();
        return Err(Failure::invalid_args(error.trim_start_matches("error: ").trim_end()));
    }
    authorise(daemon, caller, name, MANAGE, "start").await?;
    let verb: &[&str] = if alone { &["start", "--alone"] } else { &["start"] };
    daemon.run(&[verb, &["--", name]].concat()).await?.check()
}

/// Stops a machine, within so many microseconds; gives what there was to warn of.
pub(crate) async fn stop(daemon: &Daemon, caller: &Caller, name: &str, timeout: Option<u64>) -> Outcome<String> {
    running(daemon, name)?;
    authorise(daemon, caller, name, MANAGE, "stop").await?;
    let mut arguments = vec!["stop".to_owned()];
    if let Some(timeout) = timeout {
        arguments.extend(["--timeout".into(), format!("{}ms", timeout.div_ceil(1000))]);
    }
    arguments.extend(["--".into(), name.to_owned()]);
    let finished = daemon.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    finished.check()?;
    Ok(remark(&finished.said))
}

/// Reboots a machine; gives what there was to warn of.
pub(crate) async fn restart(daemon: &Daemon, caller: &Caller, name: &str) -> Outcome<String> {
    running(daemon, name)?;
    authorise(daemon, caller, name, MANAGE, "restart").await?;
    let finished = daemon.run(&["reboot", "--", name]).await?;
    finished.check()?;
    Ok(remark(&finished.said))
}

/// Changes limits and gives what was done, in words, a line each.
pub(crate) async fn set_limits(
    daemon: &Daemon,
    caller: &Caller,
    name: &str,
    settings: &[String],
    save: bool,
) -> Outcome<String> {
    if save {
        MachineName::parse(name).map_err(Failure::invalid_args)?;
    } else {
        running(daemon, name)?;
    }
    authorise(daemon, caller, name, LIMIT, "set").await?;
    let options: &[&str] = if save { &["set", "--save", "--"] } else { &["set", "--"] };
    let arguments = options.iter().copied().chain([name]).chain(settings.iter().map(String::as_str));
    let finished = daemon.run(&arguments.collect::<Vec<_>>()).await?;
    finished.check()?;
    Ok(finished.said.trim_end().to_owned())
}

/// What a verb that succeeded warned of, as one text without the word in front.
fn remark(said: &str) -> String {
    let warnings = said.lines().filter_map(|line| line.strip_prefix("warning: "));
    warnings.collect::<Vec<_>>().join("\n")
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
    let finished = daemon.run_for(arguments, files, process).await?;
    Ok(finished.status)
}
