//! Namespaces of other processes: whether they are ours, and which ids they give their own names.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::process::{self, ns};
use super::{Context, Errno, Error, Result, check, read_text};

/// The kinds of namespaces that are asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ids and capabilities.
    User,
    /// Network.
    Net,
    /// Mounts.
    Mount,
    /// Process ids.
    Pid,
    /// Host name.
    Uts,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Control groups.
    Cgroup,
    /// Monotonic and boot clocks.
    Time,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Net => "net",
            Self::Mount => "mnt",
            Self::Pid => "pid",
            Self::Uts => "uts",
            Self::Ipc => "ipc",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
        }
    }

    /// The flag by which `clone(2)` and `setns(2)` know it.
    pub fn flag(self) -> u64 {
        match self {
            Self::User => ns::USER,
            Self::Net => ns::NET,
            Self::Mount => ns::MOUNT,
            Self::Pid => ns::PID,
            Self::Uts => ns::UTS,
            Self::Ipc => ns::IPC,
            Self::Cgroup => ns::CGROUP,
            Self::Time => ns::TIME,
        }
    }
}

/// Opens a namespace of a process, which the caller must know to be still that one afterwards.
pub fn open(pid: i32, kind: Kind) -> Result<OwnedFd> {
    open_path(&format!("/proc/{pid}/ns/{}", kind.name()))
}

/// Opens the namespace that a file of the host stands for; EINVAL if it stands for none, or for one of another kind.
pub fn open_file(path: &Path, kind: Kind) -> Result<OwnedFd> {
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    let name = || format!("{} namespace '{}'", kind.name(), path.display());
    // A FIFO must not keep us waiting, nor a terminal become ours.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = rustix::fs::open(path, flags, Mode::empty()).call(|| format!("open({})", name()))?;
    // Not before the file system is known: another driver's file may mean something else by that number.
    let is_one = rustix::fs::fstatfs(&fd).call(|| format!("fstatfs({})", name()))?.f_type == libc::NSFS_MAGIC;
    // SAFETY: takes no argument and gives a number.
    let found = if is_one { unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) } } else { 0 };
    match u64::try_from(found) {
        Ok(found) if found == kind.flag() => Ok(fd),
        _ => Err(Error { call: format!("ioctl(NS_GET_NSTYPE, {})", name()), errno: Errno::EINVAL }),
    }
}

/// Enters a namespace. That of process ids and that of clocks are entered only by later children.
pub fn join(namespace: impl AsFd, kind: Kind) -> Result<()> {
    process::setns(namespace, kind.flag())
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
    fn a_namespace_is_opened_by_its_file_and_joined_if_it_is_of_that_kind() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let (send, receive) = std::sync::mpsc::channel();
        // A thread has a network of its own as long as it lives.
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            process::unshare(ns::NET).expect("a namespace");
            send.send(rustix::thread::gettid()).expect("send");
            wait.recv().expect_err("the end");
        });
        let tid = receive.recv().expect("a thread");
        let path = format!("/proc/self/task/{}/ns/net", tid.as_raw_nonzero());
        let path = Path::new(&path);
        let opened = open_file(path, Kind::Net).expect("a namespace");
        for kind in [Kind::Uts, Kind::User, Kind::Mount] {
            assert_eq!(open_file(path, kind).expect_err("another kind").errno, Errno::EINVAL, "{kind:?}");
        }
        for none in ["/etc/passwd", "/dev/null", "/dev/tty0", "/proc/self/status"].map(Path::new) {
            let refused = open_file(none, Kind::Net).expect_err("no namespace").errno;
            assert!(!none.exists() || [Errno::EINVAL, Errno::ENXIO].contains(&refused), "{}", none.display());
        }
        assert_eq!(open_file(Path::new("/nowhere"), Kind::Net).expect_err("nothing").errno, Errno::ENOENT);
        assert_eq!(is_same(&opened, own(Kind::Net).expect("ours")), Ok(false));
        join(&opened, Kind::Net).expect("joined");
        assert_eq!(is_same(&opened, own(Kind::Net).expect("ours")), Ok(true));
        drop(end);
        other.join().expect("the thread");
    }

    #[test]
    fn our_own_process_shares_with_us() {
        let pid = i32::try_from(std::process::id()).expect("a pid");
        assert_eq!(is_shared(pid, Kind::User), Ok(true));
        assert_eq!(is_shared(pid, Kind::Net), Ok(true));
        assert!(!id_map(pid, Ids::Users).expect("a map").is_empty());
    }
}
