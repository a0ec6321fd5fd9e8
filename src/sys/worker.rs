//! The one way to make a child process.
//!
//! A child begins in a copy of its parent's memory, in which guards stand for locks, groups and files that are the parent's alone.
//! So it runs one closure and leaves by `_exit`: neither a return nor a panic takes it back into the frames it was copied
//! from, and no destructor of theirs runs.

use std::ffi::{CStr, OsString, c_int, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::file;
use super::process::{self, Ended, exit_now};
use super::{Context, Errno, Error, Result, check};

/// Exit status of a child that panicked, as a Rust program has it.
const PANICKED: u8 = 101;

/// Most bytes of a panic's message that are passed on.
const LONGEST_REASON: usize = 300;

/// `CLONE_INTO_CGROUP`; the libc crate's constant overflows to 0.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A child process to be made, and what it takes along.
#[derive(Clone)]
#[allow(missing_debug_implementations, reason = "never printed; lives until the child is made")]
#[must_use]
pub struct Worker<'a> {
    name: &'static CStr,
    renamed: bool,
    namespaces: u64,
    cgroup: Option<BorrowedFd<'a>>,
    sibling: bool,
    tied: bool,
    kill_on_drop: bool,
    kept: Option<Vec<RawFd>>,
    on_panic: Option<&'a dyn Fn(&str)>,
}

impl<'a> Worker<'a> {
    /// One that `ps` shows as `name` (at most 15 bytes).
    pub fn new(name: &'static CStr) -> Self {
        Self { renamed: true, ..Self::unnamed(name) }
    }

    /// One that `ps` shows like its parent: it soon executes a program, or is the parent's heir. Only tests see `name`.
    pub fn unnamed(name: &'static CStr) -> Self {
        Self {
            name,
            renamed: false,
            namespaces: 0,
            cgroup: None,
            sibling: false,
            tied: false,
            kill_on_drop: false,
            kept: None,
            on_panic: None,
        }
    }

    /// Gives it new namespaces (flags of [`process::ns`]).
    pub fn namespaces(self, namespaces: u64) -> Self {
        Self { namespaces, ..self }
    }

    /// Has it born in this control group; in its parent's if there is none.
    pub fn cgroup(self, cgroup: Option<BorrowedFd<'a>>) -> Self {
        Self { cgroup, ..self }
    }

    /// Makes it a child of our parent, who reaps it.
    pub fn sibling(self) -> Self {
        Self { sibling: true, ..self }
    }

    /// Has the kernel kill it when its parent ends. A parent that ends before the child has begun is not seen.
    pub fn tied(self) -> Self {
        Self { tied: true, ..self }
    }

    /// Kills and reaps it when its [`Child`] is dropped.
    pub fn kill_on_drop(self) -> Self {
        Self { kill_on_drop: true, ..self }
    }

    /// Closes every descriptor from 3 on except these; values that own closed ones must not be dropped in the child.
    pub fn keep(self, fds: &[BorrowedFd<'_>]) -> Self {
        Self { kept: Some(fds.iter().map(AsRawFd::as_raw_fd).collect()), ..self }
    }

    /// Has the child call this if it panics, with the reason, so that it can report it to the process that waits for
    /// its answer.
    pub fn on_panic(self, tell: &'a dyn Fn(&str)) -> Self {
        Self { on_panic: Some(tell), ..self }
    }

    /// Makes the child, which leaves with the status that `work` gives; 101 if it panics.
    ///
    /// The caller must have one thread: the child goes on in a copy of this memory, where a lock that another thread
    /// held, such as the allocator's, is never released. What `work` has taken is dropped in the parent, too.
    pub fn spawn(self, work: impl FnOnce() -> u8) -> Result<Child> {
        self.spawn_with((), |()| work()).1
    }

    /// The same for work on a value that both have then; the parent gets its own back.
    pub fn spawn_with<T>(self, value: T, work: impl FnOnce(T) -> u8) -> (T, Result<Child>) {
        let child = match clone3(self.namespaces, self.cgroup, self.sibling) {
            Ok(None) => exit_now(self.run(|| work(value))),
            Ok(Some((pid, pidfd))) => Ok(Child { pid, pidfd, kill_on_drop: self.kill_on_drop }),
            Err(e) => Err(e),
        };
        (value, child)
    }

    /// Is the child.
    fn run(self, work: impl FnOnce() -> u8) -> u8 {
        if let Err(e) = self.set_up() {
            // Not a return: that would drop what `work` has taken.
            exit_now(u8::try_from(e.errno as i32).unwrap_or(u8::MAX));
        }
        catch(self.name, work).unwrap_or_else(|reason| {
            // A child that panics while it reports its panic is as good as killed.
            let _ = self.on_panic.map(|tell| catch_unwind(AssertUnwindSafe(|| tell(&reason))));
            PANICKED
        })
    }

    fn set_up(&self) -> Result<()> {
        if self.renamed {
            process::set_name(self.name);
        }
        if self.tied {
            process::die_with_parent()?;
        }
        self.kept.as_ref().map_or(Ok(()), |kept| process::close_all_except_numbers(kept.iter().copied()))
    }
}

/// A child process; the file descriptor is its pidfd.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    kill_on_drop: bool,
}

impl Child {
    /// Its number, valid until it is reaped.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Reaps it, waiting for its end.
    pub fn wait(&mut self) -> Result<Ended> {
        loop {
            if let Some(ended) = self.reap(true)? {
                return Ok(ended);
            }
        }
    }

    /// Reaps it if it has ended.
    pub fn try_wait(&mut self) -> Result<Option<Ended>> {
        self.reap(false)
    }

    fn reap(&mut self, block: bool) -> Result<Option<Ended>> {
        let ended = process::wait_pidfd(&self.pidfd, block)?;
        self.kill_on_drop &= ended.is_none();
        Ok(ended)
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.kill_on_drop {
            process::kill_and_reap(&self.pidfd);
        }
    }
}

/// Runs `work` in a short-lived process that shares our memory and descriptors, and gives its result.
///
/// The caller sleeps until it is done (`CLONE_VFORK`); it must have one thread. `name` is for errors and tests.
pub fn run_sharing_memory<T>(name: &'static CStr, work: impl FnOnce() -> Result<T>) -> Result<T> {
    const STACK: usize = 64 << 10;
    let (mut work, mut result) = (Some(work), None);
    let mut task = || result = work.take().map(|work| catch(name, work));
    let mut task: &mut dyn FnMut() = &mut task;
    let mut stack = vec![0u128; STACK / 16];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: one past the end of the allocation, 16-byte aligned by its element type.
    let top = unsafe { stack.as_mut_ptr().add(stack.len()) };
    // SAFETY: the stack and `task` live until the child has exited, for CLONE_VFORK keeps us here.
    let pid = unsafe { libc::clone(begin, top.cast(), flags, (&raw mut task).cast()) };
    let pid = check(libc::c_long::from(pid)).call(|| "clone(CLONE_VM | CLONE_VFORK)".into())?;
    waitpid(Pid::from_raw(pid), None).call(|| format!("waitpid({pid})"))?;
    match result {
        Some(Ok(result)) => result,
        Some(Err(reason)) => Err(panicked(name, &reason)),
        None => Err(Error { call: format!("process '{}' was killed", name.to_string_lossy()), errno: Errno::EIO }),
    }
}

/// The error of a child that panicked, for those that answer with errors of calls.
pub fn panicked(name: &CStr, reason: &str) -> Error {
    Error { call: format!("process '{}' panicked ({reason})", name.to_string_lossy()), errno: Errno::EIO }
}

/// Where the child of [`run_sharing_memory`] begins.
extern "C" fn begin(task: *mut c_void) -> c_int {
    // SAFETY: made by `run_sharing_memory`, alive because it sleeps until we exit.
    let task = unsafe { &mut *task.cast::<&mut dyn FnMut()>() };
    task();
    exit_now(0)
}

/// What `work` gives, or why it panicked: in one line of plain characters. `name` is for tests.
pub fn catch<T>(name: &CStr, work: impl FnOnce() -> T) -> std::result::Result<T, String> {
    let work = || {
        panic_if_asked(name.to_str().unwrap_or_default());
        work()
    };
    catch_unwind(AssertUnwindSafe(work)).map_err(|reason| {
        let text = reason.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| reason.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
        let text = text.chars().flat_map(char::escape_debug).take(LONGEST_REASON).collect();
        // Dropping it might panic again.
        std::mem::forget(reason);
        text
    })
}

/// Where a test names who is to panic.
const TEST: &str = "MACHINIST_TEST_PANIC_AT";

/// Panics if a test names this place, or the worker that has come here.
pub fn panic_if_asked(place: &str) {
    let asked = std::env::var_os(TEST).is_some_and(|asked| asked == place);
    assert!(!asked, "a test asks '{place}' to panic");
}

/// What a test says, for a program of ours that gets nothing else of our environment.
pub fn asked_to_panic() -> Option<(&'static str, OsString)> {
    std::env::var_os(TEST).map(|place| (TEST, place))
}

/// Forks with namespaces and control group (`clone(2)`): `None` in the child, its number and pidfd in the parent.
fn clone3(namespaces: u64, cgroup: Option<BorrowedFd<'_>>, sibling: bool) -> Result<Option<(Pid, OwnedFd)>> {
    debug_assert!(cfg!(test) || threads().is_none_or(|threads| threads == 1), "a clone with other threads about");
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data for which zero means "not requested".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces | libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    if sibling {
        // CLONE_PARENT takes the exit signal from the caller.
        args.flags |= libc::CLONE_PARENT as u64;
    } else {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    // SAFETY: `args` and `pidfd` outlive the call and the size is passed along; without CLONE_VM the child has
    // its own copy of the stack.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    let pid = check(result).call(|| format!("clone3({:#x})", args.flags))?;
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: the kernel stored a new descriptor that nothing else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Some((Pid::from_raw(pid), fd)))
}

/// How many threads this process has, if `/proc` is mounted and shows it.
fn threads() -> Option<usize> {
    file::list("/proc/self/task").ok().map(Iterator::count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::lock::LockFile;
    use crate::sys::socket;

    #[test]
    fn a_panic_in_a_child_is_told_and_lets_go_of_no_lock_of_its_parent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = LockFile::try_take(&path).unwrap().unwrap();
        let (ours, theirs) = socket::pair().unwrap();
        let tell = |why: &str| socket::send(&theirs, why.as_bytes(), &[]).unwrap();
        let (held, child) = Worker::unnamed(c"a").on_panic(&tell).spawn_with(&held, |held| {
            let none: Vec<u8> = Vec::new();
            panic!("{held:?}\n{}", none.len());
        });
        assert_eq!(child.unwrap().wait(), Ok(Ended::Exited(PANICKED)));
        let mut buffer = [0; 500];
        let len = socket::receive(&ours, &mut buffer).unwrap().len;
        let why = std::str::from_utf8(&buffer[..len]).unwrap();
        assert!(why.starts_with("LockFile {") && why.ends_with("\\n0"), "{why}");
        assert!(path.exists() && LockFile::try_take(&path).unwrap().is_none(), "{held:?} is held by its parent alone");
    }

    #[test]
    fn a_panic_in_a_process_that_shares_our_memory_is_an_error() {
        let path = tempfile::tempdir().unwrap().path().join("lock");
        let mut seen = String::new();
        let result: Result<()> = run_sharing_memory(c"a", || {
            seen.push_str("here");
            panic!("at {}", path.display());
        });
        let call = format!("process 'a' panicked (at {})", path.display());
        assert_eq!((result, &*seen), (Err(Error { call, errno: Errno::EIO }), "here"));
        assert_eq!(run_sharing_memory(c"a", || Ok(seen.len())), Ok(4));
    }

    #[test]
    fn a_child_gives_its_status_and_is_killed_with_its_value_only_if_that_was_wanted() {
        let mut child = Worker::new(c"a").tied().keep(&[]).spawn(|| 7).unwrap();
        assert_eq!(child.wait(), Ok(Ended::Exited(7)));
        let wait = || {
            nix::unistd::pause();
            0
        };
        let child = Worker::unnamed(c"a").tied().kill_on_drop().spawn(wait).unwrap();
        let pid = child.pid();
        drop(child);
        assert_eq!(nix::sys::signal::kill(pid, None), Err(Errno::ESRCH));
        let mut child = Worker::unnamed(c"a").tied().spawn(wait).unwrap();
        assert_eq!(child.try_wait(), Ok(None));
        process::kill_and_reap(&child);
    }
}
