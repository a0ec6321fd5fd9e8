//! Reads the console's log back for `machinist logs`.

use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{OFlags, inotify};
use rustix::io::Errno as RustixErrno;

use super::log::{CURRENT, OLDER, open_dir, open_log};
use crate::sys::{Context, Errno, Error, Result};

/// How bytes of the guest's are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// As they are, for files and pipes.
    Raw,
    /// For a terminal: control characters become visible (`^[`), except line feeds, tabs and colours.
    ///
    /// The guest is hostile, and its old output must not move the reader's cursor, retitle the window or answer
    /// terminal queries on the reader's behalf.
    Safe,
}

/// Writes the log in `dir` to `out`, older file first: all of it or the last `lines`.
///
/// With `follow`, goes on with what is appended until the process is interrupted. A reader that closes `out`
/// ends it without an error.
pub fn print_log(dir: &Path, lines: Option<usize>, follow: bool, shown: Shown, out: &mut dyn Write) -> Result<()> {
    let mut printer = Printer { out, shown, safe: Safe::default(), skip: 0 };
    match print_files(dir, lines, follow, &mut printer) {
        Err(e) if e.errno == Errno::EPIPE => Ok(()),
        result => result,
    }
}

fn print_files(dir: &Path, lines: Option<usize>, follow: bool, printer: &mut Printer<'_>) -> Result<()> {
    let dir_fd = open_dir(dir)?;
    // The watch comes first: what is written while we read wakes us afterwards.
    let watch = if follow { Some(watch(dir_fd.as_fd())?) } else { None };
    let older = open_existing(dir_fd.as_fd(), OLDER)?;
    let mut current = open_existing(dir_fd.as_fd(), CURRENT)?;
    if older.is_none() && current.is_none() && !follow {
        return Err(Error { call: format!("open('{}')", dir.join(CURRENT).display()), errno: Errno::ENOENT });
    }
    if let Some(lines) = lines {
        let total = count_lines([&older, &current].into_iter().flatten())?;
        printer.skip = total.saturating_sub(lines);
    }
    for file in [&older, &current].into_iter().flatten() {
        printer.copy(file)?;
    }
    let Some(watch) = watch else { return printer.finish() };
    loop {
        printer.flush()?;
        wait_for_change(watch.as_fd())?;
        // Once there is a new file the old one no longer grows, so reading it after this look misses nothing.
        let named = open_existing(dir_fd.as_fd(), CURRENT)?;
        if let Some(file) = &current {
            printer.copy(file)?;
        }
        if let Some(file) = named.filter(|new| !current.as_ref().is_some_and(|old| is_same_file(old, new))) {
            printer.copy(&file)?;
            current = Some(file);
        }
    }
}

fn open_existing(dir: BorrowedFd<'_>, name: &str) -> Result<Option<OwnedFd>> {
    match open_log(dir, name, OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok((file, _)) => Ok(Some(file)),
        Err(e) if e.errno == Errno::ENOENT => Ok(None),
        Err(e) => Err(e),
    }
}

fn is_same_file(a: &OwnedFd, b: &OwnedFd) -> bool {
    match (rustix::fs::fstat(a), rustix::fs::fstat(b)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => false,
    }
}

fn watch(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC).call(|| "inotify_init1".into())?;
    let events = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&fd, format!("/proc/self/fd/{}", dir.as_raw_fd()), events)
        .call(|| "inotify_add_watch(directory of the log)".into())?;
    Ok(fd)
}

fn wait_for_change(watch: BorrowedFd<'_>) -> Result<()> {
    let mut buffer = [const { MaybeUninit::uninit() }; 1024];
    loop {
        match inotify::Reader::new(watch, &mut buffer).next() {
            Err(RustixErrno::INTR) => {}
            result => return result.call(|| "read(inotify)".into()).map(drop),
        }
    }
}

/// Number of lines of files that follow each other, an unfinished last one included; a line may go on in the
/// next file.
fn count_lines<'a>(files: impl Iterator<Item = &'a OwnedFd>) -> Result<usize> {
    let (mut lines, mut last) = (0, b'\n');
    for file in files {
        read_all(file, Some(0), &mut |data| {
            lines += data.iter().filter(|b| **b == b'\n').count();
            last = data.last().copied().unwrap_or(last);
            Ok(())
        })?;
    }
    Ok(lines + usize::from(last != b'\n'))
}

/// Reads to the end: from `offset`, leaving the file's position alone, or from that position.
fn read_all(file: &OwnedFd, mut offset: Option<u64>, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut buffer = [0; 16 << 10];
    loop {
        let result = match offset {
            Some(at) => rustix::io::pread(file, &mut buffer, at),
            None => rustix::io::read(file, &mut buffer),
        };
        let len = match result {
            Err(RustixErrno::INTR) => continue,
            result => result.call(|| "read(console log)".into())?,
        };
        if len == 0 {
            return Ok(());
        }
        offset = offset.map(|at| at + len as u64);
        each(&buffer[..len])?;
    }
}

struct Printer<'a> {
    out: &'a mut dyn Write,
    shown: Shown,
    safe: Safe,
    /// Lines still to be left out.
    skip: usize,
}

impl Printer<'_> {
    fn copy(&mut self, file: &OwnedFd) -> Result<()> {
        read_all(file, None, &mut |data| self.print(data))
    }

    fn print(&mut self, mut data: &[u8]) -> Result<()> {
        while self.skip > 0 {
            let Some(end) = data.iter().position(|b| *b == b'\n') else { return Ok(()) };
            data = &data[end + 1..];
            self.skip -= 1;
        }
        match self.shown {
            Shown::Raw => self.out.write_all(data),
            Shown::Safe => self.out.write_all(self.safe.feed(data).as_bytes()),
        }
        .call(|| "write(log)".into())
    }

    fn flush(&mut self) -> Result<()> {
        self.out.flush().call(|| "write(log)".into())
    }

    fn finish(&mut self) -> Result<()> {
        let rest = self.safe.finish();
        self.out.write_all(rest.as_bytes()).call(|| "write(log)".into())?;
        self.flush()
    }
}

/// Makes a stream of hostile bytes fit for a terminal.
#[derive(Debug, Default)]
pub(super) struct Safe {
    /// The beginning of something whose end has not been read yet.
    carry: Vec<u8>,
    coloured: bool,
}

/// What the bytes at one place are.
enum Piece {
    /// So many of them are harmless, or are a colour.
    Plain(usize),
    Colour(usize),
    /// A byte to be shown as `^X` or `\xNN`, or a C1 control of two bytes.
    Control(u8),
    WideControl(u8),
    /// A carriage return before a line feed, which the terminal adds itself.
    Skip,
    /// It takes more bytes to tell.
    Unclear,
}

impl Safe {
    /// Longest colour sequence that is let through.
    const LONGEST: usize = 32;

    pub(super) fn feed(&mut self, data: &[u8]) -> String {
        let mut bytes = std::mem::take(&mut self.carry);
        bytes.extend_from_slice(data);
        let mut text = String::with_capacity(bytes.len());
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let len = match classify(rest) {
                Piece::Plain(len) => self.push(rest, len, &mut text),
                Piece::Colour(len) => {
                    self.coloured = true;
                    self.push(rest, len, &mut text)
                }
                Piece::Control(byte) => push_visible(byte, &mut text),
                Piece::WideControl(byte) => 1 + push_visible(byte, &mut text),
                Piece::Skip => 1,
                Piece::Unclear => break,
            };
            rest = &rest[len..];
        }
        self.carry = rest.to_vec();
        text
    }

    fn push(&self, bytes: &[u8], len: usize, text: &mut String) -> usize {
        text.push_str(&String::from_utf8_lossy(&bytes[..len]));
        len
    }

    /// What was unclear to the end, and the terminal's own colours.
    pub(super) fn finish(&mut self) -> String {
        let mut text = String::new();
        for byte in std::mem::take(&mut self.carry) {
            match byte {
                0x20..=0x7e => text.push(char::from(byte)),
                _ => drop(push_visible(byte, &mut text)),
            }
        }
        if std::mem::take(&mut self.coloured) {
            text.push_str("\x1b[0m");
        }
        text
    }
}

fn push_visible(byte: u8, text: &mut String) -> usize {
    match byte {
        0..=0x1f | 0x7f => text.extend(['^', char::from(byte ^ 0x40)]),
        _ => text.push_str(&format!("\\x{byte:02x}")),
    }
    1
}

fn classify(rest: &[u8]) -> Piece {
    match rest[0] {
        b'\n' | b'\t' | 0x20..=0x7e => Piece::Plain(1),
        b'\r' => match rest.get(1) {
            Some(b'\n') => Piece::Skip,
            Some(_) => Piece::Control(b'\r'),
            None => Piece::Unclear,
        },
        0x1b => classify_escape(rest),
        byte @ (0..=0x1f | 0x7f) => Piece::Control(byte),
        byte => match rest.utf8_chunks().next() {
            // U+0080 to U+009F are the C1 controls; U+009B is as good as `ESC [`.
            Some(chunk) if !chunk.valid().is_empty() => match chunk.valid().chars().next() {
                Some(c @ '\u{80}'..='\u{9f}') => Piece::WideControl(u8::try_from(u32::from(c)).unwrap_or(byte)),
                Some(c) => Piece::Plain(c.len_utf8()),
                None => Piece::Control(byte),
            },
            _ if rest.len() < 4 && std::str::from_utf8(rest).is_err_and(|e| e.error_len().is_none()) => Piece::Unclear,
            _ => Piece::Control(byte),
        },
    }
}

/// Lets `ESC [ numbers m` through.
fn classify_escape(rest: &[u8]) -> Piece {
    match rest.get(1) {
        None => return Piece::Unclear,
        Some(b'[') => {}
        Some(_) => return Piece::Control(0x1b),
    }
    let numbers = rest[2..].iter().take_while(|b| matches!(b, b'0'..=b'9' | b';' | b':')).count();
    match rest.get(2 + numbers) {
        _ if numbers > Safe::LONGEST => Piece::Control(0x1b),
        Some(b'm') => Piece::Colour(numbers + 3),
        Some(_) => Piece::Control(0x1b),
        None => Piece::Unclear,
    }
}
