//! `org.freedesktop.systemd1`: a scope for a machine that was not started by a unit of its own.

use std::future::poll_fn;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use futures_core::Stream as _;
use serde::de::DeserializeOwned;
use zbus::message::Type;
use zbus::{MatchRule, MessageStream, OwnedObjectPath, Variant};

use super::{Bus, BusError, Errand, call, failed, open};
use crate::sys::{self, read_text};

pub(super) const NAME: &str = "org.freedesktop.systemd1";
pub(super) const MANAGER: (&str, &str, &str) = (NAME, "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager");

/// The signal with which a scope of ours is asked to stop.
///
/// A scope has no main process: systemd signals every process in it. This one means nothing to any of them, and the
/// supervisor takes it for a stop in order.
pub const STOP_SIGNAL: i32 = libc::SIGURG;

/// The error of a unit that is there already.
pub(super) const EXISTS: &str = "org.freedesktop.systemd1.UnitExists";

/// How long a scope may take. Without one the machine's group is where systemd does not expect it, so this is worth more
/// patience than a table entry.
const SCOPE_LIMIT: Duration = Duration::from_secs(30);

/// Tasks of a machine that says nothing of them, as systemd-nspawn has it.
const TASKS_MAX: u64 = 16_384;

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
    errand: Errand,
    group: String,
}

/// Has systemd make a scope and waits until it is there.
///
/// A scope of that name which is just going away, from the machine's life before, is waited for.
pub fn start_scope(bus: &Bus, request: &ScopeRequest<'_>) -> Result<Scope, BusError> {
    let errand = Errand::start(bus.connect()?, |stream, parent| {
        let made = zbus::block_on(async {
            let bus = open(stream).await?;
            allocate(&bus, request).await?;
            own_group()
        });
        parent.tell(&made);
        parent.hear::<()>();
    })?;
    let group = errand.answer(SCOPE_LIMIT)?;
    Ok(Scope { errand, group })
}

impl Scope {
    /// Its control group, beginning with a slash.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Lets our process end and waits until it has: groups that processes are in hand on no controllers. Whoever calls
    /// has put another into a group below the scope's.
    pub fn go(mut self) -> sys::Result<()> {
        self.errand.tell(&());
        self.errand.wait()
    }
}

async fn allocate(bus: &zbus::Connection, request: &ScopeRequest<'_>) -> Result<(), BusError> {
    let mut jobs = listen(bus, "JobRemoved").await?;
    let mut units = listen(bus, "UnitRemoved").await?;
    call(bus, MANAGER, "Subscribe", &()).await?;
    let stop = request.stop_timeout.map_or(u64::MAX, |t| u64::try_from(t.as_micros()).unwrap_or(u64::MAX));
    let properties: Vec<(&str, Variant<'_>)> = vec![
        ("Description", request.description.into()),
        ("Slice", "machine.slice".into()),
        ("Delegate", true.into()),
        ("CollectMode", "inactive-or-failed".into()),
        ("TasksMax", if request.own_tasks_max { u64::MAX } else { TASKS_MAX }.into()),
        ("KillSignal", STOP_SIGNAL.into()),
        ("TimeoutStopUSec", stop.into()),
        ("PIDs", vec![std::process::id()].into()),
    ];
    let auxiliary: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
    let body = (request.unit, "fail", properties, auxiliary);
    let job = loop {
        match call(bus, MANAGER, "StartTransientUnit", &body).await {
            Err(BusError::Exists(_)) => while next::<(String, OwnedObjectPath)>(&mut units).await?.0 != request.unit {},
            other => {
                break other?.body().deserialize::<OwnedObjectPath>().map_err(|e| failed("StartTransientUnit", &e))?;
            }
        }
    };
    loop {
        let (_, ended, _, result) = next::<(u32, OwnedObjectPath, String, String)>(&mut jobs).await?;
        if ended == job && result == "done" {
            return Ok(());
        }
        if ended == job {
            return Err(BusError::Failed {
                call: "StartTransientUnit".into(),
                why: format!("the job's result is {result}"),
            });
        }
    }
}

pub(super) async fn listen(bus: &zbus::Connection, member: &'static str) -> Result<MessageStream, BusError> {
    let rule = MatchRule::builder().msg_type(Type::Signal).sender(NAME).interface(MANAGER.2).member(member);
    let rule = rule.build().map_err(|e| failed(member, &e))?;
    MessageStream::for_match_rule(rule, bus, None).await.map_err(|e| failed(member, &e))
}

/// What the next signal carries.
pub(super) async fn next<T>(signals: &mut MessageStream) -> Result<T, BusError>
where
    T: DeserializeOwned + zbus::Type,
{
    let signal = poll_fn(|context| Pin::new(&mut *signals).poll_next(context)).await;
    let lost = || BusError::Failed { call: NAME.to_owned(), why: "the bus went away".to_owned() };
    let signal = signal.ok_or_else(lost)?.map_err(|e| failed(NAME, &e))?;
    signal.body().deserialize().map_err(|e| failed(NAME, &e))
}

/// The control group of the calling process.
fn own_group() -> Result<String, BusError> {
    let text = read_text(Path::new("/proc/self/cgroup"))?;
    let group = text.lines().find_map(|line| line.strip_prefix("0::"));
    let none = || BusError::Failed { call: "StartTransientUnit".into(), why: "the scope has no control group".into() };
    group.map(str::to_owned).ok_or_else(none)
}
