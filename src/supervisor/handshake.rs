//! What the supervisor and its two children say to each other while a machine is made.
//!
//! One SEQPACKET pair between the supervisor and both children, another between the two children; one datagram
//! is one message. End of file after [`Go`](ToInner::Go) means that the payload has been executed, because
//! every other copy of the children's end is closed by then.
//!
//! ```text
//! supervisor            outer child                      inner child
//!    | -- clone3 ---------> |                                 |
//!    |                      | -- clone3 (sibling) ----------> |
//!    |                      |    writes the id maps           |
//!    |                      | -- Mapped --------------------> |  makes proc, sysfs, devpts ...
//!    |                      |    builds the root              |
//!    |                      | <- api mounts (descriptors) --- |
//!    |                      |    mounts, masks, pivots        |
//!    | <- Ready (+ master) -|                                 |
//!    |                      | -- Entered(init) -------------> |  own mount namespace: all is locked
//!    |  state file, log     `- exits                          |  host name, terminal
//!    | -- Go ----------------------------------------------> |  limits, filter, exec
//!    | <- end of file, or Failed ---------------------------- |  (the stub of a command: Waiting, then these)
//! ```

use serde::{Deserialize, Serialize};

use crate::spec::InitKind;
use crate::sys::StepError;

/// From either child to the supervisor.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromChild {
    /// The root is complete; the console's master comes along. Sent by the outer child.
    Ready {
        /// The leader's process id as the host sees it.
        leader: i32,
        /// Path of the init that will be executed, if it is one.
        init: Option<String>,
        /// Its kind, if we know it.
        kind: Option<InitKind>,
    },
    /// The stub of a command has begun to wait for it. Sent by the inner child, which never executes a program
    /// then.
    Waiting,
    /// A step failed; the sender is about to exit.
    Failed(StepError),
}

/// From the outer child to the inner one.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromOuter {
    /// Your ids are mapped.
    Mapped,
    /// The root is complete and is your root; execute this init, of this kind.
    Entered(Option<String>, Option<InitKind>),
}

/// From the supervisor to the inner child.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToInner {
    /// The host is done with you: execute the payload.
    Go,
}

/// The places at which a test may have a process die, in the order of the drawing above.
pub const STEPS: [&str; 14] = [
    "supervisor:prepared",
    "outer:started",
    "outer:cloned",
    "outer:mapped",
    "outer:root",
    "outer:mounts",
    "outer:entered",
    "inner:started",
    "inner:api",
    "supervisor:ready",
    "inner:entered",
    "inner:go",
    "inner:limited",
    "supervisor:running",
];
