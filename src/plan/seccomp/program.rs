//! Turns a verdict for every call number into a classic BPF program.
//!
//! Neighbouring numbers with the same verdict form a run, and the program finds the run of a call by binary
//! search over the runs' first numbers, so a call costs about log2(runs) comparisons. Since Linux 5.11 even
//! that is paid once: the kernel tries every number when a filter is loaded and skips the program for those
//! it always allows. It can only do so while nothing but number and architecture are looked at, so the one
//! check of arguments, that of `socket`, stays on the path of that call.

/// One classic BPF instruction, laid out as `struct sock_filter`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insn {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if a comparison holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

impl From<Insn> for libc::sock_filter {
    fn from(Insn { code, jt, jf, k }: Insn) -> Self {
        Self { code, jt, jf, k }
    }
}

/// What the filter answers to one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Allow,
    /// Allowed, except to open an audit socket.
    AllowNoAudit,
    /// `EPERM`: the call exists, this machine may not use it.
    Refuse,
    /// `ENOSYS`: as on a kernel that is too old for the call, which makes programs fall back.
    Unknown,
}

/// One architecture's token and its verdicts by number. Higher numbers are [`Verdict::Unknown`].
#[derive(Debug)]
pub(super) struct Branch {
    pub(super) token: u32,
    pub(super) verdicts: Vec<Verdict>,
}

// Offsets into `struct seccomp_data`. Arguments are 64 bits wide; their low half comes first on every
// architecture we have.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

const ALLOW: Insn = ret(0x7fff_0000);
const fn errno(errno: i32) -> Insn {
    ret(0x0005_0000 | errno.cast_unsigned())
}

const fn ret(value: u32) -> Insn {
    Insn { code: 0x06, jt: 0, jf: 0, k: value }
}

const fn load(offset: u32) -> Insn {
    Insn { code: 0x20, jt: 0, jf: 0, k: offset }
}

const fn jump(distance: u32) -> Insn {
    Insn { code: 0x05, jt: 0, jf: 0, k: distance }
}

const fn if_equal(value: u32, then: u8, otherwise: u8) -> Insn {
    Insn { code: 0x15, jt: then, jf: otherwise, k: value }
}

const fn if_at_least(value: u32, then: u8, otherwise: u8) -> Insn {
    Insn { code: 0x35, jt: then, jf: otherwise, k: value }
}

/// Numbers from `first` up to the next run.
#[derive(Debug, Clone, Copy)]
struct Run {
    first: u32,
    verdict: Verdict,
}

/// Builds the program. An architecture without a branch gets `ENOSYS`, never a signal: a stray foreign
/// program should fail, not take its machine's services along.
pub(super) fn assemble(branches: &[Branch]) -> Vec<Insn> {
    let mut program = Vec::with_capacity(512);
    program.push(load(ARCH));
    for branch in branches {
        program.push(if_equal(branch.token, 1, 0));
        let skip = program.len();
        program.push(jump(0));
        program.push(load(NUMBER));
        search(&mut program, &runs(&branch.verdicts));
        program[skip].k = distance(&program[skip + 1..]);
    }
    program.push(errno(libc::ENOSYS));
    program
}

fn runs(verdicts: &[Verdict]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (first, &verdict) in (0..).zip(verdicts.iter().chain([&Verdict::Unknown])) {
        if runs.last().is_none_or(|run| run.verdict != verdict) {
            runs.push(Run { first, verdict });
        }
    }
    runs
}

/// Appends the code that finds the run of the loaded number and answers. It never falls through.
fn search(program: &mut Vec<Insn>, runs: &[Run]) {
    let (low, high) = runs.split_at(runs.len() / 2);
    if low.is_empty() {
        return answer(program, high[0].verdict);
    }
    let pivot = program.len();
    program.push(if_at_least(high[0].first, 0, 0));
    search(program, low);
    let below = distance(&program[pivot + 1..]);
    if let Ok(then) = u8::try_from(below) {
        program[pivot].jt = then;
    } else {
        // A conditional jump reaches 255 instructions, an unconditional one any distance.
        program[pivot].jf = 1;
        program.insert(pivot + 1, jump(below));
    }
    search(program, high);
}

fn answer(program: &mut Vec<Insn>, verdict: Verdict) {
    match verdict {
        Verdict::Allow => program.push(ALLOW),
        Verdict::Refuse => program.push(errno(libc::EPERM)),
        Verdict::Unknown => program.push(errno(libc::ENOSYS)),
        // Audit is not namespaced, and audit programs take this errno for "not built into the kernel". The
        // arguments are ints: the kernel ignores their upper halves, and so must we.
        Verdict::AllowNoAudit => program.extend([
            load(argument(0)),
            if_equal(libc::AF_NETLINK.cast_unsigned(), 0, 3),
            load(argument(2)),
            if_equal(libc::NETLINK_AUDIT.cast_unsigned(), 0, 1),
            errno(libc::EAFNOSUPPORT),
            ALLOW,
        ]),
    }
}

fn distance(code: &[Insn]) -> u32 {
    u32::try_from(code.len()).unwrap_or(u32::MAX)
}
