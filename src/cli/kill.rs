//! `kill`, `freeze` and `thaw`: what is done to a machine's processes without its init.

use clap::Args;

use crate::cgroup;
use crate::ops::Ops;
use crate::report::OpError;
use crate::running::control;
use crate::running::state::Phase;
use crate::running::stop;
use crate::sys::process;

#[derive(Debug, Args)]
pub(crate) struct KillArguments {
    /// Machines
    #[arg(required = true, value_name = "NAME")]
    pub(super) names: Vec<String>,
    /// Signal to send, by name or number
    #[arg(long, short, default_value = "SIGKILL", value_parser = parse_signal)]
    pub(super) signal: i32,
    /// Send it only to the machine's PID 1 instead of every process
    #[arg(long)]
    pub(super) leader: bool,
}

/// Reads a signal's number or name, with or without `SIG`, real-time ones as `RTMIN+4`.
pub(super) fn parse_signal(text: &str) -> Result<i32, String> {
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = bare.strip_prefix("RTMIN") {
        let offset = if offset.is_empty() { Some(0) } else { offset.strip_prefix('+').and_then(|o| o.parse().ok()) };
        return match offset {
            Some(n) if (0..=libc::SIGRTMAX() - libc::SIGRTMIN()).contains(&n) => Ok(libc::SIGRTMIN() + n),
            _ => Err(format!("there is no signal '{text}'")),
        };
    }
    if let Ok(number) = bare.parse::<i32>() {
        return if (1..=libc::SIGRTMAX()).contains(&number) {
            Ok(number)
        } else {
            Err(format!("there is no signal {number}"))
        };
    }
    let signal = format!("SIG{bare}").parse::<nix::sys::signal::Signal>();
    signal.map(|s| s as i32).map_err(|_| format!("there is no signal '{text}'"))
}

/// `machinist kill`
pub(super) fn kill(ops: &Ops, name: &str, signal: i32, leader: bool) -> Result<(), OpError> {
    let (name, state) = ops.running(name)?;
    // Whatever happens then is no reason to start the machine again.
    if stop::is_end(state.init_kind, signal) {
        control::announce(ops.layout(), &name);
        if state.phase == Phase::Restarting {
            return Ok(());
        }
    }
    let result = if leader {
        state.open_leader().and_then(|fd| process::pidfd_send_signal(fd, signal))
    } else if signal == libc::SIGKILL {
        cgroup::kill_payload(&state.cgroup)
    } else {
        cgroup::signal_payload(&state.cgroup, signal)
    };
    result.map_err(|e| OpError::call(format!("cannot signal machine '{name}'"), &e))
}

/// `machinist freeze` and `thaw`
pub(super) fn freeze(ops: &Ops, name: &str, frozen: bool) -> Result<(), OpError> {
    let (name, state) = ops.running(name)?;
    let verb = if frozen { "freeze" } else { "thaw" };
    cgroup::freeze(&state.cgroup, frozen).map_err(|e| OpError::call(format!("cannot {verb} machine '{name}'"), &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_by_name_and_number() {
        for (text, number) in
            [("9", 9), ("SIGTERM", 15), ("term", 15), ("RTMIN+4", libc::SIGRTMIN() + 4), ("SIGRTMIN", libc::SIGRTMIN())]
        {
            assert_eq!(parse_signal(text), Ok(number), "{text}");
        }
        for text in ["0", "99", "-1", "NOPE", "RTMIN+99", "RTMIN-1", ""] {
            assert!(parse_signal(text).is_err(), "{text}");
        }
    }
}
