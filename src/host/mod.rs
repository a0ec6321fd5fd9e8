//! [`HostFacts`]: what this host and this process can do, found once before anything is decided.
//!
//! A handful of small reads, nothing that takes privilege, so that `machinist plan` works for every user.

mod cgroup;
mod limits;

use std::path::Path;

use crate::spec::{Resources, Scope};
use crate::sys::process::CAP_SYS_ADMIN;
use crate::sys::{Context as _, Result, read_text};

pub use cgroup::CgroupFacts;
pub use limits::LimitFacts;

/// The first kernel on which machines can be made.
const OLDEST_KERNEL: (u32, u32) = (5, 19);

/// What this process may do to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Authority {
    /// Root with `CAP_SYS_ADMIN`: it makes machines of the system.
    Root,
    /// Anything less: it makes none.
    None,
}

impl Authority {
    /// Whether it can make machines in this scope.
    pub fn can_make_machines(self, scope: Scope) -> bool {
        self == Self::Root && scope == Scope::System
    }
}

/// What the host can do.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct HostFacts {
    /// What this process may do to it.
    pub authority: Authority,
    /// Version of the kernel.
    pub kernel: (u32, u32),
    /// Capabilities a child could have (the bounding set).
    pub capabilities: u64,
    /// systemd is this host's service manager ([`systemd_runs`]).
    pub systemd: bool,
    /// cgroup2, if it is mounted anywhere.
    pub cgroup: Option<CgroupFacts>,
    /// What it can limit; empty unless [`probe_for`] was asked.
    pub limits: LimitFacts,
    /// The host's own os-release, as shown to machines in `/run/host/os-release`.
    #[serde(skip)]
    pub os_release: String,
}

impl HostFacts {
    /// Overlay layers can be given as open files (Linux 6.13) instead of attached mounts.
    pub fn overlay_layer_fds(&self) -> bool {
        self.kernel >= (6, 13)
    }

    /// A tmpfs can be idmapped (Linux 6.3).
    pub fn tmpfs_idmap(&self) -> bool {
        self.kernel >= (6, 3)
    }

    /// Overlay accepts idmapped layers (Linux 5.19).
    pub fn overlay_idmap(&self) -> bool {
        self.kernel >= OLDEST_KERNEL
    }

    /// One value of the host's os-release, unquoted.
    pub fn os_release_value(&self, key: &str) -> Option<&str> {
        let line = self.os_release.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim_matches(['"', '\'']))
    }
}

/// Whether systemd is this host's service manager.
///
/// `sd_booted(3)` asks for the directory alone. Hosts without systemd may have it too, because `machinectl` does
/// nothing without.
pub fn systemd_runs() -> bool {
    // Where others' processes are hidden, the directory has to do.
    let is_init = || read_text("/proc/1/comm").map_or(true, |comm| comm.trim_end() == "systemd");
    Path::new("/run/systemd/system").is_dir() && is_init()
}

/// Looks at the host.
pub fn probe() -> Result<HostFacts> {
    let status = read_text("/proc/self/status")?;
    let uts = nix::sys::utsname::uname().call(|| "uname".into())?;
    let os_release =
        ["/etc/os-release", "/usr/lib/os-release"].iter().find_map(|p| read_text(p).ok()).unwrap_or_default();
    Ok(HostFacts {
        authority: authority(rustix::process::geteuid().is_root(), capability_line(&status, "CapEff:")),
        kernel: match std::env::var_os("MACHINIST_TEST_OLD_KERNEL") {
            // A test asks for what is done on kernels that lack the newer calls.
            Some(_) => OLDEST_KERNEL,
            None => parse_kernel_version(&uts.release().to_string_lossy()),
        },
        capabilities: capability_line(&status, "CapBnd:"),
        systemd: systemd_runs(),
        cgroup: cgroup::probe()?,
        limits: LimitFacts::default(),
        os_release,
    })
}

/// Looks at the host for a machine with these limits.
pub fn probe_for(resources: &Resources) -> Result<HostFacts> {
    let facts = probe()?;
    Ok(HostFacts { limits: LimitFacts::of(resources, facts.cgroup.as_ref()), ..facts })
}

/// Looks at the host for a machine that runs in the group of a unit, if it has one.
pub fn probe_beside(resources: &Resources, unit: Option<&Path>) -> Result<HostFacts> {
    let mut facts = probe_for(resources)?;
    facts.limits.unit_controllers = unit.map(limits::controllers).unwrap_or_default();
    facts.limits.unit_tasks = unit.and_then(limits::tasks);
    Ok(facts)
}

fn authority(root: bool, effective: u64) -> Authority {
    if root && effective & CAP_SYS_ADMIN != 0 { Authority::Root } else { Authority::None }
}

fn capability_line(status: &str, key: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(key));
    value.and_then(|v| u64::from_str_radix(v.trim(), 16).ok()).unwrap_or(0)
}

fn parse_kernel_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_read_from_release_strings() {
        assert_eq!(parse_kernel_version("6.18.44-fc-v669"), (6, 18));
        assert_eq!(parse_kernel_version("6.1.0-41-amd64"), (6, 1));
        assert_eq!(parse_kernel_version("7"), (7, 0));
    }
}
