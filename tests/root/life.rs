//! The life of one machine: when it is ready, and what becomes of it when it has ended by itself.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bus::Bus;
use crate::support::{Host, Output};

/// A machine whose command is a script that shares the directory `shared` with the host.
struct Life {
    host: Host,
    machine: String,
}

impl Life {
    /// Defines it: `boot` are lines of `[boot]`, the script is what runs.
    fn new(boot: &str, script: &str) -> Self {
        let host = Host::new();
        std::fs::create_dir(host.path("shared")).expect("mkdir");
        std::fs::write(host.path("shared/script"), script).expect("write");
        let life = Self { machine: host.name("life"), host };
        life.define(&format!("{boot}\ncommand = [\"/bin/sh\", \"/shared/script\"]"));
        life
    }

    fn define(&self, boot: &str) {
        self.define_with("", boot);
    }

    /// The same with keys at the top of the file.
    fn define_with(&self, top: &str, boot: &str) {
        self.host.define(
            "life",
            &format!(
                "{top}[root]\noverlay = {{ lower = [\"{{busybox}}\"], upper = \"ephemeral\" }}\n\
                 [[bind]]\nsource = \"{{root}}/shared\"\ntarget = \"/shared\"\n[boot]\n{boot}\n"
            ),
        );
    }

    fn shared(&self, file: &str) -> PathBuf {
        self.host.path("shared").join(file)
    }

    /// Lines of a shared file.
    fn lines(&self, file: &str) -> usize {
        std::fs::read_to_string(self.shared(file)).unwrap_or_default().lines().count()
    }

    fn touch(&self, file: &str) {
        std::fs::write(self.shared(file), "").expect("write");
    }

    fn wait_for(&self, what: &str, done: impl FnMut() -> bool) {
        self.host.wait_for(what, done);
    }

    /// Begins a verb, and does not wait for it.
    fn begin(&self, verb: &str) -> Child {
        let mut command = self.host.command();
        command.args([verb, &self.machine]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("run machinist")
    }

    fn run(&self, verb: &str) -> Output {
        self.host.run(&[verb, &self.machine])
    }

    fn ok(&self, verb: &str) {
        self.host.ok(&[verb, &self.machine]);
    }

    /// A field of `status --json`; null where there is nothing.
    fn status(&self, field: &str) -> serde_json::Value {
        let text = self.host.ok(&["status", "--json", &self.machine]);
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        value[field].clone()
    }

    fn state(&self) -> String {
        self.status("state").as_str().expect("a word").to_owned()
    }

    fn is_gone(&self) -> bool {
        self.state() == "stopped"
    }

    fn kill(&self, whom: &str) {
        let pid = i32::try_from(self.status(whom).as_i64().expect("a process")).expect("a number");
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill");
    }

    /// What the log has of ours.
    fn remarks(&self) -> Vec<String> {
        let log = self.host.ok(&["logs", &self.machine]);
        log.lines().filter_map(|line| line.strip_prefix("[machinist] ")).map(str::to_owned).collect()
    }
}

/// How a verb that was begun has ended.
fn finished(child: Child) -> (i32, String) {
    let output = child.wait_with_output().expect("wait");
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

const SLEEP: &str = "echo up >>/shared/boots; exec sleep 1000";
/// Ends at once by a signal, the first two times.
const TWICE: &str = "echo up >>/shared/boots; [ $(wc -l </shared/boots) -gt 2 ] || kill -SEGV $$; exec sleep 1000";

#[test]
fn start_returns_when_the_check_in_the_machine_succeeds() {
    let life = Life::new("ready = { exec = [\"test\", \"-e\", \"/shared/ok\"] }", SLEEP);
    let mut start = life.begin("start");
    let waits = || life.status("waits-for").as_str().map(str::to_owned);
    life.wait_for("a check that failed", || waits().is_some_and(|text| text.contains("; last: ")));
    assert_eq!(waits().expect("it waits"), "`test -e /shared/ok` to succeed; last: status 1");
    assert_eq!(life.state(), "starting");
    assert!(life.host.ok(&["status", &life.machine]).contains("\n  Waits for: `test -e /shared/ok` to succeed"));
    assert_eq!(start.try_wait().expect("wait"), None, "nothing is ready");
    life.touch("ok");
    assert_eq!(finished(start), (0, format!("Machine '{}' is running.\n", life.machine)));
    assert_eq!((life.state(), life.status("waits-for")), ("running".into(), serde_json::Value::Null));
    life.ok("stop");
    life.host.assert_nothing_left();
}

#[test]
fn start_returns_when_the_port_answers_by_either_family() {
    for address in ["127.0.0.1", "[::1]"] {
        let script =
            format!("until [ -e /shared/go ]; do sleep 0.1; done; : >/shared/open; exec httpd -f -p {address}:8080");
        let life = Life::new("ready = { port = 8080 }", &script);
        let start = life.begin("start");
        let refused = "TCP port 8080 to answer; last: Connection refused";
        life.wait_for("a refused connection", || life.status("waits-for").as_str() == Some(refused));
        assert_eq!(life.state(), "starting");
        assert!(!life.shared("open").exists());
        life.touch("go");
        assert_eq!(finished(start).0, 0);
        assert!(life.shared("open").exists(), "ready before anybody listened");
        life.ok("stop");
        life.host.assert_nothing_left();
    }
}

#[test]
fn nobody_waits_with_no_wait() {
    let life = Life::new("ready = { exec = [\"false\"] }", SLEEP);
    life.host.ok(&["start", "--no-wait", &life.machine]);
    assert_eq!(life.state(), "running");
    life.ok("stop");
    life.host.assert_nothing_left();
}

#[test]
fn a_check_that_hangs_is_killed_and_tried_again() {
    let check = "ready = { exec = [\"sh\", \"-c\", \"echo x >>/shared/tries; test -e /shared/tried || { : >/shared/tried; \
                 sleep 1000; }\"] }";
    let life = Life::new(check, SLEEP);
    let begun = Instant::now();
    life.ok("start");
    assert!(begun.elapsed() >= Duration::from_secs(10), "the first try has its time");
    assert_eq!(life.lines("tries"), 2);
    let processes = life.host.sh(&life.machine, "ps");
    assert_eq!(processes.matches("sleep 1000").count(), 1, "the command, and nothing of the check: {processes}");
    life.ok("stop");
    life.host.assert_nothing_left();
}

#[test]
fn a_check_that_hangs_does_not_hold_up_a_stop() {
    let life = Life::new("ready = { exec = [\"sh\", \"-c\", \": >/shared/checking; sleep 1000\"] }", SLEEP);
    let start = life.begin("start");
    life.wait_for("the check", || life.shared("checking").exists());
    let begun = Instant::now();
    life.ok("stop");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let (status, text) = finished(start);
    assert_eq!(status, 1);
    assert!(text.contains("cause: it was stopped before it was ready\n"), "{text}");
    life.host.assert_nothing_left();
}

#[test]
fn a_reboot_is_checked_anew() {
    let life = Life::new(
        "ready = { exec = [\"test\", \"-e\", \"/run/ok\"] }",
        "until [ -e /shared/go ]; do sleep 0.1; done; \
                          : >/run/ok; exec sleep 1000",
    );
    life.touch("go");
    life.ok("start");
    std::fs::remove_file(life.shared("go")).expect("unlink");
    let mut reboot = life.begin("reboot");
    life.wait_for("its second boot", || life.state() == "starting");
    assert_eq!(reboot.try_wait().expect("wait"), None);
    life.touch("go");
    assert_eq!(finished(reboot).0, 0);
    assert_eq!((life.state(), life.status("restarts")), ("running".into(), 0.into()), "a reboot is no restart");
    life.ok("stop");
    life.host.assert_nothing_left();
}

#[test]
fn a_machine_that_ends_before_it_is_ready_is_reported_at_once() {
    for (boot, script, reason) in [
        ("ready = { exec = [\"false\"] }", "sleep 0.3; exit 3", "it ended with status 3 before it was ready"),
        ("ready = { port = 1 }", "sleep 0.3; kill -KILL $$", "it ended with status 137 before it was ready"),
    ] {
        let life = Life::new(boot, script);
        let output = life.run("start");
        let text = format!(
            "error: cannot start machine '{0}'\n  cause: {reason}\n  hint: `machinist logs {0}` shows what it said\n",
            life.machine
        );
        assert_eq!((output.status, output.stderr), (1, text));
        life.host.assert_nothing_left();
    }
}

#[test]
fn a_machine_that_crashes_is_started_again_and_says_so() {
    let life = Life::new("restart = \"on-failure\"\nrestart-delay = \"0s\"", TWICE);
    life.ok("start");
    life.wait_for("the third boot", || life.lines("boots") == 3);
    life.wait_for("its state", || life.status("restarts") == 2 && life.state() == "running");
    assert_eq!(life.status("last-end"), "ended with status 139");
    let again = format!("machine '{}' ended with status 139; started again in 0s", life.machine);
    assert_eq!(life.remarks(), [again.clone(), again]);
    // A crash of PID 1 itself, and the machine keeps its ids and control group.
    let (ids, supervisor) = (life.status("ids"), life.status("supervisor"));
    life.kill("leader");
    life.wait_for("the fourth boot", || life.lines("boots") == 4 && life.state() == "running");
    assert_eq!(life.status("last-end"), "was killed by SIGKILL");
    assert_eq!((life.status("ids"), life.status("supervisor")), (ids, supervisor));
    assert!(
        life.host.ok(&["status", &life.machine]).contains("Restarts: 3, the last after it was killed by SIGKILL\n")
    );
    life.ok("stop");
    life.host.assert_nothing_left();
}

#[test]
fn start_goes_on_until_a_machine_is_ready_at_last() {
    let life = Life::new(
        "restart = \"on-failure\"\nrestart-delay = \"0s\"\nready = { exec = [\"test\", \"-e\", \"/run/ok\"] }",
        "echo up >>/shared/boots; [ $(wc -l </shared/boots) -gt 2 ] || exit 5; : >/run/ok; exec sleep 1000",
    );
    let output = life.run("start");
    let text = format!(
        "warning: machine '{0}' needed 3 starts until it was ready; before the last it ended with status 5\n\
         Machine '{0}' is running.\n",
        life.machine
    );
    assert_eq!((output.status, output.stderr), (0, text));
    life.ok("stop");
    life.host.assert_nothing_left();
}

#[test]
fn a_limit_ends_it_with_the_status_of_the_failure() {
    let boot = "restart = \"on-failure\"\nrestart-delay = \"10ms\"\nrestart-limit = { count = 3, within = \"1h\" }\nready = { port = 9 }";
    let life = Life::new(boot, "echo up >>/shared/boots; echo -n last words; exit 7");
    let machine = life.machine.clone();
    let limit = format!("machine '{machine}' failed 3 times within 1h; not started again");
    let output = life.run("start");
    let text = format!(
        "error: cannot start machine '{machine}'\n  cause: {limit}\n  cause: the last time it ended with status 7\n  \
         hint: `machinist logs {machine}` shows what it said\n"
    );
    assert_eq!((output.status, output.stderr), (1, text));
    assert_eq!(life.lines("boots"), 3);
    let again = format!("machine '{machine}' ended with status 7; started again in 10ms");
    let said = [again.clone(), again.clone(), format!("machine '{machine}' ended with status 7"), limit.clone()];
    assert_eq!(life.remarks(), said);
    life.host.assert_nothing_left();

    // In the foreground it is said there, and the status is the payload's own.
    let output = life.run("run");
    let warnings: Vec<&str> = output.stderr.lines().filter_map(|line| line.strip_prefix("warning: ")).collect();
    assert_eq!((output.status, warnings), (7, said.iter().map(String::as_str).collect()));
    life.host.assert_nothing_left();
}

/// A machine that has crashed and would be started again in an hour.
fn paused() -> Life {
    let life = Life::new("restart = \"always\"\nrestart-delay = \"1h\"", SLEEP);
    life.ok("start");
    life.wait_for("its boot", || life.lines("boots") == 1);
    life.kill("leader");
    life.wait_for("the pause", || life.state() == "restarting");
    life
}

#[test]
fn a_stop_ends_the_pause_before_another_start() {
    let life = paused();
    assert_eq!((life.status("leader"), life.status("restarts")), (serde_json::Value::Null, 1.into()));
    let list = life.host.ok(&["list"]);
    assert!(list.lines().any(|l| l.split_whitespace().take(3).eq([&*life.machine, "restarting", "-"])), "{list}");
    let exec = life.host.run(&["exec", &life.machine, "true"]);
    let text = format!("error: machine '{}' has ended and is about to be started again\n", life.machine);
    assert_eq!((exec.status, exec.stderr), (1, text));
    let again = life.run("start");
    assert!(again.status == 1 && again.stderr.contains("is already running"), "{again:?}");
    let begun = Instant::now();
    let stop = life.run("stop");
    assert_eq!((stop.status, stop.stderr), (0, format!("Machine '{}' has ended.\n", life.machine)));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(life.lines("boots"), 1);
    life.host.assert_nothing_left();
}

#[test]
fn a_signal_or_a_kill_ends_the_pause_too() {
    let life = paused();
    let supervisor = life.status("supervisor").as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a number");
    kill(Pid::from_raw(supervisor), Signal::SIGTERM).expect("kill");
    life.wait_for("its end", || life.is_gone());
    life.wait_for("the supervisor's end", || !life.host.path("run/machinist/machines").join(&life.machine).exists());
    life.host.assert_nothing_left();

    // In the foreground, where its status is seen: what was asked for is no failure.
    let run = life.begin("run");
    life.wait_for("its boot", || life.lines("boots") == 2);
    life.kill("leader");
    life.wait_for("the pause", || life.state() == "restarting");
    kill(Pid::from_raw(run.id().cast_signed()), Signal::SIGTERM).expect("kill");
    let (status, text) = finished(run);
    let said = format!("warning: machine '{}' was killed by SIGKILL; started again in 1h\n", life.machine);
    assert_eq!((status, text.contains(&said)), (0, true), "{text}");
    life.host.assert_nothing_left();

    let life = paused();
    life.ok("kill");
    life.wait_for("its end", || !life.host.path("run/machinist/machines").join(&life.machine).exists());
    assert_eq!(life.lines("boots"), 1);
    life.host.assert_nothing_left();
}

#[test]
fn a_reboot_and_viewers_are_served_in_the_pause() {
    let life = paused();
    let mut viewer = life.begin("console");
    // It has come before the machine goes when it shows what was said last.
    let mut shown = BufReader::new(viewer.stdout.take().expect("a pipe"));
    let mut line = String::new();
    while !line.starts_with("[machinist] machine ") {
        line.clear();
        assert_ne!(shown.read_line(&mut line).expect("read"), 0, "it shows nothing of the end");
    }
    life.ok("reboot");
    life.wait_for("the second boot", || life.lines("boots") == 2);
    assert_eq!(life.state(), "running");
    life.ok("stop");
    std::io::copy(&mut shown, &mut std::io::sink()).expect("read");
    let (status, text) = finished(viewer);
    assert_eq!(status, 0, "{text}");
    life.host.assert_nothing_left();
}

#[test]
fn a_stop_refuses_a_reboot_and_wins_over_one_that_is_under_way() {
    let life = Life::new(
        "",
        "trap 'until [ -e /shared/go ]; do sleep 0.1; done; exit 0' TERM; echo up >>/shared/boots; \
                          while :; do sleep 0.1; done",
    );
    let stopping = |verb| {
        let begun = life.begin(verb);
        life.wait_for("the request", || life.state() == "stopping");
        begun
    };
    let machine = life.machine.clone();
    life.ok("start");
    life.wait_for("its boot", || life.lines("boots") == 1);
    let stop = stopping("stop");
    let refused = life.run("reboot");
    let text = format!("error: cannot reboot machine '{machine}': the machine is shutting down\n");
    assert_eq!((refused.status, refused.stderr), (1, text));
    life.touch("go");
    assert_eq!(finished(stop), (0, format!("Machine '{machine}' has ended.\n")));
    life.host.assert_nothing_left();

    std::fs::remove_file(life.shared("go")).expect("unlink");
    life.ok("start");
    life.wait_for("its second boot", || life.lines("boots") == 2);
    let reboot = stopping("reboot");
    life.host.ok(&["stop", "--timeout", "1s", &machine]);
    assert_eq!(finished(reboot), (1, format!("error: machine '{machine}' ended instead of rebooting\n")));
    assert_eq!(life.lines("boots"), 2);
    life.host.assert_nothing_left();
}

#[test]
fn a_crash_on_the_way_to_a_reboot_is_a_crash() {
    let life = Life::new(
        "restart = \"on-failure\"\nrestart-delay = \"0s\"",
        "trap : TERM; echo up >>/shared/boots; while :; do sleep 1; done",
    );
    life.ok("start");
    life.wait_for("its boot", || life.lines("boots") == 1);
    let reboot = life.begin("reboot");
    life.wait_for("the request", || life.state() == "stopping");
    life.kill("leader");
    assert_eq!(finished(reboot), (0, format!("Machine '{}' has been rebooted.\n", life.machine)));
    life.wait_for("another boot", || life.lines("boots") == 2);
    assert_eq!(life.status("last-end"), "was killed by SIGKILL");
    life.host.ok(&["stop", "--timeout", "1s", &life.machine]);
    life.host.assert_nothing_left();
}

#[test]
fn a_poweroff_from_inside_is_followed_by_a_start_only_if_that_is_always() {
    for (restart, follows) in [("on-failure", false), ("always", true)] {
        let life = Life::new("", "");
        life.define(&format!("restart = \"{restart}\"\nrestart-delay = \"0s\""));
        life.ok("start");
        // The init may end before the command has.
        life.host.run(&["exec", &life.machine, "poweroff", "-f"]);
        if follows {
            life.wait_for("another boot", || life.state() == "running" && life.status("restarts") == 1);
            assert_eq!(life.status("last-end"), "was powered off from inside");
            life.ok("stop");
        }
        life.wait_for("its end", || life.is_gone());
        life.wait_for("the last trace", || !life.host.path("run/machinist/machines").join(&life.machine).exists());
        life.host.assert_nothing_left();
    }
}

#[test]
fn whoever_asks_for_an_end_gets_it() {
    let life = Life::new("restart = \"always\"\nrestart-delay = \"0s\"", SLEEP);
    let end = |what: &str, args: &[&str]| {
        let boots = life.lines("boots");
        life.ok("start");
        life.wait_for("its boot", || life.lines("boots") == boots + 1);
        life.host.ok(&[args, &[&life.machine]].concat());
        life.wait_for(what, || !life.host.path("run/machinist/machines").join(&life.machine).exists());
        assert_eq!(life.lines("boots"), boots + 1, "{what}");
        life.host.assert_nothing_left();
    };
    end("its end after a stop", &["stop"]);
    end("its end after a kill of all", &["kill"]);
    end("its end after a kill of its leader", &["kill", "--leader"]);
    end("its end after its stop signal", &["kill", "--leader", "--signal", "TERM"]);
}

#[test]
fn a_start_that_fails_after_an_end_is_a_failure_like_others() {
    let life = Life::new("", "");
    std::fs::copy(crate::support::tree("trixie-busybox").join("bin/busybox"), life.shared("sleep")).expect("copy");
    life.define(
        "command = [\"/shared/sleep\", \"1000\"]\nrestart = \"on-failure\"\nrestart-delay = \"0s\"\n\
         restart-limit.count = 3",
    );
    life.ok("start");
    std::fs::remove_file(life.shared("sleep")).expect("unlink");
    life.kill("leader");
    life.wait_for("the last trace", || !life.host.path("run/machinist/machines").join(&life.machine).exists());
    let why = "could not be started: cannot execute `boot.command`: execve('/shared/sleep'): No such file or directory";
    let machine = &life.machine;
    let expected = [
        format!("machine '{machine}' was killed by SIGKILL; started again in 0s"),
        format!("machine '{machine}' {why}; started again in 0s"),
        format!("machine '{machine}' {why}"),
        format!("machine '{machine}' failed 3 times within 5min; not started again"),
    ];
    assert_eq!(life.remarks(), expected);
    life.host.assert_nothing_left();
    // The first start is the caller's own business.
    let output = life.run("start");
    assert!(output.status == 1 && output.stderr.contains("cause: cannot execute `boot.command`\n"), "{output:?}");
    life.host.assert_nothing_left();
}

const COMMAND: &str = "command = [\"/bin/sh\", \"/shared/script\"]\n";

#[test]
fn a_machine_that_is_terminated_through_the_daemon_is_not_started_again() {
    let life = Life::new("", SLEEP);
    let dropin = life.host.path("etc/machinist/machines").join(format!("{}.toml.d/00-test.toml", life.machine));
    std::fs::remove_file(dropin).expect("unlink");
    life.define_with("register = \"yes\"\n", &format!("restart = \"always\"\nrestart-delay = \"0s\"\n{COMMAND}"));
    let mut bus = Bus::start(&life.host);
    let over = |boots| {
        life.wait_for("its end", || !life.host.path("run/machinist/machines").join(&life.machine).exists());
        assert_eq!(life.lines("boots"), boots);
    };
    life.ok("start");
    life.wait_for("its boot", || life.lines("boots") == 1);
    bus.ok("TerminateMachine", &["s", &life.machine]);
    over(1);
    life.ok("start");
    life.wait_for("its boot", || life.lines("boots") == 2);
    // What `machinectl kill` does.
    bus.ok("KillMachine", &["ssi", &life.machine, "all", "9"]);
    over(2);
    life.ok("start");
    life.wait_for("its boot", || life.lines("boots") == 3);
    // What `machinectl poweroff` does.
    let poweroff = (nix::libc::SIGRTMIN() + 4).to_string();
    bus.ok("KillMachine", &["ssi", &life.machine, "leader", &poweroff]);
    over(3);
    bus.stop_daemon();
}

#[test]
fn the_daemon_starts_a_machine_again_whose_supervisor_was_killed() {
    let life = Life::new("", SLEEP);
    let limited =
        "restart = \"on-failure\"\nrestart-delay = \"10ms\"\nrestart-limit = { count = 2, within = \"1h\" }\n";
    life.define(&format!("{limited}{COMMAND}"));
    let other = Life::new("restart = \"no\"", SLEEP);
    let mut bus = Bus::start(&life.host);
    // On the same host, where nobody is to start it again.
    let file = other.host.path("etc/machinist/machines").join(format!("{}.toml", other.machine));
    let text = std::fs::read_to_string(&file).expect("read");
    let no = life.host.define("no", &text);
    life.host.ok(&["start", &no]);
    life.ok("start");
    life.wait_for("the boot", || life.lines("boots") == 1 && other.lines("boots") == 1);

    let supervisor = life.host.status(&no, "supervisor").parse().expect("a number");
    kill(Pid::from_raw(supervisor), Signal::SIGKILL).expect("kill");
    let (first, ids) = (life.status("supervisor"), life.status("ids"));
    life.kill("supervisor");
    life.wait_for("another supervisor", || life.lines("boots") == 2 && life.state() == "running");
    assert_ne!(life.status("supervisor"), first);
    assert_eq!(life.status("ids"), ids);
    let log = bus.log();
    let said = format!("The supervisor of machine {} was killed; starting the machine again in 10ms.", life.machine);
    assert!(log.contains(&said), "{log}");
    assert!(!log.contains(&no), "{log}");
    assert_eq!(other.lines("boots"), 1, "its definition says no");
    life.host.ok(&["reap", &no]);

    life.kill("supervisor");
    let limit = format!("machine '{}' failed 2 times within 1h; not started again.", life.machine);
    life.wait_for("the limit", || bus.log().contains(&limit));
    assert_eq!((life.lines("boots"), life.is_gone()), (2, true));
    life.ok("reap");

    // A stop is an end, and what has happened before is over.
    life.ok("start");
    life.wait_for("the boot", || life.lines("boots") == 3);
    life.ok("stop");
    bus.stop_daemon();
    life.host.assert_nothing_left();
}
