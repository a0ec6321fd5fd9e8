//! Opens a terminal in a machine's own devpts, whatever the machine has put there.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::pty::OpenptFlags;

use crate::sys::path::RootFd;
use crate::sys::{Context, Errno, Error, Result, process};

const DEVPTS_MAGIC: u64 = 0x1cd1;

/// Both ends of a new terminal of a machine.
#[derive(Debug)]
pub struct Pty {
    /// Our end.
    pub master: OwnedFd,
    /// The machine's, opened without becoming a controlling terminal.
    pub peer: OwnedFd,
    /// Its path in the machine, as in `/dev/pts/3`.
    pub path: String,
}

impl Pty {
    /// Opens a terminal in the tree `root`, of the caller's user.
    ///
    /// Neither end is opened by a name that the machine could have changed (CVE-2025-52565): a devpts has no other
    /// `ptmx` than its own, and the kernel finds the second end from the first.
    ///
    /// # Errors
    /// ENODEV, ELOOP or EXDEV if the machine has something else in the place of its devpts.
    pub fn open(root: &RootFd) -> Result<Self> {
        let not_ours = || Error { call: "'/dev/pts' of the machine is no devpts".into(), errno: Errno::ENODEV };
        let dir = root.open_plain("dev/pts", OFlags::PATH | OFlags::DIRECTORY)?;
        let kind = rustix::fs::fstatfs(&dir).call(|| "fstatfs('/dev/pts' of the machine)".into())?;
        if !u64::try_from(kind.f_type).is_ok_and(|magic| magic == DEVPTS_MAGIC) {
            return Err(not_ours());
        }
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let master = rustix::fs::openat2(&dir, "ptmx", flags, Mode::empty(), resolve)
            .call(|| "openat2('/dev/pts/ptmx' of the machine)".into())?;
        if !is_device(&master, 5, Some(2))? {
            return Err(not_ours());
        }
        rustix::io::ioctl_fionbio(&master, false).call(|| "ioctl(FIONBIO)".into())?;
        rustix::pty::unlockpt(&master).call(|| "ioctl(TIOCSPTLCK)".into())?;
        let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let peer = rustix::pty::ioctl_tiocgptpeer(&master, peer).call(|| "ioctl(TIOCGPTPEER)".into())?;
        if !is_device(&peer, 136, None)? {
            return Err(not_ours());
        }
        let path = rustix::pty::ptsname(&master, Vec::new()).call(|| "ioctl(TIOCGPTN)".into())?;
        Ok(Self { master, peer, path: path.to_string_lossy().into_owned() })
    }

    /// Opens a terminal in the machine of the process behind `leader`, without entering it, for its root, whose
    /// user id on the host is `owner`.
    ///
    /// Its file systems may make the caller wait for as long as they like.
    ///
    /// # Errors
    /// ESRCH if the leader has ended; else as for [`Pty::open`].
    pub fn open_in(leader: impl AsFd, owner: u32) -> Result<Self> {
        let pid = process::pidfd_number(&leader)?;
        let root = RootFd::open(format!("/proc/{pid}/root").as_ref())?;
        // The number is the leader's until it is reaped, so what was opened is the leader's, too.
        if process::pidfd_number(&leader)? != pid || process::pidfd_send_signal(&leader, 0).is_err() {
            return Err(Error { call: format!("finding process {pid}"), errno: Errno::ESRCH });
        }
        process::as_file_user(owner, || Self::open(&root))
    }

    /// The number of the terminal, as in `pts/3`.
    pub fn number(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// Opens the other end of a terminal, and makes reading the master never wait.
pub(super) fn hold(master: &OwnedFd) -> Result<OwnedFd> {
    rustix::io::ioctl_fionbio(master, true).call(|| "ioctl(FIONBIO)".into())?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    rustix::pty::ioctl_tiocgptpeer(master, flags).call(|| "ioctl(TIOCGPTPEER)".into())
}

/// Whether `fd` is a character device with these numbers.
pub(super) fn is_device(fd: &OwnedFd, major: u32, minor: Option<u32>) -> Result<bool> {
    let stat = rustix::fs::fstat(fd).call(|| "fstat(device of the machine)".into())?;
    let device = stat.st_rdev;
    Ok(FileType::from_raw_mode(stat.st_mode).is_char_device()
        && rustix::fs::major(device) == major
        && minor.is_none_or(|minor| rustix::fs::minor(device) == minor))
}
