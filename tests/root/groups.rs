//! Groups that a machine makes below its own, to be in the way of its end.

use crate::support::{Host, wait_for};
use std::time::Duration;

const MACHINE: &str = "[root]\noverlay = { lower = [\"{busybox}\"], upper = \"ephemeral\" }\n\
                       [boot]\ncommand = [\"/bin/sh\", \"-c\", \"trap : USR1; while :; do sleep 1000; done\"]\n";

/// Runs a shell's text in the machine's own group.
fn inside(host: &Host, machine: &str, text: &str) -> String {
    host.ok(&["exec", machine, "/bin/sh", "-c", &format!("cd /sys/fs/cgroup && {text}")])
}

#[test]
fn b06_names_of_groups_are_bytes_and_are_removed_however_long_and_deep() {
    let host = Host::new();
    let machine = host.define("m", MACHINE);
    for round in 0..2 {
        host.ok(&["start", &machine]);
        inside(&host, &machine, "mkdir \"$(printf '\\377')\" && [ \"$(ls -d $(printf '\\377'))\" ]");
        // 25 names of 255 bytes are together longer than any path may be; nor does a shell go deeper than 15 of them.
        let deep = "n=$(printf '%0255d' 0); i=0; while [ $i -lt 15 ] && mkdir $n && cd $n; do i=$((i + 1)); done; \
                    mkdir -p $n/$n/$n/$n/$n/$n/$n/$n/$n/$n && ls -d $n/$n/$n/$n/$n/$n/$n/$n/$n/$n | wc -l";
        assert_eq!(inside(&host, &machine, deep).trim(), "1", "round {round}");
        host.ok(&["stop", "--timeout", "1s", &machine]);
        host.assert_nothing_left();
    }
}

#[test]
fn b06_depth_and_number_of_groups_have_bounds() {
    let host = Host::new();
    let machine = host.define("m", MACHINE);
    host.ok(&["start", &machine]);
    let deep = "i=0; while [ $i -lt 100 ] && mkdir a 2>/dev/null && cd a; do i=$((i + 1)); done; echo $i";
    let deep: u32 = inside(&host, &machine, deep).trim().parse().expect("a number");
    assert!((16..=32).contains(&deep), "{deep}");
    let status = host.status(&machine, "cgroup");
    let bound = std::fs::read_to_string(format!("{status}/cgroup.max.descendants")).expect("the bound");
    assert_eq!(bound, "8192\n");
    host.ok(&["stop", "--timeout", "1s", &machine]);
    host.assert_nothing_left();
}

#[test]
fn b06_a_signal_reaches_processes_in_groups_with_odd_names() {
    let host = Host::new();
    let machine = host.define("m", MACHINE);
    host.ok(&["start", &machine]);
    let hidden = "g=$(printf '\\376'); mkdir $g; (sleep 9999 >/dev/null 2>&1 & echo $! >/run/pid; echo $! >$g/cgroup.procs); cat $g/cgroup.procs";
    assert_ne!(inside(&host, &machine, hidden).trim(), "", "it is not in its group");
    host.ok(&["kill", "--signal", "USR1", &machine]);
    wait_for("the signal", Duration::from_secs(10), || {
        host.run(&["exec", &machine, "/bin/sh", "-c", "! kill -0 $(cat /run/pid)"]).status == 0
    });
    host.ok(&["stop", "--timeout", "1s", &machine]);
    host.assert_nothing_left();
}
