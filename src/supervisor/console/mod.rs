//! The machine's console: one pty whose other end is the caller, a log file and any number of viewers.
//!
//! [`Console`] owns the master and never blocks: the supervisor polls what [`Console::poll_fds`] lists along
//! with its own descriptors and passes the results to [`Console::handle`]. Every byte of output goes to
//! standard output, to the log and to each viewer. Standard output sets the pace; a viewer that cannot keep up
//! is dropped; a log that cannot be written loses lines. None of them stops the machine or the others.
//!
//! We keep the slave open ourselves. Without that the master reports a hang-up whenever the guest has closed
//! its console for a moment, as between two gettys or after vhangup(2), and a poll loop would spin on it. The
//! slave is closed only to drain, when the end of file is what we want to see.

mod attach;
mod flow;
mod local;
mod log;
mod mode;
mod pipe;
mod show;
mod slave;
#[cfg(test)]
mod tests;
mod viewer;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

pub use self::attach::{AttachEnd, attach};
pub use self::local::reopen;
pub use self::log::LogFile;
pub use self::mode::Mode;
pub use self::show::{Shown, print_log};
pub use self::slave::prepare_slave;

use self::flow::{BUFFER, TYPE_AHEAD, give_back, poll_once};
use self::local::{Gone, Input, Local};
use self::pipe::{Newlines, Typist};
use self::viewer::{DATA, Recent, Viewer, WINSIZE, parse_winsize};
use crate::sys::{Context, Error, Result};

/// Most viewers at a time.
const MAX_VIEWERS: usize = 32;
/// Most output taken while draining; a killed machine leaves less than a tenth of it in the pty.
const DRAIN: usize = 1 << 20;

/// Which descriptor of the console a poll result belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// The pty.
    Master,
    /// Standard input.
    Stdin,
    /// Standard output.
    Stdout,
    /// The viewer with this number.
    Viewer(u32),
}

/// What the supervisor has to act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The user typed `^]` three times; nothing has been done about it.
    Leave,
    /// Standard input hung up or standard output takes nothing more; the console goes on as [`Mode::Detached`].
    LocalGone,
    /// Something failed that the machine does not suffer from; reported once.
    Warning(Error),
}

/// The multiplexer between the pty and everybody who reads or writes it.
#[derive(Debug)]
pub struct Console {
    // First, so that the terminal is restored before anything else is given up.
    local: Option<Local>,
    master: OwnedFd,
    slave: Option<OwnedFd>,
    log: Option<LogFile>,
    viewers: Vec<Viewer>,
    next_viewer: u32,
    recent: Recent,
    /// Input the pty has not taken yet.
    input: VecDeque<u8>,
    typist: Typist,
    newlines: Newlines,
    /// The first byte is always [`DATA`], so that what was read behind it is a message.
    buffer: Box<[u8; BUFFER]>,
    warning: Option<Error>,
}

impl Console {
    /// Takes the master of the machine's console and, as `mode` says, our standard input and output.
    ///
    /// Signals that end the process must be blocked by now, or one could leave the terminal raw.
    pub fn open(master: OwnedFd, mode: Mode, log: Option<LogFile>) -> Result<Self> {
        let local = match mode {
            Mode::Detached => None,
            _ => Some(Local::open(mode, rustix::stdio::stdin(), rustix::stdio::stdout())?),
        };
        Self::with_local(master, local, log)
    }

    fn with_local(master: OwnedFd, local: Option<Local>, log: Option<LogFile>) -> Result<Self> {
        let slave = Some(hold_slave(&master)?);
        let mut buffer = Box::new([0; BUFFER]);
        buffer[0] = DATA;
        let console = Self {
            local,
            master,
            slave,
            log,
            viewers: Vec::new(),
            next_viewer: 0,
            recent: Recent::default(),
            input: VecDeque::new(),
            typist: Typist::default(),
            newlines: Newlines::default(),
            buffer,
            warning: None,
        };
        console.resize_to_terminal()?;
        Ok(console)
    }

    /// Goes on with the pty of the machine's next boot; caller, log and viewers stay.
    pub fn replace_master(&mut self, master: OwnedFd) -> Result<()> {
        self.slave = Some(hold_slave(&master)?);
        self.master = master;
        self.input.clear();
        self.typist = Typist::default();
        self.resize_to_terminal()
    }

    /// Adds the descriptors to wait for and what for. Exactly these: others would make poll return for nothing.
    pub fn poll_fds<'a>(&'a self, out: &mut Vec<(BorrowedFd<'a>, PollFlags, Token)>) {
        let idle = self.input.is_empty();
        let mut master = PollFlags::empty();
        let behind = self.local.as_ref().is_some_and(Local::is_behind);
        master.set(PollFlags::POLLIN, !behind);
        master.set(PollFlags::POLLOUT, !idle);
        if self.slave.is_some() && !master.is_empty() {
            out.push((self.master.as_fd(), master, Token::Master));
        }
        if let Some(local) = &self.local {
            // Keys are always read, or a machine that reads nothing could not be left.
            if let Some(stdin) = local.stdin().filter(|_| idle || local.mode() == Mode::Interactive) {
                out.push((stdin, PollFlags::POLLIN, Token::Stdin));
            }
            if behind {
                out.push((local.stdout(), PollFlags::POLLOUT, Token::Stdout));
            }
        }
        for viewer in &self.viewers {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, idle);
            flags.set(PollFlags::POLLOUT, viewer.is_behind());
            out.push((viewer.fd(), flags, Token::Viewer(viewer.id)));
        }
    }

    /// Does what poll said is possible.
    pub fn handle(&mut self, token: Token, ready: PollFlags) -> Option<Event> {
        let event = match token {
            Token::Master => self.handle_master(ready),
            Token::Stdin => self.read_stdin(),
            Token::Stdout => match self.local.as_mut().map(Local::flush) {
                Some(Err(Gone)) => self.lose_local(),
                _ => None,
            },
            Token::Viewer(id) => {
                self.handle_viewer(id, ready);
                None
            }
        };
        event.or_else(|| self.warning.take().map(Event::Warning))
    }

    /// Gives the machine's terminal a new size, which also tells its programs.
    pub fn resize(&self, size: Winsize) -> Result<()> {
        tcsetwinsize(&self.master, size).call(|| "ioctl(console, TIOCSWINSZ)".into())
    }

    /// Gives the machine's terminal the size of ours, if we have one; for SIGWINCH.
    pub fn resize_to_terminal(&self) -> Result<()> {
        self.local.as_ref().and_then(Local::winsize).map_or(Ok(()), |size| self.resize(size))
    }

    /// Gives the caller's side up, restoring the terminal; log and viewers stay.
    pub fn detach(&mut self) {
        self.local = None;
    }

    /// Adds someone who watches and types, over a connected SEQPACKET socket. The last size set by anyone counts.
    pub fn add_viewer(&mut self, socket: OwnedFd) -> Result<()> {
        let mut viewer = Viewer::new(self.next_viewer, socket)?;
        if self.viewers.len() >= MAX_VIEWERS {
            viewer.close("too many viewers");
            return Ok(());
        }
        self.next_viewer = self.next_viewer.wrapping_add(1);
        if let Some(message) = self.recent.message() {
            viewer.send(&message);
        }
        self.viewers.push(viewer);
        Ok(())
    }

    /// Puts a line of ours, without control characters, between those of the machine, for the log and viewers.
    pub fn remark(&mut self, text: &str) {
        let before = if self.recent.is_at_line_start() { "" } else { "\r\n" };
        let mut message = vec![DATA];
        message.extend(format!("{before}[machinist] {text}\r\n").bytes());
        if let Some(error) = self.log.as_mut().and_then(|log| log.append(&message[1..])) {
            self.warning = Some(error);
        }
        self.recent.push(&message[1..]);
        self.viewers.iter_mut().for_each(|viewer| viewer.send(&message));
        self.viewers.retain(|v| !v.is_dead());
    }

    /// Passes on everything a machine that has ended left in its terminal.
    ///
    /// Standard output and viewers that take nothing for as long as `patience` lose the rest.
    pub fn drain(&mut self, patience: Duration) {
        // With no slave left the pty ends in EIO, and not before it is empty.
        self.slave = None;
        let mut taken = 0;
        while taken < DRAIN {
            let Taken::Bytes(len) = self.take_output() else { break };
            taken += len;
            self.fan_out(len);
        }
        if self.newlines.take_held() {
            self.write_local(b"\r");
        }
        self.flush_local(patience);
        loop {
            let behind: Vec<_> =
                self.viewers.iter().filter(|v| v.is_behind()).map(|v| (v.fd(), PollFlags::POLLOUT)).collect();
            if behind.is_empty() || !poll_once(&behind, Some(patience)) {
                break;
            }
            self.viewers.iter_mut().for_each(Viewer::flush);
            self.viewers.retain(|v| !v.is_dead());
        }
    }

    /// Sends every viewer away with a reason, such as "the machine has stopped".
    pub fn close_viewers(&mut self, reason: &str) {
        self.viewers.drain(..).for_each(|mut viewer| viewer.close(reason));
    }

    fn handle_master(&mut self, ready: PollFlags) -> Option<Event> {
        if ready.contains(PollFlags::POLLOUT) {
            self.write_input();
        }
        if !ready.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            return None;
        }
        match self.take_output() {
            Taken::Bytes(len) => self.fan_out(len),
            Taken::Nothing => None,
            Taken::HungUp => {
                self.revive();
                None
            }
        }
    }

    /// Opens the slave again, should the kernel have hung up in spite of the one we hold.
    fn revive(&mut self) {
        match hold_slave(&self.master) {
            Ok(slave) => self.slave = Some(slave),
            Err(error) => {
                // The master is not polled without it: no console is better than a spinning supervisor.
                self.slave = None;
                self.warning = Some(error);
            }
        }
    }

    /// Reads what there is, up to the size of the buffer.
    fn take_output(&mut self) -> Taken {
        let mut len = 0;
        while len < BUFFER - 1 {
            match rustix::io::read(&self.master, &mut self.buffer[1 + len..]) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(n) => len += n,
                Err(Errno::INTR) => {}
                Err(_) if len == 0 => return Taken::HungUp,
                Err(_) => break,
            }
        }
        if len == 0 { Taken::Nothing } else { Taken::Bytes(len) }
    }

    /// Passes the `len` bytes just read on to everybody.
    fn fan_out(&mut self, len: usize) -> Option<Event> {
        let message = &mut self.buffer[..=len];
        if let Some(error) = self.log.as_mut().and_then(|log| log.append(&message[1..])) {
            self.warning = Some(error);
        }
        self.recent.push(&message[1..]);
        self.viewers.iter_mut().for_each(|viewer| viewer.send(message));
        self.viewers.retain(|v| !v.is_dead());
        let local = self.local.as_mut()?;
        let (mut before, mut kept) = (false, len);
        if local.mode() == Mode::Pipe {
            if tcgetattr(&self.master).is_ok_and(|line| Newlines::are_added(&line)) {
                (before, kept) = self.newlines.undo(&mut message[1..]);
            } else {
                before = self.newlines.take_held();
            }
        }
        if before && local.write(b"\r").is_err() {
            return self.lose_local();
        }
        match local.write(&message[1..=kept]) {
            Ok(()) => None,
            Err(Gone) => self.lose_local(),
        }
    }

    fn write_local(&mut self, bytes: &[u8]) {
        if self.local.as_mut().is_some_and(|local| local.write(bytes).is_err()) {
            self.local = None;
        }
    }

    fn flush_local(&mut self, patience: Duration) {
        if self.local.as_mut().is_some_and(|local| local.flush_all(patience).is_err()) {
            self.local = None;
        }
    }

    fn lose_local(&mut self) -> Option<Event> {
        self.local = None;
        Some(Event::LocalGone)
    }

    fn read_stdin(&mut self) -> Option<Event> {
        let local = self.local.as_mut()?;
        let read = local.read(&mut self.buffer[1..], Instant::now());
        let pipe = local.mode() == Mode::Pipe;
        match read {
            Input::Nothing => return None,
            Input::Leave => return Some(Event::Leave),
            Input::End if !pipe => return self.lose_local(),
            Input::End => local.close_stdin(),
            Input::Bytes(len) if !pipe => {
                let room = TYPE_AHEAD.saturating_sub(self.input.len());
                self.input.extend(&self.buffer[1..=len.min(room)]);
            }
            Input::Bytes(_) => {}
        }
        if pipe && let Some(line) = self.line() {
            match read {
                Input::Bytes(len) => self.typist.type_in(&self.buffer[1..=len], &line, &mut self.input),
                _ => self.typist.finish(&line, &mut self.input),
            }
        }
        self.write_input();
        None
    }

    /// How the machine has set its terminal at the moment.
    fn line(&mut self) -> Option<Termios> {
        let line = tcgetattr(&self.master).call(|| "tcgetattr(console)".into());
        line.map_err(|error| self.warning = Some(error)).ok()
    }

    fn handle_viewer(&mut self, id: u32, ready: PollFlags) {
        let Some(at) = self.viewers.iter().position(|v| v.id == id) else { return };
        let viewer = &mut self.viewers[at];
        if ready.contains(PollFlags::POLLOUT) {
            viewer.flush();
        }
        // A viewer that has hung up is read to its end even when the machine does not keep up: its last words
        // count, and they are bounded by the socket's buffer.
        if ready.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) && !viewer.is_dead() {
            match viewer.receive(&mut self.buffer[..]) {
                0 => {}
                len if self.buffer[0] == DATA => self.input.extend(&self.buffer[1..len]),
                len if self.buffer[0] == WINSIZE => {
                    if let Some(error) = parse_winsize(&self.buffer[1..len]).and_then(|s| self.resize(s).err()) {
                        self.warning = Some(error);
                    }
                }
                _ => {}
            }
            self.buffer[0] = DATA;
            self.write_input();
        }
        self.viewers.retain(|v| !v.is_dead());
    }

    /// Types as much of the waiting input as the pty takes.
    fn write_input(&mut self) {
        while !self.input.is_empty() {
            match rustix::io::write(&self.master, self.input.as_slices().0) {
                Ok(0) | Err(Errno::AGAIN) => return,
                Ok(n) => drop(self.input.drain(..n)),
                Err(Errno::INTR) => {}
                Err(_) => self.input.clear(),
            }
        }
        give_back(&mut self.input);
    }
}

/// What reading the pty gave.
#[derive(Debug)]
enum Taken {
    Bytes(usize),
    Nothing,
    HungUp,
}

/// Makes the master non-blocking and opens the other end, wherever that is mounted.
fn hold_slave(master: &OwnedFd) -> Result<OwnedFd> {
    rustix::io::ioctl_fionbio(master, true).call(|| "ioctl(console, FIONBIO)".into())?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    ioctl_tiocgptpeer(master, flags).call(|| "ioctl(console, TIOCGPTPEER)".into())
}
