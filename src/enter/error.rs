//! [`EnterError`]: why a command could not be run, and how its children say so.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::sys;

/// Why a command could not be run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnterError {
    /// An argument or a variable that no program can be given.
    Request(String),
    /// Its control group could not be made or used.
    Group(sys::Error),
    /// The machine's namespaces could not be entered, or its rights not taken on.
    Enter(sys::Error),
    /// No such user in the machine.
    User(String),
    /// The working directory cannot be used.
    Directory(sys::Error),
    /// Standard input, output or error could not be set up or copied.
    Streams(sys::Error),
    /// A socket of the machine cannot be connected to.
    Connect(sys::Error),
    /// The program does not exist in the machine.
    NotFound(String),
    /// The program exists and cannot be executed.
    NotExecutable(sys::Error),
    /// The entering process ended without a report.
    Lost,
    /// The entering process panicked, for this reason.
    Panicked(String),
}

impl EnterError {
    /// The exit status shells use for it: 127 not found, 126 not executable, else 1.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::NotFound(_) => 127,
            Self::NotExecutable(_) => 126,
            _ => 1,
        }
    }
}

impl fmt::Display for EnterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The machine may have chosen what a call was made on.
        let shown = |cause: &sys::Error| format!("{}: {}", Shown(&cause.call), cause.errno.desc());
        match self {
            Self::Request(why) | Self::User(why) => f.write_str(why),
            Self::Group(cause) => write!(f, "cannot make a control group for the command: {}", shown(cause)),
            Self::Enter(cause) => write!(f, "cannot enter the machine: {}", shown(cause)),
            Self::Directory(cause) => write!(f, "cannot use the working directory: {}", shown(cause)),
            Self::Connect(cause) => write!(f, "cannot connect to a socket of the machine: {}", shown(cause)),
            Self::Streams(cause) => write!(f, "cannot connect standard input and output: {}", shown(cause)),
            Self::NotFound(program) => write!(f, "no program '{}' in the machine", Shown(program)),
            Self::NotExecutable(cause) => write!(f, "cannot execute the command: {}", shown(cause)),
            Self::Lost => f.write_str("the process that entered the machine was killed"),
            Self::Panicked(why) => write!(f, "the process that entered the machine panicked: {}", Shown(why)),
        }
    }
}

impl std::error::Error for EnterError {}

/// Text that came from elsewhere, without anything a terminal would act on.
pub(super) struct Shown<'a>(pub(super) &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\'' | '"' | '\\' => write!(f, "{c}"),
            c => write!(f, "{}", c.escape_debug()),
        })
    }
}

/// What the children report to the caller, one message each.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// The other ends of the command's streams come along.
    Connected,
    /// The command's process exists; its pidfd comes along.
    Started,
    /// It will not be run.
    Failed(EnterError),
}
