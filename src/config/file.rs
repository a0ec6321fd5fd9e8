//! The machine file, key by key: the only place that names its keys, their types, defaults and meaning.

use std::collections::BTreeMap;

use super::boot::{Delay, LimitTable, ReadyTable};
use super::device::DeviceTable;
use super::diagnostic::Place;
use super::quantities::{LogSize, Mode, Size, Timeout};
use super::reader::{At, Entry, Keyed, NonEmpty, Reader, Rows, Setting, Value, table};
use super::resources::{IoMaxTable, ResourcesTable};
use super::rlimits::{Between, RlimitsTable};
use super::values::{
    Argument, CapabilityWord, CgroupPath, HostPath, InitWord, Line, ProfileName, SyscallWord, VariableName,
    VariableValue,
};
use crate::spec::{
    BindIdmap, Clock, GuestPath, Hostname, Layer, MachineId, MachineName, NetworkMode, Ownership, Propagation, Ready,
    Register, Restart, Upper, UserMode, Volatile,
};

table! {
    /// Definition of one machine for Machinist. Unset always means the default.
    MachineFile {
        /// One line about the machine for people.
        "description" description: Option<Line> = None,
        /// Profiles this definition builds on; later ones win, and the definition wins over all.
        "extends" extends: Vec<At<ProfileName>> = Vec::new(),
        /// Enter the machine into the host's table of machines on the system bus, which `machinectl` and others
        /// ask: if it can be, else with a warning (`auto`), or the machine does not run (`yes`), or `no`.
        "register" register: Register = Register::Auto,
        /// What runs in the machine, and how it starts and stops.
        "boot" boot: BootTable = BootTable::unset(),
        /// The machine's identity.
        "identity" identity: IdentityTable = IdentityTable::unset(),
        /// Where the root tree comes from: exactly one of `directory` and `overlay`.
        "root" root: RootTable = RootTable::unset(),
        /// Files and directories of the host that appear in the machine.
        "bind" bind: Rows<BindTable> = Rows(Vec::new()),
        /// File systems in memory.
        "tmpfs" tmpfs: Rows<TmpfsTable> = Rows(Vec::new()),
        /// Overlays below the root.
        "overlay" overlay: Rows<ExtraOverlayTable> = Rows(Vec::new()),
        /// Devices of the host that the machine may use.
        "device" device: Rows<DeviceTable> = Rows(Vec::new()),
        /// Which ids the machine's processes have on the host.
        "users" users: UsersTable = UsersTable::unset(),
        /// Which network the machine sees.
        "network" network: NetworkTable = NetworkTable::unset(),
        /// What the machine may do beyond or short of the default.
        "security" security: SecurityTable = SecurityTable::unset(),
        /// What the machine may have of the host's memory, processors, tasks and disks; what is unset is not limited.
        "resources" resources: ResourcesTable = ResourcesTable::unset(),
        /// What becomes of the console's output.
        "console" console: ConsoleTable = ConsoleTable::unset(),
        /// Where the machine's control group is.
        "cgroup" cgroup: CgroupTable = CgroupTable::unset(),
    }
}

table! {
    /// What runs in the machine, and how it starts and stops.
    BootTable {
        /// The init to boot: found in the tree (`auto`), of this kind, or this program of the tree.
        "init" init: InitWord = InitWord::Auto,
        /// Arguments of the init.
        "args" args: Vec<At<Argument>> = Vec::new(),
        /// Instead of an init: this program and its arguments, run under a small PID 1 that reaps.
        "command" command: Option<NonEmpty<Argument>> = None,
        /// Variables added to the environment of the init or command.
        "environment" environment: BTreeMap<VariableName, At<VariableValue>> = BTreeMap::new(),
        /// Start the machine when the host starts.
        "autostart" autostart: bool = false,
        /// Machines that are to be ready before this one is started, if they are to run at all.
        "after" after: Vec<At<MachineName>> = Vec::new(),
        /// Machines that this one does not run without: they are started with it and ready before it, and it is
        /// stopped before them.
        "requires" requires: Vec<At<MachineName>> = Vec::new(),
        /// Machines that are started with this one and before it, whether they succeed or not.
        "wants" wants: Vec<At<MachineName>> = Vec::new(),
        /// When the machine counts as ready: when its init reports it (`notify`), as soon as it runs
        /// (`started`), whichever of the two fits the init (`auto`), when a program in it succeeds
        /// (`{ exec = ["program", "argument"] }`), or when a TCP port answers (`{ port = 80 }`).
        "ready" ready: Ready = Ready::Auto,
        /// Whether the machine is started again when it has ended by itself: never (`no`), when it was killed or
        /// ended with another status than 0 (`on-failure`), or in any case (`always`). Who asks it to stop,
        /// stops it.
        "restart" restart: Restart = Restart::No,
        /// How long after its end the machine is started again.
        "restart-delay" restart_delay: Delay = Delay::DEFAULT,
        /// How often a machine that ends by itself is started again.
        "restart-limit" restart_limit: LimitTable = LimitTable::unset(),
        /// How long an orderly stop may take before the machine is killed.
        "stop-timeout" stop_timeout: Timeout = Timeout::DEFAULT,
        /// Whether uptime counts from the host's boot (`host`) or from the machine's start (`own`).
        "clock" clock: Clock = Clock::Host,
        /// Refuse a tree without an os-release file, which is most likely no tree at all.
        "check-os-release" check_os_release: bool = true,
    }
}

table! {
    /// The machine's identity.
    IdentityTable {
        /// Host name in the machine; the machine's name unless set.
        "hostname" hostname: Option<Hostname> = None,
        /// Machine id offered to the init; a new one at each start unless set.
        "machine-id" machine_id: Option<MachineId> = None,
    }
}

table! {
    /// Where the root tree comes from: exactly one of `directory` and `overlay`.
    RootTable {
        /// This directory of the host is the root; the machine writes to it.
        "directory" directory: Option<HostPath> = None,
        /// Read-only layers with a place for writes on top.
        "overlay" overlay: Option<RootOverlayTable> = None,
        /// Mount the root read-only.
        "read-only" read_only: bool = false,
        /// What forgets its writes at stop: nothing (`no`), /var (`state`) or everything but /usr (`yes`).
        "volatile" volatile: Volatile = Volatile::No,
    }
}

table! {
    /// Read-only layers with a place for writes on top.
    RootOverlayTable {
        /// Layers, topmost first: names of images, or absolute paths of the host (`/` is its own tree).
        "lower" lower: NonEmpty<Layer> = NonEmpty(Vec::new()),
        /// Where writes go: kept by Machinist (`persistent`), in memory until the machine stops
        /// (`ephemeral`), or in this directory of the host.
        "upper" upper: Upper = Upper::Persistent,
    }
}

table! {
    /// A file or directory of the host that appears in the machine.
    BindTable {
        /// Absolute path on the host.
        "source" source: Option<HostPath> = None,
        /// Absolute path in the machine; the same as the source unless set.
        "target" target: Option<GuestPath> = None,
        /// Refuse writes through the bind.
        "read-only" read_only: bool = false,
        /// Bring the mounts below the source along.
        "recursive" recursive: bool = true,
        /// Skip the bind if the source does not exist.
        "optional" optional: bool = false,
        /// How owners appear in the machine: by the machine's own map (`private`), as on the host (`none`),
        /// the source's owner as root (`root-owner`) or as the target's owner (`owner`), or by a list such
        /// as `["u:1000->33", "g:100->100", "2000-2009->0-9"]`, host ids first.
        "idmap" idmap: BindIdmap = BindIdmap::Private,
        /// Whether mounts that the host makes below the source later appear (`slave`) or not (`private`).
        "propagation" propagation: Propagation = Propagation::Private,
    }
}

table! {
    /// A file system in memory.
    TmpfsTable {
        /// Absolute path in the machine.
        "target" target: Option<GuestPath> = None,
        /// Most it may hold, such as "512M"; half the host's memory unless set.
        "size" size: Option<Size> = None,
        /// Mode of its top directory, in octal digits.
        "mode" mode: Mode = Mode::DEFAULT,
    }
}

table! {
    /// An overlay below the root.
    ExtraOverlayTable {
        /// Absolute path in the machine.
        "target" target: Option<GuestPath> = None,
        /// Layers, topmost first: names of images or absolute paths of the host.
        "lower" lower: NonEmpty<Layer> = NonEmpty(Vec::new()),
        /// Where writes go: `persistent`, `ephemeral` or a directory of the host; read-only unless set.
        "upper" upper: Option<Upper> = None,
    }
}

table! {
    /// Which ids the machine's processes have on the host.
    UsersTable {
        /// A range of its own (`auto`), exactly `{ shift, size }`, the host's ids in a user namespace
        /// (`identity`), or no user namespace at all (`host`).
        "mode" mode: UserMode = UserMode::Auto,
        /// How files get these ids: idmapped mounts (`auto`, `map`), new owners on disk (`chown`), or they
        /// have them already (`off`).
        "ownership" ownership: Ownership = Ownership::Auto,
    }
}

table! {
    /// A range of ids for one machine.
    RangeTable {
        /// First host id, which is id 0 in the machine.
        "shift" shift: Option<u32> = None,
        /// How many ids.
        "size" size: u32 = crate::spec::ID_RANGE_SIZE,
    }
}

table! {
    /// Which network the machine sees.
    NetworkTable {
        /// Nothing but a loopback link of its own (`private`), or the host's network (`host`).
        "mode" mode: NetworkMode = NetworkMode::Private,
    }
}

table! {
    /// What the machine may do beyond or short of the default.
    SecurityTable {
        /// Capabilities beyond or short of the default set.
        "capabilities" capabilities: CapabilitiesTable = CapabilitiesTable::unset(),
        /// System calls beyond or short of the default filter.
        "seccomp" seccomp: SeccompTable = SeccompTable::unset(),
        /// Never gain rights by executing a program: setuid programs of the machine lose their effect.
        "no-new-privileges" no_new_privileges: bool = false,
        /// Limits of single processes.
        "rlimits" rlimits: RlimitsTable = RlimitsTable::unset(),
        /// How readily the kernel kills the machine's processes when the host's memory is short, from -1000 (never) to
        /// 1000; that of the process that starts the machine unless set.
        "oom-score-adjust" oom_score_adjust: Option<Between<-1000, 1000>> = None,
        /// Share of the processors, from -20 (most) to 19; that of the process that starts the machine unless set.
        "nice" nice: Option<Between<-20, 19>> = None,
    }
}

table! {
    /// Capabilities beyond or short of the default set.
    CapabilitiesTable {
        /// Capabilities to grant, such as "NET_ADMIN", or "all".
        "add" add: Vec<At<CapabilityWord>> = Vec::new(),
        /// Capabilities to take, such as "NET_RAW", or "all".
        "drop" drop: Vec<At<CapabilityWord>> = Vec::new(),
    }
}

table! {
    /// System calls beyond or short of the default filter.
    SeccompTable {
        /// System calls or `@sets` to allow.
        "allow" allow: Vec<At<SyscallWord>> = Vec::new(),
        /// System calls or `@sets` to deny.
        "deny" deny: Vec<At<SyscallWord>> = Vec::new(),
    }
}

table! {
    /// What becomes of the console's output.
    ConsoleTable {
        /// Keep what the console shows in a file.
        "log" log: bool = true,
        /// Size at which that file is rotated; one older file is kept.
        "log-size" log_size: LogSize = LogSize::DEFAULT,
    }
}

table! {
    /// Where the machine's control group is.
    CgroupTable {
        /// Group below which the machine's is made, from the top of the cgroup2 tree; the group we run in
        /// unless set.
        "parent" parent: Option<CgroupPath> = None,
    }
}

impl Keyed for BindTable {
    fn identity(&self) -> Option<&str> {
        let target = self.target.value.as_ref().map(GuestPath::as_str);
        if self.target.is_set() { target } else { self.source.value.as_ref().map(HostPath::as_str) }
    }
}

impl Keyed for TmpfsTable {
    fn identity(&self) -> Option<&str> {
        self.target.value.as_ref().map(GuestPath::as_str)
    }
}

impl Keyed for ExtraOverlayTable {
    fn identity(&self) -> Option<&str> {
        self.target.value.as_ref().map(GuestPath::as_str)
    }
}

impl MachineFile {
    /// Lays a stronger file over this one.
    ///
    /// Where two keys exclude each other, the stronger file's choice removes the weaker one's: otherwise a
    /// profile's root could never be replaced.
    pub(super) fn put_over(&mut self, over: Self) {
        if over.root.value.directory.is_set() && !over.root.value.overlay.is_set() {
            self.root.value.overlay = At::default(None);
        }
        if over.root.value.overlay.is_set() && !over.root.value.directory.is_set() {
            self.root.value.directory = At::default(None);
        }
        let boots_init = over.boot.value.init.is_set() || over.boot.value.args.is_set();
        if over.boot.value.command.is_set() && !boots_init {
            self.boot.value.init = At::default(InitWord::Auto);
            self.boot.value.args = At::default(Vec::new());
        }
        if boots_init && !over.boot.value.command.is_set() {
            self.boot.value.command = At::default(None);
        }
        self.merge(over);
    }

    /// Every key with its effective value; those that another key excludes have none.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::with_capacity(64);
        self.list("", None, &mut entries);
        if self.boot.value.command.is_set() {
            entries.retain(|entry| !matches!(entry.key.as_str(), "boot.init" | "boot.args"));
        }
        entries
    }
}

/// Tables by the name that a message gives them, with their keys.
const TABLES: &[(&str, &[&str])] = &[
    ("the top of the file", MachineFile::KEYS),
    ("`[boot]`", BootTable::KEYS),
    ("`ready` of `[boot]`", ReadyTable::KEYS),
    ("`restart-limit` of `[boot]`", LimitTable::KEYS),
    ("`[identity]`", IdentityTable::KEYS),
    ("`[root]`", RootTable::KEYS),
    ("`overlay` of `[root]`", RootOverlayTable::KEYS),
    ("`[[bind]]`", BindTable::KEYS),
    ("`[[tmpfs]]`", TmpfsTable::KEYS),
    ("`[[overlay]]`", ExtraOverlayTable::KEYS),
    ("`[[device]]`", DeviceTable::KEYS),
    ("`[users]`", UsersTable::KEYS),
    ("`mode` of `[users]`", RangeTable::KEYS),
    ("`[network]`", NetworkTable::KEYS),
    ("`[security]`", SecurityTable::KEYS),
    ("`capabilities` of `[security]`", CapabilitiesTable::KEYS),
    ("`seccomp` of `[security]`", SeccompTable::KEYS),
    ("`[resources]`", ResourcesTable::KEYS),
    ("`io-max` of `[resources]`", IoMaxTable::KEYS),
    ("`rlimits` of `[security]`", RlimitsTable::KEYS),
    ("`[console]`", ConsoleTable::KEYS),
    ("`[cgroup]`", CgroupTable::KEYS),
];

/// The JSON schema of a machine file.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(MachineFile).to_value()
}

/// The only table that has a key, for one found in the wrong place.
pub(super) fn table_with(key: &str) -> Option<&'static str> {
    let mut tables = TABLES.iter().filter(|(_, keys)| keys.contains(&key)).map(|(table, _)| *table);
    tables.next().filter(|_| tables.next().is_none())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value as Json;
    use toml::de::{DeTable, DeValue};

    use super::super::diagnostic::Problems;
    use super::*;

    /// Reads a whole file and gives what is wrong with it.
    fn read(text: &str) -> Vec<String> {
        let mut problems = Problems::default();
        let file = problems.add_file("test.toml".into(), text.to_owned());
        let table = DeTable::parse(text).expect("TOML").into_inner();
        let root = toml::Spanned::new(0..0, DeValue::Table(table));
        MachineFile::read(&root, &mut Reader::new(file, &mut problems, table_with));
        problems.into_diagnostics().iter().map(|problem| problem.render(false)).collect()
    }

    /// Follows a reference of the schema to its definition.
    fn resolve<'a>(root: &'a Json, schema: &'a Json) -> &'a Json {
        match schema["$ref"].as_str() {
            Some(reference) => root.pointer(&reference[1..]).expect("definition"),
            None => schema,
        }
    }

    /// The objects with declared keys that a schema allows, each with the TOML that leads to it.
    fn tables<'a>(root: &'a Json, schema: &'a Json, header: &str, found: &mut Vec<(String, &'a Json)>) {
        let schema = resolve(root, schema);
        if let Some(properties) = schema["properties"].as_object() {
            found.push((header.to_owned(), schema));
            for (key, property) in properties {
                tables(root, property, &format!("{header}.{key}"), found);
            }
        }
        if let Some(items) = schema.get("items") {
            tables(root, items, &format!("{header}[]"), found);
        }
        schema["anyOf"].as_array().into_iter().flatten().for_each(|choice| tables(root, choice, header, found));
    }

    #[test]
    fn the_reader_knows_the_keys_of_the_schema_and_no_others() {
        let schema = schemars::schema_for!(MachineFile).to_value();
        let mut found = Vec::new();
        tables(&schema, &schema, "", &mut found);
        assert_eq!(found.len(), TABLES.len(), "every table of the format: {found:#?}");
        for (header, table) in found {
            let path = header.trim_start_matches('.').trim_end_matches("[]");
            let text = match path {
                "" => "no-such-key = 1".to_owned(),
                _ if header.ends_with("[]") => format!("[[{path}]]\nno-such-key = 1"),
                _ => format!("[{path}]\nno-such-key = 1"),
            };
            let problems = read(&text);
            let expected = problems.iter().find_map(|problem| problem.split_once("expected one of ")).expect(&text).1;
            let known: BTreeSet<&str> =
                expected.lines().next().unwrap_or("").split(", ").map(|key| key.trim_matches('`')).collect();
            let declared: BTreeSet<&str> =
                table["properties"].as_object().expect("object").keys().map(String::as_str).collect();
            assert_eq!(known, declared, "{header}");
            assert_eq!(table["additionalProperties"], Json::Bool(false), "{header}");
        }
    }

    #[test]
    fn every_key_of_the_schema_is_explained() {
        let schema = schemars::schema_for!(MachineFile).to_value();
        let mut found = Vec::new();
        tables(&schema, &schema, "", &mut found);
        for (header, table) in found {
            for (key, property) in table["properties"].as_object().expect("object") {
                let text = property["description"].as_str().unwrap_or_default();
                assert!(text.len() > 10 && text.ends_with('.'), "{header}.{key}: {text:?}");
            }
        }
    }

    #[test]
    fn every_default_of_the_schema_can_be_written_out() {
        let schema = schemars::schema_for!(MachineFile).to_value();
        let mut found = Vec::new();
        tables(&schema, &schema, "", &mut found);
        let mut written = 0;
        for (header, table) in found {
            for (key, property) in table["properties"].as_object().expect("object") {
                let path = header.trim_start_matches('.').trim_end_matches("[]");
                let Some(default) = property.get("default").filter(|default| **default != Json::Array(Vec::new()))
                else {
                    continue;
                };
                let value = toml::Value::try_from(default).expect("TOML");
                let text = match path {
                    "" => format!("{key} = {value}"),
                    "users.mode" => format!("users.mode = {{ shift = 65536, {key} = {value} }}"),
                    _ if header.ends_with("[]") => format!("[[{path}]]\n{key} = {value}"),
                    _ => format!("[{path}]\n{key} = {value}"),
                };
                assert_eq!(read(&text), [""; 0], "{text}");
                written += 1;
            }
        }
        assert!(written > 15, "only {written} defaults");
    }

    #[test]
    fn a_key_in_the_wrong_place_is_sent_to_its_table_if_only_one_has_it() {
        assert_eq!(table_with("hostname"), Some("`[identity]`"));
        assert_eq!(table_with("drop"), Some("`capabilities` of `[security]`"));
        assert_eq!(table_with("mode"), None);
        assert_eq!(table_with("bridge"), None);
    }
}
