//! Does something to several machines in the order of a [`Schedule`], each in a process of its own.
//!
//! A start forks, takes locks that its supervisor keeps, and waits: several at once are several processes. Each reports to us
//! by lines, so that those whose turn does not come can say why.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::rc::Rc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::context::Ops;
use crate::plan::dependencies::{Schedule, Skipped};
use crate::report::{Events as _, Line, OpError, Reader};
use crate::spec::MachineName;
use crate::sys::process::Ended;
use crate::sys::worker::{Child, Worker};
use crate::sys::{self, Context as _, Errno};

/// What becomes of the machines.
pub(super) trait Work {
    /// Does it; `alone` if no other goes on meanwhile.
    fn work(&self, ops: &Ops, name: &MachineName, alone: bool) -> Result<(), OpError>;

    /// Hears that it did not work, while others go on.
    fn failed(&mut self, name: &MachineName, error: OpError);

    /// Hears that it will not be done because of another machine.
    fn skipped(&mut self, skipped: Skipped);
}

/// A child that works on a machine.
struct Job {
    reports: Reader,
    child: Child,
    /// What it has said last.
    result: Option<Result<(), OpError>>,
}

/// Goes through the schedule, working on at most `limit` machines at once.
pub(super) fn run(ops: &Ops, mut schedule: Schedule, limit: usize, work: &mut dyn Work) -> sys::Result<()> {
    let mut jobs: BTreeMap<MachineName, Job> = BTreeMap::new();
    loop {
        while jobs.len() < limit.max(1) {
            let Some(name) = schedule.begin() else { break };
            // A single job needs no process of its own, and no report.
            if jobs.is_empty() && schedule.is_over() {
                let result = work.work(ops, &name, true);
                hear(&mut schedule, work, &name, result);
                continue;
            }
            jobs.insert(name.clone(), begin(ops, &name, work)?);
        }
        if jobs.is_empty() {
            return Ok(());
        }
        for name in ended(ops, &mut jobs)? {
            let Some(job) = jobs.remove(&name) else { continue };
            hear(&mut schedule, work, &name, finish(job)?);
        }
    }
}

fn hear(schedule: &mut Schedule, work: &mut dyn Work, name: &MachineName, result: Result<(), OpError>) {
    let well = result.is_ok();
    if let Err(error) = result {
        work.failed(name, error);
    }
    schedule.ended(name, well).into_iter().for_each(|skipped| work.skipped(skipped));
}

fn begin(ops: &Ops, name: &MachineName, work: &dyn Work) -> sys::Result<Job> {
    let (reports, writer) = Reader::pipe().call(|| "pipe".into())?;
    let writer = Rc::new(writer);
    let worker = Worker::unnamed(c"job").keep(&writer.descriptor().iter().map(|fd| fd.as_fd()).collect::<Vec<_>>());
    let lost = |why: &str| writer.finish(&Err(OpError::new(format!("the process for it panicked: {why}"))));
    let child = worker.on_panic(&lost).spawn(|| {
        let ops = ops.telling(Rc::clone(&writer) as _);
        writer.finish(&work.work(&ops, name, false));
        0
    })?;
    Ok(Job { reports, child, result: None })
}

/// Waits for reports, passes events on, and gives those that say no more.
fn ended(ops: &Ops, jobs: &mut BTreeMap<MachineName, Job>) -> sys::Result<Vec<MachineName>> {
    let mut fds: Vec<PollFd<'_>> =
        jobs.values().map(|job| PollFd::new(job.reports.as_fd(), PollFlags::POLLIN)).collect();
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok(Vec::new()),
        Err(errno) => return Err(sys::Error { call: "poll".into(), errno }),
    }
    let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
    let mut over = Vec::new();
    for ((name, job), _) in jobs.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
        let lines = job.reports.read().call(|| "read".into())?;
        if lines.is_none() {
            over.push(name.clone());
        }
        for line in lines.into_iter().flatten() {
            match line {
                Line::Event(event) => ops.events.tell(event),
                Line::Done => job.result = Some(Ok(())),
                Line::Failed(error) => job.result = Some(Err(error)),
            }
        }
    }
    Ok(over)
}

/// How a child that says no more has ended.
fn finish(mut job: Job) -> sys::Result<Result<(), OpError>> {
    let ended = job.child.wait()?;
    Ok(match (job.result, ended) {
        (Some(result), Ended::Exited(_)) => result,
        (Some(Err(error)), _) => Err(error),
        _ => Err(OpError::new("the process for it was killed")),
    })
}
