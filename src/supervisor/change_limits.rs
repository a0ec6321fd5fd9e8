//! A change of a running machine's limits, made by a child: the kernel blocks a process that lowers a memory limit until
//! the machine has given up enough, and a supervisor must not block.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::job::Job;
use crate::cgroup::limits;
use crate::plan::limits::Limit;
use crate::running::control::{self, Answer, NewLimits};
use crate::running::state::State;
use crate::sys::worker::{Child, Worker};
use crate::sys::{self, channel, socket};

/// What the child says when it is done: nothing, or what went wrong and a hint.
type Outcome = Option<(String, Option<String>)>;

/// A change on its way; its child is killed and reaped with it.
#[derive(Debug)]
pub(super) struct Changing {
    new: NewLimits,
    channel: OwnedFd,
    _child: Child,
    /// The client that has asked for it.
    asker: OwnedFd,
}

impl Changing {
    /// Begins to change the limits of the machine that `job` and `state` are of.
    pub(super) fn begin(job: &Job, state: &State, new: NewLimits, asker: OwnedFd) -> sys::Result<Self> {
        let (ours, theirs) = socket::pair()?;
        let tell = |outcome: &Outcome| {
            // A supervisor that is gone needs no answer.
            let _ = channel::send(&theirs, outcome, &[]);
        };
        let lost = |why: &str| tell(&Some((format!("the child that was to do it panicked: {why}"), None)));
        let worker = Worker::new(c"machinist-limit").tied().kill_on_drop().keep(&[theirs.as_fd()]).on_panic(&lost);
        let child = worker.spawn(|| {
            let mount = state.unit.is_none().then_some(job.plan.cgroup.mount.as_path());
            tell(&make(mount, &state.cgroup, &job.limits.limits, &new.limits));
            0
        })?;
        Ok(Self { new, channel: ours, _child: child, asker })
    }

    /// Readable when the child is done.
    pub(super) fn poll_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// Takes the child's word and makes it the machine's; gives the answer for [`Self::answer`].
    pub(super) fn finish(&self, job: &mut Job, state: &mut State) -> Answer {
        match channel::receive::<Outcome>(&self.channel) {
            Ok(Some((None, _))) => {
                job.limits.clone_from(&self.new);
                state.limits.clone_from(&self.new.limits);
                state.resources.clone_from(&self.new.resources);
                Answer::Limited
            }
            Ok(Some((Some((why, hint)), _))) => Answer::NotLimited { why, hint },
            Ok(None) | Err(_) => Answer::Refused("the child that was to do it died".into()),
        }
    }

    /// Answers the client, which may look at the state file from then on.
    pub(super) fn answer(self, answer: &Answer) {
        // A client that is gone needs no answer.
        let _ = control::send(&self.asker, answer);
    }
}

fn make(mount: Option<&Path>, machine: &Path, old: &[Limit], new: &[Limit]) -> Outcome {
    let down = mount.map_or(Ok(()), |mount| limits::hand_down(mount, machine, new));
    let done = down.and_then(|()| limits::change(machine, old, new));
    done.err().map(|e| (format!("`resources.{}`: {}", e.key, e.cause), e.hint().map(Into::into)))
}
