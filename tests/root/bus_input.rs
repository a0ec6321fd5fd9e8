//! Bad input on the bus: a precise error each time, the daemon goes on, and nothing stale stays.

use std::process::{Child, Command, Stdio};

use zbus::wire::{Endian, ObjectPath, OwnedObjectPath};

use crate::bus::{Bus, Refusal};
use crate::support::{Host, finish, wait_for};

const MANAGER: &str = "/org/freedesktop/machine1";
const INTERFACE: &str = "org.freedesktop.machine1.Manager";

/// A process that somebody calls a machine.
struct Leader(Child);

impl Leader {
    fn new() -> Self {
        Self(Command::new("sleep").arg("10000").stdin(Stdio::null()).spawn().expect("sleep"))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn register(bus: &Bus, name: &str, id: &[u8], class: &str, leader: u32, root: &str) -> Result<String, Refusal> {
    let reply = bus.client().manager("RegisterMachine", &(name, id, "test", class, leader, root))?;
    Ok(reply.body().deserialize::<OwnedObjectPath>().expect("a path").to_string())
}

/// Names in an answer to `ListMachines`.
fn listed(reply: &zbus::Message) -> Vec<String> {
    let rows: Vec<(String, String, String, OwnedObjectPath)> = reply.body().deserialize().expect("rows");
    rows.into_iter().map(|row| row.0).collect()
}

fn names(bus: &Bus) -> Vec<String> {
    listed(&bus.client().manager("ListMachines", &()).expect("ListMachines"))
}

fn short(error: Refusal) -> (String, String) {
    (error.0.trim_start_matches("org.freedesktop.").to_owned(), error.1)
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Refusal>, name: &str, text: &str) {
    assert_eq!(short(result.expect_err("refused")), (name.to_owned(), text.to_owned()));
}

const INVALID: &str = "DBus.Error.InvalidArgs";

#[test]
fn registrations_that_make_no_sense_are_refused_by_name() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let leader = Leader::new();
    let pid = leader.pid();
    let long = "a".repeat(10_000);
    for name in ["", ".host", "..", "a/b", "a b", "-", "a..b", "\u{fc}", &long, "a\nLEADER=1"] {
        refused(register(&bus, name, &[], "container", pid, ""), INVALID, "Invalid machine name");
    }
    for class in ["host", "x", "Container", &long] {
        refused(register(&bus, "m", &[], class, pid, ""), INVALID, "Invalid machine class parameter");
    }
    for leader in [1, u32::MAX, 1 << 31] {
        refused(register(&bus, "m", &[], "container", leader, ""), INVALID, "Invalid leader PID");
    }
    refused(register(&bus, "m", &[1, 2, 3], "container", pid, ""), INVALID, "Invalid machine ID parameter");
    let text = "Root directory must be empty or an absolute path";
    refused(register(&bus, "m", &[], "container", pid, "relative"), INVALID, text);
    let negative = bus
        .client()
        .manager("RegisterMachineWithNetwork", &("m", &[0_u8; 0][..], "test", "container", pid, "", &[-1_i32][..]));
    refused(negative, INVALID, "Invalid network interface index");
    // A number that no process has.
    let gone = {
        let mut child = Command::new("true").spawn().expect("true");
        child.wait().expect("wait");
        child.id()
    };
    let error = short(register(&bus, "m", &[], "container", gone, "").expect_err("gone"));
    assert!(error.1.contains("No such process"), "{error:?}");
    assert_eq!(names(&bus), [".host"]);
    let path = register(&bus, "m", &[9; 16], "container", pid, "/").expect("all is well");
    assert_eq!(path, "/org/freedesktop/machine1/machine/m");
    let other = Leader::new();
    let text = "Machine 'm' already exists";
    refused(register(&bus, "m", &[], "vm", other.pid(), ""), "machine1.MachineExists", text);
    drop(leader);
    bus_forgets(&bus, "m");
}

fn bus_forgets(bus: &Bus, name: &str) {
    wait_for("the machine to be forgotten", std::time::Duration::from_secs(20), || {
        !names(bus).iter().any(|n| n == name)
    });
}

#[test]
fn others_register_nothing_without_polkit() {
    let host = Host::new();
    std::fs::set_permissions(host.root(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    let bus = Bus::start(&host);
    let leader = Leader::new();
    let address = format!("--address={}", bus.address());
    let call = |member: &str, args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--", "busctl", &address, "call"]);
        finish(command.args(["org.freedesktop.machine1", MANAGER, INTERFACE, member]).args(args))
    };
    let pid = leader.pid().to_string();
    let output = call("RegisterMachine", &["sayssus", "m", "0", "test", "container", &pid, ""]);
    assert!(output.stderr.contains("Access denied"), "{output:?}");
    assert_eq!(names(&bus), [".host"]);
    register(&bus, "m", &[], "container", leader.pid(), "").expect("root may");
    for (member, args) in [
        ("TerminateMachine", &["s", "m"][..]),
        ("KillMachine", &["ssi", "m", "", "9"]),
        ("UnregisterMachine", &["s", "m"]),
        ("OpenMachinePTY", &["s", "m"]),
        ("OpenMachineLogin", &["s", "m"]),
        ("OpenMachineShell", &["sssasas", "m", "", "", "0", "0"]),
        ("OpenMachineRootDirectory", &["s", "m"]),
        ("BindMountMachine", &["sssbb", "m", "/", "/x", "0", "0"]),
        ("CopyToMachine", &["sss", "m", "/etc/shadow", "/x"]),
        ("CopyFromMachine", &["sss", "m", "/etc/shadow", "/x"]),
    ] {
        let output = call(member, args);
        assert!(output.status != 0, "{member}: {output:?}");
        assert!(output.stderr.contains("Access denied"), "{member}: {output:?}");
    }
    assert_eq!(names(&bus), [".host", "m"]);
    // What everybody may know is told before anybody is asked.
    let output = call("KillMachine", &["ssi", "unknown", "", "9"]);
    assert!(output.stderr.contains("No machine 'unknown' known"), "{output:?}");
}

#[test]
fn unknown_machines_images_and_processes_have_errors_of_their_own() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let client = bus.client();
    let unknown = "machine1.NoSuchMachine";
    for name in ["m", "", "..", "a/b"] {
        let text = format!("No machine '{name}' known");
        for member in [
            "GetMachine",
            "UnregisterMachine",
            "TerminateMachine",
            "GetMachineAddresses",
            "GetMachineSSHInfo",
            "GetMachineOSRelease",
            "GetMachineUIDShift",
            "OpenMachinePTY",
            "OpenMachineLogin",
            "OpenMachineRootDirectory",
        ] {
            refused(client.manager(member, &name), unknown, &text);
        }
        refused(client.manager("KillMachine", &(name, "all", 15)), unknown, &text);
        refused(client.manager("CopyToMachine", &(name, "/a", "/b")), unknown, &text);
        refused(client.manager("BindMountMachine", &(name, "/a", "/b", false, false)), unknown, &text);
        let none: &[&str] = &[];
        refused(client.manager("OpenMachineShell", &(name, "", "", none, none)), unknown, &text);
    }
    for (member, name) in [("GetImage", "i"), ("RemoveImage", "i"), ("GetImageHostname", "i")] {
        refused(client.manager(member, &name), "machine1.NoSuchImage", "No image 'i' known");
    }
    let text = "PID 2 does not belong to any known machine";
    refused(client.manager("GetMachineByPID", &2_u32), "machine1.NoMachineForPID", text);
    refused(client.manager("GetMachineByPID", &u32::MAX), INVALID, "Invalid PID 4294967295");
}

#[test]
fn signals_and_targets_of_a_kill_are_checked() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let leader = Leader::new();
    register(&bus, "m", &[], "container", leader.pid(), "").expect("registered");
    let client = bus.client();
    for signal in [0, 99, -1, 65, i32::MAX, i32::MIN] {
        let kill = client.manager("KillMachine", &("m", "leader", signal));
        refused(kill, INVALID, &format!("Invalid signal {signal}"));
    }
    for whom in ["x", "ALL", "main"] {
        let kill = client.manager("KillMachine", &("m", whom, 15));
        refused(kill, INVALID, &format!("Invalid kill parameter '{whom}'"));
    }
    let error = short(client.manager("TerminateMachine", &".host").expect_err("the host"));
    assert_eq!(error.0, "DBus.Error.NotSupported", "{error:?}");
    client.manager("KillMachine", &("m", "leader", 9)).expect("killed");
    bus_forgets(&bus, "m");
}

#[test]
fn calls_that_do_not_fit_the_interface_are_told_so() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let client = bus.client();
    let properties = "org.freedesktop.DBus.Properties";
    let call = |path, interface, member| client.call(path, interface, member, &());
    let text = "Unknown method 'Nothing' or interface 'org.freedesktop.machine1.Manager'.";
    refused(call(MANAGER, INTERFACE, "Nothing"), "DBus.Error.UnknownMethod", text);
    let text = "Unknown interface 'org.freedesktop.machine1.Other'.";
    refused(call(MANAGER, "org.freedesktop.machine1.Other", "X"), "DBus.Error.UnknownInterface", text);
    for path in ["/org/freedesktop/machine1/machine/nobody", "/org/freedesktop/machine1/image/_", "/elsewhere"] {
        let text = format!("Unknown object '{path}'.");
        let get = client.call(path, properties, "GetAll", &"");
        refused(get, "DBus.Error.UnknownObject", &text);
    }
    let text = "Invalid arguments 'u' to call org.freedesktop.machine1.Manager.GetMachine(), expecting 's'.";
    refused(client.manager("GetMachine", &7_u32), INVALID, text);
    let text = "Invalid arguments '' to call org.freedesktop.machine1.Manager.GetMachine(), expecting 's'.";
    refused(client.manager("GetMachine", &()), INVALID, text);
    let text = "Unknown property or interface 'Nothing'.";
    let get = client.call(MANAGER, properties, "Get", &(INTERFACE, "Nothing"));
    refused(get, "DBus.Error.UnknownProperty", text);
    let value = zbus::Variant::from("x");
    let set = client.call(MANAGER, properties, "Set", &(INTERFACE, "PoolPath", value));
    refused(set, "DBus.Error.PropertyReadOnly", "Property 'PoolPath' is not writable.");
    let all = client.call(MANAGER, properties, "GetAll", &"").expect("all interfaces");
    let all: std::collections::HashMap<String, zbus::OwnedVariant> = all.body().deserialize().expect("properties");
    assert!(all.contains_key("PoolPath") && all.contains_key("PoolLimit"), "{all:?}");
    let level = |value: &str| {
        let value = zbus::Variant::from(value);
        let set = ("org.freedesktop.LogControl1", "LogLevel", value);
        client.call("/org/freedesktop/LogControl1", properties, "Set", &set)
    };
    level("debug").expect("a level");
    refused(level("loud"), INVALID, "Invalid value 'loud' of property 'LogLevel'.");
    level("info").expect("a level");
}

#[test]
fn a_thousand_calls_at_once_are_all_answered() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let leader = Leader::new();
    register(&bus, "m", &[], "container", leader.pid(), "").expect("registered");
    zbus::block_on(async {
        let connection = zbus::connection::Builder::address(bus.address().as_str()).build().await.expect("connect");
        let calls: Vec<_> = (0..1000)
            .map(|index| {
                let (connection, name) = (connection.clone(), if index % 2 == 0 { "m" } else { "unknown" });
                zruntime::spawn(async move {
                    connection
                        .call_method(Some("org.freedesktop.machine1"), MANAGER, Some(INTERFACE), "GetMachine", &name)
                        .await
                        .is_ok()
                })
            })
            .collect();
        let mut good = 0;
        for call in calls {
            good += usize::from(call.await.expect("answered"));
        }
        assert_eq!(good, 500);
    });
    assert_eq!(names(&bus), [".host", "m"]);
}

#[test]
fn clients_that_vanish_in_mid_call_leave_nothing() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let leaders: Vec<Leader> = (0..20).map(|_| Leader::new()).collect();
    for (index, leader) in leaders.iter().enumerate() {
        zbus::block_on(async {
            let connection = zbus::connection::Builder::address(bus.address().as_str()).build().await.expect("connect");
            let call = zbus::Message::method_call(MANAGER, "RegisterMachine")
                .destination("org.freedesktop.machine1")
                .interface(INTERFACE);
            let body = (format!("m{index}"), &[0_u8; 0][..], "test", "container", leader.pid(), "");
            connection.send(&call.build(&body).expect("a call")).await.expect("sent");
            connection.close().await.expect("closed");
        });
    }
    // Whether they were taken in or not: the daemon answers, and what it knows ends with its leaders.
    for machine in names(&bus).iter().filter(|name| *name != ".host") {
        let path = ObjectPath::try_from(format!("{MANAGER}/machine/{machine}")).expect("a path");
        bus.client().call(path.as_str(), "org.freedesktop.DBus.Properties", "GetAll", &"").expect("an object");
    }
    drop(leaders);
    wait_for("the machines to be forgotten", std::time::Duration::from_secs(20), || names(&bus) == [".host"]);
    let left = std::fs::read_dir(host.path("run/systemd/machines")).expect("list").count();
    assert_eq!(left, 0);
}

#[test]
fn leaders_that_die_at_once_are_not_kept() {
    let host = Host::new();
    let bus = Bus::start(&host);
    for index in 0..30 {
        let mut child = Command::new("true").spawn().expect("true");
        let pid = child.id();
        // Alive, a zombie or gone by the time it is looked at; each is fine as long as it does not stay.
        let _ = register(&bus, &format!("m{index}"), &[], "container", pid, "");
        child.wait().expect("wait");
    }
    wait_for("the machines to be forgotten", std::time::Duration::from_secs(20), || names(&bus) == [".host"]);
    assert_eq!(std::fs::read_dir(host.path("run/systemd/machines")).expect("list").count(), 0);
}

#[test]
fn state_files_full_of_nonsense_do_not_hurt() {
    let host = Host::new();
    let mut bus = Bus::start(&host);
    let leader = Leader::new();
    register(&bus, "good", &[7; 16], "container", leader.pid(), "/srv/a \"b\"").expect("registered");
    let dir = host.path("run/systemd/machines");
    let good = std::fs::read(dir.join("good")).expect("the file");
    // xorshift: the same nonsense every time.
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random >> 16).expect("fits")
    };
    for round in 0..200 {
        let mut bytes = good.clone();
        for _ in 0..=round % 8 {
            let at = next() % bytes.len().max(1);
            match next() % 4 {
                _ if bytes.is_empty() => {}
                0 => bytes[at] = u8::try_from(next() % 256).expect("a byte"),
                1 => drop(bytes.remove(at)),
                2 => bytes.truncate(at.max(1)),
                _ => bytes.splice(at..at, *b"=\"\\\n").for_each(drop),
            }
        }
        std::fs::write(dir.join(format!("fuzz{round}")), bytes).expect("write");
    }
    std::fs::create_dir(dir.join("directory")).expect("mkdir");
    finish(Command::new("mkfifo").arg(dir.join("fifo")));
    std::fs::write(dir.join("huge"), vec![b'A'; 4 << 20]).expect("write");
    bus.restart_daemon(&host);
    assert_eq!(names(&bus), [".host", "good"]);
    let path = format!("{MANAGER}/machine/good");
    let get = ("org.freedesktop.machine1.Machine", "RootDirectory");
    let root = bus.client().call(&path, "org.freedesktop.DBus.Properties", "Get", &get).expect("the root");
    let root: zbus::OwnedVariant = root.body().deserialize().expect("a value");
    assert_eq!(<&str>::try_from(&*root), Ok("/srv/a \"b\""));
    drop(leader);
    bus_forgets(&bus, "good");
}

#[test]
fn what_a_machine_has_not_is_told_by_an_error_of_its_own() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let leader = Leader::new();
    register(&bus, "plain", &[], "container", leader.pid(), "").expect("registered");
    let client = bus.client();
    let name = |result: Result<zbus::Message, Refusal>| result.expect_err("refused").0;
    assert_eq!(name(client.manager("GetMachineAddresses", &"plain")), "org.freedesktop.machine1.NoPrivateNetworking");
    assert_eq!(name(client.manager("GetMachineSSHInfo", &"plain")), "org.freedesktop.DBus.Error.FileNotFound");
    // Of no machine with ids of its own.
    for (to, from, error) in [
        ("MapToMachineUser", "MapFromMachineUser", "org.freedesktop.machine1.NoSuchUserMapping"),
        ("MapToMachineGroup", "MapFromMachineGroup", "org.freedesktop.machine1.NoSuchGroupMapping"),
    ] {
        assert_eq!(name(client.manager(to, &1_000_000_u32)), error);
        assert_eq!(name(client.manager(to, &7_u32)), error);
        let machine = host.define(&from.to_lowercase(), "[root]\noverlay = { lower = [\"{busybox}\"], upper = \"ephemeral\" }\n[boot]\ncommand = [\"/bin/sleep\", \"10000\"]\n");
        host.ok(&["start", &machine]);
        let pid: u32 = host.status(&machine, "leader").parse().expect("a number");
        register(&bus, &machine, &[], "container", pid, "").expect("registered");
        assert_eq!(name(client.manager(from, &(&machine, 65_536_u32))), error);
        client.manager(from, &(&machine, 7_u32)).expect("an id that it has");
        host.ok(&["stop", &machine]);
    }
    drop(bus);
    host.assert_nothing_left();
}

#[test]
fn callers_of_both_byte_orders_get_the_list_as_it_is() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let expect = |expected: &[&str]| {
        for endian in [Endian::Big, Endian::Big, Endian::Little, Endian::Little, Endian::Big] {
            assert_eq!(listed(&bus.client().manager_in(endian, "ListMachines")), expected, "{endian:?}");
        }
    };
    expect(&[".host"]);
    let (first, second) = (Leader::new(), Leader::new());
    register(&bus, "b", &[], "container", first.pid(), "").expect("registered");
    expect(&[".host", "b"]);
    register(&bus, "a", &[], "vm", second.pid(), "/").expect("registered");
    expect(&[".host", "a", "b"]);
    drop(first);
    wait_for("the end of one", std::time::Duration::from_secs(20), || names(&bus) == [".host", "a"]);
    expect(&[".host", "a"]);
}
