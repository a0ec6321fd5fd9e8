//! `org.machinist1`: definitions, life and commands, which machine1 has no words for.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use zbus::wire::{OwnedFd as BusFd, Variant};

use super::call::{Answer, Call, Properties, arguments};
use super::face::to_dictionary;
use crate::daemon::core::error::Failure;
use crate::daemon::core::state::Daemon;
use crate::daemon::core::verbs::{self, Exec};
use crate::running::view::Statistics;

pub(crate) fn manager_properties() -> Properties {
    vec![("Version", Variant::from(env!("CARGO_PKG_VERSION")))]
}

pub(crate) fn machine_properties(daemon: &Daemon, name: &str) -> Answer<Properties> {
    let machine = verbs::find(daemon, name)?;
    let text = |key: &str| Variant::from(machine[key].as_str().unwrap_or_default().to_owned());
    Ok(vec![("Name", text("name")), ("State", text("state")), ("Definition", text("definition"))])
}

/// Methods of the manager.
pub(crate) async fn manager_call(daemon: &Daemon, call: &Call, member: &str) -> Answer {
    let caller = &call.caller();
    match member {
        "ListMachines" => {
            let machines = verbs::list(daemon, caller, call.arguments()?).await?;
            call.reply(&machines.iter().map(to_dictionary).collect::<Vec<_>>())
        }
        "GetStatistics" => {
            let all = verbs::statistics(daemon, caller, &call.arguments::<Vec<String>>()?).await?;
            call.reply(&all.iter().map(dictionary).collect::<Vec<_>>())
        }
        "Perform" => {
            let request = serde_json::from_str(&call.arguments::<String>()?).map_err(Failure::invalid_args)?;
            let events = verbs::perform(daemon, caller, &request).await?;
            call.reply(&serde_json::to_string(&events).map_err(Failure::failed)?)
        }
        "Reload" => call.reply(&verbs::reload(daemon, caller).await?),
        _ => machine_call(daemon, call, member.trim_end_matches("Machine"), None).await,
    }
}

/// Methods of a machine, or of the manager about one: `name` is none then.
pub(crate) async fn machine_call(daemon: &Daemon, call: &Call, member: &str, name: Option<&str>) -> Answer {
    type Text = String;
    let caller = &call.caller();
    match member {
        "Get" => {
            arguments!(call, name);
            call.reply(&to_dictionary(&verbs::get(daemon, caller, &name).await?))
        }
        "GetStatistics" => {
            arguments!(call, name);
            let statistics = verbs::statistics(daemon, caller, &[name]).await?;
            call.reply(&statistics.first().map(dictionary).unwrap_or_default())
        }
        "Start" => {
            arguments!(call, name);
            call.reply(&verbs::start(daemon, caller, &name).await?)
        }
        "Restart" => {
            arguments!(call, name);
            call.reply(&verbs::restart(daemon, caller, &name).await?)
        }
        "Stop" => {
            arguments!(call, name, timeout: u64);
            // The greatest number stands for the machine's own.
            let timeout = (timeout != u64::MAX).then_some(timeout);
            call.reply(&verbs::stop(daemon, caller, &name, timeout).await?)
        }
        "SetLimits" => {
            arguments!(call, name, settings: Vec<Text>, save: bool);
            call.reply(&verbs::set_limits(daemon, caller, &name, settings, save).await?)
        }
        "Exec" => {
            arguments!(
                call, name, user: Text, command: Vec<Text>, environment: Vec<Text>, directory: Text, timeout: u64,
                files: Vec<BusFd>
            );
            let files = files.into_iter().map(OwnedFd::from).collect();
            let exec = Exec { user, command, environment, directory, timeout, files };
            call.reply(&verbs::exec(daemon, caller, &name, exec).await?)
        }
        _ => Err(call.unknown_method()),
    }
}

fn dictionary(statistics: &Statistics) -> BTreeMap<String, Variant<'static>> {
    to_dictionary(&serde_json::to_value(statistics).unwrap_or_default())
}
