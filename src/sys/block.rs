//! What can be asked of a block device and set on it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use linux_raw_sys::ioctl;
use rustix::fs::{FileType, Mode, OFlags};

use super::{Context, Errno, Error, Result};

/// Opens a block device without waiting for a medium.
///
/// # Errors
/// `ENOTBLK` for anything else, which may have come there since the caller looked.
pub fn open(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).call(|| format!("open('{}')", path.display()))?;
    let stat = rustix::fs::fstat(&fd).call(|| format!("fstat('{}')", path.display()))?;
    if FileType::from_raw_mode(stat.st_mode).is_block_device() {
        return Ok(fd);
    }
    Err(Error { call: format!("open('{}')", path.display()), errno: Errno::ENOTBLK })
}

/// Size in bytes.
pub fn size(device: impl AsFd) -> Result<u64> {
    let mut size: u64 = 0;
    // SAFETY: the call writes one such integer.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), ioctl::BLKGETSIZE64.into(), &raw mut size) };
    Errno::result(result).call(|| "ioctl(BLKGETSIZE64)".to_owned())?;
    Ok(size)
}

/// Whether the kernel refuses writes to it.
pub fn is_read_only(device: impl AsFd) -> Result<bool> {
    let mut state: libc::c_int = 0;
    // SAFETY: the call writes one such integer.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), ioctl::BLKROGET.into(), &raw mut state) };
    Errno::result(result).call(|| "ioctl(BLKROGET)".to_owned())?;
    Ok(state != 0)
}

/// Has the kernel refuse writes to it, or take them again.
pub fn set_read_only(device: impl AsFd, read_only: bool) -> Result<()> {
    let state = libc::c_int::from(read_only);
    // SAFETY: the call reads one such integer.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), ioctl::BLKROSET.into(), &raw const state) };
    Errno::result(result).map(drop).call(|| "ioctl(BLKROSET)".to_owned())
}
