//! Decides which system calls a machine may use and compiles the filter that says so.
//!
//! An allow-list, as systemd-nspawn's: a listed call passes, a known call that is not listed gets `EPERM`,
//! and a number unknown to our tables gets `ENOSYS`, so that programs built for newer kernels fall back
//! instead of failing. Some sets follow the capabilities the machine keeps. Nothing is ever killed.
//!
//! Pure: the same policy and capabilities give the same program on every host. Loading it is not done here.

mod program;
mod tables;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use program::Insn;
use program::{Branch, Verdict};
use tables::{Arch, Grant, KNOWN, NATIVE, NUMBERS, SETS, Set, UNIONS};

/// What the machine's file changes on the default profile: names of calls, or of sets as in `@clock`.
///
/// A call that both lists name is denied. Names that this architecture lacks change nothing, so one file
/// serves several architectures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SyscallPolicy {
    /// Allowed beyond the default, whatever the capabilities.
    pub allow: Vec<String>,
    /// Refused with `EPERM`.
    pub deny: Vec<String>,
}

/// One of the two lists of a [`SyscallPolicy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyList {
    /// [`SyscallPolicy::allow`].
    Allow,
    /// [`SyscallPolicy::deny`].
    Deny,
}

/// A word in a policy that names no call and no set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownSyscall {
    /// The list it stands in.
    pub list: PolicyList,
    /// Its position in that list.
    pub index: usize,
    /// The word as written.
    pub name: String,
    /// The known name most like it, if any is alike enough to be meant.
    pub nearest: Option<&'static str>,
}

/// What the filter does on this architecture, for people to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// How many calls pass.
    pub allowed: usize,
    /// How many known calls get `EPERM`.
    pub refused: usize,
    /// Calls that pass only because of the policy.
    pub added: Vec<&'static str>,
    /// Calls that are refused only because of the policy.
    pub denied: Vec<&'static str>,
    /// Sets that the default profile refuses every machine.
    pub closed: Vec<&'static str>,
    /// Sets that the default profile lets follow a capability.
    pub following: Vec<FollowingSet>,
}

/// A set that the default profile allows if the machine keeps a capability.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FollowingSet {
    /// The set's name.
    pub set: &'static str,
    /// The capability's name.
    pub capability: &'static str,
    /// Whether the machine keeps it.
    pub kept: bool,
}

impl SyscallPolicy {
    /// Returns every word that is neither a system call nor a set, in the order of the file.
    pub fn check(&self) -> Vec<UnknownSyscall> {
        let lists = [(PolicyList::Allow, &self.allow), (PolicyList::Deny, &self.deny)];
        lists
            .into_iter()
            .flat_map(|(list, words)| words.iter().enumerate().map(move |(index, word)| (list, index, word)))
            .filter(|(_, _, word)| !known_words().any(|known| known == word.as_str()))
            .map(|(list, index, word)| UnknownSyscall { list, index, name: word.clone(), nearest: nearest(word) })
            .collect()
    }
}

/// Compiles the filter for the programs of this architecture and, on x86_64, for 32-bit x86 ones.
///
/// `caps` is the bit mask of the capabilities that the payload keeps. Words that [`SyscallPolicy::check`]
/// reports are ignored. The program is meant for a payload as a whole and to be loaded once, before it
/// drops `CAP_SYS_ADMIN`.
pub fn compile(policy: &SyscallPolicy, caps: u64) -> Vec<Insn> {
    compile_for(&NATIVE, policy, caps)
}

fn compile_for(arches: &[&Arch], policy: &SyscallPolicy, caps: u64) -> Vec<Insn> {
    let branches: Vec<Branch> = arches
        .iter()
        .map(|arch| Branch {
            token: arch.token,
            verdicts: (0..NUMBERS).map(|number| verdict(arch, number, policy, caps)).collect(),
        })
        .collect();
    program::assemble(&branches)
}

/// Groups the calls of this architecture by what the filter does with them.
pub fn describe(policy: &SyscallPolicy, caps: u64) -> Summary {
    let mut summary = Summary {
        allowed: 0,
        refused: 0,
        added: Vec::new(),
        denied: Vec::new(),
        closed: SETS.iter().filter(|set| set.grant == Grant::Never).map(|set| set.name).collect(),
        following: SETS.iter().filter_map(|set| following(set, caps)).collect(),
    };
    let arch = NATIVE[0];
    for number in 0..NUMBERS {
        let Some(home) = arch.home(number) else { continue };
        let allowed = verdict(arch, number, policy, caps) != Verdict::Refuse;
        match (allowed, is_granted(home, caps)) {
            (true, false) => summary.added.push(arch.name(number)),
            (false, true) => summary.denied.push(arch.name(number)),
            _ => {}
        }
        if allowed {
            summary.allowed += 1;
        } else {
            summary.refused += 1;
        }
    }
    summary
}

fn following(set: &Set, caps: u64) -> Option<FollowingSet> {
    match set.grant {
        Grant::With(capability) => {
            Some(FollowingSet { set: set.name, capability: capability.name, kept: capability.is_in(caps) })
        }
        Grant::Always | Grant::Never => None,
    }
}

fn verdict(arch: &Arch, number: usize, policy: &SyscallPolicy, caps: u64) -> Verdict {
    let Some(home) = arch.home(number) else { return Verdict::Unknown };
    // Most policies are empty, and then no name has to be looked up.
    let is_in = |words: &[String]| !words.is_empty() && names_call(words, arch.name(number), home);
    if is_in(&policy.deny) || !(is_granted(home, caps) || is_in(&policy.allow)) {
        return Verdict::Refuse;
    }
    // 32-bit x86 can also reach it through `socketcall`, whose arguments a filter cannot see.
    if number == arch.socket { Verdict::AllowNoAudit } else { Verdict::Allow }
}

fn is_granted(home: &Set, caps: u64) -> bool {
    match home.grant {
        Grant::Always => true,
        Grant::With(capability) => capability.is_in(caps),
        Grant::Never => false,
    }
}

/// Whether one of the words stands for this call, by its name, its set or a union with either.
fn names_call(words: &[String], call: &str, home: &Set) -> bool {
    words.iter().any(|word| {
        let is_named = |word: &str| word == call || word == home.name;
        is_named(word)
            || word == KNOWN
            || UNIONS.iter().any(|union| union.name == word && union.members.iter().any(|member| is_named(member)))
    })
}

fn known_words() -> impl Iterator<Item = &'static str> {
    let sets = SETS.iter().flat_map(|set| set.calls.iter().copied().chain([set.name]));
    sets.chain(UNIONS.iter().map(|union| union.name))
}

fn nearest(word: &str) -> Option<&'static str> {
    // Further apart than a third of its letters, two words only happen to share some.
    let limit = (word.chars().count() / 3).max(1);
    let candidates = known_words().map(|known| (edits(word, known), known));
    candidates.filter(|(edits, _)| *edits <= limit).min_by_key(|(edits, _)| *edits).map(|(_, known)| known)
}

/// Counts the letters to insert, remove or replace to get from one word to the other.
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (line, wanted) in from.chars().enumerate() {
        let mut diagonal = line;
        row[0] = line + 1;
        for (column, found) in to.chars().enumerate() {
            let replaced = diagonal + usize::from(wanted != found);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.chars().count()]
}
