//! A loaded definition as text: the effective TOML, and the same as JSON.

use serde_json::{Map, Value as Json};

use super::load::{Loaded, Origin};

impl Origin {
    /// The value in TOML on one line, fit for a terminal; `unset` for a key without a value.
    pub fn text(&self) -> String {
        inline(&self.value)
    }
}

/// Writes a value in TOML without line breaks. Keys come from us and are all bare.
pub(super) fn inline(value: &Json) -> String {
    match value {
        Json::Null => "unset".to_owned(),
        Json::Bool(_) | Json::Number(_) => value.to_string(),
        Json::String(text) => format!("\"{}\"", text.chars().map(escaped).collect::<String>()),
        Json::Array(items) => format!("[{}]", items.iter().map(inline).collect::<Vec<_>>().join(", ")),
        Json::Object(table) if table.is_empty() => "{}".to_owned(),
        Json::Object(table) => {
            let pairs: Vec<String> = table.iter().map(|(key, value)| format!("{key} = {}", inline(value))).collect();
            format!("{{ {} }}", pairs.join(", "))
        }
    }
}

/// A character of a TOML basic string; what a terminal would not show as a letter becomes its number.
fn escaped(letter: char) -> String {
    match letter {
        '"' | '\\' => format!("\\{letter}"),
        '\n' => "\\n".to_owned(),
        '\t' => "\\t".to_owned(),
        '\'' => "'".to_owned(),
        _ if letter.escape_debug().len() == 1 => letter.to_string(),
        _ => format!("\\U{:08X}", u32::from(letter)),
    }
}

impl Loaded {
    /// The effective definition as a file that gives the same machine wherever it is put: every layer merged and
    /// every default written out.
    pub fn to_toml(&self) -> String {
        let mut text = format!("# Machine '{}' as it is started, merged from\n", self.spec.name);
        for file in &self.files {
            text.push_str(&format!("#   {}\n", file.display().to_string().escape_debug()));
        }
        text.push('\n');
        let whole = self.to_json();
        let mut header = "";
        let mut list = "";
        for origin in self.origins.iter().filter(|origin| !origin.value.is_null() && origin.key != "extends") {
            let (table, key) = origin.key.split_once('.').unwrap_or(("", &origin.key));
            if table != header {
                (header, list) = (table, "");
                match table.split_once('[') {
                    Some((array, _)) => text.push_str(&format!("\n[[{array}]]\n")),
                    None => text.push_str(&format!("\n[{table}]\n")),
                }
            }
            // An array of tables inside a table goes on one line, or what follows it would be in it.
            match key.split_once('[') {
                Some((name, _)) if name == list => {}
                Some((name, _)) => {
                    list = name;
                    text.push_str(&format!("{name} = {}\n", inline(&whole[table][name])));
                }
                None => text.push_str(&format!("{key} = {}\n", origin.text())),
            }
        }
        text
    }

    /// The effective definition as one object with the file's own shape.
    pub fn to_json(&self) -> Json {
        let mut root = Json::Object(Map::new());
        for origin in self.origins.iter().filter(|origin| !origin.value.is_null()) {
            let mut at = &mut root;
            for part in origin.key.split('.') {
                let (name, index) = match part.split_once('[') {
                    Some((name, index)) => (name, index.trim_end_matches(']').parse::<usize>().ok()),
                    None => (part, None),
                };
                at = &mut at[name];
                if let Some(index) = index {
                    if at.is_null() {
                        *at = Json::Array(Vec::new());
                    }
                    // Rows are listed in order, so the next one is at most one past the end.
                    if let Some(rows) = at.as_array_mut().filter(|rows| rows.len() == index) {
                        rows.push(Json::Null);
                    }
                    at = &mut at[index];
                }
            }
            *at = origin.value.clone();
        }
        root
    }
}
