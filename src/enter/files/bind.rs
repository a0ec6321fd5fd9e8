//! Shows a file or directory of the host in a running machine.
//!
//! The mount is made detached and with the machine's ids, then attached to a place that the machine's root looks up and
//! makes. In between it goes through a mount namespace that the machine's user namespace owns: the kernel locks what
//! comes there from a more privileged one, or the machine could make a read-only mount writable.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::error::{InsideError, Outcome};
use super::leader::{Leader, become_guest_root, host_root, leave_mounts, shown};
use crate::sys::mount::{self, Attributes, Propagation};
use crate::sys::namespace::{self, Ids, Kind};
use crate::sys::path::{RootFd, make_node};
use crate::sys::process::ns;
use crate::sys::{Context as _, Errno, process};

/// What to show where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Path on the host; symlinks are followed.
    pub source: String,
    /// Path in the machine, which may not end with a symlink.
    pub target: String,
    /// The machine cannot write to it.
    pub read_only: bool,
    /// Make the mount point, and what is missing above it.
    pub make: bool,
}

pub(super) fn bind(request: &Bind, leader: &Leader) -> Outcome<()> {
    let root = RootFd::from_fd(leader.root(OFlags::PATH)?);
    let userns = leader.user_namespace()?;
    let mounts = namespace::open(leader.pid, Kind::Mount);
    leader.check()?;
    let mounts = mounts?;
    let owner = namespace::owner(&mounts)?;
    leave_mounts()?;
    let is_mapped = userns.is_some();
    let (tree, is_dir) = source(request, userns.as_ref())?;
    let (tree, maker) = match userns {
        // What the machine's root may not mount by itself it cannot change either, and we cannot enter as that.
        Some(userns) if namespace::is_same(&userns, &owner)? => (lock(&tree, is_dir, &userns)?, 0),
        _ => (tree, if is_mapped { guest_root(leader)? } else { 0 }),
    };
    // By itself, for the machine's root may not look at its own leader from here.
    process::setns(&mounts, ns::MOUNT)?;
    let onto = mount_point(&root, request, !is_dir, maker)?;
    Ok(mount::attach(&tree, &onto)?)
}

/// The host id of the machine's root.
fn guest_root(leader: &Leader) -> Outcome<u32> {
    let map = namespace::id_map(leader.pid, Ids::Users)?;
    leader.check()?;
    Ok(map.iter().find_map(|extent| extent.outward(0)).unwrap_or(0))
}

/// The source as a detached tree, and whether it is a directory.
fn source(request: &Bind, userns: Option<&OwnedFd>) -> Outcome<(OwnedFd, bool)> {
    let name = shown(&request.source);
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = rustix::fs::open(request.source.as_str(), flags, Mode::empty()).call(|| format!("open({name})"))?;
    let stat = rustix::fs::fstat(&found).call(|| format!("fstat({name})"))?;
    let tree = mount::copy_tree(&found, Path::new(""), true)?;
    mount::set_propagation(&tree, true, Propagation::Private)?;
    let attributes = Attributes { read_only: request.read_only, nodev: userns.is_some(), ..Attributes::default() };
    if attributes != Attributes::default() {
        mount::add_attributes(&tree, true, attributes)?;
    }
    if let Some(userns) = userns {
        mount::map_ids(&tree, true, userns).map_err(|e| match e.errno {
            Errno::EINVAL | Errno::EPERM => InsideError::new(
                Errno::EOPNOTSUPP,
                format!("the file system of {name} (or of a mount below it) cannot map ids for the machine"),
            ),
            _ => e.into(),
        })?;
    }
    Ok((tree, FileType::from_raw_mode(stat.st_mode).is_dir()))
}

/// Becomes root of the machine, and gives the tree as one whose flags that root cannot change.
fn lock(tree: &OwnedFd, is_dir: bool, userns: &OwnedFd) -> Outcome<OwnedFd> {
    const PLACE: &str = "tree";
    let stage = mount::create("tmpfs", &[mount::Option::Text("mode", "0755")], Attributes::DATA)?;
    let kind = if is_dir { FileType::Directory } else { FileType::RegularFile };
    make_node(rustix::fd::AsFd::as_fd(&stage), PLACE, kind, 0o755, (0, 0), 0)?;
    mount::attach(&stage, host_root()?)?;
    mount::attach_at(tree, &stage, PLACE)?;
    // A namespace with little in it, for it is copied next.
    rustix::process::fchdir(&stage).call(|| "fchdir".into())?;
    mount::pivot_into_current_directory()?;
    become_guest_root(userns)?;
    process::unshare(ns::MOUNT)?;
    Ok(mount::copy_host_tree(&Path::new("/").join(PLACE), true)?)
}

/// Finds or makes the place, with the rights that we have by now; nothing on its path is mounted for that.
fn mount_point(root: &RootFd, request: &Bind, file: bool, owner: u32) -> Outcome<OwnedFd> {
    let target = &request.target;
    let fd = match root.open_inside(target, OFlags::PATH | OFlags::NOFOLLOW) {
        Err(e) if e.errno == Errno::ENOENT && request.make => root.mount_point(target, file, owner)?,
        other => other?,
    };
    let stat = rustix::fs::fstat(&fd).call(|| format!("fstat({})", shown(target)))?;
    let found = FileType::from_raw_mode(stat.st_mode);
    let refused =
        |errno, what: &str| Err(InsideError::new(errno, format!("{} of the machine is {what}", shown(target))));
    match (found, file) {
        (FileType::Symlink, _) => refused(Errno::ELOOP, "a symlink, on which nothing is mounted"),
        (FileType::Directory, true) => refused(Errno::EISDIR, "a directory, and the source is none"),
        (FileType::Directory, false) | (_, true) => Ok(fd),
        (_, false) => refused(Errno::ENOTDIR, "no directory, and the source is one"),
    }
}
