//! What a machine's root can see and do, looked at from inside.

use std::collections::BTreeSet;

use crate::support::Host;

const IDLE: &str = "[root]\noverlay = { lower = [\"{busybox}\"], upper = \"ephemeral\" }\n\
                    [boot]\ncommand = [\"/bin/sleep\", \"10000\"]\n";
const INIT: &str = "[root]\noverlay = { lower = [\"{busybox}\"], upper = \"ephemeral\" }\n";

fn started(host: &Host, toml: &str) -> String {
    let machine = host.define("m", toml);
    host.ok(&["start", &machine]);
    machine
}

fn end(host: &Host, machine: &str) {
    host.ok(&["kill", machine]);
    // The last thing a supervisor removes.
    let run_dir = host.path("run/machinist/machines").join(machine);
    host.wait_for("the end", || !run_dir.exists());
    host.assert_nothing_left();
}

/// Value of `key` in a `/proc/PID/status`.
fn field<'a>(status: &'a str, key: &str) -> &'a str {
    status.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':')).map(str::trim).expect(key)
}

#[test]
fn pid_1_and_exec_have_the_planned_rights_and_no_more() {
    let host = Host::new();
    let machine = started(&host, INIT);
    let first = host.sh(&machine, "cat /proc/1/status");
    let exec = host.ok(&["exec", &machine, "/bin/cat", "/proc/self/status"]);
    // systemd-nspawn's default with a private network, as `capsh --decode` names it.
    let wanted = "00000000fdecbfff";
    for status in [&first, &exec] {
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(field(status, set), wanted, "{set}");
        }
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(field(status, set), "0000000000000000", "{set}");
        }
        assert_eq!((field(status, "Seccomp"), field(status, "NoNewPrivs")), ("2", "0"));
    }
    // The init blocks what it waits for, by itself.
    assert_eq!(field(&first, "SigIgn"), "0000000000000000");
    assert_eq!((field(&exec, "SigBlk"), field(&exec, "SigIgn")), ("0000000000000000", "0000000000000000"));
    end(&host, &machine);
}

#[test]
fn capabilities_and_no_new_privileges_follow_the_file() {
    let host = Host::new();
    let machine = started(
        &host,
        &format!(
            "{IDLE}[security]\nno-new-privileges = true\ncapabilities = {{ add = [\"SYS_TIME\"], drop = [\"SYS_ADMIN\"] }}\n"
        ),
    );
    // 1 is the stub.
    for pid in ["1", "$(pidof sleep)", "self"] {
        let status = host.sh(&machine, &format!("cat /proc/{pid}/status"));
        let mask = u64::from_str_radix(field(&status, "CapEff"), 16).expect("a mask");
        assert_eq!((mask >> 25 & 1, mask >> 21 & 1), (1, 0), "{pid}: {mask:x}");
        assert_eq!((field(&status, "NoNewPrivs"), field(&status, "Seccomp")), ("1", "2"), "{pid}");
    }
    end(&host, &machine);
}

#[test]
fn the_filter_follows_the_file_and_tells_unknown_from_forbidden() {
    let host = Host::new();
    let machine = started(&host, &format!("{IDLE}[security.seccomp]\ndeny = [\"mkdir\", \"mkdirat\"]\n"));
    let denied = host.run(&["exec", &machine, "/bin/mkdir", "/tmp/x"]);
    assert_ne!(denied.status, 0);
    assert!(denied.stderr.contains("Operation not permitted"), "{denied:?}");
    // Loading a kernel module is refused even with every capability of the machine.
    let module = host.run(&["exec", &machine, "/bin/sh", "-c", "echo x >/tmp/x.ko; insmod /tmp/x.ko"]);
    assert!(module.status != 0 && module.stderr.contains("not permitted"), "{module:?}");
    end(&host, &machine);
}

#[test]
fn host_files_of_proc_and_sys_are_masked_for_good() {
    let host = Host::new();
    let machine = started(&host, IDLE);
    let masked = ["/proc/kallsyms", "/proc/keys", "/proc/timer_list", "/proc/kcore", "/proc/sysrq-trigger"];
    let mut seen = 0;
    for file in masked.iter().filter(|f| std::path::Path::new(f).exists()) {
        assert_eq!(host.sh(&machine, &format!("wc -c <{file} 2>/dev/null || echo 0")).trim(), "0", "{file}");
        assert_ne!(host.run(&["exec", &machine, "/bin/umount", file]).status, 0, "umount {file}");
        let write = host.run(&["exec", &machine, "/bin/sh", "-c", &format!("echo x >{file}")]);
        assert_ne!(write.status, 0, "write {file}");
        seen += 1;
    }
    assert!(seen >= 3, "this host has too few of these files: {seen}");
    for dir in ["/sys/kernel/debug", "/sys/kernel/security", "/sys/kernel/tracing"] {
        assert_eq!(host.sh(&machine, &format!("ls -A {dir} 2>/dev/null | wc -l")).trim(), "0", "{dir}");
    }
    end(&host, &machine);
}

#[test]
fn read_only_views_cannot_be_written_remounted_or_unmounted() {
    let host = Host::new();
    let machine = started(&host, IDLE);
    for (mount, file) in [
        ("/proc/sys", "/proc/sys/kernel/sysrq"),
        ("/proc/bus", "/proc/bus/x"),
        ("/proc/irq", "/proc/irq/default_smp_affinity"),
        ("/sys", "/sys/x"),
        ("/sys/kernel", "/sys/kernel/mm/ksm/run"),
        ("/run/host", "/run/host/x"),
    ] {
        if !std::path::Path::new(mount).exists() && mount != "/run/host" {
            continue;
        }
        for script in [
            format!("echo 1 >{file}"),
            format!("umount {mount}"),
            format!("umount -l {mount}"),
            format!("mount -o remount,bind,rw {mount}"),
            format!("mount --bind {mount} /tmp && mount -o remount,bind,rw /tmp"),
        ] {
            let output = host.run(&["exec", &machine, "/bin/sh", "-c", &script]);
            assert_ne!(output.status, 0, "`{script}` worked: {output:?}");
        }
        host.run(&["exec", &machine, "/bin/sh", "-c", "while umount /tmp; do :; done"]);
    }
    // Its own network's settings are its own.
    host.sh(&machine, "echo 1 >/proc/sys/net/ipv4/ip_forward");
    end(&host, &machine);
}

#[test]
fn dev_has_the_standard_nodes_and_terminals_of_its_own() {
    let host = Host::new();
    let machine = started(&host, IDLE);
    let list = host.sh(&machine, "ls /dev");
    let nodes: BTreeSet<&str> = list.split_ascii_whitespace().collect();
    let wanted = [
        "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout",
        "tty", "urandom", "zero",
    ];
    assert_eq!(nodes, BTreeSet::from(wanted));
    assert_eq!(
        host.sh(&machine, "echo x >/dev/null; head -c 3 /dev/zero | wc -c; head -c 5 /dev/urandom | wc -c"),
        "3\n5\n"
    );
    // Terminal 0 is the console, and the host's terminals are not there.
    assert_eq!(host.sh(&machine, "ls /dev/pts").split_whitespace().collect::<Vec<_>>(), ["0", "ptmx"]);
    assert_eq!(host.sh(&machine, "stat -c %t:%T /dev/console"), "88:0\n");
    // No node of the host's disks can be made to work.
    let disk = host.run(&["exec", &machine, "/bin/sh", "-c", "mknod /tmp/d b 8 0 && cat /tmp/d"]);
    assert_ne!(disk.status, 0, "{disk:?}");
    end(&host, &machine);
}

#[test]
fn run_host_tells_what_the_container_interface_says() {
    let host = Host::new();
    let machine = started(&host, &format!("{IDLE}[identity]\nmachine-id = \"0f8fad5bd9cb469fa16570867728950e\"\n"));
    let at = |file: &str| host.sh(&machine, &format!("cat /run/host/{file}"));
    assert_eq!(at("container-manager"), "machinist\n");
    assert_eq!(at("container-uuid"), "0f8fad5b-d9cb-469f-a165-70867728950e\n");
    let os_release = std::fs::read_to_string("/etc/os-release").expect("the host's os-release");
    assert_eq!(at("os-release"), os_release);
    assert_eq!(
        host.sh(&machine, "test -S /run/host/notify && test -d /run/host/incoming && test -p /run/host/kmsg && echo y"),
        "y\n"
    );
    let kinds = host.sh(&machine, "cd /run/host/inaccessible; for f in *; do stat -c '%n %a %F' $f; done");
    assert_eq!(kinds.lines().count(), 6, "{kinds}");
    assert!(kinds.lines().all(|l| l.split(' ').nth(1) == Some("0")), "{kinds}");
    end(&host, &machine);
}

#[test]
fn names_and_boot_ids_are_the_machines_own() {
    let host = Host::new();
    let machine = started(&host, &format!("{IDLE}[identity]\nhostname = \"www\"\n"));
    let boot_id = |machine: &str| host.sh(machine, "cat /proc/sys/kernel/random/boot_id");
    assert_eq!(host.sh(&machine, "hostname"), "www\n");
    let first = boot_id(&machine);
    assert_eq!(first.trim().len(), 36);
    let own = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("boot id");
    assert_ne!(first, own);
    host.ok(&["reboot", &machine]);
    assert_ne!(boot_id(&machine), first);
    end(&host, &machine);
}

#[test]
fn a_private_network_is_a_loopback_that_is_up() {
    let host = Host::new();
    let machine = started(&host, IDLE);
    assert_eq!(host.sh(&machine, "ls /sys/class/net"), "lo\n");
    assert_eq!(host.sh(&machine, "ip -o link | grep -c LOOPBACK,UP"), "1\n");
    assert_eq!(host.sh(&machine, "ping -c 1 127.0.0.1 >/dev/null && echo answered"), "answered\n");
    end(&host, &machine);
}

#[test]
fn the_hosts_network_is_shared_on_request() {
    let host = Host::new();
    let machine = started(&host, &format!("{IDLE}[network]\nmode = \"host\"\n"));
    let links: BTreeSet<String> = std::fs::read_dir("/proc/sys/net/ipv4/conf")
        .expect("links")
        .filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    let inside = host.sh(&machine, "ls /proc/sys/net/ipv4/conf");
    assert_eq!(inside.split_whitespace().map(str::to_owned).collect::<BTreeSet<_>>(), links);
    let change = host.run(&["exec", &machine, "/bin/ip", "link", "set", "lo", "down"]);
    assert_ne!(change.status, 0, "{change:?}");
    end(&host, &machine);
}

#[test]
fn a_clock_of_its_own_counts_from_the_start() {
    let host = Host::new();
    let uptime = |text: &str| text.split('.').next().and_then(|t| t.parse::<u64>().ok()).expect("seconds");
    let machine = started(&host, &IDLE.replace("[boot]\n", "[boot]\nclock = \"own\"\n"));
    let inside = uptime(&host.sh(&machine, "cat /proc/uptime"));
    let outside = uptime(&std::fs::read_to_string("/proc/uptime").expect("uptime"));
    assert!(inside < 120 && inside < outside, "{inside} of {outside}");
    host.ok(&["reboot", &machine]);
    assert!(uptime(&host.sh(&machine, "cat /proc/uptime")) < 120);
    end(&host, &machine);
}

#[test]
fn pid_1_holds_its_console_and_nothing_else() {
    let host = Host::new();
    for (toml, pid) in [(INIT, "1"), (IDLE, "$(pidof sleep)")] {
        let machine = started(&host, toml);
        let look = |what: &str| host.sh(&machine, &what.replace("PID", pid));
        assert_eq!(look("readlink /proc/PID/cwd; readlink /proc/PID/root"), "/\n/\n");
        assert_eq!(look("ls /proc/PID/fd; for f in 0 1 2; do readlink /proc/PID/fd/$f; done"), "0\n1\n2\n/0\n/0\n/0\n");
        end(&host, &machine);
    }
    // The stub is a program of the host, so nobody in the machine may look into it.
    let machine = started(&host, IDLE);
    for file in ["fd", "exe", "cwd", "environ"] {
        let look = host.run(&[
            "exec",
            &machine,
            "/bin/sh",
            "-c",
            &format!("ls /proc/1/{file}/ >/dev/null && cat /proc/1/{file}"),
        ]);
        assert_ne!(look.status, 0, "{file}: {look:?}");
    }
    end(&host, &machine);
}

#[test]
fn pid_1_has_exactly_the_planned_environment_and_limits() {
    let host = Host::new();
    let machine = started(&host, &format!("{INIT}[boot]\nenvironment = {{ LANG = \"C.UTF-8\", HOME = \"/x\" }}\n"));
    let text = host.sh(&machine, "tr '\\0' '\\n' </proc/1/environ");
    let list: Vec<(&str, &str)> = text.lines().filter_map(|l| l.split_once('=')).collect();
    let keys: BTreeSet<&str> = list.iter().map(|(k, _)| *k).collect();
    assert_eq!(keys.len(), list.len(), "each once: {text}");
    let mut wanted = BTreeSet::from(["HOME", "LANG", "LOGNAME", "NOTIFY_SOCKET", "PATH", "TERM", "USER", "container"]);
    wanted.extend(["container_uuid", "container_host_id", "container_host_version_id"]);
    assert_eq!(keys, wanted);
    let value = |key| list.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
    assert_eq!(
        (value("container"), value("HOME"), value("LANG")),
        (Some("systemd-nspawn"), Some("/x"), Some("C.UTF-8"))
    );
    let limits = host.sh(&machine, "cat /proc/1/limits");
    let limit =
        |key: &str| limits.lines().find(|l| l.starts_with(key)).map(|l| l.split_whitespace().nth(3)).expect(key);
    assert_eq!(limit("Max open files"), Some("1024"));
    end(&host, &machine);
}

#[test]
fn a_machine_sees_only_its_own_processes_groups_and_ipc() {
    let host = Host::new();
    let machine = started(&host, IDLE);
    assert_eq!(host.sh(&machine, "cat /proc/$(pidof sleep)/cgroup | tail -1 | cut -d: -f3"), "/\n");
    assert_eq!(
        host.sh(&machine, "test ! -e /sys/fs/cgroup/supervisor && test -w /sys/fs/cgroup/cgroup.procs && echo y"),
        "y\n"
    );
    host.sh(&machine, "mkdir /sys/fs/cgroup/own && rmdir /sys/fs/cgroup/own");
    let ids = host.sh(&machine, "ls /proc | grep -c '^[0-9]'");
    assert!(ids.trim().parse::<u32>().expect("a number") < 8, "{ids}");
    for ns in ["pid", "mnt", "uts", "ipc", "user", "net", "cgroup"] {
        let own = std::fs::read_link(format!("/proc/self/ns/{ns}")).expect("ns");
        assert_ne!(host.sh(&machine, &format!("readlink /proc/self/ns/{ns}")).trim(), own.to_string_lossy(), "{ns}");
    }
    end(&host, &machine);
}

#[test]
fn unknown_system_calls_do_not_exist_and_forbidden_ones_are_forbidden() {
    let host = Host::new();
    // perl can make any system call, and every Debian has it.
    let root = "[root]\noverlay = { lower = [\"/\"], upper = \"ephemeral\" }\n";
    let machine = started(
        &host,
        &format!("{root}[boot]\ncommand = [\"sleep\", \"10000\"]\n[security.seccomp]\ndeny = [\"chdir\"]\n"),
    );
    let errno = |call: &str| host.ok(&["exec", &machine, "perl", "-e", &format!("{call}; print $!+0")]);
    assert_eq!(errno("syscall(100000)"), libc::ENOSYS.to_string());
    assert_eq!(errno(&format!("syscall({}, 0, 0, 0)", libc::SYS_init_module)), libc::EPERM.to_string());
    assert_eq!(errno("chdir('/')"), libc::EPERM.to_string());
    end(&host, &machine);
}

#[test]
fn the_hosts_keys_are_out_of_reach() {
    let host = Host::new();
    let root = "[root]\noverlay = { lower = [\"/\"], upper = \"ephemeral\" }\n";
    let machine = started(
        &host,
        &format!("{root}[boot]\ncommand = [\"sleep\", \"10000\"]\n[security.seccomp]\nallow = [\"@keyring\"]\n"),
    );
    // KEYCTL_GET_KEYRING_ID of the session's, the user's and the user session's keyring.
    let script = format!("print join(' ', map {{ syscall({}, 0, $_, 0) }} (-3, -4, -5))", libc::SYS_keyctl);
    let ids = |text: &str| text.split(' ').map(|id| id.parse().expect("a number")).collect::<BTreeSet<i64>>();
    let inside = ids(&host.ok(&["exec", &machine, "perl", "-e", &script]));
    let outside = std::process::Command::new("perl").args(["-e", &script]).output().expect("perl");
    let outside = ids(&String::from_utf8_lossy(&outside.stdout));
    assert!(inside.iter().chain(&outside).all(|id| *id > 0), "{inside:?} {outside:?}");
    assert!(inside.is_disjoint(&outside), "{inside:?} {outside:?}");
    end(&host, &machine);
}

#[test]
fn without_a_user_namespace_all_else_is_as_tight() {
    let host = Host::new();
    let machine = started(&host, &format!("{INIT}[users]\nmode = \"host\"\n"));
    let status = host.sh(&machine, "cat /proc/1/status");
    // No more than the host lets us have ourselves.
    let own = std::fs::read_to_string("/proc/self/status").expect("status");
    let mask = |status: &str| u64::from_str_radix(field(status, "CapBnd"), 16).expect("a mask");
    assert_eq!((mask(&status), field(&status, "Seccomp")), (0xfdec_bfff & mask(&own), "2"));
    assert_eq!(host.sh(&machine, "ls /proc/1/fd; readlink /proc/1/cwd"), "0\n1\n2\n/\n");
    assert_eq!(host.sh(&machine, "cat /proc/keys /proc/kallsyms 2>/dev/null | wc -c"), "0\n");
    for file in ["/proc/sys/kernel/sysrq", "/sys/kernel/mm/ksm/run", "/run/host/x"] {
        assert_ne!(host.run(&["exec", &machine, "/bin/sh", "-c", &format!("echo 1 >{file}")]).status, 0, "{file}");
    }
    assert_eq!(host.sh(&machine, "ls /sys/class/net; ls /sys/fs/cgroup | grep -c supervisor || true"), "lo\n0\n");
    end(&host, &machine);
}

#[test]
fn our_own_program_is_read_only_where_a_machine_can_see_it() {
    let host = Host::new();
    let machine = started(&host, &format!("{IDLE}[users]\nmode = \"host\"\n"));
    // The stub is our program (CVE-2019-5736). That it is busy protects it only as long as it runs.
    let output = host.run(&["exec", &machine, "/bin/sh", "-c", "echo x >>/proc/1/exe"]);
    assert_ne!(output.status, 0, "{output:?}");
    for pid in ["leader", "supervisor"] {
        let program = format!("/proc/{}/exe", host.status(&machine, pid));
        let flags = nix::sys::statvfs::statvfs(program.as_str()).expect("statvfs").flags();
        assert!(flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY), "{pid}: {flags:?}");
    }
    end(&host, &machine);
}
