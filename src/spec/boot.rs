//! The boot settings of a machine: when it counts as ready, and what follows when it has ended by itself.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// When the machine counts as ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ready {
    /// `notify` for an init that is known to notify, else `started`.
    Auto,
    /// When PID 1 sends `READY=1` to its notification socket.
    Notify,
    /// As soon as the payload has been executed.
    Started,
    /// When this program, run in the machine as its root again and again, exits with 0.
    Exec(Vec<String>),
    /// When something in the machine's network takes connections at this TCP port.
    Port(u16),
}

/// Which unrequested ends of a machine are followed by another start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// None.
    No,
    /// Those by a signal or with a status other than 0.
    OnFailure,
    /// All.
    Always,
}

/// What becomes of a machine that has ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RestartPolicy {
    /// After which ends.
    pub when: Restart,
    /// How long after the end, in milliseconds.
    pub delay_ms: u64,
    /// After so many ends that would be followed by another start, there is none.
    pub count: u32,
    /// Only ends of this many last milliseconds count; all of them if unset.
    pub within_ms: Option<u64>,
}

/// Units of a duration with their length in milliseconds, the shortest first.
pub const DURATION_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1000), ("min", 60_000), ("h", 3_600_000), ("d", 24 * 3_600_000)];

/// A duration in the shortest text that a definition could hold for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        // Seconds up to two minutes, as people write them; above that the largest unit that divides.
        let largest = if total <= 120_000 { 2 } else { DURATION_UNITS.len() };
        let fits = |(_, scale): &&(&str, u64)| total % scale == 0;
        let (unit, scale) = DURATION_UNITS[..largest].iter().rev().find(fits).unwrap_or(&DURATION_UNITS[0]);
        write!(f, "{}{unit}", total / scale)
    }
}
