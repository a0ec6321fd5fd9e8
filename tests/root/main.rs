//! Machines of real trees, on the real kernel, as root. Nothing here is skipped: without root it fails.
#![allow(clippy::disallowed_methods, reason = "tests run programs and fail with a backtrace where a file is missing")]

mod bad_input;
mod boots;
#[allow(dead_code, reason = "used as more tests come")]
mod bus;
mod bus_images;
mod bus_input;
mod clients;
mod cves;
mod cycles;
mod daemon_enter;
mod daemon_inspect;
mod daemon_restart;
mod daemon_transfer;
mod devices;
mod foreign;
mod groups;
mod images;
mod images_machined;
mod isolation;
mod kills;
mod life;
mod limits;
mod mounts;
mod order;
mod overlay;
mod own;
mod panics;
mod policy;
mod registration;
mod rlimits;
mod roots;
mod service;
mod small_tree;
mod smoke;
mod stage;
mod stats;
#[allow(dead_code, reason = "used as more tests come")]
mod support;
mod top;
mod varlink;
mod verbs;
