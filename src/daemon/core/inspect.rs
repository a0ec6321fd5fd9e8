//! What can be read of a machine: addresses, release, ids, its root.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::caller::Caller;
use super::error::{Failure, Outcome};
use super::machines::{self, Subject};
use super::registry::{Class, Machine};
use super::state::Daemon;
use crate::enter::files::{self, Answer, InsideError, Request};
use crate::sys::namespace::{self, Extent, Ids, Kind};
use crate::sys::netlink::{self, Address};
use crate::sys::path::RootFd;
use crate::sys::{self, Context as _, Errno, process};
use crate::tree::metadata;
use rustix::fs::{Mode, OFlags};

/// How long a machine may take to show a file of its own.
const PATIENCE: Duration = Duration::from_secs(10);

impl From<InsideError> for Failure {
    fn from(e: InsideError) -> Self {
        Self::errno(e.errno(), &e)
    }
}

/// The machine if its namespaces can be entered.
pub(crate) fn container<'a>(machine: &'a Arc<Machine>, what: &str) -> Outcome<&'a Arc<Machine>> {
    match machine.class {
        Class::Container => Ok(machine),
        Class::Vm => Err(Failure::not_supported(format!("{what} is only supported on container machines."))),
    }
}

/// Has something done in a machine by another process, whose time is limited.
pub(crate) async fn ask(
    daemon: &Daemon,
    machine: &Machine,
    request: Request,
    limit: Option<Duration>,
) -> Outcome<(Answer, Option<OwnedFd>)> {
    let leader = Arc::clone(machine.leader.pidfd());
    Ok(daemon.blocking(move || files::ask(leader.as_ref(), &request, limit)).await??)
}

/// Its addresses.
pub(crate) async fn addresses(daemon: &Daemon, subject: &Subject) -> Outcome<Vec<Address>> {
    match subject {
        Subject::Host => Ok(daemon.blocking(|| netlink::addresses(netlink::open()?)).await??),
        Subject::Machine(machine) => {
            let machine = container(machine, "Requesting IP address data")?;
            if is_shared(machine, Kind::Net)? {
                let text = format!("Machine {} does not use private networking", machine.name);
                return Err(Failure::no_private_networking(text));
            }
            let leader = Arc::clone(machine.leader.pidfd());
            Ok(daemon.blocking(move || machine_addresses(&leader)).await??)
        }
    }
}

/// Whether the machine has no namespace of that kind.
fn is_shared(machine: &Machine, kind: Kind) -> Outcome<bool> {
    let shared = namespace::is_shared(machine.leader.pid, kind);
    check(machine)?;
    Ok(shared?)
}

/// Fails if the leader has ended, after something was read by its number.
fn check(machine: &Machine) -> Outcome {
    if machine.leader.is_alive() { Ok(()) } else { Err(Failure::leader_ended()) }
}

/// Runs in a thread of the pool, which is in the machine only to open a socket.
fn machine_addresses(leader: &OwnedFd) -> sys::Result<Vec<Address>> {
    let own = namespace::own(Kind::Net)?;
    process::setns(leader, process::ns::NET)?;
    let socket = netlink::open();
    if process::setns(&own, process::ns::NET).is_err() {
        // The thread would serve others in there. The service manager starts another, which knows all.
        process::exit_now(70);
    }
    netlink::addresses(socket?)
}

/// Where and with which key ssh reaches it.
pub(crate) fn ssh_info(subject: &Subject) -> Outcome<(String, String)> {
    match subject {
        Subject::Machine(m) if !m.ssh_address.is_empty() && !m.ssh_key.is_empty() => {
            Ok((m.ssh_address.clone(), m.ssh_key.clone()))
        }
        _ => Err(Failure::errno(Errno::ENOENT, "The machine has no SSH address.")),
    }
}

/// The variables of its os-release file.
pub(crate) async fn os_release(daemon: &Daemon, subject: &Subject) -> Outcome<BTreeMap<String, String>> {
    let variables = match subject {
        Subject::Host => daemon.blocking(|| metadata::os_release(&RootFd::open(Path::new("/"))?)).await??,
        Subject::Machine(machine) => {
            let machine = container(machine, "Requesting OS release data")?;
            match ask(daemon, machine, Request::OsRelease, Some(PATIENCE)).await? {
                (Answer::Variables(variables), _) => variables,
                _ => Vec::new(),
            }
        }
    };
    if variables.is_empty() {
        return Err(Failure::failed("Machine does not contain OS release information"));
    }
    Ok(variables.into_iter().collect())
}

/// Where its ids begin on the host.
pub(crate) fn uid_shift(subject: &Subject) -> Outcome<u32> {
    let Subject::Machine(machine) = subject else { return Ok(0) };
    if machine.class != Class::Container {
        return Err(Failure::not_supported("UID/GID shift may only be determined for container machines."));
    }
    let maps = [Ids::Users, Ids::Groups].map(|ids| id_map(machine, ids));
    let [users, groups] = maps;
    match (users?.as_slice(), groups?.as_slice()) {
        ([users @ Extent { inside: 0, .. }], [groups]) if users == groups => Ok(users.outside),
        _ => Err(Failure::not_supported(format!(
            "Machine {} uses a complex UID/GID mapping, cannot determine shift",
            machine.name
        ))),
    }
}

fn id_map(machine: &Machine, ids: Ids) -> Outcome<Vec<Extent>> {
    let map = namespace::id_map(machine.leader.pid, ids);
    check(machine)?;
    Ok(map?)
}

/// Its root directory.
pub(crate) async fn root_directory(daemon: &Daemon, caller: &Caller, subject: &Subject) -> Outcome<OwnedFd> {
    match subject {
        Subject::Host => {
            daemon.authorise(caller, MANAGE, &[("verb", "open-root-directory")]).await?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            Ok(rustix::fs::open("/", flags, Mode::empty()).call(|| "open('/')".into())?)
        }
        Subject::Machine(machine) => {
            let machine = container(machine, "Opening the root directory")?;
            machines::authorise(daemon, caller, machine, "manage-machines", "open_root_directory").await?;
            let (_, fd) = ask(daemon, machine, Request::Root, Some(PATIENCE)).await?;
            fd.ok_or_else(|| Failure::errno(Errno::EIO, "The root directory could not be opened."))
        }
    }
}

/// What polkit is asked about the host's own root.
const MANAGE: &str = "org.freedesktop.machine1.manage-machines";

/// Ids below this are the host's own, and of no machine.
pub(crate) const HOST_IDS: u32 = 0x10000;

/// What they are called in errors: the word, and the letter before `ID`.
fn words(ids: Ids) -> (&'static str, char) {
    if ids == Ids::Users { ("user", 'U') } else { ("group", 'G') }
}

fn no_mapping(ids: Ids, text: String) -> Failure {
    match ids {
        Ids::Users => Failure::no_such_user_mapping(text),
        Ids::Groups => Failure::no_such_group_mapping(text),
    }
}

/// What an id of a machine is on the host.
pub(crate) fn id_on_host(daemon: &Daemon, name: &str, ids: Ids, id: u32) -> Outcome<u32> {
    let (word, _) = words(ids);
    valid(id, word)?;
    let machine = daemon.machine(name)?;
    let outer = mapping(&machine, ids).iter().find_map(|extent| extent.outward(id));
    outer.ok_or_else(|| no_mapping(ids, format!("Machine '{name}' has no matching {word} mappings.")))
}

/// The machine that an id of the host belongs to, and what it is there.
pub(crate) fn owner_of_id(daemon: &Daemon, ids: Ids, id: u32) -> Outcome<(Arc<Machine>, u32)> {
    let (word, letter) = words(ids);
    valid(id, word)?;
    if id < HOST_IDS {
        let subject = if ids == Ids::Users { "User" } else { "Group" };
        return Err(no_mapping(ids, format!("{subject} {id} belongs to host {letter}ID range")));
    }
    let machines: Vec<Arc<Machine>> = daemon.registry().iter().cloned().collect();
    let found = machines.into_iter().find_map(|m| Some((mapping(&m, ids).iter().find_map(|e| e.inward(id))?, m)));
    let (inner, machine) = found.ok_or_else(|| no_mapping(ids, format!("No matching {word} mapping for {id}.")))?;
    Ok((machine, inner))
}

/// Refuses the two numbers that the kernel takes for "none".
fn valid(id: u32, word: &str) -> Outcome {
    if id == u32::MAX || id == 0xFFFF {
        return Err(Failure::invalid_args(format!("Invalid {word} ID {id}")));
    }
    Ok(())
}

/// The ids that are the machine's own: none if it shares the host's, or if it has ended.
fn mapping(machine: &Machine, ids: Ids) -> Vec<Extent> {
    let own = machine.class == Class::Container && matches!(is_shared(machine, Kind::User), Ok(false));
    if own { id_map(machine, ids).unwrap_or_default() } else { Vec::new() }
}
