//! The image store beside the real systemd-machined, which looks at the same one.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Host, Output, finish, tree};

/// A bus where everybody may do everything.
const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=/run/test-bus</listen><policy context="default"><allow user="*"/>
<allow own="*"/><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/></policy></busconfig>"#;

/// Runs calls on a systemd-machined that has `/run` and the store of `host`, in a mount namespace of its own.
const MACHINED: &str = r#"
mount --bind "$1/run" /run; mount --bind "$1/var/lib/machines" /var/lib/machines
bus=$(dbus-daemon --config-file="$1/bus.conf" --fork --print-pid)
export DBUS_SYSTEM_BUS_ADDRESS=unix:path=/run/test-bus
/lib/systemd/systemd-machined 2>/run/machined.log & machined=$!
trap 'kill "$machined" "$bus"; wait "$machined"' EXIT
until busctl --list --acquired --no-legend | grep -q "machine1 .*$machined "; do kill -0 "$machined"; sleep 0.05; done
call() { busctl --json=short call org.freedesktop.machine1 /org/freedesktop/machine1 org.freedesktop.machine1.Manager "$@" 2>&1 || :; }
"#;

fn machined(host: &Host, calls: &str) -> Vec<String> {
    std::fs::create_dir_all(host.path("run")).expect("mkdir");
    std::fs::write(host.path("bus.conf"), BUS).expect("write");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-euc", &format!("{MACHINED}{calls}"), "sh"]);
    let Output { status, stdout, stderr } = finish(command.arg(host.root()).stdin(Stdio::null()));
    assert_eq!((status, stderr.as_str()), (0, ""), "{stdout}");
    stdout.lines().map(str::to_owned).collect()
}

fn image(host: &Host, name: &str) {
    let store = host.path("var/lib/machines");
    std::fs::create_dir_all(&store).expect("mkdir");
    let copied = Command::new("cp").arg("-a").arg(tree("trixie-busybox")).arg(store.join(name)).status();
    assert!(copied.expect("cp").success());
}

#[test]
fn systemd_machined_sees_the_images_that_we_see() {
    let host = Host::new();
    for name in ["web", ".hidden", "frozen"] {
        image(&host, name);
    }
    let store = host.path("var/lib/machines");
    std::fs::write(store.join("disk.raw"), vec![1; 100_000]).expect("write");
    std::fs::write(store.join("ro.raw"), "").expect("write");
    std::fs::write(store.join("web/etc/hostname"), "# comment\nname-inside\n").expect("write");
    std::fs::write(store.join("web/etc/machine-id"), "0123456789abcdef0123456789abcdef\n").expect("write");
    host.ok(&["read-only", "frozen"]);
    host.ok(&["read-only", "ro"]);
    let ours: Value = serde_json::from_str(&host.ok(&["image", "list", "--all", "--json"])).expect("JSON");
    let status: Value = serde_json::from_str(&host.ok(&["image", "status", "--json", "web"])).expect("JSON");

    let answers = machined(&host, "call ListImages; call GetImageHostname s web; call GetImageMachineID s web");
    // So that it can be removed whatever comes.
    host.ok(&["read-only", "frozen", "no"]);
    let theirs: Value = serde_json::from_str(&answers[0]).expect("JSON");
    let mut theirs: Vec<Value> = theirs["data"][0].as_array().expect("rows").clone();
    theirs.sort_by_key(|row| row[0].as_str().map(str::to_owned));
    let ours = ours.as_array().expect("a list");
    assert_eq!(theirs.len(), ours.len());
    for (theirs, ours) in theirs.iter().zip(ours) {
        let time = |key: &str| ours[key].as_u64().unwrap_or(0);
        let usage = ours["usage"].as_u64().unwrap_or(u64::MAX);
        let (created, modified) = (time("created-usec"), time("modified-usec"));
        let row = json!([ours["name"], ours["type"], ours["read-only"], created, modified, usage]);
        assert_eq!(theirs.as_array().expect("a row")[..6], row.as_array().expect("a row")[..]);
    }
    let name: Value = serde_json::from_str(&answers[1]).expect("JSON");
    assert_eq!(name["data"][0], status[0]["hostname"]);
    let id: Value = serde_json::from_str(&answers[2]).expect("JSON");
    let hex: String =
        id["data"][0].as_array().expect("bytes").iter().map(|b| format!("{:02x}", b.as_u64().unwrap_or(0))).collect();
    assert_eq!(status[0]["machine-id"], hex);
}

#[test]
fn systemd_machined_does_not_change_what_we_run() {
    let host = Host::new();
    for name in ["base", "web"] {
        image(&host, name);
    }
    let web = host.path("var/lib/machines/web");
    let command = "[boot]\ncommand = [\"/bin/sleep\", \"1000\"]\n";
    let layered = host.define("l", &format!("[root.overlay]\nlower = [\"base\"]\nupper = \"ephemeral\"\n{command}"));
    let direct = host.define("d", &format!("[root]\ndirectory = \"{}\"\n{command}", web.display()));
    host.ok(&["start", &layered, &direct]);
    let calls = "call RemoveImage s base; call RenameImage ss base other; call MarkImageReadOnly sb base true
                 call RemoveImage s web; call RenameImage ss web other; call GetImageHostname s web";
    let busy = "Call failed: Device or resource busy";
    let unread = "Call failed: Failed to read image metadata: Device or resource busy";
    assert_eq!(machined(&host, calls), [busy, busy, busy, busy, busy, unread]);
    for machine in [&layered, &direct] {
        host.ok(&["kill", machine]);
        let run = host.path("run/machinist/machines").join(machine);
        host.wait_for("the end of the supervisor", || !run.exists());
    }
    assert_eq!(machined(&host, "call RenameImage ss base other; call RemoveImage s web"), Vec::<String>::new());
    let left: Vec<_> = std::fs::read_dir(host.path("var/lib/machines")).expect("the store").collect();
    assert_eq!(left.into_iter().map(|e| e.expect("entry").file_name()).collect::<Vec<_>>(), ["other"]);
}
