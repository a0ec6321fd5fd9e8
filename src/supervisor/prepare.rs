//! Takes everything a machine needs of the host, before any process of it exists.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::Mode as FileMode;

use super::error::MachineError;
use super::held::Held;
use super::job::Job;
use super::launch::{self, Created};
use super::machine::Machine;
use super::machine_cgroup::{self, Group, ScopeHolder};
use super::registration::Registered;
use super::session::{Session, Starter};
use crate::cgroup;
use crate::image::lock::{Beside, ImageLock};
use crate::plan::mounts::{self, MountOp};
use crate::plan::{IdPlan, TreePlan};
use crate::report::{Event, Writer};
use crate::rootfs::devices::{self, HostDevice};
use crate::rootfs::idmap::{self, IdRangeLock};
use crate::rootfs::{HeldTree, Use};
use crate::running::control;
use crate::running::start_limit::StartSlot;
use crate::running::state::{RunDir, RunDirError, make_private_dir};
use crate::spec::{IdRange, Layout, MachineName, Ownership, UserMode};
use crate::sys::lock::Hold;
use crate::sys::path::RootFd;
use crate::sys::process::FilterInsn;
use crate::sys::{self, Context as _, Doing as _, StepError, socket};
use crate::tree::chown;

/// A machine whose resources are held; nothing of it runs yet.
#[derive(Debug)]
pub struct Prepared {
    job: Job,
    held: Held,
    filter: Vec<FilterInsn>,
    /// What the host's devices are, for the first boot.
    devices: Vec<HostDevice>,
    /// Keeps the machine's scope until the supervisor is in it.
    scope_holder: Option<ScopeHolder>,
    registered: Registered,
    starter: Starter,
}

/// Takes what the machine needs of the host: locks, the id range, directories, sockets and the control group.
pub fn prepare(job: Job) -> Result<Prepared, MachineError> {
    if !job.facts.authority.can_make_machines(job.layout.scope()) {
        return Err(MachineError::NotPermitted);
    }
    let plan = &job.plan;
    let run_dir = match RunDir::acquire(&job.layout, &plan.name) {
        Ok(dir) => dir,
        Err(RunDirError::Running) => return Err(MachineError::AlreadyRunning(plan.name.clone())),
        Err(RunDirError::Call(cause)) => {
            return Err(StepError {
                doing: format!("cannot lock machine '{}'", plan.name),
                cause: Some(cause),
                hint: None,
            }
            .into());
        }
    };
    match prepare_rest(&job, &run_dir) {
        Ok(rest) => {
            let Rest { devices, ids, tree, overlays, images, filter, control, group } = rest;
            let Group { group, scope_holder, no_bus } = group;
            let held = Held { run_dir, ids, tree, overlays, images, control, group };
            let registered = Registered::new(no_bus);
            Ok(Prepared { job, held, filter, devices, scope_holder, registered, starter: Starter::default() })
        }
        Err(error) => {
            // The first failure is what the user needs; a directory that stays is removed by the next start.
            let _ = run_dir.release();
            Err(error)
        }
    }
}

/// What is taken once the name is ours.
struct Rest {
    devices: Vec<HostDevice>,
    ids: Option<IdRangeLock>,
    tree: HeldTree,
    overlays: Vec<HeldTree>,
    images: Vec<ImageLock>,
    filter: Vec<FilterInsn>,
    control: OwnedFd,
    group: Group,
}

fn prepare_rest(job: &Job, run_dir: &RunDir) -> Result<Rest, MachineError> {
    let plan = &job.plan;
    if let Some(stale) = run_dir.left_over() {
        cgroup::clear(&stale.cgroup, stale.unit.is_some())
            .doing(|| "cannot remove leftovers of the previous run".into())?;
    }
    let state_dir = job.layout.state_dir(&plan.name);
    make_private_dir(&state_dir).doing(|| "cannot make the machine's state directory".into())?;
    let devices = devices::find(mounts::devices(&plan.mounts))?;
    let tree = HeldTree::acquire_root(&plan.root, plan.namespaces.user.is_own())?;
    let mut overlays = Vec::new();
    for op in &plan.mounts {
        if let MountOp::Overlay { overlay, .. } = op {
            overlays.push(HeldTree::acquire_overlay(overlay)?);
        }
    }
    let images = lock_images(&job.layout, &tree, &overlays)?;
    let ids = acquire_ids(job)?;
    let range = ids.as_ref().map(IdRangeLock::range);
    if let (Some(range), Ownership::Chown) = (range, plan.ownership) {
        change_owners(job, &tree, range)?;
    }
    let filter = crate::plan::seccomp::compile(&plan.seccomp, plan.privileges.capabilities);
    let filter = filter.into_iter().map(Into::into).collect();
    let control = listen(run_dir).doing(|| "cannot listen for requests".into())?;
    let owner = range.map_or(0, |r| r.shift);
    let group = Group::make(job, owner)?;
    if let Err(e) = machine_cgroup::limit(job, &group.group) {
        // The first failure is what the user needs; what stays is removed by the next start.
        let _ = group.group.release();
        return Err(e.into());
    }
    Ok(Rest { devices, ids, tree, overlays, images, filter, control, group })
}

/// Takes the locks by which systemd's tools and our own image verbs know that a tree is in use.
fn lock_images(layout: &Layout, held: &HeldTree, overlays: &[HeldTree]) -> Result<Vec<ImageLock>, StepError> {
    let is_tree = matches!(held, HeldTree::Directory(_));
    let root = held.directories().map(|directory| (directory, is_tree));
    let overlays = overlays.iter().flat_map(HeldTree::directories).map(|directory| (directory, false));
    let mut locks = Vec::new();
    for (directory, is_root) in root.chain(overlays) {
        let (path, what) = (&directory.path, directory.what);
        let hold = match directory.how {
            Use::Read => Hold::Shared,
            Use::Write => Hold::Exclusive,
        };
        // Layers and places for writes can be anywhere, and there they are no images.
        let is_image = is_root || path.parent() == Some(layout.images());
        let beside = if is_image { Beside::Yes } else { Beside::No };
        let taken = ImageLock::try_take(layout, path, &directory.fd, hold, beside);
        locks.push(taken.doing(|| format!("cannot lock {what} '{}'", path.display()))?.map_err(|busy| {
            let by = busy.holder().unwrap_or_else(|| "another program or host".to_owned());
            StepError::refused(format!("{what} '{}' is in use by {by}", path.display()))
        })?);
    }
    Ok(locks)
}

fn acquire_ids(job: &Job) -> Result<Option<IdRangeLock>, MachineError> {
    let mode = match job.plan.ids {
        IdPlan::Host => return Ok(None),
        IdPlan::Identity => UserMode::Identity,
        IdPlan::Picked => UserMode::Auto,
        IdPlan::Fixed(range) => UserMode::Range(range),
    };
    idmap::acquire(&job.layout, &job.plan.name, mode).map(Some).map_err(MachineError::Ids)
}

/// `ownership = "chown"`: every writable tree of the machine, once, with its progress.
fn change_owners(job: &Job, held: &HeldTree, range: IdRange) -> Result<(), MachineError> {
    let (path, fd) = match (held, &job.plan.root.source) {
        (HeldTree::Directory(directory), _) => (&directory.path, &directory.fd),
        (HeldTree::Overlay { .. }, TreePlan::Overlay(_) | TreePlan::Directory(_)) => {
            let refused = StepError::refused("`users.ownership = \"chown\"` would change every layer of the overlay");
            return Err(refused.hint("use it with `root.directory`, or leave it out: layers are mapped").into());
        }
    };
    let tree = RootFd::from_fd(fd.try_clone().call(|| "dup".into()).doing(|| "cannot open the tree".into())?);
    let doing = |e: chown::ChownError| StepError {
        doing: format!("cannot give '{}' to the machine's ids: {e}", path.display()),
        cause: None,
        hint: Some("start the machine again: it goes on where it stopped".into()),
    };
    let result = chown::give_to(&tree, range, &mut |done| job.events.tell(Event::Chown(Some(done))));
    job.events.tell(Event::Chown(None));
    result.map(drop).map_err(|e| doing(e).into())
}

fn listen(run_dir: &RunDir) -> sys::Result<OwnedFd> {
    match rustix::fs::unlinkat(run_dir.fd(), control::SOCKET, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(e) => return Err(e).call(|| "unlink('control')".into()),
    }
    let umask = rustix::process::umask(FileMode::from_raw_mode(0o077));
    let result = socket::listen_in(run_dir.fd(), control::SOCKET);
    rustix::process::umask(umask);
    result
}

impl Prepared {
    /// Name of the machine.
    pub fn name(&self) -> &MachineName {
        &self.job.plan.name
    }

    /// The group a background supervisor is to be born in.
    pub fn supervisor_group(&self) -> sys::Result<OwnedFd> {
        self.held.group.supervisor()
    }

    /// Has the supervisor report there when the machine is ready.
    pub fn report_to(&mut self, report: Rc<Writer>) {
        self.starter.report = Some(report);
    }

    /// Has it give back a start slot when it is ready, or has ended.
    pub fn hold_slot(&mut self, slot: StartSlot) {
        self.starter.slot = Some(slot);
    }

    /// Gives everything up without running it.
    pub fn abandon(self) -> Result<(), MachineError> {
        self.held.release(&self.job, &self.registered)
    }

    /// Makes the first boot of the machine, which then waits to be started.
    pub(super) fn create(self) -> Result<(Machine, Created), MachineError> {
        // This process is in the machine's group by now.
        drop(self.scope_holder);
        let session = Session::new(self.job, self.filter, self.registered, self.starter);
        launch::create_first(self.held, session, &self.devices)
    }
}
