//! The image store: the trees and disk images that machines start from, as systemd's tools see them, too.
//!
//! [`Store`] lists and finds images, changes them, and reads their metadata. Every change is made under
//! the locks that systemd's tools take ([`lock`]), so that neither removes what the other runs. An image's tree is
//! hostile: below it nothing is opened but through [`RootFd`] or entry by entry, by
//! descriptor. Nothing here knows a message bus, prints, or touches a machine's definition.

mod change;
mod clone;
mod entry;
mod error;
pub mod lock;
mod probe;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::spec::Layout;
use crate::sys::file;
use crate::sys::path::RootFd;
use crate::sys::{Context as _, Errno, btrfs};
use crate::tree::metadata;

pub use crate::tree::copy::{OnProgress, Progress};
pub use change::CleanMode;
pub use clone::{CloneMethod, Cloned};
use entry::check_name;
pub use entry::{HOST, Image, ImageKind};
pub use error::ImageError;
use lock::ImageLock;

/// What the whole store holds and may hold, in bytes; known only on btrfs with quotas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// The directory of the store.
    pub path: PathBuf,
    /// Bytes held.
    pub usage: Option<u64>,
    /// Most bytes.
    pub limit: Option<u64>,
}

/// The image store of a layout.
#[derive(Debug, Clone)]
pub struct Store {
    layout: Layout,
}

impl Store {
    /// The store of `layout`; its directory need not exist.
    pub fn new(layout: &Layout) -> Self {
        Self { layout: layout.clone() }
    }

    /// The directory of the store.
    pub fn path(&self) -> &Path {
        self.layout.images()
    }

    /// Every image by name, hidden ones and [`HOST`] among them. What vanishes meanwhile or cannot be looked at is
    /// left out.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let mut images = BTreeMap::new();
        let host = probe::look(HOST, Path::new("/")).ok().flatten();
        images.extend(host.map(|host| (HOST.to_owned(), host)));
        let failed = |cause| ImageError::call("cannot list the images", cause);
        let path = self.path();
        let entries = match file::list(path) {
            Ok(entries) => entries,
            Err(e) if e.errno == Errno::ENOENT => return Ok(images.into_values().collect()),
            Err(e) => return Err(failed(e)),
        };
        for entry in entries {
            let entry = entry.call(|| format!("getdents64('{}')", path.display())).map_err(failed)?;
            let file_name = entry.file_name();
            let Some(file_name) = file_name.to_str() else { continue };
            let Some(image) = probe::look_at_entry(path, file_name) else { continue };
            // A directory and a file may have one name, which then means the directory.
            if image.kind != ImageKind::Raw || !images.contains_key(&image.name) {
                images.insert(image.name.clone(), image);
            }
        }
        Ok(images.into_values().collect())
    }

    /// Looks for an image by name; [`HOST`] is one.
    ///
    /// # Errors
    /// [`ImageError::InvalidName`] for what can be no name.
    pub fn find(&self, name: &str) -> Result<Option<Image>, ImageError> {
        check_name(name)?;
        let failed = |cause| ImageError::call(format!("cannot look at image '{name}'"), cause);
        if name == HOST {
            return probe::look(HOST, Path::new("/")).map_err(failed);
        }
        for file_name in [name.to_owned(), format!("{name}.raw")] {
            let path = self.path().join(&file_name);
            match probe::look(name, &path) {
                Ok(Some(image)) if file_name == name || image.kind == ImageKind::Raw => return Ok(Some(image)),
                Ok(_) => {}
                Err(e) if matches!(e.errno, Errno::ENOENT | Errno::ENOTDIR | Errno::ENAMETOOLONG) => {}
                Err(e) => return Err(failed(e)),
            }
        }
        Ok(None)
    }

    /// Looks for an image that must be there.
    ///
    /// # Errors
    /// [`ImageError::NoSuchImage`] besides those of [`Store::find`].
    pub fn get(&self, name: &str) -> Result<Image, ImageError> {
        self.find(name)?.ok_or_else(|| ImageError::NoSuchImage(name.to_owned()))
    }

    /// What the store holds and may hold.
    pub fn pool(&self) -> Pool {
        let path = self.path();
        let quota = File::open(path).ok().and_then(|dir| {
            let stat = rustix::fs::fstat(&dir).ok()?;
            let info = btrfs::is_subvolume(&dir, &stat).then(|| btrfs::info(&dir).ok())??;
            btrfs::quota(&dir, info.id).ok()?
        });
        Pool {
            path: path.to_owned(),
            usage: quota.map(|q| q.referenced),
            limit: quota.and_then(|q| q.referenced_limit),
        }
    }

    /// The host name that an image gives itself; `None` if it gives none.
    ///
    /// # Errors
    /// As of all four that read in an image: [`ImageError::InUse`] while a machine writes to it and
    /// [`ImageError::NotSupported`] for one that is a disk.
    pub fn hostname(&self, name: &str) -> Result<Option<String>, ImageError> {
        self.read_in(name, metadata::hostname)
    }

    /// The machine id of an image; `None` while it has none.
    pub fn machine_id(&self, name: &str) -> Result<Option<[u8; 16]>, ImageError> {
        self.read_in(name, metadata::machine_id)
    }

    /// The variables of an image's `/etc/machine-info`, in order.
    pub fn machine_info(&self, name: &str) -> Result<Vec<(String, String)>, ImageError> {
        self.read_in(name, metadata::machine_info)
    }

    /// The variables of an image's os-release file, in order.
    pub fn os_release(&self, name: &str) -> Result<Vec<(String, String)>, ImageError> {
        self.read_in(name, metadata::os_release)
    }

    /// Reads in an image's tree while no other process may change it.
    fn read_in<T>(
        &self,
        name: &str,
        read: impl FnOnce(&RootFd) -> Result<T, crate::sys::Error>,
    ) -> Result<T, ImageError> {
        let image = self.get(name)?;
        if matches!(image.kind, ImageKind::Raw | ImageKind::Block) {
            let why = "it is a disk, whose files are not looked at";
            return Err(ImageError::not_supported(format!("cannot read in image '{name}'"), why));
        }
        let failed = |cause| ImageError::call(format!("cannot read in image '{name}'"), cause);
        let root = RootFd::open(&image.path).map_err(failed)?;
        let _lock = match image.is_host() {
            true => None,
            false => Some(ImageLock::shared(&self.layout, &image)?),
        };
        read(&root).map_err(failed)
    }
}

#[cfg(test)]
mod tests;
