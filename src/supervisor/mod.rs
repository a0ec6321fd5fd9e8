//! Runs machines: one process owns one machine from its preparation to the last trace of it.
//!
//! ```text
//!  Prepared   locks, id range, directories, cgroup, sockets         prepare.rs
//!     | launch: outer child, inner child, root, mounts              child.rs, handshake.rs
//!  Launched   the leader exists in its final group and waits
//!     | admit: state file, console, registration, "go"              launch.rs, registration.rs
//!  Running    one poll loop                                         life.rs
//!     | the leader ends, or is made to                              stop.rs
//!  Ended      what follows is decided                               restart.rs
//!     |- it is over: everything is given back, in reverse order
//!     |- a reboot: back to Prepared
//!     `- it ended by itself and is to be kept up:
//!  Pause      a poll loop without a machine; back to Prepared, or over, if somebody stops it    pause.rs
//! ```
//!
//! While Running the machine is `starting` until it is ready (ready.rs), then `running`, and `stopping` once it has been
//! asked to end; in a Pause it is `restarting`. A start that fails is an Ended, too, once a payload has run.
//!
//! The supervisor has one thread, holds every guard, and dies with nothing running: leader and children are
//! tied to it by `PR_SET_PDEATHSIG`. What a killed one leaves (an empty cgroup, a run directory) is found by name
//! and removed by the next start or by [`reap`].

mod backoff;
mod change_limits;
pub mod child;
pub mod console;
pub mod event_loop;
pub mod handshake;
pub mod launch;
mod machine_cgroup;
pub mod prepare;
mod ready;
mod registration;
mod requests;
mod sd_notify;
mod stub_init;

use std::fmt;
use std::path::PathBuf;

use crate::cgroup;
use crate::host::HostFacts;
use crate::image;
use crate::plan::{self, Plan, UnitPlan};
use crate::rootfs::idmap::{self, IdMapError};
use crate::spec::{Layout, MachineName, MachineSpec, Resources, UserMode};
use crate::sys::StepError;
use crate::sys::{self, process};

pub use crate::running::restart::{End, Exit};
use crate::running::state::{RunDir, RunDirError};
use event_loop::{Ended, Turn};
pub use prepare::Prepared;
use sd_notify::ServiceManager;

/// What the supervisor is asked to run, and for whom.
#[derive(Debug)]
pub struct Job {
    /// Where everything lives.
    pub layout: Layout,
    /// What to do.
    pub plan: Plan,
    /// What its limits are asked to be; the plan has what that means on this host.
    pub resources: Resources,
    /// What the host can do.
    pub facts: HostFacts,
    /// The file the machine is defined by.
    pub definition: Option<PathBuf>,
    /// The caller's side of the console.
    pub console: console::Mode,
    /// Called with the number of files that `ownership = "chown"` has done so far, and with `None` at its end.
    pub on_chown: fn(Option<u64>),
    /// Called with what the machine goes on without, unless [`Prepared::report_to`] names somebody to tell.
    pub on_warning: fn(&str),
    /// The supervisor will be born in a control group of its own, [`Prepared::supervisor_group`].
    pub background: bool,
}

/// A machine that could not be started, or could not be cleared away.
#[derive(Debug)]
pub enum MachineError {
    /// A supervisor of this machine lives.
    AlreadyRunning(MachineName),
    /// The calling process may not make machines.
    NotPermitted,
    /// No id range.
    Ids(IdMapError),
    /// A step failed.
    Step(StepError),
    /// A child was killed or vanished without a word.
    Vanished(&'static str),
    /// The machine ended and something of it could not be removed.
    Leftovers(Vec<sys::Error>),
}

impl fmt::Display for MachineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyRunning(name) => write!(f, "machine '{name}' is already running"),
            Self::NotPermitted => f.write_str("only root may start machines"),
            Self::Ids(e) => e.fmt(f),
            Self::Step(e) => e.fmt(f),
            Self::Vanished(who) => write!(f, "the {who} was killed while the machine was being made"),
            Self::Leftovers(list) => {
                let list: Vec<String> = list.iter().map(ToString::to_string).collect();
                write!(f, "the machine has ended, but not all of it could be removed: {}", list.join("; "))
            }
        }
    }
}

impl std::error::Error for MachineError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Step(e) => e.source(),
            Self::Ids(e) => e.source(),
            _ => None,
        }
    }
}

impl MachineError {
    /// The error with its causes on one line.
    pub fn whole(&self) -> String {
        let causes = std::iter::successors(std::error::Error::source(self), |cause| cause.source());
        std::iter::once(self.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Step(e) => e.hint.clone(),
            Self::AlreadyRunning(name) => {
                Some(format!("`machinist console {name}` shows it, `machinist stop {name}` ends it"))
            }
            _ => None,
        }
    }
}

impl From<StepError> for MachineError {
    fn from(e: StepError) -> Self {
        Self::Step(e)
    }
}

/// Takes what the machine needs of the host; nothing of it runs yet.
pub fn prepare(job: Job) -> Result<Prepared, MachineError> {
    if !job.facts.authority.can_make_machines(job.layout.scope()) {
        return Err(MachineError::NotPermitted);
    }
    prepare::prepare(job)
}

impl Prepared {
    /// Runs the machine until it is over; starts it again as often as it reboots, or as its definition says.
    pub fn run(self) -> Result<Exit, MachineError> {
        let mut prepared = self;
        // Whoever runs this is in the machine's group by now.
        drop(prepared.scope_holder.take());
        // Before the first child: what comes while the machine is made stops it in order afterwards.
        let signals = match process::signal_fd(&event_loop::SIGNALS) {
            Ok(signals) => signals,
            Err(cause) => {
                // The first failure is what the user needs.
                let _ = prepared.finish();
                let doing = "cannot take signals".into();
                return Err(StepError { doing, cause: Some(cause), hint: None }.into());
            }
        };
        prepared.manager = ServiceManager::of_environment();
        loop {
            let ended = match launch::launch(prepared) {
                Ok(running) => running.wait(&signals),
                Err(failed) => {
                    let (error, prepared) = *failed;
                    if !prepared.begun || !prepared.history.is_kept_up() {
                        // The first failure is what the user needs; what stays is removed by the next start.
                        let _ = prepared.finish();
                        return Err(error);
                    }
                    Ended::not_started(prepared, &error)
                }
            };
            match ended.next(&signals)? {
                Turn::Over(exit) => return Ok(exit),
                Turn::Again(renewed) => prepared = *renewed,
            }
        }
    }
}

/// Tells the service manager whose unit we are something for people, if there is one.
pub fn tell_manager(status: &str) {
    sd_notify::ServiceManager::of_environment().tell(&format!("STATUS={status}"));
}

/// Removes what a killed supervisor left of a machine; says whether there was anything.
///
/// `spec` is its definition, if there still is one: it names ids and a control group of its own.
pub fn reap(
    layout: &Layout,
    facts: &HostFacts,
    name: &MachineName,
    spec: Option<&MachineSpec>,
) -> Result<bool, MachineError> {
    let doing = |cause| {
        let doing = "cannot remove what is left of it".into();
        MachineError::Step(StepError { doing, cause: Some(cause), hint: None })
    };
    let mut found = layout.run_dir(name).exists();
    let run_dir = match RunDir::acquire(layout, name) {
        Ok(dir) => dir,
        Err(RunDirError::Running) => return Err(MachineError::AlreadyRunning(name.clone())),
        Err(RunDirError::Call(cause)) => return Err(doing(cause)),
    };
    let last = run_dir.left_over();
    let planned = spec.and_then(|spec| plan::build(spec, facts, layout).ok());
    for path in planned.iter().flat_map(prepare::locked_directories) {
        image::lock::reap(layout, path).map_err(doing)?;
    }
    let groups = last.iter().map(|state| (state.cgroup.clone(), state.unit.is_some()));
    let groups = groups.chain(planned.map(|p| (cgroup::host_path(&p.cgroup), p.cgroup.unit != UnitPlan::None)));
    let ours = prepare::default_cgroup(layout, facts, name).map(|path| (path, false));
    for (path, unit) in groups.chain(ours) {
        found |= !unit && path.exists();
        cgroup::clear(&path, unit).map_err(doing)?;
    }
    let ranges = last.and_then(|state| state.ids).map(UserMode::Range);
    for mode in ranges.into_iter().chain(spec.map(|s| s.users.mode)).chain([UserMode::Auto]) {
        idmap::reap(layout, name, mode).map_err(MachineError::Ids)?;
    }
    run_dir.release().map_err(doing)?;
    Ok(found)
}
