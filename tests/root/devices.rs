//! Devices of the host in a machine: those of its definition work as it says, and no others.

use std::os::unix::fs::symlink;
use std::path::Path;

use crate::small_tree::{Canary, SmallTree, run_after};
use crate::support::{Host, Output, finish};

const MODES: [&str; 2] = ["auto", "host"];

fn idle(mode: &str, more: &str) -> String {
    format!(
        "users.mode = \"{mode}\"\n[root]\noverlay = {{ lower = [\"{{busybox}}\"], upper = \"ephemeral\" }}\n\
         [boot]\ncommand = [\"/bin/sleep\", \"10000\"]\n{more}"
    )
}

fn started(host: &Host, toml: &str) -> String {
    let machine = host.define("m", toml);
    host.ok(&["start", &machine]);
    machine
}

/// The same as on kernels that cannot map the ids of a tmpfs.
fn started_as_old(host: &Host, toml: &str) -> String {
    let machine = host.define("m", toml);
    let output = finish(host.command().args(["start", &machine]).env("MACHINIST_TEST_OLD_KERNEL", "1"));
    assert_eq!(output.status, 0, "{output:?}");
    machine
}

fn end(host: &Host, machine: &str) {
    host.ok(&["stop", machine]);
    host.assert_nothing_left();
}

fn try_sh(host: &Host, machine: &str, script: &str) -> Output {
    host.run(&["exec", machine, "/bin/sh", "-c", script])
}

/// Opens a device in the machine without any other effect on it: `<` to read, `>>` to write, `<>` for both.
fn open(host: &Host, machine: &str, how: &str, node: &str) -> Result<(), String> {
    let output = try_sh(host, machine, &format!("exec 9{how}{node}"));
    if output.status == 0 {
        return Ok(());
    }
    Err(output.stderr.trim_end().rsplit(": ").next().unwrap_or_default().to_owned())
}

fn refused(errno: nix::errno::Errno) -> Result<(), String> {
    Err(errno.desc().to_owned())
}

const EPERM: nix::errno::Errno = nix::errno::Errno::EPERM;
const EACCES: nix::errno::Errno = nix::errno::Errno::EACCES;

#[test]
fn a_listed_device_opens_and_all_others_are_refused() {
    for mode in MODES {
        let host = Host::new();
        let machine = started(
            &host,
            &idle(
                mode,
                "[[device]]\nnode = \"/dev/fuse\"\n[[bind]]\nsource = \"/dev/net/tun\"\ntarget = \"/tun\"\nidmap = \"none\"\n",
            ),
        );
        for boot in 1..=2 {
            assert_eq!(open(&host, &machine, "<>", "/dev/fuse"), Ok(()), "{mode}, boot {boot}");
            assert!(!try_sh(&host, &machine, "ls /dev").stdout.contains("net"));
            // With a user namespace the mount says so before the filter is asked.
            let wanted = refused(if mode == "auto" { EACCES } else { EPERM });
            assert_eq!(open(&host, &machine, "<>", "/tun"), wanted, "{mode}, boot {boot}");
            let made = try_sh(&host, &machine, "mknod /root/fuse c 10 229");
            assert!(made.status != 0 && made.stderr.contains("Operation not permitted"), "{mode}: {made:?}");
            // What every machine has, it has still, and its terminals.
            host.sh(
                &machine,
                "echo x >/dev/null; head -c 1 /dev/urandom >/dev/full || :; : <>/dev/console; : <>/dev/ptmx",
            );
            if boot == 1 {
                host.ok(&["reboot", &machine]);
            }
        }
        end(&host, &machine);
    }
}

#[test]
fn a_tunnel_works_in_a_network_of_the_machines_own() {
    let host = Host::new();
    let machine = started(&host, &idle("auto", "[[device]]\nnode = \"/dev/net/tun\"\nmode = \"0666\"\n"));
    let made = host.sh(&machine, "tunctl -t tap7 >/dev/null && ls /sys/class/net && tunctl -d tap7 >/dev/null");
    assert_eq!(made, "lo\ntap7\n");
    assert!(!Path::new("/sys/class/net/tap7").exists());
    end(&host, &machine);
}

#[test]
fn a_systemd_boots_whole_behind_the_filter_and_within_limits() {
    for mode in MODES {
        let host = Host::new();
        let toml = format!(
            "users.mode = \"{mode}\"\n[root]\noverlay = {{ lower = [\"{{trixie-systemd}}\"], upper = \"ephemeral\" }}\n\
             [[device]]\nnode = \"/dev/fuse\"\n[security]\nnice = 1\nrlimits = {{ nofile = \"2048:8192\" }}\n"
        );
        let machine = started(&host, &toml);
        let state = host.run(&["exec", &machine, "systemctl", "is-system-running", "--wait"]);
        let failed = host.ok(&["exec", &machine, "systemctl", "--failed", "--no-legend", "--plain"]);
        assert_eq!((state.stdout.as_str(), failed.as_str()), ("running\n", ""), "{mode}");
        assert_eq!(open(&host, &machine, "<>", "/dev/fuse"), Ok(()), "{mode}");
        assert_eq!(host.sh(&machine, "ulimit -Hn; cut -d' ' -f19 /proc/1/stat"), "8192\n1\n", "{mode}");
        end(&host, &machine);
    }
}

#[test]
fn a_device_given_for_reading_is_not_written() {
    for mode in MODES {
        let host = Host::new();
        let given = "[[device]]\nnode = \"/dev/loop0\"\npermission = \"r\"\n\
                     [[device]]\nnode = \"/dev/net/tun\"\npermission = \"r\"\n\
                     [[device]]\nnode = \"/dev/loop-control\"\npermission = \"w\"\n";
        let machine = started(&host, &idle(mode, given));
        for boot in 1..=2 {
            for node in ["/dev/loop0", "/dev/net/tun"] {
                assert_eq!(open(&host, &machine, "<", node), Ok(()), "{mode}, boot {boot}: {node}");
                for how in ["<>", ">>"] {
                    assert_eq!(open(&host, &machine, how, node), refused(EPERM), "{mode}, boot {boot}: {how}{node}");
                }
            }
            assert_eq!(open(&host, &machine, ">>", "/dev/loop-control"), Ok(()), "{mode}, boot {boot}");
            assert_eq!(open(&host, &machine, "<", "/dev/loop-control"), refused(EPERM), "{mode}, boot {boot}");
            if boot == 1 {
                host.ok(&["reboot", &machine]);
            }
        }
        end(&host, &machine);
    }
}

#[test]
fn owner_mode_and_place_are_those_of_the_file() {
    type Start = fn(&Host, &str) -> String;
    for (mode, start) in
        [("auto", started as Start), ("host", started), ("identity", started), ("auto", started_as_old)]
    {
        let host = Host::new();
        let given = "[[device]]\nnode = \"/dev/fuse\"\nowner = \"1000:44\"\nmode = \"0640\"\n\
                     [[device]]\nnode = \"/dev/loop0\"\ntarget = \"/dev/disk/by-name/data\"\nmode = \"0600\"\n\
                     [[device]]\nnode = \"/dev/net/tun\"\n";
        let machine = start(&host, &idle(mode, given));
        for boot in 1..=2 {
            let seen =
                host.sh(&machine, "cd /dev; stat -c '%n %F %t:%T %u:%g %a' fuse disk disk/by-name/data net net/tun");
            let wanted = "fuse character special file a:e5 1000:44 640\n\
                          disk directory 0:0 0:0 755\n\
                          disk/by-name/data block special file 7:0 0:0 600\n\
                          net directory 0:0 0:0 755\n\
                          net/tun character special file a:c8 0:0 660\n";
            assert_eq!(seen, wanted, "{mode}, boot {boot}");
            let as_user = |user: &str, how: &str| {
                host.run(&["exec", "--user", user, &machine, "/bin/sh", "-c", &format!("exec 9{how}/dev/fuse")]).status
            };
            // The mode holds beside the filter: the group may only read, and others nothing.
            assert_eq!((as_user("1000:1000", "<>"), as_user("7:44", "<")), (0, 0), "{mode}, boot {boot}");
            assert!(as_user("7:44", "<>") != 0 && as_user("7:7", "<") != 0, "{mode}, boot {boot}");
            if boot == 1 {
                host.ok(&["reboot", &machine]);
            }
        }
        end(&host, &machine);
    }
}

#[test]
fn a_node_is_made_inside_only_where_the_file_says_so() {
    let host = Host::new();
    let given = "[[device]]\nnode = \"/dev/fuse\"\npermission = \"rwm\"\n\
                 [[device]]\nnode = \"/dev/net/tun\"\npermission = \"m\"\n[[device]]\nnode = \"/dev/loop0\"\n";
    let machine = started(&host, &idle("host", given));
    let make = |name: &str, what: &str| try_sh(&host, &machine, &format!("mknod /root/{name} {what}"));
    assert_eq!(make("fuse", "c 10 229").status, 0);
    assert_eq!(open(&host, &machine, "<>", "/root/fuse"), Ok(()));
    assert_eq!(make("tun", "c 10 200").status, 0);
    assert_eq!(open(&host, &machine, "<", "/root/tun"), refused(EPERM));
    for (name, what) in [("loop", "b 7 0"), ("char", "c 7 0"), ("block", "b 10 229"), ("kmsg", "c 1 11")] {
        let output = make(name, what);
        assert!(output.status != 0 && output.stderr.contains("Operation not permitted"), "{what}: {output:?}");
    }
    // Trees are made with a node of the host's console, which is not the machine's.
    assert_eq!(make("console", "c 5 1").status, 0);
    let plan = host.ok(&["plan", &host.define("other", &idle("auto", given))]);
    let note = "`m` of '/dev/fuse' has no effect: device nodes cannot be made in a user namespace";
    assert!(plan.contains(&format!("note          {note}\n")), "{plan}");
    assert_eq!(open(&host, &machine, "<", "/root/console"), refused(EPERM));
    end(&host, &machine);
}

#[test]
fn a_device_has_at_each_boot_the_numbers_it_has_then() {
    let host = Host::new();
    let link = host.path("stick");
    symlink("/dev/loop0", &link).expect("symlink");
    let given = format!("[[device]]\nnode = \"{}\"\ntarget = \"/dev/stick\"\n", link.display());
    let machine = started(&host, &idle("auto", &given));
    let numbers = || host.sh(&machine, "stat -c %t:%T /dev/stick");
    assert_eq!((numbers().as_str(), open(&host, &machine, "<>", "/dev/stick")), ("7:0\n", Ok(())));
    std::fs::remove_file(&link).expect("remove");
    symlink("/dev/loop1", &link).expect("symlink");
    host.ok(&["reboot", &machine]);
    assert_eq!((numbers().as_str(), open(&host, &machine, "<>", "/dev/stick")), ("7:1\n", Ok(())));
    // And none where it is gone.
    std::fs::remove_file(&link).expect("remove");
    let output = host.run(&["reboot", &machine]);
    assert_ne!(output.status, 0, "{output:?}");
    let run_dir = host.path("run/machinist/machines").join(&machine);
    host.wait_for("the end", || !run_dir.exists());
    host.assert_nothing_left();
}

fn assert_not_started(host: &Host, machine: &str, output: &Output, rest: &str) {
    let stderr = format!("error: cannot start machine '{machine}'\n{rest}");
    let said: String = output.stderr.split_inclusive('\n').filter(|line| !line.starts_with("warning: ")).collect();
    assert_eq!((output.status, said), (1, stderr), "{output:?}");
    host.assert_nothing_left();
}

#[test]
fn a_device_that_the_host_does_not_have_is_refused_unless_it_is_optional() {
    for mode in MODES {
        let host = Host::new();
        let given = "[[device]]\nnode = \"/dev/fuse\"\n[[device]]\nnode = \"/dev/no-such-device\"\n";
        let machine = host.define("m", &idle(mode, given));
        for verb in ["run", "start"] {
            let text = "  cause: cannot give the device '/dev/no-such-device' to the machine\n  \
                        cause: open('/dev/no-such-device'): No such file or directory\n  \
                        hint: its driver may not be loaded; `optional = true` starts the machine without what is missing\n";
            assert_not_started(&host, &machine, &host.run(&[verb, &machine]), text);
        }
        let machine = started(&host, &idle(mode, &format!("{given}optional = true\n")));
        assert_eq!(open(&host, &machine, "<>", "/dev/fuse"), Ok(()));
        assert!(!host.sh(&machine, "ls /dev").contains("no-such"));
        end(&host, &machine);
    }
}

#[test]
fn what_is_no_device_or_has_no_effect_is_refused() {
    let host = Host::new();
    let given = |node: &Path| format!("[[device]]\nnode = \"{}\"\ntarget = \"/dev/x\"\n", node.display());
    let file = host.path("file");
    std::fs::write(&file, "").expect("write");
    let link = host.path("link");
    symlink(&file, &link).expect("symlink");
    for (node, what) in [(&*file, "a file"), (&*link, "a file"), (Path::new("/dev/net"), "a directory")] {
        let machine = host.define("m", &idle("auto", &given(node)));
        let text = format!("  cause: cannot give the device '{}' to the machine: it is {what}\n", node.display());
        assert_not_started(&host, &machine, &host.run(&["start", &machine]), &text);
    }
    let at = host.path("nodev");
    std::fs::create_dir(&at).expect("mkdir");
    let machine = host.define("m", &idle("auto", &given(&at.join("fuse"))));
    let setup = format!("mount -t tmpfs -o nodev none {0} && mknod {0}/fuse c 10 229 || exit 99", at.display());
    let output = run_after(&host, &setup, &["start", &machine]);
    let text = format!(
        "  cause: cannot give the device '{}/fuse' to the machine: it is on a file system whose devices have no effect \
         (nodev)\n",
        at.display()
    );
    assert_not_started(&host, &machine, &output, &text);
}

#[test]
fn a_bound_device_is_answered_with_what_to_write_instead() {
    let host = Host::new();
    let machine = host.define("m", &idle("auto", "[[bind]]\nsource = \"/dev/fuse\"\n"));
    let plan = host.ok(&["plan", &machine]);
    let note = "a device that is bound, as '/dev/fuse', cannot be opened in the machine; use `[[device]]`";
    assert!(plan.ends_with(&format!("note          {note}\n")), "{plan}");
    let text = "  cause: cannot bind '/dev/fuse' to '/dev/fuse'\n  \
                cause: mount_setattr(MOUNT_ATTR_IDMAP): Invalid argument\n  \
                hint: a bound device could not be opened either; `[[device]]` gives one to a machine\n";
    assert_not_started(&host, &machine, &host.run(&["start", &machine]), text);
}

#[test]
fn names_of_one_device_have_one_permission() {
    let host = Host::new();
    let given = "[[device]]\nnode = \"/dev/loop0\"\n[[device]]\nnode = \"/dev/loop0\"\ntarget = \"/dev/b\"\n";
    let machine = host.define("m", &idle("auto", &format!("{given}permission = \"r\"\n")));
    let text = "  cause: '/dev/loop0' and '/dev/b' of `[[device]]` are the same device\n  \
                hint: give both the same `permission`: \"rw\" and \"r\" cannot be told apart\n";
    assert_not_started(&host, &machine, &host.run(&["start", &machine]), text);
    let machine = started(&host, &idle("auto", given));
    assert_eq!((open(&host, &machine, "<>", "/dev/loop0"), open(&host, &machine, "<>", "/dev/b")), (Ok(()), Ok(())));
    end(&host, &machine);
}

/// Root cause (LXD): what was forbidden was a list, and the list forgot some. Stopped by: the filter is a list of what is
/// allowed, so every device of this host that is not on it is refused, for reading and for writing.
#[test]
fn cve_2026_34177_no_device_of_the_host_is_forgotten() {
    let host = Host::new();
    let toml = "users.mode = \"host\"\n[root]\noverlay = { lower = [\"/\"], upper = \"ephemeral\" }\n\
                [boot]\ncommand = [\"sleep\", \"10000\"]\n[[bind]]\nsource = \"/dev\"\ntarget = \"/mnt\"\n\
                [[device]]\nnode = \"/dev/fuse\"\npermission = \"r\"\n";
    let machine = started(&host, toml);
    // access(2) asks the filter and does nothing to the device.
    let script = r#"use POSIX; use File::Find;
        find({ no_chdir => 1, wanted => sub {
            my @s = lstat($_) or return;
            return unless S_ISCHR($s[2]) || S_ISBLK($s[2]);
            my $letters = "";
            for (["r", R_OK], ["w", W_OK]) {
                if (POSIX::access($File::Find::name, $_->[1])) { $letters .= $_->[0] }
                elsif ($! != EPERM) { $letters .= "?" }
            }
            print "$letters $File::Find::name\n";
        } }, "/mnt");"#;
    let seen = host.ok(&["exec", &machine, "perl", "-e", script]);
    let mut allowed: Vec<&str> = seen.lines().filter(|line| !line.starts_with(' ')).collect();
    allowed.sort_unstable();
    let terminals = |line: &&str| line.starts_with("rw /mnt/pts/");
    allowed.retain(|line| !terminals(line));
    let wanted = ["r /mnt/fuse", "rw /mnt/full", "rw /mnt/null", "rw /mnt/ptmx", "rw /mnt/random", "rw /mnt/tty"];
    let wanted: Vec<&str> = wanted.into_iter().chain(["rw /mnt/urandom", "rw /mnt/zero"]).collect();
    assert_eq!(allowed, wanted);
    assert!(seen.lines().count() > wanted.len() + 5, "this host has too few devices: {seen}");
    end(&host, &machine);
}

/// Root cause: the image's `/dev` led device nodes, or the directories made for them, to the host. Stopped by: nodes
/// and their directories are made in a tmpfs of ours that is not attached to anything yet.
#[test]
fn cve_2026_47766_a_device_is_made_in_no_directory_of_the_tree() {
    for mode in MODES {
        let host = Host::new();
        let canary = Canary::new(&host, "outside");
        let tree = SmallTree::new(&host, "tree");
        for name in ["dev/net", "dev/fuse", "dev/loop0", "dev/disk"] {
            tree.link(name, canary.path());
        }
        let given = "[[device]]\nnode = \"/dev/net/tun\"\n[[device]]\nnode = \"/dev/fuse\"\nowner = \"1000:1000\"\n\
                     [[device]]\nnode = \"/dev/loop0\"\ntarget = \"/dev/disk/a/b\"\nmode = \"0600\"\n";
        let toml = idle(mode, given)
            .replace("overlay = { lower = [\"{busybox}\"], upper = \"ephemeral\" }", "directory = \"{root}/tree\"");
        let machine = started(&host, &toml);
        assert_eq!(open(&host, &machine, "<>", "/dev/net/tun"), Ok(()));
        canary.assert_untouched();
        end(&host, &machine);
        canary.assert_untouched();
        for name in ["dev/net", "dev/fuse", "dev/loop0", "dev/disk"] {
            assert_eq!(std::fs::read_link(tree.path(name)).expect(name), canary.path(), "{mode}");
        }
    }
}
