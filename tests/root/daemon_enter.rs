//! Terminals, logins and shells that the daemon opens in real machines.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::bus::Bus;
use crate::support::Host;

const OVERLAY: &str = "[root]\noverlay = { lower = [\"{TREE}\"], upper = \"ephemeral\" }\n";

/// A started machine of a tree, known to the daemon.
fn machine(host: &Host, bus: &Bus, tree: &str, more: &str) -> String {
    let machine = host.define("m", &format!("register = \"yes\"\n{}{more}", OVERLAY.replace("TREE", tree)));
    let mut start = host.command();
    let output =
        crate::support::finish(start.args(["start", "-q", &machine]).env("DBUS_SYSTEM_BUS_ADDRESS", bus.address()));
    assert_eq!(output.status, 0, "{output:?}");
    machine
}

/// Calls a method of the manager from a connection of its own; an error has a name and a text.
fn call<B: serde::Serialize + zbus::DynamicType>(
    address: &str,
    method: &str,
    body: &B,
) -> Result<zbus::Message, (String, String)> {
    zbus::block_on(async {
        let bus = zbus::connection::Builder::address(address).build().await.expect("the bus");
        let (name, path, interface) =
            ("org.freedesktop.machine1", "/org/freedesktop/machine1", "org.freedesktop.machine1.Manager");
        match bus.call_method(Some(name), path, Some(interface), method, body).await {
            Ok(reply) => Ok(reply),
            Err(zbus::Error::MethodError(name, text, _)) => Err((name.to_string(), text.unwrap_or_default())),
            Err(zbus::Error::FDO(e)) => {
                use zbus::DBusError as _;
                Err((e.name().to_string(), e.description().unwrap_or_default().to_owned()))
            }
            Err(e) => panic!("{method}: {e}"),
        }
    })
}

/// The master of a terminal that the daemon gave us.
struct Terminal {
    master: OwnedFd,
    path: String,
    /// Everything it has shown.
    shown: String,
}

impl Terminal {
    fn open<B: serde::Serialize + zbus::DynamicType>(
        bus: &Bus,
        method: &str,
        body: &B,
    ) -> Result<Self, (String, String)> {
        let reply = call(&bus.address(), method, body)?;
        let (master, path): (zbus::wire::OwnedFd, String) = reply.body().deserialize().expect("a terminal");
        Ok(Self { master: master.into(), path, shown: String::new() })
    }

    fn shell(
        bus: &Bus,
        machine: &str,
        user: &str,
        argv: &[&str],
        environment: &[&str],
    ) -> Result<Self, (String, String)> {
        let path = argv.first().copied().unwrap_or_default();
        Self::open(bus, "OpenMachineShell", &(machine, user, path, argv, environment))
    }

    fn send(&self, text: &str) {
        assert_eq!(rustix::io::write(&self.master, text.as_bytes()), Ok(text.len()));
    }

    /// Reads until it has shown `text`; then forgets everything up to there.
    fn expect(&mut self, text: &str) -> String {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(at) = self.shown.find(text) {
                let rest = self.shown.split_off(at + text.len());
                return std::mem::replace(&mut self.shown, rest);
            }
            assert!(Instant::now() < end, "waited for {text:?}; shown: {:?}", self.shown);
            self.read(Duration::from_millis(200));
        }
    }

    /// False at the end.
    fn read(&mut self, limit: Duration) -> bool {
        let limit = rustix::time::Timespec::try_from(limit).expect("a time");
        let ready = poll(&mut [PollFd::new(&self.master, PollFlags::IN)], Some(&limit)).expect("poll");
        let mut buffer = [0; 4096];
        if ready == 0 {
            return true;
        }
        match rustix::io::read(&self.master, &mut buffer) {
            Ok(len) => self.shown.push_str(&String::from_utf8_lossy(&buffer[..len])),
            // Nobody has it open, for now or for good.
            Err(rustix::io::Errno::IO) => {
                std::thread::sleep(Duration::from_millis(20));
                return false;
            }
            Err(e) => panic!("read: {e}"),
        }
        true
    }

    /// Everything until nobody has the other end open any more.
    fn rest(mut self) -> String {
        let end = Instant::now() + Duration::from_secs(60);
        while self.read(Duration::from_millis(200)) {
            assert!(Instant::now() < end, "still open; shown: {:?}", self.shown);
        }
        self.shown.replace('\r', "")
    }
}

/// Kills the machine and sees that nothing of it stays.
fn end(host: &Host, bus: Bus, machine: &str) {
    host.ok(&["kill", machine]);
    host.wait_for("the end of the machine", || !host.path("run/machinist/machines").join(machine).exists());
    drop(bus);
    host.assert_nothing_left();
}

fn shell_works(tree: &str, more: &str) {
    let host = Host::new();
    let bus = Bus::start(&host);
    let machine = machine(&host, &bus, tree, more);
    let mut shell = Terminal::shell(&bus, &machine, "", &[], &["TERM=dumb"]).expect("a shell");
    let size = Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&shell.master, size).expect("resize");
    shell.expect("# ");
    shell.send("echo \"[$(id -u) $(tty) $(pwd) $TERM $0]\"; stty size; echo end''of it\n");
    let shown = shell.expect("endof it").replace('\r', "");
    assert!(shown.contains(&format!("[0 {} /root dumb ", shell.path)), "{shown}");
    assert!(shown.contains("33 77\n"), "{shown}");
    // It is a controlling terminal: keys become signals.
    let running = |what: &str| {
        let all = host.sh(&machine, "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '");
        // Not our own question.
        all.contains(&format!("sleep {what} "))
    };
    shell.send("sleep 1111\n");
    host.wait_for("the first sleep", || running("1111"));
    shell.send("\x03");
    host.wait_for("the interrupt", || !running("1111"));
    shell.send("sleep 2222\n");
    host.wait_for("the second sleep", || running("2222"));
    drop(shell);
    host.wait_for("the end of what ran on it", || !running("2222"));
    let status = Terminal::shell(
        &bus,
        &machine,
        "root",
        &["/bin/sh", "-c", "echo \"$1:$A\"; exit 7", "x", "$HOME b"],
        &["A=$b"],
    );
    let status = status.expect("a command");
    assert_eq!(status.rest(), "$HOME b:$b\n");
    host.wait_for("the status in the log", || bus.log().contains("ended with exit status 7."));
    let refused = |user: &str, argv: &[&str], environment: &[&str]| {
        Terminal::shell(&bus, &machine, user, argv, environment).map(|t| t.path).expect_err("refused")
    };
    let invalid = "org.freedesktop.DBus.Error.InvalidArgs".to_owned();
    assert_eq!(refused("", &["bin/sh"], &[]), (invalid.clone(), "Specified path 'bin/sh' is not absolute".into()));
    assert_eq!(refused("", &[], &["1=2"]), (invalid.clone(), "Invalid environment assignments".into()));
    assert_eq!(refused("a b", &[], &[]), (invalid, "Invalid user name 'a b'".into()));
    end(&host, bus, &machine);
}

#[test]
fn a_shell_in_a_systemd_machine_is_a_session_of_its_own() {
    shell_works("trixie-systemd", "");
}

#[test]
fn a_shell_in_an_openrc_machine_needs_nothing_of_it() {
    shell_works("trixie-openrc", "");
}

#[test]
fn a_shell_in_a_busybox_machine_needs_nothing_of_it() {
    shell_works("trixie-busybox", "");
}

#[test]
fn a_shell_in_a_machine_without_a_user_namespace() {
    shell_works("trixie-busybox", "[users]\nmode = \"host\"\n");
}

fn login_works(tree: &str, ends: bool) {
    let host = Host::new();
    let bus = Bus::start(&host);
    let machine = machine(&host, &bus, tree, "");
    let mut login = Terminal::open(&bus, "OpenMachineLogin", &machine).expect("a login");
    login.expect("login: ");
    login.send("root\n");
    login.expect("# ");
    login.send("echo \"[$(id -u) $(tty)]\"; echo end''of it\n");
    let shown = login.expect("endof it");
    assert!(shown.contains(&format!("[0 {}]", login.path)), "{shown}");
    login.send("exit\n");
    if ends {
        let said = format!("A login in machine {machine} ended with exit status 0.");
        host.wait_for("the status in the log", || bus.log().contains(&said));
    } else {
        // systemd keeps the getty for as long as the terminal is there.
        login.expect("login: ");
    }
    end(&host, bus, &machine);
}

#[test]
fn a_login_in_a_systemd_machine_is_its_own_getty() {
    login_works("trixie-systemd", false);
}

#[test]
fn a_login_in_an_openrc_machine_is_agetty() {
    login_works("trixie-openrc", true);
}

#[test]
fn a_login_in_a_busybox_machine_is_its_getty() {
    login_works("trixie-busybox", true);
}

#[test]
fn a_terminal_is_the_machines_and_nothing_runs_on_it() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let machine = machine(&host, &bus, "trixie-busybox", "");
    let mut terminal = Terminal::open(&bus, "OpenMachinePTY", &machine).expect("a terminal");
    assert_eq!(host.sh(&machine, &format!("stat -c '%u %F' {}", terminal.path)), "0 character special file\n");
    host.sh(&machine, &format!("echo from inside >{}", terminal.path));
    terminal.expect("from inside");
    let second = Terminal::open(&bus, "OpenMachinePTY", &machine).expect("another");
    assert_ne!(second.path, terminal.path);
    end(&host, bus, &machine);
}

/// The error of a request that must fail within its limit; the daemon answers others afterwards.
fn refused<B: serde::Serialize + zbus::DynamicType>(bus: &Bus, method: &str, body: &B) -> (String, String) {
    let before = Instant::now();
    let refused = Terminal::open(bus, method, body).map(|t| t.path).expect_err("a hostile machine");
    assert!(before.elapsed() < Duration::from_secs(24), "{method} took {:?}", before.elapsed());
    bus.ok("ListMachines", &[]);
    refused
}

#[test]
fn what_a_machine_puts_in_the_place_of_its_devpts_is_not_opened() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let machine = machine(&host, &bus, "trixie-busybox", "");
    let hostile = |script: &str, name: &str, text: &str| {
        host.sh(&machine, script);
        for method in ["OpenMachinePTY", "OpenMachineLogin"] {
            let error = refused(&bus, method, &machine);
            assert_eq!((error.0.as_str(), error.1.contains(text)), (name, true), "{script}: {error:?}");
        }
        let shell = Terminal::shell(&bus, &machine, "root", &[], &[]).map(|t| t.path).expect_err("no shell");
        assert_eq!(shell.0, name, "{script}");
    };
    let (not_there, elsewhere, link) = ("System.Error.ENODEV", "System.Error.EXDEV", "System.Error.ELOOP");
    hostile("mount --bind /dev/null /dev/pts/ptmx", elsewhere, "openat2('/dev/pts/ptmx' of the machine)");
    hostile("umount /dev/pts/ptmx && mount -t tmpfs none /dev/pts", not_there, "is no devpts");
    hostile("echo >/dev/pts/ptmx", not_there, "is no devpts");
    hostile("rm /dev/pts/ptmx && mkfifo /dev/pts/ptmx", not_there, "is no devpts");
    hostile("mount -t tmpfs none /dev && ln -s /tmp /dev/pts", link, "openat2('/dev/pts' in the tree)");
    end(&host, bus, &machine);
}

/// Something else in the place of a machine's bus: what this does with each connection `C`, in perl.
const FALSE_BUS: &str = r#"
    use Socket; $SIG{PIPE} = "IGNORE";
    unlink "/run/dbus/system_bus_socket";
    socket(S, AF_UNIX, SOCK_STREAM, 0) && bind(S, sockaddr_un("/run/dbus/system_bus_socket")) && listen(S, 9) or die;
    exit if fork;
    open(STDOUT, ">/dev/null"); open(STDERR, ">/dev/null");
    while (accept(C, S)) { {do} }
"#;
/// Lets everybody in, then sends the header of an answer of 112 MiB, and zeros without end.
const ENDLESS: &str = r#"
    my $in = "";
    until ($in =~ /BEGIN/) {
        sysread(C, $in, 4096, length $in) or last;
        syswrite C, "OK 0123456789abcdef0123456789abcdef\r\n" if $in =~ s/AUTH.*\r\n//;
        syswrite C, "AGREE_UNIX_FD\r\n" if $in =~ s/NEGOTIATE.*\r\n//;
    }
    syswrite C, "l\2\0\1" . pack("VVV", 0x07000000, 1, 8) . "\5\1u\0" . pack("V", 1);
    1 while syswrite C, "\0" x 65536;
"#;

#[test]
fn a_false_bus_costs_the_caller_an_error_and_the_daemon_nothing() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let machine = machine(&host, &bus, "trixie-systemd", "");
    host.sh(&machine, "systemctl stop dbus.socket dbus.service");
    let (late, failed) = ("org.freedesktop.DBus.Error.Timeout", "org.freedesktop.DBus.Error.Failed");
    let none: &[&str] = &[];
    for (what, names) in [
        ("sleep 1000", &[late][..]),
        // It depends on the host's speed whether the helper's time or its room ends first.
        ("1 while syswrite C, 'A' x 65536", &[late, failed]),
        (ENDLESS, &[late, failed]),
        ("close C", &[failed]),
    ] {
        host.ok(&["exec", &machine, "perl", "-e", &FALSE_BUS.replace("{do}", what)]);
        let error = if what.starts_with("sleep") {
            refused(&bus, "OpenMachineLogin", &machine)
        } else {
            refused(&bus, "OpenMachineShell", &(&*machine, "root", "", none, none))
        };
        assert!(names.contains(&error.0.as_str()), "{what}: {error:?}");
        host.sh(&machine, "for p in /proc/[0-9]*; do grep -qx perl $p/comm && kill -9 ${p#/proc/}; done; true");
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", bus.daemon())).expect("the daemon lives");
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).and_then(|l| l.split_whitespace().next());
    let peak: u64 = peak.and_then(|kib| kib.parse().ok()).expect("a number");
    assert!(peak < 100 << 10, "the daemon took {peak} KiB");
    end(&host, bus, &machine);
}

#[test]
fn without_a_bus_a_systemd_machine_is_entered_and_a_link_to_the_hosts_leads_nowhere() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let machine = machine(&host, &bus, "trixie-systemd", "");
    let hosts = host.path("run/dbus/system_bus_socket");
    let link = format!("ln -s {} /run/dbus/system_bus_socket", hosts.display());
    host.sh(&machine, &format!("systemctl stop dbus.socket dbus.service; rm -f /run/dbus/system_bus_socket; {link}"));
    let mut shell = Terminal::shell(&bus, &machine, "", &[], &[]).expect("a shell");
    shell.expect("# ");
    shell.send("echo \"[$0 $(hostname) $(cat /proc/1/comm)]\"; exit 5\n");
    shell.expect(&format!("[-bash {machine} systemd]"));
    host.wait_for("the status in the log", || bus.log().contains("ended with exit status 5."));
    end(&host, bus, &machine);
}

/// A stock program on a terminal of its own, in a mount namespace where systemd seems to run.
fn stock(address: &str, program: &[&str]) -> (Terminal, std::process::Child) {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
    grantpt(&master).expect("grant");
    unlockpt(&master).expect("unlock");
    let path = ptsname(&master, Vec::new()).expect("a name").to_string_lossy().into_owned();
    let peer = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC);
    let peer = peer.expect("the other end");
    let stdio = || std::process::Stdio::from(peer.try_clone().expect("dup"));
    let mut command = std::process::Command::new("unshare");
    command.args(["-m", "sh", "-c", "mount -t tmpfs none /run && mkdir -p /run/systemd/system && exec \"$@\"", "sh"]);
    command.args(program).env("DBUS_SYSTEM_BUS_ADDRESS", address).env("TERM", "dumb");
    let child = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().expect("run unshare");
    (Terminal { master, path, shown: String::new() }, child)
}

#[test]
fn stock_machinectl_logs_in_and_opens_shells() {
    for tree in ["trixie-systemd", "trixie-openrc", "trixie-busybox"] {
        let host = Host::new();
        let bus = Bus::start(&host);
        let machine = machine(&host, &bus, tree, "");
        let (mut shell, mut child) = stock(&bus.address(), &["machinectl", "shell", "-E", "A=b", &machine]);
        shell.expect("Connected to machine");
        shell.expect("# ");
        shell.send("echo \"[$A $TERM $(id -un) $(tty)]\"\n");
        shell.expect("[b dumb root /dev/pts/");
        shell.send("exit\n");
        assert!(child.wait().expect("wait").success(), "{tree}");
        let (mut command, mut child) =
            stock(&bus.address(), &["machinectl", "shell", &machine, "/bin/echo", "$A", "b c"]);
        command.expect("$A b c");
        assert!(child.wait().expect("wait").success(), "{tree}");
        let (mut login, mut child) = stock(&bus.address(), &["machinectl", "login", &machine]);
        login.expect("login: ");
        login.send("root\n");
        login.expect("# ");
        login.send("echo \"[$(id -u) $(tty)]\"\n");
        login.expect("[0 /dev/pts/");
        login.send("\x1d\x1d\x1d");
        assert!(child.wait().expect("wait").success(), "{tree}");
        end(&host, bus, &machine);
    }
}

/// `machinist login` from its first word to its last.
fn own_login(host: &Host, bus: Option<&Bus>, machine: &str, leave: &str) {
    // Below another root nothing is known of the machine, so the daemon is asked.
    let root = if bus.is_some() { host.path("elsewhere") } else { host.root().to_owned() };
    let root = root.to_string_lossy();
    let words = [env!("CARGO_BIN_EXE_machinist"), "--root", &root, "login", machine];
    let (mut login, mut child) = stock(&bus.map_or_else(|| "unix:path=/nonexistent".into(), Bus::address), &words);
    login.expect(&format!("Connected to machine '{machine}'."));
    login.expect("login: ");
    login.send("root\n");
    login.expect("# ");
    login.send("echo \"[$(id -u) $(tty)]\"\n");
    login.expect("[0 /dev/pts/");
    // A daemon tells nobody how a login ends.
    login.send(if bus.is_some() { "\x1d\x1d\x1d" } else { leave });
    assert!(child.wait().expect("wait").success(), "{machine}");
}

#[test]
fn our_own_login_needs_no_daemon() {
    for (tree, leave) in [("trixie-systemd", "\x1d\x1d\x1d"), ("trixie-openrc", "exit\n")] {
        let host = Host::new();
        let bus = Bus::start(&host);
        let machine = machine(&host, &bus, tree, "");
        own_login(&host, Some(&bus), &machine, leave);
        own_login(&host, None, &machine, leave);
        end(&host, bus, &machine);
    }
}
