//! [`Resources`]: what of the host's memory, processors, tasks and disks one machine may have.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A key of `[resources]` that limits something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are the file format's")]
pub enum ResourceKey {
    MemoryMax,
    MemoryHigh,
    SwapMax,
    CpuMax,
    CpuWeight,
    Cpus,
    Mems,
    PidsMax,
    IoWeight,
    IoMax,
    Hugetlb,
}

impl ResourceKey {
    /// Every key, in the order of the file format.
    pub const ALL: [Self; 11] = [
        Self::MemoryMax,
        Self::MemoryHigh,
        Self::SwapMax,
        Self::CpuMax,
        Self::CpuWeight,
        Self::Cpus,
        Self::Mems,
        Self::PidsMax,
        Self::IoWeight,
        Self::IoMax,
        Self::Hugetlb,
    ];

    /// The key as files have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MemoryMax => "memory-max",
            Self::MemoryHigh => "memory-high",
            Self::SwapMax => "swap-max",
            Self::CpuMax => "cpu-max",
            Self::CpuWeight => "cpu-weight",
            Self::Cpus => "cpus",
            Self::Mems => "mems",
            Self::PidsMax => "pids-max",
            Self::IoWeight => "io-weight",
            Self::IoMax => "io-max",
            Self::Hugetlb => "hugetlb",
        }
    }

    /// The controller of cgroup2 that enforces it.
    pub fn controller(self) -> &'static str {
        match self {
            Self::MemoryMax | Self::MemoryHigh | Self::SwapMax => "memory",
            Self::CpuMax | Self::CpuWeight => "cpu",
            Self::Cpus | Self::Mems => "cpuset",
            Self::PidsMax => "pids",
            Self::IoWeight | Self::IoMax => "io",
            Self::Hugetlb => "hugetlb",
        }
    }
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A limit, or none where a weaker file has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound<T> {
    /// No limit.
    Infinity,
    /// This limit.
    At(T),
}

/// An amount of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Amount {
    /// Bytes.
    Bytes(u64),
    /// Percent of the host's memory.
    Percent(u8),
}

/// Processor time in a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CpuTime {
    /// Hundredths of a percent of one processor.
    pub share: u32,
    /// Length of the period in microseconds.
    pub period: u32,
}

impl CpuTime {
    /// Microseconds of processor time in each period.
    pub fn quota(self) -> u64 {
        u64::from(self.share) * u64::from(self.period) / 10_000
    }
}

/// A share of what is contended for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weight {
    /// Only time that no other group wants.
    Idle,
    /// 1 to 10000; groups without one have 100.
    Of(u16),
}

/// Numbers of processors or memory nodes as ranges, in order and apart from each other.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberSet(Vec<(u32, u32)>);

impl NumberSet {
    /// The set of these ranges, first and last number of each.
    pub fn new(mut ranges: Vec<(u32, u32)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    /// Reads the kernel's own form, as in `0-3,5`; what is not of it is left out.
    pub fn of_kernel(text: &str) -> Self {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some((first.parse().ok()?, last.parse().ok()?))
        };
        Self::new(text.trim().split(',').filter_map(range).collect())
    }

    /// The numbers that `other` does not have.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        for (first, last) in &self.0 {
            let mut at = u64::from(*first);
            for (start, end) in other.0.iter().filter(|(start, end)| end >= first && start <= last) {
                left.extend(range(at, u64::from(*start)));
                at = u64::from(*end) + 1;
            }
            left.extend(range(at, u64::from(*last) + 1));
        }
        Self(left)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The numbers from `first` up to `end`, which is not one of them, unless there is none.
fn range(first: u64, end: u64) -> Option<(u32, u32)> {
    let last = end.checked_sub(1).filter(|last| *last >= first)?;
    Some((u32::try_from(first).ok()?, u32::try_from(last).ok()?))
}

impl fmt::Display for NumberSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first}-{last}")? }
        }
        Ok(())
    }
}

/// What may be read from and written to one disk in a second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct IoMax {
    /// A block device, or a file or directory on it.
    pub device: PathBuf,
    /// Bytes read.
    pub read: Option<u64>,
    /// Bytes written.
    pub write: Option<u64>,
    /// Reads.
    pub read_iops: Option<u64>,
    /// Writes.
    pub write_iops: Option<u64>,
}

/// `[resources]`. What is unset is not limited by us; what limits the groups above holds in any case.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Resources {
    /// Most memory; beyond it processes are killed.
    pub memory_max: Option<Bound<Amount>>,
    /// Memory beyond which processes are slowed down and made to give some back.
    pub memory_high: Option<Bound<Amount>>,
    /// Most swap.
    pub swap_max: Option<Bound<Amount>>,
    /// Most processor time.
    pub cpu_max: Option<Bound<CpuTime>>,
    /// Share of the processors.
    pub cpu_weight: Option<Weight>,
    /// The only processors.
    pub cpus: Option<NumberSet>,
    /// The only memory nodes.
    pub mems: Option<NumberSet>,
    /// Most processes and threads.
    pub pids_max: Option<Bound<u32>>,
    /// Share of the disks.
    pub io_weight: Option<u16>,
    /// Most traffic of disks.
    pub io_max: Vec<IoMax>,
    /// Most memory in huge pages, by their size in bytes.
    pub hugetlb: BTreeMap<u64, Bound<u64>>,
    /// Keys that the host need not be able to enforce.
    pub optional: Vec<ResourceKey>,
}

impl Resources {
    /// Whether nothing is limited.
    pub fn is_unset(&self) -> bool {
        *self == Self { optional: self.optional.clone(), ..Self::default() }
    }

    /// Takes the value of one key over from another machine's.
    pub fn take(&mut self, key: ResourceKey, from: &Self) {
        match key {
            ResourceKey::MemoryMax => self.memory_max = from.memory_max,
            ResourceKey::MemoryHigh => self.memory_high = from.memory_high,
            ResourceKey::SwapMax => self.swap_max = from.swap_max,
            ResourceKey::CpuMax => self.cpu_max = from.cpu_max,
            ResourceKey::CpuWeight => self.cpu_weight = from.cpu_weight,
            ResourceKey::Cpus => self.cpus.clone_from(&from.cpus),
            ResourceKey::Mems => self.mems.clone_from(&from.mems),
            ResourceKey::PidsMax => self.pids_max = from.pids_max,
            ResourceKey::IoWeight => self.io_weight = from.io_weight,
            ResourceKey::IoMax => self.io_max.clone_from(&from.io_max),
            ResourceKey::Hugetlb => self.hugetlb.clone_from(&from.hugetlb),
        }
    }
}

/// A limit that a host cannot enforce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    /// The key, as in `resources.io-max[0].device`.
    pub key: String,
    /// What is missing.
    pub why: String,
    /// What the user can do about it.
    pub hint: Option<String>,
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.key, self.why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_sets_are_ranges_in_order() {
        for (text, canonical) in [("0", "0"), ("5,0-3", "0-3,5"), ("0,1,2", "0-2"), ("0-4,2-7,9", "0-7,9"), ("", "")] {
            assert_eq!(NumberSet::of_kernel(text).to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn what_another_set_does_not_have_is_left() {
        let table = [
            ("0-3", "0-1", "2-3"),
            ("0-3", "0-7", ""),
            ("0-7", "2,4-5", "0-1,3,6-7"),
            ("5", "0-3", "5"),
            ("0-4294967295", "1-4294967295", "0"),
            ("3,9", "", "3,9"),
        ];
        for (one, other, left) in table {
            let found = NumberSet::of_kernel(one).without(&NumberSet::of_kernel(other));
            assert_eq!(
                (found.to_string().as_str(), found.is_empty()),
                (left, left.is_empty()),
                "{one} without {other}"
            );
        }
    }

    #[test]
    fn keys_have_one_name_everywhere() {
        for key in ResourceKey::ALL {
            assert_eq!(serde_json::to_value(key).expect("JSON"), key.as_str());
        }
    }
}
