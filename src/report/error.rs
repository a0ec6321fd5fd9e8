//! Why something was not done.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::sys;

/// What kind of reason it is; decides the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// What was typed makes no sense.
    Usage,
    /// The caller may not.
    NotPermitted,
    /// A definition is wrong or missing.
    BadConfig,
    /// The machine does not run.
    NotRunning,
    /// The machine has no such program.
    NoSuchProgram,
    /// The machine has the program, but cannot execute it.
    CannotExecute,
    /// It did not work.
    Failed,
}

impl Kind {
    /// The exit status of a verb that fails for this reason.
    pub fn exit_status(self) -> u8 {
        match self {
            Self::NotRunning | Self::Failed => 1,
            Self::Usage => 2,
            Self::NotPermitted => 77,
            Self::BadConfig => 78,
            Self::CannotExecute => 126,
            Self::NoSuchProgram => 127,
        }
    }

    /// The kind of a failed call.
    pub fn of_call(error: &sys::Error) -> Self {
        match error.errno {
            sys::Errno::EACCES | sys::Errno::EPERM => Self::NotPermitted,
            _ => Self::Failed,
        }
    }
}

/// Why something was not done: the object `error` of `--json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct OpError {
    /// What kind of reason it is.
    pub kind: Kind,
    /// What could not be done, in one sentence.
    pub message: String,
    /// Why, each the cause of the one before it.
    #[serde(default)]
    pub causes: Vec<String>,
    /// What the user can do about it.
    #[serde(default)]
    pub hints: Vec<String>,
    /// All problems of a definition, with the lines of the files they are in, laid out for a terminal with colours
    /// (`ESC [ … m`). People read this instead of the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rendered: Option<String>,
}

impl OpError {
    /// One that has no better kind than [`Kind::Failed`].
    pub fn new(message: impl Into<String>) -> Self {
        Self::of(Kind::Failed, message)
    }

    /// One of this kind.
    pub fn of(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), causes: Vec::new(), hints: Vec::new(), rendered: None }
    }

    /// What was typed makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::of(Kind::Usage, message)
    }

    /// The machine does not run.
    pub fn not_running(name: &str) -> Self {
        Self::of(Kind::NotRunning, format!("machine '{name}' is not running"))
    }

    /// A call failed while something was done.
    pub fn call(doing: impl Into<String>, error: &sys::Error) -> Self {
        Self::of(Kind::of_call(error), doing).cause(error.to_string())
    }

    /// The same with one more hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// The same with one more cause, of the one before it.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// The same with every cause of another error.
    #[must_use]
    pub fn caused_by(mut self, error: &dyn Error) -> Self {
        let mut next = error.source();
        while let Some(error) = next {
            self.causes.push(error.to_string());
            next = error.source();
        }
        self
    }

    /// What else did not work because of this.
    #[must_use]
    pub fn then(&self, what: &str) -> Self {
        Self { message: format!("{what}: {}", self.message), rendered: None, ..self.clone() }
    }

    /// All of it in one line.
    pub fn line(&self) -> String {
        let texts = std::iter::once(&self.message).chain(&self.causes);
        texts.map(String::as_str).collect::<Vec<_>>().join(": ").replace('\n', " ")
    }

    /// [`rendered`](Self::rendered) without its colours.
    pub fn rendered_plain(&self) -> Option<String> {
        let rendered = self.rendered.as_deref()?;
        let mut parts = rendered.split("\x1b[");
        let first = parts.next().unwrap_or_default().to_owned();
        Some(parts.fold(first, |text, part| text + part.split_once('m').map_or(part, |(_, rest)| rest)))
    }
}

/// The lines of a message for people, without the word in front.
impl fmt::Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rendered_plain() {
            Some(text) => f.write_str(text.strip_prefix("error: ").unwrap_or(&text))?,
            None => f.write_str(&self.message)?,
        }
        self.causes.iter().try_for_each(|cause| write!(f, "\n  cause: {cause}"))?;
        self.hints.iter().try_for_each(|hint| write!(f, "\n  hint: {hint}"))
    }
}

impl Error for OpError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_comes_back_from_json_as_it_was() {
        let error =
            OpError { rendered: Some("\x1b[1merror\x1b[0m: b".into()), ..OpError::new("a").cause("b").hint("c") };
        let text = serde_json::to_string(&error).expect("JSON");
        assert_eq!(serde_json::from_str::<OpError>(&text).expect("back"), error);
        assert_eq!(error.rendered_plain().as_deref(), Some("error: b"));
        assert_eq!(error.to_string(), "b\n  cause: b\n  hint: c");
        assert_eq!(error.line(), "a: b");
    }
}
