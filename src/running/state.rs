//! What others may know of a running machine: a file written by rename, beside the lock that makes it valid.
//!
//! ```text
//! /run/machinist/machines/NAME/lock        held by the supervisor as long as the machine runs
//!                              state.json  this
//!                              control     SEQPACKET socket of the supervisor
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cgroup;
use crate::plan::limits::Limit;
use crate::plan::seccomp::SyscallPolicy;
use crate::spec::{IdRange, InitKind, Layout, MachineName, ProcessLimits, Resources, RestartPolicy};
use crate::sys::file;
use crate::sys::{self, Context as _, Errno, Error, process};

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Its init has begun.
    Starting,
    /// It is ready.
    Running,
    /// It has been asked to stop or to reboot.
    Stopping,
    /// It has ended by itself and is about to be started again.
    Restarting,
}

impl Phase {
    /// The word used in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Restarting => "restarting",
        }
    }
}

/// The state file. It is between supervisors and those who look, all of one version or the next; what users see is in
/// [`view`](super::view).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct State {
    /// The machine.
    pub name: String,
    /// Its id in the host's table of machines; unset if it is not to be there.
    #[serde(default)]
    pub machine_id: Option<String>,
    /// Where it is in its life.
    pub phase: Phase,
    /// PID 1 of the machine as the host sees it; 0 while there is none.
    pub leader: i32,
    /// When the leader started, in clock ticks since boot: distinguishes it from a later process of the same number.
    pub leader_start: u64,
    /// The supervisor's process.
    pub supervisor: i32,
    /// Start of this boot of the machine, in seconds since 1970.
    pub since: u64,
    /// Its host ids, if it has a user namespace.
    pub ids: Option<IdRange>,
    /// Whether its network is its own.
    pub private_network: bool,
    /// Whether its boot clock is its own.
    pub own_clock: bool,
    /// Its control group on the host.
    pub cgroup: PathBuf,
    /// The unit whose group that is; unset if it is ours.
    #[serde(default)]
    pub unit: Option<String>,
    /// Mask of its capabilities.
    pub capabilities: u64,
    /// Whether setuid programs have no effect.
    pub no_new_privileges: bool,
    /// Limits of its processes one by one.
    #[serde(default)]
    pub process_limits: ProcessLimits,
    /// Changes to the system call filter.
    pub seccomp: SyscallPolicy,
    /// What its limits are asked to be.
    #[serde(default)]
    pub resources: Resources,
    /// What was written for them.
    #[serde(default)]
    pub limits: Vec<Limit>,
    /// Path of its init, if it has one.
    pub init: Option<String>,
    /// Kind of its init, if we know it.
    pub init_kind: Option<InitKind>,
    /// What its root is made of, in words.
    pub root: String,
    /// The file it is defined by.
    pub definition: Option<PathBuf>,
    /// The last status that the guest reported (`STATUS=`).
    pub status: Option<String>,
    /// What has to happen before it counts as ready, in words.
    #[serde(default)]
    pub waits_for: Option<String>,
    /// How often it has been started again after it had ended by itself.
    #[serde(default)]
    pub restarts: u32,
    /// What happened to it before the last of these, to follow its name.
    #[serde(default)]
    pub last_end: Option<String>,
    /// The daemon starts it again by these rules if its supervisor is killed; unset if that is another program's task.
    #[serde(default)]
    pub restart: Option<RestartPolicy>,
}

const FILE: &str = "state.json";
const LOCK: &str = "lock";

/// The run directory of a machine we hold the lock of.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    dir: OwnedFd,
    _lock: OwnedFd,
}

/// Why a run directory cannot be had.
#[derive(Debug)]
pub enum RunDirError {
    /// Another process holds the lock.
    Running,
    /// A call failed.
    Call(Error),
}

impl From<Error> for RunDirError {
    fn from(e: Error) -> Self {
        Self::Call(e)
    }
}

impl RunDir {
    /// Makes the directory and takes the lock.
    pub fn acquire(layout: &Layout, name: &MachineName) -> Result<Self, RunDirError> {
        let path = layout.run_dir(name);
        loop {
            make_private_dir(&path)?;
            let dir = open_dir(&path)?;
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let lock = match rustix::fs::openat(&dir, LOCK, flags, Mode::from_raw_mode(0o600)) {
                // Removed by an earlier owner between our two calls.
                Err(rustix::io::Errno::NOENT) => continue,
                other => other.call(|| format!("open('{}/{LOCK}')", path.display()))?,
            };
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) if has_owner(&lock)? => return Err(RunDirError::Running),
                // Another process is looking whether there is one; that does not take long.
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    std::thread::yield_now();
                    continue;
                }
                Err(e) => return Err(e).call(|| format!("flock('{}/{LOCK}')", path.display())).map_err(Into::into),
            }
            // The owner before us removes the file before it lets go of the lock.
            if rustix::fs::fstat(&lock).is_ok_and(|s| s.st_nlink > 0) {
                return Ok(Self { path, dir, _lock: lock });
            }
        }
    }

    /// The directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The state that a killed supervisor left.
    pub fn left_over(&self) -> Option<State> {
        let text = file::read(self.path.join(FILE)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Replaces the state file.
    pub fn write(&self, state: &State) -> sys::Result<()> {
        let call = || format!("write('{}/{FILE}')", self.path.display());
        let text = serde_json::to_vec(state).map_err(|_| Error { call: call(), errno: Errno::EINVAL })?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(&self.dir, "state.new", flags, Mode::from_raw_mode(0o600)).call(call)?;
        let written = rustix::io::write(&fd, &text).call(call)?;
        if written != text.len() {
            return Err(Error { call: call(), errno: Errno::ENOSPC });
        }
        rustix::fs::renameat(&self.dir, "state.new", &self.dir, FILE).call(call)
    }

    /// Removes the directory with everything in it; the lock goes last.
    pub fn release(self) -> sys::Result<()> {
        let mut result = Ok(());
        for file in [FILE, "state.new", super::control::SOCKET, LOCK] {
            match rustix::fs::unlinkat(&self.dir, file, rustix::fs::AtFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(e) => result = Err(e).call(|| format!("unlink('{}/{file}')", self.path.display())),
            }
        }
        match rustix::fs::rmdir(&self.path) {
            Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTEMPTY) => result,
            Err(e) => result.and(Err(e).call(|| format!("rmdir('{}')", self.path.display()))),
        }
    }
}

/// Makes a directory that only root may enter, and its parents.
pub fn make_private_dir(path: &Path) -> sys::Result<()> {
    let make = || rustix::fs::mkdir(path, Mode::from_raw_mode(0o700));
    let result = match make() {
        Err(rustix::io::Errno::NOENT) => {
            let parent = path.parent().unwrap_or(path);
            file::make_dirs(parent)?;
            make()
        }
        other => other,
    };
    match result {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(e) => Err(e).call(|| format!("mkdir('{}')", path.display())),
    }
}

fn open_dir(path: &Path) -> sys::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::empty()).call(|| format!("open('{}')", path.display()))
}

/// Waits until no other process changes a running machine's limits, and keeps others from it as long as the result lives.
pub fn hold_limits(layout: &Layout, name: &MachineName) -> sys::Result<OwnedFd> {
    let path = layout.run_dir(name);
    let dir = open_dir(&path)?;
    rustix::fs::flock(&dir, FlockOperation::LockExclusive).call(|| format!("flock('{}')", path.display()))?;
    Ok(dir)
}

/// Reads the state of a machine whose supervisor lives; `None` if it is not running.
pub fn read(layout: &Layout, name: &MachineName) -> sys::Result<Option<State>> {
    let path = layout.run_dir(name);
    let dir = match open_dir(&path) {
        Ok(dir) => dir,
        Err(e) if e.errno == Errno::ENOENT => return Ok(None),
        Err(e) => return Err(e),
    };
    if !is_locked(&dir)? {
        return Ok(None);
    }
    let text = match file::read(path.join(FILE)) {
        Ok(text) => text,
        Err(e) if e.errno == Errno::ENOENT => return Ok(None),
        Err(e) => return Err(e),
    };
    let broken = || Error { call: format!("reading '{}/{FILE}'", path.display()), errno: Errno::EBADMSG };
    serde_json::from_slice(&text).map(Some).map_err(|_| broken())
}

/// The state that a supervisor which was killed has left of a machine, if none owns it by now.
pub fn abandoned(layout: &Layout, name: &MachineName) -> Option<State> {
    let text = file::read(layout.run_dir(name).join(FILE)).ok()?;
    let state = serde_json::from_slice(&text).ok()?;
    // Asked afterwards, so that it is not what an owner is about to write.
    is_owned(layout, name).is_ok_and(|owned| !owned).then_some(state)
}

/// Whether a supervisor owns a machine, however far it has come with it.
pub fn is_owned(layout: &Layout, name: &MachineName) -> sys::Result<bool> {
    match open_dir(&layout.run_dir(name)) {
        Ok(dir) => is_locked(&dir),
        Err(e) if e.errno == Errno::ENOENT => Ok(false),
        Err(e) => Err(e),
    }
}

fn is_locked(dir: &OwnedFd) -> sys::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock = match rustix::fs::openat(dir, LOCK, flags, Mode::empty()) {
        Ok(lock) => lock,
        Err(rustix::io::Errno::NOENT) => return Ok(false),
        Err(e) => return Err(e).call(|| format!("open('{LOCK}')")),
    };
    has_owner(&lock)
}

/// Whether the lock is held exclusively. A process that looks shares it for a moment; [`RunDir::acquire`] tells it
/// from an owner in the same way.
fn has_owner(lock: &OwnedFd) -> sys::Result<bool> {
    match rustix::fs::flock(lock, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(e) => Err(e).call(|| format!("flock('{LOCK}')")),
    }
}

/// Names of the machines that have a run directory, running or left over.
pub fn names(layout: &Layout) -> Vec<MachineName> {
    let Ok(entries) = file::list(layout.run_root().join("machines")) else { return Vec::new() };
    let names = entries.filter_map(|e| MachineName::parse(e.ok()?.file_name().to_str()?).ok());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

impl State {
    /// The word for what the machine does now.
    pub fn word(&self) -> &'static str {
        if cgroup::is_frozen(&self.cgroup) { "frozen" } else { self.phase.as_str() }
    }

    /// Its limits as the kernel has them, by the files they are in.
    pub fn limits_in_force(&self) -> Value {
        cgroup::limits::in_force(&self.cgroup, &self.limits)
    }

    /// PID 1 of the machine as the host sees it, if there is one at the moment.
    pub fn leader(&self) -> Option<i32> {
        (self.leader > 0).then_some(self.leader)
    }

    /// The payload's control group on the host.
    pub fn payload_group(&self) -> PathBuf {
        self.cgroup.join("payload")
    }

    /// A pidfd of the leader, checked to be the process that was started.
    pub fn open_leader(&self) -> sys::Result<OwnedFd> {
        let pidfd = process::pidfd_open(Pid::from_raw(self.leader))?;
        if start_time(self.leader) != Some(self.leader_start) {
            return Err(Error {
                call: format!("finding process {} of machine '{}'", self.leader, self.name),
                errno: Errno::ESRCH,
            });
        }
        Ok(pidfd)
    }
}

/// Start of a process in clock ticks since boot (`proc_pid_stat(5)`, field 22).
pub fn start_time(pid: i32) -> Option<u64> {
    stat_field(pid, 22)
}

/// Whether a child of ours, alive or not yet waited for, has executed a program since it was forked.
pub fn has_executed(pid: i32) -> bool {
    const PF_FORKNOEXEC: u64 = 0x40;
    stat_field(pid, 9).is_some_and(|flags| flags & PF_FORKNOEXEC == 0)
}

/// A field of `proc_pid_stat(5)` after the second, by its number there.
fn stat_field(pid: i32, number: usize) -> Option<u64> {
    let stat = sys::read_text(Path::new(&format!("/proc/{pid}/stat"))).ok()?;
    // The name in parentheses may hold anything, so count from its end.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(number - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> (tempfile::TempDir, Layout) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let layout = Layout::system(dir.path());
        (dir, layout)
    }

    #[test]
    fn a_run_directory_has_one_owner_and_leaves_nothing() {
        let (dir, layout) = layout();
        let name = MachineName::parse("web").expect("valid");
        let first = RunDir::acquire(&layout, &name).expect("free");
        assert!(matches!(RunDir::acquire(&layout, &name), Err(RunDirError::Running)));
        first.release().expect("release");
        assert!(!layout.run_dir(&name).exists());
        assert!(RunDir::acquire(&layout, &name).is_ok());
        drop(dir);
    }

    #[test]
    fn whoever_looks_keeps_nobody_from_starting() {
        let (_dir, layout) = layout();
        let name = MachineName::parse("web").expect("valid");
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !over.load(std::sync::atomic::Ordering::Relaxed) {
                        is_owned(&layout, &name).expect("look");
                    }
                });
            }
            let starts = (0..2000).map(|_| RunDir::acquire(&layout, &name).map(RunDir::release));
            let failed = starts.filter(|start| !matches!(start, Ok(Ok(())))).count();
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(failed, 0, "starts of 2000 that a reader was in the way of");
        });
    }

    #[test]
    fn state_without_a_living_supervisor_is_none() {
        let (_dir, layout) = layout();
        let name = MachineName::parse("web").expect("valid");
        assert_eq!(read(&layout, &name).expect("read"), None);
        drop(RunDir::acquire(&layout, &name).expect("free"));
        assert_eq!(read(&layout, &name).expect("read"), None);
        assert_eq!(names(&layout), [name]);
    }

    #[test]
    fn start_time_survives_odd_process_names() {
        let own = start_time(i32::try_from(std::process::id()).expect("fits"));
        assert!(own.is_some_and(|t| t > 0));
        assert_eq!(start_time(i32::MAX), None);
    }
}
