//! [`Image`]: one entry of the store.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};

use super::error::ImageError;
use crate::sys::Context as _;

/// Name of the image that stands for the host itself: it can be read, and nothing else.
pub const HOST: &str = ".host";

/// What an image is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// A directory tree.
    Directory,
    /// A directory tree that is a btrfs subvolume.
    Subvolume,
    /// A file that is a disk, `NAME.raw`.
    Raw,
    /// A block device, or a symlink to one.
    Block,
}

impl ImageKind {
    /// Its name in machine1.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Subvolume => "subvolume",
            Self::Raw => "raw",
            Self::Block => "block",
        }
    }
}

/// An entry of the store, as it was when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its name: of a raw file without `.raw`.
    pub name: String,
    /// Where it is in the store; may be a symlink to elsewhere.
    pub path: PathBuf,
    /// What it is made of.
    pub kind: ImageKind,
    /// Marked as not to be changed, or on a file system that cannot be.
    pub read_only: bool,
    /// When it was made, in microseconds since 1970.
    pub created_us: Option<u64>,
    /// When it was changed last, in microseconds since 1970; not known of plain directories.
    pub modified_us: Option<u64>,
    /// Bytes that it holds.
    pub usage: Option<u64>,
    /// Most bytes that it may hold.
    pub limit: Option<u64>,
    /// Bytes that it shares with no other image.
    pub usage_exclusive: Option<u64>,
    /// Most bytes that it may hold alone.
    pub limit_exclusive: Option<u64>,
}

impl Image {
    /// Whether lists leave it out unless all images are requested.
    pub fn is_hidden(&self) -> bool {
        self.name.starts_with('.')
    }

    /// Whether it stands for the host.
    pub fn is_host(&self) -> bool {
        self.name == HOST
    }

    /// Opens it for looking, whatever kind it is.
    pub(super) fn open(&self) -> Result<OwnedFd, ImageError> {
        rustix::fs::open(&self.path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .call(|| format!("open('{}')", self.path.display()))
            .map_err(|cause| ImageError::call(format!("cannot open image '{}'", self.name), cause))
    }
}

/// Checks that `name` can be the name of an image, as systemd does: one path component of text that is no
/// temporary file's.
pub(super) fn check_name(name: &str) -> Result<(), ImageError> {
    let rule = if name.is_empty() || name.len() > LONGEST_NAME {
        "must have 1 to 240 bytes"
    } else if matches!(name, "." | "..") || name.contains('/') {
        "must be a single component of a path"
    } else if name.chars().any(char::is_control) {
        "may not hold control characters"
    } else if name.starts_with(".#") {
        "begins with `.#`, as only temporary files may"
    } else {
        return Ok(());
    };
    Err(ImageError::InvalidName { name: name.to_owned(), rule })
}

/// Leaves room for the names made from it: `.#machinist.NAME` and `.#NAME.raw.lck`.
const LONGEST_NAME: usize = 240;
