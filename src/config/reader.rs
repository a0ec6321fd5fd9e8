//! Reads one parsed file into typed tables, keeping the place of every value.
//!
//! A table is declared once, with [`table!`](crate::config::reader::table): its keys, their types, defaults and
//! descriptions. Reading, layering, `show` and the JSON schema all follow from that declaration.
//! Nothing here stops at the first problem.

use std::collections::{BTreeMap, HashSet};

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value as Json, json};
use toml::de::{DeTable, DeValue};

use super::complaint::Complaint;
use super::diagnostic::{Diagnostic, Place, Problems, escaped, nearest};

/// A parsed value and where it stands.
pub(super) type Value<'i> = toml::Spanned<DeValue<'i>>;

/// A value and the place that set it; without a place it is the default.
#[derive(Debug, Clone)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) place: Option<Place>,
}

impl<T> At<T> {
    pub(super) fn default(value: T) -> Self {
        Self { value, place: None }
    }

    pub(super) fn is_set(&self) -> bool {
        self.place.is_some()
    }
}

impl<T: Setting> At<T> {
    /// Lays a stronger file's value over this one.
    pub(super) fn put_over(&mut self, over: Self) {
        if over.is_set() {
            self.value.merge(over.value);
            self.place = over.place;
        }
    }
}

/// The effective value of one key, as `show` prints it.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) value: Json,
    pub(super) place: Option<Place>,
}

/// A type that a key of the file can have.
pub(super) trait Setting: Sized {
    /// Reads the value, or reports why it is none and gives nothing.
    fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self>;

    /// The value as the file would have it; null when unset.
    fn show(&self) -> Json;

    /// Its description in the JSON schema.
    fn schema(generator: &mut SchemaGenerator) -> Schema;

    /// Takes over the value of a stronger file.
    fn merge(&mut self, over: Self) {
        *self = over;
    }

    /// Lists the keys below this one, itself if there are none.
    fn list(&self, key: &str, place: Option<Place>, out: &mut Vec<Entry>) {
        out.push(Entry { key: key.to_owned(), value: self.show(), place });
    }
}

/// Reads the values of one file.
pub(super) struct Reader<'p> {
    file: usize,
    key: String,
    problems: &'p mut Problems,
    /// The table that has a key, for one found in the wrong place.
    elsewhere: fn(&str) -> Option<&'static str>,
}

impl<'p> Reader<'p> {
    pub(super) fn new(file: usize, problems: &'p mut Problems, elsewhere: fn(&str) -> Option<&'static str>) -> Self {
        Self { file, key: String::new(), problems, elsewhere }
    }

    /// Where a value stands.
    pub(super) fn place(&self, value: &Value<'_>) -> Place {
        Place::new(self.file, value.span())
    }

    /// Records that the value of the current key is wrong.
    pub(super) fn bad(&mut self, value: &Value<'_>, why: impl std::fmt::Display) -> &mut Diagnostic {
        let place = self.place(value);
        let message = format!("`{}`: {why}", self.key);
        self.problems.report(place, message)
    }

    /// Records a parser's complaint about the value of the current key.
    pub(super) fn complain(&mut self, value: &Value<'_>, complaint: Complaint) {
        let diagnostic = self.bad(value, &complaint.why);
        if let Some(hint) = complaint.hint {
            diagnostic.hint(hint);
        }
    }

    /// Records that the value has the wrong type.
    pub(super) fn mistyped(&mut self, value: &Value<'_>, expected: &str) -> &mut Diagnostic {
        let found = match value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a number",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        self.bad(value, format_args!("expected {expected}, found {found}"))
    }

    /// The entries of a table, or a report that it is none.
    pub(super) fn table<'a, 'i>(&mut self, value: &'a Value<'i>) -> Option<&'a DeTable<'i>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            let hint = format!("begin it with `[{}]`", self.key);
            let diagnostic = self.mistyped(value, "a table");
            if value.get_ref().is_array() {
                diagnostic.hint(hint);
            }
        }
        table
    }

    /// Reports every key of the table that is not in `known`.
    pub(super) fn refuse_unknown(&mut self, table: &DeTable<'_>, known: &[&str]) {
        for key in table.keys().filter(|key| !known.contains(&key.get_ref().as_ref())) {
            let name: &str = key.get_ref();
            let message = format!("unknown key `{}{}`", self.prefix(), escaped(name));
            let expected: Vec<String> = known.iter().map(|known| format!("`{known}`")).collect();
            let diagnostic = self.problems.report(Place::new(self.file, key.span()), message);
            diagnostic.label(format!("expected one of {}", expected.join(", ")));
            if let Some(near) = nearest(name, known.iter().copied()) {
                diagnostic.hint(format!("did you mean `{near}`?"));
            } else if let Some(table) = (self.elsewhere)(name) {
                diagnostic.hint(format!("`{name}` belongs in {table}"));
            }
        }
    }

    fn prefix(&self) -> String {
        if self.key.is_empty() { String::new() } else { format!("{}.", self.key) }
    }

    /// Reads one key of a table. A value that is wrong counts as set, so that it is not missed as well.
    pub(super) fn field<T: Setting>(&mut self, table: &DeTable<'_>, key: &str, default: T) -> At<T> {
        let Some(value) = table.get(key) else { return At::default(default) };
        let place = Some(self.place(value));
        let value = self.below(key, |reader| T::read(value, reader)).unwrap_or(default);
        At { value, place }
    }

    /// Runs `read` with messages naming `key` below the current one.
    pub(super) fn below<R>(&mut self, key: &str, read: impl FnOnce(&mut Self) -> R) -> R {
        let outer = self.key.len();
        if outer > 0 {
            self.key.push('.');
        }
        self.key.push_str(key);
        let result = read(self);
        self.key.truncate(outer);
        result
    }
}

/// Declares a table of the file: documentation, keys, types and defaults, once.
macro_rules! table {
    ($(#[doc = $doc:literal])* $name:ident { $($(#[doc = $help:literal])* $key:literal $field:ident : $ty:ty = $default:expr,)* }) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone)]
        pub(super) struct $name {
            $($(#[doc = $help])* pub(super) $field: At<$ty>,)*
        }

        impl $name {
            /// Every key of the table, in the order of declaration.
            pub(super) const KEYS: &'static [&'static str] = &[$($key),*];

            /// The table with nothing set.
            pub(super) fn unset() -> Self {
                Self { $($field: At::default($default),)* }
            }
        }

        impl Setting for $name {
            fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
                let table = reader.table(value)?;
                reader.refuse_unknown(table, Self::KEYS);
                let unset = Self::unset();
                Some(Self { $($field: reader.field(table, $key, unset.$field.value),)* })
            }

            fn show(&self) -> serde_json::Value {
                let mut shown = serde_json::Map::new();
                $(shown.insert($key.to_owned(), self.$field.value.show());)*
                shown.retain(|_, value| !value.is_null());
                shown.into()
            }

            fn schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                generator.subschema_for::<Self>()
            }

            fn merge(&mut self, over: Self) {
                $(self.$field.put_over(over.$field);)*
            }

            fn list(&self, key: &str, _: Option<Place>, out: &mut Vec<Entry>) {
                let dot = if key.is_empty() { "" } else { "." };
                $(self.$field.value.list(&format!("{key}{dot}{}", $key), self.$field.place, out);)*
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).trim_end_matches("Table").into()
            }

            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let fields = vec![$((
                    $key,
                    concat!($($help),*).trim(),
                    <$ty as Setting>::schema(generator),
                    <$ty as Setting>::show(&$default),
                )),*];
                $crate::config::reader::table_schema(concat!($($doc),*).trim(), fields)
            }
        }
    };
}
pub(super) use table;

/// The schema of a table from its documentation and its keys.
pub(super) fn table_schema(doc: &str, fields: Vec<(&str, &str, Schema, Json)>) -> Schema {
    let mut properties = serde_json::Map::new();
    for (key, help, mut schema, default) in fields {
        schema.insert("description".into(), help.into());
        if !default.is_null() && !default.is_object() {
            schema.insert("default".into(), default);
        }
        properties.insert(key.to_owned(), schema.to_value());
    }
    json_schema!({ "type": "object", "description": doc, "properties": properties, "additionalProperties": false })
}

impl Setting for bool {
    fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let found = value.get_ref().as_bool();
        if found.is_none() {
            reader.mistyped(value, "true or false");
        }
        found
    }

    fn show(&self) -> Json {
        json!(self)
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "boolean" })
    }
}

impl<T: Setting> Setting for Option<T> {
    fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        T::read(value, reader).map(Some)
    }

    fn show(&self) -> Json {
        self.as_ref().map_or(Json::Null, T::show)
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        T::schema(generator)
    }

    fn merge(&mut self, over: Self) {
        match (self, over) {
            (Some(value), Some(over)) => value.merge(over),
            (value, over) => *value = over,
        }
    }

    fn list(&self, key: &str, place: Option<Place>, out: &mut Vec<Entry>) {
        match self {
            Some(value) => value.list(key, place, out),
            None => out.push(Entry { key: key.to_owned(), value: Json::Null, place }),
        }
    }
}

/// Most elements of an array: far above any use, far below where checking them against each other takes time.
const MAX_ELEMENTS: usize = 4096;

/// Reads every element of an array; those that are wrong are reported and left out.
fn read_array<T: Setting>(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Vec<At<T>>> {
    let Some(array) = value.get_ref().as_array() else {
        let diagnostic = reader.mistyped(value, "an array");
        if value.get_ref().is_str() {
            diagnostic.hint("put brackets around it");
        }
        return None;
    };
    if array.len() > MAX_ELEMENTS {
        reader.bad(value, format_args!("holds {} elements, and the most is {MAX_ELEMENTS}", array.len()));
        return None;
    }
    let element = |item| Some(At { place: Some(reader.place(item)), value: T::read(item, reader)? });
    Some(array.iter().filter_map(element).collect())
}

/// A plain array: a stronger file replaces it whole.
impl<T: Setting> Setting for Vec<At<T>> {
    fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        read_array(value, reader)
    }

    fn show(&self) -> Json {
        self.iter().map(|item| item.value.show()).collect()
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "array", "items": T::schema(generator) })
    }
}

/// A plain array that makes no sense without elements. It is empty only while unset or after a report.
#[derive(Debug, Clone)]
pub(super) struct NonEmpty<T>(pub(super) Vec<At<T>>);

impl<T: Setting> Setting for NonEmpty<T> {
    fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        if value.get_ref().as_array().is_some_and(|array| array.is_empty()) {
            reader.bad(value, "must have at least one element");
        }
        read_array(value, reader).map(Self)
    }

    fn show(&self) -> Json {
        self.0.show()
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "array", "items": T::schema(generator), "minItems": 1 })
    }
}

/// What an entry of an array of tables replaces: the entry of a weaker file with the same identity.
pub(super) trait Keyed: Setting {
    /// What two entries may not share; nothing while it is not set.
    fn identity(&self) -> Option<&str>;
}

/// An array of tables: a stronger file adds to it, and replaces the entries of the same identity.
#[derive(Debug, Clone)]
pub(super) struct Rows<T>(pub(super) Vec<At<T>>);

impl<T: Keyed> Setting for Rows<T> {
    fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        if !value.get_ref().is_array() {
            let hint = format!("begin each with `[[{}]]`", reader.key);
            reader.mistyped(value, "an array of tables").hint(hint);
            return None;
        }
        read_array(value, reader).map(Self)
    }

    fn show(&self) -> Json {
        self.0.iter().map(|row| row.value.show()).collect()
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "array", "items": T::schema(generator) })
    }

    fn merge(&mut self, over: Self) {
        let replaced: HashSet<&str> = over.0.iter().filter_map(|row| row.value.identity()).collect();
        self.0.retain(|row| row.value.identity().is_none_or(|identity| !replaced.contains(identity)));
        self.0.extend(over.0);
    }

    fn list(&self, key: &str, _: Option<Place>, out: &mut Vec<Entry>) {
        for (index, row) in self.0.iter().enumerate() {
            row.value.list(&format!("{key}[{index}]"), row.place, out);
        }
    }
}

/// A key that the user chooses.
pub(super) trait MapKey: Ord {
    /// Reads the key, or reports why it is not valid.
    fn parse(text: &str) -> Result<Self, Complaint>
    where
        Self: Sized;

    /// The key as files have it.
    fn text(&self) -> String;
}

/// A table whose keys the user chooses; a stronger file replaces single keys.
impl<K: MapKey, T: Setting> Setting for BTreeMap<K, At<T>> {
    fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let table = reader.table(value)?;
        let mut read = Self::new();
        for (key, value) in table {
            let place = Place::new(reader.file, key.span());
            match K::parse(key.get_ref()) {
                Ok(name) => {
                    let text = name.text();
                    if let Some(item) = reader.below(&text, |reader| T::read(value, reader)) {
                        read.insert(name, At { value: item, place: Some(reader.place(value)) });
                    }
                }
                Err(why) => {
                    reader.problems.report(place, format!("`{}`: {why}", reader.key));
                }
            }
        }
        Some(read)
    }

    fn show(&self) -> Json {
        Json::Object(self.iter().map(|(name, item)| (name.text(), item.value.show())).collect())
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "additionalProperties": T::schema(generator) })
    }

    fn merge(&mut self, over: Self) {
        self.extend(over);
    }

    fn list(&self, key: &str, place: Option<Place>, out: &mut Vec<Entry>) {
        if self.is_empty() {
            out.push(Entry { key: key.to_owned(), value: json!({}), place });
        }
        for (name, item) in self {
            item.value.list(&format!("{key}.{}", name.text()), item.place, out);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Reads `key = TEXT` as a value of one type; problems come back as their first lines.
    pub(in crate::config) fn read<T: Setting>(text: &str) -> Result<T, Vec<String>> {
        let mut problems = Problems::default();
        let source = format!("key = {text}\n");
        let file = problems.add_file("test.toml".into(), source.clone());
        let table = DeTable::parse(&source).expect("TOML").into_inner();
        let mut reader = Reader::new(file, &mut problems, |_| None);
        let value = reader.below("key", |reader| T::read(&table["key"], reader));
        if problems.is_empty() {
            return Ok(value.expect("a value, since there is no problem"));
        }
        Err(problems.into_diagnostics().iter().map(|problem| problem.message().to_owned()).collect())
    }

    /// Reads and shows again, so that what is shown can be compared with what was written.
    pub(in crate::config) fn shown<T: Setting>(text: &str) -> Result<String, Vec<String>> {
        read::<T>(text).map(|value| toml::Value::try_from(value.show()).expect("TOML").to_string())
    }

    #[test]
    fn every_bad_element_of_an_array_is_reported() {
        let problems = read::<Vec<At<bool>>>("[true, 1, false, 'x']").expect_err("two are wrong");
        assert_eq!(
            problems,
            ["`key`: expected true or false, found an integer", "`key`: expected true or false, found a string"]
        );
    }

    #[test]
    fn an_array_has_a_limit() {
        let text = |count| format!("[{}]", vec!["true"; count].join(", "));
        assert!(read::<Vec<At<bool>>>(&text(MAX_ELEMENTS)).is_ok());
        let problems = read::<Vec<At<bool>>>(&text(MAX_ELEMENTS + 1)).expect_err("too many");
        assert_eq!(problems, ["`key`: holds 4097 elements, and the most is 4096"]);
    }

    #[test]
    fn numbers_of_32_bits_are_read_in_every_base() {
        assert_eq!(read::<u32>("0x1_0000").ok(), Some(65536));
        assert_eq!(read::<u32>("4294967295").ok(), Some(u32::MAX));
        for bad in ["-1", "4294967296", "99999999999999999999999"] {
            assert_eq!(read::<u32>(bad), Err(vec!["`key`: must be between 0 and 4294967295".to_owned()]), "{bad}");
        }
    }
}
