//! [`StepError`]: a failed call with the intention behind it and what the user can do.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Error, Result};

/// A step that failed: the intention, the call below it, and what the user can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepError {
    /// What was tried on what, as in "cannot stack 2 layers".
    pub doing: String,
    /// The call that failed; none when we refused by ourselves.
    pub cause: Option<Error>,
    /// What the user can do about it.
    pub hint: Option<String>,
}

impl StepError {
    /// A refusal of ours.
    pub fn refused(doing: impl Into<String>) -> Self {
        Self { doing: doing.into(), cause: None, hint: None }
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.doing)
    }
}

impl std::error::Error for StepError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_ref().map(|e| e as _)
    }
}

/// Adds the intention to a failed call.
pub trait Doing<T> {
    /// Adds what was tried, and on what.
    fn doing(self, what: impl FnOnce() -> String) -> std::result::Result<T, StepError>;
}

impl<T> Doing<T> for Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> std::result::Result<T, StepError> {
        self.map_err(|cause| StepError { doing: what(), cause: Some(cause), hint: None })
    }
}
