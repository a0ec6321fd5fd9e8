//! `events`: shows events as they occur.

use serde_json::{Value, json};

use super::output::{Printer, clean, status, written};
use crate::ops::Ops;
use crate::report::OpError;

/// `machinist events`
pub(super) fn events(ops: &Ops, printer: &Printer) -> Result<u8, OpError> {
    let tell = |machine: &str, event: &str, details: Value| {
        written(|out| {
            if printer.json() {
                writeln!(out, "{}", json!({ "machine": machine, "event": event, "details": details }))
            } else if machine.is_empty() {
                writeln!(out, "{event}")
            } else {
                writeln!(out, "{} {event}", clean(machine))
            }
        })
        .is_ok()
    };
    match ops.follow(tell)? {
        Some(()) => Ok(status::OK),
        None => Err(OpError::new("the daemon does not run")
            .hint("`machinist daemon` tells events; see `machinist daemon --help`")),
    }
}
