//! What a start begins with.

use std::num::NonZeroUsize;
use std::rc::Rc;

use super::context::Ops;
use super::error;
use crate::plan;
use crate::report::OpError;
use crate::running::control::NewLimits;
use crate::spec::{MachineName, Ready, UserMode};
use crate::supervisor::Job;
use crate::supervisor::console::Mode;
use crate::sys::exe_seal;
use crate::{config, host};

/// What is said of a start that fails.
pub fn cannot_start(name: &MachineName) -> String {
    format!("cannot start machine '{name}'")
}

/// Twice as many as there are processors: about half the time of a start is waiting.
pub fn default_jobs() -> usize {
    2 * std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// Makes our program one that no machine can write to; comes back only in a process in which it is.
pub fn seal() -> Result<(), OpError> {
    exe_seal::seal_own_program().map_err(|e| OpError::new(e.to_string()))
}

impl Ops {
    /// Loads, checks and plans a machine; `ready` is instead of its definition's.
    pub fn prepare(&self, name_or_file: &str, ready: Option<Ready>) -> Result<Job, OpError> {
        let mut loaded = config::load(&self.layout, name_or_file)?;
        if let Some(ready) = ready {
            loaded.spec.boot.ready = ready;
        }
        let facts =
            host::probe_for(&loaded.spec.resources).map_err(|e| OpError::call("cannot look at this host", &e))?;
        let plan = match plan::build(&loaded.spec, &facts, &self.layout) {
            Ok(plan) => plan,
            Err(e) => return Err(error::unplanned(loaded, &e)),
        };
        let definition = Some(std::path::absolute(&loaded.definition).unwrap_or(loaded.definition));
        if loaded.spec.users.mode == UserMode::Host {
            if facts.authority == host::Authority::Root {
                seal()?;
            }
            self.events.warn(&format!("machine '{}' has no user namespace: its root is root of this host", plan.name));
        }
        Ok(Job {
            layout: self.layout.clone(),
            limits: NewLimits { resources: loaded.spec.resources, limits: plan.limits.clone() },
            plan,
            facts,
            definition,
            console: Mode::Detached,
            events: Rc::clone(&self.events),
            background: false,
        })
    }
}
