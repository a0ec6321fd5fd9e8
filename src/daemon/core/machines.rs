//! Running machines: found, ended and signalled.

use std::sync::Arc;

use nix::sys::signal::Signal;

use super::caller::Caller;
use super::error::{Failure, Outcome};
use super::registry::{HOST, Machine};
use super::scope;
use super::state::Daemon;
use crate::cgroup;
use crate::running::control::{self, Request as Ask};
use crate::running::state::{self, State};
use crate::running::stop;
use crate::spec::{InitKind, MachineName};
use crate::sys::{Errno, process};

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

/// The machine that a process belongs to; 0 is the caller's.
pub(crate) async fn of_process(daemon: &Daemon, caller: &Caller, pid: u32) -> Outcome<Arc<Machine>> {
    let pid = number(daemon, caller, pid).await?;
    let machine = daemon.registry().of_process(pid).cloned();
    machine.ok_or_else(|| Failure::no_machine_for_pid(format!("PID {pid} does not belong to any known machine")))
}

/// A number of a process as callers give it; 0 is the caller's.
pub(crate) async fn number(daemon: &Daemon, caller: &Caller, pid: u32) -> Outcome<i32> {
    match i32::try_from(pid) {
        Ok(0) => daemon.process_of(caller).await,
        Ok(pid) => Ok(pid),
        Err(_) => Err(Failure::invalid_args(format!("Invalid PID {pid}"))),
    }
}

/// Asks polkit, and makes sure that the machine is still the same afterwards.
pub(crate) async fn authorise(
    daemon: &Daemon,
    caller: &Caller,
    machine: &Arc<Machine>,
    action: &str,
    verb: &str,
) -> Outcome {
    let details = [("machine", machine.name.as_str()), ("verb", verb)];
    daemon.authorise(caller, &format!("org.freedesktop.machine1.{action}"), &details).await?;
    still(daemon, machine)
}

/// Refuses if the machine has gone, even if another has its name by now.
pub(crate) fn still(daemon: &Daemon, machine: &Arc<Machine>) -> Outcome {
    let now = daemon.machine(&machine.name)?;
    if Arc::ptr_eq(&now, machine) { Ok(()) } else { Err(Failure::no_such_machine(&machine.name)) }
}

/// What our supervisor says of the machine, if it is one of ours.
pub(crate) fn own_state(daemon: &Daemon, machine: &Machine) -> Option<State> {
    let name = MachineName::parse(&machine.name).ok()?;
    state::read(&daemon.layout, &name).ok()?.filter(|state| state.leader == machine.leader.pid)
}

/// Ends a machine at once.
pub(crate) async fn terminate(daemon: &Daemon, caller: &Caller, subject: &Subject) -> Outcome {
    let Subject::Machine(machine) = subject else {
        return Err(Failure::not_supported("The host is not a machine that can be terminated."));
    };
    authorise(daemon, caller, machine, "manage-machines", "terminate").await?;
    match own_state(daemon, machine) {
        // Its supervisor sees the end, gives everything back and unregisters it.
        Some(state) => {
            announce(daemon, machine).await?;
            cgroup::kill_payload(&state.cgroup)?;
        }
        None => scope::terminate(daemon, machine).await?,
    }
    Ok(())
}

/// Announces to the supervisor of a machine of ours that the machine is about to be ended.
async fn announce(daemon: &Daemon, machine: &Machine) -> Outcome {
    let name = MachineName::parse(&machine.name).map_err(Failure::failed)?;
    let layout = daemon.layout.clone();
    daemon.blocking(move || control::announce(&layout, &name)).await
}

/// Poweroff as clients of machined ask for it: a signal that only systemd knows.
const POWEROFF: i32 = 4;
/// The same for halt.
const HALT: i32 = 3;

/// Signals a machine: all of it, its leader or its supervisor.
pub(crate) async fn kill(daemon: &Daemon, caller: &Caller, subject: &Subject, whom: &str, signal: i32) -> Outcome {
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
    authorise(daemon, caller, machine, "manage-machines", "kill").await?;
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
            None => return Err(Failure::errno(Errno::ENXIO, "The machine has no supervisor.")),
        },
        _ => match own {
            Some(state) => cgroup::signal_payload(&state.cgroup, signal)?,
            None => scope::kill_all(daemon, machine, signal).await?,
        },
    }
    Ok(())
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
