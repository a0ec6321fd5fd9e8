//! Units of our machines, for hosts where systemd does not run and we stand in for it.
//!
//! The only units are those of our machines, `machinist@NAME.service`; `systemd-nspawn@NAME.service`, which machinectl
//! makes of a machine's name, is another word for it. Enabled means a link in [`Layout::autostart`], which the scripts
//! for OpenRC and sysvinit start at boot.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::caller::Caller;
use super::error::{Failure, Outcome};
use super::machines;
use super::program;
use super::state::{Daemon, Level, lock};
use crate::config::definition;
use crate::running::autostart;
use crate::running::state::{self, Phase, State};
use crate::spec::{Layout, MachineName, service_unit};
use crate::{cgroup, config};

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

/// What is known of a unit.
pub(crate) struct Unit {
    pub(crate) name: MachineName,
    pub(crate) definition: Option<PathBuf>,
    pub(crate) state: Option<State>,
}

impl Unit {
    /// Looks for the machine; there need not be one.
    fn look(daemon: &Daemon, name: MachineName) -> Self {
        let state = state::read(&daemon.layout, &name).ok().flatten();
        Self { definition: definition(&daemon.layout, &name), state, name }
    }

    /// The unit of that name, if its machine runs or is defined.
    pub(crate) fn find(daemon: &Daemon, unit: &str) -> Option<Self> {
        let found = Self::look(daemon, instance(unit)?);
        (found.definition.is_some() || found.state.is_some()).then_some(found)
    }

    /// Or an error that says so.
    pub(crate) fn get(daemon: &Daemon, unit: &str) -> Outcome<Self> {
        Self::find(daemon, unit).ok_or_else(|| Failure::no_such_unit(format!("Unit {unit} not found.")))
    }

    /// Its name.
    pub(crate) fn id(&self) -> String {
        service_unit(self.name.as_str())
    }

    pub(crate) fn description(&self) -> String {
        format!("Machine {}", self.name)
    }

    /// `ActiveState` and `SubState`.
    pub(crate) fn active(&self, daemon: &Daemon) -> (&'static str, &'static str) {
        match self.state.as_ref().map(|state| state.phase) {
            Some(Phase::Starting) => ("activating", "start"),
            Some(Phase::Running) => ("active", "running"),
            Some(Phase::Restarting) => ("activating", "auto-restart"),
            Some(Phase::Stopping) => ("deactivating", "stop-sigterm"),
            None if lock(&daemon.stand_in.failed).contains(&self.name) => ("failed", "failed"),
            None => ("inactive", "dead"),
        }
    }

    /// Whether its machine is started at boot.
    pub(crate) fn file_state(&self, layout: &Layout) -> &'static str {
        let linked = |until_reboot| autostart::link(layout, &self.name, until_reboot).symlink_metadata().is_ok();
        match &self.definition {
            None => "",
            Some(_) if linked(false) => "enabled",
            Some(_) if linked(true) => "enabled-runtime",
            Some(_) => "disabled",
        }
    }
}

/// A path of the host's control groups as the hierarchy has it.
pub(crate) fn in_hierarchy(path: &Path) -> String {
    let below = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].iter().find_map(|mount| path.strip_prefix(mount).ok());
    below.map_or_else(String::new, |path| format!("/{}", path.display()))
}

/// All units that there are.
pub(crate) fn list(daemon: &Daemon) -> Vec<Unit> {
    let defined = config::list(&daemon.layout).into_iter().map(|(name, _)| name);
    let names: BTreeSet<MachineName> = defined.chain(state::names(&daemon.layout)).collect();
    names.into_iter().map(|name| Unit::look(daemon, name)).collect()
}

/// The unit of the machine that a process belongs to; 0 is the caller's.
pub(crate) async fn of_process(daemon: &Daemon, caller: &Caller, pid: u32) -> Outcome<String> {
    let pid = machines::number(daemon, caller, pid).await?;
    let unit = daemon.registry().of_process(pid).map(|m| m.unit.clone()).filter(|unit| !unit.is_empty());
    unit.ok_or_else(|| Failure::no_unit_for_pid(format!("PID {pid} does not belong to any loaded unit.")))
}

/// Every process of a unit: control group, number and command line.
pub(crate) fn processes(daemon: &Daemon, unit: &str) -> Outcome<Vec<(String, u32, String)>> {
    let Some(state) = Unit::get(daemon, unit)?.state else { return Ok(Vec::new()) };
    let members = cgroup::members(&state.cgroup)?.into_iter();
    // One that ends meanwhile has no name any more.
    Ok(members.map(|(group, pid)| (in_hierarchy(&group), pid.unsigned_abs(), command_line(pid))).collect())
}

fn command_line(pid: i32) -> String {
    let read = |file: &str| crate::sys::read_text(Path::new(&format!("/proc/{pid}/{file}"))).unwrap_or_default();
    let words = read("cmdline");
    let line = words.split('\0').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    let line = if line.is_empty() { read("comm").trim().to_owned() } else { line };
    // It is the guest's text, and may be shown on a terminal.
    line.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Asks polkit as systemd would: `what` is `units` or `unit-files`.
async fn manage(daemon: &Daemon, caller: &Caller, what: &str, unit: &str, verb: &str) -> Outcome {
    let action = format!("org.freedesktop.systemd1.manage-{what}");
    daemon.authorise(caller, &action, &[("unit", unit), ("verb", verb)]).await
}

/// Lets definitions be read again, which they are whenever they are needed.
pub(crate) async fn reload(daemon: &Daemon, caller: &Caller) -> Outcome {
    daemon.authorise(caller, "org.freedesktop.systemd1.reload-daemon", &[]).await
}

/// Forgets that a machine could not be started.
pub(crate) async fn reset_failed(daemon: &Daemon, caller: &Caller, unit: &str) -> Outcome {
    let unit = Unit::get(daemon, unit)?;
    manage(daemon, caller, "units", &unit.id(), "reset-failed").await?;
    lock(&daemon.stand_in.failed).remove(&unit.name);
    Ok(())
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Job {
    Start,
    Stop,
    Restart,
}

impl Job {
    fn verb(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
        }
    }
}

/// Checks whether the caller may have this done to a unit; gives its machine.
pub(crate) async fn authorise(daemon: &Daemon, caller: &Caller, job: Job, unit: &str) -> Outcome<MachineName> {
    let name = Unit::get(daemon, unit)?.name;
    manage(daemon, caller, "units", unit, job.verb()).await?;
    Ok(name)
}

/// Does what a job stands for; what is so already is left alone.
pub(crate) async fn work(daemon: &Daemon, job: Job, name: &MachineName) -> Outcome {
    let runs = state::read(&daemon.layout, name)?.is_some();
    let verb = match job {
        Job::Stop => "stop",
        Job::Restart if runs => "reboot",
        _ => "start",
    };
    if runs == (verb == "start") {
        return Ok(());
    }
    lock(&daemon.stand_in.failed).remove(name);
    let events = daemon.run(&[verb, "--", name.as_str()]).await?;
    let result = program::check(&events);
    match &result {
        Ok(()) => program::warnings(&events).for_each(|text| daemon.say(Level::Warning, &format!("warning: {text}"))),
        Err(failure) => {
            daemon.say(Level::Err, &failure.text);
            if verb != "stop" {
                lock(&daemon.stand_in.failed).insert(name.clone());
            }
        }
    }
    result
}
/// The machines that `files` stand for. `machines.target`, which machinectl names too, holds all of them and is no file.
fn machines_of(daemon: &Daemon, files: &[String]) -> Outcome<Vec<MachineName>> {
    let names = files.iter().filter(|file| *file != "machines.target");
    names
        .map(|file| {
            let name = instance(file).filter(|name| definition(&daemon.layout, name).is_some());
            name.ok_or_else(|| Failure::no_such_unit(format!("Unit file {file} does not exist.")))
        })
        .collect()
}

/// Has machines started at boot; gives the links that were made and what they point to.
pub(crate) async fn enable(
    daemon: &Daemon,
    caller: &Caller,
    files: &[String],
    until_reboot: bool,
) -> Outcome<Vec<(PathBuf, PathBuf)>> {
    let names = machines_of(daemon, files)?;
    manage(daemon, caller, "unit-files", &files.join(" "), "enable").await?;
    let mut links = Vec::new();
    for name in names {
        links.extend(autostart::enable(&daemon.layout, &name, until_reboot)?);
    }
    Ok(links)
}

/// No longer has machines started at boot; gives the links that were removed.
pub(crate) async fn disable(
    daemon: &Daemon,
    caller: &Caller,
    files: &[String],
    until_reboot: bool,
) -> Outcome<Vec<PathBuf>> {
    manage(daemon, caller, "unit-files", &files.join(" "), "disable").await?;
    let mut links = Vec::new();
    for name in files.iter().filter_map(|file| instance(file)) {
        links.extend(autostart::disable(&daemon.layout, &name, until_reboot)?);
    }
    Ok(links)
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
    fn control_groups_are_named_from_the_top_of_their_hierarchy() {
        assert_eq!(in_hierarchy(Path::new("/sys/fs/cgroup/unified/a/b")), "/a/b");
        assert_eq!(in_hierarchy(Path::new("/sys/fs/cgroup/a")), "/a");
        assert_eq!(in_hierarchy(Path::new("/elsewhere")), "");
    }
}
