//! The verbs that start, stop and enter machines.

use std::io::IsTerminal as _;
use std::os::fd::AsFd;
use std::time::Duration;

use super::enter::{self as face, ExecArgs, ShellArgs};
use super::look::{machine_name, state_of};
use super::output::{self, Failure, Failures, say, status};
use super::start::default_jobs;
use super::{ConsoleMode, ExecArguments, RunArguments, carried, key_values, remote};
use crate::bus::{SystemBus, machine1};
use crate::daemon::Login;
use crate::enter::{Target, attend};
use crate::plan;
use crate::running::control::{self, Answer, Request};
use crate::running::start_limit::StartSlot;
use crate::running::state::{self, Phase, State};
use crate::running::stop;
use crate::spec::{Layout, MachineName, Resources, UserMode};
use crate::supervisor::console::{AttachEnd, Mode, attach};
use crate::supervisor::{self, Job, MachineError};
use crate::sys::exe_seal;
use crate::sys::process;
use crate::{cgroup, config, host};

/// Loads, checks and plans a machine.
pub(super) fn prepare(layout: &Layout, name: &str) -> Result<Job, Failure> {
    let loaded = config::load(layout, name)?;
    let facts = host::probe_for(&loaded.spec.resources).map_err(|e| Failure::call("cannot look at this host", &e))?;
    let plan = match plan::build(&loaded.spec, &facts, layout) {
        Ok(plan) => plan,
        Err(e) => return Err(Failure::plan(loaded, &e)),
    };
    let definition = Some(std::path::absolute(&loaded.definition).unwrap_or(loaded.definition));
    if loaded.spec.users.mode == UserMode::Host {
        if facts.privileged {
            // Comes back only in a process that is sealed already.
            exe_seal::seal_own_program().map_err(|e| Failure::new(e.to_string()))?;
        }
        output::warn(&format!("machine '{}' has no user namespace: its root is root of this host", plan.name));
    }
    Ok(Job {
        layout: layout.clone(),
        plan,
        resources: loaded.spec.resources,
        facts,
        definition,
        console: Mode::Detached,
        on_chown: chown_progress,
        on_warning: output::warn_anywhere,
        background: false,
    })
}

/// One line that counts files, where somebody watches.
fn chown_progress(done: Option<u64>) {
    use indicatif::{ProgressBar, ProgressStyle};
    use std::sync::OnceLock;
    static BAR: OnceLock<ProgressBar> = OnceLock::new();
    let bar = BAR.get_or_init(|| {
        let style = ProgressStyle::with_template("{spinner} giving files to the machine's ids: {pos} done, {per_sec}");
        ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
    });
    match done {
        Some(done) if done.is_multiple_of(100) => bar.set_position(done),
        Some(_) => {}
        None => bar.finish_and_clear(),
    }
}

pub(super) fn cannot_start(name: &MachineName) -> String {
    format!("cannot start machine '{name}'")
}

/// `machinist run`
pub(super) fn run(layout: &Layout, args: &RunArguments, quiet: bool) -> Result<u8, Failure> {
    // Whoever asked the service manager to start the unit has no other way to read why it failed.
    run_here(layout, args, quiet).inspect_err(|failure| supervisor::tell_manager(&failure.line()))
}

fn run_here(layout: &Layout, args: &RunArguments, quiet: bool) -> Result<u8, Failure> {
    let mut job = prepare(layout, &args.name)?;
    job.console = match args.console {
        None => Mode::of_stdio(),
        Some(ConsoleMode::Interactive) if !std::io::stdin().is_terminal() => {
            return Err(Failure::usage("`--console interactive` needs a terminal on standard input"));
        }
        Some(ConsoleMode::Interactive) => Mode::Interactive,
        Some(ConsoleMode::ReadOnly) => Mode::ReadOnly,
        Some(ConsoleMode::Pipe) => Mode::Pipe,
        Some(ConsoleMode::None) => Mode::Detached,
    };
    let name = job.plan.name.clone();
    let doing = cannot_start(&name);
    let talk = !quiet && job.console == Mode::Interactive;
    say(!talk, &format!("Starting machine '{name}'. Press ^] three times within 1s to stop it."));
    let busy = || supervisor::tell_manager("Waiting while other machines start.");
    let slot = args.jobs.map(|jobs| StartSlot::take(layout, if jobs == 0 { default_jobs() } else { jobs }, busy));
    let slot = slot.transpose().map_err(|e| Failure::call(doing.clone(), &e))?;
    let mut prepared = supervisor::prepare(job).map_err(|e| Failure::machine(&doing, &e))?;
    slot.into_iter().for_each(|slot| prepared.hold_slot(slot));
    let exit = prepared.run().map_err(|e| Failure::machine(&doing, &e))?;
    carried::tell_end(&exit);
    if exit.killed {
        output::warn(&format!("machine '{name}' did not stop in time and was killed"));
    } else {
        say(!talk, &format!("Machine '{name}' has ended."));
    }
    Ok(exit.status)
}

/// A spinner on a terminal until it is dropped, nothing elsewhere.
pub(super) struct Spinner(Option<indicatif::ProgressBar>);

impl Spinner {
    pub(super) fn new(quiet: bool, text: String) -> Self {
        if quiet || !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = indicatif::ProgressBar::new_spinner().with_message(text);
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(Some(bar))
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Does `work` for every name and fails at the end if any failed; all but the last failure are printed at once.
pub(super) fn each(names: &[String], mut work: impl FnMut(&str) -> Result<(), Failure>) -> Result<u8, Failure> {
    let mut failures = Failures::default();
    for name in names {
        if let Err(failure) = work(name) {
            failures.add(failure);
        }
    }
    failures.result()
}

/// The state of a machine that must be running.
pub(super) fn running(layout: &Layout, name: &str) -> Result<(MachineName, State), Failure> {
    let name = machine_name(name)?;
    match state_of(layout, &name)? {
        Some(state) => Ok((name, state)),
        None => Err(Failure::new(format!("machine '{name}' is not running"))),
    }
}

/// Sends a request and waits for the last answer to it.
pub(super) fn ask(
    layout: &Layout,
    name: &MachineName,
    request: &Request,
    text: String,
    quiet: bool,
) -> Result<Option<Answer>, Failure> {
    let failed = |e: &crate::sys::Error| Failure::call(format!("cannot reach the supervisor of machine '{name}'"), e);
    let connection = control::ask(layout, name, request).map_err(|e| failed(&e))?;
    let spinner = Spinner::new(quiet, text);
    let mut last = None;
    while let Some(answer) = control::receive::<Answer>(&connection).map_err(|e| failed(&e))? {
        let over = !matches!(answer, Answer::Accepted);
        last = Some(answer);
        if over {
            break;
        }
    }
    drop(spinner);
    Ok(last)
}

/// Passes on what the daemon remarked.
pub(super) fn remarked(remark: &str) {
    remark.lines().for_each(output::warn);
}

/// `machinist reboot`
pub(super) fn reboot(layout: &Layout, name: &str, quiet: bool) -> Result<(), Failure> {
    if let Some(remark) = remote::restart(layout, machine_name(name)?.as_str()) {
        remarked(&remark?);
        say(quiet, &format!("Machine '{name}' has been rebooted."));
        return Ok(());
    }
    let (name, _) = running(layout, name)?;
    match ask(layout, &name, &Request::Reboot, format!("rebooting machine '{name}'"), quiet)? {
        Some(Answer::Rebooted { killed }) => {
            if killed {
                output::warn(&format!("machine '{name}' did not stop in time and was killed"));
            }
            say(quiet, &format!("Machine '{name}' has been rebooted."));
            Ok(())
        }
        Some(Answer::Refused(why)) => Err(Failure::new(format!("cannot reboot machine '{name}': {why}"))),
        _ => Err(Failure::new(format!("machine '{name}' ended instead of rebooting"))),
    }
}

/// Reads a signal's number or name, with or without `SIG`, real-time ones as `RTMIN+4`.
pub(super) fn parse_signal(text: &str) -> Result<i32, String> {
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = bare.strip_prefix("RTMIN") {
        let offset = if offset.is_empty() { Some(0) } else { offset.strip_prefix('+').and_then(|o| o.parse().ok()) };
        return match offset {
            Some(n) if (0..=libc::SIGRTMAX() - libc::SIGRTMIN()).contains(&n) => Ok(libc::SIGRTMIN() + n),
            _ => Err(format!("there is no signal '{text}'")),
        };
    }
    if let Ok(number) = bare.parse::<i32>() {
        return if (1..=libc::SIGRTMAX()).contains(&number) {
            Ok(number)
        } else {
            Err(format!("there is no signal {number}"))
        };
    }
    let signal = format!("SIG{bare}").parse::<nix::sys::signal::Signal>();
    signal.map(|s| s as i32).map_err(|_| format!("there is no signal '{text}'"))
}

/// `machinist kill`
pub(super) fn kill(layout: &Layout, name: &str, signal: i32, leader: bool) -> Result<(), Failure> {
    let (name, state) = running(layout, name)?;
    // Whatever happens then is no reason to start the machine again.
    if stop::is_end(state.init_kind, signal) {
        control::announce(layout, &name);
        if state.phase == Phase::Restarting {
            return Ok(());
        }
    }
    let result = if leader {
        state.open_leader().and_then(|fd| process::pidfd_send_signal(fd, signal))
    } else if signal == libc::SIGKILL {
        cgroup::kill_payload(&state.cgroup)
    } else {
        cgroup::signal_payload(&state.cgroup, signal)
    };
    result.map_err(|e| Failure::call(format!("cannot signal machine '{name}'"), &e))
}

/// `machinist freeze` and `thaw`
pub(super) fn freeze(layout: &Layout, name: &str, frozen: bool) -> Result<(), Failure> {
    let (name, state) = running(layout, name)?;
    let verb = if frozen { "freeze" } else { "thaw" };
    cgroup::freeze(&state.cgroup, frozen).map_err(|e| Failure::call(format!("cannot {verb} machine '{name}'"), &e))
}

/// `machinist reap`
pub(super) fn reap(layout: &Layout, name: &str, quiet: bool) -> Result<(), Failure> {
    let name = machine_name(name)?;
    let facts = host::probe().map_err(|e| Failure::call("cannot look at this host", &e))?;
    // A definition that is gone or broken only leaves less to go by.
    let mut spec = config::load(layout, name.as_str()).ok().map(|loaded| loaded.spec);
    // Nor does a limit that this host cannot enforce keep anything.
    spec.iter_mut().for_each(|spec| spec.resources = Resources::default());
    let found = match supervisor::reap(layout, &facts, &name, spec.as_ref()) {
        Ok(found) => found,
        Err(MachineError::AlreadyRunning(_)) => {
            return Err(
                Failure::new(format!("machine '{name}' is running")).hint(format!("`machinist stop {name}` ends it"))
            );
        }
        Err(e) => return Err(Failure::machine(&format!("cannot clear machine '{name}' away"), &e)),
    };
    say(
        quiet,
        &if found {
            format!("Machine '{name}' has been cleared away.")
        } else {
            format!("Nothing is left of machine '{name}'.")
        },
    );
    Ok(())
}

/// `machinist console`
pub(super) fn console(layout: &Layout, name: &str, read_only: bool) -> Result<u8, Failure> {
    let (name, _) = running(layout, name)?;
    let mode = if read_only { Mode::ReadOnly } else { Mode::of_stdio() };
    let failed = |e: &crate::sys::Error| Failure::call(format!("cannot attach to machine '{name}'"), e);
    let connection = control::ask(layout, &name, &Request::Console).map_err(|e| failed(&e))?;
    match attach(connection, name.as_str(), mode).map_err(|e| failed(&e))? {
        AttachEnd::Signal(number) => Ok(u8::try_from(128 + number).unwrap_or(255)),
        AttachEnd::Left | AttachEnd::Closed(_) | AttachEnd::LocalGone => Ok(status::OK),
    }
}

/// Enters a running machine.
fn enter<T>(
    layout: &Layout,
    name: &str,
    work: impl FnOnce(&Target<'_>) -> Result<T, crate::enter::EnterError>,
) -> Result<T, Failure> {
    let (name, state) = running(layout, name)?;
    if cgroup::is_frozen(&state.cgroup) {
        // What we put there would be frozen, too, and we would wait for it.
        return Err(
            Failure::new(format!("machine '{name}' is frozen")).hint(format!("`machinist thaw {name}` lets it go on"))
        );
    }
    if state.phase == Phase::Restarting {
        return Err(Failure::new(format!("machine '{name}' has ended and is about to be started again")));
    }
    if state.ids.is_none() {
        exe_seal::seal_own_program().map_err(|e| Failure::new(e.to_string()))?;
    }
    let leader = state.open_leader().map_err(|e| Failure::call(format!("cannot enter machine '{name}'"), &e))?;
    let (rights, group) = (state.rights(), state.payload_group());
    let target = state.target(leader.as_fd(), &group, &rights);
    work(&target).map_err(|e| Failure::enter(&e))
}

/// `machinist exec`
pub(super) fn exec(layout: &Layout, args: ExecArguments) -> Result<u8, Failure> {
    let wanted = ExecArgs {
        argv: args.command,
        user: args.user,
        environment: key_values(&args.env)?,
        directory: args.directory,
        timeout: args.timeout,
        tty: args.tty,
    };
    if let Some(status) = remote::exec(layout, machine_name(&args.name)?.as_str(), &wanted) {
        return status;
    }
    enter(layout, &args.name, |target| face::exec(target, wanted))
}

/// `machinist shell`
pub(super) fn shell(layout: &Layout, target: &str, env: &[String], argv: Vec<String>) -> Result<u8, Failure> {
    let (user, name) = face::split_user(target);
    let wanted = ShellArgs { argv, user: user.map(str::to_owned), environment: key_values(env)?, directory: None };
    enter(layout, name, |target| face::shell(target, wanted))
}

/// `machinist login`: root's own way into our machines, else that of whoever serves `org.freedesktop.machine1`.
pub(super) fn login(layout: &Layout, name: &str, quiet: bool) -> Result<u8, Failure> {
    let name = machine_name(name)?;
    let failed = |why: String| Failure::new(format!("cannot log in to machine '{name}': {why}"));
    let call = |e: crate::sys::Error| failed(e.to_string());
    let own = if nix::unistd::geteuid().is_root() { state::read(layout, &name).map_err(call)? } else { None };
    let mut login = None;
    let (master, leader) = match own {
        Some(state) => {
            let leader = state.open_leader().map_err(call)?;
            let mut opened = Login::open(layout, &name, &leader, state.ids.is_none()).map_err(failed)?;
            let master = opened.take_master();
            login = Some(opened);
            (master.ok_or_else(|| failed("the helper sent no terminal".into()))?, leader)
        }
        None => {
            let bus = SystemBus::of(layout);
            let (master, pid) = machine1::open_login(&bus, name.as_str()).map_err(|e| failed(e.to_string()))?;
            let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap_or(0));
            (master, process::pidfd_open(pid).map_err(call)?)
        }
    };
    say(quiet, &format!("Connected to machine '{name}'. Press ^] three times within 1s to leave."));
    let over = login.as_ref().and_then(Login::over).unwrap_or_else(|| leader.as_fd());
    match attend(master, over).map_err(|e| Failure::enter(&e))? {
        Some(signal) => Ok(u8::try_from(128 + signal).unwrap_or(255)),
        None => Ok(status::OK),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_by_name_and_number() {
        for (text, number) in
            [("9", 9), ("SIGTERM", 15), ("term", 15), ("RTMIN+4", libc::SIGRTMIN() + 4), ("SIGRTMIN", libc::SIGRTMIN())]
        {
            assert_eq!(parse_signal(text), Ok(number), "{text}");
        }
        for text in ["0", "99", "-1", "NOPE", "RTMIN+99", "RTMIN-1", ""] {
            assert!(parse_signal(text).is_err(), "{text}");
        }
    }
}
