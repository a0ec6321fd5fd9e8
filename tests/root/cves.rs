//! One regression test for each known way out of a machine, named after it.
//!
//! Each builds the hostile tree, or does the hostile act inside, that the root cause needs, and then looks at the
//! host: [`Canary`] directories outside of the tree, the program itself, kernel settings. Where root in the
//! machine matters, both modes are tried: with a user namespace and without.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::small_tree::{Canary, SmallTree};
use crate::support::{Host, Output, finish};

const MODES: [&str; 2] = ["auto", "host"];

/// A definition that runs `script` on the test's tree.
fn toml(mode: &str, script: &str, more: &str) -> String {
    format!(
        "[root]\ndirectory = \"{{root}}/tree\"\n[boot]\ncommand = [\"/bin/sh\", \"-c\", '''{script}''']\n[users]\nmode = \
         \"{mode}\"\n{more}"
    )
}

/// Starts a machine that waits.
fn started(host: &Host, mode: &str, more: &str) -> String {
    let machine = host.define("m", &toml(mode, "while :; do sleep 1000; done", more));
    host.ok(&["start", &machine]);
    machine
}

fn end(host: &Host, machine: &str) {
    host.ok(&["stop", machine]);
    host.assert_nothing_left();
}

/// Runs `machinist` and fails the test if it hangs.
fn timed(host: &Host, args: &[&str]) -> Output {
    let machinist = host.command();
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", "60"]).arg(machinist.get_program()).args(machinist.get_args()).args(args);
    let output = finish(command.env("NO_COLOR", "1").stdin(Stdio::null()));
    assert_ne!(output.status, 137, "{args:?} hung: {output:?}");
    output
}

/// Runs a script in the machine; whether it succeeded does not matter.
fn try_inside(host: &Host, machine: &str, script: &str) -> Output {
    timed(host, &["exec", machine, "/bin/sh", "-c", script])
}

/// Lets somebody swap `real` of the tree with a symlink to `outside`, as fast as they can, while `work` runs.
fn while_swapped(tree: &SmallTree, real: &str, outside: &Path, work: impl FnOnce()) {
    /// Ends the swapping when the work has ended, also when it has failed.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (a, b) = (tree.path(real), tree.path("swap"));
    symlink(outside, &b).expect("symlink");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let here = rustix::fs::CWD;
            while !over.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(here, &a, here, &b, rustix::fs::RenameFlags::EXCHANGE).expect("swap");
            }
        });
        let _over = Over(&over);
        work();
    });
}

/// Runs a command on a terminal of its own, as a user has one; gives what identifies that, and the lines shown.
fn on_terminal(command: &mut Command) -> (String, Vec<String>) {
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
    use std::io::Read;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).expect("a terminal");
    unlockpt(&master).expect("unlock");
    let tty = ioctl_tiocgptpeer(&master, flags).expect("its other side");
    let stat = rustix::fs::fstat(&tty).expect("stat");
    let copy = || Stdio::from(tty.try_clone().expect("dup"));
    let mut child = command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().expect("run machinist");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    drop(tty);
    let mut text = Vec::new();
    // Ends with an error when nobody has the other side any more.
    let _ = std::fs::File::from(master).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(child.wait().expect("wait").success(), "{text}");
    (format!("{}:{}", stat.st_dev, stat.st_ino), text.lines().map(|l| l.trim().to_owned()).collect())
}

fn bind(source: &str, target: &str) -> String {
    format!("[[bind]]\nsource = \"{{root}}/{source}\"\ntarget = \"{target}\"\n")
}

/// Root cause: root in a container opens `/proc/PID/exe` of the runtime's process inside and writes to the host's
/// program. Stopped by: no rights on it with a user namespace; without one we run from a read-only mount of it.
#[test]
fn cve_2019_5736_the_program_cannot_be_written_from_inside() {
    for mode in MODES {
        let host = Host::new();
        let tree = SmallTree::new(&host, "tree");
        tree.script("evil", "");
        tree.write("evil", "#!/proc/self/exe\n");
        // A copy, so that a failure costs only that.
        let program = host.path("machinist");
        std::fs::copy(env!("CARGO_BIN_EXE_machinist"), &program).expect("copy");
        let before = std::fs::read(&program).expect("read");
        let ours = |args: &[&str]| {
            let mut command = Command::new(&program);
            command.arg("--root").arg(host.root()).args(args).env("NO_COLOR", "1").env_remove("NOTIFY_SOCKET");
            finish(command.stdin(Stdio::null()))
        };
        let machine = host.define("m", &toml(mode, "while :; do sleep 1000; done", ""));
        assert_eq!(ours(&["start", &machine]).status, 0);
        // PID 1 is the stub: our program. That it runs must not be all that saves it ("Text file busy"), which a write
        // that truncates meets last.
        let script = "exec 2>&1; (: >/proc/1/exe); (exec 3</proc/1/exe && : >/proc/self/fd/3)";
        let output = ours(&["exec", &machine, "/bin/sh", "-c", script]).stdout;
        let wanted = if mode == "host" { "Read-only file system" } else { "Permission denied" };
        assert_eq!(output.lines().count(), 2, "{mode}: {output}");
        assert!(output.lines().all(|line| line.ends_with(wanted)), "{mode}: {output}");
        // A mount of its own does not help: this one cannot be made writable.
        if mode == "host" {
            let script =
                "touch /tmp/at; mount --bind /proc/1/exe /tmp/at && mount -o remount,bind,rw /tmp/at && : >>/tmp/at";
            assert_ne!(ours(&["exec", &machine, "/bin/sh", "-c", script]).status, 0);
        }
        // The program that is executed names whoever executes it as its interpreter: us.
        let trick = ours(&["exec", &machine, "/evil"]);
        assert_eq!((trick.status, trick.stdout.as_str()), (126, ""), "{trick:?}");
        assert_eq!(ours(&["stop", &machine]).status, 0);
        assert!(std::fs::read(&program).expect("read") == before, "the program was changed");
        host.assert_nothing_left();
    }
}

/// Root cause: a volume on `/proc` made the runtime write its labels into files of the image. Stopped by: `/proc`
/// is a procfs we made and attach by descriptor over whatever the tree has, and no mount may be asked for there.
#[test]
fn cve_2019_16884_a_false_proc_is_covered_and_never_written() {
    for mode in MODES {
        let host = Host::new();
        let tree = SmallTree::new(&host, "tree");
        for dir in ["proc/self/attr", "proc/1", "proc/sys/kernel"] {
            std::fs::create_dir_all(tree.path(dir)).expect("mkdir");
        }
        let files = ["proc/self/attr/exec", "proc/self/uid_map", "proc/1/status", "proc/sys/kernel/hostname"];
        for file in files {
            tree.write(file, "false\n");
        }
        let machine = started(&host, mode, "");
        let seen = host.sh(&machine, "stat -f -c %t /proc; cat /proc/1/status /proc/self/uid_map");
        assert!(seen.starts_with("9fa0\nName:") && !seen.contains("false"), "{mode}: {seen}");
        end(&host, &machine);
        for file in files {
            assert_eq!(std::fs::read_to_string(tree.path(file)).expect("read"), "false\n", "{mode}: {file}");
        }
    }
    let host = Host::new();
    SmallTree::new(&host, "tree");
    std::fs::create_dir_all(host.path("false")).expect("mkdir");
    for more in [bind("false", "/proc"), bind("false", "/proc/self"), "[[tmpfs]]\ntarget = \"/proc\"\n".into()] {
        let machine = host.define("m", &toml("auto", "true", &more));
        assert_eq!(host.run(&["run", &machine]).status, 78, "{more}");
    }
    host.assert_nothing_left();
}

/// Root cause: `/proc` as a symlink to a directory of the image, which races with the mounts. Stopped by: the
/// directories of the interface must be real ones, looked up without following any symlink.
#[test]
fn cve_2019_19921_a_proc_that_is_a_symlink_is_refused() {
    for mode in MODES {
        let host = Host::new();
        let tree = SmallTree::new(&host, "tree");
        std::fs::create_dir_all(tree.path("volume/proc/self")).expect("mkdir");
        tree.link("proc", "volume/proc");
        let machine = host.define("m", &toml(mode, "true", ""));
        let output = host.run(&["run", &machine]);
        let text = "  cause: '/proc' of the tree is a symlink to 'volume/proc', and must be a real directory\n";
        let text = format!("error: cannot start machine '{machine}'\n{text}");
        assert!(output.status == 1 && output.stderr.ends_with(&text), "{mode}: {output:?}");
        assert_eq!(std::fs::read_dir(tree.path("volume/proc")).expect("list").count(), 1);
        host.assert_nothing_left();
    }
}

/// Root cause: a mount's target was checked as a path and mounted on as a path, with a swap to a symlink between.
/// Stopped by: the target is opened once below the root's descriptor and mounted on by that descriptor.
#[test]
fn cve_2021_30465_a_target_that_is_swapped_mounts_nothing_outside() {
    let host = Host::new();
    let tree = SmallTree::new(&host, "tree");
    for dir in [tree.path("volume/target"), host.path("away/target"), host.path("source")] {
        std::fs::create_dir_all(dir).expect("mkdir");
    }
    // The mount follows its directory's name. One outside would not be in the machine's list at all.
    let script = "grep -c -E \" /(volume|swap)/target \" /proc/self/mountinfo";
    let machine = host.define("m", &toml("host", script, &bind("source", "/volume/target")));
    let refused = format!("error: cannot start machine '{machine}'\n  cause: cannot bind ");
    let mut mounted = 0;
    while_swapped(&tree, "volume", &host.path("away"), || {
        for _ in 0..25 {
            let output = host.run(&["run", &machine]);
            match output.status {
                0 => mounted += 1,
                _ => assert!(output.stdout.is_empty() && output.stderr.contains(&refused), "{output:?}"),
            }
        }
    });
    assert!(mounted > 0, "no run met the real directory");
    assert_eq!(std::fs::read_dir(host.path("away/target")).expect("list").count(), 0);
    host.assert_nothing_left();
}

/// Root cause: commands that join a container kept non-empty inheritable capabilities. Stopped by: all five sets
/// are set explicitly, for PID 1 and for every command that enters.
#[test]
fn cve_2022_29162_no_process_has_inheritable_capabilities() {
    for mode in MODES {
        let host = Host::new();
        SmallTree::new(&host, "tree");
        let machine = started(&host, mode, "");
        let field = |status: &str, key: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(key)).expect("the line").trim().to_owned();
            u64::from_str_radix(&line, 16).expect("a mask")
        };
        let root = host.sh(&machine, "cat /proc/self/status");
        let first = host.sh(&machine, "cat /proc/1/status");
        let user = host.ok(&["exec", "--user", "user", &machine, "/bin/cat", "/proc/self/status"]);
        for status in [&root, &first, &user] {
            assert_eq!((field(status, "CapInh:"), field(status, "CapAmb:")), (0, 0), "{mode}: {status}");
            assert_eq!(field(status, "CapBnd:"), field(&first, "CapBnd:"), "{mode}");
        }
        assert_eq!((field(&user, "CapPrm:"), field(&user, "CapEff:")), (0, 0), "{mode}: {user}");
        assert_eq!(field(&root, "CapEff:"), field(&root, "CapBnd:"), "{mode}");
        // SYS_MODULE, SYS_RAWIO, SYS_TIME, MAC_ADMIN, SYSLOG, BPF
        let dangerous = 1 << 16 | 1 << 17 | 1 << 25 | 1 << 33 | 1 << 34 | 1 << 39;
        assert_eq!(field(&root, "CapBnd:") & dangerous, 0, "{mode}");
        end(&host, &machine);
    }
}

/// Root cause: a descriptor of a host directory leaked, and a working directory of `/proc/self/fd/N` led through it
/// to the host. Stopped by: children close all they do not need, magic links are refused, and where we are is checked.
#[test]
fn cve_2024_21626_no_descriptor_and_no_directory_of_the_host_gets_in() {
    for mode in MODES {
        let host = Host::new();
        SmallTree::new(&host, "tree").link("fd", "/proc/self/fd");
        // Descriptors of the caller that nobody closed.
        let leaky = |args: &[&str]| {
            let machinist = host.command();
            let mut command = Command::new("sh");
            command.args(["-c", "exec 8</ 9</etc; exec \"$@\"", "sh"]).arg(machinist.get_program());
            finish(command.args(machinist.get_args()).args(args).env("NO_COLOR", "1").stdin(Stdio::null()))
        };
        let machine = host.define("list", &toml(mode, "ls -1 /proc/self/fd", ""));
        // 3 is the directory that `ls` reads.
        assert_eq!(leaky(&["run", &machine]).stdout, "0\n1\n2\n3\n", "{mode}");
        let machine = host.define("m", &toml(mode, "while :; do sleep 1000; done", ""));
        assert_eq!(leaky(&["start", &machine]).status, 0);
        assert_eq!(leaky(&["exec", &machine, "/bin/ls", "-1", "/proc/self/fd"]).stdout, "0\n1\n2\n3\n", "{mode}");
        for number in 3..24 {
            for dir in [format!("/proc/self/fd/{number}"), format!("/fd/{number}"), format!("/fd/{number}/../..")] {
                let output = leaky(&["exec", "--directory", &dir, &machine, "/bin/cat", "etc/os-release"]);
                assert_eq!((output.status, output.stdout.as_str()), (1, ""), "{mode}: {dir}: {output:?}");
            }
        }
        // Whoever looks at any process of the machine finds its own root.
        let script = "for p in /proc/[0-9]*; do (cd $p/cwd 2>/dev/null && cat ./etc/os-release; cd $p/root && cat etc/os-release); \
                      done 2>/dev/null | sort -u";
        let seen = host.sh(&machine, &script.replace(" | sort -u", ""));
        assert!(seen.lines().all(|line| line == "ID=small") && !seen.is_empty(), "{mode}: {seen}");
        end(&host, &machine);
    }
}

/// Root cause: `mkdir -p` for a mount's target followed a symlink that was swapped in, and made empty files and
/// directories on the host. Stopped by: each missing component is made by descriptor, never through a symlink.
#[test]
fn cve_2024_45310_making_a_target_makes_nothing_on_the_host() {
    let host = Host::new();
    let canary = Canary::new(&host, "outside");
    let tree = SmallTree::new(&host, "tree");
    std::fs::create_dir(tree.path("volume")).expect("mkdir");
    std::fs::create_dir(host.path("source")).expect("mkdir");
    std::fs::write(host.path("note"), "bound\n").expect("write");
    let more = bind("source", "/volume/a/b/c") + &bind("note", "/volume/a/file");
    let machine = host.define("m", &toml("host", "true", &more));
    // Standing still first, absolute and relative.
    for to in [
        canary.path().to_owned(),
        Path::new("../../../../../../../../../..").join(canary.path().strip_prefix("/").expect("absolute")),
    ] {
        tree.link("volume", to);
        assert_eq!(host.run(&["run", &machine]).status, 1);
        canary.assert_untouched();
    }
    tree.remove("volume");
    std::fs::create_dir(tree.path("volume")).expect("mkdir");
    while_swapped(&tree, "volume", canary.path(), || {
        for _ in 0..25 {
            host.run(&["run", &machine]);
            canary.assert_untouched();
        }
    });
    host.assert_nothing_left();
}

/// Root cause: masks were binds of the image's `/dev/null`, which the image had swapped for a symlink to a file it
/// wanted writable. Stopped by: a mask is a file of our own, copied by descriptor, and `/dev` a tmpfs we filled.
#[test]
fn cve_2025_31133_masks_come_from_no_file_of_the_tree() {
    for mode in MODES {
        let host = Host::new();
        let canary = Canary::new(&host, "outside");
        let tree = SmallTree::new(&host, "tree");
        tree.link("dev/null", canary.path().join("file"));
        let machine = started(&host, mode, "");
        assert_eq!(host.sh(&machine, "stat -c %t:%T /dev/null"), "1:3\n", "{mode}");
        let mut covered = 0;
        for file in ["kcore", "keys", "kallsyms", "sysrq-trigger", "timer_list"] {
            if !Path::new("/proc").join(file).exists() {
                continue;
            }
            covered += 1;
            let stat = host.sh(&machine, &format!("stat -c '%s %a %F' /proc/{file}"));
            assert_eq!(stat, "0 0 regular empty file\n", "{mode}: {file}");
            for script in [
                "echo x >/proc/FILE",
                "umount /proc/FILE",
                "umount -l /proc/FILE",
                "mount -o remount,bind,rw /proc/FILE && echo x >/proc/FILE",
            ] {
                let output = try_inside(&host, &machine, &script.replace("FILE", file));
                // Without a user namespace root owns its mounts; there this is no boundary, as the warning says.
                assert!(
                    output.status != 0 || (mode == "host" && !script.starts_with("echo")),
                    "{mode}: {script} {file}"
                );
            }
        }
        assert!(covered >= 3, "this host has too few of these files");
        end(&host, &machine);
        canary.assert_untouched();
    }
}

/// Root cause: `/dev/console` was bound from `/dev/pts/N` by path, which the image had swapped. Stopped by: it is
/// the descriptor of the terminal we made, copied, and attached in a `/dev` that is ours.
#[test]
fn cve_2025_52565_the_console_is_the_terminal_we_made() {
    for mode in MODES {
        let host = Host::new();
        let canary = Canary::new(&host, "outside");
        let tree = SmallTree::new(&host, "tree");
        std::fs::create_dir(tree.path("dev/pts")).expect("mkdir");
        for name in ["dev/console", "dev/pts/0", "dev/pts/ptmx", "dev/ptmx", "dev/tty"] {
            tree.link(name, canary.path().join("file"));
        }
        let machine = started(&host, mode, "");
        assert_eq!(
            host.sh(&machine, "stat -c '%F %t' /dev/console /dev/pts/0; stat -f -c %t /dev/pts"),
            "character special file 88\ncharacter special file 88\n1cd1\n",
            "{mode}"
        );
        host.sh(&machine, "echo said on the console >/dev/console");
        host.wait_for("the console", || host.ok(&["logs", &machine]).contains("said on the console"));
        end(&host, &machine);
        canary.assert_untouched();
    }
}

/// Root cause: what the runtime wrote to `/proc` (labels, kernel settings) was led to other files of procfs by mounts
/// and symlinks of the container. Stopped by: we write nothing through a path of the machine, and entering one
/// reads only regular files; `/proc/sys` and the dangerous files are read-only or masked.
#[test]
fn cve_2025_52881_a_machine_cannot_lead_our_writes_astray() {
    for mode in MODES {
        let host = Host::new();
        let canary = Canary::new(&host, "outside");
        SmallTree::new(&host, "tree");
        let machine = started(&host, mode, "");
        let settings = ["kernel/core_pattern", "kernel/sysrq", "kernel/hotplug", "vm/overcommit_memory", "fs/file-max"];
        let read = || settings.map(|name| std::fs::read_to_string(Path::new("/proc/sys").join(name)).ok());
        let before = read();
        assert!(before.iter().flatten().count() >= 3, "this host has too few settings");
        for name in settings {
            let script = format!("cat /proc/sys/{name} >/proc/sys/{name}");
            assert_ne!(try_inside(&host, &machine, &script).status, 0, "{mode}: {name}");
        }
        // Everything we could want of procfs now leads somewhere else.
        let outside = canary.path().display();
        let spoil = format!(
            "mount -t tmpfs none /proc && mkdir -p /proc/self/attr /proc/self/fd /proc/thread-self /proc/1 &&
             for f in attr/exec attr/current uid_map gid_map setgroups oom_score_adj status exe; do
                 ln -s {outside}/file /proc/self/$f; mkfifo /proc/1/${{f##*/}}; done; ln -s self/attr /proc/thread-self/attr; true"
        );
        let output = try_inside(&host, &machine, &spoil);
        assert_eq!(output.status, 0, "{mode}: {output:?}");
        for args in [&["/bin/echo", "in"][..], &["--user", "user", "/bin/echo", "in"], &["--tty", "/bin/echo", "in"]] {
            let (options, command) = args.split_at(args.len() - 2);
            let output = timed(&host, &[&["exec"], options, &[machine.as_str()], command].concat());
            assert_eq!((output.status, output.stdout.trim_end()), (0, "in"), "{mode}: {args:?}: {output:?}");
        }
        assert_eq!(read(), before, "{mode}");
        end(&host, &machine);
        canary.assert_untouched();
    }
}

/// Root cause: device nodes and mounts were made in the image's `/dev`, which was a symlink to the host. Stopped
/// by: every directory we mount on must be a real one, and nodes are made only in trees of ours, before they are
/// attached.
#[test]
fn cve_2026_41579_a_dev_that_leads_elsewhere_is_refused() {
    for mode in MODES {
        for name in ["dev", "run", "sys", "tmp"] {
            let host = Host::new();
            let canary = Canary::new(&host, "outside");
            let tree = SmallTree::new(&host, "tree");
            let relative =
                Path::new("../../../../../../../..").join(canary.path().strip_prefix("/").expect("absolute"));
            for to in [canary.path().to_owned(), relative, "root".into()] {
                tree.link(name, &to);
                let machine = host.define("m", &toml(mode, "true", ""));
                let output = host.run(&["run", &machine]);
                let text = format!(
                    "  cause: '/{name}' of the tree is a symlink to '{}', and must be a real directory\n",
                    to.display()
                );
                assert!(output.status == 1 && output.stderr.ends_with(&text), "{mode}: {output:?}");
                canary.assert_untouched();
                assert_eq!(std::fs::read_dir(tree.path("root")).expect("list").count(), 0);
            }
            host.assert_nothing_left();
        }
    }
}

/// Root cause: a program inside pushed keys into the caller's terminal (TIOCSTI). Stopped by: every command has a
/// session of its own, and a terminal of the machine's devpts or none.
#[test]
fn cve_2017_5226_no_program_inside_has_the_callers_terminal() {
    for mode in MODES {
        let host = Host::new();
        SmallTree::new(&host, "tree");
        let machine = started(&host, mode, "");
        let on_terminal = |args: &[&str]| on_terminal(host.command().args(args));
        let look = "for f in 0 1 2; do stat -L -c %F:%d:%i /proc/self/fd/$f; done; (: </dev/tty) 2>/dev/null && echo has one; \
                    read -r a b c d e session tty rest </proc/self/stat; echo $session $a";
        std::fs::write(host.path("tree/look"), format!("#!/bin/sh\n{look}\n")).expect("write");
        let (_, seen) = on_terminal(&["exec", &machine, "/bin/sh", "/look"]);
        let kinds: Vec<&str> = seen[..3].iter().map(|l| l.split(':').next().unwrap_or_default()).collect();
        assert_eq!(kinds, ["fifo", "fifo", "fifo"], "{mode}: {seen:?}");
        let ids: Vec<&str> = seen[3].split(' ').collect();
        assert!(seen.len() == 4 && ids[0] == ids[1], "{mode}: {seen:?}");

        let (ours, seen) = on_terminal(&["exec", "--tty", &machine, "/bin/sh", "/look"]);
        for line in &seen[..3] {
            let (kind, identity) = line.split_once(':').expect("a line");
            assert!(kind == "character special file" && identity != ours, "{mode}: {seen:?}");
        }
        let ids: Vec<&str> = seen[4].split(' ').collect();
        assert!(seen[3] == "has one" && ids[0] == ids[1], "{mode}: {seen:?}");
        end(&host, &machine);
    }
}

/// Root cause: a host's daemon reached files of a container by `/proc/PID/root/…` and followed its symlinks to the
/// host. Stopped by: entering goes into the namespaces first, reads only regular files below the machine's root, and
/// nothing else of ours opens a path of the machine.
#[test]
fn cve_2013_6456_what_the_machine_swaps_leads_no_verb_to_the_host() {
    for mode in MODES {
        let host = Host::new();
        let canary = Canary::new(&host, "outside");
        let accounts = host.path("accounts");
        std::fs::write(&accounts, "mallory:x:0:0::/:/bin/sh\n").expect("write");
        SmallTree::new(&host, "tree");
        let machine = started(&host, mode, "");
        let unknown = "error: no user 'mallory' in /etc/passwd\n";
        // With a user namespace nobody may follow that link.
        let magic = match mode {
            "host" => unknown,
            _ => "error: cannot enter the machine: openat2('/etc/passwd' in the tree): Permission denied\n",
        };
        for (spoil, status, text) in [
            (format!("ln -sf {} /etc/passwd", accounts.display()), 1, unknown),
            (format!("ln -sf ../../../../../../../..{} /etc/passwd", accounts.display()), 1, unknown),
            ("ln -sf /proc/1/root/../../etc/passwd /etc/passwd".into(), 1, magic),
            ("rm -f /etc/passwd; mkfifo /etc/passwd".into(), 1, unknown),
            ("rm -f /etc/passwd; mkdir /etc/passwd".into(), 1, unknown),
            ("rm -rf /etc/passwd; ln -s /dev/zero /etc/passwd".into(), 1, unknown),
        ] {
            assert_eq!(try_inside(&host, &machine, &spoil).status, 0, "{mode}: {spoil}");
            let output = timed(&host, &["exec", "--user", "mallory", &machine, "/bin/true"]);
            assert_eq!((output.status, output.stderr.as_str()), (status, text), "{mode}: {spoil}");
        }
        // A /dev of the machine's making: files that block, and links to the host.
        let outside = canary.path().display();
        let spoil = format!(
            "mount -t tmpfs none /dev && mkdir /dev/pts && for f in null ptmx console tty pts/ptmx; do mkfifo /dev/$f; done; \
             for i in 0 1 2; do ln -s {outside}/file /dev/pts/$i; done"
        );
        assert_eq!(try_inside(&host, &machine, &spoil).status, 0, "{mode}");
        for args in [&["exec", &machine, "/bin/true"][..], &["status", &machine], &["logs", &machine], &["list"]] {
            assert_eq!(timed(&host, args).status, 0, "{mode}: {args:?}");
        }
        let output = timed(&host, &["exec", "--tty", &machine, "/bin/true"]);
        assert_eq!(output.status, 1, "{mode}: {output:?}");
        // And one of links to the host's devices.
        let spoil = format!("rm -r /dev/ptmx /dev/pts; ln -s {outside}/file /dev/ptmx; ln -s {outside} /dev/pts");
        assert_eq!(try_inside(&host, &machine, &spoil).status, 0, "{mode}");
        let output = timed(&host, &["exec", "--tty", &machine, "/bin/true"]);
        assert_eq!(output.status, 1, "{mode}: {output:?}");
        end(&host, &machine);
        canary.assert_untouched();
    }
}
