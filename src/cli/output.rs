//! What people and scripts read: errors with their cause and hint, results, tables.

use std::cell::RefCell;
use std::io::{IsTerminal as _, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::report::{Done, Event, Events, Line, OpError, Writer};

/// Exit statuses of our own beside those of errors.
pub(crate) mod status {
    pub(crate) const OK: u8 = 0;
    pub(crate) const FAILED: u8 = 1;
    pub(crate) const BAD_CONFIG: u8 = 78;
}

/// Who reads what a verb says.
#[derive(Debug)]
enum Reader {
    /// Sentences on standard error, progress on a terminal.
    People,
    /// Objects, for results on standard output, for the rest on standard error.
    Programs(RefCell<Vec<Done>>),
    /// The process that runs us, everything as lines.
    Parent(Writer),
}

/// Prints what verbs and operations have to say; made once for each run.
#[derive(Debug)]
pub(crate) struct Printer {
    quiet: bool,
    /// The terminal shows a machine's console.
    raw: bool,
    reader: Reader,
    bar: RefCell<Option<ProgressBar>>,
}

impl Printer {
    /// For people, who want to hear nothing but results, warnings and errors if `quiet`.
    fn new(quiet: bool, reader: Reader) -> Self {
        Self { quiet, raw: false, reader, bar: RefCell::new(None) }
    }

    /// By what was typed: `report` is for who runs us and reads standard output as lines.
    pub(crate) fn of(quiet: bool, json: bool, report: bool) -> std::io::Result<Self> {
        let reader = match (json, report) {
            (_, true) => Reader::Parent(Writer::new(std::io::stdout().as_fd().try_clone_to_owned()?)),
            (true, false) => Reader::Programs(RefCell::default()),
            (false, false) => Reader::People,
        };
        Ok(Self::new(quiet, reader))
    }

    /// The same where a machine's console may be on the terminal, so that a line's end has to say where the next begins.
    pub(crate) fn beside_console(&self) -> Rc<Self> {
        Rc::new(Self { raw: std::io::stderr().is_terminal(), ..Self::new(self.quiet, Reader::People) })
    }

    /// Whether results are to be JSON.
    pub(crate) fn json(&self) -> bool {
        matches!(self.reader, Reader::Programs(_))
    }

    /// Whether progress is drawn.
    pub(crate) fn draws(&self) -> bool {
        matches!(self.reader, Reader::People) && !self.quiet && std::io::stderr().is_terminal()
    }

    /// A sentence for people.
    pub(crate) fn say(&self, text: &str) {
        if matches!(self.reader, Reader::People) && !self.quiet {
            write_error(&format!("{text}\n"));
        }
    }

    /// Prints how a verb ended, and gives the exit status.
    pub(crate) fn finish(&self, result: Result<u8, OpError>) -> u8 {
        if let Reader::Programs(results) = &self.reader
            && !results.borrow().is_empty()
        {
            let results = serde_json::to_value(results.take()).unwrap_or_default();
            // One that cannot be told how it went sees that by the exit status.
            let _ = writeln!(std::io::stdout(), "{results:#}");
        }
        match (result, &self.reader) {
            (Ok(status), Reader::Parent(parent)) => {
                parent.finish(&Ok(()));
                status
            }
            (Ok(status), _) => status,
            (Err(error), Reader::Parent(parent)) => {
                parent.send(&Line::Failed(error.clone()));
                error.kind.exit_status()
            }
            (Err(error), _) => {
                self.error(&error);
                error.kind.exit_status()
            }
        }
    }

    fn error(&self, error: &OpError) {
        if self.json() {
            let error = OpError { rendered: error.rendered_plain(), ..error.clone() };
            return write_error(&format!("{}\n", json!({ "error": error })));
        }
        let mut text = match &error.rendered {
            Some(rendered) if color() => format!("{rendered}\n"),
            Some(_) => format!("{}\n", error.rendered_plain().unwrap_or_default()),
            None => format!("{} {}\n", label("error:", "1;31"), clean(&error.message)),
        };
        for cause in &error.causes {
            text.push_str(&format!("  {} {}\n", label("cause:", "1"), clean(cause)));
        }
        for hint in &error.hints {
            text.push_str(&format!("  {} {}\n", label("hint:", "1;36"), clean(hint)));
        }
        write_error(&text);
    }

    fn done(&self, done: Done) {
        match &self.reader {
            Reader::Programs(results) => results.borrow_mut().push(done),
            _ => self.say(&done.to_string()),
        }
    }

    fn begin(&self, text: String) {
        if self.draws() {
            let bar = ProgressBar::new_spinner().with_message(text);
            bar.enable_steady_tick(Duration::from_millis(100));
            self.bar.replace(Some(bar));
        }
    }

    fn end(&self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// One line that counts files, where a terminal shows it.
    fn count(&self, done: u64) {
        let template = "{spinner} giving files to the machine's ids: {pos} done, {per_sec}";
        let style = || ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner());
        let mut bar = self.bar.borrow_mut();
        let bar = bar.get_or_insert_with(|| ProgressBar::new_spinner().with_style(style()));
        if done.is_multiple_of(100) {
            bar.set_position(done);
        }
    }
}

impl Events for Printer {
    fn tell(&self, event: Event) {
        match (&self.reader, event) {
            // No terminal shows how it goes.
            (Reader::Parent(_), Event::Began(_) | Event::Ended | Event::Chown(_)) => {}
            (Reader::Parent(parent), event) => parent.tell(event),
            (Reader::Programs(_), Event::Warning(text)) => write_error(&format!("{}\n", json!({ "warning": text }))),
            (Reader::People, Event::Warning(text)) => {
                let end = if self.raw { "\r\n" } else { "\n" };
                write_error(&format!("{} {}{end}", label("warning:", "1;33"), clean(&text)));
            }
            (_, Event::Failed(error)) => self.error(&error),
            (_, Event::Done(done)) => self.done(done),
            (_, Event::Began(text)) => self.begin(text),
            (Reader::People, Event::Chown(Some(done))) => self.count(done),
            (_, Event::Chown(Some(_))) => {}
            (_, Event::Ended | Event::Chown(None)) => self.end(),
        }
    }

    fn descriptor(&self) -> Option<Rc<OwnedFd>> {
        match &self.reader {
            Reader::Parent(parent) => parent.descriptor(),
            _ => None,
        }
    }

    fn leave(&self) {
        if let Reader::Parent(parent) = &self.reader {
            parent.leave();
        }
    }
}

/// Prints what is wrong with what was typed.
pub(crate) fn usage(error: &clap::Error, as_json: bool) -> u8 {
    if as_json && error.use_stderr() {
        let rendered = error.render().to_string();
        let error = OpError { rendered: Some(rendered), ..OpError::usage(error.kind().to_string()) };
        write_error(&format!("{}\n", json!({ "error": error })));
    } else {
        // Help and version go to standard output and are no failure.
        let _ = error.print();
    }
    u8::try_from(error.exit_code()).unwrap_or(2)
}

fn write_error(text: &str) {
    // No reader is left if this fails.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// A note instead of a result that is empty.
pub(crate) fn note(text: &str) {
    write_error(&format!("{text}\n"));
}

/// Prints an array or object.
pub(crate) fn print_json(value: &Value) -> Result<u8, OpError> {
    written(|out| writeln!(out, "{value:#}"))
}

/// Whether errors may be coloured: a terminal that has not said no (`NO_COLOR`).
pub(crate) fn color() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

fn label(word: &str, code: &str) -> String {
    if color() { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() }
}

/// Names and texts of a guest may hold anything; none of it reaches the terminal as a control.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// Runs something that writes its result; a reader that went away is no failure.
pub(crate) fn written(work: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<u8, OpError> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    match work(&mut out).and_then(|()| out.flush()) {
        Ok(()) => Ok(status::OK),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(status::OK),
        Err(e) => Err(OpError::new(format!("cannot write to standard output: {e}"))),
    }
}

/// Same for something that counts bad definitions.
pub(crate) fn checked(
    work: impl FnOnce(&mut dyn Write, &mut dyn Write) -> std::io::Result<usize>,
) -> Result<u8, OpError> {
    let mut bad = 0;
    written(|out| {
        bad = work(out, &mut std::io::stderr().lock())?;
        Ok(())
    })?;
    Ok(if bad == 0 { status::OK } else { status::BAD_CONFIG })
}

/// Lays rows out in columns as wide as their widest cell; the last column is not padded.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let head: Vec<String> = head.iter().map(|h| (*h).to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Seconds since a moment, in seconds since 1970.
pub(crate) fn seconds_since(then: u64) -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()).saturating_sub(then)
}

/// A duration in the two largest units that fit.
pub(crate) fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}min {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A size in binary units.
pub(crate) fn size(bytes: u64) -> String {
    let mut value = bytes;
    let mut rest = 0;
    for unit in ["B", "K", "M", "G"] {
        if value < 1024 {
            return if unit == "B" || value >= 100 {
                format!("{value}{unit}")
            } else {
                format!("{value}.{}{unit}", rest * 10 / 1024)
            };
        }
        (value, rest) = (value / 1024, value % 1024);
    }
    format!("{value}.{}T", rest * 10 / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up_and_do_not_trail() {
        let rows = vec![vec!["a".to_owned(), "long cell".to_owned(), "x".to_owned()]];
        assert_eq!(table(&["NAME", "B", "C"], &rows), "NAME  B          C\na     long cell  x\n");
    }

    #[test]
    fn ages_and_sizes_are_short() {
        assert_eq!([age(5), age(65), age(7320), age(90_000)], ["5s", "1min 5s", "2h 2min", "1d 1h"]);
        assert_eq!([size(5), size(2048), size(1536), size(300 << 20)], ["5B", "2.0K", "1.5K", "300M"]);
    }

    #[test]
    fn control_characters_never_reach_the_terminal() {
        assert_eq!(clean("a\x1b[2Jb"), "a\u{fffd}[2Jb");
    }
}
