//! The console on real ptys, pipes and sockets.

mod attach;
mod log;
mod pipe;
mod viewer;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, raise};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::ioctl_fionbio;
use rustix::pipe::pipe;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{
    LocalModes, OptionalActions, OutputModes, Termios, Winsize, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize,
};

use super::attach::attach_local;
use super::local::Local;
use super::show::Safe;
use super::*;
use crate::sys::terminal::{Escape, Terminal};
use crate::sys::{process, socket};

const PATIENCE: Duration = Duration::from_secs(20);
const WINSIZE_A: Winsize = Winsize { ws_row: 41, ws_col: 107, ws_xpixel: 0, ws_ypixel: 0 };

fn master() -> OwnedFd {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    master
}

fn slave_of(master: &OwnedFd) -> File {
    ioctl_tiocgptpeer(master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap().into()
}

/// Terminal settings in a form that compares.
fn settings(tty: impl AsFd) -> String {
    format!("{:?}", tcgetattr(tty).unwrap())
}

fn change(tty: impl AsFd, edit: impl FnOnce(&mut Termios)) {
    let mut line = tcgetattr(&tty).unwrap();
    edit(&mut line);
    tcsetattr(&tty, OptionalActions::Now, &line).unwrap();
}

fn null() -> File {
    File::options().read(true).write(true).open("/dev/null").unwrap()
}

/// A machine's console whose caller is a pair of pipes or a terminal, with the far ends of everything.
struct Rig {
    console: Console,
    slave: File,
    wakeups: usize,
}

impl Rig {
    fn new(local: Option<Local>, log: Option<LogFile>) -> Self {
        let master = master();
        let slave = slave_of(&master);
        ioctl_fionbio(&slave, true).unwrap();
        let mode = local.as_ref().map_or(Mode::Detached, Local::mode);
        prepare_slave(&slave, mode, None).unwrap();
        Self { console: Console::with_local(master, local, log).unwrap(), slave, wakeups: 0 }
    }

    /// One round of a supervisor's loop; false if nothing became ready in `timeout`.
    fn step(&mut self, timeout: Duration, events: &mut Vec<Event>) -> bool {
        let mut wanted = Vec::new();
        self.console.poll_fds(&mut wanted);
        let mut fds: Vec<PollFd<'_>> = wanted.iter().map(|(fd, flags, _)| PollFd::new(*fd, *flags)).collect();
        poll(&mut fds, PollTimeout::try_from(timeout).unwrap()).unwrap();
        let ready: Vec<(Token, PollFlags)> = wanted
            .iter()
            .zip(&fds)
            .filter_map(|((_, _, token), fd)| fd.revents().filter(|r| !r.is_empty()).map(|r| (*token, r)))
            .collect();
        self.wakeups += usize::from(!ready.is_empty());
        events.extend(ready.iter().filter_map(|(token, flags)| self.console.handle(*token, *flags)));
        !ready.is_empty()
    }

    /// Runs the loop until `done`, each time after having done `between`.
    fn run(&mut self, mut done: impl FnMut(&mut Self) -> bool) -> Vec<Event> {
        let mut events = Vec::new();
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < PATIENCE, "the console got stuck, events {events:?}");
            self.step(Duration::from_millis(100), &mut events);
        }
        events
    }

    /// Runs the loop until it has nothing more to do. Polling a pty finishes what is under way in it first.
    fn settle(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let before = self.wakeups;
        while self.step(Duration::ZERO, &mut events) {
            assert!(self.wakeups < before + 10_000, "the console spins");
        }
        events
    }

    fn viewer(&mut self) -> OwnedFd {
        let (ours, theirs) = socket::pair().unwrap();
        self.console.add_viewer(ours).unwrap();
        ioctl_fionbio(&theirs, true).unwrap();
        theirs
    }
}

fn pipe_local(mode: Mode, stdin: impl AsFd) -> (Local, File) {
    let (reader, writer) = pipe().unwrap();
    let local = Local::open(mode, stdin.as_fd(), writer.as_fd()).unwrap();
    ioctl_fionbio(&reader, true).unwrap();
    (local, reader.into())
}

/// Appends what can be read without blocking.
fn read_now(mut from: &File, into: &mut Vec<u8>) {
    match from.read_to_end(into) {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
    }
}

/// The next message of a viewer: kind and body.
fn message(viewer: &OwnedFd) -> Option<(u8, Vec<u8>)> {
    let mut buffer = vec![0; BUFFER];
    let received = socket::receive(viewer, &mut buffer).ok()?;
    buffer.truncate(received.len);
    let (kind, body) = buffer.split_first()?;
    Some((*kind, body.to_vec()))
}

/// Appends the data a viewer has got so far.
fn viewer_data(viewer: &OwnedFd, into: &mut Vec<u8>) {
    while let Some((kind, body)) = message(viewer) {
        assert_eq!(kind, b'd', "{}", String::from_utf8_lossy(&body));
        into.extend(body);
    }
}

/// Bytes without a pattern that a shift by a block would repeat.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(len).collect()
}

#[test]
fn three_escape_keys_within_a_second_leave() {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let typed = |keys: &[(&[u8], u64)]| {
        let mut escape = Escape::default();
        keys.iter().map(|(bytes, ms)| escape.completes(bytes, at(*ms))).collect::<Vec<_>>()
    };
    assert_eq!(typed(&[(b"\x1d\x1d\x1d", 0)]), [true]);
    assert_eq!(typed(&[(b"ls\x1d", 0), (b"\x1d", 500), (b"\x1d", 1000)]), [false, false, true]);
    assert_eq!(typed(&[(b"\x1d", 0), (b"\x1d", 500), (b"\x1d", 1001)]), [false; 3]);
    assert_eq!(typed(&[(b"\x1d\x1d", 0), (b"x", 1), (b"\x1d", 2)]), [false; 3]);
    // The third key came too late and counts as the first.
    assert_eq!(typed(&[(b"\x1d\x1d", 0), (b"\x1d", 1500), (b"\x1d\x1d", 1600)]), [false, false, true]);
}

#[test]
fn the_terminal_is_raw_until_the_guard_is_dropped() {
    let master = master();
    let tty = slave_of(&master);
    tcsetwinsize(&tty, WINSIZE_A).unwrap();
    let before = settings(&tty);
    let guard = Terminal::acquire(&tty).unwrap();
    assert!(!tcgetattr(&tty).unwrap().local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG));
    assert_eq!(guard.winsize().unwrap(), WINSIZE_A);
    drop(guard);
    assert_eq!(settings(&tty), before);
}

#[test]
fn the_terminal_is_restored_when_its_owner_panics() {
    let master = master();
    let tty = slave_of(&master);
    let before = settings(&tty);
    let result = std::panic::catch_unwind(|| {
        let local = Local::open(Mode::Interactive, tty.as_fd(), tty.as_fd()).unwrap();
        let _rig = Rig::new(Some(local), None);
        assert_eq!(settings(&tty), before);
    });
    assert!(result.is_err(), "the terminal was not made raw");
    assert_eq!(settings(&tty), before);
}

#[test]
fn the_callers_open_files_do_not_become_non_blocking() {
    let (in_reader, _in_writer) = pipe().unwrap();
    let (_out_reader, out_writer) = pipe().unwrap();
    let local = Local::open(Mode::Pipe, in_reader.as_fd(), out_writer.as_fd()).unwrap();
    let nonblocking = |fd: BorrowedFd<'_>| fcntl_getfl(fd).unwrap().contains(OFlags::NONBLOCK);
    assert!(nonblocking(local.stdout()) && nonblocking(local.stdin().unwrap()));
    assert!(!nonblocking(in_reader.as_fd()) && !nonblocking(out_writer.as_fd()));
}

#[test]
fn stdout_that_is_full_stops_the_machine_and_loses_nothing() {
    let (local, stdout) = pipe_local(Mode::ReadOnly, null());
    let mut rig = Rig::new(Some(local), None);
    change(&rig.slave, |line| line.output_modes.remove(OutputModes::OPOST));
    let sent = noise(1 << 20);
    let mut at = rig.slave.write(&sent).unwrap();
    while rig.step(Duration::from_millis(50), &mut Vec::new()) {
        at += rig.slave.write(&sent[at..]).unwrap_or(0);
    }
    assert!(at < sent.len() / 2, "nothing held the machine back");
    assert!(rig.console.local.as_ref().unwrap().is_behind());
    let mut seen = Vec::new();
    rig.run(|rig| {
        at += rig.slave.write(&sent[at..]).unwrap_or(0);
        read_now(&stdout, &mut seen);
        seen.len() == sent.len()
    });
    assert!(seen == sent);
}

#[test]
fn a_closed_stdout_leaves_the_machine_running() {
    let (local, stdout) = pipe_local(Mode::ReadOnly, null());
    let mut rig = Rig::new(Some(local), None);
    drop(stdout);
    let viewer = rig.viewer();
    rig.slave.write_all(b"one").unwrap();
    assert_eq!(rig.settle(), [Event::LocalGone]);
    rig.slave.write_all(b"two").unwrap();
    assert_eq!(rig.settle(), []);
    let mut seen = Vec::new();
    viewer_data(&viewer, &mut seen);
    assert_eq!(seen, b"onetwo");
}

#[test]
fn drain_passes_on_all_that_a_dead_machine_left() {
    let (local, stdout) = pipe_local(Mode::ReadOnly, null());
    let mut rig = Rig::new(Some(local), None);
    let viewer = rig.viewer();
    change(&rig.slave, |line| line.output_modes.remove(OutputModes::OPOST));
    let sent = noise(1 << 20);
    // As much as the pty takes, which is less than the pipe does.
    let mut left = 0;
    while let Ok(written) = rig.slave.write(&sent[left..]) {
        left += written;
    }
    assert!(left > 4096, "the pty took {left}");
    let Rig { mut console, slave, .. } = rig;
    drop(slave);
    console.drain(PATIENCE);
    console.close_viewers("the machine has stopped");
    let (mut seen, mut seen_viewer) = (Vec::new(), Vec::new());
    read_now(&stdout, &mut seen);
    assert!(seen == sent[..left]);
    while let Some((b'd', body)) = message(&viewer) {
        seen_viewer.extend(body);
        if seen_viewer.len() == left {
            break;
        }
    }
    assert!(seen_viewer == sent[..left]);
    assert_eq!(message(&viewer), Some((b'x', b"the machine has stopped".to_vec())));
}

#[test]
fn drain_gives_up_on_a_reader_that_is_stuck() {
    let (local, _stdout) = pipe_local(Mode::ReadOnly, null());
    let mut rig = Rig::new(Some(local), None);
    let sent = noise(1 << 20);
    while rig.slave.write(&sent).is_ok() || rig.step(Duration::from_millis(50), &mut Vec::new()) {}
    let start = Instant::now();
    rig.console.drain(Duration::from_millis(20));
    assert!(start.elapsed() < PATIENCE);
    assert!(rig.console.local.is_none());
}

#[test]
fn a_guest_that_closes_its_console_does_not_make_us_spin() {
    let mut rig = Rig::new(None, None);
    let viewer = rig.viewer();
    rig.slave.write_all(b"first").unwrap();
    rig.settle();
    for _ in 0..3 {
        rig.slave = null();
        rig.wakeups = 0;
        assert_eq!(rig.settle(), []);
        assert_eq!(rig.wakeups, 0);
        rig.slave = slave_of(&rig.console.master);
        rig.slave.write_all(b".").unwrap();
        rig.settle();
    }
    let mut seen = Vec::new();
    viewer_data(&viewer, &mut seen);
    assert_eq!(seen, b"first...");
}

#[test]
fn the_guests_vhangup_does_not_end_the_console() {
    if std::env::var_os("MACHINIST_TEST_VHANGUP").is_some() {
        let _ = process::vhangup();
        return;
    }
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("MACHINIST_REQUIRE_ROOT").is_none(), "only root may hang up a terminal");
        return;
    }
    let mut rig = Rig::new(None, None);
    let viewer = rig.viewer();
    rig.slave.write_all(b"before").unwrap();
    rig.settle();
    // Only root may hang a terminal up; this test runs itself again as the leader of a session on it.
    let tty = || Stdio::from(slave_of(&rig.console.master));
    let mut getty = Command::new("setsid");
    getty.args(["--ctty", "--wait"]).arg(std::env::current_exe().unwrap());
    getty.args(["--exact", "supervisor::console::tests::the_guests_vhangup_does_not_end_the_console", "--nocapture"]);
    getty.env("MACHINIST_TEST_VHANGUP", "1").stdin(tty()).stdout(Stdio::null()).stderr(Stdio::null());
    getty.status().unwrap();
    drop(getty);
    let mut probe = [0];
    assert_eq!((&rig.slave).read(&mut probe).unwrap(), 0, "the terminal has not been hung up");
    assert_eq!(rig.settle(), []);
    rig.wakeups = 0;
    rig.settle();
    assert_eq!(rig.wakeups, 0);
    rig.slave = slave_of(&rig.console.master);
    rig.slave.write_all(b"after").unwrap();
    rig.settle();
    let mut seen = Vec::new();
    viewer_data(&viewer, &mut seen);
    assert_eq!(seen, b"beforeafter");
}

#[test]
fn a_lost_slave_is_opened_again_after_one_wakeup() {
    let mut rig = Rig::new(None, None);
    rig.console.slave = Some(null().into());
    rig.slave = null();
    rig.wakeups = 0;
    assert_eq!(rig.settle(), []);
    assert_eq!(rig.wakeups, 1);
}

#[test]
fn the_console_goes_on_with_the_pty_of_the_next_boot_and_without_its_caller() {
    let outer = master();
    let tty = slave_of(&outer);
    tcsetwinsize(&tty, WINSIZE_A).unwrap();
    let before = settings(&tty);
    let local = Local::open(Mode::Interactive, tty.as_fd(), tty.as_fd()).unwrap();
    let mut rig = Rig::new(Some(local), None);
    let viewer = rig.viewer();
    rig.slave.write_all(b"first").unwrap();
    rig.settle();
    let second = master();
    rig.slave = slave_of(&second);
    rig.console.replace_master(second).unwrap();
    assert_eq!(tcgetwinsize(&rig.slave).unwrap(), WINSIZE_A);
    rig.console.detach();
    assert_eq!(settings(&tty), before);
    rig.slave.write_all(b"second").unwrap();
    assert_eq!(rig.settle(), []);
    let mut seen = Vec::new();
    viewer_data(&viewer, &mut seen);
    assert_eq!(seen, b"firstsecond");
}

#[test]
fn sizes_of_the_terminal_and_of_viewers_reach_the_machine() {
    let outer = master();
    let tty = slave_of(&outer);
    tcsetwinsize(&tty, WINSIZE_A).unwrap();
    let local = Local::open(Mode::Interactive, tty.as_fd(), tty.as_fd()).unwrap();
    let mut rig = Rig::new(Some(local), None);
    assert_eq!(tcgetwinsize(&rig.slave).unwrap(), WINSIZE_A);
    let second = Winsize { ws_row: 50, ..WINSIZE_A };
    tcsetwinsize(&outer, second).unwrap();
    rig.console.resize_to_terminal().unwrap();
    assert_eq!(tcgetwinsize(&rig.slave).unwrap(), second);
    let viewer = rig.viewer();
    socket::send(&viewer, &[b'w', 0x2c, 0x01, 80, 0], &[]).unwrap();
    rig.run(|rig| tcgetwinsize(&rig.slave).unwrap().ws_row == 300);
    assert_eq!(tcgetwinsize(&rig.slave).unwrap().ws_col, 80);
    for bad in [&b"w"[..], b"w\0\0\0\0", b"w123", b"w12345", b"?"] {
        socket::send(&viewer, bad, &[]).unwrap();
    }
    assert_eq!(rig.settle(), []);
    assert_eq!(tcgetwinsize(&rig.slave).unwrap().ws_row, 300);
}

#[test]
fn keys_reach_the_machine_and_the_escape_leaves_though_it_reads_nothing() {
    let outer = master();
    let tty = slave_of(&outer);
    let local = Local::open(Mode::Interactive, tty.as_fd(), tty.as_fd()).unwrap();
    let mut rig = Rig::new(Some(local), None);
    change(&rig.slave, Termios::make_raw);
    rustix::io::write(&outer, b"\x03\x1d\rx").unwrap();
    rig.settle();
    let mut keys = [0; 16];
    assert_eq!((&rig.slave).read(&mut keys).unwrap(), 4);
    assert_eq!(&keys[..4], b"\x03\x1d\rx");
    ioctl_fionbio(&outer, true).unwrap();
    for _ in 0..100 {
        assert_eq!(rustix::io::write(&outer, &[b'k'; 2000]), Ok(2000), "keys are no longer read");
        assert_eq!(rig.settle(), []);
    }
    assert_eq!(rig.console.input.len(), TYPE_AHEAD);
    rustix::io::write(&outer, b"\x1d\x1d\x1d").unwrap();
    assert_eq!(rig.settle(), [Event::Leave]);
}
