//! Processes of ours that are killed: at every step of the handshake, and while a machine runs.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Host, Output, finish, wait_for};

const MACHINE: &str = "[root]\noverlay = { lower = [\"{busybox}\"], upper = \"ephemeral\" }\n";

/// Starts a machine of which one process dies at `step`.
fn start_dying_at(host: &Host, machine: &str, step: &str) -> Output {
    let begun = Instant::now();
    let output =
        finish(host.command().args(["start", machine]).env("MACHINIST_TEST_DIE_AT", step).stdin(Stdio::null()));
    assert!(begun.elapsed() < Duration::from_secs(60), "{step} took {:?}", begun.elapsed());
    output
}

/// Control groups of the test's machines, wherever they are mounted.
fn groups(machine: &str) -> Vec<PathBuf> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .iter()
        .flat_map(|base| std::fs::read_dir(base).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().contains(machine)))
        .collect()
}

/// Fails unless the kernel says soon that no process is left in the machine's payload.
fn assert_no_process(machine: &str) {
    for group in groups(machine) {
        let events = group.join("payload/cgroup.events");
        wait_for("the machine's processes to be gone", Duration::from_secs(30), || {
            std::fs::read_to_string(&events).map_or(true, |text| text.contains("populated 0"))
        });
    }
}

/// Kills at `step`; then `reap`, or the next start, leaves nothing.
fn dies(step: &str, who: &str) {
    let host = Host::new();
    let machine = host.define("dies", MACHINE);
    let supervisor = step.starts_with("supervisor:");
    for reap in [true, false] {
        let output = start_dying_at(&host, &machine, step);
        assert_eq!(output.status, 1, "{output:?}");
        if !supervisor {
            // Whoever lives cleans up: nobody has to reap.
            host.assert_nothing_left();
        }
        assert!(output.stderr.contains(who), "the error names who died: {output:?}");
        assert_no_process(&machine);
        if reap {
            host.ok(&["reap", &machine]);
            host.assert_nothing_left();
        }
    }
    host.ok(&["start", &machine]);
    assert_eq!(host.sh(&machine, "echo alive"), "alive\n");
    host.ok(&["stop", &machine]);
    host.assert_nothing_left();
}

macro_rules! dies {
    ($($name:ident: $step:literal, $who:literal;)*) => {
        $(
            #[test]
            fn $name() {
                dies($step, $who);
            }
        )*

        #[test]
        fn every_step_of_the_handshake_has_a_test() {
            assert_eq!(machinist::supervisor::handshake::STEPS, [$($step),*]);
        }
    };
}

dies! {
    supervisor_before_the_children: "supervisor:prepared", "supervisor";
    outer_at_its_start: "outer:started", "outer child";
    outer_with_an_inner: "outer:cloned", "outer child";
    outer_with_maps: "outer:mapped", "outer child";
    outer_with_a_root: "outer:root", "outer child";
    outer_with_mounts: "outer:mounts", "outer child";
    outer_in_the_root: "outer:entered", "outer child";
    inner_at_its_start: "inner:started", "inner child";
    inner_with_file_systems: "inner:api", "inner child";
    supervisor_with_a_leader: "supervisor:ready", "supervisor";
    inner_in_the_root: "inner:entered", "inner child";
    inner_told_to_go: "inner:go", "inner child";
    inner_before_exec: "inner:limited", "inner child";
    supervisor_after_exec: "supervisor:running", "supervisor";
}

#[test]
fn a_command_whose_inner_child_dies_has_not_been_started() {
    let host = Host::new();
    let machine = host.define("cmd", &format!("{MACHINE}[boot]\ncommand = [\"/bin/true\"]\n"));
    // The last step is the stub's own, which executes nothing.
    for step in ["inner:started", "inner:entered", "inner:go"] {
        let output = start_dying_at(&host, &machine, step);
        assert!(output.stderr.contains("inner child"), "{step}: {output:?}");
        host.assert_nothing_left();
    }
    assert_eq!(host.run(&["run", &machine]).status, 0);
    host.assert_nothing_left();
}

fn signal(pid: &str, signal: Signal) {
    kill(Pid::from_raw(pid.parse().expect("a number")), signal).expect("kill");
}

#[test]
fn a_machine_dies_with_its_supervisor() {
    let host = Host::new();
    let machine = host.define("killed", MACHINE);
    for reap in [true, false] {
        host.ok(&["start", &machine]);
        host.sh(&machine, "setsid sleep 1000 >/dev/null 2>&1 </dev/null &");
        signal(&host.status(&machine, "supervisor"), Signal::SIGKILL);
        assert_no_process(&machine);
        let status = host.run(&["exec", &machine, "/bin/true"]);
        assert!(status.stderr.contains("is not running"), "{status:?}");
        if reap {
            host.ok(&["reap", &machine]);
            host.assert_nothing_left();
        }
    }
    host.ok(&["start", &machine]);
    host.ok(&["stop", &machine]);
    host.assert_nothing_left();
}

#[test]
fn the_group_of_a_killed_machine_under_another_parent_is_found() {
    let host = Host::new();
    let machine = host.define("else", &format!("{MACHINE}[cgroup]\nparent = \"/{}\"\n", host.name("slice")));
    for step in ["supervisor:prepared", "supervisor:running"] {
        let output = start_dying_at(&host, &machine, step);
        assert!(output.stderr.contains("supervisor"), "{output:?}");
        assert_eq!(groups(&host.name("slice")).len(), 1, "{step}");
        host.ok(&["reap", &machine]);
        for slice in groups(&host.name("slice")) {
            // Only an empty group can be removed.
            std::fs::remove_dir(&slice).unwrap_or_else(|e| panic!("{step}: {}: {e}", slice.display()));
        }
        host.assert_nothing_left();
    }
}

/// A foreground supervisor whose machine is up.
fn foreground(host: &Host, machine: &str) -> Child {
    let mut run = host.command();
    run.args(["run", machine]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = run.spawn().expect("run machinist");
    wait_for("the login prompt", Duration::from_secs(60), || host.run(&["logs", machine]).stdout.contains("login:"));
    child
}

#[test]
fn sigterm_stops_a_machine_in_the_foreground_in_order() {
    let host = Host::new();
    let machine = host.define("term", MACHINE);
    let child = foreground(&host, &machine);
    signal(&child.id().to_string(), Signal::SIGTERM);
    let output = child.wait_with_output().expect("wait");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("busybox: shutting down"), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    host.assert_nothing_left();
}

#[test]
fn a_second_sigterm_kills_a_machine_that_does_not_stop() {
    let host = Host::new();
    let machine = host.define("twice", MACHINE);
    let child = foreground(&host, &machine);
    // Its shutdown never ends.
    host.sh(&machine, "printf '#!/bin/sh\\necho stuck; exec sleep 1000\\n' >/etc/rc.stop");
    let pid = child.id().to_string();
    signal(&pid, Signal::SIGTERM);
    wait_for("the shutdown to be stuck", Duration::from_secs(60), || {
        host.run(&["logs", &machine]).stdout.contains("stuck")
    });
    signal(&pid, Signal::SIGTERM);
    let output = child.wait_with_output().expect("wait");
    assert_eq!(output.status.code(), Some(137), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("was killed"), "{output:?}");
    host.assert_nothing_left();
}

#[test]
fn a_machine_that_does_not_stop_is_killed_in_time_and_that_is_said() {
    let host = Host::new();
    let machine = host.define("slow", &MACHINE.replace("[root]", "[boot]\nstop-timeout = \"1s\"\n[root]"));
    host.ok(&["start", &machine]);
    for verb in ["reboot", "stop"] {
        host.sh(&machine, "printf '#!/bin/sh\\nexec sleep 1000\\n' >/etc/rc.stop");
        let leader = host.status(&machine, "leader");
        let output = host.run(&[verb, &machine]);
        assert_eq!(output.status, 0, "{output:?}");
        assert!(output.stderr.contains("did not stop in time and was killed"), "{verb}: {output:?}");
        if verb == "reboot" {
            assert_ne!(host.status(&machine, "leader"), leader);
        }
    }
    host.assert_nothing_left();
}
