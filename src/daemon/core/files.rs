//! Files into and out of a running machine: binds and copies.
//!
//! A copy whose client has left continues to its end, as with machined: half a copy is of no use.

use std::path::{Component, Path};
use std::sync::Arc;
use std::time::Duration;

use super::caller::Caller;
use super::error::{Failure, Outcome};
use super::inspect::{ask, container};
use super::machines::{self, Subject};
use super::registry::Machine;
use super::state::Daemon;
use crate::enter::files::{self, Direction, Request};

/// How long a machine may take to show where a bind goes.
const PATIENCE: Duration = Duration::from_secs(30);

/// The flag that files which are there are replaced; the only one there is.
const REPLACE: u64 = 1;

/// What is to be mounted into a machine.
#[derive(Debug)]
pub(crate) struct Bind {
    pub(crate) source: String,
    pub(crate) destination: String,
    pub(crate) read_only: bool,
    pub(crate) mkdir: bool,
}

/// What is to be copied.
#[derive(Debug)]
pub(crate) struct Copy {
    pub(crate) to: bool,
    pub(crate) source: String,
    pub(crate) destination: String,
    pub(crate) flags: u64,
}

fn machine<'a>(subject: &'a Subject, what: &str) -> Outcome<&'a Arc<Machine>> {
    match subject {
        Subject::Machine(machine) => container(machine, what),
        Subject::Host => Err(Failure::not_supported(format!("{what} is only supported on container machines."))),
    }
}

/// Whether the path is absolute and has no parts that mean another place.
fn is_normalized(path: &str) -> bool {
    let plain = |part: &str| part != "." && part != "..";
    path.starts_with('/') && path.split('/').all(plain) && Path::new(path).components().count() > 1
}

/// Whether the path names a file below the root.
fn is_absolute(path: &str) -> bool {
    path.starts_with('/') && matches!(Path::new(path).components().next_back(), Some(Component::Normal(_)))
}

/// Mounts a directory or a file of the host into a machine.
pub(crate) async fn bind(daemon: &Daemon, caller: &Caller, subject: &Subject, bind: Bind) -> Outcome {
    let machine = machine(subject, "Bind mounting")?;
    let Bind { source, destination, read_only, mkdir } = bind;
    // Unlike a mount point, what is mounted may be the root.
    if source != "/" && !is_normalized(&source) {
        return Err(Failure::invalid_args("Source path must be absolute and normalized."));
    }
    let target = if destination.is_empty() { source.clone() } else { destination };
    if !is_normalized(&target) {
        return Err(Failure::invalid_args("Destination path must be absolute and normalized."));
    }
    machines::authorise(daemon, caller, machine, "manage-machines", "bind").await?;
    let request = Request::Bind(files::Bind { source, target, read_only, make: mkdir });
    ask(daemon, machine, request, Some(PATIENCE)).await?;
    Ok(())
}

/// Copies files into or out of a machine.
pub(crate) async fn copy(daemon: &Daemon, caller: &Caller, subject: &Subject, copy: Copy) -> Outcome {
    let machine = machine(subject, "Copying files")?;
    let Copy { to, source, destination, flags } = copy;
    if flags & !REPLACE != 0 {
        return Err(Failure::invalid_args(format!("Invalid flags {flags:#x}.")));
    }
    if !is_absolute(&source) {
        return Err(Failure::invalid_args("Source path must be absolute."));
    }
    let target = if destination.is_empty() { source.clone() } else { destination };
    if !is_absolute(&target) {
        return Err(Failure::invalid_args("Destination path must be absolute."));
    }
    machines::authorise(daemon, caller, machine, "manage-machines", if to { "copy-to" } else { "copy-from" }).await?;
    let direction = if to { Direction::ToMachine } else { Direction::FromMachine };
    let request = Request::Copy(files::Copy { direction, source, target, replace: flags & REPLACE != 0 });
    ask(daemon, machine, request, None).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_for_binds_are_absolute_and_mean_themselves() {
        for path in ["/a", "/a/b", "/a/b/", "/..a/b..", "/a//b"] {
            assert!(is_normalized(path), "{path}");
        }
        for path in ["", "a", "/", "//", "/a/../b", "/./a", "/a/.", "/..", "../a"] {
            assert!(!is_normalized(path), "{path}");
        }
    }

    #[test]
    fn what_is_copied_has_a_name() {
        for path in ["/a", "/a/../b", "/a/"] {
            assert!(is_absolute(path), "{path}");
        }
        for path in ["", "a", "/", "/..", "/a/..", "a/b"] {
            assert!(!is_absolute(path), "{path}");
        }
    }
}
