//! `org.machinist1`, and the verbs that use it where the daemon runs.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::bus::Bus;
use crate::support::{Host, Output, finish};

const IDLE: &str = "[root]\noverlay = { lower = [\"{busybox}\"], upper = \"ephemeral\" }\n\
                    [boot]\ncommand = [\"/bin/sleep\", \"10000\"]\n";
const BUSYBOX: &str = "[root]\noverlay = { lower = [\"{busybox}\"], upper = \"ephemeral\" }\n";

/// A story with every verb that the daemon may do instead, told by what was printed.
fn story(host: &Host, machine: &str) -> Vec<Output> {
    let verbs = [
        &["start", machine][..],
        &["start", machine],
        &["reboot", machine],
        &["stop", "--timeout", "20s", machine],
        &["stop", machine],
        &["reboot", machine],
        &["start", "nobody-knows-me"],
        &["stop", "nobody-knows-me"],
        &["start", "Not/a-file.toml"],
        &["stop", "-x"],
    ];
    let json = verbs.map(|args| [&["--json"], args].concat());
    verbs.iter().copied().chain(json.iter().map(Vec::as_slice)).map(|args| host.run(args)).collect()
}

fn by_daemon(host: &Host, machine: &str) -> bool {
    let supervisor = host.status(machine, "supervisor");
    let environ = std::fs::read(format!("/proc/{supervisor}/environ")).expect("environ");
    String::from_utf8_lossy(&environ).contains("MACHINIST_BY_DAEMON=1")
}

#[test]
fn verbs_say_the_same_with_and_without_the_daemon() {
    let host = Host::new();
    let machine = host.define("m", BUSYBOX);
    let alone = story(&host, &machine);
    let first = |output: &Output| -> Value { serde_json::from_str(output.stdout.as_str()).expect("JSON") };
    let error = |output: &Output| -> Value { serde_json::from_str(output.stderr.as_str()).expect("JSON") };
    let json = &alone[10..];
    assert_eq!(first(&json[0]), serde_json::json!([{ "name": machine, "result": "started" }]));
    assert_eq!(first(&json[3]), serde_json::json!([{ "name": machine, "result": "stopped" }]));
    assert_eq!(json[1].stdout, "");
    for (output, kind) in [(1, "failed"), (4, "not-running"), (6, "bad-config"), (9, "usage")] {
        let error = &error(&json[output])["error"];
        assert!(error["kind"] == kind && error["causes"].is_array() && error["hints"].is_array(), "{error}");
    }
    host.ok(&["start", &machine]);
    assert!(!by_daemon(&host, &machine));
    host.ok(&["stop", &machine]);
    let bus = Bus::start(&host);
    let together = story(&host, &machine);
    for (alone, together) in alone.iter().zip(&together) {
        assert_eq!(format!("{alone:?}"), format!("{together:?}"));
    }
    host.ok(&["start", &machine]);
    assert!(by_daemon(&host, &machine), "the daemon was not asked");
    host.ok(&["stop", &machine]);
    drop(bus);
    host.assert_nothing_left();
}

#[test]
fn a_start_that_fails_tells_the_same_reason_over_the_bus() {
    let host = Host::new();
    let bad = host.define("bad", "[root]\ndirectory = \"/nonexistent\"\nunknown = 1\n");
    let lost = host.define("lost", "[root]\ndirectory = \"/nonexistent\"\n");
    let alone = [host.run(&["start", &bad]), host.run(&["start", &lost])];
    let _bus = Bus::start(&host);
    let together = [host.run(&["start", &bad]), host.run(&["start", &lost])];
    assert_eq!(format!("{alone:?}"), format!("{together:?}"));
    assert!(alone[0].stderr.contains("unknown") && alone[0].status == 78, "{alone:?}");
}

/// The program as somebody who is not root, in a group of his own.
fn as_other(host: &Host, group: &str, args: &[&str]) -> Output {
    let machinist = host.command();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", &format!("--groups={group}"), "--"]);
    command.arg(machinist.get_program()).args(machinist.get_args()).args(args).env("NO_COLOR", "1");
    finish(command.stdin(Stdio::null()))
}

#[test]
fn others_look_and_act_through_the_daemon_as_far_as_they_may() {
    let host = Host::new();
    std::fs::set_permissions(host.root(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    let machine = host.define("m", IDLE);
    let bus = Bus::start_with(&host, &["--read-group", "4712"]);
    host.ok(&["start", &machine]);
    let (mine, theirs) = (host.ok(&["list", "--json"]), as_other(&host, "4712", &["list", "--json"]));
    assert_eq!((theirs.status, &theirs.stdout), (0, &mine), "{theirs:?}");
    let rows = |text: &str| {
        text.lines().map(|l| l.split_whitespace().take(5).collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    assert_eq!(rows(&as_other(&host, "4712", &["list"]).stdout), rows(&host.ok(&["list"])));
    let details = |text: &str| {
        let mut value: Value = serde_json::from_str(text).expect("JSON");
        // It grows meanwhile.
        value["usage"].as_object_mut().expect("usage").values_mut().for_each(|used| *used = used.is_null().into());
        value
    };
    let theirs = as_other(&host, "4712", &["status", "--json", &machine]);
    assert_eq!(details(&theirs.stdout), details(&host.ok(&["status", "--json", &machine])));
    // Numbers that grow meanwhile, but the same ones.
    fn shape(value: &Value) -> Value {
        match value {
            Value::Object(keys) => keys.iter().map(|(key, value)| (key.clone(), shape(value))).collect(),
            Value::Array(rows) => rows.iter().map(shape).collect(),
            Value::Number(_) => true.into(),
            other => other.clone(),
        }
    }
    for args in [&["stats", "--json", "--interval", "0"][..], &["stats", "--json", "--interval", "0.1", &machine]] {
        let [mine, theirs] = [host.run(args), as_other(&host, "4712", args)].map(|output| {
            assert_eq!((output.status, output.stderr.as_str()), (0, ""), "{args:?}");
            shape(&serde_json::from_str(&output.stdout).expect("JSON"))
        });
        assert_eq!(theirs, mine);
        assert_eq!(mine[0]["usage"]["cpu-usec"], true);
    }
    // No polkit here: others may not look, and readers may not act.
    for (group, args) in [
        ("4713", &["list"][..]),
        ("4713", &["status", &machine]),
        ("4713", &["stats"]),
        ("4713", &["stats", &machine]),
        ("4712", &["start", &machine]),
        ("4712", &["stop", &machine]),
        ("4712", &["reboot", &machine]),
        ("4712", &["set", &machine, "hugetlb.2M=8M"]),
        ("4712", &["set", "--save", &machine, "hugetlb.2M=8M"]),
        ("4712", &["exec", &machine, "--", "id"]),
    ] {
        let refused = as_other(&host, group, args);
        assert_eq!((refused.status, refused.stdout.as_str()), (77, ""), "{args:?}: {refused:?}");
        assert!(refused.stderr.contains("Permission denied: 'org.machinist1."), "{args:?}: {refused:?}");
    }
    let unknown = as_other(&host, "4712", &["stop", "nobody-knows-me"]);
    assert_eq!((unknown.status, unknown.stderr.as_str()), (1, "error: machine 'nobody-knows-me' is not running\n"));
    host.ok(&["stop", &machine]);
    drop(bus);
    host.assert_nothing_left();
}

#[test]
fn limits_are_changed_over_the_bus_with_the_words_of_the_command_line() {
    let host = Host::new();
    let machine = host.define("m", IDLE);
    let bus = Bus::start(&host);
    let set = |settings: &[&str], save: &str| {
        let count = settings.len().to_string();
        let output = bus.own("SetLimits", &[&["sasb", &machine, &count], settings, &[save]].concat());
        let told = if output.status == 0 { output.stdout } else { output.stderr };
        told.trim().trim_start_matches("Call failed: ").replace("\\'", "'")
    };
    assert_eq!(set(&["hugetlb.2M=8M"], "false"), format!("machine '{machine}' is not running"));
    host.ok(&["start", &machine]);
    assert_eq!(set(&["hugetlb.2M=8M"], "false"), format!("s \"Machine '{machine}' has its new limits.\""));
    assert_eq!(host.status(&machine, "limits"), r#"{"hugetlb.2MB":8388608}"#);
    let typed = host.run(&["set", &machine, "hugetlb.2M=lots"]);
    assert_eq!(format!("error: {}\n", set(&["hugetlb.2M=lots"], "false")), typed.stderr);
    // Whatever stands there is a setting and no option.
    assert!(set(&["--save", "hugetlb.2M=16M"], "false").contains("'--save'"));
    let file = host.path("etc/machinist/machines").join(format!("{machine}.toml.d/50-set.toml"));
    assert!(!file.exists());
    let saved = set(&["hugetlb.2M=16M"], "true");
    assert!(saved.contains(&format!("They are in '{}' for later starts, too.", file.display())), "{saved}");
    host.ok(&["stop", "--timeout", "0s", &machine]);
    let saved = set(&["hugetlb.2M="], "true");
    assert!(saved.contains("for its next start."), "{saved}");
    drop(bus);
    host.assert_nothing_left();
}

#[test]
fn a_command_has_the_callers_files_and_gives_its_status() {
    let host = Host::new();
    let machine = host.define("m", IDLE);
    let bus = Bus::start(&host);
    host.ok(&["start", &machine]);
    let client = bus.client();
    let files = || {
        let (input, mut hand) = std::io::pipe().expect("pipe");
        let (output, theirs) = std::io::pipe().expect("pipe");
        std::io::Write::write_all(&mut hand, b"typed\n").expect("write");
        (input, theirs, output)
    };
    let (input, theirs, output) = files();
    let script = "read x; echo $x $A $(id -u) $PWD; exit 7";
    let status = client.exec(&machine, "", &["/bin/sh", "-c", script], &["A=b"], "/tmp", u64::MAX, input, theirs);
    assert_eq!(status, Ok(7));
    let line = BufReader::new(output).lines().next().expect("a line").expect("text");
    assert_eq!(line, "typed b 0 /tmp");
    let (input, theirs, _output) = files();
    let status = client.exec(&machine, "", &["/bin/sleep", "100"], &[], "", 200_000, input, theirs);
    assert_eq!(status, Ok(124), "ended by its time limit");
    for (machine, command, why) in [
        (machine.as_str(), &[][..], "No command given"),
        ("nobody-knows-me", &["id"][..], "No machine 'nobody-knows-me' known"),
        ("../x", &["id"][..], "Invalid machine name"),
    ] {
        let (input, theirs, _output) = files();
        let refused = client.exec(machine, "", command, &[], "", 0, input, theirs);
        assert_eq!(refused.expect_err("refused").1, why);
    }
    host.ok(&["stop", &machine]);
    drop(bus);
    host.assert_nothing_left();
}

#[test]
fn events_tell_of_machines_however_they_were_started() {
    let host = Host::new();
    let machine = host.define("m", IDLE);
    let bus = Bus::start(&host);
    let mut command = host.command();
    let mut listener = command.args(["events", "--json"]).stdout(Stdio::piped()).spawn().expect("spawn");
    let mut lines = BufReader::new(listener.stdout.take().expect("stdout")).lines();
    // It has begun to listen when it hears of this.
    let mut next = || -> Value { serde_json::from_str(&lines.next().expect("a line").expect("text")).expect("JSON") };
    let reload = || drop(bus.own("Reload", &[]));
    let heard = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let heard = &heard;
        scope.spawn(move || {
            while !heard.load(std::sync::atomic::Ordering::Relaxed) {
                reload();
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        });
        assert_eq!(next()["event"], "reloaded");
        heard.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let mut told = |wanted: &str| loop {
        let event = next();
        if event["machine"] == machine.as_str() && event["event"] == wanted {
            return event;
        }
    };
    host.command()
        .env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
        .args(["start", &machine])
        .status()
        .expect("start");
    let running = told("running");
    assert_eq!(running["details"]["leader"].to_string(), host.status(&machine, "leader"));
    host.ok(&["set", &machine, "hugetlb.2M=8M"]);
    assert_eq!(told("limits")["details"], serde_json::json!({ "limits": { "hugetlb.2MB": 8 << 20 } }));
    host.ok(&["stop", &machine]);
    told("stopped");
    // Ours to end: it would listen for ever.
    listener.kill().expect("kill");
    listener.wait().expect("wait");
    drop(bus);
    host.assert_nothing_left();
}
