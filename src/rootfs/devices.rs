//! Finds out what the devices of a definition are on this host, and what the machine's filter must allow.
//!
//! Each node is looked at once, through a descriptor that opens no device; what counts afterwards are its numbers.
//! Nothing here is about the machine's tree: the nodes stand in a tmpfs that [`mounts`](super::mounts) fills.

use rustix::fs::{FileType, Mode, OFlags};

use crate::plan::privileges::DEVICES;
use crate::spec::{Device, GuestPath, Permission};
use crate::sys::bpf::{Allowed, Kind, access};
use crate::sys::{Context as _, Errno};
use crate::sys::{Doing as _, StepError};

/// A device as the kernel knows it, and its place in the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDevice {
    /// Where the machine has it.
    pub target: GuestPath,
    /// Its kind.
    pub kind: Kind,
    /// Its driver.
    pub major: u32,
    /// Which of the driver's it is.
    pub minor: u32,
    /// What may be done with it.
    pub permission: Permission,
}

/// Looks at the host's nodes; those that are optional and missing are left out.
///
/// # Errors
/// When a node is missing, is no device or cannot be one where it is, or when two entries want the same device with
/// different letters: the filter knows devices, not their names.
pub fn find<'a>(list: impl Iterator<Item = &'a Device>) -> Result<Vec<HostDevice>, StepError> {
    let mut found: Vec<HostDevice> = Vec::new();
    for device in list {
        let Some(new) = look(device)? else { continue };
        let same = |old: &&HostDevice| (old.kind, old.major, old.minor) == (new.kind, new.major, new.minor);
        if let Some(old) = found.iter().find(same).filter(|old| old.permission != new.permission) {
            let text = format!("'{}' and '{}' of `[[device]]` are the same device", old.target, new.target);
            let (one, other) = (old.permission, new.permission);
            let hint = format!("give both the same `permission`: \"{one}\" and \"{other}\" cannot be told apart");
            return Err(StepError::refused(text).hint(hint));
        }
        found.push(new);
    }
    Ok(found)
}

fn look(device: &Device) -> Result<Option<HostDevice>, StepError> {
    let node = device.node.display();
    let doing = || format!("cannot give the device '{node}' to the machine");
    let opened = rustix::fs::open(&device.node, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let fd = match opened.call(|| format!("open('{node}')")) {
        Ok(fd) => fd,
        Err(e) if device.optional && matches!(e.errno, Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        Err(cause) => {
            let hint = (cause.errno == Errno::ENOENT).then(|| {
                "its driver may not be loaded; `optional = true` starts the machine without what is missing".to_owned()
            });
            return Err(StepError { doing: doing(), cause: Some(cause), hint });
        }
    };
    let stat = rustix::fs::fstat(&fd).call(|| format!("fstat('{node}')")).doing(doing)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => Kind::Block,
        FileType::CharacterDevice => Kind::Character,
        other => return Err(StepError::refused(format!("{}: it is {}", doing(), name_of(other)))),
    };
    // A node that the host would not open was made by a process that could not have opened it either.
    let flags = rustix::fs::fstatvfs(&fd).call(|| format!("fstatvfs('{node}')")).doing(doing)?.f_flag;
    if flags.contains(rustix::fs::StatVfsMountFlags::NODEV) {
        let text = format!("{}: it is on a file system whose devices have no effect (nodev)", doing());
        return Err(StepError::refused(text));
    }
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let permission = device.permission;
    Ok(Some(HostDevice { target: device.target.clone(), kind, major, minor, permission }))
}

fn name_of(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file",
        FileType::Directory => "a directory",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        _ => "no device",
    }
}

/// Everything that the machine's filter lets through: what every machine may use, and these.
pub fn allowed(devices: &[HostDevice]) -> Vec<Allowed> {
    let standard = DEVICES.iter().map(|&(major, minor, permission)| Allowed {
        kind: Kind::Character,
        major,
        minor,
        access: bits(permission),
    });
    let given = devices.iter().map(|device| {
        let access = bits(device.permission);
        Allowed { kind: device.kind, major: device.major, minor: Some(device.minor), access }
    });
    standard.chain(given).collect()
}

fn bits(permission: Permission) -> u32 {
    let letters = [(permission.read, access::READ), (permission.write, access::WRITE), (permission.make, access::MAKE)];
    letters.iter().filter(|(on, _)| *on).fold(0, |all, (_, bit)| all | bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(node: &str, target: &str, permission: Permission) -> Device {
        let target = GuestPath::parse(target).expect("a path");
        Device { node: node.into(), target, permission, uid: 0, gid: 0, mode: 0o660, optional: false }
    }

    const RW: Permission = Permission::DEFAULT;
    const R: Permission = Permission { write: false, ..RW };

    #[test]
    fn a_node_is_known_by_its_numbers_through_symlinks_too() {
        let dir = tempfile::tempdir().expect("directory");
        let link = dir.path().join("null");
        std::os::unix::fs::symlink("/dev/null", &link).expect("symlink");
        for node in ["/dev/null", link.to_str().expect("text")] {
            let found = find([device(node, "/dev/nothing", R)].iter()).expect("a device");
            let [found] = &found[..] else { panic!("{found:?}") };
            assert_eq!((found.kind, found.major, found.minor), (Kind::Character, 1, 3));
            assert_eq!((found.target.as_str(), found.permission), ("/dev/nothing", R));
        }
    }

    #[test]
    fn what_is_no_device_is_refused_by_name() {
        let missing = find([device("/dev/no-such-thing", "/dev/x", RW)].iter()).expect_err("missing");
        assert_eq!(missing.doing, "cannot give the device '/dev/no-such-thing' to the machine");
        let cause = missing.cause.expect("a call");
        assert_eq!((cause.call.as_str(), cause.errno), ("open('/dev/no-such-thing')", Errno::ENOENT));
        for (node, what) in [("/etc/passwd", "a file"), ("/dev", "a directory")] {
            let refused = find([device(node, "/dev/x", RW)].iter()).expect_err(node);
            assert_eq!(refused.doing, format!("cannot give the device '{node}' to the machine: it is {what}"));
        }
        let optional = Device { optional: true, ..device("/dev/no-such-thing", "/dev/x", RW) };
        assert_eq!(find([optional].iter()), Ok(Vec::new()));
        let wrong = Device { optional: true, ..device("/etc/passwd", "/dev/x", RW) };
        assert!(find([wrong].iter()).is_err(), "optional is about what is missing");
    }

    #[test]
    fn one_device_has_one_permission_whatever_its_names() {
        let twice = |second| find([device("/dev/full", "/dev/a", RW), device("/dev/full", "/dev/b", second)].iter());
        assert_eq!(twice(RW).map(|found| found.len()), Ok(2));
        let refused = twice(R).expect_err("different letters");
        assert_eq!(refused.doing, "'/dev/a' and '/dev/b' of `[[device]]` are the same device");
        assert_eq!(
            refused.hint.as_deref(),
            Some("give both the same `permission`: \"rw\" and \"r\" cannot be told apart")
        );
    }

    #[test]
    fn the_filter_has_the_letters_of_the_file() {
        let found = find([device("/dev/full", "/dev/x", R)].iter()).expect("a device");
        let allowed = allowed(&found);
        assert_eq!(allowed.len(), DEVICES.len() + 1);
        let last = Allowed { kind: Kind::Character, major: 1, minor: Some(7), access: access::READ };
        assert_eq!(allowed.last(), Some(&last));
    }
}
