//! The image store on real file systems, beside the real systemd-nspawn.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
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
fn running_nspawn(host: &Host, args: &[&str]) -> Child {
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
    host.ok(&["kill", &machine]);
    host.wait_for("the locks to go", || locks(&host).is_empty());
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
        host.ok(&["kill", machine]);
        host.wait_for("the end", || host.run(&["status", "--json", machine]).stdout.contains("stopped"));
    }
    host.wait_for("the locks to go", || locks(&host).is_empty());
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
    host.ok(&["kill", &one]);
    host.wait_for("the end", || host.run(&["status", "--json", &one]).stdout.contains("stopped"));
    host.wait_for("the locks of one machine to go", || locks(&host).len() == 2);
    host.ok(&["start", &one]);
    for machine in [&one, &two] {
        host.ok(&["kill", machine]);
    }
    host.wait_for("the locks to go", || locks(&host).is_empty());
    host.wait_for("the end", || host.run(&["status", "--json", &two]).stdout.contains("stopped"));
}
