//! Which object is at a path, and the interfaces that every object has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use zbus::Message;
use zbus::wire::{OwnedVariant, Variant};

use super::call::{Call, Failure, Outcome};
use super::interface::{
    IMAGE, INTROSPECTABLE, Interface, LOG_CONTROL, MACHINE, MANAGER, OWN_MACHINE, OWN_MANAGER, PEER, PROPERTIES,
    SERVICE, STANDARD, SYSTEMD, UNIT, introspection,
};
use super::systemd1_facade::{SYSTEMD_PATH, UNITS};
use super::{image, log_control, machine, machinist1, manager, systemd1_facade};
use crate::daemon::core::definition_image::{self, Defined};
use crate::daemon::core::state::Daemon;

/// Path of the manager of machine1.
pub(crate) const MANAGER_PATH: &str = "/org/freedesktop/machine1";
const MACHINES: &str = "/org/freedesktop/machine1/machine";
const IMAGES: &str = "/org/freedesktop/machine1/image";
/// Path of our own manager.
pub(crate) const OWN_PATH: &str = "/org/machinist1";
const OWN_MACHINES: &str = "/org/machinist1/machine";
const LOG_CONTROL_PATH: &str = "/org/freedesktop/LogControl1";

/// Properties as they are read, with the interface's own order.
pub(crate) type Properties = Vec<(&'static str, Variant<'static>)>;

/// What a path stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Object {
    /// A place on the way to others.
    Node,
    Manager,
    Machine(String),
    Image(String),
    /// An image that is only the definition of a machine.
    Defined(Defined),
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
            Self::Image(_) | Self::Defined(_) => vec![&IMAGE],
            Self::LogControl => vec![&LOG_CONTROL],
            Self::OwnManager => vec![&OWN_MANAGER],
            Self::OwnMachine(_) => vec![&OWN_MACHINE],
            Self::Systemd => vec![&SYSTEMD],
            Self::Unit(_) => vec![&UNIT, &SERVICE],
        }
    }
}

/// The path of a machine's object.
pub(crate) fn machine_path(name: &str) -> String {
    format!("{MACHINES}/{}", escape(name))
}

/// The path of an image's object.
pub(crate) fn image_path(name: &str) -> String {
    format!("{IMAGES}/{}", escape(name))
}

/// A name as a label of a path, as sd-bus writes it (`sd_bus_path_encode(3)`).
pub(crate) fn escape(name: &str) -> String {
    if name.is_empty() {
        return "_".into();
    }
    let mut label = String::with_capacity(name.len());
    for (index, byte) in name.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || index > 0 && byte.is_ascii_digit() {
            label.push(char::from(byte));
        } else {
            label.push_str(&format!("_{byte:02x}"));
        }
    }
    label
}

/// The name behind a label; `None` if no name is written so.
pub(crate) fn unescape(label: &str) -> Option<String> {
    if label == "_" {
        return Some(String::new());
    }
    let mut bytes = Vec::with_capacity(label.len());
    let mut rest = label.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'_' {
            let digits = tail.get(..2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

/// Finds the object of a call.
async fn resolve(daemon: &Arc<Daemon>, call: &Call) -> Outcome<Object> {
    let path = call.path();
    let unknown = || Failure::unknown_object(format!("Unknown object '{path}'."));
    match path.as_str() {
        MANAGER_PATH => return Ok(Object::Manager),
        LOG_CONTROL_PATH => return Ok(Object::LogControl),
        OWN_PATH => return Ok(Object::OwnManager),
        SYSTEMD_PATH if daemon.stand_in.served.load(Ordering::Relaxed) => return Ok(Object::Systemd),
        _ if is_parent(&path) => return Ok(Object::Node),
        _ => {}
    }
    if let Some(label) = path.strip_prefix(MACHINES).and_then(|p| p.strip_prefix('/')) {
        if label == "self" {
            let pid = daemon.process_of(call).await?;
            let name = daemon.registry().of_process(pid).map(|m| m.name.clone());
            return name.map(Object::Machine).ok_or_else(unknown);
        }
        return unescape(label).filter(|name| daemon.knows(name)).map(Object::Machine).ok_or_else(unknown);
    }
    if let Some(label) = path.strip_prefix(IMAGES).and_then(|p| p.strip_prefix('/')) {
        let name = unescape(label).ok_or_else(unknown)?;
        return match image::exists(daemon, &name) {
            true => Ok(Object::Image(name)),
            false => definition_image::find(daemon, &name).map(Object::Defined).ok_or_else(unknown),
        };
    }
    if let Some(label) = path.strip_prefix(OWN_MACHINES).and_then(|p| p.strip_prefix('/')) {
        return unescape(label)
            .filter(|name| machinist1::exists(daemon, name))
            .map(Object::OwnMachine)
            .ok_or_else(unknown);
    }
    if let Some(label) = path.strip_prefix(UNITS).and_then(|p| p.strip_prefix('/'))
        && daemon.stand_in.served.load(Ordering::Relaxed)
    {
        return unescape(label).map(Object::Unit).ok_or_else(unknown);
    }
    Err(unknown())
}

fn is_parent(path: &str) -> bool {
    [MACHINES, IMAGES, LOG_CONTROL_PATH, OWN_MACHINES]
        .iter()
        .any(|p| path == "/" || p.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

/// Answers a call: the standard interfaces here, all else in the module of the object.
pub(crate) async fn dispatch(daemon: &Arc<Daemon>, call: &Call) -> Outcome {
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
            return Err(Failure::unknown_interface(format!("Unknown interface '{interface}'.")));
        }
    }
    let own = own.iter().find(|own| own.method(&member).is_some()).or(own.first());
    check(own.ok_or_else(|| unknown_method(call))?, call)?;
    match object {
        Object::Manager => manager::call(daemon, call, &member).await,
        Object::Machine(name) => machine::call(daemon, call, &member, &name).await,
        Object::Image(name) => image::call(daemon, call, &member, &name).await,
        Object::Defined(machine) => machine.call(call, &member),
        Object::OwnManager => machinist1::manager_call(daemon, call, &member).await,
        Object::OwnMachine(name) => machinist1::machine_call(daemon, call, &member, &name).await,
        Object::Systemd => systemd1_facade::call(daemon, call, &member).await,
        Object::Unit(name) => systemd1_facade::unit_call(daemon, call, &member, &name).await,
        Object::Node | Object::LogControl => Err(unknown_method(call)),
    }
}

/// For a method that the interface has and the module has not: cannot happen, and is not a panic.
pub(crate) fn unknown_method(call: &Call) -> Failure {
    Failure::unknown_method(format!("Unknown method '{}' or interface '{}'.", call.member(), call.interface()))
}

/// Refuses methods that the interface does not have, and arguments of other types.
fn check(interface: &Interface, call: &Call) -> Outcome<()> {
    let member = call.member();
    let method = interface.method(&member).ok_or_else(|| unknown_method(call))?;
    let (given, wanted) = (call.signature(), method.takes());
    if given == wanted {
        return Ok(());
    }
    Err(Failure::invalid_args(format!(
        "Invalid arguments '{given}' to call {}.{member}(), expecting '{wanted}'.",
        interface.name
    )))
}

fn peer(call: &Call, member: &str) -> Outcome {
    if member == "Ping" {
        return call.reply(&());
    }
    let id = crate::sys::read_text(std::path::Path::new("/etc/machine-id"))?;
    call.reply(&id.trim())
}

fn introspect(daemon: &Daemon, object: &Object, path: &str) -> String {
    let children: Vec<String> = match (object, path) {
        (Object::Manager, _) => vec!["image".into(), "machine".into()],
        (Object::Node, MACHINES) => {
            let names = daemon.registry().iter().map(|m| escape(&m.name)).collect::<Vec<_>>();
            std::iter::once(escape(crate::daemon::core::registry::HOST)).chain(names).collect()
        }
        (Object::OwnManager, _) => vec!["machine".into()],
        (Object::Node, OWN_MACHINES) => machinist1::names(daemon).iter().map(|name| escape(name)).collect(),
        (Object::Node, IMAGES) => image::names(daemon).iter().map(|name| escape(name)).collect(),
        (Object::Node, _) => {
            let base = if path == "/" { "" } else { path };
            let mut names: Vec<String> = [MANAGER_PATH, LOG_CONTROL_PATH, OWN_PATH]
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

async fn properties(daemon: &Arc<Daemon>, object: &Object, call: &Call, member: &str) -> Outcome {
    let own = object.interfaces();
    let ours = |wanted: &str| wanted.is_empty() || own.iter().any(|i| i.name == wanted);
    let known = |wanted: &str| STANDARD.iter().any(|i| i.name == wanted);
    let unknown = |wanted: &str| Err(Failure::unknown_interface(format!("Unknown interface '{wanted}'.")));
    match member {
        "GetAll" => {
            let wanted: String = call.arguments()?;
            // Clients of machined ask for all interfaces by an empty name.
            if ours(&wanted) {
                // The others are old names, which are only known to those who ask for them.
                let of = |i: &&&Interface| wanted.is_empty() || i.name == wanted;
                let shown = |name: &str| own.iter().filter(of).any(|i| i.properties.iter().any(|p| p.name == name));
                let all = read(daemon, object).await?;
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
            let all = if ours(&wanted) { read(daemon, object).await? } else { Vec::new() };
            let value = all.into_iter().find(|(n, _)| *n == name);
            let (_, value) =
                value.ok_or_else(|| Failure::unknown_property(format!("Unknown property or interface '{name}'.")))?;
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
                return Err(Failure::read_only(format!("Property '{name}' is not writable.")));
            }
            Err(Failure::unknown_property(format!("Unknown property or interface '{name}'.")))
        }
    }
}

async fn read(daemon: &Arc<Daemon>, object: &Object) -> Outcome<Properties> {
    match object {
        Object::Node => Ok(Vec::new()),
        Object::Manager => Ok(manager::properties(daemon)),
        Object::Machine(name) => machine::properties(daemon, name),
        Object::Image(name) => image::properties(daemon, name).await,
        Object::Defined(machine) => Ok(machine.properties(daemon)),
        Object::LogControl => Ok(log_control::properties(daemon)),
        Object::OwnManager => Ok(machinist1::manager_properties()),
        Object::OwnMachine(name) => machinist1::machine_properties(daemon, name),
        Object::Systemd => Ok(systemd1_facade::properties()),
        Object::Unit(name) => systemd1_facade::unit_properties(daemon, name),
    }
}

/// A signal of the manager about one machine.
pub(crate) fn machine_signal(member: &str, name: &str) -> zbus::Result<Message> {
    let path = zbus::wire::OwnedObjectPath::try_from(machine_path(name))?;
    Message::signal(MANAGER_PATH, MANAGER.name, member).build(&(name, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_stand_for_names_both_ways() {
        for (name, label) in [(".host", "_2ehost"), ("", "_"), ("9a", "_39a"), ("a9-b", "a9_2db"), ("web", "web")] {
            assert_eq!(escape(name), label);
            assert_eq!(unescape(label).as_deref(), Some(name));
        }
        for label in ["_2", "_zz", "_ff", "a_"] {
            assert_eq!(unescape(label), None, "{label}");
        }
    }

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
