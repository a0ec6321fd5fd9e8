//! Turns the root part of a plan into a mounted tree, in a mount namespace that ends with the setup.
//!
//! [`build`] gives the root as a detached mount; [`mounts::Mounter`] attaches everything below it. Layers of an
//! overlay are idmapped first and stacked afterwards, so a user namespace costs no chown whatever the size
//! of the tree.

pub mod devices;
pub mod idmap;
pub mod init;
pub mod mounts;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags};

use crate::plan::{OverlayMethod, OverlayPlan, RootPlan, TreePlan, UpperPlan};
use crate::spec::Volatile;
use crate::sys::mount::{self, Attributes};
use crate::sys::path::{RootFd, chown_at, make_node};
use crate::sys::{self, Context as _, Doing as _, Errno, StepError, process};

/// Ids of the machine as the mounts need them.
#[derive(Debug, Clone, Copy)]
pub struct Ids<'a> {
    /// First host id of the machine.
    pub shift: u32,
    /// Number of ids.
    pub size: u32,
    /// The machine's user namespace, when it has one with ids unlike the host's.
    pub userns: Option<BorrowedFd<'a>>,
    /// Whether files of the tree are mapped (else they already have the machine's ids).
    pub map_tree: bool,
}

/// A directory of the host held open and locked while a machine uses it.
///
/// The lock (`flock(2)` on the directory itself) is shared for layers and exclusive for what is written to;
/// the kernel frees it with the last descriptor, however we end.
#[derive(Debug)]
pub struct HeldDirectory {
    /// Where it is.
    pub path: PathBuf,
    /// The directory.
    pub fd: OwnedFd,
    /// What it is used for.
    pub how: Use,
    /// Its role, as errors name it.
    pub what: &'static str,
    /// See [`HeldDirectory::keep_writable`].
    busy: Option<OwnedFd>,
}

/// Whether a directory is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Others may read it, too.
    Read,
    /// No other machine may use it.
    Write,
}

impl HeldDirectory {
    /// Opens and locks `path`; `what` names its role in errors.
    pub fn acquire(path: &Path, how: Use, what: &'static str) -> Result<Self, StepError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .call(|| format!("open('{}')", path.display()))
            .doing(|| format!("cannot use {what} '{}'", path.display()))?;
        let operation = match how {
            Use::Read => FlockOperation::NonBlockingLockShared,
            Use::Write => FlockOperation::NonBlockingLockExclusive,
        };
        match rustix::fs::flock(&fd, operation) {
            Ok(()) => Ok(Self { path: path.to_owned(), fd, how, what, busy: None }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(StepError::refused(format!("{what} '{}' is in use by another machine", path.display())))
            }
            Err(e) => Err(e).call(|| format!("flock('{}')", path.display())).doing(|| format!("cannot lock {what}")),
        }
    }
}

impl HeldDirectory {
    /// Keeps the machine from making the directory's whole file system read-only.
    ///
    /// Many inits end with `mount -o remount,ro /`. Without a user namespace that reaches the host's file
    /// system, unless something on it is open for writing: here a file without a name.
    fn keep_writable(&mut self) {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        // A file system without such files, or one that is read-only already, cannot be kept.
        self.busy = rustix::fs::openat(&self.fd, ".", flags, Mode::from_raw_mode(0o600)).ok();
    }

    /// A detached copy of the directory's mount.
    ///
    /// Made by the supervisor: only a process in the mount namespace that a descriptor came from may copy it.
    fn copy(&self, recursive: bool) -> Result<MountedDirectory<'_>, StepError> {
        let tree = mount::copy_tree(&self.fd, Path::new(""), recursive)
            .doing(|| format!("cannot use '{}'", self.path.display()))?;
        Ok(MountedDirectory { path: &self.path, tree })
    }
}

/// A directory of the host as a detached mount, for one boot.
#[derive(Debug)]
pub struct MountedDirectory<'a> {
    path: &'a Path,
    tree: OwnedFd,
}

/// A [`HeldTree`] as detached mounts, for one boot.
#[derive(Debug)]
#[allow(missing_docs, reason = "as in HeldTree")]
pub enum MountedTree<'a> {
    Directory(MountedDirectory<'a>),
    Overlay { lower: Vec<MountedDirectory<'a>>, upper: Option<MountedDirectory<'a>>, memory: bool },
}

/// The host directories of one tree, opened and locked before anything is mounted.
#[derive(Debug)]
pub enum HeldTree {
    /// The root itself.
    Directory(HeldDirectory),
    /// Layers, topmost first, and the place for writes.
    Overlay {
        /// The layers.
        lower: Vec<HeldDirectory>,
        /// Holds `upper` and `work`; `None` for memory or a read-only stack.
        upper: Option<HeldDirectory>,
        /// Writes go to memory.
        memory: bool,
    },
}

impl HeldTree {
    /// Opens and locks what the root needs, making the directories for writes.
    pub fn acquire_root(root: &RootPlan, user_namespace: bool) -> Result<Self, StepError> {
        match &root.source {
            TreePlan::Directory(path) => {
                let how = if root.read_only { Use::Read } else { Use::Write };
                let mut held = HeldDirectory::acquire(path, how, "the tree")?;
                if !user_namespace {
                    held.keep_writable();
                }
                Ok(Self::Directory(held))
            }
            TreePlan::Overlay(overlay) => Self::acquire_overlay(overlay),
        }
    }

    /// Opens and locks what an overlay needs, making the directories for writes.
    pub fn acquire_overlay(overlay: &OverlayPlan) -> Result<Self, StepError> {
        let lower = overlay.lower.iter().map(|path| HeldDirectory::acquire(path, Use::Read, "the layer"));
        let lower: Vec<_> = lower.collect::<Result<_, _>>()?;
        let upper = match &overlay.upper {
            Some(UpperPlan::Directory(path)) => Some(acquire_upper(path, &lower)?),
            Some(UpperPlan::Memory) | None => None,
        };
        let memory = overlay.upper == Some(UpperPlan::Memory);
        Ok(Self::Overlay { lower, upper, memory })
    }

    /// Every directory of it.
    pub fn directories(&self) -> impl Iterator<Item = &HeldDirectory> {
        let (root, layers, upper) = match self {
            Self::Directory(root) => (Some(root), &[][..], None),
            Self::Overlay { lower, upper, .. } => (None, &lower[..], upper.as_ref()),
        };
        root.into_iter().chain(layers).chain(upper)
    }

    /// Detached mounts of everything held.
    pub fn copy(&self) -> Result<MountedTree<'_>, StepError> {
        Ok(match self {
            Self::Directory(directory) => MountedTree::Directory(directory.copy(true)?),
            Self::Overlay { lower, upper, memory } => MountedTree::Overlay {
                lower: lower.iter().map(|l| l.copy(false)).collect::<Result<_, _>>()?,
                upper: upper.as_ref().map(|u| u.copy(false)).transpose()?,
                memory: *memory,
            },
        })
    }
}

fn acquire_upper(path: &Path, lower: &[HeldDirectory]) -> Result<HeldDirectory, StepError> {
    let doing = || format!("cannot make the place for writes '{}'", path.display());
    // Only root may enter what we make: the machine's root can leave setuid programs of the host's root in it.
    if let Err(e) = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path) {
        return Err(e).call(|| format!("mkdir('{}')", path.display())).doing(doing);
    }
    refuse_unfit_upper(path, lower)?;
    let held = HeldDirectory::acquire(path, Use::Write, "the place for writes")?;
    for name in ["upper", "work"] {
        match rustix::fs::mkdirat(&held.fd, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(e).call(|| format!("mkdirat('{name}')")).doing(doing),
        }
    }
    Ok(held)
}

/// Refuses what the kernel answers with a bare EINVAL, or takes and gives undefined results for: an upper on an
/// overlay, and one that is a layer, holds one or lies in one, whatever names lead there.
fn refuse_unfit_upper(path: &Path, lower: &[HeldDirectory]) -> Result<(), StepError> {
    let doing = || format!("cannot look at the place for writes '{}'", path.display());
    let upper = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let upper = upper.call(|| format!("open('{}')", path.display())).doing(doing)?;
    if is_overlay(&upper) {
        return Err(StepError::refused(format!("the place for writes '{}' is itself on overlayfs", path.display()))
            .hint("put it on ext4, xfs or btrfs, or set `upper = \"ephemeral\"`"));
    }
    let above_upper = line_of(&upper).doing(doing)?;
    for layer in lower {
        let above_layer = line_of(&layer.fd).doing(doing)?;
        // The host's own root holds every directory, which the kernel copes with.
        let is_host_root = above_layer.len() == 1;
        let what = match (above_upper.first(), above_layer.first()) {
            (upper, layer) if upper == layer => "are the same directory",
            (Some(upper), _) if above_layer.contains(upper) => "lie one in the other",
            (_, Some(layer)) if above_upper.contains(layer) && !is_host_root => "lie one in the other",
            _ => continue,
        };
        let (writes, layer) = (path.display(), layer.path.display());
        return Err(StepError::refused(format!("the place for writes '{writes}' and the layer '{layer}' {what}"))
            .hint("give `upper` a directory of its own outside of every layer"));
    }
    Ok(())
}

/// What identifies a directory and each one above it, itself first.
fn line_of(dir: &OwnedFd) -> sys::Result<Vec<(u64, u64)>> {
    let identity = |fd: &OwnedFd| rustix::fs::fstat(fd).call(|| "fstat".into()).map(|s| (s.st_dev, s.st_ino));
    let mut line = vec![identity(dir)?];
    let mut at = dir.try_clone().call(|| "dup".into())?;
    loop {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        at = rustix::fs::openat(&at, "..", flags, Mode::empty()).call(|| "openat('..')".into())?;
        let above = identity(&at)?;
        // Only the root is its own parent.
        if line.last() == Some(&above) {
            return Ok(line);
        }
        line.push(above);
    }
}

fn is_overlay(fd: &OwnedFd) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|s| s.f_type == libc::OVERLAYFS_SUPER_MAGIC)
}

/// How trees are put together.
#[derive(Debug, Clone, Copy)]
pub struct Stacking<'a> {
    /// How an overlay gets its layers; those that are attached first, are below `scratch`.
    pub method: OverlayMethod,
    /// A directory of the host on which our own mount namespace may have anything mounted.
    pub scratch: &'a Path,
}

/// Builds the root as a detached mount.
///
/// Runs in the outer child: a mount namespace of its own with the rights of the host.
pub fn build(
    plan: &RootPlan,
    made: &MountedTree<'_>,
    ids: Ids<'_>,
    stacking: Stacking<'_>,
) -> Result<OwnedFd, StepError> {
    let tree = match made {
        MountedTree::Directory(directory) => {
            map(&directory.tree, true, ids, directory.path)?;
            mount::set_propagation(&directory.tree, true, mount::Propagation::Private)
                .doing(|| format!("cannot detach '{}' from the host's mounts", directory.path.display()))?;
            let copy = directory.tree.try_clone().call(|| "dup".into());
            copy.doing(|| format!("cannot keep '{}'", directory.path.display()))?
        }
        MountedTree::Overlay { lower, upper, memory } => overlay(lower, upper.as_ref(), *memory, ids, stacking)?,
    };
    let attributes = Attributes { read_only: plan.read_only, nodev: ids.userns.is_some(), ..Attributes::default() };
    if attributes != Attributes::default() {
        mount::add_attributes(&tree, true, attributes).doing(|| "cannot set the flags of the root mount".into())?;
    }
    if plan.volatile == Volatile::Yes { volatile_root(&tree, ids, stacking.scratch) } else { Ok(tree) }
}

fn map(tree: &OwnedFd, recursive: bool, ids: Ids<'_>, path: &Path) -> Result<(), StepError> {
    let (Some(userns), true) = (ids.userns, ids.map_tree) else { return Ok(()) };
    mount::map_ids(tree, recursive, userns).map_err(|cause| {
        let hint = match cause.errno {
            Errno::EINVAL => Some(format!(
                "the file system of '{}' (or of a mount below it) cannot map ids; set `users.ownership = \"chown\"` to give \
                 the files new owners, or `users.mode = \"host\"`",
                path.display()
            )),
            _ => None,
        };
        StepError { doing: format!("cannot map the ids of '{}'", path.display()), cause: Some(cause), hint }
    })
}

/// Stacks layers, each mapped on its own, as a detached overlay mount.
pub fn overlay(
    lower: &[MountedDirectory<'_>],
    upper: Option<&MountedDirectory<'_>>,
    memory: bool,
    ids: Ids<'_>,
    stacking: Stacking<'_>,
) -> Result<OwnedFd, StepError> {
    for layer in lower.iter().chain(upper) {
        map(&layer.tree, false, ids, layer.path)?;
    }
    let made;
    let writes = match upper {
        Some(held) => Some(&held.tree),
        None if memory => {
            made = memory_upper(ids.shift).doing(|| "cannot make a tmpfs for writes".into())?;
            Some(&made)
        }
        None => None,
    };
    let layers: Vec<&OwnedFd> = lower.iter().map(|l| &l.tree).collect();
    // Overlay makes directories in the place for writes with the credentials of the process that makes the overlay, now
    // and later. Without an id on that mount it could not, and would quietly be read-only.
    let is_mapped = upper.is_some() && ids.userns.is_some() && ids.map_tree;
    let result = process::as_file_user(if is_mapped { ids.shift } else { 0 }, || match stacking.method {
        OverlayMethod::OpenFiles => stack(&layers, writes),
        OverlayMethod::Attached => stack_attached(&layers, writes, stacking.scratch),
    });
    let tree = result.map_err(|cause| {
        let hint = match cause.errno {
            Errno::ELOOP => Some("one of the layers lies inside another; give each a directory of its own".into()),
            _ => explain_overlay(lower),
        };
        StepError { doing: format!("cannot stack {} layers as an overlay", lower.len()), cause: Some(cause), hint }
    })?;
    // Overlay becomes read-only, without an error, when it cannot write there.
    let is_read_only =
        rustix::fs::fstatvfs(&tree).is_ok_and(|s| s.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    match upper {
        Some(upper) if is_read_only => {
            let place = upper.path.display();
            Err(StepError::refused(format!("the overlay cannot write to '{place}'"))
                .hint("is its file system full, or mounted read-only?"))
        }
        _ => Ok(tree),
    }
}

fn memory_upper(shift: u32) -> sys::Result<OwnedFd> {
    let tree = mount::create("tmpfs", &[mount::Option::Text("mode", "0700")], Attributes::default())?;
    make_node(tree.as_fd(), "upper", FileType::Directory, 0o755, (0, 0), shift)?;
    make_node(tree.as_fd(), "work", FileType::Directory, 0o755, (0, 0), 0)?;
    Ok(tree)
}

fn stack(layers: &[&OwnedFd], writes: Option<&OwnedFd>) -> sys::Result<OwnedFd> {
    let open = |dir: &OwnedFd, name: &str| {
        rustix::fs::openat(dir, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .call(|| format!("openat('{name}')"))
    };
    let mut options: Vec<mount::Option<'_>> =
        layers.iter().map(|layer| mount::Option::File("lowerdir+", layer.as_fd())).collect();
    let pair = match writes {
        Some(tree) => Some((open(tree, "upper")?, open(tree, "work")?)),
        None => None,
    };
    if let Some((upper, work)) = &pair {
        options.push(mount::Option::File("upperdir", upper.as_fd()));
        options.push(mount::Option::File("workdir", work.as_fd()));
    }
    mount::create("overlay", &options, Attributes::default())
}

/// For kernels that know layers only by path: attaches each on a scratch tmpfs in our own namespace.
fn stack_attached(layers: &[&OwnedFd], writes: Option<&OwnedFd>, at: &Path) -> sys::Result<OwnedFd> {
    let scratch = mount::create("tmpfs", &[], Attributes::DATA)?;
    attach_scratch(&scratch, at)?;
    let base = format!("/proc/self/fd/{}", scratch.as_raw_fd());
    let mut names = Vec::new();
    let place = |tree: &OwnedFd, name: &str| {
        make_node(scratch.as_fd(), name, FileType::Directory, 0o700, (0, 0), 0)?;
        mount::attach_at(tree, &scratch, name)
    };
    for (index, layer) in layers.iter().copied().enumerate() {
        let name = index.to_string();
        place(layer, &name)?;
        names.push(format!("{base}/{name}"));
    }
    let lower = names.join(":");
    let mut options = vec![mount::Option::Text("lowerdir", &lower)];
    let (upper, work) = (format!("{base}/w/upper"), format!("{base}/w/work"));
    if let Some(tree) = writes {
        place(tree, "w")?;
        options.push(mount::Option::Text("upperdir", &upper));
        options.push(mount::Option::Text("workdir", &work));
    }
    mount::create("overlay", &options, Attributes::default())
}

/// Attaches a tree in our own mount namespace, which is opened by path for that: a descriptor of the supervisor
/// would lead into its one.
fn attach_scratch(tree: &OwnedFd, at: &Path) -> sys::Result<()> {
    let onto = rustix::fs::open(at, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .call(|| format!("open('{}')", at.display()))?;
    mount::attach(tree, &onto)
}

/// Finds, after a failure, what the kernel's EINVAL meant.
fn explain_overlay(lower: &[MountedDirectory<'_>]) -> Option<String> {
    let layer = lower.iter().find(|layer| is_overlay(&layer.tree))?;
    Some(format!("the layer '{}' is itself on overlayfs, which cannot always be stacked again", layer.path.display()))
}

/// A root in memory with only `/usr` of the tree, as systemd's stateless systems want it.
fn volatile_root(tree: &OwnedFd, ids: Ids<'_>, scratch: &Path) -> Result<OwnedFd, StepError> {
    let doing = || "cannot make a volatile root".to_owned();
    let root = mount::create(
        "tmpfs",
        &[mount::Option::Text("mode", "0755")],
        Attributes { nodev: ids.userns.is_some(), ..Attributes::default() },
    )
    .doing(doing)?;
    chown_at(root.as_fd(), ".", ids.shift, ids.shift).doing(doing)?;
    // The kernel copies parts only of what is attached in our own mount namespace.
    attach_scratch(tree, scratch).doing(doing)?;
    let source = RootFd::from_fd(tree.try_clone().call(|| "dup".into()).doing(doing)?);
    for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        let Ok(link) = rustix::fs::readlinkat(&source, name, Vec::new()) else { continue };
        rustix::fs::symlinkat(&link, &root, name).call(|| format!("symlinkat('{name}')")).doing(doing)?;
    }
    let usr = source.open_plain("usr", OFlags::PATH | OFlags::DIRECTORY).doing(doing)?;
    make_node(root.as_fd(), "usr", FileType::Directory, 0o755, (0, 0), ids.shift).doing(doing)?;
    let usr = mount::copy_tree(&usr, Path::new(""), true).doing(doing)?;
    mount::attach_at(&usr, &root, "usr").doing(doing)?;
    Ok(root)
}
