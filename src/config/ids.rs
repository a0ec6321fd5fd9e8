//! User and group ids: plain numbers, ranges, and the maps of binds.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value as Json, json};
use toml::de::DeValue;

use super::complaint::Complaint;
use super::diagnostic::quoted;
use super::file::RangeTable;
use super::reader::{Reader, Setting, Value};
use super::values::{choose, read_text};
use crate::spec::{BindIdmap, ID_RANGE_SIZE, IdMapEntry, IdRange, IdsOf, UserMode};

impl Setting for u32 {
    fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let Some(integer) = value.get_ref().as_integer() else {
            reader.mistyped(value, "an integer");
            return None;
        };
        let number = Self::from_str_radix(integer.as_str(), integer.radix());
        if number.is_err() {
            reader.bad(value, "must be between 0 and 4294967295");
        }
        number.ok()
    }

    fn show(&self) -> Json {
        json!(self)
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 0, "maximum": Self::MAX })
    }
}

impl Setting for UserMode {
    fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        if value.get_ref().is_table() {
            let range = RangeTable::read(value, reader)?;
            return read_range(&range, value, reader).map(Self::Range);
        }
        read_text(value, reader, "a string or `{ shift, size }`", |text| {
            choose(text, &[("auto", Self::Auto), ("host", Self::Host), ("identity", Self::Identity)])
                .map_err(|complaint| complaint.or("`{ shift, size }`"))
        })
    }

    fn show(&self) -> Json {
        match self {
            Self::Auto => "auto".into(),
            Self::Host => "host".into(),
            Self::Identity => "identity".into(),
            Self::Range(range) => json!({ "shift": range.shift, "size": range.size }),
        }
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        let range = RangeTable::schema(generator);
        json_schema!({ "anyOf": [{ "enum": ["auto", "host", "identity"] }, range] })
    }
}

/// Checks the two numbers of a range against each other.
fn read_range(range: &RangeTable, value: &Value<'_>, reader: &mut Reader<'_>) -> Option<IdRange> {
    let Some(shift) = range.shift.value else {
        if !range.shift.is_set() {
            reader.bad(value, "missing key `shift`");
        }
        return None;
    };
    let size = range.size.value;
    if shift == 0 {
        reader
            .bad(value, "a shift of 0 gives the machine the host's own ids")
            .hint("write `mode = \"identity\"` for that");
    } else if shift < ID_RANGE_SIZE {
        reader.bad(value, "the shift must be at least 65536, above the ids of the host's own users");
    } else if size == 0 {
        reader.bad(value, "the size must be at least 1");
    } else if u64::from(shift) + u64::from(size) > u64::from(u32::MAX - 1) {
        reader.bad(value, "the range may not reach beyond id 4294967293");
    } else {
        return Some(IdRange { shift, size });
    }
    None
}

/// Most lines of an id map (`user_namespaces(7)`).
const MAX_EXTENTS: usize = 340;

/// The words of `idmap`; a list of entries is the fifth way.
const IDMAP_WORDS: [(&str, BindIdmap); 4] = [
    ("private", BindIdmap::Private),
    ("none", BindIdmap::None),
    ("root-owner", BindIdmap::RootOwner),
    ("owner", BindIdmap::Owner),
];

impl Setting for BindIdmap {
    fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        if let DeValue::Array(array) = value.get_ref() {
            if array.len() > MAX_EXTENTS {
                reader.bad(value, format_args!("holds {} entries, and the kernel takes {MAX_EXTENTS}", array.len()));
                return None;
            }
            let mut entries: Vec<IdMapEntry> = Vec::new();
            for item in array {
                let entry = read_text(item, reader, "a map as a string, as in \"1000->33\"", parse_entry)?;
                if let Some(earlier) = entries.iter().find(|earlier| overlap(earlier, &entry)) {
                    let earlier = show_entry(earlier);
                    reader.bad(item, format_args!("{} overlaps '{earlier}'", quoted(&show_entry(&entry))));
                    return None;
                }
                entries.push(entry);
            }
            if entries.is_empty() {
                reader
                    .bad(value, "an empty map would give every file to the user `nobody`")
                    .hint("leave the key out for the default");
                return None;
            }
            return Some(Self::Map(entries));
        }
        let words: Vec<(&'static str, usize)> =
            IDMAP_WORDS.iter().enumerate().map(|(i, (word, _))| (*word, i)).collect();
        let index = read_text(value, reader, "a string or an array of strings", |text| {
            choose(text, &words).map_err(|complaint| complaint.or("a list such as [\"1000->33\"]"))
        })?;
        Some(IDMAP_WORDS[index].1.clone())
    }

    fn show(&self) -> Json {
        match self {
            Self::Map(entries) => entries.iter().map(show_entry).collect(),
            word => IDMAP_WORDS.iter().find(|(_, known)| known == word).map_or(Json::Null, |(text, _)| (*text).into()),
        }
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "enum": IDMAP_WORDS.map(|(word, _)| word) },
            { "type": "array", "minItems": 1,
              "items": { "type": "string", "pattern": "^([ug]:)?[0-9]+(-[0-9]+)?->[0-9]+(-[0-9]+)?$" } },
        ] })
    }
}

/// Reads `[u:|g:]FROM->TO`, where each side is an id or a range of ids.
fn parse_entry(text: &str) -> Result<IdMapEntry, Complaint> {
    let wrong = || {
        let hint = "write HOST->MACHINE, as in \"1000->33\", \"u:1000->33\" or \"1000-1009->0-9\"";
        Complaint::new(format!("{} is no map of ids", quoted(text))).hint(hint)
    };
    let (of, map) = match text.split_once(':') {
        Some(("u", map)) => (IdsOf::Users, map),
        Some(("g", map)) => (IdsOf::Groups, map),
        Some(_) => return Err(wrong()),
        None => (IdsOf::Both, text),
    };
    let (from, to) = map.split_once("->").ok_or_else(wrong)?;
    let (host, host_last) = parse_ids(from).ok_or_else(wrong)?;
    let (guest, guest_last) = parse_ids(to).ok_or_else(wrong)?;
    if host_last < host || guest_last < guest {
        return Err(Complaint::new(format!("{} has a range that ends before it begins", quoted(text))));
    }
    if host_last - host != guest_last - guest {
        return Err(Complaint::new(format!("{} has ranges of different lengths", quoted(text))));
    }
    if host_last == u32::MAX || guest_last == u32::MAX {
        return Err(Complaint::new(format!("{} holds 4294967295, which is no id", quoted(text))));
    }
    Ok(IdMapEntry { host, guest, count: host_last - host + 1, of })
}

/// Reads `N` or `FIRST-LAST`.
fn parse_ids(text: &str) -> Option<(u32, u32)> {
    let number = |digits: &str| {
        let digits = digits.trim();
        if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse::<u32>().ok() } else { None }
    };
    match text.split_once('-') {
        Some((first, last)) => Some((number(first)?, number(last)?)),
        None => number(text).map(|only| (only, only)),
    }
}

fn show_entry(entry: &IdMapEntry) -> String {
    let ids = |first: u32| match entry.count {
        1 => first.to_string(),
        count => format!("{first}-{}", first + (count - 1)),
    };
    let kind = match entry.of {
        IdsOf::Users => "u:",
        IdsOf::Groups => "g:",
        IdsOf::Both => "",
    };
    format!("{kind}{}->{}", ids(entry.host), ids(entry.guest))
}

/// Whether two entries give one id twice, on either side.
fn overlap(a: &IdMapEntry, b: &IdMapEntry) -> bool {
    let same_kind = a.of == b.of || a.of == IdsOf::Both || b.of == IdsOf::Both;
    let meet = |x: u32, y: u32| x - x.min(y) < b.count && y - x.min(y) < a.count;
    same_kind && (meet(a.host, b.host) || meet(a.guest, b.guest))
}

#[cfg(test)]
mod tests {
    use super::super::reader::tests::{read, shown};
    use super::*;

    #[test]
    fn maps_are_shown_as_they_are_read() {
        for text in [
            r#""private""#,
            r#""none""#,
            r#""root-owner""#,
            r#""owner""#,
            r#"["1000->33"]"#,
            r#"["u:1000->33", "g:1000->33"]"#,
            r#"["1000-1009->0-9", "g:5->10", "0-4->20-24"]"#,
            r#"["0-4294967294->0-4294967294"]"#,
        ] {
            assert_eq!(shown::<BindIdmap>(text), Ok(text.to_owned()));
        }
    }

    #[test]
    fn a_map_entry_is_read_host_first() {
        let entry = |host, guest, count, of| IdMapEntry { host, guest, count, of };
        let map = read::<BindIdmap>(r#"["u:1000->33", "g:100-109->0-9"]"#).expect("map");
        assert_eq!(map, BindIdmap::Map(vec![entry(1000, 33, 1, IdsOf::Users), entry(100, 0, 10, IdsOf::Groups)]));
    }

    #[test]
    fn maps_that_give_an_id_twice_are_refused() {
        for (first, second) in [
            ("1000->33", "1000->34"),
            ("1000->33", "1001->33"),
            ("1000-1009->0-9", "1009->20"),
            ("1009->20", "1000-1009->0-9"),
            ("5->9", "1000-1009->0-9"),
            ("u:1->1", "1->2"),
        ] {
            let problems = read::<BindIdmap>(&format!("[\"{first}\", \"{second}\"]")).expect_err(second);
            assert_eq!(problems, [format!("`key`: '{second}' overlaps '{first}'")]);
        }
        assert!(read::<BindIdmap>(r#"["u:1->1", "g:1->1", "u:2->0", "3-4->2-3"]"#).is_ok());
    }

    #[test]
    fn what_is_no_map_entry_is_refused() {
        for bad in
            ["", "1000", "1000:33", "1000->", "->33", "a->b", "1000->33->1", "uid:1->2", "-1->1", "+1->1", "1-->2"]
        {
            assert!(parse_entry(bad).is_err(), "{bad}");
        }
        for bad in ["4294967295->0", "0->4294967295", "9-5->5-9", "1-2->1-3", "0-4294967295->0-4294967295"] {
            assert!(parse_entry(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_map_has_no_more_entries_than_the_kernel_takes() {
        let text = |count| format!("[{}]", (0..count).map(|i| format!("\"{i}->{i}\"")).collect::<Vec<_>>().join(", "));
        assert!(read::<BindIdmap>(&text(340)).is_ok());
        assert_eq!(
            read::<BindIdmap>(&text(341)),
            Err(vec!["`key`: holds 341 entries, and the kernel takes 340".into()])
        );
    }

    #[test]
    fn ranges_stay_off_the_hosts_ids_and_end_where_ids_end() {
        let range = |shift, size| Ok(UserMode::Range(IdRange { shift, size }));
        assert_eq!(read::<UserMode>("{ shift = 65536 }"), range(65536, 65536));
        assert_eq!(read::<UserMode>("{ shift = 70000, size = 1 }"), range(70000, 1));
        assert_eq!(read::<UserMode>("{ shift = 4294901758, size = 65536 }"), range(4_294_901_758, 65536));
        let table = [
            ("{ shift = 4294901759, size = 65536 }", "the range may not reach beyond id 4294967293"),
            ("{ shift = 65536, size = 4294967295 }", "the range may not reach beyond id 4294967293"),
            ("{ shift = 65535 }", "the shift must be at least 65536, above the ids of the host's own users"),
            ("{ shift = 65536, size = 0 }", "the size must be at least 1"),
            ("{ shift = 0 }", "a shift of 0 gives the machine the host's own ids"),
            ("{ size = 65536 }", "missing key `shift`"),
            ("3", "expected a string or `{ shift, size }`, found an integer"),
            ("'self'", "'self' is not one of \"auto\", \"host\", \"identity\" or `{ shift, size }`"),
        ];
        for (text, problem) in table {
            assert_eq!(read::<UserMode>(text), Err(vec![format!("`key`: {problem}")]), "{text}");
        }
    }
}
