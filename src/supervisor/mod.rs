//! Runs machines: one process owns one machine from its preparation to the last trace of it.

pub mod enter;
pub mod seal;
//! The process that owns one machine from preparation to its end.

pub mod console;
