//! Each init's own way to be stopped and restarted. Pure.

use crate::spec::InitKind;

/// What the machine is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// End in order.
    Poweroff,
    /// End in order and start again.
    Reboot,
}

/// How a request reaches an init.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// This signal to the leader.
    Signal(i32),
    /// The init's own program, run once more inside the machine with this argument.
    Init(&'static str),
    /// This command, run inside the machine until it succeeds, and then not soon again.
    Client(&'static [&'static str]),
}

/// The way of an init, as measured (`tests/trees/README.md`) or documented by it.
///
/// `None` stands for a command or an init we do not know: SIGTERM is what programs expect. It has no request for a
/// restart, so the supervisor stops it and starts it again.
pub fn way(kind: Option<InitKind>, goal: Goal) -> Way {
    use Goal::{Poweroff, Reboot};
    let rt = |n: i32| Way::Signal(libc::SIGRTMIN() + n);
    match (kind, goal) {
        (Some(InitKind::Systemd), Poweroff) => rt(4),
        (Some(InitKind::Systemd), Reboot) => rt(5),
        // Signals mean nothing or need lines in inittab; the init's own client always works.
        (Some(InitKind::Sysvinit | InitKind::Runit), Poweroff) => Way::Init("0"),
        (Some(InitKind::Sysvinit | InitKind::Runit), Reboot) => Way::Init("6"),
        // A signal before it has come up makes it shut down beside its own start, and services of both wait for
        // each other for a minute. Its FIFO exists only from then on; its client does not report a missing one,
        // and used again during the shutdown was seen to hang it.
        (Some(InitKind::Openrc), Poweroff) => {
            Way::Client(&["/bin/sh", "-c", "test -p /run/openrc/init.ctl && exec openrc-shutdown -p now"])
        }
        (Some(InitKind::Openrc), Reboot) => {
            Way::Client(&["/bin/sh", "-c", "test -p /run/openrc/init.ctl && exec openrc-shutdown -r now"])
        }
        // The same two signals mean the opposite for s6.
        (Some(InitKind::Busybox | InitKind::Finit), Poweroff) => Way::Signal(libc::SIGUSR2),
        (Some(InitKind::Busybox | InitKind::Finit), Reboot) => Way::Signal(libc::SIGTERM),
        (Some(InitKind::S6), Poweroff) => Way::Signal(libc::SIGUSR1),
        (Some(InitKind::S6 | InitKind::Dinit), Reboot) => Way::Signal(libc::SIGINT),
        (Some(InitKind::Dinit) | None, Poweroff) | (None, Reboot) => Way::Signal(libc::SIGTERM),
    }
}

/// Whether who sends this signal to a leader means the machine to end.
pub fn is_end(kind: Option<InitKind>, signal: i32) -> bool {
    // Halt, which ends a machine as poweroff does.
    let halt = kind == Some(InitKind::Systemd) && signal == libc::SIGRTMIN() + 3;
    signal == libc::SIGKILL || halt || way(kind, Goal::Poweroff) == Way::Signal(signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_init_is_told_to_reboot_when_it_should_stop() {
        for kind in InitKind::ALL {
            assert_ne!(way(Some(kind), Goal::Poweroff), way(Some(kind), Goal::Reboot), "{kind:?}");
        }
        assert_ne!(way(Some(InitKind::Busybox), Goal::Poweroff), Way::Signal(libc::SIGTERM));
    }

    #[test]
    fn a_signal_that_reboots_is_not_meant_to_end_a_machine() {
        assert!(is_end(None, libc::SIGKILL) && is_end(None, libc::SIGTERM));
        assert!(is_end(Some(InitKind::Systemd), libc::SIGRTMIN() + 3));
        assert!(is_end(Some(InitKind::Systemd), libc::SIGRTMIN() + 4));
        assert!(!is_end(Some(InitKind::Systemd), libc::SIGRTMIN() + 5));
        assert!(!is_end(Some(InitKind::Busybox), libc::SIGTERM));
        assert!(!is_end(None, libc::SIGHUP));
    }
}
