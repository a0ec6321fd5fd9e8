//! A host that stock clients take for the real one: a mount namespace of the test's own, in which `/run`,
//! `/var/lib/machines`, `/var/lib/machinist` and `/etc/machinist` are the test host's, with a system bus and our daemon
//! where they belong. Clients of other versions run from trees of their own, in the same namespaces.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};

use crate::bus;
use crate::support::{Host, Output, finish, tree, wait_for};

/// Versions of the stock clients, and the trees that they run from; the first is the host's own.
pub(crate) const VERSIONS: [(&str, Option<&str>); 3] =
    [("252", None), ("257", Some("client-trixie")), ("262", Some("client-sid"))];

/// What the stage shows of the test's host instead of the real one's.
const SHOWN: [&str; 4] = ["run", "var/lib/machines", "var/lib/machinist", "etc/machinist"];

/// See above.
pub(crate) struct Stage<'a> {
    pub(crate) host: &'a Host,
    bus: Child,
    daemon: Option<Child>,
}

fn bind(from: &Path, to: &Path, flags: MsFlags) {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | flags, None::<&str>)
        .unwrap_or_else(|e| panic!("bind '{}' on '{}': {e}", from.display(), to.display()));
}

/// Runs a test on a stage, in a thread of its own: no other test is to find itself there. The host is ours, because
/// whoever removes its directory must not see what is mounted there.
pub(crate) fn on_stage(test: impl FnOnce(&mut Stage<'_>) + Send) {
    let host = Host::new();
    let result = std::thread::scope(|scope| {
        let run = || {
            let mut stage = Stage::new(&host);
            test(&mut stage);
            stage.end();
        };
        scope.spawn(run).join()
    });
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
    host.assert_nothing_left();
}

impl<'a> Stage<'a> {
    fn new(host: &'a Host) -> Self {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).expect("private");
        // So that the directories below can be made where the real host has none.
        for dir in ["etc", "var/lib"] {
            let [upper, work] = ["upper", "work"].map(|which| host.path("stage").join(dir).join(which));
            std::fs::create_dir_all(&upper).expect("mkdir");
            std::fs::create_dir_all(&work).expect("mkdir");
            let options = format!("lowerdir=/{dir},upperdir={},workdir={}", upper.display(), work.display());
            let target = Path::new("/").join(dir);
            mount(Some("overlay"), &target, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
                .expect("overlay");
        }
        for dir in SHOWN {
            let (ours, real) = (host.path(dir), Path::new("/").join(dir));
            std::fs::create_dir_all(&ours).expect("mkdir");
            std::fs::create_dir_all(&real).expect("mkdir");
            bind(&ours, &real, MsFlags::empty());
        }
        // Without the first, machinectl says that there is no systemd and does nothing.
        for dir in ["/run/systemd/system", "/run/dbus", "/run/lock", "/etc/machinist/machines"] {
            std::fs::create_dir_all(dir).expect("mkdir");
        }
        for tree_name in VERSIONS.iter().filter_map(|(_, tree)| *tree) {
            let root = host.path(tree_name);
            std::fs::create_dir(&root).expect("mkdir");
            bind(&tree(tree_name), &root, MsFlags::empty());
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(None::<&str>, &root, None::<&str>, flags, None::<&str>).expect("read-only");
            for dir in ["proc", "sys", "dev", "run"] {
                bind(&Path::new("/").join(dir), &root.join(dir), MsFlags::MS_REC);
            }
        }
        let config = host.path("bus.conf");
        std::fs::write(&config, bus::CONFIG.replace("{socket}", SOCKET).replace("{rules}", "")).expect("write");
        let log = std::fs::File::create(host.path("bus.log")).expect("log");
        let bus = Command::new("dbus-daemon")
            .args(["--nofork", "--nopidfile"])
            .arg(format!("--config-file={}", config.display()))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("run dbus-daemon");
        let mut stage = Self { host, bus, daemon: None };
        wait_for("the bus", Duration::from_secs(20), || Path::new(SOCKET).exists());
        stage.start_daemon();
        stage
    }

    /// Starts the daemon and waits until it has its names.
    pub(crate) fn start_daemon(&mut self) {
        let options = std::fs::OpenOptions::new().create(true).append(true).open(self.host.path("daemon.log"));
        let mut command = self.command("252", "machinist");
        command.arg("daemon").stdin(Stdio::null()).stderr(options.expect("log"));
        self.daemon = Some(command.spawn().expect("run the daemon"));
        wait_for("the daemon", Duration::from_secs(20), || self.owner("org.freedesktop.systemd1"));
    }

    /// Ends the daemon as nothing can be kept from.
    pub(crate) fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().expect("a daemon");
        daemon.kill().expect("kill");
        daemon.wait().expect("wait");
        wait_for("its names to be free", Duration::from_secs(20), || !self.owner("org.freedesktop.machine1"));
    }

    fn owner(&self, name: &str) -> bool {
        self.client("252", &["busctl", "--system", "status", name]).status == 0
    }

    /// The daemon's process.
    pub(crate) fn daemon(&self) -> u32 {
        self.daemon.as_ref().expect("a daemon").id()
    }

    /// What the daemon has said.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(self.host.path("daemon.log")).unwrap_or_default()
    }

    /// A program of one version of the clients; `machinist` is ours.
    pub(crate) fn command(&self, version: &str, program: &str) -> Command {
        let tree = VERSIONS.iter().find(|(known, _)| *known == version).expect("a version").1;
        let mut command = match tree {
            Some(tree) => {
                let mut command = Command::new("chroot");
                command.arg(self.host.path(tree)).arg(program);
                command
            }
            None if program == "machinist" => Command::new(env!("CARGO_BIN_EXE_machinist")),
            None => Command::new(program),
        };
        for variable in ["NOTIFY_SOCKET", "DBUS_SYSTEM_BUS_ADDRESS", "MACHINIST_ROOT"] {
            command.env_remove(variable);
        }
        command.env("NO_COLOR", "1").env("SYSTEMD_COLORS", "0").env("SYSTEMD_PAGER", "").env("SYSTEMD_URLIFY", "0");
        command.env("LC_ALL", "C.UTF-8").env("TERM", "vt100").env("PATH", PATH);
        command
    }

    /// Runs a client with nothing on its standard input.
    pub(crate) fn client(&self, version: &str, words: &[&str]) -> Output {
        finish(self.command(version, words[0]).args(&words[1..]).stdin(Stdio::null()))
    }

    /// Runs a client on a terminal, on which nothing is typed, to its end or until it has shown `until`; its output has
    /// carriage returns.
    pub(crate) fn on_terminal(&self, version: &str, words: &[&str], until: Option<&str>) -> String {
        let command = self.command(version, words[0]);
        let line: Vec<String> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| quoted(&word.to_string_lossy()))
            .chain(words[1..].iter().map(|word| quoted(word)))
            .collect();
        let mut terminal = Command::new("timeout");
        terminal.args(["30", "script", "-qefc", &line.join(" "), "/dev/null"]);
        terminal.env_clear().envs(command.get_envs().filter_map(|(k, v)| Some((k, v?)))).env("SHELL", "/bin/sh");
        // Its standard input stays open: at its end `script` would hang up.
        let mut child = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("run script");
        let (mut shown, mut buffer) = (Vec::new(), [0; 4096]);
        let text = |shown: &[u8]| String::from_utf8_lossy(shown).into_owned();
        while until.is_none_or(|until| !text(&shown).contains(until)) {
            match child.stdout.as_mut().expect("stdout").read(&mut buffer).expect("read") {
                0 => break,
                count => shown.extend(&buffer[..count]),
            }
        }
        // `timeout` hands this to `script`, which hangs up.
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        child.wait().expect("wait");
        text(&shown)
    }

    /// Runs `machinist` and fails the test if it fails; gives its standard output.
    pub(crate) fn machinist(&self, args: &[&str]) -> String {
        let output = self.machinist_output(args);
        assert_eq!(output.status, 0, "machinist {args:?}: {output:?}");
        output.stdout
    }

    /// Runs `machinist`, however it ends.
    pub(crate) fn machinist_output(&self, args: &[&str]) -> Output {
        finish(self.command("252", "machinist").args(args).stdin(Stdio::null()))
    }

    /// Runs a shell command in a machine and fails the test if it fails; gives its standard output.
    pub(crate) fn sh(&self, machine: &str, script: &str) -> String {
        self.machinist(&["exec", machine, "/bin/sh", "-c", script])
    }

    /// One field of `status --json`, as text; nothing if the machine is not running.
    pub(crate) fn status(&self, machine: &str, field: &str) -> Option<String> {
        let output = self.machinist_output(&["status", "--json", machine]);
        let value: serde_json::Value = serde_json::from_str(&output.stdout).ok()?;
        match &value[field] {
            serde_json::Value::Null => None,
            serde_json::Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        }
    }

    /// A path of the test's host that is the same for everybody on the stage.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.host.path(name)
    }

    fn end(&self) {
        let machines = self.machinist(&["--quiet", "list", "--names"]);
        assert_eq!(machines, "", "machines that the test left");
    }
}

impl Drop for Stage<'_> {
    #[expect(clippy::print_stdout, reason = "shown where a test failed")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- the daemon said:\n{}", self.said());
        }
        // The host ends what runs; the daemon is not to be asked for that.
        for child in self.daemon.iter_mut().chain([&mut self.bus]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

const SOCKET: &str = "/run/dbus/system_bus_socket";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}
