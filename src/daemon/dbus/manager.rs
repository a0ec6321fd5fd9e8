//! `org.freedesktop.machine1.Manager`.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use zbus::wire::{OwnedVariant, Variant};

use super::call::{Answer, Call, Refusal};
use super::face::Face;
use super::{image, machine, paths};
use crate::daemon::core::error::Failure;
use crate::daemon::core::register::{self, Claim};
use crate::daemon::core::registry::{HOST, Machine};
use crate::daemon::core::scope::UnitProperties;
use crate::daemon::core::state::{Daemon, lock};
use crate::daemon::core::{images, inspect, machines};
use crate::sys::message::Body;
use crate::sys::namespace::Ids;

pub(crate) async fn call(face: &Face, call: &Call, member: &str) -> Answer {
    let daemon = &face.daemon;
    match member {
        "GetMachine" => {
            let name: String = call.arguments()?;
            if !daemon.knows(&name) {
                return Err(Failure::no_such_machine(&name).into());
            }
            call.reply(&paths::machine(&name)?)
        }
        "GetMachineByPID" => {
            let machine = machines::of_process(daemon, &call.caller(), call.arguments()?).await?;
            call.reply(&paths::machine(&machine.name)?)
        }
        "ListMachines" => list(face, call),
        "GetImage" => {
            let name: String = call.arguments()?;
            if !images::exists(daemon, &name) {
                return Err(Failure::no_such_image(&name).into());
            }
            call.reply(&paths::image(&name)?)
        }
        "CreateMachine"
        | "CreateMachineWithNetwork"
        | "CreateMachineEx"
        | "RegisterMachine"
        | "RegisterMachineWithNetwork"
        | "RegisterMachineEx" => {
            let (claim, scope) = claim(call, member)?;
            let machine = register::register(daemon, &call.caller(), claim, scope.map(UnitProperties)).await?;
            call.reply(&paths::machine(&machine.name)?)
        }
        "UnregisterMachine" => {
            call.reply(&register::unregister(daemon, &call.caller(), &call.arguments::<String>()?).await?)
        }
        "MapFromMachineUser" => id_on_host(daemon, call, Ids::Users),
        "MapFromMachineGroup" => id_on_host(daemon, call, Ids::Groups),
        "MapToMachineUser" => owner_of_id(daemon, call, Ids::Users),
        "MapToMachineGroup" => owner_of_id(daemon, call, Ids::Groups),
        _ if member.contains("Image") || member.contains("Pool") => image::manager_call(daemon, call, member).await,
        _ => machine::call(daemon, call, &member.replacen("Machine", "", 1), None).await,
    }
}

fn list(face: &Face, call: &Call) -> Answer {
    let registry = face.daemon.registry();
    let mut listed = lock(&face.listed);
    if let Some((changes, body)) = &*listed
        && *changes == registry.changes()
    {
        return call.reply_with(body);
    }
    let host = (HOST.to_owned(), "host", String::new(), paths::machine(HOST)?);
    let row = |m: &Arc<Machine>| Ok((m.name.clone(), m.class.as_str(), m.service.clone(), paths::machine(&m.name)?));
    let rows: Answer<Vec<_>> = std::iter::once(Ok(host)).chain(registry.iter().map(row)).collect();
    let reply = call.reply(&rows?)?;
    *listed = Body::of(&reply).map(|body| (registry.changes(), body));
    Ok(reply)
}

fn id_on_host(daemon: &Daemon, call: &Call, ids: Ids) -> Answer {
    let (name, id): (String, u32) = call.arguments()?;
    call.reply(&inspect::id_on_host(daemon, &name, ids, id)?)
}

fn owner_of_id(daemon: &Daemon, call: &Call, ids: Ids) -> Answer {
    let (machine, id) = inspect::owner_of_id(daemon, ids, call.arguments()?)?;
    call.reply(&(&machine.name, paths::machine(&machine.name)?, id))
}

type Properties = Vec<(String, OwnedVariant)>;

/// What is said of a machine, and of the scope that is to be made for it.
fn claim(call: &Call, member: &str) -> Answer<(Claim, Option<Properties>)> {
    type Base = (String, Vec<u8>, String, String, u32, String);
    let base = |(name, id, service, class, leader, root): Base| Claim {
        name,
        id,
        service,
        class,
        leader,
        root,
        ..Claim::default()
    };
    Ok(match member {
        "RegisterMachine" => (base(call.arguments()?), None),
        "RegisterMachineWithNetwork" => {
            let (a, b, c, d, e, f, interfaces) =
                call.arguments::<(String, Vec<u8>, String, String, u32, String, Vec<i32>)>()?;
            (Claim { interfaces, ..base((a, b, c, d, e, f)) }, None)
        }
        "CreateMachine" => {
            let (a, b, c, d, e, f, scope) =
                call.arguments::<(String, Vec<u8>, String, String, u32, String, Properties)>()?;
            (base((a, b, c, d, e, f)), Some(scope))
        }
        "CreateMachineWithNetwork" => {
            let (a, b, c, d, e, f, interfaces, scope) =
                call.arguments::<(String, Vec<u8>, String, String, u32, String, Vec<i32>, Properties)>()?;
            (Claim { interfaces, ..base((a, b, c, d, e, f)) }, Some(scope))
        }
        "RegisterMachineEx" => {
            let (name, properties) = call.arguments::<(String, Properties)>()?;
            (extended(name, properties)?, None)
        }
        _ => {
            let (name, properties, scope) = call.arguments::<(String, Properties, Properties)>()?;
            (extended(name, properties)?, Some(scope))
        }
    })
}

/// The same of the methods that take properties.
fn extended(name: String, properties: Properties) -> Answer<Claim> {
    let mut claim = Claim { name, ..Claim::default() };
    let invalid = |e: zbus::Error| Refusal::invalid_args(e);
    for (key, value) in properties {
        let value: Variant<'_> = value.into();
        match key.as_str() {
            "Id" => claim.id = value.try_into().map_err(invalid)?,
            "Service" => claim.service = value.try_into().map_err(invalid)?,
            "Class" => claim.class = value.try_into().map_err(invalid)?,
            "LeaderPID" => claim.leader = value.try_into().map_err(invalid)?,
            "LeaderPIDFDID" => claim.leader_id = Some(value.try_into().map_err(invalid)?),
            "LeaderPIDFD" => {
                let Variant::Fd(fd) = value else {
                    return Err(Refusal::invalid_args("LeaderPIDFD is no descriptor"));
                };
                claim.leader_fd = Some(OwnedFd::try_from(fd).map_err(invalid)?);
            }
            "RootDirectory" => claim.root = value.try_into().map_err(invalid)?,
            "NetworkInterfaces" => claim.interfaces = value.try_into().map_err(invalid)?,
            "VSockCID" => claim.vsock_cid = Some(value.try_into().map_err(invalid)?),
            "SSHAddress" => claim.ssh_address = value.try_into().map_err(invalid)?,
            "SSHPrivateKeyPath" => claim.ssh_key = value.try_into().map_err(invalid)?,
            _ => return Err(Refusal::invalid_args(format!("Unknown property '{key}'"))),
        }
    }
    if (claim.leader == 0) != claim.leader_id.is_none() {
        return Err(Refusal::invalid_args("LeaderPID and LeaderPIDFDID go together"));
    }
    Ok(claim)
}
