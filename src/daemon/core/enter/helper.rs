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

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use zruntime::{AsyncIo, Shared, SharedRuntime};

use super::guest_systemd;
use super::job::Job;
use crate::daemon::core::error::{Failure, Outcome};
use crate::daemon::core::registry::HOST;
use crate::enter::helper::{self, Helper};
use crate::enter::{self, EnterError, Place, Pty, Running};
use crate::running::state::{self, State};
use crate::spec::{InitKind, Layout, MachineName};
use crate::sys::path::RootFd;
use crate::sys::process::{self, Ended};
use crate::sys::{Context as _, Errno, Error};

/// How long a helper may take for its answer; clients give up after 25 s.
pub(super) const LIMIT: Duration = Duration::from_secs(20);
/// Where the bus of a machine is, if it has one.
const BUS: &str = "/run/dbus/system_bus_socket";
/// How long the machine may take to let us connect to it.
const CONNECT: Duration = Duration::from_secs(3);
/// How long it may take until a command has been executed.
const EXECUTE: Duration = Duration::from_secs(10);

/// What a helper is sent for; the leader's pidfd comes along.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Visit {
    /// The machine.
    pub(super) name: String,
    pub(super) job: Job,
}

/// What a helper says, if all is well.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// The terminal's master comes along, and the other end if only a terminal was wanted.
    Opened {
        /// Path of the terminal in the machine.
        path: String,
        /// It will say how the command ended.
        stays: bool,
    },
    /// How the command ended, as the end of a sentence.
    Ended(String),
}

/// A helper whose answers are awaited.
#[derive(Debug)]
pub(super) struct Serving {
    child: Child,
    socket: AsyncIo<OwnedFd, Shared>,
}

/// Starts a helper as `command`, our program: `sealed` if the machine could write to our program through it.
pub(super) fn start(mut command: Command, leader: &OwnedFd, visit: &Visit, sealed: bool) -> Outcome<Helper> {
    command.args(std::iter::once("helper").chain(sealed.then_some("--sealed")));
    Helper::start(command, leader, visit).map_err(|e| match e.errno {
        Errno::EMSGSIZE => Failure::errno(Errno::E2BIG, "Arguments and environment are too long."),
        _ => e.into(),
    })
}

impl Serving {
    /// Makes ready to wait for a helper's answers.
    pub(super) fn new(helper: Helper, runtime: &SharedRuntime) -> Outcome<Self> {
        let Helper { child, socket } = helper;
        rustix::io::ioctl_fionbio(&socket, true).call(|| "ioctl(FIONBIO)".into())?;
        let socket = AsyncIo::<_, Shared>::new_nonblocking(runtime, socket).map_err(Failure::failed)?;
        Ok(Self { child, socket })
    }

    /// The next thing it says.
    pub(super) async fn answer(&self) -> Outcome<(Answer, Vec<OwnedFd>)> {
        loop {
            self.socket.readable().await.map_err(Failure::failed)?;
            match helper::answer::<Outcome<Answer>>(self.socket.get_ref()) {
                Ok(Some((answer, fds))) => return answer.map(|answer| (answer, fds)),
                Err(e) if e.errno == Errno::EAGAIN => {}
                Ok(None) | Err(_) => {
                    return Err(Failure::failed("The helper that enters machines ended without an answer."));
                }
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
        let _ = zruntime::unblock(move || helper::stop(&mut self.child)).await;
    }
}

/// Is a helper: does what the daemon says over standard input, and comes back when that is over.
///
/// # Errors
/// If standard input is no socket of the daemon's.
pub fn serve(layout: &Layout) -> crate::sys::Result<u8> {
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).call(|| "dup(standard input)".into())?;
    // Nothing of the daemon's may be inherited by what is visible in a machine.
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.call(|| "open('/dev/null')".into())?;
    rustix::stdio::dup2_stdin(&null).call(|| "dup2(0)".into())?;
    rustix::stdio::dup2_stdout(&null).call(|| "dup2(1)".into())?;
    rustix::stdio::dup2_stderr(&null).call(|| "dup2(2)".into())?;
    Ok(helper::serve(socket.as_fd(), |visit, leader| visit_machine(layout, &socket, &leader, &visit)))
}

/// Says that the terminal is open, before the last answer.
fn opened(socket: &OwnedFd, path: &str, stays: bool, master: &OwnedFd) -> Outcome {
    let answer = Answer::Opened { path: path.to_owned(), stays };
    Ok(helper::say::<_, Failure>(socket, Ok(&answer), &[master.as_fd()])?)
}

/// A helper's last answer, if it has one to give at its end.
type Last = Option<(Answer, Vec<OwnedFd>)>;

/// Does what is wanted; gives the last answer.
fn visit_machine(layout: &Layout, socket: &OwnedFd, leader: &OwnedFd, visit: &Visit) -> Outcome<Last> {
    let pid = process::pidfd_number(leader)?.as_raw();
    let state = own_state(layout, visit, pid);
    let place = match &state {
        Some(state) => Place::of_state(state)?,
        None => Some(Place::of_process(pid)?),
    };
    let place = place.ok_or_else(|| Failure::failed("The machine is frozen."))?;
    let pty = Pty::open_in(leader, place.root)?;
    if visit.job == Job::Pty {
        let Pty { master, peer, path } = pty;
        return Ok(Some((Answer::Opened { path, stays: false }, vec![master, peer])));
    }
    let target = place.target(leader.as_fd());
    if visit.name != HOST && runs_systemd(state.as_ref(), pid) {
        match enter::connect(&target, BUS, CONNECT) {
            Ok(stream) => {
                let Pty { master, peer, path } = pty;
                let stays = matches!(visit.job, Job::Shell(_));
                let at = path.clone();
                // It takes ours along: closing the caller's is to end the shell.
                let opened = move || opened(socket, &at, stays, &master);
                let how = guest_systemd::ask(stream, &path, peer, &visit.job, opened)?;
                return Ok(how.map(|how| (Answer::Ended(how), Vec::new())));
            }
            // No bus listens there.
            Err(EnterError::Connect(cause)) if is_absence(cause.errno) => {}
            Err(e) => return Err(failure(&e)),
        }
    }
    let begun = execute(&target, &visit.job, &pty)?;
    opened(socket, &pty.path, true, &pty.master)?;
    drop(pty);
    Ok(Some((Answer::Ended(wait(begun)), Vec::new())))
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
