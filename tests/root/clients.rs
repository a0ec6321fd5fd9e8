//! Unmodified clients of systemd-machined against our daemon, on a host without systemd: every verb of machinectl 252,
//! 257 and 262 and the `-M` tools, on guests with systemd, OpenRC and busybox. Each check looks at what the verb did.
//!
//! One table for each version; a result that is no "ok" has its reason in it, and the test holds the client to that.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::stage::{Stage, on_stage};
use crate::support::Output;

/// A kind of machine.
#[derive(Clone, Copy)]
struct Guest {
    /// Its tree.
    tree: &'static str,
    /// `ID` of its os-release.
    os: &'static str,
    /// It has systemd and a message bus.
    systemd: bool,
}

const GUESTS: [Guest; 3] = [
    Guest { tree: "trixie-systemd", os: "debian", systemd: true },
    Guest { tree: "trixie-openrc", os: "debian", systemd: false },
    Guest { tree: "trixie-busybox", os: "busybox", systemd: false },
];

/// What came of a verb.
enum Verdict {
    Ok,
    /// Refused, as it must be: why.
    No(&'static str),
    /// Not what it must be.
    Wrong(String),
}

use Verdict::{No, Ok as Done};

/// The results of one version.
struct Table<'a> {
    stage: &'a Stage<'a>,
    version: &'static str,
    rows: RefCell<Vec<(String, &'static str, Verdict)>>,
}

/// Like `assert`, for a text that goes into the table.
macro_rules! check {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Verdict::Wrong(format!($($text)+));
        }
    };
}

fn has(output: &Output, words: &[&str]) -> bool {
    output.status == 0 && words.iter().all(|word| output.stdout.contains(word))
}

/// Waits up to a minute.
fn within(mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

impl Table<'_> {
    fn row(&self, verb: &str, guest: &'static str, check: impl FnOnce() -> Verdict) {
        // A helper that panics is a wrong result like any other: the rest of the table is wanted all the same.
        let verdict = catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            Verdict::Wrong(text.unwrap_or_else(|| "the check panicked".into()))
        });
        self.rows.borrow_mut().push((verb.to_owned(), guest, verdict));
    }

    fn client(&self, words: &[&str]) -> Output {
        self.stage.client(self.version, words)
    }

    fn machinectl(&self, words: &[&str]) -> Output {
        self.client(&[&["machinectl", "--no-pager"], words].concat())
    }

    /// A verb of machinectl on a terminal.
    fn typed(&self, words: &[&str], until: Option<&str>) -> String {
        self.stage.on_terminal(self.version, &[&["machinectl", "--no-pager"], words].concat(), until)
    }

    fn names(&self) -> Vec<String> {
        let output = self.machinectl(&["list", "--no-legend"]);
        assert_eq!(output.status, 0, "{output:?}");
        output.stdout.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    }

    fn knows(&self, machine: &str) -> bool {
        self.names().iter().any(|name| name == machine)
    }

    fn leader(&self, machine: &str) -> Option<String> {
        self.stage.status(machine, "leader")
    }

    fn runs(&self, machine: &str) -> bool {
        self.stage.status(machine, "state").as_deref() == Some("running")
    }

    /// Waits until nothing is left of a machine, for anybody.
    fn is_gone(&self, machine: &str) -> bool {
        let run = self.stage.path("run/machinist/machines").join(machine);
        within(|| !run.exists() && !self.knows(machine))
    }

    /// Prints the table and fails if a result is wrong.
    #[expect(clippy::print_stdout, reason = "the table is what the test is for")]
    fn print(&self) {
        let rows = self.rows.borrow();
        println!("machinectl {} and its kin", self.version);
        let mut wrong = 0;
        for (verb, guest, verdict) in rows.iter() {
            let result = match verdict {
                Done => "ok".to_owned(),
                No(why) => format!("refused: {why}"),
                Verdict::Wrong(text) => {
                    wrong += 1;
                    format!("WRONG: {text}")
                }
            };
            println!("{verb:<16} {:<5} {guest:<16} {result}", self.version);
        }
        assert_eq!(wrong, 0, "results that are not what they must be");
    }
}

/// Definition, start and what is seen of a machine.
fn look(table: &Table<'_>, guest: Guest, m: &str) {
    let stage = table.stage;
    let link = stage.path("etc/machinist/autostart").join(format!("{m}.toml"));
    table.row("enable", guest.tree, || {
        let output = table.machinectl(&["enable", m]);
        check!(output.status == 0 && link.exists(), "{output:?}");
        Done
    });
    table.row("disable", guest.tree, || {
        let output = table.machinectl(&["disable", m]);
        check!(output.status == 0 && link.symlink_metadata().is_err(), "{output:?}");
        Done
    });
    table.row("remove", guest.tree, || {
        let output = table.machinectl(&["remove", m]);
        check!(output.status == 1 && output.stderr.contains(&format!("{m}.toml")), "{output:?}");
        check!(stage.path("etc/machinist/machines").join(format!("{m}.toml")).exists(), "the definition is gone");
        No("there is no image of that name, and a definition is its administrator's")
    });
    table.row("start", guest.tree, || {
        let output = table.machinectl(&["start", m]);
        check!(output.status == 0 && table.runs(m), "{output:?}");
        Done
    });
    address(table, m);
    let leader = table.leader(m).expect("it runs");
    table.row("list", guest.tree, || {
        let output = table.machinectl(&["list", "--no-legend"]);
        let words: Vec<&str> = output.stdout.split_whitespace().collect();
        check!(words.starts_with(&[m, "container", "machinist", guest.os]), "{output:?}");
        check!(words.iter().any(|word| word.starts_with("10.9.8.7")), "{output:?}");
        Done
    });
    table.row("status", guest.tree, || {
        let output = table.machinectl(&["status", m]);
        let unit = format!("machinist@{m}.service");
        check!(has(&output, &[&format!("Leader: {leader} "), "class container", &unit, "10.9.8.7"]), "{output:?}");
        // The processes of its control group.
        check!(output.stdout.contains(&format!("─{leader} ")), "{output:?}");
        Done
    });
    table.row("show", guest.tree, || {
        let output = table.machinectl(&["show", m]);
        let words = [&*format!("Name={m}\n"), &format!("Leader={leader}\n"), "Class=container\n", "State=running\n"];
        check!(has(&output, &words), "{output:?}");
        Done
    });
    table.row("getent hosts", guest.tree, || {
        let output = table.client(&["getent", "hosts", m]);
        check!(has(&output, &["10.9.8.7", m]), "{output:?}");
        Done
    });
}

/// Gives the machine an address, as its administrator would from the outside.
fn address(table: &Table<'_>, machine: &str) {
    let leader = table.leader(machine).expect("it runs");
    for line in
        ["link add d0 type veth peer name d1", "addr add 10.9.8.7/24 dev d0", "link set d0 up", "link set d1 up"]
    {
        let ip = ["--target", &leader, "--net", "--", "ip"];
        let status = Command::new("nsenter").args(ip).args(line.split(' ')).status().expect("run nsenter");
        assert!(status.success(), "ip {line}");
    }
}

/// Terminals, files and signals.
fn enter(table: &Table<'_>, guest: Guest, m: &str) {
    let stage = table.stage;
    table.row("login", guest.tree, || {
        let output = table.typed(&["login", m], Some("login:"));
        check!(output.contains("login:"), "{output}");
        Done
    });
    table.row("shell", guest.tree, || {
        let script = "tty; id -u; cat /proc/1/comm; echo $((6*7))";
        let shown = table.typed(&["shell", m, "/bin/sh", "-c", script], None);
        let comm = stage.sh(m, "cat /proc/1/comm");
        check!(shown.contains("/dev/pts/") && shown.contains("\n0\r\n"), "{shown}");
        check!(shown.contains(&format!("{}\r\n42\r\n", comm.trim())), "{shown}");
        Done
    });
    table.row("bind", guest.tree, || {
        let source = stage.path("shared");
        std::fs::create_dir_all(&source).expect("mkdir");
        std::fs::write(source.join("file"), "shown").expect("write");
        let output = table.machinectl(&["bind", "--mkdir", m, &source.display().to_string(), "/mnt/shared"]);
        check!(output.status == 0, "{output:?}");
        check!(stage.sh(m, "cat /mnt/shared/file") == "shown", "it is not there");
        stage.sh(m, "echo written >/mnt/shared/file");
        check!(std::fs::read_to_string(source.join("file")).expect("read") == "written\n", "not the same file");
        let output = table.machinectl(&["bind", "--mkdir", "--read-only", m, &source.display().to_string(), "/mnt/ro"]);
        check!(output.status == 0, "{output:?}");
        check!(stage.sh(m, "echo again >/mnt/ro/file || echo refused").contains("refused"), "it can be written");
        Done
    });
    table.row("copy-to", guest.tree, || {
        let file = stage.path("to");
        std::fs::write(&file, "to the machine\n").expect("write");
        let output = table.machinectl(&["copy-to", m, &file.display().to_string(), "/root/copied"]);
        check!(output.status == 0, "{output:?}");
        let there = stage.sh(m, "cat /root/copied; stat -c %u:%g /root/copied");
        check!(there == "to the machine\n0:0\n", "there is '{there}'");
        Done
    });
    table.row("copy-from", guest.tree, || {
        stage.sh(m, "mkdir -p /root/tree && echo from >/root/tree/a && ln -sf a /root/tree/b");
        let to = stage.path("from");
        let _ = std::fs::remove_dir_all(&to);
        let output = table.machinectl(&["copy-from", m, "/root/tree", &to.display().to_string()]);
        check!(output.status == 0, "{output:?}");
        check!(std::fs::read_to_string(to.join("a")).expect("read") == "from\n", "another text");
        check!(std::fs::read_link(to.join("b")).expect("link").as_os_str() == "a", "another link");
        Done
    });
    table.row("kill", guest.tree, || {
        // A signal that is nothing to an init and ends nobody.
        let script = "rm -f /tmp/got; (trap 'echo got >>/tmp/got' CONT; touch /tmp/ready; \
                      while :; do sleep 0.1; done) >/dev/null 2>&1 </dev/null & echo $!";
        let pid = stage.sh(m, script);
        check!(within(|| stage.sh(m, "ls /tmp/ready || :").contains("ready")), "the shell did not come up");
        let output = table.machinectl(&["kill", "--signal=CONT", "--kill-whom=leader", m]);
        check!(output.status == 0, "{output:?}");
        stage.sh(m, "sleep 0.3; [ ! -e /tmp/got ]");
        let output = table.machinectl(&["kill", "--signal=CONT", m]);
        check!(output.status == 0, "{output:?}");
        check!(within(|| stage.sh(m, "cat /tmp/got || :").contains("got")), "the signal did not come");
        stage.sh(m, &format!("kill -9 {pid}"));
        Done
    });
}

/// The tools that take `-M`.
fn tools(table: &Table<'_>, guest: Guest, m: &str) {
    let stage = table.stage;
    let refused = |output: Output| {
        check!(output.status != 0, "{output:?}");
        No("the guest has no systemd to ask")
    };
    table.row("systemctl -M", guest.tree, || {
        let output = table.client(&["systemctl", "-M", m, "is-active", "dbus.service"]);
        if !guest.systemd {
            return refused(output);
        }
        check!(has(&output, &["active\n"]), "{output:?}");
        let output = table.client(&["systemctl", "-M", m, "stop", "console-getty.service"]);
        check!(output.status == 0, "{output:?}");
        check!(stage.sh(m, "systemctl is-active console-getty || :") == "inactive\n", "it still runs");
        Done
    });
    table.row("loginctl -M", guest.tree, || {
        let output = table.client(&["loginctl", "-M", m, "list-sessions", "--no-legend"]);
        if !guest.systemd {
            return refused(output);
        }
        let inside = stage.machinist(&["exec", m, "loginctl", "list-sessions", "--no-legend"]);
        check!(output.status == 0 && output.stdout.lines().count() == inside.lines().count(), "{output:?} {inside}");
        Done
    });
    table.row("busctl -M", guest.tree, || {
        let output = table.client(&[
            "busctl",
            "-M",
            m,
            "call",
            "org.freedesktop.systemd1",
            "/org/freedesktop/systemd1",
            "org.freedesktop.systemd1.Manager",
            "GetUnitByPID",
            "u",
            "1",
        ]);
        if !guest.systemd {
            return refused(output);
        }
        check!(has(&output, &["init_2escope"]), "{output:?}");
        Done
    });
    table.row("systemd-run -M", guest.tree, || {
        let output = table.client(&["systemd-run", "-q", "-M", m, "--wait", "/bin/sh", "-c", "echo ran >/root/ran"]);
        if !guest.systemd {
            return refused(output);
        }
        check!(output.status == 0, "{output:?}");
        check!(stage.sh(m, "cat /root/ran; rm /root/ran") == "ran\n", "it did not run");
        Done
    });
    table.row("journalctl -M", guest.tree, || {
        if guest.systemd {
            stage.sh(m, "logger -t marker said-by-the-guest; journalctl --sync");
        }
        let output = table.client(&["journalctl", "--no-pager", "-M", m, "-t", "marker"]);
        if guest.systemd {
            check!(has(&output, &["said-by-the-guest"]), "{output:?}");
            return Done;
        }
        check!(!output.stdout.contains("said-by-the-guest"), "{output:?}");
        No("the guest has no journal")
    });
}

/// The ends of a machine.
fn end(table: &Table<'_>, guest: Guest, m: &str) {
    table.row("reboot", guest.tree, || {
        let (leader, supervisor) = (table.leader(m), table.stage.status(m, "supervisor"));
        let output = table.machinectl(&["reboot", m]);
        check!(output.status == 0, "{output:?}");
        check!(
            within(|| table.leader(m).is_some_and(|now| Some(now) != leader) && table.runs(m)),
            "it did not come back"
        );
        check!(table.stage.status(m, "supervisor") == supervisor, "it is another supervisor's");
        check!(within(|| table.knows(m)), "nobody knows it any more");
        Done
    });
    table.row("poweroff", guest.tree, || {
        let output = table.machinectl(&["poweroff", m]);
        check!(output.status == 0, "{output:?}");
        check!(table.is_gone(m), "it is still there");
        let log = table.stage.machinist(&["logs", m]);
        check!(guest.os != "busybox" || log.contains("busybox: shutting down"), "it was killed: {log}");
        Done
    });
    table.row("terminate", guest.tree, || {
        let output = table.machinectl(&["start", m]);
        check!(output.status == 0 && table.knows(m), "{output:?}");
        let output = table.machinectl(&["terminate", m]);
        check!(output.status == 0, "{output:?}");
        check!(table.is_gone(m), "it is still there");
        Done
    });
    table.row("start unknown", guest.tree, || {
        let output = table.machinectl(&["start", "no-such-machine"]);
        check!(output.status == 1 && output.stderr.contains("'no-such-machine' does not exist"), "{output:?}");
        No("there is no such machine")
    });
}

/// The image store; no guest is needed.
fn images(table: &Table<'_>) {
    const STORE: &str = "(images)";
    let stage = table.stage;
    let store = stage.path("var/lib/machines");
    let name = |what: &str| stage.host.name(what);
    let (image, copy, other) = (name("img"), name("copy"), name("other"));
    let tree = store.join(&image);
    std::fs::create_dir_all(tree.join("etc")).expect("mkdir");
    std::fs::write(tree.join("etc/os-release"), "ID=tiny\nPRETTY_NAME=\"Tiny 7\"\n").expect("write");
    std::fs::write(tree.join("etc/hostname"), "tiny-host\n").expect("write");
    table.row("list-images", STORE, || {
        let output = table.machinectl(&["list-images", "--no-legend"]);
        let line = output.stdout.lines().find(|line| line.starts_with(&image)).unwrap_or_default().to_owned();
        check!(line.split_whitespace().nth(1) == Some("directory"), "{output:?}");
        Done
    });
    table.row("image-status", STORE, || {
        let output = table.machinectl(&["image-status", &image]);
        check!(has(&output, &["Type: directory", &format!("/var/lib/machines/{image}"), "Tiny 7"]), "{output:?}");
        check!(output.stdout.contains("tiny-host"), "{output:?}");
        Done
    });
    table.row("show-image", STORE, || {
        let output = table.machinectl(&["show-image", &image]);
        check!(has(&output, &[&format!("Name={image}\n"), "Type=directory\n", "ReadOnly=no\n"]), "{output:?}");
        Done
    });
    table.row("clone", STORE, || {
        let output = table.machinectl(&["clone", &image, &copy]);
        check!(output.status == 0, "{output:?}");
        let text = std::fs::read_to_string(store.join(&copy).join("etc/hostname")).expect("read");
        check!(text == "tiny-host\n" && tree.exists(), "the copy says '{text}'");
        Done
    });
    table.row("rename", STORE, || {
        let output = table.machinectl(&["rename", &copy, &other]);
        check!(output.status == 0, "{output:?}");
        check!(!store.join(&copy).exists() && store.join(&other).join("etc/hostname").exists(), "it is not there");
        Done
    });
    table.row("read-only", STORE, || {
        let output = table.machinectl(&["read-only", &other, "yes"]);
        check!(output.status == 0, "{output:?}");
        let shown = |value| has(&table.machinectl(&["show-image", &other]), &[value]);
        check!(shown("ReadOnly=yes\n"), "it is not shown");
        check!(std::fs::write(store.join(&other).join("file"), "").is_err(), "it can be written");
        let output = table.machinectl(&["read-only", &other, "no"]);
        check!(output.status == 0 && shown("ReadOnly=no\n"), "{output:?}");
        Done
    });
    table.row("set-limit", STORE, || {
        let output = table.machinectl(&["set-limit", &other, "1G"]);
        check!(output.status == 1 && output.stderr.contains("btrfs"), "{output:?}");
        No("only btrfs has limits for trees")
    });
    table.row("remove", STORE, || {
        let output = table.machinectl(&["remove", &other]);
        check!(output.status == 0 && !store.join(&other).exists() && tree.exists(), "{output:?}");
        Done
    });
    table.row("clean", STORE, || {
        let hidden = store.join(".hidden");
        std::fs::create_dir_all(&hidden).expect("mkdir");
        let output = table.machinectl(&["clean"]);
        check!(output.status == 0 && !hidden.exists() && tree.exists(), "{output:?}");
        let output = table.machinectl(&["clean", "--all"]);
        check!(output.status == 0 && !tree.exists(), "{output:?}");
        Done
    });
}

fn table(version: &'static str) {
    on_stage(|stage| {
        let table = Table { stage, version, rows: RefCell::default() };
        for guest in GUESTS {
            let toml = format!(
                "register = \"yes\"\n[root]\noverlay = {{ lower = [\"{{{}}}\"], upper = \"ephemeral\" }}\n",
                guest.tree
            );
            let m = &stage.host.define(guest.tree, &toml);
            look(&table, guest, m);
            enter(&table, guest, m);
            tools(&table, guest, m);
            end(&table, guest, m);
        }
        images(&table);
        table.print();
    });
}

#[test]
fn machinectl_252() {
    table("252");
}

#[test]
fn machinectl_257() {
    table("257");
}

#[test]
fn machinectl_262() {
    table("262");
}

#[test]
fn the_stand_in_for_systemd_knows_machines_and_says_why_one_does_not_start() {
    const UNIT: &str = "org.freedesktop.systemd1.Unit";
    on_stage(|stage| {
        let ask = |words: &[&str]| {
            let manager = ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"];
            stage.client("252", &[&["busctl", "--system", "call"], &manager[..], words].concat())
        };
        for words in
            [["StartUnit", "ss", "nginx.service", "fail"], ["StopUnit", "ss", "machinist@none.service", "fail"]]
        {
            let output = ask(&words);
            assert!(output.status == 1 && output.stderr.contains("not found"), "{output:?}");
        }
        let output = ask(&["EnableUnitFiles", "asbb", "1", "machinist@none.service", "false", "false"]);
        assert!(output.status == 1 && output.stderr.contains("does not exist"), "{output:?}");
        assert!(!stage.path("etc/machinist/autostart").exists());

        let m =
            &stage.host.define("broken", "[root]\noverlay = { lower = [\"/no/such/tree\"], upper = \"ephemeral\" }\n");
        let unit = format!("systemd-nspawn@{m}.service");
        for version in ["252", "257", "262"] {
            let output = stage.client(version, &["machinectl", "start", m]);
            assert!(output.status == 1 && output.stderr.contains("/no/such/tree"), "{output:?}");
        }
        let path = ask(&["LoadUnit", "s", &unit]).stdout.split('"').nth(1).expect("a path").to_owned();
        let property = |interface: &str, name: &str| {
            let words = ["busctl", "--system", "get-property", "org.freedesktop.systemd1", &path, interface, name];
            stage.client("252", &words).stdout
        };
        assert_eq!(property(UNIT, "Id"), format!("s \"machinist@{m}.service\"\n"));
        assert_eq!(property(UNIT, "LoadState"), "s \"loaded\"\n");
        assert_eq!(property(UNIT, "ActiveState"), "s \"failed\"\n");
        assert_eq!(property("org.freedesktop.systemd1.Service", "Result"), "s \"exit-code\"\n");
        let output = ask(&["ResetFailedUnit", "s", &unit]);
        assert_eq!(output.status, 0, "{output:?}");
        assert_eq!(property(UNIT, "ActiveState"), "s \"inactive\"\n");
    });
}
