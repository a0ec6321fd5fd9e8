//! What a supervisor is given.

use std::path::PathBuf;
use std::rc::Rc;

use super::console;
use crate::host::HostFacts;
use crate::plan::Plan;
use crate::report::Events;
use crate::running::control::NewLimits;
use crate::spec::Layout;

/// What the supervisor is asked to run, and for whom.
#[derive(Debug)]
pub struct Job {
    /// Where everything lives.
    pub layout: Layout,
    /// What to do.
    pub plan: Plan,
    /// What limits it now: at first what the plan has, then what was changed since.
    pub limits: NewLimits,
    /// What the host can do.
    pub facts: HostFacts,
    /// The file the machine is defined by.
    pub definition: Option<PathBuf>,
    /// The caller's side of the console.
    pub console: console::Mode,
    /// Told of the progress of `ownership = "chown"` and of what the machine goes on without, the latter unless
    /// [`Prepared::report_to`](super::Prepared::report_to) names another listener.
    pub events: Rc<dyn Events>,
    /// The supervisor will be born in a control group of its own, [`Prepared::supervisor_group`](super::Prepared::supervisor_group).
    pub background: bool,
}
