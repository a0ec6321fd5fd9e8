//! Keeps the machines from writing to the program that runs them.
//!
//! A process of ours that is visible in a machine lends it `/proc/PID/exe`, which opens our program on the
//! host (CVE-2019-5736). With a user namespace the machine's root has no right to write it. Without one it has,
//! so we run ourselves again from a read-only mount of the program that is attached nowhere: the mount is let go
//! at exec, after which no process can change its flags.

use std::ffi::{CString, OsString};
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, StatVfsMountFlags};

use super::mount::{self, Attributes};
use super::{Context, Errno, Error, Result, process};

/// Names the process that is about to run itself again, so that it does so only once.
const MARKER: &str = "MACHINIST_SEALED";
const PROGRAM: &str = "/proc/self/exe";

/// The program could not be protected from the machines it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealError(Error);

impl fmt::Display for SealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot protect our own program from a machine without a user namespace: {}", self.0)
    }
}

impl std::error::Error for SealError {}

/// Runs this program again, with the same arguments, so that no machine can write to it; at once done if it
/// already runs so.
///
/// To be called first thing, before anything is held that an exec would lose. From then on the path of the
/// program is unknown (`/proc/self/exe` still opens it).
///
/// # Errors
/// If the kernel refuses, and then no machine without a user namespace may be started or entered.
pub fn seal_own_program() -> std::result::Result<(), SealError> {
    seal().map_err(SealError)
}

fn seal() -> Result<()> {
    if is_sealed()? {
        return Ok(());
    }
    let me = std::process::id().to_string();
    if std::env::var(MARKER).is_ok_and(|who| who == me) {
        return Err(Error { call: format!("'{PROGRAM}' is still writable"), errno: Errno::EROFS });
    }
    let program = mount::copy_host_tree(Path::new(PROGRAM), false)?;
    let read_only = Attributes { read_only: true, nosuid: true, nodev: true, noexec: false };
    mount::add_attributes(&program, false, read_only)?;
    let argv: Vec<CString> = std::env::args_os().map(c_string).collect::<Result<_>>()?;
    let others = std::env::vars_os().filter(|(name, _)| name != MARKER);
    let envp: Vec<CString> = others
        .chain([(MARKER.into(), me.into())])
        .map(|(name, value)| {
            let mut text = name;
            text.push("=");
            text.push(value);
            c_string(text)
        })
        .collect::<Result<_>>()?;
    Err(process::exec_fd(program, PROGRAM, &argv, &envp))
}

fn c_string(text: OsString) -> Result<CString> {
    process::c_string(text.into_vec())
}

/// Whether our program is on a mount that nothing can be written through.
fn is_sealed() -> Result<bool> {
    let file = rustix::fs::open(PROGRAM, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .call(|| format!("open('{PROGRAM}')"))?;
    let flags = rustix::fs::fstatvfs(&file).call(|| format!("fstatvfs('{PROGRAM}')"))?.f_flag;
    Ok(flags.contains(StatVfsMountFlags::RDONLY))
}
