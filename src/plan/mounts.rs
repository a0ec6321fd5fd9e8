//! The ordered list of mounts below a machine's root.
//!
//! First the interface every machine has (`/proc`, `/sys`, `/dev`, `/run`, `/tmp` and `/run/host`, as systemd's
//! container interface describes it), then what the file asks for, by depth of target and position in the
//! file. Masks and read-only views come right after what they cover, and are made by the host's user
//! namespace, so that the payload's root can take none of them away.

use std::path::PathBuf;

use serde::Serialize;

use super::namespaces::Namespaces;
use super::root::{OverlayPlan, upper_plan};
use crate::spec::{Bind, Device, GuestPath, Layout, MachineSpec, NetworkMode, Propagation, Tmpfs, Volatile};

/// Where PID 1 of the machine sends its notifications.
pub const NOTIFY_SOCKET: &str = "/run/host/notify";

/// One step. Targets are relative to the root; those of the interface are never reached through a symlink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum MountOp {
    /// A file system made inside the machine's namespaces.
    Api {
        /// Which.
        fs: ApiFs,
        /// Where.
        target: String,
    },
    /// `/sys`: a read-only tmpfs with only these directories of sysfs.
    Sysfs {
        /// Names kept.
        keep: Vec<String>,
    },
    /// A small tmpfs filled before it is attached.
    Tree {
        /// Where.
        target: String,
        /// What it holds.
        entries: Vec<Entry>,
        /// No writes after it has been filled.
        read_only: bool,
        /// Mode of its root directory.
        mode: u32,
        /// Programs on it may be executed.
        exec: bool,
        /// Device nodes on it work.
        devices: bool,
    },
    /// A tmpfs made last and from inside, so that the machine may unmount it.
    GuestTmpfs {
        /// Where.
        target: String,
        /// Mode of its root directory.
        mode: u32,
    },
    /// The machine's console on `/dev/console`.
    Console,
    /// Makes these unreadable: each is covered by an empty file or directory without permissions.
    Mask {
        /// Those that do not exist are skipped.
        targets: Vec<String>,
        /// Whether they are directories.
        directories: bool,
    },
    /// Makes these read-only.
    ReadOnly {
        /// Those that do not exist are skipped.
        targets: Vec<String>,
        /// A part of them that stays writable.
        except: Option<String>,
    },
    /// Covers `target` with the file `source` of `/run/host`.
    Replace {
        /// Skipped if it does not exist.
        target: String,
        /// Name in `/run/host`.
        source: String,
    },
    /// `[[tmpfs]]`
    Tmpfs(Tmpfs),
    /// `[[bind]]`
    Bind(Bind),
    /// `[[overlay]]`
    Overlay {
        /// Where.
        target: GuestPath,
        /// What.
        overlay: OverlayPlan,
    },
    /// Shows the host's resolver configuration to a machine that shares its network.
    Resolver,
    /// Any other mount.
    Mount(Mount),
}

/// A mount in the kernel's words, for front ends that name their mounts themselves.
///
/// It is made with the rights and in the namespaces of the host; what belongs to the machine's is [`MountOp::Api`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Mount {
    /// What is mounted.
    pub source: MountSource,
    /// Where.
    pub target: GuestPath,
    /// Attributes of the mount.
    pub flags: MountFlags,
}

/// What a [`Mount`] mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum MountSource {
    /// A new file system.
    New {
        /// Its type, as in `/proc/filesystems`.
        fstype: String,
        /// The device or another name of what is mounted.
        source: Option<String>,
        /// Options of the file system: words, or keys with a value.
        data: Vec<(String, Option<String>)>,
        /// The machine's root gets its top directory.
        own: bool,
    },
    /// A file or directory of the host, with the machine's ids.
    Tree {
        /// Where it is.
        path: PathBuf,
        /// With the mounts below it.
        recursive: bool,
    },
}

/// Attributes of one mount (`mount_setattr(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MountFlags {
    /// No writes.
    pub read_only: bool,
    /// Setuid bits have no effect.
    pub nosuid: bool,
    /// Device nodes have no effect; always so for the host's files in a machine with a user namespace.
    pub nodev: bool,
    /// Nothing can be executed.
    pub noexec: bool,
}

/// A file system that belongs to the machine's namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the kernel's names")]
pub enum ApiFs {
    Proc,
    Devpts,
    Mqueue,
    Cgroup2,
}

/// What stands in a tree we make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Entry {
    /// Path below the tree's root.
    pub name: String,
    /// What it is.
    pub node: Node,
}

/// Kinds of [`Entry`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Node {
    /// A directory with this mode.
    Directory(u32),
    /// A symlink to this.
    Symlink(String),
    /// A character device, mode 0666.
    Device(u32, u32),
    /// A device of the host and the directories it is in.
    Host(Device),
    /// A file with this text, mode 0444.
    Text(Text),
    /// A node that no process can use: mode 0.
    Inaccessible(Inaccessible),
    /// A FIFO, mode 0600.
    Fifo,
    /// The bound notification socket, writable by the machine's root.
    NotifySocket,
}

/// Texts that are known only at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "named after the file that holds it")]
pub enum Text {
    Empty,
    ContainerManager,
    ContainerUuid,
    OsRelease,
    BootId,
}

/// File types of `/run/host/inaccessible`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Inaccessible {
    Reg,
    Dir,
    Fifo,
    Sock,
    Chr,
    Blk,
}

const SYS_KEEP: &[&str] = &["block", "bus", "class", "dev", "devices", "kernel"];

/// Files of `/proc` that show or affect the host.
const PROC_MASK: &[&str] = &[
    "proc/kallsyms",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/sched_debug",
    "proc/sysrq-trigger",
    "proc/timer_list",
    "proc/timer_stats",
    "proc/kpagecount",
    "proc/kpageflags",
    "proc/kpagecgroup",
];
const PROC_READ_ONLY: &[&str] =
    &["proc/sys", "proc/acpi", "proc/apm", "proc/asound", "proc/bus", "proc/fs", "proc/irq", "proc/scsi"];
const SYS_MASK: &[&str] =
    &["sys/devices/virtual/powercap", "sys/kernel/debug", "sys/kernel/tracing", "sys/kernel/security"];

/// Lists the mounts of a machine in the order in which they are made.
pub(super) fn plan(spec: &MachineSpec, namespaces: &Namespaces, layout: &Layout) -> Vec<MountOp> {
    let mut ops = Vec::new();
    if spec.root.volatile == Volatile::State {
        ops.push(MountOp::Tmpfs(Tmpfs { target: GuestPath::var(), size: None, mode: 0o755 }));
    }
    ops.extend([
        tree("run", 0o755, true, vec![entry("host", Node::Directory(0o755))]),
        run_host(),
        // Before the first that has to wait for what is made inside.
        dev(&spec.devices),
        tree("dev/shm", 0o1777, false, Vec::new()),
        api(ApiFs::Proc, "proc"),
        MountOp::ReadOnly {
            targets: owned(PROC_READ_ONLY),
            except: namespaces.network.is_new().then(|| "proc/sys/net".to_owned()),
        },
        MountOp::Mask { targets: owned(PROC_MASK), directories: false },
        replace("proc/sys/kernel/random/boot_id", "boot-id"),
        replace("proc/kmsg", "kmsg"),
        MountOp::Sysfs { keep: owned(SYS_KEEP) },
        MountOp::Mask { targets: owned(SYS_MASK), directories: true },
        api(ApiFs::Cgroup2, "sys/fs/cgroup"),
        api(ApiFs::Devpts, "dev/pts"),
        MountOp::Console,
        api(ApiFs::Mqueue, "dev/mqueue"),
    ]);
    ops.extend(tmp(spec));
    if spec.network == NetworkMode::Host {
        ops.push(MountOp::Resolver);
    }
    ops.extend(requested(spec, layout));
    ops
}

/// `/tmp`: left to the file if that mounts something there which cannot be missing; else made from inside, unless
/// the file mounts something below it, which must come later.
fn tmp(spec: &MachineSpec) -> Option<MountOp> {
    let always = || spec.tmpfs.iter().map(|t| &t.target).chain(spec.overlays.iter().map(|o| &o.target));
    if always().any(|target| target.as_str() == "/tmp") {
        return None;
    }
    if always().chain(spec.binds.iter().map(|b| &b.target)).any(|target| target.is_at_or_below("/tmp")) {
        return Some(tree("tmp", 0o1777, true, Vec::new()));
    }
    Some(MountOp::GuestTmpfs { target: "tmp".to_owned(), mode: 0o1777 })
}

/// What the file asks for: parents before children, else in the file's order; tmpfs and overlays before the
/// binds of the same depth, so that a bind can be placed on them.
fn requested(spec: &MachineSpec, layout: &Layout) -> Vec<MountOp> {
    let mut list: Vec<(usize, u8, MountOp)> = Vec::new();
    for tmpfs in &spec.tmpfs {
        list.push((tmpfs.target.depth(), 0, MountOp::Tmpfs(tmpfs.clone())));
    }
    for (index, overlay) in spec.overlays.iter().enumerate() {
        let which = format!("overlay-{index}");
        let plan = OverlayPlan {
            lower: overlay.lower.iter().map(|l| layout.layer(l)).collect(),
            upper: overlay.upper.as_ref().map(|u| upper_plan(spec, layout, u, &which)),
        };
        list.push((overlay.target.depth(), 1, MountOp::Overlay { target: overlay.target.clone(), overlay: plan }));
    }
    for bind in &spec.binds {
        list.push((bind.target.depth(), 2, MountOp::Bind(bind.clone())));
    }
    list.sort_by_key(|(depth, kind, _)| (*depth, *kind));
    list.into_iter().map(|(_, _, op)| op).collect()
}

fn owned(list: &[&str]) -> Vec<String> {
    list.iter().map(|item| (*item).to_owned()).collect()
}

fn api(fs: ApiFs, target: &str) -> MountOp {
    MountOp::Api { fs, target: target.to_owned() }
}

fn replace(target: &str, source: &str) -> MountOp {
    MountOp::Replace { target: target.to_owned(), source: source.to_owned() }
}

fn entry(name: &str, node: Node) -> Entry {
    Entry { name: name.to_owned(), node }
}

fn symlink(name: &str, to: &str) -> Entry {
    entry(name, Node::Symlink(to.to_owned()))
}

fn tree(target: &str, mode: u32, exec: bool, entries: Vec<Entry>) -> MountOp {
    MountOp::Tree { target: target.to_owned(), entries, read_only: false, mode, exec, devices: false }
}

/// `/run`, writable, and `/run/host`, which is not: what a guest may know of its host.
fn run_host() -> MountOp {
    MountOp::Tree {
        target: "run/host".to_owned(),
        mode: 0o755,
        exec: false,
        devices: false,
        read_only: true,
        entries: vec![
            entry("container-manager", Node::Text(Text::ContainerManager)),
            entry("container-uuid", Node::Text(Text::ContainerUuid)),
            entry("os-release", Node::Text(Text::OsRelease)),
            entry("boot-id", Node::Text(Text::BootId)),
            entry("kmsg", Node::Fifo),
            entry("notify", Node::NotifySocket),
            entry("incoming", Node::Directory(0o700)),
            entry("inaccessible", Node::Directory(0o755)),
            entry("inaccessible/reg", Node::Inaccessible(Inaccessible::Reg)),
            entry("inaccessible/dir", Node::Inaccessible(Inaccessible::Dir)),
            entry("inaccessible/fifo", Node::Inaccessible(Inaccessible::Fifo)),
            entry("inaccessible/sock", Node::Inaccessible(Inaccessible::Sock)),
            entry("inaccessible/chr", Node::Inaccessible(Inaccessible::Chr)),
            entry("inaccessible/blk", Node::Inaccessible(Inaccessible::Blk)),
        ],
    }
}

/// `/dev`: the nodes every program expects and nothing that reaches hardware but what the file asks for.
fn dev(devices: &[Device]) -> MountOp {
    let mut entries = vec![
        entry("null", Node::Device(1, 3)),
        entry("zero", Node::Device(1, 5)),
        entry("full", Node::Device(1, 7)),
        entry("random", Node::Device(1, 8)),
        entry("urandom", Node::Device(1, 9)),
        entry("tty", Node::Device(5, 0)),
        entry("console", Node::Text(Text::Empty)),
        symlink("ptmx", "pts/ptmx"),
        symlink("fd", "/proc/self/fd"),
        symlink("stdin", "/proc/self/fd/0"),
        symlink("stdout", "/proc/self/fd/1"),
        symlink("stderr", "/proc/self/fd/2"),
        symlink("core", "/proc/kcore"),
        entry("pts", Node::Directory(0o755)),
        entry("shm", Node::Directory(0o755)),
        entry("mqueue", Node::Directory(0o755)),
    ];
    entries.extend(devices.iter().map(|device| {
        let name = device.target.relative().trim_start_matches("dev/");
        entry(name, Node::Host(device.clone()))
    }));
    MountOp::Tree { target: "dev".to_owned(), entries, read_only: false, mode: 0o755, exec: false, devices: true }
}

/// The devices of the host among the mounts, in the order of the file.
pub fn devices(ops: &[MountOp]) -> impl Iterator<Item = &Device> {
    let entries = ops.iter().filter_map(|op| match op {
        MountOp::Tree { entries, .. } => Some(entries),
        _ => None,
    });
    entries.flatten().filter_map(|entry| match &entry.node {
        Node::Host(device) => Some(device),
        _ => None,
    })
}

impl MountOp {
    /// One line for people, as `machinist plan` prints it.
    pub fn describe(&self) -> String {
        match self {
            Self::Api { fs, target } => format!("{:<10} /{target}", format!("{fs:?}").to_lowercase()),
            Self::Sysfs { keep } => format!("{:<10} /sys, read-only, only {}", "sysfs", keep.join(" ")),
            Self::Tree { target, entries, read_only, mode, .. } => {
                let ro = if *read_only { ", read-only" } else { "" };
                let entries = match entries.len() {
                    1 => "1 entry".to_owned(),
                    count => format!("{count} entries"),
                };
                format!("{:<10} /{target}, mode {mode:o}{ro}, {entries}", "tmpfs")
            }
            Self::GuestTmpfs { target, mode } => format!("{:<10} /{target}, mode {mode:o}, from inside", "tmpfs"),
            Self::Console => format!("{:<10} /dev/console", "console"),
            Self::Mask { targets, .. } => format!("{:<10} {}", "mask", slashed(targets)),
            Self::ReadOnly { targets, except } => {
                let except = except.as_ref().map_or(String::new(), |e| format!(", except /{e}"));
                format!("{:<10} {}{except}", "read-only", slashed(targets))
            }
            Self::Replace { target, source } => format!("{:<10} /{target} by /run/host/{source}", "replace"),
            Self::Tmpfs(t) => {
                let size = t.size.map_or(String::new(), |s| format!(", {s} bytes"));
                format!("{:<10} {}, mode {:o}{size}", "tmpfs", t.target, t.mode)
            }
            Self::Bind(b) => format!("{:<10} {} from '{}'{}", "bind", b.target, b.source.display(), bind_flags(b)),
            Self::Overlay { target, overlay } => format!("{:<10} {target}, {}", "overlay", overlay.describe()),
            Self::Resolver => format!("{:<10} /etc/resolv.conf, the host's, read-only", "bind"),
            Self::Mount(Mount { source, target, flags }) => {
                let (kind, from) = match source {
                    MountSource::New { fstype, source, .. } => (fstype.as_str(), source.clone()),
                    MountSource::Tree { path, .. } => ("bind", Some(path.display().to_string())),
                };
                let from = from.map_or(String::new(), |from| format!(" from '{from}'"));
                let read_only = if flags.read_only { ", read-only" } else { "" };
                format!("{kind:<10} {target}{from}{read_only}")
            }
        }
    }
}

impl OverlayPlan {
    /// The stack in words.
    pub fn describe(&self) -> String {
        let lower: Vec<String> = self.lower.iter().map(|p| format!("'{}'", p.display())).collect();
        let upper = match &self.upper {
            None => "read-only".to_owned(),
            Some(super::UpperPlan::Memory) => "writes to memory".to_owned(),
            Some(super::UpperPlan::Directory(path)) => format!("writes to '{}'", path.display()),
        };
        format!("{} on {upper}", lower.join(" over "))
    }
}

fn slashed(targets: &[String]) -> String {
    targets.iter().map(|t| format!("/{t}")).collect::<Vec<_>>().join(" ")
}

fn bind_flags(bind: &Bind) -> String {
    let mut text = String::new();
    for (on, word) in [
        (bind.read_only, "read-only"),
        (!bind.recursive, "not recursive"),
        (bind.optional, "optional"),
        (bind.propagation == Propagation::Slave, "later host mounts follow"),
    ] {
        if on {
            text.push_str(", ");
            text.push_str(word);
        }
    }
    format!("{text}, ids {}", idmap_word(&bind.idmap))
}

fn idmap_word(idmap: &crate::spec::BindIdmap) -> String {
    use crate::spec::BindIdmap;
    match idmap {
        BindIdmap::Private => "private".to_owned(),
        BindIdmap::None => "unmapped".to_owned(),
        BindIdmap::RootOwner => "root-owner".to_owned(),
        BindIdmap::Owner => "owner".to_owned(),
        BindIdmap::Map(list) => list.iter().map(|e| format!("{}->{}", e.host, e.guest)).collect::<Vec<_>>().join(" "),
    }
}
