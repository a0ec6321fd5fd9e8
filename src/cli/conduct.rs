//! Does something to several machines in the order of a [`Schedule`], each in a process of its own.
//!
//! A start forks, takes locks that its supervisor keeps, and waits: several at once are several processes. What fails is
//! told to us, so that those whose turn does not come can say why.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::output::Failure;
use crate::plan::dependencies::{Schedule, Skipped};
use crate::spec::MachineName;
use crate::sys::process::{self, Clone as CloneHow, Fork};
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
struct Child {
    channel: OwnedFd,
    pidfd: OwnedFd,
}

/// Goes through the schedule, working on at most `limit` machines at once.
pub(super) fn conduct(mut schedule: Schedule, limit: usize, work: &mut dyn Work) -> sys::Result<()> {
    let mut children: BTreeMap<MachineName, Child> = BTreeMap::new();
    loop {
        while children.len() < limit.max(1) {
            let Some(name) = schedule.begin() else { break };
            // One that is left alone needs no process, and nobody to tell.
            if children.is_empty() && schedule.is_over() {
                let result = work.work(&name, &mut None);
                hear(&mut schedule, work, &name, result);
                continue;
            }
            children.insert(name.clone(), begin(&name, work)?);
        }
        if children.is_empty() {
            return Ok(());
        }
        for name in ended(&children)? {
            let Some(child) = children.remove(&name) else { continue };
            let result = answer(&child)?;
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

fn begin(name: &MachineName, work: &dyn Work) -> sys::Result<Child> {
    let (ours, theirs) = socket::pair()?;
    match process::clone3(CloneHow::default())? {
        Fork::Parent(_, pidfd) => Ok(Child { channel: ours, pidfd }),
        Fork::Child => {
            // Those of the others are theirs to close.
            let alone = process::close_all_except(&[theirs.as_fd()]);
            std::mem::forget(ours);
            let mut channel = Some(theirs);
            let call = |e| Failure::call(format!("cannot begin with machine '{name}'"), &e);
            let result = alone.map_err(call).and_then(|()| work.work(name, &mut channel));
            if let (Err(failure), Some(channel)) = (result, &channel) {
                // Nobody is left to tell if this fails.
                let _ = socket::send(channel, &failure.to_wire(), &[]);
            }
            process::exit_now(0)
        }
    }
}

/// Waits until children have ended.
fn ended(children: &BTreeMap<MachineName, Child>) -> sys::Result<Vec<MachineName>> {
    let mut fds: Vec<PollFd<'_>> =
        children.values().map(|child| PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN)).collect();
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok(Vec::new()),
        Err(errno) => return Err(sys::Error { call: "poll".into(), errno }),
    }
    let over = children.keys().zip(&fds).filter(|(_, fd)| fd.any().unwrap_or(false));
    Ok(over.map(|(name, _)| name.clone()).collect())
}

/// What a child that has ended had to say.
fn answer(child: &Child) -> sys::Result<Result<(), Failure>> {
    let ended = process::wait_pidfd(&child.pidfd, true)?;
    let mut buffer = vec![0; MESSAGE];
    let len = match socket::receive(&child.channel, &mut buffer) {
        Err(e) if e.errno == Errno::ECONNRESET => 0,
        other => other?.len,
    };
    Ok(match (buffer.get(..len), ended) {
        (Some([]) | None, Some(process::Ended::Exited(0))) => Ok(()),
        (Some([]) | None, _) => Err(Failure::new("the process for it was killed")),
        (Some(failure), _) => Err(Failure::from_wire(failure)),
    })
}
