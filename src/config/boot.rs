//! The keys of `[boot]` that decide when a machine is ready and when it is started again.

use std::time::Duration;

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value as Json, json};

use super::diagnostic::Place;
use super::quantities::Timeout;
use super::reader::{At, Entry, NonEmpty, Reader, Setting, Value, table};
use super::values::{Argument, choose, read_text};
use crate::spec::Ready;

table! {
    /// A check of a machine that is repeated until it succeeds: exactly one of `exec` and `port`.
    ReadyTable {
        /// Run this program with these arguments in the machine, as its root, until it exits with 0.
        "exec" exec: Option<NonEmpty<Argument>> = None,
        /// Connect to this TCP port in the machine's network until that is possible.
        "port" port: Option<Port> = None,
    }
}

table! {
    /// How often a machine that ends by itself is started again.
    LimitTable {
        /// After so many ends the machine is not started again.
        "count" count: Count = Count(5),
        /// Only ends that are not longer ago than this count.
        "within" within: Period = Period(Some(Duration::from_secs(300))),
    }
}

/// Number of a TCP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Port(u16);

impl Setting for Port {
    fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let Some(integer) = value.get_ref().as_integer() else {
            reader.mistyped(value, "the number of a TCP port");
            return None;
        };
        let number = u16::from_str_radix(integer.as_str(), integer.radix()).ok().filter(|port| *port > 0);
        if number.is_none() {
            reader.bad(value, "must be between 1 and 65535");
        }
        number.map(Self)
    }

    fn show(&self) -> Json {
        json!(self.0)
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 1, "maximum": u16::MAX })
    }
}

/// A number of times, at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count(pub(super) u32);

impl Setting for Count {
    fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let count = u32::read(value, reader)?;
        if count == 0 {
            reader.bad(value, "must be at least 1").hint("`restart = \"no\"` never starts the machine again");
            return None;
        }
        Some(Self(count))
    }

    fn show(&self) -> Json {
        json!(self.0)
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 1, "maximum": u32::MAX })
    }
}

/// A duration that is not zero; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Period(pub(super) Option<Duration>);

impl Setting for Period {
    fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let Timeout(time) = Timeout::read(value, reader)?;
        if time.is_some_and(|time| time.is_zero()) {
            reader.bad(value, "must be longer than nothing");
            return None;
        }
        Some(Self(time))
    }

    fn show(&self) -> Json {
        Timeout(self.0).show()
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        Timeout::schema(generator)
    }
}

/// A duration that ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Delay(pub(super) Duration);

impl Delay {
    pub(super) const DEFAULT: Self = Self(Duration::from_secs(1));
}

impl Setting for Delay {
    fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let Timeout(time) = Timeout::read(value, reader)?;
        if time.is_none() {
            reader.bad(value, "must end").hint("`restart = \"no\"` never starts the machine again");
        }
        time.map(Self)
    }

    fn show(&self) -> Json {
        Timeout(Some(self.0)).show()
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^([0-9]+ ?(ms|s|min|h|d) ?)+$" })
    }
}

impl Setting for Ready {
    fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        const TABLES: &str = "`{ exec = [\"program\"] }` or `{ port = 80 }`";
        if value.get_ref().is_table() {
            let table = ReadyTable::read(value, reader)?;
            return read_check(&table, value, reader);
        }
        read_text(value, reader, &format!("a string, {TABLES}"), |text| {
            choose(text, &[("auto", ()), ("notify", ()), ("started", ())]).map_err(|complaint| complaint.or(TABLES))?;
            Ok(match text {
                "notify" => Self::Notify,
                "started" => Self::Started,
                _ => Self::Auto,
            })
        })
    }

    fn show(&self) -> Json {
        match self {
            Self::Auto => "auto".into(),
            Self::Notify => "notify".into(),
            Self::Started => "started".into(),
            Self::Exec(argv) => json!({ "exec": argv }),
            Self::Port(port) => json!({ "port": port }),
        }
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        let check = ReadyTable::schema(generator);
        json_schema!({ "anyOf": [{ "enum": ["auto", "notify", "started"] }, check] })
    }
}

/// Takes the one check that a table gives.
fn read_check(table: &ReadyTable, value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Ready> {
    match (table.exec.is_set(), table.port.is_set()) {
        (true, true) => {
            reader.bad(value, "`exec` and `port` exclude each other");
            return None;
        }
        (false, false) => {
            reader.bad(value, "needs one of `exec` and `port`");
            return None;
        }
        _ => {}
    }
    if let Some(Port(port)) = table.port.value {
        return Some(Ready::Port(port));
    }
    // Unset or empty only after a report.
    let argv: Vec<String> =
        table.exec.value.iter().flat_map(|list| &list.0).map(|word| word.value.as_str().to_owned()).collect();
    match argv.first() {
        None => None,
        Some(program) if program.is_empty() => {
            reader.bad(value, "the program's name is empty");
            None
        }
        Some(_) => Some(Ready::Exec(argv)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::reader::tests::{read, shown};
    use super::*;

    fn problem<T: Setting>(text: &str) -> String {
        read::<T>(text).err().unwrap_or_else(|| panic!("{text} is accepted")).join("; ")
    }

    #[test]
    fn readiness_is_a_word_or_one_check() {
        for text in ["\"auto\"", "\"notify\"", "\"started\"", "{ port = 80 }", "{ exec = [\"/bin/a\", \"\"] }"] {
            assert_eq!(shown::<Ready>(text), Ok(text.to_owned()));
        }
        assert_eq!(read::<Ready>("{ port = 0xffff }").ok(), Some(Ready::Port(65535)));
    }

    #[test]
    fn what_is_no_check_is_refused_with_its_reason() {
        let table = [
            (
                "\"port\"",
                "`key`: 'port' is not one of \"auto\", \"notify\", \"started\" or `{ exec = [\"program\"] }` or `{ port = 80 }`",
            ),
            ("true", "`key`: expected a string, `{ exec = [\"program\"] }` or `{ port = 80 }`, found a boolean"),
            ("{}", "`key`: needs one of `exec` and `port`"),
            ("{ port = 80, exec = [\"a\"] }", "`key`: `exec` and `port` exclude each other"),
            ("{ port = 0 }", "`key.port`: must be between 1 and 65535"),
            ("{ port = 70000 }", "`key.port`: must be between 1 and 65535"),
            ("{ port = -1 }", "`key.port`: must be between 1 and 65535"),
            ("{ port = \"80\" }", "`key.port`: expected the number of a TCP port, found a string"),
            ("{ exec = [] }", "`key.exec`: must have at least one element"),
            ("{ exec = [\"\"] }", "`key`: the program's name is empty"),
            ("{ exec = \"true\" }", "`key.exec`: expected an array, found a string"),
            ("{ exec = [1] }", "`key.exec`: expected a string, found an integer"),
            ("{ exec = [\"a\\u0000\"] }", "`key.exec`: 'a\\0' holds a zero byte, which no argument can"),
            ("{ ports = 80 }", "`key`: needs one of `exec` and `port`; unknown key `key.ports`"),
        ];
        for (text, why) in table {
            assert_eq!(problem::<Ready>(text), why, "{text}");
        }
    }

    #[test]
    fn a_delay_ends_and_a_limit_has_a_number_and_a_time() {
        assert_eq!(shown::<Delay>("\"0s\""), Ok("\"0s\"".to_owned()));
        assert_eq!(problem::<Delay>("\"infinity\""), "`key`: must end");
        assert_eq!(problem::<Delay>("1"), "`key`: expected a duration as a string, found an integer");
        assert_eq!(problem::<Period>("\"0s\""), "`key`: must be longer than nothing");
        assert_eq!(shown::<Period>("\"infinity\""), Ok("\"infinity\"".to_owned()));
        assert_eq!(problem::<Count>("0"), "`key`: must be at least 1");
        assert_eq!(problem::<Count>("-1"), "`key`: must be between 0 and 4294967295");
    }
}
