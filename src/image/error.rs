//! [`ImageError`]: why something could not be done with an image.

use std::fmt;

use crate::sys;

/// Why something could not be done with an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageError {
    /// There is no image of this name.
    NoSuchImage(String),
    /// There already is an image of this name.
    Exists(String),
    /// This can be no image's name.
    InvalidName {
        /// What was given.
        name: String,
        /// The rule that it breaks, as the end of a sentence.
        rule: &'static str,
    },
    /// A machine or another program uses the image; `EBUSY` to other programs.
    InUse {
        /// The image, or the name that one is being made with.
        name: String,
        /// The process that holds the lock, when it can be seen.
        by: Option<String>,
    },
    /// The image is the host or part of its system; `EROFS` to other programs.
    ReadOnly(String),
    /// Not with this image, or not on this file system.
    NotSupported {
        /// What was tried.
        doing: String,
        /// Why it cannot be.
        why: String,
        /// What the user can do about it.
        hint: Option<String>,
    },
    /// The caller wanted no more of it.
    Cancelled,
    /// A call failed.
    Call {
        /// What was tried.
        doing: String,
        /// The call.
        cause: sys::Error,
    },
}

impl ImageError {
    pub(super) fn call(doing: impl Into<String>, cause: sys::Error) -> Self {
        Self::Call { doing: doing.into(), cause }
    }

    pub(super) fn not_supported(doing: impl Into<String>, why: impl Into<String>) -> Self {
        Self::NotSupported { doing: doing.into(), why: why.into(), hint: None }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::NotSupported { hint, .. } => hint.as_deref(),
            _ => None,
        }
    }
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchImage(name) => write!(f, "no image '{}' known", shown(name)),
            Self::Exists(name) => write!(f, "image '{}' already exists", shown(name)),
            Self::InvalidName { name, rule } => write!(f, "image name '{}' {rule}", shown(name)),
            Self::InUse { name, by } => {
                write!(f, "image '{}' is in use", shown(name))?;
                by.iter().try_for_each(|by| write!(f, " by {by}"))
            }
            Self::ReadOnly(name) => write!(f, "image '{}' is the host's own system", shown(name)),
            Self::NotSupported { doing, why, .. } => write!(f, "{doing}: {why}"),
            Self::Cancelled => f.write_str("interrupted"),
            Self::Call { doing, .. } => f.write_str(doing),
        }
    }
}

impl std::error::Error for ImageError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Call { cause, .. } => Some(cause),
            _ => None,
        }
    }
}

/// A name as it can be printed, whatever was given.
fn shown(name: &str) -> String {
    name.chars().take(80).flat_map(char::escape_debug).collect()
}
