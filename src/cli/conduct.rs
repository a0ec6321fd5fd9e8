//! Does something to several machines in the order of a [`Schedule`], each in a process of its own.
//!
//! A start forks, takes locks that its supervisor keeps, and waits: several at once are several processes. What fails is
//! told to us, so that those whose turn does not come can say why.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::output::Failure;
use crate::plan::dependencies::{Schedule, Skipped};
use crate::spec::MachineName;
use crate::sys::process::Ended;
use crate::sys::worker::{Child, Worker};
use crate::sys::{self, Errno, socket};

/// Where a child tells its failure. Whoever it leaves behind (a supervisor) must not keep it: it is `None` then.
pub(super) type Channel = Option<OwnedFd>;

/// Largest failure that is told.
const MESSAGE: usize = 16 << 10;

/// What becomes of the machines.
pub(super) trait Work {
    /// Does it, in a child if there are several.
    fn work(&self, name: &MachineName, channel: &mut Channel) -> Result<(), Failure>;

    /// Hears that it did not work, while others go on.
    fn failed(&mut self, name: &MachineName, failure: Failure);

    /// Hears that it will not be done because of another machine.
    fn skipped(&mut self, skipped: Skipped);
}

/// A child that works on a machine.
struct Job {
    channel: OwnedFd,
    child: Child,
}

/// Goes through the schedule, working on at most `limit` machines at once.
pub(super) fn conduct(mut schedule: Schedule, limit: usize, work: &mut dyn Work) -> sys::Result<()> {
    let mut jobs: BTreeMap<MachineName, Job> = BTreeMap::new();
    loop {
        while jobs.len() < limit.max(1) {
            let Some(name) = schedule.begin() else { break };
            // One that is left alone needs no process, and nobody to tell.
            if jobs.is_empty() && schedule.is_over() {
                let result = work.work(&name, &mut None);
                hear(&mut schedule, work, &name, result);
                continue;
            }
            jobs.insert(name.clone(), begin(&name, work)?);
        }
        if jobs.is_empty() {
            return Ok(());
        }
        for name in ended(&jobs)? {
            let Some(mut job) = jobs.remove(&name) else { continue };
            let result = answer(&mut job)?;
            hear(&mut schedule, work, &name, result);
        }
    }
}

fn hear(schedule: &mut Schedule, work: &mut dyn Work, name: &MachineName, result: Result<(), Failure>) {
    let well = result.is_ok();
    if let Err(failure) = result {
        work.failed(name, failure);
    }
    schedule.ended(name, well).into_iter().for_each(|skipped| work.skipped(skipped));
}

fn begin(name: &MachineName, work: &dyn Work) -> sys::Result<Job> {
    let (ours, theirs) = socket::pair()?;
    let worker = Worker::unnamed(c"job").keep(&[theirs.as_fd()]);
    let channel = RefCell::new(Some(theirs));
    let tell = |failure: &Failure| {
        // Nobody is left to tell if this fails.
        let _ = channel.borrow().as_ref().map(|channel| socket::send(channel, &failure.to_wire(), &[]));
    };
    let lost = |why: &str| tell(&Failure::new(format!("the process for it panicked: {why}")));
    let child = worker.on_panic(&lost).spawn(|| {
        let result = work.work(name, &mut channel.borrow_mut());
        if let Err(failure) = result {
            tell(&failure);
        }
        0
    })?;
    Ok(Job { channel: ours, child })
}

/// Waits until children have ended.
fn ended(jobs: &BTreeMap<MachineName, Job>) -> sys::Result<Vec<MachineName>> {
    let mut fds: Vec<PollFd<'_>> = jobs.values().map(|job| PollFd::new(job.child.as_fd(), PollFlags::POLLIN)).collect();
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok(Vec::new()),
        Err(errno) => return Err(sys::Error { call: "poll".into(), errno }),
    }
    let over = jobs.keys().zip(&fds).filter(|(_, fd)| fd.any().unwrap_or(false));
    Ok(over.map(|(name, _)| name.clone()).collect())
}

/// What a child that has ended had to say.
fn answer(job: &mut Job) -> sys::Result<Result<(), Failure>> {
    let ended = job.child.wait()?;
    let mut buffer = vec![0; MESSAGE];
    let len = match socket::receive(&job.channel, &mut buffer) {
        Err(e) if e.errno == Errno::ECONNRESET => 0,
        other => other?.len,
    };
    Ok(match (buffer.get(..len), ended) {
        (Some([]) | None, Ended::Exited(0)) => Ok(()),
        (Some([]) | None, _) => Err(Failure::new("the process for it was killed")),
        (Some(failure), _) => Err(Failure::from_wire(failure)),
    })
}
