//! `org.freedesktop.machine1.Machine`, and the same requests by name through the manager.

use std::sync::Arc;

use nix::sys::signal::Signal;
use zbus::wire::Variant;

use super::call::{Call, Failure, Outcome};
use super::objects::{self, Properties};
use crate::cgroup;
use crate::daemon::core::registry::{HOST, Machine, NO_CID, Process};
use crate::daemon::core::state::Daemon;
use crate::daemon::core::{enter, files, inspect};
use crate::running::control::{self, Request as Ask};
use crate::running::state::{self, State};
use crate::running::stop;
use crate::spec::{InitKind, MachineName};
use crate::sys::process;

/// What can be asked of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    Terminate,
    Kill { whom: String, signal: i32 },
    Addresses,
    SshInfo,
    OsRelease,
    UidShift,
    Pty,
    Login,
    Shell { user: String, path: String, args: Vec<String>, environment: Vec<String> },
    Bind { source: String, destination: String, read_only: bool, mkdir: bool },
    Copy { to: bool, source: String, destination: String, flags: u64 },
    RootDirectory,
}

pub(crate) fn properties(daemon: &Daemon, name: &str) -> Outcome<Properties> {
    if name == HOST {
        return Ok(host_properties());
    }
    let m = daemon.machine(name)?;
    let pid = |process: &Process| u32::try_from(process.pid).unwrap_or(0);
    Ok(vec![
        ("Name", Variant::from(m.name.clone())),
        ("Id", Variant::from(m.id.to_vec())),
        ("Timestamp", Variant::from(m.realtime)),
        ("TimestampMonotonic", Variant::from(m.monotonic)),
        ("Service", Variant::from(m.service.clone())),
        ("Unit", Variant::from(m.unit.clone())),
        ("Scope", Variant::from(m.unit.clone())),
        ("Subgroup", Variant::from(m.subgroup.clone())),
        ("Leader", Variant::from(pid(&m.leader))),
        ("LeaderPIDFDId", Variant::from(m.leader.id)),
        ("Supervisor", Variant::from(m.supervisor.as_ref().map_or(0, pid))),
        ("SupervisorPIDFDId", Variant::from(m.supervisor.as_ref().map_or(0, |p| p.id))),
        ("Class", Variant::from(m.class.as_str())),
        ("RootDirectory", Variant::from(m.root.clone())),
        ("NetworkInterfaces", Variant::from(m.interfaces.clone())),
        ("VSockCID", Variant::from(m.vsock_cid)),
        ("SSHAddress", Variant::from(m.ssh_address.clone())),
        ("SSHPrivateKeyPath", Variant::from(m.ssh_key.clone())),
        ("State", Variant::from("running")),
        ("UID", Variant::from(m.uid)),
    ])
}

/// The host as a machine: its init, its root, its unit.
fn host_properties() -> Properties {
    let id = crate::sys::read_text(std::path::Path::new("/etc/machine-id")).unwrap_or_default();
    let id = crate::spec::MachineId::parse(id.trim()).map_or([0; 16], |id| id.0);
    vec![
        ("Name", Variant::from(HOST)),
        ("Id", Variant::from(id.to_vec())),
        ("Timestamp", Variant::from(0_u64)),
        ("TimestampMonotonic", Variant::from(0_u64)),
        ("Service", Variant::from("")),
        ("Unit", Variant::from("-.slice")),
        ("Scope", Variant::from("-.slice")),
        ("Subgroup", Variant::from("")),
        ("Leader", Variant::from(1_u32)),
        ("LeaderPIDFDId", Variant::from(Process::open(1).map_or(0, |p| p.id))),
        ("Supervisor", Variant::from(0_u32)),
        ("SupervisorPIDFDId", Variant::from(0_u64)),
        ("Class", Variant::from("host")),
        ("RootDirectory", Variant::from("/")),
        ("NetworkInterfaces", Variant::from(Vec::<i32>::new())),
        ("VSockCID", Variant::from(NO_CID)),
        ("SSHAddress", Variant::from("")),
        ("SSHPrivateKeyPath", Variant::from("")),
        ("State", Variant::from("running")),
        ("UID", Variant::from(0_u32)),
    ]
}

pub(crate) async fn call(daemon: &Arc<Daemon>, call: &Call, member: &str, name: &str) -> Outcome {
    type Text = String;
    let request = match member {
        "Terminate" => Request::Terminate,
        "Kill" => {
            let (whom, signal) = call.arguments::<(Text, i32)>()?;
            Request::Kill { whom, signal }
        }
        "GetAddresses" => Request::Addresses,
        "GetSSHInfo" => Request::SshInfo,
        "GetOSRelease" => Request::OsRelease,
        "GetUIDShift" => Request::UidShift,
        "OpenPTY" => Request::Pty,
        "OpenLogin" => Request::Login,
        "OpenShell" => {
            let (user, path, args, environment) = call.arguments::<(Text, Text, Vec<Text>, Vec<Text>)>()?;
            Request::Shell { user, path, args, environment }
        }
        "BindMount" => {
            let (source, destination, read_only, mkdir) = call.arguments::<(Text, Text, bool, bool)>()?;
            Request::Bind { source, destination, read_only, mkdir }
        }
        "CopyFrom" | "CopyTo" => {
            let (source, destination) = call.arguments::<(Text, Text)>()?;
            Request::Copy { to: member == "CopyTo", source, destination, flags: 0 }
        }
        "CopyFromWithFlags" | "CopyToWithFlags" => {
            let (source, destination, flags) = call.arguments::<(Text, Text, u64)>()?;
            Request::Copy { to: member == "CopyToWithFlags", source, destination, flags }
        }
        "OpenRootDirectory" => Request::RootDirectory,
        _ => return Err(objects::unknown_method(call)),
    };
    serve(daemon, call, name, request).await
}

/// What a request is made of: the host, or a machine.
#[derive(Debug, Clone)]
pub(crate) enum Subject {
    Host,
    Machine(Arc<Machine>),
}

impl Subject {
    pub(crate) fn find(daemon: &Daemon, name: &str) -> Outcome<Self> {
        if name == HOST { Ok(Self::Host) } else { daemon.machine(name).map(Self::Machine) }
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Host => HOST,
            Self::Machine(machine) => &machine.name,
        }
    }
}

/// Finds the machine and does what is asked.
pub(crate) async fn serve(daemon: &Arc<Daemon>, call: &Call, name: &str, request: Request) -> Outcome {
    let subject = Subject::find(daemon, name)?;
    match request {
        Request::Terminate => terminate(daemon, call, &subject).await,
        Request::Kill { whom, signal } => kill(daemon, call, &subject, &whom, signal).await,
        Request::Addresses => inspect::addresses(daemon, call, &subject).await,
        Request::SshInfo => inspect::ssh_info(call, &subject),
        Request::OsRelease => inspect::os_release(daemon, call, &subject).await,
        Request::UidShift => inspect::uid_shift(call, &subject),
        Request::RootDirectory => inspect::root_directory(daemon, call, &subject).await,
        Request::Pty => enter::pty(daemon, call, &subject).await,
        Request::Login => enter::login(daemon, call, &subject).await,
        Request::Shell { user, path, args, environment } => {
            enter::shell(daemon, call, &subject, enter::Shell { user, path, args, environment }).await
        }
        Request::Bind { source, destination, read_only, mkdir } => {
            files::bind(daemon, call, &subject, files::Bind { source, destination, read_only, mkdir }).await
        }
        Request::Copy { to, source, destination, flags } => {
            files::copy(daemon, call, &subject, files::Copy { to, source, destination, flags }).await
        }
    }
}

/// Asks polkit, and makes sure that the machine is still the same afterwards.
pub(crate) async fn authorise(
    daemon: &Arc<Daemon>,
    call: &Call,
    machine: &Arc<Machine>,
    action: &str,
    verb: &str,
) -> Outcome<()> {
    let details = [("machine", machine.name.as_str()), ("verb", verb)];
    daemon.authorise(call, &format!("org.freedesktop.machine1.{action}"), &details).await?;
    still(daemon, machine)
}

/// Refuses if the machine has gone, even if another has its name by now.
pub(crate) fn still(daemon: &Daemon, machine: &Arc<Machine>) -> Outcome<()> {
    let now = daemon.machine(&machine.name)?;
    if Arc::ptr_eq(&now, machine) { Ok(()) } else { Err(Failure::no_such_machine(&machine.name)) }
}

/// What our supervisor says of the machine, if it is one of ours.
pub(crate) fn own_state(daemon: &Daemon, machine: &Machine) -> Option<State> {
    let name = MachineName::parse(&machine.name).ok()?;
    state::read(&daemon.layout, &name).ok()?.filter(|state| state.leader == machine.leader.pid)
}

async fn terminate(daemon: &Arc<Daemon>, call: &Call, subject: &Subject) -> Outcome {
    let Subject::Machine(machine) = subject else {
        return Err(Failure::not_supported("The host is not a machine that can be terminated."));
    };
    authorise(daemon, call, machine, "manage-machines", "terminate").await?;
    match own_state(daemon, machine) {
        // Its supervisor sees the end, gives everything back and unregisters it.
        Some(state) => {
            announce(daemon, machine).await?;
            cgroup::kill_payload(&state.cgroup)?;
        }
        None => crate::daemon::core::scope::terminate(daemon, machine).await?,
    }
    call.reply(&())
}

/// Tells the supervisor of a machine of ours that somebody is about to end it.
async fn announce(daemon: &Arc<Daemon>, machine: &Machine) -> Outcome<()> {
    let name = MachineName::parse(&machine.name).map_err(Failure::failed)?;
    let layout = daemon.layout.clone();
    daemon.blocking(move || control::announce(&layout, &name)).await
}

/// Poweroff as clients of machined ask for it: a signal that only systemd knows.
const POWEROFF: i32 = 4;
/// The same for halt.
const HALT: i32 = 3;

async fn kill(daemon: &Arc<Daemon>, call: &Call, subject: &Subject, whom: &str, signal: i32) -> Outcome {
    if !["", "all", "leader", "supervisor"].contains(&whom) {
        return Err(Failure::invalid_args(format!("Invalid kill parameter '{whom}'")));
    }
    // Real-time signals too; 0 would be only a question.
    if !(1..=libc::SIGRTMAX()).contains(&signal) {
        return Err(Failure::invalid_args(format!("Invalid signal {signal}")));
    }
    let Subject::Machine(machine) = subject else {
        return Err(Failure::not_supported("The host is not a machine that can be killed."));
    };
    authorise(daemon, call, machine, "manage-machines", "kill").await?;
    let own = own_state(daemon, machine);
    if whom != "supervisor" && own.as_ref().is_some_and(|state| stop::is_end(state.init_kind, signal)) {
        announce(daemon, machine).await?;
    }
    match whom {
        "leader" => match own.as_ref().and_then(|state| translated(state, signal)) {
            Some(ask) => {
                let name = MachineName::parse(&machine.name).map_err(Failure::failed)?;
                // The answer comes when it has ended; who asked for a signal does not wait for that.
                drop(control::ask(&daemon.layout, &name, &ask)?);
            }
            None => process::pidfd_send_signal(machine.leader.pidfd(), signal)?,
        },
        "supervisor" => match &machine.supervisor {
            Some(supervisor) => process::pidfd_send_signal(supervisor.pidfd(), signal)?,
            None => return Err(Failure::errno(nix::errno::Errno::ENXIO, "The machine has no supervisor.")),
        },
        _ => match own {
            Some(state) => cgroup::signal_payload(&state.cgroup, signal)?,
            None => crate::daemon::core::scope::kill_all(daemon, machine, signal).await?,
        },
    }
    call.reply(&())
}

/// Signals to the leader that mean poweroff, halt and reboot to systemd, for an init that is something else.
fn translated(state: &State, signal: i32) -> Option<Ask> {
    if state.init_kind == Some(InitKind::Systemd) {
        return None;
    }
    let first = libc::SIGRTMIN();
    if signal == first + POWEROFF || signal == first + HALT {
        return Some(Ask::Stop { timeout: None });
    }
    (signal == Signal::SIGINT as i32).then_some(Ask::Reboot)
}
