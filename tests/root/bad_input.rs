//! Bad input: each is told precisely, fails with the right status and leaves nothing behind.

use std::os::unix::fs::symlink;
use std::process::Stdio;
use std::time::Duration;

use crate::small_tree::{Canary, SmallTree, run_after};
use crate::support::{Host, Output, finish};

const COMMAND: &str = "[boot]\ncommand = [\"/bin/echo\", \"it ran\"]\n";

fn failed(status: i32, stderr: impl Into<String>) -> (i32, String, String) {
    (status, String::new(), stderr.into())
}

fn parts(output: Output) -> (i32, String, String) {
    (output.status, output.stdout, output.stderr)
}

/// Both `run` and `start` must say exactly this, and nothing may be left.
fn assert_refused(host: &Host, machine: &str, status: i32, stderr: &str) {
    for verb in ["run", "start"] {
        assert_eq!(parts(host.run(&[verb, machine])), failed(status, stderr), "{verb}");
    }
    host.assert_nothing_left();
}

/// The text of a machine that could not be started.
fn not_started(machine: &str, rest: &str) -> String {
    format!("error: cannot start machine '{machine}'\n{rest}")
}

fn overlay(lower: &str, upper: &str) -> String {
    format!("[root]\noverlay = {{ lower = [\"{{root}}/{lower}\"], upper = \"{{root}}/{upper}\" }}\n{COMMAND}")
}

#[test]
fn a_missing_tree_is_refused() {
    let host = Host::new();
    let machine = host.define("none", &format!("[root]\ndirectory = \"{{root}}/none\"\n{COMMAND}"));
    let path = host.path("none");
    let path = path.display();
    assert_refused(
        &host,
        &machine,
        1,
        &not_started(
            &machine,
            &format!("  cause: cannot use the tree '{path}'\n  cause: open('{path}'): No such file or directory\n"),
        ),
    );
}

#[test]
fn a_tree_without_os_release_is_refused() {
    let host = Host::new();
    SmallTree::new(&host, "tree").remove("etc/os-release");
    let machine = host.define("anon", "[root]\ndirectory = \"{root}/tree\"\n");
    let text = "  cause: the tree has neither /etc/os-release nor /usr/lib/os-release, so it is no system's root\n  \
                hint: is the path right? To boot it nevertheless set `boot.check-os-release = false`\n";
    assert_refused(&host, &machine, 1, &not_started(&machine, text));
}

#[test]
fn a_tree_without_init_is_refused() {
    let host = Host::new();
    SmallTree::new(&host, "tree").remove("sbin/init");
    let machine = host.define("headless", "[root]\ndirectory = \"{root}/tree\"\n");
    let text = "  cause: the tree has no init (looked for /sbin/init, /usr/sbin/init, /usr/lib/systemd/systemd, \
                /lib/systemd/systemd, /init)\n  hint: install one in the tree, name it with `boot.init`, or set \
                `boot.command`\n";
    assert_refused(&host, &machine, 1, &not_started(&machine, text));
}

#[test]
fn a_tree_whose_interface_directories_lead_outside_is_refused() {
    for dir in ["proc", "sys", "dev", "run", "etc"] {
        let host = Host::new();
        let canary = Canary::new(&host, "outside");
        let tree = SmallTree::new(&host, "tree");
        tree.write("usr/lib/os-release", "ID=small\n");
        tree.link(dir, canary.path());
        let machine = host.define("link", &format!("[root]\ndirectory = \"{{root}}/tree\"\n{COMMAND}"));
        let what = if dir == "etc" { "which is not in it" } else { "and must be a real directory" };
        let to = canary.path().display();
        let text = format!("  cause: '/{dir}' of the tree is a symlink to '{to}', {what}\n");
        assert_refused(&host, &machine, 1, &not_started(&machine, &text));
        canary.assert_untouched();
    }
}

#[test]
fn an_upper_on_an_overlay_is_refused() {
    let host = Host::new();
    SmallTree::new(&host, "tree");
    let machine = host.define("stacked", &overlay("tree", "over/writes"));
    let at = host.path("over").display().to_string();
    let setup = format!(
        "mkdir {at} && mount -t tmpfs tmpfs {at} && mkdir {at}/l {at}/u {at}/w &&
         mount -t overlay overlay -o lowerdir={at}/l,upperdir={at}/u,workdir={at}/w {at} || exit 99"
    );
    let text = format!(
        "  cause: the place for writes '{at}/writes' is itself on overlayfs\n  hint: put it on ext4, xfs or btrfs, or \
         set `upper = \"ephemeral\"`\n"
    );
    assert_eq!(parts(run_after(&host, &setup, &["run", &machine])), failed(1, not_started(&machine, &text)));
    host.assert_nothing_left();
}

#[test]
fn an_upper_that_is_a_layer_is_refused_in_the_file() {
    let host = Host::new();
    SmallTree::new(&host, "tree");
    let machine = host.define("same", &overlay("tree", "tree"));
    let output = host.run(&["run", &machine]);
    assert_eq!(output.status, 78, "{output:?}");
    let first = output.stderr.lines().next();
    assert_eq!(first, Some("error: `root.overlay.upper`: a layer cannot be the upper directory or lie inside it"));
    host.assert_nothing_left();
}

#[test]
fn an_upper_that_is_a_layer_under_another_name_is_refused() {
    let host = Host::new();
    let tree = SmallTree::new(&host, "tree");
    symlink("tree", host.path("other")).expect("symlink");
    let root = host.root().display();
    let hint = "  hint: give `upper` a directory of its own outside of every layer\n";
    let same = |upper: &str| {
        format!(
            "  cause: the place for writes '{root}/{upper}' and the layer '{root}/tree' are the same directory\n{hint}"
        )
    };
    let machine = host.define("link", &overlay("tree", "other"));
    assert_refused(&host, &machine, 1, &not_started(&machine, &same("other")));

    let machine = host.define("bound", &overlay("tree", "bound"));
    let setup = format!("mkdir {root}/bound && mount --bind {root}/tree {root}/bound || exit 99");
    let output = run_after(&host, &setup, &["run", &machine]);
    assert_eq!(parts(output), failed(1, not_started(&machine, &same("bound"))));
    assert!(!tree.path("upper").exists() && !tree.path("work").exists());
    host.assert_nothing_left();
}

#[test]
fn an_upper_inside_a_layer_or_around_it_is_refused() {
    let host = Host::new();
    SmallTree::new(&host, "tree");
    symlink("tree/root", host.path("inside")).expect("symlink");
    std::fs::create_dir(host.path("around")).expect("mkdir");
    std::fs::rename(host.path("tree"), host.path("around/upper")).expect("rename");
    symlink("around/upper", host.path("tree")).expect("symlink");
    let root = host.root().display();
    for upper in ["inside", "around"] {
        let machine = host.define(upper, &overlay("tree", upper));
        let text = format!(
            "  cause: the place for writes '{root}/{upper}' and the layer '{root}/tree' lie one in the other\n  hint: give \
             `upper` a directory of its own outside of every layer\n"
        );
        assert_refused(&host, &machine, 1, &not_started(&machine, &text));
    }
}

fn sleeping(more: &str) -> String {
    format!(
        "[root]\noverlay = {{ lower = [\"{{root}}/tree\"], upper = \"{{root}}/writes\" }}\n[boot]\ncommand = \
         [\"/bin/sleep\", \"1000\"]\n{more}"
    )
}

#[test]
fn an_upper_of_a_running_machine_is_refused() {
    let host = Host::new();
    SmallTree::new(&host, "tree");
    let (first, second) = (host.define("first", &sleeping("")), host.define("second", &sleeping("")));
    host.ok(&["start", &first]);
    let at = host.path("writes");
    let text = format!("  cause: the place for writes '{}' is in use by another machine\n", at.display());
    for verb in ["run", "start"] {
        assert_eq!(parts(host.run(&[verb, &second])), failed(1, not_started(&second, &text)));
    }
    host.ok(&["stop", &first]);
    host.assert_nothing_left();
}

#[test]
fn a_machine_runs_once() {
    let host = Host::new();
    SmallTree::new(&host, "tree");
    let machine = host.define("once", &sleeping(""));
    host.ok(&["start", &machine]);
    let text = format!(
        "  cause: machine '{machine}' is already running\n  hint: `machinist console {machine}` shows it, `machinist stop \
         {machine}` ends it\n"
    );
    for verb in ["run", "start"] {
        assert_eq!(parts(host.run(&[verb, &machine])), failed(1, not_started(&machine, &text)));
    }
    assert_eq!(host.sh(&machine, "echo still there"), "still there\n");
    host.ok(&["stop", &machine]);
    host.assert_nothing_left();
}

#[test]
fn what_is_no_name_is_refused_by_every_verb() {
    let host = Host::new();
    let long = "a".repeat(65);
    let chars = "may hold only letters, digits, `-`, `_` and `.`";
    let empty = "has an empty part or a part that begins or ends with `-`";
    let names = [("..", empty), ("a..b", empty), ("a b", chars), ("", "is empty"), (&long, "is longer than 64 bytes")];
    for (name, why) in names {
        for verb in ["run", "start", "stop", "reboot", "kill", "freeze", "thaw", "reap", "status", "console", "logs"] {
            let text = format!("error: machine name '{name}' {why}\n");
            assert_eq!(parts(host.run(&[verb, name])), failed(2, text), "{verb}");
        }
        let text = format!("error: machine name '{name}' {why}\n");
        assert_eq!(parts(host.run(&["exec", name, "true"])), failed(2, text));
    }
    for name in ["a/b", "../../etc/x"] {
        // Where a file may be named, a slash means one.
        let text = format!("error: cannot open '{name}': No such file or directory\n");
        assert_eq!(parts(host.run(&["run", name])), failed(78, text));
        let text = format!("error: machine name '{name}' {chars}\n");
        assert_eq!(parts(host.run(&["stop", name])), failed(2, text));
    }
    host.assert_nothing_left();
}

#[test]
fn a_huge_file_is_refused() {
    let host = Host::new();
    let machine = host.define("huge", &"#".repeat(10 << 20));
    let path = host.path(&format!("etc/machinist/machines/{machine}.toml"));
    let text = format!(
        "error: cannot use '{}' as a machine file: it has 10485760 bytes; a machine file has at most 1048576\n",
        path.display()
    );
    assert_refused(&host, &machine, 78, &text);
}

#[test]
fn profiles_that_extend_each_other_are_refused() {
    let host = Host::new();
    let profiles = host.path("etc/machinist/profiles");
    std::fs::create_dir_all(&profiles).expect("mkdir");
    std::fs::write(profiles.join("a.toml"), "extends = [\"b\"]\n").expect("write");
    std::fs::write(profiles.join("b.toml"), "extends = [\"a\"]\n").expect("write");
    let machine = host.define("circle", "extends = [\"a\"]\n[root]\ndirectory = \"{root}/tree\"\n");
    let text = format!(
        "error: `extends`: profiles extend each other in a cycle: a → b → a\n --> {}/b.toml:1:12\n  |\n\
         1 | extends = [\"a\"]\n  |            ^^^\n",
        profiles.display()
    );
    assert_refused(&host, &machine, 78, &text);
}

#[test]
fn a_missing_source_of_a_bind_is_refused_unless_it_is_optional() {
    let host = Host::new();
    SmallTree::new(&host, "tree");
    let bind = |optional: &str| {
        format!(
            "[root]\noverlay = {{ lower = [\"{{root}}/tree\"], upper = \"ephemeral\" }}\n{COMMAND}[[bind]]\nsource = \
             \"{{root}}/missing\"\ntarget = \"/mnt\"\n{optional}"
        )
    };
    let machine = host.define("bind", &bind(""));
    let path = host.path("missing");
    let path = path.display();
    let text = format!(
        "  cause: cannot bind '{path}' to '/mnt'\n  cause: open_tree('{path}'): No such file or directory\n  hint: \
         `optional = true` starts the machine without what is missing\n"
    );
    assert_refused(&host, &machine, 1, &not_started(&machine, &text));
    let machine = host.define("bind", &bind("optional = true\n"));
    assert_eq!(parts(host.run(&["run", &machine])), (0, "it ran\n".into(), String::new()));
    host.assert_nothing_left();
}

#[test]
fn a_bind_target_that_leads_out_of_the_tree_is_refused() {
    for target in ["/mnt", "/mnt/below"] {
        let host = Host::new();
        let canary = Canary::new(&host, "outside");
        let tree = SmallTree::new(&host, "tree");
        tree.link("mnt", canary.path());
        std::fs::create_dir(host.path("source")).expect("mkdir");
        let machine = host.define(
            "bind",
            &format!(
                "[root]\ndirectory = \"{{root}}/tree\"\n{COMMAND}[[bind]]\nsource = \"{{root}}/source\"\ntarget = \
                 \"{target}\"\n"
            ),
        );
        let text = format!(
            "  cause: cannot bind '{}' to '{target}'\n  cause: mounting on '/mnt', which in the tree is a symlink to '{}': \
             Too many symbolic links encountered\n  hint: give the real path as `target`\n",
            host.path("source").display(),
            canary.path().display()
        );
        assert_refused(&host, &machine, 1, &not_started(&machine, &text));
        canary.assert_untouched();
    }
}

const RANGE: &str = "[users]\nmode = { shift = 1000013824, size = 65536 }\n";

#[test]
fn an_id_range_of_a_running_machine_is_refused() {
    let host = Host::new();
    SmallTree::new(&host, "tree");
    let first = host.define("first", &sleeping(RANGE));
    let second = host.define("second", &sleeping(RANGE).replace("writes", "writes2"));
    host.ok(&["start", &first]);
    let text = format!(
        "  cause: id range 1000013824..1000079360 is in use by another machine (process {}, machinist)\n",
        host.status(&first, "supervisor")
    );
    for verb in ["run", "start"] {
        assert_eq!(parts(host.run(&[verb, &second])), failed(1, not_started(&second, &text)));
    }
    host.ok(&["stop", &first]);
    host.assert_nothing_left();
}

#[test]
fn an_id_range_that_another_program_has_locked_is_refused() {
    let host = Host::new();
    SmallTree::new(&host, "tree");
    let machine = host.define("late", &sleeping(RANGE));
    let locks = host.path("run/systemd/nspawn-uid");
    std::fs::create_dir_all(&locks).expect("mkdir");
    let path = locks.join("1000013824");
    let file = std::fs::File::create(&path).expect("create");
    let whole = libc::flock {
        l_type: i16::try_from(libc::F_WRLCK).expect("small"),
        l_whence: i16::try_from(libc::SEEK_SET).expect("small"),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_SETLK(&whole)).expect("lock");
    let us = std::process::id();
    let name = std::fs::read_to_string(format!("/proc/{us}/comm")).expect("our name");
    let text = format!(
        "  cause: id range 1000013824..1000079360 is in use by another machine (process {us}, {})\n",
        name.trim_end()
    );
    assert_eq!(parts(host.run(&["run", &machine])), failed(1, not_started(&machine, &text)));
    assert!(path.exists(), "the lock of another program was removed");
    std::fs::remove_file(&path).expect("remove");
    host.assert_nothing_left();
}

#[test]
fn a_host_without_cgroup2_is_refused() {
    let host = Host::new();
    SmallTree::new(&host, "tree");
    let machine = host.define("groups", &sleeping(""));
    let setup = "for at in $(grep ' - cgroup2 ' /proc/self/mountinfo | cut -d' ' -f5); do umount $at || exit 99; done";
    let text = format!(
        "error: cannot plan machine '{machine}'\n  cause: cgroup2 is not mounted on this host\n  hint: mount it: `mount -t \
         cgroup2 cgroup2 /sys/fs/cgroup`; beside version 1, on a directory of its own\n"
    );
    for verb in ["run", "start"] {
        assert_eq!(parts(run_after(&host, setup, &[verb, &machine])), failed(1, text.clone()));
    }
    host.assert_nothing_left();
}

#[test]
fn who_is_not_root_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let host = Host::new();
    SmallTree::new(&host, "tree");
    let machine = host.define("mine", &sleeping(""));
    // Where the build is others may not be able to go.
    let program = host.path("machinist");
    std::fs::copy(env!("CARGO_BIN_EXE_machinist"), &program).expect("copy");
    std::fs::set_permissions(host.root(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    for verb in ["run", "start"] {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).arg("--root").arg(host.root());
        let output = finish(command.args([verb, &machine]).env("NO_COLOR", "1").stdin(Stdio::null()));
        assert_eq!(parts(output), failed(77, not_started(&machine, "  cause: only root may start machines\n")));
    }
    host.assert_nothing_left();
}

#[test]
fn a_full_disk_for_the_upper_is_told() {
    let host = Host::new();
    SmallTree::new(&host, "tree");
    let at = host.path("disk").display().to_string();
    let machine = host.define("full", &overlay("tree", "disk/writes"));
    let setup = format!("mkdir {at}; mount -t tmpfs -o nr_inodes=2 tmpfs {at} && touch {at}/file || exit 99");
    let text = format!(
        "  cause: cannot make the place for writes '{at}/writes'\n  cause: mkdir('{at}/writes'): No space left on device\n"
    );
    assert_eq!(parts(run_after(&host, &setup, &["run", &machine])), failed(1, not_started(&machine, &text)));
    // Overlay would quietly be read-only.
    let setup = format!(
        "mount -t tmpfs -o nr_inodes=4 tmpfs {at} && mkdir {at}/writes {at}/writes/upper {at}/writes/work || exit 99"
    );
    let text = format!(
        "  cause: the overlay cannot write to '{at}/writes'\n  hint: is its file system full, or mounted read-only?\n"
    );
    assert_eq!(parts(run_after(&host, &setup, &["run", &machine])), failed(1, not_started(&machine, &text)));
    // Full of data, it is the payload that hears of it.
    let echo = overlay("tree", "disk/writes").replace(
        "[\"/bin/echo\", \"it ran\"]",
        "[\"/bin/sh\", \"-c\", \"dd if=/dev/zero of=/file bs=1k count=100 2>/dev/null || exit 9\"]",
    );
    let machine = host.define("full", &echo);
    let setup = format!("mount -t tmpfs -o size=64k tmpfs {at} || exit 99");
    let output = run_after(&host, &setup, &["run", &machine]);
    assert_eq!(parts(output), (9, String::new(), String::new()));
    host.assert_nothing_left();
}

#[test]
fn the_status_of_an_init_that_exits_at_once_is_told() {
    let host = Host::new();
    let tree = SmallTree::new(&host, "tree");
    tree.script("sbin/brief", "echo that was it; exit 3");
    let toml = "[root]\ndirectory = \"{root}/tree\"\n[boot]\ninit = \"/sbin/brief\"\nready = \"notify\"\n";
    let machine = host.define("brief", toml);
    assert_eq!(parts(host.run(&["run", &machine])), (3, "that was it\n".into(), String::new()));
    let text = not_started(
        &machine,
        &format!(
            "  cause: it ended with status 3 before it was ready\n  hint: `machinist logs {machine}` shows what it said\n"
        ),
    );
    assert_eq!(parts(host.run(&["start", &machine])), failed(1, text));
    let log = host.ok(&["logs", &machine]);
    assert!(log.ends_with("that was it\r\n"), "{log:?}");
    host.assert_nothing_left();
}

#[test]
fn an_init_that_cannot_be_executed_is_told() {
    let host = Host::new();
    let tree = SmallTree::new(&host, "tree");
    tree.script("sbin/broken", "");
    tree.write("sbin/broken", "#!/bin/nothing\n");
    let define =
        |boot: &str| host.define("broken", &format!("[root]\ndirectory = \"{{root}}/tree\"\n[boot]\n{boot}\n"));
    for (boot, text) in [
        (
            "init = \"/sbin/broken\"",
            "  cause: cannot execute the machine's init\n  cause: execve('/sbin/broken'): No such file or directory\n",
        ),
        ("init = \"/sbin/none\"", "  cause: the tree has no program '/sbin/none', which `boot.init` names\n"),
        (
            "command = [\"/bin/none\"]",
            "  cause: cannot execute `boot.command`\n  cause: execve('/bin/none'): No such file or directory\n",
        ),
        (
            "command = [\"/etc/passwd\"]",
            "  cause: cannot execute `boot.command`\n  cause: execve('/etc/passwd'): Permission denied\n",
        ),
    ] {
        let machine = define(boot);
        assert_refused(&host, &machine, 1, &not_started(&machine, text));
    }
}

#[test]
fn an_init_that_ignores_its_stop_signal_is_killed_in_time() {
    let host = Host::new();
    let tree = SmallTree::new(&host, "tree");
    tree.script("sbin/deaf", "trap 'echo heard it' TERM; echo up; while :; do sleep 0.1; done");
    let machine = host
        .define("deaf", "[root]\ndirectory = \"{root}/tree\"\n[boot]\ninit = \"/sbin/deaf\"\nstop-timeout = \"1s\"\n");
    host.ok(&["start", &machine]);
    host.wait_for("the init", || host.run(&["logs", &machine]).stdout.contains("up\r\n"));
    let text =
        format!("warning: machine '{machine}' did not stop in time and was killed\nMachine '{machine}' has ended.\n");
    assert_eq!(parts(host.run(&["stop", &machine])), (0, String::new(), text));
    assert!(host.ok(&["logs", &machine]).contains("heard it\r\n"));
    host.assert_nothing_left();
}

#[test]
fn a_command_is_stopped_by_its_signal_and_not_killed() {
    let host = Host::new();
    SmallTree::new(&host, "tree");
    let machine = host.define("polite", &sleeping("stop-timeout = \"infinity\"\n"));
    host.ok(&["start", &machine]);
    let text = format!("Machine '{machine}' has ended.\n");
    assert_eq!(parts(host.run(&["stop", &machine])), (0, String::new(), text));
    host.assert_nothing_left();
}

#[test]
fn standard_streams_that_are_closed_do_no_harm() {
    let host = Host::new();
    SmallTree::new(&host, "tree");
    let machine = host.define(
        "closed",
        &sleeping("").replace("[\"/bin/sleep\", \"1000\"]", "[\"/bin/sh\", \"-c\", \"echo out; ls -1 /proc/self/fd\"]"),
    );
    let closed = |redirect: &str| {
        let machinist = host.command();
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &format!("exec \"$@\" {redirect}"), "sh"]).arg(machinist.get_program());
        finish(command.args(machinist.get_args()).args(["run", &machine]))
    };
    // 3 is the directory that `ls` reads.
    assert_eq!(parts(closed("<&-")), (0, "out\n0\n1\n2\n3\n".into(), String::new()));
    assert_eq!(closed("<&- >&- 2>&-").status, 0);
    host.assert_nothing_left();
}

#[test]
fn a_run_that_is_terminated_at_any_moment_can_be_cleared_away() {
    let host = Host::new();
    SmallTree::new(&host, "tree");
    let machine = host.define("hasty", &sleeping(""));
    for round in 0..12 {
        let mut child = host.command().args(["run", &machine]).stdin(Stdio::null()).spawn().expect("run");
        // Not a wait for anything: each round ends at another moment of the start.
        std::thread::sleep(Duration::from_millis(round * 4));
        let pid = nix::unistd::Pid::from_raw(child.id().try_into().expect("a pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("kill");
        child.wait().expect("wait");
        // Its children follow it a moment later.
        host.wait_for("the end of it", || host.run(&["reap", &machine]).status == 0);
        host.assert_nothing_left();
    }
}

#[test]
fn a_start_that_is_terminated_leaves_a_machine_that_can_be_stopped() {
    let host = Host::new();
    SmallTree::new(&host, "tree").script("sbin/slow", "trap 'exit 0' TERM; while :; do sleep 0.1; done");
    let machine =
        host.define("slow", "[root]\ndirectory = \"{root}/tree\"\n[boot]\ninit = \"/sbin/slow\"\nready = \"notify\"\n");
    let mut child = host.command().args(["start", &machine]).stdin(Stdio::null()).spawn().expect("start");
    host.wait_for("the machine", || host.run(&["list", "--json"]).stdout.contains("\"starting\""));
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("kill");
    assert!(!child.wait().expect("wait").success());
    assert_eq!(host.status(&machine, "state"), "starting");
    host.ok(&["stop", &machine]);
    host.assert_nothing_left();
}

#[test]
fn a_machine_that_is_not_there_is_told_by_every_verb() {
    let host = Host::new();
    for verb in ["stop", "reboot", "kill", "freeze", "thaw", "console", "shell"] {
        assert_eq!(parts(host.run(&[verb, "none"])), failed(1, "error: machine 'none' is not running\n"), "{verb}");
    }
    assert_eq!(parts(host.run(&["exec", "none", "true"])), failed(1, "error: machine 'none' is not running\n"));
    assert_eq!(
        parts(host.run(&["status", "none"])),
        failed(
            1,
            "error: machine 'none' is neither running nor defined\n  hint: `machinist list --all` shows what there is\n"
        )
    );
    assert_eq!(
        parts(host.run(&["logs", "none"])),
        failed(
            1,
            "error: there is no console log of machine 'none'\n  hint: `machinist list --all` shows which machines \
             there are\n"
        )
    );
    let root = host.root().display();
    let text = format!(
        "error: there is no machine 'none'\n |\n = note: looked for '{root}/etc/machinist/machines/none.toml'\n = note: \
         looked for '{root}/run/machinist/config/machines/none.toml'\n = note: looked for \
         '{root}/usr/lib/machinist/machines/none.toml'\n"
    );
    assert_refused(&host, "none", 78, &text);
}

#[test]
fn what_exec_cannot_run_is_told_as_shells_do() {
    let host = Host::new();
    SmallTree::new(&host, "tree");
    let machine = host.define("cmd", &sleeping(""));
    host.ok(&["start", &machine]);
    let denied = "error: cannot execute the command: execve('/etc/passwd'): Permission denied\n";
    let number = "error: no user 77 in /etc/passwd, so its group must be given, as in '77:77'\n";
    for (args, status, text) in [
        (&["/none"][..], 127, "error: no program '/none' in the machine\n"),
        (&["none"], 127, "error: no program 'none' in the machine\n"),
        (&["/etc/passwd"], 126, denied),
        (&["/etc"], 126, "error: cannot execute the command: execve('/etc'): Permission denied\n"),
        (&["--user", "nobody", "true"], 1, "error: no user 'nobody' in /etc/passwd\n"),
        (&["--user", "77", "true"], 1, number),
        (
            &["--directory", "/none", "true"],
            1,
            "error: cannot use the working directory: openat2('/none' in the tree): No such file or directory\n",
        ),
    ] {
        let (options, program) = args.split_at(args.len() - 1);
        let args = [&["exec"], options, &[&machine], program].concat();
        assert_eq!(parts(host.run(&args)), failed(status, text), "{args:?}");
    }
    host.ok(&["stop", &machine]);
    host.assert_nothing_left();
}
