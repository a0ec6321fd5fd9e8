//! How a command starts, where it runs and how it ends.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::Case;
use crate::caller::{Job, Way};
use crate::machine::{Kind, Machine, SHIFT};

pub(crate) const CASES: [Case; 17] = [
    ("exit_status_is_the_commands_own", exit_status_is_the_commands_own),
    ("what_cannot_be_executed_is_told_from_what_is_missing", what_cannot_be_executed_is_told_from_what_is_missing),
    ("every_namespace_is_the_machines", every_namespace_is_the_machines),
    ("users_are_the_machines", users_are_the_machines),
    ("a_user_that_is_not_there_runs_nothing", a_user_that_is_not_there_runs_nothing),
    ("the_working_directory_is_inside_the_root", the_working_directory_is_inside_the_root),
    ("the_environment_is_clean", the_environment_is_clean),
    ("a_timeout_kills_what_was_daemonised_too", a_timeout_kills_what_was_daemonised_too),
    ("a_timeout_kills_what_the_machine_moved_elsewhere", a_timeout_kills_what_the_machine_moved_elsewhere),
    ("a_timeout_ends_a_command_that_ignores_signals", a_timeout_ends_a_command_that_ignores_signals),
    ("what_a_command_leaves_behind_lives_on", what_a_command_leaves_behind_lives_on),
    ("signals_to_the_caller_reach_the_command", signals_to_the_caller_reach_the_command),
    ("a_killed_caller_takes_the_command_along", a_killed_caller_takes_the_command_along),
    ("a_payload_group_with_controllers_can_be_entered", a_payload_group_with_controllers_can_be_entered),
    ("a_frozen_machine_holds_nobody_up", a_frozen_machine_holds_nobody_up),
    ("a_machine_that_has_ended_is_not_entered", a_machine_that_has_ended_is_not_entered),
    ("a_poll_loop_can_run_a_command", a_poll_loop_can_run_a_command),
];

/// Calls `ready` until it gives something, for at most five seconds.
pub(crate) fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < end, "no {what} after five seconds");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Processes of the host, machines included, whose command line is exactly this; zombies have none.
pub(crate) fn processes(argv: &[&str]) -> Vec<i32> {
    let wanted: Vec<u8> = argv.iter().flat_map(|word| word.bytes().chain([0])).collect();
    let numbers = fs::read_dir("/proc").expect("procfs").filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    numbers.filter(|pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == wanted)).collect()
}

fn exit_status_is_the_commands_own() {
    for kind in Kind::BOTH {
        let machine = Machine::start(kind);
        let status = |script: &str| Job::shell(&machine, script).run().status.code();
        assert_eq!(status("true"), Some(0));
        assert_eq!(status("exit 7"), Some(7));
        assert_eq!(status("exit 255"), Some(255));
        assert_eq!(status("kill -9 $$"), Some(128 + 9));
        assert_eq!(status("kill -TERM $$"), Some(128 + 15));
        assert!(machine.leaves().is_empty(), "{:?}", machine.leaves());
    }
}

fn what_cannot_be_executed_is_told_from_what_is_missing() {
    let machine = Machine::start(Kind::USERNS);
    let error = |program: &str| Job::new(&machine, &[program]).error();
    let cannot = "cannot execute the command: execve";
    assert_eq!(error("nothing"), (127, "no program 'nothing' in the machine".into()));
    assert_eq!(error("/bin/nothing"), (127, "no program '/bin/nothing' in the machine".into()));
    assert_eq!(error("etc/passwd/x"), (127, "no program 'etc/passwd/x' in the machine".into()));
    assert_eq!(error("plain"), (126, format!("{cannot}('/usr/bin/plain'): Permission denied")));
    assert_eq!(error("/etc"), (126, format!("{cannot}('/etc'): Permission denied")));
    assert_eq!(error("bare"), (126, format!("{cannot}('/usr/bin/bare'): Exec format error")));
    let lost = format!("{cannot}('/usr/bin/lost'), whose interpreter is missing: No such file or directory");
    assert_eq!(error("lost"), (126, lost));
    let elsewhere = Job::new(&machine, &["ls"]).with(|j| j.command.environment = vec![("PATH".into(), "/tmp".into())]);
    assert_eq!(elsewhere.error().0, 127);
    assert!(machine.leaves().is_empty());
}

fn every_namespace_is_the_machines() {
    for kind in [Kind::USERNS, Kind::PRIVILEGED, Kind { user: true, network: false, time: true }] {
        let machine = Machine::start(kind);
        let names = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];
        let inside =
            Job::shell(&machine, "for n in cgroup ipc mnt net pid time user uts; do readlink /proc/self/ns/$n; done")
                .text();
        let link = |name: &str| fs::read_link(format!("/proc/{}/ns/{name}", machine.pid)).expect("readlink");
        let leaders: Vec<String> = names.iter().map(|name| link(name).display().to_string()).collect();
        assert_eq!(inside.lines().collect::<Vec<_>>(), leaders, "{kind:?}");
        let group = Job::new(&machine, &["cat", "/proc/self/cgroup"]).text();
        assert!(group.contains("0::/machinist-exec-"), "{group}");
    }
}

fn users_are_the_machines() {
    for kind in Kind::BOTH {
        let machine = Machine::start(kind);
        let script = "id -u; id -g; id -G; umask";
        let ids = |job: Job| job.text().lines().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(ids(Job::shell(&machine, script)), ["0", "0", "0", "0022"]);
        for (user, uid, gid, groups) in [
            ("root", "0", "0", "0"),
            ("0", "0", "0", "0"),
            ("alice", "1000", "1000", "1000 29 33"),
            ("1000", "1000", "1000", "1000 29 33"),
            ("alice:www", "1000", "33", "33"),
            ("1000:29", "1000", "29", "29"),
            ("5:6", "5", "6", "6"),
        ] {
            assert_eq!(ids(Job::shell(&machine, script).user(user)), [uid, gid, groups, "0022"], "{user}");
        }
    }
}

fn a_user_that_is_not_there_runs_nothing() {
    let machine = Machine::start(Kind::USERNS);
    let error = |user: &str| Job::new(&machine, &["id"]).user(user).error();
    assert_eq!(error("bob"), (1, "no user 'bob' in /etc/passwd".into()));
    assert_eq!(error("alice:nobody"), (1, "no group 'nobody' in /etc/group".into()));
    for user in ["", ":", "nonsense", "5", "-1", "alice:", "4294967295:0", "0 ", "alice\nroot"] {
        assert_eq!(error(user).0, 1, "{user:?}");
    }
    // The tree's own files decide, however they came about.
    fs::write(machine.path("etc/passwd"), "nonsense\nalice:x:0x0:0::/:/bin/sh\nalice:x:7:7::/:/bin/sh\n")
        .expect("writing");
    assert_eq!(
        Job::new(&machine, &["cut", "-d", " ", "-f", "1-4", "/proc/self/stat"]).user("alice").run().status.code(),
        Some(0)
    );
    fs::remove_file(machine.path("etc/passwd")).expect("removing passwd");
    assert_eq!(error("alice").0, 1);
    nix::unistd::mkfifo(&machine.path("etc/passwd"), nix::sys::stat::Mode::S_IRUSR).expect("mkfifo");
    std::os::unix::fs::chown(machine.path("etc/passwd"), Some(SHIFT), Some(SHIFT)).expect("chown");
    assert_eq!(error("alice"), (1, "no user 'alice' in /etc/passwd".into()));
    assert_eq!(Job::new(&machine, &["echo", "root"]).text(), "root\n");
}

fn the_working_directory_is_inside_the_root() {
    for kind in Kind::BOTH {
        let machine = Machine::start(kind);
        let at = |dir: &str| Job::new(&machine, &["pwd"]).with(|job| job.command.directory = Some(dir.into()));
        assert_eq!(Job::new(&machine, &["pwd"]).text(), "/\n");
        assert_eq!(at("/home/alice").text(), "/home/alice\n");
        assert_eq!(at("../../../tmp").text(), "/tmp\n");
        let here = "cannot use the working directory: ";
        let errors = [
            ("/nowhere", "openat2('/nowhere' in the tree): No such file or directory"),
            ("/etc/passwd", "openat2('/etc/passwd' in the tree): Not a directory"),
        ];
        for (dir, error) in errors {
            assert_eq!(at(dir).error(), (1, format!("{here}{error}")), "{dir}");
        }
        assert_eq!(at("/root").user("alice").error().0, 1);
        // CVE-2024-21626: the caller leaves a descriptor of the host's root open, here or somewhere near.
        for fd in 3..12 {
            assert_eq!(at(&format!("/proc/self/fd/{fd}")).error().0, 1, "{fd}");
        }
        assert_eq!(at("/proc/1/root").error().0, 1);
    }
}

fn the_environment_is_clean() {
    let machine = Machine::start(Kind::USERNS);
    let sorted = |job: Job| {
        let text = job.text();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let root = ["HOME=/root", "LOGNAME=root", path, "SHELL=/bin/sh", "USER=root"];
    assert_eq!(sorted(Job::new(&machine, &["env"])), root);
    let asked = vec![("A".into(), "b=c d".into()), ("HOME".into(), "/x".into())];
    let job = Job::new(&machine, &["env"]).user("alice").with(|job| job.command.environment = asked);
    assert_eq!(sorted(job), ["A=b=c d", "HOME=/x", "LOGNAME=alice", path, "SHELL=/bin/sh", "USER=alice"]);
}

fn a_timeout_kills_what_was_daemonised_too() {
    for kind in Kind::BOTH {
        let machine = Machine::start(kind);
        let script = "(setsid sleep 4241 </dev/null >/dev/null 2>&1 &); trap '' TERM; sleep 4242 & sleep 4243";
        let job = Job::shell(&machine, script).timeout(400);
        let caller = job.spawn(Stdio::null(), Stdio::piped(), Stdio::piped());
        let all = || ["4241", "4242", "4243"].map(|time| processes(&["sleep", time]).len());
        wait_for("daemon", || (all() == [1, 1, 1]).then_some(()));
        let output = caller.wait_with_output().expect("waiting");
        assert_eq!(output.status.code(), Some(124), "{output:?}");
        assert_eq!(all(), [0, 0, 0]);
        assert!(machine.leaves().is_empty(), "{:?}", machine.leaves());
    }
}

/// As a systemd machine does with a `su -`.
fn a_timeout_kills_what_the_machine_moved_elsewhere() {
    let machine = Machine::start(Kind::USERNS);
    let session = machine.cgroup.join("session");
    fs::create_dir(&session).expect("mkdir");
    let script = "sleep 4301 & (sleep 4302 &); setsid sleep 4303 & sleep 4304";
    let caller = Job::shell(&machine, script).timeout(400).spawn(Stdio::null(), Stdio::piped(), Stdio::piped());
    let all = || ["4301", "4302", "4303", "4304"].map(|time| processes(&["sleep", time]));
    let pids = wait_for("command", || Some(all().concat()).filter(|pids| pids.len() == 4));
    for pid in pids {
        fs::write(session.join("cgroup.procs"), pid.to_string()).expect("moving a process");
    }
    assert_eq!(caller.wait_with_output().expect("waiting").status.code(), Some(124));
    wait_for("end", || all().concat().is_empty().then_some(()));
    assert!(machine.leaves().is_empty(), "{:?}", machine.leaves());
}

fn a_timeout_ends_a_command_that_ignores_signals() {
    let machine = Machine::start(Kind::PRIVILEGED);
    let begun = Instant::now();
    let job = Job::shell(&machine, "trap '' TERM INT HUP; while :; do :; done").timeout(200).user("alice");
    assert_eq!(job.run().status.code(), Some(124));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(machine.leaves().is_empty());
}

fn what_a_command_leaves_behind_lives_on() {
    let machine = Machine::start(Kind::USERNS);
    let job = Job::shell(&machine, "sleep 4251 </dev/null >/dev/null 2>&1 &");
    assert_eq!(job.text(), "");
    assert_eq!(processes(&["sleep", "4251"]).len(), 1);
    assert_eq!(machine.leaves().len(), 1, "it must be findable by name");
}

fn signals_to_the_caller_reach_the_command() {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    let machine = Machine::start(Kind::USERNS);
    for (signal, name) in
        [(Signal::SIGTERM, "TERM"), (Signal::SIGINT, "INT"), (Signal::SIGHUP, "HUP"), (Signal::SIGQUIT, "QUIT")]
    {
        let script = format!("trap 'exit 9' {name}; touch /tmp/{name}; while :; do sleep 0.05; done");
        let caller = Job::shell(&machine, &script).spawn(Stdio::null(), Stdio::piped(), Stdio::piped());
        wait_for("trap", || machine.path(&format!("tmp/{name}")).exists().then_some(()));
        kill(Pid::from_raw(i32::try_from(caller.id()).expect("a pid")), signal).expect("kill");
        assert_eq!(caller.wait_with_output().expect("waiting").status.code(), Some(9), "{name}");
    }
}

fn a_killed_caller_takes_the_command_along() {
    for kind in Kind::BOTH {
        let machine = Machine::start(kind);
        let mut caller =
            Job::new(&machine, &["sleep", "4261"]).user("alice").spawn(Stdio::null(), Stdio::null(), Stdio::null());
        let of = || processes(&["sleep", "4261"]);
        wait_for("command", || (of().len() == 1).then_some(()));
        caller.kill().expect("killing the caller");
        caller.wait().expect("waiting");
        wait_for("end of the command", || of().is_empty().then_some(()));
    }
}

fn a_payload_group_with_controllers_can_be_entered() {
    let machine = Machine::start(Kind::USERNS);
    let child = machine.cgroup.join("init");
    fs::create_dir(&child).expect("mkdir");
    fs::write(child.join("cgroup.procs"), machine.pid.to_string()).expect("moving the leader");
    let controllers = |dir: &Path| fs::read_to_string(dir.join("cgroup.controllers")).expect("reading");
    let parent = machine.cgroup.parent().expect("not the root");
    let before = controllers(&machine.cgroup);
    let controller = controllers(parent).split_ascii_whitespace().next().expect("a controller").to_owned();
    let set = |dir: &Path, sign| fs::write(dir.join("cgroup.subtree_control"), format!("{sign}{controller}"));
    set(parent, '+').expect("enabling a controller in our own group");
    set(&machine.cgroup, '+').expect("enabling it in the payload group");
    let refused = fs::write(machine.cgroup.join("cgroup.procs"), std::process::id().to_string());
    assert!(refused.is_err(), "the group itself still takes processes, so this shows nothing");
    assert_eq!(Job::new(&machine, &["echo", "in"]).text(), "in\n");
    assert!(machine.leaves().is_empty());
    set(&machine.cgroup, '-').expect("disabling it");
    if before.is_empty() {
        set(parent, '-').expect("disabling it in our own group");
    }
}

fn a_frozen_machine_holds_nobody_up() {
    use nix::sys::signal::{Signal, kill};
    let machine = Machine::start(Kind::USERNS);
    fs::write(machine.cgroup.join("cgroup.freeze"), "1").expect("freezing");
    assert_eq!(Job::new(&machine, &["true"]).timeout(200).run().status.code(), Some(124));
    let caller = Job::new(&machine, &["true"]).spawn(Stdio::null(), Stdio::piped(), Stdio::piped());
    wait_for("leaf", || (machine.leaves().len() == 1).then_some(()));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(caller.id()).expect("a pid"));
    kill(pid, Signal::SIGINT).expect("kill");
    assert_eq!(caller.wait_with_output().expect("waiting").status.code(), Some(128 + 2));
    assert!(machine.leaves().is_empty(), "{:?}", machine.leaves());
}

fn a_machine_that_has_ended_is_not_entered() {
    let machine = Machine::start(Kind::USERNS);
    let job = Job::new(&machine, &["true"]);
    fs::write(machine.cgroup.join("cgroup.kill"), "1").expect("killing");
    wait_for("end", || fs::read(format!("/proc/{}/cmdline", machine.pid)).is_ok_and(|l| l.is_empty()).then_some(()));
    let (status, text) = job.error();
    assert_eq!((status, text.contains("cannot enter the machine: setns")), (1, true), "{text}");
    assert!(machine.leaves().is_empty());
}

fn a_poll_loop_can_run_a_command() {
    let machine = Machine::start(Kind::USERNS);
    let job = |script: &str| Job::shell(&machine, script).with(|job| job.way = Way::Start);
    let done = job("for fd in 0 1 2; do readlink /proc/$$/fd/$fd; done | cat >/tmp/null; echo gone; exit 3").run();
    assert_eq!((done.status.code(), done.stdout, done.stderr), (Some(3), vec![], vec![]));
    let seen = fs::read_to_string(machine.path("tmp/null")).expect("it ran");
    assert_eq!(seen.lines().collect::<Vec<_>>(), ["/dev/null", "/dev/null", "/dev/null"]);
    assert_eq!(job("sleep 4271").timeout(100).run().status.code(), Some(124));
    assert_eq!(Job::new(&machine, &["none"]).with(|job| job.way = Way::Start).error().0, 127);
}
