//! The groups that a machine makes below its own: names are any bytes, and nothing says how deep or how many they are.
//!
//! Every step is one name from one descriptor: no path is joined, so that none is too long, and at most two levels
//! are open at a time, so that no depth uses up the descriptors of the supervisor.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir};

use super::files::{open_dir, read_at};
use crate::sys::{Context as _, Errno, Result};

/// A group as a name to be opened or removed.
fn as_path(name: &CString) -> &Path {
    Path::new(OsStr::from_bytes(name.as_bytes()))
}

/// Names of the groups in `dir`, as far as `enough` lets them be read.
fn children(dir: impl AsFd, enough: usize) -> Result<Vec<CString>> {
    let call = || "read a cgroup's directory".into();
    let mut names = Vec::new();
    for entry in Dir::read_from(dir).call(call)? {
        let entry = entry.call(call)?;
        let name = entry.file_name();
        if entry.file_type().is_dir() && name != c"." && name != c".." {
            names.push(name.to_owned());
            if names.len() >= enough {
                break;
            }
        }
    }
    Ok(names)
}

/// Whether a group has gone meanwhile: the machine may remove its own at any moment.
fn is_gone<T>(result: &Result<T>) -> bool {
    matches!(result, Err(e) if matches!(e.errno, Errno::ENOENT | Errno::ENODEV))
}

/// Every process in the group `top` and below, with its group's path from there.
pub(super) fn processes(top: impl AsFd) -> Result<Vec<(PathBuf, i32)>> {
    let mut found = Vec::new();
    let mut here = open_dir(top, ".")?;
    let mut path = PathBuf::new();
    // What is left to be seen at each level.
    let mut pending: Vec<Vec<CString>> = Vec::new();
    loop {
        let pids = read_at(&here, "cgroup.procs");
        let below = children(&here, usize::MAX);
        if !is_gone(&pids) && !is_gone(&below) {
            found.extend(pids?.lines().filter_map(|line| line.parse().ok()).map(|pid| (path.clone(), pid)));
            pending.push(below?);
        } else {
            pending.push(Vec::new());
        }
        // To the next group that is there: below here, or beside the nearest that has one.
        loop {
            let Some(level) = pending.last_mut() else { return Ok(found) };
            let Some(child) = level.pop() else {
                pending.pop();
                if pending.is_empty() {
                    return Ok(found);
                }
                path.pop();
                here = open_dir(&here, "..")?;
                continue;
            };
            let next = open_dir(&here, as_path(&child));
            if is_gone(&next) {
                continue;
            }
            here = next?;
            path.push(as_path(&child));
            break;
        }
    }
}

/// Removes the group `name` of `parent` and all below it, which have no processes any more.
pub(super) fn remove(parent: impl AsFd, name: &Path) -> Result<()> {
    let mut here = match open_dir(&parent, name) {
        Err(e) if e.errno == Errno::ENOENT => return Ok(()),
        dir => dir?,
    };
    let mut names: Vec<CString> = Vec::new();
    loop {
        if let Some(child) = children(&here, 1)?.pop() {
            here = open_dir(&here, as_path(&child))?;
            names.push(child);
            continue;
        }
        let Some(empty) = names.pop() else { return remove_empty(parent, name) };
        here = open_dir(&here, "..")?;
        remove_empty(&here, as_path(&empty))?;
    }
}

fn remove_empty(parent: impl AsFd, name: &Path) -> Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(e) => Err(e).call(|| format!("rmdir cgroup '{}'", name.display())),
    }
}

/// Opens the group that `path` is in, and gives its name there.
pub(super) fn parent(path: &Path) -> Result<(OwnedFd, &Path)> {
    let parent = open_dir(rustix::fs::CWD, path.parent().unwrap_or(Path::new("/")))?;
    Ok((parent, path.file_name().map_or(path, Path::new)))
}
