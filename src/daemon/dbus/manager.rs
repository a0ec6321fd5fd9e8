//! `org.freedesktop.machine1.Manager`.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use zbus::wire::{OwnedObjectPath, OwnedVariant, Variant};

use super::call::{Call, Failure, Outcome};
use super::objects::{self, Properties, image_path, machine_path};
use super::{image, machine};
use crate::daemon::core::registry::{Class, HOST, Machine, NO_CID, Process, payload_group, unit_of};
use crate::daemon::core::state::Daemon;
use crate::daemon::core::{definition_image, inspect};
use crate::spec::MachineName;
use crate::sys::message::Body;

/// A path as it is sent.
pub(crate) fn object_path(path: String) -> Outcome<OwnedObjectPath> {
    OwnedObjectPath::try_from(path).map_err(Failure::failed)
}

pub(crate) fn properties(daemon: &Daemon) -> Properties {
    image::pool(daemon)
}

pub(crate) async fn call(daemon: &Arc<Daemon>, call: &Call, member: &str) -> Outcome {
    match member {
        "GetMachine" => {
            let name: String = call.arguments()?;
            if !daemon.knows(&name) {
                return Err(Failure::no_such_machine(&name));
            }
            call.reply(&object_path(machine_path(&name))?)
        }
        "GetMachineByPID" => {
            let pid: u32 = call.arguments()?;
            by_pid(daemon, call, pid).await
        }
        "ListMachines" => list(daemon, call),
        "GetImage" => {
            let name: String = call.arguments()?;
            if !image::exists(daemon, &name) && definition_image::find(daemon, &name).is_none() {
                return Err(Failure::no_such_image(&name));
            }
            call.reply(&object_path(image_path(&name))?)
        }
        "CreateMachine"
        | "CreateMachineWithNetwork"
        | "CreateMachineEx"
        | "RegisterMachine"
        | "RegisterMachineWithNetwork"
        | "RegisterMachineEx" => register(daemon, call, member).await,
        "UnregisterMachine" => {
            let name: String = call.arguments()?;
            let machine = daemon.machine(&name)?;
            machine::authorise(daemon, call, &machine, "manage-machines", "unregister").await?;
            daemon.remove(&name).await;
            call.reply(&())
        }
        "MapFromMachineUser" | "MapToMachineUser" | "MapFromMachineGroup" | "MapToMachineGroup" => {
            inspect::map_ids(daemon, call, member)
        }
        _ if member.contains("Image") || member.contains("Pool") => {
            match definition_image::subject(daemon, call, member)? {
                Some(defined) => defined.call(call, member),
                None => image::manager_call(daemon, call, member).await,
            }
        }
        _ => of_machine(daemon, call, member).await,
    }
}

/// What the machine's object offers too, with its name as the first argument.
async fn of_machine(daemon: &Arc<Daemon>, call: &Call, member: &str) -> Outcome {
    use machine::Request;
    type Text = String;
    let (name, request) = match member {
        "TerminateMachine" => (call.arguments::<Text>()?, Request::Terminate),
        "KillMachine" => {
            let (name, whom, signal) = call.arguments::<(Text, Text, i32)>()?;
            (name, Request::Kill { whom, signal })
        }
        "GetMachineAddresses" => (call.arguments()?, Request::Addresses),
        "GetMachineSSHInfo" => (call.arguments()?, Request::SshInfo),
        "GetMachineOSRelease" => (call.arguments()?, Request::OsRelease),
        "GetMachineUIDShift" => (call.arguments()?, Request::UidShift),
        "OpenMachinePTY" => (call.arguments()?, Request::Pty),
        "OpenMachineLogin" => (call.arguments()?, Request::Login),
        "OpenMachineShell" => {
            let (name, user, path, args, environment) = call.arguments::<(Text, Text, Text, Vec<Text>, Vec<Text>)>()?;
            (name, Request::Shell { user, path, args, environment })
        }
        "BindMountMachine" => {
            let (name, source, destination, read_only, mkdir) = call.arguments::<(Text, Text, Text, bool, bool)>()?;
            (name, Request::Bind { source, destination, read_only, mkdir })
        }
        "CopyFromMachine" | "CopyToMachine" => {
            let (name, source, destination) = call.arguments::<(Text, Text, Text)>()?;
            (name, Request::Copy { to: member == "CopyToMachine", source, destination, flags: 0 })
        }
        "CopyFromMachineWithFlags" | "CopyToMachineWithFlags" => {
            let (name, source, destination, flags) = call.arguments::<(Text, Text, Text, u64)>()?;
            (name, Request::Copy { to: member == "CopyToMachineWithFlags", source, destination, flags })
        }
        "OpenMachineRootDirectory" => (call.arguments()?, Request::RootDirectory),
        _ => return Err(objects::unknown_method(call)),
    };
    machine::serve(daemon, call, &name, request).await
}

/// The answer of `ListMachines` as long as no machine comes or goes. Everybody who watches machines asks for it again and
/// again, and making it for a thousand takes longer than sending it.
#[derive(Debug, Default)]
pub(crate) struct Listed(Option<(u64, Body)>);

fn list(daemon: &Daemon, call: &Call) -> Outcome {
    let registry = daemon.registry();
    let mut listed = crate::daemon::core::state::lock(&daemon.listed);
    if let Some((changes, body)) = &listed.0
        && *changes == registry.changes()
    {
        return call.reply_with(body);
    }
    let host = (HOST.to_owned(), "host", String::new(), object_path(machine_path(HOST))?);
    let row = |m: &Arc<Machine>| {
        Ok((m.name.clone(), m.class.as_str(), m.service.clone(), object_path(machine_path(&m.name))?))
    };
    let rows: Outcome<Vec<_>> = std::iter::once(Ok(host)).chain(registry.iter().map(row)).collect();
    let reply = call.reply(&rows?)?;
    listed.0 = Body::of(&reply).map(|body| (registry.changes(), body));
    Ok(reply)
}

async fn by_pid(daemon: &Arc<Daemon>, call: &Call, pid: u32) -> Outcome {
    let known = match i32::try_from(pid) {
        Ok(0) => daemon.process_of(call).await?,
        Ok(pid) => pid,
        Err(_) => return Err(Failure::invalid_args(format!("Invalid PID {pid}"))),
    };
    let name = daemon.registry().of_process(known).map(|m| m.name.clone());
    let name =
        name.ok_or_else(|| Failure::no_machine_for_pid(format!("PID {known} does not belong to any known machine")))?;
    call.reply(&object_path(machine_path(&name))?)
}

/// What somebody says of a machine of his.
#[derive(Debug, Default)]
struct Claim {
    name: String,
    id: Vec<u8>,
    service: String,
    class: String,
    leader: u32,
    leader_fd: Option<std::os::fd::OwnedFd>,
    leader_id: Option<u64>,
    root: String,
    interfaces: Vec<i32>,
    vsock_cid: Option<u32>,
    ssh_address: String,
    ssh_key: String,
}

type Named<T> = Vec<(String, T)>;

impl Claim {
    fn read(call: &Call, member: &str) -> Outcome<(Self, Named<OwnedVariant>)> {
        type Base = (String, Vec<u8>, String, String, u32, String);
        let base = |(name, id, service, class, leader, root): Base| Self {
            name,
            id,
            service,
            class,
            leader,
            root,
            ..Self::default()
        };
        Ok(match member {
            "RegisterMachine" => (base(call.arguments()?), Vec::new()),
            "RegisterMachineWithNetwork" => {
                let (a, b, c, d, e, f, interfaces) =
                    call.arguments::<(String, Vec<u8>, String, String, u32, String, Vec<i32>)>()?;
                (Self { interfaces, ..base((a, b, c, d, e, f)) }, Vec::new())
            }
            "CreateMachine" => {
                let (a, b, c, d, e, f, scope) =
                    call.arguments::<(String, Vec<u8>, String, String, u32, String, Named<OwnedVariant>)>()?;
                (base((a, b, c, d, e, f)), scope)
            }
            "CreateMachineWithNetwork" => {
                let (a, b, c, d, e, f, interfaces, scope) =
                    call.arguments::<(String, Vec<u8>, String, String, u32, String, Vec<i32>, Named<OwnedVariant>)>()?;
                (Self { interfaces, ..base((a, b, c, d, e, f)) }, scope)
            }
            "RegisterMachineEx" => {
                let (name, properties) = call.arguments::<(String, Named<OwnedVariant>)>()?;
                (Self::extended(name, properties)?, Vec::new())
            }
            _ => {
                let (name, properties, scope) =
                    call.arguments::<(String, Named<OwnedVariant>, Named<OwnedVariant>)>()?;
                (Self::extended(name, properties)?, scope)
            }
        })
    }

    fn extended(name: String, properties: Named<OwnedVariant>) -> Outcome<Self> {
        let mut claim = Self { name, ..Self::default() };
        let invalid = |e: zbus::Error| Failure::invalid_args(e);
        for (key, value) in properties {
            let value: Variant<'_> = value.into();
            match key.as_str() {
                "Id" => claim.id = value.try_into().map_err(invalid)?,
                "Service" => claim.service = value.try_into().map_err(invalid)?,
                "Class" => claim.class = value.try_into().map_err(invalid)?,
                "LeaderPID" => claim.leader = value.try_into().map_err(invalid)?,
                "LeaderPIDFDID" => claim.leader_id = Some(value.try_into().map_err(invalid)?),
                "LeaderPIDFD" => {
                    let Variant::Fd(fd) = value else {
                        return Err(Failure::invalid_args("LeaderPIDFD is no descriptor"));
                    };
                    claim.leader_fd = Some(std::os::fd::OwnedFd::try_from(fd).map_err(invalid)?);
                }
                "RootDirectory" => claim.root = value.try_into().map_err(invalid)?,
                "NetworkInterfaces" => claim.interfaces = value.try_into().map_err(invalid)?,
                "VSockCID" => claim.vsock_cid = Some(value.try_into().map_err(invalid)?),
                "SSHAddress" => claim.ssh_address = value.try_into().map_err(invalid)?,
                "SSHPrivateKeyPath" => claim.ssh_key = value.try_into().map_err(invalid)?,
                _ => return Err(Failure::invalid_args(format!("Unknown property '{key}'"))),
            }
        }
        if (claim.leader == 0) != claim.leader_id.is_none() {
            return Err(Failure::invalid_args("LeaderPID and LeaderPIDFDID go together"));
        }
        Ok(claim)
    }

    /// Checks everything that can be checked without asking anybody.
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
    async fn leader(&self, daemon: &Daemon, call: &Call) -> Outcome<Process> {
        if let Some(fd) = &self.leader_fd {
            let fd = fd.try_clone().map_err(Failure::failed)?;
            let pid = crate::sys::process::pidfd_number(&fd)?.as_raw();
            if self.leader != 0 && u32::try_from(pid).is_ok_and(|p| p != self.leader) {
                return Err(Failure::invalid_args("LeaderPIDFD and LeaderPID are not of the same process"));
            }
            return Ok(Process::from_pidfd(pid, fd)?);
        }
        let pid = match i32::try_from(self.leader) {
            Ok(0) => daemon.process_of(call).await?,
            other => other.map_err(Failure::invalid_args)?,
        };
        let process = Process::open(pid)?;
        if self.leader_id.is_some_and(|id| process.id != 0 && process.id != id) {
            return Err(Failure::errno(crate::sys::Errno::ESRCH, "The leader has ended."));
        }
        Ok(process)
    }
}

/// Takes a machine in, in a unit of its own for the `Create` methods.
async fn register(daemon: &Arc<Daemon>, call: &Call, member: &str) -> Outcome {
    let (claim, scope) = Claim::read(call, member)?;
    let (class, id) = claim.check()?;
    let create = member.starts_with("Create");
    let action = if create { "create-machine" } else { "register-machine" };
    let details = [("machine", claim.name.as_str()), ("verb", if create { "create" } else { "register" })];
    daemon.authorise(call, &format!("org.freedesktop.machine1.{action}"), &details).await?;
    let caller = daemon.credentials(call).await?;
    let leader = claim.leader(daemon, call).await?;
    if leader.pid <= 1 {
        return Err(Failure::invalid_args("Invalid leader PID"));
    }
    // Again only by its supervisor, after we found the machine ourselves; nobody says anew what another has said.
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
    if create {
        crate::daemon::core::scope::create(daemon, &claim.name, class, &leader, scope).await?;
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
    super::systemd1_facade::adopt(daemon, &mut machine);
    // It may have ended while we asked: then nobody would ever tell us.
    if !machine.leader.is_alive() {
        return Err(Failure::errno(crate::sys::Errno::ESRCH, "The leader has ended."));
    }
    let machine = daemon.add(machine).await?;
    call.reply(&object_path(machine_path(&machine.name))?)
}

/// The user that a process runs as.
fn owner(pid: i32) -> Outcome<u32> {
    let status = crate::sys::read_text(std::path::Path::new(&format!("/proc/{pid}/status")))?;
    let line = status.lines().find_map(|l| l.strip_prefix("Uid:"));
    let uid = line.and_then(|l| l.split_whitespace().nth(1)).and_then(|uid| uid.parse().ok());
    uid.ok_or_else(|| Failure::errno(crate::sys::Errno::ESRCH, "The leader has ended."))
}

pub(crate) fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

pub(crate) fn monotonic() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}
