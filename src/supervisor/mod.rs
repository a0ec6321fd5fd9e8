//! Runs machines: one process owns one machine from its preparation to the last trace of it.
//!
//! ```text
//!  Prepared   locks, id range, trees, socket, cgroup                prepare.rs, held.rs
//!     | create: outer child, inner child, root, mounts;             launch.rs, child.rs, handshake.rs
//!     |         state file, console, entry in the table
//!  Created    the leader exists in its final cgroup and waits       launch.rs
//!     | start: "go", exec
//!  Running    until the leader ends, or is made to                  running.rs, ready.rs
//!     |- it is over: everything is given back, in reverse order     machine.rs
//!     |- a reboot: create again
//!     `- it ended by itself and its definition has it started again:
//!  Backoff    a delay; then create again, or over if it is stopped  backoff.rs
//! ```
//!
//! One loop (event_loop.rs) goes through the last three. It polls, takes signals, and serves the control socket and the
//! console in all of them; which requests a phase accepts is decided by one table (requests.rs). What lasts over reboots is in
//! held.rs (what the host gave, and gets back) and session.rs (what is known, and who waits); what ends with its
//! leader is in boot.rs.
//!
//! While Running the machine is `starting` until it is ready, then `running`, and `stopping` once it has been asked to end;
//! in Backoff it is `restarting`. A boot that fails after another one has run is an end like others.
//!
//! The supervisor has one thread, holds every guard, and dies with nothing running: leader and children are
//! tied to it by `PR_SET_PDEATHSIG`. What a killed one leaves (an empty cgroup, a run directory) is found by name
//! and removed by the next start or by [`reap`](reap()).

mod backoff;
mod boot;
mod change_limits;
pub mod child;
pub mod console;
mod error;
pub mod event_loop;
pub mod handshake;
mod held;
mod job;
pub mod launch;
mod machine;
mod machine_cgroup;
pub mod prepare;
mod ready;
mod reap;
mod registration;
mod requests;
mod running;
mod sd_notify;
mod session;
mod setup;
mod stub_init;

pub use self::error::MachineError;
pub use self::job::Job;
pub use self::prepare::{Prepared, prepare};
pub use self::reap::reap;
pub use self::sd_notify::{has_manager, tell_manager};
pub use crate::running::restart::{End, Exit};
