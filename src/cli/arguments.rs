//! What can be typed: the tree of verbs with their help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::{bind, copy, daemon, enable, exec, image, kill, list, run, set, start, stats, status, stop, top};

/// What `--json` means for every verb.
const AFTER_HELP: &str = "\
With --json standard output has the result and nothing else: one object or array, of what became of each machine where a \
verb does something. Standard error has an object a line, {\"warning\": TEXT} or {\"error\": {\"kind\", \"message\", \
\"causes\", \"hints\"}}; definitions with problems have these as they are laid out for people in \"rendered\".";

/// Boots whole Linux distributions as lightweight machines.
#[derive(Debug, Parser)]
#[command(name = "machinist", version, about, disable_help_subcommand = true, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Arguments {
    /// Directory below which configuration, state and run files are (for tests)
    #[arg(
        long,
        global = true,
        env = "MACHINIST_ROOT",
        hide_env = true,
        default_value = "/",
        hide_default_value = true
    )]
    pub(super) root: PathBuf,

    /// No progress, no notes; only what was asked for and errors
    #[arg(long, short, global = true)]
    pub(super) quiet: bool,

    /// Results as JSON; warnings and errors too, on standard error
    #[arg(long, global = true)]
    pub(super) json: bool,

    /// Report to the process that runs us, by lines on standard output
    #[arg(long, hide = true)]
    pub(super) report: bool,

    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Run a machine in the foreground, with its console here
    Run(run::RunArguments),
    /// Start machines in the background and wait until they are ready
    Start(start::StartArguments),
    /// Stop machines in their init's own way
    #[command(alias = "poweroff")]
    Stop(stop::StopArguments),
    /// Start machines at boot
    Enable(enable::EnableArguments),
    /// Do not start machines at boot
    Disable(enable::EnableArguments),
    /// Restart machines in their init's own way
    Reboot(Names),
    /// Kill machines at once, or send a signal
    #[command(alias = "terminate")]
    Kill(kill::KillArguments),
    /// Suspend every process of machines
    Freeze(Names),
    /// Resume frozen machines
    Thaw(Names),
    /// Change the limits of a machine while it runs
    Set(set::SetArguments),
    /// Remove what a killed supervisor left behind
    Reap(Names),
    /// List machines
    #[command(alias = "ls")]
    List(list::ListArguments),
    /// Show what a machine is and does
    Status(status::StatusArguments),
    /// Show what machines use: processors, memory, devices, tasks and pressure
    ///
    /// With `--json` an array with an object for each machine. Its `usage` has counters since the machine's start and
    /// what is used now, in bytes and microseconds as the keys say; `pressure` is the share of the last ten seconds in
    /// which some or all tasks waited. `cpu-percent` is of one processor. What this host does not account for, or does not
    /// limit, is null.
    Stats(stats::StatsArguments),
    /// Show what machines use as it changes, in a table that fills the terminal
    ///
    /// The keys that change the order are at the bottom, and ? explains keys and columns. Where there is not room for all
    /// columns the least important ones are left out.
    Top(top::TopArguments),
    /// Attach to a machine's console
    Console {
        /// The machine
        name: String,
        /// Watch only
        #[arg(long)]
        read_only: bool,
    },
    /// Show what a machine has written to its console
    Logs {
        /// The machine
        name: String,
        /// Follow new output
        #[arg(long, short)]
        follow: bool,
        /// Only the last N lines
        #[arg(long, short = 'n', value_name = "N")]
        lines: Option<usize>,
    },
    /// Run a command in a machine
    Exec(exec::ExecArguments),
    /// Open a login shell in a machine
    Shell {
        /// `[USER@]NAME`
        #[arg(value_name = "[USER@]NAME")]
        target: String,
        /// Set a variable
        #[arg(long, short = 'E', value_name = "KEY=VALUE")]
        env: Vec<String>,
        /// Run this instead of the user's shell
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Show a file or directory of the host in a running machine
    Bind(bind::BindArguments),
    /// Copy files into a running machine
    CopyTo(copy::CopyToArguments),
    /// Copy files out of a running machine
    CopyFrom(copy::CopyFromArguments),
    /// Log in to a machine, on a terminal of its own
    Login {
        /// The machine
        name: String,
    },
    /// Check definitions and report every problem
    Check {
        /// Machines or files; all definitions if there are none
        #[arg(value_name = "NAME|FILE")]
        names: Vec<String>,
    },
    /// Show a definition with every default filled in
    Show {
        /// Machine or file
        #[arg(value_name = "NAME|FILE")]
        name: String,
        /// Show which file set each key
        #[arg(long)]
        origin: bool,
    },
    /// Show what would be done to start a machine, without doing it
    Plan {
        /// Machine or file
        #[arg(value_name = "NAME|FILE")]
        name: String,
    },
    /// Manage images, the trees that machines start from
    Image {
        #[command(subcommand)]
        verb: image::ImageVerb,
    },
    #[command(flatten)]
    FlatImage(image::FlatVerb),
    /// Print the JSON schema of the machine file
    Schema,
    /// Show events as they occur
    Events,
    /// Serve machines on the bus, to machinectl and others
    Daemon(daemon::DaemonArguments),
    /// Tell systemd what definitions say (`systemd.generator(7)`)
    #[command(hide = true)]
    Generate {
        /// Where units go
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Write the manual pages
    #[command(hide = true)]
    Man {
        /// An existing directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Print the script that completes our command line in a shell
    #[command(hide = true)]
    Completion {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Do one thing with the files of a machine, as asked on standard input
    #[command(name = crate::enter::files::VERB, hide = true)]
    Inside,
    /// Visit a machine for the daemon
    #[command(hide = true)]
    Helper {
        /// The machine could write to our program
        #[arg(long)]
        sealed: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct Names {
    /// Machines
    #[arg(required = true, value_name = "NAME")]
    pub(super) names: Vec<String>,
}

/// The shells there are scripts for.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Fish,
    Zsh,
}
