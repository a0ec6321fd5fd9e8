//! Completion of the command line in shells.
//!
//! The shell's script is a few lines that run this program with [`VARIABLE`] set, so that it offers the machines there
//! are. They are read from directories: completing asks no daemon and starts none.

use std::ffi::OsStr;
use std::path::Path;

use clap::{Arg, Command, CommandFactory as _};
use clap_complete::CompletionCandidate;
use clap_complete::engine::{ArgValueCompleter, PathCompleter, ValueCompleter as _};
use clap_complete::env::{Bash, CompleteEnv, EnvCompleter, Fish, Shells, Zsh};

use super::arguments::{Arguments, Shell};
use super::output::{status, written};
use crate::config;
use crate::report::OpError;
use crate::running::state;
use crate::spec::Layout;
use crate::sys::file;

/// Set by the shell's script when it wants words; its value is the shell's name.
const VARIABLE: &str = "MACHINIST_COMPLETE";

const SHELLS: &[&dyn EnvCompleter] = &[&Bash, &Fish, &Zsh];

/// Answers a shell that wants words, and gives the exit status; nothing when this is an ordinary run.
pub(super) fn answer() -> Option<u8> {
    std::env::var_os(VARIABLE)?;
    let complete = CompleteEnv::with_factory(command).var(VARIABLE).shells(Shells(SHELLS));
    let directory = std::env::current_dir().ok();
    match complete.try_complete(std::env::args_os(), directory.as_deref()) {
        Ok(true) => Some(status::OK),
        Ok(false) => None,
        // A message would land in the middle of the line that is being typed.
        Err(_) => Some(status::FAILED),
    }
}

/// `machinist completion`
pub(super) fn script(shell: Shell) -> Result<u8, OpError> {
    let shell: &dyn EnvCompleter = match shell {
        Shell::Bash => &Bash,
        Shell::Fish => &Fish,
        Shell::Zsh => &Zsh,
    };
    let mut text = Vec::new();
    // By name, not by our place: the package may move, and the script stays true.
    shell
        .write_registration(VARIABLE, "machinist", "machinist", "machinist", &mut text)
        .map_err(|e| OpError::new(format!("cannot write the script: {e}")))?;
    written(|out| out.write_all(&text))
}

/// The command line with words to offer for every argument that names something.
fn command() -> Command {
    with_words(Arguments::command(), "")
}

/// What an argument takes follows from how help calls its value, so that new verbs need nothing.
fn with_words(command: Command, group: &str) -> Command {
    let of_images = group == "image";
    let command = command.mut_args(|arg| {
        let words: fn(&OsStr) -> Vec<CompletionCandidate> = match value_name(&arg).as_str() {
            "NAME" | "IMAGE" if of_images => images,
            "NAME|FILE" => definitions_and_files,
            "NAME" => running,
            "[USER@]NAME" => running_with_user,
            "IMAGE" => images,
            _ => return arg,
        };
        arg.add(ArgValueCompleter::new(words))
    });
    let verbs: Vec<String> = command.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    verbs.iter().fold(command, |command, verb| command.mut_subcommand(verb, |c| with_words(c, verb)))
}

/// How help calls the argument's value.
fn value_name(arg: &Arg) -> String {
    match arg.get_value_names() {
        Some([name, ..]) => name.to_string(),
        _ if arg.is_positional() => arg.get_id().as_str().to_ascii_uppercase(),
        _ => String::new(),
    }
}

/// Of the root that the environment names; one named by `--root` is not known yet.
fn layout() -> Layout {
    Layout::system(std::env::var_os("MACHINIST_ROOT").filter(|root| !root.is_empty()).unwrap_or_else(|| "/".into()))
}

/// Those words that go on as the one being typed.
fn matching(words: impl IntoIterator<Item = String>, current: &OsStr) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    words.into_iter().filter(|word| word.starts_with(&*current)).map(CompletionCandidate::new).collect()
}

fn running(current: &OsStr) -> Vec<CompletionCandidate> {
    matching(state::names(&layout()).into_iter().map(|name| name.as_str().to_owned()), current)
}

fn running_with_user(current: &OsStr) -> Vec<CompletionCandidate> {
    let text = current.to_string_lossy();
    let user = text.split_once('@').map_or(String::new(), |(user, _)| format!("{user}@"));
    matching(state::names(&layout()).into_iter().map(|name| format!("{user}{name}")), current)
}

fn definitions_and_files(current: &OsStr) -> Vec<CompletionCandidate> {
    let names = config::list(&layout()).into_iter().map(|(name, _)| name.as_str().to_owned());
    let mut words = matching(names, current);
    let wanted = |path: &Path| path.is_dir() || path.extension().is_some_and(|e| e == "toml");
    words.extend(PathCompleter::any().filter(wanted).complete(current));
    words
}

fn images(current: &OsStr) -> Vec<CompletionCandidate> {
    let entries = file::list(layout().images()).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let names = names.filter(|name| !name.starts_with('.'));
    matching(names.map(|name| name.strip_suffix(".raw").unwrap_or(&name).to_owned()), current)
}
