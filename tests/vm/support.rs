//! Runs a script on a virtual machine and compares what it claims with what it must.

use std::path::{Path, PathBuf};
use std::process::Command;

/// systemd as PID 1, with systemd-machined, a bus and polkit.
pub(crate) const SYSTEMD: &str = "trixie-systemd-host";
/// sysvinit as PID 1, with a bus.
pub(crate) const SYSVINIT: &str = "trixie-sysvinit-host";

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
        let vm = Self { host, files: Vec::new(), limit: 420 };
        vm.file(env!("CARGO_BIN_EXE_machinist"), "/usr/src/machinist/target/release/machinist")
            .file("packaging", "/usr/src/machinist/packaging")
            .file("units", "/usr/src/machinist/units")
            .file("tests/vm/scripts/claims", "/usr/lib/vm-tests/claims")
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
