//! What an operation tells while it runs.

use std::cell::RefCell;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::OpError;

/// What an operation tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// It goes on, but there is something to know.
    Warning(String),
    /// It goes on with other machines; the last failure of all is what it gives.
    Failed(OpError),
    /// One more machine is as it was asked for.
    Done(Done),
    /// Something that takes a while has begun, in words; [`Ended`](Self::Ended) follows.
    Began(String),
    /// That is over.
    Ended,
    /// This many files have been given to the machine's ids; none at the end.
    Chown(Option<u64>),
}

/// What became of a machine: the objects that `start`, `stop` and others print with `--json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The machine.
    pub name: String,
    /// What became of it.
    #[serde(flatten)]
    pub what: What,
}

/// What becomes of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "result")]
pub enum What {
    /// It is ready.
    Started,
    /// It has ended.
    Stopped,
    /// It will be stopped before this one, which it requires.
    StoppedFirst {
        /// The machine that was asked for.
        requires: Option<String>,
    },
    /// It has been started again.
    Rebooted,
    /// It starts with the host.
    Enabled,
    /// It does not start with the host any more.
    Disabled,
    /// Its new limits hold.
    Limited,
    /// Its new limits are kept.
    LimitsSaved {
        /// The drop-in with them.
        path: PathBuf,
        /// Whether it runs now.
        running: bool,
    },
    /// What was left of it is gone.
    Reaped,
    /// There was nothing to reap.
    NothingLeft,
}

impl Done {
    /// This became of a machine.
    pub fn event(name: impl ToString, what: What) -> Event {
        Event::Done(Self { name: name.to_string(), what })
    }
}

/// The sentence for people.
impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.what {
            What::Started => write!(f, "Machine '{name}' is running."),
            What::Stopped => write!(f, "Machine '{name}' has ended."),
            What::StoppedFirst { requires: None } => write!(f, "Machine '{name}' is stopped first."),
            What::StoppedFirst { requires: Some(other) } => {
                write!(f, "Machine '{name}' is stopped first, as it requires '{other}'.")
            }
            What::Rebooted => write!(f, "Machine '{name}' has been rebooted."),
            What::Enabled => write!(f, "Machine '{name}' starts with the host."),
            What::Disabled => write!(f, "Machine '{name}' does not start with the host."),
            What::Limited => write!(f, "Machine '{name}' has its new limits."),
            What::LimitsSaved { path, running } => {
                let until = if *running { "for later starts, too" } else { "for its next start" };
                write!(f, "They are in '{}' {until}.", path.display())
            }
            What::Reaped => write!(f, "Machine '{name}' has been cleared away."),
            What::NothingLeft => write!(f, "Nothing is left of machine '{name}'."),
        }
    }
}

/// Who is told.
pub trait Events: fmt::Debug {
    /// Takes an event.
    fn tell(&self, event: Event);

    /// The descriptor on which another process reads them, which who closes all others leaves open.
    fn descriptor(&self) -> Option<Rc<OwnedFd>> {
        None
    }

    /// Lets go of who listens: this process outlives them.
    fn leave(&self) {}

    /// Tells of something to know.
    fn warn(&self, text: &str) {
        self.tell(Event::Warning(text.to_owned()));
    }

    /// Tells what became of a machine.
    fn done(&self, name: &dyn fmt::Display, what: What) {
        self.tell(Done::event(name, what));
    }
}

/// Keeps events for later.
#[derive(Debug, Default)]
pub struct Recorder(RefCell<Vec<Event>>);

impl Recorder {
    /// What has been told.
    pub fn into_events(self) -> Vec<Event> {
        self.0.into_inner()
    }
}

impl Events for Recorder {
    fn tell(&self, event: Event) {
        self.0.borrow_mut().push(event);
    }
}
