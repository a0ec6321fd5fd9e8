//! `org.freedesktop.systemd1`: units that are there, started, stopped and enabled.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use zbus::wire::{OwnedVariant, Variant};
use zbus::{MessageStream, OwnedObjectPath};

use super::systemd1::{MANAGER, NAME, listen, next};
use super::{Bus, BusError, Errand, FOR_EVER, call, failed, open};

/// How long systemd may take to read its units anew: it runs every generator.
const RELOAD: Duration = Duration::from_secs(90);

/// What a unit says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitState {
    /// Its name.
    pub unit: String,
    /// `ActiveState`
    pub active: String,
    /// `Result` of a service's last run.
    pub result: String,
    /// The last `STATUS=` of its main process.
    pub text: String,
}

/// Has systemd read its units anew, which runs its generators.
pub fn reload(bus: &Bus) -> Result<(), BusError> {
    let errand = Errand::start(bus.connect()?, |stream, parent| {
        parent.tell(&zbus::block_on(async {
            let bus = open(stream).await?;
            call(&bus, MANAGER, "Reload", &()).await.map(drop)
        }));
    })?;
    errand.answer(RELOAD)
}

/// What became of a unit that was to be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Started {
    /// There is no such unit.
    Absent,
    /// It is, or nobody waits for it.
    Yes,
    /// It is not: its job's result, and how it stands with it.
    No(String, UnitState),
}

/// Starts a unit, and waits until it is started if `wait` is set.
pub fn start(bus: &Bus, unit: &str, wait: bool) -> Result<Started, BusError> {
    let errand = Errand::start(bus.connect()?, |stream, parent| {
        let begin = async |bus: &zbus::Connection| {
            let path = load(bus, unit).await?;
            if text(bus, &path, UNIT, "LoadState").await? == "not-found" {
                return Ok(None);
            }
            let removed = listen(bus, "JobRemoved").await?;
            call(bus, MANAGER, "Subscribe", &()).await?;
            Ok(Some((job(bus, "StartUnit", unit).await?, removed, path)))
        };
        zbus::block_on(async {
            let begun = async {
                let bus = open(stream).await?;
                begin(&bus).await.map(|begun| (bus, begun))
            };
            let (bus, (job, mut removed, path)) = match begun.await {
                Ok((bus, Some(begun))) => (bus, begun),
                Ok((_, None)) => return parent.tell(&Ok(Started::Absent)),
                Err(e) => return parent.tell(&Err::<Started, _>(e)),
            };
            // From now on it may take as long as it likes.
            parent.tell(&Ok(Started::Yes));
            if wait {
                let end = async {
                    let result = job_end(&mut removed, &job).await?;
                    if result == "done" {
                        return Ok(Started::Yes);
                    }
                    Ok(Started::No(result, state(&bus, unit, &path).await?))
                };
                parent.tell(&end.await);
            }
        });
    })?;
    match errand.answer(RELOAD)? {
        Started::Yes if wait => errand.answer(FOR_EVER),
        other => Ok(other),
    }
}

async fn job_end(removed: &mut MessageStream, job: &OwnedObjectPath) -> Result<String, BusError> {
    loop {
        let (_, ended, _, result) = next::<(u32, OwnedObjectPath, String, String)>(removed).await?;
        if ended == *job {
            return Ok(result);
        }
    }
}

/// Stops a unit and waits until it has; gives how it stands with it then.
pub fn stop(bus: &Bus, unit: &str) -> Result<UnitState, BusError> {
    let errand = Errand::start(bus.connect()?, |stream, parent| {
        parent.tell(&zbus::block_on(async {
            let bus = open(stream).await?;
            let mut removed = listen(&bus, "JobRemoved").await?;
            call(&bus, MANAGER, "Subscribe", &()).await?;
            let path = load(&bus, unit).await?;
            // Else systemd forgets the unit, and what it said last, before we have asked.
            call(&bus, (NAME, path.as_str(), UNIT), "Ref", &()).await?;
            let job = job(&bus, "StopUnit", unit).await?;
            match job_end(&mut removed, &job).await?.as_str() {
                "done" => state(&bus, unit, &path).await,
                result => {
                    let why = format!("the job's result is {result}");
                    Err(BusError::Failed { call: "StopUnit".into(), why })
                }
            }
        }));
    })?;
    errand.answer(FOR_EVER)
}

/// Has units start with the host or not any more, until it reboots or for good; gives the files that were changed.
pub fn enable(bus: &Bus, units: &[String], on: bool) -> Result<Vec<String>, BusError> {
    let errand = Errand::start(bus.connect()?, |stream, parent| {
        parent.tell(&zbus::block_on(async {
            let bus = open(stream).await?;
            type Changes = Vec<(String, String, String)>;
            let changes: Changes = if on {
                let reply = call(&bus, MANAGER, "EnableUnitFiles", &(units, false, false)).await?;
                let (_, changes): (bool, Changes) =
                    reply.body().deserialize().map_err(|e| failed("EnableUnitFiles", &e))?;
                changes
            } else {
                let reply = call(&bus, MANAGER, "DisableUnitFiles", &(units, false)).await?;
                reply.body().deserialize().map_err(|e| failed("DisableUnitFiles", &e))?
            };
            if !changes.is_empty() {
                call(&bus, MANAGER, "Reload", &()).await?;
            }
            Ok(changes.into_iter().map(|(_, file, _)| file).collect::<Vec<_>>())
        }));
    })?;
    errand.answer(RELOAD)
}

const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";

async fn load(bus: &zbus::Connection, unit: &str) -> Result<OwnedObjectPath, BusError> {
    let reply = call(bus, MANAGER, "LoadUnit", &unit).await?;
    reply.body().deserialize().map_err(|e| failed("LoadUnit", &e))
}

async fn job(bus: &zbus::Connection, method: &str, unit: &str) -> Result<OwnedObjectPath, BusError> {
    let reply = call(bus, MANAGER, method, &(unit, "replace")).await?;
    reply.body().deserialize().map_err(|e| failed(method, &e))
}

async fn state(bus: &zbus::Connection, unit: &str, path: &OwnedObjectPath) -> Result<UnitState, BusError> {
    Ok(UnitState {
        unit: unit.to_owned(),
        active: text(bus, path, UNIT, "ActiveState").await?,
        result: text(bus, path, SERVICE, "Result").await?,
        text: text(bus, path, SERVICE, "StatusText").await?,
    })
}

async fn text(
    bus: &zbus::Connection,
    path: &OwnedObjectPath,
    interface: &str,
    property: &str,
) -> Result<String, BusError> {
    let properties = (NAME, path.as_str(), "org.freedesktop.DBus.Properties");
    let reply = call(bus, properties, "Get", &(interface, property)).await?;
    let value: OwnedVariant = reply.body().deserialize().map_err(|e| failed(property, &e))?;
    match &*value {
        Variant::Str(text) => Ok(text.as_str().to_owned()),
        _ => Err(BusError::Failed { call: property.to_owned(), why: "it is no text".to_owned() }),
    }
}
