//! The validated words of the project and [`MachineSpec`], what one machine is asked to be.
//!
//! Everything here has been checked: a [`MachineName`] that exists is safe as a file name, a cgroup name and
//! a host name. Every name the host sees because of a machine (cgroup, lock, directory) is built in this
//! file, so that `reap` can find leftovers by name alone. Reads and writes nothing.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Number of ids a machine's user namespace holds unless told otherwise: uid 0 up to `nobody`.
pub const ID_RANGE_SIZE: u32 = 65_536;

/// Why a word of the user's is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WordError {
    /// What kind of word was wanted, as in "machine name".
    pub wanted: &'static str,
    /// What the user wrote.
    pub got: String,
    /// The rule that was broken, as the end of a sentence.
    pub rule: &'static str,
}

impl fmt::Display for WordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: String = self.got.chars().take(80).collect();
        write!(f, "{} '{}' {}", self.wanted, shown.escape_debug(), self.rule)
    }
}

impl std::error::Error for WordError {}

fn word_error(wanted: &'static str, got: &str, rule: &'static str) -> WordError {
    WordError { wanted, got: got.to_owned(), rule }
}

/// Name of a machine: a host name of at most 64 bytes, as machine1 demands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct MachineName(String);

impl MachineName {
    /// Checks the characters, the labels between dots and the length.
    pub fn parse(text: &str) -> Result<Self, WordError> {
        check_hostname("machine name", text)?;
        Ok(Self(text.to_owned()))
    }

    /// The name as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A host name as the kernel's UTS namespace takes it (64 bytes).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hostname(String);

impl Hostname {
    /// Accepts what [`MachineName::parse`] accepts.
    pub fn parse(text: &str) -> Result<Self, WordError> {
        check_hostname("host name", text)?;
        Ok(Self(text.to_owned()))
    }

    /// The name as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_hostname(wanted: &'static str, text: &str) -> Result<(), WordError> {
    let fail = |rule| Err(word_error(wanted, text, rule));
    if text.is_empty() {
        return fail("is empty");
    }
    if text.len() > 64 {
        return fail("is longer than 64 bytes");
    }
    if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return fail("may hold only letters, digits, `-`, `_` and `.`");
    }
    if text.split('.').any(|label| label.is_empty() || label.starts_with('-') || label.ends_with('-')) {
        return fail("has an empty part or a part that begins or ends with `-`");
    }
    Ok(())
}

/// Name of an entry of the image store: one path component that is not hidden.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageName(String);

impl ImageName {
    /// Checks that the text is a single visible path component.
    pub fn parse(text: &str) -> Result<Self, WordError> {
        let fail = |rule| Err(word_error("image name", text, rule));
        if text.is_empty() || text.len() > 255 {
            return fail("must have 1 to 255 bytes");
        }
        if text.starts_with('.') {
            return fail("may not begin with `.`");
        }
        if text.contains('/') || text.chars().any(char::is_control) {
            return fail("may not hold `/` or control characters");
        }
        Ok(Self(text.to_owned()))
    }

    /// The name as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Absolute path inside the machine, without `.`, `..` or doubled slashes; never `/` itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct GuestPath(String);

impl GuestPath {
    /// Normalises doubled and trailing slashes; refuses everything that could leave the root.
    pub fn parse(text: &str) -> Result<Self, WordError> {
        let fail = |rule| Err(word_error("path in the machine", text, rule));
        if !text.starts_with('/') {
            return fail("must begin with `/`");
        }
        if text.len() > 4000 || text.contains('\0') {
            return fail("is too long or holds a zero byte");
        }
        let parts: Vec<&str> = text.split('/').filter(|p| !p.is_empty()).collect();
        if parts.is_empty() {
            return fail("may not be the root itself");
        }
        if parts.iter().any(|p| matches!(*p, "." | "..")) {
            return fail("may not hold `.` or `..`");
        }
        Ok(Self(format!("/{}", parts.join("/"))))
    }

    /// `/var`, which `volatile = "state"` covers.
    pub fn var() -> Self {
        Self("/var".to_owned())
    }

    /// The path with its leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path below the root, as `openat2` with a root descriptor wants it.
    pub fn relative(&self) -> &str {
        &self.0[1..]
    }

    /// Number of components, by which mounts are ordered.
    pub fn depth(&self) -> usize {
        self.0.matches('/').count()
    }

    /// Whether `self` is `other` or lies below it.
    pub fn is_at_or_below(&self, other: &str) -> bool {
        self.0 == other || (self.0.starts_with(other) && self.0.as_bytes().get(other.len()) == Some(&b'/'))
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The 128 bits of a machine id (`machine-id(5)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineId(pub [u8; 16]);

impl MachineId {
    /// Accepts 32 hexadecimal digits, with or without the dashes of a UUID; refuses all zeroes.
    pub fn parse(text: &str) -> Result<Self, WordError> {
        let fail = |rule| Err(word_error("machine id", text, rule));
        let digits: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
        if digits.len() != 32 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return fail("must be 32 hexadecimal digits or a UUID");
        }
        let mut id = [0u8; 16];
        for (byte, pair) in id.iter_mut().zip(digits.chunks(2)) {
            let hex = |d: u8| (d as char).to_digit(16).and_then(|v| u8::try_from(v).ok()).unwrap_or(0);
            *byte = hex(pair[0]) << 4 | hex(pair[1]);
        }
        if id == [0; 16] {
            return fail("may not be all zeroes");
        }
        Ok(Self(id))
    }

    /// The dashed form that `container_uuid=` carries.
    pub fn uuid(&self) -> String {
        let hex: String = self.0.iter().map(|b| format!("{b:02x}")).collect();
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl Serialize for MachineId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

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
        /// The kind asked for.
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

/// When the machine counts as ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ready {
    /// `notify` for an init that is known to notify, else `started`.
    Auto,
    /// When PID 1 sends `READY=1` to its notification socket.
    Notify,
    /// As soon as the payload has been executed.
    Started,
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
    /// When the machine counts as ready.
    pub ready: Ready,
    /// How long an orderly stop may take before the machine is killed; `None` waits for ever.
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

/// Everything one machine is asked to be, checked, with every default filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "each field is a section of the file, documented at its type")]
pub struct MachineSpec {
    pub name: MachineName,
    pub description: Option<String>,
    pub boot: Boot,
    pub identity: Identity,
    pub root: Root,
    pub binds: Vec<Bind>,
    pub tmpfs: Vec<Tmpfs>,
    pub overlays: Vec<ExtraOverlay>,
    pub users: Users,
    pub network: NetworkMode,
    pub security: Security,
    pub console: Console,
    /// Control group, relative to the cgroup2 mount (empty for its top), below which the machine's group is made;
    /// the group of the caller unless set.
    pub cgroup_parent: Option<String>,
}

/// Where everything lives on the host; every path is below one root so that tests run beside each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout below `root`; `/` is the system's.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Directories that hold `machines/` and `profiles/`, strongest first.
    pub fn config_dirs(&self) -> [PathBuf; 3] {
        ["/etc/machinist", "/run/machinist/config", "/usr/lib/machinist"].map(|p| self.at(p))
    }

    /// The image store, shared with systemd's tools.
    pub fn images(&self) -> PathBuf {
        self.at("/var/lib/machines")
    }

    /// Parent of every machine's run directory.
    pub fn run_root(&self) -> PathBuf {
        self.at("/run/machinist")
    }

    /// State, lock and socket of a running machine.
    pub fn run_dir(&self, name: &MachineName) -> PathBuf {
        self.run_root().join("machines").join(name.as_str())
    }

    /// Uppers, id range and console log, kept from run to run.
    pub fn state_dir(&self, name: &MachineName) -> PathBuf {
        self.at("/var/lib/machinist").join(name.as_str())
    }

    /// Lock files of id ranges, at the place and in the manner of systemd-nspawn.
    pub fn uid_locks(&self) -> PathBuf {
        self.at("/run/systemd/nspawn-uid")
    }

    /// Turns a layer into the directory it stands for.
    pub fn layer(&self, layer: &Layer) -> PathBuf {
        match layer {
            Layer::Image(name) => self.images().join(name.as_str()),
            Layer::Path(path) => path.clone(),
        }
    }

    /// The directory that holds `upper` and `work`, or `None` for one in memory.
    pub fn upper(&self, name: &MachineName, upper: &Upper, which: &str) -> Option<PathBuf> {
        match upper {
            Upper::Persistent => Some(self.state_dir(name).join(which)),
            Upper::Ephemeral => None,
            Upper::Path(path) => Some(path.clone()),
        }
    }

    /// Name of the control group of a machine, below its parent.
    ///
    /// Layouts with another root have names of their own: control groups are the one thing that a root cannot
    /// hold, and a start removes what it finds under its name.
    pub fn cgroup_name(&self, name: &MachineName) -> String {
        if self.root == Path::new("/") {
            return format!("machinist-{name}");
        }
        // FNV-1a: short, and the same in every build.
        let hash = self.root.as_os_str().as_encoded_bytes().iter();
        let hash = hash.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
        format!("machinist-{name}-{hash:08x}")
    }

    /// The root itself.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_names_are_host_names_of_at_most_64_bytes() {
        for good in ["web", "a", "web-1.example", "A_b", &"x".repeat(64)] {
            assert!(MachineName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "a/b", "..", ".", ".web", "web.", "-a", "a-", "a b", "ü", &"x".repeat(65), "a\0b", "a..b"] {
            assert!(MachineName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn guest_paths_are_normalised_and_cannot_leave_the_root() {
        assert_eq!(GuestPath::parse("//srv///www/").map(|p| p.as_str().to_owned()), Ok("/srv/www".to_owned()));
        for bad in ["srv", "/", "/a/../b", "/./a", ""] {
            assert!(GuestPath::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_machine_id_is_read_in_both_forms_and_written_as_a_uuid() {
        let id = MachineId::parse("0123456789abcdef0123456789ABCDEF").expect("valid");
        assert_eq!(id.uuid(), "01234567-89ab-cdef-0123-456789abcdef");
        assert_eq!(MachineId::parse(&id.uuid()), Ok(id));
        assert!(MachineId::parse(&"0".repeat(32)).is_err());
        assert!(MachineId::parse("xyz").is_err());
    }

    #[test]
    fn control_groups_of_different_roots_do_not_meet() {
        let name = MachineName::parse("web").expect("valid");
        assert_eq!(Layout::new("/").cgroup_name(&name), "machinist-web");
        assert_ne!(Layout::new("/a").cgroup_name(&name), Layout::new("/b").cgroup_name(&name));
    }

    #[test]
    fn word_errors_are_short_and_carry_no_control_characters() {
        let text = MachineName::parse(&"\u{1b}[31m".repeat(100)).map_err(|e| e.to_string());
        assert!(text.is_err_and(|t| t.len() < 900 && !t.contains('\u{1b}')));
    }
}
