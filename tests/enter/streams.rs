//! Standard input, output and error, and terminals.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Stdio};

use machinist::enter::Stdio as Wanted;
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

use crate::Case;
use crate::caller::{self, Job};
use crate::commands::wait_for;
use crate::machine::{Kind, Machine};

pub(crate) const CASES: [Case; 10] = [
    ("output_and_error_are_apart", output_and_error_are_apart),
    ("input_passes_every_byte", input_passes_every_byte),
    ("a_directory_is_not_passed_on", a_directory_is_not_passed_on),
    ("cve_2017_5226_no_terminal_of_ours_is_passed_on", cve_2017_5226_no_terminal_of_ours_is_passed_on),
    ("a_terminal_is_the_machines_own", a_terminal_is_the_machines_own),
    ("a_terminal_follows_the_size_of_ours", a_terminal_follows_the_size_of_ours),
    ("our_terminal_is_as_before_afterwards", our_terminal_is_as_before_afterwards),
    ("three_escape_keys_hang_up", three_escape_keys_hang_up),
    ("cve_2025_52565_a_false_devpts_is_refused", cve_2025_52565_a_false_devpts_is_refused),
    ("a_login_shell_starts_at_home", a_login_shell_starts_at_home),
];

fn output_and_error_are_apart() {
    let machine = Machine::start(Kind::USERNS);
    let output = Job::shell(&machine, "echo out; echo err >&2; printf '\\0\\377'").run();
    assert_eq!((output.stdout, output.stderr), (b"out\n\0\xff".to_vec(), b"err\n".to_vec()));
}

fn input_passes_every_byte() {
    let machine = Machine::start(Kind::USERNS);
    let data: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let mut child = Job::new(&machine, &["cat"]).spawn(Stdio::piped(), Stdio::piped(), Stdio::inherit());
    let mut input = child.stdin.take().expect("piped");
    let sent = data.clone();
    let writer = std::thread::spawn(move || input.write_all(&sent));
    let output = child.wait_with_output().expect("waiting");
    writer.join().expect("the writer").expect("writing");
    assert!(output.status.success());
    assert!(output.stdout == data, "{} bytes came back, or other ones", output.stdout.len());
}

fn a_directory_is_not_passed_on() {
    let machine = Machine::start(Kind::USERNS);
    let child =
        Job::new(&machine, &["true"]).spawn(File::open("/").expect("opening /").into(), Stdio::piped(), Stdio::piped());
    let output = child.wait_with_output().expect("waiting");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let wanted = "cannot connect standard input and output: passing on descriptor 0: Is a directory\n";
    assert_eq!((output.status.code(), &*text), (Some(1), wanted));
}

/// Starts a caller whose three streams are a terminal, and gives the terminal's other side.
fn on_terminal(job: &Job) -> (Child, Screen, OwnedFd) {
    let (ours, theirs) = caller::terminal();
    tcsetwinsize(&ours, size(25, 81)).expect("setting the size");
    let stream = || Stdio::from(theirs.try_clone().expect("dup"));
    let child = job.clone().with(|job| job.take_terminal = true).spawn(stream(), stream(), stream());
    (child, Screen { terminal: File::from(ours), seen: String::new() }, theirs)
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// What a terminal shows.
struct Screen {
    terminal: File,
    seen: String,
}

impl Screen {
    /// Reads on until `text` has been shown, and forgets what was shown so far.
    fn expect(&mut self, text: &str) {
        self.expect_all(&[text]);
        let found = self.seen.find(text).expect("just seen");
        self.seen.drain(..found + text.len());
    }

    /// Reads on until all of `texts` have been shown.
    fn expect_all(&mut self, texts: &[&str]) {
        use nix::poll::{PollFd, PollFlags, poll};
        wait_for(&texts.join(", "), || {
            let mut set = [PollFd::new(self.terminal.as_fd(), PollFlags::POLLIN)];
            if poll(&mut set, 100u8).expect("poll") > 0 {
                let mut data = [0; 4096];
                let len = self.terminal.read(&mut data).expect("the terminal is open");
                self.seen.push_str(&String::from_utf8_lossy(&data[..len]));
            }
            texts.iter().all(|text| self.seen.contains(text)).then_some(())
        });
    }

    fn type_in(&mut self, text: &str) {
        self.terminal.write_all(text.as_bytes()).expect("typing");
    }
}

fn exit_code(mut child: Child) -> Option<i32> {
    wait_for("end of the caller", || child.try_wait().expect("waiting")).code()
}

fn cve_2017_5226_no_terminal_of_ours_is_passed_on() {
    for kind in Kind::BOTH {
        let machine = Machine::start(kind);
        let script = "for fd in 0 1 2; do test -t $fd && echo terminal $fd; done; \
            read line; echo out $line; echo wrong >/dev/stderr; (: </dev/tty) 2>/dev/null && echo has one; echo end";
        let (child, mut screen, _theirs) = on_terminal(&Job::shell(&machine, script).user("alice"));
        screen.type_in("typed\n");
        // Output and error come by ways of their own, in any order.
        screen.expect_all(&["out typed", "wrong", "end"]);
        assert!(!screen.seen.contains("terminal") && !screen.seen.contains("has one"), "{}", screen.seen);
        assert_eq!(exit_code(child), Some(0));
    }
}

fn terminal_job(machine: &Machine, script: &str) -> Job {
    Job::shell(machine, script).with(|job| job.command.stdio = Wanted::Terminal)
}

fn a_terminal_is_the_machines_own() {
    for kind in Kind::BOTH {
        let machine = Machine::start(kind);
        let script = "test -t 0 && test -t 1 && test -t 2 && echo all; tty; stty size; stat -c %u:%g $(tty); \
            : </dev/tty && echo controlling; ls /proc/self/fd | wc -l; read line; echo got $line; exit 5";
        let (child, mut screen, _theirs) = on_terminal(&terminal_job(&machine, script).user("alice"));
        for text in ["all", "/dev/pts/0", "25 81", "1000:5", "controlling", "4"] {
            screen.expect(text);
        }
        screen.type_in("a line\r");
        screen.expect("got a line");
        assert_eq!(exit_code(child), Some(5));
    }
}

fn a_terminal_follows_the_size_of_ours() {
    let machine = Machine::start(Kind::USERNS);
    let script = "trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.02; done";
    let (child, mut screen, _theirs) = on_terminal(&terminal_job(&machine, script));
    screen.expect("ready");
    tcsetwinsize(&screen.terminal, size(33, 99)).expect("setting the size");
    screen.expect("33 99");
    assert_eq!(exit_code(child), Some(3));
}

fn our_terminal_is_as_before_afterwards() {
    let machine = Machine::start(Kind::USERNS);
    for (end, status) in [("exit 0", 0), ("kill -9 $$", 137), ("exec sleep 4291", 124)] {
        let script = format!("echo ready; read line; {end}");
        let (child, mut screen, theirs) = on_terminal(&terminal_job(&machine, &script).timeout(1000));
        let before = format!("{:?}", tcgetattr(&caller::terminal().1).expect("a fresh terminal"));
        screen.expect("ready");
        assert_ne!(format!("{:?}", tcgetattr(&theirs).expect("tcgetattr")), before, "it is raw meanwhile");
        screen.type_in("\r");
        assert_eq!(exit_code(child), Some(status), "{end}");
        assert_eq!(format!("{:?}", tcgetattr(&theirs).expect("tcgetattr")), before, "{end}");
    }
}

fn three_escape_keys_hang_up() {
    let machine = Machine::start(Kind::USERNS);
    for script in ["echo ready; exec cat", "trap '' HUP INT TERM; stty raw -echo; echo ready; while :; do :; done"] {
        let (child, mut screen, _theirs) = on_terminal(&terminal_job(&machine, script));
        screen.expect("ready");
        screen.type_in("\x1d\x1d\x1d");
        assert_eq!(exit_code(child), Some(129), "{script}");
        assert!(machine.leaves().is_empty(), "{:?}", machine.leaves());
    }
}

fn cve_2025_52565_a_false_devpts_is_refused() {
    let machine = Machine::start(Kind::PRIVILEGED);
    let error = || {
        let mut output = terminal_job(&machine, "true").run();
        output.stderr.retain(|byte| *byte != b'\r');
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(error().0, Some(0));
    let prepare = |script: &str| Job::shell(&machine, script).text();
    let because = "cannot connect standard input and output: ";
    // Something else in place of ptmx.
    prepare("mount --bind /dev/null /dev/pts/ptmx");
    assert_eq!(error(), (Some(1), format!("{because}openat2('/dev/pts/ptmx' of the machine): Cross-device link\n")));
    prepare("umount /dev/pts/ptmx && mount -t tmpfs none /dev/pts && mknod /dev/pts/ptmx c 5 2");
    assert_eq!(error(), (Some(1), format!("{because}'/dev/pts' of the machine is no devpts: No such device\n")));
    prepare("umount /dev/pts && umount -l /dev/pts && rmdir /dev/pts && ln -s /tmp /dev/pts");
    let symlink = "openat2('/dev/pts' in the tree): Too many symbolic links encountered\n";
    assert_eq!(error(), (Some(1), format!("{because}{symlink}")));
}

fn a_login_shell_starts_at_home() {
    let machine = Machine::start(Kind::USERNS);
    for (user, home) in [("root", "/root"), ("alice", "/home/alice"), ("homeless", "/")] {
        let job = Job::new(&machine, &[]).user(user).with(|job| job.command.login_shell = true);
        let mut child = job.spawn(Stdio::piped(), Stdio::piped(), Stdio::inherit());
        let mut input = child.stdin.take().expect("piped");
        input.write_all(b"echo $0; pwd; exit 4\n").expect("writing");
        drop(input);
        let output = child.wait_with_output().expect("waiting");
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("-sh\n{home}\n"));
        assert_eq!(output.status.code(), Some(4));
    }
}
