//! What confines a running process, and what a command beside it must therefore be confined by.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use super::command::{Rights, Target};
use crate::plan::seccomp::{self, SyscallPolicy};
use crate::running::state::State;
use crate::spec::ProcessLimits;
use crate::sys::file;
use crate::sys::{self, Errno, Error};
use crate::{cgroup, host};

/// What entering needs to know of a machine, ours or another manager's.
#[derive(Debug, Clone)]
pub struct Place {
    cgroup: Option<PathBuf>,
    rights: Rights,
    user_namespace: bool,
    network_namespace: bool,
    time_namespace: bool,
    /// User id on the host of the machine's root.
    pub root: u32,
}

/// Which namespaces a process has in common with the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sharing {
    /// Ids and capabilities.
    pub user: bool,
    /// Mounts.
    pub mount: bool,
    network: bool,
    time: bool,
}

/// A process that has the host's namespaces: its first one, or ourselves where that one is out of our reach.
pub fn host_process() -> i32 {
    let own = || i32::try_from(std::process::id()).unwrap_or(1);
    if file::read_link("/proc/1/ns/user").is_ok() { 1 } else { own() }
}

impl Sharing {
    /// Looks at the process `pid`, whose pidfd the caller holds.
    ///
    /// # Errors
    /// ENOENT if it has ended.
    pub fn of_process(pid: i32) -> sys::Result<Self> {
        let host = host_process();
        let same = |name: &str| -> sys::Result<bool> {
            let link = |pid: i32| {
                let path = format!("/proc/{pid}/ns/{name}");
                file::read_link(&path)
            };
            Ok(link(pid)? == link(host)?)
        };
        // A kernel without time namespaces has one clock for all.
        let time = Path::new("/proc/self/ns/time").exists();
        Ok(Self { user: same("user")?, mount: same("mnt")?, network: same("net")?, time: !time || same("time")? })
    }
}

impl Place {
    /// One of our machines, from its supervisor's state; `None` if it is frozen, and a process that enters would wait.
    pub fn of_state(state: &State) -> sys::Result<Option<Self>> {
        if cgroup::is_frozen(&state.cgroup) {
            return Ok(None);
        }
        Ok(Some(Self {
            cgroup: Some(state.payload_group()),
            rights: state.rights(),
            user_namespace: state.ids.is_some(),
            network_namespace: state.private_network,
            time_namespace: state.own_clock,
            root: root_of(state.leader)?,
        }))
    }

    /// The machine around the process `pid`, of which nothing else is known.
    ///
    /// A command gets at most what the process may have: its bounding set, its `no_new_privs`, and our own filter
    /// if it has one, for another's cannot be read.
    pub fn of_process(pid: i32) -> sys::Result<Self> {
        let sharing = Sharing::of_process(pid)?;
        let status = sys::read_text(Path::new(&format!("/proc/{pid}/status")))?;
        let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let capabilities = field("CapBnd:").and_then(|set| u64::from_str_radix(set, 16).ok()).unwrap_or(0);
        let filter = match field("Seccomp:") {
            Some("0") | None => Vec::new(),
            Some(_) => seccomp::compile(&SyscallPolicy::default(), capabilities).into_iter().map(Into::into).collect(),
        };
        Ok(Self {
            cgroup: group_of(pid)?,
            rights: Rights {
                capabilities,
                filter,
                no_new_privileges: field("NoNewPrivs:") == Some("1"),
                limits: ProcessLimits::default(),
            },
            user_namespace: !sharing.user,
            network_namespace: !sharing.network,
            time_namespace: !sharing.time,
            root: root_of(pid)?,
        })
    }

    /// As the functions of this module want it.
    pub fn target<'a>(&'a self, leader: BorrowedFd<'a>) -> Target<'a> {
        Target {
            leader,
            cgroup: self.cgroup.as_deref(),
            rights: &self.rights,
            user_namespace: self.user_namespace,
            network_namespace: self.network_namespace,
            time_namespace: self.time_namespace,
        }
    }
}

impl State {
    /// What may be done by a command that enters the machine: what its payload may.
    pub fn rights(&self) -> Rights {
        Rights {
            capabilities: self.capabilities,
            filter: seccomp::compile(&self.seccomp, self.capabilities).into_iter().map(Into::into).collect(),
            no_new_privileges: self.no_new_privileges,
            limits: self.process_limits.clone(),
        }
    }

    /// The machine as [`enter`](crate::enter) wants it, from a pidfd of its leader and the two above.
    pub fn target<'a>(&self, leader: BorrowedFd<'a>, cgroup: &'a Path, rights: &'a Rights) -> Target<'a> {
        Target {
            leader,
            cgroup: Some(cgroup),
            rights,
            user_namespace: self.ids.is_some(),
            network_namespace: self.private_network,
            time_namespace: self.own_clock,
        }
    }
}

/// The group that holds all of a machine: systemd, as its init, has moved into one below that.
fn group_of(pid: i32) -> sys::Result<Option<PathBuf>> {
    let text = sys::read_text(Path::new(&format!("/proc/{pid}/cgroup")))?;
    let group = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    let group = group.strip_suffix("/init.scope").unwrap_or(group).trim_start_matches('/');
    if group.is_empty() {
        return Ok(None);
    }
    Ok(host::probe()?.cgroup.map(|facts| facts.mount.join(group)).filter(|path| path.is_dir()))
}

/// The host's id of the root of a process's user namespace.
fn root_of(pid: i32) -> sys::Result<u32> {
    let text = sys::read_text(Path::new(&format!("/proc/{pid}/uid_map")))?;
    let root = text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("0")).then(|| words.next()?.parse().ok())?
    });
    root.ok_or(Error { call: format!("finding root in '/proc/{pid}/uid_map'"), errno: Errno::EOVERFLOW })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_shares_everything_with_itself() {
        let all = Sharing { user: true, mount: true, network: true, time: true };
        assert_eq!(Sharing::of_process(host_process()), Ok(all));
        assert!(Sharing::of_process(i32::MAX).is_err());
    }
}
