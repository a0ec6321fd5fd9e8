//! The command line: each verb is one call into the layers below.
//!
//! What was typed is [`Arguments`]; nothing below this module knows clap, prints, or decides an exit status.

pub mod arguments;
mod bind;
mod carried;
mod complete;
mod conduct;
pub mod config;
mod console;
mod copy;
pub mod daemon;
mod enable;
mod exec;
mod generate;
pub mod image;
mod kill;
mod list;
mod logs;
mod machine;
mod man;
pub mod output;
pub mod plan;
mod reap;
mod reboot;
mod remote;
mod run;
mod set;
mod start;
mod stats;
mod status;
mod stop;
mod top;
mod words;

use clap::Parser as _;

use crate::spec::Layout;
use arguments::{Arguments, Verb};
use output::Failure;

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
    let layout = Layout::system(&arguments.root);
    match dispatch(arguments.verb, &layout, arguments.quiet) {
        Ok(status) => status,
        Err(failure) => output::report(&failure),
    }
}

fn dispatch(verb: Verb, layout: &Layout, quiet: bool) -> Result<u8, Failure> {
    match verb {
        Verb::Run(args) => run::run(layout, &args, quiet),
        Verb::Start(args) => start::start(layout, &args, quiet),
        Verb::Stop(args) => stop::stop(layout, &args, quiet),
        Verb::Enable(args) => enable::enable(layout, &args, quiet),
        Verb::Disable(args) => enable::disable(layout, &args, quiet),
        Verb::Reboot(args) => machine::each(&args.names, |name| reboot::reboot(layout, name, quiet)),
        Verb::Kill(args) => machine::each(&args.names, |name| kill::kill(layout, name, args.signal, args.leader)),
        Verb::Freeze(args) => machine::each(&args.names, |name| kill::freeze(layout, name, true)),
        Verb::Thaw(args) => machine::each(&args.names, |name| kill::freeze(layout, name, false)),
        Verb::Set(args) => set::set(layout, &args, quiet),
        Verb::Reap(args) => machine::each(&args.names, |name| reap::reap(layout, name, quiet)),
        Verb::List(args) => list::list(layout, &args),
        Verb::Status(args) => status::status(layout, &args),
        Verb::Stats(args) => stats::stats(layout, &args),
        Verb::Top(args) => top::top(layout, &args),
        Verb::Console { name, read_only } => console::console(layout, &name, read_only),
        Verb::Logs { name, follow, lines } => logs::logs(layout, &name, follow, lines),
        Verb::Bind(args) => bind::bind(layout, args),
        Verb::CopyTo(args) => copy::copy_to(layout, args),
        Verb::CopyFrom(args) => copy::copy_from(layout, args),
        Verb::Exec(args) => exec::exec(layout, args),
        Verb::Shell { target, env, command } => exec::shell(layout, &target, &env, command),
        Verb::Login { name } => console::login(layout, &name, quiet),
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
