//! What systemd is told of the order among machines.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use machinist::config;
use machinist::plan::unit;
use machinist::spec::{Bound, Layout, MachineSpec};

/// Runs the generator for a host with these definitions; gives what it wrote, and what it said.
fn generate(definitions: &[(&str, &str)]) -> (BTreeMap<String, String>, String) {
    let root = tempfile::tempdir().expect("temporary directory");
    let machines = root.path().join("etc/machinist/machines");
    fs::create_dir_all(&machines).expect("mkdir");
    for (name, boot) in definitions {
        let text = format!("root.directory = \"/srv/{name}\"\n[boot]\n{boot}\n");
        fs::write(machines.join(format!("{name}.toml")), text).expect("write");
    }
    let out = root.path().join("out");
    fs::create_dir(&out).expect("mkdir");
    let mut command = Command::new(env!("CARGO_BIN_EXE_machinist"));
    command.arg("--root").arg(root.path()).arg("generate").arg(&out).env("NO_COLOR", "1").env_remove("SYSTEMD_SCOPE");
    let output = command.output().expect("run");
    assert!(output.status.success(), "it must not keep a host from booting: {output:?}");
    let mut written = BTreeMap::new();
    collect(&out, &out, &mut written);
    let plain = |text: String| text.replace(&root.path().display().to_string(), "");
    let said = plain(String::from_utf8_lossy(&output.stderr).into_owned());
    (written.into_iter().map(|(file, text)| (file, plain(text))).collect(), said)
}

/// Every file below a directory with its text; of links where they lead.
fn collect(top: &Path, dir: &Path, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).expect("directory").map(|entry| entry.expect("entry").path()) {
        let name = entry.strip_prefix(top).expect("below").display().to_string();
        if let Ok(target) = fs::read_link(&entry) {
            files.insert(name, format!("-> {}", target.display()));
        } else if entry.is_dir() {
            collect(top, &entry, files);
        } else {
            files.insert(name, fs::read_to_string(&entry).expect("text"));
        }
    }
}

fn shown(files: &BTreeMap<String, String>) -> String {
    files.iter().map(|(name, text)| format!("== {name}\n{text}\n")).collect()
}

#[test]
fn the_generator_tells_systemd_what_definitions_say() {
    let (files, said) = generate(&[
        ("alone", ""),
        ("db", "autostart = true\nrestart = \"on-failure\""),
        ("cache", ""),
        ("app", "requires = [\"db\"]\nwants = [\"cache\", \"nobody\"]\nafter = [\"alone\", \"db\", \"nobody\"]"),
        ("web-1", "autostart = true\nrequires = [\"app\"]"),
    ]);
    insta::assert_snapshot!(shown(&files));
    assert_eq!(said, "");
}

#[test]
fn the_units_limit_of_tasks_gives_way_to_the_machines() {
    let layout = Layout::system("/nowhere");
    let mut spec = config::load(&layout, "machines/minimal.toml").unwrap_or_else(|e| panic!("{e}")).spec;
    let drop_in = |spec: &MachineSpec| unit::drop_in(spec, Path::new("/x.toml"), |_| true);
    assert_eq!(drop_in(&spec), None);
    for limit in [Bound::At(20_000), Bound::Infinity] {
        spec.resources.pids_max = Some(limit);
        let text = drop_in(&spec).expect("something to say");
        assert!(text.ends_with(" regenerates it.\n\n[Service]\nTasksMax=infinity\n"), "{text}");
    }
}

#[test]
fn the_example_of_a_chain_is_found_beside_the_file_that_is_named() {
    let plan = |file: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_machinist"));
        let output = command.args(["--root", "/nowhere", "plan", file]).env("NO_COLOR", "1").output().expect("run");
        assert!(output.status.success(), "{output:?}");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (text(output.stdout), text(output.stderr))
    };
    let (planned, warned) = plan("machines/chain/web.toml");
    assert!(planned.contains("requires      app\nwants         cache\n"), "{planned}");
    let place = "machines/chain/web.toml:6";
    assert_eq!(warned, format!("warning: machine 'web' wants 'cache', which is not defined ({place})\n"));
    assert_eq!(plan("machines/chain/db.toml").1, "");
}

#[test]
fn what_is_wrong_is_told_and_started_by_nobody() {
    let (files, said) = generate(&[
        ("a", "autostart = true\nrequires = [\"b\"]"),
        ("b", "after = [\"a\"]"),
        ("lost", "autostart = true\nrequires = [\"nobody\"]"),
        ("broken", "autostart = 1"),
        ("fine", "autostart = true"),
    ]);
    insta::assert_snapshot!(shown(&files) + &said);
}
