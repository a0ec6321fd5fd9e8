//! Who does an operation, decided here and nowhere else.

use crate::host;
use crate::spec::Layout;

/// Set by the daemon for the verbs that it runs, which must not ask it again.
const BY_DAEMON: &str = "MACHINIST_BY_DAEMON";

/// Who does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// This process.
    Here,
    /// The daemon, if it is there.
    Daemon,
    /// systemd, if it has the unit.
    Systemd,
}

/// What the decision depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// We are root of this host and may do everything ourselves.
    pub root: bool,
    /// The daemon may be asked: we do not run for it, and have not found that it is absent.
    pub daemon: bool,
    /// Machines are units on this host.
    pub systemd: bool,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Machines, with what they need.
    Start {
        /// By name, not a file or whatever starts with the host.
        named: bool,
    },
    /// One machine, when its turn has come.
    StartOne {
        /// By name, not a file, which is the caller's own business.
        named: bool,
        /// What it needs has been seen to by the caller.
        alone: bool,
        /// Until it is ready.
        wait: bool,
    },
    /// Machines, after those that require them.
    Stop {
        /// By name, not all.
        named: bool,
    },
    /// One machine, when its turn has come.
    StopOne {
        /// It is a unit of its own.
        unit: bool,
        /// Its own limit is replaced, which only its supervisor can be told.
        timeout: bool,
    },
    /// Restart a machine.
    Reboot,
    /// Change limits.
    Set,
    /// Have it start with the host, or not.
    Enable,
    /// List, status, statistics.
    Look,
    /// A command in a machine.
    Exec {
        /// On a terminal, which is not passed on.
        terminal: bool,
    },
    /// A login in a machine.
    Login {
        /// It is a machine of ours that runs.
        ours: bool,
    },
}

/// Whether machines are units of systemd here; the template of these may still be missing.
pub fn systemd_carries(layout: &Layout) -> bool {
    layout.is_host() && host::systemd_runs()
}

impl Facts {
    /// The facts of this process.
    pub fn of_process(layout: &Layout) -> Self {
        let daemon = std::env::var_os(BY_DAEMON).is_none();
        Self { root: nix::unistd::geteuid().is_root(), daemon, systemd: systemd_carries(layout) }
    }

    /// Who does this first. If the daemon or systemd turn out not to be there, it is asked again with facts that say so.
    pub fn via(self, verb: Verb) -> Via {
        let Self { root, daemon, systemd } = self;
        match verb {
            Verb::StartOne { named: true, alone: false, .. } if systemd => Via::Systemd,
            Verb::StartOne { named: true, wait: true, .. } if daemon => Via::Daemon,
            Verb::StopOne { unit: true, timeout: false } if systemd => Via::Systemd,
            // Root's verbs do it all the same where the daemon does not run.
            Verb::Reboot if daemon => Via::Daemon,
            Verb::Start { named: true }
            | Verb::Stop { named: true }
            | Verb::Set
            | Verb::Look
            | Verb::Exec { terminal: false }
                if daemon && !root =>
            {
                Via::Daemon
            }
            // Users other than root ask the daemon, which stands in for systemd where that does not run.
            Verb::Enable if systemd || !root => Via::Systemd,
            Verb::Login { ours } if !(root && ours) => Via::Daemon,
            _ => Via::Here,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_what() {
        use Via::{Daemon as D, Here as H, Systemd as S};
        let one = |named, alone, wait| Verb::StartOne { named, alone, wait };
        let stop = |unit, timeout| Verb::StopOne { unit, timeout };
        // Root: alone, with a daemon, with systemd, with both; another user: alone, with a daemon, with both.
        let table = [
            (Verb::Start { named: true }, [H, H, H, H, H, D, D]),
            (Verb::Start { named: false }, [H, H, H, H, H, H, H]),
            (one(true, false, true), [H, D, S, S, H, D, S]),
            (one(true, false, false), [H, H, S, S, H, H, S]),
            (one(true, true, true), [H, D, H, D, H, D, D]),
            (one(false, false, true), [H, H, H, H, H, H, H]),
            (Verb::Stop { named: true }, [H, H, H, H, H, D, D]),
            (Verb::Stop { named: false }, [H, H, H, H, H, H, H]),
            (stop(true, false), [H, H, S, S, H, H, S]),
            (stop(true, true), [H, H, H, H, H, H, H]),
            (stop(false, false), [H, H, H, H, H, H, H]),
            (Verb::Reboot, [H, D, H, D, H, D, D]),
            (Verb::Set, [H, H, H, H, H, D, D]),
            (Verb::Look, [H, H, H, H, H, D, D]),
            (Verb::Enable, [H, H, S, S, S, S, S]),
            (Verb::Exec { terminal: false }, [H, H, H, H, H, D, D]),
            (Verb::Exec { terminal: true }, [H, H, H, H, H, H, H]),
            (Verb::Login { ours: true }, [H, H, H, H, D, D, D]),
            (Verb::Login { ours: false }, [D, D, D, D, D, D, D]),
        ];
        let cases = [
            (true, false, false),
            (true, true, false),
            (true, false, true),
            (true, true, true),
            (false, false, false),
            (false, true, false),
            (false, true, true),
        ];
        for (verb, expected) in table {
            let got = cases.map(|(root, daemon, systemd)| Facts { root, daemon, systemd }.via(verb));
            assert_eq!(got, expected, "{verb:?}");
        }
    }
}
