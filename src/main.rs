//! The `machinist` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(machinist::cli::main())
}
