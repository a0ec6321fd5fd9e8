//! The machines that are known, and their state files. Nothing here knows of a bus.
//!
//! A state file (`/run/systemd/machines/NAME`) is an interface: `systemctl -M`, `loginctl -M`, `ps -o machine` and the
//! name service module read it, and watch the directory for files that are moved in. It is also our memory: a daemon
//! that starts finds every machine there again.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::Pid;

use crate::spec::Layout;
use crate::sys::file;
use crate::sys::{self, Context as _, process};

/// Name of the machine that stands for the host.
pub(crate) const HOST: &str = ".host";
/// What a machine without a VSOCK address has instead.
pub(crate) const NO_CID: u32 = u32::MAX;

/// What kind of thing a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Container,
    Vm,
}

impl Class {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Vm => "vm",
        }
    }

    /// Reads the word; the host's is not for others to use.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "container" => Some(Self::Container),
            "vm" => Some(Self::Vm),
            _ => None,
        }
    }
}

/// A process, distinguished from a later one with the same number.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pidfd: Arc<OwnedFd>,
    /// Number of the pidfd's inode: unique for as long as the host runs (Linux 6.9), 0 where it is not.
    pub(crate) id: u64,
}

impl Process {
    /// Takes hold of a living process.
    pub(crate) fn open(pid: i32) -> sys::Result<Self> {
        if pid <= 0 {
            // The kernel takes such numbers for groups and for all processes.
            return Err(sys::Error { call: format!("pidfd_open({pid})"), errno: sys::Errno::EINVAL });
        }
        let pidfd = process::pidfd_open(Pid::from_raw(pid))?;
        Self::from_pidfd(pid, pidfd)
    }

    /// The same from a pidfd.
    pub(crate) fn from_pidfd(pid: i32, pidfd: OwnedFd) -> sys::Result<Self> {
        /// `PID_FS_MAGIC` of linux/magic.h: pidfds of older kernels share one inode.
        const PID_FS: u64 = 0x5049_4446;
        let call = || format!("fstat(pidfd of {pid})");
        let kind = rustix::fs::fstatfs(&pidfd).call(call)?;
        let id = if u64::try_from(kind.f_type).is_ok_and(|t| t == PID_FS) {
            rustix::fs::fstat(&pidfd).call(call)?.st_ino
        } else {
            0
        };
        Ok(Self { pid, pidfd: Arc::new(pidfd), id })
    }

    /// For waiting and signalling.
    pub(crate) fn pidfd(&self) -> &Arc<OwnedFd> {
        &self.pidfd
    }

    /// Whether it has not ended.
    pub(crate) fn is_alive(&self) -> bool {
        process::pidfd_send_signal(self.pidfd.as_fd(), 0).is_ok()
    }
}

/// A registered machine.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) name: String,
    /// All zero if it has none.
    pub(crate) id: [u8; 16],
    /// Who registered it, as in `systemd-nspawn`.
    pub(crate) service: String,
    pub(crate) class: Class,
    pub(crate) leader: Process,
    /// Who runs it, if that is not the leader.
    pub(crate) supervisor: Option<Process>,
    /// Path of its root on the host, or nothing.
    pub(crate) root: String,
    pub(crate) interfaces: Vec<i32>,
    pub(crate) vsock_cid: u32,
    pub(crate) ssh_address: String,
    pub(crate) ssh_key: String,
    /// Unit of the host's systemd that the leader is in.
    pub(crate) unit: String,
    /// Its control group below that of the unit.
    pub(crate) subgroup: String,
    /// Path of its control group in the hierarchy; `/` or nothing if it has none of its own.
    pub(crate) group: String,
    /// Who owns it.
    pub(crate) uid: u32,
    /// When it was registered, in microseconds since 1970.
    pub(crate) realtime: u64,
    /// The same in microseconds since boot.
    pub(crate) monotonic: u64,
}

/// All machines but the host.
#[derive(Debug)]
pub(crate) struct Registry {
    dir: PathBuf,
    machines: BTreeMap<String, Arc<Machine>>,
    by_leader: HashMap<i32, String>,
    changes: u64,
}

impl Registry {
    /// Reads the state files; those of machines that are gone are removed.
    pub(crate) fn load(layout: &Layout) -> sys::Result<Self> {
        let dir = layout.machine_states();
        file::make_dirs(&dir)?;
        let mut registry = Self { dir, machines: BTreeMap::new(), by_leader: HashMap::new(), changes: 0 };
        let entries = file::list(&registry.dir)?;
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("unit:") || name.starts_with('.') {
                continue;
            }
            // A file that says nonsense is treated as one whose machine is gone.
            match read(&entry.path()).filter(|m| m.name == name) {
                Some(machine) => registry.insert(machine),
                None => registry.remove_files(&name, None),
            }
        }
        registry.remove_stray_links();
        Ok(registry)
    }

    /// Takes a machine in and writes its file.
    pub(crate) fn add(&mut self, machine: Machine) -> sys::Result<Arc<Machine>> {
        self.write(&machine)?;
        let name = machine.name.clone();
        self.insert(machine);
        Ok(Arc::clone(&self.machines[&name]))
    }

    fn insert(&mut self, machine: Machine) {
        self.changes += 1;
        self.by_leader.insert(machine.leader.pid, machine.name.clone());
        self.machines.insert(machine.name.clone(), Arc::new(machine));
    }

    /// Forgets a machine.
    pub(crate) fn remove(&mut self, name: &str) -> Option<Arc<Machine>> {
        let machine = self.machines.remove(name)?;
        self.changes += 1;
        self.by_leader.remove(&machine.leader.pid);
        self.remove_files(name, Some(&machine.unit));
        Some(machine)
    }

    /// The machine of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Machine>> {
        self.machines.get(name)
    }

    /// All, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Machine>> {
        self.machines.values()
    }

    /// How often a machine has come or gone: what was made of all of them holds as long as this stays.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.machines.is_empty()
    }

    /// The machine that a process of the host belongs to: by its being the leader, or by its control group.
    pub(crate) fn of_process(&self, pid: i32) -> Option<&Arc<Machine>> {
        if let Some(name) = self.by_leader.get(&pid) {
            return self.machines.get(name);
        }
        let group = group_of(pid)?;
        let (unit, subgroup) = unit_of(&group);
        self.machines.values().find(|m| {
            let of_unit = !unit.is_empty() && m.unit == unit && is_below(&subgroup, &m.subgroup);
            of_unit || m.group.len() > 1 && is_below(&group, &m.group)
        })
    }

    fn write(&self, machine: &Machine) -> sys::Result<()> {
        let path = self.dir.join(&machine.name);
        // Hidden, so that no reader takes it for a machine's while it is written.
        let temporary = self.dir.join(format!(".#{}", machine.name));
        file::write(&temporary, text(machine))?;
        file::set_mode(&temporary, 0o644)?;
        file::rename(&temporary, &path)?;
        if !machine.unit.is_empty() && machine.subgroup.is_empty() {
            let link = self.link(&machine.unit);
            let _ = file::remove(&link);
            std::os::unix::fs::symlink(&machine.name, &link).call(|| format!("symlink('{}')", link.display()))?;
        }
        Ok(())
    }

    fn link(&self, unit: &str) -> PathBuf {
        self.dir.join(format!("unit:{unit}"))
    }

    fn remove_files(&self, name: &str, unit: Option<&str>) {
        // Gone already is as good; anything else will show as a file that the next start takes away.
        if let Some(unit) = unit {
            let link = self.link(unit);
            if file::read_link(&link).is_ok_and(|target| target == Path::new(name)) {
                let _ = file::remove(link);
            }
        }
        let _ = file::remove(self.dir.join(name));
    }

    fn remove_stray_links(&self) {
        for entry in file::list(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let stray = || file::read_link(entry.path()).is_ok_and(|t| !self.dir.join(t).exists());
            if name.to_string_lossy().starts_with("unit:") && stray() {
                let _ = file::remove(entry.path());
            }
        }
    }
}

/// The control group of a process: the one of the unified hierarchy, or where systemd keeps its own.
pub(crate) fn group_of(pid: i32) -> Option<String> {
    let text = sys::read_text(Path::new(&format!("/proc/{pid}/cgroup"))).ok()?;
    let find = |prefix: &str| text.lines().find_map(|l| l.split_once(prefix).filter(|(n, _)| n.parse::<u32>().is_ok()));
    let group = find(":name=systemd:").filter(|(_, path)| *path != "/").or_else(|| find("::"))?.1;
    Some(group.trim_end_matches(" (deleted)").to_owned())
}

/// Unit and control group below it of a path in the hierarchy.
pub(crate) fn unit_of(group: &str) -> (String, String) {
    let mut parts = group.split('/').filter(|p| !p.is_empty());
    let Some(unit) = parts.by_ref().find(|p| !p.ends_with(".slice")) else { return Default::default() };
    // systemd puts an underscore before a name that would collide with a file of the kernel.
    let unit = unit.strip_prefix('_').unwrap_or(unit);
    if ![".service", ".scope"].iter().any(|suffix| unit.len() > suffix.len() && unit.ends_with(suffix)) {
        return Default::default();
    }
    (unit.to_owned(), parts.collect::<Vec<_>>().join("/"))
}

fn is_below(group: &str, parent: &str) -> bool {
    parent.is_empty() || group.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The group that holds all of a machine with that leader: an init of systemd moves into one below it.
pub(crate) fn payload_group(leader: i32) -> String {
    let group = group_of(leader).unwrap_or_default();
    group.strip_suffix("/init.scope").map_or_else(|| group.clone(), str::to_owned)
}

/// The file's text.
fn text(machine: &Machine) -> String {
    let mut text = String::from("# This is private data. Do not parse.\n");
    let mut line = |key: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "{key}={}", quote(value));
        }
    };
    line("NAME", &machine.name);
    line("UID", &machine.uid.to_string());
    line("SCOPE", &machine.unit);
    line("SUBGROUP", &machine.subgroup);
    line("SERVICE", &machine.service);
    line("ROOT", &machine.root);
    if machine.id != [0; 16] {
        line("ID", &machine.id.iter().map(|b| format!("{b:02x}")).collect::<String>());
    }
    let mut process = |key: &str, process: &Process| {
        line(key, &process.pid.to_string());
        if process.id != 0 {
            line(&format!("{key}_PIDFDID"), &process.id.to_string());
        }
    };
    process("LEADER", &machine.leader);
    if let Some(supervisor) = &machine.supervisor {
        process("SUPERVISOR", supervisor);
    }
    line("CLASS", machine.class.as_str());
    line("REALTIME", &machine.realtime.to_string());
    line("MONOTONIC", &machine.monotonic.to_string());
    line("NETIF", &machine.interfaces.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    if machine.vsock_cid != NO_CID {
        line("VSOCK_CID", &machine.vsock_cid.to_string());
    }
    line("SSH_ADDRESS", &machine.ssh_address);
    line("SSH_PRIVATE_KEY_PATH", &machine.ssh_key);
    text
}

/// Quotes a value as `os-release(5)` does: readers split at line ends and undo this.
fn quote(value: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-./:@+,".contains(&b);
    if value.bytes().all(plain) {
        return value.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in value.chars() {
        if "\"\\`$".contains(c) {
            quoted.push('\\');
        }
        // No reader knows a way to write these; no machine may forge a line with them.
        quoted.push(if c.is_control() { '?' } else { c });
    }
    quoted.push('"');
    quoted
}

fn unquote(value: &str) -> String {
    let value = value.trim();
    let Some(inner) = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')) else { return value.to_owned() };
    let mut chars = inner.chars();
    let mut text = String::with_capacity(inner.len());
    while let Some(c) = chars.next() {
        text.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    text
}

/// A machine out of its file; `None` if it is gone or the file is no good.
fn read(path: &Path) -> Option<Machine> {
    const LARGEST: u64 = 64 * 1024;
    let metadata = file::symlink_metadata(path).ok()?;
    if !metadata.is_file() || metadata.len() > LARGEST {
        return None;
    }
    parse(&String::from_utf8(file::read(path).ok()?).ok()?)
}

fn parse(text: &str) -> Option<Machine> {
    let lines = text.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split_once('='));
    let values: HashMap<&str, String> = lines.map(|(key, value)| (key, unquote(value))).collect();
    let get = |key: &str| values.get(key).cloned().unwrap_or_default();
    let number = |key: &str| values.get(key).and_then(|v| v.parse::<u64>().ok());
    let held = |key: &str| {
        let process = Process::open(values.get(key)?.parse().ok()?).ok()?;
        let same = number(&format!("{key}_PIDFDID")).is_none_or(|id| process.id == 0 || process.id == id);
        (same && process.is_alive()).then_some(process)
    };
    let name = get("NAME");
    let mut id = [0; 16];
    let text = get("ID");
    if text.len() == 32 && text.is_ascii() {
        for (byte, pair) in id.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
    }
    let leader = held("LEADER").filter(|p| p.pid > 1)?;
    Some(Machine {
        group: payload_group(leader.pid),
        leader,
        supervisor: held("SUPERVISOR"),
        class: Class::parse(&get("CLASS"))?,
        service: get("SERVICE"),
        root: get("ROOT"),
        interfaces: get("NETIF").split_whitespace().filter_map(|i| i.parse().ok()).collect(),
        vsock_cid: number("VSOCK_CID").and_then(|n| u32::try_from(n).ok()).unwrap_or(NO_CID),
        ssh_address: get("SSH_ADDRESS"),
        ssh_key: get("SSH_PRIVATE_KEY_PATH"),
        unit: Some(get("SCOPE")).filter(|unit| !unit.contains('/')).unwrap_or_default(),
        subgroup: get("SUBGROUP"),
        uid: number("UID").and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
        realtime: number("REALTIME").unwrap_or(0),
        monotonic: number("MONOTONIC").unwrap_or(0),
        name: crate::spec::MachineName::parse(&name).ok()?.as_str().to_owned(),
        id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(name: &str) -> Machine {
        Machine {
            name: name.into(),
            id: [7; 16],
            service: "systemd-nspawn".into(),
            class: Class::Container,
            leader: Process::open(i32::try_from(std::process::id()).expect("a pid")).expect("we live"),
            supervisor: None,
            root: "/var/lib/a \"b\" $c".into(),
            interfaces: vec![3, 14],
            vsock_cid: NO_CID,
            ssh_address: String::new(),
            ssh_key: String::new(),
            unit: "machine-a.scope".into(),
            subgroup: String::new(),
            group: String::new(),
            uid: 0,
            realtime: 5,
            monotonic: 6,
        }
    }

    #[test]
    fn a_file_says_what_the_machine_is() {
        let machine = sample("a");
        let again = parse(&text(&machine)).expect("alive");
        assert_eq!(text(&again), text(&machine));
        assert_eq!(
            (again.root.as_str(), again.id, &again.interfaces[..]),
            (machine.root.as_str(), [7; 16], &[3, 14][..])
        );
        assert_eq!(quote("a\nLEADER=1"), "\"a?LEADER=1\"");
    }

    #[test]
    fn a_new_registry_finds_the_living_and_removes_the_rest() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let layout = Layout::system(dir.path());
        let mut registry = Registry::load(&layout).expect("empty");
        registry.add(sample("a")).expect("written");
        let states = layout.machine_states();
        assert_eq!(std::fs::read_link(states.join("unit:machine-a.scope")).expect("link"), Path::new("a"));
        let good = std::fs::read_to_string(states.join("a")).expect("file");
        std::fs::write(states.join("other-name"), &good).expect("write");
        std::fs::write(states.join("gone"), good.replace("NAME=a", "NAME=gone").replace("PIDFDID=", "PIDFDID=9"))
            .expect("write");
        std::fs::write(states.join("host"), good.replace("NAME=a", "NAME=host").replace("=container", "=host"))
            .expect("write");
        std::fs::write(states.join("noise"), [0xff, 0, b'=', 1]).expect("write");
        std::os::unix::fs::symlink("gone", states.join("unit:gone.scope")).expect("link");
        std::os::unix::fs::symlink("/etc/passwd", states.join("link")).expect("link");
        let registry = Registry::load(&layout).expect("loaded");
        assert_eq!(registry.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["a"]);
        let mut left: Vec<_> =
            std::fs::read_dir(&states).expect("list").map(|e| e.expect("entry").file_name()).collect();
        left.sort();
        assert_eq!(left, ["a", "unit:machine-a.scope"]);
        assert!(Path::new("/etc/passwd").exists());
    }

    #[test]
    fn removing_leaves_nothing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let layout = Layout::system(dir.path());
        let mut registry = Registry::load(&layout).expect("empty");
        registry.add(sample("a")).expect("written");
        let own = i32::try_from(std::process::id()).expect("a pid");
        assert_eq!(registry.of_process(own).expect("by leader").name, "a");
        assert!(registry.remove("a").is_some());
        assert!(registry.remove("a").is_none() && registry.of_process(own).is_none() && registry.is_empty());
        assert_eq!(std::fs::read_dir(layout.machine_states()).expect("list").count(), 0);
    }

    #[test]
    fn units_are_found_in_paths() {
        let unit = |path| unit_of(path);
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(unit("/machine.slice/machinist@web.service/payload"), pair("machinist@web.service", "payload"));
        assert_eq!(unit("/machine.slice/machine-a.scope"), pair("machine-a.scope", ""));
        assert_eq!(unit("/user.slice/user-1.slice/session-2.scope/x/y"), pair("session-2.scope", "x/y"));
        assert_eq!(unit("/"), pair("", ""));
        assert_eq!(unit("/machinist-web/payload"), pair("", ""));
    }

    #[test]
    fn noise_is_no_machine() {
        for noise in [
            "",
            "NAME=",
            "NAME=a\nLEADER=1\nCLASS=container",
            "NAME=../a\nLEADER=2\nCLASS=vm",
            "LEADER=-1",
            "===",
            "NAME=\"a",
        ] {
            assert!(parse(noise).is_none(), "{noise}");
        }
    }
}
