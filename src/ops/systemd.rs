//! Machines whose units systemd carries: it starts and stops them, so that the order is the same for every caller.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::background::not_ready;
use super::context::Ops;
use super::prepare::cannot_start;
use super::start_set::StartSet;
use super::via::systemd_carries;
use crate::bus::systemd1::{self, Started, UnitState};
use crate::bus::{Bus, BusError};
use crate::config::{self, Loaded};
use crate::plan::unit;
use crate::report::{Kind, OpError};
use crate::running::state::{State, make_private_dir};
use crate::spec::{Layout, MachineName};
use crate::supervisor::{self, Exit};
use crate::sys::file;
use crate::sys::read_text;

/// Where systemd's generators write.
const GENERATED: &str = "/run/systemd/generator";

/// Longest report that is read.
const LONGEST: u64 = 256 << 10;

/// Where the supervisor that is a unit's main process leaves how its machine ended, for who had it started or stopped.
fn report_file(layout: &Layout, name: &MachineName) -> PathBuf {
    layout.run_root().join("reports").join(name.as_str())
}

/// Tells the service manager whose unit we are how the machine ended, and leaves the same for another process of ours.
pub fn report_end(layout: &Layout, name: &MachineName, exit: &Exit) {
    let reason = exit.reason();
    supervisor::tell_manager(&match &exit.gave_up {
        _ if exit.killed => "Machine did not stop in time and was killed.".to_owned(),
        Some(text) => format!("{text}: the last time it {reason}"),
        None => format!("Machine has ended: it {reason}"),
    });
    leave_report(layout, name, &Report { killed: exit.killed, error: not_ready(name, exit) });
}

/// Tells the service manager why there is no machine, and leaves the same for another process of ours.
pub fn report_failure(layout: &Layout, name_or_file: &str, error: &OpError) {
    supervisor::tell_manager(&error.line());
    if let Ok(name) = MachineName::parse(name_or_file) {
        leave_report(layout, &name, &Report { killed: false, error: error.clone() });
    }
}

/// How the machine of a unit ended.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    /// It had to be killed.
    killed: bool,
    /// What that means for who waits until it is ready.
    error: OpError,
}

fn leave_report(layout: &Layout, name: &MachineName, report: &Report) {
    if !supervisor::has_manager() {
        return;
    }
    let file = report_file(layout, name);
    // Without it the service manager's words have to do.
    if file.parent().is_some_and(|dir| make_private_dir(dir).is_ok()) {
        let _ = file::write(file, serde_json::to_vec(report).unwrap_or_default());
    }
}

/// Takes what a supervisor has left, if it is there.
fn take_report(layout: &Layout, name: &MachineName) -> Option<Report> {
    let file = report_file(layout, name);
    let mut text = Vec::new();
    std::fs::File::open(&file).ok()?.take(LONGEST).read_to_end(&mut text).ok()?;
    let _ = file::remove(&file);
    serde_json::from_slice(&text).ok()
}

/// Where systemd looks for units (`systemd.unit(5)`).
const UNITS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// The unit that `start` would have systemd start for this; none for a file, or where it is not installed.
pub fn unit_for(layout: &Layout, name_or_file: &str) -> Option<String> {
    let name = MachineName::parse(name_or_file).ok().filter(|_| systemd_carries(layout))?;
    installed(layout.root(), unit::TEMPLATE).map(|_| unit::name(&name))
}

/// The directory that a unit is installed in, below `root`.
pub fn installed(root: &Path, unit: &str) -> Option<&'static str> {
    UNITS.into_iter().find(|dir| root.join(dir.trim_start_matches('/')).join(unit).exists())
}

/// What systemd is told of a machine by the generator, if there is anything to say.
pub fn drop_in(layout: &Layout, loaded: &Loaded) -> Option<String> {
    let defined = |other: &MachineName| config::definition(layout, other).is_some();
    unit::drop_in(&loaded.spec, &loaded.definition, defined)
}

/// Whether a running machine is its own unit, not a scope.
pub fn is_unit(layout: &Layout, name: &MachineName, state: &State) -> bool {
    systemd_carries(layout) && state.unit.as_ref() == Some(&unit::name(name))
}

/// Where a machine's drop-in is, below a directory of generated units.
pub fn drop_in_file(generated: &Path, name: &MachineName) -> PathBuf {
    generated.join(format!("{}.d", unit::name(name))).join(unit::DROP_IN)
}

impl Ops {
    /// Reloads systemd if what it knows of one of the machines is not what its definition says now. It takes
    /// long, since all generators run.
    pub(super) fn refresh_units(&self, wanted: &StartSet) -> Result<(), OpError> {
        let stale = wanted.members().any(|(name, member)| {
            let Ok(loaded) = member.loaded() else { return false };
            read_text(drop_in_file(Path::new(GENERATED), name)).ok() != drop_in(&self.layout, loaded)
        });
        if stale && let Err(e) = systemd1::reload(&Bus::of(&self.layout)) {
            return Err(failed("cannot reload systemd", &e));
        }
        Ok(())
    }

    /// Has systemd start a machine; says whether there is a unit for it at all.
    pub(super) fn start_unit(&self, name: &MachineName, wait: bool) -> Result<bool, OpError> {
        let doing = cannot_start(name);
        take_report(&self.layout, name);
        match systemd1::start(&Bus::of(&self.layout), &unit::name(name), wait) {
            Ok(Started::Yes) => Ok(true),
            Ok(Started::Absent) => Ok(false),
            Ok(Started::No(job, state)) => Err(match (job.as_str(), take_report(&self.layout, name)) {
                ("failed" | "timeout", Some(report)) => report.error,
                _ => explain(OpError::new(doing), &job, &state),
            }),
            // It runs alone where there is no bus, as it does without systemd.
            Err(BusError::Unreachable { .. } | BusError::NoOwner(_)) => Ok(false),
            Err(e) => Err(failed(&doing, &e)),
        }
    }

    /// Has systemd stop a machine that is a unit, and with it whatever requires that.
    pub(super) fn stop_unit(&self, name: &MachineName) -> Result<(), OpError> {
        take_report(&self.layout, name);
        systemd1::stop(&Bus::of(&self.layout), &unit::name(name))
            .map_err(|e| failed(&format!("cannot stop machine '{name}'"), &e))?;
        self.warn_killed(name, take_report(&self.layout, name).is_some_and(|report| report.killed));
        Ok(())
    }
}

/// Why a unit did not start whose supervisor has left no report, as systemd has it.
fn explain(error: OpError, job: &str, state: &UnitState) -> OpError {
    let unit = &state.unit;
    match job {
        "failed" | "timeout" => {
            let said = Some(state.text.clone()).filter(|text| !text.is_empty());
            error
                .cause(said.unwrap_or_else(|| format!("the result of '{unit}' is {}", state.result)))
                .hint(format!("`journalctl -u {unit}` tells more"))
        }
        "dependency" => error
            .cause(format!("a unit that '{unit}' requires failed"))
            .hint(format!("`systemctl list-dependencies {unit}` shows which")),
        other => error.cause(format!("the job's result is {other}")),
    }
}

pub(super) fn failed(doing: &str, error: &BusError) -> OpError {
    let kind = match error {
        BusError::Denied { .. } => Kind::NotPermitted,
        _ => Kind::Failed,
    };
    OpError::of(kind, doing).cause(error.to_string())
}
