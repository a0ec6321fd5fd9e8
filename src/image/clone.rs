//! Makes an image of an image, in the cheapest way that the file system has.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::change::{BESIDE, file_name, open_dir, rename, set_immutable};
use super::entry::check_name;
use super::lock::{self, ImageLock};
use super::{Image, ImageError, ImageKind, OnProgress, Store};
use crate::sys::path::RootFd;
use crate::sys::{self, Context as _, Errno, btrfs, mount, process};
use crate::tree::copy::{self, Copier};
use crate::tree::inode;
use crate::tree::walk::Stopped;

/// How a clone was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloneMethod {
    /// As a snapshot: at once, whatever the size, and at one moment.
    Snapshot,
    /// File by file; contents are shared until one of the two is changed.
    Reflink,
    /// File by file, contents included.
    Copy,
}

impl CloneMethod {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Reflink => "reflink",
            Self::Copy => "copy",
        }
    }
}

/// A clone that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cloned {
    /// How.
    pub method: CloneMethod,
    /// The original was in use: what is no snapshot holds its files as they were at different moments.
    pub was_in_use: bool,
}

impl Store {
    /// Makes the image `to` of the image `from`, which may be in use.
    ///
    /// Nothing is there under the new name before it is complete, and nothing is left if it fails or is cancelled.
    ///
    /// # Errors
    /// [`ImageError::Cancelled`] when `on_progress` has broken it off.
    pub fn clone(
        &self,
        from: &str,
        to: &str,
        read_only: bool,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<Cloned, ImageError> {
        let image = self.get_own(from)?;
        check_name(to)?;
        let doing = format!("cannot clone image '{from}' as '{to}'");
        if image.kind == ImageKind::Block {
            return Err(ImageError::not_supported(doing, "it is a block device"));
        }
        let _name = lock::take_name(&self.layout, to)?;
        self.refuse_existing(to)?;
        let lock = match ImageLock::shared(&self.layout, &image) {
            Ok(lock) => Some(lock),
            Err(ImageError::InUse { .. }) => None,
            Err(e) => return Err(e),
        };
        let failed = |cause| ImageError::call(doing.clone(), cause);
        let store = open_dir(self.path()).map_err(failed)?;
        let temporary = self.clear_temporary(&store, to)?;
        let new = self.path().join(file_name(to, image.kind));
        let made = make(&image, &store, &temporary, read_only, on_progress).and_then(|made| {
            rename(&self.path().join(&temporary), &new).map_err(at_root)?;
            Ok(made)
        });
        let method = made.map_err(|stopped| {
            // The first failure is what the user needs; the next clone of this name removes what is left.
            let _ = self.remove_temporary(&store, &temporary, to);
            explain(&doing, stopped)
        })?;
        if read_only && method != CloneMethod::Snapshot && image.kind != ImageKind::Raw {
            // The mark forbids a change of name, so it comes last.
            self.mark(&new).map_err(failed)?;
        }
        self.clone_beside(from, to).map_err(failed)?;
        Ok(Cloned { method, was_in_use: lock.is_none() })
    }

    /// Marks a new tree as read-only, where that is possible for directories.
    fn mark(&self, new: &Path) -> sys::Result<()> {
        let dir = open_dir(new)?;
        let stat = rustix::fs::fstat(&dir).call(|| "fstat()".to_owned())?;
        if btrfs::is_subvolume(&dir, &stat) {
            return btrfs::set_read_only(&dir, true);
        }
        match set_immutable(&dir, true) {
            Err(e) if matches!(e.errno, Errno::ENOTTY | Errno::EOPNOTSUPP) => Ok(()),
            result => result,
        }
    }

    /// Copies the files that go by the image's name, unless there are such for the new name.
    fn clone_beside(&self, from: &str, to: &str) -> sys::Result<()> {
        let store = open_dir(self.path())?;
        for suffix in BESIDE {
            let Ok(file) = File::open(self.beside(from, suffix)) else { continue };
            let name = process::c_path(Path::new(&format!("{to}{suffix}")))?;
            let mut no_progress = |_: &copy::Progress| std::ops::ControlFlow::Continue(());
            match copy::disk(file, &store, &name, &mut Copier::new(&mut no_progress)) {
                Err(e) if e.errno == Errno::EEXIST => {}
                result => drop(result?),
            }
        }
        Ok(())
    }
}

fn at_root(cause: sys::Error) -> Stopped {
    Stopped { path: "/".into(), cause }
}

fn explain(doing: &str, Stopped { path, cause }: Stopped) -> ImageError {
    if cause.errno == Errno::ECANCELED {
        return ImageError::Cancelled;
    }
    if path == Path::new("/") {
        return ImageError::call(doing, cause);
    }
    ImageError::call(format!("{doing}: its file '{}'", path.to_string_lossy().escape_debug()), cause)
}

/// Makes the clone under a temporary name.
fn make(
    image: &Image,
    store: &OwnedFd,
    temporary: &str,
    read_only: bool,
    on_progress: &mut OnProgress<'_>,
) -> Result<CloneMethod, Stopped> {
    let name = process::c_path(Path::new(temporary)).map_err(at_root)?;
    let mut copier = Copier::new(on_progress);
    if image.kind == ImageKind::Raw {
        make_disk(image, store, &name, read_only, &mut copier).map_err(at_root)?;
    } else {
        let source = open_dir(&image.path).map_err(at_root)?;
        if image.kind == ImageKind::Subvolume && snapshot(&source, store, &name, read_only).map_err(at_root)? {
            return Ok(CloneMethod::Snapshot);
        }
        let target = make_directory(store, &name).map_err(at_root)?;
        let source = without_mounts(source).map_err(at_root)?;
        copy::tree(source, target, &mut copier)?;
    }
    Ok(if copier.has_shared && !copier.has_copied { CloneMethod::Reflink } else { CloneMethod::Copy })
}

fn make_disk(image: &Image, store: &OwnedFd, name: &CStr, read_only: bool, copier: &mut Copier<'_>) -> sys::Result<()> {
    let source = File::open(&image.path).call(|| format!("open('{}')", image.path.display()))?;
    let made = copy::disk(source, store, name, copier)?;
    let mode = made.stat()?.st_mode & 0o777;
    made.set_mode(if read_only { mode & 0o444 } else { mode | 0o200 })
}

/// A view of the tree in which nothing is covered by other mounts.
fn without_mounts(tree: OwnedFd) -> sys::Result<OwnedFd> {
    match mount::copy_tree(&tree, Path::new(""), false) {
        Ok(copy) => open_made(&copy, c"."),
        // Not for us; then what lies on other mounts is left out.
        Err(e) if matches!(e.errno, Errno::EPERM | Errno::EINVAL) => Ok(tree),
        Err(e) => Err(e),
    }
}

/// Makes the directory of a copy: a subvolume where there are such, so that the next clone is a snapshot.
fn make_directory(store: &OwnedFd, name: &CStr) -> sys::Result<OwnedFd> {
    if btrfs::is_btrfs(store) {
        btrfs::create(store, name)?;
    } else {
        rustix::fs::mkdirat(store, name, Mode::RWXU).call(|| "mkdirat()".to_owned())?;
    }
    open_made(store, name)
}

/// A subvolume in the tree that is cloned, which a snapshot of the tree shows as an empty directory.
struct Nested {
    id: u64,
    /// Below the root of the tree.
    path: CString,
}

/// Makes snapshots of the subvolume `source` and of each one in it; `false` if that cannot be, as across file systems.
fn snapshot(source: &OwnedFd, store: &OwnedFd, name: &CStr, read_only: bool) -> sys::Result<bool> {
    match btrfs::snapshot(source, store, name, false) {
        Err(e) if matches!(e.errno, Errno::EXDEV | Errno::ENOTTY | Errno::EOPNOTSUPP) => return Ok(false),
        made => made?,
    }
    let copy = open_made(store, name)?;
    let (from, to) = (RootFd::from_fd(duplicate(source)?), RootFd::from_fd(duplicate(&copy)?));
    let mut marked = Vec::new();
    let mut todo = nested(source, btrfs::info(source)?.id, c"")?;
    while let Some(next) = todo.pop() {
        let source = match open_below(&from, &next.path) {
            // A running machine has removed it since.
            Err(e) if matches!(e.errno, Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => continue,
            source => source?,
        };
        let info = btrfs::info(&source)?;
        // Or has put another one there.
        if info.id != next.id {
            continue;
        }
        let (parent, name) = split(&next.path)?;
        let parent = open_below(&to, &parent)?;
        let empty = rustix::fs::unlinkat(&parent, &name, rustix::fs::AtFlags::REMOVEDIR);
        empty.call(|| format!("unlinkat('{}')", next.path.to_string_lossy().escape_debug()))?;
        btrfs::snapshot(&source, &parent, &name, false)?;
        todo.extend(nested(&source, info.id, &next.path)?);
        if read_only || info.read_only {
            marked.push(next.path);
        }
    }
    // Last, and from the innermost out, for nothing can be put into one that is marked.
    for path in marked.iter().rev() {
        btrfs::set_read_only(open_below(&to, path)?, true)?;
    }
    if read_only {
        btrfs::set_read_only(&copy, true)?;
    }
    Ok(true)
}

/// The subvolumes directly below another one, whose path in the tree is `above`.
fn nested(subvolume: impl AsFd, id: u64, above: &CStr) -> sys::Result<Vec<Nested>> {
    let join = |child: btrfs::Child| {
        let slash: &[u8] = if above.is_empty() { b"" } else { b"/" };
        let path = [above.to_bytes(), slash, child.directory.to_bytes(), child.name.to_bytes()].concat();
        Some(Nested { id: child.id, path: CString::new(path).ok()? })
    };
    Ok(btrfs::children(subvolume, id)?.into_iter().filter_map(join).collect())
}

/// The path of the directory that a path is in, and the name in it.
fn split(path: &CStr) -> sys::Result<(CString, CString)> {
    let bytes = path.to_bytes();
    let at = bytes.iter().rposition(|byte| *byte == b'/');
    let (parent, name) = at.map_or((&b""[..], bytes), |at| (&bytes[..at], &bytes[at + 1..]));
    let made = CString::new(parent).and_then(|parent| Ok((parent, CString::new(name)?)));
    made.map_err(|_| sys::Error { call: "naming a subvolume".to_owned(), errno: Errno::EINVAL })
}

fn open_below(root: &RootFd, path: &CStr) -> sys::Result<OwnedFd> {
    let text = path.to_str().map_err(|_| sys::Error {
        call: format!("opening the subvolume '{}'", path.to_string_lossy()),
        errno: Errno::EILSEQ,
    })?;
    root.open_plain(text, OFlags::RDONLY | OFlags::DIRECTORY)
}

fn open_made(store: &OwnedFd, name: &CStr) -> sys::Result<OwnedFd> {
    inode::open_dir(store, name)?.ok_or(sys::Error { call: "openat2()".to_owned(), errno: Errno::ENOENT })
}

fn duplicate(fd: &OwnedFd) -> sys::Result<OwnedFd> {
    fd.try_clone().call(|| "dup()".to_owned())
}
