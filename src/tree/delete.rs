//! Removes whatever is at a name of the store, whole trees with subvolumes in them included.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::AtFlags;

use crate::sys::{self, Context as _, Errno, btrfs};
use crate::tree::inode::{self, Inode};
use crate::tree::walk::{Next, Stopped, Visit, walk};

/// Removes the entry `name` of the directory `dir`, if there is one; other mounts in it make it fail.
pub fn entry(dir: &OwnedFd, name: &CStr) -> Result<(), Stopped> {
    let failed = |cause| Stopped { path: "/".into(), cause };
    if !is_filled(dir, name).map_err(failed)? {
        return Ok(());
    }
    if let Some(tree) = inode::open_dir(dir, name).map_err(failed)? {
        walk(tree, &mut Delete)?;
    }
    unlink(dir, name, AtFlags::REMOVEDIR).map(drop).map_err(failed)
}

struct Delete;

impl Visit for Delete {
    fn entry(&mut self, dir: &OwnedFd, name: &CStr) -> sys::Result<Next> {
        Ok(if is_filled(dir, name)? { Next::Enter } else { Next::Pass })
    }

    fn entered(&mut self, dir: &OwnedFd, _name: &CStr) -> sys::Result<()> {
        let stat = rustix::fs::fstat(dir).call(|| "fstat()".to_owned())?;
        if btrfs::is_subvolume(dir, &stat) { btrfs::set_read_only(dir, false) } else { Ok(()) }
    }

    fn left(&mut self, parent: &OwnedFd, name: &CStr) -> sys::Result<()> {
        unlink(parent, name, AtFlags::REMOVEDIR).map(drop)
    }
}

/// Removes an entry; `true` if it is a directory that must be emptied first.
fn is_filled(dir: &OwnedFd, name: &CStr) -> sys::Result<bool> {
    if unlink(dir, name, AtFlags::empty())? {
        return Ok(false);
    }
    // All at once, unless other subvolumes lie in it.
    let Some(inode) = Inode::open_at(dir, name)? else {
        // Gone meanwhile, or another mount is here, which the kernel answers for.
        return unlink(dir, name, AtFlags::REMOVEDIR).map(|_| false);
    };
    if !btrfs::is_subvolume(&inode, &inode.stat()?) {
        return Ok(true);
    }
    match btrfs::destroy(dir, name) {
        Ok(()) => Ok(false),
        Err(e) if e.errno == Errno::ENOTEMPTY => Ok(true),
        Err(e) => Err(e),
    }
}

/// Removes a name; `false` if it is a directory's and was to be another file's.
fn unlink(dir: &OwnedFd, name: &CStr, flags: AtFlags) -> sys::Result<bool> {
    match rustix::fs::unlinkat(dir, name, flags) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(true),
        Err(rustix::io::Errno::ISDIR) => Ok(false),
        Err(e) => Err(e).call(|| format!("unlinkat('{}')", name.to_string_lossy().escape_debug())),
    }
}
