//! The command line: each verb is one call into the layers below.
//!
//! What was typed is [`Arguments`]; nothing below this module knows clap, prints, or decides an exit status.

mod carried;
mod complete;
mod conduct;
pub mod config;
pub mod daemon;
mod enable;
pub mod enter;
mod generate;
pub mod image;
pub mod look;
pub mod machine;
mod man;
pub mod output;
pub mod plan;
mod remote;
mod set;
mod start;
mod stats;
mod stop;
mod top;
mod transfer;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::spec::Layout;
use output::Failure;

/// Boots whole Linux distributions as lightweight machines.
#[derive(Debug, Parser)]
#[command(name = "machinist", version, about, disable_help_subcommand = true, max_term_width = 100)]
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
    root: PathBuf,

    /// No progress, no notes; only what was asked for and errors
    #[arg(long, short, global = true)]
    quiet: bool,

    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a machine in the foreground, with its console here
    Run(RunArguments),
    /// Start machines in the background and wait until they are ready
    Start(StartArguments),
    /// Stop machines in their init's own way
    #[command(alias = "poweroff")]
    Stop(StopArguments),
    /// Have machines start with the host
    Enable(EnableArguments),
    /// Have machines not start with the host any more
    Disable(EnableArguments),
    /// Restart machines in their init's own way
    Reboot(Names),
    /// Kill machines at once, or send a signal
    #[command(alias = "terminate")]
    Kill(KillArguments),
    /// Suspend every process of machines
    Freeze(Names),
    /// Let frozen machines go on
    Thaw(Names),
    /// Change the limits of a machine while it runs
    Set(SetArguments),
    /// Remove what a killed supervisor left behind
    Reap(Names),
    /// List machines
    #[command(alias = "ls")]
    List(ListArguments),
    /// Show what a machine is and does
    Status(StatusArguments),
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
        /// Go on as it writes more
        #[arg(long, short)]
        follow: bool,
        /// Only the last N lines
        #[arg(long, short = 'n', value_name = "N")]
        lines: Option<usize>,
    },
    /// Run a command in a machine
    Exec(ExecArguments),
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
    Bind(transfer::BindArguments),
    /// Copy files into a running machine
    CopyTo(transfer::CopyToArguments),
    /// Copy files out of a running machine
    CopyFrom(transfer::CopyFromArguments),
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
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what would be done to start a machine, without doing it
    Plan {
        /// Machine or file
        #[arg(value_name = "NAME|FILE")]
        name: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Look at the images that machines start from, and change them
    Image {
        #[command(subcommand)]
        verb: image::ImageVerb,
    },
    #[command(flatten)]
    FlatImage(image::FlatVerb),
    /// Print the JSON schema of the machine file
    Schema,
    /// Tell what happens to machines, as it happens
    Events {
        /// As JSON, one object a line
        #[arg(long)]
        json: bool,
    },
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
        shell: complete::Shell,
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
struct Names {
    /// Machines
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

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

#[derive(Debug, Args)]
pub(crate) struct StartArguments {
    /// Machines or files
    #[arg(required_unless_present = "autostart", value_name = "NAME|FILE")]
    names: Vec<String>,
    /// Also every machine that starts with the host, and none that runs already
    #[arg(long)]
    autostart: bool,
    /// Only these and not what they need, which whoever calls has seen to
    #[arg(long, hide = true)]
    alone: bool,
    /// Return as soon as the init has begun
    #[arg(long)]
    no_wait: bool,
    /// Start at most N machines at once [default: twice the number of processors]
    #[arg(long, short, value_name = "N")]
    jobs: Option<std::num::NonZeroUsize>,
}

#[derive(Debug, Args)]
pub(crate) struct StopArguments {
    /// Machines
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "NAME")]
    names: Vec<String>,
    /// Every running machine
    #[arg(long)]
    all: bool,
    /// Kill what has not ended after this long, instead of the machine's own `stop-timeout`
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct EnableArguments {
    /// Machines
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Also start or stop them now
    #[arg(long)]
    now: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SetArguments {
    /// The machine
    name: String,
    /// Keys of `[resources]`, as in `memory-max=1G`; without a value, back to what the definition says
    #[arg(required = true, value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Keep them for later starts, too, in a drop-in of the definition
    #[arg(long)]
    save: bool,
}

#[derive(Debug, Args)]
pub(crate) struct KillArguments {
    /// Machines
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Signal to send, by name or number
    #[arg(long, short, default_value = "SIGKILL", value_parser = machine::parse_signal)]
    signal: i32,
    /// Send it only to the machine's PID 1 instead of every process
    #[arg(long)]
    leader: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Also machines that are defined and not running
    #[arg(long, short)]
    all: bool,
    /// Only the names, one a line
    #[arg(long, conflicts_with = "json")]
    names: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArguments {
    /// The machine
    name: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArguments {
    /// The machine
    name: String,
    /// `USER[:GROUP]` of the machine, by name or number
    #[arg(long, short)]
    user: Option<String>,
    /// Set a variable
    #[arg(long, short = 'E', value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// Working directory in the machine
    #[arg(long, short = 'C', value_name = "DIR")]
    directory: Option<String>,
    /// Kill the command and all it started after this long
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    timeout: Option<Duration>,
    /// Give the command a terminal
    #[arg(long, short)]
    tty: bool,
    /// The command
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

fn parse_time(text: &str) -> Result<Duration, String> {
    match crate::config::parse_time(text) {
        Ok(Some(time)) => Ok(time),
        Ok(None) => Ok(Duration::MAX),
        Err(e) => Err(e),
    }
}

fn key_values(list: &[String]) -> Result<Vec<(String, String)>, Failure> {
    list.iter()
        .map(|item| match item.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(Failure::usage(format!("'{item}' is not KEY=VALUE"))),
        })
        .collect()
}

/// Parses the command line, does what it says and gives the exit status.
pub fn main() -> u8 {
    if let Some(status) = complete::answer() {
        return status;
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version go to standard output and are no failure.
            let _ = error.print();
            return u8::try_from(error.exit_code()).unwrap_or(2);
        }
    };
    let layout = Layout::new(&arguments.root);
    match dispatch(arguments.verb, &layout, arguments.quiet) {
        Ok(status) => status,
        Err(failure) => output::report(&failure),
    }
}

fn dispatch(verb: Verb, layout: &Layout, quiet: bool) -> Result<u8, Failure> {
    match verb {
        Verb::Run(args) => machine::run(layout, &args, quiet),
        Verb::Start(args) => start::start(layout, &args, quiet),
        Verb::Stop(args) => stop::stop(layout, &args, quiet),
        Verb::Enable(args) => enable::enable(layout, &args, quiet),
        Verb::Disable(args) => enable::disable(layout, &args, quiet),
        Verb::Reboot(args) => machine::each(&args.names, |name| machine::reboot(layout, name, quiet)),
        Verb::Kill(args) => machine::each(&args.names, |name| machine::kill(layout, name, args.signal, args.leader)),
        Verb::Freeze(args) => machine::each(&args.names, |name| machine::freeze(layout, name, true)),
        Verb::Thaw(args) => machine::each(&args.names, |name| machine::freeze(layout, name, false)),
        Verb::Set(args) => set::set(layout, &args, quiet),
        Verb::Reap(args) => machine::each(&args.names, |name| machine::reap(layout, name, quiet)),
        Verb::List(args) => look::list(layout, &args),
        Verb::Status(args) => look::status(layout, &args),
        Verb::Stats(args) => stats::stats(layout, &args),
        Verb::Top(args) => top::top(layout, &args),
        Verb::Console { name, read_only } => machine::console(layout, &name, read_only),
        Verb::Logs { name, follow, lines } => look::logs(layout, &name, follow, lines),
        Verb::Bind(args) => transfer::bind(layout, args),
        Verb::CopyTo(args) => transfer::copy_to(layout, args),
        Verb::CopyFrom(args) => transfer::copy_from(layout, args),
        Verb::Exec(args) => machine::exec(layout, args),
        Verb::Shell { target, env, command } => machine::shell(layout, &target, &env, command),
        Verb::Login { name } => machine::login(layout, &name, quiet),
        Verb::Check { names } => output::checked(|out, err| config::check(layout, &names, output::color(), out, err)),
        Verb::Show { name, origin, json } => plan::show(layout, &name, origin, json),
        Verb::Plan { name, json } => plan::plan(layout, &name, json),
        Verb::Events { json } => remote::events(layout, json),
        Verb::Daemon(args) => daemon::run(layout, args),
        Verb::Generate { directory } => generate::generate(layout, &directory),
        Verb::Man { directory } => man::man(&directory),
        Verb::Completion { shell } => complete::script(shell),
        Verb::Inside => Ok(crate::enter::files::serve()),
        Verb::Image { verb } => image::run(layout, verb, quiet),
        Verb::FlatImage(verb) => image::run(layout, verb.into(), quiet),
        Verb::Helper { sealed } => daemon::help(layout, sealed),
        Verb::Schema => output::written(|out| config::schema(out)),
    }
}
