//! `org.freedesktop.machine1.Machine`, and the same requests by name through the manager.

use std::sync::Arc;

use zbus::wire::{Fd, Variant};

use super::call::{Answer, Call, Properties, arguments};
use crate::daemon::core::enter::Shell;
use crate::daemon::core::files::{Bind, Copy};
use crate::daemon::core::machines::{self, Subject};
use crate::daemon::core::registry::{HOST, NO_CID, Process};
use crate::daemon::core::state::Daemon;
use crate::daemon::core::{enter, files, inspect};

/// What can be asked of one machine.
#[derive(Debug)]
pub(crate) enum Request {
    Terminate,
    Kill { whom: String, signal: i32 },
    Addresses,
    SshInfo,
    OsRelease,
    UidShift,
    Pty,
    Login,
    Shell(Shell),
    Bind(Bind),
    Copy(Copy),
    RootDirectory,
}

pub(crate) fn properties(daemon: &Daemon, name: &str) -> Answer<Properties> {
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

/// Methods of a machine, or of the manager about one: `name` is none then.
pub(crate) async fn call(daemon: &Arc<Daemon>, call: &Call, member: &str, name: Option<&str>) -> Answer {
    type Text = String;
    let (name, request) = match member {
        "Kill" => {
            arguments!(call, name, whom: Text, signal: i32);
            (name, Request::Kill { whom, signal })
        }
        "OpenShell" => {
            arguments!(call, name, user: Text, path: Text, args: Vec<Text>, environment: Vec<Text>);
            (name, Request::Shell(Shell { user, path, args, environment }))
        }
        "BindMount" => {
            arguments!(call, name, source: Text, destination: Text, read_only: bool, mkdir: bool);
            (name, Request::Bind(Bind { source, destination, read_only, mkdir }))
        }
        "CopyFrom" | "CopyTo" => {
            arguments!(call, name, source: Text, destination: Text);
            (name, Request::Copy(Copy { to: member == "CopyTo", source, destination, flags: 0 }))
        }
        "CopyFromWithFlags" | "CopyToWithFlags" => {
            arguments!(call, name, source: Text, destination: Text, flags: u64);
            (name, Request::Copy(Copy { to: member == "CopyToWithFlags", source, destination, flags }))
        }
        _ => {
            let request = match member {
                "Terminate" => Request::Terminate,
                "GetAddresses" => Request::Addresses,
                "GetSSHInfo" => Request::SshInfo,
                "GetOSRelease" => Request::OsRelease,
                "GetUIDShift" => Request::UidShift,
                "OpenPTY" => Request::Pty,
                "OpenLogin" => Request::Login,
                "OpenRootDirectory" => Request::RootDirectory,
                _ => return Err(call.unknown_method()),
            };
            arguments!(call, name);
            (name, request)
        }
    };
    serve(daemon, call, &name, request).await
}

/// Finds the machine and does what is asked.
pub(crate) async fn serve(daemon: &Arc<Daemon>, call: &Call, name: &str, request: Request) -> Answer {
    let subject = &Subject::find(daemon, name)?;
    let caller = &call.caller();
    match request {
        Request::Terminate => call.reply(&machines::terminate(daemon, caller, subject).await?),
        Request::Kill { whom, signal } => call.reply(&machines::kill(daemon, caller, subject, &whom, signal).await?),
        Request::Addresses => {
            let found = inspect::addresses(daemon, subject).await?;
            call.reply(&found.into_iter().map(|a| (i32::from(a.family), a.bytes)).collect::<Vec<_>>())
        }
        Request::SshInfo => call.reply(&inspect::ssh_info(subject)?),
        Request::OsRelease => call.reply(&inspect::os_release(daemon, subject).await?),
        Request::UidShift => call.reply(&inspect::uid_shift(subject)?),
        Request::RootDirectory => call.reply(&Fd::from(inspect::root_directory(daemon, caller, subject).await?)),
        Request::Pty => terminal(call, enter::pty(daemon, caller, subject).await?),
        Request::Login => terminal(call, enter::login(daemon, caller, subject).await?),
        Request::Shell(shell) => terminal(call, enter::shell(daemon, caller, subject, shell).await?),
        Request::Bind(bind) => call.reply(&files::bind(daemon, caller, subject, bind).await?),
        Request::Copy(copy) => call.reply(&files::copy(daemon, caller, subject, copy).await?),
    }
}

fn terminal(call: &Call, opened: enter::Opened) -> Answer {
    call.reply(&(Fd::from(opened.master), opened.path))
}
