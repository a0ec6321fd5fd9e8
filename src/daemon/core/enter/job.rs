//! What is wanted of a machine: a terminal, a login or a shell.

use serde::{Deserialize, Serialize};

use crate::daemon::core::error::{Failure, Outcome};
use crate::enter;

/// A command on a terminal of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shell {
    pub(crate) user: String,
    pub(crate) path: String,
    pub(crate) args: Vec<String>,
    pub(crate) environment: Vec<String>,
}

impl Shell {
    /// Fills in what may be left out, and refuses what machined refuses.
    pub(super) fn checked(mut self) -> Outcome<Self> {
        if self.user.is_empty() {
            "root".clone_into(&mut self.user);
        }
        // It becomes part of command lines and of units of the machine.
        if !enter::is_user(&self.user) {
            return Err(Failure::invalid_args(format!("Invalid user name '{}'", self.user.escape_debug())));
        }
        if self.path.is_empty() {
            self.args = Vec::new();
        } else if !self.path.starts_with('/') {
            return Err(Failure::invalid_args(format!("Specified path '{}' is not absolute", self.path)));
        } else if self.args.is_empty() {
            self.args = vec![self.path.clone()];
        }
        let mut names: Vec<&str> = Vec::new();
        for assignment in &self.environment {
            let name = assignment.split_once('=').map(|(name, _)| name).filter(|name| is_variable(name));
            let invalid = || Failure::invalid_args("Invalid environment assignments");
            let name = name.filter(|name| !names.contains(name)).ok_or_else(invalid)?;
            names.push(name);
        }
        Ok(self)
    }

    /// What administrators are shown.
    pub(super) fn command_line(&self) -> String {
        if self.path.is_empty() { "the user's shell".into() } else { self.args.join(" ") }
    }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// What to do on a new terminal of a machine.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Job {
    /// Nothing; both ends are wanted.
    Pty,
    /// A login, or a shell for root where the machine has no program that asks who it is.
    Login {
        /// Whether it may be a shell.
        root_shell: bool,
    },
    Shell(Shell),
}

impl Job {
    /// What it is called in the log.
    pub(super) fn named(&self) -> String {
        match self {
            Self::Pty => "a terminal".into(),
            Self::Login { .. } => "a login".into(),
            Self::Shell(shell) => format!("a shell for user {}", shell.user),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::core::error::Kind;

    fn shell(user: &str, path: &str, environment: &[&str]) -> Shell {
        let environment = environment.iter().map(ToString::to_string).collect();
        Shell { user: user.into(), path: path.into(), args: Vec::new(), environment }
    }

    fn refusal(shell: Shell) -> String {
        let failure = shell.checked().expect_err("refused");
        assert_eq!(failure.kind, Kind::InvalidArgs);
        failure.text
    }

    #[test]
    fn what_is_left_out_is_root_and_the_path_itself() {
        let checked = shell("", "/bin/ls", &["TERM=xterm", "_A1="]).checked().expect("good");
        assert_eq!((checked.user.as_str(), &checked.args[..]), ("root", &["/bin/ls".to_owned()][..]));
        let own = Shell { args: vec!["x".into()], ..shell("alice", "", &[]) }.checked().expect("good");
        assert!(own.args.is_empty());
    }

    #[test]
    fn bad_arguments_are_refused_as_machined_does() {
        assert_eq!(refusal(shell("root", "bin/sh", &[])), "Specified path 'bin/sh' is not absolute");
        for bad in [&["A"][..], &["=x"], &["1A=x"], &["A-B=x"], &["A=1", "A=2"], &[""]] {
            assert_eq!(refusal(shell("root", "", bad)), "Invalid environment assignments", "{bad:?}");
        }
        for bad in ["a b", "-x", "a:b", "$(reboot)\n", "4294967295", "../x", "a/b"] {
            assert_eq!(refusal(shell(bad, "", &[])), format!("Invalid user name '{}'", bad.escape_debug()));
        }
    }
}
