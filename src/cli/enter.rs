//! `machinist exec` and `machinist shell`.

use std::io::IsTerminal;
use std::time::Duration;

use crate::enter::{self, Command, EnterError, Stdio, Target};

/// What `machinist exec NAME -- COMMAND…` was asked.
#[derive(Debug, Clone, Default)]
pub struct ExecArgs {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// `USER` or `USER:GROUP`.
    pub user: Option<String>,
    /// Variables to set.
    pub environment: Vec<(String, String)>,
    /// Working directory.
    pub directory: Option<String>,
    /// Kill everything the command started after that long.
    pub timeout: Option<Duration>,
    /// Give it a terminal.
    pub tty: bool,
}

/// What `machinist shell [USER@]NAME [-- COMMAND…]` was asked.
#[derive(Debug, Clone, Default)]
pub struct ShellArgs {
    /// Program and arguments; empty means the user's shell.
    pub argv: Vec<String>,
    /// The part before `@`.
    pub user: Option<String>,
    /// Variables to set.
    pub environment: Vec<(String, String)>,
    /// Working directory instead of the user's home.
    pub directory: Option<String>,
}

/// Runs a command in a machine and gives the exit status that is to be ours.
///
/// # Errors
/// If it was not run; [`EnterError::exit_status`] says what to exit with.
pub fn exec(target: &Target<'_>, args: ExecArgs) -> Result<u8, EnterError> {
    let ExecArgs { argv, user, environment, directory, timeout, tty } = args;
    let stdio = if tty { Stdio::Terminal } else { Stdio::Inherit };
    let command = Command { argv, user, environment, directory, timeout, stdio, ..Command::default() };
    enter::run(target, &command).map(enter::Outcome::exit_status)
}

/// Opens a shell in a machine, with a terminal if we have one, and gives the exit status that is to be ours.
///
/// Without a terminal the shell reads its commands from standard input, as with `ssh`.
///
/// # Errors
/// As for [`exec`].
pub fn shell(target: &Target<'_>, args: ShellArgs) -> Result<u8, EnterError> {
    let ShellArgs { argv, user, environment, directory } = args;
    let stdio = if std::io::stdin().is_terminal() { Stdio::Terminal } else { Stdio::Inherit };
    let command = Command { argv, user, environment, directory, stdio, login_shell: true, ..Command::default() };
    enter::run(target, &command).map(enter::Outcome::exit_status)
}

/// Splits `USER@NAME`; without `@` there is no user.
pub fn split_user(text: &str) -> (Option<&str>, &str) {
    match text.rsplit_once('@') {
        Some((user, name)) => (Some(user), name),
        None => (None, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_stands_before_the_last_at_sign() {
        assert_eq!(split_user("web"), (None, "web"));
        assert_eq!(split_user("alice@web"), (Some("alice"), "web"));
        assert_eq!(split_user("a@b@web"), (Some("a@b"), "web"));
        assert_eq!(split_user("@web"), (Some(""), "web"));
    }
}
