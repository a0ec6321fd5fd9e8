//! A tree of a few files, for tests that spoil it: static busybox under the names that scripts use.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::support::{Host, Output, finish, tree};

const APPLETS: [&str; 29] = [
    "sh", "mkfifo", "dd", "stat", "mv", "chown", "chmod", "ls", "cat", "echo", "sleep", "mount", "umount", "true",
    "id", "ps", "kill", "grep", "touch", "mkdir", "ln", "rm", "stty", "readlink", "head", "timeout", "od", "pwd",
    "tty",
];

/// A root tree below a test's own directory.
pub(crate) struct SmallTree(PathBuf);

impl SmallTree {
    /// Makes one that boots.
    pub(crate) fn new(host: &Host, name: &str) -> Self {
        let root = host.path(name);
        for dir in ["bin", "sbin", "etc", "proc", "sys", "dev", "run", "tmp", "root", "usr/lib"] {
            std::fs::create_dir_all(root.join(dir)).expect("mkdir");
        }
        // A copy: machines that run on it directly may write to it.
        std::fs::copy(tree("trixie-busybox").join("bin/busybox"), root.join("bin/busybox")).expect("copy busybox");
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).expect("symlink");
        }
        symlink("../bin/busybox", root.join("sbin/init")).expect("symlink");
        let small = Self(root);
        small.write("etc/os-release", "ID=small\n");
        small.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n");
        small.write("etc/group", "root:x:0:\nuser:x:1000:\n");
        small
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("write");
    }

    /// Writes an executable script.
    pub(crate) fn script(&self, name: &str, text: &str) {
        self.write(name, &format!("#!/bin/sh\n{text}\n"));
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    }

    pub(crate) fn remove(&self, name: &str) {
        let path = self.path(name);
        let is_dir = path.symlink_metadata().expect("something to remove").is_dir();
        if is_dir { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.expect("remove");
    }

    /// Puts a symlink in the place of whatever is there.
    pub(crate) fn link(&self, name: &str, to: impl AsRef<Path>) {
        if self.path(name).symlink_metadata().is_ok() {
            self.remove(name);
        }
        symlink(to, self.path(name)).expect("symlink");
    }
}

/// Runs `machinist` in a mount namespace of its own, after the shell commands `setup` there.
pub(crate) fn run_after(host: &Host, setup: &str, args: &[&str]) -> Output {
    let machinist = host.command();
    let mut command = std::process::Command::new("unshare");
    command.args(["-m", "sh", "-c", &format!("{setup}\nexec \"$@\""), "sh"]).arg(machinist.get_program());
    command.args(machinist.get_args()).args(args).stdin(std::process::Stdio::null());
    for (key, value) in machinist.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    finish(&mut command)
}

/// A place of the host that nobody may touch.
pub(crate) struct Canary(PathBuf);

impl Canary {
    pub(crate) fn new(host: &Host, name: &str) -> Self {
        let path = host.path(name);
        std::fs::create_dir(&path).expect("mkdir");
        std::fs::write(path.join("file"), "the host's\n").expect("write");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Fails the test if anything was made, changed or removed there.
    pub(crate) fn assert_untouched(&self) {
        let names: Vec<_> =
            std::fs::read_dir(&self.0).expect("the canary").map(|e| e.expect("an entry").file_name()).collect();
        assert_eq!(names, ["file"], "in {}", self.0.display());
        assert_eq!(std::fs::read_to_string(self.0.join("file")).expect("read"), "the host's\n");
        use std::os::unix::fs::MetadataExt;
        for path in [self.0.clone(), self.0.join("file")] {
            let stat = path.symlink_metadata().expect("stat");
            assert_eq!((stat.uid(), stat.gid()), (0, 0), "owner of {}", path.display());
        }
    }
}
