//! [`Inode`]: a file of an untrusted tree that is looked at and changed through one descriptor.
//!
//! Names are used once, to open, and never across a mount or through a symlink; what was opened is what is
//! changed, whatever the name means by then. Opening runs no driver and waits for no writer (`O_PATH`).

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, RawDir, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};

use crate::sys::{Context, Errno, Result};

/// The kernel's limit for the list of names and for one value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_MAX: usize = 65_536;

/// A file of any type, symlinks themselves included.
#[derive(Debug)]
pub struct Inode(OwnedFd);

impl AsFd for Inode {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Inode {
    /// Opens an entry of `dir`; `None` if it is gone or another mount covers it.
    pub fn open_at(dir: impl AsFd, name: &CStr) -> Result<Option<Self>> {
        Ok(open(dir, name, OFlags::PATH)?.map(Self))
    }

    /// Takes a descriptor of the file, `O_PATH` or not.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Opens the file's contents for reading; for regular files only, whose opening runs no driver.
    pub fn open_contents(&self) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        rustix::fs::open(self.link(), flags, Mode::empty()).call(|| "open()".to_owned())
    }

    /// Where a symlink leads.
    pub fn target(&self) -> Result<CString> {
        rustix::fs::readlinkat(&self.0, "", Vec::new()).call(|| "readlinkat()".to_owned())
    }

    /// Sets the times of reading and of writing to those of another file.
    pub fn set_times(&self, like: &Stat) -> Result<()> {
        let time = |seconds, nanos: u64| Timespec { tv_sec: seconds, tv_nsec: nanos.try_into().unwrap_or(0) };
        let times = Timestamps {
            last_access: time(like.st_atime, like.st_atime_nsec),
            last_modification: time(like.st_mtime, like.st_mtime_nsec),
        };
        rustix::fs::utimensat(&self.0, "", &times, AtFlags::EMPTY_PATH).call(|| "utimensat()".to_owned())
    }

    /// Another name for the file, in the directory `dir` of the same file system.
    pub fn link_to(&self, dir: impl AsFd, name: &CStr) -> Result<()> {
        let result = match rustix::fs::linkat(&self.0, "", &dir, name, AtFlags::EMPTY_PATH) {
            // The kernel's answer to those without a right of the host's root (before Linux 6.10).
            Err(rustix::io::Errno::NOENT) => {
                rustix::fs::linkat(rustix::fs::CWD, self.link(), &dir, name, AtFlags::SYMLINK_FOLLOW)
            }
            result => result,
        };
        result.call(|| format!("linkat('{}')", name.to_string_lossy().escape_debug()))
    }

    /// Type, mode, owner and device.
    pub fn stat(&self) -> Result<Stat> {
        rustix::fs::fstat(&self.0).call(|| "fstat()".to_owned())
    }

    /// Changes both owners; the kernel takes setuid, setgid and capabilities from a regular file.
    pub fn set_owner(&self, uid: u32, gid: u32) -> Result<()> {
        rustix::fs::chownat(&self.0, "", Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH)
            .call(|| format!("fchownat({uid}, {gid})"))
    }

    /// Changes the permission bits; not for symlinks.
    pub fn set_mode(&self, mode: u32) -> Result<()> {
        rustix::fs::chmod(self.link(), Mode::from_raw_mode(mode)).call(|| format!("chmod({mode:o})"))
    }

    /// Names of the extended attributes, each ended by a zero byte; none where there can be none.
    pub fn attribute_names(&self, names: &mut Vec<u8>) -> Result<()> {
        names.clear();
        names.reserve(XATTR_MAX);
        match rustix::fs::listxattr(self.link(), spare_capacity(names)) {
            Err(rustix::io::Errno::NOTSUP) => Ok(()),
            result => result.map(drop).call(|| "listxattr()".to_owned()),
        }
    }

    /// Value of an extended attribute.
    pub fn attribute(&self, name: &CStr) -> Result<Vec<u8>> {
        let mut value = Vec::with_capacity(XATTR_MAX);
        rustix::fs::getxattr(self.link(), name, spare_capacity(&mut value))
            .call(|| format!("getxattr({})", name.to_string_lossy()))?;
        Ok(value)
    }

    /// Every extended attribute with its value; one that vanishes meanwhile is left out.
    pub fn attributes(&self) -> Result<Vec<(CString, Vec<u8>)>> {
        let mut list = Vec::new();
        self.attribute_names(&mut list)?;
        let mut attributes = Vec::new();
        for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let Ok(name) = CString::new(name) else { continue };
            match self.attribute(&name) {
                Err(e) if e.errno == Errno::ENODATA => {}
                value => attributes.push((name, value?)),
            }
        }
        Ok(attributes)
    }

    /// Makes or replaces an extended attribute; `false` where the file system has none of its kind.
    pub fn set_attribute(&self, name: &CStr, value: &[u8]) -> Result<bool> {
        let result = rustix::fs::setxattr(self.link(), name, value, XattrFlags::empty());
        match result.call(|| format!("setxattr({})", name.to_string_lossy())) {
            Err(e) if e.errno == Errno::EOPNOTSUPP => Ok(false),
            result => result.map(|()| true),
        }
    }

    /// Removes an extended attribute, if it is there.
    pub fn remove_attribute(&self, name: &CStr) -> Result<()> {
        match rustix::fs::removexattr(self.link(), name) {
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP) => Ok(()),
            result => result.call(|| format!("removexattr({})", name.to_string_lossy())),
        }
    }

    /// What leads the calls that take no `O_PATH` descriptor to this very file, even if it is a symlink.
    fn link(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}

/// Opens a directory of `dir` for [`names`]; `None` if it is gone or another mount covers it.
pub fn open_dir(dir: impl AsFd, name: &CStr) -> Result<Option<OwnedFd>> {
    open(dir, name, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Opens the directory that holds `dir`.
///
/// It can be another one than that we came from, if `dir` has been moved; the caller must compare.
pub fn open_parent(dir: impl AsFd) -> Result<OwnedFd> {
    rustix::fs::openat(dir, "..", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .call(|| "openat('..')".to_owned())
}

/// Opens a file of `dir` by a path with no symlink on it; `None` if it is gone or on another mount.
fn open(dir: impl AsFd, name: &CStr, flags: OFlags) -> Result<Option<OwnedFd>> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve) {
        Err(rustix::io::Errno::XDEV | rustix::io::Errno::NOENT) => Ok(None),
        result => result.map(Some).call(|| format!("openat2('{}')", name.to_string_lossy().escape_debug())),
    }
}

/// The entries of a directory without `.` and `..`.
pub fn names(dir: impl AsFd) -> Result<Vec<CString>> {
    let mut buffer: Vec<u8> = Vec::with_capacity(32 * 1024);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry.call(|| "getdents64()".to_owned())?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}
