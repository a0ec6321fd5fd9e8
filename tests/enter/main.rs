//! Running commands inside a machine, as root, on namespaces and a control group of the test's own making.
//!
//! One process with one thread, because cases fork; they run one after the other. `cargo test --test enter NAME`
//! runs those whose name contains NAME. Nothing is skipped: without root every case fails.
#![allow(clippy::disallowed_methods, reason = "tests run programs and fail with a backtrace where a file is missing")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a test program speaks to whoever runs it")]

mod caller;
mod commands;
mod machine;
mod rights;
mod streams;

use std::panic::catch_unwind;
use std::process::ExitCode;

/// A claim and the code that fails if it is wrong.
type Case = (&'static str, fn());

fn main() -> ExitCode {
    if let Some(status) = caller::act() {
        return ExitCode::from(status);
    }
    let flags: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| flags.iter().any(|word| word == name);
    let cases = commands::CASES.iter().chain(&rights::CASES).chain(&streams::CASES);
    if flag("--list") {
        // The lists that cargo-nextest asks for; it then runs each case as a process of its own.
        cases.filter(|_| !flag("--ignored")).for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<&String> = flags.iter().filter(|word| !word.starts_with('-')).collect();
    let chosen = |name: &str| wanted.iter().any(|w| if flag("--exact") { name == *w } else { name.contains(*w) });
    let cases: Vec<&Case> = cases.filter(|(name, _)| wanted.is_empty() || chosen(name)).collect();
    let failed: Vec<&str> = cases.iter().filter(|(name, case)| !passes(name, *case)).map(|(name, _)| *name).collect();
    println!("\n{} passed, {} failed", cases.len() - failed.len(), failed.len());
    for name in &failed {
        println!("failed: {name}");
    }
    ExitCode::from(u8::from(!failed.is_empty()))
}

fn passes(name: &str, case: fn()) -> bool {
    // One that hangs ends all, rather than being waited for.
    nix::unistd::alarm::set(60);
    let passed = catch_unwind(case).is_ok();
    println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
    passed
}
