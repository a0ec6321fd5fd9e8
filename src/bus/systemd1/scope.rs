//! `org.freedesktop.systemd1`: a scope for a machine that was not started by a unit of its own.

use std::path::Path;
use std::time::Duration;

use zbus::OwnedObjectPath;

use super::{Manager, TASKS_MAX, failed};
use crate::bus::connection::open;
use crate::bus::{Bus, BusError, BusWorker};
use crate::sys::{self, read_text};

/// The signal with which a scope of ours is asked to stop.
///
/// A scope has no main process: systemd signals every process in it. This one means nothing to any of them, and the
/// supervisor takes it for a stop in order.
pub const STOP_SIGNAL: i32 = libc::SIGURG;

/// How long a scope may take. Without one the machine's group is where systemd does not expect it, so this is worth more
/// patience than a table entry.
const SCOPE_LIMIT: Duration = Duration::from_secs(30);

/// A scope to be made.
#[derive(Debug)]
pub struct ScopeRequest<'a> {
    /// Name of the unit.
    pub unit: &'a str,
    /// For people.
    pub description: &'a str,
    /// After this systemd kills what it has asked to stop; never if unset.
    pub stop_timeout: Option<Duration>,
    /// The machine has a limit of tasks of its own, or wants none.
    pub own_tasks_max: bool,
}

/// A scope that holds nothing yet but a process of ours, which keeps it alive until [`Scope::go`].
#[derive(Debug)]
pub struct Scope {
    worker: BusWorker,
    group: String,
}

/// Has systemd make a scope and waits until it is there.
///
/// Waits for a scope of that name from the machine's previous run, if it is just going away.
pub fn start_scope(bus: &Bus, request: &ScopeRequest<'_>) -> Result<Scope, BusError> {
    let worker = BusWorker::start(bus.connect()?, |stream, parent| {
        let made = zbus::block_on(async {
            let bus = open(stream).await?;
            allocate(&bus, request).await?;
            own_group()
        });
        parent.answer(&made);
        parent.receive::<()>();
    })?;
    let group = worker.answer(SCOPE_LIMIT)?;
    Ok(Scope { worker, group })
}

impl Scope {
    /// Its control group, beginning with a slash.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Lets our process end and waits until it has: groups with processes in them hand on no controllers. The caller
    /// has put another process into a group below the scope's.
    pub fn go(mut self) -> sys::Result<()> {
        self.worker.send(&());
        self.worker.wait()
    }
}

async fn allocate(bus: &zbus::Connection, request: &ScopeRequest<'_>) -> Result<(), BusError> {
    const CALL: &str = "StartTransientUnit";
    let systemd = Manager::on(bus);
    let stop = request.stop_timeout.map_or(u64::MAX, |t| u64::try_from(t.as_micros()).unwrap_or(u64::MAX));
    let properties = [
        ("Description", request.description.into()),
        ("Slice", "machine.slice".into()),
        ("Delegate", true.into()),
        ("CollectMode", "inactive-or-failed".into()),
        ("TasksMax", if request.own_tasks_max { u64::MAX } else { TASKS_MAX }.into()),
        ("KillSignal", STOP_SIGNAL.into()),
        ("TimeoutStopUSec", stop.into()),
        ("PIDs", vec![std::process::id()].into()),
    ];
    let mut units = systemd.signals("UnitRemoved", None).await.map_err(|e| failed(CALL, &e))?;
    let mut jobs = systemd.jobs(Some(request.unit)).await.map_err(|e| failed(CALL, &e))?;
    let job = loop {
        match systemd.start_transient(request.unit, &properties).await.map_err(|e| failed(CALL, &e)) {
            Err(BusError::Exists(_)) => loop {
                let (unit, _): (String, OwnedObjectPath) = units.body().await.map_err(|e| failed(CALL, &e))?;
                if unit == request.unit {
                    break;
                }
            },
            other => break other?,
        }
    };
    match jobs.end_of(&job).await.map_err(|e| failed(CALL, &e))?.as_str() {
        "done" => Ok(()),
        result => Err(BusError::Failed { call: CALL.into(), why: format!("the job's result is {result}") }),
    }
}

/// The control group of the calling process.
fn own_group() -> Result<String, BusError> {
    let text = read_text(Path::new("/proc/self/cgroup"))?;
    let group = text.lines().find_map(|line| line.strip_prefix("0::"));
    let none = || BusError::Failed { call: "StartTransientUnit".into(), why: "the scope has no control group".into() };
    group.map(str::to_owned).ok_or_else(none)
}
