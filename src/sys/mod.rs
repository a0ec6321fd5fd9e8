//! Every system call that is more than opening a file, and the only `unsafe` of the crate.
//!
//! Knows nothing of machines. Each function does one thing and its [`Error`] names the call, the object and
//! the errno, so that callers add only their intention. Descriptors are close-on-exec by construction.
#![allow(unsafe_code, reason = "the one place where it may appear; every block says why it is sound")]

pub mod block;
pub mod bpf;
pub mod btrfs;
pub mod channel;
pub mod errno_as_number;
pub mod exe_seal;
pub mod file;
pub mod lock;
pub mod message;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod path;
pub mod process;
pub mod rlimits;
pub mod socket;
mod step;
pub mod terminal;
pub mod worker;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use nix::errno::Errno;
pub use step::{Doing, StepError};

/// A system call that failed: what was called on what, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// The call with its object, as in `openat2('etc/os-release')`.
    pub call: String,
    /// The kernel's answer.
    #[serde(with = "errno_as_number")]
    pub errno: Errno,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, self.errno.desc())
    }
}

impl std::error::Error for Error {}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        Self::from_raw_os_error(error.errno as i32)
    }
}

/// Result of a system call.
pub type Result<T> = std::result::Result<T, Error>;

/// Turns the errors of the libraries we use into ours, naming the call only when it failed.
pub trait Context<T> {
    /// Names the call and its object.
    fn call(self, call: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for nix::Result<T> {
    fn call(self, call: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error { call: call(), errno })
    }
}

impl<T> Context<T> for rustix::io::Result<T> {
    fn call(self, call: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error { call: call(), errno: Errno::from_raw(errno.raw_os_error()) })
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn call(self, call: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error { call: call(), errno: e.raw_os_error().map_or(Errno::EIO, Errno::from_raw) })
    }
}

/// Room for the small files that the kernel makes, which do not report their size: one call reads them whole.
pub const READ_AT_ONCE: usize = 4096;

/// Reads a small text file.
pub fn read_text(path: impl AsRef<std::path::Path>) -> Result<String> {
    let path = path.as_ref();
    use std::io::Read as _;
    let call = || format!("read('{}')", path.display());
    let file = std::fs::File::open(path).call(call)?;
    let mut text = String::with_capacity(READ_AT_ONCE);
    // Limited, so that the library uses our room instead of asking for the size.
    file.take(u64::MAX).read_to_string(&mut text).call(call)?;
    Ok(text)
}

/// Turns the -1 of a raw call into the errno.
fn check(result: libc::c_long) -> nix::Result<i32> {
    if result < 0 {
        return Err(Errno::last());
    }
    Ok(i32::try_from(result).unwrap_or(i32::MAX))
}
