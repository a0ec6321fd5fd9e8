//! [`Layout`]: every place and name that the host sees because of a machine.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Layer, MachineName, Upper};

/// Whose machines a layout is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// The host's.
    System,
    /// One user's.
    User,
}

/// The directories of one user (XDG Base Directory Specification).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserDirs {
    /// `$XDG_CONFIG_HOME`.
    pub config: PathBuf,
    /// `$XDG_STATE_HOME`.
    pub state: PathBuf,
    /// `$XDG_RUNTIME_DIR`.
    pub run: PathBuf,
}

impl UserDirs {
    /// From the values of an environment; `None` without a directory for what runs.
    ///
    /// Values that are not absolute are ignored, as the specification has it.
    pub fn of_environment(value: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let absolute = |key: &str| value(key).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = |key: &str, usual: &str| absolute(key).or_else(|| Some(absolute("HOME")?.join(usual)));
        Some(Self {
            config: home("XDG_CONFIG_HOME", ".config")?,
            state: home("XDG_STATE_HOME", ".local/state")?,
            run: absolute("XDG_RUNTIME_DIR")?,
        })
    }
}

/// Where everything lives on the host; every path is below one root so that tests run beside each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
    scope: Scope,
    config: Vec<PathBuf>,
    autostart: PathBuf,
    autostart_until_reboot: PathBuf,
    images: PathBuf,
    state: PathBuf,
    run: PathBuf,
    /// What systemd's tools and we share.
    systemd: PathBuf,
    bus: PathBuf,
}

impl Layout {
    /// The system's layout below `root`, which is `/` but for tests.
    pub fn system(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        Self {
            scope: Scope::System,
            config: ["etc/machinist", "run/machinist/config", "usr/lib/machinist"].map(|p| root.join(p)).into(),
            autostart: root.join("etc/machinist/autostart"),
            autostart_until_reboot: root.join("run/machinist/config/autostart"),
            images: root.join("var/lib/machines"),
            state: root.join("var/lib/machinist"),
            run: root.join("run/machinist"),
            systemd: root.join("run/systemd"),
            bus: root.join("run/dbus/system_bus_socket"),
            root,
        }
    }

    /// One user's layout.
    pub fn user(dirs: &UserDirs) -> Self {
        let config = dirs.config.join("machinist");
        Self {
            root: "/".into(),
            scope: Scope::User,
            autostart: config.join("autostart"),
            autostart_until_reboot: dirs.run.join("machinist/config/autostart"),
            config: vec![config, dirs.run.join("machinist/config"), "/usr/lib/machinist".into()],
            images: dirs.state.join("machines"),
            state: dirs.state.join("machinist"),
            run: dirs.run.join("machinist"),
            systemd: dirs.run.join("systemd"),
            bus: dirs.run.join("bus"),
        }
    }

    /// Whose machines it is for.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// Whether it is the whole host's own, and not one user's or below a root of its own.
    pub fn is_host(&self) -> bool {
        self.scope == Scope::System && self.root == Path::new("/")
    }

    /// Directories that hold `machines/` and `profiles/`, strongest first.
    pub fn config_dirs(&self) -> &[PathBuf] {
        &self.config
    }

    /// The strongest directory of definitions: that of the administrator or user.
    pub fn definition_dir(&self) -> PathBuf {
        self.definition_dirs().next().unwrap_or_default()
    }

    /// Directories of definitions, strongest first.
    pub fn definition_dirs(&self) -> impl Iterator<Item = PathBuf> {
        self.config.iter().map(|dir| dir.join("machines"))
    }

    /// Links named by machines that start with a host that has no systemd: kept, or until the host ends.
    pub fn autostart(&self, until_reboot: bool) -> &Path {
        if until_reboot { &self.autostart_until_reboot } else { &self.autostart }
    }

    /// The image store, shared with systemd's tools.
    pub fn images(&self) -> &Path {
        &self.images
    }

    /// Parent of every machine's run directory.
    pub fn run_root(&self) -> &Path {
        &self.run
    }

    /// State, lock and socket of a running machine.
    pub fn run_dir(&self, name: &MachineName) -> PathBuf {
        self.run_root().join("machines").join(name.as_str())
    }

    /// Uppers, id range and console log, kept from run to run.
    pub fn state_dir(&self, name: &MachineName) -> PathBuf {
        self.state.join(name.as_str())
    }

    /// Lock files of id ranges, at the place and in the manner of systemd-nspawn.
    pub fn uid_locks(&self) -> PathBuf {
        self.systemd.join("nspawn-uid")
    }

    /// State files of all machines, ours and others', at the place and in the format of systemd-machined.
    pub fn machine_states(&self) -> PathBuf {
        self.systemd.join("machines")
    }

    /// Where administrators put settings of systemd-nspawn.
    pub fn nspawn_settings(&self) -> [PathBuf; 2] {
        [self.root.join("etc/systemd/nspawn"), self.systemd.join("nspawn")]
    }

    /// Lock files of images, at the place and with the names of systemd's tools.
    pub fn image_locks(&self) -> PathBuf {
        self.systemd.join("nspawn/locks")
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

    /// Socket of the bus, unless the environment names another.
    pub fn bus(&self) -> &Path {
        &self.bus
    }

    /// Where the journal of systemd takes entries.
    pub fn journal_socket(&self) -> PathBuf {
        self.root.join("run/systemd/journal/socket")
    }

    /// Varlink sockets of the daemon, where clients of systemd-machined look for them.
    pub fn machine_sockets(&self) -> PathBuf {
        self.systemd.join("machine")
    }

    /// Varlink sockets of all services that know users, which `nss-systemd(8)` asks.
    pub fn user_sockets(&self) -> PathBuf {
        self.root.join("run/systemd/userdb")
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
        assert_eq!(Layout::system("/").cgroup_name(&name), "machinist-web");
        assert_ne!(Layout::system("/a").cgroup_name(&name), Layout::system("/b").cgroup_name(&name));
    }

    #[test]
    fn a_users_layout_is_below_the_users_directories() {
        let environment = |key: &str| match key {
            "HOME" => Some("/home/eva".into()),
            "XDG_RUNTIME_DIR" => Some("/run/user/1000".into()),
            "XDG_STATE_HOME" => Some("not/absolute".into()),
            _ => None,
        };
        let layout = Layout::user(&UserDirs::of_environment(environment).expect("complete"));
        let name = MachineName::parse("web").expect("valid");
        assert_eq!(layout.config_dirs()[0], Path::new("/home/eva/.config/machinist"));
        assert_eq!(layout.images(), Path::new("/home/eva/.local/state/machines"));
        assert_eq!(layout.state_dir(&name), Path::new("/home/eva/.local/state/machinist/web"));
        assert_eq!(layout.run_dir(&name), Path::new("/run/user/1000/machinist/machines/web"));
        assert_eq!(layout.bus(), Path::new("/run/user/1000/bus"));
        assert!(!layout.is_host() && Layout::system("/").is_host() && !Layout::system("/x").is_host());
        assert_eq!(UserDirs::of_environment(|key| (key == "HOME").then(|| "/home/eva".into())), None);
    }
}
