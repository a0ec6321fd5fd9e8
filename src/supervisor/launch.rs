//! From a prepared machine to one whose payload has been executed.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::unistd::Pid;

use super::child::{self, Setup};
use super::console::{Console, Mode};
use super::event_loop::Running;
use super::handshake::{FromChild, ToInner};
use super::prepare::Prepared;
use super::registration::Registering;
use super::{Job, MachineError};
use crate::plan::TreePlan;
use crate::rootfs::devices;
use crate::rootfs::mounts::Texts;
use crate::running::state::{Phase, State, has_executed, start_time};
use crate::spec::{InitKind, MachineId, Ownership, Restart};
use crate::sys::process;
use crate::sys::worker::{Child, Worker};
use crate::sys::{self, Context as _, Doing as _, StepError, channel, socket};

/// What the children made.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) leader: OwnedFd,
    pub(super) state: State,
    pub(super) notify: OwnedFd,
    channel: OwnedFd,
    master: OwnedFd,
    outer: Child,
    /// Last, because its child is waited for when it is dropped.
    registering: Registering,
}

/// Makes the machine and executes its payload.
pub(super) fn launch(mut prepared: Prepared) -> Result<Running, Box<(MachineError, Prepared)>> {
    die_at("supervisor:prepared");
    let result = make(&prepared).and_then(|launched| {
        die_at("supervisor:ready");
        admit(&mut prepared, &launched)?;
        die_at("supervisor:running");
        Ok(launched)
    });
    match result {
        Ok(launched) => {
            prepared.begun = true;
            Ok(Running::new(prepared, launched.leader, launched.notify, launched.state))
        }
        Err(error) => Err(Box::new((error, prepared))),
    }
}

/// A test may name a step at which we die as if killed.
fn die_at(step: &str) {
    if std::env::var_os("MACHINIST_TEST_DIE_AT").is_some_and(|wanted| wanted == step) {
        process::exit_now(137);
    }
}

/// A test may ask for what is done on kernels that lack the newer calls.
fn act_old() -> bool {
    std::env::var_os("MACHINIST_TEST_OLD_KERNEL").is_some()
}

fn make(prepared: &Prepared) -> Result<Launched, MachineError> {
    let job = &prepared.job;
    let plan = &job.plan;
    let talk = || "cannot talk to the children".to_owned();
    let notify = socket::notify_socket().doing(|| "cannot make the notification socket".into())?;
    let (ours, theirs) = socket::pair().doing(talk)?;
    let id = match plan.exec.machine_id {
        Some(id) => id,
        None => random_id()?,
    };
    let environment = environment(job, &id.uuid());
    let texts =
        Texts { container_uuid: id.uuid(), os_release: job.facts.os_release.clone(), boot_id: random_id()?.uuid() };
    let wanted = std::env::var("MACHINIST_TEST_DIE_AT").ok();
    let tree = prepared.held.copy()?;
    let overlays = prepared.overlays.iter().map(crate::rootfs::HeldTree::copy).collect::<Result<Vec<_>, _>>()?;
    let setup = Setup {
        plan,
        range: prepared.range(),
        map_tree: matches!(plan.ownership, Ownership::Auto | Ownership::Map),
        tree: &tree,
        overlays: &overlays,
        filter: &prepared.filter,
        texts: &texts,
        devices: &prepared.devices,
        notify: notify.as_fd(),
        run_dir: prepared.run_dir.path(),
        environment: &environment,
        layer_fds: job.facts.overlay_layer_fds() && !act_old(),
        tmpfs_idmap: job.facts.kernel >= (6, 3) && !act_old(),
        console: job.console,
        console_size: rustix::termios::tcgetwinsize(rustix::stdio::stdout()).ok(),
        supervisor: Pid::this().as_raw(),
        signals: process::changed_signals(),
        die_at: wanted.as_deref(),
    };
    let worker = Worker::new(c"machinist-outer").namespaces(process::ns::MOUNT).tied();
    let lost = |why: &str| {
        child::report(&theirs, StepError::refused(format!("the outer child panicked: {why}")));
    };
    let worker = worker.cgroup(Some(prepared.group.payload())).on_panic(&lost);
    let outer = worker.spawn(|| child::outer(&setup, &theirs)).doing(|| "cannot start the outer child".into())?;
    drop(theirs);
    // Not earlier: now there is nothing else to do until the root is complete.
    let registering = Registering::begin(prepared);
    let message = channel::receive::<FromChild>(&ours).doing(talk)?;
    let ended = || process::wait_pidfd(&outer, true).doing(talk).map_err(MachineError::from);
    match message {
        Some((FromChild::Ready { leader, init, kind }, fds)) => {
            let mut fds = fds.into_iter();
            let (Some(master), Some(_console)) = (fds.next(), fds.next()) else {
                return Err(MachineError::Vanished("outer child"));
            };
            let pid = Pid::from_raw(leader);
            let pidfd = process::pidfd_open(pid).doing(|| "cannot hold the leader".into())?;
            let entered = registering.machine(job, leader, id);
            let state = State { machine_id: entered.map(|id| id.uuid()), ..state(prepared, leader, init, kind) };
            Ok(Launched { leader: pidfd, state, notify, channel: ours, master, outer, registering })
        }
        Some((FromChild::Failed(failure), _)) => ended().and(Err(failure.into())),
        Some((FromChild::Waiting, _)) => Err(MachineError::Vanished("outer child")),
        None if ended()? == Some(process::Ended::Exited(0)) => Err(MachineError::Vanished("inner child")),
        None => Err(MachineError::Vanished("outer child")),
    }
}

/// What others may know of the boot that begins.
pub(super) fn state(prepared: &Prepared, leader: i32, init: Option<String>, init_kind: Option<InitKind>) -> State {
    let plan = &prepared.job.plan;
    State {
        name: plan.name.as_str().to_owned(),
        machine_id: None,
        phase: Phase::Starting,
        leader,
        leader_start: start_time(leader).unwrap_or(0),
        supervisor: Pid::this().as_raw(),
        since: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        ids: prepared.range(),
        private_network: plan.namespaces.network,
        own_clock: plan.namespaces.time,
        cgroup: prepared.group.path().to_owned(),
        unit: prepared.group.unit().map(str::to_owned),
        capabilities: plan.privileges.capabilities,
        no_new_privileges: plan.privileges.no_new_privileges,
        process_limits: plan.privileges.limits.clone(),
        seccomp: plan.seccomp.clone(),
        resources: prepared.job.resources.clone(),
        limits: plan.limits.clone(),
        init,
        init_kind,
        root: match &plan.root.source {
            TreePlan::Directory(path) => path.display().to_string(),
            TreePlan::Overlay(overlay) => overlay.describe(),
        },
        definition: prepared.job.definition.clone(),
        status: None,
        waits_for: None,
        restarts: prepared.history.restarts(),
        last_end: prepared.history.last().map(str::to_owned),
        // Who runs it in the foreground sees to it.
        restart: Some(plan.exec.restart).filter(|policy| prepared.job.background && policy.when != Restart::No),
    }
}

/// What the payload finds in its environment.
fn environment(job: &Job, uuid: &str) -> Vec<(String, String)> {
    let mut environment = job.plan.exec.environment.clone();
    environment.push(("container_uuid".into(), uuid.to_owned()));
    if !environment.iter().any(|(key, _)| key == "TERM") {
        let ours = (job.console == Mode::Interactive).then(|| std::env::var("TERM").ok()).flatten();
        environment.push(("TERM".into(), ours.unwrap_or_else(|| "vt220".into())));
    }
    environment
}

/// Does the host's part and lets the inner child go on; back when the payload has been executed.
fn admit(prepared: &mut Prepared, launched: &Launched) -> Result<(), MachineError> {
    let talk = || "cannot talk to the inner child".to_owned();
    prepared.run_dir.write(&launched.state).doing(|| "cannot write the machine's state".into())?;
    let master = launched.master.try_clone().call(|| "dup".into()).doing(|| "cannot keep the console".into())?;
    match &mut prepared.console {
        Some(console) => console.replace_master(master).doing(|| "cannot go on with the console".into())?,
        None => {
            let log = prepared.open_log().doing(|| "cannot open the console's log".into())?;
            let console =
                Console::open(master, prepared.job.console, log).doing(|| "cannot open the console".into())?;
            prepared.console = Some(console);
        }
    }
    if prepared.job.plan.privileges.device_filter {
        // Not earlier: the outer child makes nodes that the payload may not.
        prepared.group.allow_devices(&devices::allowed(&prepared.devices)).map_err(|cause| {
            let hint = "a machine without a user namespace or with `[[device]]` needs CONFIG_CGROUP_BPF in the host's \
                        kernel"
                .into();
            StepError {
                doing: "cannot limit the machine to its own devices".into(),
                cause: Some(cause),
                hint: Some(hint),
            }
        })?;
    }
    // It ends while we were busy; no process with the host's rights is left when the payload begins.
    process::wait_pidfd(&launched.outer, true).doing(talk)?;
    launched.registering.conclude(prepared)?;
    match channel::send(&launched.channel, &ToInner::Go, &[]) {
        Err(e) if e.errno == sys::Errno::EPIPE => return Err(MachineError::Vanished("inner child")),
        other => other.doing(talk)?,
    }
    let mut stub = false;
    loop {
        match channel::receive::<FromChild>(&launched.channel).doing(talk)? {
            Some((FromChild::Waiting, _)) => stub = true,
            // It may have ended already: that is the payload's own story, told by its exit status.
            None if stub || has_executed(launched.state.leader) => return Ok(()),
            None => return Err(MachineError::Vanished("inner child")),
            Some((FromChild::Failed(failure), _)) => {
                // Reaped here, because nobody will wait for a machine that never ran.
                process::wait_pidfd(&launched.leader, true).doing(talk)?;
                return Err(failure.into());
            }
            Some((FromChild::Ready { .. }, _)) => return Err(MachineError::Vanished("outer child")),
        }
    }
}

/// A random UUID of version 4.
fn random_id() -> Result<MachineId, MachineError> {
    let mut bytes = [0; 16];
    sys::process::random(&mut bytes).doing(|| "cannot draw a random id".into())?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(MachineId(bytes))
}
