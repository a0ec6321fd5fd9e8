//! The locks on images, shared with systemd's tools.
//!
//! An image has two: a file beside it, which other hosts that share the file system see, and one in `/run` named by
//! device and inode number, which holds whatever path led there. A process that writes to an image or changes it as a
//! whole holds both exclusively; one that only reads shares both. The kernel frees them with their last descriptor.

use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::entry::Image;
use super::error::ImageError;
use crate::spec::Layout;
use crate::sys::lock::{Hold, LockFile, find_holder};
use crate::sys::{self, Context as _, Errno};

/// Whether the lock beside a tree is wanted, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// The tree is or may be an image.
    Yes,
    /// The tree is a directory like any other, in which no file is to appear beside it.
    No,
}

/// A lock that another process holds in a way that excludes the requested one.
#[derive(Debug)]
pub struct Busy(PathBuf);

impl Busy {
    /// The process that holds it, as in "process 4711, systemd-nspawn", when it can be seen.
    pub fn holder(&self) -> Option<String> {
        find_holder([self.0.clone()])
    }
}

/// The locks of one image, until dropped.
#[derive(Debug)]
pub struct ImageLock {
    locks: Vec<LockFile>,
}

impl ImageLock {
    /// Locks the open file or directory `fd` that is at `path`.
    ///
    /// The root of the host has no lock beside it, and a block device needs none.
    pub fn try_take(
        layout: &Layout,
        path: &Path,
        fd: impl AsFd,
        hold: Hold,
        beside: Beside,
    ) -> sys::Result<Result<Self, Busy>> {
        let stat = rustix::fs::fstat(fd).call(|| format!("fstat('{}')", path.display()))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut locks = Vec::new();
        // In systemd's order.
        if beside == Beside::Yes
            && !kind.is_block_device()
            && let Some(file) = Layout::lock_beside(path)
        {
            match LockFile::try_take_as(&file, hold) {
                Ok(Some(lock)) => locks.push(lock),
                Ok(None) => return Ok(Err(Busy(file))),
                // Who shares this file system can change it as little as we can.
                Err(e) if e.errno == Errno::EROFS => {}
                Err(e) => return Err(e),
            }
        }
        let file = match kind {
            FileType::BlockDevice => {
                layout.device_lock(rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev))
            }
            _ => layout.inode_lock(stat.st_dev, stat.st_ino),
        };
        let Some(lock) = take_in_run(layout, &file, hold)? else { return Ok(Err(Busy(file))) };
        locks.push(lock);
        Ok(Ok(Self { locks }))
    }

    /// Locks an image for reading in it.
    pub(super) fn shared(layout: &Layout, image: &Image) -> Result<Self, ImageError> {
        Self::take(layout, image, Hold::Shared)
    }

    /// Locks an image in order to change it.
    pub(super) fn exclusive(layout: &Layout, image: &Image) -> Result<Self, ImageError> {
        Self::take(layout, image, Hold::Exclusive)
    }

    fn take(layout: &Layout, image: &Image, hold: Hold) -> Result<Self, ImageError> {
        let fd = image.open()?;
        let taken = Self::try_take(layout, &image.path, &fd, hold, Beside::Yes);
        let failed = |cause| ImageError::call(format!("cannot lock image '{}'", image.name), cause);
        let in_use = |by| ImageError::InUse { name: image.name.clone(), by };
        let lock = taken.map_err(failed)?.map_err(|busy| in_use(busy.holder()))?;
        let stat = |fd: &_| rustix::fs::fstat(fd).call(|| "fstat()".to_owned()).map_err(failed);
        let (locked, now) = (stat(&fd)?, stat(&image.open()?)?);
        if (locked.st_dev, locked.st_ino) != (now.st_dev, now.st_ino) {
            // The previous holder has put something else in its place.
            return Err(in_use(None));
        }
        Ok(lock)
    }

    /// Gives the locks back and removes their files.
    pub fn release(self) -> sys::Result<()> {
        let results: Vec<_> = self.locks.into_iter().rev().map(LockFile::release).collect();
        results.into_iter().collect()
    }
}

/// Removes the lock files of the directory at `path` that a killed holder left, unless another process holds them.
pub fn reap(layout: &Layout, path: &Path) -> sys::Result<()> {
    let stat = match rustix::fs::stat(path) {
        Ok(stat) => stat,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(()),
        Err(e) => return Err(e).call(|| format!("stat('{}')", path.display())),
    };
    let files = Layout::lock_beside(path).into_iter().chain([layout.inode_lock(stat.st_dev, stat.st_ino)]);
    for file in files.filter(|file| file.exists()) {
        if let Some(lock) = LockFile::try_take(&file)? {
            lock.release()?;
        }
    }
    Ok(())
}

/// Locks the name of an image that is to be made.
pub(super) fn take_name(layout: &Layout, name: &str) -> Result<LockFile, ImageError> {
    let taken = try_take_name(layout, name);
    let taken = taken.map_err(|cause| ImageError::call(format!("cannot lock the name '{name}'"), cause))?;
    taken.ok_or_else(|| ImageError::InUse { name: name.to_owned(), by: find_holder([layout.image_name_lock(name)]) })
}

/// Locks the name of an image that is being made; `None` if another process makes one of this name.
pub(super) fn try_take_name(layout: &Layout, name: &str) -> sys::Result<Option<LockFile>> {
    take_in_run(layout, &layout.image_name_lock(name), Hold::Exclusive)
}

fn take_in_run(layout: &Layout, file: &Path, hold: Hold) -> sys::Result<Option<LockFile>> {
    match LockFile::try_take_as(file, hold) {
        Err(e) if e.errno == Errno::ENOENT => {
            make_lock_dir(layout)?;
            LockFile::try_take_as(file, hold)
        }
        result => result,
    }
}

/// Makes the directory of the locks with systemd's modes.
fn make_lock_dir(layout: &Layout) -> sys::Result<()> {
    let locks = layout.image_locks();
    let make = |dir: &Path, mode: u32| {
        let made = std::fs::DirBuilder::new().recursive(true).mode(mode).create(dir);
        made.call(|| format!("mkdir('{}')", dir.display()))
    };
    locks.parent().map_or(Ok(()), |parent| make(parent, 0o755))?;
    make(&locks, 0o700)
}
