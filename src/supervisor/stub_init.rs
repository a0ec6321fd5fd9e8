//! The stub PID 1 of machines that run a command instead of an init: it reaps, passes signals on, and ends
//! with the command's status.

use std::os::fd::{AsFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::stdio::{stderr, stdin, stdout};

use super::handshake::{self, FromChild, Sequence};
use super::setup::{Program, Setup, become_payload, limit, report};
use crate::plan::Stdio;
use crate::sys::worker::{self, Worker};
use crate::sys::{Context as _, Doing as _, StepError, process};

/// Signals that end a command; all others keep their meaning for PID 1, which is none.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Executes the program as PID 2, waits for it and gives its status.
pub(super) fn run(
    setup: &Setup<'_>,
    program: &Program,
    sequence: &mut Sequence,
    supervisor: &OwnedFd,
) -> Result<u8, StepError> {
    process::set_name(c"stub-init");
    // No process of the machine may look into the host's program.
    if process::set_undumpable().is_err() {
        return Ok(1);
    }
    let mut waited = SigSet::empty();
    PASSED_ON.iter().chain(&[Signal::SIGCHLD]).for_each(|s| waited.add(*s));
    waited.thread_block().call(|| "sigprocmask".into()).doing(|| "cannot wait for signals".into())?;
    let lost = |why: &str| {
        report(supervisor, StepError::refused(format!("the command's process panicked: {why}")));
    };
    let worker = Worker::unnamed(c"command").on_panic(&lost);
    let command = worker.spawn(|| report(supervisor, execute(setup, program)));
    let command = command.doing(|| "cannot start the command".into())?;
    if handshake::send(sequence, supervisor, &FromChild::Waiting, &[]).is_err() {
        return Ok(1);
    }
    // Nothing of the host stays open in a process of the machine, and the supervisor sees the end of file when
    // the command has been executed.
    if process::close_all_except(&[stdin(), stdout(), stderr(), command.as_fd()]).is_err() || limit(setup).is_err() {
        return Ok(1);
    }
    worker::panic_if_asked("stub");
    loop {
        match waited.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(status) = reap(command.pid()) {
                    return Ok(status);
                }
            }
            Ok(signal) => {
                // It may have ended: then SIGCHLD comes next.
                let _ = process::pidfd_send_signal(&command, signal as i32);
            }
            Err(_) => {}
        }
    }
}

/// Reaps everything that ended; gives the command's status when it is among them.
fn reap(command: nix::unistd::Pid) -> Option<u8> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == command => {
                return Some(u8::try_from(code & 0xff).unwrap_or(255));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == command => {
                return Some(u8::try_from(128 + signal as i32).unwrap_or(255));
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return None,
            Ok(_) | Err(_) => {}
        }
    }
}

/// Executes the program; comes back only with the error.
fn execute(setup: &Setup<'_>, program: &Program) -> StepError {
    let ready = process::reset_signals(setup.signals).and_then(|()| match setup.plan.exec.stdio {
        Stdio::Console => process::take_terminal(stdin()),
        Stdio::Inherit => Ok(()),
    });
    let ready = ready.doing(|| "cannot prepare the command".into()).and_then(|()| become_payload(setup));
    ready.map_or_else(|error| error, |()| program.execute(setup))
}
