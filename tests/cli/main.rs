//! What a user meets without root: machine files, their errors and everything the program prints.

mod config;
mod packaging;
mod plan;
mod program;
mod tidy;
