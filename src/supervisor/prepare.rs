//! Takes everything a machine needs of the host, before any process of it exists.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::poll::PollFlags;
use rustix::fs::Mode as FileMode;

use super::console::{self, LogFile};
use super::machine_cgroup::{self, Group, ScopeHolder};
use super::registration::Unregistering;
use super::sd_notify::ServiceManager;
use super::{Job, MachineError};
use crate::bus::BusError;
use crate::cgroup::{self, MachineGroup};
use crate::host::HostFacts;
use crate::image::lock::{Beside, ImageLock};
use crate::plan::mounts::{self, MountOp};
use crate::plan::{IdPlan, OverlayPlan, Plan, TreePlan, UpperPlan, below_own};
use crate::rootfs::devices::{self, HostDevice};
use crate::rootfs::idmap::{self, IdRangeLock};
use crate::rootfs::{HeldTree, Use};
use crate::running::control;
use crate::running::restart::History;
use crate::running::start_limit::StartSlot;
use crate::running::state::{RunDir, RunDirError, make_private_dir};
use crate::spec::{ID_RANGE_SIZE, IdRange, Layout, MachineName, Ownership, UserMode};
use crate::sys::lock::Hold;
use crate::sys::path::RootFd;
use crate::sys::process::FilterInsn;
use crate::sys::{self, Context as _, socket};
use crate::sys::{Doing as _, StepError};
use crate::tree::chown;

/// A machine whose resources are held. Fields are given back from the last to the first.
#[derive(Debug)]
pub struct Prepared {
    pub(super) job: Job,
    pub(super) run_dir: RunDir,
    pub(super) ids: Option<IdRangeLock>,
    pub(super) held: HeldTree,
    pub(super) overlays: Vec<HeldTree>,
    pub(super) images: Vec<ImageLock>,
    pub(super) filter: Vec<FilterInsn>,
    /// What the host's devices are, for this boot.
    pub(super) devices: Vec<HostDevice>,
    pub(super) control: OwnedFd,
    pub(super) group: MachineGroup,
    /// Keeps the machine's scope until the supervisor is in it.
    pub(super) scope_holder: Option<ScopeHolder>,
    /// Kept over reboots.
    pub(super) console: Option<console::Console>,
    pub(super) report: Option<OwnedFd>,
    /// Keeps others from starting as long as it has not begun.
    pub(super) slot: Option<StartSlot>,
    /// Connections that wait for a reboot to be over.
    pub(super) wait_for_boot: Vec<OwnedFd>,
    /// The host's table of machines may have an entry of it.
    pub(super) registered: bool,
    /// Why there is no bus, if that has been said already.
    pub(super) no_bus: Option<BusError>,
    /// What whoever waits for the machine is told with the good news.
    pub(super) warnings: Vec<String>,
    /// The last boot did not end in time.
    pub(super) was_killed: bool,
    /// A payload of it has run.
    pub(super) begun: bool,
    /// Its ends that nobody asked for.
    pub(super) history: History,
    /// Whose unit we are the main process of.
    pub(super) manager: ServiceManager,
}

/// Takes locks, the id range, directories, sockets and the control group.
pub(super) fn prepare(job: Job) -> Result<Prepared, MachineError> {
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
        Ok((devices, ids, (held, overlays, images), filter, control, Group { group, scope_holder, no_bus })) => {
            Ok(Prepared {
                history: History::new(plan.exec.restart),
                job,
                run_dir,
                ids,
                held,
                overlays,
                images,
                filter,
                devices,
                control,
                group,
                scope_holder,
                no_bus,
                console: None,
                report: None,
                slot: None,
                wait_for_boot: Vec::new(),
                registered: false,
                warnings: Vec::new(),
                was_killed: false,
                begun: false,
                manager: ServiceManager::default(),
            })
        }
        Err(error) => {
            // The first failure is what the user needs; a directory that stays is removed by the next start.
            let _ = run_dir.release();
            Err(error)
        }
    }
}

type Trees = (HeldTree, Vec<HeldTree>, Vec<ImageLock>);
type Rest = (Vec<HostDevice>, Option<IdRangeLock>, Trees, Vec<FilterInsn>, OwnedFd, Group);

fn prepare_rest(job: &Job, run_dir: &RunDir) -> Result<Rest, MachineError> {
    let plan = &job.plan;
    if let Some(stale) = run_dir.left_over() {
        cgroup::clear(&stale.cgroup, stale.unit.is_some())
            .doing(|| "cannot clear the machine's last life away".into())?;
    }
    let state_dir = job.layout.state_dir(&plan.name);
    make_private_dir(&state_dir).doing(|| "cannot make the machine's state directory".into())?;
    let devices = devices::find(mounts::devices(&plan.mounts))?;
    let held = HeldTree::acquire_root(&plan.root, plan.namespaces.user)?;
    let mut overlays = Vec::new();
    for op in &plan.mounts {
        if let MountOp::Overlay { overlay, .. } = op {
            overlays.push(HeldTree::acquire_overlay(overlay)?);
        }
    }
    let images = lock_images(&job.layout, &held, &overlays)?;
    let ids = acquire_ids(job)?;
    let range = ids.as_ref().map(IdRangeLock::range);
    if let (Some(range), Ownership::Chown) = (range, plan.ownership) {
        change_owners(job, &held, range)?;
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
    Ok((devices, ids, (held, overlays, images), filter, control, group))
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
        // Layers and places for writes can be anywhere, and there they are nobody's images.
        let is_image = is_root || path.parent() == Some(&layout.images());
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

/// `ownership = "chown"`: every writable tree of the machine, once, with a bar where somebody watches.
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
    let result = chown::give_to(&tree, range, &mut |done| (job.on_chown)(Some(done)));
    (job.on_chown)(None);
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

fn directories_of(overlay: &OverlayPlan) -> impl Iterator<Item = &PathBuf> {
    let upper = match &overlay.upper {
        Some(UpperPlan::Directory(path)) => Some(path),
        Some(UpperPlan::Memory) | None => None,
    };
    overlay.lower.iter().chain(upper)
}

/// Every directory of the host that a plan locks as an image.
pub(super) fn locked_directories(plan: &Plan) -> impl Iterator<Item = &Path> {
    let overlays = plan.mounts.iter().filter_map(|op| match op {
        MountOp::Overlay { overlay, .. } => Some(overlay),
        _ => None,
    });
    let (root, overlay) = match &plan.root.source {
        TreePlan::Directory(path) => (Some(path), None),
        TreePlan::Overlay(overlay) => (None, Some(overlay)),
    };
    root.into_iter().chain(overlays.chain(overlay).flat_map(directories_of)).map(PathBuf::as_path)
}

/// Where a machine's group would be if nothing else is said.
pub(super) fn default_cgroup(layout: &Layout, facts: &HostFacts, name: &MachineName) -> Option<PathBuf> {
    let cgroup = facts.cgroup.as_ref()?;
    Some(cgroup::host_path(&below_own(cgroup, layout, name)))
}

impl Prepared {
    /// Name of the machine.
    pub fn name(&self) -> &MachineName {
        &self.job.plan.name
    }

    /// The group a background supervisor is to be born in.
    pub fn supervisor_group(&self) -> sys::Result<OwnedFd> {
        self.group.supervisor()
    }

    /// Has the supervisor say `ready` on this socket when the machine is.
    pub fn report_to(&mut self, socket: OwnedFd) {
        self.report = Some(socket);
    }

    /// Has it give back a start slot when it is ready, or has ended.
    pub fn hold_slot(&mut self, slot: StartSlot) {
        self.slot = Some(slot);
    }

    /// Says that we go on without something: to whoever waits for a background supervisor, else at once.
    pub(super) fn warn(&mut self, text: String) {
        if self.report.is_some() {
            self.warnings.push(text);
        } else {
            (self.job.on_warning)(&text);
        }
    }

    /// Tells of the machine's own end what follows: in its log, to its viewers, its service manager and whoever runs it.
    pub(super) fn tell(&mut self, text: &str) {
        // Reasons may hold words of the machine's, and one line is all that they get.
        let text: &str = &text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
        if let Some(console) = &mut self.console {
            console.remark(text);
        }
        self.manager.tell(&format!("STATUS={text}"));
        if !self.job.background {
            (self.job.on_warning)(text);
        }
    }

    /// Gives everything up without running it.
    pub fn abandon(self) -> Result<(), MachineError> {
        self.finish()
    }

    /// Host ids of the machine.
    pub(super) fn range(&self) -> Option<IdRange> {
        match self.job.plan.ids {
            IdPlan::Host => None,
            IdPlan::Identity => Some(IdRange { shift: 0, size: ID_RANGE_SIZE }),
            IdPlan::Picked | IdPlan::Fixed(_) => self.ids.as_ref().map(IdRangeLock::range),
        }
    }

    /// The console's descriptors to wait for, each with what for.
    pub(super) fn console_fds(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags, console::Token)> {
        let mut list = Vec::new();
        if let Some(console) = &self.console {
            console.poll_fds(&mut list);
        }
        list.into_iter()
    }

    /// Opens the console's log, if it is kept.
    pub(super) fn open_log(&self) -> sys::Result<Option<LogFile>> {
        let console = self.job.plan.console;
        if !console.log {
            return Ok(None);
        }
        LogFile::open(&self.job.layout.state_dir(&self.job.plan.name), console.log_size).map(Some)
    }

    /// Makes the control group anew for the next boot; ids, locks, sockets and console stay.
    pub(super) fn renew(mut self) -> Result<Self, MachineError> {
        let owner = self.range().map_or(0, |r| r.shift);
        let renewed = self.group.renew(owner).doing(|| "cannot start the machine again".into());
        // What was plugged in anew has other numbers now.
        let renewed = renewed.and_then(|()| machine_cgroup::limit(&self.job, &self.group));
        match renewed.and_then(|()| devices::find(mounts::devices(&self.job.plan.mounts))) {
            Ok(devices) => Ok(Self { devices, ..self }),
            Err(error) => {
                // The cause of the stop is what the user needs.
                let _ = self.finish();
                Err(error.into())
            }
        }
    }

    /// Gives everything back in reverse order; goes on after failures and reports all of them.
    pub(super) fn finish(self) -> Result<(), MachineError> {
        let mut failed = Vec::new();
        let path = self.group.path().to_owned();
        if self.job.background && self.group.unit().is_none() {
            // Where we cannot leave our own group it cannot be removed, which the next line reports.
            let _ = cgroup::leave(&path);
        }
        // Not before that: all that is left in the group is about to be killed.
        let unregistering = Unregistering::begin(&self);
        drop(self.console);
        drop(self.control);
        failed.extend(self.group.release().err());
        drop((self.overlays, self.held));
        failed.extend(self.images.into_iter().filter_map(|lock| lock.release().err()));
        let ids = self.ids.map(IdRangeLock::release);
        unregistering.conclude();
        failed.extend(self.run_dir.release().err());
        match ids {
            Some(Err(error)) => Err(MachineError::Ids(error)),
            _ if failed.is_empty() => Ok(()),
            _ => Err(MachineError::Leftovers(failed)),
        }
    }
}
