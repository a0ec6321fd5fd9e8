//! [`InsideError`]: why something was not done in a machine.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::sys::{self, Errno};

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InsideError {
    #[serde(with = "sys::errno_as_number")]
    errno: Errno,
    /// One line.
    text: String,
}

impl InsideError {
    pub(super) fn new(errno: Errno, text: impl Into<String>) -> Self {
        Self { errno, text: text.into() }
    }

    /// The errno that tells programs.
    pub fn errno(&self) -> Errno {
        self.errno
    }
}

impl From<sys::Error> for InsideError {
    fn from(e: sys::Error) -> Self {
        Self::new(e.errno, e.to_string())
    }
}

impl fmt::Display for InsideError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for InsideError {}

pub(super) type Outcome<T> = Result<T, InsideError>;
