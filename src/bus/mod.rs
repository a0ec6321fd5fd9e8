//! Client side of the system bus: exactly the calls that we make of others.
//!
//! A supervisor has one thread and little memory, and a bus has daemons behind it that may be slow, hung or hostile.
//! So a short-lived child makes the calls ([`BusWorker`]), whose answer is awaited no longer than the caller
//! likes; then it is killed. The caller connects and the child speaks: to the bus and its clients the connection is the
//! caller's (`SO_PEERCRED`), which is how machined comes to know the supervisor of a machine.
//!
//! Serves nothing and keeps no connection.

pub mod label;
pub mod machine1;
pub mod machinist1;
pub mod systemd1;
mod worker;

use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zbus::DBusError as _;
use zbus::address::Transport;
use zbus::address::transport::UnixSocket;

use crate::spec::{Layout, Scope};
use crate::sys::{self, socket};

pub use worker::BusWorker;

/// How long a call may take before we go on without its answer. A busy host that has to start a daemon for it needs a few
/// seconds.
pub const LIMIT: Duration = Duration::from_secs(10);

/// The limit for an answer whose time the bus does not limit.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A message bus: the system's or a user's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bus {
    scope: Scope,
    address: Address,
}

/// Where a bus is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Address {
    /// An address as the D-Bus specification has it.
    Text(String),
    /// A socket's path.
    Socket(PathBuf),
}

/// Why a call on the bus did not work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BusError {
    /// There is no bus where one should be.
    Unreachable {
        /// Whose bus.
        scope: Scope,
        /// Where it should be.
        address: String,
        /// The message of the kernel or the bus.
        why: String,
    },
    /// The name has no owner, and no service can be started for it.
    NoOwner(String),
    /// The bus' policy or the owner refuses us.
    Denied {
        /// The method.
        call: String,
        /// The message of the bus or the owner.
        why: String,
    },
    /// No answer within the limit.
    TimedOut(Duration),
    /// There is a machine or a unit of that name.
    Exists(String),
    /// There is, it is alive, and these are its manager and leader.
    Taken {
        /// The name.
        machine: String,
        /// What its manager calls itself.
        service: String,
        /// Its first process.
        leader: u32,
    },
    /// The owner's answer is another error, or it went away without one.
    Failed {
        /// The method.
        call: String,
        /// The message of the bus or the owner.
        why: String,
    },
    /// A system call of ours failed on the way to the bus.
    Call(sys::Error),
}

impl From<sys::Error> for BusError {
    fn from(error: sys::Error) -> Self {
        Self::Call(error)
    }
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { scope: Scope::System, address, why } => {
                write!(f, "no system bus at '{address}': {why}")
            }
            Self::Unreachable { scope: Scope::User, address, why } => write!(f, "no session bus at '{address}': {why}"),
            Self::NoOwner(name) => write!(f, "'{name}' has no owner on the system bus"),
            Self::Denied { call, why } => write!(f, "{call} is denied: {why}"),
            Self::TimedOut(limit) => write!(f, "no answer on the system bus within {} s", limit.as_secs()),
            Self::Exists(machine) => write!(f, "'{machine}' is registered already"),
            Self::Taken { machine, service, leader } => {
                write!(f, "'{machine}' is registered by '{service}' with leader {leader}")
            }
            Self::Failed { call, why } => write!(f, "{call}: {why}"),
            Self::Call(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BusError {}

impl Bus {
    /// The bus of a layout: the value of `DBUS_SYSTEM_BUS_ADDRESS` or `DBUS_SESSION_BUS_ADDRESS`, or the usual socket.
    pub fn of(layout: &Layout) -> Self {
        let variable = match layout.scope() {
            Scope::System => "DBUS_SYSTEM_BUS_ADDRESS",
            Scope::User => "DBUS_SESSION_BUS_ADDRESS",
        };
        let address = match std::env::var(variable) {
            Ok(address) if !address.is_empty() => Address::Text(address),
            _ => Address::Socket(layout.bus().to_owned()),
        };
        Self { scope: layout.scope(), address }
    }

    /// Connects in the name of the calling process; sends nothing yet and never waits.
    pub fn connect(&self) -> Result<OwnedFd, BusError> {
        let mut last = None;
        for address in self.sockets()? {
            match socket::connect_stream(&address) {
                Ok(fd) => return Ok(fd),
                Err(e) => last = Some(self.unreachable(address, e.errno.desc())),
            }
        }
        Err(last.unwrap_or_else(|| self.unusable("it names no socket")))
    }

    /// Paths and `@` with abstract names, in the order in which they are to be tried.
    fn sockets(&self) -> Result<Vec<String>, BusError> {
        let list = match &self.address {
            Address::Socket(path) => return Ok(vec![path.to_string_lossy().into_owned()]),
            Address::Text(list) => list,
        };
        let mut sockets = Vec::new();
        for address in list.split(';').filter(|a| !a.is_empty()) {
            let address = zbus::Address::from_str(address).map_err(|e| self.unusable(&e.to_string()))?;
            if let Transport::Unix(unix) = address.transport() {
                match unix.path() {
                    UnixSocket::File(path) => sockets.push(path.to_string_lossy().into_owned()),
                    UnixSocket::Abstract(name) => {
                        sockets.push(format!("@{}", String::from_utf8_lossy(name.as_bytes())));
                    }
                    _ => {}
                }
            }
        }
        Ok(sockets)
    }

    fn unusable(&self, why: &str) -> BusError {
        let address = match &self.address {
            Address::Text(address) => address.clone(),
            Address::Socket(path) => path.display().to_string(),
        };
        self.unreachable(address, why)
    }

    fn unreachable(&self, address: String, why: &str) -> BusError {
        BusError::Unreachable { scope: self.scope, address, why: why.to_owned() }
    }
}

/// Authenticates on a connection and introduces itself to the bus.
async fn open(stream: OwnedFd) -> Result<zbus::Connection, BusError> {
    let opened = zbus::connection::Builder::unix_stream(UnixStream::from(stream)).build().await;
    opened.map_err(|e| failed("Hello", &e))
}

/// Calls a method and gives the reply.
async fn call<B>(
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

fn failed(call: &str, error: &zbus::Error) -> BusError {
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
    if [machine1::EXISTS, systemd1::EXISTS].contains(&name) {
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

    fn at(address: &str) -> Bus {
        Bus { scope: Scope::System, address: Address::Text(address.into()) }
    }

    #[test]
    fn addresses_are_tried_in_their_order_and_others_than_unix_are_passed_over() {
        let bus = at("tcp:host=a,port=1;unix:path=/a/b;unix:abstract=c,guid=0123456789abcdef0123456789abcdef");
        assert_eq!(bus.sockets(), Ok(vec!["/a/b".to_owned(), "@c".to_owned()]));
        let none = at("tcp:host=a,port=1").connect().map_err(|e| e.to_string());
        assert_eq!(none.err().as_deref(), Some("no system bus at 'tcp:host=a,port=1': it names no socket"));
        assert!(matches!(at("nonsense").connect(), Err(BusError::Unreachable { .. })));
    }

    #[test]
    fn a_bus_that_is_not_there_is_named() {
        let bus = |scope| Bus { scope, address: Address::Socket("/nonexistent/bus".into()) };
        let text = |scope| bus(scope).connect().map_err(|e| e.to_string()).err();
        assert_eq!(
            text(Scope::System).as_deref(),
            Some("no system bus at '/nonexistent/bus': No such file or directory")
        );
        assert_eq!(
            text(Scope::User).as_deref(),
            Some("no session bus at '/nonexistent/bus': No such file or directory")
        );
    }

    #[test]
    fn replies_are_told_apart_by_their_names() {
        let kind = |name: &str| answered("Register", name, "a\nb");
        assert_eq!(kind("org.freedesktop.DBus.Error.NameHasNoOwner"), BusError::NoOwner(String::new()));
        let denied = BusError::Denied { call: "Register".into(), why: "a b".into() };
        assert_eq!(kind("org.freedesktop.DBus.Error.AccessDenied"), denied);
        assert_eq!(kind("org.x.Other"), BusError::Failed { call: "Register".into(), why: "a b".into() });
    }
}
