//! Standard input, output and error of a command, and the copying between them and ours.
//!
//! No terminal of the host is ever handed to a machine: a process that holds one can type into it. A terminal among
//! our own streams is therefore replaced by a pipe, and an interactive command gets a terminal of the machine.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use rustix::fs::{FileType, Gid, OFlags, Uid};
use rustix::stdio;
use rustix::termios::{self, Winsize};

use super::command::Stdio;
use super::pty::{Pty, is_device};
use super::users::User;
use crate::sys::path::RootFd;
use crate::sys::terminal::{Escape, Terminal};
use crate::sys::{Context, Errno, Error, Result, process};

const CHUNK: usize = 4096;
/// What a pipe or a terminal can hold when the command ends, with room to spare.
const MOST_LEFT: usize = 256 << 10;
/// Ctrl-D, which ends the input of a terminal's reader.
const END_OF_INPUT: u8 = 4;

fn ours() -> [BorrowedFd<'static>; 3] {
    [stdio::stdin(), stdio::stdout(), stdio::stderr()]
}

/// What the command is to get, decided before the fork.
#[derive(Debug)]
pub(super) struct Streams {
    stdio: Stdio,
    /// Which streams go through a pipe.
    piped: [bool; 3],
    size: Option<Winsize>,
    /// The terminal that another process has opened already.
    terminal: Option<OwnedFd>,
}

impl Streams {
    pub(super) fn null() -> Self {
        Self { stdio: Stdio::Null, piped: [false; 3], size: None, terminal: None }
    }

    /// A terminal of the machine that is already there.
    pub(super) fn given(terminal: OwnedFd) -> Self {
        Self { stdio: Stdio::Terminal, terminal: Some(terminal), ..Self::null() }
    }

    /// The terminal that [`Streams::given`] got.
    pub(super) fn given_terminal(&self) -> Option<BorrowedFd<'_>> {
        self.terminal.as_ref().map(AsFd::as_fd)
    }

    /// Looks at our own streams.
    pub(super) fn of(wanted: Stdio) -> Result<Self> {
        let mut streams = Self { stdio: wanted, ..Self::null() };
        match wanted {
            Stdio::Null => {}
            Stdio::Terminal => streams.size = our_size(),
            Stdio::Inherit => {
                for (number, fd) in ours().into_iter().enumerate() {
                    let stat = rustix::fs::fstat(fd).call(|| format!("fstat(descriptor {number})"))?;
                    // A way into the host's tree for the process that gets it.
                    if FileType::from_raw_mode(stat.st_mode).is_dir() {
                        return Err(Error { call: format!("passing on descriptor {number}"), errno: Errno::EISDIR });
                    }
                    streams.piped[number] = termios::isatty(fd);
                }
            }
        }
        Ok(streams)
    }
}

fn our_size() -> Option<Winsize> {
    ours().into_iter().find_map(|fd| termios::tcgetwinsize(fd).ok())
}

/// Both ends of what was made for the command, in the child that makes it.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// What becomes descriptors 0, 1 and 2; `None`: stays as it is.
    inside: [Option<OwnedFd>; 3],
    outside: Vec<OwnedFd>,
    controlling: bool,
}

impl Ends {
    /// Opens what the machine's root may open: a terminal, or `/dev/null`.
    pub(super) fn open_as_root(streams: &Streams, root: &RootFd, user: &User) -> Result<Self> {
        let mut ends = Self::default();
        let fd = match streams.stdio {
            _ if streams.terminal.is_some() => {
                ends.controlling = true;
                let copy = streams.terminal.as_ref().map(|t| t.try_clone().call(|| "dup".into())).transpose()?;
                let Some(terminal) = copy else { return Ok(ends) };
                give(terminal, user)?
            }
            Stdio::Inherit => return Ok(ends),
            Stdio::Null => open_null(root)?,
            Stdio::Terminal => {
                let pty = Pty::open(root)?;
                rustix::io::ioctl_fionbio(&pty.master, true).call(|| "ioctl(terminal, FIONBIO)".into())?;
                if let Some(size) = streams.size {
                    termios::tcsetwinsize(&pty.master, size).call(|| "ioctl(TIOCSWINSZ)".into())?;
                }
                ends.outside.push(pty.master);
                ends.controlling = true;
                give(pty.peer, user)?
            }
        };
        for place in &mut ends.inside {
            *place = Some(fd.try_clone().call(|| "dup".into())?);
        }
        Ok(ends)
    }

    /// Makes the pipes, which must be the user's so that it can open `/dev/stdout` and the like again.
    pub(super) fn open_as_user(&mut self, streams: &Streams) -> Result<()> {
        for number in (0..3).filter(|number| streams.piped[*number]) {
            let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).call(|| "pipe2".into())?;
            let (inside, outside) = if number == 0 { (read, write) } else { (write, read) };
            self.inside[number] = Some(inside);
            self.outside.push(outside);
        }
        Ok(())
    }

    /// What the caller gets, in the order [`Pump::connect`] expects.
    pub(super) fn outside(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.outside.iter().map(AsFd::as_fd)
    }

    /// Makes them descriptors 0, 1 and 2 of this process, which has nothing else of them afterwards;
    /// returns whether they are a terminal that is to control the session.
    pub(super) fn install(self) -> Result<bool> {
        let [input, output, error] = &self.inside;
        input.as_ref().map_or(Ok(()), stdio::dup2_stdin).call(|| "dup2(0)".into())?;
        output.as_ref().map_or(Ok(()), stdio::dup2_stdout).call(|| "dup2(1)".into())?;
        error.as_ref().map_or(Ok(()), stdio::dup2_stderr).call(|| "dup2(2)".into())?;
        Ok(self.controlling)
    }
}

/// Makes a terminal the user's.
fn give(terminal: OwnedFd, user: &User) -> Result<OwnedFd> {
    rustix::fs::fchown(&terminal, Some(Uid::from_raw(user.uid)), None::<Gid>)
        .call(|| format!("fchown(terminal, {})", user.uid))?;
    Ok(terminal)
}

fn open_null(root: &RootFd) -> Result<OwnedFd> {
    let fd = root.open_plain("dev/null", OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY)?;
    if is_device(&fd, 1, Some(3))? {
        return Ok(fd);
    }
    Err(Error { call: "'/dev/null' of the machine is something else".into(), errno: Errno::ENODEV })
}

/// The signals that are the command's business while it runs, read instead of delivered.
#[derive(Debug)]
pub(super) struct Signals {
    fd: SignalFd,
    before: SigSet,
}

impl Signals {
    pub(super) fn take() -> Result<Self> {
        let before = SigSet::thread_get_mask().call(|| "sigprocmask(read)".into())?;
        let set = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGWINCH];
        Ok(Self { fd: process::signal_fd(&set)?, before })
    }

    /// The next signal that has arrived.
    pub(super) fn next(&self) -> Option<i32> {
        let info = self.fd.read_signal().ok().flatten()?;
        i32::try_from(info.ssi_signo).ok()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let _ = self.before.thread_set_mask();
    }
}

/// One end of a copy.
#[derive(Debug)]
enum End {
    Ours(BorrowedFd<'static>),
    Theirs(OwnedFd),
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Ours(fd) => *fd,
            Self::Theirs(fd) => fd.as_fd(),
        }
    }
}

/// Bytes on their way from one descriptor to another, one chunk at a time.
#[derive(Debug)]
struct Channel {
    from: End,
    to: End,
    waiting: Vec<u8>,
    /// What to write when the input has ended.
    farewell: Option<u8>,
    input_ended: bool,
    is_ready: bool,
    /// What to look for in the keys of our terminal.
    escape: Option<Escape>,
    was_left: bool,
}

impl Channel {
    fn new(from: End, to: End, farewell: Option<u8>) -> Self {
        Self {
            from,
            to,
            waiting: Vec::new(),
            farewell,
            input_ended: false,
            is_ready: false,
            escape: None,
            was_left: false,
        }
    }

    fn poll_fd(&self) -> PollFd<'_> {
        if self.waiting.is_empty() {
            PollFd::new(self.from.as_fd(), PollFlags::POLLIN)
        } else {
            PollFd::new(self.to.as_fd(), PollFlags::POLLOUT)
        }
    }

    /// Reads a chunk or writes some of it; false when there is nothing left to do.
    fn copy(&mut self) -> bool {
        if self.waiting.is_empty() {
            let mut chunk = [0; CHUNK];
            match rustix::io::read(&self.from, &mut chunk) {
                Ok(0) => self.end_input(),
                Ok(len) => {
                    let keys = &chunk[..len];
                    self.was_left |= self.escape.as_mut().is_some_and(|e| e.completes(keys, Instant::now()));
                    self.waiting.extend_from_slice(keys);
                }
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                // A terminal without users answers EIO.
                Err(_) => self.end_input(),
            }
        } else {
            match rustix::io::write(&self.to, &self.waiting) {
                Ok(len) => drop(self.waiting.drain(..len)),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                // The reader has gone: so do we, and the writer learns it from its next write.
                Err(_) => return false,
            }
        }
        !(self.input_ended && self.waiting.is_empty())
    }

    fn end_input(&mut self) {
        self.input_ended = true;
        self.waiting.extend(self.farewell.take());
    }
}

/// Copies between our streams and the command's.
#[derive(Debug)]
pub(super) struct Pump {
    streams: Streams,
    channels: Vec<Channel>,
    terminal: Option<OwnedFd>,
    /// Ours, raw until this is dropped.
    raw: Option<Terminal>,
}

impl Pump {
    pub(super) fn new(streams: Streams) -> Self {
        Self { streams, channels: Vec::new(), terminal: None, raw: None }
    }

    /// Takes the other ends of the command's streams.
    pub(super) fn connect(&mut self, outside: Vec<OwnedFd>) -> Result<()> {
        let [input, output, error] = ours();
        let mut outside = outside.into_iter();
        if self.streams.stdio == Stdio::Terminal {
            let Some(terminal) = outside.next() else { return Ok(()) };
            let copy = || terminal.try_clone().call(|| "dup(terminal)".into()).map(End::Theirs);
            let mut keys = Channel::new(End::Ours(input), copy()?, Some(END_OF_INPUT));
            if termios::isatty(input) {
                self.raw = Some(Terminal::acquire(input)?);
                keys.escape = Some(Escape::default());
            }
            self.channels.push(keys);
            self.channels.push(Channel::new(copy()?, End::Ours(output), None));
            self.terminal = Some(terminal);
            // It may have changed since the fork.
            self.resize();
            return Ok(());
        }
        let ours = [input, output, error].into_iter().zip(self.streams.piped).enumerate();
        for (number, (fd, _)) in ours.filter(|(_, (_, piped))| *piped) {
            let Some(theirs) = outside.next() else { return Ok(()) };
            rustix::io::ioctl_fionbio(&theirs, true).call(|| "ioctl(FIONBIO)".into())?;
            let (ours, theirs) = (End::Ours(fd), End::Theirs(theirs));
            let (from, to) = if number == 0 { (ours, theirs) } else { (theirs, ours) };
            self.channels.push(Channel::new(from, to, None));
        }
        Ok(())
    }

    /// Sets the size of the command's terminal to that of ours.
    pub(super) fn resize(&self) {
        if let (Some(terminal), Some(size)) = (&self.terminal, our_size()) {
            // It fails only for a terminal that is gone.
            let _ = termios::tcsetwinsize(terminal, size);
        }
    }

    /// Waits until there is something to copy, one of `others` is readable or `deadline` has come.
    pub(super) fn poll<const N: usize>(
        &mut self,
        others: [BorrowedFd<'_>; N],
        deadline: Option<Instant>,
    ) -> Result<()> {
        let timeout = match deadline {
            None => PollTimeout::NONE,
            Some(end) => {
                // Rounded up, so as not to wake just before the time.
                let left = end.saturating_duration_since(Instant::now()).as_millis().saturating_add(1);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
        };
        let others = others.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let mut set: Vec<PollFd<'_>> = self.channels.iter().map(Channel::poll_fd).chain(others).collect();
        match nix::poll::poll(&mut set, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).call(|| "poll".into()),
        }
        let ready: Vec<bool> = set.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        for (channel, ready) in self.channels.iter_mut().zip(ready) {
            channel.is_ready = ready;
        }
        Ok(())
    }

    /// Copies what the last poll found.
    pub(super) fn copy(&mut self) {
        self.channels.retain_mut(|channel| !std::mem::take(&mut channel.is_ready) || channel.copy());
    }

    /// Whether `^]` was typed three times within a second.
    pub(super) fn was_left(&self) -> bool {
        self.channels.iter().any(|channel| channel.was_left)
    }

    /// Passes on what the command wrote before it ended; what it left running cannot hold us up.
    pub(super) fn drain(&mut self) {
        for channel in self.channels.iter_mut().filter(|c| matches!(c.to, End::Ours(_))) {
            let mut left = MOST_LEFT;
            while left > 0 {
                let writing = !channel.waiting.is_empty();
                let timeout = if writing { PollTimeout::NONE } else { PollTimeout::ZERO };
                match nix::poll::poll(&mut [channel.poll_fd()], timeout) {
                    Ok(0) => break,
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(_) => break,
                }
                if !channel.copy() {
                    break;
                }
                if writing {
                    left = left.saturating_sub(CHUNK);
                }
            }
        }
    }
}
