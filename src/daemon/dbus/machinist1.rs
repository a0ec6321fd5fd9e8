//! `org.machinist1`: definitions, life and commands, which machine1 has no words for.

use std::os::fd::OwnedFd;

use serde_json::Value;
use zbus::wire::Variant;

use super::call::{Answer, Call, Properties};
use super::face::to_dictionary;
use crate::daemon::core::state::Daemon;
use crate::daemon::core::verbs::{self, Exec};
use crate::running::state::Statistics;

pub(crate) fn manager_properties() -> Properties {
    vec![("Version", Variant::from(env!("CARGO_PKG_VERSION")))]
}

pub(crate) fn machine_properties(daemon: &Daemon, name: &str) -> Answer<Properties> {
    let machine = verbs::find(daemon, name)?;
    let text = |key: &str| Variant::from(machine[key].as_str().unwrap_or_default().to_owned());
    Ok(vec![("Name", text("name")), ("State", text("state")), ("Definition", text("definition"))])
}

/// What can be asked of one machine.
#[derive(Debug)]
enum Request {
    Get,
    Start,
    Restart,
    /// Within so many microseconds; the greatest number stands for the machine's own.
    Stop(u64),
    SetLimits(Vec<String>, bool),
    Exec(Exec),
}

pub(crate) async fn manager_call(daemon: &Daemon, call: &Call, member: &str) -> Answer {
    let caller = &call.caller();
    match member {
        "ListMachines" => {
            let machines = verbs::list(daemon, caller, call.arguments()?).await?;
            call.reply(&machines.iter().map(to_dictionary).collect::<Vec<_>>())
        }
        "GetStatistics" => {
            let all = verbs::statistics(daemon, caller, &call.arguments::<Vec<String>>()?).await?;
            call.reply(&all.iter().map(|of_one| to_dictionary(&json(of_one))).collect::<Vec<_>>())
        }
        // What it needs has been seen to by the caller.
        "StartAlone" => call.reply(&verbs::start(daemon, caller, &call.arguments::<String>()?, true).await?),
        "Reload" => call.reply(&verbs::reload(daemon, caller).await?),
        "Stop" => {
            let (name, timeout): (String, u64) = call.arguments()?;
            serve(daemon, call, &name, Request::Stop(timeout)).await
        }
        "SetLimits" => {
            let (name, settings, save): (String, Vec<String>, bool) = call.arguments()?;
            serve(daemon, call, &name, Request::SetLimits(settings, save)).await
        }
        "Exec" => {
            type Arguments = (String, String, Vec<String>, Vec<String>, String, u64, Vec<zbus::wire::OwnedFd>);
            let (name, user, command, environment, directory, timeout, files): Arguments = call.arguments()?;
            let files = files.into_iter().map(OwnedFd::from).collect();
            let exec = Exec { user, command, environment, directory, timeout, files };
            serve(daemon, call, &name, Request::Exec(exec)).await
        }
        "GetMachine" => serve(daemon, call, &call.arguments::<String>()?, Request::Get).await,
        "Start" => serve(daemon, call, &call.arguments::<String>()?, Request::Start).await,
        "Restart" => serve(daemon, call, &call.arguments::<String>()?, Request::Restart).await,
        _ => Err(call.unknown_method()),
    }
}

pub(crate) async fn machine_call(daemon: &Daemon, call: &Call, member: &str, name: &str) -> Answer {
    let request = match member {
        "Get" => Request::Get,
        "GetStatistics" => {
            let statistics = verbs::statistics(daemon, &call.caller(), &[name.to_owned()]).await?;
            return call.reply(&statistics.first().map(|of_one| to_dictionary(&json(of_one))).unwrap_or_default());
        }
        "Start" => Request::Start,
        "Restart" => Request::Restart,
        "Stop" => Request::Stop(call.arguments()?),
        "SetLimits" => {
            let (settings, save) = call.arguments()?;
            Request::SetLimits(settings, save)
        }
        "Exec" => {
            type Arguments = (String, Vec<String>, Vec<String>, String, u64, Vec<zbus::wire::OwnedFd>);
            let (user, command, environment, directory, timeout, files): Arguments = call.arguments()?;
            let files = files.into_iter().map(OwnedFd::from).collect();
            Request::Exec(Exec { user, command, environment, directory, timeout, files })
        }
        _ => return Err(call.unknown_method()),
    };
    serve(daemon, call, name, request).await
}

async fn serve(daemon: &Daemon, call: &Call, name: &str, request: Request) -> Answer {
    let caller = &call.caller();
    match request {
        Request::Get => call.reply(&to_dictionary(&verbs::get(daemon, caller, name).await?)),
        Request::Start => call.reply(&verbs::start(daemon, caller, name, false).await?),
        Request::Restart => call.reply(&verbs::restart(daemon, caller, name).await?),
        Request::Stop(timeout) => {
            let timeout = (timeout != u64::MAX).then_some(timeout);
            call.reply(&verbs::stop(daemon, caller, name, timeout).await?)
        }
        Request::SetLimits(settings, save) => {
            call.reply(&verbs::set_limits(daemon, caller, name, &settings, save).await?)
        }
        Request::Exec(exec) => call.reply(&verbs::exec(daemon, caller, name, exec).await?),
    }
}

fn json(statistics: &Statistics) -> Value {
    serde_json::to_value(statistics).unwrap_or_default()
}
