//! `run`: a machine in the foreground.

use std::io::IsTerminal as _;

use clap::Args;

use super::carried;
use super::machine::{cannot_start, prepare};
use super::output::{self, Failure, say};
use super::start::default_jobs;
use crate::running::start_limit::StartSlot;
use crate::spec::Layout;
use crate::supervisor;
use crate::supervisor::console::Mode;

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// Machine or file
    #[arg(value_name = "NAME|FILE")]
    name: String,
    /// The caller's side of the console [default: interactive on a terminal, else pipe]
    #[arg(long, value_enum)]
    console: Option<ConsoleMode>,
    /// Wait while N others that are run with this option are starting; 0 is twice the number of processors
    #[arg(long, short, value_name = "N")]
    jobs: Option<usize>,
}

/// `--console`
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ConsoleMode {
    /// Keys and output, the terminal in raw mode
    Interactive,
    /// Output only
    ReadOnly,
    /// Bytes both ways, unchanged
    Pipe,
    /// Nothing; for service managers
    None,
}

/// `machinist run`
pub(super) fn run(layout: &Layout, args: &RunArguments, quiet: bool) -> Result<u8, Failure> {
    // Whoever asked the service manager to start the unit has no other way to read why it failed.
    run_here(layout, args, quiet).inspect_err(|failure| supervisor::tell_manager(&failure.line()))
}

fn run_here(layout: &Layout, args: &RunArguments, quiet: bool) -> Result<u8, Failure> {
    let mut job = prepare(layout, &args.name)?;
    job.console = match args.console {
        None => Mode::of_stdio(),
        Some(ConsoleMode::Interactive) if !std::io::stdin().is_terminal() => {
            return Err(Failure::usage("`--console interactive` needs a terminal on standard input"));
        }
        Some(ConsoleMode::Interactive) => Mode::Interactive,
        Some(ConsoleMode::ReadOnly) => Mode::ReadOnly,
        Some(ConsoleMode::Pipe) => Mode::Pipe,
        Some(ConsoleMode::None) => Mode::Detached,
    };
    let name = job.plan.name.clone();
    let doing = cannot_start(&name);
    let talk = !quiet && job.console == Mode::Interactive;
    say(!talk, &format!("Starting machine '{name}'. Press ^] three times within 1s to stop it."));
    let busy = || supervisor::tell_manager("Waiting while other machines start.");
    let slot = args.jobs.map(|jobs| StartSlot::take(layout, if jobs == 0 { default_jobs() } else { jobs }, busy));
    let slot = slot.transpose().map_err(|e| Failure::call(doing.clone(), &e))?;
    let mut prepared = supervisor::prepare(job).map_err(|e| Failure::machine(&doing, &e))?;
    slot.into_iter().for_each(|slot| prepared.hold_slot(slot));
    let exit = prepared.run().map_err(|e| Failure::machine(&doing, &e))?;
    carried::tell_end(&exit);
    if exit.killed {
        output::warn(&format!("machine '{name}' did not stop in time and was killed"));
    } else {
        say(!talk, &format!("Machine '{name}' has ended."));
    }
    Ok(exit.status)
}
