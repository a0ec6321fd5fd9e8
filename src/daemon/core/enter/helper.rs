//! The helper: our program again, for one visit to a machine.
//!
//! ```text
//! daemon ── Visit + leader's pidfd ──> helper     opens the terminal in the machine's devpts
//!        <── Opened + master ─────────            the machine's systemd has been asked: the helper ends
//!                                                 or: the command has been executed by the helper's child
//!        <── Ended ───────────────────            … and is over
//! ```
//!
//! It has one thread until it speaks to a bus, so it may fork. What it starts goes on without it and without the daemon.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use zruntime::{AsyncIo, Shared, SharedRuntime};

use super::guest_systemd;
use super::job::Job;
use crate::daemon::core::error::{Failure, Outcome};
use crate::daemon::core::registry::HOST;
use crate::enter::{self, EnterError, Place, Pty, Running};
use crate::running::state::{self, State};
use crate::spec::{InitKind, Layout, MachineName};
use crate::sys::path::RootFd;
use crate::sys::process::{self, Ended};
use crate::sys::{Context as _, Errno, Error, socket};

/// How long a helper may take for its answer; clients give up after 25 s.
pub(super) const LIMIT: Duration = Duration::from_secs(20);
/// Where the bus of a machine is, if it has one.
const BUS: &str = "/run/dbus/system_bus_socket";
/// How long the machine may take to let us connect to it.
const CONNECT: Duration = Duration::from_secs(3);
/// How long it may take until a command has been executed.
const EXECUTE: Duration = Duration::from_secs(10);
/// Largest message between daemon and helper: it holds the arguments and variables of a command.
const MESSAGE: usize = 192 << 10;

/// What a helper is sent for; the leader's pidfd comes along.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Visit {
    /// The machine.
    pub(super) name: String,
    pub(super) job: Job,
}

/// What a helper says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// The terminal's master comes along, and the other end if only a terminal was wanted.
    Opened {
        /// Path of the terminal in the machine.
        path: String,
        /// It will say how the command ended.
        stays: bool,
    },
    Failed(Failure),
    /// How the command ended, as the end of a sentence.
    Ended(String),
}

/// A helper just started.
#[derive(Debug)]
pub(super) struct Helper {
    child: Child,
    socket: OwnedFd,
}

/// A helper whose answers are awaited.
#[derive(Debug)]
pub(super) struct Serving {
    child: Child,
    socket: AsyncIo<OwnedFd, Shared>,
}

impl Helper {
    /// Starts a helper as `command`, our program: `sealed` if the machine could write to our program through it.
    pub(super) fn start(mut command: Command, leader: &OwnedFd, visit: &Visit, sealed: bool) -> Outcome<Self> {
        let (ours, theirs) = socket::pair()?;
        command.args(std::iter::once("helper").chain(sealed.then_some("--sealed")));
        command.env_clear().stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::inherit());
        let child = command.spawn().call(|| "spawn('/proc/self/exe helper')".into())?;
        drop(command);
        let mut helper = Self { child, socket: ours };
        if let Err(failure) = helper.send(leader, visit) {
            helper.stop();
            return Err(failure);
        }
        Ok(helper)
    }

    fn send(&self, leader: &OwnedFd, visit: &Visit) -> Outcome {
        let data = serde_json::to_vec(visit).map_err(Failure::failed)?;
        if data.len() > MESSAGE {
            return Err(Failure::errno(Errno::E2BIG, "Arguments and environment are too long."));
        }
        Ok(socket::send(&self.socket, &data, &[leader.as_fd()])?)
    }

    /// The same for callers without a runtime: its first answer, or nothing within `limit`.
    pub(super) fn wait(&self, limit: Duration) -> Outcome<Option<(Answer, Vec<OwnedFd>)>> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match nix::poll::poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) => return Ok(None),
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error { call: "poll".into(), errno }.into()),
            }
        }
        let mut buffer = vec![0; 4096];
        let received = socket::receive(&self.socket, &mut buffer)?;
        let answer = serde_json::from_slice(&buffer[..received.len]);
        answer.map(|answer| Some((answer, received.fds))).map_err(|_| Failure::failed("The helper ended."))
    }

    /// Readable when it has said something, or has ended.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Ends it, and what it has not executed yet.
    pub(super) fn stop(&mut self) {
        // It has ended already, or it ends now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Makes ready to wait for its answers.
    pub(super) fn serve(self, runtime: &SharedRuntime) -> Outcome<Serving> {
        let Self { child, socket } = self;
        rustix::io::ioctl_fionbio(&socket, true).call(|| "ioctl(FIONBIO)".into())?;
        let socket = AsyncIo::<_, Shared>::new_nonblocking(runtime, socket).map_err(Failure::failed)?;
        Ok(Serving { child, socket })
    }
}

impl Serving {
    /// The next thing it says.
    pub(super) async fn answer(&self) -> Outcome<(Answer, Vec<OwnedFd>)> {
        let lost = || Failure::failed("The helper that enters machines ended without an answer.");
        loop {
            self.socket.readable().await.map_err(Failure::failed)?;
            let mut buffer = vec![0; 4096];
            match socket::receive(self.socket.get_ref(), &mut buffer) {
                Ok(received) => {
                    let answer = serde_json::from_slice(&buffer[..received.len]).map_err(|_| lost())?;
                    return Ok((answer, received.fds));
                }
                Err(e) if e.errno == Errno::EAGAIN => {}
                Err(_) => return Err(lost()),
            }
        }
    }

    /// Waits for a helper that is about to end.
    pub(super) async fn end(mut self) {
        // It says nothing more; the end of its socket is its own end.
        let _ = self.answer().await;
        let _ = zruntime::unblock(move || self.child.wait()).await;
    }

    /// Ends a helper, and what it has not executed yet.
    pub(super) async fn kill(mut self) {
        // It has ended already, or it ends now.
        let _ = self.child.kill();
        let _ = zruntime::unblock(move || self.child.wait()).await;
    }
}

/// Is a helper: does what the daemon says over standard input, and comes back when that is over.
///
/// # Errors
/// If nobody sent us.
pub fn serve(layout: &Layout) -> crate::sys::Result<()> {
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).call(|| "dup(standard input)".into())?;
    // Nothing of the daemon's may be inherited by what is visible in a machine.
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.call(|| "open('/dev/null')".into())?;
    rustix::stdio::dup2_stdin(&null).call(|| "dup2(0)".into())?;
    rustix::stdio::dup2_stdout(&null).call(|| "dup2(1)".into())?;
    rustix::stdio::dup2_stderr(&null).call(|| "dup2(2)".into())?;
    let mut data = vec![0; MESSAGE];
    let received = socket::receive(&socket, &mut data)?;
    let unusable = || Error { call: "reading what the daemon wants".into(), errno: Errno::EPROTO };
    let visit: Visit = serde_json::from_slice(&data[..received.len]).map_err(|_| unusable())?;
    let leader = received.fds.into_iter().next().ok_or_else(unusable)?;
    let result = catch_unwind(AssertUnwindSafe(|| visit_machine(layout, &socket, &leader, &visit)));
    if let Err(failure) = result.unwrap_or_else(|_| Err(Failure::failed("The helper that enters machines failed."))) {
        // A daemon that is gone needs no answer.
        let _ = say(&socket, &Answer::Failed(failure), &[]);
    }
    Ok(())
}

fn say(socket: &OwnedFd, answer: &Answer, fds: &[BorrowedFd<'_>]) -> Outcome {
    let data = serde_json::to_vec(answer).map_err(Failure::failed)?;
    Ok(socket::send(socket, &data, fds)?)
}

fn visit_machine(layout: &Layout, socket: &OwnedFd, leader: &OwnedFd, visit: &Visit) -> Outcome {
    let pid = process::pidfd_number(leader)?.as_raw();
    let state = own_state(layout, visit, pid);
    let place = match &state {
        Some(state) => Place::of_state(state)?,
        None => Some(Place::of_process(pid)?),
    };
    let place = place.ok_or_else(|| Failure::failed("The machine is frozen."))?;
    let pty = Pty::open_in(leader, place.root)?;
    let path = pty.path.clone();
    if visit.job == Job::Pty {
        return say(socket, &Answer::Opened { path, stays: false }, &[pty.master.as_fd(), pty.peer.as_fd()]);
    }
    let target = place.target(leader.as_fd());
    if visit.name != HOST && runs_systemd(state.as_ref(), pid) {
        match enter::connect(&target, BUS, CONNECT) {
            Ok(stream) => {
                let Pty { master, peer, path } = pty;
                let stays = matches!(visit.job, Job::Shell(_));
                let answer = Answer::Opened { path: path.clone(), stays };
                // It takes ours along: closing the caller's is to end the shell.
                let opened = move || say(socket, &answer, &[master.as_fd()]);
                return match guest_systemd::ask(stream, &path, peer, &visit.job, opened)? {
                    Some(how) => say(socket, &Answer::Ended(how), &[]),
                    None => Ok(()),
                };
            }
            // Nobody is there.
            Err(EnterError::Connect(cause)) if is_absence(cause.errno) => {}
            Err(e) => return Err(failure(&e)),
        }
    }
    let begun = execute(&target, &visit.job, &pty)?;
    say(socket, &Answer::Opened { path, stays: true }, &[pty.master.as_fd()])?;
    drop(pty);
    let how = wait(begun);
    say(socket, &Answer::Ended(how), &[])
}

/// What our supervisor says of the machine, if it is one of ours.
fn own_state(layout: &Layout, visit: &Visit, leader: i32) -> Option<State> {
    let name = MachineName::parse(&visit.name).ok()?;
    let state = state::read(layout, &name).ok()??;
    (state.leader == leader).then_some(state)
}

/// Whether the machine's init is systemd: as its supervisor knows, else as `sd_booted(3)` finds out.
fn runs_systemd(state: Option<&State>, leader: i32) -> bool {
    match state {
        Some(state) => state.init_kind == Some(InitKind::Systemd),
        None => RootFd::open(format!("/proc/{leader}/root").as_ref())
            .and_then(|root| root.open_plain("run/systemd/system", OFlags::PATH | OFlags::DIRECTORY))
            .is_ok(),
    }
}

fn is_absence(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ENOTDIR | Errno::ECONNREFUSED | Errno::ELOOP)
}

/// A command that has been executed; it may be over already.
struct Begun {
    running: Running,
    outcome: Option<enter::Outcome>,
}

/// Executes the first of the job's commands that the machine has.
fn execute(target: &enter::Target<'_>, job: &Job, pty: &Pty) -> Outcome<Begun> {
    let mut missing = None;
    for command in commands(job) {
        let terminal = pty.peer.try_clone().call(|| "dup(terminal)".into())?;
        match enter::start_on(target, &command, terminal).and_then(begun) {
            Ok(begun) => return Ok(begun),
            Err(e @ EnterError::NotFound(_)) => missing = Some(e),
            Err(e) => return Err(failure(&e)),
        }
    }
    match (missing, job) {
        (Some(e), Job::Shell(_)) => Err(failure(&e)),
        _ => Err(Failure::not_supported("The machine has no program for logins.")),
    }
}

fn commands(job: &Job) -> Vec<enter::Command> {
    let words = |argv: &[&str]| argv.iter().map(ToString::to_string).collect();
    let command = |argv: &[&str]| enter::Command {
        argv: words(argv),
        stdio: enter::Stdio::Terminal,
        ..enter::Command::default()
    };
    match job {
        Job::Pty => Vec::new(),
        Job::Login { root_shell } => {
            let mut all = vec![
                command(&["agetty", "--noclear", "-", "vt220"]),
                // busybox'
                command(&["getty", "0", "-", "vt220"]),
                command(&["login"]),
            ];
            if *root_shell {
                all.push(enter::Command { login_shell: true, ..command(&[]) });
            }
            all
        }
        Job::Shell(shell) => {
            let environment = shell.environment.iter().filter_map(|a| a.split_once('='));
            vec![enter::Command {
                argv: shell.args.clone(),
                program: Some(shell.path.clone()).filter(|path| !path.is_empty()),
                // Root is root whatever the machine's files say.
                user: Some(shell.user.clone()).filter(|user| user != "root"),
                environment: environment.map(|(n, v)| (n.to_owned(), v.to_owned())).collect(),
                login_shell: true,
                ..command(&[])
            }]
        }
    }
}

/// Waits until the command has been executed.
fn begun(mut running: Running) -> Result<Begun, EnterError> {
    let end = Instant::now() + EXECUTE;
    loop {
        let outcome = running.step()?;
        if outcome.is_some() || running.has_begun() {
            return Ok(Begun { running, outcome });
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let cause = Error { call: "executing the command".into(), errno: Errno::ETIMEDOUT };
            return Err(EnterError::Enter(cause));
        }
        poll(&running, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))?;
    }
}

fn poll(running: &Running, timeout: PollTimeout) -> Result<(), EnterError> {
    match nix::poll::poll(&mut [PollFd::new(running.poll_fd(), PollFlags::POLLIN)], timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(EnterError::Enter(Error { call: "poll".into(), errno })),
    }
}

/// Waits for the end of the command and says how it was.
fn wait(begun: Begun) -> String {
    let Begun { mut running, outcome } = begun;
    let mut result = Ok(outcome);
    loop {
        match result {
            Ok(Some(enter::Outcome::Ended(Ended::Exited(status)))) => {
                return format!("ended with exit status {status}");
            }
            Ok(Some(enter::Outcome::Ended(Ended::Killed(signal)))) => return format!("was ended by signal {signal}"),
            Ok(Some(enter::Outcome::TimedOut)) => return "was ended".into(),
            Ok(None) => result = poll(&running, PollTimeout::NONE).and_then(|()| running.step()),
            Err(e) => return format!("is lost: {e}"),
        }
    }
}

fn failure(error: &EnterError) -> Failure {
    match error {
        EnterError::Request(_) | EnterError::User(_) => Failure::invalid_args(error),
        EnterError::NotFound(_) => Failure::errno(Errno::ENOENT, error),
        EnterError::Lost | EnterError::Panicked(_) => Failure::failed(error),
        EnterError::Group(cause)
        | EnterError::Enter(cause)
        | EnterError::Directory(cause)
        | EnterError::Streams(cause)
        | EnterError::Connect(cause)
        | EnterError::NotExecutable(cause) => Failure::errno(cause.errno, error),
    }
}
