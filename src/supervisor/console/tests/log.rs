//! The log file and its reader.

use super::*;

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

#[test]
fn a_line_that_a_rotation_cut_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("console.log.1"), "1\n2\nto").unwrap();
    std::fs::write(dir.path().join("console.log"), "gether\n4\n").unwrap();
    for (lines, expected) in [(1, "4\n"), (2, "together\n4\n"), (3, "2\ntogether\n4\n")] {
        assert_eq!(printed(dir.path(), Some(lines), Shown::Raw), expected);
    }
}
