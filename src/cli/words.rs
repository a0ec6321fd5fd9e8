//! Words on the command line that several verbs read.

use std::time::Duration;

use crate::config;
use crate::report::OpError;

/// A time with its unit; the longest for none.
pub(super) fn parse_time(text: &str) -> Result<Duration, String> {
    match config::parse_time(text) {
        Ok(Some(time)) => Ok(time),
        Ok(None) => Ok(Duration::MAX),
        Err(e) => Err(e),
    }
}

/// `KEY=VALUE` each.
pub(super) fn key_values(list: &[String]) -> Result<Vec<(String, String)>, OpError> {
    list.iter()
        .map(|item| match item.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(OpError::usage(format!("'{item}' is not KEY=VALUE"))),
        })
        .collect()
}
