//! `org.machinist1`: definitions, life and commands, which machine1 has no words for.
//!
//! What is asked for is done by this program's own verbs ([`crate::daemon::core::program`]), so that a machine that is started over
//! the bus is no other than one that was started by hand, and errors are the same to the letter.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde_json::Value;
use zbus::wire::Variant;

use super::call::{Answer, Call, Properties};
use super::face::to_dictionary;
use crate::config;
use crate::daemon::core::error::{Failure, Outcome};
use crate::daemon::core::registry::Process;
use crate::daemon::core::state::Daemon;
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
    // One that cannot be read is one that does not run, as far as anybody can tell.
    state::read(&daemon.layout, name).ok().flatten()
}

/// What is known of a machine: its details if it runs, else where it is defined.
fn find(daemon: &Daemon, text: &str) -> Outcome<Value> {
    let name = MachineName::parse(text).map_err(|_| Failure::invalid_args("Invalid machine name"))?;
    if let Some(state) = read(daemon, &name) {
        return Ok(state.details());
    }
    let defined = config::list(&daemon.layout).into_iter().find(|(defined, _)| *defined == name);
    let (_, path) = defined.ok_or_else(|| Failure::no_such_machine(text))?;
    Ok(serde_json::json!({ "name": text, "state": "stopped", "definition": path }))
}

pub(crate) fn manager_properties() -> Properties {
    vec![("Version", Variant::from(env!("CARGO_PKG_VERSION")))]
}

pub(crate) fn machine_properties(daemon: &Daemon, name: &str) -> Answer<Properties> {
    let machine = find(daemon, name)?;
    let text = |key: &str| Variant::from(machine[key].as_str().unwrap_or_default().to_owned());
    Ok(vec![("Name", text("name")), ("State", text("state")), ("Definition", text("definition"))])
}

pub(crate) async fn manager_call(daemon: &Arc<Daemon>, call: &Call, member: &str) -> Answer {
    match member {
        "ListMachines" => {
            let all: bool = call.arguments()?;
            daemon.authorise(&call.caller(), INSPECT, &[("verb", "list")]).await?;
            list(daemon, call, all)
        }
        "GetMachine" => get(daemon, call, &call.arguments::<String>()?).await,
        "GetStatistics" => statistics(daemon, call, call.arguments()?).await,
        "Start" => start(daemon, call, &call.arguments::<String>()?, &["start"]).await,
        // What it needs has been seen to by whoever calls.
        "StartAlone" => start(daemon, call, &call.arguments::<String>()?, &["start", "--alone"]).await,
        "Restart" => restart(daemon, call, &call.arguments::<String>()?).await,
        "Stop" => {
            let (name, timeout): (String, u64) = call.arguments()?;
            stop(daemon, call, &name, timeout).await
        }
        "SetLimits" => {
            let (name, settings, save): (String, Vec<String>, bool) = call.arguments()?;
            set_limits(daemon, call, &name, &settings, save).await
        }
        "Reload" => {
            daemon.authorise(&call.caller(), MANAGE, &[("verb", "reload")]).await?;
            reload(daemon, call).await
        }
        "Exec" => {
            type Arguments = (String, String, Vec<String>, Vec<String>, String, u64, Vec<zbus::wire::OwnedFd>);
            let (name, user, command, environment, directory, timeout, files): Arguments = call.arguments()?;
            let wanted = Exec { user, command, environment, directory, timeout };
            exec(daemon, call, &name, wanted, files).await
        }
        _ => Err(call.unknown_method()),
    }
}

pub(crate) async fn machine_call(daemon: &Arc<Daemon>, call: &Call, member: &str, name: &str) -> Answer {
    match member {
        "Get" => get(daemon, call, name).await,
        "GetStatistics" => {
            let state = running(daemon, name)?;
            authorise(daemon, call, name, INSPECT, "stats").await?;
            call.reply(&to_dictionary(&json(&state.statistics())))
        }
        "Start" => start(daemon, call, name, &["start"]).await,
        "Restart" => restart(daemon, call, name).await,
        "Stop" => stop(daemon, call, name, call.arguments()?).await,
        "SetLimits" => {
            let (settings, save): (Vec<String>, bool) = call.arguments()?;
            set_limits(daemon, call, name, &settings, save).await
        }
        "Exec" => {
            type Arguments = (String, Vec<String>, Vec<String>, String, u64, Vec<zbus::wire::OwnedFd>);
            let (user, command, environment, directory, timeout, files): Arguments = call.arguments()?;
            let wanted = Exec { user, command, environment, directory, timeout };
            exec(daemon, call, name, wanted, files).await
        }
        _ => Err(call.unknown_method()),
    }
}

fn list(daemon: &Daemon, call: &Call, all: bool) -> Answer {
    let names = names(daemon);
    let states = names.iter().map(|name| (name, MachineName::parse(name).ok().and_then(|n| read(daemon, &n))));
    let shown = states.filter(|(_, state)| all || state.is_some());
    let rows: Vec<_> = shown.map(|(name, state)| to_dictionary(&state::summary(name, state.as_ref()))).collect();
    call.reply(&rows)
}

async fn get(daemon: &Arc<Daemon>, call: &Call, name: &str) -> Answer {
    let machine = find(daemon, name)?;
    daemon.authorise(&call.caller(), INSPECT, &[("machine", name), ("verb", "status")]).await?;
    call.reply(&to_dictionary(&machine))
}

fn json(statistics: &Statistics) -> Value {
    serde_json::to_value(statistics).unwrap_or_default()
}

/// What these machines use, or all that run if none is named. It is asked for every second by some, so there is one
/// question to polkit at most.
async fn statistics(daemon: &Arc<Daemon>, call: &Call, wanted: Vec<String>) -> Answer {
    let states: Vec<State> = match wanted.as_slice() {
        [] => state::names(&daemon.layout).iter().filter_map(|name| read(daemon, name)).collect(),
        names => names.iter().map(|name| running(daemon, name)).collect::<Outcome<_>>()?,
    };
    match wanted.as_slice() {
        [name] => authorise(daemon, call, name, INSPECT, "stats").await?,
        _ => daemon.authorise(&call.caller(), INSPECT, &[("verb", "stats")]).await?,
    }
    let rows: Vec<_> = states.iter().map(|state| to_dictionary(&json(&state.statistics()))).collect();
    call.reply(&rows)
}

/// The state of a machine that must be running, or what the command line says of one that is not.
fn running(daemon: &Daemon, name: &str) -> Outcome<State> {
    let parsed = MachineName::parse(name).map_err(Failure::invalid_args)?;
    read(daemon, &parsed).ok_or_else(|| Failure::failed(format!("machine '{name}' is not running")))
}

async fn authorise(daemon: &Arc<Daemon>, call: &Call, name: &str, action: &str, verb: &str) -> Outcome {
    daemon.authorise(&call.caller(), action, &[("machine", name), ("verb", verb)]).await
}

async fn start(daemon: &Arc<Daemon>, call: &Call, name: &str, verb: &[&str]) -> Answer {
    // A name and nothing else: this program takes files, too.
    MachineName::parse(name).map_err(Failure::invalid_args)?;
    if !exists(daemon, name) {
        let error = config::load(&daemon.layout, name).err().map(|e| e.render(false)).unwrap_or_default();
        return Err(Failure::invalid_args(error.trim_start_matches("error: ").trim_end()).into());
    }
    authorise(daemon, call, name, MANAGE, "start").await?;
    daemon.run(&[verb, &["--", name]].concat()).await?.check()?;
    call.reply(&())
}

async fn stop(daemon: &Arc<Daemon>, call: &Call, name: &str, timeout: u64) -> Answer {
    running(daemon, name)?;
    authorise(daemon, call, name, MANAGE, "stop").await?;
    let mut arguments = vec!["stop".to_owned()];
    // The greatest number stands for the machine's own.
    if timeout != u64::MAX {
        arguments.extend(["--timeout".into(), format!("{}ms", timeout.div_ceil(1000))]);
    }
    arguments.extend(["--".into(), name.to_owned()]);
    let finished = daemon.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    finished.check()?;
    call.reply(&remark(&finished.said))
}

async fn restart(daemon: &Arc<Daemon>, call: &Call, name: &str) -> Answer {
    running(daemon, name)?;
    authorise(daemon, call, name, MANAGE, "restart").await?;
    let finished = daemon.run(&["reboot", "--", name]).await?;
    finished.check()?;
    call.reply(&remark(&finished.said))
}

/// Changes limits and gives what was done, in words, a line each.
async fn set_limits(daemon: &Arc<Daemon>, call: &Call, name: &str, settings: &[String], save: bool) -> Answer {
    if save {
        MachineName::parse(name).map_err(Failure::invalid_args)?;
    } else {
        running(daemon, name)?;
    }
    authorise(daemon, call, name, LIMIT, "set").await?;
    let options: &[&str] = if save { &["set", "--save", "--"] } else { &["set", "--"] };
    let arguments = options.iter().copied().chain([name]).chain(settings.iter().map(String::as_str));
    let finished = daemon.run(&arguments.collect::<Vec<_>>()).await?;
    finished.check()?;
    call.reply(&finished.said.trim_end())
}

/// What a verb that succeeded warned of, as one text without the word in front.
fn remark(said: &str) -> String {
    let warnings = said.lines().filter_map(|line| line.strip_prefix("warning: "));
    warnings.collect::<Vec<_>>().join("\n")
}

/// Checks every definition and says which are wrong. Nothing is kept of them that could be stale.
async fn reload(daemon: &Arc<Daemon>, call: &Call) -> Answer {
    let layout = daemon.layout.clone();
    let problems: Vec<(String, String)> = daemon
        .blocking(move || {
            let names = config::list(&layout).into_iter().map(|(name, _)| name.as_str().to_owned());
            let check = |name: String| config::load(&layout, &name).err().map(|e| (name, e.to_string()));
            names.filter_map(check).collect()
        })
        .await?;
    daemon.event("", "reloaded", Value::Null).await;
    call.reply(&problems)
}

/// A command as it was asked for.
struct Exec {
    user: String,
    command: Vec<String>,
    environment: Vec<String>,
    directory: String,
    /// In microseconds; nothing or the greatest number is none.
    timeout: u64,
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

async fn exec(daemon: &Arc<Daemon>, call: &Call, name: &str, wanted: Exec, files: Vec<zbus::wire::OwnedFd>) -> Answer {
    let machine = find(daemon, name)?;
    if wanted.command.first().is_none_or(String::is_empty) {
        return Err(Failure::invalid_args("No command given").into());
    }
    let files: Vec<OwnedFd> = files.into_iter().map(OwnedFd::from).collect();
    let files: [OwnedFd; 3] = files
        .try_into()
        .map_err(|_| Failure::invalid_args("Three files are needed: standard input, output and error"))?;
    if machine["leader"].is_null() {
        return Err(Failure::failed(format!("machine '{name}' is not running")).into());
    }
    let command_line = wanted.command.join(" ");
    let details = [("machine", name), ("user", wanted.user.as_str()), ("command_line", command_line.as_str())];
    daemon.authorise(&call.caller(), EXEC, &details).await?;
    // Its root would be root of the host.
    if machine["ids"].is_null() {
        daemon.require_root(&call.caller(), "Exec").await?;
    }
    let caller = daemon.credentials(&call.caller()).await?;
    let arguments = wanted.arguments(name);
    let finished = daemon.run_for(arguments, files, Process::open(caller.pid).ok()).await?;
    call.reply(&finished.status)
}
