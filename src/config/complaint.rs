//! [`Complaint`]: why a text is not the word that it should be.

use std::fmt;

use crate::spec::WordError;

/// What is wrong with a text, and what to write instead if we know.
#[derive(Debug)]
pub(super) struct Complaint {
    pub(super) why: String,
    pub(super) hint: Option<String>,
}

impl Complaint {
    pub(super) fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), hint: None }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same where it has none yet.
    pub(super) fn or_hint(self, hint: impl Into<String>) -> Self {
        if self.hint.is_some() { self } else { self.hint(hint) }
    }

    /// Names one more thing that would have been right.
    pub(super) fn or(mut self, other: &str) -> Self {
        self.why = format!("{} or {other}", self.why);
        self
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl From<WordError> for Complaint {
    fn from(error: WordError) -> Self {
        Self::new(error.to_string())
    }
}
