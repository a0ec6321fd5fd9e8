//! Enters the machine into the host's table of machines, `org.freedesktop.machine1`, beside its start.
//!
//! ```text
//!  outer child begins    begin     connects; a child introduces itself to the bus
//!  the leader exists     machine   the child gets the entry to make
//!  before "go"           finish    its answer
//! ```
//!
//! A machine does not depend on its entry unless its definition says so. But one whose name another machine has does
//! not start: every tool that asks by name would get the other.

use std::path::PathBuf;
use std::time::Duration;

use super::error::MachineError;
use super::job::Job;
use crate::bus::machine1::{self, Registrar, Registration};
use crate::bus::{self, Bus, BusError};
use crate::plan::TreePlan;
use crate::spec::{MachineId, Register};
use crate::sys::StepError;
use crate::sys::path::RootFd;

/// How long the end of a machine waits for its entry to be gone.
const LAST_WORD: Duration = Duration::from_secs(2);

/// What is known of the machine's entry.
#[derive(Debug)]
pub(super) struct Registered {
    /// There may be one.
    entered: bool,
    /// Why there is no bus, which has been said already.
    no_bus: Option<BusError>,
}

impl Registered {
    /// There is none yet.
    pub(super) fn new(no_bus: Option<BusError>) -> Self {
        Self { entered: false, no_bus }
    }
}

/// A registration under way, or why it is not; nothing where none is wanted.
#[derive(Debug)]
pub(super) struct Registering(Option<Result<Registrar, BusError>>);

impl Registering {
    /// Begins; after a reboot the entry of the boot before goes first.
    pub(super) fn begin(job: &Job, registered: &Registered) -> Self {
        let Job { plan, layout, .. } = job;
        if plan.register == Register::No {
            return Self(None);
        }
        let last = registered.entered.then(|| plan.name.as_str());
        Self(Some(machine1::begin(&Bus::of(layout), last)))
    }

    /// Says which process is to be entered and gives the id it is entered by, if it is; `drawn` is the one offered to an init that
    /// has none.
    pub(super) fn machine(&self, job: &Job, leader: i32, drawn: MachineId) -> Option<MachineId> {
        let id = self.0.is_some().then(|| own_id(leader).unwrap_or(drawn))?;
        let Some(Ok(registrar)) = &self.0 else { return Some(id) };
        registrar.machine(&Registration {
            name: job.plan.name.as_str().to_owned(),
            id: id.0,
            leader: leader.unsigned_abs(),
            root: match &job.plan.root.source {
                TreePlan::Directory(path) => path.display().to_string(),
                // No directory of the host shows what the machine sees, and a wrong one would be believed.
                TreePlan::Overlay(_) => String::new(),
            },
            interfaces: Vec::new(),
        });
        Some(id)
    }

    /// Waits for the answer and gives what there is to warn of; an error if the machine may not go on without its entry.
    pub(super) fn finish(&self, job: &Job, registered: &mut Registered) -> Result<Option<String>, MachineError> {
        let outcome = match &self.0 {
            None => return Ok(None),
            Some(Ok(registrar)) => registrar.outcome(bus::LIMIT),
            Some(Err(error)) => Err(error.clone()),
        };
        let rebooted = std::mem::replace(&mut registered.entered, false);
        let Err(error) = outcome else {
            registered.entered = true;
            return Ok(None);
        };
        // A daemon that slept may enter it yet.
        registered.entered = matches!(error, BusError::TimedOut(_));
        let plan = &job.plan;
        let taken = matches!(error, BusError::Taken { .. } | BusError::Exists(_));
        if plan.register == Register::Yes || taken && !rebooted {
            let hint = if taken {
                "stop that machine, or give this one another name"
            } else {
                "without `register = \"yes\"` this costs a warning, not the machine"
            };
            return Err(StepError::refused(format!("cannot register it: {error}")).hint(hint).into());
        }
        let said = registered.no_bus.as_ref() == Some(&error);
        Ok((!said).then(|| format!("machine '{}' is not registered: {error}", plan.name)))
    }
}

/// The id that the machine's tree has already.
fn own_id(leader: i32) -> Option<MachineId> {
    let root = RootFd::open(&PathBuf::from(format!("/proc/{leader}/root"))).ok()?;
    let text = root.read("etc/machine-id", 64).ok()??;
    MachineId::parse(std::str::from_utf8(&text).ok()?.trim()).ok()
}

/// The entry of a machine that has ended, on its way out.
#[derive(Debug)]
pub(super) struct Unregistering(Option<Registrar>);

impl Unregistering {
    /// Begins, if there is an entry.
    pub(super) fn begin(job: &Job, registered: &Registered) -> Self {
        let Job { plan, layout, .. } = job;
        let begin = || machine1::unregister(&Bus::of(layout), plan.name.as_str()).ok();
        Self(registered.entered.then(begin).flatten())
    }

    /// Waits a moment, so that the name is free when the end is reported.
    pub(super) fn finish(self) {
        // The keeper of the table sees the leader end by itself.
        let _ = self.0.map(|registrar| registrar.outcome(LAST_WORD));
    }
}
