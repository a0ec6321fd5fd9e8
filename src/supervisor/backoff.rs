//! Between the end of a machine and its next start: a poll loop without a machine.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;

use super::console::{Event, Token};
use super::event_loop::{Ended, UNPOLLED, poll_sources};
use super::requests::{Request, Stage, Verdict, judge};
use crate::running::control::{self, Answer, Callers};

/// A machine that is about to be started again.
#[derive(Debug)]
pub(super) struct Pause {
    ended: Ended,
    /// `None` where that is too far away to be told.
    until: Option<Instant>,
    callers: Callers,
    /// Somebody wants it not to be started again.
    stopped: bool,
}

/// Which descriptor a poll result belongs to.
#[derive(Debug, Clone, Copy)]
enum Source {
    Signals,
    Listener,
    Caller(usize),
    Console(Token),
}

impl Pause {
    /// Begins; the machine is to be started again after `delay`.
    pub(super) fn new(ended: Ended, delay: Duration) -> Self {
        Self { ended, until: Instant::now().checked_add(delay), callers: Callers::default(), stopped: false }
    }

    /// Back with the machine when the time is up, or with false when somebody has stopped it.
    pub(super) fn wait(mut self, signals: &SignalFd) -> (Ended, bool) {
        loop {
            let Ok(ready) = self.poll(signals.as_fd()) else {
                std::thread::sleep(UNPOLLED);
                continue;
            };
            for (source, flags) in ready {
                match source {
                    Source::Signals => self.take_signals(signals),
                    Source::Listener => self.callers.admit(&self.ended.prepared.control),
                    Source::Caller(index) => self.hear(index),
                    Source::Console(token) => self.serve_console(token, flags),
                }
            }
            self.callers.tidy();
            self.ended.prepared.manager.beat();
            if self.stopped {
                return (self.ended, false);
            }
            if self.until.is_some_and(|until| until <= Instant::now()) {
                return (self.ended, true);
            }
        }
    }

    fn poll(&self, signals: BorrowedFd<'_>) -> nix::Result<Vec<(Source, PollFlags)>> {
        let prepared = &self.ended.prepared;
        let read = PollFlags::POLLIN;
        let mut list = vec![(signals, read, Source::Signals), (prepared.control.as_fd(), read, Source::Listener)];
        list.extend(self.callers.poll_fds().map(|(fd, index)| (fd, read, Source::Caller(index))));
        list.extend(prepared.console_fds().map(|(fd, flags, token)| (fd, flags, Source::Console(token))));
        let at = self.until.into_iter().chain(prepared.manager.due()).min();
        poll_sources(&list, at.map(|at| at.saturating_duration_since(Instant::now())))
    }

    fn take_signals(&mut self, fd: &SignalFd) {
        while let Ok(Some(info)) = fd.read_signal() {
            self.stopped |= info.ssi_signo != Signal::SIGWINCH as u32;
        }
    }

    fn hear(&mut self, index: usize) {
        let Some((request, connection)) = self.callers.hear(index) else { return };
        // Whoever went away does not need it.
        let answer = |connection: &_, answer| drop(control::send(connection, &answer));
        if let Verdict::Refuse(why) = judge(Stage::Backoff, Request::of(&request, false)) {
            return answer(&connection, Answer::Refused(why.into()));
        }
        if request == control::Request::Console {
            if let Some(console) = &mut self.ended.prepared.console {
                // A viewer that cannot be served has its connection closed.
                let _ = console.add_viewer(connection);
            }
            return;
        }
        answer(&connection, Answer::Accepted);
        match request {
            control::Request::Reboot => {
                self.ended.prepared.wait_for_boot.push(connection);
                self.until = Some(Instant::now());
            }
            control::Request::Stop { .. } => {
                self.ended.waiting.push(connection);
                self.stopped = true;
            }
            // There is nothing left to end but this.
            control::Request::Expect | control::Request::Console | control::Request::Limit(_) => self.stopped = true,
        }
    }

    fn serve_console(&mut self, token: Token, flags: PollFlags) {
        let console = self.ended.prepared.console.as_mut();
        if console.and_then(|console| console.handle(token, flags)) == Some(Event::Leave) {
            self.stopped = true;
        }
    }
}
