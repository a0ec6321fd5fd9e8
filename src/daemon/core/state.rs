//! What everything in the daemon shares: the machines that are known, and what is going on.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::Value;
use zbus::Connection;
use zruntime::{AsyncIo, Event, Shared, SharedRuntime};

use super::caller::Credentials;
use super::error::{Failure, Outcome};
use super::registry::{HOST, Machine, Process, Registry};
use crate::running::restart::History;
use crate::spec::{Layout, MachineName, RestartPolicy};

/// How much is said; the words of `syslog(3)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Emerg,
    Alert,
    Crit,
    Err,
    Warning,
    Notice,
    Info,
    Debug,
}

const LEVELS: [(&str, Level); 8] = [
    ("emerg", Level::Emerg),
    ("alert", Level::Alert),
    ("crit", Level::Crit),
    ("err", Level::Err),
    ("warning", Level::Warning),
    ("notice", Level::Notice),
    ("info", Level::Info),
    ("debug", Level::Debug),
];

impl Level {
    pub(crate) fn parse(word: &str) -> Option<Self> {
        LEVELS.iter().find(|(name, _)| *name == word).map(|(_, level)| *level)
    }

    /// The level of that priority of `syslog(3)`.
    pub(crate) fn from_number(number: usize) -> Option<Self> {
        LEVELS.get(number).map(|(_, level)| *level)
    }

    pub(crate) fn as_str(self) -> &'static str {
        LEVELS.iter().find(|(_, level)| *level == self).map_or("info", |(name, _)| name)
    }
}

/// Operations that may run at once: more are refused, so that a caller cannot make us run out of threads.
const OPERATIONS: usize = 64;

/// What all handlers share.
pub(crate) struct Daemon {
    pub(crate) layout: Layout,
    /// Address of the bus if it is not the system's.
    pub(crate) bus: Option<String>,
    pub(crate) connection: Connection,
    pub(crate) runtime: SharedRuntime,
    pub(crate) registry: Mutex<Registry>,
    pub(crate) callers: Mutex<HashMap<String, Credentials>>,
    /// Limit of open files that we were started with, if we have another by now.
    pub(crate) file_limit: Option<u64>,
    /// Scopes that we made and hold.
    pub(crate) units: Mutex<HashSet<String>>,
    pub(crate) level: Mutex<Level>,
    pub(crate) last_call: Mutex<Instant>,
    pub(crate) read_group: Option<u32>,
    pub(crate) operations: AtomicUsize,
    pub(crate) stand_in: StandIn,
    /// By the machine's name: the supervisor that is watched, and what has happened to those before it.
    pub(crate) kept_up: Mutex<HashMap<String, Supervisor>>,
    /// Whether every machine that there is has been found; calls wait for that.
    pub(crate) complete: AtomicBool,
    pub(crate) completed: Event,
    pub(crate) say: fn(u8, &str),
    /// Announces news to all who listen on the bus.
    pub(crate) announce: Announce,
    pub(crate) quit: Event,
}

/// What is announced on the bus.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum News {
    /// A machine has been registered.
    Added(String),
    /// A machine has gone.
    Removed(String),
    /// What has happened to a machine of ours, or to all definitions, with the details.
    Event { machine: String, event: &'static str, details: Value },
}

/// Announces news; done when they are on their way, so that they come before the reply to the request that caused them.
pub(crate) type Announce = Box<dyn Fn(News) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// What is known of units where we stand in for systemd.
#[derive(Debug, Default)]
pub(crate) struct StandIn {
    /// Whether systemd's name is ours.
    pub(crate) served: AtomicBool,
    /// Number of the last job.
    pub(crate) jobs: AtomicU32,
    /// Machines that could not be started.
    pub(crate) failed: Mutex<BTreeSet<MachineName>>,
}

/// A supervisor that is replaced when it is killed.
#[derive(Debug)]
pub(crate) struct Supervisor {
    pub(crate) pid: i32,
    pub(crate) policy: RestartPolicy,
    pub(crate) history: History,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere does not make what we know wrong.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Daemon {
    pub(crate) fn registry(&self) -> MutexGuard<'_, Registry> {
        lock(&self.registry)
    }

    pub(crate) fn callers(&self) -> MutexGuard<'_, HashMap<String, Credentials>> {
        lock(&self.callers)
    }

    pub(crate) fn level(&self) -> Level {
        *lock(&self.level)
    }

    pub(crate) fn set_level(&self, level: Level) {
        *lock(&self.level) = level;
    }

    /// Says a line if it is wanted.
    pub(crate) fn say(&self, level: Level, text: &str) {
        if level <= self.level() {
            (self.say)(level as u8, text);
        }
    }

    /// Whether we stand in for systemd.
    pub(crate) fn stands_in(&self) -> bool {
        self.stand_in.served.load(Ordering::Relaxed)
    }

    /// Announces what happened to a machine, or to all definitions.
    pub(crate) async fn event(&self, machine: &str, event: &'static str, details: Value) {
        (self.announce)(News::Event { machine: machine.to_owned(), event, details }).await;
    }

    /// Whether a machine of that name is there, the host included.
    pub(crate) fn knows(&self, name: &str) -> bool {
        name == HOST || self.registry().get(name).is_some()
    }

    /// The machine of that name; not the host.
    pub(crate) fn machine(&self, name: &str) -> Outcome<Arc<Machine>> {
        self.registry().get(name).cloned().ok_or_else(|| Failure::no_such_machine(name))
    }

    /// Back when every machine that there is has been found.
    pub(crate) async fn completion(&self) {
        while !self.complete.load(Ordering::Acquire) {
            let completed = self.completed.listen();
            // It may have come between the question and the listening.
            if self.complete.load(Ordering::Acquire) {
                return;
            }
            completed.await;
        }
    }

    /// Does work that may block, beside the bus.
    pub(crate) async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Outcome<T> {
        if self.operations.fetch_add(1, Ordering::Relaxed) >= OPERATIONS {
            self.operations.fetch_sub(1, Ordering::Relaxed);
            return Err(Failure::limits_exceeded("Too many ongoing operations."));
        }
        let result = zruntime::unblock(work).await;
        self.operations.fetch_sub(1, Ordering::Relaxed);
        Ok(result)
    }
}

/// Back when the process has ended.
pub(crate) async fn ended(runtime: &SharedRuntime, process: &Process) -> std::io::Result<()> {
    let pidfd = process.pidfd().as_fd().try_clone_to_owned()?;
    AsyncIo::<_, Shared>::new_nonblocking(runtime, pidfd)?.readable().await
}
