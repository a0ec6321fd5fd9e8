//! The two children: the first enters the machine and gives up rights, its sibling becomes the command.
//!
//! The order matters. Whatever the machine's root could trace or reach must not have more rights than it has,
//! so rights go before the second child appears in the machine's PID namespace. The filter is loaded with the
//! machine's `CAP_SYS_ADMIN`, so that it needs no `no_new_privs`, and after every call it may refuse.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use rustix::fs::{Access, AtFlags, Mode, OFlags};

use super::command::{Command, Rights, Stdio, Target, Work};
use super::error::{EnterError, Report, Shown};
use super::streams::{Ends, Streams};
use super::users::{self, User, UserProblem};
use crate::enter::process_limits;
use crate::spec::DEFAULT_PATH;
use crate::sys::StepError;
use crate::sys::path::RootFd;
use crate::sys::process::{self, CAP_SYS_ADMIN, ns};
use crate::sys::worker::Worker;
use crate::sys::{self, Context, Errno, Error, channel, socket};

type Outcome<T> = Result<T, EnterError>;

fn enter_error(error: Error) -> EnterError {
    EnterError::Enter(error)
}

/// What exec gets.
#[derive(Debug)]
struct Image {
    /// As requested: a path, or a name to look for.
    program: String,
    argv: Vec<CString>,
    envp: Vec<CString>,
    /// Directories to look in.
    path: String,
}

/// Refuses what no program could be given, before anything is made.
pub(super) fn check(command: &Command) -> Outcome<()> {
    let texts = command
        .argv
        .iter()
        .chain(&command.program)
        .chain(&command.directory)
        .chain(command.environment.iter().map(|(_, v)| v));
    for text in texts {
        if text.contains('\0') {
            return Err(EnterError::Request(format!("'{}' contains a zero byte", Shown(text))));
        }
    }
    for (name, _) in &command.environment {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(EnterError::Request(format!("'{}' is no name of a variable", Shown(name))));
        }
    }
    match command.argv.first().map(String::as_str) {
        None if !command.login_shell => Err(EnterError::Request("no command given".into())),
        Some("") if command.program.is_none() => Err(EnterError::Request("the name of the command is empty".into())),
        _ => Ok(()),
    }
}

/// Is the first child, and gives its exit status.
pub(super) fn enter(target: &Target<'_>, work: &Work<'_>, streams: &Streams, socket: &OwnedFd) -> u8 {
    let Err(error) = first_child(target, work, streams, socket) else { return 0 };
    report(socket, &Report::Failed(error), &[]);
    1
}

/// Reports to the caller, if it is still there.
pub(super) fn report(socket: &OwnedFd, report: &Report, fds: &[BorrowedFd<'_>]) {
    let _ = channel::send(socket, report, fds);
}

fn first_child(target: &Target<'_>, work: &Work<'_>, streams: &Streams, socket: &OwnedFd) -> Outcome<()> {
    hide().map_err(enter_error)?;
    let kept: Vec<BorrowedFd<'_>> =
        [socket.as_fd(), target.leader].into_iter().chain(streams.given_terminal()).collect();
    process::close_all_except(&kept).map_err(enter_error)?;
    if let Work::Run(_) = work {
        process_limits::raise(&target.rights.limits).map_err(limit_error)?;
    }
    process::setns(target.leader, namespaces(target)).map_err(enter_error)?;
    if target.user_namespace {
        // Until here we are the host's root as far as files go, and a stranger to the machine.
        process::become_user(0, 0, &[]).map_err(enter_error)?;
    }
    hide().map_err(enter_error)?;
    let root = RootFd::open("/".as_ref()).map_err(enter_error)?;
    match work {
        Work::Run(command) => run(target, command, streams, socket, &root),
        Work::Connect(path) => connect(target, path, socket, &root),
    }
}

/// Makes the second child, and is gone; the caller's child, not ours, so that nothing of us has to stay.
fn second(socket: &OwnedFd, work: impl FnOnce() -> Outcome<()>) -> Outcome<()> {
    let lost = |why: &str| report(socket, &Report::Failed(EnterError::Panicked(why.into())), &[]);
    let child = Worker::unnamed(c"entered").sibling().on_panic(&lost).spawn(|| {
        let Err(error) = work() else { return 0 };
        report(socket, &Report::Failed(error), &[]);
        127
    });
    report(socket, &Report::Started, &[child.map_err(enter_error)?.as_fd()]);
    Ok(())
}

/// Has a process that is the machine's in every way connect to a socket: the listener learns which process connected.
fn connect(target: &Target<'_>, path: &str, socket: &OwnedFd, root: &RootFd) -> Outcome<()> {
    let user = users::machine_root();
    let null = Ends::open_as_root(&Streams::null(), root, &user).map_err(EnterError::Streams)?;
    limit(target.rights, &user, || Ok(()))?;
    process::set_undumpable().map_err(enter_error)?;
    null.install().map_err(EnterError::Streams)?;
    second(socket, || {
        let connection = process::die_with_parent().and_then(|()| socket::connect_stream(path));
        report(socket, &Report::Connected, &[connection.map_err(EnterError::Connect)?.as_fd()]);
        Ok(())
    })
}

fn run(target: &Target<'_>, command: &Command, streams: &Streams, socket: &OwnedFd, root: &RootFd) -> Outcome<()> {
    let user = users::resolve(root, command.user.as_deref()).map_err(|problem| match problem {
        UserProblem::Refused(why) => EnterError::User(why),
        UserProblem::Unreadable(error) => enter_error(error),
    })?;
    let image = Image::new(command, &user)?;
    let streams_error = EnterError::Streams;
    let mut ends = Ends::open_as_root(streams, root, &user).map_err(streams_error)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    process_limits::reset(&target.rights.limits).map_err(enter_error)?;
    limit(target.rights, &user, || ends.open_as_user(streams))?;
    change_directory(root, command, &user)?;
    // Changed ids and capabilities make a process dumpable again where fs.suid_dumpable is set so.
    process::set_undumpable().map_err(enter_error)?;
    // The machine can reach the descriptors of the next process, so those of the caller go first.
    let outside: Vec<BorrowedFd<'_>> = ends.outside().collect();
    report(socket, &Report::Connected, &outside);
    let has_terminal = ends.install().map_err(streams_error)?;
    // A terminal that another process opened is for that process to hang up.
    let is_tied = streams.given_terminal().is_none();
    second(socket, || {
        prepare_exec(has_terminal, is_tied, socket).map_err(enter_error)?;
        // After the fork, so that they stop nothing of ours; no filter refuses what the C library needs itself.
        process_limits::apply(&target.rights.limits).map_err(limit_error)?;
        Err(image.execute())
    })
}

fn limit_error(error: StepError) -> EnterError {
    match error.cause {
        Some(cause) => enter_error(cause),
        None => EnterError::Request(error.doing),
    }
}

/// Goes with the caller, and cannot be looked into meanwhile.
fn hide() -> sys::Result<()> {
    process::set_undumpable()?;
    process::die_with_parent()
}

fn namespaces(target: &Target<'_>) -> u64 {
    let mut flags = ns::MOUNT | ns::PID | ns::UTS | ns::IPC | ns::CGROUP;
    for (has, flag) in
        [(target.user_namespace, ns::USER), (target.network_namespace, ns::NET), (target.time_namespace, ns::TIME)]
    {
        if has {
            flags |= flag;
        }
    }
    flags
}

/// Becomes the user with the machine's rights; `as_user` runs when the ids are the user's and no filter is loaded.
fn limit(rights: &Rights, user: &User, as_user: impl FnOnce() -> sys::Result<()>) -> Outcome<()> {
    process::limit_bounding_set(rights.capabilities).map_err(enter_error)?;
    process::keep_capabilities().map_err(enter_error)?;
    process::become_user(user.uid, user.gid, &user.groups).map_err(enter_error)?;
    as_user().map_err(EnterError::Streams)?;
    process::join_new_keyring().map_err(enter_error)?;
    let keep = if user.uid == 0 { rights.capabilities } else { 0 };
    if keep & CAP_SYS_ADMIN == 0 && !rights.filter.is_empty() {
        // To load the filter: changing the user has emptied the effective set.
        process::set_capabilities(keep | CAP_SYS_ADMIN).map_err(enter_error)?;
    }
    process::limit_rights(keep, &rights.filter, rights.no_new_privileges).map_err(enter_error)
}

/// Goes to the working directory with the user's rights, and makes sure that it is inside the root.
fn change_directory(root: &RootFd, command: &Command, user: &User) -> Outcome<()> {
    let go = |path: &str| -> sys::Result<()> {
        let dir = root.open_inside(path.trim_start_matches('/'), OFlags::PATH | OFlags::DIRECTORY)?;
        rustix::process::fchdir(dir).call(|| format!("fchdir('{path}')"))?;
        let name = rustix::process::getcwd(Vec::new()).call(|| format!("getcwd in '{path}'"))?;
        // The kernel answers "(unreachable)" and more for one outside.
        if name.as_bytes().first() == Some(&b'/') {
            return Ok(());
        }
        Err(Error { call: format!("'{path}' is outside the machine's root"), errno: Errno::EXDEV })
    };
    let result = match &command.directory {
        Some(path) => go(path),
        // As login programs do: without a home one starts at the root.
        None if command.login_shell => go(&user.home).or_else(|_| go("/")),
        None => go("/"),
    };
    result.map_err(EnterError::Directory)
}

/// What the command's process does between its fork and exec.
fn prepare_exec(has_terminal: bool, is_tied: bool, socket: &OwnedFd) -> sys::Result<()> {
    if is_tied {
        process::die_with_parent()?;
    }
    // The caller may have died before we asked to die with it, and then no process holds the other end.
    let mut set = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    if nix::poll::poll(&mut set, PollTimeout::ZERO).call(|| "poll".into())? > 0 {
        process::exit_now(1);
    }
    if has_terminal {
        process::take_terminal(rustix::stdio::stdin())?;
    } else {
        nix::unistd::setsid().call(|| "setsid".into())?;
    }
    process::close_from_on_exec(3)?;
    process::reset_signals(u64::MAX)
}

impl Image {
    fn new(command: &Command, user: &User) -> Outcome<Self> {
        let environment = environment(command, user, std::env::var("TERM").ok().as_deref());
        let path = environment.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone());
        let (program, argv) = match command.program.as_ref().or(command.argv.first()) {
            Some(program) => (program.clone(), command.argv.clone()),
            None => (user.shell.clone(), vec![format!("-{}", user.shell.rsplit('/').next().unwrap_or("sh"))]),
        };
        let c_string = |text: String| process::c_string(text).map_err(enter_error);
        Ok(Self {
            program,
            argv: argv.into_iter().map(c_string).collect::<Outcome<_>>()?,
            envp: environment.into_iter().map(|(n, v)| c_string(format!("{n}={v}"))).collect::<Outcome<_>>()?,
            path: path.unwrap_or_default(),
        })
    }

    /// Executes it; returns only with the error. As shells do, it distinguishes what is missing from what is
    /// there and cannot be executed.
    fn execute(&self) -> EnterError {
        if self.program.contains('/') {
            return match self.try_at(&self.program) {
                Some(cause) => EnterError::NotExecutable(cause),
                None => EnterError::NotFound(self.program.clone()),
            };
        }
        let mut refused = None;
        for dir in self.path.split(':').filter(|dir| !dir.is_empty()) {
            if let Some(cause) = self.try_at(&format!("{dir}/{}", self.program)) {
                if cause.errno != Errno::EACCES {
                    return EnterError::NotExecutable(cause);
                }
                refused.get_or_insert(cause);
            }
        }
        match refused {
            Some(cause) => EnterError::NotExecutable(cause),
            None => EnterError::NotFound(self.program.clone()),
        }
    }

    /// Why what is at `path` cannot be executed; `None` if nothing is there.
    fn try_at(&self, path: &str) -> Option<Error> {
        let program = match process::c_string(path) {
            Ok(program) => program,
            Err(error) => return Some(error),
        };
        let error = process::exec(&program, &self.argv, &self.envp);
        if !matches!(error.errno, Errno::ENOENT | Errno::ENOTDIR) {
            return Some(error);
        }
        let there = rustix::fs::accessat(rustix::fs::CWD, &*program, Access::EXISTS, AtFlags::empty()).is_ok();
        there.then(|| Error { call: format!("execve('{path}'), whose interpreter is missing"), errno: error.errno })
    }
}

/// The variables of the command: a few that every program expects, and the requested ones. Never the host's,
/// except that a terminal is of the kind that ours is.
fn environment(command: &Command, user: &User, terminal: Option<&str>) -> Vec<(String, String)> {
    let mut variables: Vec<(String, String)> = [
        ("PATH", DEFAULT_PATH),
        ("HOME", &user.home),
        ("USER", &user.name),
        ("LOGNAME", &user.name),
        ("SHELL", &user.shell),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    if command.stdio == Stdio::Terminal {
        let is_plain = |t: &&str| {
            !t.is_empty() && t.len() <= 64 && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._".contains(&b))
        };
        variables.push(("TERM".to_owned(), terminal.filter(is_plain).unwrap_or("vt220").to_owned()));
    }
    for (name, value) in &command.environment {
        variables.retain(|(known, _)| known != name);
        variables.push((name.clone(), value.clone()));
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> User {
        User {
            name: "alice".into(),
            uid: 1000,
            gid: 1000,
            groups: vec![],
            home: "/home/alice".into(),
            shell: "/bin/sh".into(),
        }
    }

    #[test]
    fn asked_variables_replace_the_usual_ones_and_nothing_else_is_there() {
        let asked = [("HOME", "/srv"), ("LANG", "C"), ("LANG", "C.UTF-8")].map(|(n, v)| (n.into(), v.into()));
        let command = Command { environment: asked.into(), ..Command::default() };
        let text: Vec<String> =
            environment(&command, &user(), Some("xterm")).iter().map(|(n, v)| format!("{n}={v}")).collect();
        let path = format!("PATH={DEFAULT_PATH}");
        let wanted = [&*path, "USER=alice", "LOGNAME=alice", "SHELL=/bin/sh", "HOME=/srv", "LANG=C.UTF-8"];
        assert_eq!(text, wanted);
    }

    #[test]
    fn a_terminal_type_that_is_no_plain_word_is_not_passed_on() {
        let command = Command { stdio: Stdio::Terminal, ..Command::default() };
        for (ours, passed) in [(Some("xterm-256color"), "xterm-256color"), (Some("../../x"), "vt220"), (None, "vt220")]
        {
            let variables = environment(&command, &user(), ours);
            assert!(variables.contains(&("TERM".into(), passed.into())), "{ours:?}");
        }
    }

    #[test]
    fn what_no_program_can_be_given_is_refused_before_anything_is_made() {
        let with = |argv: &[&str], name: &str| Command {
            argv: argv.iter().map(ToString::to_string).collect(),
            environment: vec![(name.into(), "x".into())],
            ..Command::default()
        };
        assert_eq!(check(&with(&["a"], "B")), Ok(()));
        for (argv, name) in [(&["a\0"][..], "B"), (&["a"], "B=C"), (&["a"], ""), (&[""], "B"), (&[], "B")] {
            assert!(check(&with(argv, name)).is_err(), "{argv:?} {name}");
        }
    }
}
