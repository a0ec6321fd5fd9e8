//! Machines come and go: registered by callers, found again by us, removed when their leader ends.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::caller::Caller;
use super::error::{Failure, Outcome};
use super::registry::{Class, Machine, NO_CID, Process, payload_group, unit_of};
use super::scope::UnitProperties;
use super::state::{Daemon, Level, News, ended};
use super::{journal, machines, scope};
use crate::bus::machine1::SERVICE;
use crate::spec::{MachineName, service_unit};

/// What a caller says of a machine to register.
#[derive(Debug, Default)]
pub(crate) struct Claim {
    pub(crate) name: String,
    pub(crate) id: Vec<u8>,
    pub(crate) service: String,
    pub(crate) class: String,
    pub(crate) leader: u32,
    pub(crate) leader_fd: Option<OwnedFd>,
    pub(crate) leader_id: Option<u64>,
    pub(crate) root: String,
    pub(crate) interfaces: Vec<i32>,
    pub(crate) vsock_cid: Option<u32>,
    pub(crate) ssh_address: String,
    pub(crate) ssh_key: String,
}

impl Claim {
    /// Checks everything that can be checked without asking others.
    fn check(&self) -> Outcome<(Class, [u8; 16])> {
        let invalid = |text: &str| Failure::invalid_args(text);
        MachineName::parse(&self.name).map_err(|_| invalid("Invalid machine name"))?;
        let id = match self.id.len() {
            0 => [0; 16],
            _ => self.id.as_slice().try_into().map_err(|_| invalid("Invalid machine ID parameter"))?,
        };
        let class = match self.class.as_str() {
            "" => Class::Container,
            word => Class::parse(word).ok_or_else(|| invalid("Invalid machine class parameter"))?,
        };
        if self.leader == 1 || i32::try_from(self.leader).is_err() {
            return Err(invalid("Invalid leader PID"));
        }
        if !self.root.is_empty() && !self.root.starts_with('/') {
            return Err(invalid("Root directory must be empty or an absolute path"));
        }
        if self.interfaces.iter().any(|index| *index <= 0) {
            return Err(invalid("Invalid network interface index"));
        }
        Ok((class, id))
    }

    /// The leader: by its descriptor if there is one, else by its number, else the caller.
    async fn leader(&self, daemon: &Daemon, caller: &Caller) -> Outcome<Process> {
        if let Some(fd) = &self.leader_fd {
            let fd = fd.try_clone().map_err(Failure::failed)?;
            let pid = crate::sys::process::pidfd_number(&fd)?.as_raw();
            if self.leader != 0 && u32::try_from(pid).is_ok_and(|p| p != self.leader) {
                return Err(Failure::invalid_args("LeaderPIDFD and LeaderPID are not of the same process"));
            }
            return Ok(Process::from_pidfd(pid, fd)?);
        }
        let pid = match i32::try_from(self.leader) {
            Ok(0) => daemon.process_of(caller).await?,
            other => other.map_err(Failure::invalid_args)?,
        };
        let process = Process::open(pid)?;
        if self.leader_id.is_some_and(|id| process.id != 0 && process.id != id) {
            return Err(Failure::leader_ended());
        }
        Ok(process)
    }
}

/// Takes a machine in; in a scope of its own with these properties, if there are any.
pub(crate) async fn register(
    daemon: &Arc<Daemon>,
    by: &Caller,
    claim: Claim,
    scope: Option<UnitProperties>,
) -> Outcome<Arc<Machine>> {
    let (class, id) = claim.check()?;
    let create = scope.is_some();
    let action = if create { "create-machine" } else { "register-machine" };
    let details = [("machine", claim.name.as_str()), ("verb", if create { "create" } else { "register" })];
    daemon.authorise(by, &format!("org.freedesktop.machine1.{action}"), &details).await?;
    let caller = daemon.credentials(by).await?;
    let leader = claim.leader(daemon, by).await?;
    if leader.pid <= 1 {
        return Err(Failure::invalid_args("Invalid leader PID"));
    }
    // Again only by its supervisor, after we found the machine ourselves; no user may replace the entry of another.
    let taken =
        |known: &Arc<Machine>| create || known.leader.pid != leader.pid || caller.uid != 0 && caller.uid != known.uid;
    if daemon.registry().get(&claim.name).is_some_and(taken) {
        return Err(Failure::machine_exists(format!("Machine '{}' already exists", claim.name)));
    }
    let uid = owner(leader.pid)?;
    if caller.uid != 0 && caller.uid != uid {
        return Err(Failure::access_denied("Only root may register machines for other users"));
    }
    let supervisor = if caller.pid > 1 && caller.pid != leader.pid { Process::open(caller.pid).ok() } else { None };
    if let Some(properties) = scope {
        scope::create(daemon, &claim.name, class, &leader, properties).await?;
    }
    let group = payload_group(leader.pid);
    let (unit, subgroup) = unit_of(&group);
    let mut machine = Machine {
        name: claim.name,
        id,
        service: claim.service,
        class,
        leader,
        supervisor,
        root: claim.root,
        interfaces: claim.interfaces,
        vsock_cid: claim.vsock_cid.unwrap_or(NO_CID),
        ssh_address: claim.ssh_address,
        ssh_key: claim.ssh_key,
        unit,
        subgroup,
        group,
        uid: caller.uid,
        realtime: micros(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()),
        monotonic: monotonic(),
    };
    adopt(daemon, &mut machine);
    // It may have ended while we asked: then we would never learn of it.
    if !machine.leader.is_alive() {
        return Err(Failure::leader_ended());
    }
    add(daemon, machine).await
}

/// Removes a machine that goes on without being known.
pub(crate) async fn unregister(daemon: &Daemon, caller: &Caller, name: &str) -> Outcome {
    let machine = daemon.machine(name)?;
    machines::authorise(daemon, caller, &machine, "manage-machines", "unregister").await?;
    remove(daemon, name).await;
    Ok(())
}

/// Gives a machine of ours without a unit of systemd's the one that it has where we stand in for systemd.
pub(crate) fn adopt(daemon: &Daemon, machine: &mut Machine) {
    // Its supervisor writes its state while it registers, so there may be nothing to read yet.
    let ours = machine.service == SERVICE && machine.uid == 0;
    if machine.unit.is_empty() && ours && daemon.stands_in() {
        machine.unit = service_unit(&machine.name);
    }
}

/// Adds a machine, announces it, and waits for its end in a task of its own.
pub(crate) async fn add(daemon: &Arc<Daemon>, machine: Machine) -> Outcome<Arc<Machine>> {
    let known = daemon.registry().get(&machine.name).map(|m| m.leader.pid);
    // Its supervisor may register what we found ourselves when we began.
    let again = known == Some(machine.leader.pid);
    if known.is_some() && !again {
        return Err(Failure::machine_exists(format!("Machine '{}' already exists", machine.name)));
    }
    let machine = daemon.registry().add(machine)?;
    watch(daemon, &machine);
    if again {
        return Ok(machine);
    }
    log(daemon, &machine, true);
    (daemon.announce)(News::Added(machine.name.clone())).await;
    Ok(machine)
}

/// Removes a machine and announces that.
pub(crate) async fn remove(daemon: &Daemon, name: &str) {
    let removed = daemon.registry().remove(name);
    if let Some(machine) = removed {
        log(daemon, &machine, false);
        (daemon.announce)(News::Removed(name.to_owned())).await;
        scope::forget(daemon, &machine).await;
    }
}

/// Removes the machine when its leader ends.
pub(crate) fn watch(daemon: &Arc<Daemon>, machine: &Arc<Machine>) {
    let (daemon, name, leader) = (Arc::clone(daemon), machine.name.clone(), machine.leader.clone());
    let runtime = daemon.runtime.clone();
    let task = runtime.spawn("leader", async move {
        if let Err(e) = ended(&daemon.runtime, &leader).await {
            daemon.say(Level::Warning, &format!("Cannot wait for the end of machine {name}: {e}."));
            return;
        }
        // Another machine may have taken the name since.
        let same = daemon.registry().get(&name).is_some_and(|m| Arc::ptr_eq(m.leader.pidfd(), leader.pidfd()));
        if same {
            remove(&daemon, &name).await;
        }
    });
    task.detach();
}

/// Says that a machine has come or gone, to the journal in its own words if there is one.
fn log(daemon: &Daemon, machine: &Machine, started: bool) {
    let known = journal::machine(&daemon.layout, machine, started);
    // Once is enough where the journal reads what we say, too.
    let level = if known && std::env::var_os("JOURNAL_STREAM").is_some() { Level::Debug } else { Level::Info };
    let name = &machine.name;
    daemon.say(level, &if started { format!("New machine {name}.") } else { format!("Machine {name} terminated.") });
}

/// The user that a process runs as.
fn owner(pid: i32) -> Outcome<u32> {
    let status = crate::sys::read_text(std::path::Path::new(&format!("/proc/{pid}/status")))?;
    let line = status.lines().find_map(|l| l.strip_prefix("Uid:"));
    let uid = line.and_then(|l| l.split_whitespace().nth(1)).and_then(|uid| uid.parse().ok());
    uid.ok_or_else(Failure::leader_ended)
}

pub(crate) fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

pub(crate) fn monotonic() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}
