//! The mount API of Linux 5.2 and later: trees are built detached and live by descriptor.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};

use super::{Context, Result, check};

/// Attributes of one mount (`mount_setattr(2)`), not of the file system below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Attributes {
    /// No writes.
    pub read_only: bool,
    /// Setuid bits have no effect.
    pub nosuid: bool,
    /// Device nodes have no effect.
    pub nodev: bool,
    /// Nothing can be executed.
    pub noexec: bool,
}

impl Attributes {
    /// `nosuid`, `nodev` and `noexec`: for file systems that hold no programs.
    pub const DATA: Self = Self { read_only: false, nosuid: true, nodev: true, noexec: true };

    fn flags(self) -> MountAttrFlags {
        let mut flags = MountAttrFlags::empty();
        for (on, flag) in [
            (self.read_only, MountAttrFlags::MOUNT_ATTR_RDONLY),
            (self.nosuid, MountAttrFlags::MOUNT_ATTR_NOSUID),
            (self.nodev, MountAttrFlags::MOUNT_ATTR_NODEV),
            (self.noexec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        ] {
            flags.set(flag, on);
        }
        flags
    }
}

/// One setting of a new file system.
#[derive(Debug)]
pub enum Option<'a> {
    /// A bare word.
    Flag(&'a str),
    /// `key=value`.
    Text(&'a str, &'a str),
    /// A key whose value is an open file.
    File(&'a str, BorrowedFd<'a>),
}

/// Makes a file system of type `kind` and gives its root as a detached mount.
pub fn create(kind: &str, options: &[Option<'_>], attributes: Attributes) -> Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).call(|| format!("fsopen({kind})"))?;
    for option in options {
        match option {
            Option::Flag(key) => {
                fsconfig_set_flag(context.as_fd(), *key).call(|| format!("fsconfig({kind}, {key})"))?;
            }
            Option::Text(key, value) => {
                fsconfig_set_string(context.as_fd(), *key, *value)
                    .call(|| format!("fsconfig({kind}, {key}={value})"))?;
            }
            Option::File(key, fd) => {
                fsconfig_set_fd(context.as_fd(), *key, *fd).call(|| format!("fsconfig({kind}, {key}=<open file>)"))?;
            }
        }
    }
    fsconfig_create(context.as_fd()).call(|| format!("fsconfig({kind}, create)"))?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes.flags()).call(|| format!("fsmount({kind})"))
}

/// Copies the mount at `path` below `dir` as a detached tree, following symlinks.
///
/// An empty path means `dir` itself. Callers that must not follow links resolve the path first.
pub fn copy_tree(dir: impl AsFd, path: &Path, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    flags.set(OpenTreeFlags::AT_EMPTY_PATH, path.as_os_str().is_empty());
    open_tree(dir, path, flags).call(|| format!("open_tree('{}')", path.display()))
}

/// Same for a path of the host.
pub fn copy_host_tree(path: &Path, recursive: bool) -> Result<OwnedFd> {
    copy_tree(rustix::fs::CWD, path, recursive)
}

/// Attaches the detached tree `tree` on top of the directory or file `onto`.
pub fn attach(tree: impl AsFd, onto: impl AsFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", onto, "", flags).call(|| "move_mount".into())
}

/// Attaches the detached tree `tree` at `path` below `dir`, a directory that no other process can change.
pub fn attach_at(tree: impl AsFd, dir: impl AsFd, path: &str) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(tree, "", dir, path, flags).call(|| format!("move_mount('{path}')"))
}

/// How mounts and unmounts travel between copies of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the kernel's terms, see mount_namespaces(7)")]
pub enum Propagation {
    Private,
    Slave,
    Shared,
}

fn set_attributes(fd: BorrowedFd<'_>, recursive: bool, attr: &libc::mount_attr, what: &str) -> Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a terminated string, `attr` outlives the call and its size is passed along.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<libc::mount_attr>(),
        )
    };
    check(result).call(|| format!("mount_setattr({what})")).map(drop)
}

fn empty_attr() -> libc::mount_attr {
    libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: 0, userns_fd: 0 }
}

/// Adds `attributes` to a mount, and to those below it when `recursive`.
pub fn add_attributes(mount: impl AsFd, recursive: bool, attributes: Attributes) -> Result<()> {
    let attr = libc::mount_attr { attr_set: u64::from(attributes.flags().bits()), ..empty_attr() };
    set_attributes(mount.as_fd(), recursive, &attr, &format!("{attributes:?}"))
}

/// Maps the ids of a detached mount by the user namespace `userns`.
pub fn map_ids(mount: impl AsFd, recursive: bool, userns: impl AsFd) -> Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        userns_fd: u64::from(userns.as_fd().as_raw_fd().cast_unsigned()),
        ..empty_attr()
    };
    set_attributes(mount.as_fd(), recursive, &attr, "MOUNT_ATTR_IDMAP")
}

/// Sets the propagation of a mount, and of those below it when `recursive`.
pub fn set_propagation(mount: impl AsFd, recursive: bool, propagation: Propagation) -> Result<()> {
    let flag = match propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Shared => libc::MS_SHARED,
    };
    let attr = libc::mount_attr { propagation: flag, ..empty_attr() };
    set_attributes(mount.as_fd(), recursive, &attr, &format!("{propagation:?}"))
}

/// Makes the current directory the root of the mount namespace and drops the old root from it.
pub fn pivot_into_current_directory() -> Result<()> {
    rustix::process::pivot_root(".", ".").call(|| "pivot_root('.', '.')".into())?;
    unmount(".", UnmountFlags::DETACH).call(|| "umount2(old root, MNT_DETACH)".into())
}

/// Takes the topmost mount at `path` below the current directory away.
pub fn detach(path: &str) -> Result<()> {
    unmount(path, UnmountFlags::DETACH).call(|| format!("umount2('{path}', MNT_DETACH)"))
}
