//! Runs a script on a virtual machine and compares what it claims with what it must.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

/// systemd as PID 1, with systemd-machined, a bus and polkit.
pub(crate) const SYSTEMD: &str = "trixie-systemd-host";
/// sysvinit as PID 1, with a bus.
pub(crate) const SYSVINIT: &str = "trixie-sysvinit-host";

/// Seconds for a host, with its reboots: several times what it takes when nothing else runs. Less than nextest allows.
const LIMIT: u32 = 840;

/// A host that is about to be booted.
pub(crate) struct Vm {
    host: &'static str,
    files: Vec<(PathBuf, &'static str)>,
    limit: u32,
}

impl Vm {
    /// A host with the program that was built beside this test and what else an installation takes, and with what the
    /// scripts share.
    pub(crate) fn new(host: &'static str) -> Self {
        let vm = Self { host, files: Vec::new(), limit: LIMIT };
        vm.file(env!("CARGO_BIN_EXE_machinist"), "/usr/src/machinist/target/release/machinist")
            .file("packaging", "/usr/src/machinist/packaging")
            .file("units", "/usr/src/machinist/units")
            .file("tests/vm/scripts/claims", "/usr/lib/vm-tests/claims")
    }

    /// A host with Debian packages of the program in `/usr/src/packages`, and with what the scripts share.
    pub(crate) fn with_packages(host: &'static str) -> Self {
        let vm = Self { host, files: Vec::new(), limit: LIMIT };
        vm.file(packages(), "/usr/src/packages").file("tests/vm/scripts/claims", "/usr/lib/vm-tests/claims")
    }

    /// Puts a file or directory, of the source or anywhere, at a path of the host.
    fn file(mut self, from: impl AsRef<Path>, to: &'static str) -> Self {
        self.files.push((source(from), to));
        self
    }

    /// Boots the host, runs a script of `tests/vm/scripts` there, and fails the test unless it succeeds and makes
    /// exactly these claims in this order.
    pub(crate) fn claims(self, script: &str, expected: &[&str]) {
        let mut command = Command::new(source("tests/vm/run"));
        command.arg("--limit").arg(self.limit.to_string());
        for (from, to) in &self.files {
            command.arg("--file").arg(format!("{}:{to}", from.display()));
        }
        command.arg(self.host).arg(source("tests/vm/scripts").join(script));
        let output = command.output().expect("run tests/vm/run");
        let said = String::from_utf8_lossy(&output.stdout);
        let all = format!("{said}{}", String::from_utf8_lossy(&output.stderr));
        let claims: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("ok ")).collect();
        assert_eq!(claims, expected, "what '{script}' claims on {}:\n{all}", self.host);
        assert_eq!(output.status.code(), Some(0), "how '{script}' ended on {}:\n{all}", self.host);
    }
}

fn source(path: impl AsRef<Path>) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Directory of the Debian packages of what is in the source now and of the program beside this test. They are built by
/// the first test that asks, and are there for the next.
fn packages() -> PathBuf {
    let inputs = ["packaging", "units", "machines", "README.md", env!("CARGO_BIN_EXE_machinist")];
    let entries = inputs.iter().flat_map(|input| walkdir::WalkDir::new(source(input)));
    let changed =
        entries.map(|entry| entry.expect("readable").metadata().expect("metadata").modified().expect("a time"));
    let age = changed.max().expect("files").duration_since(UNIX_EPOCH).expect("after 1970").as_nanos();
    let beside = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let dir = beside.join(format!("packages-{age}"));
    if !dir.is_dir() {
        for old in fs::read_dir(beside).expect("readable").map(|entry| entry.expect("entry").path()) {
            if old != dir && old.file_name().is_some_and(|name| name.to_string_lossy().starts_with("packages-")) {
                fs::remove_dir_all(&old).expect("remove packages of an older program");
            }
        }
        let new = tempfile::tempdir_in(beside).expect("temporary directory");
        let mut command = Command::new(source("packaging/deb/build"));
        command.args(["--program", env!("CARGO_BIN_EXE_machinist"), "--output"]).arg(new.path());
        // Unpacking is what takes time in a virtual machine.
        let output = command.env("DPKG_DEB_COMPRESSOR_TYPE", "none").output().expect("run packaging/deb/build");
        assert!(output.status.success(), "{output:?}");
        // Another test may have been quicker.
        let moved = fs::rename(new.path(), &dir);
        assert!(moved.is_ok() || dir.is_dir(), "{moved:?}");
    }
    dir
}
