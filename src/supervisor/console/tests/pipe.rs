//! Bytes through a terminal when our side is a pipe.

use super::*;

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
        rig.settle();
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

#[test]
fn a_carriage_return_at_the_end_of_a_piece_waits_for_the_next() {
    let undo = |pieces: &[&str]| {
        let mut newlines = Newlines::default();
        let mut text = Vec::new();
        for piece in pieces {
            let mut data = piece.as_bytes().to_vec();
            let (before, kept) = newlines.undo(&mut data);
            text.extend(before.then_some(b'\r'));
            text.extend(&data[..kept]);
        }
        (String::from_utf8(text).unwrap(), newlines.take_held())
    };
    assert_eq!(undo(&["a\r\nb\r\r\nc\rd"]), ("a\nb\r\nc\rd".into(), false));
    assert_eq!(undo(&["a\r", "\nb"]), ("a\nb".into(), false));
    assert_eq!(undo(&["a\r", "b"]), ("a\rb".into(), false));
    assert_eq!(undo(&["a\r", "\r", "", "\n"]), ("a\r\n".into(), false));
    assert_eq!(undo(&["a\r"]), ("a".into(), true));
}
