//! A host of its own for each test: directories below a temporary root, and a check that nothing stays behind.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where `tests/trees/build` keeps the trees.
pub(crate) fn tree(name: &str) -> PathBuf {
    let base = std::env::var_os("MACHINIST_TREES").unwrap_or_else(|| "/var/tmp/machinist-trees".into());
    let path = Path::new(&base).join(name);
    assert!(path.is_dir(), "the tree '{}' is missing; `tests/run` builds it", path.display());
    path
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// What could leak on the host.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(crate) struct Traces {
    pub(crate) mounts: BTreeSet<String>,
    pub(crate) links: BTreeSet<String>,
    pub(crate) cgroups: BTreeSet<PathBuf>,
    pub(crate) run: BTreeSet<PathBuf>,
}

/// The directories of one test, and the machines it made there.
pub(crate) struct Host {
    dir: tempfile::TempDir,
    prefix: String,
    before: Traces,
}

impl Host {
    /// A host with no machines; fails without root.
    pub(crate) fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root");
        let dir =
            tempfile::Builder::new().prefix("machinist-test-").tempdir_in("/var/tmp").expect("temporary directory");
        // Machine names are unique on the real host, whose control groups all tests share.
        let id = dir.path().file_name().expect("a name").to_string_lossy().replace("machinist-test-", "");
        let prefix = format!("t{}", id.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), ""));
        let mut host = Self {
            dir,
            prefix,
            before: Traces {
                mounts: BTreeSet::new(),
                links: BTreeSet::new(),
                cgroups: BTreeSet::new(),
                run: BTreeSet::new(),
            },
        };
        host.before = host.traces();
        host
    }

    /// The root that stands for `/` of this host.
    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    /// A path below it, for files of the test.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The unique name of the machine that the test calls `name`.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Writes a definition and gives the machine's name. `{busybox}`, `{root}` and `{TREE}` stand for paths.
    pub(crate) fn define(&self, name: &str, toml: &str) -> String {
        let machine = self.name(name);
        let mut text = toml.replace("{root}", &self.root().display().to_string());
        for known in TREES {
            let key = format!("{{{known}}}");
            if text.contains(&key) {
                text = text.replace(&key, &tree(known).display().to_string());
            }
        }
        if text.contains("{busybox}") {
            text = text.replace("{busybox}", &tree("trixie-busybox").display().to_string());
        }
        let path = self.root().join("etc/machinist/machines").join(format!("{machine}.toml"));
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
        if !text.contains("register = ") {
            // Below its root there is no bus, which every start would say. A drop-in, so that lines keep their numbers.
            let dropins = path.with_extension("toml.d");
            std::fs::create_dir_all(&dropins).expect("mkdir");
            std::fs::write(dropins.join("00-test.toml"), "register = \"no\"\n").expect("write the drop-in");
        }
        std::fs::write(&path, text).expect("write the definition");
        machine
    }

    /// `machinist` for this host, ready for more arguments.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_machinist"));
        command.arg("--root").arg(self.root()).env_remove("NOTIFY_SOCKET").env("NO_COLOR", "1");
        command
    }

    /// Runs `machinist` to its end with nothing on standard input.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        finish(self.command().args(args).stdin(Stdio::null()))
    }

    /// Runs `machinist` and fails the test if it fails; gives its standard output.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status, 0, "machinist {args:?}: {output:?}");
        output.stdout
    }

    /// Runs a shell command in a machine and fails the test if it fails; gives its standard output.
    pub(crate) fn sh(&self, machine: &str, script: &str) -> String {
        self.ok(&["exec", machine, "/bin/sh", "-c", script])
    }

    /// One field of `status --json`, as text.
    pub(crate) fn status(&self, machine: &str, field: &str) -> String {
        let text = self.ok(&["status", "--json", machine]);
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        match &value[field] {
            serde_json::Value::String(s) => s.clone(),
            other => other.to_string(),
        }
    }

    /// Waits until `done` is true; fails the test when it takes too long.
    pub(crate) fn wait_for(&self, what: &str, done: impl FnMut() -> bool) {
        wait_for(what, Duration::from_secs(60), done);
    }

    fn traces(&self) -> Traces {
        let lines = |path: &str| -> BTreeSet<String> {
            std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
        };
        // Mount ids differ between looks only if something was mounted.
        let mounts = lines("/proc/self/mountinfo");
        let links = std::fs::read_dir("/sys/class/net")
            .expect("links")
            .filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()))
            .collect();
        let mut cgroups = BTreeSet::new();
        for base in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
            walk(Path::new(base), 3, &mut |path| {
                if path.file_name().is_some_and(|n| n.to_string_lossy().contains(&self.prefix)) {
                    cgroups.insert(path.to_owned());
                }
            });
        }
        let mut run = BTreeSet::new();
        for base in ["run/machinist/machines", "run/systemd/nspawn-uid", "run/systemd/nspawn/locks"] {
            walk(&self.root().join(base), 3, &mut |path| {
                run.insert(path.to_owned());
            });
        }
        Traces { mounts, links, cgroups, run }
    }

    /// Fails the test if anything of its machines is left on the host, outside of `/var/lib`.
    pub(crate) fn assert_nothing_left(&self) {
        let after = self.traces();
        // Other tests mount nothing either: every mount of a machine is in its own namespace.
        assert_eq!(after.mounts, self.before.mounts, "mounts");
        assert_eq!(after.links, self.before.links, "links");
        assert_eq!(after.cgroups, BTreeSet::new(), "control groups");
        assert_eq!(after.run, BTreeSet::new(), "run files and locks");
    }
}

/// Names of the trees that definitions may use.
const TREES: [&str; 10] = [
    "bookworm-systemd",
    "trixie-systemd",
    "trixie-sysvinit",
    "trixie-openrc-init",
    "trixie-openrc",
    "trixie-runit",
    "trixie-busybox",
    "trixie-dinit",
    "trixie-finit",
    "trixie-s6",
];

impl Drop for Host {
    fn drop(&mut self) {
        // Whatever the test left running is ended, so that a failure costs nobody else anything.
        let machines = std::fs::read_dir(self.root().join("run/machinist/machines")).into_iter().flatten();
        for machine in machines.filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned())) {
            self.run(&["kill", &machine]);
            let deadline = Instant::now() + Duration::from_secs(10);
            let left = self.root().join("run/machinist/machines").join(&machine);
            while self.run(&["reap", &machine]).status != 0 && left.exists() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

/// Runs a command to its end.
pub(crate) fn finish(command: &mut Command) -> Output {
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().expect("run machinist");
    Output {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Waits until `done` is true; fails the test after `limit`.
pub(crate) fn wait_for(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < deadline, "waited {limit:?} for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn walk(dir: &Path, depth: usize, see: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        see(&entry.path());
        if depth > 0 && entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(&entry.path(), depth - 1, see);
        }
    }
}
