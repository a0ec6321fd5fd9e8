//! Runs compiled programs in a small classic BPF machine and compares them with what the tables say by name.

use std::collections::BTreeSet;

use super::tables::{AARCH64, X86, X86_64};
use super::*;

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const EAFNOSUPPORT: u32 = 0x0005_0061;

/// What a machine keeps by default.
const DEFAULT_CAPS: u64 = 0xfdec_afff;

const X32_BIT: u32 = 0x4000_0000;

fn call_name(arch: &Arch, number: usize) -> Option<&'static str> {
    match arch.token {
        0xc000_003e => syscalls::x86_64::Sysno::new(number).map(|call| call.name()),
        0x4000_0003 => syscalls::x86::Sysno::new(number).map(|call| call.name()),
        0xc000_00b7 => syscalls::aarch64::Sysno::new(number).map(|call| call.name()),
        token => panic!("no names for architecture {token:#x}"),
    }
}

fn number(arch: &Arch, name: &str) -> u32 {
    let found = (0..600).find(|number| call_name(arch, *number) == Some(name));
    u32::try_from(found.unwrap_or_else(|| panic!("no call '{name}'"))).unwrap()
}

/// The answer of a program and the number of instructions it took to find it.
fn run(program: &[Insn], token: u32, number: u32, arguments: [u64; 6]) -> (u32, usize) {
    let mut data = vec![number, token, 0, 0];
    let half = |value: u64| u32::try_from(value & 0xffff_ffff).unwrap();
    data.extend(arguments.iter().flat_map(|value| [half(*value), half(value >> 32)]));
    let (mut at, mut accumulator) = (0, 0);
    for steps in 1.. {
        let Insn { code, jt, jf, k } = program[at];
        at += 1;
        let choose = |holds| usize::from(if holds { jt } else { jf });
        match code {
            0x20 => accumulator = data[k as usize / 4],
            0x15 => at += choose(accumulator == k),
            0x35 => at += choose(accumulator >= k),
            0x05 => at += k as usize,
            0x06 => return (k, steps),
            _ => panic!("unexpected operation {code:#x}"),
        }
    }
    unreachable!("steps are counted without end")
}

fn answer(program: &[Insn], arch: &Arch, number: u32) -> u32 {
    run(program, arch.token, number, [0; 6]).0
}

/// Compiles for one architecture and asks about calls by name.
fn ask(arch: &Arch, policy: &SyscallPolicy, caps: u64, names: &[&str]) -> Vec<u32> {
    let program = compile_for(&[arch], policy, caps);
    names.iter().map(|name| answer(&program, arch, number(arch, name))).collect()
}

fn policy(allow: &[&str], deny: &[&str]) -> SyscallPolicy {
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    SyscallPolicy { allow: owned(allow), deny: owned(deny) }
}

/// The rules a kernel applies before it takes a program.
fn assert_loadable(program: &[Insn]) {
    assert!(program.len() <= 4096, "{} instructions", program.len());
    for (at, insn) in program.iter().enumerate() {
        let reach = match insn.code {
            0x20 => {
                assert!(insn.k % 4 == 0 && insn.k < 64, "load from {}", insn.k);
                1
            }
            0x15 | 0x35 => 1 + usize::from(insn.jt.max(insn.jf)),
            0x05 => 1 + insn.k as usize,
            0x06 => 0,
            code => panic!("operation {code:#x} at {at}"),
        };
        assert!(at + reach < program.len(), "instruction {at} leads past the end");
    }
}

fn expected(name: Option<&str>, caps: u64) -> u32 {
    let home = name.and_then(|name| SETS.iter().find(|set| set.calls.contains(&name)));
    match home.map(|set| set.grant) {
        None => ENOSYS,
        Some(Grant::Always) => ALLOW,
        Some(Grant::With(capability)) if capability.is_in(caps) => ALLOW,
        Some(Grant::With(_) | Grant::Never) => EPERM,
    }
}

#[test]
fn every_number_gets_what_its_set_says() {
    for arch in [&X86_64, &X86, &AARCH64] {
        for caps in [0, DEFAULT_CAPS, u64::MAX] {
            let program = compile_for(&[&AARCH64, &X86, &X86_64], &SyscallPolicy::default(), caps);
            assert_loadable(&program);
            for number in 0..600 {
                let name = call_name(arch, number as usize);
                let got = answer(&program, arch, number);
                assert_eq!(got, expected(name, caps), "{:#x} call {number} {name:?} caps {caps:#x}", arch.token);
            }
        }
    }
}

#[test]
fn x32_calls_and_numbers_past_the_tables_are_unknown() {
    let program = compile(&policy(&["@known"], &[]), u64::MAX);
    for arch in NATIVE {
        for number in (0..600).map(|number| number | X32_BIT).chain([600, X32_BIT - 1, u32::MAX - 1, u32::MAX]) {
            assert_eq!(answer(&program, arch, number), ENOSYS, "call {number:#x}");
        }
    }
}

#[test]
fn foreign_architectures_get_an_error_and_no_signal() {
    let program = compile(&policy(&["@known"], &[]), u64::MAX);
    for token in [0, 0x4000_0028, 0xc000_00f3, u32::MAX] {
        assert_eq!(run(&program, token, 0, [0; 6]).0, ENOSYS, "architecture {token:#x}");
    }
}

#[test]
fn every_call_stands_in_exactly_one_set() {
    let listed: Vec<&str> = SETS.iter().flat_map(|set| set.calls).copied().collect();
    let once: BTreeSet<&str> = listed.iter().copied().collect();
    assert_eq!(listed.len(), once.len(), "a call is listed twice");
    let mut known: BTreeSet<&str> =
        [&X86_64, &X86, &AARCH64].iter().flat_map(|arch| (0..600).filter_map(|nr| call_name(arch, nr))).collect();
    // Never implemented, and the crate has to write it as a raw identifier.
    assert!(known.remove("r#break"));
    assert_eq!(once, known);
}

#[test]
fn members_of_unions_are_calls_or_sets() {
    for member in UNIONS.iter().flat_map(|union| union.members) {
        assert!(SETS.iter().any(|set| set.name == *member || set.calls.contains(member)), "{member}");
    }
}

/// Calls that the filters of systemd-nspawn 257.13 with libseccomp 2.6 and default capabilities do not allow
/// on x86_64, read from the filters it loads.
const NSPAWN_257_REFUSES: &str = "_sysctl acct add_key adjtimex afs_syscall bpf clock_adjtime clock_settime \
    create_module delete_module fanotify_init fanotify_mark file_getattr file_setattr finit_module futex_requeue \
    futex_wait futex_wake get_kernel_syms getpmsg init_module ioperm iopl kexec_file_load kexec_load keyctl \
    lookup_dcookie lsm_set_self_attr map_shadow_stack memfd_secret mlock mlock2 mlockall modify_ldt munlock \
    munlockall nfsservctl open_by_handle_at open_tree_attr perf_event_open pidfd_getfd pkey_alloc pkey_free \
    pkey_mprotect process_mrelease putpmsg query_module quotactl quotactl_fd request_key security settimeofday \
    swapoff swapon sysfs syslog tuxcall uprobe uselib ustat vserver";

/// Newer than that systemd's lists, and of no more power than calls it allows.
const ALLOWED_BEYOND_NSPAWN: &str = "file_getattr file_setattr futex_requeue futex_wait futex_wake \
    map_shadow_stack open_tree_attr uprobe";

#[test]
fn default_profile_is_that_of_systemd_nspawn_and_some_new_calls() {
    let program = compile_for(&[&X86_64], &SyscallPolicy::default(), DEFAULT_CAPS);
    let refused: BTreeSet<&str> = (0..600)
        .filter(|number| answer(&program, &X86_64, *number) != ALLOW)
        .filter_map(|number| call_name(&X86_64, number as usize))
        .collect();
    let ours: BTreeSet<&str> = ALLOWED_BEYOND_NSPAWN.split_whitespace().collect();
    let theirs: BTreeSet<&str> = NSPAWN_257_REFUSES.split_whitespace().collect();
    assert!(ours.is_subset(&theirs));
    assert_eq!(refused, &theirs - &ours);
}

#[test]
fn audit_sockets_do_not_exist() {
    let (inet, netlink, audit, high) = (2, 16, 9, 1 << 40);
    for arch in [&X86_64, &X86, &AARCH64] {
        let program = compile_for(&[arch], &SyscallPolicy::default(), 0);
        let socket = |domain, protocol| {
            run(&program, arch.token, number(arch, "socket"), [domain, 3, protocol, domain, domain, domain]).0
        };
        assert_eq!(socket(netlink, audit), EAFNOSUPPORT);
        assert_eq!(socket(netlink | high, audit | high), EAFNOSUPPORT, "the kernel drops the upper halves");
        assert_eq!(socket(netlink, 0), ALLOW);
        assert_eq!(socket(inet, audit), ALLOW);
        assert_eq!(socket(audit, netlink), ALLOW);
    }
}

#[test]
fn denied_sockets_are_refused_whatever_their_protocol() {
    let program = compile_for(&[&X86_64], &policy(&[], &["socket"]), 0);
    assert_eq!(run(&program, X86_64.token, number(&X86_64, "socket"), [16, 3, 9, 0, 0, 0]).0, EPERM);
}

#[test]
fn a_capability_opens_its_set_and_nothing_else() {
    let opened = [
        (14, "mlock mlock2 mlockall munlock munlockall"),
        (16, "delete_module finit_module init_module"),
        (17, "ioperm iopl"),
        (19, "ptrace"),
        (20, "acct"),
        (22, "reboot"),
        (25, "adjtimex clock_adjtime clock_settime settimeofday"),
        (26, "vhangup"),
        (34, "syslog"),
        (38, "perf_event_open"),
        (39, "bpf"),
    ];
    let without = compile_for(&[&X86_64], &SyscallPolicy::default(), 0);
    for bit in 0..64 {
        let with = compile_for(&[&X86_64], &SyscallPolicy::default(), 1 << bit);
        let changed: BTreeSet<&str> = (0..600)
            .filter(|number| answer(&with, &X86_64, *number) != answer(&without, &X86_64, *number))
            .filter_map(|number| call_name(&X86_64, number as usize))
            .collect();
        let wanted = opened.iter().find(|(opener, _)| *opener == bit).map_or("", |(_, calls)| calls);
        assert_eq!(changed, wanted.split_whitespace().collect(), "capability {bit}");
    }
}

#[test]
fn allowed_calls_sets_and_unions_pass() {
    let calls = ["keyctl", "add_key", "adjtimex", "kexec_load", "reboot", "swapon"];
    let asked = |allow: &[&str]| ask(&X86_64, &policy(allow, &[]), 0, &calls);
    assert_eq!(asked(&[]), [EPERM; 6]);
    assert_eq!(asked(&["keyctl"]), [ALLOW, EPERM, EPERM, EPERM, EPERM, EPERM]);
    assert_eq!(asked(&["@keyring", "@clock"]), [ALLOW, ALLOW, ALLOW, EPERM, EPERM, EPERM]);
    assert_eq!(asked(&["@reboot"]), [EPERM, EPERM, EPERM, ALLOW, ALLOW, EPERM]);
    assert_eq!(asked(&["@known"]), [ALLOW; 6]);
}

#[test]
fn denied_calls_sets_and_unions_are_refused() {
    let calls = ["mount", "umount2", "chown", "reboot", "read"];
    let asked = |deny: &[&str]| ask(&X86_64, &policy(&[], deny), u64::MAX, &calls);
    assert_eq!(asked(&[]), [ALLOW; 5]);
    assert_eq!(asked(&["umount2"]), [ALLOW, EPERM, ALLOW, ALLOW, ALLOW]);
    assert_eq!(asked(&["@mount"]), [EPERM, EPERM, ALLOW, ALLOW, ALLOW]);
    assert_eq!(asked(&["@privileged"]), [ALLOW, ALLOW, EPERM, EPERM, ALLOW]);
}

#[test]
fn a_call_that_is_allowed_and_denied_is_refused() {
    let both = policy(&["keyctl", "@keyring", "@known"], &["keyctl", "@clock"]);
    assert_eq!(ask(&X86_64, &both, u64::MAX, &["keyctl", "adjtimex", "add_key"]), [EPERM, EPERM, ALLOW]);
}

#[test]
fn names_of_another_architecture_change_nothing() {
    let plain = compile_for(&[&AARCH64], &SyscallPolicy::default(), 0);
    assert_eq!(compile_for(&[&AARCH64], &policy(&["vm86", "ioperm"], &["open"]), 0), plain);
}

#[test]
fn the_longest_possible_program_still_loads_and_answers() {
    for parity in [0, 1] {
        let every_other = |arch: &'static Arch| (parity..600).step_by(2).filter_map(|number| call_name(arch, number));
        let deny: Vec<&str> = every_other(&X86_64).chain(every_other(&X86)).collect();
        let policy = policy(&["@known"], &deny);
        assert_eq!(policy.deny.len(), deny.len());
        let program = compile_for(&[&X86_64, &X86], &policy, 0);
        assert_loadable(&program);
        assert!(program.iter().filter(|insn| insn.code == 0x05).count() > 2, "no jump was too far to be conditional");
        for arch in [&X86_64, &X86] {
            for number in 0..600 {
                let name = call_name(arch, number as usize).filter(|name| *name != "r#break");
                let wanted = name.map_or(ENOSYS, |name| if deny.contains(&name) { EPERM } else { ALLOW });
                assert_eq!(answer(&program, arch, number), wanted, "call {number} {name:?}");
            }
        }
    }
}

#[test]
fn no_call_takes_more_than_sixteen_instructions() {
    let program = compile_for(&[&X86_64, &X86], &SyscallPolicy::default(), DEFAULT_CAPS);
    for arch in [&X86_64, &X86] {
        for number in (0..600).filter(|number| *number != self::number(arch, "socket")) {
            let (_, steps) = run(&program, arch.token, number, [0; 6]);
            assert!(steps <= 16, "call {number} takes {steps}");
        }
    }
}

#[test]
fn instructions_have_the_layout_of_the_kernel() {
    let kernel = libc::sock_filter::from(Insn { code: 1, jt: 2, jf: 3, k: 4 });
    assert_eq!((kernel.code, kernel.jt, kernel.jf, kernel.k), (1, 2, 3, 4));
    assert_eq!(size_of::<Insn>(), size_of::<libc::sock_filter>());
    assert_eq!(std::mem::offset_of!(Insn, jt), std::mem::offset_of!(libc::sock_filter, jt));
    assert_eq!(std::mem::offset_of!(Insn, k), std::mem::offset_of!(libc::sock_filter, k));
}

#[test]
fn unknown_words_are_reported_with_their_place_and_a_guess() {
    let policy = policy(&["keyctl", "opeen", "@keyring"], &["@known", "@clok", "make_coffee", ""]);
    let found: Vec<_> =
        policy.check().into_iter().map(|word| (word.list, word.index, word.name, word.nearest)).collect();
    let wanted = [
        (PolicyList::Allow, 1, "opeen".to_owned(), Some("open")),
        (PolicyList::Deny, 1, "@clok".to_owned(), Some("@clock")),
        (PolicyList::Deny, 2, "make_coffee".to_owned(), None),
        (PolicyList::Deny, 3, String::new(), None),
    ];
    assert_eq!(found, wanted);
}

#[test]
fn summary_counts_and_names_what_the_policy_changes() {
    let plain = describe(&SyscallPolicy::default(), DEFAULT_CAPS);
    let changed = describe(&policy(&["keyctl", "read"], &["ptrace", "add_key"]), DEFAULT_CAPS);
    assert_eq!((plain.added, plain.denied), (vec![], vec![]));
    assert_eq!((changed.added, changed.denied), (vec!["keyctl"], vec!["ptrace"]));
    assert_eq!((changed.allowed, changed.refused), (plain.allowed, plain.refused));
    let closed = ["@cpu-emulation", "@host", "@kexec", "@keyring", "@obsolete", "@pkey", "@swap"];
    assert_eq!(plain.closed, closed);
    let ptrace = FollowingSet { set: "@ptrace", capability: "CAP_SYS_PTRACE", kept: true };
    let clock = FollowingSet { set: "@clock", capability: "CAP_SYS_TIME", kept: false };
    assert!(plain.following.contains(&ptrace) && plain.following.contains(&clock));
}
