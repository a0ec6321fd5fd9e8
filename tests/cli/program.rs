//! The program as a user without any rights meets it: help, output and exit statuses.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use insta::{Settings, assert_snapshot};
use serde_json::Value;

use crate::config::files;

/// `nobody`, who owns nothing anywhere.
const NOBODY: u32 = 65534;

pub(crate) struct Output {
    status: i32,
    stdout: String,
    stderr: String,
}

/// A directory that every user can read, with the program and the examples in it: the project itself may be
/// below a directory that is closed to others.
pub(crate) struct Visit {
    dir: tempfile::TempDir,
}

impl Visit {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let open = |path: &Path, mode| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(path, mode).expect("chmod");
        };
        open(dir.path(), 0o755);
        let program = dir.path().join("machinist");
        std::fs::copy(env!("CARGO_BIN_EXE_machinist"), &program).expect("copy the program");
        open(&program, 0o755);
        for sub in ["machines", "machines/profiles", "invalid"] {
            std::fs::create_dir(dir.path().join(sub)).expect("mkdir");
            open(&dir.path().join(sub), 0o755);
        }
        for (from, to) in
            [("machines", "machines"), ("machines/profiles", "machines/profiles"), ("tests/data/invalid", "invalid")]
        {
            for file in files(from) {
                let copy = dir.path().join(to).join(file.file_name().expect("a name"));
                std::fs::copy(&file, &copy).expect("copy");
                open(&copy, 0o644);
            }
        }
        Self { dir }
    }

    /// Runs the program there as `nobody` if the tests run as root, else as whoever runs them.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        let mut command = if nix::unistd::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            let id = NOBODY.to_string();
            command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--no-new-privs", "--bounding-set=-all"]);
            command.arg("./machinist");
            command
        } else {
            Command::new(self.dir.path().join("machinist"))
        };
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env_remove("NOTIFY_SOCKET").env_remove("MACHINIST_ROOT").env("NO_COLOR", "1").env("COLUMNS", "100");
        let output = command.output().expect("run the program");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        Output { status: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Runs it, and fails the test if it fails or says anything on standard error.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!((output.status, output.stderr.as_str()), (0, ""), "machinist {args:?}");
        output.stdout
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).expect("JSON")
    }
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

/// The verbs that the help lists.
pub(crate) fn verbs(help: &str) -> Vec<String> {
    let list = help.split("Commands:\n").nth(1).expect("verbs").split("\n\n").next().expect("a list");
    let verbs: Vec<String> = list.lines().filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect();
    assert!(verbs.len() >= 18, "{verbs:?}");
    verbs
}

#[test]
fn help_is_what_is_recorded() {
    let visit = Visit::new();
    let main = visit.ok(&["--help"]);
    let mut all = main.clone();
    for verb in verbs(&main) {
        all.push_str(&format!("\n==== {verb}\n"));
        all.push_str(&visit.ok(&[&verb, "--help"]));
    }
    let mut settings = Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| assert_snapshot!("help", all));
}

#[test]
fn everybody_can_check_show_and_plan() {
    let visit = Visit::new();
    for file in files("machines") {
        let file = file.to_str().expect("text");
        assert!(visit.ok(&["check", file]).starts_with("ok "), "{file}");
        assert!(visit.ok(&["show", file]).contains("[root]"), "{file}");
        let plan = visit.run(&["plan", file]);
        if file.ends_with("everything.toml") && plan.status != 0 {
            // Its limits are more than many hosts can keep.
            assert!(plan.stderr.starts_with("error: `resources."), "{}", plan.stderr);
            continue;
        }
        assert_eq!(plan.status, 0, "{}", plan.stderr);
        assert!(plan.stdout.contains("not root on the host"), "{}", plan.stdout);
    }
    assert_eq!(visit.ok(&["schema"]), std::fs::read_to_string("tests/data/machine.schema.json").expect("recorded"));
}

#[test]
fn json_has_the_keys_that_scripts_use() {
    let visit = Visit::new();
    let plan = visit.json(&["plan", "--json", "machines/debian.toml"]);
    let expected = [
        "cgroup",
        "console",
        "exec",
        "filter",
        "ids",
        "mounts",
        "name",
        "namespaces",
        "notes",
        "order",
        "overlay-method",
        "ownership",
        "privileges",
        "register",
        "root",
        "seccomp",
        "tmpfs-method",
    ];
    assert_eq!(keys(&plan), expected);
    assert_eq!(plan["name"], "debian");
    assert_eq!(keys(&plan["filter"]), ["added", "allowed", "closed", "denied", "following", "refused"]);
    let exec = [
        "directory",
        "environment",
        "hostname",
        "late-environment",
        "machine-id",
        "payload",
        "ready",
        "restart",
        "stdio",
        "stop-timeout",
        "stub",
        "user",
    ];
    assert_eq!(keys(&plan["exec"]), exec);
    let show = visit.json(&["show", "--json", "machines/minimal.toml"]);
    assert_eq!(show["root"]["directory"], "/var/lib/machines/minimal");
    let root = visit.dir.path().to_str().expect("text").to_owned();
    assert_eq!(visit.json(&["--root", &root, "list", "--json"]), Value::Array(Vec::new()));
}

#[test]
fn bad_usage_is_2() {
    let visit = Visit::new();
    let wrong: [&[&str]; 7] = [
        &[],
        &["fly"],
        &["run"],
        &["run", "--console", "loud", "web"],
        &["kill", "--signal", "SIGNONE", "web"],
        &["stop", "--timeout", "soon", "web"],
        &["exec", "web"],
    ];
    for args in wrong {
        let output = visit.run(args);
        assert_eq!((output.status, output.stdout.as_str()), (2, ""), "machinist {args:?}: {}", output.stderr);
        assert!(output.stderr.contains("Usage:") || output.stderr.starts_with("error: "), "{}", output.stderr);
    }
}

#[test]
fn bad_configuration_is_78() {
    let visit = Visit::new();
    for verb in ["check", "show", "plan", "run", "start"] {
        for file in ["invalid/unknown-keys.toml", "invalid/syntax.toml", "missing.toml"] {
            let output = visit.run(&[verb, file]);
            assert_eq!(output.status, 78, "{verb} {file}: {}", output.stderr);
            assert!(output.stderr.starts_with("error: "), "{}", output.stderr);
        }
    }
}

#[test]
fn starting_without_root_is_77_and_leaves_nothing() {
    let visit = Visit::new();
    let root = visit.dir.path().join("host");
    std::fs::create_dir(&root).expect("mkdir");
    let root_flag = root.to_str().expect("text");
    for verb in ["run", "start"] {
        let output = visit.run(&["--root", root_flag, verb, "machines/try.toml"]);
        assert_eq!((output.status, output.stdout.as_str()), (77, ""), "{}", output.stderr);
        assert_eq!(output.stderr, "error: cannot start machine 'try'\n  cause: only root may start machines\n");
    }
    let left: Vec<PathBuf> = std::fs::read_dir(&root).expect("readable").map(|e| e.expect("entry").path()).collect();
    assert_eq!(left, Vec::<PathBuf>::new());
}

#[test]
fn settings_are_read_before_anybody_is_asked_who_they_are() {
    let visit = Visit::new();
    let root = visit.dir.path().to_str().expect("text").to_owned();
    let set = |setting: &str| visit.run(&["--root", &root, "set", "web", setting]);
    let wrong = set("pids-max=none");
    let text = "error: `resources.pids-max`: 'none' is no number of tasks, as in 512 or \"infinity\"\n";
    assert_eq!(wrong.status, 2, "{}", wrong.stderr);
    assert!(wrong.stderr.starts_with(text), "{}", wrong.stderr);
    let right = set("pids-max=512");
    assert_eq!(right.status, 77);
    assert_eq!(right.stderr, "error: only root may change what machines are limited by\n");
}

#[test]
fn everybody_may_look_at_images_and_only_root_changes_them() {
    let visit = Visit::new();
    let root = visit.dir.path().to_str().expect("text").to_owned();
    let store = visit.dir.path().join("var/lib/machines");
    for (name, mode) in [("web", 0o755), ("closed", 0o700)] {
        std::fs::create_dir_all(store.join(name)).expect("mkdir");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(store.join(name), mode).expect("chmod");
    }
    std::fs::write(store.join("disk.raw"), "").expect("write");
    let list = visit.json(&["--root", &root, "image", "list", "--json"]);
    let names: Vec<_> = list.as_array().expect("a list").iter().map(|image| image["name"].clone()).collect();
    assert_eq!(names, ["closed", "disk", "web"]);
    let expected = [
        "created-usec",
        "limit",
        "limit-exclusive",
        "modified-usec",
        "name",
        "path",
        "read-only",
        "type",
        "usage",
        "usage-exclusive",
    ];
    assert_eq!(keys(&list[0]), expected);
    let status = visit.json(&["--root", &root, "image", "status", "--json", "closed", "web"]);
    assert_eq!((&status[0]["name"], &status[1]["path"]), (&list[0]["name"], &list[2]["path"]));
    assert_eq!(keys(&visit.json(&["--root", &root, "image", "status", "--json"])), ["limit", "path", "usage"]);
    let shown = visit.ok(&["--root", &root, "show-image", "disk", "web", "-p", "Name,Type"]);
    assert_eq!(shown, "Name=disk\nType=raw\n\nName=web\nType=directory\n");

    for (status, args) in [
        (77, &["clone", "web", "www"][..]),
        (77, &["image", "rename", "web", "www"]),
        (77, &["remove", "web"]),
        (77, &["read-only", "web"]),
        (77, &["image", "read-only", "disk", "no"]),
        (1, &["remove", ".host"]),
        (1, &["image", "status", "none"]),
        (2, &["clone", "web", "../www"]),
        (2, &["image", "read-only", "web", "perhaps"]),
        (2, &["set-limit", "web", "much"]),
        (1, &["set-limit", "web", "1G"]),
    ] {
        let output = visit.run(&[&["--root", &root], args].concat());
        assert_eq!((output.status, output.stdout.as_str()), (status, ""), "{args:?}: {}", output.stderr);
        assert!(output.stderr.starts_with("error: "), "{args:?}: {}", output.stderr);
    }
    let mut left: Vec<_> =
        std::fs::read_dir(&store).expect("readable").map(|e| e.expect("entry").file_name()).collect();
    left.sort();
    assert_eq!(left, ["closed", "disk.raw", "web"]);
}

#[test]
fn output_that_nobody_reads_is_no_crash() {
    let visit = Visit::new();
    let mut child = Command::new(visit.dir.path().join("machinist"))
        .args(["plan", "machines/debian.toml"])
        .current_dir(visit.dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run the program");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("end");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"), "{output:?}");
}
