//! [`HostFacts`]: what this host and this process can do, found once before anything is decided.
//!
//! A handful of small reads, nothing that takes privilege, so that `machinist plan` works for every user.

mod limits;

use std::path::{Path, PathBuf};

use crate::spec::{Resources, Scope};
use crate::sys::process::CAP_SYS_ADMIN;
use crate::sys::{Context as _, Errno, Error, Result, read_text};

pub use limits::LimitFacts;

/// The first kernel on which machines can be made.
const OLDEST_KERNEL: (u32, u32) = (5, 19);

/// Where control groups of version 2 are and where we are in them.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CgroupFacts {
    /// Mount point of cgroup2; on hybrid hosts it is not `/sys/fs/cgroup`.
    pub mount: PathBuf,
    /// Our own group, beginning with a slash.
    pub own: String,
    /// The unit of a service manager whose main process we are and whose groups below have been left to us
    /// (`Delegate=yes`).
    pub unit: Option<String>,
}

impl CgroupFacts {
    /// Where a group is on the host.
    pub fn path(&self, group: &str) -> PathBuf {
        self.mount.join(group.trim_start_matches('/'))
    }

    /// The group below which a machine's group is made: the one we run in, or the parent of a `supervisor`
    /// group that a service manager put us in (`DelegateSubgroup=`), or of the `.control` group where systemd runs
    /// `ExecStopPost=` of a delegated unit.
    pub fn delegated(&self) -> &str {
        let parent = self.own.strip_suffix("/supervisor").or_else(|| self.own.strip_suffix("/.control"));
        match parent {
            Some(parent) if !parent.is_empty() => parent,
            _ => &self.own,
        }
    }
}

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
    let is_init = || read("/proc/1/comm").map_or(true, |comm| comm.trim_end() == "systemd");
    Path::new("/run/systemd/system").is_dir() && is_init()
}

/// Looks at the host.
pub fn probe() -> Result<HostFacts> {
    let status = read("/proc/self/status")?;
    let uts = nix::sys::utsname::uname().call(|| "uname".into())?;
    let os_release = ["/etc/os-release", "/usr/lib/os-release"].iter().find_map(|p| read(p).ok()).unwrap_or_default();
    Ok(HostFacts {
        authority: authority(rustix::process::geteuid().is_root(), capability_line(&status, "CapEff:")),
        kernel: match std::env::var_os("MACHINIST_TEST_OLD_KERNEL") {
            // A test asks for what is done on kernels that lack the newer calls.
            Some(_) => OLDEST_KERNEL,
            None => parse_kernel_version(&uts.release().to_string_lossy()),
        },
        capabilities: capability_line(&status, "CapBnd:"),
        systemd: systemd_runs(),
        cgroup: probe_cgroup()?,
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

fn read(path: &str) -> Result<String> {
    read_text(Path::new(path))
}

fn capability_line(status: &str, key: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(key));
    value.and_then(|v| u64::from_str_radix(v.trim(), 16).ok()).unwrap_or(0)
}

fn parse_kernel_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn probe_cgroup() -> Result<Option<CgroupFacts>> {
    let own = match read("/proc/self/cgroup") {
        Ok(text) => text,
        Err(Error { errno: Errno::ENOENT, .. }) => return Ok(None),
        Err(e) => return Err(e),
    };
    let Some(own) = own.lines().find_map(|line| line.strip_prefix("0::")) else { return Ok(None) };
    let usual = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].iter().map(PathBuf::from).find(|p| is_cgroup2(p));
    let mount = match usual {
        Some(path) => path,
        None => match mounted_cgroup2(&read("/proc/self/mountinfo")?) {
            Some(path) => path,
            None => return Ok(None),
        },
    };
    let facts = CgroupFacts { mount, own: own.to_owned(), unit: None };
    // Set for what a unit executes itself, and inherited by all below that.
    let main = std::env::var("SYSTEMD_EXEC_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    let unit = if main { delegated_unit(&facts) } else { None };
    Ok(Some(CgroupFacts { unit, ..facts }))
}

/// The unit that the group left to us belongs to, if it was left to us and not only inherited.
fn delegated_unit(facts: &CgroupFacts) -> Option<String> {
    let group = facts.delegated();
    let unit = group.rsplit('/').next().filter(|name| name.ends_with(".service") || name.ends_with(".scope"))?;
    let path = facts.path(group);
    let marked = |mark: &str| {
        let mut value = [0; 8];
        rustix::fs::getxattr(&path, mark, &mut value).is_ok_and(|len| &value[..len] == b"1")
    };
    // The first can be read by every user and is the newer one (systemd 251).
    (marked("user.delegate") || marked("trusted.delegate")).then(|| unit.to_owned())
}

fn is_cgroup2(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|s| s.f_type == libc::CGROUP2_SUPER_MAGIC)
}

/// Finds the mount point of a whole cgroup2 hierarchy in the text of mountinfo.
fn mounted_cgroup2(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next()?, left.next()?);
        (right.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(point))
    })
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

    #[test]
    fn cgroup2_is_found_wherever_it_is_mounted() {
        let info = "24 1 0:22 / /sys rw - sysfs sysfs rw\n\
                    30 24 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                    31 24 0:27 /a /x rw - cgroup2 cgroup2 rw\n\
                    32 24 0:27 / /cg2 rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(mounted_cgroup2(info), Some(PathBuf::from("/cg2")));
        assert_eq!(mounted_cgroup2(""), None);
    }

    #[test]
    fn a_supervisor_group_delegates_its_parent() {
        let facts = |own: &str| CgroupFacts { mount: "/".into(), own: own.into(), unit: None };
        assert_eq!(facts("/machine.slice/m.service/supervisor").delegated(), "/machine.slice/m.service");
        assert_eq!(facts("/machine.slice/m.service/.control").delegated(), "/machine.slice/m.service");
        assert_eq!(facts("/user.slice/a.scope").delegated(), "/user.slice/a.scope");
        assert_eq!(facts("/").delegated(), "/");
        assert_eq!(facts("/supervisor").delegated(), "/supervisor");
    }
}
