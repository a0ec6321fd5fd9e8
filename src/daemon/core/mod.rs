//! What the daemon knows and does.

pub(crate) mod authority;
pub(crate) mod definition_image;
pub(crate) mod enter;
pub(crate) mod events;
pub(crate) mod files;
pub(crate) mod inspect;
mod journal;
mod program;
pub(crate) mod recover;
pub(crate) mod registry;
pub(crate) mod restart;
pub(crate) mod scope;
pub(crate) mod state;
