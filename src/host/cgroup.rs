//! [`CgroupFacts`]: where control groups are, and where we are in them.

use std::path::{Path, PathBuf};

use crate::sys::{Errno, Error, Result, read_text};

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

/// Looks for them.
pub(super) fn probe() -> Result<Option<CgroupFacts>> {
    let own = match read_text("/proc/self/cgroup") {
        Ok(text) => text,
        Err(Error { errno: Errno::ENOENT, .. }) => return Ok(None),
        Err(e) => return Err(e),
    };
    let Some(own) = own.lines().find_map(|line| line.strip_prefix("0::")) else { return Ok(None) };
    let usual = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].iter().map(PathBuf::from).find(|p| is_cgroup2(p));
    let mount = match usual {
        Some(path) => path,
        None => match mounted_cgroup2(&read_text("/proc/self/mountinfo")?) {
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
