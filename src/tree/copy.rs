//! Copies a tree, or a single file, with everything that belongs to it.
//!
//! Owners, modes, extended attributes (ACLs and capabilities among them), times, hard links, holes, symlinks, devices,
//! FIFOs and sockets come out as they went in, or with less by a [`Policy`]. Contents are shared with the original where
//! the file system can. The tree is hostile and may be in use: it is read by descriptors, on one mount, and nothing of it
//! is followed.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom, Stat};
use rustix::io::retry_on_intr;

use crate::sys::{self, Context as _, Errno};
use crate::tree::inode::{self, Inode};
use crate::tree::walk::{Next, Stopped, Visit, walk};

/// How much is copied between two reports.
const PIECE: u64 = 16 << 20;

/// Attributes about how a file system stores a file, which mean nothing on another.
const KEEPING: &[u8] = b"btrfs.";

/// What comes out as it went in, and what is done about files that are there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Everything, into a place with nothing in it.
    Exact,
    /// What a user may take from one system to another: no devices, and of the attributes only users' own, ACLs and
    /// what runs with more rights, where the file system has them. Directories that are there are filled.
    Foreign {
        /// Other files that are there are replaced; else they are in the way.
        replace: bool,
        /// Setuid and setgid bits and capabilities are kept.
        privileges: bool,
    },
}

impl Policy {
    fn keeps(self, attribute: &CStr) -> bool {
        let name = attribute.to_bytes();
        match self {
            Self::Exact => true,
            Self::Foreign { privileges, .. } => {
                name.starts_with(b"user.")
                    || name.starts_with(b"system.posix_acl_")
                    || privileges && name == b"security.capability"
            }
        }
    }

    fn mode(self, stat: &Stat) -> u32 {
        match self {
            Self::Foreign { privileges: false, .. } => stat.st_mode & 0o1777,
            _ => stat.st_mode & 0o7777,
        }
    }

    fn replaces(self) -> bool {
        matches!(self, Self::Foreign { replace: true, .. })
    }
}

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

/// Receives the progress of a copy repeatedly; `Break` ends the copy.
pub type OnProgress<'a> = dyn FnMut(&Progress) -> ControlFlow<()> + 'a;

/// Copies contents, and knows by now whether they can be shared.
pub(crate) struct Copier<'a> {
    policy: Policy,
    progress: Progress,
    on_progress: &'a mut OnProgress<'a>,
    can_share: bool,
    /// Some contents are shared.
    pub(crate) has_shared: bool,
    /// Some contents were copied.
    pub(crate) has_copied: bool,
}

impl<'a> Copier<'a> {
    pub(crate) fn new(on_progress: &'a mut OnProgress<'a>) -> Self {
        Self::with_policy(Policy::Exact, on_progress)
    }

    fn with_policy(policy: Policy, on_progress: &'a mut OnProgress<'a>) -> Self {
        let progress = Progress::default();
        Self { policy, progress, on_progress, can_share: true, has_shared: false, has_copied: false }
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
    pub(crate) fn file(&mut self, from: &Inode, stat: &Stat, dir: &OwnedFd, name: &CStr) -> sys::Result<Inode> {
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

    /// Makes a file that is no directory, with its contents.
    fn make(&mut self, from: &Inode, stat: &Stat, dir: &OwnedFd, name: &CStr) -> sys::Result<Inode> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::RegularFile => return self.file(from, stat, dir, name),
            FileType::Symlink => {
                rustix::fs::symlinkat(&from.target()?, dir, name).call(|| "symlinkat()".to_owned())?;
            }
            FileType::CharacterDevice | FileType::BlockDevice if self.policy != Policy::Exact => {
                return Err(sys::Error { call: "it is a device".to_owned(), errno: Errno::EOPNOTSUPP });
            }
            _ => {
                rustix::fs::mknodat(dir, name, kind, Mode::RUSR, stat.st_rdev).call(|| "mknodat()".to_owned())?;
            }
        }
        Inode::open_at(dir, name)?.ok_or(sys::Error { call: "openat2()".to_owned(), errno: Errno::ENOENT })
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
                // Shorter than it was: another process is changing it.
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
pub(crate) struct Metadata {
    pub(crate) stat: Stat,
    attributes: Vec<(CString, Vec<u8>)>,
}

impl Metadata {
    pub(crate) fn of(inode: &Inode) -> sys::Result<Self> {
        Ok(Self { stat: inode.stat()?, attributes: inode.attributes()? })
    }

    /// Gives it to a new file, which is not to be changed afterwards.
    pub(crate) fn give_to(&self, inode: &Inode, policy: Policy) -> sys::Result<()> {
        inode.set_owner(self.stat.st_uid, self.stat.st_gid)?;
        if !FileType::from_raw_mode(self.stat.st_mode).is_symlink() {
            inode.set_mode(policy.mode(&self.stat))?;
        }
        // After the owner, whose change takes capabilities away, and after the mode, which an ACL refines.
        for (name, value) in self.attributes.iter().filter(|(name, _)| policy.keeps(name)) {
            let must = policy == Policy::Exact && !name.to_bytes().starts_with(KEEPING);
            if !inode.set_attribute(name, value)? && must {
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

fn at_root(cause: sys::Error) -> Stopped {
    Stopped { path: "/".into(), cause }
}

/// Copies what is in the open directory `from` into the empty directory `to`, and what belongs to `from` itself.
pub(crate) fn tree(from: OwnedFd, to: OwnedFd, copier: &mut Copier<'_>) -> Result<(), Stopped> {
    walk(reopen(&from).map_err(at_root)?, &mut Count(&mut copier.progress))?;
    fill(from, to, copier, true)
}

/// Copies what is in one directory into another, which becomes what `from` is if it is `new`.
fn fill(from: OwnedFd, to: OwnedFd, copier: &mut Copier<'_>, new: bool) -> Result<(), Stopped> {
    let policy = copier.policy;
    let mut copy = CopyTree {
        copier,
        root: reopen(&to).map_err(at_root)?,
        to,
        open: Vec::new(),
        path: Vec::new(),
        links: HashMap::new(),
        filled: HashSet::new(),
    };
    if !new {
        copy.keep(&Inode::from_fd(reopen(&copy.root).map_err(at_root)?)).map_err(at_root)?;
    }
    walk(from, &mut copy)?;
    let root = copy.open.pop().and_then(|directory| directory.metadata);
    root.map_or(Ok(()), |metadata| metadata.give_to(&Inode::from_fd(copy.to), policy)).map_err(at_root)
}

/// Copies the file or directory `from` to `name` in `dir`, where a file is there whole or not at all.
///
/// # Errors
/// EEXIST if something is there that the policy does not replace. What was made of a directory stays.
pub fn object(from: &Inode, dir: &OwnedFd, name: &CStr, policy: Policy) -> Result<(), Stopped> {
    let mut no_progress = |_: &Progress| ControlFlow::Continue(());
    let mut copier = Copier::with_policy(policy, &mut no_progress);
    let metadata = Metadata::of(from).map_err(at_root)?;
    if FileType::from_raw_mode(metadata.stat.st_mode).is_dir() {
        rustix::fs::mkdirat(dir, name, Mode::RWXU).call(|| "mkdirat()".to_owned()).map_err(at_root)?;
        let to = inode::open_dir(dir, name).map_err(at_root)?;
        let to = to.ok_or_else(|| at_root(sys::Error { call: "openat2()".to_owned(), errno: Errno::ESTALE }))?;
        return fill(reopen(from).map_err(at_root)?, to, &mut copier, true);
    }
    single(from, &metadata, dir, name, &mut copier).map_err(at_root)
}

/// Copies what is in the directory `from` into the directory `to`, which stays what it is.
pub fn contents(from: &Inode, to: OwnedFd, policy: Policy) -> Result<(), Stopped> {
    let mut no_progress = |_: &Progress| ControlFlow::Continue(());
    fill(reopen(from).map_err(at_root)?, to, &mut Copier::with_policy(policy, &mut no_progress), false)
}

/// Makes a file that is no directory under another name, and renames it when it is complete.
fn single(from: &Inode, metadata: &Metadata, dir: &OwnedFd, name: &CStr, copier: &mut Copier<'_>) -> sys::Result<()> {
    let mut random = [0; 8];
    sys::process::random(&mut random)?;
    let temporary = sys::process::c_string(format!(".machinist-copy-{:016x}", u64::from_ne_bytes(random)))?;
    let made = copier.make(from, &metadata.stat, dir, &temporary);
    let made = made.and_then(|made| metadata.give_to(&made, copier.policy)).and_then(|()| {
        let how = if copier.policy.replaces() { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let call = || format!("renameat2('{}')", name.to_string_lossy().escape_debug());
        match rustix::fs::renameat_with(dir, &temporary, dir, name, how) {
            Err(rustix::io::Errno::ISDIR) => Err(sys::Error { call: call(), errno: Errno::EEXIST }),
            result => result.call(call),
        }
    });
    if made.is_err() {
        // The first failure is what the user needs.
        let _ = rustix::fs::unlinkat(dir, &temporary, AtFlags::empty());
    }
    made
}

/// A descriptor with a position of its own.
fn reopen(dir: impl AsFd) -> sys::Result<OwnedFd> {
    inode::open_dir(dir, c".")?.ok_or(sys::Error { call: "openat2('.')".to_owned(), errno: Errno::ESTALE })
}

/// A directory whose contents are being copied.
struct Directory {
    /// Nothing for one that was there before.
    metadata: Option<Metadata>,
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
    /// Directories that were there before.
    filled: HashSet<(u64, u64)>,
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
        let is_old = !self.filled.is_empty() && self.filled.contains(&identity(&self.to)?);
        self.open.push(Directory { metadata: (!is_old).then_some(metadata), above });
        Ok(())
    }

    fn entry(&mut self, dir: &OwnedFd, name: &CStr) -> sys::Result<Next> {
        let Some(inode) = Inode::open_at(dir, name)? else { return Ok(Next::Pass) };
        let stat = inode.stat()?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind.is_dir() {
            // No other user may enter before its mode is that of the original.
            match rustix::fs::mkdirat(&self.to, name, Mode::RWXU) {
                Err(rustix::io::Errno::EXIST) if self.copier.policy != Policy::Exact => self.keep_old(name)?,
                result => result.call(|| "mkdirat()".to_owned())?,
            }
            return Ok(Next::Enter);
        }
        if self.copier.policy.replaces() {
            self.make_room(name)?;
        }
        if !self.link(&stat, name)? {
            let made = self.copier.make(&inode, &stat, &self.to, name)?;
            Metadata { stat, attributes: inode.attributes()? }.give_to(&made, self.copier.policy)?;
        }
        self.copier.one_more()?;
        Ok(Next::Pass)
    }

    fn left(&mut self, _parent: &OwnedFd, _name: &CStr) -> sys::Result<()> {
        let above = inode::open_parent(&self.to)?;
        let left = std::mem::replace(&mut self.to, above);
        if let Some(directory) = self.open.pop() {
            self.path.truncate(directory.above);
            if let Some(metadata) = directory.metadata {
                metadata.give_to(&Inode::from_fd(left), self.copier.policy)?;
            }
        }
        self.copier.one_more()
    }
}

fn identity(fd: impl AsFd) -> sys::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(fd).call(|| "fstat()".to_owned())?;
    Ok((stat.st_dev, stat.st_ino))
}

impl CopyTree<'_, '_> {
    /// Leaves what belongs to a directory that was there before as it is.
    fn keep(&mut self, directory: &Inode) -> sys::Result<()> {
        self.filled.insert(identity(directory)?);
        Ok(())
    }

    /// The same for an entry, which must be a directory.
    fn keep_old(&mut self, name: &CStr) -> sys::Result<()> {
        let exists = || sys::Error { call: "mkdirat()".to_owned(), errno: Errno::EEXIST };
        let old = Inode::open_at(&self.to, name)?.ok_or_else(exists)?;
        if !FileType::from_raw_mode(old.stat()?.st_mode).is_dir() {
            return Err(exists());
        }
        self.keep(&old)
    }

    /// Removes what is in the way, but no directory.
    fn make_room(&self, name: &CStr) -> sys::Result<()> {
        match rustix::fs::unlinkat(&self.to, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(rustix::io::Errno::ISDIR) => Err(sys::Error { call: "unlinkat()".to_owned(), errno: Errno::EEXIST }),
            Err(e) => Err(e).call(|| "unlinkat()".to_owned()),
        }
    }

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
}

/// Copies the disk `from` to the new file `name` of `dir`.
pub(crate) fn disk(from: File, dir: &OwnedFd, name: &CStr, copier: &mut Copier<'_>) -> sys::Result<Inode> {
    let from = Inode::from_fd(from.into());
    let metadata = Metadata::of(&from)?;
    copier.progress = Progress { files_total: 1, bytes_total: bytes_of(&metadata.stat), ..Progress::default() };
    let made = copier.file(&from, &metadata.stat, dir, name)?;
    metadata.give_to(&made, copier.policy)?;
    copier.one_more()?;
    Ok(made)
}
