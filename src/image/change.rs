//! Changes of whole images: name, mark of being read-only, limits, and their end.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, IFlags, Mode, OFlags, RenameFlags};

use super::entry::check_name;
use super::lock::{self, ImageLock};
use super::{HOST, Image, ImageError, ImageKind, Store};
use crate::sys::file;
use crate::sys::{self, Context as _, Errno, block, btrfs, process};
use crate::tree::delete;
use crate::tree::walk::Stopped;

/// What systemd-nspawn is to do with an image. Written by people, so never removed by us.
const SETTINGS: &str = ".nspawn";
/// What verifies a disk; of no use without it.
const ROOT_HASH: &str = ".roothash";
/// Files beside an image that go by its name.
pub(super) const BESIDE: [&str; 2] = [SETTINGS, ROOT_HASH];

/// Which images [`Store::clean`] removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CleanMode {
    /// Those whose names begin with `.`.
    Hidden,
    /// All.
    All,
}

impl Store {
    /// Gives an image another name, with the files of its name beside it; replaces nothing.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), ImageError> {
        let image = self.get_own(from)?;
        check_name(to)?;
        let _lock = ImageLock::exclusive(&self.layout, &image)?;
        let _name = lock::take_name(&self.layout, to)?;
        self.refuse_existing(to)?;
        let failed = |cause| ImageError::call(format!("cannot rename image '{from}' to '{to}'"), cause);
        let new = self.path().join(file_name(to, image.kind));
        let mark = Immutable::lift(&image).map_err(failed)?;
        let renamed = rename(&image.path, &new);
        mark.restore().map_err(failed)?;
        renamed.map_err(failed)?;
        for suffix in BESIDE {
            match rename(&self.beside(from, suffix), &self.beside(to, suffix)) {
                // A file that exists for the new name is kept, and so is the old one.
                Err(e) if matches!(e.errno, Errno::ENOENT | Errno::EEXIST) => {}
                result => result.map_err(failed)?,
            }
        }
        Ok(())
    }

    /// Marks an image as not to be changed, or takes the mark away.
    ///
    /// A subvolume cannot be written to then, a disk only by root; of a directory only the uppermost level is
    /// kept as it is, for a tree's modes are the machine's own.
    pub fn set_read_only(&self, name: &str, read_only: bool) -> Result<(), ImageError> {
        let image = self.get_own(name)?;
        let _lock = ImageLock::exclusive(&self.layout, &image)?;
        let set = match image.kind {
            ImageKind::Subvolume => open_dir(&image.path).and_then(|dir| btrfs::set_read_only(dir, read_only)),
            ImageKind::Directory => open_dir(&image.path).and_then(|dir| set_immutable(&dir, read_only)),
            ImageKind::Raw => set_write_bit(&image.path, !read_only),
            ImageKind::Block => block::open(&image.path).and_then(|device| block::set_read_only(device, read_only)),
        };
        let doing = || format!("cannot mark image '{name}' as {}", if read_only { "read-only" } else { "writable" });
        set.map_err(|cause| match cause.errno {
            Errno::ENOTTY | Errno::EOPNOTSUPP => {
                ImageError::not_supported(doing(), "its file system has no such mark for directories")
            }
            _ => ImageError::call(doing(), cause),
        })
    }

    /// Limits what an image may hold, in bytes; `None` takes the limit away. Only for subvolumes on a file system that
    /// keeps quotas.
    pub fn set_limit(&self, name: &str, limit: Option<u64>) -> Result<(), ImageError> {
        let image = self.get_own(name)?;
        let doing = format!("cannot limit image '{name}'");
        if image.kind != ImageKind::Subvolume {
            let why = format!("it is a {}, and only subvolumes of btrfs can be limited", image.kind.noun());
            return Err(ImageError::not_supported(doing, why));
        }
        limit_subvolume(doing, &image.path, limit)
    }

    /// Limits what the whole store may hold, in bytes; `None` takes the limit away.
    pub fn set_pool_limit(&self, limit: Option<u64>) -> Result<(), ImageError> {
        let path = self.path();
        let doing = "cannot limit the store";
        let is_subvolume = File::open(path)
            .call(|| format!("open('{}')", path.display()))
            .and_then(|dir| {
                let stat = rustix::fs::fstat(&dir).call(|| "fstat()".to_owned())?;
                Ok(btrfs::is_subvolume(&dir, &stat))
            })
            .map_err(|cause| ImageError::call(doing, cause))?;
        if !is_subvolume {
            let why = format!("'{}' is not a subvolume of btrfs", path.display());
            return Err(ImageError::not_supported(doing, why));
        }
        limit_subvolume(doing.to_owned(), path, limit)
    }

    /// Removes an image for good. Of a symlink, only that; settings that people wrote stay ([`Store::settings`]).
    ///
    /// The image is gone at once, under its name: what an interruption leaves is a temporary file, which the next
    /// [`Store::clean`] removes.
    pub fn remove(&self, name: &str) -> Result<(), ImageError> {
        let image = self.get_own(name)?;
        let _lock = ImageLock::exclusive(&self.layout, &image)?;
        let _name = lock::take_name(&self.layout, name)?;
        let failed = |cause| ImageError::call(format!("cannot remove image '{name}'"), cause);
        let store = open_dir(self.path()).map_err(failed)?;
        let temporary = self.clear_temporary(&store, name)?;
        let was_marked = Immutable::lift(&image).map_err(failed)?;
        if let Err(cause) = rename(&image.path, &self.path().join(&temporary)) {
            // The first failure is what the user needs.
            let _ = was_marked.restore();
            return Err(failed(cause));
        }
        self.remove_temporary(&store, &temporary, name)?;
        match file::remove(self.beside(name, ROOT_HASH)) {
            Err(e) if e.errno == Errno::ENOENT => Ok(()),
            result => result.map_err(failed),
        }
    }

    /// Removes hidden or all images, but none in use and never the host; gives the name of each and the bytes that it
    /// alone held. What an interrupted clone or removal left goes, too.
    pub fn clean(&self, mode: CleanMode) -> Result<Vec<(String, Option<u64>)>, ImageError> {
        self.remove_leftovers()?;
        let mut removed = Vec::new();
        for image in self.list()? {
            if image.is_host() || (mode == CleanMode::Hidden && !image.is_hidden()) {
                continue;
            }
            match self.remove(&image.name) {
                Ok(()) => removed.push((image.name, image.usage_exclusive)),
                Err(ImageError::InUse { .. } | ImageError::NoSuchImage(_)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(removed)
    }

    /// Settings of systemd-nspawn for an image of this name, which nothing here removes.
    pub fn settings(&self, name: &str) -> Vec<PathBuf> {
        let file = format!("{name}{SETTINGS}");
        let dirs = self.layout.nspawn_settings().into_iter().chain([self.path().to_owned()]);
        dirs.map(|dir| dir.join(&file)).filter(|path| path.exists()).collect()
    }

    /// Name under which an image is made or removed, of which nothing is left; the name's lock must be held.
    pub(super) fn clear_temporary(&self, store: &OwnedFd, name: &str) -> Result<String, ImageError> {
        let temporary = format!("{TEMPORARY}{name}");
        self.remove_temporary(store, &temporary, name)?;
        Ok(temporary)
    }

    /// Removes what is at a temporary name.
    pub(super) fn remove_temporary(&self, store: &OwnedFd, temporary: &str, name: &str) -> Result<(), ImageError> {
        let c_name = process::c_path(Path::new(temporary));
        let removed = match c_name {
            Ok(c_name) => delete::entry(store, &c_name),
            Err(cause) => Err(Stopped { path: "/".into(), cause }),
        };
        removed.map_err(|Stopped { path, cause }| {
            ImageError::call(format!("cannot remove '{}' of image '{name}'", path.display()), cause)
        })
    }

    /// Removes what interrupted clones and removals left.
    fn remove_leftovers(&self) -> Result<(), ImageError> {
        let path = self.path();
        let failed = |cause| ImageError::call("cannot look for what was left", cause);
        let store = match open_dir(path) {
            Err(e) if e.errno == Errno::ENOENT => return Ok(()),
            store => store.map_err(failed)?,
        };
        for entry in file::list(path).map_err(failed)? {
            let entry = entry.call(|| format!("getdents64('{}')", path.display())).map_err(failed)?.file_name();
            let Some(temporary) = entry.to_str() else { continue };
            // A process that still works on it holds the name.
            if let Some(name) = temporary.strip_prefix(TEMPORARY)
                && check_name(name).is_ok()
                && let Some(_lock) = lock::try_take_name(&self.layout, name).map_err(failed)?
            {
                self.remove_temporary(&store, temporary, name)?;
            }
        }
        Ok(())
    }

    /// An image that may be changed: any but the host.
    pub(super) fn get_own(&self, name: &str) -> Result<Image, ImageError> {
        let image = self.get(name)?;
        if image.is_host() { Err(ImageError::ReadOnly(name.to_owned())) } else { Ok(image) }
    }

    /// Refuses a name that anything in the store has, image or not.
    pub(super) fn refuse_existing(&self, name: &str) -> Result<(), ImageError> {
        let is_there = |file: String| {
            let path = self.path().join(file);
            rustix::fs::statat(rustix::fs::CWD, &path, AtFlags::SYMLINK_NOFOLLOW).is_ok()
        };
        if name == HOST || is_there(name.to_owned()) || is_there(format!("{name}.raw")) {
            return Err(ImageError::Exists(name.to_owned()));
        }
        Ok(())
    }

    pub(super) fn beside(&self, name: &str, suffix: &str) -> PathBuf {
        self.path().join(format!("{name}{suffix}"))
    }
}

impl ImageKind {
    fn noun(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Subvolume => "subvolume",
            Self::Raw => "file",
            Self::Block => "block device",
        }
    }
}

/// Beginning of the names of what is not an image yet, or no more: not one of systemd's, nor one that an image can
/// have.
const TEMPORARY: &str = ".#machinist.";

/// Name of an image's file or directory.
pub(super) fn file_name(name: &str, kind: ImageKind) -> String {
    if kind == ImageKind::Raw { format!("{name}.raw") } else { name.to_owned() }
}

pub(super) fn rename(from: &Path, to: &Path) -> sys::Result<()> {
    let cwd = rustix::fs::CWD;
    rustix::fs::renameat_with(cwd, from, cwd, to, RenameFlags::NOREPLACE)
        .call(|| format!("renameat2('{}', '{}')", from.display(), to.display()))
}

pub(super) fn open_dir(path: &Path) -> sys::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).call(|| format!("open('{}')", path.display()))
}

/// Sets or takes the mark for which `chattr(1)` has the letter `i`.
pub(super) fn set_immutable(dir: &OwnedFd, immutable: bool) -> sys::Result<()> {
    let mut flags = rustix::fs::ioctl_getflags(dir).call(|| "ioctl(FS_IOC_GETFLAGS)".to_owned())?;
    if flags.contains(IFlags::IMMUTABLE) == immutable {
        return Ok(());
    }
    flags.set(IFlags::IMMUTABLE, immutable);
    rustix::fs::ioctl_setflags(dir, flags).call(|| "ioctl(FS_IOC_SETFLAGS)".to_owned())
}

/// Lets the owner write to a file, or no user.
fn set_write_bit(path: &Path, writable: bool) -> sys::Result<()> {
    let file = File::open(path).call(|| format!("open('{}')", path.display()))?;
    let stat = rustix::fs::fstat(&file).call(|| format!("fstat('{}')", path.display()))?;
    let mode = stat.st_mode & 0o444 | if writable { 0o200 } else { 0 };
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).call(|| format!("fchmod('{}', {mode:o})", path.display()))
}

/// The mark of a read-only directory, lifted while its name is changed, which it forbids.
struct Immutable(Option<OwnedFd>);

impl Immutable {
    fn lift(image: &Image) -> sys::Result<Self> {
        // A symlink's name is its own.
        let stat = rustix::fs::lstat(&image.path).call(|| format!("lstat('{}')", image.path.display()))?;
        let is_directory = FileType::from_raw_mode(stat.st_mode).is_dir();
        if image.kind != ImageKind::Directory || !image.read_only || !is_directory {
            return Ok(Self(None));
        }
        let dir = open_dir(&image.path)?;
        let is_set = rustix::fs::ioctl_getflags(&dir).is_ok_and(|flags| flags.contains(IFlags::IMMUTABLE));
        if !is_set {
            return Ok(Self(None));
        }
        set_immutable(&dir, false)?;
        Ok(Self(Some(dir)))
    }

    fn restore(self) -> sys::Result<()> {
        self.0.map_or(Ok(()), |dir| set_immutable(&dir, true))
    }
}

fn limit_subvolume(doing: String, path: &Path, limit: Option<u64>) -> Result<(), ImageError> {
    let set = open_dir(path).and_then(|dir| {
        let id = btrfs::info(&dir)?.id;
        btrfs::set_limit(&dir, id, limit)
    });
    set.map_err(|cause| match cause.errno {
        Errno::ENOTCONN => ImageError::NotSupported {
            doing,
            why: "its file system keeps no quotas".to_owned(),
            hint: Some(format!("`btrfs quota enable {}` makes it keep them", path.display())),
        },
        _ => ImageError::call(doing, cause),
    })
}
