//! Machines that others make and register: systemd-nspawn's, and any process that says it leads one.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::bus::Bus;
use crate::support::{Host, Output, finish, tree, wait_for};

/// A command that sees the run directory of the host in place of this machine's.
fn on_host(host: &Host, script: &str) -> Command {
    // machinectl wants to see a systemd.
    std::fs::create_dir_all(host.path("run/systemd/system")).expect("mkdir");
    let enter = "mount --make-rprivate /; mount --bind \"$0/run\" /run; exec sh -c \"$1\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-ec", enter]).arg(host.root()).arg(script).env("SYSTEMD_COLORS", "0");
    command.stdin(Stdio::null());
    command
}

fn machinectl(host: &Host, arguments: &str) -> Output {
    finish(&mut on_host(host, &format!("machinectl --no-pager --no-legend {arguments}")))
}

/// A container of the host's own systemd-nspawn, ended with the test.
struct Nspawn {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Nspawn {
    fn start(host: &Host, name: &str, options: &str) -> Self {
        let name = host.name(name);
        let root = host.path(&name);
        // It locks a file beside its tree, so the tree is a copy.
        let copied = Command::new("cp").arg("-a").arg(tree("trixie-busybox")).arg(&root).status().expect("run cp");
        assert!(copied.success());
        let log = host.path(&format!("{name}.log"));
        let command = format!("systemd-nspawn --register=yes {options} -b -M {name} -D '{}'", root.display());
        // It insists on a terminal.
        let script = format!("exec script -qfec \"{command}\" '{}'", log.display());
        let child = on_host(host, &script).stdout(Stdio::null()).spawn().expect("run systemd-nspawn");
        Self { child, name, log }
    }

    fn wait_until_listed(&self, host: &Host) {
        let listed = || machinectl(host, "list").stdout.contains(&format!("{} container systemd-nspawn", self.name));
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while !listed() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            assert!(std::time::Instant::now() < deadline, "not listed: {log}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Nspawn {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            // `script` hands the signal on to what it runs.
            let _ = Command::new("kill").arg(self.child.id().to_string()).status();
            let _ = self.child.wait();
        }
    }
}

#[test]
fn containers_of_nspawn_are_registered_shown_and_ended() {
    let host = Host::new();
    let bus = Bus::start(&host);
    // With a unit of its own, which it has not here, and with one that it asks for and does not get here.
    for (name, options) in [("keep", "--keep-unit -U"), ("scope", "")] {
        let mut nspawn = Nspawn::start(&host, name, options);
        nspawn.wait_until_listed(&host);
        let status = machinectl(&host, &format!("status {}", nspawn.name));
        assert!(status.stdout.contains("Service: systemd-nspawn; class container"), "{status:?}");
        let shown = machinectl(&host, &format!("show {} -p Leader --value", nspawn.name));
        let leader = shown.stdout.trim();
        let comm = std::fs::read_to_string(format!("/proc/{leader}/comm")).expect("a leader");
        assert_eq!(comm.trim(), "init");
        let path = bus.ok("GetMachineByPID", &["u", leader]);
        assert!(path.contains(&format!("/{}", nspawn.name.split('-').next().expect("a word"))), "{path}");
        let state = std::fs::read_to_string(host.path("run/systemd/machines").join(&nspawn.name)).expect("state");
        assert!(state.contains("CLASS=container") && state.contains("SERVICE=systemd-nspawn"), "{state}");
        let ended = machinectl(&host, &format!("terminate {}", nspawn.name));
        assert_eq!(ended.status, 0, "{ended:?}");
        nspawn.child.wait().expect("wait for systemd-nspawn");
        wait_for("the machine to go", Duration::from_secs(10), || machinectl(&host, "list").stdout.trim().is_empty());
        assert!(!host.path("run/systemd/machines").join(&nspawn.name).exists());
    }
}

/// A process that is ended with the test.
struct Ended(Child);

impl Ended {
    fn run(program: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        // Nothing of it may hold what the test writes to.
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect(program))
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// PIDs of this machine whose command line is exactly `sleep NUMBER`.
fn sleepers(number: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("list").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if command == format!("sleep\0{number}\0").into_bytes() {
            found.push(pid);
        }
    }
    found
}

#[test]
fn a_signal_for_all_reaches_those_of_the_machine_and_nobody_else() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let number = |index: u32| format!("{}", 1_000_000 + std::process::id() * 10 + index);
    let (inside, below, outside) = (number(1), number(2), number(3));
    // A namespace in the namespace belongs to the machine as well; what shares only the control group does not.
    let nested = format!("unshare --pid --fork --kill-child sh -c 'sleep {below} & wait; exec sleep 600'");
    let script = format!("sleep {inside} & {nested} & wait; exec sleep 600");
    let mut machine = Ended::run("unshare", &["--pid", "--fork", "--kill-child", "sh", "-c", &script]);
    let _other = Ended::run("sleep", &[&outside]);
    let children = format!("/proc/{0}/task/{0}/children", machine.0.id());
    wait_for("the machine", Duration::from_secs(20), || {
        sleepers(&inside).len() == 1 && sleepers(&below).len() == 1 && sleepers(&outside).len() == 1
    });
    let leader = std::fs::read_to_string(children).expect("children").trim().to_owned();
    let name = host.name("all");
    bus.ok("RegisterMachine", &["sayssus", &name, "0", "test", "container", &leader, ""]);
    bus.ok("KillMachine", &["ssi", &name, "all", "15"]);
    wait_for("its processes to end", Duration::from_secs(20), || {
        sleepers(&inside).is_empty() && sleepers(&below).is_empty()
    });
    // The first of a namespace ignores what it does not handle.
    assert!(std::path::Path::new(&format!("/proc/{leader}")).exists());
    assert_eq!(sleepers(&outside).len(), 1);
    bus.ok("TerminateMachine", &["s", &name]);
    machine.0.wait().expect("wait");

    // One that shares namespace and group with others is its leader alone.
    let mut leader = Ended::run("sleep", &[&inside]);
    wait_for("the name to be free", Duration::from_secs(10), || bus.call("GetMachine", &["s", &name]).status != 0);
    bus.ok("RegisterMachine", &["sayssus", &name, "0", "test", "container", &leader.0.id().to_string(), ""]);
    bus.ok("KillMachine", &["ssi", &name, "all", "15"]);
    leader.0.wait().expect("wait");
    assert_eq!(sleepers(&outside).len(), 1);
}
