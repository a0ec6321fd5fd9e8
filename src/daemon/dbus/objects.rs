//! Which object is at a path, and the interfaces that every object has.

use std::collections::BTreeMap;
use std::sync::Arc;

use zbus::wire::{OwnedVariant, Variant};

use super::call::{Answer, Call, Properties, Refusal};
use super::face::Face;
use super::interface::{
    IMAGE, INTROSPECTABLE, Interface, LOG_CONTROL, MACHINE, MANAGER, OWN_MACHINE, OWN_MANAGER, PEER, PROPERTIES,
    SERVICE, STANDARD, SYSTEMD, UNIT, introspection,
};
use super::paths::{self, IMAGES, MACHINES, OWN_MACHINES, UNITS};
use super::{image, log_control, machine, machinist1, manager, systemd1_facade};
use crate::bus::label::{escape, unescape};
use crate::daemon::core::error::Failure;
use crate::daemon::core::registry::HOST;
use crate::daemon::core::state::Daemon;
use crate::daemon::core::{images, verbs};

/// What a path stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Object {
    /// A place on the way to others.
    Node,
    Manager,
    Machine(String),
    Image(String),
    LogControl,
    OwnManager,
    OwnMachine(String),
    /// The stand-in for systemd's manager.
    Systemd,
    /// One of its units, by name.
    Unit(String),
}

impl Object {
    /// Its own interfaces; only units have two.
    fn interfaces(&self) -> Vec<&'static Interface> {
        match self {
            Self::Node => Vec::new(),
            Self::Manager => vec![&MANAGER],
            Self::Machine(_) => vec![&MACHINE],
            Self::Image(_) => vec![&IMAGE],
            Self::LogControl => vec![&LOG_CONTROL],
            Self::OwnManager => vec![&OWN_MANAGER],
            Self::OwnMachine(_) => vec![&OWN_MACHINE],
            Self::Systemd => vec![&SYSTEMD],
            Self::Unit(_) => vec![&UNIT, &SERVICE],
        }
    }
}

/// Finds the object of a call.
async fn resolve(daemon: &Arc<Daemon>, call: &Call) -> Answer<Object> {
    let path = call.path();
    let unknown = || Refusal::unknown_object(format!("Unknown object '{path}'."));
    match path.as_str() {
        paths::MANAGER => return Ok(Object::Manager),
        paths::LOG_CONTROL => return Ok(Object::LogControl),
        paths::OWN => return Ok(Object::OwnManager),
        paths::SYSTEMD if daemon.stands_in() => return Ok(Object::Systemd),
        _ if is_parent(&path) => return Ok(Object::Node),
        _ => {}
    }
    if let Some(label) = path.strip_prefix(MACHINES).and_then(|p| p.strip_prefix('/')) {
        if label == "self" {
            let pid = daemon.process_of(&call.caller()).await?;
            let name = daemon.registry().of_process(pid).map(|m| m.name.clone());
            return name.map(Object::Machine).ok_or_else(unknown);
        }
        return unescape(label).filter(|name| daemon.knows(name)).map(Object::Machine).ok_or_else(unknown);
    }
    if let Some(label) = path.strip_prefix(IMAGES).and_then(|p| p.strip_prefix('/')) {
        return unescape(label).filter(|name| images::exists(daemon, name)).map(Object::Image).ok_or_else(unknown);
    }
    if let Some(label) = path.strip_prefix(OWN_MACHINES).and_then(|p| p.strip_prefix('/')) {
        return unescape(label).filter(|name| verbs::exists(daemon, name)).map(Object::OwnMachine).ok_or_else(unknown);
    }
    if let Some(label) = path.strip_prefix(UNITS).and_then(|p| p.strip_prefix('/'))
        && daemon.stands_in()
    {
        return unescape(label).map(Object::Unit).ok_or_else(unknown);
    }
    Err(unknown())
}

fn is_parent(path: &str) -> bool {
    [MACHINES, IMAGES, paths::LOG_CONTROL, OWN_MACHINES]
        .iter()
        .any(|p| path == "/" || p.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

/// Answers a call: the standard interfaces here, all else in the module of the object.
pub(crate) async fn dispatch(face: &Arc<Face>, call: &Call) -> Answer {
    let daemon = &face.daemon;
    let (interface, member) = (call.interface(), call.member());
    if interface == PEER {
        check(&STANDARD[0], call)?;
        return peer(call, &member);
    }
    let object = resolve(daemon, call).await?;
    if interface == INTROSPECTABLE {
        check(&STANDARD[1], call)?;
        return call.reply(&introspect(daemon, &object, &call.path()));
    }
    if interface == PROPERTIES {
        check(&STANDARD[2], call)?;
        return properties(daemon, &object, call, &member).await;
    }
    let mut own = object.interfaces();
    if !interface.is_empty() && !own.is_empty() {
        own.retain(|own| own.name == interface);
        if own.is_empty() {
            return Err(Refusal::unknown_interface(format!("Unknown interface '{interface}'.")));
        }
    }
    let own = own.iter().find(|own| own.method(&member).is_some()).or(own.first());
    check(own.ok_or_else(|| call.unknown_method())?, call)?;
    match object {
        Object::Manager => manager::call(face, call, &member).await,
        Object::Machine(name) => machine::call(daemon, call, &member, Some(&name)).await,
        Object::Image(name) => image::call(daemon, call, &member, Some(&name)).await,
        Object::OwnManager => machinist1::manager_call(daemon, call, &member).await,
        Object::OwnMachine(name) => machinist1::machine_call(daemon, call, &member, Some(&name)).await,
        Object::Systemd => systemd1_facade::call(face, call, &member).await,
        Object::Unit(name) => systemd1_facade::unit_call(face, call, &member, &name).await,
        Object::Node | Object::LogControl => Err(call.unknown_method()),
    }
}

/// Refuses methods that the interface does not have, and arguments of other types.
fn check(interface: &Interface, call: &Call) -> Answer<()> {
    let member = call.member();
    let method = interface.method(&member).ok_or_else(|| call.unknown_method())?;
    let (given, wanted) = (call.signature(), method.takes());
    if given == wanted {
        return Ok(());
    }
    Err(Refusal::invalid_args(format!(
        "Invalid arguments '{given}' to call {}.{member}(), expecting '{wanted}'.",
        interface.name
    )))
}

fn peer(call: &Call, member: &str) -> Answer {
    if member == "Ping" {
        return call.reply(&());
    }
    let id = crate::sys::read_text(std::path::Path::new("/etc/machine-id")).map_err(Failure::from)?;
    call.reply(&id.trim())
}

fn introspect(daemon: &Daemon, object: &Object, path: &str) -> String {
    let children: Vec<String> = match (object, path) {
        (Object::Manager, _) => vec!["image".into(), "machine".into()],
        (Object::Node, MACHINES) => {
            let names = daemon.registry().iter().map(|m| escape(&m.name)).collect::<Vec<_>>();
            std::iter::once(escape(HOST)).chain(names).collect()
        }
        (Object::OwnManager, _) => vec!["machine".into()],
        (Object::Node, OWN_MACHINES) => verbs::names(daemon).iter().map(|name| escape(name)).collect(),
        (Object::Node, IMAGES) => images::names(daemon).iter().map(|name| escape(name)).collect(),
        (Object::Node, _) => {
            let base = if path == "/" { "" } else { path };
            let mut names: Vec<String> = [paths::MANAGER, paths::LOG_CONTROL, paths::OWN]
                .iter()
                .filter_map(|p| p.strip_prefix(base)?.strip_prefix('/')?.split('/').next().map(str::to_owned))
                .collect();
            names.dedup();
            names
        }
        _ => Vec::new(),
    };
    introspection(&object.interfaces(), children.iter().map(String::as_str))
}

async fn properties(daemon: &Arc<Daemon>, object: &Object, call: &Call, member: &str) -> Answer {
    let own = object.interfaces();
    let ours = |wanted: &str| wanted.is_empty() || own.iter().any(|i| i.name == wanted);
    let known = |wanted: &str| STANDARD.iter().any(|i| i.name == wanted);
    let unknown = |wanted: &str| Err(Refusal::unknown_interface(format!("Unknown interface '{wanted}'.")));
    match member {
        "GetAll" => {
            let wanted: String = call.arguments()?;
            // Clients of machined ask for all interfaces by an empty name.
            if ours(&wanted) {
                // The others are old names, which are only known to those who ask for them.
                let of = |i: &&&Interface| wanted.is_empty() || i.name == wanted;
                let shown = |name: &str| own.iter().filter(of).any(|i| i.properties.iter().any(|p| p.name == name));
                let all = read(daemon, object)?;
                let all: BTreeMap<_, _> = all.into_iter().filter(|(name, _)| shown(name)).collect();
                return call.reply(&all);
            }
            if known(&wanted) {
                return call.reply(&BTreeMap::<&str, Variant<'_>>::new());
            }
            unknown(&wanted)
        }
        "Get" => {
            let (wanted, name): (String, String) = call.arguments()?;
            if !ours(&wanted) && !known(&wanted) {
                return unknown(&wanted);
            }
            let all = if ours(&wanted) { read(daemon, object)? } else { Vec::new() };
            let value = all.into_iter().find(|(n, _)| *n == name);
            let (_, value) =
                value.ok_or_else(|| Refusal::unknown_property(format!("Unknown property or interface '{name}'.")))?;
            call.reply(&value)
        }
        _ => {
            let (wanted, name, value): (String, String, OwnedVariant) = call.arguments()?;
            if !ours(&wanted) && !known(&wanted) {
                return unknown(&wanted);
            }
            if *object == Object::LogControl {
                return log_control::set(daemon, call, &name, &value).await;
            }
            if own.iter().any(|i| i.properties.iter().any(|p| p.name == name)) {
                return Err(Refusal::read_only(format!("Property '{name}' is not writable.")));
            }
            Err(Refusal::unknown_property(format!("Unknown property or interface '{name}'.")))
        }
    }
}

fn read(daemon: &Arc<Daemon>, object: &Object) -> Answer<Properties> {
    match object {
        Object::Node => Ok(Vec::new()),
        Object::Manager => Ok(image::pool(daemon)),
        Object::Machine(name) => machine::properties(daemon, name),
        Object::Image(name) => image::properties(daemon, name),
        Object::LogControl => Ok(log_control::properties(daemon)),
        Object::OwnManager => Ok(machinist1::manager_properties()),
        Object::OwnMachine(name) => machinist1::machine_properties(daemon, name),
        Object::Systemd => Ok(systemd1_facade::properties()),
        Object::Unit(name) => systemd1_facade::unit_properties(daemon, name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_of_objects_are_nodes() {
        for path in ["/", "/org", "/org/freedesktop", MACHINES, IMAGES] {
            assert!(is_parent(path), "{path}");
        }
        for path in ["/org/freedesk", "/org/freedesktop/machine1/machine/x", "/other"] {
            assert!(!is_parent(path), "{path}");
        }
    }
}
