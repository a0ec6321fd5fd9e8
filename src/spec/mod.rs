//! The validated types of the project and [`MachineSpec`], the complete description of one machine.
//!
//! Everything here has been checked: a [`MachineName`] that exists is safe as a file name, a cgroup name and
//! a host name. Every name the host sees because of a machine (cgroup, lock, directory) is built in
//! [`Layout`], so that `reap` can find leftovers by name alone. Reads and writes nothing.

mod boot;
mod dependencies;
mod device;
mod layout;
mod resources;
mod rlimits;
mod unit;
mod words;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use boot::{DURATION_UNITS, Ready, Restart, RestartPolicy, Span};
pub use dependencies::Order;
pub use device::{Device, Permission};
pub use layout::{Layout, Scope, UserDirs};
pub use resources::{Amount, Bound, CpuTime, IoMax, NumberSet, ResourceKey, Resources, Unmet, Weight};
pub use rlimits::{ProcessLimits, Resource, Rlimit};
pub use unit::{scope_unit, service_unit};
pub use words::{GuestPath, Hostname, ImageName, MachineId, MachineName, WordError};

/// Number of ids a machine's user namespace holds unless set otherwise: uid 0 up to `nobody`.
pub const ID_RANGE_SIZE: u32 = 65_536;

/// `PATH` of an init or a command, unless another is set.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A consecutive block of host ids given to one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// First host id; guest id 0 is this one.
    pub shift: u32,
    /// Number of ids.
    pub size: u32,
}

/// Which init program runs the tree, and so which protocol stops it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are the programs' own")]
pub enum InitKind {
    Systemd,
    Sysvinit,
    Openrc,
    Runit,
    Busybox,
    S6,
    Dinit,
    Finit,
}

impl InitKind {
    /// Every kind, in the order the file format lists them.
    pub const ALL: [Self; 8] =
        [Self::Systemd, Self::Sysvinit, Self::Openrc, Self::Runit, Self::Busybox, Self::S6, Self::Dinit, Self::Finit];

    /// The word used in files and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::Sysvinit => "sysvinit",
            Self::Openrc => "openrc",
            Self::Runit => "runit",
            Self::Busybox => "busybox",
            Self::S6 => "s6",
            Self::Dinit => "dinit",
            Self::Finit => "finit",
        }
    }
}

/// What becomes PID 1 of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Payload {
    /// The tree's own init, found by looking at the tree.
    Auto {
        /// Arguments after the program's name.
        args: Vec<String>,
    },
    /// The tree's init is this kind, wherever its usual place is.
    Kind {
        /// The requested kind.
        init: InitKind,
        /// Arguments after the program's name.
        args: Vec<String>,
    },
    /// This program of the tree is its init; its kind is still detected.
    Path {
        /// Where the program is inside the tree.
        init: GuestPath,
        /// Arguments after the program's name.
        args: Vec<String>,
    },
    /// No init: this command runs as PID 2 under a stub PID 1 that reaps.
    Command {
        /// Program and arguments; the program is looked up in the guest's PATH if it has no slash.
        argv: Vec<String>,
    },
}

/// Which boot clock the payload sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clock {
    /// The host's monotonic and boot clocks.
    Host,
    /// A time namespace whose monotonic and boot clocks begin at zero (`time_namespaces(7)`).
    Own,
}

/// `[boot]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Boot {
    /// What runs.
    pub payload: Payload,
    /// Added to the environment of PID 1, in order of the keys.
    pub environment: Vec<(String, String)>,
    /// Started when the host starts.
    pub autostart: bool,
    /// Which other machines it is started after.
    pub order: Order,
    /// When the machine counts as ready.
    pub ready: Ready,
    /// What becomes of it when it has ended by itself.
    pub restart: RestartPolicy,
    /// How long an orderly stop may take before the machine is killed; `None` waits without limit.
    pub stop_timeout: Option<Duration>,
    /// Which boot clock the payload sees.
    pub clock: Clock,
    /// Refuse a tree that has no os-release file.
    pub check_os_release: bool,
}

/// `[identity]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Identity {
    /// Host name of the machine; the machine's name unless set.
    pub hostname: Hostname,
    /// Handed to the guest's init as `container_uuid`; random at each start unless set.
    pub machine_id: Option<MachineId>,
}

/// One read-only layer of an overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// A directory of the image store.
    Image(ImageName),
    /// An absolute path of the host; `/` is the host's own tree.
    Path(PathBuf),
}

/// Where the writes of an overlay go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Upper {
    /// Kept below the machine's state directory.
    Persistent,
    /// In memory, gone when the machine stops.
    Ephemeral,
    /// In this directory of the host, which gets `upper` and `work` inside.
    Path(PathBuf),
}

/// Where the root tree comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootSource {
    /// This directory of the host is the root.
    Directory(PathBuf),
    /// A stack of layers, topmost first, with an upper directory.
    Overlay {
        /// Topmost first.
        lower: Vec<Layer>,
        /// Where writes go.
        upper: Upper,
    },
}

/// What of the root forgets its writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Volatile {
    /// Nothing.
    No,
    /// `/var` is a tmpfs, the rest is read-only.
    State,
    /// The root is a tmpfs with only `/usr` of the tree, read-only.
    Yes,
}

/// `[root]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Root {
    /// Where the tree comes from.
    pub source: RootSource,
    /// Mount the root read-only.
    pub read_only: bool,
    /// What forgets its writes.
    pub volatile: Volatile,
}

/// One `FROM->TO` entry of an explicit id map: host ids to ids in the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct IdMapEntry {
    /// First id as the source's file system stores it.
    pub host: u32,
    /// First id as the machine sees it.
    pub guest: u32,
    /// How many consecutive ids.
    pub count: u32,
    /// Which kind of ids it is for.
    pub of: IdsOf,
}

/// Which ids a map entry covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names say it")]
pub enum IdsOf {
    Users,
    Groups,
    Both,
}

/// How ids of a bind's source appear in a machine that has a user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BindIdmap {
    /// The machine's own map: id N on disk is id N in the machine.
    Private,
    /// Host ids stay host ids; those outside the machine's range appear as `nobody`.
    None,
    /// The owner of the source is root in the machine, every other id is `nobody`.
    RootOwner,
    /// The owner of the source is the owner of the target, every other id is `nobody`.
    Owner,
    /// Exactly these; every other id is `nobody`.
    Map(Vec<IdMapEntry>),
}

/// Whether later mounts below a bind's source reach the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Propagation {
    /// They do not (`MS_PRIVATE`).
    Private,
    /// Those made on the host do (`MS_SLAVE`).
    Slave,
}

/// `[[bind]]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Bind {
    /// Absolute host path, file or directory.
    pub source: PathBuf,
    /// Where it appears.
    pub target: GuestPath,
    /// Refuse writes through the bind.
    pub read_only: bool,
    /// Bring the mounts below the source along.
    pub recursive: bool,
    /// Skip the bind when the source does not exist.
    pub optional: bool,
    /// How ids appear.
    pub idmap: BindIdmap,
    /// Whether later host mounts reach the machine.
    pub propagation: Propagation,
}

/// `[[tmpfs]]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Tmpfs {
    /// Where it is mounted.
    pub target: GuestPath,
    /// Limit in bytes; the kernel's default (half the memory) unless set.
    pub size: Option<u64>,
    /// Mode of its root directory.
    pub mode: u32,
}

/// `[[overlay]]`: a further overlay below the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ExtraOverlay {
    /// Where it is mounted.
    pub target: GuestPath,
    /// Layers, topmost first.
    pub lower: Vec<Layer>,
    /// Where writes go; read-only without one.
    pub upper: Option<Upper>,
}

/// Which ids the machine's processes have on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UserMode {
    /// A user namespace with a range of its own, picked once and remembered.
    Auto,
    /// No user namespace: root in the machine is root on the host.
    Host,
    /// A user namespace in which ids 0 to 65535 are the host's.
    Identity,
    /// A user namespace with exactly this range.
    Range(IdRange),
}

/// How files of the tree come to belong to the machine's ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ownership {
    /// The same as `Map`.
    Auto,
    /// Idmapped mounts; files keep their owners on disk.
    Map,
    /// Files are given new owners on disk, once.
    Chown,
    /// The files already belong to the machine's ids.
    Off,
}

/// `[users]`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Users {
    /// Which ids.
    pub mode: UserMode,
    /// How files get them.
    pub ownership: Ownership,
}

/// `[network] mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// A network namespace with only a loopback link, which is up.
    Private,
    /// The host's network.
    Host,
}

/// Names of the capabilities without `CAP_`, by bit number (`capabilities(7)`).
pub const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// `[security]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Security {
    /// Capabilities (bit numbers of `capabilities(7)`) beyond the default set.
    pub capabilities_add: Vec<u8>,
    /// Capabilities taken from the default set.
    pub capabilities_drop: Vec<u8>,
    /// System calls or `@sets` allowed beyond the default filter.
    pub seccomp_allow: Vec<String>,
    /// System calls or `@sets` taken from it.
    pub seccomp_deny: Vec<String>,
    /// Set `no_new_privs`: setuid programs of the guest lose their effect.
    pub no_new_privileges: bool,
    /// Limits of single processes, and how the kernel treats them.
    pub limits: ProcessLimits,
}

/// `[console]`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Console {
    /// Keep what the console shows in a file.
    pub log: bool,
    /// Size in bytes at which the file is rotated; one older file is kept.
    pub log_size: u64,
}

/// Whether a machine is entered into the host's table of machines, `org.freedesktop.machine1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Register {
    /// If it can be; else it runs all the same, and a warning is given.
    Auto,
    /// It does not run otherwise.
    Yes,
    /// It is not.
    No,
}

/// Everything one machine is asked to be, checked, with every default filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "each field is a section of the file, documented at its type")]
pub struct MachineSpec {
    pub name: MachineName,
    pub description: Option<String>,
    pub register: Register,
    pub boot: Boot,
    pub identity: Identity,
    pub root: Root,
    pub binds: Vec<Bind>,
    pub tmpfs: Vec<Tmpfs>,
    pub overlays: Vec<ExtraOverlay>,
    pub devices: Vec<Device>,
    pub users: Users,
    pub network: NetworkMode,
    pub security: Security,
    pub resources: Resources,
    pub console: Console,
    /// Control group, relative to the cgroup2 mount (empty for its top), below which the machine's group is made;
    /// the group of the caller unless set.
    pub cgroup_parent: Option<String>,
}
