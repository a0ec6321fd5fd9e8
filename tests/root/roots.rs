//! Every kind of root, with every kind of user namespace, and what is on disk afterwards.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::support::{Host, finish, tree};

/// The ways to have user ids, as lines of `[users]`.
const USERS: [&str; 4] = ["", "mode = \"host\"", "mode = \"identity\"", "mode = { shift = 1500053504, size = 65536 }"];

/// Runs a shell script as the command of a machine; gives its output. `old`: as on kernels before 6.13.
fn run(host: &Host, toml: &str, script: &str, old: bool) -> String {
    let machine = host.define("m", &format!("{toml}\n[boot]\ncommand = [\"/bin/sh\", \"-ec\", '''{script}''']\n"));
    let mut command = host.command();
    command.args(["run", &machine]).stdin(Stdio::null());
    if old {
        command.env("MACHINIST_TEST_OLD_KERNEL", "1");
    }
    let output = finish(&mut command);
    assert_eq!(output.status, 0, "{toml}\n{script}\nold {old}: {output:?}");
    host.assert_nothing_left();
    output.stdout
}

/// A copy of the busybox tree that may be written to.
fn own_tree(host: &Host, name: &str) -> PathBuf {
    let to = host.path(name);
    let copied = std::process::Command::new("cp").arg("-a").arg(tree("trixie-busybox")).arg(&to).status();
    assert!(copied.expect("cp").success());
    to
}

fn layer(host: &Host, name: &str, files: &[(&str, &str)]) {
    for (file, text) in files {
        let path = host.path(name).join(file);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
        std::fs::write(path, text).expect("write");
    }
}

fn owner(path: &Path) -> (u32, u32) {
    let stat = path.symlink_metadata().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (stat.uid(), stat.gid())
}

#[test]
fn a_directory_root_is_roots_inside_and_keeps_its_owners_on_disk() {
    for users in USERS {
        let host = Host::new();
        let tree = own_tree(&host, "tree");
        std::os::unix::fs::chown(tree.join("etc/passwd"), Some(33), Some(44)).expect("chown");
        let toml = format!("[root]\ndirectory = \"{{root}}/tree\"\n[users]\n{users}");
        let script = "stat -c '%u:%g' / /etc/passwd; mkdir /new; echo text >/new/file; chown 7:8 /new/file; stat -c '%u:%g' /new/file";
        assert_eq!(run(&host, &toml, script, false), "0:0\n33:44\n7:8\n", "{users}");
        let owners = ["", "etc/passwd", "new", "new/file"].map(|f| owner(&tree.join(f)));
        assert_eq!(owners, [(0, 0), (33, 44), (0, 0), (7, 8)], "on disk with {users}");
    }
}

#[test]
fn the_topmost_layer_wins_with_every_kind_of_ids_and_on_old_kernels() {
    for old in [false, true] {
        for users in USERS {
            let host = Host::new();
            layer(&host, "top", &[("which", "top"), ("etc/top", "1")]);
            layer(&host, "middle", &[("which", "middle"), ("etc/middle", "2")]);
            // A name of an image is looked up in the store.
            std::fs::create_dir_all(host.path("var/lib/machines")).expect("mkdir");
            std::os::unix::fs::symlink(tree("trixie-busybox"), host.path("var/lib/machines/base")).expect("symlink");
            let toml = format!(
                "[root.overlay]\nlower = [\"{{root}}/top\", \"{{root}}/middle\", \"base\"]\nupper = \"ephemeral\"\n[users]\n{users}"
            );
            let script = "cat /which /etc/top /etc/middle; echo; stat -c %u / /which /bin/busybox; echo changed >/which; cat /which; rm /etc/top; ! test -e /etc/top";
            let wanted = "top12\n0\n0\n0\nchanged\n";
            assert_eq!(run(&host, &toml, script, old), wanted, "{users}, old {old}");
            assert_eq!(std::fs::read_to_string(host.path("top/which")).expect("read"), "top");
            assert_eq!(owner(&host.path("top/which")), (0, 0));
        }
    }
}

#[test]
fn a_persistent_upper_survives_and_belongs_to_whatever_range_the_machine_has() {
    for old in [false, true] {
        let host = Host::new();
        let toml = "[root.overlay]\nlower = [\"{busybox}\"]\n";
        let first = run(
            &host,
            toml,
            "echo text >/kept; chown 5:6 /kept; mv /etc/fstab /etc/renamed; sed 's/  */ /g' /proc/self/uid_map",
            old,
        );
        let kept = host.path("var/lib/machinist").join(host.name("m")).join("root/upper");
        assert_eq!([owner(&kept.join("kept")), owner(&kept), owner(&kept.join("etc"))], [(5, 6), (0, 0), (0, 0)]);
        let look = "cat /kept; stat -c '%u:%g' /kept /etc/renamed; ! test -e /etc/fstab; echo more >>/kept; sed 's/  */ /g' /proc/self/uid_map";
        let second = run(&host, toml, look, old);
        assert_eq!(second, format!("text\n5:6\n0:0\n{first}"), "the same range again");
        // Another range: nothing changes inside or on disk.
        let moved = format!("{toml}[users]\nmode = {{ shift = 1500119040, size = 65536 }}");
        let third = run(&host, &moved, look, old);
        assert_eq!(third, "text\nmore\n5:6\n0:0\n 0 1500119040 65536\n");
        assert_eq!([owner(&kept.join("kept")), owner(&kept)], [(5, 6), (0, 0)]);
        assert_eq!(
            run(&host, &format!("{toml}[users]\nmode = \"host\""), "tail -n 1 /kept; stat -c %u /kept", old),
            "more\n5\n"
        );
    }
}

#[test]
fn an_ephemeral_upper_is_gone_and_one_with_a_path_is_there() {
    for old in [false, true] {
        let host = Host::new();
        let toml = "[root.overlay]\nlower = [\"{busybox}\"]\nupper = \"ephemeral\"\n";
        for _ in 0..2 {
            assert_eq!(run(&host, toml, "! test -e /x; echo 1 >/x; cat /x", old), "1\n");
        }
        let toml = "[root.overlay]\nlower = [\"{busybox}\"]\nupper = \"{root}/a/b\"\n";
        run(&host, toml, "! test -e /x; echo 1 >/x", old);
        assert_eq!(std::fs::read_to_string(host.path("a/b/upper/x")).expect("read"), "1\n");
        assert_eq!(run(&host, toml, "cat /x", old), "1\n");
    }
}

#[test]
fn the_hosts_own_tree_is_a_throwaway_machine() {
    for old in [false, true] {
        for users in USERS {
            let host = Host::new();
            let mark = format!("/machinist-test-{}", host.name("mark"));
            let toml = format!("[root.overlay]\nlower = [\"/\"]\nupper = \"ephemeral\"\n[users]\n{users}");
            let script = format!("stat -c %u / /etc/passwd; echo x >{mark}; rm /etc/passwd; id -u");
            assert_eq!(run(&host, &toml, &script, old), "0\n0\n0\n", "{users}");
            assert!(!Path::new(&mark).exists() && Path::new("/etc/passwd").exists());
        }
    }
}

#[test]
fn a_read_only_root_refuses_writes_for_good() {
    for users in USERS {
        for root in ["directory = \"{root}/tree\"", "overlay = { lower = [\"{root}/tree\"], upper = \"ephemeral\" }"] {
            let host = Host::new();
            own_tree(&host, "tree");
            let toml = format!("[root]\n{root}\nread-only = true\n[users]\n{users}");
            // Without a user namespace the machine's root is the host's, and nothing is locked for it.
            let undo =
                if users.contains("host") { "" } else { "mount -o remount,bind,rw / 2>/dev/null && echo undone;" };
            let script = format!("touch /x 2>&1 || echo refused; {undo} touch /tmp/x /run/x /dev/shm/x; echo end");
            let wanted = "touch: /x: Read-only file system\nrefused\nend\n";
            assert_eq!(run(&host, &toml, &script, false), wanted, "{users}");
        }
    }
}

#[test]
fn volatile_state_forgets_var_and_keeps_the_rest_read_only() {
    for old in [false, true] {
        for users in USERS {
            let host = Host::new();
            own_tree(&host, "tree");
            let toml = format!("[root]\ndirectory = \"{{root}}/tree\"\nvolatile = \"state\"\n[users]\n{users}");
            let script = "ls -A /var; stat -c '%u %a' /var; echo 1 >/var/x; touch /etc/x 2>/dev/null || echo refused; cat /etc/fstab >/dev/null";
            for _ in 0..2 {
                assert_eq!(run(&host, &toml, script, old), "0 755\nrefused\n", "{users}");
            }
        }
    }
}

#[test]
fn volatile_yes_keeps_only_usr() {
    for root in ["directory = \"{root}/tree\"", "overlay = { lower = [\"{root}/tree\"], upper = \"ephemeral\" }"] {
        for users in USERS {
            let host = Host::new();
            let tree = own_tree(&host, "tree");
            std::fs::create_dir(tree.join("usr/lib")).expect("mkdir");
            std::fs::copy(tree.join("etc/os-release"), tree.join("usr/lib/os-release")).expect("copy");
            let toml = format!("[root]\n{root}\nvolatile = \"yes\"\n[users]\n{users}");
            let script = "! test -e /etc/fstab; ! test -e /x; mkdir -p /etc /var; echo 1 >/etc/x; echo 1 >/x; stat -c %u / /x /usr; touch /usr/x 2>/dev/null || echo refused";
            for _ in 0..2 {
                assert_eq!(run(&host, &toml, script, false), "0\n0\n0\nrefused\n", "{users}");
            }
        }
    }
}

#[test]
fn chown_on_request_changes_owners_once() {
    let host = Host::new();
    let tree = own_tree(&host, "tree");
    std::os::unix::fs::chown(tree.join("etc/passwd"), Some(33), Some(44)).expect("chown");
    let shift = 1_500_053_504;
    let users = format!("[users]\nownership = \"chown\"\nmode = {{ shift = {shift}, size = 65536 }}");
    let toml = format!("[root]\ndirectory = \"{{root}}/tree\"\n{users}");
    let script = "stat -c '%u:%g' / /etc/passwd; touch /new; stat -c %u /new";
    let times = |file: &str| {
        let stat = tree.join(file).symlink_metadata().expect("stat");
        (stat.ctime(), stat.ctime_nsec())
    };
    assert_eq!(run(&host, &toml, script, false), "0:0\n33:44\n0\n");
    let owners = ["", "etc/passwd", "new", "usr/bin/busybox"].map(|f| owner(&tree.join(f)));
    assert_eq!(owners, [(shift, shift), (shift + 33, shift + 44), (shift, shift), (shift, shift)]);
    let before = times("etc/passwd");
    assert_eq!(run(&host, &toml, script, false), "0:0\n33:44\n0\n");
    assert_eq!(times("etc/passwd"), before, "nothing is changed the second time");
    // The files have their ids already.
    let off = toml.replace("chown", "off");
    assert_eq!(run(&host, &off, script, false), "0:0\n33:44\n0\n");
    assert_eq!(owner(&tree.join("etc/passwd")), (shift + 33, shift + 44));
}

#[test]
fn layers_inside_one_another_are_refused_with_a_reason() {
    let host = Host::new();
    layer(&host, "outer/inner", &[("x", "y")]);
    let machine = host.define(
        "m",
        "[root.overlay]\nlower = [\"{root}/outer/inner\", \"{root}/outer\", \"{busybox}\"]\nupper = \"ephemeral\"\n[boot]\ncommand = [\"/bin/true\"]\n",
    );
    let output = host.run(&["run", &machine]);
    assert_eq!(output.status, 1);
    assert!(output.stderr.contains("one of the layers lies inside another"), "{output:?}");
    host.assert_nothing_left();
}
