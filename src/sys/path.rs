//! [`RootFd`]: the only way to reach a path inside a machine's tree.
//!
//! The tree is hostile. Every lookup starts at a descriptor of its root and is confined by `openat2(2)`;
//! what was opened is what is used, never a path a second time.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawMode, ResolveFlags, Stat};

use super::file;
use super::{Context, Errno, Error, Result};

/// Descriptor of the root directory of an untrusted tree.
#[derive(Debug)]
pub struct RootFd(OwnedFd);

impl AsFd for RootFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl RootFd {
    /// Opens a directory of the host as the root of a tree.
    pub fn open(path: &Path) -> Result<Self> {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .call(|| format!("open('{}')", path.display()))
            .map(Self)
    }

    /// Takes a descriptor that already is the root, such as a detached mount.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Opens `path` with symlinks resolved inside the tree, as the machine itself would see it.
    pub fn open_inside(&self, path: &str, flags: OFlags) -> Result<OwnedFd> {
        self.resolve(path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    }

    /// Opens `path`, refusing every symlink on the way.
    pub fn open_plain(&self, path: &str, flags: OFlags) -> Result<OwnedFd> {
        self.resolve(path, flags, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS)
    }

    fn resolve(&self, path: &str, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd> {
        let path = if path.is_empty() { "." } else { path };
        loop {
            match rustix::fs::openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                // The kernel asks to try again when a rename raced with a lookup of "..".
                Err(rustix::io::Errno::AGAIN) => {}
                result => return result.call(|| format!("openat2('/{}' in the tree)", path.trim_start_matches('/'))),
            }
        }
    }

    /// Reads a small regular file of the tree, symlinks resolved inside; `None` if there is none.
    pub fn read(&self, path: &str, limit: usize) -> Result<Option<Vec<u8>>> {
        // Looked at before it is opened: opening a device would run its driver. No machine can put one in the place
        // of the file meanwhile.
        let found = self.stat(path)?;
        if !found.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file()) {
            return Ok(None);
        }
        let fd = match self.open_inside(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
            Ok(fd) => fd,
            Err(e) if matches!(e.errno, Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENXIO) => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        let stat = rustix::fs::fstat(&fd).call(|| format!("fstat('/{path}' in the tree)"))?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Ok(None);
        }
        // Room for all of it and one more byte, so that it takes two calls whatever the size.
        let size = usize::try_from(stat.st_size).unwrap_or(0).min(limit);
        let mut data = Vec::with_capacity(size + 1);
        let read = std::fs::File::from(fd).take(limit as u64).read_to_end(&mut data);
        read.call(|| format!("read('/{path}' in the tree)"))?;
        Ok(Some(data))
    }

    /// Whether something is at `path`, symlinks resolved inside the tree.
    pub fn stat(&self, path: &str) -> Result<core::option::Option<Stat>> {
        match self.open_inside(path, OFlags::PATH) {
            Ok(fd) => rustix::fs::fstat(&fd).call(|| format!("fstat('/{path}' in the tree)")).map(Some),
            Err(e) if matches!(e.errno, Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Where the symlinks of `path` end inside the tree, as an absolute path of the tree.
    pub fn real_path(&self, path: &str) -> Result<PathBuf> {
        let fd = self.open_inside(path, OFlags::PATH)?;
        let root = Self::shown(self.0.as_fd())?;
        let full = Self::shown(fd.as_fd())?;
        let below = full.strip_prefix(&root).unwrap_or(&full);
        Ok(Path::new("/").join(below))
    }

    fn shown(fd: BorrowedFd<'_>) -> Result<PathBuf> {
        use std::os::fd::AsRawFd;
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        file::read_link(&link)
    }

    /// Opens the place `path` for mounting on it, making missing directories (and at the end a file when
    /// `file`) on the way, owned by `owner`.
    ///
    /// Symlinks on the way are resolved inside the tree, but nothing is ever made through one, and the last
    /// component may not be one: a tree cannot send a mount or a new directory elsewhere.
    pub fn mount_point(&self, path: &str, file: bool, owner: u32) -> Result<OwnedFd> {
        let kind = if file { OFlags::empty() } else { OFlags::DIRECTORY };
        let direct = self.open_inside(path, OFlags::PATH | OFlags::NOFOLLOW | kind);
        match direct {
            Ok(fd) => return self.refuse_symlink(fd, path),
            Err(e) if e.errno == Errno::ENOENT => {}
            Err(e) if e.errno == Errno::ENOTDIR && !file => return Err(self.explain_not_a_directory(path, e)),
            Err(e) => return Err(e),
        }
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent_fd = match self.open_inside(parent, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(fd) => fd,
            Err(e) if e.errno == Errno::ENOENT && !parent.is_empty() => self.mount_point(parent, false, owner)?,
            Err(e) => return Err(e),
        };
        let made = super::process::as_file_user(owner, || {
            if file {
                rustix::fs::mknodat(&parent_fd, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)
            } else {
                rustix::fs::mkdirat(&parent_fd, name, Mode::from_raw_mode(0o755))
            }
        });
        match made {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(e).call(|| format!("making '/{path}' in the tree")),
        }
        let fd = self.open_inside(path, OFlags::PATH | OFlags::NOFOLLOW | kind)?;
        self.refuse_symlink(fd, path)
    }

    fn refuse_symlink(&self, fd: OwnedFd, path: &str) -> Result<OwnedFd> {
        let stat = rustix::fs::fstat(&fd).call(|| format!("fstat('/{path}' in the tree)"))?;
        if FileType::from_raw_mode(stat.st_mode).is_symlink() {
            let to = rustix::fs::readlinkat(&fd, "", Vec::new()).unwrap_or_default();
            let call = format!("mounting on '/{path}', which in the tree is a symlink to '{}'", to.to_string_lossy());
            return Err(Error { call, errno: Errno::ELOOP });
        }
        Ok(fd)
    }

    fn explain_not_a_directory(&self, path: &str, error: Error) -> Error {
        match self.open_inside(path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(fd) => self.refuse_symlink(fd, path).err().unwrap_or(error),
            Err(_) => error,
        }
    }
}

/// Gives `name` in `dir` to `uid` and `gid`, without following a symlink.
pub fn chown_at(dir: BorrowedFd<'_>, name: &str, uid: u32, gid: u32) -> Result<()> {
    let (uid_, gid_) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    rustix::fs::chownat(dir, name, Some(uid_), Some(gid_), AtFlags::SYMLINK_NOFOLLOW)
        .call(|| format!("fchownat('{name}', {uid}, {gid})"))
}

/// Makes a node in `dir`, a directory of ours, owned by `uid`; the process's umask must be 0.
pub fn make_node(
    dir: BorrowedFd<'_>,
    name: &str,
    kind: FileType,
    mode: RawMode,
    dev: (u32, u32),
    uid: u32,
) -> Result<()> {
    let device = rustix::fs::makedev(dev.0, dev.1);
    let mode = Mode::from_raw_mode(mode);
    if kind == FileType::Directory {
        rustix::fs::mkdirat(dir, name, mode).call(|| format!("mkdirat('{name}')"))?;
    } else {
        rustix::fs::mknodat(dir, name, kind, mode, device).call(|| format!("mknodat('{name}')"))?;
    }
    if uid == 0 { Ok(()) } else { chown_at(dir, name, uid, uid) }
}
