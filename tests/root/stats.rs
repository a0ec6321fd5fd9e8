//! `stats` of real machines.

use std::path::PathBuf;

use serde_json::Value;

use crate::bus::Bus;
use crate::support::Host;

pub(crate) const IDLE: &str = "[root]\noverlay = { lower = [\"{busybox}\"], upper = \"ephemeral\" }\n\
                               [boot]\ncommand = [\"/bin/sleep\", \"10000\"]\n";
pub(crate) const BUSY: &str = "[root]\noverlay = { lower = [\"{busybox}\"], upper = \"ephemeral\" }\n\
                               [boot]\ncommand = [\"/bin/sh\", \"-c\", \"while :; do :; done\"]\n";

fn json(text: &str) -> Vec<Value> {
    serde_json::from_str(text).expect("an array")
}

#[test]
fn the_busy_machine_uses_the_processor_and_the_idle_one_does_not() {
    let host = Host::new();
    let (busy, idle) = (host.define("busy", BUSY), host.define("idle", IDLE));
    host.ok(&["start", &busy, &idle]);
    let rows = json(&host.ok(&["stats", "--json"]));
    let names: Vec<_> = rows.iter().map(|row| row["name"].as_str().expect("a name")).collect();
    assert_eq!(names, [busy.as_str(), idle.as_str()]);
    for row in &rows {
        assert_eq!(row["state"], "running");
        assert!(row["interval-usec"].as_u64().is_some_and(|usec| usec >= 1_000_000), "{row}");
        let cpu = |key: &str| row["usage"][key].as_u64().expect("a number");
        assert!(cpu("cpu-user-usec") + cpu("cpu-system-usec") <= cpu("cpu-usec") + 2, "{row}");
    }
    let percent = |row: &Value| row["cpu-percent"].as_f64().expect("a number");
    // Two processors are shared with other tests, and the loop has one thread.
    assert!(percent(&rows[0]) > 5.0 && percent(&rows[0]) < 115.0, "{}", rows[0]);
    assert!(percent(&rows[1]) < 1.0, "{}", rows[1]);
    let used = |row: &Value| row["usage"]["cpu-usec"].as_u64().expect("a number");
    assert!(used(&rows[0]) > 2 * used(&rows[1]), "{rows:?}");

    // What this host accounts for is told, and nothing else.
    let payload = PathBuf::from(host.status(&busy, "cgroup")).join("payload");
    for (key, file) in [
        ("memory-bytes", "memory.current"),
        ("memory-peak-bytes", "memory.peak"),
        ("oom-kills", "memory.events"),
        ("swap-bytes", "memory.swap.current"),
        ("tasks", "pids.current"),
        ("io-read-bytes", "io.stat"),
        ("io-writes", "io.stat"),
    ] {
        assert_eq!(!rows[0]["usage"][key].is_null(), payload.join(file).exists(), "{key}: {}", rows[0]);
    }
    for key in ["cpu", "memory", "io"] {
        let told = std::fs::read_to_string(payload.join(format!("{key}.pressure"))).is_ok();
        assert_eq!(rows[0]["usage"]["pressure"][key]["some-percent"].is_number(), told, "{key}: {}", rows[0]);
    }

    // Without a second look there are totals only.
    let totals = json(&host.ok(&["stats", "--json", "--interval", "0", &busy]));
    assert_eq!((totals.len(), &totals[0]["cpu-percent"], &totals[0]["interval-usec"]), (1, &Value::Null, &Value::Null));
    assert!(used(&totals[0]) >= used(&rows[0]));
    // The kernel adds up when it looks at a processor.
    host.wait_for("more processor time", || {
        used(&json(&host.ok(&["stats", "--json", "--interval", "0", &busy]))[0]) > used(&rows[0])
    });
    assert_eq!(totals[0]["leader"].to_string(), host.status(&busy, "leader"));

    let table = host.ok(&["stats", "--interval", "0.2", &idle, &busy]);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0][..4], ["NAME", "STATE", "CPU%", "CPU"], "{table}");
    assert_eq!((lines[1][0], lines[2][0], lines.len()), (idle.as_str(), busy.as_str(), 3), "{table}");
    host.ok(&["stop", "--timeout", "0s", &busy, &idle]);
    host.assert_nothing_left();
}

#[test]
fn what_does_not_run_has_no_numbers() {
    let host = Host::new();
    let machine = host.define("m", IDLE);
    assert_eq!(host.ok(&["stats", "--json"]), "[]\n");
    let none = host.run(&["stats"]);
    assert_eq!((none.status, none.stdout.as_str(), none.stderr.as_str()), (0, "", "No machines are running.\n"));
    for name in [machine.as_str(), "nobody-knows-me"] {
        let refused = host.run(&["stats", name]);
        let expected = format!("error: machine '{name}' is not running\n");
        assert_eq!((refused.status, refused.stdout.as_str(), refused.stderr), (1, "", expected));
    }
    for wrong in [&["stats", "Not/a-name"][..], &["stats", "--interval", "infinity"], &["stats", "--interval", "-1"]] {
        assert_eq!(host.run(wrong).status, 2, "{wrong:?}");
    }
    host.assert_nothing_left();
}

#[test]
fn the_daemon_tells_the_same_by_both_of_its_objects() {
    let host = Host::new();
    let machine = host.define("m", IDLE);
    let bus = Bus::start(&host);
    host.ok(&["start", &machine]);
    let told = bus.own("GetStatistics", &["as", "0"]);
    assert!(told.status == 0 && told.stdout.starts_with("aa{sv} 1 "), "{told:?}");
    assert!(told.stdout.contains("\"cpu-usec\" t ") && told.stdout.contains("\"monotonic-usec\" t "), "{told:?}");
    let (_, label) = bus
        .busctl(&["tree", "--list", "org.machinist1"])
        .stdout
        .lines()
        .find_map(|line| line.split_once("/org/machinist1/machine/").map(|(a, b)| (a.to_owned(), b.to_owned())))
        .expect("an object");
    let path = format!("/org/machinist1/machine/{label}");
    let one = bus.busctl(&["call", "org.machinist1", &path, "org.machinist1.Machine", "GetStatistics"]);
    assert!(one.status == 0 && one.stdout.starts_with("a{sv} 6 "), "{one:?}");
    assert!(one.stdout.contains(&format!("\"name\" s \"{machine}\"")), "{one:?}");
    let unknown = bus.own("GetStatistics", &["as", "2", &machine, "nobody-knows-me"]);
    assert!(unknown.stderr.contains("machine 'nobody-knows-me' is not running"), "{unknown:?}");
    host.ok(&["stop", "--timeout", "0s", &machine]);
    drop(bus);
    host.assert_nothing_left();
}
