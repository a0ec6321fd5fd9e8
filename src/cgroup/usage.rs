//! What a machine uses, as the kernel counts it for its control group.
//!
//! Read by hand: the library for control groups opens by path, looks for the controllers first, and parses the whole of
//! `memory.stat` for one number. Here each file is one open and one read, so that a hundred machines can be looked at
//! every second.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::sys::READ_AT_ONCE;

/// What a machine uses, as far as the host's controllers report it; what they do not report is `None`.
///
/// Counters are those since this boot of the machine.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Usage {
    /// Processor time in microseconds, of all processors together.
    pub cpu_usec: Option<u64>,
    /// Part of it that was spent in programs.
    pub cpu_user_usec: Option<u64>,
    /// Part of it that was spent in the kernel.
    pub cpu_system_usec: Option<u64>,
    /// Microseconds in which the machine could have run but for its limit (`cpu.max`).
    pub cpu_throttled_usec: Option<u64>,
    /// Bytes of memory, the page cache that the machine has filled included.
    pub memory_bytes: Option<u64>,
    /// The most it has been.
    pub memory_peak_bytes: Option<u64>,
    /// The most it may be (`memory.max`); `None` if there is no limit.
    pub memory_max_bytes: Option<u64>,
    /// Bytes that have been swapped out.
    pub swap_bytes: Option<u64>,
    /// Processes that were killed because there was no memory for them.
    pub oom_kills: Option<u64>,
    /// Processes and threads.
    pub tasks: Option<u64>,
    /// The most there may be (`pids.max`); `None` if there is no limit.
    pub tasks_max: Option<u64>,
    /// Bytes read from devices.
    pub io_read_bytes: Option<u64>,
    /// Bytes written to devices.
    pub io_written_bytes: Option<u64>,
    /// Reads from devices.
    pub io_reads: Option<u64>,
    /// Writes to devices.
    pub io_writes: Option<u64>,
    /// What the machine has had to wait for.
    pub pressure: Pressure,
}

/// Time lost for want of something (`Documentation/accounting/psi.rst` of the kernel).
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Pressure {
    /// For want of a processor.
    pub cpu: Option<Stall>,
    /// For want of memory.
    pub memory: Option<Stall>,
    /// For want of what is on a disk.
    pub io: Option<Stall>,
}

/// Time lost, in percent of the last ten seconds.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Stall {
    /// In which at least one task waited.
    pub some_percent: Option<f64>,
    /// In which all of them did.
    pub full_percent: Option<f64>,
}

/// What the payload of the machine's group at `machine` uses.
pub fn usage(machine: &Path) -> Usage {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // A machine that ends at this moment uses nothing.
    let Ok(dir) = rustix::fs::open(machine.join("payload"), flags, Mode::empty()) else { return Usage::default() };
    let mut group = Group { dir, room: vec![0; READ_AT_ONCE] };
    let mut usage = Usage::default();
    if let Some(text) = group.read("cpu.stat") {
        usage.cpu_usec = field(text, "usage_usec");
        usage.cpu_user_usec = field(text, "user_usec");
        usage.cpu_system_usec = field(text, "system_usec");
        usage.cpu_throttled_usec = field(text, "throttled_usec");
    }
    // Without its first file a controller has none of the others.
    usage.memory_bytes = group.read("memory.current").and_then(number);
    if usage.memory_bytes.is_some() {
        usage.memory_peak_bytes = group.read("memory.peak").and_then(number);
        usage.memory_max_bytes = group.read("memory.max").and_then(number);
        usage.swap_bytes = group.read("memory.swap.current").and_then(number);
        usage.oom_kills = group.read("memory.events").and_then(|text| field(text, "oom_kill"));
    }
    usage.tasks = group.read("pids.current").and_then(number);
    if usage.tasks.is_some() {
        usage.tasks_max = group.read("pids.max").and_then(number);
    }
    if let Some(text) = group.read("io.stat") {
        usage.io_read_bytes = Some(over_devices(text, "rbytes"));
        usage.io_written_bytes = Some(over_devices(text, "wbytes"));
        usage.io_reads = Some(over_devices(text, "rios"));
        usage.io_writes = Some(over_devices(text, "wios"));
    }
    usage.pressure.cpu = group.read("cpu.pressure").and_then(stall);
    usage.pressure.memory = group.read("memory.pressure").and_then(stall);
    usage.pressure.io = group.read("io.pressure").and_then(stall);
    usage
}

/// A group whose files are read one after another into the same room.
struct Group {
    dir: OwnedFd,
    room: Vec<u8>,
}

impl Group {
    /// The text of a file; `None` if the host does not keep that account. A machine can make groups of such names.
    fn read(&mut self, file: &str) -> Option<&str> {
        let fd = rustix::fs::openat(&self.dir, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut len = 0;
        loop {
            len += rustix::io::read(&fd, &mut self.room[len..]).ok()?;
            // The kernel makes these files in one piece: what leaves room is at its end.
            if len < self.room.len() {
                return std::str::from_utf8(&self.room[..len]).ok();
            }
            self.room.resize(2 * len, 0);
        }
    }
}

/// The only number of a file; the word `max` is none.
fn number(text: &str) -> Option<u64> {
    text.trim_end().parse().ok()
}

/// The number after a word at the beginning of a line.
pub(super) fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim_end().parse().ok())
}

/// The sum of `key=` over all devices.
fn over_devices(text: &str, key: &str) -> u64 {
    let value = |word: &str| word.strip_prefix(key)?.strip_prefix('=')?.parse::<u64>().ok();
    text.split_ascii_whitespace().filter_map(value).fold(0, u64::saturating_add)
}

/// The averages over ten seconds; `None` if there are none.
fn stall(text: &str) -> Option<Stall> {
    let average = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let value: f64 = line.trim_start().strip_prefix("avg10=")?.split(' ').next()?.parse().ok()?;
        value.is_finite().then_some(value)
    };
    let stall = Stall { some_percent: average("some"), full_percent: average("full") };
    stall.some_percent.is_some().then_some(stall)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir(dir.path().join("payload")).expect("mkdir");
        for (name, text) in files {
            std::fs::write(dir.path().join("payload").join(name), text).expect("write");
        }
        dir
    }

    #[test]
    fn every_account_of_a_group_is_read() {
        let dir = group(&[
            (
                "cpu.stat",
                "usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\nnice_usec 9\nnr_periods 4\nnr_throttled 1\n\
                 throttled_usec 777\n",
            ),
            ("memory.current", "1048576\n"),
            ("memory.peak", "2097152\n"),
            ("memory.max", "67108864\n"),
            ("memory.swap.current", "4096\n"),
            ("memory.events", "low 0\nhigh 5\nmax 6\noom 2\noom_kill 3\noom_group_kill 0\n"),
            ("pids.current", "12\n"),
            ("pids.max", "100\n"),
            (
                "io.stat",
                "254:0 rbytes=4096 wbytes=100 rios=1 wios=2 dbytes=0 dios=0\n7:0 \n\
                 254:16 rbytes=1 wbytes=10 rios=20 wios=30 dbytes=5 dios=6\n",
            ),
            (
                "cpu.pressure",
                "some avg10=12.34 avg60=5.00 avg300=1.00 total=99\nfull avg10=1.50 avg60=0.00 avg300=0.00 total=9\n",
            ),
            // Before Linux 5.13 there is no second line.
            ("memory.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"),
        ]);
        let stall = |some, full| Some(Stall { some_percent: Some(some), full_percent: full });
        let expected = Usage {
            cpu_usec: Some(5000),
            cpu_user_usec: Some(3000),
            cpu_system_usec: Some(2000),
            cpu_throttled_usec: Some(777),
            memory_bytes: Some(1 << 20),
            memory_peak_bytes: Some(2 << 20),
            memory_max_bytes: Some(64 << 20),
            swap_bytes: Some(4096),
            oom_kills: Some(3),
            tasks: Some(12),
            tasks_max: Some(100),
            io_read_bytes: Some(4097),
            io_written_bytes: Some(110),
            io_reads: Some(21),
            io_writes: Some(32),
            pressure: Pressure { cpu: stall(12.34, Some(1.5)), memory: stall(0.0, None), io: None },
        };
        assert_eq!(usage(dir.path()), expected);
    }

    #[test]
    fn what_the_host_does_not_tell_is_none() {
        let dir = group(&[
            ("cpu.stat", "usage_usec 1\nuser_usec 1\nsystem_usec 0\n"),
            ("memory.max", "max\n"),
            ("pids.current", "1\n"),
            ("pids.max", "max\n"),
            ("io.stat", ""),
            ("io.pressure", ""),
        ]);
        // A machine may give a group of its own the name of a file that is not there.
        std::fs::create_dir(dir.path().join("payload/memory.current")).expect("mkdir");
        let usage = usage(dir.path());
        assert_eq!((usage.cpu_usec, usage.cpu_throttled_usec), (Some(1), None));
        assert_eq!((usage.memory_bytes, usage.memory_max_bytes, usage.oom_kills), (None, None, None));
        assert_eq!((usage.tasks, usage.tasks_max), (Some(1), None));
        assert_eq!((usage.io_read_bytes, usage.io_writes), (Some(0), Some(0)));
        assert_eq!(usage.pressure, Pressure::default());
    }

    #[test]
    fn a_group_that_is_gone_uses_nothing() {
        assert_eq!(usage(Path::new("/nonexistent")), Usage::default());
    }

    #[test]
    fn more_devices_than_one_read_takes_are_all_counted() {
        let line = |n: u32| format!("8:{n} rbytes=10 wbytes=1 rios=1 wios=1 dbytes=0 dios=0\n");
        let dir = group(&[("io.stat", &(0..500).map(line).collect::<String>())]);
        assert_eq!(usage(dir.path()).io_read_bytes, Some(5000));
    }

    #[test]
    fn nonsense_is_no_number() {
        assert_eq!((number("max\n"), number(""), number("-1\n")), (None, None, None));
        assert_eq!(field("usage_usec_more 5\nusage_usec x\n", "usage_usec"), None);
        assert_eq!(over_devices("8:0 rbytes=18446744073709551615\n8:1 rbytes=5 rbytes=x\n", "rbytes"), u64::MAX);
        assert_eq!(stall("some avg10=nan avg60=0\n"), None);
    }
}
