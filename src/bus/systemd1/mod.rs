//! `org.freedesktop.systemd1`: the one client of a systemd, the host's or a machine's.
//!
//! [`Manager`] makes the calls over a connection that its caller has: the daemon its own, the others that of a child
//! ([`BusWorker`](super::BusWorker)). The contract is `org.freedesktop.systemd1(5)`.

mod scope;
mod units;

use std::future::poll_fn;
use std::pin::Pin;

use futures_core::Stream as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zbus::message::Type;
use zbus::names::BusName;
use zbus::wire::{OwnedVariant, Variant};
use zbus::{Connection, MatchRule, Message, MessageStream, OwnedObjectPath};

use super::connection;
use super::error::BusError;

pub use scope::{STOP_SIGNAL, Scope, ScopeRequest, start_scope};
pub use units::{Started, UnitState, enable, reload, start, stop};

/// Its name, and the beginning of those of its interfaces.
pub const NAME: &str = "org.freedesktop.systemd1";
/// The object of the manager; units are below it.
pub const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// The limit of tasks for a machine that sets none, the same as systemd-nspawn's.
pub const TASKS_MAX: u64 = 16_384;

/// Why a call did not work, `call` being its method.
fn failed(call: &str, error: &zbus::Error) -> BusError {
    match connection::failed(call, error) {
        BusError::NoOwner(_) => BusError::NoOwner(NAME.to_owned()),
        other => other,
    }
}

/// The manager of a systemd.
#[derive(Debug, Clone, Copy)]
pub struct Manager<'a>(&'a Connection);

/// Signals of a systemd that contain one kind of value.
#[derive(Debug)]
pub struct Signals(MessageStream);

impl<'a> Manager<'a> {
    /// The one on this bus, if there is one.
    pub fn on(bus: &'a Connection) -> Self {
        Self(bus)
    }

    /// Its unique name; `None` if there is no systemd on the bus.
    pub async fn owner(self) -> zbus::Result<Option<String>> {
        let owner = zbus::fdo::DBusProxy::new(self.0).await?.get_name_owner(BusName::try_from(NAME)?).await;
        match owner {
            Ok(owner) => Ok(Some(owner.to_string())),
            Err(zbus::fdo::Error::NameHasNoOwner(_)) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Calls a method of it.
    pub async fn call<B>(self, method: &str, body: &B) -> zbus::Result<Message>
    where
        B: Serialize + zbus::DynamicType,
    {
        self.0.call_method(Some(NAME), PATH, Some(MANAGER), method, body).await
    }

    /// Calls a method of it that begins a job or loads a unit, and gives the object of that.
    pub async fn object<B>(self, method: &str, body: &B) -> zbus::Result<OwnedObjectPath>
    where
        B: Serialize + zbus::DynamicType,
    {
        self.call(method, body).await?.body().deserialize()
    }

    /// Begins a unit of our making; gives its job.
    pub async fn start_transient(
        self,
        unit: &str,
        properties: &[(&str, Variant<'_>)],
    ) -> zbus::Result<OwnedObjectPath> {
        let auxiliary: [(&str, &[(&str, Variant<'_>)]); 0] = [];
        self.object("StartTransientUnit", &(unit, "fail", properties, &auxiliary[..])).await
    }

    /// Calls a method of a unit's own interface.
    pub async fn call_unit(self, path: &OwnedObjectPath, method: &str) -> zbus::Result<()> {
        let interface = format!("{NAME}.Unit");
        self.0.call_method(Some(NAME), path.as_str(), Some(interface.as_str()), method, &()).await.map(drop)
    }

    /// A property of an object, by the last part of its interface's name.
    pub async fn property<T>(self, path: &str, interface: &str, property: &str) -> zbus::Result<T>
    where
        T: TryFrom<OwnedVariant>,
        zbus::Error: From<T::Error>,
    {
        let body = (format!("{NAME}.{interface}"), property);
        let reply = self.0.call_method(Some(NAME), path, Some(PROPERTIES), "Get", &body).await?;
        Ok(T::try_from(reply.body().deserialize::<OwnedVariant>()?)?)
    }

    /// Ends of jobs from now on: their number, object, unit and result. Listen before the job is made, which may be done
    /// before the answer that names it has come.
    pub async fn jobs(self, unit: Option<&str>) -> zbus::Result<Signals> {
        let signals = self.signals("JobRemoved", unit).await?;
        // Refused if this connection has subscribed before.
        let _ = self.call("Subscribe", &()).await;
        Ok(signals)
    }

    /// Signals of the manager, those of one unit alone for `JobRemoved`.
    async fn signals(self, member: &'static str, unit: Option<&str>) -> zbus::Result<Signals> {
        let rule =
            MatchRule::builder().msg_type(Type::Signal).sender(NAME).path(PATH).interface(MANAGER).member(member);
        let rule = match unit {
            Some(unit) => rule.arg(2, unit),
            None => rule,
        };
        Ok(Signals(MessageStream::for_match_rule(rule.build()?, self.0, None).await?))
    }

    /// Changes of a unit's properties from now on.
    pub async fn changes(self, path: &str) -> zbus::Result<Signals> {
        self.call("Subscribe", &()).await?;
        let rule = MatchRule::builder().msg_type(Type::Signal).sender(NAME).path(path).interface(PROPERTIES).build()?;
        Ok(Signals(MessageStream::for_match_rule(rule, self.0, None).await?))
    }
}

impl Signals {
    /// Waits for the next one.
    ///
    /// # Errors
    /// Also if the bus goes away.
    pub async fn next(&mut self) -> zbus::Result<Message> {
        let signal = poll_fn(|context| Pin::new(&mut self.0).poll_next(context)).await;
        signal.unwrap_or_else(|| Err(zbus::Error::Failure("the bus went away".into())))
    }

    /// Waits for the next one and returns its content.
    async fn body<T>(&mut self) -> zbus::Result<T>
    where
        T: DeserializeOwned + zbus::Type,
    {
        self.next().await?.body().deserialize()
    }

    /// Waits for the end of `job` and gives its result, `done` if all is well; for those of [`Manager::jobs`].
    pub async fn end_of(&mut self, job: &OwnedObjectPath) -> zbus::Result<String> {
        loop {
            let (_, ended, _, result) = self.body::<(u32, OwnedObjectPath, String, String)>().await?;
            if ended == *job {
                return Ok(result);
            }
        }
    }
}
