//! Why a machine could not be started, or not be cleared away.

use std::fmt;

use crate::rootfs::idmap::IdMapError;
use crate::spec::MachineName;
use crate::sys::{self, StepError};

/// A machine that could not be started, or could not be cleared away.
#[derive(Debug)]
pub enum MachineError {
    /// A supervisor of this machine lives.
    AlreadyRunning(MachineName),
    /// The calling process may not make machines.
    NotPermitted,
    /// No id range.
    Ids(IdMapError),
    /// A step failed.
    Step(StepError),
    /// A child was killed, or ended without a message.
    Vanished(&'static str),
    /// The machine ended and something of it could not be removed.
    Leftovers(Vec<sys::Error>),
}

impl fmt::Display for MachineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyRunning(name) => write!(f, "machine '{name}' is already running"),
            Self::NotPermitted => f.write_str("only root may start machines"),
            Self::Ids(e) => e.fmt(f),
            Self::Step(e) => e.fmt(f),
            Self::Vanished(who) => write!(f, "the {who} was killed while the machine was being made"),
            Self::Leftovers(list) => {
                let list: Vec<String> = list.iter().map(ToString::to_string).collect();
                write!(f, "the machine has ended, but not all of it could be removed: {}", list.join("; "))
            }
        }
    }
}

impl std::error::Error for MachineError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Step(e) => e.source(),
            Self::Ids(e) => e.source(),
            _ => None,
        }
    }
}

impl MachineError {
    /// The error with its causes on one line.
    pub fn whole(&self) -> String {
        let causes = std::iter::successors(std::error::Error::source(self), |cause| cause.source());
        std::iter::once(self.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Step(e) => e.hint.clone(),
            Self::AlreadyRunning(name) => {
                Some(format!("`machinist console {name}` shows it, `machinist stop {name}` ends it"))
            }
            _ => None,
        }
    }
}

impl From<StepError> for MachineError {
    fn from(e: StepError) -> Self {
        Self::Step(e)
    }
}
