//! The columns of the table: what each shows, and which of them fit.

use super::paint::Paint;
use crate::cgroup::Stall;
use crate::cli::output::{clean, size};
use crate::cli::stats::{Row, cpu_time, percent, ratio, waited};

/// What cells are made from beside their machine.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Around {
    /// Seconds since 1970.
    pub(super) now: u64,
    pub(super) processors: u64,
    /// Bytes.
    pub(super) memory_total: u64,
}

/// One column beside the name.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) head: &'static str,
    pub(super) width: usize,
    pub(super) to_the_left: bool,
    /// The last ones are left out first.
    importance: u8,
    /// What it shows; an empty cell is a dash.
    pub(super) cell: fn(&Row, &Around) -> (String, Paint),
}

/// Shortest that a longer name is cut to.
const SHORT_NAME: usize = 12;
/// Columns of a bar.
const BAR: usize = 10;

const fn column(
    head: &'static str,
    width: usize,
    importance: u8,
    cell: fn(&Row, &Around) -> (String, Paint),
) -> Column {
    Column { head, width, to_the_left: false, importance, cell }
}

const fn left(head: &'static str, width: usize, importance: u8, cell: fn(&Row, &Around) -> (String, Paint)) -> Column {
    Column { head, width, to_the_left: true, importance, cell }
}

/// Where there is room for the three kinds of pressure one by one; elsewhere the worst is shown.
const WIDE: usize = 120;

static COLUMNS: [Column; 23] = [
    left("STATE", 10, 5, |row, _| (clean(&row.now.state), state_paint(&row.now.state))),
    column("CPU%", 5, 1, |row, _| of_limit(row.rates.cpu_percent.map(percent), row.rates.cpu_percent, 90.0)),
    left("OF HOST", BAR, 15, cpu_bar),
    column("CPU TIME", 8, 11, |row, _| plain(row.now.usage.cpu_usec.map(cpu_time))),
    column("THROTTLED", 9, 17, |row, _| plain(row.now.usage.cpu_throttled_usec.map(cpu_time))),
    column("MEMORY", 6, 2, |row, _| of_limit(row.now.usage.memory_bytes.map(size), memory_share(row), 90.0)),
    column("MAX", 6, 7, |row, _| plain(row.now.usage.memory_max_bytes.map(size))),
    left("OF MAX", BAR, 16, memory_bar),
    column("PEAK", 6, 12, |row, _| plain(row.now.usage.memory_peak_bytes.map(size))),
    column("SWAP", 6, 10, |row, _| plain(row.now.usage.swap_bytes.map(size))),
    column("OOM", 4, 13, |row, _| some_are_bad(row.now.usage.oom_kills)),
    column("READ/S", 6, 3, |row, _| plain(row.rates.read.map(size))),
    column("WRITE/S", 7, 3, |row, _| plain(row.rates.written.map(size))),
    column("READ", 6, 14, |row, _| plain(row.now.usage.io_read_bytes.map(size))),
    column("WRITTEN", 7, 14, |row, _| plain(row.now.usage.io_written_bytes.map(size))),
    column("TASKS", 5, 4, |row, _| of_limit(row.now.usage.tasks.map(|n| n.to_string()), tasks_share(row), 90.0)),
    column("LIMIT", 5, 18, |row, _| plain(row.now.usage.tasks_max.map(|n| n.to_string()))),
    column("PRESSURE", 8, 6, |row, _| worst_pressure(row)),
    column("P-CPU", 5, 6, |row, _| stall_cell(row.now.usage.pressure.cpu.as_ref())),
    column("P-MEM", 5, 6, |row, _| stall_cell(row.now.usage.pressure.memory.as_ref())),
    column("P-I/O", 5, 6, |row, _| stall_cell(row.now.usage.pressure.io.as_ref())),
    column("UPTIME", 6, 8, |row, around| plain(Some(uptime(around.now.saturating_sub(row.now.since))))),
    column("LEADER", 7, 19, |row, _| plain(row.now.leader.map(|pid| pid.to_string()))),
];

/// The columns for a width, and how wide the names before them and the gaps between them are.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) columns: Vec<&'static Column>,
    pub(super) name: usize,
    pub(super) gap: usize,
}

/// Takes the most important columns that fit; `longest` is the width of the longest name.
pub(super) fn shape(width: usize, longest: usize) -> Shape {
    let fits_here = |column: &&Column| match column.head {
        "PRESSURE" => width < WIDE,
        "P-CPU" | "P-MEM" | "P-I/O" => width >= WIDE,
        _ => true,
    };
    let shown: Vec<&Column> = COLUMNS.iter().filter(fits_here).collect();
    let longest = longest.max("NAME".len());
    let mut by_importance: Vec<u8> = shown.iter().map(|column| column.importance).collect();
    by_importance.sort_unstable();
    by_importance.dedup();
    let taken = |least: u8| shown.iter().copied().filter(move |column| column.importance <= least);
    let needed = |least: u8, gap: usize| taken(least).map(|column| column.width + gap).sum::<usize>();
    let shortest = longest.min(SHORT_NAME);
    let least = by_importance.into_iter().take_while(|least| needed(*least, 1) + shortest <= width).last().unwrap_or(0);
    let gap = if needed(least, 2) + longest <= width { 2 } else { 1 };
    let name = longest.min(width.saturating_sub(needed(least, gap)));
    Shape { columns: taken(least).collect(), name, gap }
}

fn plain(cell: Option<String>) -> (String, Paint) {
    (cell.unwrap_or_default(), Paint::Plain)
}

/// A cell that is red from `bad` percent on, and yellow from half of it.
fn of_limit(cell: Option<String>, share: Option<f64>, bad: f64) -> (String, Paint) {
    let paint = match share {
        Some(share) if share >= bad => Paint::Bad,
        Some(share) if share >= bad / 2.0 => Paint::Warn,
        _ => Paint::Plain,
    };
    (cell.unwrap_or_default(), paint)
}

fn state_paint(state: &str) -> Paint {
    match state {
        "running" => Paint::Good,
        "frozen" => Paint::Cool,
        _ => Paint::Warn,
    }
}

fn some_are_bad(count: Option<u64>) -> (String, Paint) {
    let paint = if count.is_some_and(|count| count > 0) { Paint::Bad } else { Paint::Plain };
    (count.map(|count| count.to_string()).unwrap_or_default(), paint)
}

fn share(part: Option<u64>, whole: Option<u64>) -> Option<f64> {
    Some(ratio(part?, whole.filter(|whole| *whole > 0)?) * 100.0)
}

fn memory_share(row: &Row) -> Option<f64> {
    share(row.now.usage.memory_bytes, row.now.usage.memory_max_bytes)
}

fn tasks_share(row: &Row) -> Option<f64> {
    share(row.now.usage.tasks, row.now.usage.tasks_max)
}

/// The part of all of the host's processors.
fn cpu_bar(row: &Row, around: &Around) -> (String, Paint) {
    let all = around.processors.max(1);
    bar(row.rates.cpu_percent.map(|percent| percent / ratio(all, 1)))
}

/// The part of what the machine may have, which without a limit is all of the host's memory.
fn memory_bar(row: &Row, around: &Around) -> (String, Paint) {
    let most = row.now.usage.memory_max_bytes.unwrap_or(around.memory_total).min(around.memory_total);
    bar(share(row.now.usage.memory_bytes, Some(most)))
}

/// A bar that is full at 100 percent.
fn bar(share: Option<f64>) -> (String, Paint) {
    let Some(share) = share else { return (String::new(), Paint::Plain) };
    let filled = (1..=BAR).filter(|tenth| share >= f64::from(u8::try_from(*tenth).unwrap_or(u8::MAX)) * 10.0 - 5.0);
    let text: String = "|".repeat(filled.count());
    let (_, paint) = of_limit(None, Some(share), 90.0);
    (format!("{text:.<BAR$}"), if paint == Paint::Plain { Paint::Good } else { paint })
}

/// From which share of lost time on it is bad.
const BAD_STALL: f64 = 40.0;

fn stall_cell(stall: Option<&Stall>) -> (String, Paint) {
    let share = waited(stall);
    of_limit(share.map(percent), share, BAD_STALL)
}

/// What the machine waits for most.
fn worst_pressure(row: &Row) -> (String, Paint) {
    let pressure = &row.now.usage.pressure;
    let kinds = [("cpu", &pressure.cpu), ("mem", &pressure.memory), ("i/o", &pressure.io)];
    let told = kinds.into_iter().filter_map(|(kind, stall)| Some((kind, waited(stall.as_ref())?)));
    // Of equals the first.
    let worst = told.reduce(|worst, next| if next.1 > worst.1 { next } else { worst });
    match worst {
        Some((_, 0.0)) => plain(Some("0".into())),
        Some((kind, share)) => of_limit(Some(format!("{kind} {share:.0}")), Some(share), BAD_STALL),
        None => plain(None),
    }
}

/// A time in at most six characters.
pub(super) fn uptime(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        86_400..8_640_000 => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
