//! A terminal, a login, a shell in a machine.
//!
//! The daemon touches nothing of a machine itself: the machine is hostile, may make whoever opens its files or speaks
//! to its bus wait for ever, and a daemon with threads must not fork. Each request starts a [`helper`], our program
//! again, which has one answer to give, in time, or is killed.

mod guest_systemd;
mod helper;
mod login;

pub use helper::serve;
pub use login::Login;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zbus::wire::Fd;

use super::registry::{Class, HOST, Process};
use super::state::Daemon;
use crate::daemon::core::state::Level;
use crate::daemon::dbus::call::{Call, Failure, Outcome};
use crate::daemon::dbus::machine::{self, Subject};
use crate::enter::{self, Sharing};
use helper::{Answer, Helper, Job, Visit};

/// How long a helper may take for its answer; clients give up after 25 s.
const LIMIT: Duration = Duration::from_secs(20);

/// The arguments of `OpenShell`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shell {
    pub(crate) user: String,
    pub(crate) path: String,
    pub(crate) args: Vec<String>,
    pub(crate) environment: Vec<String>,
}

impl Shell {
    /// Fills in what may be left out, and refuses what machined refuses.
    fn checked(mut self) -> Outcome<Self> {
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
    fn command_line(&self) -> String {
        if self.path.is_empty() { "the user's shell".into() } else { self.args.join(" ") }
    }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

pub(crate) async fn pty(daemon: &Arc<Daemon>, call: &Call, subject: &Subject) -> Outcome {
    authorise(daemon, call, subject, "open-pty", &[("verb", "open_pty")]).await?;
    open(daemon, call, subject, Job::Pty).await
}

pub(crate) async fn login(daemon: &Arc<Daemon>, call: &Call, subject: &Subject) -> Outcome {
    authorise(daemon, call, subject, "login", &[("verb", "open_login")]).await?;
    // Where there is nothing that asks for a password.
    let root_shell = daemon.credentials(call).await?.uid == 0;
    open(daemon, call, subject, Job::Login { root_shell }).await
}

pub(crate) async fn shell(daemon: &Arc<Daemon>, call: &Call, subject: &Subject, shell: Shell) -> Outcome {
    let shell = shell.checked()?;
    if let Subject::Machine(machine) = subject
        && daemon.credentials(call).await?.uid != 0
    {
        let sharing = Sharing::of_process(machine.leader.pid)?;
        if sharing.user || sharing.mount {
            return Err(Failure::access_denied("Only root may shell into the root user namespace"));
        }
    }
    let details = [
        ("verb", "open_shell"),
        ("user", &shell.user),
        ("program", &shell.path),
        ("command_line", &shell.command_line()),
    ];
    authorise(daemon, call, subject, "shell", &details).await?;
    open(daemon, call, subject, Job::Shell(shell)).await
}

/// Asks polkit for the action, or the host's own one.
async fn authorise(
    daemon: &Arc<Daemon>,
    call: &Call,
    subject: &Subject,
    action: &str,
    details: &[(&str, &str)],
) -> Outcome<()> {
    let of_host = if matches!(subject, Subject::Host) { "host-" } else { "" };
    let action = format!("org.freedesktop.machine1.{of_host}{action}");
    let details: Vec<_> = std::iter::once(("machine", subject.name())).chain(details.iter().copied()).collect();
    daemon.authorise(call, &action, &details).await?;
    match subject {
        Subject::Host => Ok(()),
        Subject::Machine(machine) => machine::still(daemon, machine),
    }
}

/// Opens a terminal, has what was asked for started on it, and hands it to the caller.
async fn open(daemon: &Arc<Daemon>, call: &Call, subject: &Subject, job: Job) -> Outcome {
    let (leader, sealed) = match subject {
        Subject::Host => {
            if job != Job::Pty {
                return of_host(daemon, call, job).await;
            }
            (Process::open(enter::host_process())?, false)
        }
        Subject::Machine(machine) if machine.class == Class::Vm => {
            return Err(Failure::not_supported("A virtual machine has no terminal that we could open."));
        }
        Subject::Machine(machine) => (machine.leader.clone(), Sharing::of_process(machine.leader.pid)?.user),
    };
    let visit = Visit { name: subject.name().to_owned(), job };
    let opened = visit_machine(daemon, &leader, visit, sealed).await?;
    call.reply(&(Fd::from(opened.master), opened.path))
}

/// What a helper has opened.
struct Opened {
    master: OwnedFd,
    peer: Option<OwnedFd>,
    path: String,
}

/// Sends a helper, and listens to it for as long as it lives.
async fn visit_machine(daemon: &Arc<Daemon>, leader: &Process, visit: Visit, sealed: bool) -> Outcome<Opened> {
    let what = format!("{} in machine {}", visit.job.named(), visit.name);
    let leader = Arc::clone(leader.pidfd());
    let runtime = daemon.runtime.clone();
    let start = {
        let program = daemon.program([""; 0]);
        move || Helper::start(program, &leader, &visit, sealed)
    };
    let helper = daemon.blocking(start).await??.serve(&runtime)?;
    let Ok(answer) = runtime.timeout(LIMIT, helper.answer()).await else {
        helper.kill().await;
        let text = format!("The machine did not let us open {what} within {} s.", LIMIT.as_secs());
        return Err(Failure::errno(crate::sys::Errno::ETIMEDOUT, text));
    };
    let failure = match answer {
        Ok((Answer::Opened { path, stays }, fds)) => {
            let mut fds = fds.into_iter();
            let opened = fds.next().map(|master| Opened { master, peer: fds.next(), path });
            let daemon = Arc::clone(daemon);
            daemon.say(Level::Info, &format!("Opened {what}."));
            let ending = async move {
                if let (true, Ok((Answer::Ended(how), _))) = (stays, helper.answer().await) {
                    daemon.say(Level::Info, &format!("{} {how}.", capitalised(&what)));
                }
                helper.end().await;
            };
            runtime.spawn("helper", ending).detach();
            return opened.ok_or_else(|| Failure::failed("The helper sent no terminal."));
        }
        Ok((Answer::Failed { name, text }, _)) => Failure { name: name.into(), text },
        Ok((Answer::Ended(_), _)) => Failure::failed("The helper ended."),
        Err(failure) => failure,
    };
    helper.kill().await;
    Err(failure)
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// A login or a shell on the host: by its systemd, else for root alone by ourselves.
async fn of_host(daemon: &Arc<Daemon>, call: &Call, job: Job) -> Outcome {
    let visit = |job| Visit { name: HOST.to_owned(), job };
    let init = Process::open(enter::host_process())?;
    if !guest_systemd::has_systemd(call.connection()).await? {
        daemon.require_root(call).await?;
        let opened = visit_machine(daemon, &init, visit(job), false).await?;
        return call.reply(&(Fd::from(opened.master), opened.path));
    }
    let opened = visit_machine(daemon, &init, visit(Job::Pty), false).await?;
    let peer = opened.peer.ok_or_else(|| Failure::failed("The helper sent no terminal."))?;
    guest_systemd::start(call.connection(), &opened.path, &peer, &job).await?;
    call.reply(&(Fd::from(opened.master), opened.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(user: &str, path: &str, environment: &[&str]) -> Shell {
        let environment = environment.iter().map(ToString::to_string).collect();
        Shell { user: user.into(), path: path.into(), args: Vec::new(), environment }
    }

    fn refusal(shell: Shell) -> String {
        let failure = shell.checked().expect_err("refused");
        assert_eq!(failure.name, "org.freedesktop.DBus.Error.InvalidArgs");
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
