//! Goes through an untrusted tree by descriptors, however deep it is, and never leaves it.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::inode;
use crate::sys::{Context, Errno, Error, Result};

/// Whether a directory that was visited is gone into afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Go into it, if it is a directory and no other mount covers it.
    Enter,
    /// Leave it alone.
    Pass,
}

/// What is done on a walk.
pub trait Visit {
    /// Visits the entry `name` of `dir`; all entries of a directory come before anything below them.
    fn entry(&mut self, dir: &OwnedFd, name: &CStr) -> Result<Next>;

    /// The walk has gone into the directory `dir`, called `name`; the root has no name.
    fn entered(&mut self, dir: &OwnedFd, name: &CStr) -> Result<()> {
        let _ = (dir, name);
        Ok(())
    }

    /// The walk has come back to `parent` from its directory `name`.
    fn left(&mut self, parent: &OwnedFd, name: &CStr) -> Result<()> {
        let _ = (parent, name);
        Ok(())
    }
}

/// A visit that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// Path of the file, from the root of the tree on.
    pub path: PathBuf,
    /// Why.
    pub cause: Error,
}

/// A directory between the root and where the walk is.
struct Level {
    name: CString,
    id: (u64, u64),
    /// Directories in it that are still to be entered.
    pending: Vec<CString>,
}

/// Visits everything below the open directory `dir` on its mount, holding one descriptor however deep the tree is.
pub fn walk(mut dir: OwnedFd, visitor: &mut impl Visit) -> std::result::Result<(), Stopped> {
    let mut above = Vec::new();
    enter(&dir, CString::default(), &mut above, visitor)?;
    while let Some(level) = above.last_mut() {
        if let Some(name) = level.pending.pop() {
            if let Some(next) = inode::open_dir(&dir, &name).map_err(|e| stopped(&above, &name, e))? {
                dir = next;
                enter(&dir, name, &mut above, visitor)?;
            }
            continue;
        }
        let left = level.name.clone();
        above.pop();
        if !above.is_empty() {
            dir = leave(&dir, &above).map_err(|e| stopped(&above, c"", e))?;
            visitor.left(&dir, &left).map_err(|e| stopped(&above, &left, e))?;
        }
    }
    Ok(())
}

/// Visits the entries of a directory and notes the directories among them.
fn enter(
    dir: &OwnedFd,
    name: CString,
    above: &mut Vec<Level>,
    visitor: &mut impl Visit,
) -> std::result::Result<(), Stopped> {
    let read = visitor.entered(dir, &name).and_then(|()| Ok((identify(dir)?, inode::names(dir)?)));
    let (id, entries) = read.map_err(|e| stopped(above, &name, e))?;
    above.push(Level { name, id, pending: Vec::new() });
    for entry in entries {
        let next = visitor.entry(dir, &entry).map_err(|e| stopped(above, &entry, e))?;
        if let (Next::Enter, Some(level)) = (next, above.last_mut()) {
            level.pending.push(entry);
        }
    }
    Ok(())
}

/// Goes back to the directory we came from, or nowhere.
fn leave(dir: &OwnedFd, above: &[Level]) -> Result<OwnedFd> {
    let parent = inode::open_parent(dir)?;
    let id = identify(&parent)?;
    if above.last().is_some_and(|level| level.id == id) {
        return Ok(parent);
    }
    Err(Error { call: "leaving a directory that was moved meanwhile".to_owned(), errno: Errno::ESTALE })
}

fn stopped(above: &[Level], name: &CStr, cause: Error) -> Stopped {
    let above = above.iter().map(|level| level.name.as_c_str());
    let mut path = PathBuf::from("/");
    path.extend(above.chain([name]).filter(|n| !n.is_empty()).map(|n| n.to_string_lossy().into_owned()));
    Stopped { path, cause }
}

/// Device and inode number, by which a directory is recognised.
fn identify(dir: &OwnedFd) -> Result<(u64, u64)> {
    let stat = rustix::fs::fstat(dir).call(|| "fstat()".to_owned())?;
    Ok((stat.st_dev, stat.st_ino))
}
