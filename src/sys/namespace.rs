//! Namespaces of other processes: whether they are ours, and which ids they give their own names.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::{Context, Errno, Result, check, read_text};

/// The kinds of namespaces that are asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ids and capabilities.
    User,
    /// Network.
    Net,
    /// Mounts.
    Mount,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Net => "net",
            Self::Mount => "mnt",
        }
    }
}

/// Opens a namespace of a process, which the caller must know to be still that one afterwards.
pub fn open(pid: i32, kind: Kind) -> Result<OwnedFd> {
    open_path(&format!("/proc/{pid}/ns/{}", kind.name()))
}

/// Opens the namespace of the calling thread.
pub fn own(kind: Kind) -> Result<OwnedFd> {
    open_path(&format!("/proc/thread-self/ns/{}", kind.name()))
}

/// The user namespace whose root rules over a namespace (`ioctl_nsfs(2)`).
pub fn owner(namespace: impl AsFd) -> Result<OwnedFd> {
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    // SAFETY: takes no argument and gives a new descriptor.
    let result = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_USERNS) };
    let fd = check(libc::c_long::from(result)).call(|| "ioctl(NS_GET_USERNS)".into())?;
    // SAFETY: the kernel just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether two descriptors are of the same namespace.
pub fn is_same(one: impl AsFd, other: impl AsFd) -> Result<bool> {
    let (one, other) = (rustix::fs::fstat(one), rustix::fs::fstat(other));
    let (one, other) = (one.call(|| "fstat(namespace)".into())?, other.call(|| "fstat(namespace)".into())?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

fn open_path(path: &str) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).call(|| format!("open('{path}')"))
}

/// Whether a process is in the same namespace as the calling thread.
pub fn is_shared(pid: i32, kind: Kind) -> Result<bool> {
    let identity = |path: String| {
        let stat = rustix::fs::stat(&path).call(|| format!("stat('{path}')"))?;
        Ok((stat.st_dev, stat.st_ino))
    };
    Ok(identity(format!("/proc/{pid}/ns/{}", kind.name()))?
        == identity(format!("/proc/thread-self/ns/{}", kind.name()))?)
}

/// Users or groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// Users.
    Users,
    /// Groups.
    Groups,
}

/// One line of an id map (`user_namespaces(7)`), seen from our own namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First id inside.
    pub inside: u32,
    /// The same id as we see it.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The id map of a process; everything is itself on a kernel without user namespaces.
pub fn id_map(pid: i32, ids: Ids) -> Result<Vec<Extent>> {
    let file = match ids {
        Ids::Users => "uid_map",
        Ids::Groups => "gid_map",
    };
    let path = format!("/proc/{pid}/{file}");
    match read_text(Path::new(&path)) {
        // The process itself may be gone, too.
        Err(e) if e.errno == Errno::ENOENT && Path::new("/proc/self/ns/user").exists() => Err(e),
        Err(e) if e.errno == Errno::ENOENT => Ok(vec![Extent { inside: 0, outside: 0, count: u32::MAX }]),
        other => other.map(|text| parse(&text)),
    }
}

fn parse(text: &str) -> Vec<Extent> {
    let line = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(|word| word.parse().ok());
        Some(Extent { inside: numbers.next()??, outside: numbers.next()??, count: numbers.next()?? })
    };
    text.lines().filter_map(line).collect()
}

impl Extent {
    /// The outer id of an inner one.
    pub fn outward(&self, id: u32) -> Option<u32> {
        self.outside.checked_add(id.checked_sub(self.inside).filter(|at| *at < self.count)?)
    }

    /// The inner id of an outer one.
    pub fn inward(&self, id: u32) -> Option<u32> {
        self.inside.checked_add(id.checked_sub(self.outside).filter(|at| *at < self.count)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_mapped_both_ways_and_not_beyond() {
        let map = parse("         0     524288      65536\n  70000 100 1\nnonsense\n");
        assert_eq!(map.len(), 2);
        let first = map[0];
        assert_eq!(
            (first.outward(0), first.outward(65535), first.outward(65536)),
            (Some(524_288), Some(589_823), None)
        );
        assert_eq!((first.inward(524_288), first.inward(589_824), first.inward(1000)), (Some(0), None, None));
        assert_eq!((map[1].inward(100), map[1].outward(0)), (Some(70000), None));
        let last = Extent { inside: 0, outside: u32::MAX, count: 10 };
        assert_eq!((last.outward(0), last.outward(1)), (Some(u32::MAX), None));
    }

    #[test]
    fn our_own_process_shares_with_us() {
        let pid = i32::try_from(std::process::id()).expect("a pid");
        assert_eq!(is_shared(pid, Kind::User), Ok(true));
        assert_eq!(is_shared(pid, Kind::Net), Ok(true));
        assert!(!id_map(pid, Ids::Users).expect("a map").is_empty());
    }
}
