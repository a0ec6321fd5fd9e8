//! Whole hosts: virtual machines that `tests/vm/build` made, on each of which a script runs as root.
//!
//! What a plain machine cannot show: systemd as the host's PID 1, control groups of one hierarchy with all
//! controllers, real bus names, a reboot of the host. A boot is dear, so a script makes many claims; each test holds the
//! list of all that must be made, and a script that ends early fails by it.
#![allow(clippy::disallowed_methods, reason = "tests run programs and fail with a backtrace where a file is missing")]

mod support;

use support::{SYSTEMD, SYSVINIT, Vm};

/// Of `scripts/life`.
const LIFE: [&str; 19] = [
    "it installs",
    "the host has one unified hierarchy with cpu, memory and pids",
    "plan says what would be done",
    "and what this kernel has no better way for",
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

/// Of `scripts/machined`.
const MACHINED: [&str; 33] = [
    "it installs beside systemd-container",
    "systemd finds no fault with the units",
    "a machine starts from a login session",
    "the session is over without it",
    "it is in a unit of its own",
    "a distribution starts beside it",
    "systemd-machined knows both",
    "it knows the leader",
    "it knows the unit",
    "machinectl status shows the processes",
    "machinectl shell opens a shell",
    "machinectl reboot restarts it",
    "it is known again",
    "machinectl poweroff stops it",
    "machinectl terminate stops the other",
    "nothing is left of them",
    "a machine starts as a unit",
    "the supervisor is its main process",
    "the leader is beside that",
    "systemd-machined knows the unit",
    "a reboot from inside restarts it",
    "a poweroff from inside ends the unit",
    "systemctl stop stops it in the way of its init",
    "the unit did not fail",
    "a unit whose supervisor is killed has failed",
    "and leaves nothing",
    "it is enabled",
    "another is started from a login session",
    // The host reboots.
    "both machines were stopped in the way of their init when the host went down",
    "an enabled machine is up after a reboot of the host",
    "and systemd-machined knows it",
    "it is disabled and stopped",
    "nothing is left of it after that",
];

/// Of `scripts/units`.
const UNITS: [&str; 36] = [
    "it installs",
    "a machine starts in a scope",
    "systemd takes it for one machine",
    "status names it",
    "the scope stops it in the way of its init",
    "it starts and stops, one after the other",
    "it starts again after a killed supervisor",
    "in a scope again",
    "it stops",
    "run has a scope, too",
    "and is in it",
    "it ends when it is told to",
    "nothing is left of them",
    "without a bus a start says so in one line",
    "and the group is below ours",
    "it stops without a bus",
    "nothing is left of it",
    "a named machine is started by systemd",
    "and stopped",
    "the verbs have something to tell",
    "systemd or we, start and stop print the same, also with --json",
    "nothing is left of these",
    "the plan has it in its unit",
    "a watched service starts",
    "its supervisor makes its own group where systemd does not",
    "beside the payload",
    "it lives on under the watchdog",
    "a supervisor that hangs is noticed",
    "by the watchdog",
    "a payload that ends with 133 ends its unit",
    "and is not restarted",
    "one begins",
    "another starts, which may not begin beside it",
    "when the first is ready",
    "both stop",
    "nothing is left of any",
];

/// Of `scripts/daemon`.
const DAEMON: [&str; 26] = [
    "it installs",
    "the daemon starts",
    "it owns machine1",
    "nobody else is behind the name",
    "ten machines start",
    "ten more start",
    "machine1 has all twenty",
    "with their leaders",
    "a killed daemon is there again",
    "it finds all twenty",
    "with the same leaders",
    "no machine noticed",
    "a newer program is installed",
    "the daemon restarts",
    "machine1 is owned by another process",
    "which runs the newer program",
    "it finds all twenty, too",
    "with the same leaders still",
    "no machine noticed that, either",
    "machines are entered after it",
    "a machine that was started before reboots",
    "machine1 has its new leader",
    "TerminateMachine ends one",
    "the others stop",
    "machine1 has none",
    "nothing is left of them",
];

/// Of `scripts/foreign`.
const FOREIGN: [&str; 38] = [
    "it installs",
    "the daemon starts",
    "it takes over the sockets of systemd-machined",
    "a container of nspawn starts",
    "it is a machine",
    "its scope is where machines are, delegated and held",
    "it is known to be in it",
    "its first process is",
    "what ps says of that",
    "Varlink says the same",
    "its users have names",
    "the journal has its start",
    "a signal to its leader powers it off",
    "machine and scope are gone then",
    "the journal has its end",
    "another container starts",
    "it is a machine, too",
    "it comes up",
    "machinectl terminate ends it",
    "it is gone then, and its scope",
    "a process is made a machine",
    "it is in its scope by then",
    "its name is taken then",
    "a signal for all of it reaches the scope",
    "it is gone",
    "a job of systemd that fails is told",
    "what systemd refuses is refused in its words",
    "nothing has become of that",
    "a limit of the caller is obeyed",
    "in place of the usual one",
    "somebody without rights is asked to authenticate",
    "it is forgotten and left alone",
    "the scope ends with the process",
    "Varlink makes a scope, too",
    "for a machine of its class",
    "Varlink terminates it",
    "it is gone, too",
    "nothing is left of them",
];

/// Of `scripts/sysvinit`.
const SYSVINIT_SERVICES: [&str; 18] = [
    "it installs",
    "without control groups it says what to do",
    "the services are enabled",
    "one of them mounts control groups and starts the machines",
    "both are up",
    "it says so",
    "it stops both",
    "the first in the way of its init",
    "nothing is left of them",
    "it starts them again",
    // The host reboots.
    "the machine was stopped in the way of its init when the host went down",
    "the machines are up after a reboot of the host",
    "the daemon is, too",
    "and is machine1",
    "the services say so",
    "they stop",
    "no machine is left",
    "nothing is left of them",
];

/// Of `scripts/package`.
const PACKAGE: [&str; 29] = [
    "the package installs",
    "nothing is enabled",
    "and nothing runs",
    "every verb has a page",
    "and the machine file",
    "shells complete it",
    "one file and one command make a machine",
    "systemd-machined knows it",
    "the package is installed anew",
    "the machine went on",
    "the machine is written to",
    "a second owner of machine1 is refused beside systemd-container",
    "systemd-container is removed",
    "now it is taken",
    "machines have a target still",
    "the bus starts our daemon as machine1",
    // The host reboots.
    "the machine is up by a target of ours after a reboot of the host",
    "with what was written",
    "our daemon knows it",
    "a restart of it is seen",
    "the packages are removed",
    "no process is left",
    "the definition is",
    "what the machine wrote is",
    "the settings are until they are purged",
    "the packages are purged",
    "the definition is there even then",
    "and what the machine wrote",
    "and nothing else of ours",
];

/// Of `scripts/services`.
const SERVICES: [&str; 21] = [
    "the packages install",
    "nothing runs",
    "the daemon starts",
    "its status says so",
    "both machines start",
    "their status says so",
    "machine1 knows both",
    "the daemon restarts",
    "it knows both",
    "it stops",
    "no machine noticed",
    "the bus starts it again",
    "the machines stop",
    "that is their status",
    "a daemon that cannot serve is a service that does not start",
    "both services are enabled",
    // The host reboots.
    "both machines are up after a reboot of the host",
    "and known",
    "the packages are removed",
    "no process is left",
    "what the machines wrote is",
];

/// Of `scripts/stats`.
const STATS: [&str; 22] = [
    "it installs",
    "three machines start",
    "everything is accounted for",
    "limits are told",
    "and null where there are none",
    "a loop gets the half of a processor that it may have",
    "the others next to nothing",
    "it is held back for the rest",
    "it is the first of top",
    "a machine fills memory",
    "which is its own",
    "what wants more than there is is killed",
    "and counted",
    "the most there was is known",
    "the machine lives",
    "its tasks are those that the kernel counts",
    "a machine writes to a disk",
    "that is counted, too",
    "others are told the same by the daemon",
    "and watch it",
    "they stop",
    "nothing is left of them",
];

/// Of `scripts/limits`.
const LIMITS: [&str; 45] = [
    "the package installs",
    "a machine with limits starts",
    "they are on its own group",
    "who takes more memory than there is is killed",
    "which is counted",
    "the machine lives on",
    "and takes what it may",
    "a fork bomb comes up against its limit",
    "it has no more tasks than that",
    "the host is usable",
    "a lower limit ends it",
    "it is lifted",
    "as the kernel has it",
    "what was entered then works",
    "it is still the same machine",
    "processor time is limited",
    "the limit holds within a tenth",
    "it is changed",
    "the new one holds, too",
    "it is lifted, and what was limited ends",
    "writing to the disk is limited",
    "that limit holds within a tenth",
    "reading is limited, and writing no more",
    "what was written slowly is over soon",
    "it is read as slowly as that",
    "a device is read",
    "and not written, which is not allowed",
    "one that was not asked for is not there",
    "a limit is saved",
    "systemd reloads",
    "which changes nothing",
    "the machine restarts",
    "what was saved is there",
    "beside what was in the definition",
    "what was not is gone",
    "a value that cannot be is refused",
    "processors that are not there are, too",
    "so is a disk that is not there",
    "what takes a restart says so",
    "nothing has changed by that",
    "a machine of a device that is not there does not start",
    "nor one with a limit that systemd does not hand on",
    "a machine without its definition stops",
    "and is gone",
    "nothing is left of any",
];

/// Of `scripts/chain`, on both hosts; then they reboot.
const CHAIN: [&str; 25] = [
    "the package installs",
    "a machine starts with those it requires",
    "each when the one before it is ready",
    "all of them run",
    "the first of them stops with those that require it",
    "each when the one after it has stopped",
    "none runs",
    "what requires itself is refused",
    "a first machine that fails stops the others",
    "of which none began",
    "and none runs",
    "a machine starts that is to be kept up",
    "it crashes and is there again",
    "its supervisor is killed, and it is there again",
    "it crashes too often and is not",
    "so often was it started",
    "its log says why",
    "it starts when it is told to",
    "it stops when it is told to, and stays so",
    "another is started that is not to be kept up",
    "its supervisor is killed, and nothing of it is there",
    "it can be started",
    "and stopped",
    "they start again",
    "in their order",
];

/// The rest of it with systemd.
const CHAIN_WITH_SYSTEMD: [&str; 11] = [
    "what starts with the host is there after its reboot",
    "it was stopped in the same order, and started again",
    "systemd has each as a unit",
    "systemd stops the first",
    "and before it those that require it",
    "systemd starts the last",
    "and before it those that it requires",
    "systemd says that one did not start because of another",
    "and that the first failed",
    "nothing runs",
    "nothing is left of any",
];

/// The rest of it without.
const CHAIN_WITH_SYSVINIT: [&str; 7] = [
    "what starts with the host is there after its reboot",
    "it was stopped in the same order, and started again",
    "the service says so",
    "it stops them",
    "in the same order",
    "nothing runs",
    "nothing is left of any",
];

#[test]
fn machines_live_on_a_host_with_systemd() {
    Vm::new(SYSTEMD).claims("life", &LIFE);
}

#[test]
fn machines_live_on_a_host_with_sysvinit() {
    Vm::new(SYSVINIT).claims("life", &LIFE);
}

#[test]
fn systemd_and_machined_know_machines_as_their_own() {
    Vm::new(SYSTEMD).claims("machined", &MACHINED);
}

#[test]
fn machines_are_units_of_systemd() {
    Vm::new(SYSTEMD).claims("units", &UNITS);
}

#[test]
fn what_machines_use_is_told_where_the_host_accounts_for_it() {
    Vm::new(SYSTEMD).claims("stats", &STATS);
}

#[test]
fn no_machine_notices_what_becomes_of_the_daemon_with_systemd() {
    Vm::new(SYSTEMD).claims("daemon", &DAEMON);
}

#[test]
fn no_machine_notices_what_becomes_of_the_daemon_with_sysvinit() {
    Vm::new(SYSVINIT).claims("daemon", &DAEMON);
}

#[test]
fn machines_of_others_get_scopes_of_systemd() {
    Vm::new(SYSTEMD).claims("foreign", &FOREIGN);
}

#[test]
fn init_scripts_run_machines_and_the_daemon() {
    Vm::new(SYSVINIT).claims("sysvinit", &SYSVINIT_SERVICES);
}

#[test]
fn a_package_is_enough_for_machines_that_start_with_the_host() {
    Vm::with_packages(SYSTEMD).claims("package", &PACKAGE);
}

#[test]
fn a_package_brings_services_without_systemd() {
    Vm::with_packages(SYSVINIT).claims("services", &SERVICES);
}

#[test]
fn limits_hold_and_are_changed() {
    Vm::with_packages(SYSTEMD).claims("limits", &LIMITS);
}

#[test]
fn machines_live_in_their_order_with_systemd() {
    Vm::with_packages(SYSTEMD).claims("chain", &[&CHAIN[..], &CHAIN_WITH_SYSTEMD[..]].concat());
}

#[test]
fn machines_live_in_their_order_with_sysvinit() {
    Vm::with_packages(SYSVINIT).claims("chain", &[&CHAIN[..], &CHAIN_WITH_SYSVINIT[..]].concat());
}
