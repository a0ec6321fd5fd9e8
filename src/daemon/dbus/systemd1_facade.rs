//! The small part of `org.freedesktop.systemd1` that clients of machined use, on hosts where systemd does not run:
//! `machinectl start`, `enable` and `status` ask it and not machine1.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use zbus::Message;
use zbus::fdo::{RequestNameFlags, RequestNameReply};
use zbus::wire::{OwnedObjectPath, Variant};
use zruntime::Event;

use super::call::{Answer, Call, Properties};
use super::face::Face;
use super::interface::SYSTEMD;
use super::machine::{self, Request};
use super::paths;
use crate::daemon::core::error::{Failure, Outcome};
use crate::daemon::core::state::{Daemon, Level, lock};
use crate::daemon::core::units::{self, Job, Unit};
use crate::spec::MachineName;
use crate::{cgroup, host};

/// The name that is taken.
const SYSTEMD1: &str = "org.freedesktop.systemd1";

/// A failure so soon is answered with its cause; a later one only ends the job.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Takes systemd's name where it does not run and nothing else stands in for it.
pub(crate) async fn take_name(face: &Face) -> Option<&'static str> {
    if host::systemd_runs() {
        return None;
    }
    let daemon = &face.daemon;
    let reply = face.connection.request_name_with_flags(SYSTEMD1, RequestNameFlags::DO_NOT_QUEUE).await;
    if matches!(reply, Ok(RequestNameReply::PrimaryOwner | RequestNameReply::AlreadyOwner)) {
        daemon.stand_in.served.store(true, Ordering::Relaxed);
        return Some(SYSTEMD1);
    }
    let text = "Cannot own org.freedesktop.systemd1, so machinectl cannot start and enable machines here.";
    daemon.say(Level::Warning, text);
    None
}

pub(crate) fn properties() -> Properties {
    vec![
        // What clients compare with their own is the number in front.
        ("Version", Variant::from("257 (machinist)")),
        ("Features", Variant::from("")),
        ("Virtualization", Variant::from("")),
        ("Architecture", Variant::from(std::env::consts::ARCH.replace('_', "-"))),
        ("SystemState", Variant::from("running")),
    ]
}

/// All of a unit, of both its interfaces.
pub(crate) fn unit_properties(daemon: &Daemon, name: &str) -> Answer<Properties> {
    let Some(unit) = Unit::find(daemon, name) else {
        // As systemd does: it says that the unit is not there.
        return Ok(vec![
            ("Id", Variant::from(name.to_owned())),
            ("Names", Variant::from(vec![name.to_owned()])),
            ("Description", Variant::from(name.to_owned())),
            ("LoadState", Variant::from("not-found")),
            ("ActiveState", Variant::from("inactive")),
            ("SubState", Variant::from("dead")),
            ("ControlGroup", Variant::from("")),
            ("MainPID", Variant::from(0_u32)),
            ("Result", Variant::from("success")),
        ]);
    };
    let (active, sub) = unit.active(daemon);
    let state = unit.state.as_ref();
    let micros = state.map_or(0, |s| s.since.saturating_mul(1_000_000));
    let text = |path: Option<&PathBuf>| path.map_or_else(String::new, |p| p.display().to_string());
    let names = vec![unit.id(), format!("systemd-nspawn@{}.service", unit.name)];
    Ok(vec![
        ("Id", Variant::from(unit.id())),
        ("Names", Variant::from(names)),
        ("Following", Variant::from("")),
        ("Description", Variant::from(unit.description())),
        ("LoadState", Variant::from("loaded")),
        ("ActiveState", Variant::from(active)),
        ("SubState", Variant::from(sub)),
        (
            "FreezerState",
            Variant::from(if state.is_some_and(|s| cgroup::is_frozen(&s.cgroup)) { "frozen" } else { "running" }),
        ),
        ("FragmentPath", Variant::from(text(unit.definition.as_ref()))),
        ("UnitFileState", Variant::from(unit.file_state(&daemon.layout))),
        ("ActiveEnterTimestamp", Variant::from(micros)),
        ("StateChangeTimestamp", Variant::from(micros)),
        ("NeedDaemonReload", Variant::from(false)),
        ("CanStart", Variant::from(true)),
        ("CanStop", Variant::from(true)),
        ("Job", Variant::from((0_u32, paths::object_path("/".into())?))),
        ("Type", Variant::from("notify")),
        ("Result", Variant::from(if active == "failed" { "exit-code" } else { "success" })),
        ("MainPID", Variant::from(state.map_or(0, |s| s.supervisor.unsigned_abs()))),
        ("StatusText", Variant::from(state.and_then(|s| s.status.clone()).unwrap_or_default())),
        ("ControlGroup", Variant::from(state.map_or_else(String::new, |s| units::in_hierarchy(&s.cgroup)))),
        ("Slice", Variant::from("-.slice")),
        ("Delegate", Variant::from(true)),
    ])
}

/// Methods of systemd's manager.
pub(crate) async fn call(face: &Arc<Face>, call: &Call, member: &str) -> Answer {
    let daemon = &face.daemon;
    match member {
        // Signals go to all, and units are read when they are asked for.
        "Subscribe" | "Unsubscribe" => call.reply(&()),
        "Reload" => call.reply(&units::reload(daemon, &call.caller()).await?),
        "GetUnit" => {
            let name: String = call.arguments()?;
            let unit = Unit::find(daemon, &name).filter(|unit| unit.state.is_some());
            let unit = unit.ok_or_else(|| Failure::no_such_unit(format!("Unit {name} not loaded.")))?;
            call.reply(&paths::unit(&unit.id())?)
        }
        "LoadUnit" => {
            let name: String = call.arguments()?;
            call.reply(&paths::unit(&Unit::find(daemon, &name).map_or(name, |unit| unit.id()))?)
        }
        "GetUnitByPID" => {
            call.reply(&paths::unit(&units::of_process(daemon, &call.caller(), call.arguments()?).await?)?)
        }
        "GetUnitProcesses" => call.reply(&units::processes(daemon, &call.arguments::<String>()?)?),
        "ListUnits" => call.reply(&rows(daemon, |_| true)?),
        "ListUnitsByNames" => {
            let names: Vec<String> = call.arguments()?;
            let wanted: Vec<MachineName> = names.iter().filter_map(|name| units::instance(name)).collect();
            call.reply(&rows(daemon, |unit| wanted.contains(&unit.name))?)
        }
        "ListUnitsByPatterns" => {
            let (states, patterns): (Vec<String>, Vec<String>) = call.arguments()?;
            let one_of = |list: &[String], words: &[&str]| {
                list.is_empty() || words.iter().any(|word| list.iter().any(|item| item == word))
            };
            let any = |unit: &Unit| {
                let (active, sub) = unit.active(daemon);
                let named = patterns.is_empty() || patterns.iter().any(|pattern| matches(pattern, &unit.id()));
                named && one_of(&states, &[active, sub, "loaded"])
            };
            call.reply(&rows(daemon, any)?)
        }
        "StartUnit" | "StopUnit" | "RestartUnit" => {
            let (name, _mode): (String, String) = call.arguments()?;
            job(face, call, member.trim_end_matches("Unit"), &name).await
        }
        "KillUnit" => {
            let (name, whom, signal): (String, String, i32) = call.arguments()?;
            let unit = Unit::get(daemon, &name)?;
            let whom = if whom == "main" { "supervisor".to_owned() } else { whom };
            machine::serve(daemon, call, unit.name.as_str(), Request::Kill { whom, signal }).await
        }
        "ResetFailedUnit" => {
            call.reply(&units::reset_failed(daemon, &call.caller(), &call.arguments::<String>()?).await?)
        }
        "GetUnitFileState" => {
            let unit = Unit::get(daemon, &call.arguments::<String>()?)?;
            call.reply(&unit.file_state(&daemon.layout))
        }
        "EnableUnitFiles" => {
            let (files, until_reboot, _force): (Vec<String>, bool, bool) = call.arguments()?;
            let links = units::enable(daemon, &call.caller(), &files, until_reboot).await?;
            call.reply(&(true, links.iter().map(|(link, to)| change("symlink", link, to)).collect::<Vec<_>>()))
        }
        "DisableUnitFiles" => {
            let (files, until_reboot): (Vec<String>, bool) = call.arguments()?;
            let links = units::disable(daemon, &call.caller(), &files, until_reboot).await?;
            call.reply(&links.iter().map(|link| change("unlink", link, Path::new(""))).collect::<Vec<_>>())
        }
        _ => Err(call.unknown_method()),
    }
}

/// Methods of a unit.
pub(crate) async fn unit_call(face: &Arc<Face>, call: &Call, member: &str, name: &str) -> Answer {
    match member {
        "GetProcesses" => call.reply(&units::processes(&face.daemon, name)?),
        "Start" | "Stop" | "Restart" => job(face, call, member, name).await,
        _ => Err(call.unknown_method()),
    }
}

/// A change of a file, as `systemctl enable` prints it: kind, file, what it points to.
fn change(kind: &'static str, file: &Path, target: &Path) -> (&'static str, String, String) {
    (kind, file.display().to_string(), target.display().to_string())
}

/// A line of `systemctl list-units`.
type Row = (
    String,
    String,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    OwnedObjectPath,
    u32,
    &'static str,
    OwnedObjectPath,
);

fn rows(daemon: &Daemon, wanted: impl Fn(&Unit) -> bool) -> Answer<Vec<Row>> {
    let units = units::list(daemon).into_iter().filter(wanted);
    units
        .map(|unit| {
            let (active, sub) = unit.active(daemon);
            let path = paths::unit(&unit.id())?;
            Ok((unit.id(), unit.description(), "loaded", active, sub, "", path, 0, "", paths::object_path("/".into())?))
        })
        .collect()
}

/// Whether a name fits a pattern of `fnmatch(3)` with no more than `*` and `?`.
fn matches(pattern: &str, name: &str) -> bool {
    match (pattern.chars().next(), name.chars().next()) {
        (None, None) => true,
        (Some('*'), _) => {
            matches(&pattern[1..], name) || name.chars().next().is_some_and(|c| matches(pattern, &name[c.len_utf8()..]))
        }
        (Some(p), Some(n)) => (p == '?' || p == n) && matches(&pattern[p.len_utf8()..], &name[n.len_utf8()..]),
        _ => false,
    }
}

/// The end of a job, for the call that waits for it.
#[derive(Debug, Default)]
struct JobEnd {
    result: Mutex<Option<Outcome>>,
    event: Event,
}

/// Starts a job and replies with its path; the signal `JobRemoved` announces its end.
async fn job(face: &Arc<Face>, call: &Call, kind: &str, unit: &str) -> Answer {
    let daemon = &face.daemon;
    let kind = match kind {
        "Stop" => Job::Stop,
        "Restart" => Job::Restart,
        _ => Job::Start,
    };
    let name = units::authorise(daemon, &call.caller(), kind, unit).await?;
    let id = daemon.stand_in.jobs.fetch_add(1, Ordering::Relaxed) + 1;
    let path = paths::object_path(format!("{}/job/{id}", paths::SYSTEMD))?;
    let end = Arc::new(JobEnd::default());
    let ended = end.event.listen();
    let (shared, kind, unit, job) = (Arc::clone(face), kind, unit.to_owned(), path.clone());
    let at_end = Arc::clone(&end);
    let work = async move {
        let result = units::work(&shared.daemon, kind, &name).await;
        let word = if result.is_ok() { "done" } else { "failed" };
        *lock(&at_end.result) = Some(result);
        at_end.event.notify(1);
        let signal = Message::signal(paths::SYSTEMD, SYSTEMD.name, "JobRemoved");
        shared.send(signal.build(&(id, job, unit, word))).await;
    };
    daemon.runtime.spawn("job", work).detach();
    // A client that only sees the job end would have to look for the reason elsewhere.
    let _ = daemon.runtime.timeout(AT_ONCE, ended).await;
    match lock(&end.result).take() {
        Some(Err(failure)) => Err(failure.into()),
        _ => call.reply(&path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_names() {
        for (pattern, name, fits) in
            [("*", "", true), ("machinist@*", "machinist@a.service", true), ("a?c", "abc", true), ("a*c", "abd", false)]
        {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }
}
