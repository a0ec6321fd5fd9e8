//! The machine's control group: `payload/`, where the machine runs, and `supervisor/` for a background
//! supervisor, below one group of the machine's own.
//!
//! The payload and a background supervisor are born in their groups (`CLONE_INTO_CGROUP`), because the kernel's move
//! of a process waits for an RCU grace period, about 10 ms, and stops every fork of the host meanwhile. The one
//! above is ours, or that of the unit which the machine is to systemd: then the kernel's rule that a group with
//! controllers for its children has no processes itself has the supervisor in `supervisor/`, too. Files that set limits stay the host's; only what
//! `cgroups(7)` lists for delegation is given to the machine's root.

mod files;
pub mod limits;
mod tree;
mod usage;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use self::files::{open_dir, read_at, write_at};
use crate::plan::CgroupPlan;
use crate::sys::bpf;
use crate::sys::file;
use crate::sys::path::chown_at;
use crate::sys::{Context as _, Errno, Error, Result};

pub use usage::{Pressure, Stall, Usage, usage};

/// The groups of one machine.
#[derive(Debug)]
pub struct MachineGroup {
    path: PathBuf,
    dir: OwnedFd,
    payload: OwnedFd,
    /// Whose the group is, if it is not ours to remove.
    unit: Option<String>,
}

/// How deep groups of the machine may be below its own, and how many there may be: the kernel keeps each in memory that
/// is the host's, and the end of the machine walks all of them. Far beyond what systemd and nested containers make.
const BOUNDS: [(&str, &str); 2] = [("cgroup.max.depth", "32"), ("cgroup.max.descendants", "8192")];

/// Files of the payload's group that belong to the machine's root.
const DELEGATED: [&str; 4] = [".", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"];

fn open_payload(machine: &OwnedFd, owner: u32) -> Result<OwnedFd> {
    let payload = open_dir(machine, "payload")?;
    if owner != 0 {
        for file in DELEGATED {
            chown_at(payload.as_fd(), file, owner, owner)?;
        }
    }
    Ok(payload)
}

/// Path of a machine's group on the host.
pub fn host_path(plan: &CgroupPlan) -> PathBuf {
    plan.mount.join(plan.group.trim_start_matches('/'))
}

impl MachineGroup {
    /// Makes the groups, `payload/` owned by `owner` (the host id of the machine's root).
    ///
    /// Whatever an earlier run left there is killed and removed first; the caller holds the machine's lock, so no
    /// process owns it.
    pub fn create(plan: &CgroupPlan, owner: u32, supervisor: bool) -> Result<Self> {
        let path = host_path(plan);
        match make_dir(&path) {
            Ok(()) => {}
            Err(e) if e.errno == Errno::EEXIST => {
                remove(&path)?;
                make_dir(&path)?;
            }
            Err(e) if e.errno == Errno::ENOENT => {
                let parent = path.parent().unwrap_or(&path);
                file::make_dirs(parent)?;
                make_dir(&path)?;
            }
            Err(e) => return Err(e),
        }
        Self::fill(&path, owner, supervisor).inspect_err(|_| drop(remove(&path)))
    }

    /// Makes the payload's group below that of a unit, whose processes are all in [`make_supervisor`]'s group.
    pub fn in_unit(path: &Path, unit: &str, owner: u32) -> Result<Self> {
        remove(&path.join("payload"))?;
        let group = Self::fill(path, owner, false)?;
        Ok(Self { unit: Some(unit.to_owned()), ..group })
    }

    fn fill(path: &Path, owner: u32, supervisor: bool) -> Result<Self> {
        let dir = open_dir(rustix::fs::CWD, path)?;
        let controllers = read_at(&dir, "cgroup.controllers")?;
        let enable: Vec<String> = controllers.split_ascii_whitespace().map(|c| format!("+{c}")).collect();
        if !enable.is_empty() {
            write_at(&dir, "cgroup.subtree_control", &enable.join(" "))?;
        }
        for (file, bound) in BOUNDS {
            write_at(&dir, file, bound)?;
        }
        for name in if supervisor { &["payload", "supervisor"][..] } else { &["payload"] } {
            rustix::fs::mkdirat(&dir, *name, Mode::from_raw_mode(0o755))
                .call(|| format!("mkdir cgroup '{}/{name}'", path.display()))?;
        }
        let payload = open_payload(&dir, owner)?;
        Ok(Self { path: path.to_owned(), dir, payload, unit: None })
    }

    /// Lets the payload of this boot use only these devices.
    pub fn allow_devices(&self, list: &[bpf::Allowed]) -> Result<()> {
        bpf::allow_only(&self.payload, list)
    }

    /// The unit whose group the machine's is; `None` if it is our own.
    pub fn unit(&self) -> Option<&str> {
        self.unit.as_deref()
    }

    /// Where the machine's group is on the host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The group the payload is born in.
    pub fn payload(&self) -> BorrowedFd<'_> {
        self.payload.as_fd()
    }

    /// The group a background supervisor is born in.
    pub fn supervisor(&self) -> Result<OwnedFd> {
        open_dir(&self.dir, "supervisor")
    }

    /// Removes what a boot left in the payload's group and readies it for the next.
    pub fn renew(&mut self, owner: u32) -> Result<()> {
        let payload = self.path.join("payload");
        remove(&payload)?;
        make_dir(&payload)?;
        self.payload = open_payload(&self.dir, owner)?;
        Ok(())
    }

    /// Kills everything in the payload's group and removes what can be removed.
    ///
    /// The supervisor's own group cannot go while it is in it; see [`leave`]. A unit's group goes with its unit.
    pub fn release(self) -> Result<()> {
        clear(&self.path, self.unit.is_some())
    }
}

/// Kills and removes what is left of the machine whose group is at `path`; of a unit's group only what is below
/// `payload/`, since all else is its service manager's.
pub fn clear(path: &Path, unit: bool) -> Result<()> {
    if unit { remove(&path.join("payload")) } else { remove(path) }
}

/// Makes the group of a supervisor below its unit's, unless the service manager has (`DelegateSubgroup=`).
pub fn make_supervisor(unit: &Path) -> Result<PathBuf> {
    let path = unit.join("supervisor");
    match make_dir(&path) {
        Err(e) if e.errno != Errno::EEXIST => Err(e),
        _ => Ok(path),
    }
}

/// The group at `path`, for processes to be born in.
pub fn open(path: &Path) -> Result<OwnedFd> {
    open_dir(rustix::fs::CWD, path)
}

/// Moves the calling process into the group at `path`.
pub fn enter(path: &Path) -> Result<()> {
    write_at(open_dir(rustix::fs::CWD, path)?, "cgroup.procs", "0")
}

/// Moves the calling process out of a machine's `supervisor/` group to the group above the machine's, so that
/// it can be removed.
pub fn leave(machine: &Path) -> Result<()> {
    enter(machine.parent().unwrap_or(machine))
}

fn make_dir(path: &Path) -> Result<()> {
    rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)).call(|| format!("mkdir cgroup '{}'", path.display()))
}

/// Kills everything below the group at `path` and removes it with all groups below; none there is fine.
pub fn remove(path: &Path) -> Result<()> {
    let dir = match open_dir(rustix::fs::CWD, path) {
        Ok(dir) => dir,
        Err(e) if e.errno == Errno::ENOENT => return Ok(()),
        Err(e) => return Err(e),
    };
    kill(&dir)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    let (parent, name) = tree::parent(path)?;
    loop {
        wait_until_empty(&dir, deadline)?;
        match tree::remove(&parent, name) {
            // The last process may be gone for us and not yet for the group.
            Err(e) if e.errno == Errno::EBUSY && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            other => return other,
        }
    }
}

/// Kills every process below a group, frozen ones too; kernels before 5.14 are walked by hand.
pub fn kill(dir: impl AsFd) -> Result<()> {
    match write_at(&dir, "cgroup.kill", "1") {
        Err(e) if e.errno == Errno::ENOENT => {
            write_at(&dir, "cgroup.freeze", "0")?;
            for (_, pid) in tree::processes(&dir)? {
                match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => return Err(Error { call: format!("kill({pid})"), errno }),
                }
            }
            Ok(())
        }
        other => other,
    }
}

/// Kills every process below the payload's group of the machine at `path`.
pub fn kill_payload(path: &Path) -> Result<()> {
    kill(open_dir(rustix::fs::CWD, path.join("payload"))?)
}

/// Sends `signal` to every process of the payload of the machine at `path`.
pub fn signal_payload(path: &Path, signal: i32) -> Result<()> {
    for (_, pid) in tree::processes(open(&path.join("payload"))?)? {
        let Ok(pidfd) = crate::sys::process::pidfd_open(nix::unistd::Pid::from_raw(pid)) else { continue };
        match crate::sys::process::pidfd_send_signal(pidfd, signal) {
            Err(e) if e.errno != Errno::ESRCH => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Freezes or thaws the payload of the machine at `path` and waits until the kernel confirms it.
pub fn freeze(path: &Path, frozen: bool) -> Result<()> {
    let dir = open_dir(rustix::fs::CWD, path.join("payload"))?;
    write_at(&dir, "cgroup.freeze", if frozen { "1" } else { "0" })?;
    let deadline = Instant::now() + Duration::from_secs(10);
    wait_for_event(&dir, if frozen { "frozen 1" } else { "frozen 0" }, deadline)
}

/// Whether the payload of the machine at `path` is frozen.
pub fn is_frozen(path: &Path) -> bool {
    open_dir(rustix::fs::CWD, path.join("payload"))
        .and_then(|dir| read_at(&dir, "cgroup.events"))
        .is_ok_and(|text| text.contains("frozen 1"))
}

/// Whether processes of the payload of the machine at `path` have been killed because its memory was used up.
pub fn ran_out_of_memory(path: &Path) -> bool {
    let events = open_dir(rustix::fs::CWD, path.join("payload")).and_then(|dir| read_at(&dir, "memory.events"));
    // Without the controller the kernel does not count.
    events.ok().and_then(|text| usage::field(&text, "oom_kill")).is_some_and(|kills| kills > 0)
}

/// Every process below the group at `path`, with its group.
pub fn members(path: &Path) -> Result<Vec<(PathBuf, i32)>> {
    let found = tree::processes(open(path)?)?.into_iter();
    // A push of nothing would end the path with a slash.
    let whole = |below: &Path| if below.as_os_str().is_empty() { path.to_owned() } else { path.join(below) };
    Ok(found.map(|(group, pid)| (whole(&group), pid)).collect())
}

fn wait_until_empty(dir: &OwnedFd, deadline: Instant) -> Result<()> {
    wait_for_event(dir, "populated 0", deadline)
}

/// Waits until `cgroup.events` holds `line`; the kernel wakes pollers at each change.
fn wait_for_event(dir: &OwnedFd, line: &str, deadline: Instant) -> Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let events =
        rustix::fs::openat(dir, "cgroup.events", flags, Mode::empty()).call(|| "open 'cgroup.events'".into())?;
    let mut buffer = [0; 256];
    loop {
        let len = rustix::io::pread(&events, &mut buffer, 0).call(|| "read 'cgroup.events'".into())?;
        if buffer[..len].split(|b| *b == b'\n').any(|l| l == line.as_bytes()) {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error { call: format!("waiting for '{line}' in cgroup.events"), errno: Errno::ETIMEDOUT });
        }
        let wait = PollTimeout::from(u16::try_from(left.as_millis()).unwrap_or(u16::MAX));
        match poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], wait) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error { call: "poll('cgroup.events')".into(), errno }),
        }
    }
}
