//! A machine's entry in `org.freedesktop.machine1`: what is asked of whoever keeps the table, and what a bus that is
//! missing, slow, hostile or dying costs.

use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_core::Stream as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use zbus::message::Type;

use crate::bus::{Bus, dbus_daemon};
use crate::support::{Host, Output, finish, tree, wait_for};

const AUTO: &str = "register = \"auto\"\n[root]\noverlay = { lower = [\"{busybox}\"], upper = \"ephemeral\" }\n\
                    [boot]\ncommand = [\"/bin/sleep\", \"10000\"]\n";
const MACHINE1: &str = "org.freedesktop.machine1";

/// A definition that insists.
fn insists() -> String {
    AUTO.replace("auto", "yes")
}

/// A `dbus-daemon` with nobody on it.
struct Plain {
    bus: Child,
    address: String,
}

impl Plain {
    fn start(host: &Host, rules: &str) -> Self {
        let (bus, socket) = dbus_daemon(host, rules);
        Self { bus, address: format!("unix:path={}", socket.display()) }
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        // A stopped one, too.
        let _ = self.bus.kill();
        let _ = self.bus.wait();
    }
}

/// How somebody who owns machine1 behaves.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// Does as it is told, and keeps nothing.
    Answers,
    /// Takes calls and never answers.
    Hangs,
    /// Leaves the bus when it is called.
    Dies,
    /// Knows a machine of any name until it is told otherwise; its leader is this process.
    Knows(u32),
}

/// One call, and what was true of the machine when it came.
#[derive(Debug, Clone, PartialEq)]
struct Call {
    member: String,
    name: String,
    /// Of a registration: what came with it.
    entry: Option<Entry>,
}

#[derive(Debug, Clone, PartialEq)]
struct Entry {
    id: Vec<u8>,
    service: String,
    class: String,
    leader: u32,
    root: String,
    interfaces: Vec<i32>,
    /// The process behind the connection, as the bus knows it.
    caller: u32,
    /// The leader's control group.
    group: String,
    /// What the leader executes.
    program: PathBuf,
}

/// Somebody who owns machine1 and remembers what he was asked.
struct Owner {
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Owner {
    /// Takes the name and serves it until the bus ends.
    fn start(bus: &Plain, manner: Manner) -> Self {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (address, kept) = (bus.address.clone(), calls.clone());
        let (ready, owned) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            zbus::block_on(async {
                let bus = zbus::connection::Builder::address(address.as_str()).build().await.expect("connect");
                let mut messages = zbus::MessageStream::from(&bus);
                bus.request_name(MACHINE1).await.expect("own machine1");
                ready.send(()).expect("somebody waits");
                let mut manner = manner;
                while let Some(Ok(message)) = poll_fn(|cx| Pin::new(&mut messages).poll_next(cx)).await {
                    if message.message_type() != Type::MethodCall {
                        continue;
                    }
                    if manner == Manner::Dies {
                        return;
                    }
                    take(&bus, &message, &mut manner, &kept).await;
                }
            });
        });
        owned.recv().expect("the owner is there");
        Self { calls }
    }

    fn calls(&self) -> Vec<Call> {
        self.calls.lock().expect("no panic").clone()
    }
}

/// Notes one call and answers it.
async fn take(bus: &zbus::Connection, message: &zbus::Message, manner: &mut Manner, calls: &Mutex<Vec<Call>>) {
    let header = message.header();
    let member = header.member().expect("a member").to_string();
    let sender = header.sender().expect("a sender").to_string();
    let (mut name, mut entry) = (String::new(), None);
    if member == "RegisterMachineWithNetwork" {
        assert_eq!(message.body().signature().to_string(), "(sayssusai)");
        type Body = (String, Vec<u8>, String, String, u32, String, Vec<i32>);
        let body: Body = message.body().deserialize().expect("arguments");
        let reply = bus.call_method(
            Some("org.freedesktop.DBus"),
            "/org/freedesktop/DBus",
            Some("org.freedesktop.DBus"),
            "GetConnectionUnixProcessID",
            &sender,
        );
        let caller = reply.await.expect("the bus knows").body().deserialize().expect("a number");
        let process = PathBuf::from(format!("/proc/{}", body.4));
        name = body.0;
        entry = Some(Entry {
            id: body.1,
            service: body.2,
            class: body.3,
            leader: body.4,
            root: body.5,
            interfaces: body.6,
            caller,
            group: std::fs::read_to_string(process.join("cgroup")).expect("the leader's group").trim().to_owned(),
            program: std::fs::read_link(process.join("exe")).expect("the leader's program"),
        });
    } else if let Ok(text) = message.body().deserialize::<&str>() {
        name = text.to_owned();
    }
    calls.lock().expect("no panic").push(Call { member: member.clone(), name: name.clone(), entry });
    let answer = match (*manner, member.as_str()) {
        (Manner::Hangs, _) => return,
        (Manner::Knows(_), "RegisterMachineWithNetwork") => {
            let text = format!("Machine '{name}' already exists");
            bus.reply_error(&header, "org.freedesktop.machine1.MachineExists", &text).await
        }
        (Manner::Knows(leader), "GetAll") => {
            let properties: std::collections::HashMap<&str, zbus::Variant<'_>> =
                [("Service", "other".into()), ("Leader", leader.into())].into();
            bus.reply(&header, &properties).await
        }
        (_, "UnregisterMachine") => {
            *manner = Manner::Answers;
            bus.reply(&header, &()).await
        }
        _ => {
            bus.reply(&header, &zbus::ObjectPath::try_from("/org/freedesktop/machine1/machine/x").expect("a path"))
                .await
        }
    };
    // A caller that has gone needs no answer.
    let _ = answer;
}

/// Starts a machine and gives what was written about it.
fn start(host: &Host, machine: &str) -> Output {
    host.run(&["start", machine])
}

/// The same without the daemon's help.
fn start_alone(host: &Host, machine: &str) -> Output {
    finish(host.command().env("MACHINIST_BY_DAEMON", "1").args(["start", machine]).stdin(Stdio::null()))
}

/// The machine starts, and this one line says why it is not registered.
fn starts_with_a_warning(host: &Host, machine: &str, why: &str) {
    let output = start(host, machine);
    let text = format!("warning: machine '{machine}' is not registered: {why}\nMachine '{machine}' is running.\n");
    assert_eq!((output.status, output.stderr.as_str()), (0, text.as_str()));
    let begun = Instant::now();
    host.ok(&["stop", machine]);
    assert!(begun.elapsed() < Duration::from_secs(20), "the end waited {:?}", begun.elapsed());
    host.assert_nothing_left();
}

/// The machine does not start, with exactly this cause and hint.
fn is_refused(host: &Host, machine: &str, cause: &str, hint: &str) {
    let output = start(host, machine);
    let text = format!("error: cannot start machine '{machine}'\n  cause: {cause}\n  hint: {hint}\n");
    assert_eq!((output.status, output.stderr.as_str()), (1, text.as_str()));
    host.assert_nothing_left();
}

const WITHOUT: &str = "without `register = \"yes\"` this costs a warning, not the machine";

#[test]
fn a_host_without_a_bus_costs_one_line() {
    let host = Host::new();
    let socket = host.path("run/dbus/system_bus_socket");
    let why = format!("no system bus at '{}': No such file or directory", socket.display());
    starts_with_a_warning(&host, &host.define("auto", AUTO), &why);
    is_refused(&host, &host.define("yes", &insists()), &format!("cannot register it: {why}"), WITHOUT);
    let silent = host.define("no", &AUTO.replace("auto", "no"));
    let output = start(&host, &silent);
    assert_eq!(output.stderr, format!("Machine '{silent}' is running.\n"));
    host.ok(&["stop", &silent]);
    let run = host.define("run", &AUTO.replace("\"/bin/sleep\", \"10000\"", "\"/bin/true\""));
    let output = host.run(&["run", &run]);
    let warning = format!("warning: machine '{run}' is not registered: {why}\n");
    assert_eq!((output.status, output.stderr.matches(&warning).count()), (0, 1), "{output:?}");
    host.assert_nothing_left();
}

#[test]
fn a_bus_without_machine1_costs_one_line() {
    let host = Host::new();
    let _bus = Plain::start(&host, "");
    let why = "'org.freedesktop.machine1' has no owner on the system bus";
    starts_with_a_warning(&host, &host.define("auto", AUTO), why);
    is_refused(&host, &host.define("yes", &insists()), &format!("cannot register it: {why}"), WITHOUT);
}

#[test]
fn a_policy_that_denies_it_costs_one_line() {
    let host = Host::new();
    let bus = Plain::start(
        &host,
        "<deny send_interface=\"org.freedesktop.machine1.Manager\" send_member=\"RegisterMachineWithNetwork\"/>",
    );
    let owner = Owner::start(&bus, Manner::Answers);
    let machine = host.define("auto", AUTO);
    let output = start(&host, &machine);
    let begin = format!("warning: machine '{machine}' is not registered: RegisterMachineWithNetwork is denied: ");
    assert_eq!(output.status, 0, "{output:?}");
    assert!(output.stderr.starts_with(&begin), "{output:?}");
    assert_eq!(output.stderr.lines().count(), 2, "{output:?}");
    host.ok(&["stop", &machine]);
    assert_eq!(owner.calls(), [], "nothing came through, and what is not there is not removed");
    host.assert_nothing_left();
}

#[test]
fn an_owner_that_never_answers_costs_ten_seconds() {
    let host = Host::new();
    let bus = Plain::start(&host, "");
    let owner = Owner::start(&bus, Manner::Hangs);
    let begun = Instant::now();
    starts_with_a_warning(&host, &host.define("auto", AUTO), "no answer on the system bus within 10 s");
    assert!((12..60).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    let members: Vec<String> = owner.calls().into_iter().map(|call| call.member).collect();
    assert_eq!(members, ["RegisterMachineWithNetwork", "UnregisterMachine"], "it may have been entered");
    let cause = "cannot register it: no answer on the system bus within 10 s";
    is_refused(&host, &host.define("yes", &insists()), cause, WITHOUT);
}

#[test]
fn a_bus_that_never_answers_costs_ten_seconds() {
    let host = Host::new();
    let bus = Plain::start(&host, "");
    kill(Pid::from_raw(bus.bus.id().cast_signed()), Signal::SIGSTOP).expect("stop the bus");
    starts_with_a_warning(&host, &host.define("auto", AUTO), "no answer on the system bus within 10 s");
}

#[test]
fn an_owner_that_dies_when_it_is_called_costs_one_line() {
    let host = Host::new();
    let bus = Plain::start(&host, "");
    let _owner = Owner::start(&bus, Manner::Dies);
    let why = "RegisterMachineWithNetwork: Message recipient disconnected from message bus without replying";
    starts_with_a_warning(&host, &host.define("auto", AUTO), why);
}

/// The sole registration among the calls since the last look.
fn entry(calls: &[Call]) -> Entry {
    let mut entries = calls.iter().filter_map(|call| call.entry.clone());
    let entry = entries.next().expect("a registration");
    assert_eq!(entries.next(), None, "one registration: {calls:?}");
    entry
}

/// Tells the id that it was given.
const COMMAND: &str = "\"/bin/sh\", \"-c\", \"echo $container_uuid >/run/uuid; exec sleep 10000\"";

#[test]
fn a_leader_is_registered_in_its_group_before_it_executes_anything() {
    let host = Host::new();
    let bus = Plain::start(&host, "");
    let owner = Owner::start(&bus, Manner::Answers);
    let machine = host.define("auto", &AUTO.replace("\"/bin/sleep\", \"10000\"", COMMAND));
    assert_eq!(start(&host, &machine).stderr, format!("Machine '{machine}' is running.\n"));
    let seen = entry(&owner.calls());
    assert_eq!((seen.service.as_str(), seen.class.as_str(), seen.root.as_str()), ("machinist", "container", ""));
    assert_eq!(seen.interfaces, Vec::<i32>::new());
    assert_eq!(seen.leader.to_string(), host.status(&machine, "leader"));
    assert_eq!(seen.caller.to_string(), host.status(&machine, "supervisor"), "whom machined takes for the supervisor");
    assert!(seen.group.ends_with("/payload"), "{}", seen.group);
    assert_eq!(seen.program.file_name(), Path::new(env!("CARGO_BIN_EXE_machinist")).file_name(), "not its init yet");
    wait_for("the command to write", Duration::from_secs(20), || !host.sh(&machine, "cat /run/uuid").is_empty());
    let uuid = host.sh(&machine, "cat /run/uuid");
    let id: String = seen.id.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(id, uuid.trim().replace('-', ""), "the id that its init is told");
    host.ok(&["stop", &machine]);
    let last = owner.calls().last().cloned().expect("calls");
    assert_eq!(last, Call { member: "UnregisterMachine".into(), name: machine, entry: None });
    host.assert_nothing_left();
}

#[test]
fn a_directory_is_registered_with_its_path_and_its_own_id() {
    let host = Host::new();
    let bus = Plain::start(&host, "");
    let owner = Owner::start(&bus, Manner::Answers);
    let root = host.path("tree");
    let copied = Command::new("cp").arg("-a").arg(tree("trixie-busybox")).arg(&root).status();
    assert!(copied.expect("run cp").success());
    std::fs::write(root.join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n").expect("write");
    let text =
        AUTO.replace("overlay = { lower = [\"{busybox}\"], upper = \"ephemeral\" }", "directory = \"{root}/tree\"");
    let machine = host.define("dir", &text);
    assert_eq!(start(&host, &machine).stderr, format!("Machine '{machine}' is running.\n"));
    let seen = entry(&owner.calls());
    assert_eq!(seen.root, root.display().to_string());
    assert_eq!(seen.id, [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef].repeat(2));
    host.ok(&["stop", &machine]);
    host.assert_nothing_left();
}

#[test]
fn a_reboot_renews_the_entry() {
    let host = Host::new();
    let bus = Plain::start(&host, "");
    let owner = Owner::start(&bus, Manner::Answers);
    let machine = host.define("auto", AUTO);
    assert_eq!(start(&host, &machine).status, 0);
    host.ok(&["reboot", &machine]);
    let second = host.status(&machine, "leader");
    host.ok(&["stop", &machine]);
    let calls = owner.calls();
    let members: Vec<&str> = calls.iter().map(|call| call.member.as_str()).collect();
    let (add, remove) = ("RegisterMachineWithNetwork", "UnregisterMachine");
    assert_eq!(members, [add, remove, add, remove]);
    assert!(calls.iter().all(|call| call.name == machine), "{calls:?}");
    assert_eq!(calls[2].entry.as_ref().expect("an entry").leader.to_string(), second);
    assert_ne!(calls[0].entry.as_ref().expect("an entry").leader.to_string(), second);
    host.assert_nothing_left();
}

#[test]
fn a_name_whose_machine_lives_is_refused() {
    let host = Host::new();
    let bus = Plain::start(&host, "");
    let _owner = Owner::start(&bus, Manner::Knows(std::process::id()));
    let machine = host.define("auto", AUTO);
    let pid = std::process::id();
    let cause = format!("cannot register it: '{machine}' is registered by 'other' with leader {pid}");
    is_refused(&host, &machine, &cause, "stop that machine, or give this one another name");
}

#[test]
fn an_entry_whose_machine_is_dead_is_replaced() {
    let host = Host::new();
    let bus = Plain::start(&host, "");
    let mut dead = Command::new("true").spawn().expect("run true");
    dead.wait().expect("wait");
    let owner = Owner::start(&bus, Manner::Knows(dead.id()));
    let machine = host.define("auto", AUTO);
    assert_eq!(start(&host, &machine).stderr, format!("Machine '{machine}' is running.\n"));
    let members: Vec<String> = owner.calls().into_iter().map(|call| call.member).collect();
    let (add, remove) = ("RegisterMachineWithNetwork", "UnregisterMachine");
    assert_eq!(members, [add, "GetMachine", "GetAll", remove, add]);
    host.ok(&["stop", &machine]);
    host.assert_nothing_left();
}

/// Whether the daemon's table has the machine, and with which leader.
fn leader(bus: &Bus, machine: &str) -> Option<String> {
    let path = bus.call("GetMachine", &["s", machine]);
    let path = path.stdout.trim().strip_prefix("o ")?.trim_matches('"').to_owned();
    let output = bus.busctl(&["get-property", MACHINE1, &path, "org.freedesktop.machine1.Machine", "Leader"]);
    Some(output.stdout.trim().strip_prefix("u ")?.to_owned())
}

#[test]
fn the_daemon_knows_a_machine_through_its_reboots_until_its_end() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let machine = host.define("auto", AUTO);
    assert_eq!(start(&host, &machine).stderr, format!("Machine '{machine}' is running.\n"));
    let first = host.status(&machine, "leader");
    assert_eq!(leader(&bus, &machine).as_ref(), Some(&first));
    host.ok(&["reboot", &machine]);
    let second = host.status(&machine, "leader");
    assert_ne!(first, second);
    assert_eq!(leader(&bus, &machine), Some(second));
    host.ok(&["stop", &machine]);
    assert_eq!(leader(&bus, &machine), None, "gone before `stop` says so");
    host.assert_nothing_left();
}

#[test]
fn somebody_elses_machine_of_the_same_name_is_named() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let machine = host.define("auto", AUTO);
    let mut other = Command::new("sleep").arg("1000").spawn().expect("run sleep");
    let pid = other.id().to_string();
    bus.ok("RegisterMachine", &["sayssus", &machine, "0", "systemd-nspawn", "container", &pid, ""]);
    let cause = format!("cannot register it: '{machine}' is registered by 'systemd-nspawn' with leader {pid}");
    let output = start_alone(&host, &machine);
    let text = format!(
        "error: cannot start machine '{machine}'\n  cause: {cause}\n  hint: stop that machine, or give this one \
         another name\n"
    );
    assert_eq!((output.status, output.stderr), (1, text));
    assert_eq!(leader(&bus, &machine).as_ref(), Some(&pid), "theirs is untouched");
    other.kill().expect("kill");
    other.wait().expect("wait");
    let output = start_alone(&host, &machine);
    assert_eq!(output.stderr, format!("Machine '{machine}' is running.\n"), "the dead are in nobody's way");
    host.ok(&["stop", &machine]);
    host.assert_nothing_left();
}

#[test]
fn a_killed_supervisor_leaves_no_entry() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let machine = host.define("auto", AUTO);
    for _ in 0..3 {
        assert_eq!(start_alone(&host, &machine).stderr, format!("Machine '{machine}' is running.\n"));
        let supervisor: i32 = host.status(&machine, "supervisor").parse().expect("a number");
        kill(Pid::from_raw(supervisor), Signal::SIGKILL).expect("kill");
        // The kernel has not ended it when the signal is sent.
        host.wait_for("it to be dead", || host.status(&machine, "state") == "stopped");
        // At once: whoever comes first, the daemon that sees the leader end or the next start.
    }
    wait_for("the daemon to see it", Duration::from_secs(20), || leader(&bus, &machine).is_none());
    host.ok(&["reap", &machine]);
    host.assert_nothing_left();
}

/// Memory of a process in KiB: all of it, shared pages by their share, and what is its own.
fn memory(pid: &str) -> [u64; 2] {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps");
    ["Pss:", "Pss_Anon:"].map(|key| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)).expect(key);
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    })
}

/// A supervisor as it is when its machine has run for a while.
#[derive(Debug)]
struct Lean {
    machine: String,
    start: Duration,
    memory: [u64; 2],
    sockets: usize,
}

#[test]
#[expect(clippy::print_stdout, reason = "what was measured is told and not judged: the host has other things to do")]
fn a_registered_supervisor_is_as_lean_as_any() {
    let host = Host::new();
    let _bus = Bus::start(&host);
    let mut kinds = [("with", AUTO.to_owned()), ("without", AUTO.replace("auto", "no"))].map(|(name, text)| Lean {
        machine: host.define(name, &text),
        start: Duration::MAX,
        memory: [0; 2],
        sockets: 0,
    });
    // In turns, so that what else the host does is shared.
    for _ in 0..10 {
        for kind in &mut kinds {
            let begun = Instant::now();
            let output = start_alone(&host, &kind.machine);
            kind.start = kind.start.min(begun.elapsed());
            assert_eq!(output.stderr, format!("Machine '{}' is running.\n", kind.machine));
            host.ok(&["stop", &kind.machine]);
        }
    }
    for kind in &mut kinds {
        assert_eq!(start_alone(&host, &kind.machine).status, 0);
    }
    // What the start needed is given back when nothing has happened for a while.
    std::thread::sleep(Duration::from_millis(1500));
    for kind in &mut kinds {
        let supervisor = host.status(&kind.machine, "supervisor");
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{supervisor}/{file}")).expect(file);
        assert!(read("status").contains("\nThreads:\t1\n"), "{kind:?}");
        let children = read(&format!("task/{supervisor}/children"));
        assert_eq!(children.trim(), host.status(&kind.machine, "leader"), "its only child");
        let files = std::fs::read_dir(format!("/proc/{supervisor}/fd")).expect("fd").flatten();
        let files = files.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        kind.sockets = files.filter(|to| to.to_string_lossy().starts_with("socket:")).count();
        kind.memory = memory(&supervisor);
    }
    kinds.iter().for_each(|kind| drop(host.ok(&["stop", &kind.machine])));
    let [with, without] = kinds;
    let hundredths = |a: u128, b: u128| a * 100 / b.max(1);
    println!(
        "with a registration a start takes {} % of one without, and a supervisor {} % of the memory",
        hundredths(with.start.as_micros(), without.start.as_micros()),
        hundredths(with.memory[0].into(), without.memory[0].into()),
    );
    assert_eq!(with.sockets, without.sockets, "no connection is kept");
    assert!(with.memory[1] <= without.memory[1] + 64, "memory of its own: {with:?} {without:?}");
    host.assert_nothing_left();
}
