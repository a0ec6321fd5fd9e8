//! What we say to the service manager whose unit we are the main process of (`sd_notify(3)`); nothing elsewhere.

use std::time::{Duration, Instant};

use crate::sys::socket;

/// The service manager, as the environment tells of it.
#[derive(Debug, Default)]
pub(super) struct ServiceManager {
    address: Option<String>,
    watchdog: Option<Beat>,
}

/// Something to be said again and again.
#[derive(Debug)]
struct Beat {
    every: Duration,
    next: Instant,
}

impl Beat {
    fn new(every: Duration) -> Self {
        Self { every, next: Instant::now() }
    }

    /// Whether it is time; then not again for a while.
    fn strikes(&mut self, now: Instant) -> bool {
        let due = self.next <= now;
        if due {
            self.next = now + self.every;
        }
        due
    }
}

/// Half the interval at which systemd wants a sign of life, if it wants one of the process `pid` (`sd_watchdog_enabled(3)`).
fn watchdog(microseconds: Option<&str>, of: Option<&str>, pid: u32) -> Option<Duration> {
    let interval: u64 = microseconds?.parse().ok().filter(|us| *us > 0)?;
    of.is_none_or(|of| of.parse() == Ok(pid)).then(|| Duration::from_micros(interval) / 2)
}

impl ServiceManager {
    pub(super) fn of_environment() -> Self {
        let get = |key| std::env::var(key).ok();
        let every = watchdog(get("WATCHDOG_USEC").as_deref(), get("WATCHDOG_PID").as_deref(), std::process::id());
        Self { address: get("NOTIFY_SOCKET"), watchdog: every.map(Beat::new) }
    }

    pub(super) fn tell(&self, text: &str) {
        if let Some(address) = &self.address {
            // It may have gone; the machine does not depend on it.
            let _ = socket::notify(address, text);
        }
    }

    /// When [`Self::beat`] has something to say.
    pub(super) fn due(&self) -> Option<Instant> {
        self.address.as_ref()?;
        self.watchdog.as_ref().map(|beat| beat.next)
    }

    /// Says what is due.
    pub(super) fn beat(&mut self) {
        let now = Instant::now();
        if self.watchdog.as_mut().is_some_and(|beat| beat.strikes(now)) {
            self.tell("WATCHDOG=1");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_answered_twice_as_often_as_asked_and_by_whom_it_is_meant_for() {
        let second = Some(Duration::from_millis(500));
        assert_eq!(watchdog(Some("1000000"), Some("7"), 7), second);
        assert_eq!(watchdog(Some("1000000"), None, 7), second);
        assert_eq!(watchdog(Some("1000000"), Some("8"), 7), None);
        assert_eq!(watchdog(Some("0"), None, 7), None);
        assert_eq!(watchdog(Some("soon"), None, 7), None);
        assert_eq!(watchdog(None, Some("7"), 7), None);
    }

    #[test]
    fn a_beat_strikes_once_in_its_time() {
        let mut beat = Beat::new(Duration::from_secs(60));
        let now = Instant::now();
        assert!(beat.strikes(now));
        assert!(!beat.strikes(now + Duration::from_secs(59)));
        assert!(beat.strikes(now + Duration::from_secs(60)));
    }
}
