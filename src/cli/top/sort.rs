//! The order of machines on the screen.

use std::cmp::{Ordering, Reverse};

use crate::cli::stats::{Row, waited};

/// `--sort`
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sort {
    /// Processor time
    Cpu,
    /// Memory
    Memory,
    /// Bytes read and written in a second
    Io,
    /// Processes and threads
    Tasks,
    /// Name, an order that stays
    Name,
    /// Time lost by waiting
    Pressure,
}

impl Sort {
    pub(super) const ALL: [Self; 6] = [Self::Cpu, Self::Memory, Self::Io, Self::Tasks, Self::Name, Self::Pressure];

    pub(super) fn key(self) -> char {
        match self {
            Self::Cpu => 'c',
            Self::Memory => 'm',
            Self::Io => 'i',
            Self::Tasks => 't',
            Self::Name => 'n',
            Self::Pressure => 'p',
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Memory => "memory",
            Self::Io => "I/O",
            Self::Tasks => "tasks",
            Self::Name => "name",
            Self::Pressure => "pressure",
        }
    }

    /// Heads of the columns that tell the order.
    pub(super) fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Cpu => &["CPU%"],
            Self::Memory => &["MEMORY"],
            Self::Io => &["READ/S", "WRITE/S"],
            Self::Tasks => &["TASKS"],
            Self::Name => &["NAME"],
            Self::Pressure => &["PRESSURE", "P-CPU", "P-MEM", "P-I/O"],
        }
    }
}

/// Compares machines: the most first, what is not known last, and of equals the first by name.
fn sorted(sort: Sort, a: &Row, b: &Row) -> Ordering {
    let pressure = |row: &Row| {
        let pressure = &row.now.usage.pressure;
        let stalls = [&pressure.cpu, &pressure.memory, &pressure.io];
        stalls.into_iter().filter_map(|stall| waited(stall.as_ref())).reduce(f64::max)
    };
    let most_of = |a: Option<f64>, b: Option<f64>| b.unwrap_or(-1.0).total_cmp(&a.unwrap_or(-1.0));
    let order = match sort {
        Sort::Cpu => most_of(a.rates.cpu_percent, b.rates.cpu_percent),
        Sort::Memory => b.now.usage.memory_bytes.cmp(&a.now.usage.memory_bytes),
        Sort::Io => {
            let io = |row: &Row| row.rates.read.zip(row.rates.written).map(|(r, w)| r.saturating_add(w));
            io(b).cmp(&io(a))
        }
        Sort::Tasks => Reverse(a.now.usage.tasks).cmp(&Reverse(b.now.usage.tasks)),
        Sort::Name => Ordering::Equal,
        Sort::Pressure => most_of(pressure(a), pressure(b)),
    };
    order.then_with(|| a.now.name.cmp(&b.now.name))
}

/// The machines in an order; of equals the first by name.
pub(super) fn order(rows: &mut [Row], sort: Sort) {
    rows.sort_by(|a, b| sorted(sort, a, b));
}
