//! What a command may do, and what the machine may do to us.

use std::fs;
use std::os::fd::AsRawFd;
use std::process::Stdio;

use machinist::sys::Errno;
use rustix::fs::{Mode, OFlags};

use crate::Case;
use crate::caller::{Job, Way, capabilities};
use crate::commands::{processes, wait_for};
use crate::machine::{Kind, Machine};

pub(crate) const CASES: [Case; 6] = [
    ("cve_2022_29162_all_five_capability_sets_are_set", cve_2022_29162_all_five_capability_sets_are_set),
    ("the_filter_needs_no_capability_of_the_machine", the_filter_needs_no_capability_of_the_machine),
    ("cve_2024_21626_no_descriptor_is_left_over", cve_2024_21626_no_descriptor_is_left_over),
    ("cve_2019_5736_a_sealed_program_cannot_be_written", cve_2019_5736_a_sealed_program_cannot_be_written),
    ("cve_2019_5736_our_own_program_cannot_be_run_in_a_machine", our_own_program_cannot_be_run_in_a_machine),
    ("a_session_of_its_own", a_session_of_its_own),
];

const SYS_ADMIN: u64 = 1 << 21;

/// The lines of a command's own status that tell its rights.
fn status(job: &Job) -> Vec<String> {
    let text = job.text();
    let wanted = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp:"];
    let lines = text.lines().filter(|line| wanted.iter().any(|w| line.starts_with(w)));
    lines.map(|line| line.replace('\t', " ")).collect()
}

fn wanted(now: u64, bounding: u64, no_new_privileges: u8, filter: u8) -> Vec<String> {
    let sets = [("Inh", 0), ("Prm", now), ("Eff", now), ("Bnd", bounding), ("Amb", 0)];
    let sets = sets.iter().map(|(name, set)| format!("Cap{name}: {set:016x}"));
    sets.chain([format!("NoNewPrivs: {no_new_privileges}"), format!("Seccomp: {filter}")]).collect()
}

fn cve_2022_29162_all_five_capability_sets_are_set() {
    for kind in Kind::BOTH {
        let machine = Machine::start(kind);
        let job = Job::new(&machine, &["cat", "/proc/self/status"]);
        let set = capabilities(kind);
        assert_eq!(status(&job), wanted(set, set, 0, 2), "root, {kind:?}");
        assert_eq!(status(&job.clone().user("alice")), wanted(0, set, 0, 2), "alice, {kind:?}");
        let bare = job.with(|job| (job.no_new_privileges, job.filter) = (true, false));
        assert_eq!(status(&bare), wanted(set, set, 1, 0), "no filter, {kind:?}");
    }
}

fn the_filter_needs_no_capability_of_the_machine() {
    for kind in Kind::BOTH {
        let machine = Machine::start(kind);
        for set in [0, capabilities(kind) & !SYS_ADMIN, 1 << 7] {
            let job = Job::new(&machine, &["cat", "/proc/self/status"]).with(|job| job.capabilities = set);
            assert_eq!(status(&job), wanted(set, set, 0, 2), "root with {set:x}, {kind:?}");
            assert_eq!(status(&job.user("1000")), wanted(0, set, 0, 2), "1000 with {set:x}, {kind:?}");
        }
    }
}

fn cve_2024_21626_no_descriptor_is_left_over() {
    for kind in Kind::BOTH {
        let machine = Machine::start(kind);
        // The last one is the directory that is being read.
        assert_eq!(Job::new(&machine, &["ls", "/proc/self/fd"]).text(), "0\n1\n2\n3\n");
    }
}

/// Tries what a machine's root would do with the program of a process it can see, when that process has ended.
fn write_later(path: &str, end: impl FnOnce()) -> Result<(), Errno> {
    let program = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("opening /proc/PID/exe");
    let by_fd = format!("/proc/self/fd/{}", program.as_raw_fd());
    let attr = libc::mount_attr { attr_set: 0, attr_clr: libc::MOUNT_ATTR_RDONLY, propagation: 0, userns_fd: 0 };
    let lifted = mount_setattr(&program, &attr);
    end();
    let again = mount_setattr(&program, &attr);
    assert_eq!((lifted, again), (Err(Errno::EINVAL), Err(Errno::EINVAL)), "taking read-only off the mount");
    let opened = fs::OpenOptions::new().write(true).open(by_fd);
    opened.map(drop).map_err(|e| Errno::from_raw(e.raw_os_error().expect("an errno")))
}

#[expect(unsafe_code, reason = "the attack, not the defence: nothing of ours takes flags off a mount")]
fn mount_setattr(fd: &impl AsRawFd, attr: &libc::mount_attr) -> Result<(), Errno> {
    let (fd, size) = (fd.as_raw_fd(), size_of::<libc::mount_attr>());
    let attr = std::ptr::from_ref(attr);
    // SAFETY: the path is a terminated string, `attr` outlives the call and its size is passed along.
    match unsafe { libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), libc::AT_EMPTY_PATH, attr, size) } {
        0 => Ok(()),
        _ => Err(Errno::last()),
    }
}

fn cve_2019_5736_a_sealed_program_cannot_be_written() {
    let machine = Machine::start(Kind::PRIVILEGED);
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (way, wanted) in [(Way::Run, Ok(())), (Way::Sealed, Err(Errno::EROFS))] {
        // A copy, for the program of this very process is busy.
        let program = dir.path().join("program");
        fs::copy("/proc/self/exe", &program).expect("copying our program");
        let job = Job::new(&machine, &["sleep", "4281"]).with(|job| (job.way, job.program) = (way, program));
        let mut caller = job.spawn(Stdio::null(), Stdio::null(), Stdio::inherit());
        wait_for("command", || (processes(&["sleep", "4281"]).len() == 1).then_some(()));
        let result = write_later(&format!("/proc/{}/exe", caller.id()), || {
            caller.kill().expect("killing the caller");
            caller.wait().expect("waiting");
        });
        assert_eq!(result, wanted, "{way:?}");
        wait_for("end of the command", || processes(&["sleep", "4281"]).is_empty().then_some(()));
    }
}

fn our_own_program_cannot_be_run_in_a_machine() {
    for kind in Kind::BOTH {
        let machine = Machine::start(kind);
        // A link to /proc/self/exe: it is ours that runs it, but its loader is the machine's, which has none.
        let (status, text) = Job::new(&machine, &["evil"]).error();
        assert_eq!(status, 126, "{text}");
    }
}

fn a_session_of_its_own() {
    let machine = Machine::start(Kind::USERNS);
    // Fields of stat: pid, name, state, parent, group, session, terminal.
    let text = Job::new(&machine, &["cat", "/proc/self/stat"]).text();
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    assert_eq!((fields[4], fields[5], fields[6]), (fields[0], fields[0], "0"), "{text}");
    assert_eq!(fields[3], "0", "its parent is outside");
}
