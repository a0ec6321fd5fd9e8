//! The process that runs a command in a machine: this program again, so that each has streams, signals and an
//! end of its own, as `machinist exec` has.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use machinist::enter::{self, Command, Rights, Target};
use machinist::plan::seccomp::{self, SyscallPolicy};
use machinist::spec::ProcessLimits;
use machinist::sys::exe_seal::seal_own_program;
use machinist::sys::process;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use serde::{Deserialize, Serialize};

use crate::machine::{Kind, Machine};

const VARIABLE: &str = "MACHINIST_TEST_CALLER";

/// What a machine without a network of its own keeps by default, as far as this host has it.
pub(crate) fn capabilities(kind: Kind) -> u64 {
    const KEPT: u64 = 0xfdec_abff;
    if kind.user { KEPT } else { KEPT & machinist::host::probe().expect("probing the host").capabilities }
}

/// How the caller goes about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) enum Way {
    #[default]
    Run,
    /// By `start` and a poll loop, as the supervisor does.
    Start,
    /// After sealing our own program.
    Sealed,
}

/// A command with everything around it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) command: Command,
    pub(crate) capabilities: u64,
    pub(crate) filter: bool,
    pub(crate) no_new_privileges: bool,
    pub(crate) way: Way,
    /// Make standard input our controlling terminal.
    pub(crate) take_terminal: bool,
    pub(crate) program: PathBuf,
    pid: i32,
    cgroup: PathBuf,
    user: bool,
    network: bool,
    time: bool,
}

impl Job {
    pub(crate) fn new(machine: &Machine, argv: &[&str]) -> Self {
        Self {
            command: Command { argv: argv.iter().map(ToString::to_string).collect(), ..Command::default() },
            capabilities: capabilities(machine.kind),
            filter: true,
            no_new_privileges: false,
            way: Way::Run,
            take_terminal: false,
            program: "/proc/self/exe".into(),
            pid: machine.pid,
            cgroup: machine.cgroup.clone(),
            user: machine.kind.user,
            network: machine.kind.network,
            time: machine.kind.time,
        }
    }

    pub(crate) fn shell(machine: &Machine, script: &str) -> Self {
        Self::new(machine, &["sh", "-c", script])
    }

    pub(crate) fn user(mut self, user: &str) -> Self {
        self.command.user = Some(user.into());
        self
    }

    pub(crate) fn timeout(mut self, millis: u64) -> Self {
        self.command.timeout = Some(Duration::from_millis(millis));
        self
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Starts the caller with these streams.
    pub(crate) fn spawn(&self, input: Stdio, output: Stdio, error: Stdio) -> Child {
        std::process::Command::new(&self.program)
            .env(VARIABLE, serde_json::to_string(self).expect("a job is plain data"))
            .env("HOST_SECRET", "must stay here")
            .stdin(input)
            .stdout(output)
            .stderr(error)
            .spawn()
            .expect("starting the caller")
    }

    /// Runs it to the end without input.
    pub(crate) fn run(&self) -> Output {
        let child = self.spawn(Stdio::null(), Stdio::piped(), Stdio::piped());
        child.wait_with_output().expect("waiting for the caller")
    }

    /// Runs it and gives its output, which must be all there is.
    pub(crate) fn text(&self) -> String {
        let output = self.run();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && error.is_empty(), "{:?}: {}: {error}", self.command.argv, output.status);
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs what must fail on our side, and gives exit status and message.
    pub(crate) fn error(&self) -> (i32, String) {
        let output = self.run();
        assert!(output.stdout.is_empty(), "it ran: {}", String::from_utf8_lossy(&output.stdout));
        let status = output.status.code().expect("the caller exits");
        (status, String::from_utf8_lossy(&output.stderr).trim_end().to_owned())
    }
}

/// Is the caller if this process was started as one; gives its exit status.
pub(crate) fn act() -> Option<u8> {
    let job: Job = serde_json::from_str(&std::env::var(VARIABLE).ok()?).expect("a job");
    if job.way == Way::Sealed {
        seal_own_program().expect("sealing");
    }
    // What a careless program leaves open: a way out of any root (CVE-2024-21626).
    let leak = std::fs::File::open("/").expect("opening the root");
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).expect("clearing close-on-exec");
    if job.take_terminal {
        process::take_terminal(std::io::stdin()).expect("taking the terminal");
    }
    let leader = process::pidfd_open(nix::unistd::Pid::from_raw(job.pid)).expect("the machine runs");
    let filter = if job.filter { seccomp::compile(&SyscallPolicy::default(), job.capabilities) } else { Vec::new() };
    let filter = filter.into_iter().map(Into::into).collect();
    let (capabilities, no_new_privileges) = (job.capabilities, job.no_new_privileges);
    let rights = Rights { capabilities, filter, no_new_privileges, limits: ProcessLimits::default() };
    let target = Target {
        leader: leader.as_fd(),
        cgroup: Some(&job.cgroup),
        rights: &rights,
        user_namespace: job.user,
        network_namespace: job.network,
        time_namespace: job.time,
    };
    let result = match job.way {
        Way::Start => start(&target, &job.command),
        Way::Run | Way::Sealed => enter::run(&target, &job.command),
    };
    Some(match result {
        Ok(outcome) => outcome.exit_status(),
        Err(error) => {
            eprintln!("{error}");
            error.exit_status()
        }
    })
}

fn start(target: &Target<'_>, command: &Command) -> Result<enter::Outcome, enter::EnterError> {
    let mut running = enter::start(target, command)?;
    loop {
        if let Some(outcome) = running.step()? {
            return Ok(outcome);
        }
        let left = running.deadline().map(|end| end.saturating_duration_since(Instant::now()));
        let timeout = left.map_or(PollTimeout::NONE, |l| PollTimeout::try_from(l).expect("short"));
        let mut set = [PollFd::new(running.poll_fd(), PollFlags::POLLIN)];
        nix::poll::poll(&mut set, timeout).expect("poll");
    }
}

/// A terminal for a caller: our side and its.
pub(crate) fn terminal() -> (OwnedFd, OwnedFd) {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags).expect("openpt");
    grantpt(&ours).expect("grantpt");
    unlockpt(&ours).expect("unlockpt");
    let theirs = ioctl_tiocgptpeer(&ours, flags).expect("the other side");
    (ours, theirs)
}
