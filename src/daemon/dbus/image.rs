//! `org.freedesktop.machine1.Image`, and the same requests by name through the manager; the pool.

use std::collections::BTreeMap;

use zbus::wire::{OwnedObjectPath, Variant};

use super::call::{Answer, Call, Properties, Refusal, arguments};
use super::paths;
use crate::daemon::core::images::{self, Change};
use crate::daemon::core::state::Daemon;
use crate::image::{CleanMode, Store};

/// What can be asked of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Request {
    Change(Change),
    Hostname,
    MachineId,
    MachineInfo,
    OsRelease,
}

/// The number that stands for what is not known or not limited.
fn or_max(bytes: Option<u64>) -> u64 {
    bytes.unwrap_or(u64::MAX)
}

fn limit(bytes: u64) -> Option<u64> {
    (bytes != u64::MAX).then_some(bytes)
}

pub(crate) fn properties(daemon: &Daemon, name: &str) -> Answer<Properties> {
    let image = images::describe(daemon, name)?;
    Ok(vec![
        ("Name", Variant::from(image.name)),
        ("Path", Variant::from(image.path.display().to_string())),
        ("Type", Variant::from(image.kind.as_str())),
        ("ReadOnly", Variant::from(image.read_only)),
        ("CreationTimestamp", Variant::from(image.created_us.unwrap_or(0))),
        ("ModificationTimestamp", Variant::from(image.modified_us.unwrap_or(0))),
        ("Usage", Variant::from(or_max(image.usage))),
        ("Limit", Variant::from(or_max(image.limit))),
        ("UsageExclusive", Variant::from(or_max(image.usage_exclusive))),
        ("LimitExclusive", Variant::from(or_max(image.limit_exclusive))),
    ])
}

/// The pool's properties.
pub(crate) fn pool(daemon: &Daemon) -> Properties {
    let pool = images::pool(daemon);
    vec![
        ("PoolPath", Variant::from(pool.path.display().to_string())),
        ("PoolUsage", Variant::from(or_max(pool.usage))),
        ("PoolLimit", Variant::from(or_max(pool.limit))),
    ]
}

/// Methods of an image, or of the manager about one: `name` is none then.
pub(crate) async fn call(daemon: &Daemon, call: &Call, member: &str, name: Option<&str>) -> Answer {
    let (name, request) = match member {
        "Rename" => {
            arguments!(call, name, new: String);
            (name, Request::Change(Change::Rename(new)))
        }
        "Clone" => {
            arguments!(call, name, new: String, read_only: bool);
            (name, Request::Change(Change::Clone { new, read_only }))
        }
        "MarkReadOnly" => {
            arguments!(call, name, read_only: bool);
            (name, Request::Change(Change::ReadOnly(read_only)))
        }
        "SetLimit" => {
            arguments!(call, name, bytes: u64);
            (name, Request::Change(Change::Limit(limit(bytes))))
        }
        _ => {
            let request = match member {
                "Remove" => Request::Change(Change::Remove),
                "GetHostname" => Request::Hostname,
                "GetMachineID" => Request::MachineId,
                "GetMachineInfo" => Request::MachineInfo,
                "GetOSRelease" => Request::OsRelease,
                _ => return Err(call.unknown_method()),
            };
            arguments!(call, name);
            (name, request)
        }
    };
    serve(daemon, call, &name, request).await
}

/// Methods of the manager that are about images and the pool.
pub(crate) async fn manager_call(daemon: &Daemon, call: &Call, member: &str) -> Answer {
    match member {
        "ListImages" => list(daemon, call).await,
        "SetPoolLimit" => {
            let limit = limit(call.arguments()?);
            call.reply(&images::limit_pool(daemon, &call.caller(), limit).await?)
        }
        "CleanPool" => clean(daemon, call).await,
        _ => self::call(daemon, call, &member.replacen("Image", "", 1), None).await,
    }
}

async fn list(daemon: &Daemon, call: &Call) -> Answer {
    let images = images::list(daemon).await?;
    let mut rows: Vec<(String, &str, bool, u64, u64, u64, OwnedObjectPath)> = Vec::with_capacity(images.len());
    for image in images {
        let path = paths::image(&image.name)?;
        let (created, modified) = (image.created_us.unwrap_or(0), image.modified_us.unwrap_or(0));
        rows.push((image.name, image.kind.as_str(), image.read_only, created, modified, or_max(image.usage), path));
    }
    call.reply(&rows)
}

async fn clean(daemon: &Daemon, call: &Call) -> Answer {
    let word: String = call.arguments()?;
    let mode = match word.as_str() {
        "hidden" => CleanMode::Hidden,
        "all" => CleanMode::All,
        _ => return Err(Refusal::invalid_args(format!("Unknown mode '{word}'."))),
    };
    let removed = images::clean(daemon, &call.caller(), mode).await?;
    call.reply(&removed.into_iter().map(|(name, bytes)| (name, or_max(bytes))).collect::<Vec<_>>())
}

async fn serve(daemon: &Daemon, call: &Call, name: &str, request: Request) -> Answer {
    let variables = |list: Vec<(String, String)>| list.into_iter().collect::<BTreeMap<_, _>>();
    match request {
        Request::Change(change) => call.reply(&images::change(daemon, &call.caller(), name, change).await?),
        Request::Hostname => call.reply(&images::look_into(daemon, name, Store::hostname).await?.unwrap_or_default()),
        Request::MachineId => {
            let id = images::look_into(daemon, name, Store::machine_id).await?;
            call.reply(&id.map(Vec::from).unwrap_or_default())
        }
        Request::MachineInfo => call.reply(&variables(images::look_into(daemon, name, Store::machine_info).await?)),
        Request::OsRelease => call.reply(&variables(images::look_into(daemon, name, Store::os_release).await?)),
    }
}
