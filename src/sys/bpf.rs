//! Which device nodes the processes of a control group may open or make: a small BPF program
//! (`BPF_PROG_TYPE_CGROUP_DEVICE`), since cgroup2 has no files for it.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::{Context, Result, check};

/// What kind of device a number is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the kernel's words")]
pub enum Kind {
    Block,
    Character,
}

/// A device that is allowed; every other device is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// Its kind.
    pub kind: Kind,
    /// Its driver.
    pub major: u32,
    /// One of the driver's, or all of them.
    pub minor: Option<u32>,
    /// Bits of [`access`] that a process may request.
    pub access: u32,
}

/// What a process wants to do with a device (`BPF_DEVCG_ACC_*`).
pub mod access {
    /// Make a node of it.
    pub const MAKE: u32 = 1;
    /// Open it for reading.
    pub const READ: u32 = 2;
    /// Open it for writing.
    pub const WRITE: u32 = 4;
    /// All of these.
    pub const ALL: u32 = 7;
}

/// One instruction of `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Insn {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const LOAD_WORD: u8 = 0x61;
const COPY: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_UNEQUAL: u8 = 0x55;
const JUMP_IF_ANY: u8 = 0x45;
const MOVE: u8 = 0xb7;
const EXIT: u8 = 0x95;

fn insn(code: u8, registers: u8, offset: i16, immediate: u32) -> Insn {
    Insn { code, registers, offset, immediate: immediate.cast_signed() }
}

/// The program: registers 2, 3, 4 and 5 get kind, major, minor and wanted access of `struct bpf_cgroup_dev_ctx`; each
/// allowed device is a few comparisons that fall through to "yes".
fn program(allowed: &[Allowed]) -> Vec<Insn> {
    let mut list = vec![
        insn(LOAD_WORD, 0x12, 0, 0),
        insn(LOAD_WORD, 0x13, 4, 0),
        insn(LOAD_WORD, 0x14, 8, 0),
        insn(COPY, 0x25, 0, 0),
        insn(AND, 0x02, 0, 0xffff),
        insn(SHIFT_RIGHT, 0x05, 0, 16),
    ];
    for device in allowed {
        let kind = match device.kind {
            Kind::Block => 1,
            Kind::Character => 2,
        };
        let conditions = [
            Some((JUMP_UNEQUAL, 0x02, kind)),
            Some((JUMP_UNEQUAL, 0x03, device.major)),
            device.minor.map(|minor| (JUMP_UNEQUAL, 0x04, minor)),
            Some((JUMP_IF_ANY, 0x05, access::ALL & !device.access)).filter(|(.., forbidden)| *forbidden != 0),
        ];
        let conditions: Vec<_> = conditions.into_iter().flatten().collect();
        // Past the conditions that are left and the two instructions that allow the access.
        for (position, (code, register, value)) in conditions.iter().enumerate() {
            let left = i16::try_from(conditions.len() - 1 - position).unwrap_or(0);
            list.push(insn(*code, *register, left + 2, *value));
        }
        list.push(insn(MOVE, 0x00, 0, 1));
        list.push(insn(EXIT, 0x00, 0, 0));
    }
    list.push(insn(MOVE, 0x00, 0, 0));
    list.push(insn(EXIT, 0x00, 0, 0));
    list
}

/// The parts of `union bpf_attr` for loading a program, up to the last field we set.
#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

/// Those for attaching one.
#[repr(C)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Lets the processes of `cgroup` use only these devices; what a service manager forbids stays forbidden.
pub fn allow_only(cgroup: impl AsFd, allowed: &[Allowed]) -> Result<()> {
    const BPF_PROG_LOAD: i32 = 5;
    const BPF_PROG_ATTACH: i32 = 8;
    const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    const ATTACH_CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    let insns = program(allowed);
    let load = LoadAttr {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(insns.len()).unwrap_or(u32::MAX),
        insns: insns.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
    };
    // SAFETY: `load` and what it points to outlive the call; the kernel takes missing fields as zero.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<LoadAttr>()) };
    let fd = check(fd).call(|| "bpf(BPF_PROG_LOAD, device filter)".into())?;
    // SAFETY: a new descriptor that nothing else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let attach = AttachAttr {
        target_fd: cgroup.as_fd().as_raw_fd().cast_unsigned(),
        attach_bpf_fd: fd.as_raw_fd().cast_unsigned(),
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI,
    };
    // SAFETY: as above.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<AttachAttr>()) };
    check(result).call(|| "bpf(BPF_PROG_ATTACH, device filter)".into()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program on one request, as the kernel would.
    fn allows(program: &[Insn], kind: Kind, device: (u32, u32), wanted: u32) -> bool {
        let mut registers = [0u32; 6];
        let kind = if kind == Kind::Block { 1 } else { 2 };
        let context = [wanted << 16 | kind, device.0, device.1];
        let mut at = 0usize;
        loop {
            let i = program[at];
            let (to, from) = (usize::from(i.registers & 0xf), usize::from(i.registers >> 4));
            let value = i.immediate.cast_unsigned();
            let jump = usize::try_from(i.offset).expect("forward");
            at += 1;
            match i.code {
                LOAD_WORD => registers[to] = context[jump / 4],
                COPY => registers[to] = registers[from],
                AND => registers[to] &= value,
                SHIFT_RIGHT => registers[to] >>= value,
                MOVE => registers[to] = value,
                JUMP_UNEQUAL if registers[to] != value => at += jump,
                JUMP_IF_ANY if registers[to] & value != 0 => at += jump,
                JUMP_UNEQUAL | JUMP_IF_ANY => {}
                EXIT => return registers[0] == 1,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    const fn allowed(kind: Kind, major: u32, minor: Option<u32>, access: u32) -> Allowed {
        Allowed { kind, major, minor, access }
    }

    #[test]
    fn only_the_listed_devices_are_allowed() {
        use Kind::{Block, Character};
        let list = [
            allowed(Character, 1, Some(3), access::ALL),
            allowed(Character, 136, None, access::ALL),
            allowed(Block, 7, Some(0), access::ALL),
        ];
        let program = program(&list);
        let yes = [(Character, (1, 3)), (Character, (136, 77)), (Block, (7, 0))];
        let no = [(Character, (1, 1)), (Character, (137, 0)), (Character, (7, 0)), (Block, (1, 3)), (Block, (7, 1))];
        for wanted in 1..=access::ALL {
            assert!(yes.iter().all(|(kind, device)| allows(&program, *kind, *device, wanted)), "{wanted}");
            assert!(!no.iter().any(|(kind, device)| allows(&program, *kind, *device, wanted)), "{wanted}");
        }
        assert!(!allows(&super::program(&[]), Character, (1, 3), access::READ));
    }

    #[test]
    fn a_request_is_refused_if_one_of_its_letters_is_missing() {
        for given in 1..=access::ALL {
            // The next entry must not be missed by a jump that is too long, nor reached by one that is too short.
            let list =
                [Some(229), None].map(|minor| allowed(Kind::Character, 10 + u32::from(minor.is_none()), minor, given));
            let program = program(&list);
            for wanted in 1..=access::ALL {
                for device in [(10, 229), (11, 5)] {
                    assert_eq!(
                        allows(&program, Kind::Character, device, wanted),
                        wanted & !given == 0,
                        "{wanted:03b} of {given:03b} for {device:?}"
                    );
                }
            }
        }
    }
}
