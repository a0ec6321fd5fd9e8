//! A supervisor as the main process of a service: what it tells its service manager, and how it is stopped.

use std::os::unix::net::UnixDatagram;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Host, wait_for};

/// A machine whose command does not care for SIGTERM.
const STUBBORN: &str = "[root]\noverlay = { lower = [\"{busybox}\"], upper = \"ephemeral\" }\n[boot]\n\
                        command = [\"/bin/sh\", \"-c\", \"trap : TERM; : >/run/up; while :; do sleep 1; done\"]\n";

/// A service manager of one service.
struct Manager {
    socket: UnixDatagram,
    service: Child,
}

impl Manager {
    /// Runs the machine with these variables beside `NOTIFY_SOCKET`.
    fn run(host: &Host, machine: &str, environment: &[(&str, &str)]) -> Self {
        let path = host.path("notify");
        let socket = UnixDatagram::bind(&path).expect("bind");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("set the timeout");
        let mut command = host.command();
        command.env("NOTIFY_SOCKET", &path).envs(environment.iter().copied()).args(["--quiet", "run", machine]);
        let service = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("run machinist");
        Self { socket, service }
    }

    /// Everything that comes within this time.
    fn hear(&self, time: Duration) -> Vec<String> {
        let end = Instant::now() + time;
        let mut messages = Vec::new();
        while Instant::now() < end {
            messages.extend(self.next());
        }
        messages
    }

    fn next(&self) -> Option<String> {
        let mut buffer = [0; 4096];
        let len = self.socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..len]).into_owned())
    }

    /// Waits for a message with this line; gives it, and all that came before it.
    fn until(&self, line: &str) -> (String, Vec<String>) {
        let end = Instant::now() + Duration::from_secs(30);
        let mut before = Vec::new();
        while Instant::now() < end {
            match self.next() {
                Some(message) if message.lines().any(|l| l == line) => return (message, before),
                other => before.extend(other),
            }
        }
        panic!("no '{line}' in {before:?}");
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.service.id().cast_signed()), signal).expect("kill");
    }

    fn has_ended(&mut self) -> bool {
        self.service.try_wait().expect("wait").is_some()
    }

    fn end(&mut self) -> Option<i32> {
        wait_for("the supervisor to end", Duration::from_secs(30), || self.has_ended());
        self.service.wait().expect("wait").code()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.service.kill();
        let _ = self.service.wait();
    }
}

/// The machine's command has begun.
fn is_up(host: &Host, machine: &str) -> bool {
    host.run(&["exec", machine, "test", "-e", "/run/up"]).status == 0
}

#[test]
fn a_service_manager_is_told_of_every_boot_and_of_the_end_alone() {
    let host = Host::new();
    let machine = host.define("told", &STUBBORN.replace("trap : TERM; ", "trap 'exit 7' TERM; "));
    let mut manager = Manager::run(&host, &machine, &[("WATCHDOG_USEC", "200000")]);
    let (ready, _) = manager.until("READY=1");
    let leader = host.status(&machine, "leader");
    assert_eq!(ready, format!("READY=1\nSTATUS=Machine running.\nX_NSPAWN_LEADER_PID={leader}"));
    let beats = manager.hear(Duration::from_secs(2)).iter().filter(|m| *m == "WATCHDOG=1").count();
    assert!((5..=25).contains(&beats), "{beats} signs of life in two seconds, one each tenth of a second is due");
    wait_for("the command", Duration::from_secs(20), || is_up(&host, &machine));
    host.ok(&["reboot", &machine]);
    let (ready, before) = manager.until("READY=1");
    assert!(before.iter().all(|m| !m.contains("STOPPING=1")), "a reboot is no end: {before:?}");
    let second = host.status(&machine, "leader");
    assert_ne!(leader, second);
    assert!(ready.ends_with(&format!("X_NSPAWN_LEADER_PID={second}")), "{ready}");
    wait_for("the command", Duration::from_secs(20), || is_up(&host, &machine));
    manager.signal(Signal::SIGTERM);
    let (stopping, _) = manager.until("STOPPING=1");
    let extended = stopping.lines().find_map(|l| l.strip_prefix("EXTEND_TIMEOUT_USEC=")).expect("more time");
    assert!(extended.parse::<u64>().expect("a number") > 90_000_000, "its stop may take 90 s: {stopping}");
    assert_eq!(manager.end(), Some(7));
    host.assert_nothing_left();
}

#[test]
fn a_service_manager_hears_of_readiness_when_it_is_there_and_of_every_restart() {
    let host = Host::new();
    let boot = "[boot]\nready = { exec = [\"test\", \"-e\", \"/run/ok\"] }\nrestart = \"on-failure\"\nrestart-delay = \"0s\"\n";
    let machine = host.define("checked", &STUBBORN.replace("[boot]\n", boot));
    let mut manager = Manager::run(&host, &machine, &[]);
    let waits = "STATUS=Machine starting, waits for `test -e /run/ok` to succeed";
    let (_, before) = manager.until(&format!("{waits}; last: status 1."));
    assert_eq!(before, [format!("{waits}.")]);
    host.sh(&machine, ": >/run/ok");
    let (_, before) = manager.until("READY=1");
    assert_eq!(before, Vec::<String>::new());
    let leader = host.status(&machine, "leader").parse().expect("a number");
    kill(Pid::from_raw(leader), Signal::SIGKILL).expect("kill");
    let again = format!("STATUS=machine '{machine}' was killed by SIGKILL; started again in 0s");
    let (_, before) = manager.until(&again);
    assert_eq!(before, Vec::<String>::new());
    // The file has gone with the boot before.
    let (_, before) = manager.until(&format!("{waits}; last: status 1."));
    assert_eq!(before, [format!("{waits}.")], "neither an end nor readiness");
    host.sh(&machine, ": >/run/ok");
    manager.until("READY=1");
    wait_for("the command", Duration::from_secs(20), || is_up(&host, &machine));
    manager.signal(Signal::SIGTERM);
    manager.until("STOPPING=1");
    manager.signal(Signal::SIGTERM);
    assert_eq!(manager.end(), Some(137));
    host.assert_nothing_left();
}

#[test]
fn a_watchdog_of_another_process_is_not_answered() {
    let host = Host::new();
    let machine = host.define("not", STUBBORN);
    let other = std::process::id().to_string();
    let mut manager = Manager::run(&host, &machine, &[("WATCHDOG_USEC", "200000"), ("WATCHDOG_PID", &other)]);
    manager.until("READY=1");
    assert_eq!(manager.hear(Duration::from_secs(1)), Vec::<String>::new());
    manager.signal(Signal::SIGTERM);
    manager.until("STOPPING=1");
    manager.signal(Signal::SIGTERM);
    assert_eq!(manager.end(), Some(137));
    host.assert_nothing_left();
}

#[test]
fn a_second_request_kills_but_not_one_of_a_scope() {
    let host = Host::new();
    let machine = host.define("two", STUBBORN);
    let mut manager = Manager::run(&host, &machine, &[]);
    manager.until("READY=1");
    wait_for("the command", Duration::from_secs(20), || is_up(&host, &machine));
    // What systemd sends to every process of a scope that is to stop.
    let stop = Signal::SIGURG;
    assert_eq!(machinist::bus::systemd1::STOP_SIGNAL, stop as i32);
    manager.signal(stop);
    manager.until("STOPPING=1");
    manager.signal(stop);
    assert!(manager.hear(Duration::from_secs(2)).is_empty());
    assert!(!manager.has_ended(), "it has been asked twice in a way that is no haste");
    manager.signal(Signal::SIGTERM);
    assert_eq!(manager.end(), Some(137));
    host.assert_nothing_left();
}

#[test]
fn a_signal_during_a_reboot_makes_it_a_poweroff_and_the_next_one_kills() {
    let host = Host::new();
    let machine = host.define("again", STUBBORN);
    let mut manager = Manager::run(&host, &machine, &[]);
    manager.until("READY=1");
    wait_for("the command", Duration::from_secs(20), || is_up(&host, &machine));
    let mut reboot = host.command();
    let reboot = reboot.args(["--quiet", "reboot", &machine]).stdin(Stdio::null()).stderr(Stdio::null());
    let mut reboot = reboot.spawn().expect("run machinist");
    manager.until("STATUS=Machine rebooting.");
    manager.signal(Signal::SIGTERM);
    manager.until("STOPPING=1");
    assert!(!manager.has_ended(), "its init goes on");
    manager.signal(Signal::SIGTERM);
    assert_eq!(manager.end(), Some(137));
    assert_eq!(reboot.wait().expect("wait").code(), Some(1), "there was none");
    host.assert_nothing_left();
}

#[test]
fn a_payloads_status_is_passed_on_and_means_nothing_to_its_unit() {
    let host = Host::new();
    let unit = include_str!("../../units/machinist@.service");
    assert!(!unit.contains("ExitStatus="), "nothing restarts the unit by a status: {unit}");
    for (end, told) in [("exit 133", 133), ("exit 132", 132)] {
        let command = format!("[boot]\ncommand = [\"/bin/sh\", \"-c\", \"{end}\"]\n");
        let machine = host.define("end", &format!("{}{command}", STUBBORN.split("[boot]").next().expect("a root")));
        assert_eq!(host.run(&["run", &machine]).status, told, "{end}");
    }
    host.assert_nothing_left();
}
