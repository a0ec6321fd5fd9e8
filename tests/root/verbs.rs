//! The verbs that look at machines, steer them and run commands in them.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::{Host, finish};

const ROOT: &str = "[root]\noverlay = { lower = [\"{busybox}\"], upper = \"ephemeral\" }\n";

fn define(host: &Host, name: &str, command: &str) -> String {
    host.define(name, &format!("{ROOT}[boot]\ncommand = {command}\n"))
}

fn idle(host: &Host, name: &str) -> String {
    define(host, name, "[\"/bin/sleep\", \"10000\"]")
}

fn stop(host: &Host, machine: &str) {
    host.ok(&["stop", machine]);
    host.assert_nothing_left();
}

/// A running `machinist` whose output is read as it comes.
struct Watched {
    child: Child,
    seen: Vec<u8>,
}

impl Watched {
    fn new(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("spawn");
        Self { child, seen: Vec::new() }
    }

    fn write(&mut self, text: &str) {
        self.child.stdin.as_mut().expect("stdin").write_all(text.as_bytes()).expect("write");
    }

    /// Reads until `text` has come; fails at the end of the output.
    fn wait_for(&mut self, text: &str) {
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&self.seen).contains(text) {
            let count = self.child.stdout.as_mut().expect("stdout").read(&mut buffer).expect("read");
            assert!(count > 0, "no '{text}' in '{}'", String::from_utf8_lossy(&self.seen));
            self.seen.extend(&buffer[..count]);
        }
    }

    fn end(mut self) -> (i32, String) {
        let mut rest = Vec::new();
        self.child.stdout.take().expect("stdout").read_to_end(&mut rest).expect("read");
        self.seen.extend(rest);
        let status = self.child.wait().expect("wait");
        (status.code().unwrap_or(-1), String::from_utf8_lossy(&self.seen).into_owned())
    }
}

#[test]
fn list_and_status_tell_what_runs() {
    let host = Host::new();
    let machine = idle(&host, "a");
    let other = idle(&host, "b");
    assert_eq!(host.ok(&["list"]), "");
    assert_eq!(host.ok(&["list", "--json"]), "[]\n");
    host.ok(&["start", &machine]);
    let list: Value = serde_json::from_str(&host.ok(&["list", "--all", "--json"])).expect("JSON");
    let keys = |v: &Value| v.as_object().expect("object").keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&list[0]), ["ids", "init", "leader", "name", "since", "state", "supervisor"]);
    assert_eq!((list[0]["name"].as_str(), list[0]["state"].as_str()), (Some(machine.as_str()), Some("running")));
    assert_eq!((list[1]["name"].as_str(), list[1]["state"].as_str()), (Some(other.as_str()), Some("stopped")));
    let table = host.ok(&["list", "--all"]);
    let rows: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "STATE", "INIT", "LEADER", "IDS", "SINCE"]);
    assert_eq!(
        (&rows[1][..3], &rows[2][..2]),
        (&[machine.as_str(), "running", "command"][..], &[other.as_str(), "stopped"][..])
    );
    let status: Value = serde_json::from_str(&host.ok(&["status", "--json", &machine])).expect("JSON");
    for key in
        ["name", "state", "leader", "supervisor", "ids", "cgroup", "root", "definition", "usage", "private-network"]
    {
        assert!(!status[key].is_null(), "{key}: {status}");
    }
    assert_eq!(status["leader"], list[0]["leader"]);
    let text = host.ok(&["status", &machine]);
    assert!(text.starts_with(&format!("{machine} - running\n")) && text.contains("Network: private\n"), "{text}");
    let leader = status["leader"].as_i64().expect("a number");
    let map = std::fs::read_to_string(format!("/proc/{leader}/uid_map")).expect("uid_map");
    assert_eq!(map.split_whitespace().nth(1), Some(status["ids"]["shift"].to_string().as_str()));
    let twice = host.run(&["start", &machine]);
    assert_eq!(twice.status, 1);
    assert!(twice.stderr.contains("is already running"), "{twice:?}");
    stop(&host, &machine);
    assert_eq!(host.run(&["stop", &machine]).stderr, format!("error: machine '{machine}' is not running\n"));
    assert!(host.ok(&["status", &machine]).starts_with(&format!("{machine} - stopped\n")));
}

#[test]
fn ids_are_the_machines_own_remembered_and_locked() {
    let host = Host::new();
    let (one, two) = (idle(&host, "one"), idle(&host, "two"));
    host.ok(&["start", &one, &two]);
    let shift = |machine: &str| {
        let ids: Value = serde_json::from_str(&host.status(machine, "ids")).expect("JSON");
        ids["shift"].as_u64().expect("a number")
    };
    let (first, second) = (shift(&one), shift(&two));
    assert_ne!(first, second);
    assert_eq!((first % 65536, second % 65536), (0, 0));
    for base in [first, second] {
        let lock = host.path("run/systemd/nspawn-uid").join(base.to_string());
        // Held in the way that systemd-nspawn looks for.
        let inode = std::os::unix::fs::MetadataExt::ino(&lock.metadata().expect("the lock"));
        let locks = std::fs::read_to_string("/proc/locks").expect("locks");
        let held =
            locks.lines().any(|l| l.contains("OFDLCK") && l.contains("WRITE") && l.contains(&format!(":{inode} ")));
        assert!(held, "{base} as {inode}: {locks}");
    }
    assert_eq!(
        host.sh(&one, "cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '"),
        format!(" 0 {first} 65536\n").repeat(2)
    );
    host.ok(&["reboot", &one]);
    assert_eq!(shift(&one), first);
    host.ok(&["stop", &one, &two]);
    host.ok(&["start", &one]);
    assert_eq!(shift(&one), first, "remembered");
    stop(&host, &one);
    let (_, text) =
        (0, std::fs::read_to_string(host.path("var/lib/machinist").join(&one).join("uid-range")).expect("read"));
    assert_eq!(text, format!("{first} 65536\n"));
}

#[test]
fn the_hosts_ids_are_warned_of_in_one_line() {
    let host = Host::new();
    let machine =
        host.define("m", &format!("{ROOT}[users]\nmode = \"host\"\n[boot]\ncommand = [\"/bin/id\", \"-u\"]\n"));
    let output = host.run(&["run", &machine]);
    assert_eq!((output.status, output.stdout.as_str()), (0, "0\n"));
    assert!(output.stderr.starts_with("warning: ") && output.stderr.lines().count() == 1, "{output:?}");
    host.assert_nothing_left();
}

#[test]
fn exec_keeps_streams_apart_and_passes_status_user_and_environment() {
    let host = Host::new();
    let machine = idle(&host, "m");
    host.ok(&["start", &machine]);
    let mut command = host.command();
    command.args(["exec", "-E", "A=b c", "--user", "33:44", "-C", "/tmp", &machine, "/bin/sh", "-c"]);
    command.arg("cat; echo err >&2; echo $A; id -u; id -g; pwd; exit 9").stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spawn");
    child.stdin.take().expect("stdin").write_all(b"input\n").expect("write");
    let output = child.wait_with_output().expect("wait");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "input\nb c\n33\n44\n/tmp\n");
    assert_eq!((String::from_utf8_lossy(&output.stderr).as_ref(), output.status.code()), ("err\n", Some(9)));
    let missing = host.run(&["exec", &machine, "/no/such"]);
    assert_eq!((missing.status, missing.stderr.as_str()), (127, "error: no program '/no/such' in the machine\n"));
    assert_eq!(host.run(&["exec", &machine, "/etc/passwd"]).status, 126);
    assert_eq!(host.run(&["exec", &machine, "/bin/sh", "-c", "kill -9 $$"]).status, 137);
    let nobody = host.run(&["exec", "--user", "nosuch", &machine, "/bin/true"]);
    assert!(nobody.status == 1 && nobody.stderr.contains("nosuch"), "{nobody:?}");
    // A shell reads commands from standard input.
    let mut shell = Watched::new(host.command().args(["shell", &machine]));
    shell.write("echo from $(id -un)\nexit 5\n");
    assert_eq!(shell.end(), (5, "from root\n".into()));
    stop(&host, &machine);
}

#[test]
fn exec_with_a_timeout_leaves_nothing_of_the_command() {
    let host = Host::new();
    let machine = idle(&host, "m");
    host.ok(&["start", &machine]);
    let script = "setsid sleep 12345 & (sleep 12346 &) ; sleep 12347";
    let output = host.run(&["exec", "--timeout", "1s", &machine, "/bin/sh", "-c", script]);
    assert_eq!(output.status, 124, "{output:?}");
    assert_eq!(host.sh(&machine, "ps | grep -c '[s]leep 1234' || true"), "0\n");
    stop(&host, &machine);
}

#[test]
fn exec_with_a_terminal_gives_one_of_the_machine() {
    let host = Host::new();
    let machine = idle(&host, "m");
    host.ok(&["start", &machine]);
    let output = host.run(&["exec", "--tty", &machine, "/bin/sh", "-c", "tty; tty <&1; echo err >&2"]);
    let lines: Vec<&str> = output.stdout.lines().map(str::trim_end).collect();
    assert_eq!((output.status, lines.last().copied()), (0, Some("err")), "{output:?}");
    assert!(lines.iter().filter(|l| l.starts_with("/dev/pts/")).count() >= 1, "{output:?}");
    stop(&host, &machine);
}

#[test]
fn signals_reach_everyone_or_the_leader_alone() {
    for args in [&["kill", "-s", "USR1"][..], &["kill", "--signal", "SIGUSR1", "--leader"]] {
        let host = Host::new();
        let machine = define(
            &host,
            "m",
            "[\"/bin/sh\", \"-c\", \"trap 'echo got; exit 3' USR1; echo set; while :; do sleep 0.1; done\"]",
        );
        let mut run = Watched::new(host.command().args(["run", &machine]));
        run.wait_for("set");
        host.ok(&[args, &[machine.as_str()]].concat());
        let (status, text) = run.end();
        assert!(text.contains("got"), "{text}");
        // The shell's `sleep` gets it as well; either way the status is the command's own.
        assert_eq!(status, 3, "{args:?}");
        host.assert_nothing_left();
    }
    let host = Host::new();
    let machine = idle(&host, "m");
    host.ok(&["start", &machine]);
    assert_eq!(host.run(&["kill", "-s", "NOPE", &machine]).status, 2);
    host.ok(&["kill", &machine]);
    host.wait_for("the end", || host.ok(&["list"]).is_empty());
    host.assert_nothing_left();
}

#[test]
fn a_frozen_machine_is_shown_as_such_cannot_be_entered_and_can_be_stopped() {
    let host = Host::new();
    let machine = define(&host, "m", "[\"/bin/sh\", \"-c\", \"trap 'exit 0' TERM; while :; do sleep 0.1; done\"]");
    host.ok(&["start", &machine]);
    host.ok(&["freeze", &machine]);
    assert_eq!(host.status(&machine, "state"), "frozen");
    assert!(host.ok(&["list"]).contains("frozen"));
    let output = host.run(&["exec", &machine, "/bin/true"]);
    assert_eq!(output.status, 1);
    assert_eq!(
        output.stderr,
        format!("error: machine '{machine}' is frozen\n  hint: `machinist thaw {machine}` lets it go on\n")
    );
    host.ok(&["thaw", &machine]);
    assert_eq!(host.status(&machine, "state"), "running");
    assert_eq!(host.sh(&machine, "echo again"), "again\n");
    host.ok(&["freeze", &machine]);
    let stopped = host.run(&["stop", &machine]);
    assert!(stopped.status == 0 && !stopped.stderr.contains("killed"), "{stopped:?}");
    host.assert_nothing_left();
}

#[test]
fn two_viewers_share_the_console() {
    let host = Host::new();
    let machine = define(&host, "m", "[\"/bin/sh\", \"-c\", \"while read line; do echo heard $line; done\"]");
    host.ok(&["start", &machine]);
    let mut viewers = [0, 1].map(|_| Watched::new(host.command().args(["console", &machine])));
    for (index, word) in [(0, "one"), (1, "two")] {
        viewers[index].write(&format!("{word}\n"));
        viewers.iter_mut().for_each(|v| v.wait_for(&format!("heard {word}")));
    }
    host.ok(&["stop", &machine]);
    for viewer in viewers {
        assert_eq!(viewer.end().0, 0);
    }
    host.assert_nothing_left();
}

#[test]
fn logs_are_kept_followed_and_rotated() {
    let host = Host::new();
    let machine = host.define(
        "m",
        &format!("{ROOT}[console]\nlog-size = \"64K\"\n[boot]\ncommand = [\"/bin/sh\", \"-c\", \"seq 1 30000; exec sleep 10000\"]\n"),
    );
    host.ok(&["start", &machine]);
    let lines = |args: &[&str]| -> Vec<String> {
        let text = host.ok(&[&["logs", machine.as_str()], args].concat());
        text.lines().map(|l| l.trim_end().to_owned()).collect()
    };
    host.wait_for("the last line", || lines(&["-n", "1"]) == ["30000"]);
    assert_eq!(lines(&["-n", "3"]), ["29998", "29999", "30000"]);
    let all = lines(&[]);
    // Two files of 64 KiB at most, so the beginning is gone, and what is left has no gap.
    let numbers: Vec<u32> = all.iter().skip(1).filter_map(|l| l.parse().ok()).collect();
    assert!(numbers.len() > 5000 && numbers.len() < 22000, "{}", numbers.len());
    assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1), "no gap");
    let kept = host.path("var/lib/machinist").join(&machine);
    let sizes: Vec<u64> = std::fs::read_dir(&kept)
        .expect("state")
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with("console.log"))
        .map(|e| e.metadata().expect("stat").len())
        .collect();
    assert!(sizes.len() == 2 && sizes.iter().all(|s| *s <= 64 << 10), "{sizes:?}");
    let mut follow = Watched::new(host.command().args(["logs", "--follow", "-n", "1", &machine]));
    follow.wait_for("30000");
    host.sh(&machine, "echo more >/dev/console");
    follow.wait_for("more");
    follow.child.kill().expect("kill");
    follow.end();
    stop(&host, &machine);
    assert_eq!(lines(&["-n", "1"]), ["more"], "kept after the end");
}

#[test]
fn run_is_a_filter_in_pipe_mode() {
    let host = Host::new();
    let machine = define(&host, "m", "[\"/bin/sh\", \"-c\", \"read line; echo got $line; exit 4\"]");
    let mut run = Watched::new(host.command().args(["run", &machine]));
    run.write("words\n");
    let (status, text) = run.end();
    assert_eq!(status, 4);
    assert!(text.contains("got words") && !text.contains('\x1b'), "{text}");
    host.assert_nothing_left();
}

#[test]
fn run_on_a_terminal_leaves_by_three_keys_and_restores_it() {
    let host = Host::new();
    let machine = define(&host, "m", "[\"/bin/cat\"]");
    let machinist = host.command();
    let words: Vec<_> = machinist.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    let run = format!("{} {} run {machine}", machinist.get_program().display(), words.join(" "));
    let dir = host.root().display().to_string();
    let script = format!("stty -a >{dir}/before; {run}; echo status=$?; stty -a >{dir}/after");
    let mut terminal = Watched::new(Command::new("script").args(["-qec", &script, "/dev/null"]).env("NO_COLOR", "1"));
    terminal.wait_for("Press ^] three times");
    terminal.write("typed\r");
    terminal.wait_for("typed\r\ntyped");
    terminal.write("\x1d\x1d\x1d");
    terminal.wait_for("status=143");
    terminal.end();
    let settings = ["before", "after"].map(|f| std::fs::read_to_string(host.path(f)).expect("stty"));
    assert!(settings[0].contains("icanon") && settings[0] == settings[1], "{settings:?}");
    host.assert_nothing_left();
}

#[test]
fn a_terminated_run_stops_its_machine() {
    let host = Host::new();
    let machine = define(
        &host,
        "m",
        "[\"/bin/sh\", \"-c\", \"trap 'echo bye; exit 6' TERM; echo set; while :; do sleep 0.1; done\"]",
    );
    let mut run = Watched::new(host.command().args(["run", &machine]));
    run.wait_for("set");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(run.child.id()).expect("fits"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("kill");
    let (status, text) = run.end();
    assert!(status == 6 && text.contains("bye"), "{status}: {text}");
    host.assert_nothing_left();
}

/// A PID 1 whose child says that it is ready, which is nobody's business, before it does so itself.
const NOTIFIER: &str = r#"#!/usr/bin/perl
use Socket;
$SIG{TERM} = sub { exit 0 };
socket(S, AF_UNIX, SOCK_DGRAM, 0) or die;
sub say_to { send(S, $_[0], 0, pack_sockaddr_un($ENV{NOTIFY_SOCKET})) or die }
if (fork() == 0) { say_to("READY=1\nSTATUS=child"); exit 0 }
wait;
say_to("STATUS=waiting");
select(undef, undef, undef, 0.05) until -e "/tmp/go";
say_to("READY=1\nSTATUS=up");
select(undef, undef, undef, 0.05) while 1;
"#;

#[test]
fn readiness_comes_from_pid_1_alone_and_is_passed_on() {
    let host = Host::new();
    std::fs::create_dir_all(host.path("w/upper")).expect("mkdir");
    std::fs::write(host.path("w/upper/notifier"), NOTIFIER).expect("write");
    std::fs::set_permissions(host.path("w/upper/notifier"), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    let machine = host.define(
        "m",
        "[root.overlay]\nlower = [\"/\"]\nupper = \"{root}/w\"\n[boot]\ninit = \"/notifier\"\nready = \"notify\"\n",
    );
    let socket = UnixDatagram::bind(host.path("notify")).expect("bind");
    let mut command = host.command();
    command.args(["run", &machine]).env("NOTIFY_SOCKET", host.path("notify")).stdin(Stdio::null());
    let child = command.stdout(Stdio::null()).spawn().expect("spawn");
    host.wait_for("PID 1", || !host.ok(&["list"]).is_empty() && host.status(&machine, "status") == "waiting");
    assert_eq!(host.status(&machine, "state"), "starting");
    socket.set_nonblocking(true).expect("nonblocking");
    let mut buffer = [0; 512];
    let count = socket.recv(&mut buffer).expect("what is waited for");
    let waits = "STATUS=Machine starting, waits for its init to say that it is ready.";
    assert_eq!(String::from_utf8_lossy(&buffer[..count]), waits);
    assert!(socket.recv(&mut [0; 512]).is_err(), "ready too early");
    host.sh(&machine, "touch /tmp/go");
    let mut messages = String::new();
    host.wait_for("our own notification", || {
        let mut buffer = [0; 512];
        while let Ok(count) = socket.recv(&mut buffer) {
            messages.push_str(&String::from_utf8_lossy(&buffer[..count]));
            messages.push('\n');
        }
        messages.contains("READY=1\n")
    });
    assert!(messages.contains("X_NSPAWN_LEADER_PID="), "{messages}");
    host.wait_for("the state", || {
        host.status(&machine, "state") == "running" && host.status(&machine, "status") == "up"
    });
    host.ok(&["stop", &machine]);
    let status = { child }.wait().expect("wait");
    assert_eq!(status.code(), Some(0));
    host.assert_nothing_left();
}

#[test]
fn plans_are_made_without_privileges() {
    let host = Host::new();
    let machine = idle(&host, "m");
    std::fs::set_permissions(host.root(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    let machinist = host.command();
    // The program may lie where nobody can go.
    let program = host.path("machinist");
    std::fs::copy(machinist.get_program(), &program).expect("copy");
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(program).args(machinist.get_args());
    let output = finish(command.args(["plan", "--json", &machine]));
    assert_eq!(output.status, 0, "{output:?}");
    let plan: Value = serde_json::from_str(&output.stdout).expect("JSON");
    assert_eq!(plan["name"].as_str(), Some(machine.as_str()));
    assert!(plan["mounts"].as_array().is_some_and(|m| m.len() > 10));
    assert!(plan["notes"].to_string().contains("not root"), "{}", plan["notes"]);
}

#[test]
fn a_viewer_on_a_terminal_leaves_by_three_keys_and_the_machine_goes_on() {
    let host = Host::new();
    let machine = define(&host, "m", "[\"/bin/cat\"]");
    host.ok(&["start", &machine]);
    for (arguments, answer) in [("", "typed\r\ntyped"), ("--read-only", "shown")] {
        let machinist = host.command();
        let words: Vec<_> = machinist.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        let view = format!("{} {} console {arguments} {machine}", machinist.get_program().display(), words.join(" "));
        // Control-C reaches the shell too; without a trap it may end before it has said the status.
        let script = format!("trap : INT; stty -a >$D/before; {view}; echo status=$?; stty -a >$D/after");
        let mut terminal =
            Watched::new(Command::new("script").args(["-qec", &script, "/dev/null"]).env("D", host.root()));
        terminal.wait_for("Connected to machine");
        terminal.write("typed\r");
        if arguments.is_empty() {
            terminal.wait_for(answer);
            terminal.write("\x1d\x1d\x1d");
        } else {
            host.sh(&machine, "echo shown >/dev/console");
            terminal.wait_for(answer);
            terminal.write("\x03");
        }
        terminal.wait_for("status=");
        terminal.end();
        let settings = ["before", "after"].map(|f| std::fs::read_to_string(host.path(f)).expect("stty"));
        assert!(settings[0].contains("icanon") && settings[0] == settings[1], "{settings:?}");
        assert_eq!(host.status(&machine, "state"), "running");
    }
    let log = host.ok(&["logs", &machine]);
    assert_eq!(log.matches("typed").count(), 2, "a read-only viewer types nothing: {log}");
    stop(&host, &machine);
}

#[test]
fn no_wait_returns_before_the_machine_is_ready() {
    let host = Host::new();
    let machine = host.define(
        "m",
        &format!("{ROOT}[boot]\ninit = \"/bin/busybox\"\nargs = [\"sleep\", \"10000\"]\nready = \"notify\"\n"),
    );
    host.ok(&["start", "--no-wait", &machine]);
    assert_eq!(host.sh(&machine, "cat /proc/1/comm"), "busybox\n");
    // Not an init: it ends only when it is killed.
    let stopped = host.run(&["stop", "--timeout", "1s", &machine]);
    assert_eq!(stopped.status, 0, "{stopped:?}");
    assert!(stopped.stderr.contains("did not stop in time and was killed"), "{stopped:?}");
    host.assert_nothing_left();
}
