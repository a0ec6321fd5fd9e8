//! [`ConfigError`]: why there is no machine, with the lines that cause it.

use std::path::PathBuf;
use std::{fmt, io};

use super::diagnostic::{self, Diagnostic, Place, Problems};
use crate::report::{Kind, OpError};
use crate::spec::{Unmet, WordError};

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

impl From<&ConfigError> for OpError {
    fn from(error: &ConfigError) -> Self {
        let kind = match error {
            // What was typed is no name: nothing was looked for.
            ConfigError::Name(_) => Kind::Usage,
            _ => Kind::BadConfig,
        };
        let text = error.render(false);
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        Self { rendered: Some(error.render(true)), ..Self::of(kind, message) }
    }
}

impl From<ConfigError> for OpError {
    fn from(error: ConfigError) -> Self {
        (&error).into()
    }
}

/// The system's words for an error, without the number that the standard library adds.
fn errno_text(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// The texts of a definition's files.
#[derive(Debug)]
pub(super) struct Texts {
    pub(super) problems: Problems,
    pub(super) places: Vec<(String, Place)>,
    pub(super) main: usize,
}

impl Texts {
    /// Reports where each limit that this host cannot enforce was set.
    pub(super) fn refuse(mut self, unmet: &[Unmet]) -> ConfigError {
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
