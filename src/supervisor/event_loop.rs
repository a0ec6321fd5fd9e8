//! The one poll loop of a supervisor, through all phases of its machine.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;

use super::backoff::{After, Backoff};
use super::boot;
use super::console::{Event, Token};
use super::error::MachineError;
use super::launch::{self, Created};
use super::machine::Machine;
use super::prepare::Prepared;
use super::requests::{Goal, Request, Stage, Verdict, judge};
use super::running::{self, Running};
use crate::bus::systemd1::STOP_SIGNAL;
use crate::running::control::{self, Answer};
use crate::running::restart::{End, Exit, Next};
use crate::running::state::{Phase as StatePhase, State};
use crate::spec::Span;
use crate::sys::{Doing as _, Errno, process};

/// Signals that concern the supervisor; SIGURG is [`STOP_SIGNAL`].
const SIGNALS: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGWINCH, Signal::SIGURG];

/// Pause after a poll that failed, for want of memory: without it the loop would spin.
const UNPOLLED: Duration = Duration::from_millis(100);

/// A machine that does nothing for so long gives back the memory its start needed.
const IDLE: Duration = Duration::from_millis(500);

/// How long viewers may take nothing of a machine's last output.
const DRAIN: Duration = Duration::from_millis(500);

/// Where the machine is.
#[derive(Debug)]
enum Phase {
    /// Its processes exist and wait.
    Created(Box<Created>),
    /// Its payload has been executed.
    Running(Box<Running>),
    /// It has ended by itself and will be started again.
    Backoff(Backoff),
}

impl Phase {
    fn stage(&self) -> Stage {
        match self {
            Self::Created(_) => Stage::Created,
            Self::Running(running) => running.stage(),
            Self::Backoff(_) => Stage::Backoff,
        }
    }

    fn due(&self) -> Option<Instant> {
        match self {
            Self::Created(_) => None,
            Self::Running(running) => running.due(),
            Self::Backoff(backoff) => backoff.due(),
        }
    }
}

/// Which descriptor a poll result belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    Listener,
    Caller(usize),
    Console(Token),
    Running(running::Source),
}

/// What a turn of the loop leads to.
#[derive(Debug)]
enum Turn {
    To(Phase),
    /// It is over: everything can be given back.
    Over(Exit),
}

/// A machine and what its supervisor listens to.
#[derive(Debug)]
struct EventLoop {
    signals: SignalFd,
    machine: Machine,
    /// This boot's start has given its memory back.
    trimmed: bool,
}

impl Prepared {
    /// Runs the machine until it is over; starts it again as often as it reboots, or as its definition says.
    pub fn run(self) -> Result<Exit, MachineError> {
        // Before the first child: what comes while the machine is made stops it in order afterwards.
        let signals = match process::signal_fd(&SIGNALS).doing(|| "cannot take signals".into()) {
            Ok(signals) => signals,
            Err(error) => {
                // The first failure is what the user needs.
                let _ = self.abandon();
                return Err(error.into());
            }
        };
        let (machine, created) = self.create()?;
        EventLoop { signals, machine, trimmed: false }.run(Phase::Created(Box::new(created)))
    }
}

impl EventLoop {
    fn run(mut self, mut phase: Phase) -> Result<Exit, MachineError> {
        loop {
            match self.turn(phase) {
                Ok(Turn::To(next)) => phase = next,
                Ok(Turn::Over(exit)) => return self.machine.finish(exit),
                Err(error) => {
                    // The first failure is what the user needs; what stays is removed by the next start.
                    let _ = self.machine.release();
                    return Err(error);
                }
            }
        }
    }

    /// Goes on with the phase as far as that is possible; waits once for something to happen.
    fn turn(&mut self, mut phase: Phase) -> Result<Turn, MachineError> {
        // What `run` has created is started at once.
        if !matches!(phase, Phase::Created(_)) {
            self.serve(&mut phase);
        }
        match phase {
            Phase::Created(created) => self.start(*created),
            Phase::Running(mut running) => match running.step(&mut self.machine) {
                None => Ok(Turn::To(Phase::Running(running))),
                Some(ended) => {
                    let (exit, state) = running.end(ended);
                    self.machine.session.starter.slot = None;
                    self.machine.console.drain(DRAIN);
                    self.follow(exit, state)
                }
            },
            Phase::Backoff(backoff) => match backoff.step() {
                Err(backoff) => Ok(Turn::To(Phase::Backoff(backoff))),
                Ok(After::Start { killed }) => self.boot_again(killed),
                Ok(After::End(exit)) => {
                    self.machine.session.manager.send("STOPPING=1\nSTATUS=Machine stopping.");
                    Ok(Turn::Over(exit))
                }
            },
        }
    }

    fn start(&mut self, created: Created) -> Result<Turn, MachineError> {
        match created.start() {
            Ok(boot) => {
                self.machine.session.boots = self.machine.session.boots.saturating_add(1);
                self.trimmed = false;
                Ok(Turn::To(Phase::Running(Box::new(Running::begin(boot, &mut self.machine)))))
            }
            Err(error) => self.not_started(error),
        }
    }

    /// Makes the processes of another boot.
    fn boot_again(&mut self, killed: bool) -> Result<Turn, MachineError> {
        self.machine.session.expect_boot(killed);
        let devices = self.machine.held.renew(&self.machine.session.job)?;
        match launch::create(&mut self.machine, &devices) {
            Ok(created) => Ok(Turn::To(Phase::Created(Box::new(created)))),
            Err(error) => self.not_started(error),
        }
    }

    /// A boot that fails is an end like others, except the first one, which is the caller's own business.
    fn not_started(&mut self, error: MachineError) -> Result<Turn, MachineError> {
        let Machine { held, session, .. } = &self.machine;
        if session.boots == 0 || !session.history.is_kept_up() {
            return Err(error);
        }
        let state = boot::state(held, session, 0, None, None);
        self.follow(Exit::unasked(End::NotStarted(error.whole())), state)
    }

    /// Decides what follows an end.
    fn follow(&mut self, mut exit: Exit, mut state: State) -> Result<Turn, MachineError> {
        if exit.reboot {
            return self.boot_again(exit.killed);
        }
        let name = state.name.clone();
        match self.machine.session.history.next(&name, &exit, Instant::now()) {
            Next::Over => Ok(Turn::Over(exit)),
            Next::GiveUp(text) => {
                self.machine.remark(&format!("machine '{name}' {}", exit.reason()));
                self.machine.remark(&text);
                exit.gave_up = Some(text);
                Ok(Turn::Over(exit))
            }
            Next::After(delay) => {
                let reason = exit.reason();
                self.machine.remark(&format!("machine '{name}' {reason}; started again in {}", Span(delay)));
                state.phase = StatePhase::Restarting;
                state.leader = 0;
                state.waits_for = None;
                state.restarts = self.machine.session.history.restarts();
                state.last_end = Some(reason);
                self.machine.save(&state);
                Ok(Turn::To(Phase::Backoff(Backoff::new(exit, delay))))
            }
        }
    }

    /// Waits until something happens, and serves it.
    fn serve(&mut self, phase: &mut Phase) {
        let ready = self.poll(phase).unwrap_or_else(|_| {
            // What is due and the leader's end are seen to all the same.
            std::thread::sleep(UNPOLLED);
            Vec::new()
        });
        for (source, flags) in ready {
            match source {
                Source::Signals => self.take_signals(phase),
                Source::Listener => self.machine.session.callers.accept(&self.machine.held.control),
                Source::Caller(index) => self.receive(phase, index),
                Source::Console(token) => {
                    if self.machine.console.handle(token, flags) == Some(Event::Leave) {
                        self.carry_out(phase, Request::Leave);
                    }
                }
                Source::Running(source) => {
                    if let Phase::Running(running) = phase {
                        running.serve(source, &mut self.machine);
                    }
                }
            }
        }
        let session = &mut self.machine.session;
        session.callers.tidy();
        session.manager.watchdog_tick();
        drop(session.starter.slot.take_if(|slot| slot.until <= Instant::now()));
    }

    /// Waits for anything to happen; gives what did.
    fn poll(&mut self, phase: &Phase) -> nix::Result<Vec<(Source, PollFlags)>> {
        let Machine { held, session, console } = &self.machine;
        let read = PollFlags::POLLIN;
        let mut list: Vec<(BorrowedFd<'_>, PollFlags, Source)> = Vec::with_capacity(12);
        list.push((self.signals.as_fd(), read, Source::Signals));
        if let Phase::Running(running) = phase {
            list.extend(running.poll_fds().map(|(fd, source)| (fd, read, Source::Running(source))));
        }
        list.push((held.control.as_fd(), read, Source::Listener));
        list.extend(session.callers.poll_fds().map(|(fd, index)| (fd, read, Source::Caller(index))));
        let mut terminals = Vec::new();
        console.poll_fds(&mut terminals);
        list.extend(terminals.into_iter().map(|(fd, flags, token)| (fd, flags, Source::Console(token))));

        let mut fds: Vec<PollFd<'_>> = list.iter().map(|(fd, flags, _)| PollFd::new(*fd, *flags)).collect();
        let due = phase.due().into_iter().chain(session.manager.due());
        let due = due.chain(session.starter.slot.as_ref().map(|slot| slot.until));
        let wait = due.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = wait.chain((!self.trimmed).then_some(IDLE)).min().map_or(PollTimeout::NONE, |wait| {
            PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
        let ready = fds.iter().zip(&list);
        let ready: Vec<_> =
            ready.filter_map(|(fd, (_, _, s))| Some((*s, fd.revents().filter(|r| !r.is_empty())?))).collect();
        if ready.is_empty() && !self.trimmed {
            // Nothing to do for a while: give back what the start needed.
            self.trimmed = true;
            process::trim_memory();
        }
        Ok(ready)
    }

    fn take_signals(&mut self, phase: &mut Phase) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            if info.ssi_signo == Signal::SIGWINCH as u32 {
                // A terminal that is gone has no size.
                let _ = self.machine.console.resize_to_terminal();
            } else {
                let scope = info.ssi_signo == STOP_SIGNAL.unsigned_abs();
                self.carry_out(phase, if scope { Request::ScopeStop } else { Request::Signal });
            }
        }
    }

    /// Decides on a request to end the machine that needs no answer, and does it.
    fn carry_out(&mut self, phase: &mut Phase, request: Request) {
        let verdict = judge(phase.stage(), request);
        self.obey(phase, verdict, Goal::Poweroff, None);
    }

    /// Does what has been decided on a request to end the machine.
    fn obey(&mut self, phase: &mut Phase, verdict: Verdict, goal: Goal, timeout: Option<Duration>) {
        match phase {
            Phase::Created(created) if verdict == Verdict::Kill => created.boot.kill(),
            Phase::Created(_) => {}
            Phase::Running(running) => running.obey(verdict, goal, timeout, &mut self.machine),
            Phase::Backoff(backoff) => backoff.obey(verdict, goal),
        }
    }

    /// Takes the request of the caller `index`.
    fn receive(&mut self, phase: &mut Phase, index: usize) {
        let Some((request, connection)) = self.machine.session.callers.receive(index) else { return };
        let changing = matches!(phase, Phase::Running(running) if running.is_changing());
        let verdict = judge(phase.stage(), Request::of(&request, changing));
        // A client that is gone needs no answer.
        let answer = |connection: &OwnedFd, answer| drop(control::send(connection, &answer));
        if let Verdict::Refuse(why) = verdict {
            return answer(&connection, Answer::Refused(why.into()));
        }
        match request {
            // A viewer that cannot be served has its connection closed.
            control::Request::Console => drop(self.machine.console.add_viewer(connection)),
            control::Request::Stop { timeout } => {
                answer(&connection, Answer::Accepted);
                self.machine.session.wait_for_end.push(connection);
                self.obey(phase, verdict, Goal::Poweroff, timeout);
            }
            control::Request::Reboot => {
                answer(&connection, Answer::Accepted);
                self.machine.session.wait_for_end.push(connection);
                self.obey(phase, verdict, Goal::Reboot, None);
            }
            control::Request::Limit(new) => {
                if let Phase::Running(running) = phase {
                    running.begin_change(&self.machine.session.job, *new, connection);
                }
            }
            control::Request::Expect => {
                answer(&connection, Answer::Accepted);
                match phase {
                    Phase::Running(running) => running.expect_end(&self.machine.session.job),
                    // There is nothing left to end but the delay.
                    Phase::Created(_) | Phase::Backoff(_) => self.obey(phase, verdict, Goal::Poweroff, None),
                }
            }
        }
    }
}
