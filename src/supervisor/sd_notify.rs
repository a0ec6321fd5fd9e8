//! What we say to the service manager whose unit we are the main process of (`sd_notify(3)`); nothing elsewhere.

use std::time::{Duration, Instant};

use crate::sys::socket;

/// The service manager, as the environment describes it.
#[derive(Debug, Default)]
pub(super) struct ServiceManager {
    address: Option<String>,
    watchdog: Option<Interval>,
}

/// Something to be said again and again.
#[derive(Debug)]
struct Interval {
    every: Duration,
    next: Instant,
}

impl Interval {
    fn new(every: Duration) -> Self {
        Self { every, next: Instant::now() }
    }

    /// Whether it is over; then the next one begins.
    fn is_due(&mut self, now: Instant) -> bool {
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
        Self { address: get("NOTIFY_SOCKET"), watchdog: every.map(Interval::new) }
    }

    /// Whether there is one.
    pub(super) fn is_there(&self) -> bool {
        self.address.is_some()
    }

    pub(super) fn send(&self, text: &str) {
        if let Some(address) = &self.address {
            // It may have gone; the machine does not depend on it.
            let _ = socket::notify(address, text);
        }
    }

    /// When [`Self::watchdog_tick`] has something to say.
    pub(super) fn due(&self) -> Option<Instant> {
        self.address.as_ref()?;
        self.watchdog.as_ref().map(|interval| interval.next)
    }

    /// Says what is due.
    pub(super) fn watchdog_tick(&mut self) {
        let now = Instant::now();
        if self.watchdog.as_mut().is_some_and(|interval| interval.is_due(now)) {
            self.send("WATCHDOG=1");
        }
    }
}

/// Whether we are a unit's main process that a service manager listens to.
pub fn has_manager() -> bool {
    ServiceManager::of_environment().is_there()
}

/// Shows a line of text as the status of the unit whose main process we are, if there is one.
pub fn tell_manager(status: &str) {
    ServiceManager::of_environment().send(&format!("STATUS={status}"));
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
    fn an_interval_is_due_once_in_its_time() {
        let mut interval = Interval::new(Duration::from_secs(60));
        let now = Instant::now();
        assert!(interval.is_due(now));
        assert!(!interval.is_due(now + Duration::from_secs(59)));
        assert!(interval.is_due(now + Duration::from_secs(60)));
    }
}
