//! What is done with files inside of a running machine: by a process of its own, with the machine's rights.
//!
//! ```text
//! daemon or command line ── ask: request + pidfd of the leader ──> this program again (`serve`)
//!                       <── answer, or why not ──────────────────  enters what it must, works, ends
//! ```
//!
//! A machine can make every access to its files wait for ever, so none is made by the one who asks: whoever has a
//! time limit ends the other process. That one gives up the rights of the host before it touches a file of a
//! machine with a user namespace; what the machine's root could not do cannot be done for it. A process is needed
//! anyway: only one with a single thread may change its user and mount namespace.

mod bind;
mod copy;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

pub use bind::Bind;
pub use copy::{Copy, Direction};

use crate::sys::namespace::{self, Kind};
use crate::sys::path::RootFd;
use crate::sys::process::ns;
use crate::sys::{self, Context as _, Errno, mount, process, socket};
use crate::tree::metadata;

/// The verb, hidden from users, by which this program is run again for [`serve`].
pub const VERB: &str = "inside";

const PROGRAM: &str = "/proc/self/exe";

/// What to do in a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Read the variables of its `os-release(5)`.
    OsRelease,
    /// Open its root directory for reading.
    Root,
    /// Show a part of the host.
    Bind(Bind),
    /// Copy files.
    Copy(Copy),
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// It is done.
    Done,
    /// The variables, in order.
    Variables(Vec<(String, String)>),
    /// The descriptor comes along.
    Opened,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InsideError {
    #[serde(with = "sys::errno_as_number")]
    errno: Errno,
    /// One line.
    text: String,
}

impl InsideError {
    fn new(errno: Errno, text: impl Into<String>) -> Self {
        Self { errno, text: text.into() }
    }

    /// The errno that tells programs.
    pub fn errno(&self) -> Errno {
        self.errno
    }
}

impl From<sys::Error> for InsideError {
    fn from(e: sys::Error) -> Self {
        Self::new(e.errno, e.to_string())
    }
}

impl fmt::Display for InsideError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for InsideError {}

type Outcome<T> = Result<T, InsideError>;

/// Ends the other process, which has nothing to do after its answer.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // It fails only for one that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Has `request` done in the machine of `leader`, and waits for it.
///
/// # Errors
/// ETIMEDOUT when it took longer than `limit`, ESRCH when the machine has ended, else what went wrong there.
pub fn ask(leader: impl AsFd, request: &Request, limit: Option<Duration>) -> Outcome<(Answer, Option<OwnedFd>)> {
    let (ours, theirs) = socket::pair()?;
    let child = Command::new(PROGRAM)
        .arg(VERB)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .call(|| format!("running '{PROGRAM}' again"))?;
    // Dropped before the answer is given on, so that no zombie stays.
    let _child = Guard(child);
    let data = serde_json::to_vec(request).map_err(|e| InsideError::new(Errno::EINVAL, e.to_string()))?;
    socket::send(&ours, &data, &[leader.as_fd()])?;
    wait(&ours, limit)?;
    let mut buffer = vec![0; 256 << 10];
    let received = socket::receive(&ours, &mut buffer)?;
    let lost = || InsideError::new(Errno::EIO, "the process that entered the machine ended without an answer");
    if received.len == 0 {
        return Err(lost());
    }
    let answer: Outcome<Answer> = serde_json::from_slice(&buffer[..received.len]).map_err(|_| lost())?;
    answer.map(|answer| (answer, received.fds.into_iter().next()))
}

fn wait(socket: &OwnedFd, limit: Option<Duration>) -> Outcome<()> {
    let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
    loop {
        let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
        let timeout = left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        match nix::poll::poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if deadline.is_some_and(|end| Instant::now() >= end) => {
                return Err(InsideError::new(Errno::ETIMEDOUT, "the machine did not answer in time"));
            }
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(sys::Error { call: "poll".into(), errno }.into()),
        }
    }
}

/// Is the other process: takes one request from standard input, answers there, and gives the exit status.
pub fn serve() -> u8 {
    let stdin = std::io::stdin();
    let result = take(stdin.as_fd()).and_then(|(request, leader)| work(&request, &leader));
    let (answer, fd) = match result {
        Ok((answer, fd)) => (Ok(answer), fd),
        Err(error) => (Err(error), None),
    };
    let failed = answer.is_err();
    let Ok(data) = serde_json::to_vec(&answer) else { return 1 };
    let fds: Vec<BorrowedFd<'_>> = fd.iter().map(AsFd::as_fd).collect();
    // Whoever asked may have gone away.
    let sent = socket::send(stdin.as_fd(), &data, &fds);
    u8::from(failed || sent.is_err())
}

fn take(socket: BorrowedFd<'_>) -> Outcome<(Request, Leader)> {
    let mut buffer = vec![0; 64 << 10];
    let received = socket::receive(socket, &mut buffer)?;
    let request = serde_json::from_slice(&buffer[..received.len]);
    let request = request.map_err(|e| InsideError::new(Errno::EINVAL, format!("no request: {e}")))?;
    let pidfd = received.fds.into_iter().next();
    let pidfd = pidfd.ok_or_else(|| InsideError::new(Errno::EBADF, "no descriptor of a machine"))?;
    Ok((request, Leader::new(pidfd)?))
}

/// First process of the machine.
struct Leader {
    pid: i32,
    pidfd: OwnedFd,
}

impl Leader {
    fn new(pidfd: OwnedFd) -> Outcome<Self> {
        // Whoever looks into this process while it is in a machine would see our memory.
        process::set_undumpable()?;
        let pid = process::pidfd_number(&pidfd)?.as_raw();
        Ok(Self { pid, pidfd })
    }

    /// Fails if it has ended, and so what was opened by its number may be another's.
    fn check(&self) -> Outcome<()> {
        match process::pidfd_send_signal(&self.pidfd, 0) {
            Ok(()) => Ok(()),
            Err(e) if e.errno == Errno::ESRCH => Err(InsideError::new(Errno::ESRCH, "the machine has ended")),
            Err(e) => Err(e.into()),
        }
    }

    /// The machine's root directory as its leader sees it.
    fn root(&self, flags: OFlags) -> Outcome<OwnedFd> {
        let path = format!("/proc/{}/root", self.pid);
        let fd = rustix::fs::open(&path, flags | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let fd = fd.call(|| format!("open('{path}')"));
        self.check()?;
        Ok(fd?)
    }
}

impl Leader {
    /// The machine's user namespace; none if it is our own.
    fn user_namespace(&self) -> Outcome<Option<OwnedFd>> {
        let own = namespace::own(Kind::User)?;
        let theirs = namespace::open(self.pid, Kind::User);
        self.check()?;
        let theirs = theirs?;
        Ok(if namespace::is_same(&own, &theirs)? { None } else { Some(theirs) })
    }
}

/// Takes a mount namespace of our own, in which nothing that happens is seen elsewhere.
fn leave_mounts() -> Outcome<()> {
    process::unshare(ns::MOUNT)?;
    Ok(mount::set_propagation(host_root()?, true, mount::Propagation::Private)?)
}

/// The root directory, in the mount namespace where we are now.
fn host_root() -> sys::Result<OwnedFd> {
    rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).call(|| "open('/')".into())
}

/// Becomes root of the machine and nothing else.
fn become_guest_root(userns: &OwnedFd) -> sys::Result<()> {
    nix::unistd::setgroups(&[]).call(|| "setgroups(none)".into())?;
    process::setns(userns, ns::USER)?;
    process::become_root()?;
    // Other ids have made us dumpable again where fs.suid_dumpable says so.
    process::set_undumpable()
}

/// Text that came from elsewhere, without anything a terminal would act on.
fn shown(path: &str) -> String {
    format!("'{}'", path.escape_debug())
}

fn work(request: &Request, leader: &Leader) -> Outcome<(Answer, Option<OwnedFd>)> {
    match request {
        Request::OsRelease => {
            let root = RootFd::from_fd(leader.root(OFlags::PATH)?);
            Ok((Answer::Variables(metadata::os_release(&root)?), None))
        }
        Request::Bind(request) => bind::bind(request, leader).map(|()| (Answer::Done, None)),
        Request::Copy(request) => copy::copy(request, leader).map(|()| (Answer::Done, None)),
        Request::Root => Ok((Answer::Opened, Some(leader.root(OFlags::RDONLY)?))),
    }
}
