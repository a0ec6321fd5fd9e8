//! [`Leader`]: the machine that is entered, and the steps into it.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

use super::error::{InsideError, Outcome};
use crate::sys::namespace::{self, Kind};
use crate::sys::process::ns;
use crate::sys::{self, Context as _, Errno, mount, process};

/// First process of the machine.
pub(super) struct Leader {
    pub(super) pid: i32,
    pidfd: OwnedFd,
}

impl Leader {
    pub(super) fn new(pidfd: OwnedFd) -> Outcome<Self> {
        // A process that inspects this one while it is in a machine would see our memory.
        process::set_undumpable()?;
        let pid = process::pidfd_number(&pidfd)?.as_raw();
        Ok(Self { pid, pidfd })
    }

    /// Fails if it has ended, and so what was opened by its number may be another's.
    pub(super) fn check(&self) -> Outcome<()> {
        match process::pidfd_send_signal(&self.pidfd, 0) {
            Ok(()) => Ok(()),
            Err(e) if e.errno == Errno::ESRCH => Err(InsideError::new(Errno::ESRCH, "the machine has ended")),
            Err(e) => Err(e.into()),
        }
    }

    /// The machine's root directory as its leader sees it.
    pub(super) fn root(&self, flags: OFlags) -> Outcome<OwnedFd> {
        let path = format!("/proc/{}/root", self.pid);
        let fd = rustix::fs::open(&path, flags | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let fd = fd.call(|| format!("open('{path}')"));
        self.check()?;
        Ok(fd?)
    }
}

impl Leader {
    /// The machine's user namespace; none if it is our own.
    pub(super) fn user_namespace(&self) -> Outcome<Option<OwnedFd>> {
        let own = namespace::own(Kind::User)?;
        let theirs = namespace::open(self.pid, Kind::User);
        self.check()?;
        let theirs = theirs?;
        Ok(if namespace::is_same(&own, &theirs)? { None } else { Some(theirs) })
    }
}

/// Takes a mount namespace of our own, in which nothing that happens is seen elsewhere.
pub(super) fn leave_mounts() -> Outcome<()> {
    process::unshare(ns::MOUNT)?;
    Ok(mount::set_propagation(host_root()?, true, mount::Propagation::Private)?)
}

/// The root directory, in the mount namespace where we are now.
pub(super) fn host_root() -> sys::Result<OwnedFd> {
    rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).call(|| "open('/')".into())
}

/// Becomes root of the machine and nothing else.
pub(super) fn become_guest_root(userns: &OwnedFd) -> sys::Result<()> {
    nix::unistd::setgroups(&[]).call(|| "setgroups(none)".into())?;
    process::setns(userns, ns::USER)?;
    process::become_root()?;
    // Other ids have made us dumpable again where fs.suid_dumpable is set so.
    process::set_undumpable()
}

/// Text that came from elsewhere, without anything a terminal would act on.
pub(super) fn shown(path: &str) -> String {
    format!("'{}'", path.escape_debug())
}
