//! Copies a tree, or a single file, with everything that belongs to it.
//!
//! Owners, modes, extended attributes (ACLs and capabilities among them), times, hard links, holes, symlinks, devices,
//! FIFOs and sockets come out as they went in. Contents are shared with the original where the file system can. The
//! tree is hostile and may be in use: it is read by descriptors, on one mount, and nothing of it is followed.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::retry_on_intr;

use crate::sys::inode::{self, Inode};
use crate::sys::walk::{Next, Stopped, Visit, walk};
use crate::sys::{self, Context as _, Errno};

/// How much is copied between two reports.
const PIECE: u64 = 16 << 20;

/// Attributes that say how a file system keeps a file, and mean nothing on another.
const KEEPING: &[u8] = b"btrfs.";

/// How far a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Files that are done, directories and links included.
    pub files: u64,
    /// Files there are.
    pub files_total: u64,
    /// Bytes that are done, holes left out.
    pub bytes: u64,
    /// Bytes there are.
    pub bytes_total: u64,
}

/// Told how far a copy is, again and again; `Break` ends it.
pub type OnProgress<'a> = dyn FnMut(&Progress) -> ControlFlow<()> + 'a;

/// Copies contents, and knows by now whether they can be shared.
pub(super) struct Copier<'a> {
    progress: Progress,
    on_progress: &'a mut OnProgress<'a>,
    can_share: bool,
    /// Some contents are shared.
    pub(super) has_shared: bool,
    /// Some contents were copied.
    pub(super) has_copied: bool,
}

impl<'a> Copier<'a> {
    pub(super) fn new(on_progress: &'a mut OnProgress<'a>) -> Self {
        Self { progress: Progress::default(), on_progress, can_share: true, has_shared: false, has_copied: false }
    }

    fn report(&mut self) -> sys::Result<()> {
        match (self.on_progress)(&self.progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(sys::Error { call: "copying".to_owned(), errno: Errno::ECANCELED }),
        }
    }

    fn one_more(&mut self) -> sys::Result<()> {
        self.progress.files += 1;
        self.report()
    }

    /// Copies a regular file to the new file `name` of `dir`.
    pub(super) fn file(&mut self, from: &Inode, stat: &Stat, dir: &OwnedFd, name: &CStr) -> sys::Result<Inode> {
        let source = from.open_contents()?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to =
            rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600)).call(|| "openat(create)".to_owned())?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size > 0 && self.share(&source, &to)? {
            self.has_shared = true;
            self.progress.bytes += bytes_of(stat);
        } else if size > 0 {
            self.has_copied = true;
            self.contents(&source, &to, size)?;
        }
        Ok(Inode::from_fd(to))
    }

    /// Lets the new file share the contents of the old one, if the file system can.
    fn share(&mut self, from: &OwnedFd, to: &OwnedFd) -> sys::Result<bool> {
        if !self.can_share {
            return Ok(false);
        }
        use rustix::io::Errno as E;
        match rustix::fs::ioctl_ficlone(to, from) {
            Ok(()) => Ok(true),
            // Of the two file systems.
            Err(E::OPNOTSUPP | E::XDEV | E::NOTTY | E::NOSYS | E::PERM) => {
                self.can_share = false;
                Ok(false)
            }
            // Of these two files: one is encrypted, or has no checksums and the other has.
            Err(E::INVAL | E::TXTBSY) => Ok(false),
            Err(e) => Err(e).call(|| "ioctl(FICLONE)".to_owned()),
        }
    }

    /// Copies what is no hole.
    fn contents(&mut self, from: &OwnedFd, to: &OwnedFd, size: u64) -> sys::Result<()> {
        let mut at = 0;
        while at < size {
            let Some((start, end)) = next_data(from, at, size)? else { break };
            at = start;
            while at < end {
                let copied = copy_piece(from, to, at, (end - at).min(PIECE))?;
                // Shorter than it was: somebody changes it.
                if copied == 0 {
                    return finish(to, at);
                }
                at += copied;
                self.progress.bytes += copied;
                self.report()?;
            }
        }
        finish(to, size)
    }
}

/// Gives the file its size, when it ends with a hole.
fn finish(to: &OwnedFd, size: u64) -> sys::Result<()> {
    rustix::fs::ftruncate(to, size).call(|| format!("ftruncate({size})"))
}

/// The next part with data at or behind `at`.
fn next_data(file: &OwnedFd, at: u64, size: u64) -> sys::Result<Option<(u64, u64)>> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        // A file system that knows nothing of holes.
        Err(rustix::io::Errno::INVAL) => return Ok(Some((at, size))),
        Err(e) => return Err(e).call(|| "lseek(SEEK_DATA)".to_owned()),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start)).call(|| "lseek(SEEK_HOLE)".to_owned())?;
    Ok((start < size).then_some((start, end.min(size))))
}

/// Copies some bytes from one place to the same one; 0 only at the end of the file.
fn copy_piece(from: &OwnedFd, to: &OwnedFd, at: u64, length: u64) -> sys::Result<u64> {
    use rustix::io::Errno as E;
    let (mut from_at, mut to_at) = (at, at);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let mut copy = || rustix::fs::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), length);
    match retry_on_intr(&mut copy) {
        Ok(copied) => Ok(copied as u64),
        Err(E::XDEV | E::INVAL | E::NOSYS | E::OPNOTSUPP | E::PERM) => {
            let mut buffer = vec![0; length.min(1 << 20)];
            let read = retry_on_intr(|| rustix::io::pread(from, &mut buffer, at)).call(|| "pread()".to_owned())?;
            let mut rest = &buffer[..read];
            let mut to_at = at;
            while !rest.is_empty() {
                let written = retry_on_intr(|| rustix::io::pwrite(to, rest, to_at)).call(|| "pwrite()".to_owned())?;
                rest = &rest[written..];
                to_at += written as u64;
            }
            Ok(read as u64)
        }
        Err(e) => Err(e).call(|| "copy_file_range()".to_owned()),
    }
}

/// Everything of a file but its contents and its names.
pub(super) struct Metadata {
    pub(super) stat: Stat,
    attributes: Vec<(CString, Vec<u8>)>,
}

impl Metadata {
    pub(super) fn of(inode: &Inode) -> sys::Result<Self> {
        Ok(Self { stat: inode.stat()?, attributes: inode.attributes()? })
    }

    /// Gives it to a new file, which is not to be changed afterwards.
    pub(super) fn give_to(&self, inode: &Inode) -> sys::Result<()> {
        inode.set_owner(self.stat.st_uid, self.stat.st_gid)?;
        if !FileType::from_raw_mode(self.stat.st_mode).is_symlink() {
            inode.set_mode(self.stat.st_mode & 0o7777)?;
        }
        // After the owner, whose change takes capabilities away, and after the mode, which an ACL refines.
        for (name, value) in &self.attributes {
            if !inode.set_attribute(name, value)? && !name.to_bytes().starts_with(KEEPING) {
                let call = format!("setxattr({})", name.to_string_lossy().escape_debug());
                return Err(sys::Error { call, errno: Errno::EOPNOTSUPP });
            }
        }
        inode.set_times(&self.stat)
    }
}

/// Counts what there is to do.
struct Count<'a>(&'a mut Progress);

impl Visit for Count<'_> {
    fn entry(&mut self, dir: &OwnedFd, name: &CStr) -> sys::Result<Next> {
        let Some(inode) = Inode::open_at(dir, name)? else { return Ok(Next::Pass) };
        let stat = inode.stat()?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        self.0.files_total += 1;
        if kind.is_file() {
            self.0.bytes_total += bytes_of(&stat);
        }
        Ok(if kind.is_dir() { Next::Enter } else { Next::Pass })
    }
}

/// Bytes of a file that are no holes.
fn bytes_of(stat: &Stat) -> u64 {
    let blocks = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
    blocks.min(u64::try_from(stat.st_size).unwrap_or(0))
}

/// Copies what is in the open directory `from` into the empty directory `to`, and what belongs to `from` itself.
pub(super) fn tree(from: OwnedFd, to: OwnedFd, copier: &mut Copier<'_>) -> Result<(), Stopped> {
    let again = |fd: &OwnedFd| reopen(fd).map_err(|cause| Stopped { path: "/".into(), cause });
    walk(again(&from)?, &mut Count(&mut copier.progress))?;
    let root = again(&to)?;
    let mut copy = CopyTree { copier, root, to, open: Vec::new(), path: Vec::new(), links: HashMap::new() };
    walk(from, &mut copy)?;
    let root = copy.open.pop().map(|directory| directory.metadata);
    let given = root.map_or(Ok(()), |metadata| metadata.give_to(&Inode::from_fd(copy.to)));
    given.map_err(|cause| Stopped { path: "/".into(), cause })
}

/// A descriptor with a position of its own.
fn reopen(dir: impl AsFd) -> sys::Result<OwnedFd> {
    inode::open_dir(dir, c".")?.ok_or(sys::Error { call: "openat2('.')".to_owned(), errno: Errno::ESTALE })
}

/// A directory whose contents are being copied.
struct Directory {
    metadata: Metadata,
    /// Length of the path of the directory above.
    above: usize,
}

struct CopyTree<'a, 'b> {
    copier: &'a mut Copier<'b>,
    /// The root of the copy.
    root: OwnedFd,
    /// The copy of the directory where the walk is.
    to: OwnedFd,
    /// That directory and each one above it; what belongs to them is given to their copies last.
    open: Vec<Directory>,
    /// Path of `to` below the root, with a slash at its end.
    path: Vec<u8>,
    /// The first copy of each file that has several names.
    links: HashMap<(u64, u64), CString>,
}

impl Visit for CopyTree<'_, '_> {
    fn entered(&mut self, dir: &OwnedFd, name: &CStr) -> sys::Result<()> {
        let metadata = Metadata::of(&Inode::from_fd(reopen(dir)?))?;
        let above = self.path.len();
        if !name.is_empty() {
            let next = inode::open_dir(&self.to, name)?;
            self.to = next.ok_or(sys::Error { call: "openat2()".to_owned(), errno: Errno::ESTALE })?;
            self.path.extend(name.to_bytes());
            self.path.push(b'/');
        }
        self.open.push(Directory { metadata, above });
        Ok(())
    }

    fn entry(&mut self, dir: &OwnedFd, name: &CStr) -> sys::Result<Next> {
        let Some(inode) = Inode::open_at(dir, name)? else { return Ok(Next::Pass) };
        let stat = inode.stat()?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind.is_dir() {
            // Nobody else may enter before it is as the original.
            rustix::fs::mkdirat(&self.to, name, Mode::RWXU).call(|| "mkdirat()".to_owned())?;
            return Ok(Next::Enter);
        }
        if !self.link(&stat, name)? {
            let made = self.make(&inode, &stat, name)?;
            Metadata { stat, attributes: inode.attributes()? }.give_to(&made)?;
        }
        self.copier.one_more()?;
        Ok(Next::Pass)
    }

    fn left(&mut self, _parent: &OwnedFd, _name: &CStr) -> sys::Result<()> {
        let above = inode::open_parent(&self.to)?;
        let left = std::mem::replace(&mut self.to, above);
        if let Some(directory) = self.open.pop() {
            self.path.truncate(directory.above);
            directory.metadata.give_to(&Inode::from_fd(left))?;
        }
        self.copier.one_more()
    }
}

impl CopyTree<'_, '_> {
    /// Makes `name` another name of a file that was copied before; `false` if it was not.
    fn link(&mut self, stat: &Stat, name: &CStr) -> sys::Result<bool> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        let id = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.links.get(&id) {
            // The path was made by us, so no part of it is a symlink; only one that is too long cannot be opened.
            return match Inode::open_at(&self.root, first) {
                Ok(Some(first)) => first.link_to(&self.to, name).map(|()| true),
                Ok(None) => Ok(false),
                Err(e) if e.errno == Errno::ENAMETOOLONG => Ok(false),
                Err(e) => Err(e),
            };
        }
        if let Ok(path) = CString::new([&self.path, name.to_bytes()].concat()) {
            self.links.insert(id, path);
        }
        Ok(false)
    }

    /// Makes a file that is no directory, with its contents.
    fn make(&mut self, from: &Inode, stat: &Stat, name: &CStr) -> sys::Result<Inode> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::RegularFile => return self.copier.file(from, stat, &self.to, name),
            FileType::Symlink => {
                rustix::fs::symlinkat(&from.target()?, &self.to, name).call(|| "symlinkat()".to_owned())?;
            }
            _ => {
                rustix::fs::mknodat(&self.to, name, kind, Mode::RUSR, stat.st_rdev).call(|| "mknodat()".to_owned())?;
            }
        }
        Inode::open_at(&self.to, name)?.ok_or(sys::Error { call: "openat2()".to_owned(), errno: Errno::ENOENT })
    }
}

/// Copies the disk `from` to the new file `name` of `dir`.
pub(super) fn disk(from: File, dir: &OwnedFd, name: &CStr, copier: &mut Copier<'_>) -> sys::Result<Inode> {
    let from = Inode::from_fd(from.into());
    let metadata = Metadata::of(&from)?;
    copier.progress = Progress { files_total: 1, bytes_total: bytes_of(&metadata.stat), ..Progress::default() };
    let made = copier.file(&from, &metadata.stat, dir, name)?;
    metadata.give_to(&made)?;
    copier.one_more()?;
    Ok(made)
}
