//! The client of a viewer against a console.

use super::*;

/// Runs a client against `rig` while `script` plays the user; gives how the client ended.
fn with_client(rig: &mut Rig, local: Local, mut script: impl FnMut(&mut Rig) -> bool) -> AttachEnd {
    let (ours, theirs) = socket::pair().unwrap();
    rig.console.add_viewer(ours).unwrap();
    let client = std::thread::spawn(move || attach_local(theirs, "web", || Ok(local)).unwrap());
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

/// Runs a client on a thread on which `signal` is pending, until it ends or the other end hangs up.
fn end_with_pending(signal: Signal, hang_up: bool) -> (AttachEnd, Vec<(u8, Vec<u8>)>) {
    let (ours, theirs) = socket::pair().unwrap();
    let client = move || {
        let outer = master();
        let tty = slave_of(&outer);
        tcsetwinsize(&tty, WINSIZE_A).unwrap();
        let before = settings(&tty);
        let mut mask = SigSet::empty();
        mask.add(signal);
        mask.thread_block().unwrap();
        raise(signal).unwrap();
        let open = || Local::open(Mode::Interactive, tty.as_fd(), tty.as_fd());
        let end = attach_local(theirs, "web", open).unwrap();
        assert_eq!(SigSet::thread_get_mask().unwrap(), mask);
        assert_eq!(settings(&tty), before);
        end
    };
    let client = std::thread::spawn(client);
    let mut seen = Vec::new();
    while seen.len() < 2
        && poll_once(&[(ours.as_fd(), PollFlags::POLLIN)], Some(PATIENCE))
        && let Some(message) = message(&ours)
    {
        seen.push(message);
    }
    if hang_up {
        drop(ours);
    }
    (client.join().unwrap(), seen)
}

#[test]
fn a_client_tells_its_size_at_first_and_on_sigwinch() {
    let (end, seen) = end_with_pending(Signal::SIGWINCH, true);
    assert_eq!(seen, [(b'w', vec![41, 0, 107, 0]), (b'w', vec![41, 0, 107, 0])]);
    assert_eq!(end, AttachEnd::Closed("the supervisor is gone".into()));
}

#[test]
fn a_client_ends_on_sigterm_with_terminal_and_mask_restored() {
    let (end, seen) = end_with_pending(Signal::SIGTERM, false);
    assert_eq!(end, AttachEnd::Signal(Signal::SIGTERM as i32));
    assert_eq!(seen, [(b'w', vec![41, 0, 107, 0])]);
}

#[test]
fn a_client_whose_supervisor_died_says_so() {
    let (local, _stdout) = pipe_local(Mode::ReadOnly, null());
    let (ours, theirs) = socket::pair().unwrap();
    drop(ours);
    assert_eq!(attach_local(theirs, "web", || Ok(local)).unwrap(), AttachEnd::Closed("the supervisor is gone".into()));
}
