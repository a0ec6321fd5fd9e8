//! The console's log: what the machine wrote, byte for byte, rotated by size.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno as RustixErrno;

use crate::sys::{Context, Errno, Error, Result};

/// Name of the log in the machine's state directory.
pub(super) const CURRENT: &str = "console.log";
/// Name of the one older file.
pub(super) const OLDER: &str = "console.log.1";

/// The log file, open for appending.
#[derive(Debug)]
pub struct LogFile {
    dir: OwnedFd,
    pub(super) file: OwnedFd,
    size: u64,
    limit: u64,
    warned: bool,
}

impl LogFile {
    /// Opens or makes `console.log` in `dir`; a file that would exceed `limit` bytes becomes `console.log.1`.
    pub fn open(dir: &Path, limit: u64) -> Result<Self> {
        let dir = open_dir(dir)?;
        let (file, size) = open_current(dir.as_fd())?;
        Ok(Self { dir, file, size, limit, warned: false })
    }

    /// Appends `bytes`; those that cannot be written are lost. Gives the first failure of its life, only.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Option<Error> {
        let result = self.try_append(bytes);
        let error = result.err().filter(|_| !self.warned)?;
        self.warned = true;
        Some(error)
    }

    fn try_append(&mut self, mut bytes: &[u8]) -> Result<()> {
        if self.size > 0 && self.size + bytes.len() as u64 > self.limit {
            self.rotate()?;
        }
        while !bytes.is_empty() {
            match rustix::io::write(&self.file, bytes) {
                Err(RustixErrno::INTR) => {}
                result => {
                    let written = result.call(|| format!("write('{CURRENT}')"))?;
                    self.size += written as u64;
                    bytes = &bytes[written..];
                }
            }
        }
        Ok(())
    }

    fn rotate(&mut self) -> Result<()> {
        match rustix::fs::renameat(&self.dir, CURRENT, &self.dir, OLDER) {
            // An earlier attempt got this far and no further.
            Err(RustixErrno::NOENT) => {}
            result => result.call(|| format!("rename('{CURRENT}', '{OLDER}')"))?,
        }
        (self.file, self.size) = open_current(self.dir.as_fd())?;
        Ok(())
    }
}

/// Opens the directory of logs, which may not be a symlink.
pub(super) fn open_dir(dir: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(dir, flags, Mode::empty()).call(|| format!("open('{}')", dir.display()))
}

fn open_current(dir: BorrowedFd<'_>) -> Result<(OwnedFd, u64)> {
    // NONBLOCK, so that a FIFO put there does not hold us up.
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NONBLOCK;
    open_log(dir, CURRENT, flags)
}

/// Opens a log of ours, which is a regular file and no symlink, and gives its size.
pub(super) fn open_log(dir: BorrowedFd<'_>, name: &str, flags: OFlags) -> Result<(OwnedFd, u64)> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR).call(|| format!("open('{name}')"))?;
    let stat = rustix::fs::fstat(&file).call(|| format!("fstat('{name}')"))?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(Error { call: format!("open('{name}'), which is no regular file"), errno: Errno::EINVAL });
    }
    Ok((file, u64::try_from(stat.st_size).unwrap_or(0)))
}
