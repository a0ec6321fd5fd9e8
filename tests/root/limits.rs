//! `[resources]` as far as this host can keep them: it has groups of both versions, and on cgroup2 only `hugetlb`.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

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
