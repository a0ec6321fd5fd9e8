//! What everything in the daemon shares: the machines that are known, and what is going on.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use zbus::{Connection, Message};
use zruntime::{AsyncIo, Event, Shared, SharedRuntime};

use super::authority::Credentials;
use super::registry::{HOST, Machine, Process, Registry};
use super::{journal, restart, scope};
use crate::daemon::dbus::call::{Failure, Outcome};
use crate::daemon::dbus::{manager, objects, systemd1_facade};
use crate::spec::Layout;

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
    pub(crate) listed: Mutex<manager::Listed>,
    pub(crate) callers: Mutex<HashMap<String, Credentials>>,
    /// Limit of open files that we were started with, if we have another by now.
    pub(crate) file_limit: Option<u64>,
    /// Scopes that we made and hold.
    pub(crate) units: Mutex<HashSet<String>>,
    pub(crate) level: Mutex<Level>,
    pub(crate) last_call: Mutex<Instant>,
    pub(crate) read_group: Option<u32>,
    pub(crate) operations: AtomicUsize,
    pub(crate) stand_in: systemd1_facade::Units,
    pub(crate) kept_up: Mutex<restart::Watched>,
    /// Whether every machine that there is has been found; calls wait for that.
    pub(crate) complete: AtomicBool,
    pub(crate) completed: Event,
    pub(crate) say: fn(u8, &str),
    pub(crate) quit: Event,
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

    /// Says that a machine has come or gone, to the journal in its own words if there is one.
    pub(crate) fn tell(&self, machine: &Machine, started: bool) {
        let known = journal::machine(&self.layout, machine, started);
        // Once is enough where the journal reads what we say, too.
        let level = if known && std::env::var_os("JOURNAL_STREAM").is_some() { Level::Debug } else { Level::Info };
        let name = &machine.name;
        self.say(level, &if started { format!("New machine {name}.") } else { format!("Machine {name} terminated.") });
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

    /// Sends a signal; a bus that is gone ends the daemon elsewhere.
    pub(crate) async fn emit(&self, message: zbus::Result<Message>) {
        if let Ok(message) = message {
            let _ = self.connection.send(&message).await;
        }
    }

    /// Takes a machine in, tells everybody, and waits for its end beside.
    pub(crate) async fn add(self: &Arc<Self>, machine: Machine) -> Outcome<Arc<Machine>> {
        let known = self.registry().get(&machine.name).map(|m| m.leader.pid);
        // Its supervisor may register what we found ourselves when we began.
        let again = known == Some(machine.leader.pid);
        if known.is_some() && !again {
            return Err(Failure::machine_exists(format!("Machine '{}' already exists", machine.name)));
        }
        let machine = self.registry().add(machine)?;
        self.watch(&machine);
        if again {
            return Ok(machine);
        }
        self.tell(&machine, true);
        self.emit(objects::machine_signal("MachineNew", &machine.name)).await;
        Ok(machine)
    }

    /// Forgets a machine and tells everybody.
    pub(crate) async fn remove(&self, name: &str) {
        let removed = self.registry().remove(name);
        if let Some(machine) = removed {
            self.tell(&machine, false);
            self.emit(objects::machine_signal("MachineRemoved", name)).await;
            scope::forget(self, &machine).await;
        }
    }

    /// Removes the machine when its leader ends.
    pub(crate) fn watch(self: &Arc<Self>, machine: &Arc<Machine>) {
        let (daemon, name, leader) = (Arc::clone(self), machine.name.clone(), machine.leader.clone());
        let task = self.runtime.spawn("leader", async move {
            if let Err(e) = ended(&daemon.runtime, &leader).await {
                daemon.say(Level::Warning, &format!("Cannot wait for the end of machine {name}: {e}."));
                return;
            }
            // Another machine may have taken the name since.
            let same = daemon.registry().get(&name).is_some_and(|m| Arc::ptr_eq(m.leader.pidfd(), leader.pidfd()));
            if same {
                daemon.remove(&name).await;
            }
        });
        task.detach();
    }
}

/// Back when the process has ended.
pub(crate) async fn ended(runtime: &SharedRuntime, process: &Process) -> std::io::Result<()> {
    let pidfd = process.pidfd().as_fd().try_clone_to_owned()?;
    AsyncIo::<_, Shared>::new_nonblocking(runtime, pidfd)?.readable().await
}
