//! `rlimits`, `oom-score-adjust` and `nice` of `[security]`: limits of single processes.

use std::marker::PhantomData;

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value as Json, json};

use super::complaint::Complaint;
use super::diagnostic::{Place, quoted};
use super::quantities::{Size, Timeout};
use super::reader::{At, Entry, Reader, Setting, Value, table};
use super::values::read_text;
use crate::spec::{Resource, Rlimit};

table! {
    /// Limits of the machine's processes one by one, as in getrlimit(2): "SOFT:HARD", or one value for both; "infinity" is
    /// no limit. The payload's first process begins with them, and every command that enters. Unset ones are those of
    /// the process that starts the machine, but nofile "1024:524288", core "0:infinity", stack "8M:infinity" and
    /// memlock "8M" as far as the host allows.
    RlimitsTable {
        /// Address space of a process.
        "as" address_space: Option<Limit<Bytes>> = None,
        /// Size of a core file.
        "core" core: Option<Limit<Bytes>> = None,
        /// Processor time of a process, in whole seconds.
        "cpu" cpu: Option<Limit<Seconds>> = None,
        /// Data segment of a process.
        "data" data: Option<Limit<Bytes>> = None,
        /// Size of a file that is written.
        "fsize" fsize: Option<Limit<Bytes>> = None,
        /// File locks; without effect since Linux 2.4.
        "locks" locks: Option<Limit<Count>> = None,
        /// Memory that is locked.
        "memlock" memlock: Option<Limit<Bytes>> = None,
        /// POSIX message queues of a user.
        "msgqueue" msgqueue: Option<Limit<Bytes>> = None,
        /// Ceiling of the nice value, as 20 minus the value.
        "nice" nice: Option<Limit<Count>> = None,
        /// Open files of a process; at most the host's fs.nr_open.
        "nofile" nofile: Option<Limit<Count>> = None,
        /// Processes of one user of the machine; `pids-max` of `[resources]` is for the whole machine.
        "nproc" nproc: Option<Limit<Count>> = None,
        /// Resident memory; without effect since Linux 2.4.30.
        "rss" rss: Option<Limit<Bytes>> = None,
        /// Ceiling of the real-time priority.
        "rtprio" rtprio: Option<Limit<Count>> = None,
        /// Time on a processor without a blocking call under real-time scheduling; a number is in microseconds.
        "rttime" rttime: Option<Limit<Microseconds>> = None,
        /// Queued signals of a user.
        "sigpending" sigpending: Option<Limit<Count>> = None,
        /// Stack of a process.
        "stack" stack: Option<Limit<Bytes>> = None,
    }
}

impl RlimitsTable {
    /// Those that are set, in the order of their names.
    pub(super) fn limits(&self) -> Vec<Rlimit> {
        fn one<U>(resource: Resource, limit: &At<Option<Limit<U>>>) -> Option<Rlimit> {
            limit.value.as_ref().map(|limit| Rlimit { resource, soft: limit.soft, hard: limit.hard })
        }
        let all = [
            one(Resource::As, &self.address_space),
            one(Resource::Core, &self.core),
            one(Resource::Cpu, &self.cpu),
            one(Resource::Data, &self.data),
            one(Resource::Fsize, &self.fsize),
            one(Resource::Locks, &self.locks),
            one(Resource::Memlock, &self.memlock),
            one(Resource::Msgqueue, &self.msgqueue),
            one(Resource::Nice, &self.nice),
            one(Resource::Nofile, &self.nofile),
            one(Resource::Nproc, &self.nproc),
            one(Resource::Rss, &self.rss),
            one(Resource::Rtprio, &self.rtprio),
            one(Resource::Rttime, &self.rttime),
            one(Resource::Sigpending, &self.sigpending),
            one(Resource::Stack, &self.stack),
        ];
        all.into_iter().flatten().collect()
    }
}

/// A soft and a hard limit in a unit; `None` is no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Limit<U> {
    soft: Option<u64>,
    hard: Option<u64>,
    unit: PhantomData<U>,
}

/// How the values of a limit are written; plain digits are in the kernel's unit.
pub(super) trait Unit: std::fmt::Debug + Clone {
    /// An example of both values.
    const EXAMPLE: &'static str;
    /// What one value looks like beside "infinity", as a regular expression.
    const PATTERN: &'static str;

    /// Reads a value that is more than digits.
    fn parse(text: &str) -> Result<u64, Complaint> {
        Err(Complaint::new(format!("{} is no number", quoted(text))))
    }

    fn show(value: u64) -> String {
        value.to_string()
    }
}

/// Things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Count;

impl Unit for Count {
    const EXAMPLE: &'static str = "\"1024:4096\"";
    const PATTERN: &'static str = "[0-9]+";
}

/// Bytes, also in K, M, G and T.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bytes;

impl Unit for Bytes {
    const EXAMPLE: &'static str = "\"8M:64M\"";
    const PATTERN: &'static str = "[0-9]+[KMGT]?";

    fn parse(text: &str) -> Result<u64, Complaint> {
        Size::parse(text).map(|size| size.0)
    }

    fn show(value: u64) -> String {
        if value == 0 { "0".to_owned() } else { Size(value).to_string() }
    }
}

/// Whole seconds, also as a duration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seconds;

const DURATION: &str = "[0-9]+ ?(ms|s|min|h|d)?";

/// A duration that has an end.
fn milliseconds(text: &str) -> Result<u64, Complaint> {
    let wrong = || Complaint::new(format!("{} is no duration, as in \"90s\"", quoted(text)));
    let duration = Timeout::parse(text).map_err(|_| wrong())?.0.ok_or_else(wrong)?;
    u64::try_from(duration.as_millis()).map_err(|_| wrong())
}

impl Unit for Seconds {
    const EXAMPLE: &'static str = "\"60s:2min\"";
    const PATTERN: &'static str = DURATION;

    fn parse(text: &str) -> Result<u64, Complaint> {
        let milliseconds = milliseconds(text)?;
        let whole = milliseconds.is_multiple_of(1000).then_some(milliseconds / 1000);
        whole.ok_or_else(|| Complaint::new(format!("{} is not a number of whole seconds", quoted(text))))
    }

    fn show(value: u64) -> String {
        format!("{value}s")
    }
}

/// Microseconds, also as a duration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Microseconds;

impl Unit for Microseconds {
    const EXAMPLE: &'static str = "\"200ms:1s\"";
    const PATTERN: &'static str = DURATION;

    fn parse(text: &str) -> Result<u64, Complaint> {
        let wrong = || Complaint::new(format!("{} is too long", quoted(text)));
        milliseconds(text)?.checked_mul(1000).ok_or_else(wrong)
    }
}

impl<U: Unit> Limit<U> {
    fn value(text: &str) -> Result<Option<u64>, Complaint> {
        if text == "infinity" {
            return Ok(None);
        }
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return U::parse(text).map(Some);
        }
        // The kernel's value for no limit is the largest number.
        let number = text.parse().ok().filter(|number| *number != u64::MAX).map(Some);
        number.ok_or_else(|| Complaint::new(format!("{} is too large", quoted(text))).hint("write \"infinity\""))
    }

    fn parse(text: &str) -> Result<Self, Complaint> {
        let example = |complaint: Complaint| complaint.or_hint(format!("a limit is written as in {}", U::EXAMPLE));
        let (soft, hard) = text.split_once(':').unwrap_or((text, text));
        let (soft, hard) = (Self::value(soft).map_err(example)?, Self::value(hard).map_err(example)?);
        if hard.is_some_and(|hard| soft.is_none_or(|soft| soft > hard)) {
            return Err(Complaint::new("the soft limit is above the hard one").hint("the soft limit comes first"));
        }
        Ok(Self { soft, hard, unit: PhantomData })
    }
}

impl<U: Unit> Setting for Limit<U> {
    fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let Some(integer) = value.get_ref().as_integer() else {
            return read_text(value, reader, "a number or a string", Self::parse);
        };
        let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok().filter(|number| *number != u64::MAX);
        if number.is_none() {
            reader.bad(value, "must be between 0 and 9223372036854775807");
        }
        number.map(|number| Self { soft: Some(number), hard: Some(number), unit: PhantomData })
    }

    fn show(&self) -> Json {
        let word = |limit: Option<u64>| limit.map_or("infinity".to_owned(), U::show);
        if self.soft == self.hard {
            return word(self.soft).into();
        }
        format!("{}:{}", word(self.soft), word(self.hard)).into()
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        let one = format!("(infinity|{})", U::PATTERN);
        let pattern = format!("^{one}(:{one})?$");
        json_schema!({ "anyOf": [{ "type": "integer", "minimum": 0 }, { "type": "string", "pattern": pattern }] })
    }
}

/// An integer between two others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Between<const LEAST: i32, const MOST: i32>(pub(super) i32);

impl<const LEAST: i32, const MOST: i32> Setting for Between<LEAST, MOST> {
    fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let Some(integer) = value.get_ref().as_integer() else {
            reader.mistyped(value, "an integer");
            return None;
        };
        let number = i32::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = number.filter(|number| (LEAST..=MOST).contains(number));
        if number.is_none() {
            reader.bad(value, format_args!("must be between {LEAST} and {MOST}"));
        }
        number.map(Self)
    }

    fn show(&self) -> Json {
        json!(self.0)
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": LEAST, "maximum": MOST })
    }
}

#[cfg(test)]
mod tests {
    use super::super::reader::tests::{read, shown};
    use super::*;

    fn both<U: Unit>(text: &str) -> (Option<u64>, Option<u64>) {
        let limit = read::<Limit<U>>(text).unwrap_or_else(|problems| panic!("{text}: {problems:?}"));
        (limit.soft, limit.hard)
    }

    #[test]
    fn one_value_is_both_limits_and_two_are_soft_and_hard() {
        assert_eq!(both::<Count>("1024"), (Some(1024), Some(1024)));
        assert_eq!(both::<Count>("\"1024:4096\""), (Some(1024), Some(4096)));
        assert_eq!(both::<Count>("\"1024:infinity\""), (Some(1024), None));
        assert_eq!(both::<Count>("\"infinity\""), (None, None));
        assert_eq!(both::<Count>("0"), (Some(0), Some(0)));
    }

    #[test]
    fn values_have_the_unit_of_their_resource() {
        assert_eq!(both::<Bytes>("\"8M:1G\""), (Some(8 << 20), Some(1 << 30)));
        assert_eq!(both::<Bytes>("\"0:infinity\""), (Some(0), None));
        assert_eq!(both::<Seconds>("\"90:2min\""), (Some(90), Some(120)));
        assert_eq!(both::<Microseconds>("\"200ms:1s\""), (Some(200_000), Some(1_000_000)));
        assert_eq!(both::<Microseconds>("950000"), (Some(950_000), Some(950_000)));
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        fn again<U: Unit>(text: &str, canonical: &str) {
            assert_eq!(shown::<Limit<U>>(text), Ok(format!("\"{canonical}\"")), "{text}");
            assert_eq!(both::<U>(text), both::<U>(&format!("\"{canonical}\"")), "{text}");
        }
        again::<Count>("7", "7");
        again::<Bytes>("\"1024:2048K\"", "1K:2M");
        again::<Bytes>("0", "0");
        again::<Seconds>("\"2min:infinity\"", "120s:infinity");
        again::<Microseconds>("\"1s\"", "1000000");
    }

    #[test]
    fn what_is_no_limit_is_refused() {
        for bad in ["", ":", "1:", ":1", "1:2:3", "2:1", "infinity:1", "-1", "+1", "1K", " 1", "unlimited"] {
            assert!(Limit::<Count>::parse(bad).is_err(), "{bad}");
        }
        for bad in ["1.5M", "1KB", "18446744073709551615", "M"] {
            assert!(Limit::<Bytes>::parse(bad).is_err(), "{bad}");
        }
        for bad in ["500ms", "1 hour", "s"] {
            assert!(Limit::<Seconds>::parse(bad).is_err(), "{bad}");
        }
        assert!(read::<Limit<Count>>("-1").is_err() && read::<Limit<Count>>("1.0").is_err());
    }

    #[test]
    fn numbers_stay_between_their_ends() {
        assert_eq!(read::<Between<-20, 19>>("-20"), Ok(Between(-20)));
        assert_eq!(shown::<Between<-1000, 1000>>("0x3e8"), Ok("1000".to_owned()));
        for bad in ["-21", "20", "99999999999"] {
            let expected = Err(vec!["`key`: must be between -20 and 19".to_owned()]);
            assert_eq!(read::<Between<-20, 19>>(bad), expected, "{bad}");
        }
        assert!(read::<Between<-20, 19>>("\"5\"").is_err());
    }
}
