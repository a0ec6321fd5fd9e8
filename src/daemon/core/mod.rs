//! What the daemon knows and does: requests of a [`caller::Caller`] in, values and [`error::Failure`]s out.
//!
//! Nothing here knows how a request came; the faces (`dbus`, `varlink`) translate. The bus is used as a client only:
//! polkit, systemd, and who is behind a connection.

pub(crate) mod authority;
pub(crate) mod caller;
mod definition_image;
pub(crate) mod enter;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod files;
pub(crate) mod images;
pub(crate) mod inspect;
mod journal;
pub(crate) mod machines;
mod program;
pub(crate) mod recover;
pub(crate) mod register;
pub(crate) mod registry;
mod restart;
pub(crate) mod scope;
pub(crate) mod state;
pub(crate) mod units;
pub(crate) mod verbs;
