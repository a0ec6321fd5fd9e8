//! Runs a command inside a running machine by entering its namespaces, and needs nothing in the machine.
//!
//! ```text
//! caller ─ clone3 into a leaf group ─> first child: setns, all at once; finds the user; opens the terminal;
//!    │                                 gives up rights; loads the filter
//!    └──────── its sibling, in the machine's PID namespace <─ clone3 ─┘ then it is gone
//!              session, terminal, exec: the command, a child of the caller
//! ```
//!
//! The machine is hostile. What it can see of us is only the last process, for the moment before its exec, and
//! that one already has the machine's rights, filter and user, and no descriptor of the host but those the
//! command is meant to have. Everything that can be made to wait by the machine (its file systems) happens in a
//! child, which time limit and signals reach; nothing of the machine is opened or run by the caller.
//! Failures come back on a socket, as an [`EnterError`]; nothing is printed.
//!
//! What it never does: ask a name service, start a login service, hand a terminal of the host to the machine.

mod child;
mod command;
mod confinement;
mod descendants;
mod error;
pub mod files;
pub mod helper;
mod leaf_cgroup;
pub mod process_limits;
mod pty;
mod streams;
mod users;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

pub use command::{Command, Rights, Stdio, Target};
pub use confinement::{Place, Sharing, host_process};
pub use error::EnterError;
pub use leaf_cgroup::LEAF_PREFIX;
pub use pty::Pty;
pub use users::is_user;

use crate::sys::process::{self, Ended};
use crate::sys::worker::{Child, Worker};
use crate::sys::{self, Errno, channel, socket};
use command::Work;
use error::Report;
use leaf_cgroup::Leaf;
use streams::{Pump, Signals, Streams};

/// How long killed processes may take to be gone.
const GRACE: Duration = Duration::from_secs(2);

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// By itself or by a signal.
    Ended(Ended),
    /// It was killed because its time was up.
    TimedOut,
}

impl Outcome {
    /// The exit status for our caller: the command's own, 128 + signal, or 124 as `timeout(1)`.
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Ended(Ended::Exited(code)) => code,
            Self::Ended(Ended::Killed(signal)) => u8::try_from(128 + signal).unwrap_or(255),
            Self::TimedOut => 124,
        }
    }
}

/// A command on its way: entering, then running.
///
/// For poll loops: when [`Running::poll_fd`] is readable or [`Running::deadline`] has passed, call
/// [`Running::step`]. Dropping it kills what it started.
#[derive(Debug)]
pub struct Running {
    /// The child that enters; reaped when the socket has ended.
    first: Child,
    socket: Option<OwnedFd>,
    command: Option<OwnedFd>,
    /// The command's number, valid until it is reaped.
    pid: i32,
    /// The other ends of the command's streams, until the caller takes them.
    outside: Vec<OwnedFd>,
    failure: Option<EnterError>,
    deadline: Option<Instant>,
    over: bool,
    leaf: Option<Leaf>,
}

/// Starts a command whose streams are all [`Stdio::Null`], for callers with a poll loop of their own.
///
/// # Errors
/// Only what fails on the host's side; the rest comes from [`Running::step`].
pub fn start(target: &Target<'_>, command: &Command) -> Result<Running, EnterError> {
    child::check(command)?;
    launch(target, &Work::Run(command), &Streams::null())
}

/// Starts a command on a terminal of the machine's, which becomes its controlling one and its user's.
///
/// Once executed it does not depend on us; the end of the terminal ends it.
///
/// # Errors
/// As for [`start`].
pub fn start_on(target: &Target<'_>, command: &Command, terminal: OwnedFd) -> Result<Running, EnterError> {
    child::check(command)?;
    launch(target, &Work::Run(command), &Streams::given(terminal))
}

/// Connects to a stream socket of the machine, as its root and from within its namespaces; waits at most `limit`.
///
/// The machine decides who listens there, so the other side is as hostile as the rest of it.
///
/// # Errors
/// [`EnterError::Connect`] if no process listens there, or not in time (ETIMEDOUT).
pub fn connect(target: &Target<'_>, path: &str, limit: Duration) -> Result<OwnedFd, EnterError> {
    let mut running = launch(target, &Work::Connect(path), &Streams::null())?;
    let end = Instant::now() + limit;
    loop {
        let result = running.step();
        // The child ends as soon as it has sent the connection.
        if let Some(connection) = running.outside.pop() {
            return Ok(connection);
        }
        if result?.is_some() {
            return Err(EnterError::Lost);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let cause = sys::Error { call: format!("connect('{path}')"), errno: Errno::ETIMEDOUT };
            return Err(EnterError::Connect(cause));
        }
        let mut set = [PollFd::new(running.poll_fd(), PollFlags::POLLIN)];
        match nix::poll::poll(&mut set, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(EnterError::Enter(sys::Error { call: "poll".into(), errno })),
        }
    }
}

/// Runs a command to its end, with our streams, passing on signals meant to end it.
///
/// The process must have one thread. SIGINT, SIGTERM, SIGHUP and SIGQUIT go to the command; SIGKILL to us kills it.
/// On a terminal, `^]` three times within a second hangs up.
///
/// # Errors
/// If the command was not run, or its streams failed on our side.
pub fn run(target: &Target<'_>, command: &Command) -> Result<Outcome, EnterError> {
    child::check(command)?;
    let signals = Signals::take().map_err(EnterError::Streams)?;
    let streams = Streams::of(command.stdio).map_err(EnterError::Streams)?;
    let mut running = launch(target, &Work::Run(command), &streams)?;
    let mut pump = Pump::new(streams);
    loop {
        let outcome = running.step()?;
        // A short command is over in the step that reported its streams.
        if !running.outside.is_empty() {
            pump.connect(std::mem::take(&mut running.outside)).map_err(EnterError::Streams)?;
        }
        if let Some(outcome) = outcome {
            pump.drain();
            return Ok(outcome);
        }
        let ready = pump.poll([running.poll_fd(), signals.as_fd()], running.deadline);
        ready.map_err(EnterError::Streams)?;
        while let Some(signal) = signals.next() {
            if signal == Signal::SIGWINCH as i32 {
                pump.resize();
            } else if !running.signal(signal) {
                return Ok(Outcome::Ended(Ended::Killed(signal)));
            }
        }
        pump.copy();
        if pump.was_left() {
            drop(pump);
            running.hang_up();
            return Ok(Outcome::Ended(Ended::Killed(Signal::SIGHUP as i32)));
        }
    }
}

/// Copies between our standard input and output and a terminal of a machine until `over` is readable, or a signal
/// meant to end us comes, which is given back.
///
/// On a terminal, `^]` three times within a second leaves. Our end sends SIGHUP to what runs there.
///
/// # Errors
/// If our streams or the terminal cannot be used.
pub fn attend(terminal: OwnedFd, over: BorrowedFd<'_>) -> Result<Option<i32>, EnterError> {
    let failed = EnterError::Streams;
    let signals = Signals::take().map_err(failed)?;
    // Without a holder the master reports a hang-up for as long as the machine has the other end closed.
    let _held = pty::hold(&terminal).map_err(failed)?;
    let mut pump = Pump::new(Streams::of(Stdio::Terminal).map_err(failed)?);
    pump.connect(vec![terminal]).map_err(failed)?;
    loop {
        pump.poll([over, signals.as_fd()], None).map_err(failed)?;
        while let Some(signal) = signals.next() {
            if signal != Signal::SIGWINCH as i32 {
                return Ok(Some(signal));
            }
            pump.resize();
        }
        pump.copy();
        if pump.was_left() {
            return Ok(None);
        }
        if is_readable(over, Duration::ZERO) {
            pump.drain();
            return Ok(None);
        }
    }
}

fn launch(target: &Target<'_>, work: &Work<'_>, streams: &Streams) -> Result<Running, EnterError> {
    let leaf = target.cgroup.map(Leaf::make).transpose().map_err(EnterError::Group)?;
    let (ours, theirs) = socket::pair().map_err(EnterError::Enter)?;
    let lost = |why: &str| child::report(&theirs, &Report::Failed(EnterError::Panicked(why.into())), &[]);
    let worker = Worker::unnamed(c"enter").cgroup(leaf.as_ref().map(AsFd::as_fd)).on_panic(&lost);
    let first = worker.spawn(|| child::enter(target, work, streams, &theirs));
    Ok(Running {
        first: first.map_err(EnterError::Group)?,
        socket: Some(ours),
        command: None,
        pid: 0,
        outside: Vec::new(),
        failure: None,
        deadline: work.timeout().and_then(|t| Instant::now().checked_add(t)),
        over: false,
        leaf,
    })
}

impl Running {
    /// Readable when there is something to do for [`Running::step`].
    pub fn poll_fd(&self) -> BorrowedFd<'_> {
        match (&self.socket, &self.command) {
            (Some(socket), _) => socket.as_fd(),
            (None, Some(command)) => command.as_fd(),
            (None, None) => self.first.as_fd(),
        }
    }

    /// Whether the command has been executed, as far as [`Running::step`] has seen.
    pub fn has_begun(&self) -> bool {
        self.socket.is_none() && self.command.is_some() && self.failure.is_none()
    }

    /// When the command's time is up.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Goes on as far as possible without waiting; `None` while the command runs.
    ///
    /// # Errors
    /// Once, if the command was not run.
    pub fn step(&mut self) -> Result<Option<Outcome>, EnterError> {
        if self.deadline.is_some_and(|end| Instant::now() >= end) {
            self.kill();
            return Ok(Some(Outcome::TimedOut));
        }
        while self.socket.as_ref().is_some_and(|s| is_readable(s, Duration::ZERO)) {
            self.receive()?;
        }
        if self.socket.is_some() {
            return Ok(None);
        }
        let Some(command) = &self.command else {
            // The socket ended, so the first child is gone or about to.
            self.kill();
            return Err(self.failure.take().unwrap_or(EnterError::Lost));
        };
        let ended = process::wait_pidfd(command, self.failure.is_some()).map_err(EnterError::Enter)?;
        let Some(ended) = ended else { return Ok(None) };
        self.over = true;
        match self.failure.take() {
            Some(failure) => Err(failure),
            None => Ok(Some(Outcome::Ended(ended))),
        }
    }

    /// Takes one message, or the end of the socket, which means that exec succeeded or nothing is left to.
    fn receive(&mut self) -> Result<(), EnterError> {
        let Some(socket) = &self.socket else { return Ok(()) };
        match channel::receive(socket) {
            Ok(None) => {
                self.socket = None;
                // Ours to reap; it ends right after its last message.
                self.first.wait().map_err(EnterError::Enter)?;
            }
            Ok(Some((Report::Connected, fds))) => self.outside = fds,
            Ok(Some((Report::Started, fds))) => self.adopt(fds.into_iter().next()),
            Ok(Some((Report::Failed(error), _))) => self.failure = Some(error),
            Err(e) if matches!(e.errno, Errno::EPROTO | Errno::EMSGSIZE) => self.failure = Some(EnterError::Lost),
            Err(e) => return Err(EnterError::Enter(e)),
        }
        Ok(())
    }

    /// Takes the command's pidfd. Without a user namespace the machine can write to our socket, so the process
    /// must be a child of ours, or else we might be made to kill another.
    fn adopt(&mut self, pidfd: Option<OwnedFd>) {
        let pid = pidfd.as_ref().and_then(|fd| process::pidfd_number(fd).ok()).map_or(0, Pid::as_raw);
        if self.command.is_none() && descendants::is_ours(pid) {
            (self.command, self.pid) = (pidfd, pid);
        } else {
            self.failure = Some(EnterError::Lost);
        }
    }

    /// Passes a signal on to the command's process group; false if there is no command yet.
    pub fn signal(&self, signal: i32) -> bool {
        let Some(command) = &self.command else { return false };
        // It may have ended just now, which the next step sees.
        let _ = process::pidfd_signal_group(command, signal);
        true
    }

    /// Ends the command as a lost terminal does; what it put beyond the reach of that keeps running.
    fn hang_up(&mut self) {
        let Some(command) = &self.command else { return };
        let _ = process::pidfd_signal_group(command, Signal::SIGHUP as i32);
        if !is_readable(command, GRACE) {
            let _ = process::pidfd_send_signal(command, Signal::SIGKILL as i32);
        }
        self.over = process::wait_pidfd(command, true).is_ok();
    }

    /// Kills everything the command started and waits for the end of it.
    fn kill(&mut self) {
        self.over = true;
        if self.command.is_some() {
            // Before the group, because orphans lose their parent.
            descendants::kill(self.pid);
        }
        // Each of these fails only if there is nothing left to kill.
        if let Some(leaf) = &self.leaf {
            let _ = leaf.kill();
        }
        process::kill_and_reap(&self.first);
        while self.command.is_none() && self.socket.as_ref().is_some_and(|s| is_readable(s, GRACE)) {
            let _ = self.receive();
        }
        if let Some(command) = &self.command {
            process::kill_and_reap(command);
        }
        if let Some(leaf) = &self.leaf {
            let _ = leaf.wait_empty(GRACE);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.over {
            self.kill();
        }
    }
}

fn is_readable(fd: impl AsFd, limit: Duration) -> bool {
    let mut set = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    nix::poll::poll(&mut set, PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO)).is_ok_and(|ready| ready > 0)
}
