//! Carries out the mount list of a plan below a root that is already attached.
//!
//! Runs in the outer child with the host's rights, so every mask and read-only view made here is locked for
//! the payload. Trees of ours are filled before they are attached and are reached by descriptor afterwards;
//! the machine's own tree is reached only through [`RootFd`].

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

use super::devices::HostDevice;
use super::{Ids, MountedTree, Stacking, overlay};
use crate::plan::TmpfsMethod;
use crate::plan::mounts::{ApiFs, Entry, Inaccessible, Mount, MountFlags, MountOp, MountSource, Node, Text};
use crate::spec::{Bind, BindIdmap, Device, IdMapEntry, IdsOf, Propagation, Tmpfs};
use crate::sys::bpf::Kind;
use crate::sys::mount::{self, Attributes};
use crate::sys::path::{RootFd, chown_at, make_node};
use crate::sys::{self, Context as _, Errno, Error, socket};
use crate::sys::{Doing as _, StepError};

/// File systems that were made inside the machine's namespaces, and its console.
#[derive(Debug)]
pub struct ApiMounts {
    /// procfs of the pid namespace.
    pub proc: OwnedFd,
    /// sysfs of the network namespace; `None` when that is the host's.
    pub sysfs: Option<OwnedFd>,
    /// POSIX message queues.
    pub mqueue: OwnedFd,
    /// The cgroup namespace's view.
    pub cgroup: OwnedFd,
    /// The machine's own terminals.
    pub devpts: OwnedFd,
    /// Terminal side of the console.
    pub console: OwnedFd,
}

/// Texts that are known only at start.
#[derive(Debug, Clone, Default)]
pub struct RuntimeTexts {
    /// Passed as `container_uuid`.
    pub container_uuid: String,
    /// The host's os-release.
    pub os_release: String,
    /// A fresh id for this boot.
    pub boot_id: String,
}

/// Makes a user namespace with the given map, for binds with a map of their own.
pub type MakeUserns<'a> = dyn Fn(&[IdMapEntry]) -> sys::Result<OwnedFd> + 'a;

/// What the list is carried out with.
#[derive(Clone, Copy)]
#[allow(missing_debug_implementations, reason = "holds a function")]
pub struct Mounter<'a> {
    /// The attached root.
    pub root: &'a RootFd,
    /// The machine's ids.
    pub ids: Ids<'a>,
    /// How the trees that are made come to belong to these ids.
    pub tmpfs: TmpfsMethod,
    /// How overlays are put together.
    pub stacking: Stacking<'a>,
    /// The not yet bound notification socket.
    pub notify: BorrowedFd<'a>,
    /// Texts for files.
    pub texts: &'a RuntimeTexts,
    /// The opened directories of extra overlays, in their order in the list.
    pub overlays: &'a [MountedTree<'a>],
    /// What the host's devices turned out to be.
    pub devices: &'a [HostDevice],
    /// Makes user namespaces for binds.
    pub make_userns: &'a MakeUserns<'a>,
}

/// Mounts made so far, by target below the root: how later steps reach them without a path.
struct Done<'p>(Vec<(&'p str, OwnedFd)>);

impl Done<'_> {
    /// The deepest mount that holds `target`, and the rest of the path.
    fn holding<'t>(&self, target: &'t str) -> Option<(BorrowedFd<'_>, &'t str)> {
        let fits = |point: &str| target.strip_prefix(point).and_then(|rest| rest.strip_prefix('/'));
        let best = self.0.iter().filter(|(point, _)| fits(point).is_some()).max_by_key(|(point, _)| point.len())?;
        Some((best.1.as_fd(), fits(best.0)?))
    }
}

impl Mounter<'_> {
    /// Carries out the whole list.
    ///
    /// `api` gives what is made inside, and waits for it: it is not called before that is needed.
    pub fn run<'m>(
        &self,
        ops: &[MountOp],
        api: &dyn Fn() -> Result<&'m ApiMounts, StepError>,
    ) -> Result<(), StepError> {
        let mut done = Done(Vec::with_capacity(16));
        let mut overlays = self.overlays.iter();
        for op in ops {
            match op {
                MountOp::Api { fs, target } => self.api(*fs, target, api()?, &mut done)?,
                MountOp::Sysfs { keep } => self.sysfs(keep, api()?, &mut done)?,
                MountOp::Tree { target, entries, read_only, mode, exec, devices } => {
                    let attributes = Attributes { nosuid: true, nodev: !devices, noexec: !exec, read_only: false };
                    self.tree(target, *mode, attributes, entries, *read_only, &mut done)?;
                }
                MountOp::GuestTmpfs { target, .. } => self.interface_directory(target).map(drop)?,
                MountOp::Console => self.console(api()?, &done)?,
                MountOp::Mask { targets, directories } => mask(targets, *directories, &done)?,
                MountOp::ReadOnly { targets, except } => read_only(targets, except.as_deref(), &done)?,
                MountOp::Replace { target, source } => replace(target, source, &done)?,
                MountOp::Tmpfs(tmpfs) => self.tmpfs(tmpfs)?,
                MountOp::Bind(bind) => self.bind(bind)?,
                MountOp::Overlay { target, .. } => {
                    if let Some(MountedTree::Overlay { lower, upper, memory }) = overlays.next() {
                        let tree = overlay(lower, upper.as_ref(), *memory, self.ids, self.stacking)?;
                        self.place(&tree, target.relative(), false)?;
                    }
                }
                MountOp::Resolver => self.resolver()?,
                MountOp::Mount(plan) => self.mount(plan)?,
            }
        }
        done.0.into_iter().for_each(|(_, tree)| leave_open(tree));
        Ok(())
    }

    /// Attaches `tree` at a directory of the interface, which may be no symlink of the tree.
    fn attach_interface(&self, tree: &OwnedFd, target: &str, done: &Done<'_>) -> Result<(), StepError> {
        if let Some((dir, rest)) = done.holding(target) {
            return mount::attach_at(tree, dir, rest).doing(|| format!("cannot mount '/{target}'"));
        }
        let onto = self.interface_directory(target)?;
        mount::attach(tree, &onto).doing(|| format!("cannot mount '/{target}'"))
    }

    fn interface_directory(&self, target: &str) -> Result<OwnedFd, StepError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let cause = match self.root.open_plain(target, flags) {
            Ok(fd) => return Ok(fd),
            Err(cause) => cause,
        };
        match cause.errno {
            Errno::ENOENT => self.root.mount_point(target, false, self.ids.shift).map_err(|cause| {
                let hint = (cause.errno == Errno::EROFS).then(|| format!("make the directory '/{target}' in the tree"));
                StepError { doing: format!("the tree has no '/{target}'"), cause: Some(cause), hint }
            }),
            Errno::ELOOP | Errno::ENOTDIR => {
                let link = rustix::fs::readlinkat(self.root, target, Vec::new());
                let what = match link {
                    Ok(to) => format!("a symlink to '{}'", to.to_string_lossy()),
                    Err(_) => "not a directory".to_owned(),
                };
                Err(StepError::refused(format!("'/{target}' of the tree is {what}, and must be a real directory")))
            }
            _ => Err(cause).doing(|| format!("cannot open '/{target}' of the tree")),
        }
    }

    fn api<'p>(&self, fs: ApiFs, target: &'p str, api: &ApiMounts, done: &mut Done<'p>) -> Result<(), StepError> {
        let tree = match fs {
            ApiFs::Proc => &api.proc,
            ApiFs::Devpts => &api.devpts,
            ApiFs::Mqueue => &api.mqueue,
            ApiFs::Cgroup2 => &api.cgroup,
        };
        self.attach_interface(tree, target, done)?;
        if fs == ApiFs::Proc {
            let kept = tree.try_clone().call(|| "dup".into()).doing(|| "cannot keep /proc".into())?;
            done.0.push((target, kept));
        }
        Ok(())
    }

    /// Builds `/sys` from the parts of sysfs that a machine may see, on a read-only tmpfs.
    fn sysfs(&self, keep: &[String], api: &ApiMounts, done: &mut Done<'_>) -> Result<(), StepError> {
        let doing = || "cannot build '/sys'".to_owned();
        let read_only = Attributes { read_only: true, ..Attributes::DATA };
        let made;
        let sysfs = match &api.sysfs {
            Some(fd) => fd,
            None => {
                made = mount::create("sysfs", &[], read_only).doing(doing)?;
                &made
            }
        };
        let skeleton = mount::create("tmpfs", &[mount::Option::Text("mode", "0755")], Attributes::DATA).doing(doing)?;
        for name in keep.iter().map(String::as_str).chain(["fs"]) {
            make_node(skeleton.as_fd(), name, FileType::Directory, 0o755, (0, 0), 0).doing(doing)?;
        }
        self.attach_interface(&skeleton, "sys", done)?;
        // Older kernels copy only from mounts that are attached.
        mount::attach_at(sysfs, &skeleton, "fs").doing(doing)?;
        for name in keep {
            let part = match mount::copy_tree(sysfs, Path::new(name), false) {
                Ok(part) => part,
                Err(e) if e.errno == Errno::ENOENT => continue,
                Err(e) => return Err(e).doing(doing),
            };
            mount::attach_at(&part, &skeleton, name).doing(doing)?;
            match name.as_str() {
                "devices" => done.0.push(("sys/devices", part)),
                "kernel" => done.0.push(("sys/kernel", part)),
                _ => leave_open(part),
            }
        }
        rustix::process::fchdir(&skeleton).call(|| "fchdir".into()).doing(doing)?;
        mount::detach("fs").doing(doing)?;
        make_node(skeleton.as_fd(), "fs/cgroup", FileType::Directory, 0o755, (0, 0), 0).doing(doing)?;
        mount::add_attributes(&skeleton, false, read_only).doing(doing)?;
        done.0.push(("sys", skeleton));
        Ok(())
    }

    fn tree<'p>(
        &self,
        target: &'p str,
        mode: u32,
        attributes: Attributes,
        entries: &[Entry],
        read_only: bool,
        done: &mut Done<'p>,
    ) -> Result<(), StepError> {
        let doing = || format!("cannot make '/{target}'");
        let mode = format!("{mode:o}");
        let tree = mount::create("tmpfs", &[mount::Option::Text("mode", &mode)], attributes).doing(doing)?;
        let mapped = self.ids.userns.filter(|_| self.tmpfs == TmpfsMethod::Map);
        let owner = if mapped.is_some() { 0 } else { self.ids.shift };
        if owner != 0 {
            chown_at(tree.as_fd(), ".", owner, owner).doing(doing)?;
        }
        for entry in entries {
            self.entry(tree.as_fd(), entry, owner).doing(doing)?;
        }
        if let Some(userns) = mapped {
            mount::map_ids(&tree, false, userns).doing(doing)?;
        }
        if read_only {
            let attributes = Attributes { read_only: true, ..Attributes::default() };
            mount::add_attributes(&tree, false, attributes).doing(doing)?;
        }
        self.attach_interface(&tree, target, done)?;
        done.0.push((target, tree));
        Ok(())
    }

    fn entry(&self, dir: BorrowedFd<'_>, entry: &Entry, owner: u32) -> sys::Result<()> {
        let name = &*entry.name;
        match &entry.node {
            Node::Directory(mode) => make_node(dir, name, FileType::Directory, *mode, (0, 0), owner),
            Node::Device(major, minor) => {
                make_node(dir, name, FileType::CharacterDevice, 0o666, (*major, *minor), owner)
            }
            Node::Host(device) => match self.devices.iter().find(|found| found.target == device.target) {
                Some(found) => make_device(dir, name, device, found, owner),
                None => Ok(()),
            },
            Node::Fifo => make_node(dir, name, FileType::Fifo, 0o600, (0, 0), owner),
            Node::Inaccessible(kind) => {
                let (kind, mode) = match kind {
                    Inaccessible::Reg => (FileType::RegularFile, 0),
                    Inaccessible::Dir => (FileType::Directory, 0),
                    Inaccessible::Fifo => (FileType::Fifo, 0),
                    Inaccessible::Sock => (FileType::Socket, 0),
                    Inaccessible::Chr => (FileType::CharacterDevice, 0),
                    Inaccessible::Blk => (FileType::BlockDevice, 0),
                };
                make_node(dir, name, kind, mode, (0, 0), owner)
            }
            Node::Symlink(to) => rustix::fs::symlinkat(to.as_str(), dir, name).call(|| format!("symlinkat('{name}')")),
            Node::NotifySocket => {
                socket::bind_in(self.notify, dir, name)?;
                if owner == 0 { Ok(()) } else { chown_at(dir, name, owner, owner) }
            }
            Node::Text(text) => {
                let content = match text {
                    Text::Empty => "",
                    Text::ContainerManager => "machinist",
                    Text::ContainerUuid => &self.texts.container_uuid,
                    Text::OsRelease => &self.texts.os_release,
                    Text::BootId => &self.texts.boot_id,
                };
                write_text(dir, name, content, owner)
            }
        }
    }

    fn console(&self, api: &ApiMounts, done: &Done<'_>) -> Result<(), StepError> {
        let doing = || "cannot mount the console on '/dev/console'".to_owned();
        // Copied by descriptor of a terminal we made: nothing in the tree can stand in for it.
        let tty = mount::copy_tree(&api.console, Path::new(""), false).doing(doing)?;
        match done.holding("dev/console") {
            Some((dev, name)) => mount::attach_at(&tty, dev, name).map(|()| leave_open(tty)).doing(doing),
            None => Err(StepError::refused("the plan mounts the console before /dev")),
        }
    }

    /// Attaches `tree` at a path the user named.
    fn place(&self, tree: &OwnedFd, target: &str, file: bool) -> Result<(), StepError> {
        let doing = || format!("cannot mount on '/{target}'");
        let onto = self.mount_point(target, file).map_err(|e| StepError { doing: doing(), ..e })?;
        mount::attach(tree, &onto).doing(doing)
    }

    /// The place for a mount from the user's definition.
    fn mount_point(&self, target: &str, file: bool) -> Result<OwnedFd, StepError> {
        self.root.mount_point(target, file, self.ids.shift).map_err(|cause| {
            let hint = match cause.errno {
                Errno::ELOOP => Some("give the real path as `target`".to_owned()),
                Errno::EROFS => Some(format!("make '/{target}' in the tree")),
                _ => None,
            };
            StepError { doing: format!("cannot mount on '/{target}'"), cause: Some(cause), hint }
        })
    }

    fn tmpfs(&self, tmpfs: &Tmpfs) -> Result<(), StepError> {
        let doing = || format!("cannot make the tmpfs '{}'", tmpfs.target);
        let mode = format!("{:o}", tmpfs.mode);
        let mut options = vec![mount::Option::Text("mode", &mode)];
        let size = tmpfs.size.map(|s| s.to_string());
        if let Some(size) = &size {
            options.push(mount::Option::Text("size", size));
        }
        let attributes = Attributes { nosuid: true, nodev: true, ..Attributes::default() };
        let tree = mount::create("tmpfs", &options, attributes).doing(doing)?;
        chown_at(tree.as_fd(), ".", self.ids.shift, self.ids.shift).doing(doing)?;
        self.place(&tree, tmpfs.target.relative(), false)
    }

    fn bind(&self, bind: &Bind) -> Result<(), StepError> {
        let doing = || format!("cannot bind '{}' to '{}'", bind.source.display(), bind.target);
        let tree = match mount::copy_host_tree(&bind.source, bind.recursive) {
            Ok(tree) => tree,
            Err(e) if e.errno == Errno::ENOENT && bind.optional => return Ok(()),
            Err(cause) => {
                let hint = (cause.errno == Errno::ENOENT)
                    .then(|| "`optional = true` starts the machine without what is missing".to_owned());
                return Err(StepError { doing: doing(), cause: Some(cause), hint });
            }
        };
        let stat = rustix::fs::fstat(&tree).call(|| "fstat".into()).doing(doing)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let directory = kind.is_dir();
        let is_device = matches!(kind, FileType::BlockDevice | FileType::CharacterDevice);
        let onto = self.mount_point(bind.target.relative(), !directory);
        let onto = onto.map_err(|e| StepError { doing: doing(), ..e })?;
        self.map_bind(bind, &tree, &stat, &onto).map_err(|cause| {
            let hint = (cause.errno == Errno::EINVAL).then(|| match is_device {
                true => "a bound device could not be opened either; `[[device]]` gives one to a machine".to_owned(),
                false => "its file system cannot map ids; set `idmap = \"none\"` for this bind".to_owned(),
            });
            StepError { doing: doing(), cause: Some(cause), hint }
        })?;
        let mut attributes = Attributes { read_only: bind.read_only, ..Attributes::default() };
        if self.ids.userns.is_some() {
            attributes.nodev = true;
        }
        if attributes != Attributes::default() {
            mount::add_attributes(&tree, bind.recursive, attributes).doing(doing)?;
        }
        if bind.propagation == Propagation::Private {
            mount::set_propagation(&tree, bind.recursive, mount::Propagation::Private).doing(doing)?;
        }
        mount::attach(&tree, &onto).doing(doing)
    }

    /// Makes a mount that the plan has in the kernel's words.
    fn mount(&self, plan: &Mount) -> Result<(), StepError> {
        let doing = || format!("cannot mount '{}'", plan.target);
        let MountFlags { read_only, nosuid, nodev, noexec } = plan.flags;
        let attributes = Attributes { read_only, nosuid, nodev, noexec };
        let (tree, is_file) = match &plan.source {
            MountSource::New { fstype, source, data, own } => {
                let source = source.iter().map(|source| mount::Option::Text("source", source));
                let data = data.iter().map(|(key, value)| match value {
                    Some(value) => mount::Option::Text(key, value),
                    None => mount::Option::Flag(key),
                });
                let options: Vec<_> = source.chain(data).collect();
                let tree = mount::create(fstype, &options, attributes).doing(doing)?;
                if *own {
                    chown_at(tree.as_fd(), ".", self.ids.shift, self.ids.shift).doing(doing)?;
                }
                (tree, false)
            }
            MountSource::Tree { path, recursive } => {
                let tree = mount::copy_host_tree(path, *recursive).doing(doing)?;
                if let Some(userns) = self.ids.userns {
                    mount::map_ids(&tree, *recursive, userns).doing(doing)?;
                }
                let attributes = Attributes { nodev: nodev || self.ids.userns.is_some(), ..attributes };
                mount::add_attributes(&tree, *recursive, attributes).doing(doing)?;
                mount::set_propagation(&tree, *recursive, mount::Propagation::Private).doing(doing)?;
                let stat = rustix::fs::fstat(&tree).call(|| "fstat".into()).doing(doing)?;
                (tree, !FileType::from_raw_mode(stat.st_mode).is_dir())
            }
        };
        self.place(&tree, plan.target.relative(), is_file)
    }

    fn map_bind(&self, bind: &Bind, tree: &OwnedFd, source: &rustix::fs::Stat, onto: &OwnedFd) -> sys::Result<()> {
        let Some(userns) = self.ids.userns else { return Ok(()) };
        let single = |host: (u32, u32), guest: (u32, u32)| {
            [
                IdMapEntry { host: host.0, guest: guest.0, count: 1, of: IdsOf::Users },
                IdMapEntry { host: host.1, guest: guest.1, count: 1, of: IdsOf::Groups },
            ]
        };
        let owner = (source.st_uid, source.st_gid);
        let made = match &bind.idmap {
            BindIdmap::None => return Ok(()),
            BindIdmap::Private => return mount::map_ids(tree, bind.recursive, userns),
            BindIdmap::RootOwner => (self.make_userns)(&single(owner, (0, 0)))?,
            BindIdmap::Owner => {
                let target = rustix::fs::fstat(onto).call(|| "fstat(target)".into())?;
                let inside = |id: u32| id.checked_sub(self.ids.shift).filter(|i| *i < self.ids.size).unwrap_or(0);
                (self.make_userns)(&single(owner, (inside(target.st_uid), inside(target.st_gid))))?
            }
            BindIdmap::Map(list) => (self.make_userns)(list)?,
        };
        mount::map_ids(tree, bind.recursive, &made)
    }

    /// Shows the host's resolver file, when the tree has a plain file or nothing in its place.
    fn resolver(&self) -> Result<(), StepError> {
        let doing = || "cannot show the host's '/etc/resolv.conf'".to_owned();
        let Ok(source) = PathBuf::from("/etc/resolv.conf").canonicalize() else { return Ok(()) };
        // A symlink or a missing file is the guest's own arrangement; it is left alone.
        let Ok(onto) = self.root.open_plain("etc/resolv.conf", OFlags::PATH) else { return Ok(()) };
        let tree = mount::copy_host_tree(&source, false).doing(doing)?;
        let attributes = Attributes { read_only: true, ..Attributes::DATA };
        mount::add_attributes(&tree, false, attributes).doing(doing)?;
        mount::attach(&tree, &onto).doing(doing)
    }
}

/// Makes the node of a device, and the directories it is in.
///
/// `first` is the id of the machine's root as the tree stores it. The device is identified by its numbers alone,
/// so nothing in the host's file system can influence it any more.
fn make_device(dir: BorrowedFd<'_>, name: &str, device: &Device, found: &HostDevice, first: u32) -> sys::Result<()> {
    for (end, _) in name.match_indices('/') {
        match make_node(dir, &name[..end], FileType::Directory, 0o755, (0, 0), first) {
            Err(e) if e.errno != Errno::EEXIST => return Err(e),
            _ => {}
        }
    }
    let kind = match found.kind {
        Kind::Block => FileType::BlockDevice,
        Kind::Character => FileType::CharacterDevice,
    };
    make_node(dir, name, kind, device.mode, (found.major, found.minor), 0)?;
    chown_at(dir, name, first.saturating_add(device.uid), first.saturating_add(device.gid))
}

fn write_text(dir: BorrowedFd<'_>, name: &str, content: &str, owner: u32) -> sys::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o444)).call(|| format!("openat('{name}')"))?;
    if !content.is_empty() {
        let mut line = content.to_owned();
        if !line.ends_with('\n') {
            line.push('\n');
        }
        let written = rustix::io::write(&fd, line.as_bytes()).call(|| format!("write('{name}')"))?;
        if written != line.len() {
            return Err(Error { call: format!("write('{name}')"), errno: Errno::ENOSPC });
        }
    }
    if owner == 0 { Ok(()) } else { chown_at(dir, name, owner, owner) }
}

/// Covers files that exist with our own unreadable ones.
fn mask(targets: &[String], directories: bool, done: &Done<'_>) -> Result<(), StepError> {
    let (host, _) =
        done.holding("run/host/inaccessible").ok_or_else(|| StepError::refused("the plan masks before /run/host"))?;
    let source = if directories { "inaccessible/dir" } else { "inaccessible/reg" };
    let mut spare: Option<OwnedFd> = None;
    for target in targets {
        let doing = || format!("cannot mask '/{target}'");
        let Some((dir, name)) = done.holding(target) else { continue };
        let cover = match spare.take() {
            Some(cover) => cover,
            None => mount::copy_tree(host, Path::new(source), false).doing(doing)?,
        };
        match mount::attach_at(&cover, dir, name) {
            Ok(()) => leave_open(cover),
            Err(e) if e.errno == Errno::ENOENT => spare = Some(cover),
            Err(e) => return Err(e).doing(doing),
        }
    }
    Ok(())
}

fn read_only(targets: &[String], except: Option<&str>, done: &Done<'_>) -> Result<(), StepError> {
    let copy = |target: &str| -> sys::Result<Option<(OwnedFd, BorrowedFd<'_>, String)>> {
        let Some((dir, name)) = done.holding(target) else { return Ok(None) };
        match mount::copy_tree(dir, Path::new(name), false) {
            Ok(tree) => Ok(Some((tree, dir, name.to_owned()))),
            Err(e) if e.errno == Errno::ENOENT => Ok(None),
            Err(e) => Err(e),
        }
    };
    // Copied while it is still writable, attached on top at the end.
    let kept = except.map(copy).transpose().doing(|| "cannot keep a part writable".into())?.flatten();
    for target in targets {
        let doing = || format!("cannot make '/{target}' read-only");
        let Some((tree, dir, name)) = copy(target).doing(doing)? else { continue };
        mount::add_attributes(&tree, false, Attributes { read_only: true, ..Attributes::default() }).doing(doing)?;
        mount::attach_at(&tree, dir, &name).doing(doing)?;
        leave_open(tree);
    }
    if let Some((tree, dir, name)) = kept {
        mount::attach_at(&tree, dir, &name).doing(|| format!("cannot keep '/{name}' writable"))?;
        leave_open(tree);
    }
    Ok(())
}

fn replace(target: &str, source: &str, done: &Done<'_>) -> Result<(), StepError> {
    let doing = || format!("cannot replace '/{target}'");
    let ((dir, name), (host, _)) = match (done.holding(target), done.holding("run/host/x")) {
        (Some(target), Some(host)) => (target, host),
        _ => return Err(StepError::refused(doing())),
    };
    let tree = mount::copy_tree(host, Path::new(source), false).doing(doing)?;
    match mount::attach_at(&tree, dir, name) {
        Err(e) if e.errno != Errno::ENOENT => Err(e).doing(doing),
        _ => {
            leave_open(tree);
            Ok(())
        }
    }
}

/// Leaves a descriptor to the end of this process, which is a moment away: closing each by itself was every
/// tenth system call of a start.
fn leave_open(fd: OwnedFd) {
    let _ = fd.into_raw_fd();
}

/// The root itself as a [`RootFd`], attached on top of the current root of this mount namespace.
pub fn attach_root(root: OwnedFd) -> Result<RootFd, StepError> {
    let doing = || "cannot attach the root tree".to_owned();
    mount::attach_at(&root, rustix::fs::CWD, "/").doing(doing)?;
    Ok(RootFd::from_fd(root))
}

/// Makes the attached root the only one in this mount namespace.
pub fn enter_root(root: &RootFd) -> Result<(), StepError> {
    let doing = || "cannot enter the root tree".to_owned();
    rustix::process::fchdir(root).call(|| format!("fchdir({})", root.as_fd().as_raw_fd())).doing(doing)?;
    mount::pivot_into_current_directory().doing(doing)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::plan::OverlayMethod;
    use crate::spec::GuestPath;
    use crate::sys::process::{ns, unshare};

    /// Carries out a list in a directory, in a mount namespace of the calling thread alone; ids are shifted by 7.
    fn carry_out(root: &Path, ops: &[MountOp]) -> Result<(), StepError> {
        unshare(ns::MOUNT).unwrap();
        let top = fs::File::open("/").unwrap();
        mount::set_propagation(&top, true, mount::Propagation::Private).unwrap();
        let notify = socket::notify_socket().unwrap();
        let stacking = Stacking { method: OverlayMethod::OpenFiles, scratch: root };
        let mounter = Mounter {
            root: &RootFd::open(root).unwrap(),
            ids: Ids { shift: 7, size: 100, userns: None, map_tree: false },
            tmpfs: TmpfsMethod::Chown,
            stacking,
            notify: notify.as_fd(),
            texts: &RuntimeTexts::default(),
            overlays: &[],
            devices: &[],
            make_userns: &|_| Err(Error { call: "none".into(), errno: Errno::ENOSYS }),
        };
        mounter.run(ops, &|| Err(StepError::refused("nothing is made inside")))
    }

    fn of(source: MountSource, target: &str, flags: MountFlags) -> MountOp {
        MountOp::Mount(Mount { source, target: GuestPath::parse(target).unwrap(), flags })
    }

    #[test]
    fn any_file_system_and_any_tree_of_the_host_is_mounted_as_the_plan_has_it() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (root, source) = (dir.path().join("root"), dir.path().join("source"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&source).unwrap();
        fs::write(source.join("file"), "text").unwrap();
        let options = [("mode", Some("0751")), ("size", Some("64k")), ("noswap", None)];
        let data = options.map(|(key, value)| (key.to_owned(), value.map(str::to_owned)));
        let new = MountSource::New { fstype: "tmpfs".into(), source: Some("x".into()), data: data.into(), own: true };
        let tree = |path: PathBuf| MountSource::Tree { path, recursive: true };
        let read_only = MountFlags { read_only: true, ..MountFlags::default() };
        let ops = [
            of(new, "/data", MountFlags { noexec: true, ..MountFlags::default() }),
            of(tree(source.clone()), "/data/tree", read_only),
            of(tree(source.join("file")), "/file", MountFlags::default()),
        ];
        carry_out(&root, &ops).unwrap();
        let data = fs::metadata(root.join("data")).unwrap();
        assert_eq!((data.uid(), data.gid(), data.mode() & 0o7777), (7, 7, 0o751));
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let line = mounts.lines().find(|line| line.contains("root/data ")).unwrap();
        assert!(line.contains("noexec") && line.contains(" tmpfs x ") && line.contains("size=64k"), "{line}");
        assert_eq!(fs::read_to_string(root.join("data/tree/file")).unwrap(), "text");
        let refused = fs::write(root.join("data/tree/file"), "other").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
        fs::write(root.join("file"), "other").unwrap();
        assert_eq!(fs::read_to_string(source.join("file")).unwrap(), "other");
    }

    #[test]
    fn a_file_system_that_there_is_none_of_is_an_error_with_its_target() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let none = MountSource::New { fstype: "nosuchfs".into(), source: None, data: Vec::new(), own: false };
        let error = carry_out(dir.path(), &[of(none, "/x", MountFlags::default())]).unwrap_err();
        assert_eq!(error.doing, "cannot mount '/x'");
        assert_eq!(error.cause.map(|cause| cause.errno), Some(Errno::ENODEV));
    }
}
