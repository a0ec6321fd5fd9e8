//! Units of the host's systemd for machines that are not ours, and what is done instead where there is no systemd.
//!
//! `CreateMachine` puts the leader into a scope of its own and answers when systemd is done with that, so that the
//! caller finds the leader in its control group. The scope is held (`AddRef`) as long as the machine is known: its
//! result can be looked at until then.

use std::sync::Arc;
use std::time::Duration;

use zbus::wire::{Fd, OwnedVariant, Variant};

use super::error::{Failure, Outcome};
use super::registry::{Class, Machine, Process, group_of};
use super::state::{Daemon, lock};
use crate::bus::systemd1::{Manager, TASKS_MAX};
use crate::spec::scope_unit;
use crate::sys::file;
use crate::sys::{Errno, process};

/// How long systemd may take for the job of a scope. It has limits of its own; this is for one that hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Properties of a unit as callers of `CreateMachine` give them, which only systemd understands.
#[derive(Debug, Default)]
pub(crate) struct UnitProperties(pub(crate) Vec<(String, OwnedVariant)>);

/// The host's systemd, if there is one; we may own its name ourselves where there is none.
async fn systemd(daemon: &Daemon) -> Option<Manager<'_>> {
    // Not where we stand in for it ourselves.
    if daemon.stands_in() {
        return None;
    }
    let systemd = Manager::on(&daemon.connection);
    let owner = systemd.owner().await.ok().flatten()?;
    daemon.connection.unique_name().is_none_or(|own| own.as_str() != owner).then_some(systemd)
}

/// Puts a leader into a scope of its own; without systemd on the host it stays where it is.
///
/// `properties` are the caller's and come last, so that they win. The answer comes when the job is done.
pub(crate) async fn create(
    daemon: &Daemon,
    name: &str,
    class: Class,
    leader: &Process,
    properties: UnitProperties,
) -> Outcome {
    let Some(systemd) = systemd(daemon).await else { return Ok(()) };
    let unit = scope_unit(name);
    let mut jobs = systemd.jobs(Some(&unit)).await?;
    let kind = match class {
        Class::Container => "Container",
        Class::Vm => "Virtual Machine",
    };
    let pid = u32::try_from(leader.pid).unwrap_or(0);
    let held = Variant::from(vec![Fd::from(std::os::fd::AsFd::as_fd(leader.pidfd()))]);
    let by_number = Variant::from(vec![pid]);
    let mut result = Err(Failure::failed("nothing was tried"));
    // Before 254 a scope takes numbers only.
    for process in [("PIDFDs", held), ("PIDs", by_number)] {
        let mut all: Vec<(&str, Variant<'_>)> = vec![
            ("Slice", "machine.slice".into()),
            ("Description", format!("{kind} {name}").into()),
            process,
            ("Delegate", true.into()),
            ("CollectMode", "inactive-or-failed".into()),
            ("AddRef", true.into()),
            ("TasksMax", TASKS_MAX.into()),
        ];
        for (key, value) in &properties.0 {
            all.push((key, (**value).try_clone().map_err(Failure::invalid_args)?));
        }
        result = systemd.start_transient(&unit, &all).await.map_err(Failure::from);
        if result.is_ok() {
            break;
        }
    }
    let job = result?;
    lock(&daemon.units).insert(unit.clone());
    let waiting = daemon.runtime.timeout(PATIENCE, jobs.end_of(&job)).await;
    let outcome = waiting.ok().and_then(Result::ok).unwrap_or_else(|| "timeout".to_owned());
    if outcome == "done" {
        return Ok(());
    }
    release(daemon, &unit).await;
    Err(Failure::job_failed(format!("Cannot put the machine into unit '{unit}': its job ended as '{outcome}'.")))
}

/// Lets go of a unit that we made.
async fn release(daemon: &Daemon, unit: &str) {
    if lock(&daemon.units).remove(unit) {
        // It may be gone, and systemd forgets what a connection holds that ends.
        let _ = Manager::on(&daemon.connection).call("UnrefUnit", &unit).await;
    }
}

/// The machine is no longer known; if its leader has ended, so does what is left in the scope that we made for it.
pub(crate) async fn forget(daemon: &Daemon, machine: &Machine) {
    let made = lock(&daemon.units).contains(&machine.unit);
    if made && !machine.leader.is_alive() {
        let _ = Manager::on(&daemon.connection).call("StopUnit", &(&machine.unit, "fail")).await;
    }
    release(daemon, &machine.unit).await;
}

/// Ends a machine at once: its unit if it has one to itself, else its supervisor or its leader.
pub(crate) async fn terminate(daemon: &Daemon, machine: &Machine) -> Outcome {
    if !machine.unit.is_empty()
        && let Some(systemd) = systemd(daemon).await
    {
        if machine.subgroup.is_empty() {
            systemd.call("StopUnit", &(&machine.unit, "fail")).await?;
            return Ok(());
        }
        if let Some(supervisor) = &machine.supervisor {
            return Ok(process::pidfd_send_signal(supervisor.pidfd(), libc::SIGTERM)?);
        }
    }
    // The end of the first process of a PID namespace is the end of all.
    Ok(process::pidfd_send_signal(machine.leader.pidfd(), libc::SIGKILL)?)
}

/// Signals every process of a machine: of its unit, of its PID namespace, or of its control group.
pub(crate) async fn kill_all(daemon: &Daemon, machine: &Arc<Machine>, signal: i32) -> Outcome {
    if !machine.unit.is_empty()
        && machine.subgroup.is_empty()
        && let Some(systemd) = systemd(daemon).await
    {
        systemd.call("KillUnit", &(&machine.unit, "all", signal)).await?;
        return Ok(());
    }
    let machine = Arc::clone(machine);
    daemon.blocking(move || signal_members(&machine, signal)).await?
}

/// The same without systemd.
fn signal_members(machine: &Machine, signal: i32) -> Outcome {
    let leader = machine.leader.pid;
    let theirs = process::pid_namespace(leader)?;
    let separate = process::pid_namespace(std::process::id().cast_signed())? != theirs;
    // A group that others are in too says nothing of the machine.
    let own = group_of(std::process::id().cast_signed());
    let supervisor = machine.supervisor.as_ref().and_then(|s| group_of(s.pid));
    let shared = [own, supervisor].into_iter().flatten().any(|group| is_below(&group, &machine.group));
    if !separate && (machine.group.len() <= 1 || shared) {
        return Ok(process::pidfd_send_signal(machine.leader.pidfd(), signal)?);
    }
    let entries = file::list("/proc").map_err(Failure::failed)?;
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    for pid in pids.filter(|pid| *pid != leader) {
        // Held before it is looked at: what is signalled is what was looked at, or nothing.
        let Ok(held) = Process::open(pid) else { continue };
        let member = if separate {
            process::is_in_pid_namespace(pid, &theirs)
        } else {
            group_of(pid).is_some_and(|group| is_below(&group, &machine.group))
        };
        if member {
            match process::pidfd_send_signal(held.pidfd(), signal) {
                Err(e) if e.errno != Errno::ESRCH => return Err(e.into()),
                _ => {}
            }
        }
    }
    // Last: with it, all others of its namespace would end unasked.
    match process::pidfd_send_signal(machine.leader.pidfd(), signal) {
        Err(e) if e.errno != Errno::ESRCH => Err(e.into()),
        _ => Ok(()),
    }
}

fn is_below(group: &str, parent: &str) -> bool {
    group.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_below_itself_and_its_parents() {
        assert!(is_below("/a/b", "/a/b") && is_below("/a/b/c", "/a/b"));
        assert!(!is_below("/a/bc", "/a/b") && !is_below("/a", "/a/b"));
    }
}
