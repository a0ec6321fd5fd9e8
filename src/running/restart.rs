//! How a machine ended, and whether it is started again. Pure: the caller passes the time.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::spec::{Restart, RestartPolicy, Span};

/// What ended a payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Its init has powered it off.
    Poweroff,
    /// Its init wants it to be started again.
    Reboot,
    /// Init or command have ended with this status.
    Exited(u8),
    /// This signal.
    Killed(i32),
    /// It did not get so far; why, in one line.
    NotStarted(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Poweroff => f.write_str("was powered off from inside"),
            Self::Reboot => f.write_str("was rebooted from inside"),
            Self::Exited(status) => write!(f, "ended with status {status}"),
            Self::Killed(signal) => match Signal::try_from(*signal) {
                Ok(signal) => write!(f, "was killed by {signal}"),
                Err(_) => write!(f, "was killed by signal {signal}"),
            },
            Self::NotStarted(why) => write!(f, "could not be started: {why}"),
        }
    }
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// What ended its payload.
    pub end: End,
    /// Exit status for the caller.
    pub status: u8,
    /// It is to be started again without further questions.
    pub reboot: bool,
    /// Its end was requested.
    pub asked: bool,
    /// It did not end by itself in time and was killed by its supervisor.
    pub killed: bool,
    /// Processes of it were killed because its memory was used up.
    pub out_of_memory: bool,
    /// Why it is not started again, although its definition asks for it.
    pub gave_up: Option<String>,
}

impl Exit {
    /// An end that was not requested.
    pub fn unasked(end: End) -> Self {
        Self { end, status: 1, reboot: false, asked: false, killed: false, out_of_memory: false, gave_up: None }
    }

    /// What happened, to follow the machine's name.
    pub fn reason(&self) -> String {
        let killed = Signal::SIGKILL as i32;
        let by_kill = match self.end {
            End::Killed(signal) => signal == killed,
            // A command's end by a signal, as reported by the process that waited for it.
            End::Exited(status) => i32::from(status) == 128 + killed,
            _ => false,
        };
        if self.out_of_memory && by_kill { format!("{}, out of memory", self.end) } else { self.end.to_string() }
    }

    fn is_failure(&self) -> bool {
        match self.end {
            End::Poweroff | End::Reboot | End::Exited(0) => false,
            End::Exited(_) | End::Killed(_) | End::NotStarted(_) => true,
        }
    }
}

/// What follows the end of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Nothing: its definition does not say otherwise, or the end was requested.
    Over,
    /// Nothing, because this has happened too often; in words.
    GiveUp(String),
    /// Another start after this time.
    After(Duration),
}

/// What is remembered of ends that are followed by another start.
#[derive(Debug, Clone)]
pub struct History {
    policy: RestartPolicy,
    /// Those that count for the limit, oldest first.
    recent: VecDeque<Instant>,
    restarts: u32,
    last: Option<String>,
}

impl History {
    /// Nothing has happened yet.
    pub fn new(policy: RestartPolicy) -> Self {
        Self { policy, recent: VecDeque::new(), restarts: 0, last: None }
    }

    /// Takes in an end of the machine `name`, and returns what follows.
    pub fn next(&mut self, name: &str, exit: &Exit, now: Instant) -> Next {
        let wanted = match self.policy.when {
            Restart::No => false,
            Restart::OnFailure => exit.is_failure(),
            Restart::Always => true,
        };
        if exit.asked || !wanted {
            return Next::Over;
        }
        if let Some(within) = self.policy.within_ms.map(Duration::from_millis) {
            while self.recent.front().is_some_and(|then| now.duration_since(*then) >= within) {
                self.recent.pop_front();
            }
        }
        self.recent.push_back(now);
        let count = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        if count >= self.policy.count {
            return Next::GiveUp(self.farewell(name, exit));
        }
        self.restarts = self.restarts.saturating_add(1);
        self.last = Some(exit.reason());
        Next::After(Duration::from_millis(self.policy.delay_ms))
    }

    fn farewell(&self, name: &str, exit: &Exit) -> String {
        let verb = if exit.is_failure() { "failed" } else { "ended" };
        let times = if self.policy.count == 1 { "once".to_owned() } else { format!("{} times", self.policy.count) };
        let within = self
            .policy
            .within_ms
            .map_or(String::new(), |within| format!(" within {}", Span(Duration::from_millis(within))));
        format!("machine '{name}' {verb} {times}{within}; not started again")
    }

    /// Whether its definition has it started again after some ends.
    pub fn is_kept_up(&self) -> bool {
        self.policy.when != Restart::No
    }

    /// How often another start followed.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// What happened to the machine before the last of these, to follow its name.
    pub fn last(&self) -> Option<&str> {
        self.last.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn policy(when: Restart, count: u32, within: Option<u64>) -> RestartPolicy {
        RestartPolicy { when, delay_ms: 1500, count, within_ms: within.map(|s| s * 1000) }
    }

    fn exit(end: End) -> Exit {
        Exit::unasked(end)
    }

    #[test]
    fn the_policy_says_which_ends_are_followed_by_a_start() {
        let orderly = [End::Poweroff, End::Exited(0), End::Reboot];
        let failures = [End::Exited(1), End::Killed(11), End::NotStarted("no".into())];
        let follows = |when, end: &End, asked| {
            let mut history = History::new(policy(when, 2, None));
            history.next("m", &Exit { asked, ..exit(end.clone()) }, Instant::now()) != Next::Over
        };
        for end in orderly.iter().chain(&failures) {
            assert!(!follows(Restart::No, end, false), "{end}");
            assert!(follows(Restart::Always, end, false), "{end}");
            assert!(!follows(Restart::Always, end, true), "{end}");
            assert_eq!(follows(Restart::OnFailure, end, false), failures.contains(end), "{end}");
        }
    }

    #[test]
    fn the_last_of_so_many_ends_within_the_time_is_final() {
        let begin = Instant::now();
        let mut history = History::new(policy(Restart::OnFailure, 3, Some(10)));
        let mut fails_at = |at| history.next("m", &exit(End::Exited(3)), begin + seconds(at));
        let again = || Next::After(Duration::from_millis(1500));
        assert_eq!(fails_at(0), again());
        assert_eq!(fails_at(5), again());
        // The first is ten seconds ago by now.
        assert_eq!(fails_at(10), again());
        assert_eq!(fails_at(14), Next::GiveUp("machine 'm' failed 3 times within 10s; not started again".into()));
        assert_eq!((history.restarts(), history.last()), (3, Some("ended with status 3")));
    }

    #[test]
    fn without_a_time_every_end_counts() {
        let begin = Instant::now();
        let mut history = History::new(policy(Restart::Always, 2, None));
        assert_eq!(history.next("m", &exit(End::Poweroff), begin), Next::After(Duration::from_millis(1500)));
        let text = "machine 'm' ended 2 times; not started again";
        assert_eq!(history.next("m", &exit(End::Exited(0)), begin + seconds(1 << 30)), Next::GiveUp(text.into()));
    }

    #[test]
    fn a_count_of_one_starts_nothing_again() {
        let mut history = History::new(policy(Restart::OnFailure, 1, Some(300)));
        let text = "machine 'm' failed once within 5min; not started again";
        assert_eq!(history.next("m", &exit(End::Killed(9)), Instant::now()), Next::GiveUp(text.into()));
        assert_eq!((history.restarts(), history.last()), (0, None));
    }

    #[test]
    fn ends_that_were_asked_for_do_not_count() {
        let now = Instant::now();
        let mut history = History::new(policy(Restart::Always, 2, None));
        for _ in 0..5 {
            assert_eq!(history.next("m", &Exit { asked: true, ..exit(End::Exited(0)) }, now), Next::Over);
        }
        assert_eq!(history.next("m", &exit(End::Exited(0)), now), Next::After(Duration::from_millis(1500)));
    }

    #[test]
    fn an_end_is_told_in_words() {
        let table = [
            (End::Exited(3), false, "ended with status 3"),
            (End::Exited(137), true, "ended with status 137, out of memory"),
            (End::Exited(1), true, "ended with status 1"),
            (End::Killed(11), false, "was killed by SIGSEGV"),
            (End::Killed(9), true, "was killed by SIGKILL, out of memory"),
            (End::Killed(50), false, "was killed by signal 50"),
            (End::NotStarted("no tree".into()), false, "could not be started: no tree"),
        ];
        for (end, out_of_memory, text) in table {
            assert_eq!(Exit { out_of_memory, ..exit(end) }.reason(), text);
        }
    }
}
