//! Which device nodes the processes of a control group may open or make: a small BPF program
//! (`BPF_PROG_TYPE_CGROUP_DEVICE`), since cgroup2 has no files for it.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::{Context, Result, check};

/// A character device that is allowed; every other device is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CharDevice {
    /// Its driver.
    pub major: u32,
    /// One of the driver's, or all of them.
    pub minor: Option<u32>,
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
const AND: u8 = 0x57;
const JUMP_UNEQUAL: u8 = 0x55;
const MOVE: u8 = 0xb7;
const EXIT: u8 = 0x95;

/// `BPF_DEVCG_DEV_CHAR`
const TYPE_CHAR: i32 = 2;

fn insn(code: u8, registers: u8, offset: i16, immediate: u32) -> Insn {
    Insn { code, registers, offset, immediate: immediate.cast_signed() }
}

/// The program: registers 2, 3 and 4 get type, major and minor of `struct bpf_cgroup_dev_ctx`; each allowed device
/// is one comparison that falls through to "yes".
fn program(allowed: &[CharDevice]) -> Vec<Insn> {
    let mut list = vec![
        insn(LOAD_WORD, 0x12, 0, 0),
        insn(AND, 0x02, 0, 0xffff),
        insn(LOAD_WORD, 0x13, 4, 0),
        insn(LOAD_WORD, 0x14, 8, 0),
        insn(JUMP_UNEQUAL, 0x02, 2, TYPE_CHAR.cast_unsigned()),
        insn(MOVE, 0x00, 0, 0),
        insn(0x05, 0x00, 2, 0),
        insn(MOVE, 0x00, 0, 0),
        insn(EXIT, 0x00, 0, 0),
    ];
    for device in allowed {
        let skip = if device.minor.is_some() { 3 } else { 2 };
        list.push(insn(JUMP_UNEQUAL, 0x03, skip, device.major));
        if let Some(minor) = device.minor {
            list.push(insn(JUMP_UNEQUAL, 0x04, 2, minor));
        }
        list.push(insn(MOVE, 0x00, 0, 1));
        list.push(insn(EXIT, 0x00, 0, 0));
    }
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
pub fn allow_only(cgroup: impl AsFd, allowed: &[CharDevice]) -> Result<()> {
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
    // SAFETY: a new descriptor that nobody else owns.
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
    fn allows(program: &[Insn], kind: u32, major: u32, minor: u32) -> bool {
        let mut registers = [0u32; 5];
        let context = [kind, major, minor];
        let mut at = 0usize;
        loop {
            let i = program[at];
            let to = usize::from(i.registers & 0xf);
            let jump = usize::try_from(i.offset).unwrap_or(0);
            at += 1;
            match i.code {
                LOAD_WORD => registers[to] = context[usize::try_from(i.offset).expect("forward") / 4],
                AND => registers[to] &= i.immediate.cast_unsigned(),
                MOVE => registers[to] = i.immediate.cast_unsigned(),
                JUMP_UNEQUAL if registers[to] != i.immediate.cast_unsigned() => at += jump,
                JUMP_UNEQUAL => {}
                0x05 => at += jump,
                EXIT => return registers[0] == 1,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn only_the_listed_character_devices_are_allowed() {
        let list = [CharDevice { major: 1, minor: Some(3) }, CharDevice { major: 136, minor: None }];
        let program = program(&list);
        let (block, char) = (1 | 6 << 16, 2 | 6 << 16);
        assert!(allows(&program, char, 1, 3) && allows(&program, char, 136, 77));
        assert!(!allows(&program, char, 1, 1) && !allows(&program, char, 137, 0) && !allows(&program, char, 10, 200));
        assert!(!allows(&program, block, 1, 3) && !allows(&program, block, 8, 0));
        assert!(!allows(&super::program(&[]), char, 1, 3));
    }
}
