//! The daemon's side: asks for rights, and sends a helper.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::guest_systemd;
use super::helper::{self, Answer, LIMIT, Serving, Visit};
use super::job::{Job, Shell};
use crate::daemon::core::caller::Caller;
use crate::daemon::core::error::{Failure, Outcome};
use crate::daemon::core::machines::{self, Subject};
use crate::daemon::core::registry::{Class, HOST, Process};
use crate::daemon::core::state::{Daemon, Level};
use crate::enter::{self, Sharing};

/// A terminal with nothing on it.
pub(crate) async fn pty(daemon: &Arc<Daemon>, caller: &Caller, subject: &Subject) -> Outcome<Opened> {
    authorise(daemon, caller, subject, "open-pty", &[("verb", "open_pty")]).await?;
    open(daemon, caller, subject, Job::Pty).await
}

/// A login.
pub(crate) async fn login(daemon: &Arc<Daemon>, caller: &Caller, subject: &Subject) -> Outcome<Opened> {
    authorise(daemon, caller, subject, "login", &[("verb", "open_login")]).await?;
    // Where there is nothing that asks for a password.
    let root_shell = daemon.credentials(caller).await?.uid == 0;
    open(daemon, caller, subject, Job::Login { root_shell }).await
}

/// A shell, or another command.
pub(crate) async fn shell(daemon: &Arc<Daemon>, caller: &Caller, subject: &Subject, shell: Shell) -> Outcome<Opened> {
    let shell = shell.checked()?;
    if let Subject::Machine(machine) = subject
        && daemon.credentials(caller).await?.uid != 0
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
    authorise(daemon, caller, subject, "shell", &details).await?;
    open(daemon, caller, subject, Job::Shell(shell)).await
}

/// Asks polkit for the action, or the host's own one.
async fn authorise(
    daemon: &Arc<Daemon>,
    caller: &Caller,
    subject: &Subject,
    action: &str,
    details: &[(&str, &str)],
) -> Outcome {
    let of_host = if matches!(subject, Subject::Host) { "host-" } else { "" };
    let action = format!("org.freedesktop.machine1.{of_host}{action}");
    let details: Vec<_> = std::iter::once(("machine", subject.name())).chain(details.iter().copied()).collect();
    daemon.authorise(caller, &action, &details).await?;
    match subject {
        Subject::Host => Ok(()),
        Subject::Machine(machine) => machines::still(daemon, machine),
    }
}

/// Opens a terminal, has what was asked for started on it, and hands it to the caller.
async fn open(daemon: &Arc<Daemon>, caller: &Caller, subject: &Subject, job: Job) -> Outcome<Opened> {
    let (leader, sealed) = match subject {
        Subject::Host => {
            if job != Job::Pty {
                return of_host(daemon, caller, job).await;
            }
            (Process::open(enter::host_process())?, false)
        }
        Subject::Machine(machine) if machine.class == Class::Vm => {
            return Err(Failure::not_supported("A virtual machine has no terminal that we could open."));
        }
        Subject::Machine(machine) => (machine.leader.clone(), Sharing::of_process(machine.leader.pid)?.user),
    };
    let visit = Visit { name: subject.name().to_owned(), job };
    visit_machine(daemon, &leader, visit, sealed).await
}

/// A terminal that a helper has opened.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) master: OwnedFd,
    peer: Option<OwnedFd>,
    /// Its path in the machine.
    pub(crate) path: String,
}

/// Sends a helper, and listens to it for as long as it lives.
async fn visit_machine(daemon: &Arc<Daemon>, leader: &Process, visit: Visit, sealed: bool) -> Outcome<Opened> {
    let what = format!("{} in machine {}", visit.job.named(), visit.name);
    let leader = Arc::clone(leader.pidfd());
    let runtime = daemon.runtime.clone();
    let start = {
        let program = daemon.program([""; 0]);
        move || helper::start(program, &leader, &visit, sealed)
    };
    let helper = Serving::new(daemon.blocking(start).await??, &runtime)?;
    let Ok(answer) = runtime.timeout(LIMIT, helper.answer()).await else {
        helper.kill().await;
        let text = format!("Timed out after {} s opening {what}.", LIMIT.as_secs());
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
async fn of_host(daemon: &Arc<Daemon>, caller: &Caller, job: Job) -> Outcome<Opened> {
    let visit = |job| Visit { name: HOST.to_owned(), job };
    let init = Process::open(enter::host_process())?;
    if !guest_systemd::has_systemd(&daemon.connection).await? {
        daemon.require_root(caller, "A login or shell on this host").await?;
        return visit_machine(daemon, &init, visit(job), false).await;
    }
    let mut opened = visit_machine(daemon, &init, visit(Job::Pty), false).await?;
    let peer = opened.peer.take().ok_or_else(|| Failure::failed("The helper sent no terminal."))?;
    guest_systemd::start(&daemon.connection, &opened.path, &peer, &job).await?;
    Ok(opened)
}
