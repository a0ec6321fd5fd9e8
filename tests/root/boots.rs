//! Every init on its real tree: it boots, is entered, reboots, and ends by its own protocol.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::{Host, tree, wait_for};

/// What the root of a machine is made of, and whose ids it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// An ephemeral overlay on the shared tree, in a user namespace.
    Overlay,
    /// A copy of the tree with the host's ids.
    Directory,
    /// A copy of the tree, its ids mapped to those of a user namespace.
    Mapped,
}

/// How an init shows that it is ready, and which command inside reboots it.
struct Kind {
    name: &'static str,
    reboot: Option<&'static str>,
}

const SYSTEMD: Kind = Kind { name: "systemd", reboot: Some("systemctl reboot") };
const SYSVINIT: Kind = Kind { name: "sysvinit", reboot: Some("reboot") };
const BUSYBOX: Kind = Kind { name: "busybox", reboot: Some("reboot") };
const OPENRC: Kind = Kind { name: "openrc", reboot: None };
const RUNIT: Kind = Kind { name: "runit", reboot: Some("init 6") };
const FINIT: Kind = Kind { name: "finit", reboot: Some("initctl reboot") };

/// One life: start, look, reboot from outside and (where given) from inside, stop.
fn lives(from: &str, kind: &Kind, form: Form) {
    let host = Host::new();
    let machine = define(&host, from, form);
    host.ok(&["start", &machine]);
    let first = look(&host, &machine, kind, form, 1);
    let rebooted = host.run(&["--quiet", "reboot", &machine]);
    assert_eq!((rebooted.status, rebooted.stderr.as_str()), (0, ""), "{}", log(&host, &machine));
    let second = look(&host, &machine, kind, form, 2);
    assert_new_boot(&first, &second);
    if let Some(command) = kind.reboot {
        // Its own end may come before its answer.
        host.run(&["exec", &machine, "/bin/sh", "-c", command]);
        host.wait_for("the reboot from inside", || leader(&host, &machine).is_some_and(|l| l != second.leader));
        let third = look(&host, &machine, kind, form, 3);
        assert_new_boot(&second, &third);
    }
    let stopped = host.run(&["--quiet", "stop", &machine]);
    assert_eq!(
        (stopped.status, stopped.stderr.as_str()),
        (0, ""),
        "stopped by its own protocol\n{}",
        log(&host, &machine)
    );
    host.assert_nothing_left();
}

fn define(host: &Host, from: &str, form: Form) -> String {
    let base = if form == Form::Overlay {
        return host.define("m", &format!("[root]\noverlay = {{ lower = [\"{{{from}}}\"], upper = \"ephemeral\" }}\n"));
    } else {
        host.path("tree")
    };
    let copied = Command::new("cp").args(["-a", "--reflink=auto"]).arg(tree(from)).arg(&base).status();
    assert!(copied.expect("run cp").success());
    let users = if form == Form::Directory { "[users]\nmode = \"host\"\n" } else { "" };
    host.define("m", &format!("[root]\ndirectory = \"{}\"\n{users}", base.display()))
}

/// What is the same, and what differs, from boot to boot.
#[derive(Debug)]
struct Boot {
    boot_id: String,
    leader: String,
    ids: String,
}

fn assert_new_boot(before: &Boot, after: &Boot) {
    assert_ne!(before.boot_id, after.boot_id);
    assert_ne!(before.leader, after.leader);
    assert_eq!(before.ids, after.ids);
}

/// Waits until the machine has come up for the `nth` time and checks what it says of itself.
fn look(host: &Host, machine: &str, kind: &Kind, form: Form, nth: usize) -> Boot {
    wait_for("the login prompt", Duration::from_secs(120), || log(host, machine).matches("login:").count() >= nth);
    assert_eq!(host.status(machine, "init-kind"), kind.name);
    if kind.name == SYSTEMD.name {
        assert_eq!(host.sh(machine, "systemctl is-system-running --wait").trim(), "running");
        assert_eq!(host.sh(machine, "systemctl --failed --no-legend --plain"), "");
    }
    let ids = host.status(machine, "ids");
    let map = host.sh(machine, "cat /proc/self/uid_map");
    assert_eq!(form == Form::Directory, ids == "null", "{ids}");
    assert_eq!(form == Form::Directory, map.split_whitespace().nth(1) == Some("0"), "{map}");
    // Root of the machine owns the tree it was given.
    assert_eq!(host.sh(machine, "stat -c %u:%g / /etc/passwd").trim(), "0:0\n0:0");
    Boot {
        boot_id: host.sh(machine, "cat /proc/sys/kernel/random/boot_id"),
        leader: host.status(machine, "leader"),
        ids,
    }
}

/// The leader, if the machine has one at this moment.
fn leader(host: &Host, machine: &str) -> Option<String> {
    let output = host.run(&["status", "--json", machine]);
    let value: serde_json::Value = serde_json::from_str(&output.stdout).ok()?;
    value["leader"].as_i64().map(|l| l.to_string())
}

fn log(host: &Host, machine: &str) -> String {
    host.run(&["logs", machine]).stdout
}

macro_rules! boots {
    ($($name:ident: $tree:literal, $kind:expr, $form:ident;)*) => {$(
        #[test]
        fn $name() {
            lives($tree, &$kind, Form::$form);
        }
    )*};
}

boots! {
    bookworm_systemd_on_an_overlay: "bookworm-systemd", SYSTEMD, Overlay;
    bookworm_systemd_in_a_directory: "bookworm-systemd", SYSTEMD, Directory;
    trixie_systemd_on_an_overlay: "trixie-systemd", SYSTEMD, Overlay;
    trixie_systemd_in_a_directory: "trixie-systemd", SYSTEMD, Directory;
    trixie_systemd_in_a_mapped_directory: "trixie-systemd", SYSTEMD, Mapped;
    sysvinit_on_an_overlay: "trixie-sysvinit", SYSVINIT, Overlay;
    sysvinit_in_a_directory: "trixie-sysvinit", SYSVINIT, Directory;
    openrc_under_sysvinit_on_an_overlay: "trixie-openrc", SYSVINIT, Overlay;
    openrc_under_sysvinit_in_a_directory: "trixie-openrc", SYSVINIT, Directory;
    openrc_init_on_an_overlay: "trixie-openrc-init", OPENRC, Overlay;
    openrc_init_in_a_directory: "trixie-openrc-init", OPENRC, Directory;
    runit_on_an_overlay: "trixie-runit", RUNIT, Overlay;
    runit_in_a_directory: "trixie-runit", RUNIT, Directory;
    finit_on_an_overlay: "trixie-finit", FINIT, Overlay;
    finit_in_a_directory: "trixie-finit", FINIT, Directory;
    busybox_on_an_overlay: "trixie-busybox", BUSYBOX, Overlay;
    busybox_in_a_directory: "trixie-busybox", BUSYBOX, Directory;
    busybox_in_a_mapped_directory: "trixie-busybox", BUSYBOX, Mapped;
}

/// An init that has only just begun hears a request to stop nevertheless.
fn stops_at_once(from: &str) {
    let host = Host::new();
    let machine = define(&host, from, Form::Overlay);
    host.ok(&["start", "--no-wait", &machine]);
    let stopped = host.run(&["--quiet", "stop", &machine]);
    assert_eq!((stopped.status, stopped.stderr.as_str()), (0, ""), "{}", log(&host, &machine));
    host.assert_nothing_left();
}

#[test]
fn a_stop_that_comes_too_early_for_the_init_is_not_lost() {
    for from in ["trixie-systemd", "trixie-openrc-init", "trixie-runit", "trixie-finit", "trixie-busybox"] {
        stops_at_once(from);
    }
}

#[test]
fn a_machine_without_user_namespace_cannot_make_the_hosts_file_system_read_only() {
    let host = Host::new();
    // Mounts of this thread and of what it starts only: other tests look at those of the host.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("unshare");
    let own = Path::new("/proc/thread-self/mountinfo");
    let mount = |args: &[&str], at: &Path| {
        assert!(Command::new("mount").args(args).arg(at).status().expect("run mount").success());
    };
    mount(&["--make-rprivate"], Path::new("/"));
    let disk = host.path("disk");
    std::fs::create_dir(&disk).expect("mkdir");
    mount(&["-t", "tmpfs", "-o", "mode=755", "test"], &disk);
    let copied = Command::new("cp").arg("-a").arg(tree("trixie-busybox")).arg(disk.join("tree")).status();
    assert!(copied.expect("run cp").success());
    // What Debian's inits do last.
    std::fs::write(disk.join("tree/etc/rc.stop"), "#!/bin/sh\nmount -o remount,ro / && echo remounted\n")
        .expect("write");
    let toml = format!("[root]\ndirectory = \"{}\"\n[users]\nmode = \"host\"\n", disk.join("tree").display());
    let machine = host.define("ro", &toml);
    host.ok(&["start", &machine]);
    assert!(!host.sh(&machine, "/etc/rc.stop || echo refused").contains("remounted"));
    let stopped = host.run(&["--quiet", "stop", &machine]);
    assert_eq!(stopped.status, 0, "{stopped:?}");
    let mounts = std::fs::read_to_string(own).expect("mountinfo");
    let line = mounts.lines().find(|l| l.contains("/disk ")).expect("the test's own mount");
    assert!(line.rsplit_once(" - ").is_some_and(|(_, sb)| sb.contains(" rw")), "{line}");
    host.assert_nothing_left();
    assert!(Command::new("umount").arg(&disk).status().expect("run umount").success());
}
