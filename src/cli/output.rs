//! What people and scripts read: errors with their cause and hint, tables, and exit statuses.

use std::error::Error as StdError;
use std::io::{IsTerminal as _, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::{ConfigError, Loaded};
use crate::enter::EnterError;
use crate::image::ImageError;
use crate::plan::PlanError;
use crate::supervisor::MachineError;
use crate::sys;

/// Exit statuses of our own; a payload's status is passed through.
pub(crate) mod status {
    pub(crate) const OK: u8 = 0;
    pub(crate) const FAILED: u8 = 1;
    pub(crate) const USAGE: u8 = 2;
    pub(crate) const NOT_PERMITTED: u8 = 77;
    pub(crate) const BAD_CONFIG: u8 = 78;
}

/// Why a verb did not do what it was asked.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    status: u8,
    message: String,
    causes: Vec<String>,
    hint: Option<String>,
    /// Already laid out for reading, with its own `error:`.
    rendered: bool,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { status: status::FAILED, message: message.into(), causes: Vec::new(), hint: None, rendered: false }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { status: status::USAGE, ..Self::new(message) }
    }

    /// What somebody else tells as [`report`] prints it; what is laid out otherwise stays as it is.
    pub(crate) fn told(status: u8, text: String) -> Self {
        let mut lines = text.lines();
        let mut failure = Self { status, ..Self::new(lines.next().unwrap_or_default()) };
        for line in lines {
            if let Some(cause) = line.strip_prefix("  cause: ") {
                failure.causes.push(cause.to_owned());
            } else if let (Some(hint), None) = (line.strip_prefix("  hint: "), &failure.hint) {
                failure.hint = Some(hint.to_owned());
            } else {
                return Self { status, ..Self::new(text) };
            }
        }
        failure
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn cause(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// The failure as another process of ours sends it.
    pub(crate) fn to_wire(&self) -> Vec<u8> {
        serde_json::to_vec(&(self.status, &self.message, &self.causes, &self.hint, self.rendered)).unwrap_or_default()
    }

    /// Back from there.
    pub(crate) fn from_wire(data: &[u8]) -> Self {
        match serde_json::from_slice(data) {
            Ok((status, message, causes, hint, rendered)) => Self { status, message, causes, hint, rendered },
            Err(_) => Self::new("the supervisor answered nonsense"),
        }
    }

    /// Without what was laid out for reading, which is told elsewhere.
    fn plain(&self) -> Self {
        if !self.rendered {
            return self.clone();
        }
        let message = self.message.lines().next().unwrap_or_default();
        let message = message.trim_start_matches("error: ").to_owned();
        Self { message, rendered: false, ..self.clone() }
    }

    /// What else did not work because of this.
    pub(crate) fn then(&self, what: &str) -> Self {
        let plain = self.plain();
        Self { message: format!("{what}: {}", plain.message), ..plain }
    }

    /// All of it in one line.
    pub(crate) fn line(&self) -> String {
        let plain = self.plain();
        let texts = std::iter::once(&plain.message).chain(&plain.causes);
        clean(&texts.map(String::as_str).collect::<Vec<_>>().join(": ")).replace('\n', " ")
    }

    /// A definition that gives no machine.
    pub(crate) fn config(error: &ConfigError) -> Self {
        let status = match error {
            // What was typed is no name: nothing was looked for.
            ConfigError::Name(_) => status::USAGE,
            _ => status::BAD_CONFIG,
        };
        Self { status, rendered: true, ..Self::new(error.render(color())) }
    }

    pub(crate) fn machine(doing: &str, error: &MachineError) -> Self {
        let status = match error {
            MachineError::NotPermitted => status::NOT_PERMITTED,
            _ => status::FAILED,
        };
        let mut causes = vec![error.to_string()];
        causes.extend(sources(error));
        Self { status, causes, hint: error.hint(), ..Self::new(doing) }
    }

    pub(crate) fn call(doing: impl Into<String>, error: &sys::Error) -> Self {
        let status = match error.errno {
            sys::Errno::EACCES | sys::Errno::EPERM => status::NOT_PERMITTED,
            _ => status::FAILED,
        };
        Self { status, causes: vec![error.to_string()], ..Self::new(doing) }
    }

    /// A verb on an image that failed; the error says what was tried.
    pub(crate) fn image(error: &ImageError) -> Self {
        let status = match error {
            ImageError::InvalidName { .. } => status::USAGE,
            ImageError::Call { cause, .. } => Self::call("", cause).status,
            _ => status::FAILED,
        };
        let hint = error.hint().map(str::to_owned);
        Self { status, causes: sources(error), hint, ..Self::new(error.to_string()) }
    }

    pub(crate) fn enter(error: &EnterError) -> Self {
        Self { status: error.exit_status(), causes: sources(error), ..Self::new(error.to_string()) }
    }

    /// What was typed is wrong.
    pub(crate) fn typed(error: ConfigError) -> Self {
        Self { status: status::USAGE, ..error.into() }
    }

    /// Limits that this host cannot keep.
    pub(crate) fn unmet(error: ConfigError) -> Self {
        Self { status: status::FAILED, ..error.into() }
    }

    /// A definition that this host cannot follow.
    pub(crate) fn plan(loaded: Loaded, error: &PlanError) -> Self {
        if let PlanError::Limits(unmet) = error {
            return Self::unmet(loaded.refuse(unmet));
        }
        let doing = format!("cannot plan machine '{}'", loaded.spec.name);
        let failure = Self { causes: vec![error.to_string()], ..Self::new(doing) };
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::config(&error)
    }
}

/// Failures of several things of which one does not end the others: all but the last are reported at once.
#[derive(Debug, Default)]
pub(crate) struct Failures(Option<Failure>);

impl Failures {
    pub(crate) fn add(&mut self, failure: Failure) {
        if let Some(earlier) = self.0.replace(failure) {
            report(&earlier);
        }
    }

    /// Success, if there were none.
    pub(crate) fn result(self) -> Result<u8, Failure> {
        self.0.map_or(Ok(status::OK), Err)
    }
}

fn sources(error: &dyn StdError) -> Vec<String> {
    let mut texts = Vec::new();
    let mut next = error.source();
    while let Some(error) = next {
        texts.push(error.to_string());
        next = error.source();
    }
    texts
}

/// Whether errors may be coloured: a terminal that has not said no (`NO_COLOR`).
pub(crate) fn color() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Prints a failure for reading and gives the exit status.
pub(crate) fn report(failure: &Failure) -> u8 {
    let mut text = String::new();
    if failure.rendered {
        text.push_str(&failure.message);
        text.push('\n');
    } else {
        text.push_str(&format!("{} {}\n", label("error:", "1;31"), clean(&failure.message)));
    }
    for cause in &failure.causes {
        text.push_str(&format!("  {} {}\n", label("cause:", "1"), clean(cause)));
    }
    if let Some(hint) = &failure.hint {
        text.push_str(&format!("  {} {}\n", label("hint:", "1;36"), clean(hint)));
    }
    // Nobody is left to tell if this fails.
    let _ = std::io::stderr().write_all(text.as_bytes());
    failure.status
}

fn label(word: &str, code: &str) -> String {
    if color() { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() }
}

/// Names and texts of a guest may hold anything; none of it reaches the terminal as a control.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// A line for people, not for scripts.
pub(crate) fn say(quiet: bool, text: &str) {
    if !quiet {
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}

/// A warning: we go on.
pub(crate) fn warn(text: &str) {
    let _ = writeln!(std::io::stderr(), "{} {}", label("warning:", "1;33"), clean(text));
}

/// Same, also on a terminal that shows a machine's console already and so needs to be told where a line begins.
pub(crate) fn warn_anywhere(text: &str) {
    let end = if std::io::stderr().is_terminal() { "\r\n" } else { "\n" };
    let _ = write!(std::io::stderr(), "{} {}{end}", label("warning:", "1;33"), clean(text));
}

/// Runs something that writes its result; a reader that went away is no failure.
pub(crate) fn written(work: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<u8, Failure> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    match work(&mut out).and_then(|()| out.flush()) {
        Ok(()) => Ok(status::OK),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(status::OK),
        Err(e) => Err(Failure::new(format!("cannot write to standard output: {e}"))),
    }
}

/// Same for something that counts bad definitions.
pub(crate) fn checked(
    work: impl FnOnce(&mut dyn Write, &mut dyn Write) -> std::io::Result<usize>,
) -> Result<u8, Failure> {
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
    fn what_others_tell_is_taken_apart_if_it_is_one_failure() {
        let one = Failure::told(1, "a\n  cause: b\n  cause: c\n  hint: d".into());
        assert_eq!((one.line().as_str(), one.hint.as_deref()), ("a: b: c", Some("d")));
        let two = "a\n  cause: b\nerror: c";
        assert_eq!(Failure::told(1, two.into()).message, two);
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
