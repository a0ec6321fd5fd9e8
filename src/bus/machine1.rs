//! `org.freedesktop.machine1`: the table of the host's machines, kept by our daemon or by systemd-machined.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zbus::wire::{OwnedObjectPath, OwnedVariant};

use super::connection::{call, open};
use super::{Bus, BusError, BusWorker};
use crate::sys::read_text;

const NAME: &str = "org.freedesktop.machine1";
const MANAGER: (&str, &str, &str) = (NAME, "/org/freedesktop/machine1", "org.freedesktop.machine1.Manager");

/// What we are called in the table.
pub const SERVICE: &str = "machinist";

/// A machine as it is entered into the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Its name.
    pub name: String,
    /// Its machine id, as passed to its init.
    pub id: [u8; 16],
    /// Its first process, as the host numbers it.
    pub leader: u32,
    /// The directory of the host that is its root; empty if none is.
    pub root: String,
    /// Host side of its network, by interface index.
    pub interfaces: Vec<i32>,
}

/// Begins a registration: connects in our name and lets a child introduce itself to the bus meanwhile.
///
/// `renew` names a machine whose last entry goes first: the one of before a reboot. Follow with
/// [`Registrar::machine`] when there is a leader.
pub fn begin(bus: &Bus, renew: Option<&str>) -> Result<Registrar, BusError> {
    let worker = BusWorker::start(bus.connect()?, |stream, parent| {
        let result = zbus::block_on(async {
            let bus = open(stream).await?;
            if let Some(name) = renew {
                // The machine1 service has mostly seen the leader end and removed the entry.
                let _ = call(&bus, MANAGER, "UnregisterMachine", &name).await;
            }
            match parent.receive::<Registration>() {
                Some(machine) => register(&bus, &machine).await,
                None => Ok(()),
            }
        });
        parent.answer(&result);
    })?;
    Ok(Registrar(worker))
}

/// Asks the machine1 service for a login; returns the terminal's master and the machine's leader.
pub fn open_login(bus: &Bus, name: &str) -> Result<(OwnedFd, u32), BusError> {
    let stream = bus.connect()?;
    zbus::block_on(async {
        let bus = open(stream).await?;
        let lost = |e: zbus::Error| BusError::Failed { call: "OpenMachineLogin".into(), why: e.to_string() };
        let object: OwnedObjectPath =
            call(&bus, MANAGER, "GetMachine", &name).await?.body().deserialize().map_err(lost)?;
        let properties = (NAME, object.as_str(), "org.freedesktop.DBus.Properties");
        let reply = call(&bus, properties, "Get", &("org.freedesktop.machine1.Machine", "Leader")).await?;
        let leader: OwnedVariant = reply.body().deserialize().map_err(lost)?;
        let leader = u32::try_from(leader).map_err(lost)?;
        let reply = call(&bus, MANAGER, "OpenMachineLogin", &name).await?;
        let (master, _): (zbus::wire::OwnedFd, String) = reply.body().deserialize().map_err(lost)?;
        Ok((master.into(), leader))
    })
}

/// A registration under way.
#[derive(Debug)]
pub struct Registrar(BusWorker);

impl Registrar {
    /// Enters this machine.
    pub fn machine(&self, machine: &Registration) {
        self.0.send(machine);
    }

    /// How it went. What is left of the child ends with `self`, which the caller may keep until it has time.
    pub fn outcome(&self, limit: Duration) -> Result<(), BusError> {
        self.0.answer(limit)
    }
}

/// Begins to take a machine out of the table.
pub fn unregister(bus: &Bus, name: &str) -> Result<Registrar, BusError> {
    let worker = BusWorker::start(bus.connect()?, |stream, parent| {
        let result = zbus::block_on(async {
            let bus = open(stream).await?;
            call(&bus, MANAGER, "UnregisterMachine", &name).await.map(drop)
        });
        parent.answer(&result);
    })?;
    Ok(Registrar(worker))
}

async fn register(bus: &zbus::Connection, machine: &Registration) -> Result<(), BusError> {
    let Registration { name, id, leader, root, interfaces } = machine;
    let body = (name, &id[..], SERVICE, "container", leader, root, interfaces);
    let first = match call(bus, MANAGER, "RegisterMachineWithNetwork", &body).await {
        Err(BusError::Exists(_)) => BusError::Exists(name.clone()),
        other => return other.map(drop),
    };
    // A supervisor that was killed has left its entry, until the machine1 service notices.
    let Some((service, leader)) = entry(bus, name).await else { return Err(first) };
    if is_alive(leader) {
        return Err(BusError::Taken { machine: name.clone(), service, leader });
    }
    // Mostly gone by now.
    let _ = call(bus, MANAGER, "UnregisterMachine", name).await;
    call(bus, MANAGER, "RegisterMachineWithNetwork", &body).await.map(drop)
}

/// Manager and leader of a machine in the table.
async fn entry(bus: &zbus::Connection, name: &str) -> Option<(String, u32)> {
    let reply = call(bus, MANAGER, "GetMachine", &name).await.ok()?;
    let path: zbus::OwnedObjectPath = reply.body().deserialize().ok()?;
    let properties = (NAME, path.as_str(), "org.freedesktop.DBus.Properties");
    let all = call(bus, properties, "GetAll", &"org.freedesktop.machine1.Machine").await.ok()?;
    let mut all: HashMap<String, zbus::OwnedVariant> = all.body().deserialize().ok()?;
    let service = String::try_from(all.remove("Service")?).ok()?;
    Some((service, u32::try_from(all.remove("Leader")?).ok()?))
}

/// Whether a process runs; one that has ended and is not reaped yet does not.
fn is_alive(pid: u32) -> bool {
    let stat = read_text(Path::new(&format!("/proc/{pid}/stat"))).unwrap_or_default();
    // The name before it, in parentheses, may hold anything.
    let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_are_not_alive() {
        assert!(is_alive(std::process::id()));
        let mut child = std::process::Command::new("true").spawn().expect("true");
        let pid = child.id();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while is_alive(pid) {
            assert!(std::time::Instant::now() < deadline, "a zombie counts as alive");
            std::thread::yield_now();
        }
        child.wait().expect("wait");
        assert!(!is_alive(pid));
    }
}
