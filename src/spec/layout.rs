//! [`Layout`]: every place and name that the host sees because of a machine.

use std::path::{Path, PathBuf};

use super::{Layer, MachineName, Upper};

/// Where everything lives on the host; every path is below one root so that tests run beside each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout below `root`; `/` is the system's.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Directories that hold `machines/` and `profiles/`, strongest first.
    pub fn config_dirs(&self) -> [PathBuf; 3] {
        ["/etc/machinist", "/run/machinist/config", "/usr/lib/machinist"].map(|p| self.at(p))
    }

    /// Links named by machines that start with a host that has no systemd: kept, or until the host ends.
    pub fn autostart(&self, until_reboot: bool) -> PathBuf {
        self.at(if until_reboot { "/run/machinist/config/autostart" } else { "/etc/machinist/autostart" })
    }

    /// The image store, shared with systemd's tools.
    pub fn images(&self) -> PathBuf {
        self.at("/var/lib/machines")
    }

    /// Parent of every machine's run directory.
    pub fn run_root(&self) -> PathBuf {
        self.at("/run/machinist")
    }

    /// State, lock and socket of a running machine.
    pub fn run_dir(&self, name: &MachineName) -> PathBuf {
        self.run_root().join("machines").join(name.as_str())
    }

    /// Uppers, id range and console log, kept from run to run.
    pub fn state_dir(&self, name: &MachineName) -> PathBuf {
        self.at("/var/lib/machinist").join(name.as_str())
    }

    /// Lock files of id ranges, at the place and in the manner of systemd-nspawn.
    pub fn uid_locks(&self) -> PathBuf {
        self.at("/run/systemd/nspawn-uid")
    }

    /// State files of all machines, ours and others', at the place and in the format of systemd-machined.
    pub fn machine_states(&self) -> PathBuf {
        self.at("/run/systemd/machines")
    }

    /// Where administrators put settings of systemd-nspawn.
    pub fn nspawn_settings(&self) -> [PathBuf; 2] {
        ["/etc/systemd/nspawn", "/run/systemd/nspawn"].map(|p| self.at(p))
    }

    /// Lock files of images, at the place and with the names of systemd's tools.
    pub fn image_locks(&self) -> PathBuf {
        self.at("/run/systemd/nspawn/locks")
    }

    /// The lock of the directory or file that `device` and `inode` identify, wherever names of it are.
    pub fn inode_lock(&self, device: u64, inode: u64) -> PathBuf {
        self.image_locks().join(format!("inode-{device}:{inode}"))
    }

    /// The lock of a block device.
    pub fn device_lock(&self, major: u32, minor: u32) -> PathBuf {
        self.image_locks().join(format!("block-{major}:{minor}"))
    }

    /// The lock of the name of an image that is being made.
    pub fn image_name_lock(&self, name: &str) -> PathBuf {
        self.image_locks().join(format!("name-{name}"))
    }

    /// The lock of whatever is at `path`, beside it, so that hosts that share its file system see it, too; none for
    /// the root.
    pub fn lock_beside(path: &Path) -> Option<PathBuf> {
        let mut name = std::ffi::OsString::from(".#");
        name.push(path.file_name()?);
        name.push(".lck");
        Some(path.with_file_name(name))
    }

    /// Socket of the system bus, unless the environment names another.
    pub fn system_bus(&self) -> PathBuf {
        self.at("/run/dbus/system_bus_socket")
    }

    /// Where the journal of systemd takes entries.
    pub fn journal_socket(&self) -> PathBuf {
        self.at("/run/systemd/journal/socket")
    }

    /// Varlink sockets of the daemon, where clients of systemd-machined look for them.
    pub fn machine_sockets(&self) -> PathBuf {
        self.at("/run/systemd/machine")
    }

    /// Varlink sockets of all services that know users, which `nss-systemd(8)` asks.
    pub fn user_sockets(&self) -> PathBuf {
        self.at("/run/systemd/userdb")
    }

    /// Turns a layer into the directory it stands for.
    pub fn layer(&self, layer: &Layer) -> PathBuf {
        match layer {
            Layer::Image(name) => self.images().join(name.as_str()),
            Layer::Path(path) => path.clone(),
        }
    }

    /// The directory that holds `upper` and `work`, or `None` for one in memory.
    pub fn upper(&self, name: &MachineName, upper: &Upper, which: &str) -> Option<PathBuf> {
        match upper {
            Upper::Persistent => Some(self.state_dir(name).join(which)),
            Upper::Ephemeral => None,
            Upper::Path(path) => Some(path.clone()),
        }
    }

    /// Name of the control group of a machine, below its parent.
    ///
    /// Layouts with another root have names of their own: control groups are the one thing that a root cannot
    /// hold, and a start removes what it finds under its name.
    pub fn cgroup_name(&self, name: &MachineName) -> String {
        if self.root == Path::new("/") {
            return format!("machinist-{name}");
        }
        // FNV-1a: short, and the same in every build.
        let hash = self.root.as_os_str().as_encoded_bytes().iter();
        let hash = hash.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
        format!("machinist-{name}-{hash:08x}")
    }

    /// The root itself.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_groups_of_different_roots_do_not_meet() {
        let name = MachineName::parse("web").expect("valid");
        assert_eq!(Layout::new("/").cgroup_name(&name), "machinist-web");
        assert_ne!(Layout::new("/a").cgroup_name(&name), Layout::new("/b").cgroup_name(&name));
    }
}
