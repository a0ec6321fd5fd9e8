//! Limits of single processes: of the payload's first process, of commands that enter, and after a reboot.

use crate::support::Host;

const MODES: [&str; 2] = ["auto", "host"];
const LIMITS: &str = "[security]\noom-score-adjust = 300\nnice = -5\n\
                      [security.rlimits]\nnofile = \"512:2048\"\ncore = 0\nmemlock = \"64K:1M\"\ncpu = \"1h:infinity\"\n\
                      nproc = 500\nrttime = \"200ms\"\n";

fn toml(mode: &str, boot: &str, more: &str) -> String {
    format!(
        "users.mode = \"{mode}\"\n[root]\noverlay = {{ lower = [\"{{busybox}}\"], upper = \"ephemeral\" }}\n{boot}{more}"
    )
}

const IDLE: &str = "[boot]\ncommand = [\"/bin/sleep\", \"10000\"]\n";

fn started(host: &Host, toml: &str) -> String {
    let machine = host.define("m", toml);
    host.ok(&["start", &machine]);
    machine
}

fn end(host: &Host, machine: &str) {
    host.ok(&["stop", machine]);
    host.assert_nothing_left();
}

/// Soft and hard limit of a row of `/proc/PID/limits`.
fn limit<'a>(limits: &'a str, row: &str) -> (&'a str, &'a str) {
    let line = limits.lines().find_map(|line| line.strip_prefix(row)).expect(row);
    let mut words = line.split_whitespace();
    (words.next().expect("soft"), words.next().expect("hard"))
}

fn assert_limits(limits: &str, who: &str) {
    let wanted = [
        ("Max open files", ("512", "2048")),
        ("Max core file size", ("0", "0")),
        ("Max locked memory", ("65536", "1048576")),
        ("Max cpu time", ("3600", "unlimited")),
        ("Max processes", ("500", "500")),
        ("Max realtime timeout", ("200000", "200000")),
        // Not asked for.
        ("Max stack size", ("8388608", "unlimited")),
    ];
    for (row, values) in wanted {
        assert_eq!(limit(limits, row), values, "{who}: {row}");
    }
}

#[test]
fn the_payload_and_commands_that_enter_have_the_limits_of_the_file() {
    for mode in MODES {
        for (boot, first) in [("", "1"), (IDLE, "$(pidof sleep)")] {
            let host = Host::new();
            let machine = started(&host, &toml(mode, boot, LIMITS));
            for turn in 1..=2 {
                for pid in [first, "self"] {
                    let who = format!("{mode}, boot {turn}, {pid}");
                    assert_limits(&host.sh(&machine, &format!("cat /proc/{pid}/limits")), &who);
                    let stat = host.sh(&machine, &format!("cut -d' ' -f19 /proc/{pid}/stat"));
                    let adjust = host.sh(&machine, &format!("cat /proc/{pid}/oom_score_adj"));
                    assert_eq!((stat.as_str(), adjust.as_str()), ("-5\n", "300\n"), "{who}");
                }
                // Another user's command, too, with none of root's rights left.
                let entered = host.ok(&["exec", "--user", "1000:1000", &machine, "/bin/cat", "/proc/self/limits"]);
                assert_limits(&entered, "a user");
                if turn == 1 {
                    host.ok(&["reboot", &machine]);
                }
            }
            end(&host, &machine);
        }
    }
}

#[test]
fn what_is_unset_is_the_same_for_the_payload_and_who_enters() {
    let host = Host::new();
    // A filter that refuses the call concerns the machine's programs only.
    let machine = started(&host, &toml("auto", "", "[security.seccomp]\ndeny = [\"prlimit64\", \"setrlimit\"]\n"));
    let rows = ["Max open files", "Max core file size", "Max stack size", "Max locked memory"];
    let first = host.sh(&machine, "cat /proc/1/limits");
    // Whoever calls has limits of their own, which are not the machine's.
    let mut command = std::process::Command::new("sh");
    let machinist = host.command();
    command.args(["-c", "ulimit -Sn 77; ulimit -Sc 4096; exec \"$@\"", "sh"]).arg(machinist.get_program());
    command.args(machinist.get_args()).args(["exec", &machine, "/bin/cat", "/proc/self/limits"]);
    let entered = crate::support::finish(&mut command);
    assert_eq!(entered.status, 0, "{entered:?}");
    for row in rows {
        assert_eq!(limit(&entered.stdout, row), limit(&first, row), "{row}");
    }
    assert_eq!(limit(&first, "Max open files").0, "1024");
    end(&host, &machine);
}

/// Gives up `CAP_SYS_RESOURCE` and `CAP_SYS_NICE`, and lowers the hard limit of open files.
fn start_confined(host: &Host, machine: &str) -> crate::support::Output {
    let machinist = host.command();
    let mut command = std::process::Command::new("sh");
    let script = "ulimit -n 4096 && exec setpriv --bounding-set -sys_resource,-sys_nice -- \"$@\"";
    command.args(["-c", script, "sh"]).arg(machinist.get_program()).args(machinist.get_args());
    crate::support::finish(command.args(["start", machine]).env("NO_COLOR", "1"))
}

#[test]
fn a_limit_that_cannot_be_set_is_an_error_and_nothing_is_left() {
    let cases = [
        (
            "[security.rlimits]\nnofile = \"1024:5000\"\n",
            "cannot set the limit `nofile` to 1024:5000",
            "setrlimit(NOFILE, 4096:5000): Operation not permitted",
            "more than 4096, our own hard limit, needs CAP_SYS_RESOURCE on the host, which we do not have",
        ),
        (
            "[security]\noom-score-adjust = -500\n",
            "cannot set `oom-score-adjust` to -500",
            "write('/proc/self/oom_score_adj', '-500'): Permission denied",
            "less than the present value needs CAP_SYS_RESOURCE on the host, which we do not have",
        ),
        (
            "[security]\nnice = -1\n",
            "cannot set `nice` to -1",
            "setpriority(-1): Permission denied",
            "less than the present value, 0, needs CAP_SYS_NICE on the host",
        ),
    ];
    for mode in MODES {
        for (more, doing, call, hint) in cases {
            let host = Host::new();
            let machine = host.define("m", &toml(mode, IDLE, more));
            let output = start_confined(&host, &machine);
            let stderr =
                format!("error: cannot start machine '{machine}'\n  cause: {doing}\n  cause: {call}\n  hint: {hint}\n");
            let said: String =
                output.stderr.split_inclusive('\n').filter(|line| !line.starts_with("warning: ")).collect();
            assert_eq!((output.status, said.as_str()), (1, &*stderr), "{mode}: {output:?}");
            host.assert_nothing_left();
        }
    }
}

#[test]
fn a_limit_stops_what_it_limits() {
    let host = Host::new();
    let machine = started(&host, &toml("auto", IDLE, "[security.rlimits]\nfsize = \"64K\"\nnofile = 16\n"));
    let written = host.run(&["exec", &machine, "/bin/sh", "-c", "head -c 100000 /dev/zero >/tmp/big; wc -c </tmp/big"]);
    assert_eq!(written.stdout.trim(), "65536", "{written:?}");
    let opened = host.run(&["exec", &machine, "/bin/sh", "-c", "ulimit -n 17"]);
    assert_ne!(opened.status, 0, "nobody inside raises a hard limit: {opened:?}");
    end(&host, &machine);
}
