//! `org.freedesktop.LogControl1`: how much the daemon says, and that it says it on standard error.

use zbus::wire::{OwnedVariant, Variant};

use super::call::{Answer, Call, Properties, Refusal};
use crate::daemon::core::state::{Daemon, Level};

pub(crate) fn properties(daemon: &Daemon) -> Properties {
    vec![
        ("LogLevel", Variant::from(daemon.level().as_str())),
        ("LogTarget", Variant::from("console")),
        ("SyslogIdentifier", Variant::from("machinist")),
    ]
}

pub(crate) async fn set(daemon: &Daemon, call: &Call, name: &str, value: &OwnedVariant) -> Answer {
    let word = <&str>::try_from(&**value).map_err(Refusal::invalid_args)?;
    let invalid = || Refusal::invalid_args(format!("Invalid value '{word}' of property '{name}'."));
    match name {
        "LogLevel" => {
            let level = Level::parse(word).ok_or_else(invalid)?;
            daemon.require_root(&call.caller(), "Set").await?;
            daemon.set_level(level);
            call.reply(&())
        }
        // The service manager or the caller decides where standard error goes.
        "LogTarget" => {
            if !["console", "auto", "journal"].contains(&word) {
                return Err(invalid());
            }
            daemon.require_root(&call.caller(), "Set").await?;
            call.reply(&())
        }
        "SyslogIdentifier" => Err(Refusal::read_only(format!("Property '{name}' is not writable."))),
        _ => Err(Refusal::unknown_property(format!("Unknown property or interface '{name}'."))),
    }
}
