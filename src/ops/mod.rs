//! What can be done with machines, for every face: typed requests in, typed results out, and [`Event`](crate::report::Event)s on the way.
//!
//! An operation prints nothing and knows no exit status. Who does it, this process, the daemon or systemd, is decided in
//! [`via`]; `via_daemon` and `systemd` hand it on.

mod background;
mod context;
mod enable;
mod error;
mod jobs;
mod prepare;
mod reap;
mod reboot;
mod set;
mod start;
mod start_set;
mod stop;
pub mod systemd;
pub mod via;
mod via_daemon;

pub use context::{Failures, Ops, machine_name};
pub use error::{enter, image, invalid, machine, unmet, unplanned};
pub use prepare::{cannot_start, default_jobs, seal};
pub use start::Start;
pub use start_set::{StartSet, graph};
pub use stop::Stop;
