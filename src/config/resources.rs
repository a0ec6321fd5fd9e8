//! `[resources]`: its table and the values that are written only there.

use std::collections::BTreeMap;

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value as Json, json};

use super::complaint::Complaint;
use super::diagnostic::{Place, Problems, quoted};
use super::quantities::{Size, Timeout};
use super::reader::{At, Entry, Keyed, MapKey, Reader, Rows, Setting, Value, table};
use super::values::{HostPath, choose};
use crate::spec::{Amount, Bound, CpuTime, IoMax, NumberSet, ResourceKey, Resources, Weight};

table! {
    /// What the machine may have of the host's memory, processors, tasks and disks; what is unset is not limited.
    ResourcesTable {
        /// Most memory, such as "512M" or "50%" of the host's; processes are killed when it is not enough. "infinity",
        /// here and below, lifts the limit of a profile.
        "memory-max" memory_max: Option<MemorySize> = None,
        /// Memory beyond which the machine is slowed down and made to give some back.
        "memory-high" memory_high: Option<MemorySize> = None,
        /// Most swap; "0" for none.
        "swap-max" swap_max: Option<SwapSize> = None,
        /// Most processor time: "150%" is one and a half processors, "50%/20ms" counts in periods of 20 ms instead
        /// of 100.
        "cpu-max" cpu_max: Option<CpuMax> = None,
        /// Share of the processors when there are not enough, from 1 to 10000, where others have 100; or "idle" for
        /// only what no other group wants.
        "cpu-weight" cpu_weight: Option<Weight> = None,
        /// The only processors it may use, such as "0-3,5".
        "cpus" cpus: Option<NumberSet> = None,
        /// The only memory nodes it may use, such as "0".
        "mems" mems: Option<NumberSet> = None,
        /// Most processes and threads, or "infinity".
        "pids-max" pids_max: Option<PidsMax> = None,
        /// Share of the disks when they are busy, from 1 to 10000, where others have 100.
        "io-weight" io_weight: Option<IoWeight> = None,
        /// Most traffic of single disks.
        "io-max" io_max: Rows<IoMaxTable> = Rows(Vec::new()),
        /// Most memory in huge pages, by the size of the pages, as in `{ 2M = "64M" }`.
        "hugetlb" hugetlb: BTreeMap<PageSize, At<HugeMax>> = BTreeMap::new(),
        /// Keys that are passed over where the host cannot enforce them; any other is an error there.
        "optional" optional: Vec<At<ResourceKey>> = Vec::new(),
    }
}

table! {
    /// Most traffic of one disk, for each second.
    IoMaxTable {
        /// The disk, as a block device or as any file or directory on it; a partition stands for its whole disk.
        "device" device: Option<HostPath> = None,
        /// Bytes read, such as "10M".
        "read" read: Option<Size> = None,
        /// Bytes written, such as "10M".
        "write" write: Option<Size> = None,
        /// How many reads.
        "read-iops" read_iops: Option<Iops> = None,
        /// How many writes.
        "write-iops" write_iops: Option<Iops> = None,
    }
}

impl Keyed for IoMaxTable {
    fn identity(&self) -> Option<&str> {
        self.device.value.as_ref().map(HostPath::as_str)
    }
}

/// The least memory that is worth trying.
const LEAST_MEMORY: u64 = 1 << 20;

/// What the start of a machine needs by itself.
const LEAST_PIDS: u32 = 8;

/// Processes and threads there can be on a host (`PID_MAX_LIMIT` of the kernel).
const MOST_PIDS: u32 = 4 << 20;

/// Disks that one machine can be limited on.
const MOST_DISKS: usize = 64;

/// `memory-max` and `memory-high`
#[derive(Debug, Clone, Copy)]
pub(super) struct MemorySize(Bound<Amount>);

/// `swap-max`
#[derive(Debug, Clone, Copy)]
pub(super) struct SwapSize(Bound<Amount>);

/// `cpu-max`
#[derive(Debug, Clone, Copy)]
pub(super) struct CpuMax(Bound<CpuTime>);

/// `pids-max`
#[derive(Debug, Clone, Copy)]
pub(super) struct PidsMax(Bound<u32>);

/// `io-weight`
#[derive(Debug, Clone, Copy)]
pub(super) struct IoWeight(u16);

/// `read-iops` and `write-iops`
#[derive(Debug, Clone, Copy)]
pub(super) struct Iops(u32);

/// Size of huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PageSize(u64);

/// Memory in huge pages of one size.
#[derive(Debug, Clone, Copy)]
pub(super) struct HugeMax(Bound<u64>);

fn parse_amount(text: &str, least: u64) -> Result<Bound<Amount>, Complaint> {
    if text == "infinity" {
        return Ok(Bound::Infinity);
    }
    if let Some(percent) = text.strip_suffix('%') {
        return match digits(percent) {
            Some(percent @ 1..=100) => Ok(Bound::At(Amount::Percent(percent))),
            _ => Err(Complaint::new(format!("{} is no share of the host's memory, \"1%\" to \"100%\"", quoted(text)))),
        };
    }
    let is_zero = text.trim_end_matches(['K', 'M', 'G', 'T']).bytes().all(|b| b == b'0') && text.starts_with('0');
    let bytes = if is_zero { 0 } else { Size::parse(text).map_err(|complaint| complaint.or("\"50%\""))?.0 };
    if bytes < least {
        let why = "the kernel would kill the machine at once";
        return Err(Complaint::new(format!("must be at least \"{}\": {why}", Size(least))));
    }
    Ok(Bound::At(Amount::Bytes(bytes)))
}

fn amount_text(amount: Bound<Amount>) -> Json {
    match amount {
        Bound::Infinity => "infinity".into(),
        Bound::At(Amount::Percent(percent)) => format!("{percent}%").into(),
        Bound::At(Amount::Bytes(0)) => "0".into(),
        Bound::At(Amount::Bytes(bytes)) => Size(bytes).to_string().into(),
    }
}

/// Reads percent with at most two decimals, in hundredths.
fn parse_percent(text: &str) -> Option<u32> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| (!part.is_empty() && part.bytes().all(|b| b.is_ascii_digit())).then_some(());
    digits(whole).and(digits(decimals))?;
    let hundredths = format!("{decimals:0<2}").parse::<u32>().ok().filter(|_| decimals.len() <= 2)?;
    whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(hundredths)
}

impl CpuMax {
    fn parse(text: &str) -> Result<Self, Complaint> {
        if text == "infinity" {
            return Ok(Self(Bound::Infinity));
        }
        let wrong = || Complaint::new(format!("{} is no processor time, as in \"150%\" or \"50%/20ms\"", quoted(text)));
        let (percent, period) = text.split_once('/').unwrap_or((text, "100ms"));
        let share = percent.strip_suffix('%').and_then(parse_percent).ok_or_else(wrong)?;
        let period = Timeout::parse(period).ok().and_then(|period| period.0).ok_or_else(wrong)?;
        let period = u32::try_from(period.as_micros()).ok().filter(|period| (1000..=1_000_000).contains(period));
        let period = period.ok_or_else(|| Complaint::new("the period must be between 1ms and 1s"))?;
        let time = CpuTime { share, period };
        if time.quota() < 1000 {
            let period = Timeout(Some(std::time::Duration::from_micros(period.into())));
            let why = format!("must be at least 1 ms of processor time in each period, which is {period}");
            return Err(Complaint::new(why).hint("a longer period, as in \"0.5%/1s\", can have a smaller share"));
        }
        if share > 10_000_000 {
            return Err(Complaint::new("must be at most \"100000%\""));
        }
        Ok(Self(Bound::At(time)))
    }

    fn text(self) -> Json {
        let Bound::At(CpuTime { share, period }) = self.0 else { return "infinity".into() };
        let decimals = match share % 100 {
            0 => String::new(),
            rest => format!(".{rest:02}"),
        };
        let percent = format!("{}{}%", share / 100, decimals.trim_end_matches('0'));
        match period {
            100_000 => percent.into(),
            _ => format!("{percent}/{}ms", period / 1000).into(),
        }
    }
}

/// Reads digits; the library's own parser takes a sign, too.
fn digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
}

fn parse_weight(text: &str) -> Result<u16, Complaint> {
    let number = digits(text).filter(|weight| (1..=10_000).contains(weight));
    number.ok_or_else(|| Complaint::new(format!("{} is no weight, from 1 to 10000", quoted(text))))
}

/// Reads a list of numbers and ranges, such as `0-3,5`.
fn parse_numbers(text: &str) -> Result<NumberSet, Complaint> {
    let wrong = || Complaint::new(format!("{} is no list of numbers, as in \"0-3,5\"", quoted(text)));
    let number = |part: &str| digits::<u32>(part).filter(|number| *number < 65_536).ok_or_else(wrong);
    let mut ranges = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            let complaint = Complaint::new(format!("the range {} ends before it begins", quoted(part)));
            return Err(complaint.hint(format!("write \"{last}-{first}\"")));
        }
        ranges.push((first, last));
    }
    Ok(NumberSet::new(ranges))
}

fn parse_pids(text: &str) -> Result<Bound<u32>, Complaint> {
    if text == "infinity" {
        return Ok(Bound::Infinity);
    }
    match digits(text) {
        Some(number @ LEAST_PIDS..=MOST_PIDS) => Ok(Bound::At(number)),
        Some(number) if number < LEAST_PIDS => {
            Err(Complaint::new(format!("must be at least {LEAST_PIDS}, which a machine's own start may take")))
        }
        Some(_) => Err(Complaint::new(format!("must be at most {MOST_PIDS}, or \"infinity\""))),
        None => Err(Complaint::new(format!("{} is no number of tasks, as in 512 or \"infinity\"", quoted(text)))),
    }
}

fn parse_iops(text: &str) -> Result<u32, Complaint> {
    let number = digits(text).filter(|number| *number > 0);
    number.ok_or_else(|| Complaint::new(format!("{} is no number of operations, from 1 to {}", quoted(text), u32::MAX)))
}

impl MapKey for PageSize {
    fn parse(text: &str) -> Result<Self, Complaint> {
        let wrong = || Complaint::new(format!("{} is no size of huge pages, as in \"2M\"", quoted(text)));
        let size = Size::parse(text).map_err(|_| wrong())?;
        if size.0.is_power_of_two() && size.0 >= 1 << 16 { Ok(Self(size.0)) } else { Err(wrong()) }
    }

    fn text(&self) -> String {
        Size(self.0).to_string()
    }
}

impl PageSize {
    pub(super) fn bytes(self) -> u64 {
        self.0
    }
}

fn parse_huge(text: &str) -> Result<Bound<u64>, Complaint> {
    match text {
        "infinity" => Ok(Bound::Infinity),
        "0" => Ok(Bound::At(0)),
        _ => Size::parse(text).map(|size| Bound::At(size.0)),
    }
}

/// Whether an integer of the file is as good as a string with the same digits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Integers {
    Read,
    Refused,
}

/// Reads a string, or an integer where that will do, and hands it to a parser.
fn read_word<T>(
    value: &Value<'_>,
    reader: &mut Reader<'_>,
    (expected, integers): (&str, Integers),
    parse: impl FnOnce(&str) -> Result<T, Complaint>,
) -> Option<T> {
    let integer = value.get_ref().as_integer().and_then(|i| i128::from_str_radix(i.as_str(), i.radix()).ok());
    let digits = integer.map(|number| number.to_string());
    if let Some(digits) = digits.as_deref().filter(|_| integers == Integers::Refused) {
        reader.mistyped(value, expected).hint(format!("write \"{digits}\""));
        return None;
    }
    let Some(text) = digits.as_deref().or(value.get_ref().as_str()) else {
        reader.mistyped(value, expected);
        return None;
    };
    parse(text).map_err(|complaint| reader.complain(value, complaint)).ok()
}

/// A setting written as a word or a number: type, what it is, integers or not, parser, printer, schema.
macro_rules! word {
    ($ty:ty, $expected:literal, $integers:ident, $parse:expr, $show:expr, $schema:tt) => {
        impl Setting for $ty {
            fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
                read_word(value, reader, ($expected, Integers::$integers), $parse)
            }

            fn show(&self) -> Json {
                let show: fn(&Self) -> Json = $show;
                show(self)
            }

            fn schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

/// What a number of the file is shown as, unless there is no limit.
fn number_or_infinity(bound: Bound<u32>) -> Json {
    match bound {
        Bound::Infinity => "infinity".into(),
        Bound::At(number) => json!(number),
    }
}

const AMOUNT: &str = "^(infinity|[0-9]+[KMGT]?|[0-9]+%)$";

word!(MemorySize, "a size as a string", Refused, |text| parse_amount(text, LEAST_MEMORY).map(Self), |size| {
    amount_text(size.0)
}, { "type": "string", "pattern": AMOUNT });
word!(SwapSize, "a size as a string", Refused, |text| parse_amount(text, 0).map(Self), |size| amount_text(size.0),
    { "type": "string", "pattern": AMOUNT });
word!(CpuMax, "processor time as a string", Refused, Self::parse, |time| time.text(),
    { "type": "string", "pattern": "^(infinity|[0-9]+(\\.[0-9]{1,2})?%(/[0-9]+(ms|s))?)$" });
word!(Weight, "a weight", Read, |text| match text {
    "idle" => Ok(Self::Idle),
    _ => parse_weight(text).map(Self::Of).map_err(|complaint| complaint.or("\"idle\"")),
}, |weight| match weight {
    Self::Idle => "idle".into(),
    Self::Of(weight) => json!(weight),
}, { "anyOf": [{ "type": "integer", "minimum": 1, "maximum": 10_000 }, { "enum": ["idle"] }] });
word!(NumberSet, "a list of numbers as a string", Refused, parse_numbers, |set| set.to_string().into(),
    { "type": "string", "pattern": "^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$" });
word!(PidsMax, "a number of tasks", Read, |text| parse_pids(text).map(Self), |pids| number_or_infinity(pids.0),
    { "anyOf": [{ "type": "integer", "minimum": LEAST_PIDS, "maximum": MOST_PIDS }, { "enum": ["infinity"] }] });
word!(IoWeight, "a weight", Read, |text| parse_weight(text).map(Self), |weight| json!(weight.0),
    { "type": "integer", "minimum": 1, "maximum": 10_000 });
word!(Iops, "a number of operations", Read, |text| parse_iops(text).map(Self), |iops| json!(iops.0),
    { "type": "integer", "minimum": 1, "maximum": u32::MAX });
word!(HugeMax, "a size as a string", Refused, |text| parse_huge(text).map(Self), |max| match max.0 {
    Bound::Infinity => "infinity".into(),
    Bound::At(0) => "0".into(),
    Bound::At(bytes) => Size(bytes).to_string().into(),
}, { "type": "string", "pattern": "^(infinity|[0-9]+[KMGT]?)$" });
word!(ResourceKey, "the name of a key as a string", Refused, |text| {
    choose(text, &Self::ALL.map(|key| (key.as_str(), key)))
}, |key| key.as_str().into(), { "enum": ResourceKey::ALL.map(ResourceKey::as_str) });

impl ResourcesTable {
    /// Checks what no single value shows; `none` is the place of values that are in no file.
    pub(super) fn check(&self, none: Place, problems: &mut Problems) -> Resources {
        if let (Some(MemorySize(Bound::At(high))), Some(MemorySize(Bound::At(max)))) =
            (self.memory_high.value, self.memory_max.value)
        {
            let above = match (high, max) {
                (Amount::Bytes(high), Amount::Bytes(max)) => high > max,
                (Amount::Percent(high), Amount::Percent(max)) => high > max,
                // Only the plan knows how much the host has.
                _ => false,
            };
            if above {
                let place = self.memory_high.place.unwrap_or(none);
                let message = "`resources.memory-high`: is above `memory-max`, so it would never be reached";
                problems.clash(place, message, self.memory_max.place, "the machine is killed here");
            }
        }
        for (size, max) in &self.hugetlb.value {
            if let Bound::At(bytes) = max.value.0
                && !bytes.is_multiple_of(size.0)
            {
                let message =
                    format!("`resources.hugetlb.{}`: {} is no number of whole pages", size.text(), Size(bytes));
                problems.report(max.place.unwrap_or(none), message);
            }
        }
        Resources {
            memory_max: self.memory_max.value.map(|size| size.0),
            memory_high: self.memory_high.value.map(|size| size.0),
            swap_max: self.swap_max.value.map(|size| size.0),
            cpu_max: self.cpu_max.value.map(|time| time.0),
            cpu_weight: self.cpu_weight.value,
            cpus: self.cpus.value.clone(),
            mems: self.mems.value.clone(),
            pids_max: self.pids_max.value.map(|pids| pids.0),
            io_weight: self.io_weight.value.map(|weight| weight.0),
            io_max: self.check_disks(none, problems),
            hugetlb: self.hugetlb.value.iter().map(|(size, max)| (size.0, max.value.0)).collect(),
            optional: self.optional.value.iter().map(|key| key.value).collect(),
        }
    }

    fn check_disks(&self, none: Place, problems: &mut Problems) -> Vec<IoMax> {
        let rows = &self.io_max.value.0;
        if let Some(row) = rows.get(MOST_DISKS) {
            let message = format!("`resources.io-max`: {} disks, and the most is {MOST_DISKS}", rows.len());
            problems.report(row.place.unwrap_or(none), message);
            return Vec::new();
        }
        let mut disks: Vec<IoMax> = Vec::with_capacity(rows.len());
        for (index, row) in rows.iter().enumerate() {
            let place = row.place.unwrap_or(none);
            let IoMaxTable { device, read, write, read_iops, write_iops } = &row.value;
            let Some(path) = &device.value else {
                if !device.is_set() {
                    problems.report(place, "`resources.io-max`: missing key `device`");
                }
                continue;
            };
            if !(read.is_set() || write.is_set() || read_iops.is_set() || write_iops.is_set()) {
                let diagnostic = problems.report(place, "`resources.io-max`: limits nothing");
                diagnostic.label("expected one of `read`, `write`, `read-iops`, `write-iops`");
            }
            if let Some(earlier) = rows[..index].iter().find(|earlier| earlier.value.identity() == row.value.identity())
            {
                let message = format!("`resources.io-max`: '{}' is given twice", path.as_str());
                problems.clash(device.place.unwrap_or(place), message, earlier.value.device.place, "first here");
            }
            disks.push(IoMax {
                device: path.as_str().into(),
                read: read.value.map(|size| size.0),
                write: write.value.map(|size| size.0),
                read_iops: read_iops.value.map(|iops| iops.0.into()),
                write_iops: write_iops.value.map(|iops| iops.0.into()),
            });
        }
        disks
    }
}

#[cfg(test)]
mod tests {
    use super::super::reader::tests::{read, shown};
    use super::*;

    fn shows<T: Setting>(table: &[(&str, &str)]) {
        for (text, canonical) in table {
            assert_eq!(shown::<T>(text).as_deref(), Ok(*canonical), "{text}");
        }
    }

    fn refuses<T: Setting>(list: &[&str]) {
        for text in list {
            assert!(read::<T>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn amounts_of_memory_are_sizes_shares_or_infinite() {
        shows::<MemorySize>(&[
            ("'512M'", "\"512M\""),
            ("'1024K'", "\"1M\""),
            ("'1%'", "\"1%\""),
            ("'100%'", "\"100%\""),
            ("'infinity'", "\"infinity\""),
        ]);
        shows::<SwapSize>(&[("'0'", "\"0\""), ("'0M'", "\"0\""), ("'4K'", "\"4K\""), ("'50%'", "\"50%\"")]);
        let bad = [
            "''",
            "'0'",
            "'0G'",
            "'1023K'",
            "'-1'",
            "'0%'",
            "'101%'",
            "'300%'",
            "'%'",
            "'+5%'",
            "'5.5%'",
            "'50 %'",
            "'16777216T'",
            "'max'",
            "'Infinity'",
            "'512MB'",
            "536870912",
            "0.5",
            "true",
        ];
        refuses::<MemorySize>(&bad);
        refuses::<SwapSize>(&["''", "'-1'", "'0Q'", "'00x'", "'0%'", "0"]);
    }

    #[test]
    fn processor_time_is_a_share_of_a_period() {
        shows::<CpuMax>(&[
            ("'150%'", "\"150%\""),
            ("'150%/100ms'", "\"150%\""),
            ("'12.5%'", "\"12.5%\""),
            ("'12.05%/1s'", "\"12.05%/1000ms\""),
            ("'1%'", "\"1%\""),
            ("'0.1%/1s'", "\"0.1%/1000ms\""),
            ("'100%/1ms'", "\"100%/1ms\""),
            ("'infinity'", "\"infinity\""),
        ]);
        let bad = [
            "''",
            "'150'",
            "'%'",
            "'0%'",
            "'-5%'",
            "'0.9%'",
            "'.5%'",
            "'5.%'",
            "'1.234%'",
            "'1e3%'",
            "'50%/0ms'",
            "'50%/2s'",
            "'50%/infinity'",
            "'50%/'",
            "'99%/1ms'",
            "'100001%'",
            "'99999999999%'",
            "'50% '",
            "1.5",
            "150",
        ];
        refuses::<CpuMax>(&bad);
        assert_eq!(read::<CpuMax>("'150%'").map(|m| m.0), Ok(Bound::At(CpuTime { share: 15_000, period: 100_000 })));
    }

    #[test]
    fn lists_of_processors_are_ranges_that_go_up() {
        shows::<NumberSet>(&[("'0-3,5'", "\"0-3,5\""), ("'5,0-2,3'", "\"0-3,5\""), ("'65535'", "\"65535\"")]);
        refuses::<NumberSet>(&[
            "''", "','", "'0,'", "'3-0'", "'0-'", "'-3'", "'a'", "'0 ,1'", "'1-2-3'", "'65536'", "0",
        ]);
        assert_eq!(
            read::<NumberSet>("'0,3-1'").map(|_| ()),
            Err(vec!["`key`: the range '3-1' ends before it begins".to_owned()])
        );
    }

    #[test]
    fn weights_and_counts_are_numbers_in_their_range() {
        shows::<Weight>(&[("1", "1"), ("10000", "10000"), ("'50'", "50"), ("'idle'", "\"idle\"")]);
        shows::<PidsMax>(&[("8", "8"), ("4194304", "4194304"), ("'infinity'", "\"infinity\"")]);
        shows::<IoWeight>(&[("100", "100")]);
        shows::<Iops>(&[("1", "1"), ("4294967295", "4294967295")]);
        refuses::<Weight>(&["0", "10001", "-1", "'Idle'", "''", "1.5"]);
        refuses::<IoWeight>(&["0", "10001", "'idle'"]);
        refuses::<PidsMax>(&["0", "7", "-1", "4194305", "99999999999999999999", "'many'", "''", "'+9'"]);
        refuses::<Iops>(&["0", "4294967296", "-1"]);
    }

    #[test]
    fn huge_pages_have_sizes_that_can_be() {
        for good in ["64K", "2M", "1G", "2048K"] {
            assert!(PageSize::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "4K", "3M", "0", "2MB", "huge"] {
            assert!(PageSize::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(PageSize::parse("2048K").map(|size| size.text()).ok().as_deref(), Some("2M"));
        shows::<HugeMax>(&[("'0'", "\"0\""), ("'64M'", "\"64M\""), ("'infinity'", "\"infinity\"")]);
    }
}
