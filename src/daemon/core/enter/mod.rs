//! A terminal, a login, a shell in a machine.
//!
//! The daemon touches nothing of a machine itself: the machine is hostile, may keep those who open its files or speak
//! to its bus waiting indefinitely, and a daemon with threads must not fork. Each request starts a [`helper`], our program
//! again, which has one answer to give, in time, or is killed.

mod guest_systemd;
mod helper;
mod job;
mod login;
mod open;

pub use helper::serve;
pub(crate) use job::Shell;
pub use login::Login;
pub(crate) use open::{Opened, login, pty, shell};
