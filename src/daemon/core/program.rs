//! Runs this program again: the daemon itself neither clones nor waits for anything of a machine.
//!
//! What a verb does and tells is the same whether it was typed or came over the bus: it reports to us by [`Line`]s on its
//! standard output.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use zruntime::{AsyncIo, Shared};

use super::error::{Failure, Outcome};
use super::registry::Process;
use super::state::{Daemon, ended};
use crate::report::{Event, Kind, Line, OpError};
use crate::sys::process::this_program;

/// Variables that are meant for the daemon alone.
const OURS: [&str; 7] =
    ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "INVOCATION_ID"];

/// More than this of a report is not kept.
const LONGEST: usize = 1 << 20;

/// Why a verb failed, if it did: in words for people.
pub(crate) fn check(events: &[Event]) -> Outcome {
    let errors = events.iter().filter_map(|event| match event {
        Event::Failed(error) => Some(error),
        _ => None,
    });
    let errors: Vec<&OpError> = errors.collect();
    let Some(last) = errors.last() else { return Ok(()) };
    let text = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\nerror: ");
    Err(match last.kind {
        Kind::NotPermitted => Failure::access_denied(text),
        Kind::Usage | Kind::BadConfig => Failure::invalid_args(text),
        _ => Failure::failed(text),
    })
}

/// What a verb warned of.
pub(crate) fn warnings(events: &[Event]) -> impl Iterator<Item = &str> {
    events.iter().filter_map(|event| match event {
        Event::Warning(text) => Some(text.as_str()),
        _ => None,
    })
}

impl Daemon {
    /// This program with `arguments`, for the same places on the host.
    pub(crate) fn program(&self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Command {
        let mut command = this_program();
        command.arg("--root").arg(self.layout.root());
        command.args(arguments.into_iter().map(Into::into)).env("NO_COLOR", "1").process_group(0);
        // It must not ask us to do what we ask of it.
        command.env("MACHINIST_BY_DAEMON", "1");
        for variable in OURS {
            command.env_remove(variable);
        }
        if let Some(limit) = self.file_limit {
            crate::sys::process::limit_files_of(&mut command, limit);
        }
        if let Some(address) = &self.bus {
            command.env("DBUS_SYSTEM_BUS_ADDRESS", address);
        }
        command
    }

    /// Starts a machine and comes back when it is ready.
    pub(crate) async fn start(&self, name: &str) -> Outcome {
        check(&self.run(&["start", "--", name]).await?)
    }

    /// Runs a verb with nothing on its standard input and gives what it told; if it failed, the last is why.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Outcome<Vec<Event>> {
        let mut command = self.program(["--report"].iter().chain(arguments).copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(Failure::failed)?;
        let mut report = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            let pipe = AsyncIo::<_, Shared>::new(&self.runtime, stdout).map_err(Failure::failed)?;
            let mut buffer = [0; 4096];
            loop {
                match pipe.read_with(|pipe| rustix::io::read(pipe, &mut buffer).map_err(Into::into)).await {
                    Ok(0) | Err(_) => break,
                    Ok(count) if report.len() < LONGEST => report.extend_from_slice(&buffer[..count]),
                    Ok(_) => {}
                }
            }
        }
        let status = self.wait(child).await?;
        let mut lines = Line::parse(&report);
        let end = match lines.pop() {
            Some(Line::Done) => None,
            Some(Line::Failed(error)) => Some(Event::Failed(error)),
            _ => Some(Event::Failed(OpError::new(format!("the process for it ended with status {status}")))),
        };
        let events = lines.into_iter().filter_map(|line| match line {
            Line::Event(event) => Some(event),
            Line::Done | Line::Failed(_) => None,
        });
        Ok(events.chain(end).collect())
    }

    /// Runs a verb on the caller's files and ends it when the caller ends.
    pub(crate) async fn run_for(
        &self,
        arguments: Vec<OsString>,
        files: [OwnedFd; 3],
        caller: Option<Process>,
    ) -> Outcome<i32> {
        let mut command = self.program(arguments);
        let [stdin, stdout, stderr] = files;
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        let child = command.spawn().map_err(Failure::failed)?;
        // It holds the caller's files by now; ours must not keep pipes open.
        drop(command);
        let watcher = caller.map(|caller| {
            let (runtime, pid) = (self.runtime.clone(), i32::try_from(child.id()).unwrap_or(0));
            let worker = Process::open(pid);
            self.runtime.spawn("caller", async move {
                if let (Ok(()), Ok(worker)) = (ended(&runtime, &caller).await, worker) {
                    // Gone already is as good.
                    let _ = crate::sys::process::pidfd_send_signal(worker.pidfd(), libc::SIGTERM);
                }
            })
        });
        let status = self.wait(child).await;
        drop(watcher);
        status
    }

    async fn wait(&self, mut child: Child) -> Outcome<i32> {
        use std::os::unix::process::ExitStatusExt as _;
        let pid = i32::try_from(child.id()).map_err(Failure::failed)?;
        let process = Process::open(pid)?;
        ended(&self.runtime, &process).await.map_err(Failure::failed)?;
        // It has ended, so this does not wait.
        let status = child.wait().map_err(Failure::failed)?;
        Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    }
}
