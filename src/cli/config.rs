//! `check`, `show` and `schema`: what a machine file says, and what is wrong with it.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use crate::config::{self, ConfigError, Family, Loaded, Origin, OriginSource};
use crate::spec::Layout;

/// Narrowest that a value is cut to, however small the terminal.
const MIN_VALUE: usize = 16;

/// Why `show` shows nothing.
#[derive(Debug)]
pub enum ShowError {
    /// The definition is wrong or missing.
    Config(ConfigError),
    /// The output cannot be written.
    Write(io::Error),
}

impl fmt::Display for ShowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::Write(error) => write!(f, "cannot write the output: {error}"),
        }
    }
}

impl std::error::Error for ShowError {}

impl From<ConfigError> for ShowError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

/// How `show` presents a definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShowStyle {
    /// The effective TOML.
    Toml,
    /// Each key with its value and where it comes from, as a table.
    Origin {
        /// Columns of the terminal; without them values are not cut.
        width: Option<usize>,
        /// Whether defaults are dimmed.
        color: bool,
    },
    /// One object with the file's shape.
    Json,
    /// One array of keys with their values and origins.
    OriginJson,
}

/// Checks these definitions, all there are without any, and gives the number of bad ones.
///
/// One line for each goes to `out`, what is wrong to `errors`.
pub fn check(
    layout: &Layout,
    names_or_files: &[String],
    color: bool,
    out: &mut dyn Write,
    errors: &mut dyn Write,
) -> io::Result<usize> {
    let mut bad = 0;
    let mut names = names_or_files.to_vec();
    if names.is_empty() {
        for (path, error) in config::strays(layout) {
            bad += 1;
            writeln!(errors, "error: '{}' can never be started: {error}\n", path.display())?;
        }
        names.extend(config::list(layout).into_iter().map(|(name, _)| name.as_str().to_owned()));
        if names.is_empty() && bad == 0 {
            writeln!(out, "no machine is defined in {}", definition_dirs(layout))?;
        }
    }
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    // Two files may have one machine's name and are looked at apart; all definitions are one family.
    let groups: Vec<&[String]> = if names_or_files.is_empty() { vec![&names] } else { names.chunks(1).collect() };
    for group in groups {
        let (family, asked) = Family::gather(layout, group);
        let graph = crate::ops::graph(&family);
        for (name, asked) in group.iter().zip(asked) {
            let machine = asked.and_then(|name| graph.cycle(&name).map_or(Ok(name), |cycle| Err(family.cycle(&cycle))));
            let member = machine.as_ref().map(|machine| family.get(machine));
            match member.and_then(|member| member.map(|m| m.loaded().map(|loaded| (m, loaded))).transpose()) {
                Ok(Some((member, loaded))) => {
                    for warning in &member.warnings {
                        writeln!(errors, "warning: {warning}\n")?;
                    }
                    let files: Vec<String> = loaded.files.iter().map(|file| file.display().to_string()).collect();
                    writeln!(out, "ok   {name:width$}  {}", files.join(" + "))?;
                }
                Ok(None) => {}
                Err(error) => {
                    bad += 1;
                    writeln!(errors, "{}\n", error.render(color))?;
                    let problems = match error {
                        ConfigError::Diagnostics(found) if found.len() > 1 => format!("{} problems", found.len()),
                        _ => "1 problem".to_owned(),
                    };
                    writeln!(out, "bad  {name:width$}  {problems}")?;
                }
            }
        }
    }
    Ok(bad)
}

fn definition_dirs(layout: &Layout) -> String {
    layout.definition_dirs().map(|dir| format!("'{}'", dir.display())).collect::<Vec<_>>().join(", ")
}

/// Prints the effective definition.
pub fn show(layout: &Layout, name_or_file: &str, style: ShowStyle, out: &mut dyn Write) -> Result<(), ShowError> {
    let loaded = config::load(layout, name_or_file)?;
    let text = match style {
        ShowStyle::Toml => loaded.to_toml(),
        ShowStyle::Origin { width, color } => origin_table(&loaded, width, color),
        ShowStyle::Json => format!("{:#}\n", loaded.to_json()),
        ShowStyle::OriginJson => {
            format!("{:#}\n", loaded.origins.iter().map(origin_json).collect::<serde_json::Value>())
        }
    };
    out.write_all(text.as_bytes()).map_err(ShowError::Write)
}

/// Prints the JSON schema of a machine file.
pub fn schema(out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{:#}", config::schema())
}

fn origin_json(origin: &Origin) -> serde_json::Value {
    match &origin.source {
        OriginSource::Default => json!({ "key": origin.key, "value": origin.value, "source": "default" }),
        OriginSource::File { path, line } => {
            json!({ "key": origin.key, "value": origin.value, "source": "file", "path": path, "line": line })
        }
    }
}

/// Lays keys, values and origins out in columns; values give way when the terminal is narrow.
fn origin_table(loaded: &Loaded, width: Option<usize>, color: bool) -> String {
    let rows: Vec<[String; 3]> = loaded
        .origins
        .iter()
        .map(|origin| {
            let from = match &origin.source {
                OriginSource::Default => "default".to_owned(),
                OriginSource::File { path, line } => format!("{}:{line}", shown(path)),
            };
            [origin.key.clone(), origin.text(), from]
        })
        .collect();
    let widest = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (keys, values, froms) = (widest(0).max(3), widest(1).max(5), widest(2));
    let room = width.map_or(values, |width| width.saturating_sub(keys + froms + 4).max(MIN_VALUE).min(values));
    let mut text = format!("{:keys$}  {:room$}  FROM\n", "KEY", "VALUE");
    for ([key, value, from], origin) in rows.iter().zip(&loaded.origins) {
        let value = cut(value, room);
        let line = format!("{key:keys$}  {value:room$}  {from}");
        match origin.source {
            OriginSource::Default if color => text.push_str(&format!("\x1b[2m{line}\x1b[0m\n")),
            _ => text.push_str(&format!("{line}\n")),
        }
    }
    text
}

/// At most `room` characters, the last an ellipsis if some are missing.
fn cut(value: &str, room: usize) -> String {
    if value.chars().count() <= room {
        return value.to_owned();
    }
    value.chars().take(room - 1).chain(['…']).collect()
}

fn shown(path: &Path) -> String {
    path.display().to_string().escape_debug().to_string()
}
