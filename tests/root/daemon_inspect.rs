//! What the daemon reads of machines: addresses, release, ids, their root. Every machine here can be hostile.

use std::process::Command;

use crate::bus::Bus;
use crate::support::Host;

const SLEEPER: &str = "register = \"yes\"\n[root]\noverlay = { lower = [\"{busybox}\"], upper = \"ephemeral\" }\n\
                       [boot]\ncommand = [\"/bin/sh\", \"-c\", \"{prepare}; while :; do sleep 1; done\"]\n";

/// Starts a machine that does `prepare` and then nothing; the daemon knows it.
pub(crate) fn sleeper(host: &Host, name: &str, prepare: &str, more: &str) -> String {
    let machine = host.define(name, &(SLEEPER.replace("{prepare}", prepare) + more));
    host.ok(&["start", &machine]);
    machine
}

/// Ends machines and waits until they are gone.
pub(crate) fn done(host: &Host, machines: &[&str]) {
    for machine in machines {
        host.ok(&["kill", machine]);
    }
    for machine in machines {
        let run = host.path("run/machinist/machines").join(machine);
        host.wait_for("the end of the machine", || !run.exists());
    }
}

#[test]
fn addresses_are_those_of_the_machine_that_others_can_reach() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let private = sleeper(&host, "a", "true", "[network]\nmode = \"private\"\n");
    let shared = sleeper(&host, "b", "true", "[network]\nmode = \"host\"\n");
    assert_eq!(bus.ok("GetMachineAddresses", &["s", &private]), "a(iay) 0");
    let leader = host.status(&private, "leader");
    for line in [
        "link add d0 type veth peer name d1",
        "link set d0 addrgenmode none up",
        "link set d1 addrgenmode none up",
        "addr add 10.9.8.7/24 dev d1",
        "addr add 10.9.8.7/24 dev d0",
        "addr add 10.1.2.3 peer 10.1.2.4 dev d0",
        "addr add 10.5.5.5/24 dev d0 scope host",
        "addr add fd00::5/64 dev d0 nodad",
        "addr add fd00::6/64 dev d0 nodad preferred_lft 0 valid_lft 1000",
        "addr add fe80::5/64 dev d0 nodad",
    ] {
        let ip = ["--target", &leader, "--net", "--", "ip"];
        let status = Command::new("nsenter").args(ip).args(line.split(' ')).status().expect("run nsenter");
        assert!(status.success(), "ip {line}");
    }
    // The same address on two links is two of them for the kernel, and one for whoever wants to connect.
    let answer = bus.ok("GetMachineAddresses", &["s", &private]);
    let expected = "a(iay) 4 2 4 10 9 8 7 2 4 10 1 2 3 \
                    10 16 253 0 0 0 0 0 0 0 0 0 0 0 0 0 0 5 10 16 254 128 0 0 0 0 0 0 0 0 0 0 0 0 0 5";
    assert_eq!(answer, expected);
    let error = bus.refused("GetMachineAddresses", &["s", &shared]);
    assert_eq!(error, format!("Machine {shared} does not use private networking"));
    // A thread of the daemon has been in the machine; all of them are back.
    let ours = std::fs::read_link("/proc/self/ns/net").expect("our network");
    for task in std::fs::read_dir(format!("/proc/{}/task", bus.daemon())).expect("threads").flatten() {
        assert_eq!(std::fs::read_link(task.path().join("ns/net")).expect("a network"), ours);
    }
    assert!(bus.ok("GetMachineAddresses", &["s", ".host"]).starts_with("a(iay) "));
    done(&host, &[&private, &shared]);
    host.assert_nothing_left();
}

#[test]
fn the_release_is_read_from_the_machine_and_from_nowhere_else() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let cases = [
        ("plain", "rm -f /etc/os-release; echo 'ID=own' > /etc/os-release", Ok("a{ss} 1 \"ID\" \"own\"")),
        ("fifo", "rm -f /etc/os-release /usr/lib/os-release; mkfifo /etc/os-release", Err(())),
        ("device", "rm -f /etc/os-release /usr/lib/os-release; ln -s /dev/zero /etc/os-release", Err(())),
        (
            "inside",
            "rm -f /etc/os-release /usr/lib/os-release; ln -s ../../../../x /etc/os-release; echo ID=x > /x",
            Ok("a{ss} 1 \"ID\" \"x\""),
        ),
        (
            // The host's root, by way of a process of the host's: a magic link of procfs.
            "magic",
            "rm -f /etc/os-release /usr/lib/os-release; ln -s /proc/self/root/x /etc/os-release; echo ID=x > /x",
            Err(()),
        ),
        (
            "large",
            "rm -f /etc/os-release /usr/lib/os-release; dd if=/dev/zero of=/etc/os-release bs=1M count=9",
            Err(()),
        ),
    ];
    for (name, prepare, expected) in cases {
        let machine = sleeper(&host, name, &format!("{{ {prepare}; }} 2>/dev/null; touch /ready"), "");
        host.wait_for("the machine", || host.run(&["exec", &machine, "test", "-e", "/ready"]).status == 0);
        let answer = bus.call("GetMachineOSRelease", &["s", &machine]);
        match expected {
            Ok(text) => assert_eq!((answer.status, answer.stdout.trim()), (0, text), "{name}: {answer:?}"),
            Err(()) => {
                assert_ne!(answer.status, 0, "{name}: {answer:?}");
                assert_eq!(answer.stdout, "", "{name}");
            }
        }
        done(&host, &[&machine]);
    }
    let own = bus.ok("GetMachineOSRelease", &["s", ".host"]);
    let text = std::fs::read_to_string("/etc/os-release").expect("the host's own");
    let id = text.lines().find_map(|l| l.strip_prefix("ID=")).expect("an ID").trim_matches('"').to_owned();
    assert!(own.contains(&format!("\"ID\" \"{id}\"")), "{own}");
    host.assert_nothing_left();
}

#[test]
fn ids_of_a_machine_are_found_both_ways() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let mapped = sleeper(&host, "m", "true", "");
    let plain = sleeper(&host, "p", "true", "[users]\nmode = \"host\"\n");
    let map = std::fs::read_to_string(format!("/proc/{}/uid_map", host.status(&mapped, "leader"))).expect("map");
    let shift: u32 = map.split_whitespace().nth(1).expect("a shift").parse().expect("a number");
    assert!(shift >= 0x10000, "{map}");
    assert_eq!(bus.ok("GetMachineUIDShift", &["s", &mapped]), format!("u {shift}"));
    assert_eq!(bus.ok("GetMachineUIDShift", &["s", &plain]), "u 0");
    assert_eq!(bus.ok("GetMachineUIDShift", &["s", ".host"]), "u 0");
    let path = bus.ok("GetMachine", &["s", &mapped]);
    let path = path.strip_prefix("o ").expect("a path");
    for kind in ["User", "Group"] {
        let (from, to) = (format!("MapFromMachine{kind}"), format!("MapToMachine{kind}"));
        let word = kind.to_lowercase();
        assert_eq!(bus.ok(&from, &["su", &mapped, "1000"]), format!("u {}", shift + 1000));
        assert_eq!(bus.ok(&to, &["u", &(shift + 1000).to_string()]), format!("sou \"{mapped}\" {path} 1000"));
        let text = format!("Machine '{mapped}' has no matching {word} mappings.");
        assert_eq!(bus.refused(&from, &["su", &mapped, "70000"]), text);
        // Sharing all ids with the host is no mapping.
        let text = format!("Machine '{plain}' has no matching {word} mappings.");
        assert_eq!(bus.refused(&from, &["su", &plain, "1000"]), text);
        let letter = if kind == "User" { 'U' } else { 'G' };
        assert_eq!(bus.refused(&to, &["u", "1000"]), format!("{kind} 1000 belongs to host {letter}ID range"));
        assert_eq!(bus.refused(&to, &["u", "4000000000"]), format!("No matching {word} mapping for 4000000000."));
        assert_eq!(bus.refused(&to, &["u", "4294967295"]), format!("Invalid {word} ID 4294967295"));
        assert_eq!(bus.refused(&from, &["su", "nobody-here", "1"]), "No machine 'nobody-here' known");
    }
    done(&host, &[&mapped, &plain]);
    host.assert_nothing_left();
}

#[test]
fn an_old_name_of_a_property_is_answered_and_not_shown() {
    let host = Host::new();
    let bus = Bus::start(&host);
    let object = ["org.freedesktop.machine1", "/org/freedesktop/machine1/machine/_2ehost"];
    let get = bus.busctl(&["get-property", object[0], object[1], "org.freedesktop.machine1.Machine", "Scope"]);
    assert_eq!(get.stdout, "s \"-.slice\"\n", "{get:?}");
    let properties = "org.freedesktop.DBus.Properties";
    let all = bus.busctl(&["call", object[0], object[1], properties, "GetAll", "s", ""]);
    assert!(all.stdout.contains("\"Unit\" s \"-.slice\"") && !all.stdout.contains("Scope"), "{all:?}");
    let shown = bus.busctl(&["introspect", object[0], object[1]]);
    assert!(shown.stdout.contains(".Unit") && !shown.stdout.contains(".Scope"), "{shown:?}");
}
