//! What a supervisor knows of its machine over all its boots, and who waits for it.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::job::Job;
use super::registration::Registered;
use super::sd_notify::ServiceManager;
use crate::report::{Events as _, Writer};
use crate::running::control::{self, Answer, Callers};
use crate::running::restart::History;
use crate::running::start_limit::StartSlot;
use crate::sys::process::FilterInsn;

/// What lasts from the first boot to the last.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) job: Job,
    pub(super) filter: Vec<FilterInsn>,
    /// Whose unit we are the main process of.
    pub(super) manager: ServiceManager,
    pub(super) registered: Registered,
    /// Ends that followed from no request.
    pub(super) history: History,
    /// How many payloads have begun.
    pub(super) boots: u32,
    pub(super) starter: Starter,
    /// Connections that have sent no request yet.
    pub(super) callers: Callers,
    /// Connections that wait for the machine to end.
    pub(super) wait_for_end: Vec<OwnedFd>,
    /// Connections that wait for the next boot; each with whether the one before had to be killed.
    pub(super) wait_for_boot: Vec<(OwnedFd, bool)>,
}

/// Who waits until the machine is ready for the first time.
#[derive(Debug, Default)]
pub(super) struct Starter {
    /// Where a background supervisor reports, with its warnings.
    pub(super) report: Option<Rc<Writer>>,
    /// Keeps further machines from starting until this one is ready or has ended.
    pub(super) slot: Option<StartSlot>,
}

impl Session {
    pub(super) fn new(job: Job, filter: Vec<FilterInsn>, registered: Registered, starter: Starter) -> Self {
        Self {
            history: History::new(job.plan.exec.restart),
            job,
            filter,
            manager: ServiceManager::of_environment(),
            registered,
            boots: 0,
            starter,
            callers: Callers::default(),
            wait_for_end: Vec::new(),
            wait_for_boot: Vec::new(),
        }
    }

    /// Says that we go on without something: with the report of a background supervisor, else at once.
    pub(super) fn warn(&self, text: &str) {
        match &self.starter.report {
            Some(report) => report.warn(text),
            None => self.job.events.warn(text),
        }
    }

    /// Reports the machine ready to `start`, to clients that wait for this boot, and to the service manager.
    pub(super) fn report_ready(&mut self, leader: i32) {
        self.starter.slot = None;
        if let Some(report) = self.starter.report.take() {
            if let Some(last) = self.history.last() {
                let (name, starts) = (&self.job.plan.name, self.history.restarts().saturating_add(1));
                let text =
                    format!("machine '{name}' needed {starts} starts until it was ready; before the last it {last}");
                report.warn(&text);
            }
            report.finish(&Ok(()));
        }
        for (connection, killed) in self.wait_for_boot.drain(..) {
            // A client that is gone needs no answer.
            let _ = control::send(&connection, &Answer::Rebooted { killed });
        }
        self.manager.send(&format!("READY=1\nSTATUS=Machine running.\nX_NSPAWN_LEADER_PID={leader}"));
    }

    /// Another boot follows: those who waited for the end wait for it now.
    pub(super) fn expect_boot(&mut self, killed: bool) {
        self.wait_for_boot.extend(self.wait_for_end.drain(..).map(|connection| (connection, killed)));
    }
}
