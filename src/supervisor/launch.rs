//! From what is held to a machine whose payload has been executed, in two steps: create and start.

use std::os::fd::{AsFd, OwnedFd};

use nix::unistd::Pid;

use super::boot::{self, Boot};
use super::child;
use super::console::{Console, LogFile, Mode};
use super::error::MachineError;
use super::handshake::{self, FromChild, Party, Phase, Sequence, ToInner};
use super::held::Held;
use super::job::Job;
use super::machine::Machine;
use super::registration::Registering;
use super::session::Session;
use super::setup::{self, Setup};
use crate::plan::LateValue;
use crate::rootfs::HeldTree;
use crate::rootfs::devices::{self, HostDevice};
use crate::rootfs::mounts::RuntimeTexts;
use crate::running::state::{State, has_executed};
use crate::spec::{MachineId, Ownership};
use crate::sys::worker::{self, Child, Worker};
use crate::sys::{self, Doing as _, StepError, process, socket};

/// A machine whose processes exist and wait: everything of the host's has been done, and nothing of the machine's.
#[derive(Debug)]
pub(super) struct Created {
    pub(super) boot: Boot,
    channel: OwnedFd,
    sequence: Sequence,
}

/// What the children made.
struct Made {
    boot: Boot,
    channel: OwnedFd,
    sequence: Sequence,
    outer: Child,
    /// Last, because its child is waited for when it is dropped.
    registering: Registering,
}

/// Makes the first boot of a machine; gives back what was held if it fails.
pub(super) fn create_first(
    held: Held,
    session: Session,
    devices: &[HostDevice],
) -> Result<(Machine, Created), MachineError> {
    let made = make(&held, &session, devices).and_then(|(made, master)| {
        let log = open_log(&session.job).doing(|| "cannot open the console's log".into())?;
        let console = Console::open(master, session.job.console, log).doing(|| "cannot open the console".into())?;
        Ok((made, console))
    });
    match made {
        Ok((made, console)) => {
            let mut machine = Machine { held, session, console };
            match made.finish(&mut machine, devices) {
                Ok(created) => Ok((machine, created)),
                Err(error) => {
                    // The first failure is what the user needs; what stays is removed by the next start.
                    let _ = machine.release();
                    Err(error)
                }
            }
        }
        Err(error) => {
            let _ = held.release(&session.job, &session.registered);
            Err(error)
        }
    }
}

/// Makes another boot.
pub(super) fn create(machine: &mut Machine, devices: &[HostDevice]) -> Result<Created, MachineError> {
    let (made, master) = make(&machine.held, &machine.session, devices)?;
    machine.console.replace_master(master).doing(|| "cannot go on with the console".into())?;
    made.finish(machine, devices)
}

/// A test may name a step at which we die as if killed, or panic.
fn die_at(step: &str) {
    worker::panic_if_asked(step);
    if std::env::var_os("MACHINIST_TEST_DIE_AT").is_some_and(|wanted| wanted == step) {
        process::exit_now(137);
    }
}

/// Has the children make the machine; gives the master of its console as well.
fn make(held: &Held, session: &Session, devices: &[HostDevice]) -> Result<(Made, OwnedFd), MachineError> {
    die_at("supervisor:prepared");
    let job = &session.job;
    let plan = &job.plan;
    let talk = || "cannot talk to the children".to_owned();
    let notify = socket::notify_socket().doing(|| "cannot make the notification socket".into())?;
    let (ours, theirs) = socket::pair().doing(talk)?;
    let id = match plan.exec.machine_id {
        Some(id) => id,
        None => random_id()?,
    };
    let environment = environment(job, &id.uuid());
    let texts = RuntimeTexts {
        container_uuid: id.uuid(),
        os_release: job.facts.os_release.clone(),
        boot_id: random_id()?.uuid(),
    };
    let wanted = std::env::var("MACHINIST_TEST_DIE_AT").ok();
    let joined = setup::open_joined(&plan.namespaces)?;
    let tree = held.tree.copy()?;
    let overlays = held.overlays.iter().map(HeldTree::copy).collect::<Result<Vec<_>, _>>()?;
    let setup = Setup {
        plan,
        joined: &joined,
        range: held.range(plan.ids),
        map_tree: matches!(plan.ownership, Ownership::Auto | Ownership::Map),
        tree: &tree,
        overlays: &overlays,
        filter: &session.filter,
        texts: &texts,
        devices,
        notify: notify.as_fd(),
        run_dir: held.run_dir.path(),
        environment: &environment,
        console: job.console,
        console_size: rustix::termios::tcgetwinsize(rustix::stdio::stdout()).ok(),
        supervisor: Pid::this().as_raw(),
        signals: process::changed_signals(),
        die_at: wanted.as_deref(),
    };
    let worker = Worker::new(c"machinist-outer").namespaces(process::ns::MOUNT).tied();
    let lost = |why: &str| {
        setup::report(&theirs, StepError::refused(format!("the outer child panicked: {why}")));
    };
    let worker = worker.cgroup(Some(held.group.payload())).on_panic(&lost);
    let outer = worker.spawn(|| child::outer(&setup, &theirs)).doing(|| "cannot start the outer child".into())?;
    drop(theirs);
    // Not earlier: now there is nothing else to do until the root is complete.
    let registering = Registering::begin(job, &session.registered);
    let mut sequence = Sequence::new(Party::Supervisor);
    let message = handshake::receive::<FromChild>(&mut sequence, &ours).doing(talk)?;
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
            let state = boot::state(held, session, leader, init, kind);
            let state = State { machine_id: entered.map(|id| id.uuid()), ..state };
            let boot = Boot { leader: pidfd, notify, state };
            Ok((Made { boot, channel: ours, sequence, outer, registering }, master))
        }
        Some((FromChild::Failed(failure), _)) => ended().and(Err(failure.into())),
        None if ended()? == Some(process::Ended::Exited(0)) => Err(MachineError::Vanished("inner child")),
        Some((FromChild::Waiting, _)) | None => Err(MachineError::Vanished("outer child")),
    }
}

impl Made {
    /// Does the host's part: state file, device filter, the entry in the table of machines.
    fn finish(self, machine: &mut Machine, devices: &[HostDevice]) -> Result<Created, MachineError> {
        die_at("supervisor:ready");
        machine.held.run_dir.write(&self.boot.state).doing(|| "cannot write the machine's state".into())?;
        if machine.session.job.plan.privileges.device_filter {
            // Not earlier: the outer child makes nodes that the payload may not.
            machine.held.group.allow_devices(&devices::allowed(devices)).map_err(|cause| {
                let hint = "a machine without a user namespace or with `[[device]]` needs CONFIG_CGROUP_BPF in the \
                            host's kernel"
                    .into();
                StepError {
                    doing: "cannot limit the machine to its own devices".into(),
                    cause: Some(cause),
                    hint: Some(hint),
                }
            })?;
        }
        // It ends while we were busy; no process with the host's rights is left when the payload begins.
        process::wait_pidfd(&self.outer, true).doing(|| "cannot talk to the inner child".into())?;
        let session = &mut machine.session;
        if let Some(warning) = self.registering.finish(&session.job, &mut session.registered)? {
            session.warn(&warning);
        }
        Ok(Created { boot: self.boot, channel: self.channel, sequence: self.sequence })
    }
}

impl Created {
    /// Lets the inner child go on; back when the payload has been executed.
    pub(super) fn start(self) -> Result<Boot, MachineError> {
        let talk = || "cannot talk to the inner child".to_owned();
        let Self { boot, channel, mut sequence } = self;
        match handshake::send(&mut sequence, &channel, &ToInner::Go, &[]) {
            Err(e) if e.errno == sys::Errno::EPIPE => return Err(MachineError::Vanished("inner child")),
            other => other.doing(talk)?,
        }
        loop {
            let stub = sequence.phase() == Phase::Waiting;
            match handshake::receive::<FromChild>(&mut sequence, &channel).doing(talk)? {
                Some((FromChild::Waiting, _)) => {}
                // It may have ended already: then its exit status is the payload's.
                None if stub || has_executed(boot.state.leader) => break,
                Some((FromChild::Failed(failure), _)) => {
                    // Reaped here, because no loop waits for a machine that never ran.
                    process::wait_pidfd(&boot.leader, true).doing(talk)?;
                    return Err(failure.into());
                }
                Some((FromChild::Ready { .. }, _)) | None => return Err(MachineError::Vanished("inner child")),
            }
        }
        die_at("supervisor:running");
        Ok(boot)
    }
}

/// Opens the console's log, if it is kept.
fn open_log(job: &Job) -> sys::Result<Option<LogFile>> {
    let console = job.plan.console;
    if !console.log {
        return Ok(None);
    }
    LogFile::open(&job.layout.state_dir(&job.plan.name), console.log_size).map(Some)
}

/// What the payload finds in its environment.
fn environment(job: &Job, uuid: &str) -> Vec<(String, String)> {
    let exec = &job.plan.exec;
    let late = exec.late_environment.iter().filter_map(|(key, value)| {
        let value = match value {
            LateValue::MachineId => uuid.to_owned(),
            LateValue::Terminal(otherwise) => {
                let ours = (job.console == Mode::Interactive).then(|| std::env::var("TERM").ok()).flatten();
                ours.unwrap_or_else(|| otherwise.clone())
            }
            // The children know the init.
            LateValue::ForInit(..) => return None,
        };
        Some((key.clone(), value))
    });
    exec.environment.iter().cloned().chain(late).collect()
}

/// A random UUID of version 4.
fn random_id() -> Result<MachineId, MachineError> {
    let mut bytes = [0; 16];
    sys::process::random(&mut bytes).doing(|| "cannot draw a random id".into())?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(MachineId(bytes))
}
