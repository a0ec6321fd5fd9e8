//! `top`: what machines use, as it changes.
//!
//! A look at the machines, a pure picture of it ([`render`]), and a terminal that shows it ([`screen`]); one loop waits
//! for keys, signals and the time of the next look.

mod columns;
mod host;
mod keys;
mod paint;
mod render;
mod screen;
mod sort;
#[cfg(test)]
mod tests;

use std::io::IsTerminal as _;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::SignalFd;

use super::output::{status, written};
use super::stats::{self, Row, compare};
use crate::ops::Ops;
use crate::report::OpError;
use crate::running::view::Statistics;
use crate::sys::{self, Context as _, Errno, process};
use host::HostLoad;
use keys::{Key, Keys};
use render::{Snapshot, Style};
use screen::{Gone, Screen};
use sort::Sort;

#[derive(Debug, Args)]
pub(crate) struct TopArguments {
    /// Time from one look at the machines to the next
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = parse_interval)]
    interval: Duration,
    /// What the machines are in the order of
    #[arg(long, value_enum, default_value = "cpu")]
    sort: Sort,
    /// No colours, as if `NO_COLOR` were set
    #[arg(long)]
    no_color: bool,
    /// Print the table N times, one below the other, and end; needs no terminal
    #[arg(long, value_name = "N")]
    batch: Option<u32>,
}

/// As for `stats`, but never without a pause.
fn parse_interval(text: &str) -> Result<Duration, String> {
    match stats::parse_interval(text)? {
        time if time < Duration::from_millis(100) => Err("it is 0.1 at least".to_owned()),
        time => Ok(time),
    }
}

/// `machinist top`
pub(super) fn top(ops: &Ops, args: &TopArguments) -> Result<u8, OpError> {
    let style = Style { color: !args.no_color && !env_is_set("NO_COLOR"), unicode: is_unicode() };
    // Whatever is wrong from the start is said before the screen changes.
    let mut view = View::new(args.sort, stats::sample(ops, &[])?);
    if let Some(count) = args.batch {
        return batch(ops, args, view, count, Style { color: false, ..style });
    }
    let terminals = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if !terminals || std::env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty()) {
        return Err(OpError::usage("`machinist top` needs a terminal that can be drawn on")
            .hint("`machinist stats` prints the same once, `machinist top --batch 5` five times"));
    }
    let failed = |e: sys::Error| OpError::call("cannot use the terminal", &e);
    let signals = process::signal_fd(&SIGNALS).map_err(failed)?;
    let screen = Screen::open(rustix::stdio::stdin(), rustix::stdio::stdout()).map_err(failed)?;
    screen.leave_before_panics();
    let mut run = Run { ops, screen, signals, keys: Keys::default(), style, interval: args.interval };
    let end = run.watch(&mut view);
    // Back before anything is said.
    drop(run);
    end.map_err(failed)
}

fn env_is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}

/// Whether the first of the variables that say so names UTF-8 (`locale(7)`).
fn is_unicode() -> bool {
    let name = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find(|name| env_is_set(name));
    let value = name.and_then(|name| std::env::var(name).ok()).unwrap_or_default().to_ascii_lowercase();
    value.contains("utf-8") || value.contains("utf8")
}

/// Prints pictures one below the other.
fn batch(ops: &Ops, args: &TopArguments, mut view: View, count: u32, style: Style) -> Result<u8, OpError> {
    const USUAL: usize = 120;
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).filter(|c| *c > 0);
    let mut failure = None;
    let written = written(|out| {
        for index in 0..count {
            std::thread::sleep(args.interval);
            match stats::sample(ops, &[]) {
                Ok(sample) => view.look(sample),
                Err(e) => {
                    failure = Some(e);
                    break;
                }
            }
            let lines = render::render_batch(&view.snapshot(), columns.unwrap_or(USUAL), style);
            let gap = if index == 0 { "" } else { "\n" };
            writeln!(out, "{gap}{}", lines.join("\n"))?;
            out.flush()?;
        }
        Ok(())
    });
    failure.map_or(written, Err)
}

/// What is looked at, and how.
#[derive(Debug)]
struct View {
    rows: Vec<Row>,
    sort: Sort,
    skipped: usize,
    host: HostLoad,
    host_cpu: Option<f64>,
    problem: Option<String>,
    help: bool,
}

impl View {
    fn new(sort: Sort, sample: Vec<Statistics>) -> Self {
        let mut rows = compare(&[], sample);
        sort::order(&mut rows, sort);
        Self { rows, sort, skipped: 0, host: HostLoad::read(), host_cpu: None, problem: None, help: false }
    }

    /// Takes a new look.
    fn look(&mut self, sample: Vec<Statistics>) {
        let before: Vec<Statistics> = std::mem::take(&mut self.rows).into_iter().map(|row| row.now).collect();
        self.rows = compare(&before, sample);
        sort::order(&mut self.rows, self.sort);
        let host = HostLoad::read();
        self.host_cpu = host.busy_since(&self.host);
        self.host = host;
        self.problem = None;
    }

    fn snapshot(&self) -> Snapshot<'_> {
        Snapshot {
            rows: &self.rows,
            sort: self.sort,
            skipped: self.skipped,
            host: &self.host,
            host_cpu: self.host_cpu,
            now: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            problem: self.problem.as_deref(),
            help: self.help,
        }
    }

    /// Does what a key says, where there is room for so many machines.
    fn press(&mut self, key: Key, room: usize) -> Wish {
        // Every key leaves the help, and most do nothing else there.
        if std::mem::take(&mut self.help) && !matches!(key, Key::Char('q')) {
            return Wish::Redraw;
        }
        let last = self.rows.len().saturating_sub(room);
        match key {
            Key::Escape | Key::Char('q' | 'Q' | '\x03') => return Wish::Quit,
            Key::Char(' ') => return Wish::Look,
            Key::Char('?' | 'h') => self.help = true,
            Key::Char(key) => {
                if let Some(sort) = Sort::ALL.into_iter().find(|sort| sort.key() == key) {
                    self.sort = sort;
                    sort::order(&mut self.rows, sort);
                }
            }
            Key::Up => self.skipped = self.skipped.saturating_sub(1),
            Key::Down => self.skipped = self.skipped.saturating_add(1),
            Key::PageUp => self.skipped = self.skipped.saturating_sub(room),
            Key::PageDown => self.skipped = self.skipped.saturating_add(room),
            Key::Home => self.skipped = 0,
            Key::End => self.skipped = last,
            Key::Other => {}
        }
        self.skipped = self.skipped.min(last);
        Wish::Redraw
    }
}

/// What a key asks of the loop.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    Quit,
    Look,
    Redraw,
}

const SIGNALS: [Signal; 7] = [
    Signal::SIGWINCH,
    Signal::SIGCONT,
    Signal::SIGTSTP,
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];

/// How long the Escape key alone takes to be told from one that begins like it.
const ESCAPE_TIME: Duration = Duration::from_millis(50);
/// The second look, the first with rates, does not take the whole interval.
const SECOND_LOOK: Duration = Duration::from_millis(500);

/// The loop and what it waits for.
struct Run<'a> {
    ops: &'a Ops,
    screen: Screen,
    signals: SignalFd,
    keys: Keys,
    style: Style,
    interval: Duration,
}

/// Signals that came since they were last taken.
#[derive(Debug, Default, Clone, Copy)]
struct Taken {
    /// One that ends programs.
    end: Option<Signal>,
    suspend: bool,
    resume: bool,
    any: bool,
}

impl Run<'_> {
    /// Shows machines until it is to end; gives the exit status.
    fn watch(&mut self, view: &mut View) -> sys::Result<u8> {
        let mut next = Instant::now() + self.interval.min(SECOND_LOOK);
        let mut changed = true;
        loop {
            if changed {
                // The list may have become shorter.
                let room = render::visible(self.screen.size());
                view.skipped = view.skipped.min(view.rows.len().saturating_sub(room));
                let lines = render::render(&view.snapshot(), self.screen.size(), self.style);
                match self.screen.show(&lines) {
                    Ok(shown) => changed = !shown,
                    Err(Gone) => return Ok(status::OK),
                }
            }
            let (keys, writable) = self.wait(next)?;
            let taken = self.take_signals()?;
            if let Some(status) = self.obey(taken)? {
                return Ok(status);
            }
            changed |= taken.any;
            if writable && self.screen.flush().is_err() {
                return Ok(status::OK);
            }
            for key in if keys { self.read_keys() } else { self.keys_in_time() } {
                let wish = key.map(|key| view.press(key, render::visible(self.screen.size())));
                match wish {
                    Err(Gone) | Ok(Wish::Quit) => return Ok(status::OK),
                    Ok(Wish::Look) => next = Instant::now(),
                    Ok(Wish::Redraw) => {}
                }
                changed = true;
            }
            if Instant::now() >= next {
                match stats::sample(self.ops, &[]) {
                    Ok(sample) => view.look(sample),
                    Err(failure) => view.problem = Some(failure.line()),
                }
                next = Instant::now() + self.interval;
                changed = true;
            }
        }
    }

    /// Waits for anything; says whether there are keys and whether the terminal takes more.
    fn wait(&self, next: Instant) -> sys::Result<(bool, bool)> {
        let mut time = next.saturating_duration_since(Instant::now());
        if self.keys.is_waiting() {
            time = time.min(ESCAPE_TIME);
        }
        // Not rounded down, which would be to come back too early and often.
        let time = PollTimeout::try_from(time + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.screen.input(), PollFlags::POLLIN),
        ];
        fds.extend(self.screen.output().map(|fd: BorrowedFd<'_>| PollFd::new(fd, PollFlags::POLLOUT)));
        match poll(&mut fds, time) {
            Err(Errno::EINTR) => return Ok((false, false)),
            result => result.call(|| "poll(terminal)".into())?,
        };
        let any = |index: usize| fds.get(index).and_then(PollFd::any).unwrap_or(false);
        Ok((any(1), any(2)))
    }

    fn read_keys(&mut self) -> Vec<Result<Key, Gone>> {
        let mut buffer = [0; 256];
        match self.screen.read(&mut buffer) {
            Ok(len) => self.keys.feed(&buffer[..len]).into_iter().map(Ok).collect(),
            Err(Gone) => vec![Err(Gone)],
        }
    }

    fn keys_in_time(&mut self) -> Vec<Result<Key, Gone>> {
        self.keys.time_up().map(Ok).into_iter().collect()
    }

    fn take_signals(&self) -> sys::Result<Taken> {
        let mut taken = Taken::default();
        while let Some(info) = self.signals.read_signal().call(|| "read(signalfd)".into())? {
            taken.any = true;
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            match signal {
                Some(Signal::SIGTSTP) => taken.suspend = true,
                Some(Signal::SIGCONT) => taken.resume = true,
                Some(Signal::SIGWINCH) | None => {}
                end => taken.end = end,
            }
        }
        Ok(taken)
    }

    /// Does what signals say; gives the exit status if they end us.
    fn obey(&mut self, mut taken: Taken) -> sys::Result<Option<u8>> {
        loop {
            match taken.end {
                // The way out that people know from other programs of this kind.
                Some(Signal::SIGINT) => return Ok(Some(status::OK)),
                Some(signal) => return Ok(Some(u8::try_from(128 + signal as i32).unwrap_or(255))),
                None => {}
            }
            // In the background the terminal is not ours to change.
            let again = taken.resume && !self.screen.is_foreground();
            if taken.suspend || again {
                self.screen.leave();
                suspend()?;
                taken = self.take_signals()?;
                // Where no process could resume us, the kernel has not stopped us.
                if taken.resume {
                    continue;
                }
                taken.resume = true;
            }
            if taken.resume {
                self.screen.enter()?;
            }
            return Ok(None);
        }
    }
}

/// Stops the process as if it had never looked after that signal; comes back when it is to go on.
fn suspend() -> sys::Result<()> {
    let stop = SigSet::from(Signal::SIGTSTP);
    kill(nix::unistd::Pid::this(), Signal::SIGTSTP).call(|| "kill(SIGTSTP)".into())?;
    stop.thread_unblock().call(|| "sigprocmask(unblock)".into())?;
    stop.thread_block().call(|| "sigprocmask(block)".into())
}
