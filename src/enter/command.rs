//! What is to be run, and in which machine.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::spec::ProcessLimits;
use crate::sys::process::FilterInsn;

/// The machine to enter.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// pidfd of its leader.
    pub leader: BorrowedFd<'a>,
    /// Its payload control group, a path of the host; without one, commands stay in the caller's.
    pub cgroup: Option<&'a Path>,
    /// What the command may do.
    pub rights: &'a Rights,
    /// Whether it has a user namespace of its own.
    pub user_namespace: bool,
    /// Whether it has a network namespace other than the host's.
    pub network_namespace: bool,
    /// Whether it has clocks of its own.
    pub time_namespace: bool,
}

/// What a machine's processes may do.
#[derive(Debug, Clone)]
pub struct Rights {
    /// Mask of the capabilities it may have; without a user namespace, at most those of the host.
    pub capabilities: u64,
    /// Its system call filter; empty means none.
    pub filter: Vec<FilterInsn>,
    /// Whether setuid bits have no effect.
    pub no_new_privileges: bool,
    /// Limits beyond the usual ones.
    pub limits: ProcessLimits,
}

/// A command to run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Command {
    /// Program and arguments; empty means the user's shell.
    pub argv: Vec<String>,
    /// What to execute where that is not the first of `argv`.
    pub program: Option<String>,
    /// `USER` or `USER:GROUP`, each a name or a number; root if missing.
    pub user: Option<String>,
    /// Variables beyond, or instead of, the few every command gets.
    pub environment: Vec<(String, String)>,
    /// Working directory; `/` if missing, or the user's home for a login shell.
    pub directory: Option<String>,
    /// After that long, everything the command started is killed.
    pub timeout: Option<Duration>,
    /// Its standard input, output and error.
    pub stdio: Stdio,
    /// Start in the user's home, and a shell as a login shell.
    pub login_shell: bool,
}

/// Standard input, output and error of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Stdio {
    /// Our own three. One that is a terminal is replaced by a pipe that we copy from or to.
    #[default]
    Inherit,
    /// A new terminal of the machine, connected to ours.
    Terminal,
    /// The machine's `/dev/null`.
    Null,
}

/// What is to be done in the machine.
#[derive(Debug)]
pub(super) enum Work<'a> {
    Run(&'a Command),
    /// Connect to the socket at this path.
    Connect(&'a str),
}

impl Work<'_> {
    /// How long it may take.
    pub(super) fn timeout(&self) -> Option<Duration> {
        match self {
            Self::Run(command) => command.timeout,
            Self::Connect(_) => None,
        }
    }
}
