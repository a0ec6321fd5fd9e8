//! Calls on a connection, and what error replies mean to us.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use serde::Serialize;
use zbus::DBusError as _;

use super::error::BusError;

/// Errors of a name that is taken.
const EXISTS: [&str; 2] = ["org.freedesktop.machine1.MachineExists", "org.freedesktop.systemd1.UnitExists"];

/// Authenticates on a connection and introduces itself to the bus.
pub(super) async fn open(stream: OwnedFd) -> Result<zbus::Connection, BusError> {
    let opened = zbus::connection::Builder::unix_stream(UnixStream::from(stream)).build().await;
    opened.map_err(|e| failed("Hello", &e))
}

/// Calls a method and gives the reply.
pub(super) async fn call<B>(
    connection: &zbus::Connection,
    (destination, path, interface): (&str, &str, &str),
    method: &str,
    body: &B,
) -> Result<zbus::Message, BusError>
where
    B: Serialize + zbus::DynamicType,
{
    let reply = connection.call_method(Some(destination), path, Some(interface), method, body).await;
    reply.map_err(|e| match failed(method, &e) {
        BusError::NoOwner(_) => BusError::NoOwner(destination.to_owned()),
        other => other,
    })
}

/// What an error of the library means to us.
pub(super) fn failed(call: &str, error: &zbus::Error) -> BusError {
    match error {
        zbus::Error::MethodError(name, text, _) => answered(call, name.as_str(), text.as_deref().unwrap_or_default()),
        zbus::Error::FDO(e) => answered(call, e.name().as_str(), e.description().unwrap_or_default()),
        other => BusError::Failed { call: call.to_owned(), why: other.to_string() },
    }
}

/// What an error reply means to us.
fn answered(call: &str, name: &str, text: &str) -> BusError {
    let call = call.to_owned();
    let why = if text.is_empty() { name.to_owned() } else { text.lines().collect::<Vec<_>>().join(" ") };
    if EXISTS.contains(&name) {
        return BusError::Exists(why);
    }
    match name.strip_prefix("org.freedesktop.DBus.Error.") {
        Some("ServiceUnknown" | "NameHasNoOwner") => BusError::NoOwner(String::new()),
        Some("AccessDenied" | "AuthFailed" | "InteractiveAuthorizationRequired") => BusError::Denied { call, why },
        _ => BusError::Failed { call, why },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_told_apart_by_their_names() {
        let kind = |name: &str| answered("Register", name, "a\nb");
        assert_eq!(kind("org.freedesktop.DBus.Error.NameHasNoOwner"), BusError::NoOwner(String::new()));
        let denied = BusError::Denied { call: "Register".into(), why: "a b".into() };
        assert_eq!(kind("org.freedesktop.DBus.Error.AccessDenied"), denied);
        assert_eq!(kind("org.x.Other"), BusError::Failed { call: "Register".into(), why: "a b".into() });
    }
}
