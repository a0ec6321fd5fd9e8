//! `exec` and `shell`: commands in a machine.

use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::time::Duration;

use clap::Args;

use super::output::status;
use super::words::{key_values, parse_time};
use crate::bus::machinist1::Exec;
use crate::cgroup;
use crate::enter::{self, Command, EnterError, Outcome, Stdio, Target};
use crate::ops::{self, Ops, machine_name};
use crate::report::OpError;
use crate::running::state::Phase;

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

/// Enters a running machine.
fn enter<T>(ops: &Ops, name: &str, work: impl FnOnce(&Target<'_>) -> Result<T, EnterError>) -> Result<T, OpError> {
    let (name, state) = ops.running(name)?;
    if cgroup::is_frozen(&state.cgroup) {
        // What we put there would be frozen, too, and we would wait for it.
        return Err(
            OpError::new(format!("machine '{name}' is frozen")).hint(format!("`machinist thaw {name}` lets it go on"))
        );
    }
    if state.phase == Phase::Restarting {
        return Err(OpError::new(format!("machine '{name}' has ended and is about to be started again")));
    }
    if state.ids.is_none() {
        ops::seal()?;
    }
    let leader = state.open_leader().map_err(|e| OpError::call(format!("cannot enter machine '{name}'"), &e))?;
    let (rights, group) = (state.rights(), state.payload_group());
    let target = state.target(leader.as_fd(), &group, &rights);
    work(&target).map_err(|e| ops::enter(&e))
}

/// `machinist exec`
pub(super) fn exec(ops: &Ops, args: ExecArguments) -> Result<u8, OpError> {
    let ExecArguments { name, user, env, directory, timeout, tty, command: argv } = args;
    let stdio = if tty { Stdio::Terminal } else { Stdio::Inherit };
    let environment = key_values(&env)?;
    let command = Command { argv, user, environment, directory, timeout, stdio, ..Command::default() };
    let name = machine_name(&name)?;
    let (input, output, error) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let files = (!tty).then(|| [input.as_fd(), output.as_fd(), error.as_fd()]);
    let exec = Exec {
        user: command.user.as_deref().unwrap_or_default(),
        command: &command.argv,
        environment: env,
        directory: command.directory.as_deref().unwrap_or_default(),
        timeout,
    };
    if let Some(status) = ops.exec_via_daemon(name.as_str(), &exec, files)? {
        return Ok(u8::try_from(status).unwrap_or(status::FAILED));
    }
    enter(ops, name.as_str(), |target| enter::run(target, &command).map(Outcome::exit_status))
}

/// `machinist shell`: with a terminal if we have one; without one it reads its commands from standard input, as with
/// `ssh`.
pub(super) fn shell(ops: &Ops, target: &str, env: &[String], argv: Vec<String>) -> Result<u8, OpError> {
    let (user, name) = split_user(target);
    let stdio = if std::io::stdin().is_terminal() { Stdio::Terminal } else { Stdio::Inherit };
    let (user, environment) = (user.map(str::to_owned), key_values(env)?);
    let command = Command { argv, user, environment, stdio, login_shell: true, ..Command::default() };
    enter(ops, name, |target| enter::run(target, &command).map(Outcome::exit_status))
}

/// Splits `USER@NAME`; without `@` there is no user.
fn split_user(text: &str) -> (Option<&str>, &str) {
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
