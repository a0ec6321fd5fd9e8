//! A boot whose payload has been executed, until its leader ends.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::boot::Boot;
use super::change_limits::Changing;
use super::job::Job;
use super::machine::Machine;
use super::ready::Awaited;
use super::requests::{Goal, Request, Stage, Verdict, judge};
use crate::cgroup;
use crate::enter::{self, Command, Stdio};
use crate::running::control::{self, Answer, NewLimits};
use crate::running::restart::{End, Exit};
use crate::running::state::{Phase, State};
use crate::running::stop::{self, Way};
use crate::sys::process::{self, Ended};
use crate::sys::socket;

/// How long to wait before an init that has been sent a signal is sent it again: what comes in its first moments
/// is lost, and no init minds (`tests/trees/README.md`).
const SIGNAL_AGAIN: Duration = Duration::from_millis(250);

/// The same for one that is asked by a command; runit loses what comes in its first second.
const COMMAND_AGAIN: Duration = Duration::from_secs(1);

/// The same for one whose client must not disturb its shutdown, which takes a few seconds.
const CLIENT_AGAIN: Duration = Duration::from_secs(20);

/// How soon a command that failed is tried again: its socket or FIFO is not there yet.
const NOT_LISTENING: Duration = Duration::from_millis(50);

/// How long a machine without a limit may take to stop, to a service manager, which knows no such thing.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// How long an announced end may take where nothing limits an orderly stop.
const EXPECTED: Duration = Duration::from_secs(90);

/// What a killed machine needs beyond its limit until the supervisor has gone.
const LAST_STEPS: Duration = Duration::from_secs(30);

/// A machine whose payload has been executed.
#[derive(Debug)]
pub(super) struct Running {
    boot: Boot,
    /// What it takes to be ready.
    awaited: Awaited,
    stop: Option<Stopping>,
    /// An end until then is one that has been announced.
    expected: Option<Instant>,
    /// A change of its limits.
    changing: Option<Changing>,
}

/// An end on its way.
#[derive(Debug)]
struct Stopping {
    /// What its init has been asked to do.
    asked: Goal,
    /// What is to follow its end: a stop turns a reboot that is under way into a poweroff.
    goal: Goal,
    deadline: Option<Instant>,
    /// When to ask (again).
    ask_at: Option<Instant>,
    command: Option<enter::Running>,
    killed: bool,
}

/// What a running machine waits for beside what every machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The end of PID 1.
    Leader,
    /// A message of its init.
    Notify,
    /// The command that asks its init to stop.
    StopCommand,
    /// The child that changes its limits.
    Limits,
    /// The check that says whether it is ready.
    Check,
}

impl Running {
    /// Takes over a boot that has been started.
    pub(super) fn begin(boot: Boot, machine: &mut Machine) -> Self {
        let awaited = Awaited::new(&machine.session.job.plan.exec.ready, boot.state.init_kind);
        let mut running = Self { boot, awaited, stop: None, expected: None, changing: None };
        if matches!(running.awaited, Awaited::Nothing) {
            running.become_ready(machine);
        }
        running.report_awaited(machine);
        running
    }

    /// The stage that requests are judged by.
    pub(super) fn stage(&self) -> Stage {
        match &self.stop {
            Some(stop) if stop.killed => Stage::Killed(stop.goal),
            Some(stop) => Stage::Stopping(stop.goal),
            None if self.boot.state.phase == Phase::Starting => Stage::Starting,
            None => Stage::Running,
        }
    }

    /// Whether its limits are being changed.
    pub(super) fn is_changing(&self) -> bool {
        self.changing.is_some()
    }

    /// The descriptors to wait for; all of them to be read.
    pub(super) fn poll_fds(&self) -> impl Iterator<Item = (BorrowedFd<'_>, Source)> {
        let command = self.stop.as_ref().and_then(|s| s.command.as_ref());
        [(self.boot.leader.as_fd(), Source::Leader), (self.boot.notify.as_fd(), Source::Notify)]
            .into_iter()
            .chain(self.awaited.poll_fd().map(|fd| (fd, Source::Check)))
            .chain(command.map(|c| (c.poll_fd(), Source::StopCommand)))
            .chain(self.changing.as_ref().map(|c| (c.poll_fd(), Source::Limits)))
    }

    /// When [`Self::step`] has something to do in any case.
    pub(super) fn due(&self) -> Option<Instant> {
        let asking = |s: &Stopping| s.ask_at.filter(|_| s.command.is_none() && !s.killed);
        let stop = self.stop.iter().flat_map(|s| [s.deadline, asking(s)]).flatten();
        stop.chain(self.awaited.due()).min()
    }

    /// Serves one of its descriptors.
    pub(super) fn serve(&mut self, source: Source, machine: &mut Machine) {
        match source {
            // Seen to by `step`, which comes next.
            Source::Leader | Source::Check => {}
            Source::Notify => self.take_notices(machine),
            Source::StopCommand => self.step_stop_command(),
            Source::Limits => self.finish_change(machine),
        }
    }

    /// Does what is due; gives how the leader has ended, if it has.
    pub(super) fn step(&mut self, machine: &mut Machine) -> Option<Ended> {
        match process::wait_pidfd(&self.boot.leader, false) {
            Ok(None) => {
                if self.awaited.step(&self.boot.state, self.boot.leader.as_fd()) {
                    self.become_ready(machine);
                }
                self.report_awaited(machine);
                self.ask_init();
                if self.stop.as_ref().and_then(|s| s.deadline).is_some_and(|d| Instant::now() >= d) {
                    self.kill();
                }
                None
            }
            Ok(ended) => ended,
            Err(_) => Some(Ended::Killed(libc::SIGKILL)),
        }
    }

    /// Reports what is waited for, if that has changed.
    fn report_awaited(&mut self, machine: &Machine) {
        let awaited = self.awaited.describe().filter(|_| self.stop.is_none());
        if awaited == self.boot.state.waits_for {
            return;
        }
        self.boot.state.waits_for = awaited;
        machine.save(&self.boot.state);
        if let Some(text) = &self.boot.state.waits_for {
            machine.session.manager.send(&format!("STATUS=Machine starting, waits for {text}."));
        }
    }

    /// Reads the notification socket; only messages of PID 1 count.
    fn take_notices(&mut self, machine: &mut Machine) {
        let mut buffer = [0; 4096];
        while let Ok(received) = socket::receive(&self.boot.notify, &mut buffer) {
            if received.sender != Some(self.boot.state.leader) {
                continue;
            }
            let text = String::from_utf8_lossy(&buffer[..received.len]);
            let mut changed = false;
            for line in text.lines() {
                if line == "READY=1" && self.awaited.is_notice() {
                    self.become_ready(machine);
                } else if let Some(status) = line.strip_prefix("STATUS=") {
                    let clean: String = status.chars().filter(|c| !c.is_control()).take(200).collect();
                    changed |= self.boot.state.status.as_deref() != Some(&clean);
                    self.boot.state.status = Some(clean);
                }
            }
            if changed {
                machine.save(&self.boot.state);
            }
        }
    }

    fn become_ready(&mut self, machine: &mut Machine) {
        self.awaited = Awaited::Nothing;
        self.boot.state.waits_for = None;
        if self.boot.state.phase == Phase::Starting {
            self.boot.state.phase = Phase::Running;
        }
        machine.save(&self.boot.state);
        machine.session.report_ready(self.boot.state.leader);
    }

    /// Notes that an end which comes soon is intended.
    pub(super) fn expect_end(&mut self, job: &Job) {
        self.expected = Instant::now().checked_add(job.plan.exec.stop_timeout.map_or(EXPECTED, Duration::from_secs));
    }

    /// Begins to change the limits.
    pub(super) fn begin_change(&mut self, job: &Job, new: NewLimits, asker: OwnedFd) {
        let Ok(kept) = asker.try_clone() else { return };
        match Changing::begin(job, &self.boot.state, new, asker) {
            Ok(changing) => self.changing = Some(changing),
            // A client that is gone needs no answer.
            Err(e) => drop(control::send(&kept, &Answer::Refused(e.to_string()))),
        }
    }

    fn finish_change(&mut self, machine: &mut Machine) {
        if let Some(changing) = self.changing.take() {
            let answer = changing.finish(&mut machine.session.job, &mut self.boot.state);
            machine.save(&self.boot.state);
            changing.answer(&answer);
        }
    }

    /// Does what has been decided on a request for `goal`; its init may take as long as `timeout`, if that is set.
    pub(super) fn obey(&mut self, verdict: Verdict, goal: Goal, timeout: Option<Duration>, machine: &mut Machine) {
        let limit = timeout.or(machine.session.job.plan.exec.stop_timeout.map(Duration::from_secs));
        let deadline = limit.and_then(|l| Instant::now().checked_add(l));
        match verdict {
            Verdict::Accept => {
                self.begin_stop(goal, deadline, machine);
                report_stopping(goal, limit, machine);
                self.ask_init();
            }
            Verdict::Join => self.shorten(deadline),
            Verdict::Upgrade => {
                self.shorten(deadline);
                if let Some(stop) = &mut self.stop {
                    // Its init goes on as it has begun; another request would disturb it.
                    stop.goal = Goal::Poweroff;
                }
                report_stopping(Goal::Poweroff, limit, machine);
            }
            Verdict::Kill => self.kill(),
            Verdict::Ignore | Verdict::Refuse(_) => {}
        }
    }

    fn shorten(&mut self, deadline: Option<Instant>) {
        if let Some(stop) = &mut self.stop {
            stop.deadline = stop.deadline.into_iter().chain(deadline).min();
        }
    }

    fn begin_stop(&mut self, goal: Goal, deadline: Option<Instant>, machine: &Machine) {
        self.boot.state.phase = Phase::Stopping;
        if !self.awaited.is_notice() {
            // A check would be one more process to end.
            self.awaited = Awaited::Nothing;
        }
        self.boot.state.waits_for = None;
        machine.save(&self.boot.state);
        // A frozen init receives nothing.
        let _ = cgroup::freeze(&self.boot.state.cgroup, false);
        let ask_at = Some(Instant::now());
        self.stop = Some(Stopping { asked: goal, goal, deadline, ask_at, command: None, killed: false });
    }

    /// Asks the init, or notes when to try again: one that has just begun does not listen yet.
    fn ask_init(&mut self) {
        let now = Instant::now();
        let due = |s: &&Stopping| s.command.is_none() && !s.killed && s.ask_at.is_some_and(|at| at <= now);
        let Some(goal) = self.stop.as_ref().filter(due).map(|s| s.asked) else { return };
        let state = &self.boot.state;
        let (command, wait) = match stop::way(state.init_kind, goal) {
            Way::Signal(signal) => {
                // Ended already: the loop is about to see it.
                let _ = process::pidfd_send_signal(&self.boot.leader, signal);
                (None, SIGNAL_AGAIN)
            }
            Way::Init(argument) => {
                let init = state.init.as_deref().unwrap_or("/sbin/init");
                (self.start_command(&[init, argument]), COMMAND_AGAIN)
            }
            Way::Client(argv) => (self.start_command(argv), NOT_LISTENING),
        };
        if let Some(stop) = &mut self.stop {
            stop.command = command;
            // The stub of a command misses nothing, and many programs take a second SIGTERM for "at once".
            stop.ask_at = self.boot.state.init.is_some().then(|| now + wait);
        }
    }

    fn start_command(&self, argv: &[&str]) -> Option<enter::Running> {
        let state = &self.boot.state;
        let (rights, group) = (state.rights(), state.payload_group());
        let target = state.target(self.boot.leader.as_fd(), &group, &rights);
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
                if matches!(stop::way(self.boot.state.init_kind, stop.asked), Way::Client(_)) {
                    stop.ask_at = Some(Instant::now() + CLIENT_AGAIN);
                }
            }
            // Its socket or FIFO is not there yet.
            Ok(Some(_)) | Err(_) => stop.ask_at = Some(Instant::now() + NOT_LISTENING),
        }
        stop.command = None;
    }

    fn kill(&mut self) {
        if let Some(stop) = &mut self.stop {
            stop.killed = true;
            stop.deadline = None;
        }
        self.boot.kill();
    }

    /// What the leader's end means, and the last state.
    pub(super) fn end(self, ended: Ended) -> (Exit, State) {
        let out_of_memory = cgroup::ran_out_of_memory(&self.boot.state.cgroup);
        let expected = self.expected.is_some_and(|until| Instant::now() <= until);
        // A stop wins over a reboot from inside.
        let reboots = judge(self.stage(), Request::GuestReboot) == Verdict::Accept;
        let killed = self.stop.as_ref().is_some_and(|s| s.killed);
        let goal = self.stop.as_ref().map(|s| s.goal);
        let reboot_asked = goal == Some(Goal::Reboot);
        let no_init = self.boot.state.init_kind.is_none();
        let (status, reboot) = match ended {
            // reboot(2) in a pid namespace: the kernel kills PID 1 by one of these two.
            Ended::Killed(libc::SIGHUP) => (0, reboots),
            Ended::Killed(libc::SIGINT) => (0, false),
            Ended::Killed(_) if killed => (if reboot_asked { 0 } else { 137 }, reboot_asked),
            Ended::Killed(signal) => (u8::try_from(128 + signal).unwrap_or(255), false),
            // A command cannot ask for a reboot by itself, so ours is done when it has ended.
            Ended::Exited(_) if no_init && reboot_asked => (0, true),
            Ended::Exited(code) => (code, false),
        };
        let end = match ended {
            Ended::Killed(libc::SIGHUP) if reboots => End::Reboot,
            Ended::Killed(libc::SIGHUP | libc::SIGINT) => End::Poweroff,
            Ended::Killed(signal) => End::Killed(signal),
            Ended::Exited(code) => End::Exited(code),
        };
        // One that was to reboot and crashes on the way there has crashed.
        let asked = goal == Some(Goal::Poweroff) || expected;
        (Exit { end, status, reboot, asked, killed, out_of_memory, gave_up: None }, self.boot.state)
    }
}

/// Reports to the service manager what is under way.
fn report_stopping(goal: Goal, limit: Option<Duration>, machine: &Machine) {
    machine.session.manager.send(&match goal {
        Goal::Poweroff => {
            // The service manager's own limit must not be shorter than the machine's.
            let time = limit.unwrap_or(FOR_EVER).min(FOR_EVER).saturating_add(LAST_STEPS).as_micros();
            format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={time}\nSTATUS=Machine stopping.")
        }
        // This process goes on, so for its manager nothing stops.
        Goal::Reboot => "STATUS=Machine rebooting.".to_owned(),
    });
}
