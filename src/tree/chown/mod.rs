//! Gives every file of a tree to a range of host ids, for file systems that cannot map ids in a mount.
//!
//! The low 16 bits of an id are kept and the rest is replaced, so doing it twice, to another range, or back
//! (shift 0) needs no knowledge of what was there before, and what was interrupted is simply done again. The
//! owner of the root directory shows how far a tree is: while we work its high bits are systemd-nspawn's mark
//! for an unfinished tree, and the range's own come last. So one `stat` finds a finished tree.
//!
//! The tree is hostile: it is walked by descriptors, on one mount, and never by path.

mod attributes;

use std::ffi::CStr;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use attributes::{Kept, moved};
use rustix::fs::{FileType, OFlags, Stat};

use crate::spec::{ID_RANGE_SIZE, IdRange};
use crate::sys::path::RootFd;
use crate::sys::{self, Context, Errno};
use crate::tree::inode::Inode;
use crate::tree::walk::{Next, Stopped, Visit, walk};

/// High bits of the root directory's owners while a tree is being changed; systemd-nspawn's value, so that
/// either program finishes what the other began.
const UNFINISHED: u32 = 0xFFFE_0000;

/// Keeps mode and capabilities of a file while `chown(2)` takes them away. No payload can make one: the
/// `trusted` attributes belong to the host's root.
const KEPT: &CStr = c"trusted.machinist.chown";
const CAPABILITIES: &CStr = c"security.capability";
const ACLS: [&CStr; 2] = [c"system.posix_acl_access", c"system.posix_acl_default"];

/// Permission bits that `chown(2)` takes from a regular file.
const SETID: u32 = 0o6000;

/// Why a tree does not belong to its range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChownError {
    /// Ids cannot be moved to this range without losing what they were.
    Range(IdRange),
    /// A file could not be changed.
    File {
        /// Path of the file in the tree.
        path: PathBuf,
        /// The call that failed.
        cause: sys::Error,
    },
}

impl fmt::Display for ChownError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(IdRange { shift, size }) => write!(
                f,
                "cannot give files to {size} ids from {shift} on: `ownership = \"chown\"` needs {ID_RANGE_SIZE} ids from a \
                 multiple of {ID_RANGE_SIZE} below {UNFINISHED} on"
            ),
            Self::File { path, .. } => write!(f, "cannot change the owner of '{}' in the tree", path.display()),
        }
    }
}

impl std::error::Error for ChownError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Range(_) => None,
            Self::File { cause, .. } => Some(cause),
        }
    }
}

/// Gives every file on the mount of `tree` to `range` and returns how many files it looked at; 0 means that
/// the tree was finished before.
///
/// Setuid bits, file capabilities and ACLs keep their meaning. `progress` receives the number of files done
/// after each one. The tree must not be in use.
pub fn give_to(tree: &RootFd, range: IdRange, progress: &mut dyn FnMut(u64)) -> Result<u64, ChownError> {
    let shift = range.shift;
    if range.size != ID_RANGE_SIZE || !shift.is_multiple_of(ID_RANGE_SIZE) || shift >= UNFINISHED {
        return Err(ChownError::Range(range));
    }
    let mut giver = Giver { shift, names: Vec::new(), done: 0, progress };
    let failed = |cause| ChownError::File { path: PathBuf::from("/"), cause };
    let stat = rustix::fs::fstat(tree).call(|| "fstat()".to_owned()).map_err(failed)?;
    if has_high_bits(&stat, shift) {
        return Ok(0);
    }
    let dir = tree.open_plain("", OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
    let root = Inode::open_at(&dir, c".").map_err(failed)?;
    let root = root.ok_or(sys::Error { call: "openat2('.')".to_owned(), errno: Errno::ENOENT }).map_err(failed)?;
    root.set_owner(moved(stat.st_uid, UNFINISHED), moved(stat.st_gid, UNFINISHED)).map_err(failed)?;
    walk(dir, &mut giver).map_err(|Stopped { path, cause }| ChownError::File { path, cause })?;
    giver.give(&root).map_err(failed)?;
    Ok(giver.done)
}

fn has_high_bits(stat: &Stat, shift: u32) -> bool {
    (moved(stat.st_uid, shift), moved(stat.st_gid, shift)) == (stat.st_uid, stat.st_gid)
}

struct Giver<'a> {
    shift: u32,
    /// Space for the names of attributes.
    names: Vec<u8>,
    done: u64,
    progress: &'a mut dyn FnMut(u64),
}

impl Visit for Giver<'_> {
    fn entry(&mut self, dir: &OwnedFd, name: &CStr) -> sys::Result<Next> {
        let given = Inode::open_at(dir, name)?.map(|inode| self.give(&inode)).transpose()?;
        Ok(if given == Some(FileType::Directory) { Next::Enter } else { Next::Pass })
    }
}

impl Giver<'_> {
    /// Gives one file away. Wherever this is interrupted, doing it again completes it.
    fn give(&mut self, inode: &Inode) -> sys::Result<FileType> {
        let stat = inode.stat()?;
        inode.attribute_names(&mut self.names)?;
        self.move_acls(inode)?;
        let kept = self.keep(inode, &stat)?;
        if !has_high_bits(&stat, self.shift) {
            inode.set_owner(moved(stat.st_uid, self.shift), moved(stat.st_gid, self.shift))?;
        }
        if let Some(kept) = kept {
            inode.set_mode(kept.mode)?;
            if let Some(capabilities) = &kept.capabilities {
                inode.set_attribute(CAPABILITIES, capabilities)?;
            }
            inode.remove_attribute(KEPT)?;
        }
        self.done += 1;
        (self.progress)(self.done);
        Ok(FileType::from_raw_mode(stat.st_mode))
    }

    fn move_acls(&self, inode: &Inode) -> sys::Result<()> {
        for name in ACLS.into_iter().filter(|name| self.has_attribute(name)) {
            let old = inode.attribute(name)?;
            let new = attributes::move_acl(&old, self.shift).ok_or_else(|| unknown_form(name))?;
            if new != old {
                inode.set_attribute(name, &new)?;
            }
        }
        Ok(())
    }

    /// What this file must be given back after its change of owner, with capabilities for its new owner; by
    /// then it is safe in an attribute of the file.
    fn keep(&self, inode: &Inode, stat: &Stat) -> sys::Result<Option<Kept>> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        let mut kept = Kept { mode: stat.st_mode & 0o7777, capabilities: None };
        if self.has_attribute(CAPABILITIES) {
            kept.capabilities = Some(inode.attribute(CAPABILITIES)?);
        }
        let mut interrupted = false;
        if self.has_attribute(KEPT)
            && let Some(earlier) = Kept::decode(&inode.attribute(KEPT)?)
        {
            (kept, interrupted) = (earlier, true);
        }
        let capabilities = match &kept.capabilities {
            Some(old) => {
                Some(attributes::move_capabilities(old, self.shift).ok_or_else(|| unknown_form(CAPABILITIES))?)
            }
            None => None,
        };
        let complete = has_high_bits(stat, self.shift) && capabilities == kept.capabilities;
        kept.capabilities = capabilities;
        let nothing_to_lose = kept.mode & SETID == 0 && kept.capabilities.is_none();
        if !interrupted && (complete || nothing_to_lose) {
            return Ok(None);
        }
        match inode.set_attribute(KEPT, &kept.encode()) {
            // Without the attribute, as on some file systems or without the host's rights, only a kill in the
            // next few microseconds could lose the bits.
            Ok(_) => Ok(Some(kept)),
            Err(e) if e.errno == Errno::EPERM => Ok(Some(kept)),
            Err(e) => Err(e),
        }
    }

    fn has_attribute(&self, name: &CStr) -> bool {
        self.names.split(|byte| *byte == 0).any(|found| found == name.to_bytes())
    }
}

fn unknown_form(attribute: &CStr) -> sys::Error {
    sys::Error { call: format!("reading the value of {}", attribute.to_string_lossy()), errno: Errno::EBADMSG }
}

#[cfg(test)]
mod tests;
