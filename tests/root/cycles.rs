//! Many lives of one machine: nothing of the host, and nothing in the supervisor, grows with them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::{Host, finish, tree, wait_for};

/// A busybox tree whose init does all it does at the end but for its two seconds of waiting.
fn quick_tree(host: &Host) -> PathBuf {
    let root = host.path("quick");
    let copied = Command::new("cp").arg("-a").arg(tree("trixie-busybox")).arg(&root).status();
    assert!(copied.expect("run cp").success());
    // What `shutdown` runs: by then the init has decided, and the kernel ends it as it would have asked itself.
    // Each by exec: a shell that outlives `reboot -f` for a moment would still say poweroff.
    let stop = "#!/bin/sh\nif [ -e /run/again ]; then exec reboot -f; fi\nexec poweroff -f\n";
    std::fs::write(root.join("etc/rc.stop"), stop).expect("write");
    // The last thing it does to come up.
    std::fs::write(root.join("etc/rc.start"), "#!/bin/sh\n: >/run/up\n").expect("write");
    root
}

fn overlay(lower: &Path) -> String {
    format!("[root]\noverlay = {{ lower = [\"{}\"], upper = \"ephemeral\" }}\n", lower.display())
}

/// Every file of the test's host but those of the tree.
fn files(host: &Host) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut dirs = vec![host.root().to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("read a directory").flatten() {
            if entry.path() == host.path("quick") {
                continue;
            }
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                dirs.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}

/// Starts and stops a machine `times` times; fails if anything is left, or more than the first life left.
fn cycles(host: &Host, machine: &str, times: usize) {
    let mut first = None;
    for life in 0..times {
        host.ok(&["start", machine]);
        let stopped = host.run(&["--quiet", "stop", machine]);
        assert_eq!((stopped.status, stopped.stderr.as_str()), (0, ""), "life {life}");
        host.assert_nothing_left();
        let now = files(host);
        assert_eq!(first.get_or_insert_with(|| now.clone()), &now, "life {life}");
    }
}

#[test]
fn a_hundred_lives_of_busybox_leave_nothing() {
    let host = Host::new();
    let machine = host.define("many", &overlay(&quick_tree(&host)));
    cycles(&host, &machine, 100);
}

#[test]
fn ten_lives_of_systemd_leave_nothing() {
    let host = Host::new();
    let machine = host.define("ten", &overlay(&tree("trixie-systemd")));
    cycles(&host, &machine, 10);
}

/// What a supervisor holds: its descriptors by what they are, its children, and its own memory in KiB.
#[derive(Debug)]
struct Holds {
    descriptors: Vec<String>,
    children: String,
    memory: u64,
}

impl Holds {
    fn of(supervisor: &str) -> Self {
        let process = Path::new("/proc").join(supervisor);
        let mut descriptors: Vec<String> = std::fs::read_dir(process.join("fd"))
            .expect("read the descriptors")
            .flatten()
            .filter_map(|fd| std::fs::read_link(fd.path()).ok())
            // Numbers of sockets and devices differ.
            .map(|to| to.to_string_lossy().chars().filter(|c| !c.is_ascii_digit()).collect())
            .collect();
        descriptors.sort();
        let children = std::fs::read_to_string(process.join("task").join(supervisor).join("children"));
        let status = std::fs::read_to_string(process.join("status")).expect("read the status");
        let memory = status.lines().find_map(|l| l.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB"));
        Self {
            descriptors,
            children: children.expect("read the children").trim().to_owned(),
            memory: memory.and_then(|m| m.trim().parse().ok()).expect("RssAnon"),
        }
    }
}

#[test]
fn a_hundred_reboots_cost_the_supervisor_nothing() {
    let host = Host::new();
    let machine = host.define("again", &overlay(&quick_tree(&host)));
    host.ok(&["start", &machine]);
    let supervisor = host.status(&machine, "supervisor");
    let ids = host.status(&machine, "ids");
    let mut early = None;
    for reboot in 0..100 {
        wait_for("the machine to be up", Duration::from_secs(60), || {
            host.run(&["exec", &machine, "/bin/sh", "-c", "[ -e /run/up ] && : >/run/again"]).status == 0
        });
        host.ok(&["reboot", &machine]);
        let leader = host.status(&machine, "leader");
        assert_eq!(host.status(&machine, "supervisor"), supervisor, "reboot {reboot}");
        let now = Holds::of(&supervisor);
        assert_eq!(now.children, leader, "reboot {reboot}: its leader is its only child");
        // The first few settle its heap.
        if reboot < 5 {
            early = Some(now);
            continue;
        }
        let before = early.as_ref().expect("an earlier look");
        // The connection of the last reboot is closed after its answer.
        let same = || Holds::of(&supervisor).descriptors == before.descriptors;
        wait_for(&format!("{:?}", before.descriptors), Duration::from_secs(5), same);
        assert!(now.memory <= before.memory + 256, "reboot {reboot}: {} KiB, first {} KiB", now.memory, before.memory);
    }
    assert_eq!(host.status(&machine, "ids"), ids);
    host.ok(&["stop", &machine]);
    host.assert_nothing_left();
}

#[test]
fn a_background_supervisor_keeps_nothing_of_its_caller() {
    let host = Host::new();
    let machine = host.define("apart", &overlay(&quick_tree(&host)));
    let lock = host.path("callers-lock");
    let script = "exec 9>\"$0\"; flock 9; exec \"$@\"";
    let mut start = Command::new("sh");
    start.args(["-c", script]).arg(&lock).arg(env!("CARGO_BIN_EXE_machinist")).arg("--root").arg(host.root());
    let output = finish(start.args(["start", &machine]));
    assert_eq!(output.status, 0, "{output:?}");
    let descriptors = Holds::of(&host.status(&machine, "supervisor")).descriptors;
    assert!(!descriptors.iter().any(|d| d.contains("callers-lock")), "{descriptors:?}");
    let free = Command::new("flock").arg("--nonblock").arg(&lock).arg("true").status();
    assert!(free.expect("run flock").success());
    host.ok(&["stop", &machine]);
    host.assert_nothing_left();
}
