//! The console on real ptys, pipes and sockets.

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
use super::terminal::Escape;
use super::*;
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

    /// Runs the loop until it has nothing more to do.
    fn settle(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while self.step(Duration::from_millis(50), &mut events) {}
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
    // The third key came too late and begins anew.
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
fn output_reaches_stdout_the_log_and_every_viewer() {
    let dir = tempfile::tempdir().unwrap();
    let log = LogFile::open(dir.path(), 1 << 20).unwrap();
    let (local, stdout) = pipe_local(Mode::ReadOnly, null());
    let mut rig = Rig::new(Some(local), Some(log));
    let (one, two) = (rig.viewer(), rig.viewer());
    rig.slave.write_all(b"login: ").unwrap();
    let (mut seen, mut seen_one, mut seen_two) = (Vec::new(), Vec::new(), Vec::new());
    rig.run(|_| {
        read_now(&stdout, &mut seen);
        viewer_data(&one, &mut seen_one);
        viewer_data(&two, &mut seen_two);
        [&seen, &seen_one, &seen_two].iter().all(|s| s.as_slice() == b"login: ")
    });
    assert_eq!(std::fs::read(dir.path().join("console.log")).unwrap(), b"login: ");
    // One who comes later sees the prompt, too.
    let late = rig.viewer();
    assert_eq!(message(&late), Some((b'd', b"login: ".to_vec())));
}

#[test]
fn a_late_viewer_sees_whole_lines_of_the_last_4_kib() {
    let mut recent = Recent::default();
    assert_eq!(recent.message(), None);
    for number in 0..1000 {
        recent.push(format!("line {number:05}\n").as_bytes());
    }
    let shown = String::from_utf8(recent.message().unwrap()).unwrap();
    assert!(shown.starts_with("dline ") && shown.ends_with("line 00999\n"), "{shown}");
    assert!((4000..=4097).contains(&shown.len()));
    recent.push(&[b'x'; 10_000]);
    assert_eq!(recent.message().unwrap().len(), 4097);
}

#[test]
fn a_slow_viewer_is_dropped_and_the_others_lose_nothing() {
    let mut rig = Rig::new(None, None);
    change(&rig.slave, |line| line.output_modes.remove(OutputModes::OPOST));
    let (slow, fast) = (rig.viewer(), rig.viewer());
    let sent = noise(2 << 20);
    let (mut at, mut seen) = (0, Vec::new());
    rig.run(|rig| {
        at += rig.slave.write(&sent[at..]).unwrap_or(0);
        viewer_data(&fast, &mut seen);
        seen.len() == sent.len()
    });
    assert!(seen == sent);
    let mut got = Vec::new();
    let mut reason = None;
    rig.run(|_| {
        while let Some((kind, body)) = message(&slow) {
            if kind == b'd' { got.extend(body) } else { reason = Some(String::from_utf8(body).unwrap()) }
        }
        reason.is_some()
    });
    assert_eq!(reason.as_deref(), Some("the viewer is too slow"));
    assert!(got.len() < sent.len() && sent.starts_with(&got));
    assert_eq!(rig.console.viewers.len(), 1);
}

#[test]
fn a_viewer_that_lags_behind_less_than_its_backlog_gets_everything() {
    let mut rig = Rig::new(None, None);
    change(&rig.slave, |line| line.output_modes.remove(OutputModes::OPOST));
    let viewer = rig.viewer();
    let sent = noise(300 << 10);
    let mut at = 0;
    rig.run(|rig| {
        at += rig.slave.write(&sent[at..]).unwrap_or(0);
        at == sent.len()
    });
    rig.settle();
    assert!(rig.console.viewers[0].is_behind(), "the socket took it all, so this shows nothing");
    let mut seen = Vec::new();
    rig.run(|_| {
        viewer_data(&viewer, &mut seen);
        seen.len() == sent.len()
    });
    assert!(seen == sent);
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
    for _ in 0..100 {
        rustix::io::write(&outer, &[b'k'; 2000]).unwrap();
        assert_eq!(rig.settle_quickly(), []);
    }
    assert!(!rig.console.input.is_empty(), "the machine took it all, so this shows nothing");
    rustix::io::write(&outer, b"\x1d\x1d\x1d").unwrap();
    assert_eq!(rig.settle(), [Event::Leave]);
}

impl Rig {
    fn settle_quickly(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while self.step(Duration::from_millis(1), &mut events) {}
        events
    }
}

#[test]
fn every_byte_the_machine_writes_passes_a_pipe_unchanged() {
    let (local, stdout) = pipe_local(Mode::Pipe, null());
    let mut rig = Rig::new(Some(local), None);
    let sent: Vec<u8> = (0..=255).chain(*b"\r\n\r\r\n\n\r").collect();
    rig.slave.write_all(&sent).unwrap();
    let mut seen = Vec::new();
    rig.run(|_| {
        read_now(&stdout, &mut seen);
        seen.len() >= sent.len()
    });
    assert_eq!(seen, sent);
}

#[test]
fn a_pipe_gets_plain_lines_though_the_machine_resets_its_terminal() {
    let (local, stdout) = pipe_local(Mode::Pipe, null());
    let mut rig = Rig::new(Some(local), None);
    change(&rig.slave, |line| line.output_modes.insert(OutputModes::OPOST | OutputModes::ONLCR));
    let sent = b"one\ntwo\r\n\n50%\r100%\r";
    for byte in sent {
        // Byte by byte, so that every pair is cut in half.
        rig.slave.write_all(&[*byte]).unwrap();
        rig.settle_quickly();
    }
    rig.slave = null();
    rig.console.drain(PATIENCE);
    let mut seen = Vec::new();
    read_now(&stdout, &mut seen);
    assert_eq!(String::from_utf8_lossy(&seen), String::from_utf8_lossy(sent));
}

/// What a machine reads until end of file when `sent` comes through our standard input.
fn read_through_pipe(sent: &[u8], prepare: impl FnOnce(&File)) -> Vec<u8> {
    let (reader, writer) = pipe().unwrap();
    let (local, _stdout) = pipe_local(Mode::Pipe, &reader);
    let mut rig = Rig::new(Some(local), None);
    prepare(&rig.slave);
    ioctl_fionbio(&writer, true).unwrap();
    let (mut writer, mut at, mut seen) = (Some(File::from(writer)), 0, Vec::new());
    rig.run(|rig| {
        match &mut writer {
            Some(_) if at == sent.len() => writer = None,
            Some(file) => at += file.write(&sent[at..]).unwrap_or(0),
            None => {}
        }
        let mut piece = [0; 700];
        loop {
            match (&rig.slave).read(&mut piece) {
                Ok(0) => return true,
                Ok(n) => seen.extend(&piece[..n]),
                Err(_) => return false,
            }
        }
    });
    seen
}

#[test]
fn every_byte_of_a_pipe_reaches_the_machine_unchanged_then_end_of_file() {
    let all: Vec<u8> = (0..=255).collect();
    for sent in [&b""[..], b"no newline", b"a line\n", b"\n", &all, &[0x1d; 9], &[0x16; 5000], &[b'x'; 20_000]] {
        assert!(read_through_pipe(sent, |_| {}) == sent, "{:?}", &sent[..sent.len().min(9)]);
    }
    let big = noise(300 << 10);
    assert!(read_through_pipe(&big, |_| {}) == big);
}

#[test]
fn a_terminal_set_to_its_defaults_still_reads_a_pipe_unchanged() {
    let all: Vec<u8> = (0..=255).rev().collect();
    let fresh = master();
    let defaults = tcgetattr(slave_of(&fresh)).unwrap();
    let seen = read_through_pipe(&all, |slave| tcsetattr(slave, OptionalActions::Now, &defaults).unwrap());
    assert_eq!(seen, all);
}

#[test]
fn a_raw_terminal_gets_the_bytes_of_a_pipe_as_they_are() {
    let (reader, writer) = pipe().unwrap();
    let (local, _stdout) = pipe_local(Mode::Pipe, &reader);
    let mut rig = Rig::new(Some(local), None);
    change(&rig.slave, Termios::make_raw);
    let all: Vec<u8> = (0..=255).collect();
    rustix::io::write(&writer, &all).unwrap();
    drop(writer);
    let mut seen = Vec::new();
    rig.run(|rig| {
        read_now(&rig.slave, &mut seen);
        seen.len() > all.len()
    });
    assert_eq!(seen.split_last(), Some((&0x04, &all[..])));
}

/// Runs a client against `rig` while `script` plays the user; gives how the client ended.
fn with_client(rig: &mut Rig, local: Local, mut script: impl FnMut(&mut Rig) -> bool) -> AttachEnd {
    let (ours, theirs) = socket::pair().unwrap();
    rig.console.add_viewer(ours).unwrap();
    let client = std::thread::spawn(move || attach_local(theirs, "web", local).unwrap());
    rig.run(|rig| script(rig) || client.is_finished());
    client.join().unwrap()
}

#[test]
fn a_client_shows_types_resizes_leaves_and_restores_its_terminal() {
    let outer = master();
    let tty = slave_of(&outer);
    tcsetwinsize(&tty, WINSIZE_A).unwrap();
    let before = settings(&tty);
    let local = Local::open(Mode::Interactive, tty.as_fd(), tty.as_fd()).unwrap();
    let mut rig = Rig::new(None, None);
    rig.slave.write_all(b"web login: ").unwrap();
    rig.settle();
    ioctl_fionbio(&outer, true).unwrap();
    let screen = File::from(outer);
    let (mut seen, mut typed, mut step) = (Vec::new(), Vec::new(), 0);
    let end = with_client(&mut rig, local, |rig| {
        read_now(&screen, &mut seen);
        read_now(&rig.slave, &mut typed);
        match step {
            0 if seen.ends_with(b"web login: ") => (&screen).write_all(b"root\r").unwrap(),
            1 if typed == b"root\n" => (&screen).write_all(b"\x1d\x1d\x1d").unwrap(),
            _ => return false,
        }
        step += 1;
        false
    });
    assert_eq!(end, AttachEnd::Left);
    assert_eq!(tcgetwinsize(&rig.slave).unwrap(), WINSIZE_A);
    assert_eq!(settings(&tty), before);
    read_now(&screen, &mut seen);
    let seen = String::from_utf8(seen).unwrap();
    let header = "Connected to machine 'web'. Press ^] three times within 1s to leave.\r\n";
    assert!(seen.starts_with(&format!("{header}web login: ")), "{seen:?}");
    assert!(seen.contains("\r\nDisconnected from machine 'web'.\r\n"), "{seen:?}");
    rig.settle();
    assert!(rig.console.viewers.is_empty());
}

#[test]
fn a_client_without_terminal_copies_bytes_and_tells_why_it_ended() {
    let (reader, writer) = pipe().unwrap();
    let (local, stdout) = pipe_local(Mode::Pipe, &reader);
    rustix::io::write(&writer, b"uname\n").unwrap();
    drop(writer);
    let mut rig = Rig::new(None, None);
    change(&rig.slave, |line| line.local_modes.remove(LocalModes::ECHO));
    let (mut typed, mut seen) = (Vec::new(), Vec::new());
    let end = with_client(&mut rig, local, |rig| {
        read_now(&rig.slave, &mut typed);
        if typed == b"uname\n" {
            typed.push(0);
            rig.slave.write_all(b"Linux\n").unwrap();
        }
        read_now(&stdout, &mut seen);
        if seen == b"Linux\r\n" {
            rig.console.close_viewers("the machine has stopped");
        }
        false
    });
    assert_eq!(end, AttachEnd::Closed("the machine has stopped".into()));
    assert_eq!(seen, b"Linux\r\n");
}

#[test]
fn a_client_resizes_on_sigwinch_and_ends_on_sigterm_with_its_mask_restored() {
    let outer = master();
    let tty = slave_of(&outer);
    tcsetwinsize(&tty, WINSIZE_A).unwrap();
    let (ours, theirs) = socket::pair().unwrap();
    let client = move || {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGWINCH);
        mask.add(Signal::SIGTERM);
        mask.thread_block().unwrap();
        // Pending signals of this thread, which the client finds in the order of their numbers.
        raise(Signal::SIGWINCH).unwrap();
        let local = Local::open(Mode::Interactive, tty.as_fd(), tty.as_fd()).unwrap();
        raise(Signal::SIGTERM).unwrap();
        let end = attach_local(theirs, "web", local).unwrap();
        let after = SigSet::thread_get_mask().unwrap();
        (end, after == mask, tty)
    };
    let (end, restored, _tty) = std::thread::spawn(client).join().unwrap();
    assert_eq!(end, AttachEnd::Signal(Signal::SIGTERM as i32));
    assert!(restored);
    assert_eq!(message(&ours), Some((b'w', vec![41, 0, 107, 0])));
}

#[test]
fn a_client_whose_supervisor_died_says_so() {
    let (local, _stdout) = pipe_local(Mode::ReadOnly, null());
    let (ours, theirs) = socket::pair().unwrap();
    drop(ours);
    assert_eq!(attach_local(theirs, "web", local).unwrap(), AttachEnd::Closed("the supervisor is gone".into()));
}

#[test]
fn the_log_rotates_by_size_and_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogFile::open(dir.path(), 10).unwrap();
    for text in ["12345", "67890", "abc", "a line that is longer than the limit", "end"] {
        assert_eq!(log.append(text.as_bytes()), None);
    }
    let read = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(read("console.log"), "end");
    assert_eq!(read("console.log.1"), "a line that is longer than the limit");
    for name in ["console.log", "console.log.1"] {
        let mode = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }
    // A restart appends and knows the size.
    drop(log);
    let mut log = LogFile::open(dir.path(), 10).unwrap();
    assert_eq!(log.append(b"more"), None);
    assert_eq!(read("console.log"), "endmore");
    assert_eq!(log.append(b"and more"), None);
    assert_eq!((read("console.log"), read("console.log.1")), ("and more".into(), "endmore".into()));
}

#[test]
fn the_log_follows_no_symlink_and_waits_for_no_fifo() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("console.log");
    let victim = dir.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    std::os::unix::fs::symlink(&victim, &log).unwrap();
    let error = LogFile::open(dir.path(), 100).unwrap_err();
    assert_eq!(error.to_string(), "open('console.log'): Too many symbolic links encountered");
    std::fs::remove_file(&log).unwrap();
    nix::unistd::mkfifo(&log, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(LogFile::open(dir.path(), 100).is_err());
    std::fs::remove_file(&log).unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path(), &link).unwrap();
    assert!(LogFile::open(&link, 100).is_err());
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
}

#[test]
fn a_full_disk_costs_log_lines_and_one_warning() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogFile::open(dir.path(), 1 << 20).unwrap();
    log.file = File::options().write(true).open("/dev/full").unwrap().into();
    let mut rig = Rig::new(None, Some(log));
    let viewer = rig.viewer();
    rig.slave.write_all(b"one").unwrap();
    let events = rig.settle();
    let error = Error { call: "write('console.log')".into(), errno: nix::errno::Errno::ENOSPC };
    assert_eq!(events, [Event::Warning(error)]);
    rig.slave.write_all(b"two").unwrap();
    assert_eq!(rig.settle(), []);
    let mut seen = Vec::new();
    viewer_data(&viewer, &mut seen);
    assert_eq!(seen, b"onetwo");
}

fn printed(dir: &Path, lines: Option<usize>, shown: Shown) -> String {
    let mut out = Vec::new();
    print_log(dir, lines, false, shown, &mut out).unwrap();
    String::from_utf8_lossy(&out).into_owned()
}

#[test]
fn the_log_is_printed_older_file_first_and_by_lines() {
    let dir = tempfile::tempdir().unwrap();
    let error = print_log(dir.path(), None, false, Shown::Raw, &mut Vec::new()).unwrap_err();
    assert_eq!(error.errno, nix::errno::Errno::ENOENT);
    std::fs::write(dir.path().join("console.log.1"), "1\n2\r\n").unwrap();
    assert_eq!(printed(dir.path(), None, Shown::Raw), "1\n2\r\n");
    std::fs::write(dir.path().join("console.log"), "3\n4\n\x1b[2Jlogin: ").unwrap();
    let cases = [(None, "1\n2\r\n3\n4\n\x1b[2Jlogin: "), (Some(0), ""), (Some(1), "\x1b[2Jlogin: ")];
    for (lines, expected) in cases {
        assert_eq!(printed(dir.path(), lines, Shown::Raw), expected);
    }
    assert_eq!(printed(dir.path(), Some(4), Shown::Safe), "2\n3\n4\n^[[2Jlogin: ");
    assert_eq!(printed(dir.path(), Some(99), Shown::Safe), "1\n2\n3\n4\n^[[2Jlogin: ");
}

#[test]
fn hostile_output_cannot_drive_the_readers_terminal() {
    let cases: [(&[u8], &str); 12] = [
        (b"plain\ttext\r\n", "plain\ttext\n"),
        (b"\x1b[1;31mred\x1b[m", "\x1b[1;31mred\x1b[m\x1b[0m"),
        (b"\x1b]0;title\x07", "^[]0;title^G"),
        (b"\x1b[6n\x1b[2J\x1bc", "^[[6n^[[2J^[c"),
        (b"50%\r100%", "50%^M100%"),
        (b"\x08\x7f\0", "^H^?^@"),
        ("grün €😀".as_bytes(), "grün €😀"),
        ("\u{9b}31m\u{85}".as_bytes(), "\\x9b31m\\x85"),
        (b"\x9b31m \xff\xc3", "\\x9b31m \\xff\\xc3"),
        (b"\xe2\x82x", "\\xe2\\x82x"),
        (b"\x1b[", "^[["),
        (b"\x1b[111111111111111111111111111111111111m", "^[[111111111111111111111111111111111111m"),
    ];
    for (bytes, expected) in cases {
        for cut in 0..=bytes.len() {
            let mut safe = Safe::default();
            let mut text = safe.feed(&bytes[..cut]);
            text += &safe.feed(&bytes[cut..]);
            text += &safe.finish();
            assert_eq!(text, expected, "cut at {cut}");
        }
    }
}

/// A reader that, each time it has seen all so far, makes the log grow, and closes when it has seen the end.
struct Follower {
    log: LogFile,
    seen: String,
    steps: Vec<(&'static str, &'static str)>,
}

impl Write for Follower {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.seen += std::str::from_utf8(bytes).unwrap();
        if self.seen.ends_with("end\n") {
            return Err(std::io::Error::from_raw_os_error(nix::errno::Errno::EPIPE as i32));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self.steps.first() {
            Some((after, then)) if self.seen.ends_with(after) => {
                assert_eq!(self.log.append(then.as_bytes()), None);
                self.steps.remove(0);
            }
            _ => {}
        }
        Ok(())
    }
}

#[test]
fn following_the_log_goes_on_through_a_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogFile::open(dir.path(), 20).unwrap();
    log.append(b"first\n");
    let steps = vec![("first\n", "second\n"), ("second\n", "third, in a new file\n"), ("new file\n", "end\n")];
    let mut follower = Follower { log, seen: String::new(), steps };
    print_log(dir.path(), None, true, Shown::Raw, &mut follower).unwrap();
    assert_eq!(follower.seen, "first\nsecond\nthird, in a new file\nend\n");
    assert_eq!(std::fs::metadata(dir.path().join("console.log")).unwrap().size(), 4);
}
