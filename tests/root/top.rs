//! `top` on terminals of tmux, which are as real as any.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::stats::{BUSY, IDLE};
use crate::support::{Host, finish, wait_for};

/// A terminal with a shell in it, which has typed into it whatever a test wants.
struct Terminal {
    socket: PathBuf,
    shell: u32,
}

impl Terminal {
    fn open(host: &Host, columns: u32, rows: u32) -> Self {
        // A name of its own: the server of an earlier terminal may still be ending, and would take the session with it.
        let socket = host.path(&format!("tmux-{columns}x{rows}"));
        let config = host.path("tmux.conf");
        std::fs::write(&config, "set -g status off\nset -g remain-on-exit on\n").expect("write");
        let machinist = host.command();
        let shell = format!(
            "exec env -u NO_COLOR LC_ALL=C.UTF-8 PS1='$ ' PATH={}:$PATH MACHINIST_ROOT={} bash --norc --noprofile",
            PathBuf::from(machinist.get_program()).parent().expect("a directory").display(),
            host.root().display()
        );
        let mut tmux = Command::new("tmux");
        tmux.arg("-u").arg("-f").arg(&config).arg("-S").arg(&socket).env_remove("TMUX").env("TERM", "xterm");
        tmux.args(["new-session", "-d", "-x", &columns.to_string(), "-y", &rows.to_string(), &shell]);
        let made = finish(tmux.stdin(Stdio::null()));
        assert_eq!(made.status, 0, "{made:?}");
        let mut terminal = Self { socket, shell: 0 };
        terminal.shell = terminal.ask("#{pane_pid}").parse().expect("a number");
        terminal.wait_for("a prompt", |screen| screen.first().is_some_and(|line| line == "$"));
        terminal
    }

    fn tmux(&self, args: &[&str]) -> String {
        let output = finish(Command::new("tmux").arg("-S").arg(&self.socket).args(args).stdin(Stdio::null()));
        assert_eq!(output.status, 0, "tmux {args:?}: {output:?}");
        output.stdout
    }

    fn ask(&self, format: &str) -> String {
        self.tmux(&["display-message", "-p", format]).trim_end().to_owned()
    }

    /// The lines of the screen, without what is empty at their ends.
    fn screen(&self) -> Vec<String> {
        self.tmux(&["capture-pane", "-p"]).lines().map(|line| line.trim_end().to_owned()).collect()
    }

    /// The same with the escape sequences of colours.
    fn colors(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-e"])
    }

    fn press(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    /// Types a line to the shell.
    fn enter(&self, line: &str) {
        self.tmux(&["send-keys", "-l", line]);
        self.press(&["Enter"]);
    }

    fn wait_for(&self, what: &str, mut done: impl FnMut(&[String]) -> bool) -> Vec<String> {
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        loop {
            let seen = self.screen();
            if done(&seen) {
                return seen;
            }
            assert!(std::time::Instant::now() < deadline, "no {what}:\n{}", seen.join("\n"));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Starts `top` and waits until it has measured something.
    fn top(&self, line: &str) -> Vec<String> {
        self.enter(line);
        self.wait_for("table with a measured load", |screen| {
            screen.first().is_some_and(|line| line.starts_with("machinist top: "))
                && screen.get(2).is_some_and(|line| line.starts_with("Machines: CPU ") && !line.contains("CPU -,"))
        })
    }

    /// The process of `top`.
    fn child(&self) -> i32 {
        let children = format!("/proc/{0}/task/{0}/children", self.shell);
        let text = std::fs::read_to_string(children).expect("the children of the shell");
        text.trim().parse().expect("one child")
    }

    /// Whether the ordinary screen is there, with a cursor and lines that wrap.
    fn is_ordinary(&self) -> bool {
        self.ask("#{alternate_on} #{cursor_flag} #{wrap_flag}") == "0 1 1"
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Fails if a test has ended it already; does not wait for the end of the server.
        let _ = Command::new("tmux").arg("-S").arg(&self.socket).arg("kill-server").stderr(Stdio::null()).status();
    }
}

/// Two machines, one of them busy.
fn machines(host: &Host) -> (String, String) {
    let (busy, idle) = (host.define("zz", BUSY), host.define("idle", IDLE));
    host.ok(&["start", &busy, &idle]);
    (busy, idle)
}

fn end(host: &Host, machines: &(String, String)) {
    host.ok(&["stop", "--timeout", "0s", &machines.0, &machines.1]);
    host.assert_nothing_left();
}

#[test]
fn tables_fit_into_small_and_large_terminals_with_colours_if_wanted() {
    let host = Host::new();
    let machines = machines(&host);
    let (busy, idle) = (machines.0.as_str(), machines.1.as_str());
    for (columns, rows) in [(80, 24), (200, 50)] {
        let terminal = Terminal::open(&host, columns, rows);
        let screen = terminal.top("machinist top --interval 0.3");
        assert_eq!(screen.len(), usize::try_from(rows).expect("small"), "{screen:#?}");
        assert!(screen[0].starts_with("machinist top: 2 machines by CPU, load "), "{screen:#?}");
        assert!(screen[1].starts_with("Host: CPU ") && screen[1].contains("memory "), "{screen:#?}");
        assert!(screen[4].starts_with("NAME ") && screen[4].contains(" CPU% "), "{screen:#?}");
        // The busy one is first, each has one line, and below them there is nothing until the keys.
        assert!(screen[5].starts_with(&format!("{busy} ")), "{screen:#?}");
        assert!(screen[6].starts_with(&format!("{idle} ")), "{screen:#?}");
        assert!(screen[7..screen.len() - 1].iter().all(String::is_empty), "{screen:#?}");
        let keys = screen.last().expect("lines");
        assert!(keys.starts_with("c CPU  m memory") && keys.ends_with("q quit"), "{screen:#?}");
        for line in &screen[5..7] {
            assert!(line.contains(" running "), "{line}");
        }
        for head in ["UPTIME", "TASKS", "MEMORY", "WRITE/S"] {
            assert!(screen[4].contains(head), "{head} is missing: {}", screen[4]);
        }
        for head in ["LEADER", "THROTTLED", "P-MEM", "OF HOST"] {
            assert_eq!(screen[4].contains(head), columns == 200, "{head}: {}", screen[4]);
        }
        if columns == 200 {
            assert!(screen[5].ends_with(&host.status(busy, "leader")), "{}", screen[5]);
        }
        assert!(terminal.colors().contains("\u{1b}[32mrunning"), "{}", terminal.colors());
        assert_eq!(terminal.ask("#{alternate_on} #{cursor_flag} #{wrap_flag}"), "1 0 0");
        terminal.press(&["q"]);
        terminal.wait_for("a prompt", |screen| screen.get(1).is_some_and(|line| line == "$"));
        for (line, index) in [("NO_COLOR=1 machinist top", 1), ("machinist top --no-color --sort name", 2)] {
            let screen = terminal.top(line);
            let order: Vec<&str> = screen[5..7].iter().filter_map(|line| line.split(' ').next()).collect();
            assert_eq!(order, if index == 1 { [busy, idle] } else { [idle, busy] });
            let colors = terminal.colors();
            assert!(!colors.contains('\u{1b}') && colors.contains("running"), "{line}: {colors}");
            terminal.press(&["q"]);
            terminal.wait_for("a prompt", |screen| screen.get(index + 1).is_some_and(|line| line == "$"));
        }
    }
    end(&host, &machines);
}

#[test]
fn every_way_out_gives_the_terminal_back() {
    let host = Host::new();
    let machines = machines(&host);
    let terminal = Terminal::open(&host, 80, 24);
    // Something odd, so that what comes back can only be what was there.
    terminal.enter("stty -ixany eol 'x'; stty -g >$MACHINIST_ROOT/before");
    let read = |name: &str| std::fs::read_to_string(host.path(name)).unwrap_or_default();
    wait_for("stty", Duration::from_secs(20), || read("before").ends_with('\n'));
    type Way = fn(&Terminal);
    let ways: [(&str, i32, Way); 6] = [
        ("q", 0, |terminal| terminal.press(&["q"])),
        ("Escape", 0, |terminal| terminal.press(&["Escape"])),
        ("Ctrl-C", 0, |terminal| terminal.press(&["C-c"])),
        ("Ctrl-\\", 131, |terminal| terminal.press(&["C-\\"])),
        ("SIGTERM", 143, |terminal| kill(terminal.child(), "TERM")),
        ("SIGHUP", 129, |terminal| kill(terminal.child(), "HUP")),
    ];
    for (way, status, leave) in ways {
        terminal.enter("clear; echo was here");
        terminal.wait_for("a clean screen", |screen| screen[0] == "was here" && screen[1] == "$");
        terminal.top("machinist top --interval 0.2");
        leave(&terminal);
        terminal.wait_for(way, |screen| screen[2] == "$");
        assert!(terminal.is_ordinary(), "{way}");
        terminal.enter("echo $?; stty -g >$MACHINIST_ROOT/after");
        let screen = terminal.wait_for(way, |screen| !screen[3].is_empty());
        assert_eq!((screen[0].as_str(), screen[3].as_str()), ("was here", status.to_string().as_str()), "{way}");
        wait_for("stty", Duration::from_secs(20), || read("after").ends_with('\n'));
        assert_eq!(read("after"), read("before"), "{way}");
        std::fs::remove_file(host.path("after")).expect("remove");
    }
    drop(terminal);
    end(&host, &machines);
}

fn kill(pid: i32, signal: &str) {
    let status = Command::new("kill").args(["-s", signal, &pid.to_string()]).status().expect("run kill");
    assert!(status.success(), "kill {pid}");
}

#[test]
fn a_terminal_that_goes_away_ends_it() {
    let host = Host::new();
    let machines = machines(&host);
    let terminal = Terminal::open(&host, 80, 24);
    terminal.top("machinist top");
    let top = terminal.child();
    terminal.tmux(&["kill-server"]);
    wait_for("its end", Duration::from_secs(20), || !PathBuf::from(format!("/proc/{top}")).exists());
    drop(terminal);
    end(&host, &machines);
}

#[test]
fn keys_sizes_and_job_control_do_what_they_should() {
    let host = Host::new();
    let machines = machines(&host);
    let (busy, idle) = (machines.0.as_str(), machines.1.as_str());
    let terminal = Terminal::open(&host, 80, 24);
    terminal.top("machinist top --interval 60 --no-color");
    let first_is = |name: &str| {
        let name = format!("{name} ");
        move |screen: &[String]| screen.get(5).is_some_and(|line| line.starts_with(&name))
    };
    terminal.press(&["n"]);
    terminal.wait_for("the order of names", first_is(idle));
    terminal.press(&["c"]);
    terminal.wait_for("the order of load", first_is(busy));
    terminal.press(&["?"]);
    terminal.wait_for("help", |screen| screen.get(4).is_some_and(|line| line == "Keys"));
    terminal.press(&["Escape"]);
    terminal.wait_for("the table", first_is(busy));

    // Nothing is looked at for a minute but what is asked for.
    host.ok(&["freeze", busy]);
    terminal.press(&["Space"]);
    terminal.wait_for("the new state", |screen| {
        screen.iter().any(|line| line.starts_with(busy) && line.contains("frozen"))
    });
    host.ok(&["thaw", busy]);

    // One machine fits, and the other is reached.
    terminal.tmux(&["resize-window", "-x", "60", "-y", "7"]);
    let small = terminal.wait_for("a smaller picture", |screen| {
        screen.len() == 7 && screen[1].starts_with("NAME ") && screen[6].starts_with("c CPU")
    });
    assert!(small.iter().all(|line| line.chars().count() <= 60), "{small:#?}");
    terminal.tmux(&["resize-window", "-x", "60", "-y", "4"]);
    terminal.press(&["n"]);
    terminal.wait_for("the first", |screen| screen.len() == 4 && screen[2].starts_with(idle));
    terminal.press(&["Down"]);
    terminal.wait_for("the second", |screen| screen[2].starts_with(busy) && screen[0].contains("(2-2 shown)"));
    terminal.tmux(&["resize-window", "-x", "80", "-y", "24"]);
    terminal.wait_for("the large picture", |screen| screen.len() == 24 && screen[5].starts_with(idle));

    let top = terminal.child();
    let state = || {
        let stat = std::fs::read_to_string(format!("/proc/{top}/stat")).expect("stat");
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).expect("a state")
    };
    for round in 0..2 {
        terminal.press(&["C-z"]);
        terminal.wait_for("the shell", |screen| screen.iter().any(|line| line.contains("Stopped")));
        assert!(terminal.is_ordinary() && state() == 'T', "round {round}");
        if round == 0 {
            // In the background it may not draw, and is stopped again.
            terminal.enter("bg; clear");
            terminal.enter("jobs; echo shell");
            terminal.wait_for("the shell", |screen| screen.iter().any(|line| line == "shell"));
            wait_for("it to be stopped again", Duration::from_secs(20), || state() == 'T');
            assert!(terminal.is_ordinary(), "drawn in the background");
        }
        terminal.enter("clear; fg");
        terminal.wait_for("the table again", first_is(idle));
        assert_eq!(terminal.ask("#{alternate_on} #{cursor_flag}"), "1 0");
    }
    // A stopped one can be ended.
    terminal.press(&["C-z"]);
    terminal.wait_for("the shell", |screen| screen.iter().any(|line| line.contains("Stopped")));
    terminal.enter("kill %1; wait; clear; echo ended");
    terminal.wait_for("its end", |screen| screen.iter().any(|line| line == "ended"));
    assert!(!PathBuf::from(format!("/proc/{top}")).exists() && terminal.is_ordinary());
    drop(terminal);
    end(&host, &machines);
}

#[test]
fn machines_come_and_go_while_it_looks() {
    let host = Host::new();
    let machines = machines(&host);
    let terminal = Terminal::open(&host, 100, 20);
    terminal.top("machinist top --interval 0.2");
    host.ok(&["stop", "--timeout", "0s", &machines.1]);
    terminal.wait_for("one machine", |screen| screen[0].starts_with("machinist top: 1 machine by "));
    host.ok(&["stop", "--timeout", "0s", &machines.0]);
    terminal.wait_for("none", |screen| screen[5] == "No machines are running.");
    host.ok(&["start", &machines.1]);
    terminal.wait_for("another", |screen| screen[5].starts_with(&machines.1));
    terminal.press(&["q"]);
    terminal.wait_for("a prompt", |screen| screen.get(1).is_some_and(|line| line == "$"));
    host.ok(&["stop", "--timeout", "0s", &machines.1]);
    drop(terminal);
    host.assert_nothing_left();
}

#[test]
fn without_a_terminal_it_says_so_or_prints() {
    let host = Host::new();
    let refused = host.run(&["top"]);
    let expected = "error: `machinist top` needs a terminal that can be drawn on\n  \
                    hint: `machinist stats` prints the same once, `machinist top --batch 5` five times\n";
    assert_eq!((refused.status, refused.stdout.as_str(), refused.stderr.as_str()), (2, "", expected));
    assert_eq!(host.run(&["top", "--interval", "0"]).status, 2);
    let machines = machines(&host);
    let printed = host.ok(&["top", "--batch", "2", "--interval", "0.3", "--sort", "name"]);
    let tables: Vec<Vec<&str>> = printed.split("\n\n").map(|part| part.lines().collect()).collect();
    assert!(!printed.contains('\u{1b}'), "{printed}");
    let rows: Vec<&str> = printed.lines().filter(|line| line.contains(" running ")).collect();
    let names: Vec<&str> = rows.iter().filter_map(|line| line.split(' ').next()).collect();
    let (busy, idle) = (machines.0.as_str(), machines.1.as_str());
    assert_eq!(names, [idle, busy, idle, busy], "{tables:#?}");
    assert_eq!(printed.matches("machinist top: 2 machines by name, load ").count(), 2, "{printed}");
    end(&host, &machines);
}
