//! The daemon's Varlink sockets: the same requests of the core as on D-Bus, in other words.
//!
//! ```text
//!  socket ──> connection (limits, one call after another) ──> wire (cut, read) ──> service · machines · images · users
//!                                                                                      │
//!                                                               daemon::core <─────────┘
//! ```
//!
//! Clients of systemd 261 and later ask `io.systemd.Machine` for what D-Bus does not say, and do nothing without an
//! answer. `nss-systemd(8)` asks `io.systemd.UserDatabase` who owns the ids of a machine's processes. Only a daemon that is
//! machine1 makes sockets, so that two never fight for one; those that a service manager passes are served anyway.
//!
//! The server is our own: what it must withstand (long and deep messages, slow and many clients, descriptors that
//! no method takes) is most of it, and a library would still leave that to us.

mod context;
mod images;
mod interfaces;
mod machines;
mod server;
mod users;
mod wire;

pub(crate) use server::{passed, serve};
