//! Files of the host by path: what `std::fs` does, with errors that name the call and the path.
//!
//! `clippy.toml` bans the functions of `std::fs` everywhere else, so that no error lacks its path. Files below a
//! machine's root are reached through [`RootFd`](super::path::RootFd) only.
#![allow(clippy::disallowed_methods, reason = "the one place that wraps them")]

use std::fs;
use std::path::{Path, PathBuf};

use super::{Context as _, Result};

/// Names a call on one path.
fn on(call: &str, path: &Path) -> String {
    format!("{call}('{}')", path.display())
}

/// Reads a whole file.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let path = path.as_ref();
    fs::read(path).call(|| on("read", path))
}

/// Writes a whole file, new or in place of what it held.
pub fn write(path: impl AsRef<Path>, data: impl AsRef<[u8]>) -> Result<()> {
    let path = path.as_ref();
    fs::write(path, data).call(|| on("write", path))
}

/// Sets one of the kernel's small files to `value`, which the error names, too.
pub fn set(path: impl AsRef<Path>, value: &str) -> Result<()> {
    let path = path.as_ref();
    fs::write(path, value).call(|| format!("write('{}', '{}')", path.display(), value.trim_end()))
}

/// Gives `from` the name `to`, in place of a file that has it.
pub fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    fs::rename(from.as_ref(), to.as_ref()).call(|| on("rename", to.as_ref()))
}

/// Removes a file or link.
pub fn remove(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    fs::remove_file(path).call(|| on("unlink", path))
}

/// Removes an empty directory.
pub fn remove_dir(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    fs::remove_dir(path).call(|| on("rmdir", path))
}

/// Makes a directory and those above it; one that is there is fine.
pub fn make_dirs(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    fs::create_dir_all(path).call(|| on("mkdir", path))
}

/// Opens a directory to be listed.
pub fn list(path: impl AsRef<Path>) -> Result<fs::ReadDir> {
    let path = path.as_ref();
    fs::read_dir(path).call(|| on("open", path))
}

/// What a link points to.
pub fn read_link(path: impl AsRef<Path>) -> Result<PathBuf> {
    let path = path.as_ref();
    fs::read_link(path).call(|| on("readlink", path))
}

/// What `path` is, after following links.
pub fn metadata(path: impl AsRef<Path>) -> Result<fs::Metadata> {
    let path = path.as_ref();
    fs::metadata(path).call(|| on("stat", path))
}

/// What `path` itself is, which may be a link.
pub fn symlink_metadata(path: impl AsRef<Path>) -> Result<fs::Metadata> {
    let path = path.as_ref();
    fs::symlink_metadata(path).call(|| on("lstat", path))
}

/// The absolute path without links.
pub fn canonicalize(path: impl AsRef<Path>) -> Result<PathBuf> {
    let path = path.as_ref();
    fs::canonicalize(path).call(|| on("realpath", path))
}

/// Sets the mode of a file.
pub fn set_mode(path: impl AsRef<Path>, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = path.as_ref();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).call(|| on("chmod", path))
}
