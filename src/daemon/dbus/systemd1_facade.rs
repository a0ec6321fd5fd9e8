//! The small part of `org.freedesktop.systemd1` that clients of machined use, on hosts where systemd does not run:
//! `machinectl start`, `enable` and `status` ask it and not machine1.
//!
//! The only units are those of our machines, `machinist@NAME.service`; `systemd-nspawn@NAME.service`, which machinectl
//! makes of a machine's name, is another word for it. Enabled means a link in [`Layout::autostart`], which the scripts
//! for OpenRC and sysvinit start at boot.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use zbus::Message;
use zbus::fdo::{RequestNameFlags, RequestNameReply};
use zbus::wire::{OwnedObjectPath, Variant};
use zruntime::Event;

use super::call::{Call, Failure, Outcome};
use super::interface::SYSTEMD;
use super::manager::object_path;
use super::objects::{self, Properties, escape};
use crate::config::definition;
use crate::daemon::core::registry::Machine;
use crate::daemon::core::state::Level;
use crate::daemon::core::state::{Daemon, lock};
use crate::running::autostart;
use crate::running::state::{self, Phase, State};
use crate::spec::{Layout, MachineName};
use crate::{cgroup, config, host};

/// The name that is taken.
const SYSTEMD1: &str = "org.freedesktop.systemd1";
/// Path of systemd's manager.
pub(crate) const SYSTEMD_PATH: &str = "/org/freedesktop/systemd1";
/// Below it, all units.
pub(crate) const UNITS: &str = "/org/freedesktop/systemd1/unit";

/// A failure so soon is answered with its cause; a later one only ends the job.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Takes systemd's name where it does not run and nobody else stands in for it.
pub(crate) async fn take_name(daemon: &Daemon) -> Option<&'static str> {
    if host::systemd_runs() {
        return None;
    }
    let reply = daemon.connection.request_name_with_flags(SYSTEMD1, RequestNameFlags::DO_NOT_QUEUE).await;
    if matches!(reply, Ok(RequestNameReply::PrimaryOwner | RequestNameReply::AlreadyOwner)) {
        daemon.stand_in.served.store(true, Ordering::Relaxed);
        return Some(SYSTEMD1);
    }
    let text = "Cannot own org.freedesktop.systemd1, so machinectl cannot start and enable machines here.";
    daemon.say(Level::Warning, text);
    None
}

/// The unit of a machine of ours that has none of systemd's.
pub(crate) fn unit_name(machine: &str) -> String {
    format!("machinist@{machine}.service")
}

/// The machine that a unit's name stands for.
pub(crate) fn instance(unit: &str) -> Option<MachineName> {
    let name = unit.strip_suffix(".service")?;
    let name = name.strip_prefix("machinist@").or_else(|| name.strip_prefix("systemd-nspawn@"))?;
    MachineName::parse(name).ok().or_else(|| MachineName::parse(&unescape(name)?).ok())
}

/// Undoes `systemd-escape(1)`: machinectl writes a machine's name as it is, others escape its hyphens.
fn unescape(text: &str) -> Option<String> {
    let mut result = String::new();
    let mut parts = text.split("\\x");
    result.push_str(parts.next()?);
    for part in parts {
        result.push(char::from(u8::from_str_radix(part.get(..2)?, 16).ok()?));
        result.push_str(&part[2..]);
    }
    Some(result)
}

fn unit_path(unit: &str) -> Outcome<OwnedObjectPath> {
    object_path(format!("{UNITS}/{}", escape(unit)))
}

fn no_such_unit(text: impl std::fmt::Display) -> Failure {
    Failure { name: "org.freedesktop.systemd1.NoSuchUnit".into(), text: text.to_string() }
}

/// What is known of a unit.
struct Unit {
    name: MachineName,
    definition: Option<PathBuf>,
    state: Option<State>,
}

impl Unit {
    /// Looks for the machine; there need not be one.
    fn look(daemon: &Daemon, name: MachineName) -> Self {
        let state = state::read(&daemon.layout, &name).ok().flatten();
        Self { definition: definition(&daemon.layout, &name), state, name }
    }

    /// The same by a unit's name.
    fn find(daemon: &Daemon, unit: &str) -> Option<Self> {
        let found = Self::look(daemon, instance(unit)?);
        (found.definition.is_some() || found.state.is_some()).then_some(found)
    }

    /// Or an error that says so.
    fn get(daemon: &Daemon, unit: &str) -> Outcome<Self> {
        Self::find(daemon, unit).ok_or_else(|| no_such_unit(format!("Unit {unit} not found.")))
    }

    fn id(&self) -> String {
        unit_name(self.name.as_str())
    }

    fn description(&self) -> String {
        format!("Machine {}", self.name)
    }

    /// `ActiveState` and `SubState`.
    fn active(&self, daemon: &Daemon) -> (&'static str, &'static str) {
        match self.state.as_ref().map(|state| state.phase) {
            Some(Phase::Starting) => ("activating", "start"),
            Some(Phase::Running) => ("active", "running"),
            Some(Phase::Restarting) => ("activating", "auto-restart"),
            Some(Phase::Stopping) => ("deactivating", "stop-sigterm"),
            None if lock(&daemon.stand_in.failed).contains(&self.name) => ("failed", "failed"),
            None => ("inactive", "dead"),
        }
    }

    fn file_state(&self, layout: &Layout) -> &'static str {
        let linked = |until_reboot| autostart::link(layout, &self.name, until_reboot).symlink_metadata().is_ok();
        match &self.definition {
            None => "",
            Some(_) if linked(false) => "enabled",
            Some(_) if linked(true) => "enabled-runtime",
            Some(_) => "disabled",
        }
    }
}

/// What the facade remembers.
#[derive(Debug, Default)]
pub(crate) struct Units {
    /// Whether the name is ours.
    pub(crate) served: std::sync::atomic::AtomicBool,
    jobs: std::sync::atomic::AtomicU32,
    pub(crate) failed: Mutex<BTreeSet<MachineName>>,
}

/// A path of the host's control groups as the hierarchy has it.
fn in_hierarchy(path: &Path) -> String {
    let below = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].iter().find_map(|mount| path.strip_prefix(mount).ok());
    below.map_or_else(String::new, |path| format!("/{}", path.display()))
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
pub(crate) fn unit_properties(daemon: &Daemon, name: &str) -> Outcome<Properties> {
    let Some(unit) = Unit::find(daemon, name) else {
        // As systemd does: whoever asks reads that it is not there.
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
        ("Job", Variant::from((0_u32, object_path("/".into())?))),
        ("Type", Variant::from("notify")),
        ("Result", Variant::from(if active == "failed" { "exit-code" } else { "success" })),
        ("MainPID", Variant::from(state.map_or(0, |s| s.supervisor.unsigned_abs()))),
        ("StatusText", Variant::from(state.and_then(|s| s.status.clone()).unwrap_or_default())),
        ("ControlGroup", Variant::from(state.map_or_else(String::new, |s| in_hierarchy(&s.cgroup)))),
        ("Slice", Variant::from("-.slice")),
        ("Delegate", Variant::from(true)),
    ])
}

/// Methods of systemd's manager.
pub(crate) async fn call(daemon: &Arc<Daemon>, call: &Call, member: &str) -> Outcome {
    match member {
        // Signals go to everybody, and units are read when they are asked for.
        "Subscribe" | "Unsubscribe" => call.reply(&()),
        "Reload" => {
            daemon.authorise(call, "org.freedesktop.systemd1.reload-daemon", &[]).await?;
            call.reply(&())
        }
        "GetUnit" => {
            let name: String = call.arguments()?;
            let unit = Unit::find(daemon, &name).filter(|unit| unit.state.is_some());
            let unit = unit.ok_or_else(|| no_such_unit(format!("Unit {name} not loaded.")))?;
            call.reply(&unit_path(&unit.id())?)
        }
        "LoadUnit" => {
            let name: String = call.arguments()?;
            call.reply(&unit_path(&Unit::find(daemon, &name).map_or(name, |unit| unit.id()))?)
        }
        "GetUnitByPID" => {
            let pid: u32 = call.arguments()?;
            let pid = match i32::try_from(pid) {
                Ok(0) => daemon.process_of(call).await?,
                Ok(pid) => pid,
                Err(_) => return Err(Failure::invalid_args(format!("Invalid PID {pid}"))),
            };
            let unit = daemon.registry().of_process(pid).map(|m| m.unit.clone()).filter(|unit| !unit.is_empty());
            let unit = unit.ok_or_else(|| Failure {
                name: "org.freedesktop.systemd1.NoUnitForPID".into(),
                text: format!("PID {pid} does not belong to any loaded unit."),
            })?;
            call.reply(&unit_path(&unit)?)
        }
        "GetUnitProcesses" => processes(daemon, call, &call.arguments::<String>()?),
        "ListUnits" => call.reply(&rows(daemon, |_| true)?),
        "ListUnitsByNames" => {
            let names: Vec<String> = call.arguments()?;
            let wanted: Vec<MachineName> = names.iter().filter_map(|name| instance(name)).collect();
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
            let kind = member.trim_end_matches("Unit");
            job(daemon, call, kind, &name).await
        }
        "KillUnit" => {
            let (name, whom, signal): (String, String, i32) = call.arguments()?;
            let unit = Unit::get(daemon, &name)?;
            let whom = if whom == "main" { "supervisor".to_owned() } else { whom };
            super::machine::serve(daemon, call, unit.name.as_str(), super::machine::Request::Kill { whom, signal })
                .await
        }
        "ResetFailedUnit" => {
            let unit = Unit::get(daemon, &call.arguments::<String>()?)?;
            manage(daemon, call, "units", &unit.id(), "reset-failed").await?;
            lock(&daemon.stand_in.failed).remove(&unit.name);
            call.reply(&())
        }
        "GetUnitFileState" => {
            let unit = Unit::get(daemon, &call.arguments::<String>()?)?;
            call.reply(&unit.file_state(&daemon.layout))
        }
        "EnableUnitFiles" => enable(daemon, call).await,
        "DisableUnitFiles" => disable(daemon, call).await,
        _ => Err(objects::unknown_method(call)),
    }
}

/// Methods of a unit.
pub(crate) async fn unit_call(daemon: &Arc<Daemon>, call: &Call, member: &str, name: &str) -> Outcome {
    match member {
        "GetProcesses" => processes(daemon, call, name),
        "Start" | "Stop" | "Restart" => job(daemon, call, member, name).await,
        _ => Err(objects::unknown_method(call)),
    }
}

/// Asks polkit as systemd would: `what` is `units` or `unit-files`.
async fn manage(daemon: &Arc<Daemon>, call: &Call, what: &str, unit: &str, verb: &str) -> Outcome<()> {
    let action = format!("org.freedesktop.systemd1.manage-{what}");
    daemon.authorise(call, &action, &[("unit", unit), ("verb", verb)]).await
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

fn rows(daemon: &Daemon, wanted: impl Fn(&Unit) -> bool) -> Outcome<Vec<Row>> {
    let defined = config::list(&daemon.layout).into_iter().map(|(name, _)| name);
    let names: BTreeSet<MachineName> = defined.chain(state::names(&daemon.layout)).collect();
    let units = names.into_iter().map(|name| Unit::look(daemon, name)).filter(wanted);
    units
        .map(|unit| {
            let (active, sub) = unit.active(daemon);
            let path = unit_path(&unit.id())?;
            Ok((unit.id(), unit.description(), "loaded", active, sub, "", path, 0, "", object_path("/".into())?))
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

/// Every process of a unit with its control group and command line.
fn processes(daemon: &Daemon, call: &Call, unit: &str) -> Outcome {
    let unit = Unit::get(daemon, unit)?;
    let mut list: Vec<(String, u32, String)> = Vec::new();
    if let Some(state) = &unit.state {
        for (group, pid) in cgroup::members(&state.cgroup)? {
            // One that ends meanwhile has no name any more.
            list.push((in_hierarchy(&group), pid.unsigned_abs(), command_line(pid)));
        }
    }
    call.reply(&list)
}

fn command_line(pid: i32) -> String {
    let read = |file: &str| crate::sys::read_text(Path::new(&format!("/proc/{pid}/{file}"))).unwrap_or_default();
    let words = read("cmdline");
    let line = words.split('\0').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    let line = if line.is_empty() { read("comm").trim().to_owned() } else { line };
    // It is the guest's text, for somebody's terminal.
    line.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The end of a job, for whoever waits.
#[derive(Debug, Default)]
struct JobEnd {
    result: Mutex<Option<Outcome<()>>>,
    event: Event,
}

/// Begins what is asked, and answers with the path of a job whose end is told by `JobRemoved`.
async fn job(daemon: &Arc<Daemon>, call: &Call, kind: &str, unit: &str) -> Outcome {
    let name = Unit::get(daemon, unit)?.name;
    manage(daemon, call, "units", unit, &kind.to_lowercase()).await?;
    let id = daemon.stand_in.jobs.fetch_add(1, Ordering::Relaxed) + 1;
    let path = object_path(format!("{SYSTEMD_PATH}/job/{id}"))?;
    let end = Arc::new(JobEnd::default());
    let ended = end.event.listen();
    let (shared, kind, unit, job) = (Arc::clone(daemon), kind.to_owned(), unit.to_owned(), path.clone());
    let at_end = Arc::clone(&end);
    let work = async move {
        let result = shared.work(&kind, &name).await;
        let word = if result.is_ok() { "done" } else { "failed" };
        *lock(&at_end.result) = Some(result);
        at_end.event.notify(1);
        let signal = Message::signal(SYSTEMD_PATH, SYSTEMD.name, "JobRemoved");
        shared.emit(signal.build(&(id, job, unit, word))).await;
    };
    daemon.runtime.spawn("job", work).detach();
    // A client that only sees the job end would have to look for the reason elsewhere.
    let _ = daemon.runtime.timeout(AT_ONCE, ended).await;
    match lock(&end.result).take() {
        Some(Err(failure)) => Err(failure),
        _ => call.reply(&path),
    }
}

impl Daemon {
    /// Does what a job stands for; what is so already is left alone.
    async fn work(&self, kind: &str, name: &MachineName) -> Outcome<()> {
        let runs = state::read(&self.layout, name)?.is_some();
        let verb = match kind {
            "Stop" => "stop",
            "Restart" if runs => "reboot",
            _ => "start",
        };
        if runs == (verb == "start") {
            return Ok(());
        }
        lock(&self.stand_in.failed).remove(name);
        let finished = self.run(&["--quiet", verb, "--", name.as_str()]).await?;
        let result = finished.check();
        match &result {
            // What is left is what it warned of.
            Ok(()) => finished.said.lines().for_each(|line| self.say(Level::Warning, line)),
            Err(failure) => {
                self.say(Level::Err, &failure.text);
                if verb != "stop" {
                    lock(&self.stand_in.failed).insert(name.clone());
                }
            }
        }
        result
    }
}

/// A change of a file, as `systemctl enable` prints it: kind, file, what it points to.
type Change = (&'static str, String, String);

/// The machines that `files` stand for. `machines.target`, which machinectl names too, holds all of them and is no file.
fn machines_of(daemon: &Daemon, files: &[String]) -> Outcome<Vec<MachineName>> {
    let names = files.iter().filter(|file| *file != "machines.target");
    names
        .map(|file| {
            let name = instance(file).filter(|name| definition(&daemon.layout, name).is_some());
            name.ok_or_else(|| no_such_unit(format!("Unit file {file} does not exist.")))
        })
        .collect()
}

async fn enable(daemon: &Arc<Daemon>, call: &Call) -> Outcome {
    let (files, until_reboot, _force): (Vec<String>, bool, bool) = call.arguments()?;
    let names = machines_of(daemon, &files)?;
    manage(daemon, call, "unit-files", &files.join(" "), "enable").await?;
    let mut changes: Vec<Change> = Vec::new();
    for name in names {
        if let Some((link, target)) = autostart::enable(&daemon.layout, &name, until_reboot)? {
            changes.push(("symlink", link.display().to_string(), target.display().to_string()));
        }
    }
    call.reply(&(true, changes))
}

async fn disable(daemon: &Arc<Daemon>, call: &Call) -> Outcome {
    let (files, until_reboot): (Vec<String>, bool) = call.arguments()?;
    let names: Vec<MachineName> = files.iter().filter_map(|file| instance(file)).collect();
    manage(daemon, call, "unit-files", &files.join(" "), "disable").await?;
    let mut changes: Vec<Change> = Vec::new();
    for name in names {
        if let Some(link) = autostart::disable(&daemon.layout, &name, until_reboot)? {
            changes.push(("unlink", link.display().to_string(), String::new()));
        }
    }
    call.reply(&changes)
}

/// Gives a machine of ours without a unit of systemd's the one that it has here.
pub(crate) fn adopt(daemon: &Daemon, machine: &mut Machine) {
    // Its supervisor writes its state while it registers, so there may be nothing to read yet.
    let ours = machine.service == crate::bus::machine1::SERVICE && machine.uid == 0;
    if machine.unit.is_empty() && ours && daemon.stand_in.served.load(Ordering::Relaxed) {
        machine.unit = unit_name(&machine.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_stand_for_machines() {
        for (unit, machine) in [
            ("machinist@web.service", Some("web")),
            ("systemd-nspawn@a-b.service", Some("a-b")),
            ("systemd-nspawn@a\\x2db.service", Some("a-b")),
            ("machinist@web.scope", None),
            ("machinist@.service", None),
            ("machinist@..\\x2f..service", None),
            ("machinist@a\\x2.service", None),
            ("nginx.service", None),
        ] {
            assert_eq!(instance(unit).as_ref().map(MachineName::as_str), machine, "{unit}");
        }
    }

    #[test]
    fn patterns_fit_names() {
        for (pattern, name, fits) in
            [("*", "", true), ("machinist@*", "machinist@a.service", true), ("a?c", "abc", true), ("a*c", "abd", false)]
        {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn control_groups_are_named_from_the_top_of_their_hierarchy() {
        assert_eq!(in_hierarchy(Path::new("/sys/fs/cgroup/unified/a/b")), "/a/b");
        assert_eq!(in_hierarchy(Path::new("/sys/fs/cgroup/a")), "/a");
        assert_eq!(in_hierarchy(Path::new("/elsewhere")), "");
    }
}
