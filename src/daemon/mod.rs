//! The daemon: knows machines, names them and asks their supervisors; speaks `org.freedesktop.machine1`.
//!
//! ```text
//!  bus ──> objects (which object, which interface) ──> manager · machine · image (translate, nothing else)
//!  sockets ──> varlink (the same in other words) ────────┤
//!                         authority (root or polkit) <───┤
//!                                                        └──> registry (machines, state files)
//! ```
//!
//! One thread serves the bus; work that may block goes to a pool (`Daemon::blocking`). No machine depends on the
//! daemon: it can be killed and started again at any moment, and finds every machine in its state file.
//!
//! Messages are dispatched by us and not by the library's object server: objects exist as long as a file does, all
//! interfaces are asked for by an empty name, and `machine/self` is another object for each caller.

mod authority;
mod call;
mod definition_image;
mod enter;
mod events;
mod files;
mod image;
mod inspect;
mod interface;
mod journal;
mod log_control;
mod machine;
mod machinist1;
mod manager;
mod objects;
mod program;
mod recover;
mod registry;
mod restart;
mod scope;
mod systemd1_facade;
mod varlink;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_core::Stream as _;
use zbus::connection::Builder;
use zbus::fdo::{RequestNameFlags, RequestNameReply};
use zbus::{Connection, Message, MessageStream};
use zruntime::signal::{Signal, Signals};
use zruntime::{AsyncIo, Event, Shared, SharedRuntime};

use crate::spec::Layout;
use crate::sys::socket;
use authority::Credentials;
use call::{Call, Failure, Outcome};
pub use enter::{Login, serve as help};
use log_control::Level;
use registry::{HOST, Machine, Process, Registry};

/// Name of the interface that systemd-machined serves.
const MACHINE1: &str = "org.freedesktop.machine1";
/// Our own.
const MACHINIST1: &str = "org.machinist1";

/// Whether to be what systemd-machined is elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Machine1 {
    /// If nobody else is, nor could be started to be.
    #[default]
    Auto,
    /// Yes, or fail.
    Yes,
    /// No.
    No,
}

/// How the daemon runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where everything lives.
    pub layout: Layout,
    /// Address of the bus, or the system's.
    pub bus: Option<String>,
    /// Whether to be machine1.
    pub machine1: Machine1,
    /// Ends after so long without machines and calls; never by default.
    pub idle: Option<Duration>,
    /// A group whose members may look at machines, also without polkit.
    pub read_group: Option<u32>,
    /// Says one line, with its syslog priority (3 error, 4 warning, 6 information, 7 debugging).
    pub say: fn(u8, &str),
}

/// Why the daemon cannot go on.
#[derive(Debug)]
pub struct DaemonError {
    doing: &'static str,
    cause: String,
}

impl fmt::Display for DaemonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.cause)
    }
}

impl std::error::Error for DaemonError {}

trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T, DaemonError>;
}

impl<T, E: fmt::Display> Doing<T> for Result<T, E> {
    fn doing(self, doing: &'static str) -> Result<T, DaemonError> {
        self.map_err(|e| DaemonError { doing, cause: e.to_string() })
    }
}

/// Operations that may run at once: more are refused, so that a caller cannot make us run out of threads.
const OPERATIONS: usize = 64;

/// Files that the daemon may have open, if the hard limit allows that.
const FILES: u64 = 16 * 1024;

/// What all handlers share.
struct Daemon {
    layout: Layout,
    /// Address of the bus if it is not the system's.
    bus: Option<String>,
    connection: Connection,
    runtime: SharedRuntime,
    registry: Mutex<Registry>,
    listed: Mutex<manager::Listed>,
    callers: Mutex<HashMap<String, Credentials>>,
    /// Limit of open files that we were started with, if we have another by now.
    file_limit: Option<u64>,
    /// Scopes that we made and hold.
    units: Mutex<HashSet<String>>,
    level: Mutex<Level>,
    last_call: Mutex<Instant>,
    read_group: Option<u32>,
    operations: AtomicUsize,
    stand_in: systemd1_facade::Units,
    kept_up: Mutex<restart::Watched>,
    /// Whether every machine that there is has been found; calls wait for that.
    complete: AtomicBool,
    completed: Event,
    say: fn(u8, &str),
    quit: Event,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere does not make what we know wrong.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Daemon {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        lock(&self.registry)
    }

    fn callers(&self) -> MutexGuard<'_, HashMap<String, Credentials>> {
        lock(&self.callers)
    }

    fn level(&self) -> Level {
        *lock(&self.level)
    }

    fn set_level(&self, level: Level) {
        *lock(&self.level) = level;
    }

    /// Says a line if it is wanted.
    fn say(&self, level: Level, text: &str) {
        if level <= self.level() {
            (self.say)(level as u8, text);
        }
    }

    /// Says that a machine has come or gone, to the journal in its own words if there is one.
    fn tell(&self, machine: &Machine, started: bool) {
        let known = journal::machine(&self.layout, machine, started);
        // Once is enough where the journal reads what we say, too.
        let level = if known && std::env::var_os("JOURNAL_STREAM").is_some() { Level::Debug } else { Level::Info };
        let name = &machine.name;
        self.say(level, &if started { format!("New machine {name}.") } else { format!("Machine {name} terminated.") });
    }

    /// Whether a machine of that name is there, the host included.
    fn knows(&self, name: &str) -> bool {
        name == HOST || self.registry().get(name).is_some()
    }

    /// The machine of that name; not the host.
    fn machine(&self, name: &str) -> Outcome<Arc<Machine>> {
        self.registry().get(name).cloned().ok_or_else(|| Failure::no_such_machine(name))
    }

    /// Back when every machine that there is has been found.
    async fn completion(&self) {
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
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Outcome<T> {
        if self.operations.fetch_add(1, Ordering::Relaxed) >= OPERATIONS {
            self.operations.fetch_sub(1, Ordering::Relaxed);
            return Err(Failure::limits_exceeded("Too many ongoing operations."));
        }
        let result = zruntime::unblock(work).await;
        self.operations.fetch_sub(1, Ordering::Relaxed);
        Ok(result)
    }

    /// Sends a signal; a bus that is gone ends the daemon elsewhere.
    async fn emit(&self, message: zbus::Result<Message>) {
        if let Ok(message) = message {
            let _ = self.connection.send(&message).await;
        }
    }

    /// Takes a machine in, tells everybody, and waits for its end beside.
    async fn add(self: &Arc<Self>, machine: Machine) -> Outcome<Arc<Machine>> {
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
    async fn remove(&self, name: &str) {
        let removed = self.registry().remove(name);
        if let Some(machine) = removed {
            self.tell(&machine, false);
            self.emit(objects::machine_signal("MachineRemoved", name)).await;
            scope::forget(self, &machine).await;
        }
    }

    /// Removes the machine when its leader ends.
    fn watch(self: &Arc<Self>, machine: &Arc<Machine>) {
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
async fn ended(runtime: &SharedRuntime, process: &Process) -> std::io::Result<()> {
    let pidfd = process.pidfd().as_fd().try_clone_to_owned()?;
    AsyncIo::<_, Shared>::new_nonblocking(runtime, pidfd)?.readable().await
}

/// Serves until SIGTERM, until the bus goes away, or until nothing has happened for long enough.
pub fn run(options: &Options) -> Result<(), DaemonError> {
    zbus::block_on(serve(options))
}

/// Makes room for machines and clients, each of which costs two descriptors; gives the limit that was.
///
/// The usual limit of 1,024 is for programs that use `select(2)`, so [`Daemon::program`] sets it again.
fn raise_file_limit() -> Option<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    // Where it may not be raised, there is room for less.
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(FILES)), hard).ok()?;
    Some(soft)
}

async fn serve(options: &Options) -> Result<(), DaemonError> {
    let file_limit = raise_file_limit();
    let builder = match &options.bus {
        Some(address) => Builder::address(address.as_str()),
        None => Builder::system(),
    };
    let connection = builder.build().await.doing("cannot reach the bus")?;
    // Before a name is ours, so that no call is lost.
    let stream = MessageStream::from(&connection);
    let runtime = SharedRuntime::current().doing("cannot start")?;
    let registry = Registry::load(&options.layout).doing("cannot read the state of machines")?;
    let daemon = Arc::new(Daemon {
        layout: options.layout.clone(),
        bus: options.bus.clone(),
        connection: connection.clone(),
        runtime: runtime.clone(),
        registry: Mutex::new(registry),
        listed: Mutex::default(),
        callers: Mutex::default(),
        file_limit,
        units: Mutex::default(),
        level: Mutex::new(Level::Info),
        last_call: Mutex::new(Instant::now()),
        read_group: options.read_group,
        operations: AtomicUsize::new(0),
        stand_in: systemd1_facade::Units::default(),
        kept_up: Mutex::default(),
        complete: AtomicBool::new(false),
        completed: Event::new(),
        say: options.say,
        quit: Event::new(),
    });
    let known: Vec<_> = daemon.registry().iter().cloned().collect();
    for machine in &known {
        daemon.watch(machine);
    }
    let quit = daemon.quit.listen();
    let tasks = [
        runtime.spawn("calls", serve_calls(Arc::clone(&daemon), stream)),
        runtime.spawn("signals", wait_for_signals(Arc::clone(&daemon))),
        runtime.spawn("events", events::follow(Arc::clone(&daemon))),
        runtime.spawn("idle", wait_for_idleness(Arc::clone(&daemon), options.idle)),
    ];
    let mut names = take_names(&connection, options.machine1).await?;
    let sockets = varlink::serve(&daemon, varlink::passed(), names.contains(&MACHINE1));
    if names.contains(&MACHINE1) {
        names.extend(systemd1_facade::take_name(&daemon).await);
        recover::take_in(&daemon).await;
    }
    daemon.complete.store(true, Ordering::Release);
    daemon.completed.notify(usize::MAX);
    daemon.say(
        Level::Info,
        &format!("Serving {} with {} machines.", names.join(" and "), daemon.registry().iter().count()),
    );
    if let Ok(address) = std::env::var("NOTIFY_SOCKET") {
        // Whoever asked to be told and does not listen notices that by himself.
        let _ = socket::notify(&address, "READY=1");
    }
    quit.await;
    drop(sockets);
    for name in names {
        let _ = connection.release_name(name).await;
    }
    // What came before the names were gone is still answered; what comes now starts another daemon.
    runtime.sleep(Duration::from_millis(50)).await;
    drop(tasks);
    let _ = connection.close().await;
    Ok(())
}

/// Takes our name, and that of machined if it is to be had.
async fn take_names(connection: &Connection, machine1: Machine1) -> Result<Vec<&'static str>, DaemonError> {
    let bus = zbus::fdo::DBusProxy::new(connection).await.doing("cannot reach the bus")?;
    let mut names = Vec::new();
    let wanted = match machine1 {
        Machine1::No => false,
        Machine1::Yes => true,
        // A service file of systemd's starts nobody there.
        Machine1::Auto if !crate::host::systemd_runs() => true,
        Machine1::Auto => {
            let activatable = bus.list_activatable_names().await.doing("cannot ask the bus for names")?;
            !activatable.iter().any(|name| name.as_str() == MACHINE1)
        }
    };
    let requests = [(MACHINIST1, true), (MACHINE1, wanted)];
    for (name, _) in requests.iter().filter(|(_, wanted)| *wanted) {
        let flags = RequestNameFlags::DO_NOT_QUEUE;
        let reply = connection.request_name_with_flags(*name, flags).await;
        match reply {
            Ok(RequestNameReply::PrimaryOwner | RequestNameReply::AlreadyOwner) => names.push(*name),
            // Somebody is machined: then we are not.
            _ if *name == MACHINE1 && machine1 == Machine1::Auto => {}
            Err(e) => return Err(e).doing("cannot take a name on the bus"),
            Ok(_) => return Err(format!("'{name}' is owned by another")).doing("cannot take a name on the bus"),
        }
    }
    Ok(names)
}

async fn serve_calls(daemon: Arc<Daemon>, mut stream: MessageStream) {
    loop {
        let next = std::future::poll_fn(|cx| std::pin::Pin::new(&mut stream).poll_next(cx)).await;
        match next {
            Some(Ok(message)) if message.message_type() == zbus::message::Type::MethodCall => {
                *lock(&daemon.last_call) = Instant::now();
                let (daemon, call) = (Arc::clone(&daemon), Call::new(message, daemon.connection.clone()));
                let runtime = daemon.runtime.clone();
                runtime.spawn("call", async move { answer(&daemon, &call).await }).detach();
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => {
                daemon.say(Level::Err, "The bus has gone away.");
                daemon.quit.notify(1);
                return;
            }
        }
    }
}

async fn answer(daemon: &Arc<Daemon>, call: &Call) {
    daemon.completion().await;
    let result = objects::dispatch(daemon, call).await;
    if let Err(failure) = &result {
        daemon.say(Level::Debug, &format!("{} for {}: {failure}", call.member(), call.sender()));
    }
    if !call.wants_reply() {
        return;
    }
    let reply = result.map_or_else(|failure| call.refuse(&failure), Ok);
    // A caller that has gone away gets no answer.
    daemon.emit(reply).await;
}

async fn wait_for_signals(daemon: Arc<Daemon>) {
    let signals = Signals::<Shared>::new(&daemon.runtime, [Signal::Terminate, Signal::Interrupt]);
    if let Ok(mut signals) = signals {
        let _ = signals.recv().await;
        daemon.quit.notify(1);
    }
}

/// Ends the daemon when it has had nothing to do for long enough.
async fn wait_for_idleness(daemon: Arc<Daemon>, limit: Option<Duration>) {
    let Some(limit) = limit else { return };
    loop {
        let idle = lock(&daemon.last_call).elapsed();
        if idle >= limit && daemon.registry().is_empty() && daemon.operations.load(Ordering::Relaxed) == 0 {
            daemon.quit.notify(1);
            return;
        }
        daemon.runtime.sleep(limit.saturating_sub(idle).max(Duration::from_millis(100))).await;
    }
}
