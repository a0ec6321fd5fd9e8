//! Runs this program again: the daemon itself neither clones nor waits for anything of a machine.
//!
//! What a verb does, says and exits with is the same whether it was typed or came over the bus.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use zruntime::{AsyncIo, Shared};

use super::error::{Failure, Outcome};
use super::registry::Process;
use super::state::{Daemon, ended};

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finished {
    /// Exit status, or 128 and the number of the signal.
    pub(crate) status: i32,
    /// What it said on standard error, if that was ours.
    pub(crate) said: String,
}

impl Finished {
    /// The failure that it reported, without the word in front.
    pub(crate) fn check(&self) -> Outcome {
        if self.status == 0 {
            return Ok(());
        }
        let text = self.said.trim_end();
        let text = text.strip_prefix("error: ").unwrap_or(text);
        // What sysexits calls the reason: not permitted, and a bad definition.
        match self.status {
            77 => Err(Failure::access_denied(text)),
            2 | 78 => Err(Failure::invalid_args(text)),
            _ => Err(Failure::failed(text)),
        }
    }
}

/// Variables that are meant for the daemon alone.
const OURS: [&str; 7] =
    ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "INVOCATION_ID"];

/// More than this of what a verb says is not kept.
const LONGEST: usize = 64 * 1024;

impl Daemon {
    /// This program with `arguments`, for the same places on the host.
    pub(crate) fn program(&self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("machinist").arg("--root").arg(self.layout.root());
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
        self.run(&["start", "--", name]).await?.check()
    }

    /// Runs a verb with nothing on its standard input and gives what it said.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Outcome<Finished> {
        let mut command = self.program(arguments.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(Failure::failed)?;
        let mut said = Vec::new();
        if let Some(stderr) = child.stderr.take() {
            let pipe = AsyncIo::<_, Shared>::new(&self.runtime, stderr).map_err(Failure::failed)?;
            let mut buffer = [0; 4096];
            loop {
                match pipe.read_with(|pipe| rustix::io::read(pipe, &mut buffer).map_err(Into::into)).await {
                    Ok(0) | Err(_) => break,
                    Ok(count) if said.len() < LONGEST => said.extend_from_slice(&buffer[..count]),
                    Ok(_) => {}
                }
            }
        }
        let status = self.wait(child).await?;
        Ok(Finished { status, said: String::from_utf8_lossy(&said).into_owned() })
    }

    /// Runs a verb on the caller's files and ends it when the caller ends.
    pub(crate) async fn run_for(
        &self,
        arguments: Vec<OsString>,
        files: [OwnedFd; 3],
        caller: Option<Process>,
    ) -> Outcome<Finished> {
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
        Ok(Finished { status: status?, said: String::new() })
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
