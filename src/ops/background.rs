//! The birth of the background supervisor, and its report.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::rc::Rc;

use super::context::Ops;
use super::error;
use super::prepare::cannot_start;
use crate::report::{Line, OpError, Reader};
use crate::running::restart::Exit;
use crate::spec::MachineName;
use crate::supervisor::Prepared;
use crate::sys::worker::Worker;
use crate::sys::{self, Context as _, process};

impl Ops {
    /// Hands the machine to a supervisor of its own, born in its own control group, and waits until it says that the
    /// machine is ready.
    pub(super) fn run_in_background(&self, prepared: Prepared, alone: bool) -> Result<(), OpError> {
        let name = prepared.name().clone();
        let doing = cannot_start(&name);
        let call = |e: sys::Error| OpError::call(doing.clone(), &e);
        let mut report = match self.give_birth(prepared, &doing) {
            Ok(report) => report,
            Err(failed) => {
                let (e, prepared) = *failed;
                // The first failure is what the user needs.
                let _ = prepared.abandon();
                return Err(call(e));
            }
        };
        // The next machine's supervisor must not inherit this one's locks. Nothing else of ours is open.
        self.close_others(&[report.as_fd()])?;
        // One of several at once does not draw.
        let text = alone.then(|| format!("starting machine '{name}'"));
        let mut told = Vec::new();
        let result = self.while_busy(text, || {
            while let Some(lines) = report.read().call(|| "read".into()).map_err(call)? {
                for line in lines {
                    match line {
                        Line::Event(event) => told.push(event),
                        Line::Done => return Ok(()),
                        Line::Failed(error) => return Err(error),
                    }
                }
            }
            let hint =
                format!("the supervisor exited before the machine was ready; `machinist logs {name}` may tell why");
            Err(OpError::new(doing.clone()).hint(hint))
        });
        told.into_iter().for_each(|event| self.events.tell(event));
        result
    }

    /// Closes every file but these, standard ones and where events go.
    pub(super) fn close_others(&self, keep: &[BorrowedFd<'_>]) -> Result<(), OpError> {
        // Not held longer: a background supervisor must be able to let go of it.
        let events = self.events.descriptor();
        let keep: Vec<_> = keep.iter().copied().chain(events.iter().map(|fd| fd.as_fd())).collect();
        process::close_all_except(&keep).map_err(|e| OpError::call("cannot close the caller's files", &e))
    }

    fn give_birth(&self, prepared: Prepared, doing: &str) -> Result<Reader, Box<(sys::Error, Prepared)>> {
        let made = prepared.supervisor_group().and_then(|group| Ok((group, Reader::pipe().call(|| "pipe".into())?)));
        let (group, (report, writer)) = match made {
            Ok(made) => made,
            Err(e) => return Err(Box::new((e, prepared))),
        };
        let writer = Rc::new(writer);
        let lost =
            |why: &str| writer.finish(&Err(OpError::new(doing).cause(format!("its supervisor panicked: {why}"))));
        let worker = Worker::unnamed(c"supervisor").cgroup(Some(group.as_fd())).on_panic(&lost);
        let ((prepared, report), born) = worker.spawn_with((prepared, report), |(mut prepared, report)| {
            drop(report);
            self.events.leave();
            prepared.report_to(Rc::clone(&writer));
            // Read only while `start` waits; later it goes nowhere.
            writer.finish(&Err(supervise(prepared, doing)));
            0
        });
        match born {
            Ok(_) => {
                // Everything it holds, locks included, belongs to the supervisor now.
                std::mem::forget(prepared);
                Ok(report)
            }
            Err(e) => Err(Box::new((e, prepared))),
        }
    }
}

/// Is the background supervisor: own session, no terminal. What it gives matters while `start` waits.
fn supervise(prepared: Prepared, doing: &str) -> OpError {
    let name = prepared.name().clone();
    if nix::unistd::setsid().is_err() || !to_dev_null() {
        // What stays is removed by the next start.
        let _ = prepared.abandon();
        return OpError::new(doing).hint("cannot leave the terminal");
    }
    match prepared.run() {
        Ok(exit) => not_ready(&name, &exit),
        Err(e) => error::machine(doing, &e),
    }
}

/// What is said of a machine that has ended before it was ready.
pub(super) fn not_ready(name: &MachineName, exit: &Exit) -> OpError {
    let error = OpError::new(cannot_start(name));
    let error = match &exit.gave_up {
        Some(text) => error.cause(text.clone()).cause(format!("the last time it {}", exit.reason())),
        None if exit.asked => error.cause("it was stopped before it was ready"),
        None => error.cause(format!("it {} before it was ready", exit.reason())),
    };
    error.hint(format!("`machinist logs {name}` shows what it said"))
}

fn to_dev_null() -> bool {
    let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") else { return false };
    rustix::stdio::dup2_stdin(&null).is_ok()
        && rustix::stdio::dup2_stdout(&null).is_ok()
        && rustix::stdio::dup2_stderr(&null).is_ok()
}
