//! A loaded definition as text: the effective TOML, and the same as JSON.

use serde_json::{Map, Value as Json};

use super::{Loaded, Origin};

impl Origin {
    /// The value in TOML on one line; `unset` for a key without a value.
    pub fn text(&self) -> String {
        match toml::Value::try_from(&self.value) {
            Ok(value) => value.to_string(),
            Err(_) => "unset".to_owned(),
        }
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
        let mut header = "";
        for origin in self.origins.iter().filter(|origin| !origin.value.is_null() && origin.key != "extends") {
            let (table, key) = origin.key.split_once('.').unwrap_or(("", &origin.key));
            if table != header {
                header = table;
                match table.split_once('[') {
                    Some((array, _)) => text.push_str(&format!("\n[[{array}]]\n")),
                    None => text.push_str(&format!("\n[{table}]\n")),
                }
            }
            text.push_str(&format!("{key} = {}\n", origin.text()));
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
