//! The control group of one command.
//!
//! Each command gets a leaf of its own, `machinist-exec-PID-N`, below the machine's payload group. The payload
//! group itself refuses processes once an init enabled controllers in it, and only a group that holds the
//! command and nothing else can be killed as a whole when the time is up. It costs one mkdir and one rmdir.
//! A leaf outlives us only while something the command left behind still runs in it, or if we were killed;
//! it goes with the payload group at the latest.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::sys::{Context, Errno, Error, Result};

/// How the names of all leaves begin.
pub const LEAF_PREFIX: &str = "machinist-exec-";

/// A leaf group; dropping it removes it if it is empty.
#[derive(Debug)]
pub(super) struct Leaf {
    parent: OwnedFd,
    name: String,
    dir: OwnedFd,
}

impl Leaf {
    /// Makes a new leaf below the payload group.
    pub(super) fn make(payload: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let parent =
            rustix::fs::open(payload, flags, Mode::empty()).call(|| format!("open('{}')", payload.display()))?;
        let pid = std::process::id();
        // The machine may have made groups of such names; it can only make us count.
        for number in 0..1000 {
            let name = format!("{LEAF_PREFIX}{pid}-{number}");
            match rustix::fs::mkdirat(&parent, &*name, Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    let dir = rustix::fs::openat(&parent, &*name, flags, Mode::empty())
                        .call(|| format!("openat('{}/{name}')", payload.display()))?;
                    return Ok(Self { parent, name, dir });
                }
                Err(rustix::io::Errno::EXIST) => {}
                Err(errno) => return Err(errno).call(|| format!("mkdir('{}/{name}')", payload.display())),
            }
        }
        Err(Error { call: format!("mkdir('{}/{LEAF_PREFIX}{pid}-*')", payload.display()), errno: Errno::EEXIST })
    }

    /// Kills every process in it, whatever forks meanwhile.
    pub(super) fn kill(&self) -> Result<()> {
        let file = self.open("cgroup.kill", OFlags::WRONLY)?;
        rustix::io::write(file, b"1").call(|| format!("write('{}/cgroup.kill')", self.name)).map(drop)
    }

    /// Waits until it has no process any more, at most `limit`.
    pub(super) fn wait_empty(&self, limit: Duration) -> Result<()> {
        let events = self.open("cgroup.events", OFlags::RDONLY)?;
        let end = Instant::now() + limit;
        loop {
            let mut text = [0; 256];
            let len =
                rustix::io::pread(&events, &mut text, 0).call(|| format!("read('{}/cgroup.events')", self.name))?;
            let left = end.saturating_duration_since(Instant::now());
            if text[..len].starts_with(b"populated 0") || left.is_zero() {
                return Ok(());
            }
            let mut set = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match nix::poll::poll(&mut set, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).call(|| "poll".into()),
            }
        }
    }

    fn open(&self, file: &str, flags: OFlags) -> Result<OwnedFd> {
        rustix::fs::openat(&self.dir, file, flags | OFlags::CLOEXEC, Mode::empty())
            .call(|| format!("openat('{}/{file}')", self.name))
    }
}

impl AsFd for Leaf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        // Refused while something the command left behind runs in it, which is its right.
        let _ = rustix::fs::unlinkat(&self.parent, &*self.name, AtFlags::REMOVEDIR);
    }
}
