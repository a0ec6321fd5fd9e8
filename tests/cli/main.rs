//! What a user meets without root: machine files, their errors and everything the program prints.
#![allow(clippy::disallowed_methods, reason = "tests run programs and fail with a backtrace where a file is missing")]

mod config;
mod glossary;
mod order;
mod packaging;
mod plan;
mod program;
mod tidy;
