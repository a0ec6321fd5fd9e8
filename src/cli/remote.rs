//! Verbs that the daemon does for us: for everybody where it runs, and for those who are not root in any case.
//!
//! Root does everything alone when there is no daemon; what is printed is the same.

use std::os::fd::AsFd as _;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::output::{self, Failure, status};
use crate::bus::Bus;
use crate::bus::machinist1::{Daemon, Exec, Refused};
use crate::cgroup::Usage;
use crate::enter::Command;
use crate::running::state::{MAY_BE_NULL, Statistics};
use crate::spec::{Layout, ProcessLimits, RestartPolicy};

/// Set by the daemon for the verbs that it runs, which must not ask it again.
const BY_DAEMON: &str = "MACHINIST_BY_DAEMON";

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Asks the daemon; `None` if it is not there and root is to do the work alone.
fn ask<T>(layout: &Layout, question: impl FnOnce(&Daemon<'_>) -> Result<T, Refused>) -> Option<Result<T, Failure>> {
    if std::env::var_os(BY_DAEMON).is_some() {
        return None;
    }
    let bus = Bus::of(layout);
    match question(&Daemon::new(&bus, !is_root())) {
        Ok(answer) => Some(Ok(answer)),
        Err(Refused::Absent) => None,
        Err(Refused::Denied(text)) => Some(Err(Failure::told(status::NOT_PERMITTED, text))),
        Err(Refused::Invalid(text)) => Some(Err(Failure::told(status::BAD_CONFIG, text))),
        Err(Refused::Failed(text)) => Some(Err(Failure::told(status::FAILED, text))),
    }
}

/// Starts a machine.
pub(super) fn start(layout: &Layout, name: &str) -> Option<Result<(), Failure>> {
    // A file is the caller's own business; the daemon knows names.
    let is_name = crate::spec::MachineName::parse(name).is_ok();
    is_name.then(|| ask(layout, |daemon| daemon.start(name))).flatten()
}

/// Starts a machine, but not what it needs; holds what `meanwhile` gives until the answer comes.
pub(super) fn start_alone<G>(
    layout: &Layout,
    name: &str,
    meanwhile: impl FnOnce() -> G,
) -> Option<Result<(), Failure>> {
    let is_name = crate::spec::MachineName::parse(name).is_ok();
    is_name.then(|| ask(layout, |daemon| daemon.start_alone(name, meanwhile))).flatten()
}

/// Stops a machine; gives a remark, or nothing.
pub(super) fn stop(layout: &Layout, name: &str, timeout: Option<Duration>) -> Option<Result<String, Failure>> {
    ask(layout, |daemon| daemon.stop(name, timeout))
}

/// Restarts a machine; as for [`stop`].
pub(super) fn restart(layout: &Layout, name: &str) -> Option<Result<String, Failure>> {
    ask(layout, |daemon| daemon.restart(name))
}

/// Changes a machine's limits, for those who may not by themselves; gives what was done, a line each.
pub(super) fn set_limits(
    layout: &Layout,
    name: &str,
    settings: &[String],
    save: bool,
) -> Option<Result<String, Failure>> {
    if is_root() { None } else { ask(layout, |daemon| daemon.set_limits(name, settings, save)) }
}

/// The bus has no null: what is unknown is not sent.
fn with_nulls(mut object: Value, keys: &[&str]) -> Value {
    for key in keys {
        // Reading makes no entry; this does.
        let value = &mut object[*key];
        *value = value.take();
    }
    object
}

/// The same for a part that we know as a type: what it does not say is none, and becomes null again.
fn whole<T: Default + DeserializeOwned + Serialize>(part: Value) -> Value {
    serde_json::to_value(serde_json::from_value::<T>(part).unwrap_or_default()).unwrap_or_default()
}

/// What runs, for those who may not look themselves.
pub(super) fn list(layout: &Layout, all: bool) -> Option<Result<Vec<Value>, Failure>> {
    let list = if is_root() { None } else { ask(layout, |daemon| daemon.list(all)) };
    let whole = |row: Value| match row["supervisor"].is_null() {
        true => row,
        false => with_nulls(row, &["init", "ids", "leader"]),
    };
    list.map(|list| list.map(|rows| rows.into_iter().map(whole).collect()))
}

/// What is known of one machine, for those who may not look themselves.
pub(super) fn machine(layout: &Layout, name: &str) -> Option<Result<Value, Failure>> {
    let found = if is_root() { None } else { ask(layout, |daemon| daemon.machine(name)) };
    let with_all_keys = |machine: Value| {
        // Those that are only defined have less.
        if machine["supervisor"].is_null() {
            return machine;
        }
        let mut machine = with_nulls(machine, &MAY_BE_NULL);
        machine["usage"] = whole::<Usage>(machine["usage"].take());
        machine["process-limits"] = whole::<ProcessLimits>(machine["process-limits"].take());
        machine["restart"] = whole::<Option<RestartPolicy>>(machine["restart"].take());
        machine
    };
    found.map(|found| found.map(with_all_keys))
}

/// What machines use, for those who may not look themselves; as for [`Daemon::statistics`].
pub(super) fn statistics(layout: &Layout, names: &[String]) -> Option<Result<Vec<Statistics>, Failure>> {
    let rows = if is_root() { None } else { ask(layout, |daemon| daemon.statistics(names)) };
    let parse = |rows: Vec<Value>| {
        let rows = rows.into_iter().map(serde_json::from_value).collect::<Result<_, _>>();
        rows.map_err(|e| Failure::new(format!("the daemon answered nonsense: {e}")))
    };
    rows.map(|rows| rows.and_then(parse))
}

/// Runs a command in a machine, for those who may not enter themselves.
pub(super) fn exec(layout: &Layout, name: &str, command: &Command) -> Option<Result<u8, Failure>> {
    if is_root() {
        return None;
    }
    let exec = Exec {
        user: command.user.as_deref().unwrap_or_default(),
        command: &command.argv,
        environment: command.environment.iter().map(|(key, value)| format!("{key}={value}")).collect(),
        directory: command.directory.as_deref().unwrap_or_default(),
        timeout: command.timeout,
    };
    let (input, output, error) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let files = [input.as_fd(), output.as_fd(), error.as_fd()];
    let status = ask(layout, |daemon| daemon.exec(name, &exec, files))?;
    Some(status.map(|status| u8::try_from(status).unwrap_or(status::FAILED)))
}

/// `machinist events`
pub(super) fn events(layout: &Layout, as_json: bool) -> Result<u8, Failure> {
    let tell = |machine: &str, event: &str, details: Value| {
        output::written(|out| {
            if as_json {
                writeln!(out, "{}", json!({ "machine": machine, "event": event, "details": details }))
            } else if machine.is_empty() {
                writeln!(out, "{event}")
            } else {
                writeln!(out, "{} {event}", output::clean(machine))
            }
        })
        .is_ok()
    };
    match ask(layout, |daemon| daemon.events(tell)) {
        Some(result) => result.map(|()| status::OK),
        None => Err(Failure::new("the daemon does not run")
            .hint("`machinist daemon` tells events; see `machinist daemon --help`")),
    }
}
