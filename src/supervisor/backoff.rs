//! The delay between the end of a machine and its next start.

use std::time::{Duration, Instant};

use super::requests::{Goal, Verdict};
use crate::running::restart::Exit;

/// A machine that has ended by itself and is about to be started again.
#[derive(Debug)]
pub(super) struct Backoff {
    exit: Exit,
    next: Next,
}

#[derive(Debug)]
enum Next {
    /// It is started again then; `None` is too far away to be expressed.
    Start(Option<Instant>),
    /// It is not started again.
    Nothing,
}

/// What follows when a delay is over.
#[derive(Debug)]
pub(super) enum After {
    /// Another start; `killed` if the end before was our kill.
    Start { killed: bool },
    /// The end, as a request has it.
    End(Exit),
}

impl Backoff {
    /// Begins; the machine is to be started again after `delay`.
    pub(super) fn new(exit: Exit, delay: Duration) -> Self {
        Self { exit, next: Next::Start(Instant::now().checked_add(delay)) }
    }

    /// When it is over if nothing happens.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.next {
            Next::Start(at) => at,
            Next::Nothing => None,
        }
    }

    /// Does what has been decided on a request for `goal`.
    pub(super) fn obey(&mut self, verdict: Verdict, goal: Goal) {
        if verdict == Verdict::Accept {
            self.next = match goal {
                Goal::Poweroff => Next::Nothing,
                Goal::Reboot => Next::Start(Some(Instant::now())),
            };
        }
    }

    /// Goes on if the delay is over.
    pub(super) fn step(self) -> Result<After, Self> {
        match self.next {
            Next::Start(at) if at.is_none_or(|at| at > Instant::now()) => Err(self),
            Next::Start(_) => Ok(After::Start { killed: self.exit.killed }),
            // The request has been carried out, which is no failure.
            Next::Nothing => Ok(After::End(Exit { status: 0, asked: true, ..self.exit })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::running::restart::End;

    #[test]
    fn a_delay_ends_by_time_by_a_reboot_or_by_a_stop() {
        let begin = |delay| Backoff::new(Exit::unasked(End::Exited(3)), delay);
        assert!(matches!(begin(Duration::ZERO).step(), Ok(After::Start { killed: false })));
        let mut long = begin(Duration::from_secs(3600)).step().expect_err("not over");
        long.obey(Verdict::Ignore, Goal::Poweroff);
        let mut long = long.step().expect_err("not over");
        long.obey(Verdict::Accept, Goal::Reboot);
        assert!(matches!(long.step(), Ok(After::Start { .. })));
        let mut endless = begin(Duration::MAX);
        assert_eq!(endless.due(), None);
        endless.obey(Verdict::Accept, Goal::Poweroff);
        let After::End(exit) = endless.step().expect("over") else { panic!("started again") };
        assert_eq!((exit.status, exit.asked, exit.end), (0, true, End::Exited(3)));
    }
}
