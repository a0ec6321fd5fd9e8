//! One picture of all machines, as text: pure, so that tests compare it.

use super::columns::{self, Around, Shape, uptime};
use super::host::HostLoad;
use super::paint::Paint;
use super::sort::Sort;
use crate::cli::output::{clean, size as bytes};
use crate::cli::stats::{Row, or_dash, percent};

/// What is shown.
#[derive(Debug)]
pub(super) struct Snapshot<'a> {
    pub(super) rows: &'a [Row],
    pub(super) sort: Sort,
    /// How many machines are above the first line.
    pub(super) skipped: usize,
    pub(super) host: &'a HostLoad,
    /// Of all processors.
    pub(super) host_cpu: Option<f64>,
    /// Seconds since 1970.
    pub(super) now: u64,
    /// Why the machines could not be looked at this time.
    pub(super) problem: Option<&'a str>,
    /// Keys are explained instead of machines shown.
    pub(super) help: bool,
}

/// Room in the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) columns: usize,
    pub(super) rows: usize,
}

/// What the terminal can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Style {
    pub(super) color: bool,
    /// It has more than ASCII.
    pub(super) unicode: bool,
}

/// A finished line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Drawn {
    pub(super) text: String,
    /// It reaches the last column, where terminals erase what they have just shown when told to erase the rest.
    pub(super) full: bool,
}

/// A line that cannot be longer than the terminal is wide.
struct Line {
    text: String,
    room: usize,
    style: Style,
}

impl Line {
    fn new(size: Size, style: Style) -> Self {
        Self { text: String::new(), room: size.columns, style }
    }

    fn add(mut self, paint: Paint, text: &str) -> Self {
        let text = cut(text, self.room, self.style);
        self.room -= text.chars().count();
        if self.style.color && paint != Paint::Plain && !text.is_empty() {
            self.text.push_str(&format!("\x1b[{}m{text}\x1b[0m", paint.code()));
        } else {
            self.text.push_str(&text);
        }
        self
    }

    /// Fills the rest of the line, where that can be seen.
    fn fill(self, paint: Paint) -> Self {
        let rest = " ".repeat(if self.style.color { self.room } else { 0 });
        self.add(paint, &rest)
    }
}

/// Shortens a text without controls, and says so by its last character.
fn cut(text: &str, width: usize, style: Style) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    if width > 0 {
        short.push(if style.unicode { '…' } else { '~' });
    }
    short
}

/// How many machines there is room for.
pub(super) fn visible(size: Size) -> usize {
    size.rows.saturating_sub(summary_lines(size) + usize::from(size.rows > 1) + usize::from(size.rows > 3))
}

/// Lines above the table.
fn summary_lines(size: Size) -> usize {
    match size.rows {
        0..=3 => 0,
        4..=8 => 1,
        _ => 4,
    }
}

/// The whole picture: as many lines as there is room for, and none longer than it.
pub(super) fn render(shown: &Snapshot<'_>, size: Size, style: Style) -> Vec<Drawn> {
    let room = visible(size);
    let mut lines: Vec<Line> = summary(shown, room, size, style).into_iter().take(summary_lines(size)).collect();
    if shown.help {
        lines.extend(HELP.lines().take(room + 1).map(|text| Line::new(size, style).add(Paint::Plain, text)));
    } else {
        lines.extend(table(shown, room, size, style).into_iter().take(room + usize::from(size.rows > 1)));
    }
    let footer = (size.rows > 3).then(|| footer(shown, size, style));
    lines.resize_with(size.rows - usize::from(footer.is_some()), || Line::new(size, style));
    lines.extend(footer);
    lines.into_iter().map(|line| Drawn { full: line.room == 0, text: line.text }).collect()
}

/// The same without a terminal: all machines, and no keys.
pub(super) fn render_batch(shown: &Snapshot<'_>, columns: usize, style: Style) -> Vec<String> {
    let size = Size { columns, rows: shown.rows.len() };
    let room = shown.rows.len();
    let lines = summary(shown, room, size, style).into_iter().chain(table(shown, room, size, style));
    lines.map(|line| line.text.trim_end().to_owned()).collect()
}

/// The host, and all machines together.
fn summary(shown: &Snapshot<'_>, room: usize, size: Size, style: Style) -> Vec<Line> {
    let line = || Line::new(size, style);
    let count = shown.rows.len();
    let part = if count > room && !shown.help && room > 0 {
        format!(" ({}-{} shown)", shown.skipped + 1, (shown.skipped + room).min(count))
    } else {
        String::new()
    };
    let host = shown.host;
    let plural = if count == 1 { "" } else { "s" };
    let head = format!(
        " {count} machine{plural}{part} by {}, load {}, up {}",
        shown.sort.word(),
        host.averages,
        uptime(host.uptime)
    );
    let cpus = if host.processors == 1 { "processor" } else { "processors" };
    let of_host = format!(
        " CPU {} of {} {cpus}, memory {} of {}, swap {} of {}",
        or_dash(shown.host_cpu.map(|share| format!("{}%", percent(share)))),
        host.processors,
        bytes(host.memory_total.saturating_sub(host.memory_available)),
        bytes(host.memory_total),
        bytes(host.swap_total.saturating_sub(host.swap_free)),
        bytes(host.swap_total),
    );
    let rows = shown.rows;
    let sum = |number: fn(&Row) -> Option<u64>| rows.iter().filter_map(number).reduce(u64::saturating_add);
    let per_second = |rate| format!("{}/s", bytes(rate));
    let cpu = rows.iter().filter_map(|row| row.rates.cpu_percent).reduce(|a, b| a + b);
    let of_machines = format!(
        " CPU {}, memory {}, tasks {}, read {}, written {}",
        or_dash(cpu.map(|share| format!("{}%", percent(share)))),
        or_dash(sum(|row| row.now.usage.memory_bytes).map(bytes)),
        or_dash(sum(|row| row.now.usage.tasks).map(|n| n.to_string())),
        or_dash(sum(|row| row.rates.read).map(per_second)),
        or_dash(sum(|row| row.rates.written).map(per_second)),
    );
    vec![
        line().add(Paint::Title, "machinist top:").add(Paint::Plain, &head),
        line().add(Paint::Title, "Host:").add(Paint::Plain, &of_host),
        line().add(Paint::Title, "Machines:").add(Paint::Plain, &of_machines),
        line().add(Paint::Bad, &clean(shown.problem.unwrap_or_default()).replace('\n', " ")),
    ]
}

/// The head of the table, and `room` machines.
fn table(shown: &Snapshot<'_>, room: usize, size: Size, style: Style) -> Vec<Line> {
    let names: Vec<String> = shown.rows.iter().map(|row| clean(&row.now.name).replace('\n', " ")).collect();
    let longest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let shape = columns::shape(size.columns, longest);
    let around = Around { now: shown.now, processors: shown.host.processors, memory_total: shown.host.memory_total };
    let mut lines = vec![head(shown.sort, &shape, size, style)];
    if shown.rows.is_empty() {
        lines.push(Line::new(size, style).add(Paint::Plain, "No machines are running."));
    }
    for (row, name) in shown.rows.iter().zip(&names).skip(shown.skipped).take(room) {
        let mut line = Line::new(size, style).add(Paint::Title, &padded(name, shape.name, true, style));
        for column in &shape.columns {
            let (cell, paint) = (column.cell)(row, &around);
            let cell = if cell.is_empty() { "-" } else { &cell };
            line = line.add(Paint::Plain, &" ".repeat(shape.gap));
            line = line.add(paint, &padded(cell, column.width, column.to_the_left, style));
        }
        lines.push(line);
    }
    lines
}

fn head(sort: Sort, shape: &Shape, size: Size, style: Style) -> Line {
    let paint = |head: &str| if sort.columns().contains(&head) { Paint::Sorted } else { Paint::Head };
    let mut line = Line::new(size, style).add(paint("NAME"), &padded("NAME", shape.name, true, style));
    for column in &shape.columns {
        line = line.add(Paint::Head, &" ".repeat(shape.gap));
        line = line.add(paint(column.head), &padded(column.head, column.width, column.to_the_left, style));
    }
    line.fill(Paint::Head)
}

fn padded(text: &str, width: usize, to_the_left: bool, style: Style) -> String {
    let text = cut(text, width, style);
    if to_the_left { format!("{text:<width$}") } else { format!("{text:>width$}") }
}

/// What the keys do.
fn footer(shown: &Snapshot<'_>, size: Size, style: Style) -> Line {
    let mut line = Line::new(size, style);
    let sorts = Sort::ALL.map(|sort| (sort.key(), sort.word(), sort == shown.sort));
    let others = [("space", "now", false), ("?", "help", false), ("q", "quit", false)];
    let sorts = sorts.iter().map(|(key, word, on)| (key.to_string(), *word, *on));
    let all = sorts.chain(others.into_iter().map(|(key, word, on)| (key.to_owned(), word, on)));
    for (index, (key, word, on)) in all.enumerate() {
        let gap = if index == 0 { "" } else { "  " };
        line = line.add(Paint::Plain, gap).add(Paint::Title, &key);
        line = line.add(Paint::Plain, " ").add(if on { Paint::Cool } else { Paint::Plain }, word);
    }
    line
}

const HELP: &str = "\
Keys
  c m i t p   in the order of processor time, memory, I/O, tasks, pressure
  n           by name, an order that stays
  up, down, page up, page down, home, end
              other machines, where they do not all fit
  space       look at the machines now
  q, Esc      quit; Ctrl-Z suspends
Columns, of which as many are shown as fit
  CPU%        of one processor
  MEMORY      with the page cache; MAX is the limit, PEAK the most so far
  READ/S, WRITE/S
              bytes of devices in a second; READ, WRITTEN since the start
  PRESSURE    part of the last ten seconds in which tasks waited, in percent:
              for a processor, memory or I/O, whichever was the longest
  THROTTLED   time for which a limit has held the machine back
  OOM         processes killed for want of memory
  -           this host does not account for it, or does not limit it";
