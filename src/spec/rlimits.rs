//! What the processes of a machine may use of the kernel one by one, and how it treats them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Limits of the payload's first process, which all others inherit, and of commands that enter the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ProcessLimits {
    /// The requested limits, each resource at most once.
    pub rlimits: Vec<Rlimit>,
    /// How readily the kernel kills its processes when memory is short, from -1000 (never) to 1000.
    pub oom_score_adjust: Option<i32>,
    /// Their share of the processors among others, from -20 (most) to 19.
    pub nice: Option<i32>,
}

impl ProcessLimits {
    /// Whether no limit is requested.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One limit of `getrlimit(2)`, in its unit there; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rlimit {
    /// Of what.
    pub resource: Resource,
    /// What holds; a process may raise it up to the hard one.
    pub soft: Option<u64>,
    /// What only the host's privileged processes may raise.
    pub hard: Option<u64>,
}

/// As in the file: one value where both are the same.
impl fmt::Display for Rlimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |limit: Option<u64>| limit.map_or("infinity".to_owned(), |limit| limit.to_string());
        match self.soft == self.hard {
            true => f.write_str(&word(self.soft)),
            false => write!(f, "{}:{}", word(self.soft), word(self.hard)),
        }
    }
}

/// What [`Rlimit`] limits; the names of `getrlimit(2)` without `RLIMIT_`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the kernel's names")]
pub enum Resource {
    As,
    Core,
    Cpu,
    Data,
    Fsize,
    Locks,
    Memlock,
    Msgqueue,
    Nice,
    Nofile,
    Nproc,
    Rss,
    Rtprio,
    Rttime,
    Sigpending,
    Stack,
}

/// The name in files and output.
impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}
