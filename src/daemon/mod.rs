//! The daemon: knows machines, names them and asks their supervisors; speaks `org.freedesktop.machine1`.
//!
//! ```text
//!  bus ──────> dbus (objects, interfaces, messages) ──┐ translate, nothing else
//!  sockets ──> varlink (JSON) ────────────────────────┤
//!                                                     └──> core: a Caller's requests, typed
//!                                                          authority (root or polkit) · registry (machines, state files)
//! ```
//!
//! One thread serves the bus; work that may block goes to a pool (`Daemon::blocking`). No machine depends on the
//! daemon: it can be killed and started again at any moment, and finds every machine in its state file.

mod core;
mod dbus;
mod varlink;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use zbus::connection::Builder;
use zbus::fdo::{RequestNameFlags, RequestNameReply};
use zbus::{Connection, MessageStream};
use zruntime::signal::{Signal, Signals};
use zruntime::{Event, Shared, SharedRuntime};

pub use self::core::enter::{Login, serve as help};
use self::core::registry::Registry;
use self::core::state::{Daemon, Level, StandIn, lock};
use self::core::{events, recover, register};
use crate::spec::Layout;
use crate::sys::socket;
use dbus::{Face, announcer, serve_calls, take_name};

/// Name of the interface that systemd-machined serves.
const MACHINE1: &str = "org.freedesktop.machine1";
/// Our own.
const MACHINIST1: &str = "org.machinist1";

/// Whether to be what systemd-machined is elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Machine1 {
    /// If no other program is, nor could be started to be.
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

/// Files that the daemon may have open, if the hard limit allows that.
const FILES: u64 = 16 * 1024;

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
        callers: Mutex::default(),
        file_limit,
        units: Mutex::default(),
        level: Mutex::new(Level::Info),
        last_call: Mutex::new(Instant::now()),
        read_group: options.read_group,
        operations: AtomicUsize::new(0),
        stand_in: StandIn::default(),
        kept_up: Mutex::default(),
        complete: AtomicBool::new(false),
        completed: Event::new(),
        say: options.say,
        announce: announcer(connection.clone()),
        quit: Event::new(),
    });
    let face = Arc::new(Face::new(Arc::clone(&daemon), connection.clone()));
    let known: Vec<_> = daemon.registry().iter().cloned().collect();
    for machine in &known {
        register::watch(&daemon, machine);
    }
    let quit = daemon.quit.listen();
    let tasks = [
        runtime.spawn("calls", serve_calls(Arc::clone(&face), stream)),
        runtime.spawn("signals", wait_for_signals(Arc::clone(&daemon))),
        runtime.spawn("events", events::follow(Arc::clone(&daemon))),
        runtime.spawn("idle", wait_for_idleness(Arc::clone(&daemon), options.idle)),
    ];
    let mut names = take_names(&connection, options.machine1).await?;
    let sockets = varlink::serve(&daemon, varlink::passed(), names.contains(&MACHINE1));
    if names.contains(&MACHINE1) {
        names.extend(take_name(&face).await);
        recover::take_in(&daemon).await;
    }
    daemon.complete.store(true, Ordering::Release);
    daemon.completed.notify(usize::MAX);
    daemon.say(
        Level::Info,
        &format!("Serving {} with {} machines.", names.join(" and "), daemon.registry().iter().count()),
    );
    if let Ok(address) = std::env::var("NOTIFY_SOCKET") {
        // A service manager that does not listen notices that by itself.
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
        // A service file of systemd's starts nothing there.
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
            // Another is machined: then we are not.
            _ if *name == MACHINE1 && machine1 == Machine1::Auto => {}
            Err(e) => return Err(e).doing("cannot take a name on the bus"),
            Ok(_) => return Err(format!("'{name}' is owned by another")).doing("cannot take a name on the bus"),
        }
    }
    Ok(names)
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
