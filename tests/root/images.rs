//! The image store on real file systems, beside the real systemd-nspawn.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::{Host, finish, tree};

/// Copies the busybox tree into the store.
fn image(host: &Host, name: &str) {
    let store = host.path("var/lib/machines");
    std::fs::create_dir_all(&store).expect("mkdir");
    let copied = Command::new("cp").arg("-a").arg(tree("trixie-busybox")).arg(store.join(name)).status();
    assert!(copied.expect("cp").success());
}

/// The real systemd-nspawn, whose `/run` is the one of `host`, in a mount namespace of its own.
fn nspawn(host: &Host, args: &[&str]) -> Command {
    let run = host.path("run");
    std::fs::create_dir_all(&run).expect("mkdir");
    let script = "mount --bind \"$0\" /run && exec systemd-nspawn --register=no --keep-unit --quiet \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(run).args(args);
    command.stdin(Stdio::null());
    command
}

/// A machine of systemd-nspawn's that runs until its standard input ends.
pub(crate) fn running_nspawn(host: &Host, args: &[&str]) -> Child {
    let mut command = nspawn(host, args);
    command.args(["--pipe", "/bin/busybox", "sh", "-c", "echo running; cat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("nspawn");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    assert_eq!(line, "running\n", "systemd-nspawn did not start");
    child
}

fn end(mut child: Child) {
    drop(child.stdin.take());
    child.wait().expect("wait");
}

/// Every lock file of an image's tree and of the host.
fn locks(host: &Host) -> Vec<String> {
    let names = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let beside = names(&host.path("var/lib/machines")).into_iter().filter(|name| name.starts_with(".#"));
    let mut all: Vec<_> = beside.chain(names(&host.path("run/systemd/nspawn/locks"))).collect();
    all.sort();
    all
}

/// Kills a machine and waits until its supervisor has given everything back.
fn kill(host: &Host, machine: &str) {
    host.ok(&["kill", machine]);
    let run = host.path("run/machinist/machines").join(machine);
    host.wait_for("the end of the supervisor", || !run.exists());
}

const SLEEP: &str = "[boot]\ncommand = [\"/bin/sleep\", \"1000\"]\n";

#[test]
fn systemd_nspawn_does_not_run_what_we_run() {
    let host = Host::new();
    image(&host, "web");
    let web = host.path("var/lib/machines/web");
    let machine = host.define("m", &format!("[root]\ndirectory = \"{}\"\n{SLEEP}", web.display()));
    host.ok(&["start", &machine]);
    assert_eq!(locks(&host).len(), 2);
    let tree = web.display().to_string();
    let busy = format!("Directory tree {tree} is currently busy.\n");
    for read_only in [&[][..], &["--read-only"]] {
        let output = finish(&mut nspawn(&host, &[&["-D", &tree], read_only, &["/bin/busybox", "true"]].concat()));
        assert_eq!((output.status, output.stderr.as_str()), (1, busy.as_str()));
    }
    // By another path, where the lock beside the tree is another one.
    let elsewhere = host.path("elsewhere");
    std::fs::create_dir(&elsewhere).expect("mkdir");
    let script = "mount --bind \"$1\" \"$2\" && mount --bind \"$0\" /run && exec systemd-nspawn --register=no --keep-unit \
                  --quiet -D \"$2\" /bin/busybox true";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(host.path("run"));
    let output = finish(command.args([&web, &elsewhere]).stdin(Stdio::null()));
    let busy = format!("Directory tree {} is currently busy.\n", elsewhere.display());
    assert_eq!((output.status, output.stderr.as_str()), (1, busy.as_str()));

    host.ok(&["reboot", &machine]);
    assert_eq!(locks(&host).len(), 2, "held through a reboot");
    kill(&host, &machine);
    assert_eq!(locks(&host), Vec::<String>::new());
    let output = finish(&mut nspawn(&host, &["-D", &tree, "/bin/busybox", "true"]));
    assert_eq!(output.status, 0, "{output:?}");
    host.assert_nothing_left();
}

#[test]
fn what_we_only_read_systemd_nspawn_may_read_too() {
    let host = Host::new();
    image(&host, "base");
    let layered = host.define("l", &format!("[root.overlay]\nlower = [\"base\"]\nupper = \"ephemeral\"\n{SLEEP}"));
    let tree = host.path("var/lib/machines/base").display().to_string();
    let read_only = host.define("r", &format!("[root]\ndirectory = \"{tree}\"\nread-only = true\n{SLEEP}"));
    host.ok(&["start", &layered, &read_only]);
    assert_eq!(locks(&host).len(), 2);
    let output = finish(&mut nspawn(&host, &["--read-only", "-D", &tree, "/bin/busybox", "true"]));
    assert_eq!(output.status, 0, "{output:?}");
    for machine in [&layered, &read_only] {
        let output = finish(&mut nspawn(&host, &["-D", &tree, "/bin/busybox", "true"]));
        let busy = format!("Directory tree {tree} is currently busy.\n");
        assert_eq!((output.status, output.stderr.as_str()), (1, busy.as_str()), "before the end of {machine}");
        kill(&host, machine);
    }
    assert_eq!(locks(&host), Vec::<String>::new());
    host.assert_nothing_left();
}

#[test]
fn we_do_not_run_what_systemd_nspawn_runs() {
    let host = Host::new();
    image(&host, "web");
    let tree = host.path("var/lib/machines/web").display().to_string();
    let machine = host.define("m", &format!("[root]\ndirectory = \"{tree}\"\n{SLEEP}"));
    let layered = host.define("l", "[root.overlay]\nlower = [\"web\"]\n[boot]\ncommand = [\"/bin/true\"]\n");
    let child = running_nspawn(&host, &["-D", &tree]);
    let output = host.run(&["run", &machine]);
    let told = format!("  cause: the tree '{tree}' is in use by process {}, systemd-nspawn\n", child.id());
    assert!(output.status == 1 && output.stderr.ends_with(&told), "{output:?}");
    let output = host.run(&["run", &layered]);
    let told = format!("  cause: the layer '{tree}' is in use by process {}, systemd-nspawn\n", child.id());
    assert!(output.status == 1 && output.stderr.ends_with(&told), "{output:?}");
    end(child);

    let child = running_nspawn(&host, &["--read-only", "-D", &tree]);
    assert_eq!(host.run(&["run", &machine]).status, 1);
    assert_eq!(host.run(&["run", &layered]).status, 0, "both only read");
    end(child);
    assert_eq!(locks(&host), Vec::<String>::new());
    host.assert_nothing_left();
}

#[test]
fn a_killed_supervisor_leaves_locks_that_hold_nothing_and_are_reaped() {
    let host = Host::new();
    image(&host, "web");
    let tree = host.path("var/lib/machines/web").display().to_string();
    let machine = host.define("m", &format!("[root]\ndirectory = \"{tree}\"\n{SLEEP}"));
    host.ok(&["start", &machine]);
    let supervisor: i32 = host.status(&machine, "supervisor").parse().expect("a pid");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(supervisor), nix::sys::signal::Signal::SIGKILL).expect("kill");
    host.wait_for("the end of the supervisor", || host.run(&["reap", &machine]).status == 0);
    assert_eq!(locks(&host), Vec::<String>::new());
    let output = finish(&mut nspawn(&host, &["-D", &tree, "/bin/busybox", "true"]));
    assert_eq!(output.status, 0, "{output:?}");
    host.assert_nothing_left();
}

#[test]
fn machines_that_one_command_started_do_not_hold_each_others_trees() {
    let host = Host::new();
    let [one, two] = ["one", "two"].map(|name| {
        image(&host, name);
        let tree = host.path("var/lib/machines").join(name);
        host.define(name, &format!("[root]\ndirectory = \"{}\"\n{SLEEP}", tree.display()))
    });
    host.ok(&["start", &one, &two]);
    kill(&host, &one);
    assert_eq!(locks(&host).len(), 2, "those of the other machine");
    host.ok(&["start", &one]);
    for machine in [&one, &two] {
        kill(&host, machine);
    }
    assert_eq!(locks(&host), Vec::<String>::new());
}

/// Everything in the store's directory.
fn files(host: &Host) -> Vec<String> {
    let entries = std::fs::read_dir(host.path("var/lib/machines")).expect("the store");
    let mut files: Vec<_> = entries.map(|e| e.expect("entry").file_name().to_string_lossy().into_owned()).collect();
    files.sort();
    files
}

/// A verb that fails with status 1, and what it says.
fn refused(host: &Host, args: &[&str]) -> String {
    let output = host.run(args);
    assert_eq!((output.status, output.stdout.as_str()), (1, ""), "{output:?}");
    output.stderr
}

#[test]
fn an_image_in_use_by_us_or_systemd_nspawn_is_not_removed_renamed_or_marked() {
    let host = Host::new();
    image(&host, "web");
    let tree = host.path("var/lib/machines/web").display().to_string();
    let machine = host.define("m", &format!("[root.overlay]\nlower = [\"web\"]\n{SLEEP}"));
    let refuse = |by: &str| {
        let told = format!("error: image 'web' is in use by {by}\n");
        assert_eq!(refused(&host, &["remove", "web"]), told);
        assert_eq!(refused(&host, &["rename", "web", "www"]), told);
        assert_eq!(refused(&host, &["read-only", "web"]), told);
        assert_eq!(host.ok(&["image", "clean", "--all"]), "", "left alone");
    };
    host.ok(&["start", &machine]);
    refuse(&format!("process {}, machinist", host.status(&machine, "supervisor")));
    kill(&host, &machine);
    assert_eq!(locks(&host), Vec::<String>::new());

    let child = running_nspawn(&host, &["-D", &tree]);
    refuse(&format!("process {}, systemd-nspawn", child.id()));
    let output = host.run(&["clone", "web", "www"]);
    let told = "warning: image 'web' is in use: its files were copied at different moments\n\
                Cloned image 'web' as 'www' by copying.\n";
    assert_eq!((output.status, output.stderr.as_str()), (0, told));
    end(child);

    let output = host.run(&["image", "remove", "web", "www"]);
    let definition = host.path("etc/machinist/machines").join(format!("{machine}.toml"));
    let told = format!(
        "Removed image 'web'.\nwarning: '{}' still names image 'web'\nRemoved image 'www'.\n",
        definition.display()
    );
    assert_eq!((output.status, output.stderr), (0, told));
    assert!(definition.exists());
    assert_eq!(files(&host), Vec::<String>::new());
}

#[test]
fn a_clone_of_a_tree_boots() {
    let host = Host::new();
    image(&host, "web");
    host.ok(&["clone", "web", "www"]);
    let tree = host.path("var/lib/machines/www").display().to_string();
    let script = "[boot]\ncommand = [\"/bin/stat\", \"-c\", \"%a %u\", \"/bin/busybox\"]\n";
    let machine = host.define("m", &format!("[root]\ndirectory = \"{tree}\"\n{script}"));
    assert_eq!(host.ok(&["run", &machine]), "755 0\n");
    host.assert_nothing_left();
}

/// A `clone` of an image that takes a while, and the process that does it.
fn slow_clone(host: &Host) -> (Child, nix::unistd::Pid) {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=copy_file_range"]);
    command.args(["-e", "inject=copy_file_range:delay_enter=100000", env!("CARGO_BIN_EXE_machinist"), "--root"]);
    let command = command.arg(host.root()).args(["clone", "web", "www"]).env("NO_COLOR", "1");
    let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("strace");
    let copied = host.path("var/lib/machines/.#machinist.www/etc");
    host.wait_for("the clone to begin", || copied.exists());
    let path = format!("/proc/{0}/task/{0}/children", child.id());
    let children = std::fs::read_to_string(path).expect("children");
    (child, nix::unistd::Pid::from_raw(children.trim().parse().expect("one child")))
}

#[test]
fn an_interrupted_clone_leaves_nothing_and_what_a_killed_one_leaves_is_cleaned_up() {
    use nix::sys::signal::{Signal, kill as signal_process};
    let host = Host::new();
    image(&host, "web");
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let (child, pid) = slow_clone(&host);
        signal_process(pid, signal).expect("kill");
        let output = child.wait_with_output().expect("wait");
        let told = "error: cannot clone image 'web' as 'www': interrupted; nothing is left of it\n";
        assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(1), told));
        assert_eq!(files(&host), ["web"]);
        assert_eq!(locks(&host), Vec::<String>::new());
    }
    let (mut child, pid) = slow_clone(&host);
    signal_process(pid, Signal::SIGKILL).expect("kill");
    child.wait().expect("wait");
    let machine_sees = host.ok(&["image", "list", "--all", "--json"]);
    assert!(!machine_sees.contains("www"), "{machine_sees}");
    host.ok(&["clean"]);
    assert_eq!(files(&host), [".#web.lck", "web"]);
    host.ok(&["remove", "web"]);
    assert_eq!(files(&host), Vec::<String>::new());
}

/// Runs a command to its end and fails the test if it fails; gives its standard output.
fn sh(script: &str, at: &Path) -> String {
    let output = finish(Command::new("sh").args(["-ec", script]).current_dir(at));
    assert_eq!(output.status, 0, "{script}: {output:?}");
    output.stdout
}

/// Runs a test with a new file system as the store, in a mount namespace that ends with it however the test does.
fn on(mount_store: &str, test: fn(&Host, PathBuf)) {
    let host = Host::new();
    // A thread of its own, for the mount namespace belongs to the thread.
    let result = std::thread::scope(|scope| {
        let run = || {
            use nix::mount::{MsFlags, mount};
            let none = None::<&str>;
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("unshare");
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("mount");
            sh(&format!("mkdir -p var/lib/machines; {mount_store} var/lib/machines"), host.root());
            test(&host, host.path("var/lib/machines"));
            // Gone before the next look at it; what a failed test leaves goes with its namespace.
            sh("umount var/lib/machines", host.root());
        };
        scope.spawn(run).join()
    });
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
    let loops = finish(Command::new("losetup").args(["--noheadings", "-O", "NAME", "-j"]).arg(host.path("disk")));
    assert_eq!(loops.stdout, "");
}

const BTRFS: &str = "truncate -s 512M disk; mkfs.btrfs -q disk; mount -o loop disk";

/// One field of what is said of an image.
fn field(host: &Host, name: &str, field: &str) -> String {
    host.ok(&["show-image", name, "-p", field]).trim_end().rsplit_once('=').expect("a property").1.to_owned()
}

/// A script that makes a subvolume with others in it, one of them read-only.
const SUBVOLUMES: &str = "btrfs -q subvolume create web; mkdir -p web/var/lib web/etc
    btrfs -q subvolume create web/home; btrfs -q subvolume create web/var/lib/machines
    btrfs -q subvolume create web/var/lib/machines/inner
    echo of web >web/etc/file; echo of home >web/home/file; echo of inner >web/var/lib/machines/inner/file
    btrfs -q property set web/var/lib/machines/inner ro true";

#[test]
fn a_subvolume_is_cloned_as_a_snapshot_with_those_in_it() {
    on(BTRFS, |host, store| {
        sh(SUBVOLUMES, &store);
        assert_eq!(field(host, "web", "Type"), "subvolume");
        let output = host.run(&["clone", "web", "www"]);
        assert_eq!((output.status, output.stderr.as_str()), (0, "Cloned image 'web' as 'www' as a snapshot.\n"));
        host.ok(&["clone", "--read-only", "www", "frozen"]);
        for clone in ["www", "frozen"] {
            let script = "cat etc/file home/file var/lib/machines/inner/file; stat -c %i . home var/lib/machines/inner";
            let seen = sh(script, &store.join(clone));
            assert_eq!(seen, "of web\nof home\nof inner\n256\n256\n256\n", "{clone}");
        }
        let writable = |path: &str| std::fs::write(store.join(path).join("new"), "").is_ok();
        assert!(writable("www") && writable("www/home") && !writable("www/var/lib/machines/inner"));
        assert!(!writable("frozen") && !writable("frozen/home") && !writable("frozen/var/lib/machines"));
        assert!(!store.join("web/new").exists());
        assert_eq!(["www", "frozen"].map(|name| field(host, name, "ReadOnly")), ["no", "yes"]);

        host.ok(&["rename", "frozen", "ice"]);
        host.ok(&["read-only", "ice", "no"]);
        assert!(writable("ice") && field(host, "ice", "ReadOnly") == "no");
        host.ok(&["read-only", "ice"]);
        host.ok(&["remove", "ice", "www", "web"]);
        assert_eq!(files(host), Vec::<String>::new());
        assert_eq!(sh("btrfs subvolume list .", &store), "", "nor any subvolume without a name");
    });
}

#[test]
fn a_directory_on_btrfs_shares_its_contents_with_its_clone() {
    on(BTRFS, |host, store| {
        sh(
            "mkdir web; head -c 50M /dev/urandom >web/large; echo x >web/small; head -c 20M /dev/urandom >disk.raw",
            &store,
        );
        let used = || sh("sync; btrfs filesystem usage -b . | awk '/^ *Used:/ { print $2 }'", &store);
        let before: u64 = used().trim().parse().expect("a number");
        for (from, to) in [("web", "www"), ("disk", "disk2")] {
            let output = host.run(&["clone", from, to]);
            let told = format!("Cloned image '{from}' as '{to}' file by file, sharing contents (reflink).\n");
            assert_eq!((output.status, output.stderr), (0, told));
        }
        let after: u64 = used().trim().parse().expect("a number");
        assert!(after < before + (5 << 20), "{before} {after}");
        sh("cmp web/large www/large; cmp disk.raw disk2.raw", &store);
        assert_eq!(["web", "www"].map(|name| field(host, name, "Type")), ["directory", "subvolume"]);
        host.ok(&["clean", "--all"]);
        assert_eq!(files(host), Vec::<String>::new());
    });
}

#[test]
fn a_limit_is_kept_by_the_file_system_and_refused_where_there_are_no_quotas() {
    on(BTRFS, |host, store| {
        sh("btrfs -q subvolume create web; mkdir plain", &store);
        let told = refused(host, &["set-limit", "web", "10M"]);
        let hint = format!("  hint: `btrfs quota enable {}` makes it keep them\n", store.join("web").display());
        assert_eq!(told, format!("error: cannot limit image 'web': its file system keeps no quotas\n{hint}"));
        let none = u64::MAX.to_string();
        assert_eq!(["Usage", "Limit"].map(|f| field(host, "web", f)), [none.clone(), none.clone()]);

        sh("btrfs quota enable .; btrfs -q quota rescan -w . || true", &store);
        host.ok(&["set-limit", "web", "10M"]);
        assert_eq!(field(host, "web", "Limit"), (10 << 20).to_string());
        let full = finish(
            Command::new("dd")
                .args(["if=/dev/urandom", "of=file", "bs=1M", "count=20", "conv=fsync"])
                .current_dir(store.join("web")),
        );
        assert!(full.status == 1 && full.stderr.contains("Disk quota exceeded"), "{full:?}");
        sh("sync", &store);
        let usage: u64 = field(host, "web", "Usage").parse().expect("a number");
        assert!((5 << 20..=10 << 20).contains(&usage), "{usage}");
        host.ok(&["image", "limit", "web", "-"]);
        assert_eq!(field(host, "web", "Limit"), none);
        sh("head -c 20M /dev/urandom >file; sync", &store.join("web"));

        host.ok(&["set-limit", "1G"]);
        assert!(host.ok(&["show-image"]).ends_with("PoolLimit=1073741824\n"));
        host.ok(&["set-limit", "-"]);
        let told = refused(host, &["set-limit", "plain", "1G"]);
        let why = "it is a directory, and only subvolumes of btrfs can be limited";
        assert_eq!(told, format!("error: cannot limit image 'plain': {why}\n"));
        assert_eq!(host.run(&["set-limit", "web", "much"]).status, 2);
    });
}

#[test]
fn a_clone_that_does_not_fit_leaves_nothing() {
    on("mount -t tmpfs -o size=24M tmpfs", |host, store| {
        sh("mkdir -p web/usr/lib; head -c 15M /dev/urandom >web/usr/lib/large; echo x >web/small", &store);
        let told = refused(host, &["clone", "web", "www"]);
        let file = "error: cannot clone image 'web' as 'www': its file '/usr/lib/large'\n";
        assert!(told.starts_with(file) && told.ends_with(": No space left on device\n"), "{told}");
        assert_eq!(files(host), ["web"]);
        assert_eq!(locks(host), Vec::<String>::new());
    });
}

#[test]
fn a_file_system_that_can_neither_share_nor_copy_nor_tell_holes_has_its_files_copied() {
    let host = Host::new();
    image(&host, "web");
    let store = host.path("var/lib/machines");
    // `diff` takes no two devices for the same.
    sh("rm -r web/dev; truncate -s 3M web/sparse; echo end >>web/sparse; head -c 5M /dev/urandom >web/large", &store);
    for inject in [
        "copy_file_range:error=EXDEV",
        "lseek:error=EINVAL",
        "ioctl:error=EINVAL",
        "copy_file_range:error=EINTR:when=2",
    ] {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=copy_file_range,lseek,ioctl"]);
        command.args(["-e", &format!("inject={inject}"), env!("CARGO_BIN_EXE_machinist"), "--root"]);
        let output = finish(command.arg(host.root()).args(["clone", "web", "www"]).stdin(Stdio::null()));
        assert_eq!(
            (output.status, output.stderr.as_str()),
            (0, "Cloned image 'web' as 'www' by copying.\n"),
            "{inject}"
        );
        sh("diff -r --no-dereference web www", &store);
        host.ok(&["remove", "www"]);
    }
}
