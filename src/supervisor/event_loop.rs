//! The poll loop of a running machine, and its end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;

use super::backoff::Pause;
use super::change_limits::Changing;
use super::console::{Event, Token};
use super::prepare::Prepared;
use super::ready::Awaited;
use super::requests::{Goal, Request, Stage, Verdict, judge};
use super::{MachineError, launch};
use crate::bus::systemd1::STOP_SIGNAL;
use crate::cgroup;
use crate::enter::{self, Command, Stdio};
use crate::running::control::{self, Answer, Callers, NewLimits};
use crate::running::restart::{End, Exit, Next};
use crate::running::state::{Phase, State};
use crate::running::stop::{self, Way};
use crate::spec::Span;
use crate::sys::process::{self, Ended as ProcessEnded};
use crate::sys::{Errno, socket};

/// Signals that concern the supervisor; SIGURG is [`STOP_SIGNAL`].
pub(super) const SIGNALS: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGWINCH, Signal::SIGURG];

/// A machine whose payload has been executed.
#[derive(Debug)]
pub(super) struct Running {
    prepared: Prepared,
    leader: OwnedFd,
    notify: OwnedFd,
    state: State,
    /// What it takes to be ready.
    awaited: Awaited,
    stop: Option<Stopping>,
    /// An end until then is one that somebody asked for.
    expected: Option<Instant>,
    /// Connections that wait for the machine to end.
    waiting: Vec<OwnedFd>,
    /// A change of its limits.
    changing: Option<Changing>,
    callers: Callers,
    trimmed: bool,
}

#[derive(Debug)]
struct Stopping {
    /// What its init has been asked for.
    asked: Goal,
    /// What is to follow its end: a stop turns a reboot that is under way into a poweroff.
    goal: Goal,
    deadline: Option<Instant>,
    /// When to ask (again).
    ask_at: Option<Instant>,
    command: Option<enter::Running>,
    killed: bool,
}

/// The word of a background supervisor to whoever waits for its machine; a warning on each further line.
fn ready(warnings: &[String]) -> String {
    let warnings = warnings.iter().map(|text| text.lines().collect::<Vec<_>>().join(" "));
    std::iter::once("ready".to_owned()).chain(warnings).collect::<Vec<_>>().join("\n")
}

/// How long to wait before an init that has been sent a signal is sent it again: what comes in its first moments
/// is lost, and no init minds (`tests/trees/README.md`).
const SIGNAL_AGAIN: Duration = Duration::from_millis(250);

/// The same for one that is told by a command; runit loses what comes in its first second.
const COMMAND_AGAIN: Duration = Duration::from_secs(1);

/// The same for one whose client must not disturb its shutdown, which takes a few seconds.
const CLIENT_AGAIN: Duration = Duration::from_secs(20);

/// How soon a command that failed is tried again: its socket or FIFO is not there yet.
const NOT_LISTENING: Duration = Duration::from_millis(50);

/// How long a machine without a limit may take to stop, to a service manager, which knows no such thing.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// How long an end that somebody has announced may take where nothing limits an orderly stop.
const EXPECTED: Duration = Duration::from_secs(90);

/// Pause after a poll that failed, for want of memory: without it the loop would spin.
pub(super) const UNPOLLED: Duration = Duration::from_millis(100);

/// What a killed machine needs beyond its limit until the supervisor has gone.
const LAST_STEPS: Duration = Duration::from_secs(30);

/// A machine that has ended, with everything it held.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) prepared: Prepared,
    pub(super) waiting: Vec<OwnedFd>,
    /// What was last said of it.
    state: State,
    exit: Exit,
}

/// What follows an end.
#[derive(Debug)]
pub(super) enum Turn {
    /// Everything has been given back.
    Over(Exit),
    /// The machine is to be launched again.
    Again(Box<Prepared>),
}

/// Which descriptor a poll result belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    Leader,
    Notify,
    Listener,
    Caller(usize),
    StopCommand,
    Limits,
    Check,
    Console(Token),
}

/// Waits until something happens to one of these, or the time is up; gives what did.
pub(super) fn poll_sources<S: Copy>(
    list: &[(BorrowedFd<'_>, PollFlags, S)],
    at_most: Option<Duration>,
) -> nix::Result<Vec<(S, PollFlags)>> {
    let mut fds: Vec<PollFd<'_>> = list.iter().map(|(fd, flags, _)| PollFd::new(*fd, *flags)).collect();
    let timeout = at_most.map_or(PollTimeout::NONE, |wait| {
        PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(e) => return Err(e),
    }
    let ready = fds.iter().zip(list);
    Ok(ready.filter_map(|(fd, (_, _, s))| Some((*s, fd.revents().filter(|r| !r.is_empty())?))).collect())
}

impl Running {
    pub(super) fn new(prepared: Prepared, leader: OwnedFd, notify: OwnedFd, state: State) -> Self {
        let awaited = Awaited::new(&prepared.job.plan.exec.ready, state.init_kind);
        Self {
            prepared,
            leader,
            notify,
            state,
            awaited,
            stop: None,
            expected: None,
            waiting: Vec::new(),
            changing: None,
            callers: Callers::default(),
            trimmed: false,
        }
    }

    /// Serves the machine until its leader has ended.
    pub(super) fn wait(mut self, signals: &SignalFd) -> Ended {
        if matches!(self.awaited, Awaited::Nothing) {
            self.become_ready();
        }
        self.tell_awaited();
        let ended = loop {
            let ready = self.poll(signals.as_fd()).unwrap_or_else(|_| {
                // What is due and the leader's end are seen to all the same.
                std::thread::sleep(UNPOLLED);
                Vec::new()
            });
            for (source, flags) in ready {
                match source {
                    Source::Leader | Source::Check => {}
                    Source::Signals => self.take_signals(signals),
                    Source::Notify => self.take_notices(),
                    Source::Listener => self.callers.admit(&self.prepared.control),
                    Source::Caller(index) => self.hear(index),
                    Source::StopCommand => self.step_stop_command(),
                    Source::Limits => self.conclude_change(),
                    Source::Console(token) => self.serve_console(token, flags),
                }
            }
            self.callers.tidy();
            self.prepared.manager.beat();
            drop(self.prepared.slot.take_if(|slot| slot.until <= Instant::now()));
            match process::wait_pidfd(&self.leader, false) {
                Ok(Some(ended)) => break ended,
                Ok(None) => {
                    self.check();
                    self.ask_init();
                    self.enforce_deadline();
                }
                Err(_) => break ProcessEnded::Killed(Signal::SIGKILL as i32),
            }
        };
        self.end(ended)
    }

    /// Goes on with the check that says whether it is ready, if there is one.
    fn check(&mut self) {
        if self.awaited.step(&self.state, self.leader.as_fd()) {
            self.become_ready();
        }
        self.tell_awaited();
    }

    /// Tells what is waited for, if that has changed.
    fn tell_awaited(&mut self) {
        let awaited = self.awaited.describe().filter(|_| self.stop.is_none());
        if awaited == self.state.waits_for {
            return;
        }
        self.state.waits_for = awaited;
        self.save();
        if let Some(text) = &self.state.waits_for {
            self.prepared.manager.tell(&format!("STATUS=Machine starting, waits for {text}."));
        }
    }

    /// Waits for anything to happen; gives what did.
    fn poll(&mut self, signals: BorrowedFd<'_>) -> nix::Result<Vec<(Source, PollFlags)>> {
        let mut list: Vec<(BorrowedFd<'_>, PollFlags, Source)> = Vec::with_capacity(12);
        let read = PollFlags::POLLIN;
        list.push((signals, read, Source::Signals));
        list.push((self.leader.as_fd(), read, Source::Leader));
        list.push((self.notify.as_fd(), read, Source::Notify));
        list.push((self.prepared.control.as_fd(), read, Source::Listener));
        list.extend(self.callers.poll_fds().map(|(fd, index)| (fd, read, Source::Caller(index))));
        list.extend(self.awaited.poll_fd().map(|fd| (fd, read, Source::Check)));
        let command = self.stop.as_ref().and_then(|s| s.command.as_ref());
        list.extend(command.map(|c| (c.poll_fd(), read, Source::StopCommand)));
        list.extend(self.changing.as_ref().map(|c| (c.poll_fd(), read, Source::Limits)));
        list.extend(self.prepared.console_fds().map(|(fd, flags, token)| (fd, flags, Source::Console(token))));
        let ready = poll_sources(&list, self.wait_at_most())?;
        if ready.is_empty() && !self.trimmed {
            // Nothing to do for a while: give back what the start needed.
            self.trimmed = true;
            process::trim_memory();
        }
        Ok(ready)
    }

    fn wait_at_most(&self) -> Option<Duration> {
        let idle = (!self.trimmed).then_some(Duration::from_millis(500));
        let asking = |s: &Stopping| s.ask_at.filter(|_| s.command.is_none() && !s.killed);
        let stop = self.stop.iter().flat_map(|s| [s.deadline, asking(s)]).flatten();
        let due = self.prepared.manager.due().into_iter().chain(self.awaited.due());
        let due = due.chain(self.prepared.slot.as_ref().map(|slot| slot.until));
        let at = stop.chain(due).map(|at| at.saturating_duration_since(Instant::now()));
        idle.into_iter().chain(at).min()
    }

    fn take_signals(&mut self, fd: &SignalFd) {
        while let Ok(Some(info)) = fd.read_signal() {
            if info.ssi_signo == Signal::SIGWINCH as u32 {
                if let Some(console) = &self.prepared.console {
                    // A terminal that is gone has no size.
                    let _ = console.resize_to_terminal();
                }
            } else {
                let scope = info.ssi_signo == STOP_SIGNAL.unsigned_abs();
                self.carry_out(if scope { Request::ScopeStop } else { Request::Signal });
            }
        }
    }

    /// Reads everything PID 1 and others have sent to the notification socket.
    fn take_notices(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(received) = socket::receive(&self.notify, &mut buffer) {
            if received.sender != Some(self.state.leader) {
                continue;
            }
            let text = String::from_utf8_lossy(&buffer[..received.len]);
            let mut changed = false;
            for line in text.lines() {
                if line == "READY=1" && self.awaited.is_notice() {
                    self.become_ready();
                } else if let Some(status) = line.strip_prefix("STATUS=") {
                    let clean: String = status.chars().filter(|c| !c.is_control()).take(200).collect();
                    changed |= self.state.status.as_deref() != Some(&clean);
                    self.state.status = Some(clean);
                }
            }
            if changed {
                self.save();
            }
        }
    }

    fn become_ready(&mut self) {
        self.awaited = Awaited::Nothing;
        self.prepared.slot = None;
        self.state.waits_for = None;
        if self.state.phase == Phase::Starting {
            self.state.phase = Phase::Running;
        }
        self.save();
        if let Some(report) = self.prepared.report.take() {
            // Nobody there to hear it is no failure of the machine.
            let again = self.prepared.history.last().map(|last| {
                let (name, starts) = (self.prepared.name(), self.prepared.history.restarts().saturating_add(1));
                format!("machine '{name}' needed {starts} starts until it was ready; before the last it {last}")
            });
            self.prepared.warnings.extend(again);
            let _ = socket::send(&report, ready(&self.prepared.warnings).as_bytes(), &[]);
        }
        let killed = self.prepared.was_killed;
        for connection in self.prepared.wait_for_boot.drain(..) {
            // Whoever went away does not need it.
            let _ = control::send(&connection, &Answer::Rebooted { killed });
        }
        self.prepared
            .manager
            .tell(&format!("READY=1\nSTATUS=Machine running.\nX_NSPAWN_LEADER_PID={}", self.state.leader));
    }

    fn save(&self) {
        // The machine goes on without; `list` then shows the state before.
        let _ = self.prepared.run_dir.write(&self.state);
    }

    fn stage(&self) -> Stage {
        match &self.stop {
            Some(stop) if stop.killed => Stage::Killed(stop.goal),
            Some(stop) => Stage::Stopping(stop.goal),
            None if self.state.phase == Phase::Starting => Stage::Starting,
            None => Stage::Running,
        }
    }

    /// Does what the table has for a request to end the machine that nobody waits for.
    fn carry_out(&mut self, request: Request) {
        self.stop_as(judge(self.stage(), request), Goal::Poweroff, None);
    }

    fn stop_as(&mut self, verdict: Verdict, goal: Goal, timeout: Option<Duration>) {
        match verdict {
            Verdict::Accept => self.begin(goal, timeout),
            Verdict::Join => self.shorten(timeout),
            Verdict::Upgrade => self.upgrade(timeout),
            Verdict::Kill => self.kill(),
            Verdict::Ignore | Verdict::Refuse(_) => {}
        }
    }

    /// Takes the request of the caller `index`.
    fn hear(&mut self, index: usize) {
        let Some((request, connection)) = self.callers.hear(index) else { return };
        let kind = Request::of(&request, self.changing.is_some());
        let verdict = judge(self.stage(), kind);
        // Whoever went away does not need it.
        let answer = |connection: &OwnedFd, answer| drop(control::send(connection, &answer));
        if let Verdict::Refuse(why) = verdict {
            return answer(&connection, Answer::Refused(why.into()));
        }
        match request {
            control::Request::Console => {
                if let Some(console) = &mut self.prepared.console {
                    // A viewer that cannot be served has its connection closed.
                    let _ = console.add_viewer(connection);
                }
            }
            control::Request::Stop { timeout } => {
                answer(&connection, Answer::Accepted);
                self.waiting.push(connection);
                self.stop_as(verdict, Goal::Poweroff, timeout);
            }
            control::Request::Reboot => {
                answer(&connection, Answer::Accepted);
                self.waiting.push(connection);
                self.stop_as(verdict, Goal::Reboot, None);
            }
            control::Request::Limit(new) => self.begin_change(*new, connection),
            control::Request::Expect => {
                let limit = self.prepared.job.plan.exec.stop_timeout.map_or(EXPECTED, Duration::from_secs);
                self.expected = Instant::now().checked_add(limit);
                answer(&connection, Answer::Accepted);
            }
        }
    }

    /// Begins to change the limits.
    fn begin_change(&mut self, new: NewLimits, asker: OwnedFd) {
        let Ok(kept) = asker.try_clone() else { return };
        match Changing::begin(&self.prepared.job, &self.state, new, asker) {
            Ok(changing) => self.changing = Some(changing),
            // Whoever went away does not need it.
            Err(e) => drop(control::send(&kept, &Answer::Refused(e.to_string()))),
        }
    }

    fn conclude_change(&mut self) {
        if let Some(changing) = self.changing.take() {
            let answer = changing.conclude(&mut self.prepared.job, &mut self.state);
            self.save();
            changing.tell(&answer);
        }
    }

    fn serve_console(&mut self, token: Token, flags: PollFlags) {
        let Some(console) = &mut self.prepared.console else { return };
        match console.handle(token, flags) {
            Some(Event::Leave) => self.carry_out(Request::Leave),
            Some(Event::LocalGone | Event::Warning(_)) | None => {}
        }
    }

    /// When a request that comes now has the machine killed.
    fn deadline(&self, timeout: Option<Duration>) -> Option<Instant> {
        let limit = timeout.or(self.prepared.job.plan.exec.stop_timeout.map(Duration::from_secs));
        limit.and_then(|l| Instant::now().checked_add(l))
    }

    /// Another request for the same: only a shorter limit counts.
    fn shorten(&mut self, timeout: Option<Duration>) {
        let deadline = self.deadline(timeout);
        if let Some(stop) = &mut self.stop {
            stop.deadline = match (stop.deadline, deadline) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
    }

    /// Makes a poweroff of the reboot that is under way. Its init goes on as it has begun; another request would disturb it.
    fn upgrade(&mut self, timeout: Option<Duration>) {
        self.shorten(timeout);
        if let Some(stop) = &mut self.stop {
            stop.goal = Goal::Poweroff;
        }
        self.tell_stopping(Goal::Poweroff, timeout);
    }

    /// Asks the init to stop or reboot in its own way.
    fn begin(&mut self, goal: Goal, timeout: Option<Duration>) {
        let deadline = self.deadline(timeout);
        self.state.phase = Phase::Stopping;
        if !self.awaited.is_notice() {
            // A check would be one more process to end.
            self.awaited = Awaited::Nothing;
        }
        self.state.waits_for = None;
        self.save();
        // A frozen init hears nothing.
        let _ = cgroup::freeze(&self.state.cgroup, false);
        self.tell_stopping(goal, timeout);
        let ask_at = Some(Instant::now());
        self.stop = Some(Stopping { asked: goal, goal, deadline, ask_at, command: None, killed: false });
        self.ask_init();
    }

    fn tell_stopping(&self, goal: Goal, timeout: Option<Duration>) {
        let limit = timeout.or(self.prepared.job.plan.exec.stop_timeout.map(Duration::from_secs));
        self.prepared.manager.tell(&match goal {
            Goal::Poweroff => {
                // The service manager's own limit must not be shorter than the machine's.
                let time = limit.unwrap_or(FOR_EVER).min(FOR_EVER).saturating_add(LAST_STEPS).as_micros();
                format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={time}\nSTATUS=Machine stopping.")
            }
            // This process goes on, so for its manager nothing stops.
            Goal::Reboot => "STATUS=Machine rebooting.".to_owned(),
        });
    }

    /// Asks the init, or notes when to try again: one that has just begun does not listen yet.
    fn ask_init(&mut self) {
        let now = Instant::now();
        let due = |s: &&Stopping| s.command.is_none() && !s.killed && s.ask_at.is_some_and(|at| at <= now);
        let Some(goal) = self.stop.as_ref().filter(due).map(|s| s.asked) else { return };
        let (command, wait) = match stop::way(self.state.init_kind, goal) {
            Way::Signal(signal) => {
                // Ended already: the loop is about to see it.
                let _ = process::pidfd_send_signal(&self.leader, signal);
                (None, SIGNAL_AGAIN)
            }
            Way::Init(argument) => {
                let init = self.state.init.as_deref().unwrap_or("/sbin/init");
                (self.start_command(&[init, argument]), COMMAND_AGAIN)
            }
            Way::Client(argv) => (self.start_command(argv), NOT_LISTENING),
        };
        if let Some(stop) = &mut self.stop {
            stop.command = command;
            // The stub of a command misses nothing, and many programs take a second SIGTERM for "at once".
            stop.ask_at = self.state.init.is_some().then(|| now + wait);
        }
    }

    fn start_command(&self, argv: &[&str]) -> Option<enter::Running> {
        let (rights, group) = (self.state.rights(), self.state.payload_group());
        let target = self.state.target(self.leader.as_fd(), &group, &rights);
        let command =
            Command { argv: argv.iter().map(|a| (*a).to_owned()).collect(), stdio: Stdio::Null, ..Command::default() };
        // A machine that cannot be asked is killed when its time is up.
        enter::start(&target, &command).ok()
    }

    fn step_stop_command(&mut self) {
        let Some(stop) = &mut self.stop else { return };
        let Some(command) = &mut stop.command else { return };
        match command.step() {
            Ok(None) => return,
            Ok(Some(outcome)) if outcome.exit_status() == 0 => {
                if matches!(stop::way(self.state.init_kind, stop.asked), Way::Client(_)) {
                    stop.ask_at = Some(Instant::now() + CLIENT_AGAIN);
                }
            }
            // Its socket or FIFO is not there yet.
            Ok(Some(_)) | Err(_) => stop.ask_at = Some(Instant::now() + NOT_LISTENING),
        }
        stop.command = None;
    }

    fn enforce_deadline(&mut self) {
        if self.stop.as_ref().and_then(|s| s.deadline).is_some_and(|d| Instant::now() >= d) {
            self.kill();
        }
    }

    fn kill(&mut self) {
        if let Some(stop) = &mut self.stop {
            stop.killed = true;
            stop.deadline = None;
        }
        // Both: a group that cannot be killed still loses its PID 1, and with it every process of the machine.
        let _ = cgroup::kill_payload(&self.state.cgroup);
        let _ = process::pidfd_send_signal(&self.leader, libc::SIGKILL);
    }

    /// What the leader's end means.
    fn end(mut self, ended: ProcessEnded) -> Ended {
        self.awaited = Awaited::Nothing;
        self.prepared.slot = None;
        let out_of_memory = cgroup::ran_out_of_memory(&self.state.cgroup);
        let expected = self.expected.is_some_and(|until| Instant::now() <= until);
        // A stop wins over a reboot from inside.
        let reboots = judge(self.stage(), Request::GuestReboot) == Verdict::Accept;
        let asked = self.stop.take();
        let killed = asked.as_ref().is_some_and(|s| s.killed);
        let reboot_asked = asked.as_ref().is_some_and(|s| s.goal == Goal::Reboot);
        let no_init = self.state.init_kind.is_none();
        let (status, reboot) = match ended {
            // reboot(2) in a pid namespace: the kernel kills PID 1 by one of these two.
            ProcessEnded::Killed(libc::SIGHUP) => (0, reboots),
            ProcessEnded::Killed(libc::SIGINT) => (0, false),
            ProcessEnded::Killed(_) if killed => (if reboot_asked { 0 } else { 137 }, reboot_asked),
            ProcessEnded::Killed(signal) => (u8::try_from(128 + signal).unwrap_or(255), false),
            // A command cannot ask for a reboot by itself, so ours is done when it has ended.
            ProcessEnded::Exited(_) if no_init && reboot_asked => (0, true),
            ProcessEnded::Exited(code) => (code, false),
        };
        let end = match ended {
            ProcessEnded::Killed(libc::SIGHUP) if reboots => End::Reboot,
            ProcessEnded::Killed(libc::SIGHUP | libc::SIGINT) => End::Poweroff,
            ProcessEnded::Killed(signal) => End::Killed(signal),
            ProcessEnded::Exited(code) => End::Exited(code),
        };
        // One that was to reboot and crashes on the way there has crashed.
        let asked = asked.is_some_and(|stop| stop.goal == Goal::Poweroff) || expected;
        let exit = Exit { end, status, reboot, asked, killed, out_of_memory, gave_up: None };
        if let Some(console) = &mut self.prepared.console {
            console.drain(Duration::from_millis(500));
        }
        if reboot {
            self.prepared.wait_for_boot.append(&mut self.waiting);
            self.prepared.was_killed = killed;
        }
        Ended { prepared: self.prepared, waiting: self.waiting, state: self.state, exit }
    }
}

impl Ended {
    /// A machine of which nothing ran that could end.
    pub(super) fn not_started(prepared: Prepared, error: &MachineError) -> Self {
        let exit = Exit::unasked(End::NotStarted(error.whole()));
        let state = launch::state(&prepared, 0, None, None);
        Self { prepared, waiting: Vec::new(), state, exit }
    }

    /// Does what follows this end: nothing, or another start, before which there may be a pause.
    pub(super) fn next(mut self, signals: &SignalFd) -> Result<Turn, MachineError> {
        if self.exit.reboot {
            return self.prepared.renew().map(Box::new).map(Turn::Again);
        }
        let name = self.prepared.name().to_string();
        match self.prepared.history.next(&name, &self.exit, Instant::now()) {
            Next::Over => self.finish().map(Turn::Over),
            Next::GiveUp(text) => {
                self.prepared.tell(&format!("machine '{name}' {}", self.exit.reason()));
                self.prepared.tell(&text);
                self.exit.gave_up = Some(text);
                self.finish().map(Turn::Over)
            }
            Next::After(delay) => {
                let reason = self.exit.reason();
                // They have asked for a reboot, and there is one, if not as they meant it.
                self.prepared.wait_for_boot.append(&mut self.waiting);
                self.prepared.tell(&format!("machine '{name}' {reason}; started again in {}", Span(delay)));
                self.state.phase = Phase::Restarting;
                self.state.leader = 0;
                self.state.waits_for = None;
                self.state.restarts = self.prepared.history.restarts();
                self.state.last_end = Some(reason);
                // The machine goes on without.
                let _ = self.prepared.run_dir.write(&self.state);
                match Pause::new(self, delay).wait(signals) {
                    (ended, true) => ended.prepared.renew().map(Box::new).map(Turn::Again),
                    (mut ended, false) => {
                        ended.prepared.manager.tell("STOPPING=1\nSTATUS=Machine stopping.");
                        // What was asked for has been done, and whoever runs it has no failure to show.
                        ended.exit = Exit { status: 0, asked: true, ..ended.exit };
                        ended.finish().map(Turn::Over)
                    }
                }
            }
        }
    }

    /// Gives everything back and tells those who wait.
    fn finish(mut self) -> Result<Exit, MachineError> {
        let waiting = std::mem::take(&mut self.waiting);
        if let Some(console) = &mut self.prepared.console {
            console.close_viewers("the machine has ended");
        }
        let result = self.prepared.finish();
        let answer = Answer::Ended { killed: self.exit.killed, status: self.exit.status };
        for connection in waiting {
            let _ = control::send(&connection, &answer);
        }
        result.map(|()| self.exit)
    }
}
