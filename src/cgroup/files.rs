//! A group as a directory, and its files.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::sys::{Context as _, READ_AT_ONCE, Result};

/// Opens a group.
pub(super) fn open_dir(at: impl AsFd, path: impl AsRef<Path>) -> Result<OwnedFd> {
    let path = path.as_ref();
    rustix::fs::openat(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .call(|| format!("open cgroup '{}'", path.display()))
}

/// Writes to a file of a group in one call.
pub(super) fn write_at(dir: impl AsFd, file: &str, text: &str) -> Result<()> {
    let call = || format!("write '{text}' to '{file}'");
    let fd = rustix::fs::openat(dir, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).call(call)?;
    rustix::io::write(&fd, text.as_bytes()).call(call).map(drop)
}

/// Reads a file of a group whole.
pub(super) fn read_at(dir: impl AsFd, file: &str) -> Result<String> {
    use std::io::Read as _;
    let call = || format!("read '{file}'");
    let fd = rustix::fs::openat(dir, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).call(call)?;
    let mut text = String::with_capacity(READ_AT_ONCE);
    std::fs::File::from(fd).take(u64::MAX).read_to_string(&mut text).call(call)?;
    Ok(text)
}
