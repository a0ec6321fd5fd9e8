//! What a machine holds of the host, over all its boots.

use std::os::fd::OwnedFd;

use super::error::MachineError;
use super::job::Job;
use super::machine_cgroup;
use super::registration::{Registered, Unregistering};
use crate::cgroup::{self, MachineGroup};
use crate::image::lock::ImageLock;
use crate::plan::IdPlan;
use crate::plan::mounts;
use crate::rootfs::HeldTree;
use crate::rootfs::devices::{self, HostDevice};
use crate::rootfs::idmap::IdRangeLock;
use crate::running::state::RunDir;
use crate::spec::{ID_RANGE_SIZE, IdRange};
use crate::sys::{Doing as _, StepError};

/// Locks, trees, the socket for requests and the control group, in the order they were taken.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) run_dir: RunDir,
    pub(super) ids: Option<IdRangeLock>,
    pub(super) tree: HeldTree,
    pub(super) overlays: Vec<HeldTree>,
    pub(super) images: Vec<ImageLock>,
    pub(super) control: OwnedFd,
    pub(super) group: MachineGroup,
}

impl Held {
    /// Host ids of the machine.
    pub(super) fn range(&self, ids: IdPlan) -> Option<IdRange> {
        match ids {
            IdPlan::Host => None,
            IdPlan::Identity => Some(IdRange { shift: 0, size: ID_RANGE_SIZE }),
            IdPlan::Picked | IdPlan::Fixed(_) => self.ids.as_ref().map(IdRangeLock::range),
        }
    }

    /// Makes the cgroup again for another boot, and looks for the machine's devices.
    pub(super) fn renew(&mut self, job: &Job) -> Result<Vec<HostDevice>, StepError> {
        let owner = self.range(job.plan.ids).map_or(0, |r| r.shift);
        self.group.renew(owner).doing(|| "cannot start the machine again".into())?;
        machine_cgroup::limit(job, &self.group)?;
        // A device that was unplugged and plugged in has other numbers now.
        devices::find(mounts::devices(&job.plan.mounts))
    }

    /// Gives everything back in reverse order; goes on after failures and reports all of them.
    pub(super) fn release(self, job: &Job, registered: &Registered) -> Result<(), MachineError> {
        let mut failed = Vec::new();
        if job.background && self.group.unit().is_none() {
            // Where we cannot leave our own group it cannot be removed, which is reported below.
            let _ = cgroup::leave(self.group.path());
        }
        // Not before that: all that is left in the group is about to be killed.
        let unregistering = Unregistering::begin(job, registered);
        drop(self.control);
        failed.extend(self.group.release().err());
        drop((self.overlays, self.tree));
        failed.extend(self.images.into_iter().filter_map(|lock| lock.release().err()));
        let ids = self.ids.map(IdRangeLock::release);
        unregistering.finish();
        failed.extend(self.run_dir.release().err());
        match ids {
            Some(Err(error)) => Err(MachineError::Ids(error)),
            _ if failed.is_empty() => Ok(()),
            _ => Err(MachineError::Leftovers(failed)),
        }
    }
}
