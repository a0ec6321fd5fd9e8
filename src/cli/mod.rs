//! The command line: each verb is one call into the layers below.

pub mod config;
pub mod enter;
