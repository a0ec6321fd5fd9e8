//! Binds into machines, and copies in and out, with machines and trees that try to get hold of the host.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::bus::Bus;
use crate::daemon_inspect::{done, sleeper};
use crate::images::running_nspawn;
use crate::support::{Host, wait_for};

/// Owner, group, mode and time of a file of a machine, as `stat` prints them.
fn stat_in(host: &Host, machine: &str, path: &str) -> String {
    host.sh(machine, &format!("stat -c '%u %g %a %Y %h' '{path}'")).trim().to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// Runs a program of the host, which must work.
fn tool(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect("run it");
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// A directory of the host with one file of each kind that can be copied.
fn make_source(dir: &Path) {
    fs::create_dir_all(dir.join("sub/deep")).expect("mkdir");
    fs::write(dir.join("file"), "hello\n").expect("write");
    fs::set_permissions(dir.join("file"), PermissionsExt::from_mode(0o640)).expect("chmod");
    std::os::unix::fs::chown(dir.join("file"), Some(1000), Some(1001)).expect("chown");
    tool("touch", &["-d", "2001-02-03T04:05:06Z", text(&dir.join("file"))]);
    fs::hard_link(dir.join("file"), dir.join("sub/hard")).expect("link");
    symlink("/etc/passwd", dir.join("link")).expect("symlink");
    tool("mkfifo", &[text(&dir.join("fifo"))]);
    fs::write(dir.join("program"), "#!/bin/sh\n").expect("write");
    fs::set_permissions(dir.join("program"), PermissionsExt::from_mode(0o4755)).expect("chmod");
    tool("python3", &["-c", "import os,sys; os.setxattr(sys.argv[1], 'user.color', b'red')", text(&dir.join("sub"))]);
    // user::rw-, user:33:rw-, group::r--, mask::rw-, other::---
    let acl = "import os,struct,sys; e = [(1, 6, -1), (2, 6, 33), (4, 4, -1), (16, 6, -1), (32, 0, -1)]; os.setxattr(sys.argv[1], \
               'system.posix_acl_access', struct.pack('<I', 2) + b''.join(struct.pack('<HHi', *x) for x in e))";
    fs::write(dir.join("acl"), "").expect("write");
    tool("python3", &["-c", acl, text(&dir.join("acl"))]);
    // Of somebody that the machine has no id for.
    fs::write(dir.join("sub/deep/foreign"), "readable").expect("write");
    std::os::unix::fs::chown(dir.join("sub/deep/foreign"), Some(200_000), Some(200_000)).expect("chown");
}

#[test]
fn a_bind_shows_the_host_with_the_ids_of_the_machine() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let machine = sleeper(&host, "m", "true", "");
    let source = host.path("shared");
    make_source(&source);
    let dir = text(&source);
    let bind = |from: &str, to: &str, read_only, mkdir| {
        bus.call("BindMountMachine", &["sssbb", &machine, from, to, read_only, mkdir])
    };
    assert_eq!(bind(dir, "/a/b/c", "no", "yes").status, 0);
    assert_eq!(stat_in(&host, &machine, "/a/b/c/file"), "1000 1001 640 981173106 2");
    assert_eq!(host.sh(&machine, "stat -c %u:%g:%a /a /a/b"), "0:0:755\n0:0:755\n");
    host.sh(&machine, "echo of-root > /a/b/c/new; chown 33:33 /a/b/c/new");
    let new = fs::metadata(source.join("new")).expect("made by the machine");
    assert_eq!((new.uid(), new.gid()), (33, 33));

    // A file, at the same path, and what is missing above it.
    let file = text(&source.join("file")).to_owned();
    assert_eq!(bind(&file, "", "no", "yes").status, 0);
    assert_eq!(host.sh(&machine, &format!("cat {file}")), "hello\n");

    // What is read-only stays so, whatever the machine's root does.
    assert_eq!(bind(dir, "/ro", "yes", "yes").status, 0);
    let tries = "for try in 'touch /ro/x' 'mount -o remount,bind,rw /ro' 'touch /ro/x' \
                 'mount --bind /ro /ro' 'mount -o remount,bind,rw /ro' 'touch /ro/x'; do $try 2>/dev/null && echo $try; done; :";
    assert_eq!(host.sh(&machine, tries), "mount --bind /ro /ro\n");
    assert!(!source.join("x").exists());

    let refused =
        |from: &str, to: &str, mkdir| bus.refused("BindMountMachine", &["sssbb", &machine, from, to, "no", mkdir]);
    for path in ["relative", "/a/../etc", "/a/./b", "/"] {
        assert_eq!(refused(dir, path, "yes"), "Destination path must be absolute and normalized.", "{path}");
    }
    assert_eq!(refused("x/y", "/b", "yes"), "Source path must be absolute and normalized.");
    assert_eq!(refused(dir, "/none", "no"), "openat2('/none' in the tree): No such file or directory");
    assert_eq!(
        refused(dir, "/etc/passwd", "no"),
        "'/etc/passwd' of the machine is no directory, and the source is one"
    );
    assert_eq!(refused(&file, "/etc", "no"), "'/etc' of the machine is a directory, and the source is none");
    let missing = format!("{dir}/none");
    assert_eq!(refused(&missing, "/b", "yes"), format!("open('{missing}'): No such file or directory"));
    // procfs has no mounts with other ids.
    let text = "the file system of '/proc/sys' (or of a mount below it) cannot map ids for the machine";
    assert_eq!(refused("/proc/sys", "/b", "yes"), text);
    done(&host, &[&machine]);
    host.assert_nothing_left();
}

/// Places that lead out of the machine for whoever looks them up with the host's eyes.
const WAYS_OUT: &str = "ln -s VICTIM /direct; ln -s ../../../../../../../../..VICTIM /dots; mkdir /deep; ln -s VICTIM /deep/link; \
                        ln -s /proc/self/root /magic; ln -s /proc/1/root /leader";

#[test]
fn cve_2021_30465_a_bind_goes_to_no_place_outside_of_the_machine() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let (victim, source) = (host.path("victim"), host.path("source"));
    fs::create_dir(&victim).expect("mkdir");
    fs::create_dir(&source).expect("mkdir");
    let machine = sleeper(&host, "m", "true", "");
    host.sh(&machine, &WAYS_OUT.replace("VICTIM", text(&victim)));
    let bind = |to: &str| bus.call("BindMountMachine", &["sssbb", &machine, text(&source), to, "no", "yes"]);
    // A symlink at the end is never mounted on, nor is anything made through one.
    for end in ["/direct", "/dots", "/deep/link", "/magic", "/leader"] {
        let output = bind(end);
        let text = format!("'{end}' of the machine is a symlink, on which nothing is mounted");
        assert_eq!(output.stderr.trim(), format!("Call failed: {text}"), "{end}");
    }
    // Before the end it means a place of the machine; what only the kernel can follow is refused.
    assert_eq!(bind("/direct/x").status, 1);
    host.sh(&machine, &format!("mkdir -p {}", victim.display()));
    for (target, seen) in [("/direct/x", "x"), ("/dots/y", "y"), ("/deep/link/z", "z")] {
        let output = bind(target);
        assert_eq!(output.status, 0, "{target}: {output:?}");
        assert_eq!(host.sh(&machine, &format!("grep -c ' {}/{seen} ' /proc/self/mountinfo", victim.display())), "1\n");
    }
    for target in ["/magic/x", "/leader/x", "/proc/self/fd/3/x", "/proc/self/cwd/x"] {
        assert_eq!(bind(target).status, 1, "{target}");
    }
    // CVE-2024-45310: no directory was made for it either.
    assert_eq!(fs::read_dir(&victim).expect("list").count(), 0);
    done(&host, &[&machine]);
    host.assert_nothing_left();
}

#[test]
fn copies_keep_what_belongs_to_files_both_ways() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let machine = sleeper(&host, "m", "true", "");
    let (source, back) = (host.path("source"), host.path("back"));
    make_source(&source);
    bus.ok("CopyToMachine", &["sss", &machine, text(&source), "/tmp/copy"]);
    assert_eq!(stat_in(&host, &machine, "/tmp/copy/file"), "1000 1001 640 981173106 2");
    assert_eq!(stat_in(&host, &machine, "/tmp/copy/sub/hard"), "1000 1001 640 981173106 2");
    assert!(stat_in(&host, &machine, "/tmp/copy/program").starts_with("0 0 4755 "));
    assert!(stat_in(&host, &machine, "/tmp/copy/sub/deep/foreign").starts_with("65534 65534 644 "));
    assert_eq!(
        host.sh(&machine, "readlink /tmp/copy/link; test -p /tmp/copy/fifo && cat /tmp/copy/file"),
        "/etc/passwd\nhello\n"
    );
    let shift: u32 = {
        let map = fs::read_to_string(format!("/proc/{}/uid_map", host.status(&machine, "leader"))).expect("map");
        map.split_whitespace().nth(1).expect("a shift").parse().expect("a number")
    };
    assert!(shift >= 0x10000);

    // What he keeps for himself is not for the machine's root.
    let private = host.path("private");
    fs::write(&private, "secret").expect("write");
    fs::set_permissions(&private, PermissionsExt::from_mode(0o600)).expect("chmod");
    std::os::unix::fs::chown(&private, Some(200_000), Some(200_000)).expect("chown");
    assert_eq!(bus.refused("CopyToMachine", &["sss", &machine, text(&private), "/tmp/private"]), "Access denied");
    assert_eq!(host.sh(&machine, "ls -A /tmp"), "copy\n");

    bus.ok("CopyFromMachine", &["sss", &machine, "/tmp/copy", text(&back)]);
    let file = fs::metadata(back.join("file")).expect("copied");
    assert_eq!(
        (file.uid(), file.gid(), file.mode() & 0o7777, file.mtime(), file.nlink()),
        (1000, 1001, 0o640, 981_173_106, 2)
    );
    assert_eq!(fs::metadata(back.join("sub/hard")).expect("copied").ino(), file.ino());
    assert_eq!(fs::read_link(back.join("link")).expect("a link"), Path::new("/etc/passwd"));
    let acl = "import os,struct,sys; print(struct.unpack_from('<HHi', os.getxattr(sys.argv[1], 'system.posix_acl_access'), 12))";
    assert_eq!(tool("python3", &["-c", acl, text(&back.join("acl"))]), "(2, 6, 33)\n");
    let in_machine = format!("/proc/{}/root/tmp/copy/acl", host.status(&machine, "leader"));
    assert_eq!(tool("python3", &["-c", acl, &in_machine]), format!("(2, 6, {})\n", shift + 33));
    let color = "import os,sys; print(os.getxattr(sys.argv[1], 'user.color').decode())";
    assert_eq!(tool("python3", &["-c", color, text(&back.join("sub"))]), "red\n");
    assert_eq!(fs::read_to_string(back.join("file")).expect("read"), "hello\n");
    done(&host, &[&machine]);
    host.assert_nothing_left();
}

#[test]
fn nothing_comes_out_of_a_machine_that_runs_with_rights() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let machine = sleeper(&host, "m", "true", "");
    host.sh(
        &machine,
        "mkdir /out; cp /bin/busybox /out/suid; chmod 6755 /out/suid; cp /bin/busybox /out/caps; chmod 2755 /out",
    );
    // cap_net_raw=ep of revision 2, which the kernel turns into one of the machine.
    let leader = host.status(&machine, "leader");
    let script = "import os; os.setxattr('/proc/' + os.environ['L'] + '/root/out/caps', 'security.capability', \
                  bytes.fromhex('0100000200200000000000000000000000000000'))";
    let status = Command::new("python3").args(["-c", script]).env("L", &leader).status().expect("python");
    assert!(status.success());
    let out = host.path("out");
    bus.ok("CopyFromMachine", &["sss", &machine, "/out", text(&out)]);
    let mode = |path: &Path| fs::metadata(path).expect("copied").mode() & 0o7777;
    assert_eq!((mode(&out), mode(&out.join("suid")), mode(&out.join("caps"))), (0o755, 0o755, 0o755));
    let list = "import os,sys; print(os.listxattr(sys.argv[1]))";
    assert_eq!(tool("python3", &["-c", list, text(&out.join("caps"))]), "[]\n");

    // Devices come neither out nor in, and a FIFO keeps nobody waiting.
    let error = bus.refused("CopyFromMachine", &["sss", &machine, "/dev/null", text(&host.path("null"))]);
    assert_eq!(error, "copying '/': it is a device: Operation not supported on transport endpoint");
    let error = bus.refused("CopyToMachine", &["sss", &machine, "/dev/null", "/tmp/null"]);
    assert_eq!(error, "copying '/': it is a device: Operation not supported on transport endpoint");
    host.sh(&machine, "mkfifo /fifo");
    bus.ok("CopyFromMachine", &["sss", &machine, "/fifo", text(&host.path("fifo"))]);
    done(&host, &[&machine]);
    host.assert_nothing_left();
}

#[test]
fn what_is_there_is_replaced_only_when_asked_for() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let machine = sleeper(&host, "m", "true", "");
    let (one, dir, back) = (host.path("one"), host.path("dir"), host.path("back"));
    fs::write(&one, "1").expect("write");
    fs::create_dir(&dir).expect("mkdir");
    fs::write(dir.join("a"), "new").expect("write");
    host.sh(&machine, "echo old > /tmp/one; mkdir -m 700 /tmp/dir; echo kept > /tmp/dir/b; echo old > /tmp/dir/a");
    let to = |source: &Path, target: &str, flags: &str| {
        bus.call("CopyToMachineWithFlags", &["ssst", &machine, text(source), target, flags])
    };
    let output = to(&one, "/tmp/one", "0");
    assert_eq!(output.stderr, "Call failed: '/tmp/one' exists already\n");
    assert_eq!(host.sh(&machine, "cat /tmp/one; ls -A /tmp"), "old\ndir\none\n");
    assert_eq!(to(&one, "/tmp/one", "1").status, 0);
    assert_eq!(host.sh(&machine, "cat /tmp/one"), "1");
    // A directory is filled and stays what it is; a file in it is as any other.
    assert_eq!(to(&dir, "/tmp/dir", "0").stderr, "Call failed: copying '/a': openat(create): File exists\n");
    assert_eq!(to(&dir, "/tmp/dir", "1").status, 0);
    assert_eq!(host.sh(&machine, "cat /tmp/dir/a /tmp/dir/b; stat -c %a /tmp/dir"), "newkept\n700\n");
    // No directory is replaced by a file, nor a file by a directory.
    assert_eq!(to(&one, "/tmp/dir", "1").stderr, "Call failed: '/tmp/dir' exists already\n");
    assert_eq!(to(&dir, "/tmp/one", "1").stderr, "Call failed: '/tmp/one' exists already\n");
    assert_eq!(to(&one, "/tmp/x", "2").stderr, "Call failed: Invalid flags 0x2.\n");
    assert_eq!(to(&one, "x", "0").stderr, "Call failed: Destination path must be absolute.\n");

    let from = |flags: &str| bus.call("CopyFromMachineWithFlags", &["ssst", &machine, "/tmp/one", text(&back), flags]);
    assert_eq!(from("0").status, 0);
    fs::write(&back, "other").expect("write");
    assert_eq!(from("0").stderr, format!("Call failed: '{}' exists already\n", back.display()));
    assert_eq!(fs::read_to_string(&back).expect("read"), "other");
    assert_eq!(from("1").status, 0);
    assert_eq!(fs::read_to_string(&back).expect("read"), "1");
    let client = bus.client();
    let refused = client.manager("CopyFromMachine", &(&machine, "/tmp/one", text(&back))).expect_err("there");
    assert_eq!(refused.0, "org.freedesktop.DBus.Error.FileExists");
    done(&host, &[&machine]);
    host.assert_nothing_left();
}

#[test]
fn cve_2013_6456_copies_follow_no_link_of_the_machine_to_the_host() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let (victim, source) = (host.path("victim"), host.path("source"));
    fs::create_dir(&victim).expect("mkdir");
    fs::write(victim.join("secret"), "of the host").expect("write");
    fs::write(&source, "data").expect("write");
    let machine = sleeper(&host, "m", "true", "");
    host.sh(&machine, &WAYS_OUT.replace("VICTIM", text(&victim)));
    for way in
        ["/direct", "/dots", "/deep/link", "/magic", "/leader", "/direct/..", "/proc/self/root", "/proc/self/cwd"]
    {
        let target = format!("{way}/planted");
        // Some of these are places of the machine, some are none.
        bus.call("CopyToMachineWithFlags", &["ssst", &machine, text(&source), &target, "1"]);
        let out = host.path("out");
        let secret = format!("{way}/secret");
        assert_eq!(bus.call("CopyFromMachine", &["sss", &machine, &secret, text(&out)]).status, 1, "{way}");
        assert!(!out.exists(), "{way}");
    }
    // A link at the end is copied and replaced as a link.
    host.sh(&machine, &format!("ln -s {}/secret /end", victim.display()));
    let out = host.path("end");
    bus.ok("CopyFromMachine", &["sss", &machine, "/end", text(&out)]);
    assert_eq!(fs::read_link(&out).expect("a link"), victim.join("secret"));
    bus.ok("CopyToMachineWithFlags", &["ssst", &machine, text(&source), "/end", "1"]);
    assert_eq!(host.sh(&machine, "test -L /end || cat /end"), "data");
    // `..` ends at the machine's root.
    bus.ok("CopyToMachine", &["sss", &machine, text(&source), "/../../../../../../up"]);
    assert_eq!(host.sh(&machine, "cat /up"), "data");
    let left: Vec<_> = fs::read_dir(&victim).expect("list").flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, ["secret"]);
    assert_eq!(fs::read_to_string(victim.join("secret")).expect("read"), "of the host");
    done(&host, &[&machine]);
    host.assert_nothing_left();
}

#[test]
fn a_machine_that_swaps_names_while_files_are_copied_gains_nothing() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let (victim, source) = (host.path("victim"), host.path("source"));
    fs::create_dir_all(source.join("d/e")).expect("mkdir");
    for number in 0..20 {
        fs::write(source.join(format!("d/e/{number}")), "data").expect("write");
    }
    fs::create_dir_all(victim.join("d/e")).expect("mkdir");
    fs::write(victim.join("f"), "secret").expect("write");
    let before = fs::metadata(&victim).expect("stat");
    let machine = sleeper(&host, "m", "true", "");
    // Directories and files become links to the host's, and back, as fast as the machine can.
    let swap = format!(
        "mkdir -p /t/real /s/dir; echo own > /s/dir/f; ln -s {0} /t/link; ln -s {0} /s/link; ln -s {0}/f /s/dir/g; \
         (while :; do mv -T /t/real /t/now; mv -T /t/now /t/real; mv -T /t/link /t/now; mv -T /t/now /t/link; \
         mv -T /s/dir /s/now; mv -T /s/now /s/dir; mv -T /s/link /s/now; mv -T /s/now /s/link; \
         rm -rf /t/now/* /t/real/*; done) >/dev/null 2>&1 </dev/null & ",
        victim.display()
    );
    host.sh(&machine, &format!("{swap} echo started"));
    let mut done_copies = 0;
    for round in 0..30 {
        let target = format!("/t/now/{round}");
        done_copies += usize::from(bus.call("CopyToMachine", &["sss", &machine, text(&source), &target]).status == 0);
        let out = host.path(&format!("out{round}"));
        done_copies += usize::from(bus.call("CopyFromMachine", &["sss", &machine, "/s/now", text(&out)]).status == 0);
        if fs::symlink_metadata(&out).is_ok_and(|m| m.is_dir()) {
            for entry in fs::read_dir(&out).expect("list").flatten() {
                let file = !entry.file_type().expect("type").is_symlink();
                assert!(!file || fs::read_to_string(entry.path()).is_ok_and(|t| t != "secret"), "{entry:?}");
            }
        }
    }
    assert!(done_copies > 0, "the race was never entered");
    let after = fs::metadata(&victim).expect("stat");
    assert_eq!(
        (before.uid(), before.mode(), before.mtime(), before.mtime_nsec()),
        (after.uid(), after.mode(), after.mtime(), after.mtime_nsec())
    );
    assert_eq!(fs::read_dir(victim.join("d/e")).expect("list").count(), 0);
    done(&host, &[&machine]);
    host.assert_nothing_left();
}

#[test]
fn a_copy_goes_on_without_its_client_and_too_many_are_refused() {
    const MOST: usize = 64;
    let host = Host::new();
    let bus = Bus::start(&host);
    let machine = sleeper(&host, "m", "true", "");
    let source = host.path("source");
    fs::create_dir(&source).expect("mkdir");
    for number in 0..300 {
        fs::write(source.join(number.to_string()), "data").expect("write");
    }
    // Held as soon as they are there, so that all of them are under way at once.
    let (daemon, held) = (bus.daemon(), std::sync::Mutex::new(std::collections::BTreeSet::new()));
    let over = AtomicBool::new(false);
    let hold = || {
        while !over.load(Ordering::Relaxed) {
            for pid in helpers(daemon) {
                if held.lock().expect("no panic").insert(pid) {
                    signal(pid, Signal::SIGSTOP);
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    std::thread::scope(|scope| {
        let holder = scope.spawn(hold);
        let mut clients = Vec::new();
        let mut number = 0;
        wait_for("copies that wait", Duration::from_secs(60), || {
            let living = helpers(daemon).len();
            for _ in living..MOST {
                number += 1;
                let target = format!("/tmp/{number}");
                let mut command = Command::new("busctl");
                command.arg(format!("--address={}", bus.address()));
                command.args(["call", "org.freedesktop.machine1", "/org/freedesktop/machine1"]);
                command.args([
                    "org.freedesktop.machine1.Manager",
                    "CopyToMachine",
                    "sss",
                    &machine,
                    text(&source),
                    &target,
                ]);
                clients.push(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run busctl"));
            }
            std::thread::sleep(Duration::from_millis(500));
            helpers(daemon).len() >= MOST
        });
        let client = bus.client();
        let refused = client.manager("CopyToMachine", &(&machine, text(&source), "/tmp/more")).expect_err("too many");
        assert_eq!(refused.0, "org.freedesktop.DBus.Error.LimitsExceeded");
        // What costs no operation is answered all the while.
        assert_eq!(bus.ok("GetMachineUIDShift", &["s", ".host"]), "u 0");
        for mut client in clients {
            // All of them vanish in the middle.
            client.kill().expect("kill");
            client.wait().expect("wait");
        }
        over.store(true, Ordering::Relaxed);
        holder.join().expect("no panic");
        for pid in held.lock().expect("no panic").iter() {
            signal(*pid, Signal::SIGCONT);
        }
        wait_for("the end of the copies", Duration::from_secs(60), || helpers(daemon).is_empty());
        let counts = host.sh(&machine, "for d in /tmp/*; do ls $d | wc -l; done | sort | uniq -c");
        let words: Vec<&str> = counts.split_whitespace().collect();
        assert_eq!(words.get(1), Some(&"300"), "{counts}");
        assert_eq!(words.len(), 2, "every copy is whole: {counts}");
        assert!(words[0].parse::<usize>().is_ok_and(|n| n >= MOST), "{counts}");
    });
    bus.ok("CopyToMachine", &["sss", &machine, text(&source), "/tmp/more"]);
    done(&host, &[&machine]);
    host.assert_nothing_left();
}

/// The processes that do something in machines for the daemon; not those that have yet to become one by `exec`.
fn helpers(daemon: u32) -> Vec<u32> {
    let words = |pid: u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{daemon}/task")).into_iter().flatten().flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    found.retain(|pid| words(*pid) != words(daemon));
    found
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"));
    // It may have ended.
    let _ = nix::sys::signal::kill(pid, signal);
}

#[test]
fn the_command_line_binds_and_copies_without_a_daemon() {
    let host = Host::new();
    let prepare = "register = \"no\"\n";
    let toml = "[root]\noverlay = { lower = [\"{busybox}\"], upper = \"ephemeral\" }\n\
                [boot]\ncommand = [\"/bin/sh\", \"-c\", \"while :; do sleep 1; done\"]\n";
    let mapped = host.define("a", &format!("{prepare}{toml}"));
    let plain = host.define("b", &format!("{prepare}{toml}[users]\nmode = \"host\"\n"));
    let source = host.path("source");
    make_source(&source);
    for machine in [&mapped, &plain] {
        host.ok(&["start", machine]);
        host.ok(&["bind", "--mkdir", machine, text(&source), "/bound"]);
        assert_eq!(stat_in(&host, machine, "/bound/file"), "1000 1001 640 981173106 2");
        host.ok(&["copy-to", machine, text(&source), "/tmp/copy"]);
        assert_eq!(stat_in(&host, machine, "/tmp/copy/file"), "1000 1001 640 981173106 2");
        let back = host.path(&format!("back-{machine}"));
        host.ok(&["copy-from", machine, "/tmp/copy/file", text(&back)]);
        let stat = fs::metadata(&back).expect("copied");
        assert_eq!((stat.uid(), stat.mode() & 0o7777), (1000, 0o640));
        let again = host.run(&["copy-from", machine, "/tmp/copy/file", text(&back)]);
        let error =
            format!("error: cannot copy from machine '{machine}'\n  cause: '{}' exists already\n", back.display());
        assert_eq!((again.status, again.stderr), (1, error));
        host.ok(&["copy-from", "--force", machine, "/tmp/copy/file", text(&back)]);
    }
    let relative = host.run(&["copy-to", &mapped, text(&source), "tmp/x"]);
    assert_eq!((relative.status, relative.stderr.as_str()), (2, "error: 'tmp/x' is no absolute path\n"));
    done(&host, &[&mapped, &plain]);
    let gone = host.run(&["copy-to", &mapped, text(&source)]);
    assert_eq!((gone.status, gone.stderr), (1, format!("error: machine '{mapped}' is not running\n")));
    host.assert_nothing_left();
}

#[test]
fn file_systems_without_id_maps_are_copied_by_way_of_memory() {
    let host = Host::new();
    let toml = "[root]\noverlay = { lower = [\"{busybox}\"], upper = \"ephemeral\" }\n\
                [boot]\ncommand = [\"/bin/sh\", \"-c\", \"while :; do sleep 1; done\"]\n";
    let machine = host.define("a", toml);
    host.ok(&["start", &machine]);
    let source = host.path("source");
    make_source(&source);
    // An overlay, in a mount namespace of the test's own.
    let script = "mount -t tmpfs none /mnt && mkdir /mnt/u /mnt/w /mnt/o && \
                  mount -t overlay none -o lowerdir=$1,upperdir=/mnt/u,workdir=/mnt/w /mnt/o && \
                  $2 --root $3 copy-to $4 /mnt/o/source /tmp/copy && $2 --root $3 copy-from $4 /tmp/copy /mnt/o/back && \
                  stat -c '%u %g %a %Y %h' /mnt/o/back/file && stat -c '%u %a' /mnt/o/back/program";
    let base = source.parent().expect("a parent");
    let args =
        ["-m", "sh", "-ec", script, "sh", text(base), env!("CARGO_BIN_EXE_machinist"), text(host.root()), &machine];
    let output = tool("unshare", &args);
    assert_eq!(output, "1000 1001 640 981173106 2\n0 755\n");
    assert_eq!(stat_in(&host, &machine, "/tmp/copy/file"), "1000 1001 640 981173106 2");
    assert_eq!(stat_in(&host, &machine, "/tmp/copy").split(' ').next(), Some("0"));
    done(&host, &[&machine]);
    host.assert_nothing_left();
}

#[test]
fn machines_of_systemd_nspawn_are_served_as_well() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let (tree, source, back) = (host.path("tree"), host.path("source"), host.path("back"));
    tool("cp", &["-a", text(&crate::support::tree("trixie-busybox")), text(&tree)]);
    make_source(&source);
    for users in [&["--private-users=pick", "--private-users-ownership=map"][..], &["--private-users=no"]] {
        let mut nspawn = running_nspawn(&host, &[&["-D", text(&tree)], users].concat());
        let children = format!("/proc/{0}/task/{0}/children", nspawn.id());
        let leader = fs::read_to_string(children).expect("children").trim().to_owned();
        bus.ok("RegisterMachine", &["sayssus", "spawned", "0", "systemd-nspawn", "container", &leader, ""]);
        assert!(bus.ok("GetMachineOSRelease", &["s", "spawned"]).contains("\"ID\" \"busybox\""));
        bus.ok("BindMountMachine", &["sssbb", "spawned", text(&source), "/bound/here", "yes", "yes"]);
        let within = |script: &str| {
            let all = ["--target", &leader, "--all", "--root", "--wd", "--", "/bin/sh", "-c", script];
            tool("nsenter", &all)
        };
        assert_eq!(
            within("stat -c '%u %g %a %Y %h' /bound/here/file; touch /bound/here/x 2>&1; stat -c %u /bound"),
            "1000 1001 640 981173106 2\ntouch: /bound/here/x: Read-only file system\n0\n"
        );
        bus.ok("CopyToMachine", &["sss", "spawned", text(&source), "/copied"]);
        assert_eq!(
            within("stat -c '%u %g %a %Y %h' /copied/file; rm -r /bound /copied 2>/dev/null; echo over"),
            "1000 1001 640 981173106 2\nover\n"
        );
        bus.ok("CopyFromMachineWithFlags", &["ssst", "spawned", "/etc/passwd", text(&back), "1"]);
        let stat = fs::metadata(&back).expect("copied");
        assert_eq!((stat.uid(), stat.gid()), (0, 0));
        drop(nspawn.stdin.take());
        nspawn.wait().expect("nspawn ends");
        host.wait_for("the end of the machine", || bus.call("GetMachine", &["s", "spawned"]).status != 0);
        assert!(source.join("sub/deep/foreign").exists());
    }
}

#[test]
fn a_systemd_machine_sees_a_bind_in_its_services_and_journalctl_its_root() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let toml = "register = \"yes\"\n[root]\noverlay = { lower = [\"{trixie-systemd}\"], upper = \"ephemeral\" }\n";
    let machine = host.define("s", toml);
    host.ok(&["start", &machine]);
    let source = host.path("source");
    make_source(&source);
    // A service with mounts of its own, begun before: what is mounted later reaches it.
    let run = "systemd-run --quiet --unit=watch -p PrivateTmp=yes sleep 1000; until pidof sleep; do :; done";
    let pid = host.sh(&machine, run).trim().to_owned();
    bus.ok("BindMountMachine", &["sssbb", &machine, text(&source), "/srv/bound", "no", "yes"]);
    let seen = host.sh(&machine, &format!("nsenter --target {pid} --mount cat /srv/bound/file"));
    assert_eq!(seen, "hello\n");
    host.sh(&machine, "umount /srv/bound");
    assert!(source.join("file").exists());

    let output = bus.machinectl(&["copy-to", &machine, text(&source), "/srv/copy"]);
    assert_eq!(output.status, 0, "{output:?}");
    assert_eq!(stat_in(&host, &machine, "/srv/copy/file"), "1000 1001 640 981173106 2");
    let output = bus.machinectl(&["bind", "--mkdir", "--read-only", &machine, text(&source), "/srv/other"]);
    assert_eq!(output.status, 0, "{output:?}");
    assert_eq!(host.sh(&machine, "cat /srv/other/file"), "hello\n");
    let back = host.path("back");
    let output = bus.machinectl(&["copy-from", &machine, "/srv/copy", text(&back)]);
    assert_eq!(output.status, 0, "{output:?}");
    assert_eq!(fs::read_to_string(back.join("file")).expect("copied"), "hello\n");

    // The root of the machine as it sees it, with what is mounted on it.
    let reply = bus.client().manager("OpenMachineRootDirectory", &(&machine,)).expect("opened");
    let root: zbus::wire::OwnedFd = reply.body().deserialize().expect("a descriptor");
    let inside = format!("/proc/self/fd/{}/run/systemd/system", std::os::fd::AsRawFd::as_raw_fd(&root));
    assert!(Path::new(&inside).is_dir() && !Path::new(&format!("{inside}/../../machinist")).exists());
    drop(root);
    done(&host, &[&machine]);
    host.assert_nothing_left();
}

#[test]
fn a_machine_that_keeps_us_waiting_is_left_alone() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let machine = sleeper(&host, "m", "true", "");
    let client = bus.client();
    let refused = std::thread::scope(|scope| {
        // It may be over before it could be stopped.
        (0..100).find_map(|_| {
            let call = scope.spawn(|| client.manager("GetMachineOSRelease", &(&machine,)));
            while !call.is_finished() {
                // Stopped is how a process looks that waits for a file system of the machine.
                let found = helpers(bus.daemon());
                found.iter().for_each(|pid| signal(*pid, Signal::SIGSTOP));
                std::thread::sleep(Duration::from_millis(if found.is_empty() { 0 } else { 100 }));
            }
            call.join().expect("no panic").err()
        })
    });
    let refused = refused.expect("one that was stopped in time");
    assert_eq!(refused.0, "org.freedesktop.DBus.Error.Timeout");
    assert_eq!(refused.1, "the machine did not answer in time");
    assert_eq!(helpers(bus.daemon()), Vec::<u32>::new());
    done(&host, &[&machine]);
    host.assert_nothing_left();
}

#[test]
fn virtual_machines_and_the_host_are_no_places_for_files() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let mut process = Command::new("sleep").arg("1000").spawn().expect("run sleep");
    let leader = process.id().to_string();
    bus.ok("RegisterMachine", &["sayssus", "virtual", "0", "test", "vm", &leader, ""]);
    let only = |what: &str| format!("{what} is only supported on container machines.");
    for name in ["virtual", ".host"] {
        let copy = [name, "/etc/passwd", "/tmp/x"];
        let bind = ["sssbb", copy[0], copy[1], copy[2], "no", "no"];
        assert_eq!(bus.refused("BindMountMachine", &bind), only("Bind mounting"));
        assert_eq!(bus.refused("CopyToMachine", &["sss", copy[0], copy[1], copy[2]]), only("Copying files"));
    }
    assert_eq!(bus.refused("GetMachineAddresses", &["s", "virtual"]), only("Requesting IP address data"));
    assert_eq!(bus.refused("GetMachineOSRelease", &["s", "virtual"]), only("Requesting OS release data"));
    assert_eq!(bus.refused("OpenMachineRootDirectory", &["s", "virtual"]), only("Opening the root directory"));
    let text = "UID/GID shift may only be determined for container machines.";
    assert_eq!(bus.refused("GetMachineUIDShift", &["s", "virtual"]), text);
    let refused = bus.client().manager("CopyToMachine", &("virtual", "/a", "/b")).expect_err("a virtual machine");
    assert_eq!(refused.0, "org.freedesktop.DBus.Error.NotSupported");
    let refused = bus.client().manager("GetMachineSSHInfo", &("virtual",)).expect_err("none");
    assert_eq!(refused.0, "org.freedesktop.DBus.Error.FileNotFound");
    process.kill().expect("kill");
    process.wait().expect("wait");
}
