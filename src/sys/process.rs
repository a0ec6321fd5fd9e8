//! Processes: pidfds, identities, capabilities, filters, and what happens just before exec.

use std::ffi::{CStr, CString, c_int, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::{Context, Errno, Error, Result, check, read_text};

/// Path of the program that runs.
pub const THIS_PROGRAM: &str = "/proc/self/exe";

/// Flags for new namespaces and for [`setns`], from `<linux/sched.h>`.
pub mod ns {
    /// Mounts.
    pub const MOUNT: u64 = 0x0002_0000;
    /// Control groups.
    pub const CGROUP: u64 = 0x0200_0000;
    /// Host name.
    pub const UTS: u64 = 0x0400_0000;
    /// System V IPC and POSIX message queues.
    pub const IPC: u64 = 0x0800_0000;
    /// Ids and capabilities.
    pub const USER: u64 = 0x1000_0000;
    /// Process ids.
    pub const PID: u64 = 0x2000_0000;
    /// Network.
    pub const NET: u64 = 0x4000_0000;
    /// Monotonic and boot clocks.
    pub const TIME: u64 = 0x0000_0080;
}

/// Leaves at once, running no destructor: how every child that executes nothing ends.
pub fn exit_now(code: u8) -> ! {
    // SAFETY: ends the process; nothing of it is used afterwards.
    unsafe { libc::_exit(c_int::from(code)) }
}

/// Opens a pidfd for a process that cannot be reused, being our child or checked by the caller afterwards.
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd> {
    let raw = rustix::process::Pid::from_raw(pid.as_raw())
        .ok_or(Error { call: format!("pidfd_open({pid})"), errno: Errno::ESRCH })?;
    rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()).call(|| format!("pidfd_open({pid})"))
}

/// The number of the process behind a pidfd, in the PID namespace of `/proc`; ESRCH if it has been reaped.
pub fn pidfd_number(pidfd: impl AsFd) -> Result<Pid> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_fd().as_raw_fd());
    let text = read_text(&path)?;
    let number = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    let number = number.filter(|number| *number > 0);
    number.map(Pid::from_raw).ok_or(Error { call: format!("read('{path}')"), errno: Errno::ESRCH })
}

/// Sends signal number `signal` (real-time ones included) to the process behind a pidfd.
pub fn pidfd_send_signal(pidfd: impl AsFd, signal: i32) -> Result<()> {
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: no memory is passed; the descriptor is borrowed for the call.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, std::ptr::null::<c_void>(), 0) };
    check(result).call(|| format!("pidfd_send_signal({signal})")).map(drop)
}

/// Sends a signal to the process group led by the process behind a pidfd, or to that process alone where the
/// kernel is older than 6.9 or it leads no group.
pub fn pidfd_signal_group(pidfd: impl AsFd, signal: i32) -> Result<()> {
    const PIDFD_SIGNAL_PROCESS_GROUP: u32 = 1 << 2;
    let fd = pidfd.as_fd().as_raw_fd();
    let none = std::ptr::null::<c_void>();
    // SAFETY: no memory is passed; the descriptor is borrowed for the call.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, none, PIDFD_SIGNAL_PROCESS_GROUP) };
    if result == 0 { Ok(()) } else { pidfd_send_signal(pidfd, signal) }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this exit status.
    Exited(u8),
    /// By this signal.
    Killed(i32),
}

/// Kills the child behind a pidfd and reaps it, whether it has ended by itself or not. The wait for a killed child is
/// short.
pub fn kill_and_reap(pidfd: impl AsFd) {
    let _ = pidfd_send_signal(&pidfd, libc::SIGKILL);
    let _ = wait_pidfd(&pidfd, true);
}

/// Reaps the child behind a pidfd, waiting for it unless `block` is false (`None`: it still runs).
pub fn wait_pidfd(pidfd: impl AsFd, block: bool) -> Result<Option<Ended>> {
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
    let flags = if block { WaitPidFlag::WEXITED } else { WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG };
    loop {
        return match waitid(Id::PIDFd(pidfd.as_fd()), flags) {
            Ok(WaitStatus::Exited(_, code)) => Ok(Some(Ended::Exited(u8::try_from(code & 0xff).unwrap_or(255)))),
            Ok(WaitStatus::Signaled(_, signal, _)) => Ok(Some(Ended::Killed(signal as i32))),
            Ok(_) => Ok(None),
            Err(Errno::EINTR) => continue,
            Err(errno) => Err(Error { call: "waitid(pidfd)".into(), errno }),
        };
    }
}

fn prctl(option: c_int, arg: u64, name: &str) -> Result<i32> {
    // SAFETY: the options used here take plain numbers.
    let result = unsafe { libc::prctl(option, arg, 0, 0, 0) };
    check(libc::c_long::from(result)).call(|| format!("prctl({name}, {arg})"))
}

/// Asks for `SIGKILL` when the parent dies; the caller must check afterwards that it has not died already.
pub fn die_with_parent() -> Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, "PR_SET_PDEATHSIG").map(drop)
}

/// Forbids others of the same ids to trace us or to read our `/proc` files.
pub fn set_undumpable() -> Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0, "PR_SET_DUMPABLE").map(drop)
}

/// Sets `no_new_privs` for good.
fn set_no_new_privileges() -> Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, "PR_SET_NO_NEW_PRIVS").map(drop)
}

/// Names the process as `ps` shows it.
pub fn set_name(name: &CStr) {
    // SAFETY: reads a terminated string. It cannot fail.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// The effective capabilities of this process as a mask.
pub fn effective_set() -> Result<u64> {
    rustix::thread::capabilities(None).call(|| "capget".into()).map(|sets| sets.effective.bits())
}

/// Takes everything but `keep` out of the bounding set, every capability that the kernel knows.
///
/// A new user namespace begins with all of them, whatever its maker's bounding set was.
pub fn limit_bounding_set(keep: u64) -> Result<()> {
    for bit in (0..64u64).filter(|bit| keep & (1 << bit) == 0) {
        match prctl(libc::PR_CAPBSET_DROP, bit, "PR_CAPBSET_DROP") {
            Err(e) if e.errno == Errno::EINVAL => break,
            other => other?,
        };
    }
    Ok(())
}

/// Sets the permitted and effective capabilities to `set`, the inheritable and ambient ones to none.
pub fn set_capabilities(set: u64) -> Result<()> {
    use rustix::thread::{CapabilitySet, CapabilitySets};
    // SAFETY: takes numbers only.
    let cleared = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    check(libc::c_long::from(cleared)).call(|| "prctl(PR_CAP_AMBIENT_CLEAR_ALL)".into())?;
    let wanted = CapabilitySet::from_bits_retain(set);
    let sets = CapabilitySets { effective: wanted, permitted: wanted, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).call(|| format!("capset({set:#x})"))
}

/// The bit of `CAP_SYS_ADMIN` (`capabilities(7)`).
pub const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Gives up all capabilities but these and installs the filter, unless that is empty: afterwards only exec is left.
///
/// The caller holds `CAP_SYS_ADMIN`, by which the filter needs no `no_new_privs`. So the filter is loaded as the last step if the
/// capability stays; else before the capabilities go, and must then allow `capset`.
pub fn limit_rights(capabilities: u64, filter: &[FilterInsn], no_new_privileges: bool) -> Result<()> {
    if no_new_privileges {
        set_no_new_privileges()?;
    }
    let load = || if filter.is_empty() { Ok(()) } else { load_filter(filter) };
    if capabilities & CAP_SYS_ADMIN == 0 {
        load()?;
        return set_capabilities(capabilities);
    }
    set_capabilities(capabilities)?;
    load()
}

/// Keeps the permitted capabilities when the user changes from root to another, until exec.
pub fn keep_capabilities() -> Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, 1, "PR_SET_KEEPCAPS").map(drop)
}

/// One instruction of a classic BPF program, laid out as the kernel's `struct sock_filter`.
pub use libc::sock_filter as FilterInsn;

/// Installs a system call filter for this process; it needs `CAP_SYS_ADMIN` or `no_new_privs` (`seccomp(2)`).
fn load_filter(program: &[FilterInsn]) -> Result<()> {
    let name = || format!("seccomp(SECCOMP_SET_MODE_FILTER, {} instructions)", program.len());
    let len = u16::try_from(program.len()).map_err(|_| Error { call: name(), errno: Errno::E2BIG })?;
    let prog = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: `prog` points at `program`, which outlives the call; the kernel only reads it.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const prog) };
    check(result).call(name).map(drop)
}

/// This program again, by whatever path it came and even if its file has been replaced: the only program that we run
/// on the host.
#[allow(clippy::disallowed_methods, reason = "the one place that names a program")]
pub fn this_program() -> std::process::Command {
    use std::os::unix::process::CommandExt as _;
    let mut command = std::process::Command::new(THIS_PROGRAM);
    command.arg0("machinist");
    command
}

/// Makes `command` run with this soft limit of open files (`RLIMIT_NOFILE`).
pub fn limit_files_of(command: &mut std::process::Command, soft: u64) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use std::os::unix::process::CommandExt as _;
    let set = move || {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        Ok(setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard)?)
    };
    // SAFETY: in the new process, which has our memory, it makes two system calls and allocates nothing.
    unsafe { command.pre_exec(set) };
}

/// Joins a new, empty session keyring, so that no key of the host is possessed (`keyctl(2)`).
///
/// A kernel without keyrings has none to leak, so ENOSYS is fine.
pub fn join_new_keyring() -> Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0) };
    match check(result) {
        Err(Errno::ENOSYS | Errno::EPERM) => Ok(()),
        other => other.call(|| "keyctl(KEYCTL_JOIN_SESSION_KEYRING)".into()).map(drop),
    }
}

/// Marks every descriptor from `first` on close-on-exec, also those that other code opened.
pub fn close_from_on_exec(first: u32) -> Result<()> {
    // SAFETY: changes flags of descriptors, closes none.
    let result = unsafe { libc::close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as c_int) };
    check(libc::c_long::from(result)).call(|| format!("close_range({first}, CLOSE_RANGE_CLOEXEC)")).map(drop)
}

/// Closes every descriptor from 3 on except those of `keep`.
///
/// Values that own the closed descriptors must not be dropped afterwards.
pub fn close_all_except(keep: &[BorrowedFd<'_>]) -> Result<()> {
    close_all_except_numbers(keep.iter().map(AsRawFd::as_raw_fd))
}

/// The same by number.
pub(super) fn close_all_except_numbers(keep: impl Iterator<Item = RawFd>) -> Result<()> {
    let mut numbers: Vec<u32> = keep.filter_map(|fd| u32::try_from(fd).ok()).collect();
    numbers.sort_unstable();
    let mut first = 3;
    for number in numbers.into_iter().filter(|number| *number >= 3).chain([u32::MAX]) {
        if first < number {
            let last = if number == u32::MAX { number } else { number - 1 };
            // SAFETY: the caller promises that nothing uses these descriptors again.
            let result = unsafe { libc::close_range(first, last, 0) };
            check(libc::c_long::from(result)).call(|| format!("close_range({first}, {last})"))?;
        }
        first = number.saturating_add(1);
    }
    Ok(())
}

/// Enters the namespaces `flags` of the process behind a pidfd, all at once (`setns(2)`).
pub fn setns(pidfd: impl AsFd, flags: u64) -> Result<()> {
    let flags32 = c_int::try_from(flags).unwrap_or(c_int::MAX);
    // SAFETY: takes a borrowed descriptor and a number.
    let result = unsafe { libc::setns(pidfd.as_fd().as_raw_fd(), flags32) };
    check(libc::c_long::from(result)).call(|| format!("setns(pidfd, {flags:#x})")).map(drop)
}

/// The identity of a PID namespace: device and inode of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PidNamespace(u64, u64);

fn open_pid_namespace(pid: i32) -> Result<(PidNamespace, std::fs::File)> {
    use std::os::unix::fs::MetadataExt as _;
    let path = format!("/proc/{pid}/ns/pid");
    let file = std::fs::File::open(&path).call(|| format!("open('{path}')"))?;
    let metadata = file.metadata().call(|| format!("fstat('{path}')"))?;
    Ok((PidNamespace(metadata.dev(), metadata.ino()), file))
}

/// The PID namespace of a process.
pub fn pid_namespace(pid: i32) -> Result<PidNamespace> {
    open_pid_namespace(pid).map(|(namespace, _)| namespace)
}

/// Whether a process is in that PID namespace or in one below it; one that has ended is in none.
pub fn is_in_pid_namespace(pid: i32, wanted: &PidNamespace) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let Ok((mut namespace, mut file)) = open_pid_namespace(pid) else { return false };
    // The kernel nests 32 deep, and refuses to show what is above our own.
    while namespace != *wanted {
        // SAFETY: takes no argument; the descriptor is borrowed for the call.
        let raw = unsafe { libc::ioctl(file.as_raw_fd(), libc::NS_GET_PARENT) };
        if raw < 0 {
            return false;
        }
        // SAFETY: a new descriptor that nothing else owns.
        file = unsafe { std::fs::File::from_raw_fd(raw) };
        let Ok(metadata) = file.metadata() else { return false };
        namespace = PidNamespace(metadata.dev(), metadata.ino());
    }
    true
}

/// Leaves the namespaces `flags` for new ones (`unshare(2)`).
pub fn unshare(flags: u64) -> Result<()> {
    let flags32 = c_int::try_from(flags).unwrap_or(c_int::MAX);
    // SAFETY: takes a number; callers have one thread.
    let result = unsafe { libc::unshare(flags32) };
    check(libc::c_long::from(result)).call(|| format!("unshare({flags:#x})")).map(drop)
}

/// Becomes user and group `uid`/`gid` with exactly these supplementary groups; all three ids of each kind.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> Result<()> {
    let gids: Vec<nix::unistd::Gid> = groups.iter().map(|g| nix::unistd::Gid::from_raw(*g)).collect();
    nix::unistd::setgroups(&gids).call(|| format!("setgroups({groups:?})"))?;
    let g = nix::unistd::Gid::from_raw(gid);
    nix::unistd::setresgid(g, g, g).call(|| format!("setresgid({gid})"))?;
    let u = nix::unistd::Uid::from_raw(uid);
    nix::unistd::setresuid(u, u, u).call(|| format!("setresuid({uid})"))
}

/// Becomes root of the user namespace that was entered.
///
/// The supplementary groups stay: there it may be forbidden to change them, so that is done before.
pub fn become_root() -> Result<()> {
    let (gid, uid) = (nix::unistd::Gid::from_raw(0), nix::unistd::Uid::from_raw(0));
    nix::unistd::setresgid(gid, gid, gid).call(|| "setresgid(0)".into())?;
    nix::unistd::setresuid(uid, uid, uid).call(|| "setresuid(0)".into())
}

/// Runs `work` with the file system identity `id` and all our capabilities, so that what it makes belongs to `id`.
///
/// On an idmapped mount a creator without an id of the map is refused (EOVERFLOW), so a later chown is no way.
pub fn as_file_user<T>(id: u32, work: impl FnOnce() -> T) -> T {
    let set = |uid: u32, gid: u32| {
        // Like the calls themselves this cannot fail visibly; a missing privilege shows in `work`.
        nix::unistd::setfsgid(nix::unistd::Gid::from_raw(gid));
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(uid));
    };
    if id == 0 {
        return work();
    }
    let rights = rustix::thread::capabilities(None);
    let tie = nix::sys::prctl::get_pdeathsig();
    set(id, id);
    // Leaving id 0 has taken those away that concern files.
    let _ = rights.map(|rights| rustix::thread::set_capabilities(None, rights));
    let result = work();
    set(0, 0);
    // Cleared by the change of ids.
    let _ = tie.map(nix::sys::prctl::set_pdeathsig);
    result
}

/// Makes a new session and takes the terminal `tty` as its controlling one.
pub fn take_terminal(tty: impl AsFd) -> Result<()> {
    nix::unistd::setsid().call(|| "setsid".into())?;
    rustix::process::ioctl_tiocsctty(tty).call(|| "ioctl(TIOCSCTTY)".into())
}

/// The signals that this process ignores or handles, bit 0 for signal 1; all of them if that cannot be read.
pub fn changed_signals() -> u64 {
    let Ok(status) = read_text(Path::new("/proc/self/status")) else { return u64::MAX };
    ["SigIgn:", "SigCgt:"].iter().fold(0, |set, key| {
        let value = status.lines().find_map(|line| line.strip_prefix(key));
        set | value.and_then(|v| u64::from_str_radix(v.trim(), 16).ok()).unwrap_or(u64::MAX)
    })
}

/// Gives the signals of `changed` their default action and blocks none, as exec's successor expects.
///
/// `changed` is what [`changed_signals`] returned before, or everything.
pub fn reset_signals(changed: u64) -> Result<()> {
    // The kernel's `struct sigaction` with the default action. libc would refuse its own two signals, and
    // our caller may have had them ignored.
    let default = [0_u64; 4];
    for number in (1..=libc::SIGRTMAX()).filter(|number| changed >> (number - 1) & 1 != 0) {
        // SAFETY: reads 32 bytes of ours and sets a default action; KILL and STOP are refused, which is fine.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), std::ptr::null::<u64>(), 8_usize) };
    }
    nix::sys::signal::SigSet::empty().thread_set_mask().call(|| "sigprocmask(none)".into())
}

/// Replaces this process by `program`; comes back only with the error.
pub fn exec(program: &CStr, argv: &[CString], envp: &[CString]) -> Error {
    match nix::unistd::execve(program, argv, envp) {
        Err(errno) => Error { call: format!("execve('{}')", program.to_string_lossy()), errno },
        Ok(never) => match never {},
    }
}

/// Replaces this process by the program behind a descriptor; comes back only with the error.
pub fn exec_fd(program: impl AsFd, shown: &str, argv: &[CString], envp: &[CString]) -> Error {
    let flags = nix::fcntl::AtFlags::AT_EMPTY_PATH;
    match nix::unistd::execveat(program.as_fd(), c"", argv, envp, flags) {
        Err(errno) => Error { call: format!("execveat('{shown}')"), errno },
        Ok(never) => match never {},
    }
}

/// Text as the kernel wants it; a zero byte inside is EINVAL.
pub fn c_string(text: impl Into<Vec<u8>>) -> Result<CString> {
    CString::new(text).map_err(|_| Error { call: "text with a zero byte".into(), errno: Errno::EINVAL })
}

/// Same, for a path.
pub fn c_path(path: &Path) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    c_string(path.as_os_str().as_bytes())
}

/// Blocks the signals `set` and gives a descriptor that reports them, non-blocking.
pub fn signal_fd(set: &[Signal]) -> Result<nix::sys::signalfd::SignalFd> {
    use nix::sys::signalfd::{SfdFlags, SignalFd};
    let mut mask = nix::sys::signal::SigSet::empty();
    set.iter().for_each(|s| mask.add(*s));
    mask.thread_block().call(|| "sigprocmask(block)".into())?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).call(|| "signalfd".into())
}

/// Brings the loopback link of the current network namespace up.
pub fn loopback_up() -> Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let fd = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .call(|| "socket(AF_INET)".into())?;
    // SAFETY: an ifreq is plain data; zero is a valid state of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l'.cast_signed();
    request.ifr_name[1] = b'o'.cast_signed();
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(0);
    // SAFETY: `request` is a whole ifreq that outlives the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    check(libc::c_long::from(result)).call(|| "ioctl(SIOCSIFFLAGS, lo up)".into()).map(drop)
}

/// Fills `buffer` with random bytes (`getrandom(2)`).
pub fn random(buffer: &mut [u8]) -> Result<()> {
    // SAFETY: the pointer and length are those of one buffer; up to 256 bytes come whole.
    let result = unsafe { libc::getrandom(buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    match Errno::result(result).call(|| "getrandom".into())? {
        n if n.cast_unsigned() == buffer.len() => Ok(()),
        _ => Err(Error { call: "getrandom".into(), errno: Errno::EAGAIN }),
    }
}

/// Gives memory that is not needed for waiting back to the kernel: the heap's free pages and the pages of code.
///
/// Code pages come back from the page cache when they run again (a few minor faults).
pub fn trim_memory() {
    // SAFETY: returns free heap pages; no pointer of ours is touched.
    unsafe { libc::malloc_trim(0) };
    let Ok(maps) = read_text("/proc/self/maps") else { return };
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(range), Some(mode)) = (words.next(), words.next()) else { continue };
        let file_backed = words.nth(2).is_some_and(|inode| inode != "0");
        // Only clean pages: text and read-only data before relocation. RELRO pages are private copies
        // ("r--p" too, but dirty), which DONTNEED would undo, so only executable mappings are given back.
        if mode != "r-xp" || !file_backed {
            continue;
        }
        let Some((start, end)) = range.split_once('-') else { continue };
        let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16)) else { continue };
        // SAFETY: a private, executable file mapping is never written, so dropping its pages loses nothing.
        unsafe { libc::madvise(start as *mut c_void, end - start, libc::MADV_DONTNEED) };
    }
}

/// Hangs up the controlling terminal, as a getty does.
#[cfg(test)]
pub fn vhangup() -> Result<()> {
    // SAFETY: takes nothing.
    let result = unsafe { libc::vhangup() };
    check(libc::c_long::from(result)).call(|| "vhangup".into()).map(drop)
}
