//! What the whole host does, from `/proc`, which everybody may read.

use std::path::Path;

use crate::sys::read_text;

/// What the host does at one moment; what cannot be read is 0 or empty.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct HostLoad {
    /// The three averages, as the kernel writes them.
    pub(super) averages: String,
    /// Seconds since it booted.
    pub(super) uptime: u64,
    /// Processors that are on line.
    pub(super) processors: u64,
    /// Time of all processors together, in ticks.
    pub(super) ticks: u64,
    /// Part of it in which they did something.
    pub(super) busy_ticks: u64,
    /// Bytes.
    pub(super) memory_total: u64,
    /// Bytes that programs could have without swapping.
    pub(super) memory_available: u64,
    /// Bytes.
    pub(super) swap_total: u64,
    /// Bytes.
    pub(super) swap_free: u64,
}

impl HostLoad {
    /// Looks.
    pub(super) fn read() -> Self {
        let text = |file: &str| read_text(Path::new("/proc").join(file)).unwrap_or_default();
        Self::parse(&text("loadavg"), &text("uptime"), &text("stat"), &text("meminfo"))
    }

    fn parse(loadavg: &str, uptime: &str, stat: &str, meminfo: &str) -> Self {
        let averages: Vec<&str> = loadavg.split_ascii_whitespace().take(3).collect();
        let all = stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).unwrap_or_default();
        // user nice system idle iowait irq softirq steal; what guests use is in the first two, too.
        let ticks: Vec<u64> = all.split_ascii_whitespace().take(8).filter_map(|word| word.parse().ok()).collect();
        let idle: u64 = ticks.iter().skip(3).take(2).sum();
        let total: u64 = ticks.iter().sum();
        let is_one =
            |line: &&str| line.strip_prefix("cpu").is_some_and(|l| l.starts_with(|c: char| c.is_ascii_digit()));
        let processors = stat.lines().filter(is_one).count();
        let bytes = |key: &str| -> u64 {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
            kib.unwrap_or(0).saturating_mul(1024)
        };
        Self {
            averages: averages.join(" "),
            uptime: uptime.split('.').next().and_then(|seconds| seconds.trim().parse().ok()).unwrap_or(0),
            processors: u64::try_from(processors).unwrap_or(0),
            ticks: total,
            busy_ticks: total - idle,
            memory_total: bytes("MemTotal"),
            memory_available: bytes("MemAvailable"),
            swap_total: bytes("SwapTotal"),
            swap_free: bytes("SwapFree"),
        }
    }

    /// Percentage of all its processors' time since `before` in which they did something.
    pub(super) fn busy_since(&self, before: &Self) -> Option<f64> {
        let ticks = self.ticks.checked_sub(before.ticks).filter(|ticks| *ticks > 0)?;
        let busy = self.busy_ticks.checked_sub(before.busy_ticks)?;
        Some(crate::cli::stats::ratio(busy, ticks) * 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  100 10 50 800 40 5 5 10 7 0\ncpu0 50 5 25 400 20 3 2 5 0 0\ncpu1 50 5 25 400 20 2 3 5 0 0\n\
                        intr 5\nctxt 1\n";

    #[test]
    fn the_kernels_files_are_understood() {
        let meminfo =
            "MemTotal:        2048 kB\nMemFree:  1 kB\nMemAvailable:    512 kB\nSwapTotal: 8 kB\nSwapFree: 4 kB\n";
        let load = HostLoad::parse("0.52 0.40 0.31 2/345 6789\n", "3661.25 100.00\n", STAT, meminfo);
        let expected = HostLoad {
            averages: "0.52 0.40 0.31".into(),
            uptime: 3661,
            processors: 2,
            ticks: 1020,
            busy_ticks: 180,
            memory_total: 2 << 20,
            memory_available: 512 << 10,
            swap_total: 8192,
            swap_free: 4096,
        };
        assert_eq!(load, expected);
        assert_eq!(HostLoad::parse("", "", "", "MemTotal: x kB\n"), HostLoad::default());
    }

    #[test]
    fn load_is_a_share_of_the_time_between_two_looks() {
        let before = HostLoad { ticks: 1000, busy_ticks: 100, ..HostLoad::default() };
        let now = HostLoad { ticks: 1200, busy_ticks: 150, ..HostLoad::default() };
        assert_eq!(now.busy_since(&before), Some(25.0));
        assert_eq!((before.busy_since(&before), before.busy_since(&now)), (None, None));
    }

    #[test]
    fn this_host_has_a_load() {
        let load = HostLoad::read();
        assert!(load.processors > 0 && load.memory_total > load.memory_available && load.ticks > load.busy_ticks);
    }
}
