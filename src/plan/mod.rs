//! Decides everything about a machine before anything is done. Pure: no I/O, no clock, no environment.
//!
//! [`build`] turns a [`MachineSpec`] and the [`HostFacts`] into a [`Plan`], which is data: `machinist plan`
//! prints it without root, tests compare it, and the supervisor's children carry it out word for word.
//! Ids in a plan are the machine's own; the code that carries it out adds the shift of the range that was picked.

mod cgroup;
pub mod dependencies;
pub mod limits;
pub mod mounts;
mod namespaces;
pub mod privileges;
mod root;
pub mod seccomp;
pub mod unit;

pub use cgroup::{CgroupPlan, UnitPlan, group_below_own};
pub use namespaces::{IdPlan, Namespace, Namespaces};
pub use root::{OverlayMethod, OverlayPlan, RootPlan, TmpfsMethod, TreePlan, UpperPlan};

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::host::HostFacts;
use crate::spec::{
    Clock, Console, DEFAULT_PATH, InitKind, Layout, MachineId, MachineName, MachineSpec, NetworkMode, Order, Ownership,
    Payload, Ready, Register, RestartPolicy, RootSource, Scope, Unmet, UserMode,
};
use limits::Limit;
use mounts::MountOp;
use seccomp::SyscallPolicy;

/// Everything that will be done for a machine, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Plan {
    /// The machine.
    pub name: MachineName,
    /// Whether it is entered into the host's table of machines.
    pub register: Register,
    /// Which namespaces it gets; that of mounts is always new.
    pub namespaces: Namespaces,
    /// Which host ids it gets.
    pub ids: IdPlan,
    /// How files come to belong to them.
    pub ownership: Ownership,
    /// Where the root tree comes from.
    pub root: RootPlan,
    /// What is mounted below it, in order.
    pub mounts: Vec<MountOp>,
    /// How overlays get their layers.
    pub overlay_method: OverlayMethod,
    /// How file systems in memory come to belong to the machine's ids.
    pub tmpfs_method: TmpfsMethod,
    /// Capabilities and what else limits the payload.
    pub privileges: privileges::Privileges,
    /// Changes to the default system call filter.
    pub seccomp: SyscallPolicy,
    /// Its control group.
    pub cgroup: CgroupPlan,
    /// What limits the payload's control group.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<Limit>,
    /// The kept console.
    pub console: Console,
    /// What runs as PID 1.
    pub exec: Exec,
    /// Which other machines it is started after.
    pub order: Order,
    /// What the host cannot do or the user should know, one sentence each.
    pub notes: Vec<String>,
}

/// What runs as PID 1, and what is passed to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Exec {
    /// The program.
    pub payload: Payload,
    /// It runs as PID 2, below a small init of ours that reaps.
    pub stub: bool,
    /// Who it runs as.
    pub user: ExecUser,
    /// Where it begins, as a path in the machine.
    pub directory: String,
    /// What its standard streams are.
    pub stdio: Stdio,
    /// Its environment.
    pub environment: Vec<(String, String)>,
    /// Variables of which only the rule is known before it starts.
    pub late_environment: Vec<(String, LateValue)>,
    /// Host name of the machine.
    pub hostname: String,
    /// The id passed to the guest; a random one if unset.
    pub machine_id: Option<MachineId>,
    /// When the machine counts as ready.
    pub ready: Ready,
    /// What becomes of it when it has ended by itself.
    pub restart: RestartPolicy,
    /// Seconds an orderly stop may take; no limit if unset.
    pub stop_timeout: Option<u64>,
}

/// The user of a payload, by the machine's own ids; with the rights of the plan only until it executes if not root.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ExecUser {
    /// User.
    pub uid: u32,
    /// First group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
}

/// The standard streams of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stdio {
    /// The machine's console.
    Console,
    /// The supervisor's own streams, as they are.
    Inherit,
}

/// The value of a variable that depends on what is found or drawn at start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LateValue {
    /// The machine's id as a UUID.
    MachineId,
    /// The type of the caller's terminal if that becomes the console, else this.
    Terminal(String),
    /// This, in the place of the variable's other value, if the init found in the tree is of this kind.
    ForInit(InitKind, String),
}

/// Why no plan can be made for this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlanError {
    /// cgroup2 is mounted nowhere.
    NoCgroup2,
    /// The kernel is older than the calls we stand on.
    OldKernel((u32, u32)),
    /// Two uppers of one machine are the same directory.
    UpperTwice(PathBuf),
    /// An upper directory is one of its own lower layers, or lies in one of them, or holds one.
    UpperInLower {
        /// The directory for writes.
        upper: PathBuf,
        /// The layer.
        lower: PathBuf,
    },
    /// The host cannot enforce these limits; never empty.
    Limits(Vec<Unmet>),
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCgroup2 => f.write_str("cgroup2 is not mounted on this host"),
            Self::OldKernel((a, b)) => write!(f, "the kernel is {a}.{b}, and machines need Linux 5.19 or later"),
            Self::Limits(unmet) => f.write_str(&unmet.iter().map(Unmet::to_string).collect::<Vec<_>>().join("; ")),
            Self::UpperTwice(path) => write!(f, "two overlays write to the same directory '{}'", path.display()),
            Self::UpperInLower { upper, lower } if upper == lower => {
                write!(f, "the directory '{}' is both a layer and the place for writes", upper.display())
            }
            Self::UpperInLower { upper, lower } => {
                write!(
                    f,
                    "the place for writes '{}' and the layer '{}' lie one in the other",
                    upper.display(),
                    lower.display()
                )
            }
        }
    }
}

impl std::error::Error for PlanError {}

impl PlanError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoCgroup2 => {
                Some("mount it: `mount -t cgroup2 cgroup2 /sys/fs/cgroup`; beside version 1, on a directory of its own")
            }
            Self::UpperInLower { .. } => Some("give `upper` a directory of its own outside of every layer"),
            Self::OldKernel(_) | Self::UpperTwice(_) | Self::Limits(_) => None,
        }
    }
}

/// Decides how the machine `spec` is made on the host `facts`.
pub fn build(spec: &MachineSpec, facts: &HostFacts, layout: &Layout) -> Result<Plan, PlanError> {
    let cgroup = facts.cgroup.as_ref().ok_or(PlanError::NoCgroup2)?;
    if !facts.overlay_idmap() {
        return Err(PlanError::OldKernel(facts.kernel));
    }
    let namespaces = Namespaces {
        user: Namespace::new_if(spec.users.mode != UserMode::Host),
        network: Namespace::new_if(spec.network == NetworkMode::Private),
        pid: Namespace::New,
        uts: Namespace::New,
        ipc: Namespace::New,
        cgroup: Namespace::New,
        time: Namespace::new_if(spec.boot.clock == Clock::Own),
    };
    let root = root::plan(spec, layout);
    let mounts = mounts::plan(spec, &namespaces, layout);
    check_uppers(&root, &mounts)?;
    let seccomp =
        SyscallPolicy { allow: spec.security.seccomp_allow.clone(), deny: spec.security.seccomp_deny.clone() };
    let cgroup = cgroup::plan(spec, facts.systemd, cgroup, layout);
    let environment = environment(spec, facts);
    let (limits, mut unmet) = limits::plan(&spec.resources, &facts.limits, &cgroup.unit).map_err(PlanError::Limits)?;
    let mut notes = notes(spec, facts, &namespaces, layout.scope());
    notes.append(&mut unmet);
    Ok(Plan {
        name: spec.name.clone(),
        register: spec.register,
        privileges: privileges::plan(&spec.security, &spec.devices, &namespaces, available(&namespaces, facts)),
        namespaces,
        ids: match spec.users.mode {
            UserMode::Auto => IdPlan::Picked,
            UserMode::Host => IdPlan::Host,
            UserMode::Identity => IdPlan::Identity,
            UserMode::Range(range) => IdPlan::Fixed(range),
        },
        ownership: spec.users.ownership,
        root,
        mounts,
        overlay_method: if facts.overlay_layer_fds() { OverlayMethod::OpenFiles } else { OverlayMethod::Attached },
        tmpfs_method: if facts.tmpfs_idmap() { TmpfsMethod::Map } else { TmpfsMethod::Chown },
        seccomp,
        cgroup,
        limits,
        console: spec.console,
        exec: Exec {
            payload: spec.boot.payload.clone(),
            stub: matches!(spec.boot.payload, Payload::Command { .. }),
            user: ExecUser::default(),
            directory: "/".to_owned(),
            stdio: Stdio::Console,
            late_environment: late_environment(&environment),
            environment,
            hostname: spec.identity.hostname.as_str().to_owned(),
            machine_id: spec.identity.machine_id,
            ready: spec.boot.ready.clone(),
            restart: spec.boot.restart,
            stop_timeout: spec.boot.stop_timeout.map(|t| t.as_secs()),
        },
        order: spec.boot.order.clone(),
        notes,
    })
}

/// Capabilities that can be given: a new user namespace begins with all, the host's own are bounded.
fn available(namespaces: &Namespaces, facts: &HostFacts) -> u64 {
    if namespaces.user.is_own() { u64::MAX } else { facts.capabilities }
}

/// Refuses overlays that the kernel would accept or refuse with a bare EBUSY or ELOOP, and silently damage.
fn check_uppers(root: &RootPlan, mounts: &[MountOp]) -> Result<(), PlanError> {
    let mut overlays: Vec<&OverlayPlan> = Vec::new();
    if let TreePlan::Overlay(overlay) = &root.source {
        overlays.push(overlay);
    }
    overlays.extend(mounts.iter().filter_map(|op| match op {
        MountOp::Overlay { overlay, .. } => Some(overlay),
        _ => None,
    }));
    let mut seen: Vec<&PathBuf> = Vec::new();
    for overlay in overlays {
        let Some(UpperPlan::Directory(upper)) = &overlay.upper else { continue };
        if seen.contains(&upper) {
            return Err(PlanError::UpperTwice(upper.clone()));
        }
        seen.push(upper);
        for lower in &overlay.lower {
            // `/` as a layer holds every directory; the kernel takes an upper on the same file system below
            // it as long as neither is the other.
            let below_layer = upper.starts_with(lower) && lower.as_os_str() != "/";
            if below_layer || lower.starts_with(upper) {
                return Err(PlanError::UpperInLower { upper: upper.clone(), lower: lower.clone() });
            }
        }
    }
    Ok(())
}

fn environment(spec: &MachineSpec, facts: &HostFacts) -> Vec<(String, String)> {
    let mut list: Vec<(String, String)> = Vec::new();
    let mut set = |key: &str, value: &str| list.push((key.to_owned(), value.to_owned()));
    set("PATH", DEFAULT_PATH);
    // The value that guests' tools know (ConditionVirtualization=, OpenRC, cloud-init); the interface behind
    // it is the one we serve.
    set("container", "systemd-nspawn");
    set("HOME", "/root");
    set("USER", "root");
    set("LOGNAME", "root");
    set("NOTIFY_SOCKET", mounts::NOTIFY_SOCKET);
    for (key, os) in [("container_host_id", "ID"), ("container_host_version_id", "VERSION_ID")] {
        if let Some(value) = facts.os_release_value(os) {
            set(key, value);
        }
    }
    for (key, value) in &spec.boot.environment {
        list.retain(|(k, _)| k != key);
        list.push((key.clone(), value.clone()));
    }
    list
}

fn late_environment(environment: &[(String, String)]) -> Vec<(String, LateValue)> {
    let mut list = vec![
        ("container_uuid".to_owned(), LateValue::MachineId),
        // It ends by exit(0) for reboot and poweroff alike in every container it knows.
        ("container".to_owned(), LateValue::ForInit(InitKind::Finit, "machinist".to_owned())),
    ];
    if !environment.iter().any(|(key, _)| key == "TERM") {
        list.push(("TERM".to_owned(), LateValue::Terminal("vt220".to_owned())));
    }
    list
}

/// Whether a path of the host is most likely a device, or a directory of them.
fn is_device_path(path: &Path) -> bool {
    let of_files = ["/dev/shm", "/dev/mqueue", "/dev/hugepages"];
    path.starts_with("/dev") && !of_files.iter().any(|files| path.starts_with(files))
}

fn notes(spec: &MachineSpec, facts: &HostFacts, namespaces: &Namespaces, scope: Scope) -> Vec<String> {
    let mut notes = Vec::new();
    if !namespaces.user.is_own() {
        notes.push("`users.mode = \"host\"`: root in this machine is root on the host; this is no boundary".to_owned());
    }
    if !facts.authority.can_make_machines(scope) {
        notes.push("this process is not root on the host; starting the machine needs root".to_owned());
    }
    let missing = privileges::wanted(&spec.security, namespaces) & !available(namespaces, facts);
    if missing != 0 {
        notes.push(format!("this host cannot give: {}", privileges::names(missing).join(", ")));
    }
    if let Some(device) = spec.devices.iter().find(|device| device.permission.make && namespaces.user.is_own()) {
        let target = &device.target;
        notes.push(format!("`m` of '{target}' has no effect: device nodes cannot be made in a user namespace"));
    }
    if let Some(bind) = spec.binds.iter().find(|bind| is_device_path(&bind.source)) {
        let source = bind.source.display();
        notes.push(format!("a device that is bound, as '{source}', cannot be opened in the machine; use `[[device]]`"));
    }
    if !facts.overlay_layer_fds() && matches!(spec.root.source, RootSource::Overlay { .. }) {
        notes.push("Linux before 6.13: overlay layers are attached in a private mount namespace first".to_owned());
    }
    notes
}
