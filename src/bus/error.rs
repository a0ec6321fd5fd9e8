//! [`BusError`]: why a call on the bus did not work.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::spec::Scope;
use crate::sys;

/// Why a call on the bus did not work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BusError {
    /// There is no bus where one should be.
    Unreachable {
        /// Whose bus.
        scope: Scope,
        /// Where it should be.
        address: String,
        /// The message of the kernel or the bus.
        why: String,
    },
    /// The name has no owner, and no service can be started for it.
    NoOwner(String),
    /// The bus' policy or the owner refuses us.
    Denied {
        /// The method.
        call: String,
        /// The message of the bus or the owner.
        why: String,
    },
    /// No answer within the limit.
    TimedOut(Duration),
    /// There is a machine or a unit of that name.
    Exists(String),
    /// There is, it is alive, and these are its manager and leader.
    Taken {
        /// The name.
        machine: String,
        /// What its manager calls itself.
        service: String,
        /// Its first process.
        leader: u32,
    },
    /// The owner's answer is another error, or it went away without one.
    Failed {
        /// The method.
        call: String,
        /// The message of the bus or the owner.
        why: String,
    },
    /// A system call of ours failed on the way to the bus.
    Call(sys::Error),
}

impl From<sys::Error> for BusError {
    fn from(error: sys::Error) -> Self {
        Self::Call(error)
    }
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { scope: Scope::System, address, why } => {
                write!(f, "no system bus at '{address}': {why}")
            }
            Self::Unreachable { scope: Scope::User, address, why } => write!(f, "no session bus at '{address}': {why}"),
            Self::NoOwner(name) => write!(f, "'{name}' has no owner on the system bus"),
            Self::Denied { call, why } => write!(f, "{call} is denied: {why}"),
            Self::TimedOut(limit) => write!(f, "no answer on the system bus within {} s", limit.as_secs()),
            Self::Exists(machine) => write!(f, "'{machine}' is registered already"),
            Self::Taken { machine, service, leader } => {
                write!(f, "'{machine}' is registered by '{service}' with leader {leader}")
            }
            Self::Failed { call, why } => write!(f, "{call}: {why}"),
            Self::Call(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BusError {}
