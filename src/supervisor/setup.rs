//! What the children of a supervisor are given, and what more than one of them does.

use std::ffi::CString;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::console::Mode;
use super::handshake::FromChild;
use crate::plan::{LateValue, Plan};
use crate::rootfs::MountedTree;
use crate::rootfs::devices::HostDevice;
use crate::rootfs::mounts::RuntimeTexts;
use crate::spec::{IdRange, InitKind, Payload};
use crate::sys::process::{self, FilterInsn};
use crate::sys::{self, Doing as _, StepError, channel, worker};

/// Everything the children need, in memory they inherit.
#[allow(missing_debug_implementations, reason = "never printed; lives between two forks")]
pub(super) struct Setup<'a> {
    pub(super) plan: &'a Plan,
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

/// Drops to the machine's rights: from here on only exec is left.
pub(super) fn limit(setup: &Setup<'_>) -> Result<(), StepError> {
    let privileges = &setup.plan.privileges;
    process::limit_bounding_set(privileges.capabilities)
        .and_then(|()| process::limit_rights(privileges.capabilities, setup.filter, privileges.no_new_privileges))
        .doing(|| "cannot limit the machine's rights".into())
}
