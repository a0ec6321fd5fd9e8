//! Pictures as they are on terminals of several sizes, and the terminal itself, on a pty.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use super::render::{Drawn, Size, render, render_batch, visible};
use super::*;
use crate::cgroup::{Pressure, Stall, Usage};
use crate::cli::stats::Rates;

const PLAIN: Style = Style { color: false, unicode: true };
const COLOR: Style = Style { color: true, unicode: true };
const SMALL: Size = Size { columns: 80, rows: 24 };
const LARGE: Size = Size { columns: 200, rows: 50 };
const NOW: u64 = 1_700_000_000;

fn stall(some: f64) -> Option<Stall> {
    Some(Stall { some_percent: Some(some), full_percent: Some(0.0) })
}

fn row(name: &str, age: u64, rates: Rates, usage: Usage) -> Row {
    let now = Statistics {
        name: name.into(),
        state: "running".into(),
        leader: Some(4711),
        since: NOW - age,
        monotonic_usec: 0,
        usage,
    };
    Row { now, rates }
}

/// What two machines do on a host that accounts for everything, one on a host that does for little, and one that does
/// nothing at the moment.
fn machines() -> Vec<Row> {
    let rates = |cpu, read, written| Rates {
        interval_usec: Some(2_000_000),
        cpu_percent: Some(cpu),
        read: Some(read),
        written: Some(written),
    };
    let busy = Usage {
        cpu_usec: Some(7_384_000_000),
        cpu_throttled_usec: Some(61_000_000),
        memory_bytes: Some(250 << 20),
        memory_peak_bytes: Some(256 << 20),
        memory_max_bytes: Some(256 << 20),
        swap_bytes: Some(5 << 20),
        oom_kills: Some(3),
        tasks: Some(40),
        tasks_max: Some(512),
        io_read_bytes: Some(3 << 30),
        io_written_bytes: Some(90 << 10),
        pressure: Pressure { cpu: stall(61.0), memory: stall(20.4), io: stall(0.0) },
        ..Usage::default()
    };
    let calm = Usage {
        cpu_usec: Some(1_500_000),
        cpu_throttled_usec: Some(0),
        memory_bytes: Some(12 << 20),
        memory_peak_bytes: Some(20 << 20),
        swap_bytes: Some(0),
        oom_kills: Some(0),
        tasks: Some(7),
        io_read_bytes: Some(4096),
        io_written_bytes: Some(0),
        pressure: Pressure { cpu: stall(0.0), memory: stall(0.0), io: stall(0.0) },
        ..Usage::default()
    };
    let little = Usage { cpu_usec: Some(90_000_000), ..Usage::default() };
    let mut frozen = row("db", 3700, rates(0.0, 0, 0), calm);
    frozen.now.state = "frozen".into();
    let mut restarting = row("mail", 100, Rates::default(), Usage::default());
    (restarting.now.state, restarting.now.leader) = ("restarting".into(), None);
    vec![
        row("web", 90_061, rates(187.4, 12 << 20, 1536), busy),
        row("a-machine-with-a-long-name", 59, Rates { cpu_percent: Some(3.0), ..Rates::default() }, little),
        frozen,
        restarting,
    ]
}

fn host() -> HostLoad {
    HostLoad {
        averages: "0.52 0.40 0.31".into(),
        uptime: 273_600,
        processors: 4,
        ticks: 0,
        busy_ticks: 0,
        memory_total: 8 << 30,
        memory_available: 5 << 30,
        swap_total: 1 << 30,
        swap_free: 1 << 30,
    }
}

fn view(rows: Vec<Row>) -> View {
    View { rows, sort: Sort::Cpu, skipped: 0, host: host(), host_cpu: Some(49.5), problem: None, help: false }
}

fn picture(view: &View, size: Size, style: Style) -> Vec<String> {
    let drawn = render(&Snapshot { now: NOW, ..view.snapshot() }, size, style);
    let lines: Vec<String> = drawn.iter().map(|line| line.text.clone()).collect();
    for line in &drawn {
        assert_eq!(line.full, without_color(&line.text).chars().count() == size.columns, "{size:?}: '{}'", line.text);
    }
    assert_eq!(lines.len(), size.rows, "{size:?}");
    for line in &lines {
        assert!(without_color(line).chars().count() <= size.columns, "{size:?}: '{line}'");
    }
    lines
}

/// The text alone; fails the test on any other control than a colour that ends on its line.
fn without_color(line: &str) -> String {
    let mut parts = line.split('\x1b');
    let mut text = parts.next().unwrap_or_default().to_owned();
    let mut on = false;
    for part in parts {
        let (code, rest) = part.strip_prefix('[').and_then(|part| part.split_once('m')).expect("a colour");
        assert!(code.bytes().all(|b| b.is_ascii_digit() || b == b';'), "{line:?}");
        on = code != "0";
        text.push_str(rest);
    }
    assert!(!on && !text.contains(char::is_control), "{line:?}");
    text
}

fn snapshot(name: &str, lines: &[String]) {
    let text: Vec<String> = lines.iter().map(|line| line.trim_end().to_owned()).collect();
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text.join("\n")));
}

#[test]
fn small_terminals_have_what_matters_most() {
    snapshot("80x24", &picture(&view(machines()), SMALL, PLAIN));
}

#[test]
fn large_terminals_have_everything() {
    snapshot("200x50", &picture(&view(machines()), LARGE, PLAIN));
}

#[test]
fn colours_change_nothing_but_colours() {
    for size in [SMALL, LARGE] {
        let [plain, colored] = [PLAIN, COLOR].map(|style| picture(&view(machines()), size, style));
        let stripped: Vec<String> = colored.iter().map(|line| without_color(line).trim_end().to_owned()).collect();
        assert_eq!(stripped, plain.iter().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>());
        assert!(!plain.concat().contains('\x1b'));
        let all = colored.concat();
        for paint in ["\x1b[1;31m", "\x1b[32mrunning", "\x1b[36mfrozen", "\x1b[7m", "\x1b[1;7;36m CPU%"] {
            assert!(all.contains(paint), "{paint:?} at {size:?}: {all:?}");
        }
    }
}

#[test]
fn pictures_fit_into_every_terminal() {
    let many: Vec<Row> = (0..60).flat_map(|_| machines()).collect();
    for columns in (1..=210).step_by(9) {
        for rows in [1, 2, 3, 4, 5, 8, 9, 10, 24, 50] {
            let size = Size { columns, rows };
            for count in [0, 1, 4, many.len()] {
                let mut view = view(many[..count].to_vec());
                view.problem = Some("cannot look at machine 'x': y\nz".repeat(9));
                picture(&view, size, COLOR);
                view.help = true;
                picture(&view, size, PLAIN);
            }
        }
    }
}

#[test]
fn no_text_of_others_reaches_the_terminal_as_a_control() {
    let mut rows = machines();
    rows[0].now.name = "a\x1b[2J\nb\u{9b}".into();
    rows[1].now.state = "\x1b]0;x\x07".into();
    let text = picture(&view(rows), LARGE, COLOR).join("\n");
    assert!(text.contains("a\u{fffd}[2J b\u{fffd}"), "{text}");
}

#[test]
fn names_are_cut_before_columns_go_and_say_so() {
    let lines = picture(&view(machines()), SMALL, PLAIN);
    assert!(lines.iter().any(|line| line.starts_with("a-machine-") && line.contains('…')), "{lines:#?}");
    let ascii = picture(&view(machines()), SMALL, Style { unicode: false, ..PLAIN });
    assert!(ascii.concat().is_ascii() && ascii.iter().any(|line| line.starts_with("a-machine-")), "{ascii:#?}");
    let whole = picture(&view(machines()), LARGE, PLAIN);
    assert!(whole.iter().any(|line| line.starts_with("a-machine-with-a-long-name ")), "{whole:#?}");
}

#[test]
fn every_order_has_a_reason_and_names_break_ties() {
    let names = |sort: Sort| {
        let mut rows = machines();
        rows.push(row("aa", 5, Rates::default(), Usage::default()));
        sort::order(&mut rows, sort);
        rows.iter().map(|row| row.now.name.chars().take(2).collect::<String>()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(Sort::Cpu), "we a- db aa ma");
    assert_eq!(names(Sort::Memory), "we db a- aa ma");
    assert_eq!(names(Sort::Io), "we db a- aa ma");
    assert_eq!(names(Sort::Tasks), "we db a- aa ma");
    assert_eq!(names(Sort::Pressure), "we db a- aa ma");
    assert_eq!(names(Sort::Name), "a- aa db ma we");
}

#[test]
fn keys_sort_scroll_and_quit() {
    let many: Vec<Row> = (0..30).map(|n| row(&format!("m{n:02}"), n, Rates::default(), Usage::default())).collect();
    let mut view = view(many);
    let room = visible(SMALL);
    assert_eq!(room, 18);
    for (key, skipped) in [
        (Key::Up, 0),
        (Key::Down, 1),
        (Key::PageDown, 12),
        (Key::Up, 11),
        (Key::Home, 0),
        (Key::End, 12),
        (Key::Down, 12),
        (Key::PageUp, 0),
    ] {
        assert_eq!(view.press(key, room), Wish::Redraw);
        assert_eq!(view.skipped, skipped, "{key:?}");
    }
    view.press(Key::End, room);
    let lines = picture(&view, SMALL, PLAIN);
    assert!(lines[0].contains("(13-30 shown)") && lines[5].starts_with("m12 "), "{lines:#?}");
    assert_eq!(lines[22].split(' ').next(), Some("m29"));
    for sort in Sort::ALL {
        view.press(Key::Char(sort.key()), room);
        assert_eq!(view.sort, sort);
    }
    assert_eq!(view.press(Key::Char(' '), room), Wish::Look);
    assert_eq!((view.press(Key::Char('?'), room), view.help), (Wish::Redraw, true));
    assert!(picture(&view, SMALL, PLAIN).concat().contains("THROTTLED   time"), "help fits");
    // Escape leaves the help first.
    assert_eq!((view.press(Key::Escape, room), view.help), (Wish::Redraw, false));
    for key in [Key::Escape, Key::Char('q'), Key::Char('\x03')] {
        assert_eq!(view.press(key, room), Wish::Quit);
    }
}

#[test]
fn what_is_printed_without_a_terminal_has_every_machine_and_no_keys() {
    let many: Vec<Row> = (0..30).map(|n| row(&format!("m{n:02}"), n, Rates::default(), Usage::default())).collect();
    let shown = view(many);
    let lines = render_batch(&Snapshot { now: NOW, ..shown.snapshot() }, 80, PLAIN);
    assert_eq!(
        (lines.len(), lines[0].starts_with("machinist top: 30 machines by CPU, load ")),
        (35, true),
        "{lines:#?}"
    );
    assert!(lines[34].starts_with("m29 ") && !lines.concat().contains("quit"), "{lines:#?}");
    let none = view(Vec::new());
    let lines = render_batch(&Snapshot { now: NOW, ..none.snapshot() }, 80, PLAIN);
    assert_eq!(lines.last().map(String::as_str), Some("No machines are running."));
}

/// A terminal of that size, as its two ends.
fn pty(columns: u16, rows: u16) -> (OwnedFd, OwnedFd) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let master = rustix::pty::openpt(flags).expect("openpt");
    rustix::pty::unlockpt(&master).expect("unlockpt");
    let slave = ioctl_tiocgptpeer(&master, flags).expect("TIOCGPTPEER");
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&slave, size).expect("TIOCSWINSZ");
    (master, slave)
}

fn line(text: &str, full: bool) -> Drawn {
    Drawn { text: text.into(), full }
}

/// Everything that was written to a terminal whose other end is closed by now.
fn written_to(master: &OwnedFd) -> String {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    // It comes in pieces, and then as an error.
    while let Ok(len @ 1..) = rustix::io::read(master, &mut buffer) {
        text.extend(&buffer[..len]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn the_terminal_comes_back_as_it_was_also_after_a_panic() {
    for panics in [false, true] {
        let (master, slave) = pty(91, 31);
        let modes = || format!("{:?}", tcgetattr(&slave).expect("tcgetattr"));
        let before = modes();
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let result = std::panic::catch_unwind(|| {
            let mut screen = Screen::open(slave.as_fd(), slave.as_fd()).expect("open");
            assert_eq!(screen.size(), Size { columns: 91, rows: 31 });
            let raw = tcgetattr(&slave).expect("tcgetattr");
            assert!(!raw.local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO));
            assert!(raw.local_modes.contains(LocalModes::ISIG));
            assert_eq!(screen.show(&[line("one", false), line("two", true)]), Ok(true));
            assert!(!panics, "as wanted");
        });
        std::panic::set_hook(usual);
        assert_eq!(result.is_err(), panics);
        assert_eq!(modes(), before);
        drop(slave);
        let text = written_to(&master);
        assert!(text.starts_with("\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J\x1b[Hone\x1b[K\r"), "{text:?}");
        assert!(text.ends_with("\ntwo\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"), "{text:?}");
    }
}

#[test]
fn a_terminal_that_takes_nothing_keeps_nobody_and_one_that_is_gone_says_so() {
    let (master, slave) = pty(80, 24);
    let mut screen = Screen::open(slave.as_fd(), slave.as_fd()).expect("open");
    let picture = vec![line(&"x".repeat(200), true); 500];
    assert_eq!(screen.show(&picture), Ok(true));
    assert!(screen.output().is_some(), "without a reader, it was all taken");
    // The last one is finished before another begins.
    assert_eq!(screen.show(&picture), Ok(false));
    drop(master);
    assert_eq!((screen.flush(), screen.read(&mut [0; 16])), (Err(Gone), Err(Gone)));
}
