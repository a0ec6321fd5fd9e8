//! What can be asked of the daemon by the command line.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// An operation that the daemon does for others: the argument of `org.machinist1.Manager.Perform`, as JSON. The answer is
/// the list of its [`Event`](super::Event)s, as JSON, which ends with a [`Failed`](super::Event::Failed) if it failed. Only
/// what the daemon itself refuses is an error on the bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Start a machine.
    Start {
        /// The machine.
        name: String,
        /// Not what it needs, which the caller has seen to.
        alone: bool,
    },
    /// Stop a machine.
    Stop {
        /// The machine.
        name: String,
        /// Instead of the machine's own limit.
        timeout: Option<Duration>,
    },
    /// Restart a machine.
    Reboot {
        /// The machine.
        name: String,
    },
    /// Change limits.
    Set {
        /// The machine.
        name: String,
        /// `KEY=VALUE` each.
        settings: Vec<String>,
        /// Keep them for later starts, too.
        save: bool,
    },
}

impl Request {
    /// The machine it is about.
    pub fn name(&self) -> &str {
        match self {
            Self::Start { name, .. } | Self::Stop { name, .. } | Self::Reboot { name } | Self::Set { name, .. } => name,
        }
    }
}
