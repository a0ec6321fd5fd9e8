//! Runs machines: one process owns one machine from its preparation to the last trace of it.

pub mod console;
pub mod enter;
pub mod seal;
