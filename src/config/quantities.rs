//! Values with a unit: durations, sizes and octal modes.

use std::fmt;
use std::time::Duration;

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::Value as Json;

use super::complaint::Complaint;
use super::diagnostic::quoted;
use super::reader::{Reader, Setting, Value};
use super::values::read_text;
use crate::spec::{DURATION_UNITS, Span};

/// A duration; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timeout(pub(super) Option<Duration>);

impl Timeout {
    pub(super) const DEFAULT: Self = Self(Some(Duration::from_secs(90)));

    pub(super) fn parse(text: &str) -> Result<Self, Complaint> {
        if text == "infinity" {
            return Ok(Self(None));
        }
        let wrong =
            || Complaint::new(format!("{} is no duration, as in \"90s\", \"2min\" or \"infinity\"", quoted(text)));
        let mut total = 0u64;
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let (digits, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
            let after = after.trim_start();
            let (unit, next) = after.split_at(after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len()));
            let number: u64 = digits.parse().map_err(|_| wrong())?;
            let Some((_, scale)) = DURATION_UNITS.iter().find(|(name, _)| *name == unit) else {
                return Err(wrong().hint("the units are ms, s, min, h and d"));
            };
            total = number.checked_mul(*scale).and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
            rest = next.trim_start();
        }
        Ok(Self(Some(Duration::from_millis(total))))
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(duration) = self.0 else { return f.write_str("infinity") };
        Span(duration).fmt(f)
    }
}

impl Setting for Timeout {
    fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        if let Some(number) = value.get_ref().as_integer() {
            reader.mistyped(value, "a duration as a string").hint(format!("write \"{number}s\" for seconds"));
            return None;
        }
        read_text(value, reader, "a duration as a string", Self::parse)
    }

    fn show(&self) -> Json {
        self.to_string().into()
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^(infinity|([0-9]+ ?(ms|s|min|h|d) ?)+)$" })
    }
}

/// A number of bytes, at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size(pub(super) u64);

const SIZE_UNITS: [(&str, u64); 5] = [("", 1), ("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30), ("T", 1 << 40)];

impl Size {
    pub(super) fn parse(text: &str) -> Result<Self, Complaint> {
        let wrong = || Complaint::new(format!("{} is no size, as in \"512M\"", quoted(text)));
        let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let Some((_, scale)) = SIZE_UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(wrong().hint("the units are K, M, G and T, each 1024 of the one before"));
        };
        match number.checked_mul(*scale) {
            Some(0) => Err(Complaint::new("must be at least 1 byte")),
            Some(bytes) if i64::try_from(bytes).is_ok() => Ok(Self(bytes)),
            _ => Err(Complaint::new(format!("{} is more than any file system holds", quoted(text)))),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, scale): &&(&str, u64)| self.0.is_multiple_of(*scale);
        let (unit, scale) = SIZE_UNITS.iter().rev().find(fits).unwrap_or(&SIZE_UNITS[0]);
        write!(f, "{}{unit}", self.0 / scale)
    }
}

impl Setting for Size {
    fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        if let Some(number) = value.get_ref().as_integer() {
            reader.mistyped(value, "a size as a string").hint(format!("write \"{number}\" for bytes"));
            return None;
        }
        read_text(value, reader, "a size as a string", Self::parse)
    }

    fn show(&self) -> Json {
        self.to_string().into()
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]+[KMGT]?$" })
    }
}

/// A size that a log can be kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogSize(pub(super) Size);

impl LogSize {
    pub(super) const DEFAULT: Self = Self(Size(1 << 20));
}

impl Setting for LogSize {
    fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let size = Size::read(value, reader)?;
        if size.0 < 4096 {
            reader.bad(value, "must be at least \"4K\"");
            return None;
        }
        Some(Self(size))
    }

    fn show(&self) -> Json {
        self.0.show()
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        Size::schema(generator)
    }
}

/// Permission bits in octal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mode(pub(super) u32);

impl Mode {
    pub(super) const DEFAULT: Self = Self(0o755);

    pub(super) fn parse(text: &str) -> Result<Self, Complaint> {
        let octal = (3..=5).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
        match u32::from_str_radix(text, 8) {
            Ok(mode) if octal && mode <= 0o7777 => Ok(Self(mode)),
            _ => Err(Complaint::new(format!("{} is no mode in octal, as in \"1777\" or \"0755\"", quoted(text)))),
        }
    }
}

impl Setting for Mode {
    fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        read_text(value, reader, "a mode in octal as a string, as in \"0755\"", Self::parse)
    }

    fn show(&self) -> Json {
        format!("{:04o}", self.0).into()
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-7]{3,5}$" })
    }
}

/// Reads a size as files and the command line have it, "512M" for instance; gives bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    Size::parse(text).map(|size| size.0).map_err(|complaint| complaint.why)
}

/// Reads a duration as machine files have it, for the command line; `None` is no limit.
pub fn parse_time(text: &str) -> Result<Option<Duration>, String> {
    Timeout::parse(text).map(|t| t.0).map_err(|complaint| complaint.why)
}

#[cfg(test)]
mod tests {
    use super::super::reader::tests::{read, shown};
    use super::*;

    #[test]
    fn durations_are_read_and_shown_in_their_shortest_form() {
        let table = [
            ("90s", 90_000, "90s"),
            ("120s", 120_000, "120s"),
            ("2min", 120_000, "120s"),
            ("5min", 300_000, "5min"),
            ("1h 30min", 5_400_000, "90min"),
            ("1min30s", 90_000, "90s"),
            (" 2 d ", 172_800_000, "2d"),
            ("1500ms", 1500, "1500ms"),
            ("0s", 0, "0s"),
        ];
        for (text, milliseconds, canonical) in table {
            let read = Timeout::parse(text).expect(text);
            assert_eq!(read, Timeout(Some(Duration::from_millis(milliseconds))), "{text}");
            assert_eq!(read.to_string(), canonical, "{text}");
            assert_eq!(Timeout::parse(canonical).expect(canonical), read);
        }
        assert_eq!(Timeout::parse("infinity").expect("infinity").to_string(), "infinity");
        assert_eq!(Timeout::DEFAULT.to_string(), "90s");
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for bad in ["", " ", "90", "s", "-1s", "1.5s", "2 minutes", "1m", "999999999999999999d", "1s,2s", "١s"] {
            assert!(Timeout::parse(bad).is_err(), "{bad}");
        }
        assert!(read::<Timeout>("90").is_err());
    }

    #[test]
    fn sizes_are_read_and_shown_in_their_shortest_form() {
        let table = [("1", 1, "1"), ("1024", 1024, "1K"), ("512M", 512 << 20, "512M"), ("2048M", 2 << 30, "2G")];
        for (text, bytes, canonical) in table {
            let read = Size::parse(text).expect(text);
            assert_eq!((read.0, read.to_string().as_str()), (bytes, canonical), "{text}");
        }
        for bad in ["", "0", "0K", "M", "1.5G", "50%", "512MB", "512m", "-1", "9999999999T", "18446744073709551616"] {
            assert!(Size::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn modes_are_octal_digits() {
        for (text, canonical) in
            [("1777", "1777"), ("0755", "0755"), ("755", "0755"), ("00700", "0700"), ("000", "0000")]
        {
            assert_eq!(shown::<Mode>(&format!("\"{text}\"")), Ok(format!("\"{canonical}\"")), "{text}");
        }
        for bad in ["", "75", "0o755", "8777", "17777", "+755", "000755"] {
            assert!(Mode::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_log_has_room_for_a_page() {
        assert_eq!(shown::<LogSize>("\"4K\""), Ok("\"4K\"".to_owned()));
        assert_eq!(read::<LogSize>("\"4095\""), Err(vec!["`key`: must be at least \"4K\"".to_owned()]));
    }
}
