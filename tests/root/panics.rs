//! Processes of ours that panic: who waits for them says so, no lock is given back, and nothing is left.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use crate::bus::dbus_daemon;
use crate::support::{Host, Output, finish, wait_for};

const MACHINE: &str = "[root]\noverlay = { lower = [\"{busybox}\"], upper = \"ephemeral\" }\n";
const COMMAND: &str = "[boot]\ncommand = [\"/bin/true\"]\n";

/// Runs `machinist`, of which the process or step `place` panics.
fn panicking(host: &Host, place: &str, args: &[&str]) -> Output {
    finish(host.command().args(args).env("MACHINIST_TEST_PANIC_AT", place).stdin(Stdio::null()))
}

fn reason(place: &str) -> String {
    format!("a test asks '{place}' to panic")
}

/// The machine is not started, the error says `who` panicked, and whoever lives has cleaned up.
fn is_not_started(place: &str, definition: &str, who: &str) {
    let host = Host::new();
    let machine = host.define("panics", definition);
    std::fs::create_dir(host.path("src")).expect("mkdir");
    for verb in ["start", "run"] {
        let output = panicking(&host, place, &[verb, &machine]);
        assert_eq!(output.status, 1, "{verb}: {output:?}");
        // The reason is text of elsewhere and shown as such.
        let text = output.stderr.replace('\\', "");
        assert!(text.contains(who) && text.contains(&reason(place)), "{verb}: {output:?}");
        host.assert_nothing_left();
    }
    host.ok(&["start", &machine]);
    assert_eq!(panicking(&host, place, &["start", &machine]).status, 1, "it runs already");
    host.ok(&["stop", &machine]);
    host.assert_nothing_left();
}

macro_rules! is_not_started {
    ($($name:ident: $place:literal, $more:expr, $who:literal;)*) => {
        $(
            #[test]
            fn $name() {
                is_not_started($place, &format!("{MACHINE}{}", $more), $who);
            }
        )*
    };
}

is_not_started! {
    the_outer_child: "machinist-outer", "", "the outer child panicked";
    the_outer_child_with_an_inner: "outer:cloned", "", "the outer child panicked";
    the_outer_child_in_the_tree: "outer:root", "", "the outer child panicked";
    the_inner_child: "inner", "", "the inner child panicked";
    the_inner_child_with_file_systems: "inner:api", "", "the inner child panicked";
    the_inner_child_before_exec: "inner:limited", "", "the inner child panicked";
    the_process_that_shares_memory: "api", "", "process 'api' panicked";
    the_maker_of_a_user_namespace: "userns", BIND, "process 'userns' panicked";
    the_process_of_a_command: "command", "[boot]\ncommand = [\"/bin/sleep\", \"1000\"]\n", "the command's process panicked";
}

const BIND: &str = "[[bind]]\nsource = \"{root}/src\"\ntarget = \"/mnt\"\nidmap = \"root-owner\"\n";

#[test]
fn a_stub_ends_its_machine_with_the_status_of_a_panic() {
    let host = Host::new();
    let machine = host.define("stub", &format!("{MACHINE}[boot]\ncommand = [\"/bin/sleep\", \"1000\"]\n"));
    let output = panicking(&host, "stub", &["run", &machine]);
    assert_eq!(output.status, 101, "{output:?}");
    assert!(output.stdout.contains(&reason("stub")), "on the console: {output:?}");
    host.assert_nothing_left();
}

#[test]
fn a_background_supervisor_takes_its_machine_along_and_leaves_nothing_that_reap_does_not_find() {
    let host = Host::new();
    let machine = host.define("supervisor", MACHINE);
    for place in ["supervisor", "supervisor:prepared", "supervisor:ready", "supervisor:running"] {
        let output = panicking(&host, place, &["start", &machine]);
        assert_eq!(output.status, 1, "{output:?}");
        assert!(output.stderr.contains("cause: its supervisor panicked: "), "{output:?}");
        wait_for("the machine to be gone", Duration::from_secs(30), || host.run(&["reap", &machine]).status == 0);
        host.assert_nothing_left();
    }
    host.ok(&["start", &machine]);
    host.ok(&["stop", &machine]);
    host.assert_nothing_left();
}

#[test]
fn the_process_for_one_of_several_machines() {
    let host = Host::new();
    let machines = ["a", "b"].map(|name| host.define(name, MACHINE));
    let output = panicking(&host, "job", &["start", &machines[0], &machines[1]]);
    assert_eq!(output.status, 1, "{output:?}");
    assert_eq!(output.stderr.matches("the process for it panicked: ").count(), 2, "{output:?}");
    host.assert_nothing_left();
}

#[test]
fn who_speaks_to_the_bus_costs_a_warning() {
    let host = Host::new();
    let (mut bus, socket) = dbus_daemon(&host, "");
    let machine = host.define("bus", &format!("register = \"auto\"\n{MACHINE}{COMMAND}"));
    let address = format!("unix:path={}", socket.display());
    let mut command = host.command();
    command.args(["run", &machine]).env("DBUS_SYSTEM_BUS_ADDRESS", address);
    let output = finish(command.env("MACHINIST_TEST_PANIC_AT", "machinist-bus").stdin(Stdio::null()));
    bus.kill().and_then(|()| bus.wait()).expect("end the bus");
    let warning = "is not registered: speaking to the bus: the child for it panicked: ";
    assert!(output.status == 0 && output.stderr.contains(warning), "{output:?}");
    host.assert_nothing_left();
}

/// The lock files of machines that a process holds.
fn held(host: &Host) -> Vec<PathBuf> {
    use nix::fcntl::{FcntlArg, fcntl};
    let mut files = Vec::new();
    for dir in ["run/systemd/nspawn-uid", "run/systemd/nspawn/locks"] {
        files.extend(std::fs::read_dir(host.path(dir)).into_iter().flatten().flatten().map(|entry| entry.path()));
    }
    files.retain(|path| {
        let Ok(file) = std::fs::OpenOptions::new().read(true).write(true).open(path) else { return false };
        let mut lock = nix::libc::flock {
            l_type: i16::try_from(nix::libc::F_WRLCK).expect("small"),
            l_whence: 0,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)).expect("ask for the lock");
        i32::from(lock.l_type) != nix::libc::F_UNLCK
    });
    files.sort();
    files
}

#[test]
fn workers_of_a_running_machine_cost_it_nothing() {
    let host = Host::new();
    let tree = host.path("var/lib/machines/tree");
    std::fs::create_dir_all(tree.parent().expect("a parent")).expect("mkdir");
    let copied =
        std::process::Command::new("cp").arg("-a").arg(crate::support::tree("trixie-busybox")).arg(&tree).status();
    assert!(copied.expect("cp").success());
    let machine = host.define("runs", "[root]\ndirectory = \"{root}/var/lib/machines/tree\"\n");
    assert_eq!(panicking(&host, "machinist-limit", &["start", &machine]).status, 0);
    let locks = held(&host);
    assert_eq!(locks.len(), 2, "of its ids and its tree: {locks:?}");
    let output = host.run(&["set", &machine, "hugetlb.2M=8M"]);
    assert!(output.stderr.contains("the child that was to do it panicked: "), "{output:?}");
    for place in ["enter", "entered"] {
        let output = panicking(&host, place, &["exec", &machine, "/bin/true"]);
        assert_eq!(output.status, 1, "{output:?}");
        assert!(output.stderr.contains("the process that entered the machine panicked: "), "{place}: {output:?}");
    }
    let file = host.path("file");
    std::fs::write(&file, "x").expect("write");
    let copy = ["copy-to", &machine, file.to_str().expect("plain"), "/tmp/file"];
    for (place, args, who) in [
        ("machinist-copy", &copy[..], "the process that copies panicked: "),
        ("helper", &copy, "process 'helper' panicked ("),
        ("helper", &["login", &machine], "process 'helper' panicked ("),
    ] {
        let output = panicking(&host, place, args);
        assert_eq!(output.status, 1, "{output:?}");
        assert!(output.stderr.contains(who), "{place}: {output:?}");
    }
    assert_eq!(held(&host), locks);
    assert!(host.run(&["start", &machine]).stderr.contains("is already running"), "the lock of its name stands");
    assert_eq!(host.sh(&machine, "echo alive"), "alive\n");
    host.ok(&["stop", &machine]);
    host.assert_nothing_left();
}
