//! `org.freedesktop.systemd1`: units that are there, started, stopped and enabled.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use zbus::OwnedObjectPath;

use super::{Manager, Signals, failed};
use crate::bus::connection::open;
use crate::bus::{Bus, BusError, BusWorker, FOR_EVER};

/// How long systemd may take to reload: it runs every generator.
const RELOAD: Duration = Duration::from_secs(90);

/// The state of a unit, as systemd reports it.
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

/// Reloads systemd, which reads its units again and runs its generators.
pub fn reload(bus: &Bus) -> Result<(), BusError> {
    let worker = BusWorker::start(bus.connect()?, |stream, parent| {
        parent.answer(&zbus::block_on(async {
            let bus = open(stream).await?;
            Manager::on(&bus).call("Reload", &()).await.map(drop).map_err(|e| failed("Reload", &e))
        }));
    })?;
    worker.answer(RELOAD)
}

/// What became of a unit that was to be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Started {
    /// There is no such unit.
    Absent,
    /// It is started, or the caller does not wait for it.
    Yes,
    /// It is not started: its job's result, and the unit's state.
    No(String, UnitState),
}

/// Starts a unit, and waits until it is started if `wait` is set.
pub fn start(bus: &Bus, unit: &str, wait: bool) -> Result<Started, BusError> {
    let worker = BusWorker::start(bus.connect()?, |stream, parent| {
        let begin = async |bus: &zbus::Connection| {
            let path = load(bus, unit).await?;
            if text(bus, &path, "Unit", "LoadState").await? == "not-found" {
                return Ok(None);
            }
            let (job, removed) = begin_job(bus, "StartUnit", unit).await?;
            Ok(Some((job, removed, path)))
        };
        zbus::block_on(async {
            let begun = async {
                let bus = open(stream).await?;
                begin(&bus).await.map(|begun| (bus, begun))
            };
            let (bus, (job, mut removed, path)) = match begun.await {
                Ok((bus, Some(begun))) => (bus, begun),
                Ok((_, None)) => return parent.answer(&Ok(Started::Absent)),
                Err(e) => return parent.answer(&Err::<Started, _>(e)),
            };
            // From now on it may take as long as it likes.
            parent.answer(&Ok(Started::Yes));
            if wait {
                let end = async {
                    let result = removed.end_of(&job).await.map_err(|e| failed("StartUnit", &e))?;
                    if result == "done" {
                        return Ok(Started::Yes);
                    }
                    Ok(Started::No(result, state(&bus, unit, &path).await?))
                };
                parent.answer(&end.await);
            }
        });
    })?;
    match worker.answer(RELOAD)? {
        Started::Yes if wait => worker.answer(FOR_EVER),
        other => Ok(other),
    }
}

/// Stops a unit and waits until it has stopped; returns its state then.
pub fn stop(bus: &Bus, unit: &str) -> Result<UnitState, BusError> {
    let worker = BusWorker::start(bus.connect()?, |stream, parent| {
        parent.answer(&zbus::block_on(async {
            let bus = open(stream).await?;
            let path = load(&bus, unit).await?;
            // Else systemd forgets the unit and its last state before we have asked.
            Manager::on(&bus).call_unit(&path, "Ref").await.map_err(|e| failed("Ref", &e))?;
            let (job, mut removed) = begin_job(&bus, "StopUnit", unit).await?;
            match removed.end_of(&job).await.map_err(|e| failed("StopUnit", &e))?.as_str() {
                "done" => state(&bus, unit, &path).await,
                result => {
                    let why = format!("the job's result is {result}");
                    Err(BusError::Failed { call: "StopUnit".into(), why })
                }
            }
        }));
    })?;
    worker.answer(FOR_EVER)
}

/// Has units start with the host or not any more, until it reboots or for good; gives the files that were changed.
pub fn enable(bus: &Bus, units: &[String], on: bool) -> Result<Vec<String>, BusError> {
    let worker = BusWorker::start(bus.connect()?, |stream, parent| {
        parent.answer(&zbus::block_on(async {
            let bus = open(stream).await?;
            type Changes = Vec<(String, String, String)>;
            let systemd = Manager::on(&bus);
            let change = async {
                let changes = if on {
                    let reply = systemd.call("EnableUnitFiles", &(units, false, false)).await?;
                    reply.body().deserialize::<(bool, Changes)>()?.1
                } else {
                    systemd.call("DisableUnitFiles", &(units, false)).await?.body().deserialize::<Changes>()?
                };
                if !changes.is_empty() {
                    systemd.call("Reload", &()).await?;
                }
                Ok(changes)
            };
            let method = if on { "EnableUnitFiles" } else { "DisableUnitFiles" };
            let changes = change.await.map_err(|e| failed(method, &e))?;
            Ok(changes.into_iter().map(|(_, file, _)| file).collect::<Vec<_>>())
        }));
    })?;
    worker.answer(RELOAD)
}

async fn load(bus: &zbus::Connection, unit: &str) -> Result<OwnedObjectPath, BusError> {
    Manager::on(bus).object("LoadUnit", &unit).await.map_err(|e| failed("LoadUnit", &e))
}

/// Begins a job; gives it and the ends of jobs from now on.
async fn begin_job(bus: &zbus::Connection, method: &str, unit: &str) -> Result<(OwnedObjectPath, Signals), BusError> {
    let begin = async {
        let systemd = Manager::on(bus);
        let ends = systemd.jobs(Some(unit)).await?;
        Ok((systemd.object(method, &(unit, "replace")).await?, ends))
    };
    begin.await.map_err(|e| failed(method, &e))
}

async fn state(bus: &zbus::Connection, unit: &str, path: &OwnedObjectPath) -> Result<UnitState, BusError> {
    Ok(UnitState {
        unit: unit.to_owned(),
        active: text(bus, path, "Unit", "ActiveState").await?,
        result: text(bus, path, "Service", "Result").await?,
        text: text(bus, path, "Service", "StatusText").await?,
    })
}

async fn text(
    bus: &zbus::Connection,
    path: &OwnedObjectPath,
    interface: &str,
    property: &str,
) -> Result<String, BusError> {
    Manager::on(bus).property(path.as_str(), interface, property).await.map_err(|e| failed(property, &e))
}
