//! What others may know of a machine that runs, and ask of its supervisor.
//!
//! A machine is found through its run directory: a state file beside the lock that makes it valid ([`state`]), and the
//! socket of its supervisor ([`control`]). Nothing here runs a machine; the supervisor writes the state and answers.

pub mod autostart;
pub mod control;
pub mod restart;
pub mod start_limit;
pub mod state;
pub mod stop;
pub mod view;
pub mod wait_ready;
