//! Copies files between the host and a running machine.
//!
//! ```text
//! host's rights:  the host's side, as a detached mount with the machine's ids
//!                    │ fork
//! machine's root: ───┴──> the machine's side, looked up by itself; the copy
//! ```
//!
//! The copy is made with the machine's rights alone. The kernel translates owners, ACLs and capabilities between the two
//! mounts: user 1000 of the host is user 1000 of the machine. A user without an id in the machine is `nobody` (65534)
//! there, and this user's files cannot be read unless others may read them. Where the host's file system cannot map
//! ids, the files take the way through a file system in memory.
//!
//! What comes from a machine with ids of its own comes without setuid and setgid bits and without capabilities: a file
//! that its root has prepared must not run with rights on the host. A copy stays on the file system where it begins.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::error::{InsideError, Outcome};
use super::leader::{Leader, become_guest_root, host_root, leave_mounts, shown};
use crate::sys::mount::{self, Attributes};
use crate::sys::path::RootFd;
use crate::sys::worker::Worker;
use crate::sys::{self, Context as _, Errno, channel, process, socket};
use crate::tree::copy::{self, Policy};
use crate::tree::inode::Inode;
use crate::tree::walk::Stopped;

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// From the host.
    ToMachine,
    /// To the host.
    FromMachine,
}

/// What to copy where: a file, or a directory with all that is in it. A symlink at the end is copied as that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    /// Which way.
    pub direction: Direction,
    /// Absolute path on the one side.
    pub source: String,
    /// Absolute path on the other, in a directory that is there. A directory that is there is filled by one.
    pub target: String,
    /// Replace files that are there.
    pub replace: bool,
}

/// Name of what is on its way through memory.
const STAGED: &str = "copy";

pub(super) fn copy(request: &Copy, leader: &Leader) -> Outcome<()> {
    let root = RootFd::from_fd(leader.root(OFlags::PATH)?);
    let userns = leader.user_namespace()?;
    let (source, target) = (Name::split(&request.source)?, Name::split(&request.target)?);
    leave_mounts()?;
    rustix::process::umask(Mode::empty());
    match request.direction {
        Direction::ToMachine => to_machine(&root, userns.as_ref(), &source, &target, request.replace),
        Direction::FromMachine => from_machine(&root, userns.as_ref(), &source, &target, request.replace),
    }
}

/// A path in two parts.
struct Name<'a> {
    whole: &'a str,
    parent: &'a str,
    last: CString,
}

impl<'a> Name<'a> {
    fn split(path: &'a str) -> Outcome<Self> {
        let invalid = || InsideError::new(Errno::EINVAL, format!("{} names no file that can be copied", shown(path)));
        let whole = path.trim_end_matches('/');
        let (parent, last) = whole.rsplit_once('/').ok_or_else(invalid)?;
        if last.is_empty() || [".", ".."].contains(&last) {
            return Err(invalid());
        }
        let parent = if parent.is_empty() { "/" } else { parent };
        Ok(Self { whole, parent, last: process::c_string(last)? })
    }
}

/// Where a copy goes.
enum Place {
    /// Into a directory that is there.
    Filled(OwnedFd),
    /// Under a new name in this one.
    New(OwnedFd),
}

impl Place {
    /// Copies there.
    fn take(self, from: &Inode, name: &Name<'_>, policy: Policy) -> Outcome<()> {
        let is_dir = FileType::from_raw_mode(from.stat()?.st_mode).is_dir();
        let result = match self {
            Self::Filled(to) if is_dir => copy::contents(from, to, policy),
            Self::Filled(_) => return Err(exists(name)),
            Self::New(dir) => copy::object(from, &dir, &name.last, policy),
        };
        result.map_err(|Stopped { path, cause }| match cause.errno {
            Errno::EEXIST if path == Path::new("/") => exists(name),
            errno => InsideError::new(errno, format!("copying {}: {cause}", shown(&path.to_string_lossy()))),
        })
    }
}

fn exists(name: &Name<'_>) -> InsideError {
    InsideError::new(Errno::EEXIST, format!("{} exists already", shown(name.whole)))
}

fn is_dir(fd: &OwnedFd) -> sys::Result<bool> {
    let stat = rustix::fs::fstat(fd).call(|| "fstat()".into())?;
    Ok(FileType::from_raw_mode(stat.st_mode).is_dir())
}

/// A file of the host, opened without following a symlink at its end.
fn open_host(name: &Name<'_>) -> sys::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(name.whole, flags, Mode::empty()).call(|| format!("open({})", shown(name.whole)))
}

/// A detached mount of just this, with the machine's ids; `None` where the file system has no such mounts.
fn mapped(of: &OwnedFd, userns: &OwnedFd) -> sys::Result<Option<OwnedFd>> {
    let tree = mount::copy_tree(of, Path::new(""), false)?;
    match mount::map_ids(&tree, false, userns) {
        Ok(()) => Ok(Some(tree)),
        Err(e) if matches!(e.errno, Errno::EINVAL | Errno::EPERM) => Ok(None),
        Err(e) => Err(e),
    }
}

/// A file system in memory, seen with the host's ids and with the machine's.
struct Stage {
    host: OwnedFd,
    machine: OwnedFd,
}

impl Stage {
    fn new(userns: &OwnedFd) -> Outcome<Self> {
        let host = mount::create("tmpfs", &[mount::Option::Text("mode", "0700")], Attributes::DATA)?;
        // The kernel copies only what is attached somewhere.
        mount::attach(&host, host_root()?)?;
        let machine = mapped(&host, userns)?.ok_or_else(|| {
            InsideError::new(Errno::EOPNOTSUPP, "neither this file system nor one in memory can map ids (Linux 6.3)")
        })?;
        Ok(Self { host, machine })
    }

    fn open(dir: &OwnedFd) -> sys::Result<Inode> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(dir, STAGED, flags, Mode::empty()).call(|| "open(staged copy)".into()).map(Inode::from_fd)
    }

    fn name() -> Outcome<Name<'static>> {
        Ok(Name { whole: STAGED, parent: "/", last: process::c_string(STAGED)? })
    }
}

fn to_machine(
    root: &RootFd,
    userns: Option<&OwnedFd>,
    source: &Name<'_>,
    target: &Name<'_>,
    replace: bool,
) -> Outcome<()> {
    let policy = Policy::Foreign { replace, privileges: true };
    let found = open_host(source)?;
    let from = match userns {
        None => Inode::from_fd(found),
        Some(userns) => match mapped(&found, userns)? {
            Some(tree) => Inode::from_fd(tree),
            None => {
                let stage = Stage::new(userns)?;
                let place = Place::New(stage.host.try_clone().call(|| "dup".into())?);
                place.take(&Inode::from_fd(found), &Stage::name()?, policy)?;
                Stage::open(&stage.machine)?
            }
        },
    };
    as_guest(userns, || {
        let place = match root.open_inside(target.whole, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(old) if is_dir(&old)? => Place::Filled(old),
            Ok(_) if !replace => return Err(exists(target)),
            Err(e) if e.errno != Errno::ENOENT => return Err(e.into()),
            _ => Place::New(root.open_inside(target.parent, OFlags::PATH | OFlags::DIRECTORY)?),
        };
        place.take(&from, target, policy)
    })
}

fn from_machine(
    root: &RootFd,
    userns: Option<&OwnedFd>,
    source: &Name<'_>,
    target: &Name<'_>,
    replace: bool,
) -> Outcome<()> {
    let policy = Policy::Foreign { replace, privileges: userns.is_none() };
    let (dir, filled) = match open_host(target) {
        Ok(old) if is_dir(&old)? => (old, true),
        Ok(_) if !replace => return Err(exists(target)),
        Err(e) if e.errno != Errno::ENOENT => return Err(e.into()),
        _ => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let parent = rustix::fs::open(target.parent, flags, Mode::empty());
            (parent.call(|| format!("open({})", shown(target.parent)))?, false)
        }
    };
    let place = |dir| if filled { Place::Filled(dir) } else { Place::New(dir) };
    let from = || root.open_inside(source.whole, OFlags::PATH | OFlags::NOFOLLOW).map(Inode::from_fd);
    let Some(userns) = userns else { return place(dir).take(&from()?, target, policy) };
    if let Some(tree) = mapped(&dir, userns)? {
        return as_guest(Some(userns), || place(tree).take(&from()?, target, policy));
    }
    let Stage { host, machine } = Stage::new(userns)?;
    as_guest(Some(userns), || Place::New(machine).take(&from()?, &Stage::name()?, policy))?;
    place(dir).take(&Stage::open(&host)?, target, policy)
}

/// Does `work` in a child with no rights but those of the machine's root, if that is not the host's.
fn as_guest(userns: Option<&OwnedFd>, work: impl FnOnce() -> Outcome<()>) -> Outcome<()> {
    let Some(userns) = userns else { return work() };
    let (ours, theirs) = socket::pair()?;
    let tell = |result: &Outcome<()>| {
        // Without an answer our parent reports that we are lost.
        let _ = channel::send(&theirs, result, &[]);
    };
    let lost = |how: &str| InsideError::new(Errno::EIO, format!("the process that copies {how}"));
    let panicked = |why: &str| tell(&Err(lost(&format!("panicked: {why}"))));
    let mut child = Worker::new(c"machinist-copy").on_panic(&panicked).spawn(|| {
        let entered = become_guest_root(userns).and_then(|()| process::die_with_parent());
        tell(&entered.map_err(InsideError::from).and_then(|()| work()));
        0
    })?;
    drop(theirs);
    let result = channel::receive(&ours)?;
    child.wait()?;
    result.map_or_else(|| Err(lost("was killed")), |(result, _)| result)
}
