//! What a user meets without root: machine files, their errors and everything the program prints.

mod config;
mod glossary;
mod order;
mod packaging;
mod plan;
mod program;
mod tidy;
