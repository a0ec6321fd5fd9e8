//! The command line: each verb is one call into the layers below.
//!
//! What was typed is [`Arguments`]; nothing below this module knows clap, prints, or decides an exit status.

pub mod arguments;
mod bind;
mod complete;
pub mod config;
mod console;
mod copy;
pub mod daemon;
mod enable;
mod events;
mod exec;
mod generate;
pub mod image;
mod kill;
mod list;
mod logs;
mod man;
pub mod output;
pub mod plan;
mod run;
mod set;
mod start;
mod stats;
mod status;
mod stop;
mod top;
mod words;

use std::rc::Rc;

use clap::Parser as _;

use crate::ops::Ops;
use crate::report::OpError;
use crate::spec::Layout;
use arguments::{Arguments, Verb};
use output::{Printer, status as exit};

/// Parses the command line, does what it says and gives the exit status.
pub fn main() -> u8 {
    if let Some(status) = complete::answer() {
        return status;
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return output::usage(&error, asks_for_json()),
    };
    let Ok(printer) = Printer::of(arguments.quiet, arguments.json, arguments.report).map(Rc::new) else {
        return exit::FAILED;
    };
    let ops = Ops::new(Layout::system(&arguments.root), Rc::clone(&printer) as _);
    printer.finish(dispatch(arguments.verb, &ops, &printer))
}

/// Whether errors are to be JSON, if the command line cannot be read.
fn asks_for_json() -> bool {
    std::env::args_os().take_while(|word| word != "--").any(|word| word == "--json")
}

fn dispatch(verb: Verb, ops: &Ops, printer: &Printer) -> Result<u8, OpError> {
    let layout = ops.layout();
    let done = |()| exit::OK;
    match verb {
        Verb::Run(args) => run::run(ops, &args, printer),
        Verb::Start(args) => start::start(ops, args),
        Verb::Stop(args) => stop::stop(ops, args),
        Verb::Enable(args) => enable::enable(ops, &args),
        Verb::Disable(args) => enable::disable(ops, &args),
        Verb::Reboot(args) => ops.each(&args.names, |name| ops.reboot(name)).map(done),
        Verb::Kill(args) => ops.each(&args.names, |name| kill::kill(ops, name, args.signal, args.leader)).map(done),
        Verb::Freeze(args) => ops.each(&args.names, |name| kill::freeze(ops, name, true)).map(done),
        Verb::Thaw(args) => ops.each(&args.names, |name| kill::freeze(ops, name, false)).map(done),
        Verb::Set(args) => set::set(ops, &args),
        Verb::Reap(args) => ops.each(&args.names, |name| ops.reap(name)).map(done),
        Verb::List(args) => list::list(ops, &args, printer),
        Verb::Status(args) => status::status(ops, &args, printer),
        Verb::Stats(args) => stats::stats(ops, &args, printer),
        Verb::Top(args) => top::top(ops, &args),
        Verb::Console { name, read_only } => console::console(ops, &name, read_only),
        Verb::Logs { name, follow, lines } => logs::logs(layout, &name, follow, lines),
        Verb::Bind(args) => bind::bind(ops, args),
        Verb::CopyTo(args) => copy::copy_to(ops, args),
        Verb::CopyFrom(args) => copy::copy_from(ops, args),
        Verb::Exec(args) => exec::exec(ops, args),
        Verb::Shell { target, env, command } => exec::shell(ops, &target, &env, command),
        Verb::Login { name } => console::login(ops, &name, printer),
        Verb::Check { names } => output::checked(|out, err| config::check(layout, &names, output::color(), out, err)),
        Verb::Show { name, origin } => plan::show(layout, &name, origin, printer),
        Verb::Plan { name } => plan::plan(ops, &name, printer),
        Verb::Events => events::events(ops, printer),
        Verb::Daemon(args) => daemon::run(layout, args),
        Verb::Generate { directory } => generate::generate(layout, &directory),
        Verb::Man { directory } => man::man(&directory),
        Verb::Completion { shell } => complete::script(shell),
        Verb::Inside => Ok(crate::enter::files::serve()),
        Verb::Image { verb } => image::run(ops, verb, printer),
        Verb::FlatImage(verb) => image::run(ops, verb.into(), printer),
        Verb::Helper { sealed } => daemon::help(layout, sealed),
        Verb::Schema => output::written(|out| config::schema(out)),
    }
}
