//! `org.freedesktop.LogControl1`: how much the daemon says, and that it says it on standard error.

use std::sync::Arc;

use zbus::wire::{OwnedVariant, Variant};

use super::Daemon;
use super::call::{Call, Failure, Outcome};
use super::objects::Properties;

/// How much is said; the words of `syslog(3)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Emerg,
    Alert,
    Crit,
    Err,
    Warning,
    Notice,
    Info,
    Debug,
}

const LEVELS: [(&str, Level); 8] = [
    ("emerg", Level::Emerg),
    ("alert", Level::Alert),
    ("crit", Level::Crit),
    ("err", Level::Err),
    ("warning", Level::Warning),
    ("notice", Level::Notice),
    ("info", Level::Info),
    ("debug", Level::Debug),
];

impl Level {
    pub(super) fn parse(word: &str) -> Option<Self> {
        LEVELS.iter().find(|(name, _)| *name == word).map(|(_, level)| *level)
    }

    /// The level of that priority of `syslog(3)`.
    pub(super) fn from_number(number: usize) -> Option<Self> {
        LEVELS.get(number).map(|(_, level)| *level)
    }

    pub(super) fn as_str(self) -> &'static str {
        LEVELS.iter().find(|(_, level)| *level == self).map_or("info", |(name, _)| name)
    }
}

pub(super) fn properties(daemon: &Daemon) -> Properties {
    vec![
        ("LogLevel", Variant::from(daemon.level().as_str())),
        ("LogTarget", Variant::from("console")),
        ("SyslogIdentifier", Variant::from("machinist")),
    ]
}

pub(super) async fn set(daemon: &Arc<Daemon>, call: &Call, name: &str, value: &OwnedVariant) -> Outcome {
    let word = <&str>::try_from(&**value).map_err(Failure::invalid_args)?;
    let invalid = || Failure::invalid_args(format!("Invalid value '{word}' of property '{name}'."));
    match name {
        "LogLevel" => {
            let level = Level::parse(word).ok_or_else(invalid)?;
            daemon.require_root(call).await?;
            daemon.set_level(level);
            call.reply(&())
        }
        // The service manager or the caller decides where standard error goes.
        "LogTarget" => {
            if !["console", "auto", "journal"].contains(&word) {
                return Err(invalid());
            }
            daemon.require_root(call).await?;
            call.reply(&())
        }
        "SyslogIdentifier" => Err(Failure::read_only(format!("Property '{name}' is not writable."))),
        _ => Err(Failure::unknown_property(format!("Unknown property or interface '{name}'."))),
    }
}
