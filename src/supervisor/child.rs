//! The two children that make a machine.
//!
//! The outer child has a mount namespace of its own and the rights of the host: it clones the inner child, maps
//! its ids, builds the root and everything that must be locked for the payload, and is gone before the payload
//! runs. The inner child is in all the machine's namespaces, makes the file systems that belong to them, and
//! becomes the leader. Neither logs; both report and leave by `_exit`.

use std::cell::{OnceCell, RefCell};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::handshake::{self, Between, FromChild, Message, Party, Sequence, ToInner};
use super::setup::{Program, Setup, become_payload, kinds, report};
use super::{console, stub_init};
use crate::enter::process_limits;
use crate::plan::mounts::MountOp;
use crate::plan::{Plan, Stdio};
use crate::rootfs::mounts::{ApiMounts, Mounter, attach_root, enter_root};
use crate::rootfs::{Ids, Stacking, build, init};
use crate::spec::{IdMapEntry, IdsOf};
use crate::sys::file;
use crate::sys::mount::{self, Attributes, Propagation};
use crate::sys::namespace::{self, Kind};
use crate::sys::path::RootFd;
use crate::sys::process::{self, ns};
use crate::sys::worker::{self, Child, Worker};
use crate::sys::{self, Context as _, Doing as _, Errno, Error, StepError, channel};

/// Is the outer child; gives its exit status.
pub(super) fn outer(setup: &Setup<'_>, to_supervisor: &OwnedFd) -> u8 {
    make_machine(setup, to_supervisor).map_or_else(|error| report(to_supervisor, error), |()| 0)
}

fn make_machine(setup: &Setup<'_>, to_supervisor: &OwnedFd) -> Result<(), StepError> {
    let plan = setup.plan;
    // It died before we were tied to it.
    if nix::unistd::getppid().as_raw() != setup.supervisor {
        process::exit_now(137);
    }
    setup.step("outer:started");
    // Nothing we mount may reach the host; later host mounts may still reach binds that ask for them.
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let root = root.call(|| "open('/')".into()).doing(|| "cannot leave the host's mounts".into())?;
    mount::set_propagation(&root, true, Propagation::Slave).doing(|| "cannot leave the host's mounts".into())?;
    rustix::process::umask(Mode::empty());

    process_limits::raise(&plan.privileges.limits)?;
    let (ours, theirs) = sys::socket::pair().doing(|| "cannot talk to the inner child".into())?;
    if plan.namespaces.time.is_new() {
        start_clock_at_zero()?;
    }
    let leader = start_inner(setup, &theirs, to_supervisor)?.pid();
    drop(theirs);
    setup.step("outer:cloned");
    let userns = write_maps(setup, leader.as_raw())?;
    setup.step("outer:mapped");
    let mut sequence = Sequence::new(Party::Outer);
    let talk = || "cannot talk to the inner child".to_owned();
    handshake::send(&mut sequence, &ours, &Between::Mapped, &[]).doing(talk)?;

    let shifted = setup.range.is_some_and(|r| r.shift != 0);
    let ids = Ids {
        shift: setup.shift(),
        size: setup.range.map_or(u32::MAX, |r| r.size),
        userns: userns.as_ref().filter(|_| shifted).map(AsFd::as_fd),
        map_tree: setup.map_tree,
    };
    let stacking = Stacking { method: plan.overlay_method, scratch: setup.run_dir };
    let root = attach_root(build(&plan.root, setup.tree, ids, stacking)?)?;
    setup.step("outer:root");
    init::check_etc(&root)?;
    if plan.root.check_os_release {
        init::check_os_release(&root)?;
    }
    let init = init::find(&root, &plan.exec.payload)?;
    // Made by the inner child meanwhile.
    let (inside, sequence) = (OnceCell::new(), RefCell::new(sequence));
    let wait = || match inside.get() {
        Some(made) => Ok(made),
        None => receive_api(&mut sequence.borrow_mut(), &ours).map(|made| inside.get_or_init(|| made)),
    };
    let make_userns = |map: &[IdMapEntry]| make_userns(map, setup.shift(), &root);
    Mounter {
        root: &root,
        ids,
        tmpfs: plan.tmpfs_method,
        stacking,
        notify: setup.notify,
        texts: setup.texts,
        overlays: setup.overlays,
        devices: setup.devices,
        make_userns: &make_userns,
    }
    .run(&plan.mounts, &|| wait().map(|(api, _): &(ApiMounts, OwnedFd)| api))?;
    let (api, master) = wait()?;
    setup.step("outer:mounts");
    enter_root(&root)?;
    setup.step("outer:entered");
    let (path, kind) = init.map_or((None, None), |i| (Some(i.path), i.kind));
    let mut sequence = sequence.borrow_mut();
    handshake::send(&mut sequence, &ours, &Between::Entered(path.clone(), kind), &[]).doing(talk)?;
    let ready = FromChild::Ready { leader: leader.as_raw(), init: path, kind };
    let sent = handshake::send(&mut sequence, to_supervisor, &ready, &[master.as_fd(), api.console.as_fd()]);
    // The end of this process closes them at once.
    std::mem::forget(inside);
    sent.doing(|| "cannot talk to the supervisor".into())
}

/// Starts the inner child, a sibling of ours: the supervisor is its parent and gets its exit status.
fn start_inner(setup: &Setup<'_>, from_outer: &OwnedFd, supervisor: &OwnedFd) -> Result<Child, StepError> {
    for (kind, namespace) in setup.joined {
        namespace::join(namespace, *kind).doing(|| "cannot join a namespace".into())?;
    }
    // The outer child has made the one for clocks; that of the network comes later.
    let late = [Kind::Net, Kind::Time];
    let new = kinds(&setup.plan.namespaces).into_iter().filter(|(kind, of)| of.is_new() && !late.contains(kind));
    let namespaces = new.fold(0, |flags, (kind, _)| flags | kind.flag());
    // A copy of the supervisor's end would keep it waiting for one that died before it could be tied to it.
    let kept = [from_outer.as_fd(), supervisor.as_fd()];
    let lost = |why: &str| {
        report(supervisor, StepError::refused(format!("the inner child panicked: {why}")));
    };
    let worker = Worker::unnamed(c"inner").namespaces(namespaces).sibling().keep(&kept).on_panic(&lost);
    worker.spawn(|| inner(setup, from_outer, supervisor)).map_err(no_namespaces)
}

fn no_namespaces(cause: Error) -> StepError {
    let hint = match cause.errno {
        Errno::ENOSPC | Errno::EUSERS => Some("the host's limit of namespaces is reached (/proc/sys/user/max_*)"),
        Errno::EPERM => Some("the host forbids new namespaces (user.max_user_namespaces or a security module)"),
        _ => None,
    };
    StepError { doing: "cannot make the machine's namespaces".into(), cause: Some(cause), hint: hint.map(Into::into) }
}

/// Makes a time namespace for the children of this process in which both boot clocks begin now.
fn start_clock_at_zero() -> Result<(), StepError> {
    let doing = || "cannot give the machine a boot clock of its own".to_owned();
    process::unshare(ns::TIME).doing(doing)?;
    let now = |clock| {
        let t = rustix::time::clock_gettime(clock);
        (t.tv_sec, t.tv_nsec)
    };
    let mut text = String::new();
    for (name, clock) in
        [("monotonic", rustix::time::ClockId::Monotonic), ("boottime", rustix::time::ClockId::Boottime)]
    {
        let (seconds, nanoseconds) = now(clock);
        // The kernel wants the nanoseconds positive.
        let (s, n) = if nanoseconds == 0 { (-seconds, 0) } else { (-seconds - 1, 1_000_000_000 - nanoseconds) };
        text.push_str(&format!("{name} {s} {n}\n"));
    }
    file::write("/proc/self/timens_offsets", text).doing(doing)
}

/// Writes the id maps of `pid` and gives its user namespace; nothing for a machine without one.
fn write_maps(setup: &Setup<'_>, pid: i32) -> Result<Option<OwnedFd>, StepError> {
    let Some(range) = setup.range else { return Ok(None) };
    let line = format!("0 {} {}\n", range.shift, range.size);
    for file in ["uid_map", "gid_map"] {
        let path = format!("/proc/{pid}/{file}");
        file::set(&path, &line).map_err(|cause| StepError {
            doing: format!("cannot map ids {}..{}", range.shift, range.shift.saturating_add(range.size)),
            cause: Some(cause),
            hint: None,
        })?;
    }
    open_userns(pid).map(Some).doing(|| "cannot open the machine's user namespace".into())
}

fn open_userns(pid: i32) -> sys::Result<OwnedFd> {
    let path = format!("/proc/{pid}/ns/user");
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).call(|| format!("open('{path}')"))
}

/// Makes a user namespace for a bind with a map of its own: the mount's ids to host ids.
///
/// The kernel makes none for a process whose root is not the topmost one of its mount namespace, as ours is not
/// while the new root lies on it; so the process that becomes the namespace goes there first.
fn make_userns(map: &[IdMapEntry], shift: u32, root: &RootFd) -> sys::Result<OwnedFd> {
    let (keep, wait) = sys::socket::pair()?;
    let tell = |made: sys::Result<()>| {
        // An answer that cannot be sent is missed by its maker.
        let _ = channel::send(&wait, &made, &[]);
    };
    let lost = |why: &str| tell(Err(worker::panicked(c"userns", why)));
    let (keep, child) = Worker::unnamed(c"userns").on_panic(&lost).spawn_with(keep, |keep| {
        drop(keep);
        let made = rustix::process::fchdir(root)
            .and_then(|()| rustix::process::chroot("."))
            .call(|| "chroot".into())
            .and_then(|()| process::unshare(ns::USER));
        tell(made);
        // Lives until its maker closes the other end.
        let _ = channel::receive::<()>(&wait);
        0
    });
    let mut child = child?;
    let pid = child.pid();
    drop(wait);
    let result = (|| {
        let lost = || Error { call: "unshare(CLONE_NEWUSER)".into(), errno: Errno::ECHILD };
        channel::receive::<sys::Result<()>>(&keep)?.ok_or_else(lost)?.0?;
        for (file, of) in [("uid_map", IdsOf::Users), ("gid_map", IdsOf::Groups)] {
            let lines: String = map
                .iter()
                .filter(|e| e.of == of || e.of == IdsOf::Both)
                .map(|e| format!("{} {} {}\n", e.host, shift.saturating_add(e.guest), e.count))
                .collect();
            // A map without entries is no map; one entry for an id that no process has keeps the rest unmapped.
            let lines = if lines.is_empty() { format!("{0} {0} 1\n", u32::MAX - 1) } else { lines };
            let path = format!("/proc/{pid}/{file}");
            file::write(&path, lines)?;
        }
        open_userns(pid.as_raw())
    })();
    drop(keep);
    child.wait()?;
    result
}

fn receive_api(sequence: &mut Sequence, from_inner: &OwnedFd) -> Result<(ApiMounts, OwnedFd), StepError> {
    let doing = || "the inner child ended before its part was done".to_owned();
    let Some((Between::Api { sysfs: has_sysfs }, fds)) = handshake::receive(sequence, from_inner).doing(doing)? else {
        return Err(StepError::refused(doing()));
    };
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or_else(|| StepError::refused(doing()));
    let (proc, mqueue, cgroup, devpts, console, master) = (next()?, next()?, next()?, next()?, next()?, next()?);
    let sysfs = if has_sysfs { Some(next()?) } else { None };
    Ok((ApiMounts { proc, sysfs, mqueue, cgroup, devpts, console }, master))
}

/// Is the inner child; comes back with an exit status only if it has executed nothing.
fn inner(setup: &Setup<'_>, from_outer: &OwnedFd, supervisor: &OwnedFd) -> u8 {
    match become_leader(setup, from_outer, supervisor) {
        Ok(status) => status,
        Err(Some(error)) => report(supervisor, error),
        // The outer child has reported its own failure already.
        Err(None) => 1,
    }
}

fn become_leader(setup: &Setup<'_>, from_outer: &OwnedFd, supervisor: &OwnedFd) -> Result<u8, Option<StepError>> {
    let plan = setup.plan;
    if plan.namespaces.network.is_new() {
        // By far the slowest of all namespaces to make; the outer child builds the root meanwhile.
        process::unshare(ns::NET).map_err(no_namespaces)?;
    }
    let mut sequence = Sequence::new(Party::Inner);
    next::<Between>(&mut sequence, from_outer)?;
    setup.step("inner:started");
    if plan.namespaces.user.is_own() {
        process::become_user(0, 0, &[]).doing(|| "cannot become root of the machine".into())?;
    }
    // Cleared by the change of ids, so only now; kept over exec.
    process::die_with_parent().doing(|| "cannot tie the leader to the supervisor".into())?;
    if plan.namespaces.network.is_new() {
        process::loopback_up().doing(|| "cannot bring the loopback link up".into())?;
    }
    let console = make_api(setup, &mut sequence, from_outer)?;
    setup.step("inner:api");
    let Between::Entered(init, kind) = next(&mut sequence, from_outer)? else { return Err(None) };
    // A copy of the finished tree that belongs to the machine's user namespace: the kernel locks every mount
    // that came from the host's, so masks and read-only views cannot be undone inside.
    process::unshare(ns::MOUNT).doing(|| "cannot make the machine's mount namespace".into())?;
    rustix::process::chdir("/").call(|| "chdir('/')".into()).doing(|| "cannot enter the root".into())?;
    mount::set_propagation(rustix::fs::CWD, true, Propagation::Shared)
        .doing(|| "cannot share mounts inside the machine".into())?;
    mount_guest_tmpfs(plan)?;
    setup.step("inner:entered");
    if plan.namespaces.uts.is_new() {
        nix::unistd::sethostname(&plan.exec.hostname)
            .call(|| "sethostname".into())
            .doing(|| "cannot set the host name".into())?;
    }
    process::join_new_keyring().doing(|| "cannot leave the host's keyring".into())?;
    take_console(&console, plan.exec.stdio).doing(|| "cannot take the console".into())?;
    drop(console);
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let program = Program::new(setup, init, kind)?;
    process_limits::reset(&plan.privileges.limits).doing(|| "cannot reset the resource limits".into())?;
    process::close_from_on_exec(3).doing(|| "cannot close descriptors".into())?;
    next::<ToInner>(&mut sequence, supervisor)?;
    setup.step("inner:go");
    process::reset_signals(setup.signals).doing(|| "cannot reset signals".into())?;
    if plan.exec.stub {
        return Ok(stub_init::run(setup, &program, &mut sequence, supervisor)?);
    }
    become_payload(setup)?;
    setup.step("inner:limited");
    Err(Some(program.execute(setup)))
}

/// Mounts what the machine may unmount again: systemd unmounts `/tmp` when it stops.
fn mount_guest_tmpfs(plan: &Plan) -> Result<(), StepError> {
    for op in &plan.mounts {
        if let MountOp::GuestTmpfs { target, mode } = op {
            let doing = || format!("cannot mount '/{target}'");
            let mode = format!("{mode:o}");
            let attributes = Attributes { nosuid: true, nodev: true, ..Attributes::default() };
            let tree = mount::create("tmpfs", &[mount::Option::Text("mode", &mode)], attributes).doing(doing)?;
            mount::attach_at(&tree, rustix::fs::CWD, target).doing(doing)?;
        }
    }
    Ok(())
}

/// Receives the message whose turn it is; `None` as the error if the peer has ended, which is reported by another.
fn next<M: Message>(sequence: &mut Sequence, from: &OwnedFd) -> Result<M, Option<StepError>> {
    let received = handshake::receive(sequence, from).doing(|| "no message from the peer".into())?;
    received.map(|(message, _)| message).ok_or(None)
}

/// Makes the file systems of our namespaces and the console, and hands them to the outer child.
///
/// Mounting needs a mount namespace that our user namespace owns, and we must stay in the outer child's
/// until it is done: so a process that shares our memory makes them in a namespace of its own.
fn make_api(setup: &Setup<'_>, sequence: &mut Sequence, outer: &OwnedFd) -> Result<OwnedFd, StepError> {
    let network = setup.plan.namespaces.network.is_new();
    let made = worker::run_sharing_memory(c"api", || create_api(setup, network));
    let (api, master) = made.map_err(|cause| {
        let hint = (cause.errno == Errno::EPERM && cause.call.starts_with("fsmount")).then(|| {
            "the host's own /proc or /sys is partly hidden, as inside another container; the kernel then refuses new ones".into()
        });
        StepError { doing: "cannot make the machine's own file systems".into(), cause: Some(cause), hint }
    })?;
    let mut fds = vec![&api.proc, &api.mqueue, &api.cgroup, &api.devpts, &api.console, &master];
    fds.extend(&api.sysfs);
    let fds: Vec<BorrowedFd<'_>> = fds.into_iter().map(AsFd::as_fd).collect();
    let made = Between::Api { sysfs: network };
    handshake::send(sequence, outer, &made, &fds).doing(|| "cannot talk to the outer child".into())?;
    Ok(api.console)
}

fn create_api(setup: &Setup<'_>, sysfs: bool) -> sys::Result<(ApiMounts, OwnedFd)> {
    use mount::Option as Opt;
    process::unshare(ns::MOUNT)?;
    let data = Attributes::DATA;
    let proc = mount::create("proc", &[], data)?;
    let read_only = Attributes { read_only: true, ..data };
    let sysfs = if sysfs { Some(mount::create("sysfs", &[], read_only)?) } else { None };
    let mqueue = mount::create("mqueue", &[], data)?;
    let cgroup = mount::create("cgroup2", &[], data)?;
    let pts =
        [Opt::Flag("newinstance"), Opt::Text("ptmxmode", "0666"), Opt::Text("mode", "0620"), Opt::Text("gid", "5")];
    let devpts = mount::create("devpts", &pts, Attributes { noexec: true, nosuid: true, ..Attributes::default() })?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::openat(&devpts, "ptmx", flags, Mode::empty()).call(|| "open('pts/ptmx')".into())?;
    rustix::pty::unlockpt(&master).call(|| "ioctl(TIOCSPTLCK)".into())?;
    let console = rustix::pty::ioctl_tiocgptpeer(
        &master,
        rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC,
    )
    .call(|| "ioctl(TIOCGPTPEER)".into())?;
    console::prepare_slave(console.as_fd(), setup.console, setup.console_size)?;
    Ok((ApiMounts { proc, sysfs, mqueue, cgroup, devpts, console }, master))
}

/// Begins a session with the console as standard streams, but not as its controlling terminal: an init gives
/// that to its getty, which in a user namespace may not take it from PID 1.
fn take_console(console: &OwnedFd, stdio: Stdio) -> sys::Result<()> {
    nix::unistd::setsid().call(|| "setsid".into())?;
    if stdio == Stdio::Inherit {
        return Ok(());
    }
    rustix::stdio::dup2_stdin(console).call(|| "dup2".into())?;
    rustix::stdio::dup2_stdout(console).call(|| "dup2".into())?;
    rustix::stdio::dup2_stderr(console).call(|| "dup2".into())
}
