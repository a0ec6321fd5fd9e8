//! The daemon is killed and started again while machines run: it finds them all, and only what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;

use crate::stage::{Stage, on_stage};

const MACHINE: &str = "register = \"yes\"\n[root]\noverlay = { lower = [\"{busybox}\"], upper = \"ephemeral\" }\n";

/// What is known of every machine: object, id, leader, unit and time of registration.
fn table(stage: &Stage<'_>) -> BTreeMap<String, String> {
    let manager = ["busctl", "--system", "--json=short", "call", "org.freedesktop.machine1"];
    let words = ["/org/freedesktop/machine1", "org.freedesktop.machine1.Manager", "ListMachines"];
    let output = stage.client("252", &[&manager[..], &words].concat());
    assert_eq!(output.status, 0, "{output:?}");
    let list: serde_json::Value = serde_json::from_str(&output.stdout).expect("JSON");
    let rows = list["data"][0].as_array().expect("rows");
    let names = rows.iter().map(|row| row[0].as_str().expect("a name").to_owned()).filter(|name| name != ".host");
    names
        .map(|name| {
            let properties = ["Id", "Leader", "Unit", "Timestamp", "Service", "Class", "State"];
            let wanted: Vec<String> = properties.iter().map(|property| format!("--property={property}")).collect();
            let mut words = vec!["machinectl", "show"];
            words.extend(wanted.iter().map(String::as_str));
            words.push(&name);
            let output = stage.client("252", &words);
            assert_eq!(output.status, 0, "{output:?}");
            (name, output.stdout)
        })
        .collect()
}

/// Children of the node of all machines, as introspection has them.
fn objects(stage: &Stage<'_>) -> BTreeSet<String> {
    let output = stage.client("252", &["busctl", "--system", "--list", "tree", "org.freedesktop.machine1"]);
    assert_eq!(output.status, 0, "{output:?}");
    let prefix = "/org/freedesktop/machine1/machine/";
    output.stdout.lines().filter_map(|line| line.strip_prefix(prefix)).map(str::to_owned).collect()
}

fn state_files(stage: &Stage<'_>) -> BTreeSet<String> {
    let dir = std::fs::read_dir(stage.path("run/systemd/machines")).expect("state files");
    dir.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_new_daemon_finds_all_machines_that_are_there_and_no_others() {
    const COUNT: usize = 20;
    on_stage(|stage| {
        let define = |number: usize| stage.host.define(&format!("m{number}"), MACHINE);
        let names: Vec<String> = (0..COUNT + 2).map(define).collect();
        let (first, late) = names.split_at(COUNT);
        stage.machinist(&[&["start"], &first.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat());
        let before = table(stage);
        assert_eq!(
            before.keys().collect::<Vec<_>>(),
            first.iter().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
        );
        let leaders: Vec<_> = first.iter().map(|name| stage.status(name, "leader")).collect();
        let files = state_files(stage);
        assert_eq!(files.len(), 2 * COUNT, "a file and the link of a unit for each: {files:?}");

        stage.kill_daemon();
        stage.start_daemon();
        assert_eq!(table(stage), before, "the same machines with the same ids");
        assert_eq!(objects(stage).len(), COUNT + 1, "and the host");
        assert_eq!(state_files(stage), files);
        let now: Vec<_> = first.iter().map(|name| stage.status(name, "leader")).collect();
        assert_eq!(now, leaders, "no machine noticed anything");

        // While nobody looks, two machines end, one of them with its supervisor, and two begin.
        stage.kill_daemon();
        stage.machinist(&["stop", &first[0]]);
        let supervisor = stage.status(&first[1], "supervisor").expect("it runs").parse().expect("a number");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(supervisor), nix::sys::signal::Signal::SIGKILL)
            .expect("kill");
        let leader = leaders[1].clone().expect("it ran");
        stage.host.wait_for("the end of its machine", || std::fs::metadata(format!("/proc/{leader}")).is_err());
        let output = stage.machinist_output(&["start", &late[0]]);
        assert_eq!(output.status, 1, "`register = \"yes\"` needs a daemon: {output:?}");
        let auto = "register = \"yes\"\n";
        for name in late {
            let file = stage.path("etc/machinist/machines").join(format!("{name}.toml"));
            let text = std::fs::read_to_string(&file).expect("read").replace(auto, "register = \"auto\"\n");
            std::fs::write(&file, text).expect("write");
            stage.machinist(&["start", name]);
        }
        stage.start_daemon();
        let after = table(stage);
        let expected: BTreeSet<&String> = first[2..].iter().chain(late).collect();
        assert_eq!(after.keys().collect::<BTreeSet<_>>(), expected);
        for name in &first[2..] {
            assert_eq!(after[name], before[name], "{name}");
        }
        for name in late {
            let leader = stage.status(name, "leader").expect("it runs");
            let shown = &after[name];
            assert!(shown.contains(&format!("Leader={leader}\n")) && shown.contains("Service=machinist\n"), "{shown}");
            assert!(shown.contains(&format!("Unit=machinist@{name}.service\n")), "{shown}");
            assert!(!shown.contains("Id=00000000") && shown.contains("Id="), "{shown}");
        }
        assert_eq!(objects(stage).len(), COUNT + 1);
        assert_eq!(state_files(stage).len(), 2 * COUNT);

        // What was found is watched, and ends like any other.
        let output = stage.client("252", &["machinectl", "terminate", &late[0]]);
        assert_eq!(output.status, 0, "{output:?}");
        stage.host.wait_for("its end", || !table(stage).contains_key(&late[0]));
        stage.machinist(&["reap", &first[1]]);
        for name in first[2..].iter().chain(&late[1..]) {
            stage.machinist(&["kill", name]);
        }
        stage.host.wait_for("the end of all", || table(stage).is_empty());
        assert_eq!(state_files(stage), BTreeSet::new(), "nothing stays");
        stage.host.wait_for("their supervisors", || stage.machinist(&["--quiet", "list", "--names"]).is_empty());
        assert_eq!(std::fs::metadata(format!("/proc/{}", stage.daemon())).expect("it lives").uid(), 0);
    });
}
