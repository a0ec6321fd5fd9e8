//! Understands machine files: finds them, lays them over each other, checks them and gives a
//! [`MachineSpec`].
//!
//! A definition is `NAME.toml` in the first of [`Layout::config_dirs`] that has one, or a file named by its path.
//! It is laid over the profiles it `extends`, and its drop-ins (`NAME.toml.d/*.toml`) over it. Tables merge key by
//! key, arrays of tables add up (the same target replaces), everything else replaces.
//!
//! Every problem of every file is found before anything is reported, each with its line. Nothing here looks at
//! the trees, directories and images a definition names, and nothing is ever written.

mod boot;
mod dependencies;
mod device;
mod diagnostic;
mod file;
mod ids;
mod merge;
mod overrides;
mod quantities;
mod reader;
mod resources;
mod rlimits;
mod show;
mod validate;
mod values;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;

pub use dependencies::{Family, Member};
pub use diagnostic::Diagnostic;
pub use overrides::{Change, drop_in, read_drop_in};

use crate::spec::{Layout, MachineName, MachineSpec, Unmet, WordError};
use diagnostic::{Place, Problems};

/// A definition, understood.
#[derive(Debug)]
pub struct Loaded {
    /// What the machine is asked to be.
    pub spec: MachineSpec,
    /// The definition itself.
    pub definition: PathBuf,
    /// Every file that had a say, weakest first.
    pub files: Vec<PathBuf>,
    /// Every key with its effective value and who set it, in the order of the file format.
    pub origins: Vec<Origin>,
    /// Every machine it names.
    links: Vec<dependencies::Link>,
    /// The files' texts and the places of the keys in them, for problems that only show elsewhere.
    texts: Texts,
}

/// The texts of a definition's files.
#[derive(Debug)]
struct Texts {
    problems: Problems,
    places: Vec<(String, Place)>,
    main: usize,
}

impl Texts {
    /// Says of each limit that this host cannot enforce where it was set.
    fn refuse(mut self, unmet: &[Unmet]) -> ConfigError {
        for limit in unmet {
            let message = limit.to_string();
            let place = self.places.iter().find(|(known, _)| *known == limit.key).map(|(_, place)| *place);
            let diagnostic = match place {
                Some(place) => self.problems.report(place, message),
                None => self.problems.report_file(self.main, message),
            };
            if let Some(hint) = &limit.hint {
                diagnostic.hint(hint);
            }
        }
        ConfigError::Diagnostics(self.problems.into_diagnostics())
    }
}

impl Loaded {
    /// The same for a whole definition, whose limits these are.
    pub fn refuse(self, unmet: &[Unmet]) -> ConfigError {
        self.texts.refuse(unmet)
    }
}

/// The effective value of one key and where it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Origin {
    /// Dotted, with an index for arrays of tables: `bind[0].target`.
    pub key: String,
    /// As the file has it; null for a key that is unset and has no default.
    pub value: serde_json::Value,
    /// Who set it.
    pub source: OriginSource,
}

/// Who set a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginSource {
    /// Nobody.
    Default,
    /// This line of this file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
}

/// Why a definition gives no machine.
#[derive(Debug)]
pub enum ConfigError {
    /// The name is none.
    Name(WordError),
    /// No directory has a definition of that name.
    NotFound {
        /// The name.
        name: String,
        /// The files looked for, strongest first.
        looked: Vec<PathBuf>,
        /// A name that exists and was perhaps meant.
        nearest: Option<String>,
    },
    /// A file exists and cannot be read.
    Io {
        /// What was tried: `open`, `read` or `list`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
    /// A file can be read and is no text we accept.
    Unfit {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        why: String,
    },
    /// The files are wrong; never empty.
    Diagnostics(Vec<Diagnostic>),
}

impl ConfigError {
    /// The whole error for a terminal, with the lines it is about; several lines, no line end.
    pub fn render(&self, color: bool) -> String {
        match self {
            Self::Diagnostics(diagnostics) => diagnostic::render_all(diagnostics, color),
            Self::NotFound { name, looked, nearest } => {
                let notes: Vec<String> = looked.iter().map(|path| format!("looked for '{}'", path.display())).collect();
                let hint = nearest.as_ref().map(|near| format!("did you mean '{near}'?"));
                diagnostic::render_plain(&format!("there is no machine '{name}'"), &notes, hint.as_deref(), color)
            }
            _ => diagnostic::render_plain(&self.to_string(), &[], None, color),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(error) => error.fmt(f),
            Self::NotFound { name, looked, .. } => {
                let looked: Vec<String> = looked.iter().map(|path| format!("'{}'", path.display())).collect();
                write!(f, "there is no machine '{name}': looked for {}", looked.join(", "))
            }
            Self::Io { action, path, error } => {
                write!(f, "cannot {action} '{}': {}", path.display(), errno_text(error))
            }
            Self::Unfit { path, why } => write!(f, "cannot use '{}' as a machine file: {why}", path.display()),
            Self::Diagnostics(diagnostics) => f.write_str(&diagnostic::render_all(diagnostics, false)),
        }
    }
}

impl std::error::Error for ConfigError {}

/// The system's words for an error, without the number that the standard library adds.
fn errno_text(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// Reads a size as files and the command line have it, "512M" for instance; gives bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    quantities::Size::parse(text).map(|size| size.0).map_err(|complaint| complaint.why())
}

/// Reads a duration as machine files have it, for the command line; `None` is for ever.
pub fn parse_time(text: &str) -> Result<Option<std::time::Duration>, String> {
    quantities::Timeout::parse(text).map(|t| t.0).map_err(|complaint| complaint.why())
}

/// Finds, reads and checks one definition, by name or by file.
pub fn load(layout: &Layout, name_or_file: &str) -> Result<Loaded, ConfigError> {
    load_with(layout, name_or_file, None)
}

/// The same with another text in one of its drop-ins, which need not exist.
pub fn load_with(
    layout: &Layout,
    name_or_file: &str,
    instead: Option<(&std::path::Path, &str)>,
) -> Result<Loaded, ConfigError> {
    let layered = merge::read(layout, name_or_file, instead)?;
    let merge::Layered { name, mut file, main, order, is_toml, mut problems } = layered;
    validate::settle(&name, &mut file);
    let spec = if is_toml { validate::validate(name, &file, main, &mut problems) } else { None };
    let Some(spec) = spec.filter(|_| problems.is_empty()) else {
        return Err(ConfigError::Diagnostics(problems.into_diagnostics()));
    };
    let links = dependencies::links(&file.boot.value, &problems);
    let entries = file.entries();
    let places = entries.iter().filter_map(|entry| Some((entry.key.clone(), entry.place?))).collect();
    let origins = entries.into_iter().map(|entry| Origin {
        key: entry.key,
        value: entry.value,
        source: match entry.place {
            None => OriginSource::Default,
            Some(place) => {
                let source = problems.file(place.file);
                OriginSource::File { path: source.path.clone(), line: source.line(place.start) }
            }
        },
    });
    let origins = origins.collect();
    let files = order.iter().map(|index| problems.file(*index).path.clone()).collect();
    let definition = problems.file(main).path.clone();
    Ok(Loaded { spec, origins, files, definition, links, texts: Texts { problems, places, main } })
}

/// Every definition there is, by name; of those with the same name the strongest.
///
/// Directories that cannot be read and files whose names are no machine names are passed over.
pub fn list(layout: &Layout) -> Vec<(MachineName, PathBuf)> {
    let mut found = BTreeMap::new();
    for (name, path) in candidates(layout) {
        if let Ok(name) = name {
            found.entry(name).or_insert(path);
        }
    }
    found.into_iter().collect()
}

/// The file that defines a machine; it may be wrong.
pub fn definition(layout: &Layout, name: &MachineName) -> Option<PathBuf> {
    let files = layout.config_dirs().map(|dir| dir.join("machines").join(format!("{name}.toml")));
    files.into_iter().find(|file| file.exists())
}

/// Files that look like definitions but can never be one, because their names are no machine names.
pub fn strays(layout: &Layout) -> Vec<(PathBuf, WordError)> {
    candidates(layout).into_iter().filter_map(|(name, path)| Some((path, name.err()?))).collect()
}

/// Every `*.toml` of the definition directories, strongest directory first.
fn candidates(layout: &Layout) -> Vec<(Result<MachineName, WordError>, PathBuf)> {
    let dirs = layout.config_dirs().map(|dir| dir.join("machines"));
    let entries = dirs.iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten();
    let files = entries.filter(|entry| merge::is_definition(&entry.file_name()));
    files
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (MachineName::parse(name.strip_suffix(".toml").unwrap_or(&name)), entry.path())
        })
        .collect()
}

/// The JSON schema of a machine file.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(file::MachineFile).to_value()
}
