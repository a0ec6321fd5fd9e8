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
    host.ok(&["kill", &machine]);
    host.wait_for("the end of the machine", || !host.path("run/machinist/machines").join(&machine).exists());
    drop(bus);
    host.assert_nothing_left();
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
