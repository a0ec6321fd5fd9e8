//! [`Order`]: which other machines one machine is started after.

use serde::Serialize;

use super::MachineName;

/// The dependencies of a definition on other machines, in the terms of `systemd.unit(5)`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Order {
    /// Ready before this one is started, if both are to run.
    pub after: Vec<MachineName>,
    /// Started with this one and ready before it; without them it is not started, and it is stopped before them.
    pub requires: Vec<MachineName>,
    /// Started with this one and given the time to be ready before it; it does not matter if they fail.
    pub wants: Vec<MachineName>,
}

impl Order {
    /// Every machine that this one is started after: who needs another needs it ready.
    pub fn predecessors(&self) -> impl Iterator<Item = &MachineName> {
        self.requires.iter().chain(&self.wants).chain(&self.after)
    }

    /// Every machine that is started because this one is.
    pub fn pulled_in(&self) -> impl Iterator<Item = &MachineName> {
        self.requires.iter().chain(&self.wants)
    }
}
