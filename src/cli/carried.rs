//! Machines whose units systemd carries: it starts and stops them, so that the order is the same whoever asks.

use std::path::{Path, PathBuf};

use super::output::{self, Failure};
use super::start::Wanted;
use crate::bus::systemd1::{self, Started, UnitState};
use crate::bus::{Bus, BusError};
use crate::config::{self, Loaded};
use crate::host;
use crate::plan::unit;
use crate::running::state::State;
use crate::spec::{Layout, MachineName};
use crate::supervisor::{self, Exit};

/// Where systemd's generators write.
const GENERATED: &str = "/run/systemd/generator";

/// What the supervisor that is a unit's main process says last, before what has ended its machine.
const ENDED: &str = "Machine has ended: it ";

/// The same of a machine that had to be killed.
const KILLED: &str = "Machine did not stop in time and was killed.";

/// Tells the service manager whose unit we are how the machine ended.
pub(super) fn tell_end(exit: &Exit) {
    let reason = exit.reason();
    supervisor::tell_manager(&match &exit.gave_up {
        _ if exit.killed => KILLED.to_owned(),
        Some(text) => format!("{text}: the last time it {reason}"),
        None => format!("{ENDED}{reason}"),
    });
}

/// Whether systemd carries machines here; its unit for them may still be missing.
pub(super) fn by_systemd(layout: &Layout) -> bool {
    layout.is_host() && host::systemd_runs()
}

/// Where systemd looks for units that somebody has installed (`systemd.unit(5)`).
const UNITS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// The unit that `start` would have systemd start for this; none for a file, or where it is not installed.
pub(super) fn unit_for(layout: &Layout, name_or_file: &str) -> Option<String> {
    let name = MachineName::parse(name_or_file).ok().filter(|_| by_systemd(layout))?;
    installed(layout.root(), unit::TEMPLATE).map(|_| unit::name(&name))
}

/// The directory that a unit is installed in, below `root`.
pub(super) fn installed(root: &Path, unit: &str) -> Option<&'static str> {
    UNITS.into_iter().find(|dir| root.join(dir.trim_start_matches('/')).join(unit).exists())
}

/// What systemd is told of a machine by the generator, if there is anything to say.
pub(super) fn drop_in(layout: &Layout, loaded: &Loaded) -> Option<String> {
    let defined = |other: &MachineName| config::definition(layout, other).is_some();
    unit::drop_in(&loaded.spec, &loaded.definition, defined)
}

/// Whether a running machine is its own unit, not a scope.
pub(super) fn is_unit(layout: &Layout, name: &MachineName, state: &State) -> bool {
    by_systemd(layout) && state.unit.as_ref() == Some(&unit::name(name))
}

/// Where a machine's drop-in is, below a directory of generated units.
pub(super) fn drop_in_file(generated: &Path, name: &MachineName) -> PathBuf {
    generated.join(format!("{}.d", unit::name(name))).join(unit::DROP_IN)
}

/// Has systemd read its units anew if it knows any of the machines otherwise than their definitions are now. It takes
/// long, since all generators run.
pub(super) fn refresh(layout: &Layout, wanted: &Wanted) -> Result<(), Failure> {
    let stale = wanted.members().any(|(name, member)| {
        let Ok(loaded) = member.loaded() else { return false };
        std::fs::read_to_string(drop_in_file(Path::new(GENERATED), name)).ok() != drop_in(layout, loaded)
    });
    if stale && let Err(e) = systemd1::reload(&Bus::of(layout)) {
        return Err(failed("cannot have systemd read its units anew", &e));
    }
    Ok(())
}

/// Has systemd start a machine; says whether there is a unit for it at all.
pub(super) fn start(layout: &Layout, name: &MachineName, wait: bool) -> Result<bool, Failure> {
    let doing = super::machine::cannot_start(name);
    match systemd1::start(&Bus::of(layout), &unit::name(name), wait) {
        Ok(Started::Yes) => Ok(true),
        Ok(Started::Absent) => Ok(false),
        Ok(Started::No(job, state)) => Err(explain(Failure::new(doing), name, &job, &state)),
        // It runs alone where there is no bus, as it does without systemd.
        Err(BusError::Unreachable { .. } | BusError::NoOwner(_)) => Ok(false),
        Err(e) => Err(failed(&doing, &e)),
    }
}

/// Why a unit did not start: what its supervisor said last, or what systemd made of it.
fn explain(failure: Failure, name: &MachineName, job: &str, state: &UnitState) -> Failure {
    let unit = &state.unit;
    match job {
        "failed" | "timeout" if state.text.starts_with(ENDED) => failure
            .cause(format!("it {} before it was ready", state.text.trim_start_matches(ENDED)))
            .hint(format!("`machinist logs {name}` shows what it said")),
        "failed" | "timeout" if !state.text.is_empty() => {
            let said = state.text.strip_prefix(&format!("{}: ", super::machine::cannot_start(name)));
            failure.cause(said.unwrap_or(&state.text)).hint(format!("`journalctl -u {unit}` tells more"))
        }
        "failed" | "timeout" => failure
            .cause(format!("the result of '{unit}' is {}", state.result))
            .hint(format!("`journalctl -u {unit}` tells more")),
        "dependency" => failure
            .cause(format!("a unit that '{unit}' requires failed"))
            .hint(format!("`systemctl list-dependencies {unit}` shows which")),
        other => failure.cause(format!("the job's result is {other}")),
    }
}

/// Has systemd stop a machine that is a unit, and with it whatever requires that.
pub(super) fn stop(layout: &Layout, name: &MachineName) -> Result<(), Failure> {
    let state = systemd1::stop(&Bus::of(layout), &unit::name(name))
        .map_err(|e| failed(&format!("cannot stop machine '{name}'"), &e))?;
    if state.text == KILLED {
        output::warn(&format!("machine '{name}' did not stop in time and was killed"));
    }
    Ok(())
}

pub(super) fn failed(doing: &str, error: &BusError) -> Failure {
    match error {
        BusError::Denied { .. } => Failure::told(output::status::NOT_PERMITTED, doing.to_owned()),
        _ => Failure::new(doing),
    }
    .cause(error.to_string())
}
