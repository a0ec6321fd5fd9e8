//! Machinist boots whole Linux distributions as lightweight machines.

pub mod cgroup;
pub mod cli;
pub mod config;
pub mod host;
pub mod plan;
pub mod rootfs;
pub mod spec;
pub mod supervisor;
pub mod sys;
