//! Understands machine files: finds them, lays them over each other, checks them and gives a
//! [`MachineSpec`](crate::spec::MachineSpec).
//!
//! A definition is `NAME.toml` in the first of [`Layout::config_dirs`](crate::spec::Layout::config_dirs) that has one, or a file named by its path.
//! It is laid over the profiles it `extends`, and its drop-ins (`NAME.toml.d/*.toml`) over it. Tables merge key by
//! key, arrays of tables add up (the same target replaces), everything else replaces.
//!
//! Every problem of every file is found before anything is reported, each with its line. Nothing here looks at
//! the trees, directories and images a definition names, and nothing is ever written.

#![allow(clippy::disallowed_methods, reason = "a ConfigError names the path, and nothing of `sys` is known here")]

mod boot;
mod check;
mod complaint;
mod dependencies;
mod device;
mod diagnostic;
mod error;
mod file;
mod find;
mod ids;
mod links;
mod load;
mod merge;
mod overrides;
mod quantities;
mod reader;
mod resources;
mod rlimits;
mod show;
mod validate;
mod values;

#[cfg(test)]
mod tests;

pub use dependencies::{Family, Member};
pub use diagnostic::Diagnostic;
pub use error::ConfigError;
pub use file::schema;
pub use find::{definition, list, strays};
pub use load::{Loaded, Origin, OriginSource, load, load_with};
pub use overrides::{Change, drop_in, read_drop_in};
pub use quantities::{parse_size, parse_time};
