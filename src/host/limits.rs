//! [`LimitFacts`]: what a host can limit, looked at only for machines that are limited.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, major, makedev, minor};

use super::cgroup::CgroupFacts;
use crate::spec::{NumberSet, Resources};
use crate::sys::file;
use crate::sys::{Context as _, read_text};

/// What a host can limit.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LimitFacts {
    /// Controllers of cgroup2 on this host.
    pub controllers: Vec<String>,
    /// Those of them that the unit was given whose main process we are.
    pub unit_controllers: Vec<String>,
    /// Tasks that this unit may have, if that is limited.
    pub unit_tasks: Option<u64>,
    /// Controllers that version 1 has, which cgroup2 therefore has not, by its names.
    pub version1: Vec<String>,
    /// Bytes of memory.
    pub memory: u64,
    /// Processors that are online.
    pub cpus: NumberSet,
    /// Memory nodes that have memory.
    pub mems: NumberSet,
    /// Sizes of huge pages in bytes.
    pub huge_pages: Vec<u64>,
    /// Major and minor number of the whole disk for each requested path, or why there is none.
    pub disks: BTreeMap<PathBuf, Result<(u32, u32), String>>,
}

impl LimitFacts {
    /// Looks at the host as far as `resources` need it.
    pub(super) fn of(resources: &Resources, cgroup: Option<&CgroupFacts>) -> Self {
        if resources.is_unset() {
            return Self::default();
        }
        let unit = cgroup.filter(|facts| facts.unit.is_some()).map(|facts| facts.path(facts.delegated()));
        let set = |path: &str| NumberSet::of_kernel(&read_text(path).unwrap_or_default());
        let mems = set("/sys/devices/system/node/has_memory");
        let disk = |path: &PathBuf| (path.clone(), disk(path));
        Self {
            controllers: cgroup.map(|facts| controllers(&facts.mount)).unwrap_or_default(),
            unit_controllers: unit.as_deref().map(controllers).unwrap_or_default(),
            unit_tasks: unit.as_deref().and_then(tasks),
            version1: version1(&read_text("/proc/self/cgroup").unwrap_or_default()),
            memory: total_memory(&read_text("/proc/meminfo").unwrap_or_default()),
            cpus: set("/sys/devices/system/cpu/online"),
            // A kernel without NUMA has one node and no directory for it.
            mems: if mems.is_empty() { NumberSet::new(vec![(0, 0)]) } else { mems },
            huge_pages: huge_pages(),
            disks: resources.io_max.iter().map(|limit| disk(&limit.device)).collect(),
        }
    }
}

/// The controllers that a group has.
pub(super) fn controllers(group: &Path) -> Vec<String> {
    let text = read_text(group.join("cgroup.controllers")).unwrap_or_default();
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

/// The tasks that a group may have, if that is limited.
pub(super) fn tasks(group: &Path) -> Option<u64> {
    read_text(group.join("pids.max")).ok()?.trim().parse().ok()
}

/// Controllers on hierarchies of version 1, in the text of `/proc/PID/cgroup`, by their names in version 2.
fn version1(text: &str) -> Vec<String> {
    let lists = text.lines().filter_map(|line| line.split(':').nth(1));
    let names = lists.flat_map(|list| list.split(',')).filter(|name| !name.is_empty() && !name.contains('='));
    names.map(|name| if name == "blkio" { "io".to_owned() } else { name.to_owned() }).collect()
}

fn total_memory(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

fn huge_pages() -> Vec<u64> {
    let entries = file::list("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let size = |name: &str| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok()?.checked_mul(1024);
    let mut sizes: Vec<u64> = entries.filter_map(|entry| size(entry.file_name().to_str()?)).collect();
    sizes.sort_unstable();
    sizes
}

/// The whole disk that a path is, or is on: only a whole disk has a queue that can be limited.
fn disk(path: &Path) -> Result<(u32, u32), String> {
    let device = device_of(path)?;
    let known = PathBuf::from(format!("/sys/dev/block/{}:{}", major(device), minor(device)));
    if !known.exists() {
        return Err("is on no disk of this host".into());
    }
    if !known.join("partition").exists() {
        return Ok((major(device), minor(device)));
    }
    let text = read_text(known.join("../dev")).map_err(|e| e.to_string())?;
    let numbers = text.trim().split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    numbers.ok_or_else(|| format!("is a partition of something with the number '{}'", text.trim().escape_debug()))
}

/// Number of the block device that a path is, or is on.
fn device_of(path: &Path) -> Result<u64, String> {
    let look = |path: &Path| rustix::fs::stat(path).call(|| "stat".into()).map_err(|e| e.errno.desc().to_owned());
    let stat = look(path)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => return Ok(stat.st_rdev),
        FileType::CharacterDevice => return Err("is a character device".into()),
        _ if major(stat.st_dev) != 0 => return Ok(stat.st_dev),
        _ => {}
    }
    // btrfs gives files numbers of its own; the table of mounts has the disk.
    let path = file::canonicalize(path).map_err(|e| e.to_string())?;
    let (kind, source) = mounted_at(&read_text("/proc/self/mountinfo").unwrap_or_default(), &path).unwrap_or_default();
    match look(Path::new(&source)) {
        Ok(stat) if source.starts_with('/') && FileType::from_raw_mode(stat.st_mode).is_block_device() => {
            Ok(makedev(major(stat.st_rdev), minor(stat.st_rdev)))
        }
        _ => Err(format!("is on a file system without a disk ({})", kind.escape_debug())),
    }
}

/// Kind and source of the file system that `path` is on, in the text of mountinfo.
fn mounted_at(mountinfo: &str, path: &Path) -> Option<(String, String)> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let point = left.split(' ').nth(4)?;
        let mut right = right.split(' ');
        path.starts_with(point).then(|| Some((point.len(), right.next()?.to_owned(), right.next()?.to_owned())))?
    });
    // Of two at the same place the later one is on top.
    mounts.max_by_key(|(len, ..)| *len).map(|(_, kind, source)| (kind, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_of_version_1_have_their_names_in_version_2() {
        let text = "9:name=systemd:/\n7:blkio:/\n2:cpu,cpuacct:/a:b\n4:memory:/x\n0::/\n";
        assert_eq!(version1(text), ["io", "cpu", "cpuacct", "memory"]);
        assert!(version1("0::/user.slice\n").is_empty());
    }

    #[test]
    fn memory_is_counted_in_bytes() {
        assert_eq!(total_memory("MemTotal:       24684044 kB\nMemFree: 1 kB\n"), 24_684_044 * 1024);
        assert_eq!(total_memory(""), 0);
    }

    #[test]
    fn a_file_is_on_the_innermost_and_topmost_mount() {
        let info = "1 0 0:20 / / rw - ext4 /dev/vda1 rw\n2 1 0:21 / /srv rw shared:1 - btrfs /dev/vdb rw\n\
                    3 2 0:22 / /srv/a rw - tmpfs none rw\n4 2 0:23 / /srv/a rw - btrfs /dev/vdc rw\n";
        let at = |path: &str| mounted_at(info, Path::new(path)).map(|(kind, source)| format!("{kind} {source}"));
        assert_eq!(at("/srv/b").as_deref(), Some("btrfs /dev/vdb"));
        assert_eq!(at("/srv/a/x").as_deref(), Some("btrfs /dev/vdc"));
        assert_eq!(at("/srvx").as_deref(), Some("ext4 /dev/vda1"));
    }

    #[test]
    fn what_is_no_disk_is_told_why() {
        let why = |path: &str| disk(Path::new(path)).expect_err(path);
        assert_eq!(why("/nonexistent"), "No such file or directory");
        assert_eq!(why("/dev/null"), "is a character device");
        assert_eq!(why("/proc/self"), "is on a file system without a disk (proc)");
    }
}
