//! The packaged bus policies on a real bus: what callers without rights may send to the daemon.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{Host, Output, finish, wait_for};

/// As on the system bus: no process owns a name and no call passes unless a file below allows it.
const CONFIG: &str = r#"<busconfig>
  <type>system</type>
  <listen>{address}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
  </policy>
{includes}</busconfig>
"#;

const OURS: &str = "packaging/dbus/org.machinist1.conf";
const OUR_MACHINE1: &str = "packaging/machine1/org.freedesktop.machine1.conf";
/// Of systemd-container.
const THEIR_MACHINE1: &str = "/usr/share/dbus-1/system.d/org.freedesktop.machine1.conf";

/// A bus with these policies, in this order, and a daemon with both names on it.
struct Bus {
    address: String,
    bus: Child,
    daemon: Option<Child>,
}

impl Bus {
    fn start(host: &Host, policies: &[&str]) -> Self {
        // Everybody may come to an abstract address; the directories of a test are closed.
        let address = format!("unix:abstract={}", host.name("policy"));
        let include = |path: &&str| {
            let path: PathBuf = std::path::absolute(path).expect("a path");
            assert!(path.exists(), "{} is missing", path.display());
            format!("  <include>{}</include>\n", path.display())
        };
        let includes: String = policies.iter().map(include).collect();
        let config = host.path("policy.conf");
        let text = CONFIG.replace("{address}", &address).replace("{includes}", &includes);
        std::fs::write(&config, text).expect("write");
        let bus = Command::new("dbus-daemon")
            .args(["--nofork", "--nopidfile", &format!("--config-file={}", config.display())])
            .stdin(Stdio::null())
            // It writes a line for every call that it rejects.
            .stderr(Stdio::null())
            .spawn()
            .expect("run dbus-daemon");
        let mut bus = Self { address, bus, daemon: None };
        wait_for("the bus", Duration::from_secs(20), || bus.busctl(false, &["list"]).status == 0);
        let mut command = host.command();
        command.args(["daemon", "--machine1", "yes", "--bus", &bus.address]);
        command.stdin(Stdio::null()).stderr(Stdio::null());
        bus.daemon = Some(command.spawn().expect("run the daemon"));
        wait_for("the names", Duration::from_secs(20), || {
            ["org.machinist1", "org.freedesktop.machine1"].iter().all(|n| bus.busctl(false, &["status", n]).status == 0)
        });
        bus
    }

    /// `busctl` as root or as `nobody`.
    fn busctl(&self, nobody: bool, args: &[&str]) -> Output {
        let mut command = Command::new("setpriv");
        if nobody {
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        }
        finish(command.arg("busctl").arg(format!("--address={}", self.address)).args(args))
    }

    /// Whether the bus passes `nobody`'s call on; what the daemon answers does not matter.
    fn passes(&self, interface: &str, member: &str) -> bool {
        let (name, path) = if interface.starts_with("org.machinist1") {
            ("org.machinist1", "/org/machinist1")
        } else {
            ("org.freedesktop.machine1", "/org/freedesktop/machine1")
        };
        let output = self.busctl(true, &["--timeout=20", "call", name, path, interface, member]);
        // `busctl` shows the daemon's own words for all but this, which is the bus's.
        !output.stderr.contains("Access denied") && !output.stderr.contains("Rejected send message")
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        for child in self.daemon.iter_mut().chain([&mut self.bus]) {
            // They may have ended by themselves.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn assert_policy(policies: &[&str]) {
    let host = Host::new();
    let bus = Bus::start(&host, policies);
    for (interface, member, expected) in [
        ("org.machinist1.Manager", "ListMachines", true),
        ("org.machinist1.Manager", "Exec", true),
        ("org.machinist1.Manager", "NoSuchMethod", false),
        ("org.freedesktop.machine1.Manager", "ListMachines", true),
        ("org.freedesktop.machine1.Manager", "CreateMachineEx", false),
        ("org.freedesktop.machine1.Manager", "NoSuchMethod", false),
        ("org.freedesktop.DBus.Properties", "GetAll", true),
        ("org.freedesktop.DBus.Properties", "Set", false),
    ] {
        assert_eq!(bus.passes(interface, member), expected, "{policies:?}: {interface}.{member}");
    }
    let stolen = bus.busctl(
        true,
        &["call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus", "RequestName", "su", "org.machinist1", "0"],
    );
    assert_ne!(stolen.status, 0, "{stolen:?}");
}

#[test]
fn own_interface_passes_whatever_machine1s_policy_denies_before_or_after_it() {
    assert_policy(&[OURS, THEIR_MACHINE1]);
    assert_policy(&[THEIR_MACHINE1, OURS]);
}

#[test]
fn both_policies_of_ours_go_together_in_any_order() {
    assert_policy(&[OURS, OUR_MACHINE1]);
    assert_policy(&[OUR_MACHINE1, OURS]);
}
