//! The daemon's Varlink sockets: what stock clients get, and what noise does to it.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bus::Bus;
use crate::support::{Host, Output, finish, tree, wait_for};

const MACHINE: &str = "run/systemd/machine/io.systemd.Machine";
const IMAGE: &str = "run/systemd/machine/io.systemd.MachineImage";
const USERS: &str = "run/systemd/userdb/io.systemd.Machine";

/// A client that sends what it likes.
struct Raw(UnixStream);

impl Raw {
    fn connect(host: &Host, socket: &str) -> Self {
        let stream = UnixStream::connect(host.path(socket)).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("time limit");
        stream.set_write_timeout(Some(Duration::from_secs(20))).expect("time limit");
        Self(stream)
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("write");
    }

    fn call(&mut self, method: &str, parameters: Value) {
        let message = json!({ "method": method, "parameters": parameters });
        self.send(format!("{message}\0").as_bytes());
    }

    /// The next message; `None` at the end of the connection.
    fn message(&mut self) -> Option<Value> {
        let mut bytes = Vec::new();
        let mut byte = [0];
        loop {
            match self.0.read(&mut byte) {
                Ok(1) if byte[0] == 0 => return Some(serde_json::from_slice(&bytes).expect("JSON")),
                Ok(1) => bytes.push(byte[0]),
                Ok(_) => return None,
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(e) => panic!("no answer: {e}"),
            }
        }
    }
}

/// One call over a connection of its own.
fn ask(host: &Host, socket: &str, method: &str, parameters: Value) -> Value {
    let mut raw = Raw::connect(host, socket);
    raw.call(method, parameters);
    raw.message().expect("an answer")
}

/// The name of the error of a call that must fail.
fn refused(host: &Host, socket: &str, method: &str, parameters: Value) -> String {
    let answer = ask(host, socket, method, parameters);
    answer["error"].as_str().unwrap_or_else(|| panic!("{method}: {answer}")).to_owned()
}

/// A process to be a machine's leader, ended with the test.
struct Leader(Child);

impl Leader {
    fn new() -> Self {
        Self(Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().expect("run sleep"))
    }

    fn end(&mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("wait");
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn register(host: &Host, name: &str, leader: &Leader) -> Value {
    let parameters = json!({ "name": name, "class": "container", "leader": leader.0.id() });
    ask(host, MACHINE, "io.systemd.Machine.Register", parameters)
}

/// Runs a script in a tree that has the run directory of the host.
fn in_tree(host: &Host, tree: &Path, script: &str) -> Output {
    std::fs::create_dir_all(host.path("run/systemd/system")).expect("mkdir");
    let enter = "mount --make-rprivate /; mount --bind \"$0/run\" \"$1/run\"; mount -t proc proc \"$1/proc\"; \
                 mount --rbind /dev \"$1/dev\"; exec chroot \"$1\" /bin/sh -c \"$2\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-ec", enter]).arg(host.root()).arg(tree).arg(script);
    finish(command.env("SYSTEMD_COLORS", "0").env("SYSTEMD_URLIFY", "0").stdin(Stdio::null()))
}

fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("files").count()
}

fn socket_mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).expect("socket").permissions().mode()
}

#[test]
fn sockets_are_there_for_everybody_and_go_with_the_daemon() {
    let host = Host::new();
    // As a killed daemon leaves it.
    std::fs::create_dir_all(host.path(MACHINE).parent().expect("a parent")).expect("mkdir");
    drop(UnixListener::bind(host.path(MACHINE)).expect("bind"));
    let mut bus = Bus::start(&host);
    for socket in [MACHINE, IMAGE, USERS] {
        wait_for(socket, Duration::from_secs(10), || UnixStream::connect(host.path(socket)).is_ok());
        assert_eq!(socket_mode(&host.path(socket)), 0o140_666, "{socket}");
    }
    bus.restart_daemon(&host);
    wait_for("a new socket", Duration::from_secs(10), || UnixStream::connect(host.path(MACHINE)).is_ok());
    bus.stop_daemon();
    assert!([MACHINE, IMAGE, USERS].iter().all(|socket| !host.path(socket).exists()));
    let left = std::fs::read_dir(host.path("run/systemd/machine")).expect("list").count();
    assert_eq!(left, 0);
}

#[test]
fn machines_are_registered_listed_signalled_and_ended() {
    let host = Host::new();
    let _bus = Bus::start(&host);
    let mut leader = Leader::new();
    let id = "0123456789abcdef0123456789abcdef";
    let parameters = json!({
        "name": "v", "class": "vm", "id": id, "service": "test", "rootDirectory": "/srv", "vSockCid": 7,
        "sshAddress": "vsock/7", "sshPrivateKeyPath": "/key", "ifIndices": [1],
        "leaderProcessId": { "pid": leader.0.id() },
    });
    assert_eq!(ask(&host, MACHINE, "io.systemd.Machine.Register", parameters), json!({ "parameters": {} }));
    let answer = ask(&host, MACHINE, "io.systemd.Machine.List", json!({ "name": "v" }));
    let machine = &answer["parameters"];
    assert_eq!(machine["leader"]["pid"], json!(leader.0.id()), "{answer}");
    for (field, value) in [("id", id), ("service", "test"), ("rootDirectory", "/srv"), ("class", "vm")] {
        assert_eq!(machine[field], json!(value), "{answer}");
    }
    assert_eq!((&machine["vSockCid"], &machine["sshAddress"]), (&json!(7), &json!("vsock/7")));
    // By its process, and only if that is the one meant.
    let pid = machine["leader"].clone();
    let again = ask(&host, IMAGE, "io.systemd.Machine.List", json!({ "pid": pid }));
    assert_eq!(again["parameters"], *machine);
    let mut other = pid.clone();
    other["pidfdId"] = json!(pid["pidfdId"].as_u64().unwrap_or(0) + 1);
    if pid["pidfdId"].is_u64() {
        assert_eq!(
            refused(&host, MACHINE, "io.systemd.Machine.List", json!({ "pid": other })),
            "io.systemd.Machine.NoSuchMachine"
        );
    }
    let mut all = Raw::connect(&host, MACHINE);
    all.send(b"{\"method\":\"io.systemd.Machine.List\",\"more\":true}\0");
    let first = all.message().expect("the host");
    assert_eq!((&first["parameters"]["name"], &first["continues"]), (&json!(".host"), &json!(true)));
    let second = all.message().expect("the machine");
    assert_eq!((&second["parameters"]["name"], &second["continues"]), (&json!("v"), &Value::Null));

    let kill = json!({ "name": "v", "whom": "leader", "signal": 9 });
    assert_eq!(ask(&host, MACHINE, "io.systemd.Machine.Kill", kill), json!({ "parameters": {} }));
    leader.0.wait().expect("wait");
    wait_for("the machine to go", Duration::from_secs(10), || {
        ask(&host, MACHINE, "io.systemd.Machine.List", json!({ "name": "v" }))["error"]
            == json!("io.systemd.Machine.NoSuchMachine")
    });

    let mut leader = Leader::new();
    register(&host, "w", &leader);
    assert_eq!(
        ask(&host, MACHINE, "io.systemd.Machine.Unregister", json!({ "name": "w" })),
        json!({ "parameters": {} })
    );
    assert!(leader.0.try_wait().expect("wait").is_none(), "unregistering leaves the machine alone");
    register(&host, "w", &leader);
    assert_eq!(
        ask(&host, MACHINE, "io.systemd.Machine.Terminate", json!({ "name": "w" })),
        json!({ "parameters": {} })
    );
    leader.0.wait().expect("wait");
}

#[test]
fn what_is_wrong_is_named() {
    let host = Host::new();
    let _bus = Bus::start(&host);
    let leader = Leader::new();
    register(&host, "x", &leader);
    let pid = leader.0.id();
    let invalid = "org.varlink.service.InvalidParameter";
    for (method, parameters, parameter) in [
        ("List", json!({ "name": "../x" }), "name"),
        ("List", json!({ "name": 7 }), "name"),
        ("List", json!({ "pid": "1" }), "pid"),
        ("List", json!({ "acquireMetadata": "maybe" }), "acquireMetadata"),
        ("Kill", json!({ "name": "x" }), "signal"),
        ("Kill", json!({ "name": "x", "signal": 0 }), "signal"),
        ("Kill", json!({ "name": "x", "signal": 99 }), "signal"),
        ("Kill", json!({ "name": "x", "signal": 9, "whom": "nobody" }), "whom"),
        ("Kill", json!({ "name": "x", "signal": 9, "bogus": 1 }), "bogus"),
        ("Register", json!({ "name": "y", "class": "host", "leader": pid }), "class"),
        ("Register", json!({ "name": "y/z", "class": "vm", "leader": pid }), "name"),
        ("Register", json!({ "name": "y", "class": "vm", "leader": 1 }), "leader"),
        ("Register", json!({ "name": "y", "class": "vm", "leader": -1 }), "leader"),
        ("Register", json!({ "name": "y", "class": "vm", "leader": 0x7fff_ffff }), "leader"),
        ("Register", json!({ "name": "y", "class": "vm", "leader": pid, "id": "x" }), "id"),
        ("Register", json!({ "name": "y", "class": "vm", "leader": pid, "ifIndices": [0] }), "ifIndices"),
        ("Open", json!({ "name": "x" }), "mode"),
        ("Open", json!({ "name": "x", "mode": "shell", "path": "sh" }), "path"),
        ("Open", json!({ "name": "x", "mode": "tty", "user": "root" }), "user"),
        ("BindMount", json!({ "name": "x", "source": "etc" }), "source"),
        ("CopyTo", json!({ "name": "x", "source": "/etc", "destination": "." }), "destination"),
    ] {
        let answer = ask(&host, MACHINE, &format!("io.systemd.Machine.{method}"), parameters.clone());
        assert_eq!(answer["error"], json!(invalid), "{method} {parameters}: {answer}");
        assert_eq!(answer["parameters"], json!({ "parameter": parameter }), "{method} {parameters}");
    }
    for (socket, method, parameters, error) in [
        (MACHINE, "io.systemd.Machine.List", json!({}), "org.varlink.service.ExpectedMore"),
        (MACHINE, "io.systemd.Machine.List", json!({ "name": "no" }), "io.systemd.Machine.NoSuchMachine"),
        (MACHINE, "io.systemd.Machine.Terminate", json!({}), "io.systemd.Machine.NoSuchMachine"),
        (MACHINE, "io.systemd.Machine.MapTo", json!({ "uid": 5 }), "io.systemd.Machine.UserInHostRange"),
        (MACHINE, "io.systemd.Machine.MapTo", json!({ "gid": 5 }), "io.systemd.Machine.GroupInHostRange"),
        (MACHINE, "io.systemd.Machine.MapTo", json!({ "uid": 4_000_000_000_u32 }), "io.systemd.Machine.NoSuchUser"),
        (MACHINE, "io.systemd.Machine.Terminate", json!({ "name": ".host" }), "io.systemd.Machine.NotSupported"),
        (IMAGE, "io.systemd.MachineImage.List", json!({ "name": "no" }), "io.systemd.MachineImage.NoSuchImage"),
        (IMAGE, "io.systemd.MachineImage.List", json!({}), "org.varlink.service.ExpectedMore"),
        (MACHINE, "io.systemd.Machine.Nothing", json!({}), "org.varlink.service.MethodNotFound"),
        (MACHINE, "io.systemd.UserDatabase.GetUserRecord", json!({}), "org.varlink.service.MethodNotFound"),
        (USERS, "io.systemd.Machine.List", json!({}), "org.varlink.service.MethodNotFound"),
        (
            USERS,
            "io.systemd.UserDatabase.GetUserRecord",
            json!({ "service": "x" }),
            "io.systemd.UserDatabase.BadService",
        ),
        (
            USERS,
            "io.systemd.UserDatabase.GetUserRecord",
            json!({ "service": "io.systemd.Machine" }),
            "io.systemd.UserDatabase.EnumerationNotSupported",
        ),
        (
            USERS,
            "io.systemd.UserDatabase.GetGroupRecord",
            json!({ "service": "io.systemd.Machine", "gid": 5 }),
            "io.systemd.UserDatabase.NoRecordFound",
        ),
    ] {
        assert_eq!(refused(&host, socket, method, parameters.clone()), error, "{method} {parameters}");
    }
    assert_eq!(register(&host, "x", &Leader::new())["error"], json!("io.systemd.Machine.MachineExists"));
    let interface = ask(&host, MACHINE, "org.varlink.service.GetInterfaceDescription", json!({ "interface": "a.b" }));
    assert_eq!(interface["error"], json!("org.varlink.service.InterfaceNotFound"));
}

#[test]
fn noise_ends_its_own_connection_only() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let mut patient = Raw::connect(&host, MACHINE);
    patient.call("io.systemd.service.Ping", json!({}));
    assert!(patient.message().is_some());
    let before = open_files(bus.daemon());
    let huge = vec![b'x'; 2 * 1024 * 1024];
    let deep = format!(
        "{{\"method\":\"io.systemd.Machine.List\",\"parameters\":{{\"name\":{}{}}}}}\0",
        "[".repeat(50_000),
        "]".repeat(50_000)
    );
    let noises: [&[u8]; 8] = [
        b"\0",
        b"{}\0",
        b"GET / HTTP/1.1\r\n\r\n\0",
        b"{\"method\":\"io.systemd.Machine.List\",\"parameters\":{\"name\":\"\xff\xfe\"}}\0",
        b"{\"method\":\"x\"}\0",
        b"{\"method\":\"io.systemd.Machine.List\",\"upgrade\":true}\0",
        deep.as_bytes(),
        &huge,
    ];
    for noise in noises {
        let mut raw = Raw::connect(&host, MACHINE);
        // The end of the connection may come while we still write.
        let _ = raw.0.write_all(noise);
        assert_eq!(raw.message(), None, "{}", String::from_utf8_lossy(&noise[..noise.len().min(60)]));
    }
    // Half a message, and then nothing ever; and one who leaves without waiting for the answer.
    let mut half = Raw::connect(&host, MACHINE);
    half.send(b"{\"method\":\"io.systemd");
    let mut gone = Raw::connect(&host, MACHINE);
    gone.send(b"{\"method\":\"io.systemd.Machine.List\",\"more\":true}\0");
    drop(gone);
    // Many calls at once are answered in their order; one that wants no answer gets none.
    for number in 0..100 {
        patient.call("io.systemd.Machine.List", json!({ "name": format!("no{number}") }));
    }
    patient.send(b"{\"method\":\"io.systemd.service.Ping\",\"oneway\":true}\0");
    patient.call("org.varlink.service.GetInterfaceDescription", json!({ "interface": "last" }));
    for _ in 0..100 {
        let answer = patient.message().expect("an answer");
        assert_eq!(answer["error"], json!("io.systemd.Machine.NoSuchMachine"));
    }
    assert_eq!(patient.message().expect("the last")["parameters"], json!({ "interface": "last" }));
    drop(half);
    wait_for("the daemon to close what is closed", Duration::from_secs(10), || open_files(bus.daemon()) <= before);
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let mut raw = Raw::connect(&host, MACHINE);
    raw.call("io.systemd.service.Ping", json!({}));
    assert_eq!(raw.message(), Some(json!({ "parameters": {} })));
    let before = open_files(bus.daemon());
    let null: OwnedFd = std::fs::File::open("/dev/null").expect("open").into();
    let fds = [std::os::fd::AsFd::as_fd(&null); 8];
    for _ in 0..20 {
        machinist::sys::socket::send(&raw.0, b"{\"method\":\"io.systemd.service.Ping\"}\0", &fds).expect("send");
        assert_eq!(raw.message(), Some(json!({ "parameters": {} })));
    }
    assert_eq!(open_files(bus.daemon()), before);
}

#[test]
fn a_thousand_clients_at_once_are_served() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let before = open_files(bus.daemon());
    let mut clients: Vec<Raw> = (0..1000).map(|_| Raw::connect(&host, MACHINE)).collect();
    let started = Instant::now();
    for client in &mut clients {
        client.call("io.systemd.Machine.List", json!({ "name": ".host" }));
    }
    for client in &mut clients {
        let answer = client.message().expect("an answer");
        assert_eq!(answer["parameters"]["name"], json!(".host"));
    }
    let all = started.elapsed();
    assert!(all < Duration::from_secs(20), "{all:?}");
    // There is an end to it, which others see as the end of their connection, and D-Bus does not see at all.
    let mut more: Vec<Raw> = (0..100).map(|_| Raw::connect(&host, MACHINE)).collect();
    let mut served = 0;
    for client in &mut more {
        // It may be closed already.
        let _ = client.0.write_all(b"{\"method\":\"io.systemd.service.Ping\"}\0");
        served += usize::from(client.message().is_some());
    }
    assert!((1..=24).contains(&served), "{served} of 100 clients more than 1,000 were served");
    assert!(bus.ok("ListMachines", &[]).contains(".host"));
    drop((clients, more));
    wait_for("the daemon to close all", Duration::from_secs(20), || open_files(bus.daemon()) <= before);
    assert!(ask(&host, MACHINE, "io.systemd.service.Ping", json!({}))["error"].is_null());
}

#[test]
fn varlinkctl_of_257_and_262_understands_all() {
    let host = Host::new();
    let _bus = Bus::start(&host);
    let machine =
        host.define("m", "register = \"yes\"\n[root]\noverlay = { lower = [\"{busybox}\"], upper = \"ephemeral\" }\n");
    host.ok(&["start", &machine]);
    for name in ["client-trixie", "client-sid"] {
        let tree = tree(name);
        let run = |script: &str| {
            let output = in_tree(&host, &tree, script);
            assert_eq!(output.status, 0, "{name}: {script}: {output:?}");
            output.stdout
        };
        for socket in [MACHINE, IMAGE, USERS] {
            assert!(run(&format!("varlinkctl info /{socket}")).contains("Product: Machinist"));
            // It reads the text and writes it anew; what it cannot read is an error.
            let names = run(&format!("varlinkctl list-interfaces /{socket}"));
            for interface in names.split_whitespace() {
                let text = run(&format!("varlinkctl introspect /{socket} {interface}"));
                assert!(text.contains(&format!("interface {interface}")), "{text}");
            }
        }
        let list = |arguments: &str| run(&format!("varlinkctl call -j {arguments}"));
        let all = list(&format!("--more /{MACHINE} io.systemd.Machine.List '{{}}'"));
        assert!(all.contains("\"name\":\".host\"") && all.contains(&format!("\"name\":\"{machine}\"")), "{all}");
        let parameters = format!("'{{\"name\":\"{machine}\",\"acquireMetadata\":\"yes\"}}'");
        let one = list(&format!("/{MACHINE} io.systemd.Machine.List {parameters}"));
        let one: Value = serde_json::from_str(&one).expect("JSON");
        assert!(one["OSRelease"].as_array().is_some_and(|r| r.contains(&json!("ID=busybox"))), "{one}");
        assert!(one["UIDShift"].as_u64().is_some_and(|shift| shift >= 0x10000), "{one}");
        let images =
            list(&format!("--more /{IMAGE} io.systemd.MachineImage.List '{{\"acquireMetadata\":\"graceful\"}}'"));
        assert!(images.contains("\"name\":\".host\"") && images.contains("OSRelease"), "{images}");
        let missing =
            in_tree(&host, &tree, &format!("varlinkctl call /{MACHINE} io.systemd.Machine.List '{{\"name\":\"no\"}}'"));
        assert!(missing.status != 0 && missing.stderr.contains("io.systemd.Machine.NoSuchMachine"), "{missing:?}");
    }
    host.ok(&["stop", &machine]);
    host.assert_nothing_left();
}

#[test]
fn users_and_groups_of_machines_have_names() {
    let host = Host::new();
    let _bus = Bus::start(&host);
    let machine =
        host.define("m", "register = \"yes\"\n[root]\noverlay = { lower = [\"{busybox}\"], upper = \"ephemeral\" }\n");
    host.ok(&["start", &machine]);
    let map = host.sh(&machine, "cat /proc/self/uid_map");
    let first: u32 = map.split_whitespace().nth(1).expect("outside").parse().expect("a number");
    for name in ["client-trixie", "client-sid"] {
        let tree = tree(name);
        let get = |what: &str| in_tree(&host, &tree, &format!("getent -s systemd {what}")).stdout.trim().to_owned();
        let user = format!("vu-{machine}-33:");
        for key in [format!("vu-{machine}-33"), (first + 33).to_string()] {
            let entry = get(&format!("passwd {key}"));
            assert!(entry.starts_with(&user), "{name}: {key}: {entry}");
            let fields: Vec<&str> = entry.split(':').collect();
            assert_eq!(fields[2..4], [(first + 33).to_string(), "65534".into()], "{entry}");
            assert_eq!(fields[5..], ["/", "/usr/sbin/nologin"], "{entry}");
        }
        for key in [format!("vg-{machine}-5"), (first + 5).to_string()] {
            let entry = get(&format!("group {key}"));
            assert!(
                entry.starts_with(&format!("vg-{machine}-5:")) && entry.contains(&(first + 5).to_string()),
                "{entry}"
            );
        }
        for key in
            [format!("vu-{machine}-70000"), format!("vu-{machine}-x"), "vu-no-1".into(), (first + 70_000).to_string()]
        {
            assert_eq!(get(&format!("passwd {key}")), "", "{name}: {key}");
        }
    }
    host.ok(&["stop", &machine]);
    host.assert_nothing_left();
}

#[test]
fn sockets_that_are_passed_are_served_and_left_alone() {
    let host = Host::new();
    let mut bus = Bus::start(&host);
    let path: PathBuf = host.path("run/passed");
    let listener = UnixListener::bind(&path).expect("bind");
    bus.stop_daemon();
    // One that is not machine1 makes no sockets.
    let daemon = host.command();
    let script = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_FDNAMES=varlink LISTEN_PID=$$ exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(daemon.get_program()).args(daemon.get_args());
    command.args(["daemon", "--machine1", "no", "--bus", &bus.address()]).stdin(Stdio::from(OwnedFd::from(listener)));
    let mut daemon = Leader(command.spawn().expect("run the daemon"));
    // The answer comes as soon as there is somebody to give it.
    let answer = ask(&host, "run/passed", "io.systemd.Machine.List", json!({ "name": ".host" }));
    assert_eq!(answer["parameters"]["class"], json!("host"));
    assert!(!host.path(MACHINE).exists());
    let status = Command::new("kill").arg(daemon.0.id().to_string()).status().expect("run kill");
    assert!(status.success() && daemon.0.wait().expect("wait").success());
    assert!(path.exists(), "a socket that was passed is not ours to remove");
}

#[test]
fn the_journal_is_told_of_machines() {
    let host = Host::new();
    let path = host.path("run/systemd/journal/socket");
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
    let journal = UnixDatagram::bind(&path).expect("bind");
    journal.set_read_timeout(Some(Duration::from_secs(20))).expect("time limit");
    let _bus = Bus::start(&host);
    let mut leader = Leader::new();
    register(&host, "told", &leader);
    let pid = leader.0.id();
    let entry = || {
        let mut buffer = [0; 4096];
        let length = journal.recv(&mut buffer).expect("an entry");
        String::from_utf8(buffer[..length].to_vec()).expect("text")
    };
    let started = entry();
    for line in ["MESSAGE_ID=24d8d4452573402496068381a6312df2", "NAME=told", &format!("LEADER={pid}")] {
        assert!(started.lines().any(|l| l == line), "{line}: {started}");
    }
    leader.end();
    let stopped = entry();
    for line in ["MESSAGE_ID=58432bd3bace477cb514b56381b8a758", "NAME=told", &format!("LEADER={pid}")] {
        assert!(stopped.lines().any(|l| l == line), "{line}: {stopped}");
    }
}
