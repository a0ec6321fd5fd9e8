//! Whole hosts: virtual machines that `tests/vm/build` made, on each of which a script runs as root.
//!
//! What a plain machine cannot show: systemd as the host's PID 1, control groups of one hierarchy with all
//! controllers, real bus names, a reboot of the host. A boot is dear, so a script makes many claims; each test holds the
//! list of all that must be made, and a script that ends early fails by it.

mod support;

use support::{SYSTEMD, SYSVINIT, Vm};

/// Of `scripts/life`.
const LIFE: [&str; 17] = [
    "the host has one unified hierarchy with cpu, memory and pids",
    "plan says what would be done",
    "a machine of busybox starts",
    "its root is root there",
    "its ids are of a range of its own",
    "its root is an overlay that it can write to",
    "it sees its own group as the root of all",
    "the host sees its leader in its own group",
    "it reboots",
    "it has another leader then",
    "the distribution starts beside it",
    "it comes up whole",
    "it reboots in its own way",
    "it comes up whole again",
    "both are listed",
    "both stop",
    "nothing is left of them",
];

#[test]
fn machines_live_on_a_host_with_systemd() {
    Vm::new(SYSTEMD).claims("life", &LIFE);
}

#[test]
fn machines_live_on_a_host_with_sysvinit() {
    Vm::new(SYSVINIT).claims("life", &LIFE);
}
