//! Writes limits into the files of a machine's payload group, and reads back what holds.
//!
//! The library for control groups does it where it has a method that writes what version 2 understands. It opens
//! files as if it might have to make them, so a missing one is looked for first.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::path::Path;

use cgroups_rs::fs::blkio::BlkIoController;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuset::CpuSetController;
use cgroups_rs::fs::error::Error as LibraryError;
use cgroups_rs::fs::hugetlb::HugeTlbController;
use cgroups_rs::fs::memory::{MemController, SetMemory};
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{MaxValue, parse_max_value};
use serde_json::{Map, Value};

use super::files::{open_dir, read_at, write_at};
use crate::plan::limits::Limit;
use crate::spec::{NumberSet, ResourceKey};
use crate::sys::{Errno, Error, Result};

/// A limit that could not be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitError {
    /// The key it is for.
    pub key: ResourceKey,
    /// What was tried.
    pub cause: Error,
}

impl LimitError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match (self.cause.errno, self.key) {
            (Errno::ENOENT, ResourceKey::SwapMax) => {
                Some("the kernel does not count swap; boot it with `swapaccount=1`, or leave `swap-max` out")
            }
            (Errno::ENOENT, ResourceKey::IoWeight) => {
                Some("the kernel has no `iocost`, and no disk has the scheduler `bfq`; name the key in `optional`")
            }
            (Errno::ENOENT, _) => Some("the kernel has no such limit; name the key in `resources.optional`"),
            (Errno::EBUSY, _) => Some(
                "a group above holds processes, and so cannot hand controllers on; name another with `[cgroup] parent`",
            ),
            (Errno::EACCES | Errno::EPERM | Errno::EROFS, _) => {
                Some("the groups above are not ours to change; name one that is with `[cgroup] parent`")
            }
            (Errno::EINVAL, ResourceKey::CpuMax | ResourceKey::CpuWeight) => {
                Some("the kernel gives no processor time to groups while processes of its real time class run there")
            }
            _ => None,
        }
    }
}

/// Has every group from the top of `mount` down to the one at `path` hand on what `limits` need.
///
/// Only for groups that no service manager looks after. [`set`] reports an optional limit that cannot be had that way.
pub fn hand_down(mount: &Path, path: &Path, limits: &[Limit]) -> std::result::Result<(), LimitError> {
    let below = path.strip_prefix(mount).unwrap_or(Path::new(""));
    let mut groups: Vec<&Path> = below.ancestors().collect();
    groups.reverse();
    let mut done: BTreeSet<&str> = BTreeSet::new();
    let needed = limits.iter().filter(|limit| !limit.optional);
    for limit in needed.chain(limits.iter().filter(|limit| limit.optional)) {
        let controller = limit.key.controller();
        if !done.insert(controller) {
            continue;
        }
        match groups.iter().try_for_each(|group| hand_on(&mount.join(group), controller)) {
            Err(cause) if !limit.optional => return Err(LimitError { key: limit.key, cause }),
            _ => {}
        }
    }
    Ok(())
}

/// Has one group give a controller to those below it.
fn hand_on(group: &Path, controller: &str) -> Result<()> {
    let dir = open_dir(rustix::fs::CWD, group)?;
    let has = |text: &str| text.split_ascii_whitespace().any(|name| name == controller);
    if has(&read_at(&dir, "cgroup.subtree_control")?) {
        return Ok(());
    }
    write_at(&dir, "cgroup.subtree_control", &format!("+{controller}")).map_err(|e| Error {
        call: format!("write '+{controller}' to '{}'", group.join("cgroup.subtree_control").display()),
        ..e
    })
}

/// Sets one limit of the payload's group of the machine at `machine`.
pub fn set(machine: &Path, limit: &Limit) -> std::result::Result<(), LimitError> {
    write(&machine.join("payload"), limit).map_err(|cause| LimitError { key: limit.key, cause })
}

fn write(group: &Path, limit: &Limit) -> Result<()> {
    let Limit { key, file, value, .. } = limit;
    let at = group.join(file);
    let call = || format!("write '{}' to '{}'", value.escape_debug(), at.display());
    if *key == ResourceKey::IoWeight {
        return write_io_weight(group, value);
    }
    if !at.exists() {
        return Err(Error { call: call(), errno: Errno::ENOENT });
    }
    let new = || (group.to_owned(), group.to_owned(), true);
    let max = parse_max_value(value).unwrap_or(MaxValue::Max);
    let number = if let MaxValue::Value(number) = max { number } else { -1 };
    let done = match key {
        ResourceKey::MemoryMax => memory(new()).set_mem(SetMemory { max: Some(max), ..no_memory() }),
        ResourceKey::MemoryHigh => memory(new()).set_mem(SetMemory { high: Some(max), ..no_memory() }),
        ResourceKey::SwapMax => memory(new()).set_memswap_limit(number),
        ResourceKey::PidsMax => pids(new()).set_pid_max(max),
        ResourceKey::CpuMax => {
            let (quota, period) = value.split_once(' ').unwrap_or((value, "100000"));
            cpu(new()).set_cfs_quota_and_period(Some(quota.parse().unwrap_or(-1)), period.parse().ok())
        }
        ResourceKey::CpuWeight if file == "cpu.weight" => {
            // A group that is idle has no weight to change.
            own_write(group, "cpu.idle", "0")?;
            cpu(new()).set_shares(value.parse().unwrap_or(100))
        }
        ResourceKey::Cpus => cpuset(new()).set_cpus(value),
        ResourceKey::Mems => cpuset(new()).set_mems(value),
        ResourceKey::Hugetlb if number >= 0 => {
            let size = file.trim_start_matches("hugetlb.").trim_end_matches(".max");
            huge(new()).set_limit_in_bytes(size, number.unsigned_abs())
        }
        // The library has no method, or one for single numbers where the kernel takes a whole line at once.
        _ => return own_write(group, file, value),
    };
    done.map_err(|e| Error { call: call(), errno: errno(&e) })?;
    match key {
        ResourceKey::Cpus => check_effective(group, "cpuset.cpus.effective", value),
        ResourceKey::Mems => check_effective(group, "cpuset.mems.effective", value),
        _ => Ok(()),
    }
}

type New = (std::path::PathBuf, std::path::PathBuf, bool);

fn memory((point, root, v2): New) -> MemController {
    MemController::new(point, root, v2)
}

fn no_memory() -> SetMemory {
    SetMemory { low: None, high: None, min: None, max: None }
}

fn cpu((point, root, v2): New) -> CpuController {
    CpuController::new(point, root, v2)
}

fn cpuset((point, root, v2): New) -> CpuSetController {
    CpuSetController::new(point, root, v2)
}

fn pids((point, root, v2): New) -> PidController {
    PidController::new(point, root, v2)
}

fn huge((point, root, v2): New) -> HugeTlbController {
    HugeTlbController::new(point, root, v2)
}

fn own_write(group: &Path, file: &str, value: &str) -> Result<()> {
    write_at(open_dir(rustix::fs::CWD, group)?, file, value).map_err(|e| Error {
        call: format!("write '{}' to '{}'", value.escape_debug(), group.join(file).display()),
        ..e
    })
}

/// The weight for whichever of the two that know weights is there: `iocost`, and the scheduler `bfq`.
fn write_io_weight(group: &Path, value: &str) -> Result<()> {
    let bfq = group.join("io.bfq.weight").exists();
    match own_write(group, "io.weight", value) {
        Err(e) if e.errno == Errno::ENOENT && bfq => {}
        other => other?,
    }
    if bfq {
        let weight = BlkIoController::new(group.to_owned(), group.to_owned(), true)
            .set_weight(bfq_weight(value.parse().unwrap_or(100)));
        let call = || format!("write '{value}' to '{}'", group.join("io.bfq.weight").display());
        weight.map_err(|e| Error { call: call(), errno: errno(&e) })?;
    }
    Ok(())
}

/// A weight from 1 to 10000 on the scale of `bfq`, which ends at 1000; 100 is what others have on both.
fn bfq_weight(weight: u64) -> u64 {
    if weight <= 100 { weight } else { 100 + (weight - 100) * 900 / 9900 }
}

/// The kernel passes silently over processors and nodes that the groups above do not have.
fn check_effective(group: &Path, file: &str, wanted: &str) -> Result<()> {
    let there = NumberSet::of_kernel(&read_at(open_dir(rustix::fs::CWD, group)?, file)?);
    let missing = NumberSet::of_kernel(wanted).without(&there);
    if missing.is_empty() {
        return Ok(());
    }
    let call = format!("'{}' is '{there}', without {missing}", group.join(file).display());
    Err(Error { call, errno: Errno::ERANGE })
}

/// The kernel's answer in an error of the library.
fn errno(error: &LibraryError) -> Errno {
    let mut next = error.source();
    while let Some(cause) = next {
        if let Some(number) = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) {
            return Errno::from_raw(number);
        }
        next = cause.source();
    }
    Errno::EIO
}

/// Sets one set of limits after another; what has been changed is undone when one fails.
///
/// # Errors
/// The first limit that could not be set and is not optional.
pub fn change(machine: &Path, old: &[Limit], new: &[Limit]) -> std::result::Result<(), LimitError> {
    let mut done: Vec<Limit> = Vec::new();
    for (limit, before) in crate::plan::limits::change(old, new) {
        match set(machine, &limit) {
            Ok(()) => done.push(before),
            Err(_) if limit.optional => {}
            Err(error) => {
                for before in done.iter().rev() {
                    // Its first failure is what the user needs.
                    let _ = set(machine, before);
                }
                return Err(error);
            }
        }
    }
    Ok(())
}

/// What holds for the payload of the machine at `machine`, of the limits that were set, in the kernel's format.
pub fn in_force(machine: &Path, limits: &[Limit]) -> Value {
    let Ok(dir) = open_dir(rustix::fs::CWD, machine.join("payload")) else { return Value::Object(Map::new()) };
    let read = |limit: &Limit| {
        let file = if limit.key == ResourceKey::IoWeight && read_at(&dir, "io.weight").is_err() {
            "io.bfq.weight"
        } else {
            limit.file.as_str()
        };
        let text = read_at(&dir, file).ok()?;
        let text = text.trim();
        let number = match limit.key {
            // A list, even where it has one element.
            ResourceKey::Cpus | ResourceKey::Mems => None,
            _ => text.parse::<u64>().ok(),
        };
        let value = number.map_or_else(|| Value::from(text.replace('\n', "; ")), Value::from);
        let name = match limit.key {
            ResourceKey::Hugetlb => limit.file.trim_end_matches(".max").to_owned(),
            key => key.to_string(),
        };
        Some((name, value))
    };
    Value::Object(limits.iter().filter_map(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_bfq_end_at_a_thousand() {
        assert_eq!([1, 100, 200, 5050, 10_000].map(bfq_weight), [1, 100, 109, 550, 1000]);
    }

    #[test]
    fn the_kernels_answer_is_found_in_an_error_of_the_library() {
        let nowhere = Path::new("/nonexistent/group");
        let error =
            pids((nowhere.to_owned(), nowhere.to_owned(), true)).set_pid_max(MaxValue::Max).expect_err("nowhere");
        assert_eq!(errno(&error), Errno::ENOENT);
    }

    #[test]
    fn a_file_that_is_not_there_is_not_made() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir(dir.path().join("payload")).expect("mkdir");
        let limit = |key, file: &str| Limit { key, file: file.into(), value: "10".into(), optional: false };
        for (key, file) in [
            (ResourceKey::MemoryMax, "memory.max"),
            (ResourceKey::SwapMax, "memory.swap.max"),
            (ResourceKey::IoWeight, "io.weight"),
            (ResourceKey::CpuWeight, "cpu.weight"),
            (ResourceKey::IoMax, "io.max"),
        ] {
            let error = set(dir.path(), &limit(key, file)).expect_err(file);
            assert_eq!((error.key, error.cause.errno), (key, Errno::ENOENT));
            assert!(error.cause.call.contains("payload/") && error.cause.call.contains("'10'"), "{}", error.cause);
        }
        assert_eq!(std::fs::read_dir(dir.path().join("payload")).expect("list").count(), 0);
    }
}
