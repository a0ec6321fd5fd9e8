//! Capabilities of the payload.

use serde::Serialize;

use super::namespaces::Namespaces;
use crate::spec::{CAPABILITIES, Device, Permission, ProcessLimits, Security};

/// Kept by every machine: what systemd-nspawn keeps.
const DEFAULT: [&str; 25] = [
    "AUDIT_CONTROL",
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MKNOD",
    "NET_BROADCAST",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_NICE",
    "SYS_PTRACE",
    "SYS_RESOURCE",
    "SYS_TTY_CONFIG",
];

/// What the payload may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Privileges {
    /// Bounding, permitted and effective set; the inheritable and ambient sets are empty.
    #[serde(serialize_with = "serialize_names")]
    pub capabilities: u64,
    /// Setuid programs have no effect.
    pub no_new_privileges: bool,
    /// A filter on the control group lets only [`DEVICES`] and those of the file be opened or made. With a user
    /// namespace and nothing but [`DEVICES`] in `/dev` there is none to be had: the kernel makes no device nodes,
    /// and nodes of the tree and of binds have no effect.
    pub device_filter: bool,
    /// Limits of its processes, and of commands that enter.
    pub limits: ProcessLimits,
}

/// The character devices of every machine, by major and minor number: what `/dev` holds, and terminals.
///
/// A node of the host's console can be made, as tools do that make a tree, and not be opened: the machine's own is a
/// terminal.
pub const DEVICES: [(u32, Option<u32>, Permission); 9] = [
    (1, Some(3), EVERYTHING),
    (1, Some(5), EVERYTHING),
    (1, Some(7), EVERYTHING),
    (1, Some(8), EVERYTHING),
    (1, Some(9), EVERYTHING),
    (5, Some(0), EVERYTHING),
    (5, Some(1), Permission { read: false, write: false, make: true }),
    (5, Some(2), EVERYTHING),
    (136, None, EVERYTHING),
];

const EVERYTHING: Permission = Permission { read: true, write: true, make: true };

fn serialize_names<S: serde::Serializer>(mask: &u64, s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(names(*mask))
}

/// Bit number of a capability, with or without `CAP_`, in any case.
pub fn number(name: &str) -> Option<u8> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    CAPABILITIES.iter().position(|c| *c == bare).and_then(|i| u8::try_from(i).ok())
}

/// Names of the bits in `mask`, lowest first.
pub fn names(mask: u64) -> Vec<&'static str> {
    CAPABILITIES.iter().enumerate().filter(|(bit, _)| mask & (1 << bit) != 0).map(|(_, name)| *name).collect()
}

fn mask<'a>(list: impl IntoIterator<Item = &'a str>) -> u64 {
    list.into_iter().filter_map(number).fold(0, |mask, bit| mask | 1 << bit)
}

/// The capabilities the file asks for, whatever the host has.
pub fn wanted(security: &Security, namespaces: &Namespaces) -> u64 {
    let mut set = mask(DEFAULT);
    if namespaces.network.is_own() {
        set |= mask(["NET_ADMIN", "NET_BIND_SERVICE"]);
    } else if !namespaces.user.is_own() {
        set |= mask(["NET_BIND_SERVICE"]);
    }
    set |= security.capabilities_add.iter().fold(0, |mask, bit| mask | 1 << bit);
    set & !security.capabilities_drop.iter().fold(0, |mask, bit| mask | 1 << bit)
}

/// What the payload gets: what is wanted and can be had.
pub(super) fn plan(security: &Security, devices: &[Device], namespaces: &Namespaces, available: u64) -> Privileges {
    Privileges {
        capabilities: wanted(security, namespaces) & available,
        no_new_privileges: security.no_new_privileges,
        device_filter: !namespaces.user.is_own() || !devices.is_empty(),
        limits: security.limits.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Namespace;
    use super::*;

    const NONE: Security = Security {
        capabilities_add: Vec::new(),
        capabilities_drop: Vec::new(),
        seccomp_allow: Vec::new(),
        seccomp_deny: Vec::new(),
        no_new_privileges: false,
        limits: ProcessLimits { rlimits: Vec::new(), oom_score_adjust: None, nice: None },
    };
    const PRIVATE: Namespaces = Namespaces {
        user: Namespace::New,
        network: Namespace::New,
        pid: Namespace::New,
        uts: Namespace::New,
        ipc: Namespace::New,
        cgroup: Namespace::New,
        time: Namespace::Host,
    };

    #[test]
    fn capability_numbers_are_the_kernels() {
        assert_eq!(number("CAP_SYS_ADMIN"), Some(21));
        assert_eq!(number("bpf"), Some(39));
        assert_eq!(number("CHECKPOINT_RESTORE"), Some(40));
        assert_eq!(number("CAP_"), None);
        assert_eq!(names(1 << 21 | 1), ["CHOWN", "SYS_ADMIN"]);
    }

    #[test]
    fn network_capabilities_follow_the_network() {
        let admin = mask(["NET_ADMIN"]);
        let bind = mask(["NET_BIND_SERVICE"]);
        assert_eq!(wanted(&NONE, &PRIVATE) & (admin | bind), admin | bind);
        let network = Namespace::Host;
        assert_eq!(wanted(&NONE, &Namespaces { network, ..PRIVATE }) & (admin | bind), 0);
        let (network, user) = (Namespace::Host, Namespace::Host);
        assert_eq!(wanted(&NONE, &Namespaces { network, user, ..PRIVATE }) & (admin | bind), bind);
        let network = Namespace::Join("/run/netns/x".into());
        assert_eq!(wanted(&NONE, &Namespaces { network, ..PRIVATE }) & (admin | bind), admin | bind);
    }

    #[test]
    fn nothing_dangerous_to_the_host_is_kept_by_default() {
        let bad = mask(["SYS_MODULE", "SYS_RAWIO", "SYS_TIME", "SYSLOG", "BPF", "PERFMON", "MAC_ADMIN", "WAKE_ALARM"]);
        assert_eq!(wanted(&NONE, &PRIVATE) & bad, 0);
    }

    #[test]
    fn dropped_wins_over_added_and_the_host_limits_all() {
        let security = Security { capabilities_add: vec![39, 38], capabilities_drop: vec![38, 21], ..NONE };
        let privileges = plan(&security, &[], &PRIVATE, !(1 << 39));
        assert_eq!(privileges.capabilities & (1 << 38 | 1 << 39 | 1 << 21), 0);
    }
}
