//! Decides everything about a machine before anything is done. Pure: no I/O, no clock, no environment.

pub mod seccomp;
