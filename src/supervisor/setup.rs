//! What the children of a supervisor are given, and what more than one of them does.

use std::ffi::CString;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use super::console::Mode;
use super::handshake::FromChild;
use crate::enter::process_limits;
use crate::plan::{Exec, ExecUser, LateValue, Namespace, Namespaces, Plan};
use crate::rootfs::MountedTree;
use crate::rootfs::devices::HostDevice;
use crate::rootfs::mounts::RuntimeTexts;
use crate::spec::{DEFAULT_PATH, IdRange, InitKind, Payload};
use crate::sys::namespace::{self, Kind};
use crate::sys::process::{self, FilterInsn};
use crate::sys::{self, Context as _, Doing as _, Errno, StepError, channel, worker};

/// Everything the children need, in memory they inherit.
#[allow(missing_debug_implementations, reason = "never printed; lives between two forks")]
pub(super) struct Setup<'a> {
    pub(super) plan: &'a Plan,
    /// The namespaces that the plan has the machine join.
    pub(super) joined: &'a [(Kind, OwnedFd)],
    pub(super) range: Option<IdRange>,
    pub(super) map_tree: bool,
    pub(super) tree: &'a MountedTree<'a>,
    pub(super) overlays: &'a [MountedTree<'a>],
    pub(super) filter: &'a [FilterInsn],
    pub(super) texts: &'a RuntimeTexts,
    pub(super) devices: &'a [HostDevice],
    pub(super) notify: BorrowedFd<'a>,
    pub(super) run_dir: &'a std::path::Path,
    pub(super) environment: &'a [(String, String)],
    pub(super) console: Mode,
    pub(super) console_size: Option<rustix::termios::Winsize>,
    pub(super) supervisor: i32,
    /// Signals that do not have their default action in the supervisor.
    pub(super) signals: u64,
    /// A step of [`STEPS`](super::handshake::STEPS) at which a test wants the process dead.
    pub(super) die_at: Option<&'a str>,
}

/// The plan's namespaces with their kinds.
pub(super) fn kinds(plan: &Namespaces) -> [(Kind, &Namespace); 7] {
    let Namespaces { user, network, pid, uts, ipc, cgroup, time } = plan;
    [
        (Kind::User, user),
        (Kind::Net, network),
        (Kind::Pid, pid),
        (Kind::Uts, uts),
        (Kind::Ipc, ipc),
        (Kind::Cgroup, cgroup),
        (Kind::Time, time),
    ]
}

/// Opens the namespaces that the plan has the machine join, and makes sure of what they are.
pub(super) fn open_joined(plan: &Namespaces) -> Result<Vec<(Kind, OwnedFd)>, StepError> {
    let paths = kinds(plan).into_iter().filter_map(|(kind, namespace)| match namespace {
        Namespace::Join(path) => Some((kind, path)),
        Namespace::New | Namespace::Host => None,
    });
    let open = |(kind, path): (Kind, &PathBuf)| {
        if kind == Kind::User {
            return Err(StepError::refused(format!("a machine cannot join the user namespace '{}'", path.display())));
        }
        let doing = || format!("cannot join the namespace '{}'", path.display());
        namespace::open_file(path, kind).map(|fd| (kind, fd)).doing(doing)
    };
    paths.map(open).collect()
}

impl Setup<'_> {
    /// A point at which a test may end the process.
    pub(super) fn step(&self, name: &str) {
        worker::panic_if_asked(name);
        if self.die_at == Some(name) {
            // PID 1 of a namespace cannot kill itself, so both leave as if they had been killed.
            process::exit_now(137);
        }
    }

    /// The host id of the machine's root.
    pub(super) fn shift(&self) -> u32 {
        self.range.map_or(0, |r| r.shift)
    }
}

/// Reports to the supervisor why a child fails; gives its exit status.
pub(super) fn report(supervisor: &OwnedFd, error: StepError) -> u8 {
    // If this fails, too, the supervisor is gone, and so will we be.
    let _ = channel::send(supervisor, &FromChild::Failed(error), &[]);
    1
}

/// What is executed, ready for the kernel.
pub(super) struct Program {
    pub(super) path: CString,
    pub(super) argv: Vec<CString>,
    pub(super) environment: Vec<CString>,
}

impl Program {
    /// Takes what the kernel wants to have as C strings.
    pub(super) fn new(setup: &Setup<'_>, init: Option<String>, kind: Option<InitKind>) -> Result<Self, StepError> {
        let doing = || "cannot prepare the machine's init".to_owned();
        let (path, args) = match &setup.plan.exec.payload {
            Payload::Command { argv } => (argv.first().cloned().unwrap_or_default(), argv.get(1..).unwrap_or_default()),
            Payload::Auto { args } | Payload::Kind { args, .. } | Payload::Path { args, .. } => {
                (init.ok_or_else(|| StepError::refused(doing()))?, args.as_slice())
            }
        };
        let argv =
            std::iter::once(&path).chain(args).map(|a| process::c_string(a.as_str())).collect::<sys::Result<_>>();
        let for_init = |name: &String| {
            setup.plan.exec.late_environment.iter().find_map(|(key, late)| match late {
                LateValue::ForInit(init, value) if key == name && kind == Some(*init) => Some(value),
                _ => None,
            })
        };
        let list = setup.environment.iter().map(|(key, value)| (key, for_init(key).unwrap_or(value)));
        let environment = list.map(|(k, v)| process::c_string(format!("{k}={v}"))).collect::<sys::Result<_>>();
        Ok(Self {
            argv: argv.doing(doing)?,
            environment: environment.doing(doing)?,
            path: process::c_string(path).doing(doing)?,
        })
    }
}

impl Program {
    /// Becomes the program; comes back only to say why not.
    pub(super) fn execute(&self, setup: &Setup<'_>) -> StepError {
        let mut last = None;
        for path in self.candidates() {
            let cause = process::exec(&path, &self.argv, &self.environment);
            let missing = matches!(cause.errno, Errno::ENOENT | Errno::ENOTDIR);
            last = Some(cause);
            if !missing {
                break;
            }
        }
        let what = match setup.plan.exec.payload {
            Payload::Command { .. } => "`boot.command`",
            Payload::Auto { .. } | Payload::Kind { .. } | Payload::Path { .. } => "the machine's init",
        };
        StepError { doing: format!("cannot execute {what}"), cause: last, hint: None }
    }

    /// The program itself if it has a slash, else its places in the machine's PATH.
    fn candidates(&self) -> Vec<CString> {
        let name = self.path.to_bytes();
        if name.contains(&b'/') {
            return vec![self.path.clone()];
        }
        let path = self.environment.iter().find_map(|e| e.to_bytes().strip_prefix(b"PATH="));
        let join = |dir: &[u8]| process::c_string([dir, b"/", name].concat());
        path.unwrap_or(DEFAULT_PATH.as_bytes()).split(|b| *b == b':').filter_map(|dir| join(dir).ok()).collect()
    }
}

/// Drops to the limits, the user and the rights of the payload.
pub(super) fn become_payload(setup: &Setup<'_>) -> Result<(), StepError> {
    process_limits::apply(&setup.plan.privileges.limits)?;
    become_user(&setup.plan.exec)?;
    limit(setup)
}

/// Becomes the payload's user, with all rights still, and goes to its directory as that.
fn become_user(exec: &Exec) -> Result<(), StepError> {
    let ExecUser { uid, gid, groups } = &exec.user;
    let doing = || format!("cannot become user {uid}");
    if exec.user != ExecUser::default() {
        let rights = process::effective_set().doing(doing)?;
        process::keep_capabilities().doing(doing)?;
        process::become_user(*uid, *gid, groups).doing(doing)?;
        process::set_capabilities(rights).doing(doing)?;
        // Cleared by the change of ids.
        process::die_with_parent().doing(doing)?;
    }
    if exec.directory != "/" {
        let doing = || format!("cannot begin in '{}'", exec.directory);
        rustix::process::chdir(exec.directory.as_str()).call(|| "chdir".into()).doing(doing)?;
    }
    Ok(())
}

/// Drops to the machine's rights: from here on only exec is left.
pub(super) fn limit(setup: &Setup<'_>) -> Result<(), StepError> {
    let privileges = &setup.plan.privileges;
    process::limit_bounding_set(privileges.capabilities)
        .and_then(|()| process::limit_rights(privileges.capabilities, setup.filter, privileges.no_new_privileges))
        .doing(|| "cannot limit the machine's rights".into())
}
