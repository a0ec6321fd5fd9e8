//! `[[bind]]`, `[[tmpfs]]` and `[[overlay]]`, looked at from inside and on disk.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Host, finish};

const ROOT: &str = "[root]\noverlay = { lower = [\"{busybox}\"], upper = \"ephemeral\" }\n";
const SHIFT: u32 = 1_500_053_504;

fn toml(rest: &str, script: &str) -> String {
    format!("{rest}\n[boot]\ncommand = [\"/bin/sh\", \"-ec\", '''{script}''']\n")
}

/// Runs a shell script as the command of a machine with an overlay root; gives its output.
fn run(host: &Host, rest: &str, script: &str) -> String {
    run_with(host, rest, script, false)
}

fn run_with(host: &Host, rest: &str, script: &str, old: bool) -> String {
    let machine = host.define("m", &toml(&format!("{ROOT}{rest}"), script));
    let mut command = host.command();
    command.args(["run", &machine]).stdin(Stdio::null());
    if old {
        command.env("MACHINIST_TEST_OLD_KERNEL", "1");
    }
    let output = finish(&mut command);
    assert_eq!(output.status, 0, "{rest}\n{script}\nold {old}: {output:?}");
    host.assert_nothing_left();
    output.stdout
}

/// A directory of the host with files of several owners; itself of 1000:1000.
fn source(host: &Host) {
    std::fs::create_dir(host.path("src")).expect("mkdir");
    for (file, uid, gid) in [("root", 0, 0), ("user", 1000, 1000), ("www", 33, 33), ("", 1000, 1000)] {
        let path = host.path("src").join(file);
        if !file.is_empty() {
            std::fs::write(&path, file).expect("write");
        }
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).expect("chown");
    }
}

fn owner(path: &Path) -> (u32, u32) {
    let stat = path.symlink_metadata().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (stat.uid(), stat.gid())
}

const OWNERS: &str = "cd /mnt; stat -c '%n=%u:%g' . root user www | tr '\\n' ' '";

#[test]
fn every_idmap_mode_gives_the_owners_it_says() {
    // The mode, owners inside, and who owns on disk what the machine's root makes (none: it may not).
    let cases = [
        ("\"private\"", ".=1000:1000 root=0:0 user=1000:1000 www=33:33 ", Some((0, 0))),
        ("\"none\"", ".=65534:65534 root=65534:65534 user=65534:65534 www=65534:65534 ", None),
        ("\"root-owner\"", ".=0:0 root=65534:65534 user=0:0 www=65534:65534 ", Some((1000, 1000))),
        ("\"owner\"", ".=7:8 root=65534:65534 user=7:8 www=65534:65534 ", None),
        ("[\"1000->0\", \"33->5\"]", ".=0:0 root=65534:65534 user=0:0 www=5:5 ", Some((1000, 1000))),
        ("[\"u:1000->0\", \"g:1000->6\", \"g:0->0\"]", ".=0:6 root=65534:0 user=0:6 www=65534:65534 ", Some((1000, 0))),
        ("[\"u:0-2->0-2\", \"g:0-2->0-2\"]", ".=65534:65534 root=0:0 user=65534:65534 www=65534:65534 ", None),
    ];
    for (mode, owners, made) in cases {
        let host = Host::new();
        source(&host);
        // The target as it is in the tree; `owner` takes its owner.
        let layer = host.path("layer/mnt");
        std::fs::create_dir_all(&layer).expect("mkdir");
        std::os::unix::fs::chown(&layer, Some(7), Some(8)).expect("chown");
        let root = ROOT.replace("[\"", "[\"{root}/layer\", \"");
        let bind = format!("[[bind]]\nsource = \"{{root}}/src\"\ntarget = \"/mnt\"\nidmap = {mode}");
        let script = format!("{OWNERS}; touch /mnt/new 2>/dev/null && echo made || echo refused");
        let machine = host.define("m", &toml(&format!("{root}{bind}"), &script));
        let output = host.ok(&["run", &machine]);
        let verdict = if made.is_some() { "made" } else { "refused" };
        assert_eq!(output, format!("{owners}{verdict}\n"), "{mode}");
        if let Some(made) = made {
            assert_eq!(owner(&host.path("src/new")), made, "{mode}");
        }
        assert_eq!([owner(&host.path("src/user")), owner(&host.path("src"))], [(1000, 1000); 2], "{mode}");
        host.assert_nothing_left();
    }
}

#[test]
fn an_unmapped_bind_shows_the_ids_of_the_range() {
    let host = Host::new();
    source(&host);
    std::os::unix::fs::chown(host.path("src/user"), Some(SHIFT + 5), Some(SHIFT + 6)).expect("chown");
    let users = format!("[users]\nmode = {{ shift = {SHIFT}, size = 65536 }}\n");
    let bind = "[[bind]]\nsource = \"{root}/src\"\ntarget = \"/mnt\"\nidmap = \"none\"";
    let wanted = ".=65534:65534 root=65534:65534 user=5:6 www=65534:65534 ";
    assert_eq!(run(&host, &format!("{users}{bind}"), OWNERS), wanted);
}

#[test]
fn without_a_user_namespace_owners_are_the_hosts() {
    let host = Host::new();
    source(&host);
    let bind = "[users]\nmode = \"host\"\n[[bind]]\nsource = \"{root}/src\"\ntarget = \"/mnt\"\n";
    assert_eq!(run(&host, bind, OWNERS), ".=1000:1000 root=0:0 user=1000:1000 www=33:33 ");
}

#[test]
fn files_directories_and_missing_targets_are_bound_and_made_for_guest_root() {
    for old in [false, true] {
        let host = Host::new();
        source(&host);
        let rest = "[[bind]]\nsource = \"{root}/src/www\"\ntarget = \"/a/b/file\"\n\
                    [[bind]]\nsource = \"{root}/src\"\ntarget = \"/c/d/dir\"\n\
                    [[bind]]\nsource = \"{root}/src/user\"\ntarget = \"/run/x/file\"\n\
                    [[bind]]\nsource = \"{root}/src\"\ntarget = \"/mem/y/dir\"\n\
                    [[bind]]\nsource = \"{root}/src\"\ntarget = \"/tmp/z\"\n\
                    [[bind]]\nsource = \"{root}/gone\"\ntarget = \"/gone\"\noptional = true\n\
                    [[tmpfs]]\ntarget = \"/mem\"\n";
        let script = "cat /a/b/file; echo; cat /c/d/dir/user; echo; cat /run/x/file; echo; cat /mem/y/dir/root /tmp/z/root; echo; \
                      stat -c %u /a /a/b /c /c/d /run/x /mem /mem/y | tr '\\n' ' '; ! test -e /gone; stat -c %a /a /mem /tmp";
        let wanted = "www\nuser\nuser\nrootroot\n0 0 0 0 0 0 0 755\n755\n1777\n";
        assert_eq!(run_with(&host, rest, script, old), wanted, "old {old}");
    }
}

#[test]
fn a_persistent_root_keeps_made_targets_as_roots_own() {
    let host = Host::new();
    source(&host);
    let root = ROOT.replace("ephemeral", "persistent");
    let bind = "[[bind]]\nsource = \"{root}/src\"\ntarget = \"/made/here\"\n";
    let machine = host.define("m", &toml(&format!("{root}{bind}"), "stat -c %u /made /made/here"));
    assert_eq!(host.ok(&["run", &machine]), "0\n1000\n");
    let upper = host.path("var/lib/machinist").join(&machine).join("root/upper");
    assert_eq!([owner(&upper.join("made")), owner(&upper.join("made/here"))], [(0, 0); 2]);
}

/// Runs a script of the host in a mount namespace of its own; `$M` is machinist and `$S` the directory `src`.
fn in_own_mounts(host: &Host, machine: &str, script: &str) -> String {
    let command = host.command();
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    let text = format!("mount -t tmpfs t $S\n{script}");
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "--propagation", "private", "/bin/sh", "-ec", &text]);
    shell.env("M", words.join(" ")).env("S", host.path("src")).env("N", machine).stdin(Stdio::null());
    let output = finish(&mut shell);
    assert_eq!(output.status, 0, "{script}: {output:?}");
    host.assert_nothing_left();
    output.stdout
}

#[test]
fn submounts_come_along_only_when_asked_and_read_only_holds_for_them() {
    for (keys, wanted) in [
        ("recursive = true", "inner\nwrote\nwrote\n"),
        ("recursive = false", "empty\nwrote\nwrote\n"),
        ("recursive = true\nread-only = true", "inner\nrefused\nrefused\n"),
        ("recursive = false\nread-only = true", "empty\nrefused\nrefused\n"),
    ] {
        for users in ["auto", "host", "identity"] {
            let host = Host::new();
            std::fs::create_dir(host.path("src")).expect("mkdir");
            let rest = format!(
                "{ROOT}[users]\nmode = \"{users}\"\n[[bind]]\nsource = \"{{root}}/src\"\ntarget = \"/mnt\"\n{keys}"
            );
            let script = "cat /mnt/sub/file 2>/dev/null || echo empty; \
                          for d in /mnt /mnt/sub; do touch $d/x 2>/dev/null && echo wrote || echo refused; done";
            let machine = host.define("m", &toml(&rest, script));
            let prepare = "mkdir $S/sub; mount -t tmpfs t $S/sub; echo inner >$S/sub/file; $M run $N";
            assert_eq!(in_own_mounts(&host, &machine, prepare), wanted, "{keys}, {users}");
        }
    }
}

#[test]
fn a_read_only_bind_cannot_be_made_writable_inside() {
    let host = Host::new();
    source(&host);
    let bind = "[[bind]]\nsource = \"{root}/src\"\ntarget = \"/mnt\"\nread-only = true\n";
    let script = "touch /mnt/x 2>/dev/null || echo 1; mount -o remount,bind,rw /mnt 2>/dev/null || echo 2; \
                  umount /mnt 2>/dev/null || echo 3; mount --bind /mnt /tmp; touch /tmp/x 2>/dev/null || echo 4";
    assert_eq!(run(&host, bind, script), "1\n2\n3\n4\n");
}

#[test]
fn later_mounts_of_the_host_follow_only_on_request() {
    for users in ["auto", "host"] {
        for (propagation, wanted) in [("private", "no\n"), ("slave", "late\n")] {
            let host = Host::new();
            std::fs::create_dir(host.path("src")).expect("mkdir");
            let machine = host.define(
                "m",
                &format!(
                    "{ROOT}[users]\nmode = \"{users}\"\n[boot]\ncommand = [\"/bin/sleep\", \"10000\"]\n\
                     [[bind]]\nsource = \"{{root}}/src\"\ntarget = \"/mnt\"\npropagation = \"{propagation}\"\nidmap = \"none\""
                ),
            );
            // A mount made inside never comes back out.
            let script = "mount --make-shared $S; mkdir $S/sub $S/in; $M -q start $N; mount -t tmpfs t $S/sub; echo late >$S/sub/file; \
                          $M exec $N /bin/sh -c 'cat /mnt/sub/file 2>/dev/null || echo no; mount -t tmpfs x /mnt/in 2>/dev/null; touch /mnt/in/y 2>/dev/null'; \
                          grep -c \"$S/in \" /proc/self/mountinfo >&2 && exit 9; $M -q stop $N 2>/dev/null";
            let script = script.replace("touch /mnt/in/y 2>/dev/null'", "true'");
            assert_eq!(in_own_mounts(&host, &machine, &script), wanted, "{propagation}, {users}");
        }
    }
}

#[test]
fn a_tmpfs_has_its_size_and_mode_and_belongs_to_root() {
    for users in ["auto", "host", "identity"] {
        let host = Host::new();
        let rest = format!(
            "[users]\nmode = \"{users}\"\n[[tmpfs]]\ntarget = \"/var/cache\"\nsize = \"1M\"\nmode = \"0750\"\n[[tmpfs]]\ntarget = \"/new/dir\"\n"
        );
        let script = "stat -c '%a %u:%g' /var/cache /new/dir; ls -A /var/cache; \
                      head -c 2000000 /dev/zero >/var/cache/f 2>/dev/null || stat -c %s /var/cache/f; \
                      head -c 2000000 /dev/zero >/new/dir/f && echo fits";
        assert_eq!(run(&host, &rest, script), "750 0:0\n755 0:0\n1048576\nfits\n", "{users}");
    }
}

#[test]
fn extra_overlays_are_read_only_or_keep_their_writes() {
    for old in [false, true] {
        for users in ["auto", "host", "identity"] {
            let host = Host::new();
            for (layer, text) in [("one", "1"), ("two", "2")] {
                std::fs::create_dir(host.path(layer)).expect("mkdir");
                std::fs::write(host.path(layer).join("which"), text).expect("write");
                std::fs::write(host.path(layer).join(layer), layer).expect("write");
            }
            let lower = "lower = [\"{root}/one\", \"{root}/two\"]";
            let rest = format!(
                "[users]\nmode = \"{users}\"\n\
                 [[overlay]]\ntarget = \"/opt/ro\"\n{lower}\n\
                 [[overlay]]\ntarget = \"/opt/mem\"\n{lower}\nupper = \"ephemeral\"\n\
                 [[overlay]]\ntarget = \"/opt/kept\"\n{lower}\nupper = \"persistent\"\n\
                 [[overlay]]\ntarget = \"/opt/path\"\n{lower}\nupper = \"{{root}}/writes\"\n"
            );
            let script = "for d in ro mem kept path; do cd /opt/$d; echo $(cat which) $(cat one) $(cat two) $(stat -c %u . which | tr -d '\\n') \
                          $(cat new 2>/dev/null) $(echo $d 2>/dev/null >new && cat new || echo refused); done 2>/dev/null";
            let first = "1 one two 00 refused\n1 one two 00 mem\n1 one two 00 kept\n1 one two 00 path\n";
            let second = "1 one two 00 refused\n1 one two 00 mem\n1 one two 00 kept kept\n1 one two 00 path path\n";
            assert_eq!(run_with(&host, &rest, script, old), first, "{users}, old {old}");
            assert_eq!(run_with(&host, &rest, script, old), second, "{users}, old {old}");
            assert_eq!(owner(&host.path("writes/upper/new")), (0, 0), "{users}");
            assert!(!host.path("one/new").exists());
        }
    }
}

#[test]
fn setuid_and_devices_of_a_bind_have_no_power_over_the_host() {
    let host = Host::new();
    source(&host);
    let node = host.path("src/null");
    assert!(Command::new("mknod").arg(&node).args(["c", "1", "3"]).status().expect("mknod").success());
    std::fs::set_permissions(&node, std::fs::Permissions::from_mode(0o666)).expect("chmod");
    let bind = "[[bind]]\nsource = \"{root}/src\"\ntarget = \"/mnt\"\n";
    assert_eq!(run(&host, bind, "cat /mnt/null 2>/dev/null || echo refused"), "refused\n");
}

#[test]
fn binds_lie_on_overlays_tmpfs_and_binds_whatever_their_order_in_the_file() {
    for old in [false, true] {
        let host = Host::new();
        source(&host);
        std::fs::create_dir(host.path("low")).expect("mkdir");
        let bind = |target: &str| format!("[[bind]]\nsource = \"{{root}}/src/www\"\ntarget = \"{target}\"\n");
        let rest = [
            bind("/opt/over/deep/file"),
            bind("/mem/file"),
            bind("/dir/made"),
            "[[bind]]\nsource = \"{root}/src\"\ntarget = \"/dir\"\nidmap = \"root-owner\"\n".into(),
            "[[overlay]]\ntarget = \"/opt/over\"\nlower = [\"{root}/low\"]\nupper = \"ephemeral\"\n".into(),
            "[[tmpfs]]\ntarget = \"/mem\"\n".into(),
        ];
        std::fs::write(host.path("src/made"), "").expect("write");
        let script = "cat /opt/over/deep/file /mem/file /dir/made; echo; stat -c %u /opt/over /opt/over/deep /mem /dir";
        assert_eq!(run_with(&host, &rest.concat(), script, old), "wwwwwwwww\n0\n0\n0\n0\n", "old {old}");
        assert_eq!(std::fs::read_dir(host.path("low")).expect("low").count(), 0);
    }
}
