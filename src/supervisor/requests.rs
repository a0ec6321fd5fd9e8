//! Which requests a machine accepts at which stage of its life. Pure, and the only place that decides it.
//!
//! Everything that can reach a supervisor is a row: what comes through the control socket, signals, the keys that leave
//! the console, and the reboot that an init asks the kernel for. A `kill`, `freeze` or `thaw` that goes through the
//! supervisor becomes one more row here, and the test below asks for its cells.

use crate::running::control;
pub(super) use crate::running::stop::Goal;

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its processes exist and wait for the start.
    Created,
    /// Its init has begun.
    Starting,
    /// It is ready.
    Running,
    /// Its init has been asked to end, for this.
    Stopping(Goal),
    /// It has been killed, and its end is awaited.
    Killed(Goal),
    /// It has ended by itself and will be started again after a delay.
    Backoff,
}

/// What reaches the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// Become a viewer of the console.
    Console,
    /// Stop in order.
    Stop,
    /// Stop in order and start again.
    Reboot,
    /// Change the limits.
    Limit,
    /// The same while another change is being made.
    SecondLimit,
    /// Announces that an end is intended.
    Expect,
    /// SIGTERM, SIGINT, SIGHUP or SIGQUIT.
    Signal,
    /// The signal by which systemd stops every process of a scope.
    ScopeStop,
    /// The keys that leave an interactive console.
    Leave,
    /// The init has asked the kernel for a reboot.
    GuestReboot,
}

impl Request {
    /// What came through the control socket; `changing` says that limits are being changed.
    pub(super) fn of(request: &control::Request, changing: bool) -> Self {
        match request {
            control::Request::Console => Self::Console,
            control::Request::Stop { .. } => Self::Stop,
            control::Request::Reboot => Self::Reboot,
            control::Request::Limit(_) if changing => Self::SecondLimit,
            control::Request::Limit(_) => Self::Limit,
            control::Request::Expect => Self::Expect,
        }
    }
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is carried out.
    Accept,
    /// It is under way already; a shorter limit of time counts.
    Join,
    /// The reboot that is under way becomes a poweroff.
    Upgrade,
    /// The machine is killed at once.
    Kill,
    /// Nothing happens.
    Ignore,
    /// It is refused, for this reason.
    Refuse(&'static str),
}

const SHUTTING_DOWN: &str = "the machine is shutting down";
const NOT_STARTED: &str = "it has not been started yet";
const BACKOFF: &str = "it has ended and is about to be started again";
const CHANGING: &str = "its limits are already being changed";

/// Decides on a request.
pub(super) fn judge(stage: Stage, request: Request) -> Verdict {
    use Goal::{Poweroff, Reboot};
    use Stage::{Backoff, Created, Killed, Running, Starting, Stopping};
    use Verdict::{Accept, Ignore, Join, Kill, Refuse, Upgrade};
    match (request, stage) {
        (Request::Console, _) => Accept,

        // There is no init to ask yet.
        (Request::Stop | Request::Signal | Request::Leave | Request::ScopeStop, Created) => Kill,
        (Request::Reboot | Request::Limit | Request::SecondLimit, Created) => Refuse(NOT_STARTED),
        // An end then is not followed by another start anyway.
        (Request::Expect | Request::GuestReboot, Created) => Ignore,

        (Request::Stop, Starting | Running | Backoff) => Accept,
        (Request::Stop, Stopping(Poweroff) | Killed(Poweroff)) => Join,

        (Request::Reboot, Starting | Running | Backoff) => Accept,
        (Request::Reboot, Stopping(Reboot) | Killed(Reboot)) => Join,
        (Request::Reboot, Stopping(Poweroff) | Killed(Poweroff)) => Refuse(SHUTTING_DOWN),

        (Request::Limit | Request::SecondLimit, Backoff) => Refuse(BACKOFF),
        (Request::SecondLimit, _) => Refuse(CHANGING),
        (Request::Limit, _) => Accept,

        (Request::Expect, _) => Accept,

        (Request::Signal | Request::Leave | Request::ScopeStop, Starting | Running | Backoff) => Accept,
        // Asked twice: now.
        (Request::Signal | Request::Leave, Stopping(Poweroff)) => Kill,
        (Request::ScopeStop, Stopping(Poweroff)) => Ignore,
        (Request::Signal | Request::Leave | Request::ScopeStop, Killed(Poweroff)) => Ignore,

        // A stop wins over a reboot.
        (Request::Stop | Request::Signal | Request::Leave | Request::ScopeStop, Stopping(Reboot) | Killed(Reboot)) => {
            Upgrade
        }
        (Request::GuestReboot, Starting | Running | Stopping(Reboot) | Killed(Reboot)) => Accept,
        (Request::GuestReboot, Stopping(Poweroff) | Killed(Poweroff) | Backoff) => Ignore,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_of_the_table() {
        use Goal::{Poweroff, Reboot};
        use Verdict::{Accept, Ignore, Join, Kill, Refuse, Upgrade};
        const STAGES: [Stage; 8] = [
            Stage::Created,
            Stage::Starting,
            Stage::Running,
            Stage::Stopping(Poweroff),
            Stage::Stopping(Reboot),
            Stage::Killed(Poweroff),
            Stage::Killed(Reboot),
            Stage::Backoff,
        ];
        let down = Refuse("the machine is shutting down");
        let busy = Refuse("its limits are already being changed");
        let soon = Refuse("it has not been started yet");
        let over = Refuse("it has ended and is about to be started again");
        #[rustfmt::skip]
        let table = [
            //                      created starting running poweroff reboot   killed  killed    backoff
            //                                                                 (off)   (reboot)
            (Request::Console,     [Accept, Accept,  Accept, Accept,  Accept,  Accept, Accept,   Accept]),
            (Request::Stop,        [Kill,   Accept,  Accept, Join,    Upgrade, Join,   Upgrade,  Accept]),
            (Request::Reboot,      [soon,   Accept,  Accept, down,    Join,    down,   Join,     Accept]),
            (Request::Limit,       [soon,   Accept,  Accept, Accept,  Accept,  Accept, Accept,   over]),
            (Request::SecondLimit, [soon,   busy,    busy,   busy,    busy,    busy,   busy,     over]),
            (Request::Expect,      [Ignore, Accept,  Accept, Accept,  Accept,  Accept, Accept,   Accept]),
            (Request::Signal,      [Kill,   Accept,  Accept, Kill,    Upgrade, Ignore, Upgrade,  Accept]),
            (Request::ScopeStop,   [Kill,   Accept,  Accept, Ignore,  Upgrade, Ignore, Upgrade,  Accept]),
            (Request::Leave,       [Kill,   Accept,  Accept, Kill,    Upgrade, Ignore, Upgrade,  Accept]),
            (Request::GuestReboot, [Ignore, Accept,  Accept, Ignore,  Accept,  Ignore, Accept,   Ignore]),
        ];
        for (request, row) in table {
            for (stage, verdict) in STAGES.into_iter().zip(row) {
                assert_eq!(judge(stage, request), verdict, "{request:?} while {stage:?}");
            }
        }
    }
}
