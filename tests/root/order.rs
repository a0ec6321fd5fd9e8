//! Machines that need each other, on a host without systemd: `start` and `stop` follow what definitions say.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bus::Bus;
use crate::support::{Host, Output, finish};

/// A PID 1 that writes what it does into a file of the host, is ready after a while, and may fail instead.
const INIT: &str = r#"#!/usr/bin/perl
use Socket;
sub note { open(my $log, ">>", "/log/order") or die; syswrite($log, "$ENV{NAME} $_[0]\n") }
$SIG{TERM} = sub { note("stops"); select(undef, undef, undef, $ENV{STOP} // 0.2); note("ends"); exit 0 };
note("begins");
select(undef, undef, undef, $ENV{DELAY} // 0.2);
exit 3 if $ENV{FAIL};
socket(S, AF_UNIX, SOCK_DGRAM, 0) or die;
note("ready");
send(S, "READY=1", 0, pack_sockaddr_un($ENV{NOTIFY_SOCKET})) or die;
select(undef, undef, undef, 1) while 1;
"#;

/// Several machines of one test, which write into one file.
struct Machines {
    host: Host,
}

impl Machines {
    fn new() -> Self {
        let host = Host::new();
        std::fs::create_dir_all(host.path("log")).expect("mkdir");
        std::fs::write(host.path("log/order"), "").expect("write");
        Self { host }
    }

    /// Defines a machine: further keys of `[boot]`, in which `@x` stands for the machine `x`, and variables.
    fn define(&self, name: &str, boot: &str, environment: &str) -> PathBuf {
        let upper = self.host.path(&format!("w-{name}/upper"));
        std::fs::create_dir_all(&upper).expect("mkdir");
        std::fs::write(upper.join("pid1"), INIT).expect("write");
        std::fs::set_permissions(upper.join("pid1"), std::fs::Permissions::from_mode(0o755)).expect("chmod");
        let environment = if environment.is_empty() { String::new() } else { format!(", {environment}") };
        let mut boot = boot.to_owned();
        for other in ["nobody", "a", "b", "c", "d"] {
            boot = boot.replace(&format!("@{other}"), &self.host.name(other));
        }
        let text = format!(
            "bind = [{{ source = \"{{root}}/log\", target = \"/log\", idmap = \"root-owner\" }}]\n\
             [root.overlay]\nlower = [\"/\"]\nupper = \"{{root}}/w-{name}\"\n\
             [boot]\ninit = \"/pid1\"\nready = \"notify\"\nenvironment = {{ NAME = \"{name}\"{environment} }}\n{boot}\n"
        );
        let machine = self.host.define(name, &text);
        self.host.path("etc/machinist/machines").join(format!("{machine}.toml"))
    }

    fn name(&self, name: &str) -> String {
        self.host.name(name)
    }

    /// Runs a verb with names of machines, each `@x` for the machine `x`.
    fn run(&self, args: &[&str]) -> Output {
        let args: Vec<String> =
            args.iter().map(|arg| arg.strip_prefix('@').map_or((*arg).to_owned(), |name| self.name(name))).collect();
        self.host.run(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn ok(&self, args: &[&str]) -> Output {
        let output = self.run(args);
        assert_eq!(output.status, 0, "{args:?}: {output:?}");
        output
    }

    /// What the machines have written since the last time.
    fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.host.path("log/order")).expect("read");
        std::fs::write(self.host.path("log/order"), "").expect("write");
        text.lines().map(str::to_owned).collect()
    }

    /// Text with the machines' names as the test has them.
    fn plain(&self, text: &str) -> String {
        text.replace(&self.name(""), "").replace(&self.host.root().display().to_string(), "")
    }

    fn running(&self) -> Vec<String> {
        self.plain(&self.host.ok(&["list", "--names"])).lines().map(str::to_owned).collect()
    }
}

#[test]
fn a_chain_is_started_in_its_order_and_stopped_against_it() {
    let machines = Machines::new();
    machines.define("a", "", "");
    machines.define("b", "requires = [\"@a\"]", "");
    machines.define("c", "requires = [\"@b\"]", "");
    let started = machines.ok(&["start", "@c"]);
    let told = machines.plain(&started.stderr);
    assert_eq!(told, "Machine 'a' is running.\nMachine 'b' is running.\nMachine 'c' is running.\n");
    assert_eq!(machines.log(), ["a begins", "a ready", "b begins", "b ready", "c begins", "c ready"]);
    assert_eq!(machines.running(), ["a", "b", "c"]);
    // One that is asked for and runs is still an error, and one that is only needed is not.
    let again = machines.run(&["start", "@b"]);
    assert_eq!(again.status, 1);
    assert!(machines.plain(&again.stderr).contains("cause: machine 'b' is already running\n"), "{again:?}");
    machines.ok(&["stop", "@c"]);
    machines.ok(&["start", "@c"]);
    assert_eq!(machines.log(), ["c stops", "c ends", "c begins", "c ready"]);
    let stopped = machines.ok(&["stop", "@a"]);
    let told = machines.plain(&stopped.stderr);
    let first =
        "Machine 'b' is stopped first, as it requires 'a'.\nMachine 'c' is stopped first, as it requires 'a'.\n";
    assert_eq!(told, format!("{first}Machine 'c' has ended.\nMachine 'b' has ended.\nMachine 'a' has ended.\n"));
    assert_eq!(machines.log(), ["c stops", "c ends", "b stops", "b ends", "a stops", "a ends"]);
    machines.host.assert_nothing_left();
}

#[test]
fn a_failure_stops_the_chain_with_an_explanation() {
    explain(&Machines::new());
}

#[test]
fn the_daemon_follows_the_order_and_explains_the_same() {
    let machines = Machines::new();
    let bus = Bus::start(&machines.host);
    explain(&machines);
    machines.define("a", "", "");
    // What the daemon is asked for is more than one machine.
    assert_eq!(bus.own("Start", &["s", &machines.name("c")]).status, 0);
    assert_eq!(machines.log(), ["a begins", "a ready", "b begins", "b ready", "c begins", "c ready"]);
    assert_eq!(bus.own("Stop", &["st", &machines.name("a"), "18446744073709551615"]).status, 0);
    assert_eq!(machines.log(), ["c stops", "c ends", "b stops", "b ends", "a stops", "a ends"]);
    drop(bus);
    machines.host.assert_nothing_left();
}

fn explain(machines: &Machines) {
    machines.define("a", "", "FAIL = \"1\"");
    machines.define("b", "requires = [\"@a\"]", "");
    machines.define("c", "requires = [\"@b\"]", "");
    machines.define("d", "wants = [\"@a\"]", "");
    let failed = machines.run(&["start", "@c"]);
    assert_eq!(failed.status, 1, "{failed:?}");
    assert_eq!(
        machines.plain(&failed.stderr),
        "error: machine 'c' was not started: machine 'a', which 'b' requires, failed: cannot start machine 'a'\n  \
         cause: it ended with status 3 before it was ready\n  hint: `machinist logs a` shows what it said\n"
    );
    assert_eq!(machines.log(), ["a begins"]);
    let failed = machines.run(&["start", "@b", "@a"]);
    assert_eq!(failed.status, 1);
    let told = machines.plain(&failed.stderr);
    assert!(told.contains("error: cannot start machine 'a'\n"), "{told}");
    assert!(told.contains("error: machine 'b' was not started: machine 'a', which it requires, failed: "), "{told}");
    machines.log();
    // A wish that fails is told and changes nothing.
    let started = machines.ok(&["start", "@d"]);
    assert_eq!(
        machines.plain(&started.stderr),
        "Machine 'd' is running.\nwarning: cannot start machine 'a': it ended with status 3 before it was ready\n"
    );
    assert_eq!(machines.log(), ["a begins", "d begins", "d ready"]);
    machines.ok(&["stop", "--all"]);
    machines.log();
    machines.host.assert_nothing_left();
}

#[test]
fn circles_and_unknown_machines_are_refused_with_their_lines() {
    let machines = Machines::new();
    machines.define("a", "requires = [\"@b\"]", "");
    machines.define("b", "wants = [\"@c\"]", "");
    machines.define("c", "after = [\"@a\"]", "");
    machines.define("d", "requires = [\"@nobody\"]\nwants = [\"@nobody\"]", "");
    for verb in ["check", "plan", "start"] {
        let refused = machines.run(&[verb, "@b"]);
        assert_eq!(refused.status, 78, "{verb}: {refused:?}");
        let told = machines.plain(&refused.stderr);
        let message = "error: `boot.wants`: machines wait for each other in a cycle: b -> c -> a -> b\n";
        assert!(told.starts_with(message), "{verb}: {told}");
        assert!(told.contains("/etc/machinist/machines/b.toml:9:10\n"), "{verb}: {told}");
        assert!(told.contains("'a' waits for 'b'"), "{verb}: {told}");
        let refused = machines.run(&[verb, "@d"]);
        assert_eq!(refused.status, 78, "{verb}: {refused:?}");
        let told = machines.plain(&refused.stderr);
        assert!(told.starts_with("error: `boot.requires`: there is no machine 'nobody'\n"), "{verb}: {told}");
        assert!(told.contains("/etc/machinist/machines/d.toml:9:13\n"), "{verb}: {told}");
    }
    assert_eq!(machines.log(), [""; 0]);
    machines.define("d", "after = [\"@nobody\"]\nwants = [\"@nobody\"]", "");
    let checked = machines.ok(&["check", "@d"]);
    let told = machines.plain(&checked.stderr);
    let wanted = "warning: machine 'd' wants 'nobody', which is not defined (/etc/machinist/machines/d.toml:10)\n";
    assert_eq!(told, format!("{wanted}\n"));
    let all = machines.run(&["check"]);
    assert_eq!(all.stdout.matches("bad ").count(), 3, "{all:?}");
    machines.host.assert_nothing_left();
}

#[test]
fn as_many_begin_at_once_as_are_allowed() {
    let machines = Machines::new();
    for name in ["a", "b", "c", "d"] {
        machines.define(name, "", "DELAY = \"0.5\"");
    }
    let most = |log: &[String]| {
        let (mut now, mut most) = (0, 0);
        for line in log {
            now += if line.ends_with("begins") { 1 } else { -1 };
            most = most.max(now);
        }
        most
    };
    machines.ok(&["start", "--jobs=2", "@a", "@b", "@c", "@d"]);
    let log = machines.log();
    assert_eq!((log.len(), most(&log)), (8, 2), "{log:?}");
    machines.ok(&["stop", "--all"]);
    machines.log();
    machines.ok(&["start", "-j", "4", "@a", "@b", "@c", "@d"]);
    let log = machines.log();
    assert_eq!((log.len(), most(&log)), (8, 4), "{log:?}");
    machines.ok(&["stop", "--all"]);
    machines.log();
    machines.ok(&["start", "-j", "1", "@d", "@c"]);
    assert_eq!(machines.log(), ["c begins", "c ready", "d begins", "d ready"]);
    machines.ok(&["stop", "--all"]);
    assert_eq!(machines.run(&["start", "--jobs=0", "@a"]).status, 2);
    machines.host.assert_nothing_left();
}

#[test]
fn all_are_stopped_against_their_order_and_at_once_where_there_is_none() {
    let machines = Machines::new();
    machines.define("a", "", "STOP = \"0.5\"");
    machines.define("b", "after = [\"@a\"]", "STOP = \"0.5\"");
    machines.define("c", "after = [\"@a\"]", "STOP = \"0.5\"");
    machines.ok(&["start", "@a", "@b", "@c"]);
    let log = machines.log();
    assert_eq!(log[..2], ["a begins", "a ready"], "{log:?}");
    // An order alone keeps nobody from being stopped, and a stopped one stops nobody.
    machines.ok(&["stop", "@a"]);
    assert_eq!(
        (machines.log(), machines.running()),
        (vec!["a stops".into(), "a ends".into()], vec!["b".into(), "c".into()])
    );
    machines.ok(&["start", "@a"]);
    machines.log();
    machines.ok(&["stop", "--all"]);
    let log = machines.log();
    assert_eq!(log[4..], ["a stops", "a ends"], "{log:?}");
    assert!(log[..2].iter().all(|line| line.ends_with("stops")), "both at once: {log:?}");
    assert_eq!(machines.ok(&["stop", "--all"]).stderr, "");
    assert_eq!(machines.run(&["stop"]).status, 2);
    assert_eq!(machines.run(&["stop", "--all", "@a"]).status, 2);
    machines.host.assert_nothing_left();
}

#[test]
fn what_starts_with_the_host_is_started_once_and_in_order() {
    let machines = Machines::new();
    machines.define("a", "", "");
    machines.define("b", "autostart = true\nrequires = [\"@a\"]", "");
    machines.define("c", "after = [\"@b\"]", "");
    machines.define("d", "", "");
    assert_eq!(machines.ok(&["enable", "@c"]).stdout, "");
    assert_eq!(machines.run(&["enable", "@nobody"]).status, 78);
    machines.ok(&["start", "--autostart"]);
    assert_eq!(machines.log(), ["a begins", "a ready", "b begins", "b ready", "c begins", "c ready"]);
    machines.ok(&["start", "--autostart", "@d"]);
    assert_eq!(machines.log(), ["d begins", "d ready"]);
    machines.ok(&["disable", "--now", "@c"]);
    assert_eq!(machines.running(), ["a", "b", "d"]);
    let disabled = machines.ok(&["disable", "@b"]);
    let told = machines.plain(&disabled.stderr);
    assert!(told.contains("warning: machine 'b' still starts with the host: `boot.autostart` says so in "), "{told}");
    machines.ok(&["stop", "--all"]);
    machines.log();
    machines.ok(&["enable", "--now", "@d"]);
    assert_eq!(machines.log(), ["d begins", "d ready"]);
    // The definition goes, the link and the machine stay.
    std::fs::remove_file(machines.host.path("etc/machinist/machines").join(format!("{}.toml", machines.name("d"))))
        .expect("remove");
    assert_eq!(machines.running(), ["d"]);
    assert!(machines.ok(&["status", "@d"]).stdout.contains("d - running\n"));
    machines.ok(&["disable", "--now", "@d"]);
    // Neither definition, link nor machine is left to speak of.
    for verb in ["disable", "reap", "start"] {
        let unknown = machines.run(&[verb, "@never"]);
        assert_eq!(unknown.status, 78, "f26: {verb}");
        assert!(
            machines.plain(&unknown.stderr).starts_with("error: there is no machine 'never'\n"),
            "{verb}: {unknown:?}"
        );
    }
    let gone = machines.run(&["start", "@d"]);
    assert_eq!(gone.status, 78);
    assert!(machines.plain(&gone.stderr).starts_with("error: there is no machine 'd'\n"), "{gone:?}");
    machines.host.assert_nothing_left();
}

#[test]
fn two_who_start_what_needs_the_same_machine_start_it_once() {
    let machines = Machines::new();
    machines.define("a", "", "DELAY = \"1\"");
    machines.define("b", "requires = [\"@a\"]", "");
    machines.define("c", "requires = [\"@a\"]", "");
    let begun = Instant::now();
    let start = |name: &str| machines.host.command().args(["start", &machines.name(name)]).spawn().expect("spawn");
    let (mut first, mut second) = (start("b"), start("c"));
    assert!(first.wait().expect("wait").success() && second.wait().expect("wait").success());
    assert!(begun.elapsed() > Duration::from_secs(1));
    let log = machines.log();
    assert_eq!(log[..2], ["a begins", "a ready"], "{log:?}");
    assert_eq!(log.len(), 6, "{log:?}");
    machines.ok(&["stop", "--all"]);
    machines.host.assert_nothing_left();
}

#[test]
fn the_service_manager_is_told_why_a_machine_did_not_start() {
    let machines = Machines::new();
    machines.define("a", "", "FAIL = \"1\"");
    machines.define("b", "", "");
    std::fs::remove_dir_all(machines.host.path("w-b")).expect("remove");
    std::fs::write(machines.host.path("w-b"), "no directory").expect("write");
    let socket = UnixDatagram::bind(machines.host.path("notify")).expect("bind");
    socket.set_nonblocking(true).expect("nonblocking");
    let last = |name: &str| {
        let mut command = machines.host.command();
        command.args(["run", "--quiet", "--console=none", &machines.name(name)]);
        finish(command.env("NOTIFY_SOCKET", machines.host.path("notify")));
        let mut buffer = [0; 4096];
        let mut last = String::new();
        while let Ok(count) = socket.recv(&mut buffer) {
            last = String::from_utf8_lossy(&buffer[..count]).into_owned();
        }
        machines.plain(&last)
    };
    assert_eq!(last("a"), "STATUS=Machine has ended: it ended with status 3");
    let told = last("b");
    assert!(told.starts_with("STATUS=cannot start machine 'b': cannot ") && told.contains("/w-b"), "{told}");
    machines.host.assert_nothing_left();
}

/// `machinist run`, as units have it, one at a time.
struct Service(std::process::Child);

impl Service {
    fn start(machines: &Machines, name: &str) -> Self {
        let mut command = machines.host.command();
        command.args(["run", "--quiet", "--console=none", "--jobs=1", &machines.name(name)]);
        Self(command.env("NOTIFY_SOCKET", machines.host.path(&format!("notify-{name}"))).spawn().expect("spawn"))
    }

    /// Has it stopped, and gives the signal or the status that it ended with.
    fn end(mut self) -> (Option<i32>, Option<i32>) {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM).expect("kill");
        let status = self.0.wait().expect("wait");
        (status.signal(), status.code())
    }
}

#[test]
fn services_that_start_together_take_turns() {
    let machines = Machines::new();
    machines.define("a", "", "DELAY = \"3\"");
    machines.define("b", "", "FAIL = \"1\"");
    machines.define("c", "", "DELAY = \"1000\"");
    machines.define("d", "", "");
    let told = UnixDatagram::bind(machines.host.path("notify-d")).expect("bind");
    let waits = || {
        let mut buffer = [0; 4096];
        let count = told.recv(&mut buffer).expect("receive");
        assert_eq!(&buffer[..count], b"STATUS=Waiting while other machines start.");
    };
    let logged = |lines: &[&str]| {
        machines.host.wait_for("what they write", || {
            let text = std::fs::read_to_string(machines.host.path("log/order")).expect("read");
            text.lines().collect::<Vec<_>>() == lines
        });
        machines.log();
    };
    let first = Service::start(&machines, "a");
    logged(&["a begins"]);
    let waiting = Service::start(&machines, "d");
    waits();
    // Whoever waits holds nothing, and ends at once.
    assert_eq!(waiting.end(), (Some(Signal::SIGTERM as i32), None));
    let mut second = Service::start(&machines, "b");
    logged(&["a ready", "b begins"]);
    // One that fails makes room as well.
    let third = Service::start(&machines, "c");
    logged(&["c begins"]);
    assert_eq!(second.0.wait().expect("wait").code(), Some(3));
    // And one that is never ready, after some time.
    let fourth = Service::start(&machines, "d");
    waits();
    logged(&["d begins", "d ready"]);
    assert_eq!(machines.running(), ["a", "c", "d"]);
    for service in [first, third, fourth] {
        assert_eq!(service.end(), (None, Some(0)));
    }
    machines.host.assert_nothing_left();
}
