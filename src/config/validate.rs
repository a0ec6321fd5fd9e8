//! Turns a merged file into a [`MachineSpec`], checking what no single value shows.

use std::time::Duration;

use super::check::Check;
use super::diagnostic::{Place, Problems};
use super::file::{
    BindTable, BootTable, CapabilitiesTable, ExtraOverlayTable, MachineFile, RootOverlayTable, RootTable,
    SecurityTable, TmpfsTable, UsersTable,
};
use super::reader::{At, NonEmpty};
use super::values::{Argument, CapabilityWord, InitWord, SyscallWord};
use crate::spec::{
    Bind, Boot, CAPABILITIES, Console, ExtraOverlay, GuestPath, Hostname, Identity, Layer, MachineName, MachineSpec,
    Order, Ownership, Payload, ProcessLimits, RestartPolicy, Root, RootSource, Security, Tmpfs, Upper, UserMode, Users,
};

/// Most lower layers of an overlay (`OVL_MAX_STACK` of the kernel).
const MAX_LAYERS: usize = 500;

/// Fills in the defaults that depend on other values.
pub(super) fn settle(name: &MachineName, file: &mut MachineFile) {
    let hostname = &mut file.identity.value.hostname;
    if !hostname.is_set() {
        hostname.value = Hostname::parse(name.as_str()).ok();
    }
    for bind in &mut file.bind.value.0 {
        let BindTable { source, target, .. } = &mut bind.value;
        if !target.is_set() {
            target.value = source.value.as_ref().and_then(|source| GuestPath::parse(source.as_str()).ok());
        }
    }
    super::device::settle(&mut file.device.value.0);
}

/// Checks a settled file; `main` is the file that lacks what nothing else gives.
pub(super) fn validate(
    name: MachineName,
    file: &MachineFile,
    main: usize,
    problems: &mut Problems,
) -> Option<MachineSpec> {
    let mut check = Check::new(problems, main);
    let boot = check.boot(&name, &file.boot.value);
    let root = check.root(&file.root);
    // All of each kind first, so that every problem is found.
    let binds: Vec<Option<Bind>> = file.bind.value.0.iter().map(|bind| check.bind(bind)).collect();
    let tmpfs: Vec<Option<Tmpfs>> = file.tmpfs.value.0.iter().map(|tmpfs| check.tmpfs(tmpfs)).collect();
    let overlays: Vec<Option<ExtraOverlay>> = file.overlay.value.0.iter().map(|table| check.overlay(table)).collect();
    let users = check.users(&file.users.value);
    let devices = check.devices(&file.device.value.0, users.mode);
    let security = check.security(&file.security.value);
    let resources = file.resources.value.check(Place::new(main, 0..0), check.problems);
    let identity = &file.identity.value;
    let console = &file.console.value;
    Some(MachineSpec {
        description: file.description.value.as_ref().map(|line| line.as_str().to_owned()),
        register: file.register.value,
        boot: boot?,
        identity: Identity { hostname: identity.hostname.value.clone()?, machine_id: identity.machine_id.value },
        root: root?,
        binds: binds.into_iter().collect::<Option<_>>()?,
        tmpfs: tmpfs.into_iter().collect::<Option<_>>()?,
        overlays: overlays.into_iter().collect::<Option<_>>()?,
        devices: devices?,
        users,
        network: file.network.value.mode.value,
        security,
        resources,
        console: Console { log: console.log.value, log_size: console.log_size.value.0.0 },
        cgroup_parent: file.cgroup.value.parent.value.as_ref().map(|path| path.as_str()[1..].to_owned()),
        name,
    })
}

impl Check<'_> {
    fn boot(&mut self, name: &MachineName, boot: &BootTable) -> Option<Boot> {
        let of_an_init =
            [("init", boot.init.place, "an init is"), ("args", boot.args.place, "arguments of an init are")];
        for (key, place, what) in of_an_init {
            if boot.command.is_set() && place.is_some() {
                let message = format!("`boot.command` and `boot.{key}` exclude each other");
                self.clash(boot.command.place, message, place, &format!("{what} given here"));
            }
        }
        let strings = |args: &[At<Argument>]| args.iter().map(|arg| arg.value.as_str().to_owned()).collect();
        let args: Vec<String> = strings(&boot.args.value);
        let payload = match (&boot.command.value, &boot.init.value) {
            (Some(command), _) => {
                if let Some(program) = command.0.first().filter(|program| program.value.as_str().is_empty()) {
                    self.report(program.place, "`boot.command`: the program's name is empty");
                }
                Payload::Command { argv: strings(&command.0) }
            }
            (None, InitWord::Auto) => Payload::Auto { args },
            (None, InitWord::Kind(kind)) => Payload::Kind { init: *kind, args },
            (None, InitWord::Path(path)) => Payload::Path { init: path.clone(), args },
        };
        let environment = &boot.environment.value;
        Some(Boot {
            payload,
            environment: environment
                .iter()
                .map(|(name, value)| (name.as_str().to_owned(), value.value.as_str().to_owned()))
                .collect(),
            autostart: boot.autostart.value,
            order: self.order(name, boot),
            ready: boot.ready.value.clone(),
            restart: restart_policy(boot),
            stop_timeout: boot.stop_timeout.value.0,
            clock: boot.clock.value,
            check_os_release: boot.check_os_release.value,
        })
    }

    fn order(&mut self, name: &MachineName, boot: &BootTable) -> Order {
        let mut read = |key: &str, list: &[At<MachineName>]| -> Vec<MachineName> {
            for (index, other) in list.iter().enumerate() {
                if other.value == *name {
                    self.report(other.place, format!("`boot.{key}`: machine '{name}' cannot wait for itself"));
                }
                if let Some(earlier) = list[..index].iter().find(|earlier| earlier.value == other.value) {
                    let message = format!("`boot.{key}`: '{}' is given twice", other.value);
                    self.clash(other.place, message, earlier.place, "first here");
                }
            }
            list.iter().map(|other| other.value.clone()).collect()
        };
        Order {
            after: read("after", &boot.after.value),
            requires: read("requires", &boot.requires.value),
            wants: read("wants", &boot.wants.value),
        }
    }

    fn root(&mut self, root: &At<RootTable>) -> Option<Root> {
        let RootTable { directory, overlay, read_only, volatile } = &root.value;
        if overlay.is_set() && directory.is_set() {
            let message = "`root.overlay` and `root.directory` exclude each other";
            self.clash(overlay.place, message, directory.place, "a directory is given here");
        }
        if directory.value.as_ref().is_some_and(|path| path.as_str() == "/") {
            let hint = "`overlay = { lower = [\"/\"], upper = \"ephemeral\" }` boots a throwaway copy of it";
            self.report(directory.place, "`root.directory`: the host's own root cannot be given away").hint(hint);
        }
        let stack = overlay.value.as_ref().map(|RootOverlayTable { lower, upper }| {
            let lower = self.layers("root.overlay", lower, overlay.place, Some(upper))?;
            Some(RootSource::Overlay { lower, upper: upper.value.clone() })
        });
        if !overlay.is_set() && !directory.is_set() {
            let hint = "the host's own tree with throwaway writes is \
                        `overlay = { lower = [\"/\"], upper = \"ephemeral\" }`";
            self.report(root.place, "`root`: needs one of `directory` and `overlay`").hint(hint);
        }
        let source = match &directory.value {
            Some(path) => RootSource::Directory(path.as_str().into()),
            None => stack??,
        };
        Some(Root { source, read_only: read_only.value, volatile: volatile.value })
    }

    /// Checks the layers of one overlay against each other and against its upper.
    fn layers(
        &mut self,
        key: &str,
        lower: &At<NonEmpty<Layer>>,
        table: Option<Place>,
        upper: Option<&At<Upper>>,
    ) -> Option<Vec<Layer>> {
        if !lower.is_set() {
            self.report(table, format!("`{key}`: missing key `lower`"));
            return None;
        }
        if lower.value.0.len() > MAX_LAYERS {
            let message = format!("`{key}.lower`: {} layers, and the kernel stacks {MAX_LAYERS}", lower.value.0.len());
            self.report(lower.place, message);
            return None;
        }
        let lower = &lower.value.0;
        for (index, layer) in lower.iter().enumerate() {
            if let Some(earlier) = lower[..index].iter().find(|earlier| earlier.value == layer.value) {
                let message = format!("`{key}.lower`: the same layer twice");
                self.clash(layer.place, message, earlier.place, "first given here");
            }
        }
        if let Some(At { value: Upper::Path(path), place }) = upper {
            for layer in lower {
                if matches!(&layer.value, Layer::Path(layer) if layer.starts_with(path)) {
                    let message = format!("`{key}.upper`: a layer cannot be the upper directory or lie inside it");
                    self.clash(*place, message, layer.place, "the layer");
                }
            }
            if let Some(earlier) = self.uppers.insert(path.clone(), *place) {
                self.clash(
                    *place,
                    format!("`{key}.upper`: another overlay writes there"),
                    earlier,
                    "the other overlay",
                );
            }
        }
        Some(lower.iter().map(|layer| layer.value.clone()).collect())
    }

    fn bind(&mut self, row: &At<BindTable>) -> Option<Bind> {
        let bind = &row.value;
        let Some(source) = &bind.source.value else {
            if !bind.source.is_set() {
                self.report(row.place, "`bind`: missing key `source`");
            }
            return None;
        };
        if source.as_str() == "/" && !bind.target.is_set() {
            self.report(bind.source.place, "`bind`: a bind of `/` needs a `target`");
            return None;
        }
        let target = self.target("bind", &bind.target, bind.source.place)?;
        Some(Bind {
            source: source.as_str().into(),
            target,
            read_only: bind.read_only.value,
            recursive: bind.recursive.value,
            optional: bind.optional.value,
            idmap: bind.idmap.value.clone(),
            propagation: bind.propagation.value,
        })
    }

    fn tmpfs(&mut self, row: &At<TmpfsTable>) -> Option<Tmpfs> {
        let target = self.target("tmpfs", &row.value.target, row.place)?;
        Some(Tmpfs { target, size: row.value.size.value.map(|size| size.0), mode: row.value.mode.value.0 })
    }

    fn overlay(&mut self, row: &At<ExtraOverlayTable>) -> Option<ExtraOverlay> {
        let ExtraOverlayTable { target, lower, upper } = &row.value;
        let target = self.target("overlay", target, row.place);
        let at_upper = upper.value.clone().map(|value| At { value, place: upper.place });
        let lower = self.layers("overlay", lower, row.place, at_upper.as_ref());
        Some(ExtraOverlay { target: target?, lower: lower?, upper: upper.value.clone() })
    }

    fn users(&mut self, users: &UsersTable) -> Users {
        let (mode, ownership) = (users.mode.value, users.ownership.value);
        if mode == UserMode::Host && matches!(ownership, Ownership::Map | Ownership::Chown) {
            let message = "`users.ownership`: without a user namespace there is nothing to map";
            self.clash(users.ownership.place, message, users.mode.place, "no user namespace");
        }
        Users { mode, ownership }
    }

    fn security(&mut self, security: &SecurityTable) -> Security {
        let (capabilities_add, capabilities_drop) = self.capabilities(&security.capabilities.value);
        let seccomp = &security.seccomp.value;
        for denied in &seccomp.deny.value {
            if let Some(allowed) = seccomp.allow.value.iter().find(|allowed| allowed.value == denied.value) {
                let message = format!("`security.seccomp`: '{}' is both allowed and denied", denied.value.as_str());
                self.clash(denied.place, message, allowed.place, "allowed here");
            }
        }
        let words = |list: &[At<SyscallWord>]| list.iter().map(|word| word.value.as_str().to_owned()).collect();
        Security {
            capabilities_add,
            capabilities_drop,
            seccomp_allow: words(&seccomp.allow.value),
            seccomp_deny: words(&seccomp.deny.value),
            no_new_privileges: security.no_new_privileges.value,
            limits: ProcessLimits {
                rlimits: security.rlimits.value.limits(),
                oom_score_adjust: security.oom_score_adjust.value.map(|value| value.0),
                nice: security.nice.value.map(|value| value.0),
            },
        }
    }

    /// Both sets by number. Named ones are exceptions from the other side's `all`, so that the two sets never
    /// meet and the order of applying them does not matter.
    fn capabilities(&mut self, table: &CapabilitiesTable) -> (Vec<u8>, Vec<u8>) {
        let numbers = |list: &[At<CapabilityWord>]| -> (bool, Vec<u8>) {
            let mut named: Vec<u8> = list.iter().filter_map(|word| word.value.number()).collect();
            named.sort_unstable();
            named.dedup();
            (list.iter().any(|word| word.value == CapabilityWord::All), named)
        };
        for dropped in &table.drop.value {
            if let Some(added) = table.add.value.iter().find(|added| added.value == dropped.value) {
                let message = "`security.capabilities`: the same capability is both added and dropped";
                self.clash(dropped.place, message, added.place, "added here");
            }
        }
        let all_but = |named: &[u8]| (0u8..).take(CAPABILITIES.len()).filter(|bit| !named.contains(bit)).collect();
        let ((add_all, add), (drop_all, drop)) = (numbers(&table.add.value), numbers(&table.drop.value));
        let added = if add_all { all_but(&drop) } else { add.clone() };
        let dropped = if drop_all { all_but(&add) } else { drop };
        (added, dropped)
    }
}

/// The keys of `[boot]` for a machine that has ended by itself.
fn restart_policy(boot: &BootTable) -> RestartPolicy {
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let limit = &boot.restart_limit.value;
    RestartPolicy {
        when: boot.restart.value,
        delay_ms: milliseconds(boot.restart_delay.value.0),
        count: limit.count.value.0,
        within_ms: limit.within.value.0.map(milliseconds),
    }
}
