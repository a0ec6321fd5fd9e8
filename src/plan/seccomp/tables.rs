//! Which system calls belong together, what a machine gets of each set, and their numbers. Data only.
//!
//! Every call of the supported architectures stands in exactly one set, by the kernel's name; a test holds
//! new numbers of the `syscalls` crate to that, so a new call is a decision and never an accident. A set's
//! name is systemd's wherever the contents agree (257 is the guide), so that a filter written for
//! systemd-nspawn reads the same here.

/// A capability that opens a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capability {
    bit: u32,
    pub(super) name: &'static str,
}

impl Capability {
    pub(super) fn is_in(self, caps: u64) -> bool {
        caps >> self.bit & 1 == 1
    }
}

const IPC_LOCK: Capability = Capability { bit: 14, name: "CAP_IPC_LOCK" };
const SYS_MODULE: Capability = Capability { bit: 16, name: "CAP_SYS_MODULE" };
const SYS_RAWIO: Capability = Capability { bit: 17, name: "CAP_SYS_RAWIO" };
const SYS_PTRACE: Capability = Capability { bit: 19, name: "CAP_SYS_PTRACE" };
const SYS_PACCT: Capability = Capability { bit: 20, name: "CAP_SYS_PACCT" };
const SYS_BOOT: Capability = Capability { bit: 22, name: "CAP_SYS_BOOT" };
const SYS_TIME: Capability = Capability { bit: 25, name: "CAP_SYS_TIME" };
const SYS_TTY_CONFIG: Capability = Capability { bit: 26, name: "CAP_SYS_TTY_CONFIG" };
const SYSLOG: Capability = Capability { bit: 34, name: "CAP_SYSLOG" };
const PERFMON: Capability = Capability { bit: 38, name: "CAP_PERFMON" };
const BPF: Capability = Capability { bit: 39, name: "CAP_BPF" };

/// When a machine may use a set that its file does not mention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grant {
    Always,
    With(Capability),
    Never,
}

use Grant::{Always, Never, With};

/// Calls that are allowed or refused together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) name: &'static str,
    pub(super) grant: Grant,
    pub(super) calls: &'static [&'static str],
}

macro_rules! sets {
    ($($name:literal $grant:expr => $($call:ident)+;)+) => {
        pub(super) static SETS: &[Set] =
            &[$(Set { name: $name, grant: $grant, calls: &[$(stringify!($call)),+] }),+];
    };
}

sets! {
    // What every process needs. The futex calls of 6.7 do no more than `futex`; `map_shadow_stack` is an
    // `mmap` for programs that use hardware shadow stacks; `uprobe` and `uretprobe` are called on behalf of
    // a tracer on the host.
    "@default" Always =>
        arch_prctl brk clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
        clock_nanosleep_time64 execve exit exit_group futex futex_requeue futex_time64 futex_wait futex_waitv
        futex_wake get_robust_list get_thread_area getegid getegid32 geteuid geteuid32 getgid getgid32
        getgroups getgroups32 getpgid getpgrp getpid getppid getrandom getresgid getresgid32 getresuid
        getresuid32 getrlimit getsid gettid gettimeofday getuid getuid32 lsm_get_self_attr lsm_list_modules
        map_shadow_stack membarrier mmap mmap2 mprotect mseal munmap nanosleep pause prlimit64
        restart_syscall rseq rt_sigreturn sched_getaffinity sched_yield set_robust_list set_thread_area
        set_tid_address sigreturn time ugetrlimit uprobe uretprobe;

    // A process can only narrow itself with these.
    "@sandbox" Always => landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp;

    "@aio" Always =>
        io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit
        io_uring_enter io_uring_register io_uring_setup;

    "@basic-io" Always =>
        _llseek close close_range dup dup2 dup3 lseek pread64 preadv preadv2 pwrite64 pwritev pwritev2 read
        readv write writev;

    "@chown" Always => chown chown32 fchown fchown32 fchownat lchown lchown32;

    // The `…xattrat` calls (6.13) and `file_…attr` (6.17) reach what older calls and ioctls reach;
    // `statmount` and `listmount` see the caller's mount namespace only.
    "@file-system" Always =>
        access chdir chmod creat faccessat faccessat2 fallocate fchdir fchmod fchmodat fchmodat2 fcntl
        fcntl64 fgetxattr file_getattr file_setattr flistxattr fremovexattr fsetxattr fstat fstat64 fstatat
        fstatat64 fstatfs fstatfs64 ftruncate ftruncate64 futimesat getcwd getdents getdents64 getxattr
        getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch lgetxattr link linkat
        listmount listxattr listxattrat llistxattr lremovexattr lsetxattr lstat lstat64 mkdir mkdirat mknod
        mknodat newfstatat oldfstat oldlstat oldstat open openat openat2 readlink readlinkat removexattr
        removexattrat rename renameat renameat2 rmdir setxattr setxattrat stat stat64 statfs statfs64
        statmount statx symlink symlinkat truncate truncate64 unlink unlinkat utime utimensat
        utimensat_time64 utimes;

    "@io-event" Always =>
        _newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
        epoll_wait_old eventfd eventfd2 poll ppoll ppoll_time64 pselect6 pselect6_time64 select;

    "@ipc" Always =>
        ipc memfd_create mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
        mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd pipe pipe2 process_madvise process_vm_readv
        process_vm_writev semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget;

    // The guest's own systemd builds mount namespaces with these. `open_tree_attr` (6.15) joins `open_tree`
    // and `mount_setattr`, so it grants nothing new.
    "@mount" Always =>
        chroot fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree open_tree_attr
        pivot_root umount umount2;

    "@network-io" Always =>
        accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg
        recvmmsg_time64 recvmsg sendmmsg sendmsg sendto setsockopt shutdown socket socketcall socketpair;

    "@process" Always =>
        capget clone clone3 execveat fork getrusage kill pidfd_open pidfd_send_signal prctl rt_sigqueueinfo
        rt_tgsigqueueinfo setns tgkill tkill unshare vfork wait4 waitid waitpid;

    "@resources" Always =>
        ioprio_set mbind migrate_pages move_pages nice sched_setaffinity sched_setattr sched_setparam
        sched_setscheduler set_mempolicy set_mempolicy_home_node setpriority setrlimit;

    "@setuid" Always =>
        setgid setgid32 setgroups setgroups32 setregid setregid32 setresgid setresgid32 setresuid setresuid32
        setreuid setreuid32 setuid setuid32;

    "@signal" Always =>
        rt_sigaction rt_sigpending rt_sigprocmask rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64
        sigaction sigaltstack signal signalfd signalfd4 sigpending sigprocmask sigsuspend;

    "@sync" Always => fdatasync fsync msync sync sync_file_range syncfs;

    "@timer" Always =>
        alarm getitimer setitimer timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64
        timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
        timerfd_settime64 times;

    // What systemd keeps in no set of its own and systemd-nspawn allows call by call.
    "@general" Always =>
        cachestat capset copy_file_range fadvise64 fadvise64_64 flock get_mempolicy getcpu getpriority ioctl ioprio_get
        kcmp madvise mincore mremap name_to_handle_at oldolduname olduname personality readahead readdir
        remap_file_pages sched_get_priority_max sched_get_priority_min sched_getattr sched_getparam
        sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sendfile sendfile64
        setdomainname setfsgid setfsgid32 setfsuid setfsuid32 sethostname setpgid setsid splice sysinfo tee
        umask uname userfaultfd vmsplice;

    "@accounting" With(SYS_PACCT) => acct;
    "@bpf" With(BPF) => bpf;
    "@clock" With(SYS_TIME) =>
        adjtimex clock_adjtime clock_adjtime64 clock_settime clock_settime64 settimeofday;
    "@hangup" With(SYS_TTY_CONFIG) => vhangup;
    "@memlock" With(IPC_LOCK) => mlock mlock2 mlockall munlock munlockall;
    "@module" With(SYS_MODULE) => delete_module finit_module init_module;
    "@perf" With(PERFMON) => perf_event_open;
    "@ptrace" With(SYS_PTRACE) => ptrace;
    "@raw-io" With(SYS_RAWIO) => ioperm iopl;
    "@restart" With(SYS_BOOT) => reboot;
    "@syslog" With(SYSLOG) => syslog;

    // Old attack surface that only emulators use.
    "@cpu-emulation" Never => modify_ldt vm86 vm86old;

    // Reach past the machine: files by handle whatever the mounts say, notification and quotas of a whole
    // file system, descriptors of other processes, memory the host cannot reclaim, security labels that are the host's to give.
    "@host" Never =>
        fanotify_init fanotify_mark lookup_dcookie lsm_set_self_attr memfd_secret
        open_by_handle_at pidfd_getfd process_mrelease quotactl quotactl_fd;

    // There is one kernel to replace, and it is the host's.
    "@kexec" Never => kexec_file_load kexec_load;

    // Only partly namespaced: quotas are counted per user of the host, and the helper that looks up a missing
    // key is run there.
    "@keyring" Never => add_key keyctl request_key;

    "@obsolete" Never =>
        _sysctl afs_syscall bdflush create_module ftime get_kernel_syms getpmsg gtty idle lock mpx nfsservctl
        prof profil putpmsg query_module security sgetmask ssetmask stime stty sysfs tuxcall ulimit uselib
        ustat vserver;

    "@pkey" Never => pkey_alloc pkey_free pkey_mprotect;

    "@swap" Never => swapoff swapon;
}

/// A name for several sets and calls, for files written with systemd's names in mind.
#[derive(Debug)]
pub(super) struct Union {
    pub(super) name: &'static str,
    pub(super) members: &'static [&'static str],
}

macro_rules! union {
    ($name:literal: $($member:literal)+) => { Union { name: $name, members: &[$($member),+] } };
}

/// The one union that needs no members: every call we know.
pub(super) const KNOWN: &str = "@known";

pub(super) static UNIONS: &[Union] = &[
    Union { name: KNOWN, members: &[] },
    union!("@debug": "@perf" "@ptrace" "lookup_dcookie" "pidfd_getfd"),
    union!("@reboot": "@kexec" "@restart"),
    union!("@privileged": "@accounting" "@bpf" "@chown" "@clock" "@hangup" "@kexec" "@module" "@raw-io"
        "@restart" "@swap" "_sysctl" "capset" "chroot" "fanotify_init" "fanotify_mark" "nfsservctl"
        "open_by_handle_at" "pivot_root" "quotactl" "quotactl_fd" "setdomainname" "setfsuid" "setfsuid32"
        "setgroups" "setgroups32" "sethostname" "setresuid" "setresuid32" "setreuid" "setreuid32" "setuid"
        "setuid32"),
    union!("@system-service": "@aio" "@basic-io" "@chown" "@default" "@file-system" "@general" "@io-event"
        "@ipc" "@keyring" "@memlock" "@network-io" "@process" "@resources" "@sandbox" "@setuid" "@signal"
        "@sync" "@timer"),
];

/// Numbers a table covers. The kernel gives out new ones in sequence, so there is room for years.
pub(super) const NUMBERS: usize = 512;

/// The system calls of one architecture.
#[derive(Debug)]
pub(super) struct Arch {
    /// Its `AUDIT_ARCH_…` value, as a filter sees it.
    pub(super) token: u32,
    /// Index into [`SETS`] by number, worked out by the compiler: a machine's start only copies from it.
    homes: [u8; NUMBERS],
    /// Number of `socket`, the one call whose arguments matter.
    pub(super) socket: usize,
    name: fn(usize) -> Option<&'static str>,
}

impl Arch {
    /// The set that the call behind a number stands in; none if the number is not assigned.
    pub(super) fn home(&self, number: usize) -> Option<&'static Set> {
        SETS.get(usize::from(*self.homes.get(number)?))
    }

    /// The name of the call behind a number; empty if the number is not assigned.
    pub(super) fn name(&self, number: usize) -> &'static str {
        (self.name)(number).unwrap_or_default()
    }
}

const NO_HOME: u8 = u8::MAX;

macro_rules! arch {
    ($token:expr, $calls:ident) => {
        Arch {
            token: $token,
            homes: {
                assert!((syscalls::$calls::Sysno::last() as usize) < NUMBERS, "the table must hold every number");
                let mut homes = [NO_HOME; NUMBERS];
                let mut number = 0;
                while number < NUMBERS {
                    if let Some(call) = syscalls::$calls::Sysno::new(number) {
                        homes[number] = home_of(call.name());
                    }
                    number += 1;
                }
                homes
            },
            socket: syscalls::$calls::Sysno::socket as usize,
            name: |number| Some(syscalls::$calls::Sysno::new(number)?.name()),
        }
    };
}

#[cfg(any(test, target_arch = "x86_64"))]
pub(super) static X86_64: Arch = arch!(0xc000_003e, x86_64);
#[cfg(any(test, target_arch = "x86_64"))]
pub(super) static X86: Arch = arch!(0x4000_0003, x86);
#[cfg(any(test, target_arch = "aarch64"))]
pub(super) static AARCH64: Arch = arch!(0xc000_00b7, aarch64);

const _: () = assert!(SETS.len() < NO_HOME as usize, "a set's index must fit a byte");

/// The architectures whose programs run on this one's kernels. x32 has no table: its numbers lie above
/// every other and so count as unknown.
#[cfg(target_arch = "x86_64")]
pub(super) static NATIVE: [&Arch; 2] = [&X86_64, &X86];
#[cfg(target_arch = "aarch64")]
pub(super) static NATIVE: [&Arch; 1] = [&AARCH64];

const fn home_of(call: &str) -> u8 {
    let mut index = 0;
    while index < SETS.len() {
        let calls = SETS[index].calls;
        let mut position = 0;
        while position < calls.len() {
            if is_same(calls[position], call) {
                return index.to_le_bytes()[0];
            }
            position += 1;
        }
        index += 1;
    }
    NO_HOME
}

/// `==`, which `const fn` lacks for strings.
const fn is_same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    // Names begin alike more often than they end alike.
    let mut rest = a.len();
    while rest > 0 {
        rest -= 1;
        if a[rest] != b[rest] {
            return false;
        }
    }
    true
}
