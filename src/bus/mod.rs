//! Client side of the system bus: exactly the calls that we make of others.
//!
//! A supervisor has one thread and little memory, and a bus has daemons behind it that may be slow, hung or hostile.
//! So a short-lived child makes the calls ([`BusWorker`]), whose answer is awaited no longer than the caller
//! likes; then it is killed. The caller connects and the child speaks: to the bus and its clients the connection is the
//! caller's (`SO_PEERCRED`), which is how machined comes to know the supervisor of a machine.
//!
//! Serves nothing and keeps no connection.

mod connection;
mod error;
pub mod label;
pub mod machine1;
pub mod machinist1;
pub mod systemd1;
mod worker;

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::str::FromStr as _;
use std::time::Duration;

use zbus::address::Transport;
use zbus::address::transport::UnixSocket;

use crate::spec::{Layout, Scope};
use crate::sys::socket;

pub use error::BusError;
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
}
