//! `[resources]` as far as this host can keep them: it has groups of both versions, and on cgroup2 only `hugetlb`.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use machinist::cgroup::limits;
use machinist::host;
use machinist::plan::limits::Limit;
use machinist::spec::{IoMax, ResourceKey, Resources};
use machinist::sys::Errno;

use crate::support::{Host, Output};

const IDLE: &str = "[root]\noverlay = { lower = [\"{busybox}\"], upper = \"ephemeral\" }\n\
                    [boot]\ncommand = [\"/bin/sleep\", \"10000\"]\n";

/// The file of the payload's group where a limit on huge pages is.
fn huge_pages(host: &Host, machine: &str) -> PathBuf {
    PathBuf::from(host.status(machine, "cgroup")).join("payload/hugetlb.2MB.max")
}

fn written(host: &Host, machine: &str) -> String {
    std::fs::read_to_string(huge_pages(host, machine)).expect("a host with `hugetlb` on cgroup2").trim().to_owned()
}

/// An error without the test's own directory in it.
fn shown(host: &Host, output: &Output) -> String {
    output.stderr.replace(&host.root().display().to_string(), "")
}

#[test]
fn a_limit_without_its_controller_is_refused_with_its_line() {
    let host = Host::new();
    let limits = format!("{IDLE}[resources]\npids-max = 64\nhugetlb.2M = \"4M\"\nmemory-max = \"64M\"\n");
    let machine = host.define("limited", &limits);
    for verb in ["plan", "start"] {
        let output = host.run(&[verb, &machine]);
        let text = |key: &str, line: usize, source: &str, controller: &str| {
            let at = source.find(" = ").expect("a value") + 3;
            let caret = format!("{}{}", " ".repeat(at), "^".repeat(source.len() - at));
            format!(
                "error: `resources.{key}`: the controller '{controller}' is not on cgroup2 of this host, but on version 1\n \
                 --> /etc/machinist/machines/{machine}.toml:{line}:{}\n  |\n{line} | {source}\n  | {caret}\n  |\n  \
                 = hint: boot with `cgroup_no_v1=all` (systemd: `systemd.unified_cgroup_hierarchy=1`), \
                 or name the key in `resources.optional`\n",
                at + 1
            )
        };
        let expected =
            [text("pids-max", 6, "pids-max = 64", "pids"), text("memory-max", 8, "memory-max = \"64M\"", "memory")];
        assert_eq!((output.status, shown(&host, &output)), (1, expected.join("\n")), "{verb}");
    }
    host.assert_nothing_left();
}

#[test]
fn what_is_optional_is_passed_over_and_said_in_the_plan() {
    let host = Host::new();
    let limits = format!("{IDLE}[resources]\nmemory-max = \"64M\"\nhugetlb.2M = \"4M\"\noptional = [\"memory-max\"]\n");
    let machine = host.define("limited", &limits);
    let plan = host.ok(&["plan", &machine]);
    assert!(plan.contains("\nlimits        4194304 in hugetlb.2MB.max (hugetlb)\n"), "{plan}");
    assert!(plan.contains("note          not enforced: `resources.memory-max`: the controller 'memory' is "), "{plan}");
    host.ok(&["start", &machine]);
    assert_eq!(written(&host, &machine), "4194304");
    assert_eq!(host.status(&machine, "limits"), r#"{"hugetlb.2MB":4194304}"#);
    assert!(host.ok(&["status", &machine]).contains("\n     Limits: hugetlb.2MB 4.0M\n"));
    host.ok(&["stop", &machine]);
    host.assert_nothing_left();
}

#[test]
fn a_limit_is_the_hosts_and_holds_after_a_reboot() {
    let host = Host::new();
    let machine = host.define("limited", &format!("{IDLE}[resources]\nhugetlb = {{ 2M = \"4M\", 1G = \"0\" }}\n"));
    host.ok(&["start", &machine]);
    for life in ["first", "second"] {
        assert_eq!(written(&host, &machine), "4194304", "{life}");
        let metadata = std::fs::metadata(huge_pages(&host, &machine)).expect("stat");
        assert_eq!((metadata.uid(), metadata.gid()), (0, 0), "{life}");
        // The machine sees its limit as the one of the topmost group there is, and cannot lift it.
        let inside = "cd /sys/fs/cgroup; cat hugetlb.2MB.max; (echo max >hugetlb.2MB.max) 2>&1; ls .. | grep payload; \
                      mkdir below && echo +hugetlb >cgroup.subtree_control; ls below/hugetlb.2MB.max; cat hugetlb.2MB.max";
        let seen = host.run(&["exec", &machine, "/bin/sh", "-c", inside]).stdout;
        let lines: Vec<&str> = seen.lines().collect();
        assert_eq!(lines.first(), Some(&"4194304"), "{seen}");
        assert!(seen.contains("ermission denied") && !seen.contains("payload"), "{seen}");
        assert_eq!(lines.last(), Some(&"4194304"), "{seen}");
        host.ok(&["reboot", &machine]);
    }
    host.ok(&["stop", &machine]);
    host.assert_nothing_left();
}

#[test]
fn sizes_and_disks_that_the_host_does_not_have_are_refused_before_anything_is_made() {
    let host = Host::new();
    let limits =
        "[resources]\nhugetlb.4M = \"8M\"\nio-max = [{ device = \"/proc/self\", read = \"1M\" }]\ncpus = \"0,900\"\n";
    let machine = host.define("limited", &format!("{IDLE}{limits}"));
    let output = host.run(&["start", &machine]);
    let text = shown(&host, &output);
    assert_eq!(output.status, 1, "{text}");
    assert!(text.contains("error: `resources.hugetlb.4M`: this host has huge pages of 2M"), "{text}");
    assert!(text.contains("'/proc/self' is on a file system without a disk (proc)\n"), "{text}");
    assert!(text.contains(", and not 900\n"), "{text}");
    assert!(!host.path("var/lib/machinist").exists());
    host.assert_nothing_left();
}

/// Definition of a machine with 4 MiB of huge pages in all.
fn limited(host: &Host) -> String {
    host.define("limited", &format!("{IDLE}[resources]\nhugetlb.2M = \"4M\"\n"))
}

fn drop_in(host: &Host, machine: &str) -> PathBuf {
    host.path("etc/machinist/machines").join(format!("{machine}.toml.d/50-set.toml"))
}

#[test]
fn a_limit_is_changed_while_the_machine_runs_and_stays_so_until_it_ends() {
    let host = Host::new();
    let machine = limited(&host);
    host.ok(&["start", &machine]);
    let output = host.run(&["set", &machine, "hugetlb.2M=8M", "resources.hugetlb.1G=0"]);
    assert_eq!((output.status, output.stderr), (0, format!("Machine '{machine}' has its new limits.\n")));
    assert_eq!(host.status(&machine, "limits"), r#"{"hugetlb.1GB":0,"hugetlb.2MB":8388608}"#);
    host.ok(&["reboot", &machine]);
    assert_eq!(host.status(&machine, "limits"), r#"{"hugetlb.1GB":0,"hugetlb.2MB":8388608}"#);
    // Without a value it is again what the definition says, or nothing.
    host.ok(&["set", &machine, "hugetlb.2M=", "hugetlb.1G="]);
    assert_eq!(host.status(&machine, "limits"), r#"{"hugetlb.2MB":4194304}"#);
    let group = huge_pages(&host, &machine).with_file_name("hugetlb.1GB.max");
    assert_eq!(std::fs::read_to_string(group).expect("read").trim(), "max");
    host.ok(&["set", &machine, "hugetlb.2M=infinity"]);
    assert_eq!(written(&host, &machine), "max");
    assert!(!drop_in(&host, &machine).parent().expect("a directory").join("50-set.toml").exists());
    host.ok(&["stop", &machine]);
    host.ok(&["start", &machine]);
    assert_eq!(written(&host, &machine), "4194304", "nothing was saved");
    host.ok(&["stop", &machine]);
    host.assert_nothing_left();
}

#[test]
fn what_is_saved_holds_for_later_starts() {
    let host = Host::new();
    let machine = limited(&host);
    let file = drop_in(&host, &machine);
    let output = host.run(&["set", &machine, "hugetlb.2M=6M"]);
    let expected = format!(
        "error: machine '{machine}' is not running\n  \
         hint: `machinist set --save {machine} …` keeps the settings for its next start\n"
    );
    assert_eq!((output.status, output.stderr), (1, expected));
    let output = host.run(&["set", "--save", &machine, "hugetlb.2M=6M"]);
    let expected = format!("They are in '{}' for its next start.\n", file.display());
    assert_eq!((output.status, output.stderr), (0, expected));
    let first = std::fs::read_to_string(&file).expect("the drop-in");
    assert!(first.starts_with("# Written by `machinist set --save`"), "{first}");
    assert!(first.ends_with("\n[resources.hugetlb]\n2M = \"6M\"\n"), "{first}");
    host.ok(&["start", &machine]);
    assert_eq!(written(&host, &machine), "6291456");
    host.ok(&["set", &machine, "hugetlb.2M=2M", "hugetlb.1G=0", "--save"]);
    assert_eq!(written(&host, &machine), "2097152");
    host.ok(&["set", &machine, "hugetlb.2M=", "--save"]);
    assert_eq!(written(&host, &machine), "4194304", "what the definition says");
    let text = std::fs::read_to_string(&file).expect("the drop-in");
    assert!(text.ends_with("\n[resources.hugetlb]\n1G = \"0\"\n"), "{text}");
    host.ok(&["stop", &machine]);
    host.ok(&["start", &machine]);
    assert_eq!(host.status(&machine, "limits"), r#"{"hugetlb.1GB":0,"hugetlb.2MB":4194304}"#);
    host.ok(&["set", &machine, "hugetlb.1G=", "--save"]);
    assert!(!file.exists(), "nothing is left in it");
    host.ok(&["stop", &machine]);
    host.assert_nothing_left();
}

#[test]
fn a_wrong_setting_changes_nothing() {
    let host = Host::new();
    let machine = limited(&host);
    host.ok(&["start", &machine]);
    let dir = drop_in(&host, &machine).with_file_name("");
    let before = std::fs::read_dir(&dir).expect("list").count();
    let output =
        host.run(&["set", "--save", &machine, "hugetlb.2M=8M", "memory-max=12Q", "boot.ready=started", "cpus=1-0"]);
    let expected = "error: `resources.memory-max`: '12Q' is no size, as in \"512M\" or \"50%\"\n --> command line:2:14\n  |\n\
        2 | memory-max = \"12Q\"\n  |              ^^^^^\n  |\n  = hint: the units are K, M, G and T, each 1024 of the one before\n\n\
        error: `boot.ready` cannot be changed while a machine runs: it needs a restart\n --> command line:3:1\n  |\n\
        3 | boot.ready = \"started\"\n  | ^^^^^^^^^^\n  |\n  = hint: edit its definition, stop the machine and start it again\n\n\
        error: `resources.cpus`: the range '1-0' ends before it begins\n --> command line:4:8\n  |\n\
        4 | cpus = \"1-0\"\n  |        ^^^^^\n  |\n  = hint: write \"0-1\"\n";
    assert_eq!((output.status, output.stderr.as_str()), (2, expected));
    // A controller that this host does not have, and a size of pages.
    for save in [&["set", &machine][..], &["set", "--save", &machine]] {
        let refused = host.run(&[save, &["hugetlb.2M=8M", "pids-max=100", "hugetlb.4M=8M"]].concat());
        assert_eq!(refused.status, 1, "{refused:?}");
        assert!(
            refused.stderr.contains("error: `resources.pids-max`: the controller 'pids' is not on cgroup2"),
            "{refused:?}"
        );
        assert!(refused.stderr.contains("error: `resources.hugetlb.4M`: this host has huge pages of "), "{refused:?}");
    }
    // Somebody else's drop-in that comes later.
    std::fs::write(dir.join("90-other.toml"), "# mine\n[resources]\nhugetlb.2M = \"2M\"\n").expect("write");
    let beaten = host.run(&["set", "--save", &machine, "hugetlb.2M=8M"]);
    assert_eq!(beaten.status, 1);
    assert!(
        beaten.stderr.contains("cannot save `resources.hugetlb.2M`: '") && beaten.stderr.contains("in line 3"),
        "{beaten:?}"
    );
    assert_eq!(written(&host, &machine), "4194304");
    assert_eq!(std::fs::read_dir(&dir).expect("list").count(), before + 1, "only the other drop-in came");
    assert_eq!(host.run(&["set", &host.name("nobody"), "pids-max=9"]).status, 1);
    assert_eq!(host.run(&["set", &machine]).status, 2);
    host.ok(&["stop", &machine]);
    host.assert_nothing_left();
}

#[test]
fn a_change_that_fails_halfway_is_undone() {
    let host = Host::new();
    let machine = limited(&host);
    host.ok(&["start", &machine]);
    let group = PathBuf::from(host.status(&machine, "cgroup"));
    let limit =
        |key, file: &str, value: &str, optional| Limit { key, file: file.into(), value: value.into(), optional };
    let old = [limit(ResourceKey::Hugetlb, "hugetlb.2MB.max", "4194304", false)];
    let new = |optional| {
        let pages = limit(ResourceKey::Hugetlb, "hugetlb.2MB.max", "8388608", false);
        // No group of this host has this file.
        [pages, limit(ResourceKey::PidsMax, "pids.max", "100", optional)]
    };
    let error = limits::change(&group, &old, &new(false)).expect_err("no controller");
    assert_eq!((error.key, error.cause.errno), (ResourceKey::PidsMax, Errno::ENOENT));
    assert_eq!(error.cause.call, format!("write '100' to '{}'", group.join("payload/pids.max").display()));
    assert_eq!(written(&host, &machine), "4194304");
    limits::change(&group, &old, &new(true)).expect("the second is optional");
    assert_eq!(written(&host, &machine), "8388608");
    let wrong = [limit(ResourceKey::Hugetlb, "hugetlb.2MB.max", "some", false)];
    assert_eq!(limits::change(&group, &old, &wrong).expect_err("no number").cause.errno, Errno::EINVAL);
    host.ok(&["stop", &machine]);
    host.assert_nothing_left();
}

#[test]
fn a_machine_goes_on_without_its_definition() {
    let host = Host::new();
    let machine = limited(&host);
    host.ok(&["start", &machine]);
    let definition = host.path("etc/machinist/machines").join(format!("{machine}.toml"));
    std::fs::remove_file(&definition).expect("remove");
    std::fs::remove_dir_all(definition.with_extension("toml.d")).expect("remove");
    host.ok(&["set", &machine, "hugetlb.2M=8M"]);
    assert_eq!(written(&host, &machine), "8388608");
    let output = host.run(&["set", "--save", &machine, "hugetlb.2M=2M"]);
    assert_eq!(output.status, 78, "{output:?}");
    assert!(output.stderr.ends_with("hint: without its definition a machine cannot be started again\n"), "{output:?}");
    assert_eq!(written(&host, &machine), "8388608", "all or nothing");
    assert!(!definition.with_extension("toml.d").exists());
    host.ok(&["set", &machine, "hugetlb.2M="]);
    assert_eq!(written(&host, &machine), "max", "there is nothing to go back to");
    assert!(host.ok(&["status", &machine]).contains("running"));
    host.ok(&["reboot", &machine]);
    host.ok(&["stop", &machine]);
    host.assert_nothing_left();
}

#[test]
fn two_who_change_a_machine_at_once_both_have_their_way() {
    let host = Host::new();
    let machine = limited(&host);
    host.ok(&["start", &machine]);
    for round in 1_u64..=5 {
        let (pages, huge) = (format!("hugetlb.2M={}M", 4 * round), format!("hugetlb.1G={round}G"));
        let run = |setting: &str| host.command().args(["--quiet", "set", &machine, setting]).spawn().expect("spawn");
        let mut both = [run(&pages), run(&huge)];
        assert!(both.iter_mut().all(|child| child.wait().expect("wait").success()));
        let expected = format!(r#"{{"hugetlb.1GB":{},"hugetlb.2MB":{}}}"#, round << 30, round << 22);
        assert_eq!(host.status(&machine, "limits"), expected);
    }
    host.ok(&["stop", &machine]);
    host.assert_nothing_left();
}

/// A disk with one partition, which goes with it.
struct Disk(String);

impl Disk {
    fn new(file: &Path) -> Self {
        std::fs::File::create(file).expect("create").set_len(8 << 20).expect("grow");
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output().expect("run losetup");
        let disk = Self(String::from_utf8_lossy(&made.stdout).trim().to_owned());
        assert!(disk.0.starts_with("/dev/loop"), "{made:?}");
        let part = Command::new("addpart").args([&disk.0, "1", "2048", "2048"]).status().expect("run addpart");
        assert!(part.success());
        disk
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("delpart").args([&self.0, "1"]).status();
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_partition_and_a_directory_stand_for_their_disk() {
    let host = Host::new();
    let disk = Disk::new(&host.path("disk"));
    let limit = |device: PathBuf| IoMax { device, read: Some(1), write: None, read_iops: None, write_iops: None };
    let part = PathBuf::from(format!("{}p1", disk.0));
    let paths = [PathBuf::from(&disk.0), part, host.path(""), "/dev/null".into(), host.path("no")];
    let resources = Resources { io_max: paths.iter().cloned().map(limit).collect(), ..Resources::default() };
    let found = host::probe_for(&resources).expect("facts").limits.disks;
    let number: u32 = disk.0.trim_start_matches("/dev/loop").parse().expect("a number");
    assert_eq!(found[&paths[0]], Ok((7, number)));
    assert_eq!(found[&paths[1]], Ok((7, number)), "the partition");
    // What the directory is on has a queue: it is a whole disk.
    let (major, minor) = found[&paths[2]].clone().expect("the test's directory is on a disk");
    assert!(Path::new(&format!("/sys/dev/block/{major}:{minor}/queue")).is_dir());
    assert_eq!(found[&paths[3]], Err("is a character device".to_owned()));
    assert_eq!(found[&paths[4]], Err("No such file or directory".to_owned()));
}
