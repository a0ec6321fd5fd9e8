//! Has a systemd start a getty or a shell on a terminal: a machine's, or the host's.
//!
//! A machine's bus is the machine's to answer. We speak to it from the helper, which has a limit of time and memory,
//! and believe nothing but whether a call failed.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use zbus::Connection;
use zbus::connection::Builder;
use zbus::wire::{Fd, OwnedObjectPath, Variant};
use zruntime::SharedRuntime;

use super::job::{Job, Shell};
use crate::bus::label::escape;
use crate::bus::systemd1::{self, Manager, Signals};
use crate::daemon::core::error::{Failure, Outcome};
use crate::sys::Errno;

/// How long a machine's bus may take for all we ask of it.
const LIMIT: Duration = Duration::from_secs(12);
/// Room for a process that speaks to one bus; a machine can send messages of any size.
const MEMORY: u64 = 1 << 30;

/// Runs the shell that the machine's own files name for the user.
const LOGIN_SHELL: &str = r#"find() { while IFS= read -r l; do case $l in "$1:"*) echo "$l"; return;; esac; done; }
shell=$(getent passwd "$1" 2>/dev/null || find "$1" </etc/passwd)
shell=${shell##*:}
exec "${shell:-/bin/sh}" -l"#;

/// Whether there is a systemd on that bus.
pub(super) async fn has_systemd(bus: &Connection) -> Outcome<bool> {
    Ok(Manager::on(bus).owner().await?.is_some())
}

/// Starts what `job` asks for on the terminal, by the systemd on that bus.
pub(super) async fn start(bus: &Connection, path: &str, peer: &OwnedFd, job: &Job) -> Outcome {
    let number = path.rsplit('/').next().unwrap_or_default();
    match job {
        Job::Pty => Ok(()),
        Job::Login { .. } => {
            let body = (format!("container-getty@{number}.service"), "replace");
            Ok(Manager::on(bus).call("StartUnit", &body).await.map(drop)?)
        }
        Job::Shell(shell) => start_shell(bus, number, path, peer, shell).await,
    }
}

async fn start_shell(bus: &Connection, number: &str, path: &str, peer: &OwnedFd, shell: &Shell) -> Outcome {
    // systemd replaces variables in arguments; what was asked for is meant as it is.
    let literal = |text: &str| text.replace('$', "$$");
    let (program, args) = if shell.path.is_empty() {
        ("/bin/sh", ["sh", "-c", LOGIN_SHELL, "sh", shell.user.as_str()].map(literal).to_vec())
    } else {
        (shell.path.as_str(), shell.args.iter().map(|arg| literal(arg)).collect())
    };
    let terminal = || Variant::from(Fd::from(peer.as_fd()));
    let mut properties = vec![
        ("Description", Variant::from(format!("Shell for User {}", shell.user))),
        ("StandardInputFileDescriptor", terminal()),
        ("StandardOutputFileDescriptor", terminal()),
        ("StandardErrorFileDescriptor", terminal()),
        ("SendSIGHUP", Variant::from(true)),
        ("IgnoreSIGPIPE", Variant::from(false)),
        ("KillMode", Variant::from("mixed")),
        ("TTYPath", Variant::from(path)),
        ("TTYReset", Variant::from(true)),
        ("UtmpIdentifier", Variant::from(format!("pts/{number}"))),
        ("UtmpMode", Variant::from("user")),
        ("PAMName", Variant::from("login")),
        ("WorkingDirectory", Variant::from("-~")),
        ("User", Variant::from(shell.user.as_str())),
        // We ask afterwards how it ended.
        ("AddRef", Variant::from(true)),
    ];
    if !shell.environment.is_empty() {
        properties.push(("Environment", Variant::from(shell.environment.clone())));
    }
    properties.push(("ExecStart", Variant::from(vec![(program, args, true)])));
    Ok(Manager::on(bus).start_transient(&shell_unit(path), &properties).await.map(drop)?)
}

/// The unit of a shell on the terminal `path`.
fn shell_unit(path: &str) -> String {
    format!("container-shell@{}.service", path.rsplit('/').next().unwrap_or_default())
}

/// The object of a unit.
fn unit_path(unit: &str) -> String {
    format!("{}/unit/{}", systemd1::PATH, escape(unit))
}

/// The same by the systemd of a machine, at the other end of `stream`; for the helper.
///
/// Calls `opened` when it is done, and comes back with the end of a sentence that says how the shell ended. Without a
/// systemd on that bus, `opened` is not called.
pub(super) fn ask(
    stream: OwnedFd,
    path: &str,
    peer: OwnedFd,
    job: &Job,
    opened: impl FnOnce() -> Outcome,
) -> Outcome<Option<String>> {
    // A helper that needs more is talked to by something that is no bus.
    setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY).map_err(|e| Failure::errno(e, "Cannot limit the helper."))?;
    zbus::block_on(async {
        let runtime = SharedRuntime::current().map_err(Failure::failed)?;
        let unit = shell_unit(path);
        let talk = async {
            let bus = Builder::unix_stream(UnixStream::from(stream)).build().await?;
            if !has_systemd(&bus).await? {
                return Err(Failure::not_supported("The machine has a bus, and no systemd on it."));
            }
            // Before the start, so that no end is missed. Without it the end is not reported, and all else works.
            let wanted = matches!(job, Job::Shell(_));
            let changes = if wanted { Manager::on(&bus).changes(&unit_path(&unit)).await.ok() } else { None };
            start(&bus, path, &peer, job).await?;
            Ok((bus, changes))
        };
        let late = |_| Failure::errno(Errno::ETIMEDOUT, "The machine's bus does not answer.");
        let (bus, changes) = runtime.timeout(LIMIT, talk).await.map_err(late)?.map_err(plain)?;
        drop(peer);
        opened()?;
        match changes {
            Some(changes) => Ok(ending(&bus, &unit, changes).await),
            None => Ok(None),
        }
    })
}

/// Waits for the end of a unit; `None` if its systemd ends before it.
async fn ending(bus: &Connection, unit: &str, mut changes: Signals) -> Option<String> {
    let (systemd, path) = (Manager::on(bus), unit_path(unit));
    loop {
        // In this order: a state from before the job says nothing of what came of it.
        let (job, _): (u32, OwnedObjectPath) = systemd.property(&path, "Unit", "Job").await.ok()?;
        let state: String = systemd.property(&path, "Unit", "ActiveState").await.ok()?;
        if job == 0 && matches!(state.as_str(), "inactive" | "failed") {
            let code: i32 = systemd.property(&path, "Service", "ExecMainCode").await.ok()?;
            let status: i32 = systemd.property(&path, "Service", "ExecMainStatus").await.ok()?;
            return Some(match code {
                libc::CLD_EXITED => format!("ended with exit status {status}"),
                libc::CLD_KILLED | libc::CLD_DUMPED => format!("was ended by signal {status}"),
                _ => "could not be started".into(),
            });
        }
        changes.next().await.ok()?;
    }
}

/// A machine's words, without anything a terminal or a log would act on.
fn plain(failure: Failure) -> Failure {
    let text = failure.text.chars().take(300).map(|c| if c.is_control() { ' ' } else { c }).collect();
    Failure { text, ..failure }
}
