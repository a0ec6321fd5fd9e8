//! `run`: a machine in the foreground.

use std::io::IsTerminal as _;

use clap::Args;

use super::output::Printer;
use crate::ops::{self, Ops, cannot_start, default_jobs, systemd};
use crate::report::{Events as _, OpError};
use crate::running::start_limit::StartSlot;
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
pub(super) fn run(ops: &Ops, args: &RunArguments, printer: &Printer) -> Result<u8, OpError> {
    // A client that asked the service manager to start the unit has no other way to read why it failed.
    run_here(ops, args, printer).inspect_err(|error| systemd::report_failure(ops.layout(), &args.name, error))
}

fn run_here(ops: &Ops, args: &RunArguments, printer: &Printer) -> Result<u8, OpError> {
    let layout = ops.layout();
    let mut job = ops.prepare(&args.name, None)?;
    job.events = printer.beside_console();
    job.console = match args.console {
        None => Mode::of_stdio(),
        Some(ConsoleMode::Interactive) if !std::io::stdin().is_terminal() => {
            return Err(OpError::usage("`--console interactive` needs a terminal on standard input"));
        }
        Some(ConsoleMode::Interactive) => Mode::Interactive,
        Some(ConsoleMode::ReadOnly) => Mode::ReadOnly,
        Some(ConsoleMode::Pipe) => Mode::Pipe,
        Some(ConsoleMode::None) => Mode::Detached,
    };
    let name = job.plan.name.clone();
    let doing = cannot_start(&name);
    let talk = job.console == Mode::Interactive;
    let say = |text: &str| {
        if talk {
            printer.say(text)
        }
    };
    say(&format!("Starting machine '{name}'. Press ^] three times within 1s to stop it."));
    let busy = || supervisor::tell_manager("Waiting while other machines start.");
    let slot = args.jobs.map(|jobs| StartSlot::take(layout, if jobs == 0 { default_jobs() } else { jobs }, busy));
    let slot = slot.transpose().map_err(|e| OpError::call(doing.clone(), &e))?;
    let mut prepared = supervisor::prepare(job).map_err(|e| ops::machine(&doing, &e))?;
    slot.into_iter().for_each(|slot| prepared.hold_slot(slot));
    let exit = prepared.run().map_err(|e| ops::machine(&doing, &e))?;
    systemd::report_end(layout, &name, &exit);
    if exit.killed {
        printer.warn(&format!("machine '{name}' did not stop in time and was killed"));
    } else {
        say(&format!("Machine '{name}' has ended."));
    }
    Ok(exit.status)
}
