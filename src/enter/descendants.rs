//! Kills a command's processes that are no longer in its control group.
//!
//! A machine may move them: on systemd, a `su -` or a login opens a session and goes into a group of that. They
//! are then known by their parent or by the session that we made for the command. What changed group, session
//! and parent is a service of the machine's own, and no longer the command's.

use std::collections::HashSet;
use std::os::fd::OwnedFd;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::sys::file;
use crate::sys::process;

/// Enough for whatever forks while we look; more would only help a machine that does it on purpose.
const ROUNDS: usize = 16;

/// What `/proc/PID/stat` shows about a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    session: i32,
    is_alive: bool,
}

/// Kills the child `leader` of ours, and all that descends from it or is of its session.
///
/// It must not have been reaped yet, so that its number means no other session.
pub(super) fn kill(leader: i32) {
    let mut killed = HashSet::new();
    for _ in 0..ROUNDS {
        let living = family(leader, &processes()).into_iter().filter(|p| p.is_alive && !killed.contains(&p.pid));
        // All at once, for a process whose parent is killed looks like another one.
        let held: Vec<(Process, OwnedFd)> = living.filter_map(|p| Some((p, hold(p)?))).collect();
        if held.is_empty() {
            return;
        }
        for (process, pidfd) in held {
            // It fails only if it has just ended.
            let _ = process::pidfd_send_signal(pidfd, Signal::SIGKILL as i32);
            killed.insert(process.pid);
        }
    }
}

/// A pidfd of a process, unless its number means another one by now.
fn hold(process: Process) -> Option<OwnedFd> {
    let pidfd = process::pidfd_open(Pid::from_raw(process.pid)).ok()?;
    (read(process.pid) == Some(process)).then_some(pidfd)
}

/// Whether the process `pid` is a child of ours.
pub(super) fn is_ours(pid: i32) -> bool {
    let us = std::process::id();
    read(pid).is_some_and(|process| u32::try_from(process.parent).is_ok_and(|parent| parent == us))
}

fn family(leader: i32, all: &[Process]) -> Vec<Process> {
    let mut members: Vec<Process> = all.iter().copied().filter(|p| p.pid == leader || p.session == leader).collect();
    let mut next = 0;
    while let Some(member) = members.get(next).copied() {
        next += 1;
        let children = all.iter().filter(|p| p.parent == member.pid);
        let new: Vec<Process> = children.filter(|p| !members.contains(p)).copied().collect();
        members.extend(new);
    }
    members
}

fn processes() -> Vec<Process> {
    let Ok(entries) = file::list("/proc") else { return Vec::new() };
    entries.filter_map(|entry| read(entry.ok()?.file_name().to_str()?.parse().ok()?)).collect()
}

fn read(pid: i32) -> Option<Process> {
    parse(pid, &file::read(format!("/proc/{pid}/stat")).ok()?)
}

/// Reads `PID (NAME) STATE PARENT GROUP SESSION …`; the name may contain anything.
fn parse(pid: i32, stat: &[u8]) -> Option<Process> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let mut words = std::str::from_utf8(&stat[end + 1..]).ok()?.split_ascii_whitespace();
    let is_alive = !matches!(words.next()?, "Z" | "X");
    let parent = words.next()?.parse().ok()?;
    let session = words.nth(1)?.parse().ok()?;
    Some(Process { pid, parent, session, is_alive })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_pretend_to_be_the_rest_of_the_line() {
        let stat = b"7 (x) Z 1 1 1 (\xff\n) S 5 6 4 0 -1";
        assert_eq!(parse(7, stat), Some(Process { pid: 7, parent: 5, session: 4, is_alive: true }));
        assert_eq!(parse(7, b"7 (x) Z 5 6 4").map(|p| p.is_alive), Some(false));
        assert_eq!(parse(7, b"7 (x) S 5"), None);
    }

    #[test]
    fn a_family_is_descendants_and_the_session_and_nobody_else() {
        let process = |pid, parent, session| Process { pid, parent, session, is_alive: true };
        let all = [
            process(1, 0, 1),
            process(10, 2, 10),
            process(11, 10, 10),
            process(12, 11, 12),
            process(13, 1, 10),
            process(14, 13, 14),
            process(15, 1, 12),
            process(2, 1, 2),
        ];
        let pids: Vec<i32> = family(10, &all).iter().map(|p| p.pid).collect();
        assert_eq!(pids, [10, 11, 13, 12, 14]);
        assert!(family(99, &all).is_empty());
    }
}
