//! `org.machinist1`: what our own daemon is asked by the command line.
//!
//! Each question opens a connection and closes it again, so that the library needs no thread to look after it.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use futures_core::Stream as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zbus::message::Type as MessageType;
use zbus::wire::{Fd, OwnedVariant, Variant};
use zbus::{Connection, DBusError as _, MatchRule, MessageStream};

use super::{Bus, BusWorker, FOR_EVER};
use crate::report::{Event, Kind, OpError, Request};

const NAME: &str = "org.machinist1";
const PATH: &str = "/org/machinist1";
const INTERFACE: &str = "org.machinist1.Manager";

/// How long the bus may take to report whether the daemon is there. If it hangs, we do without the daemon.
const REACHED: Duration = Duration::from_secs(2);

/// An answer that is no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refused {
    /// There is no bus, or no daemon on it.
    Absent,
    /// It may not be done, or did not work.
    Failed(OpError),
}

impl Refused {
    fn failed(error: impl ToString) -> Self {
        Self::Failed(OpError::new(error.to_string()))
    }
}

/// How a command in a machine is to be run.
#[derive(Debug, Clone, Default)]
pub struct Exec<'a> {
    /// `USER[:GROUP]`, or root.
    pub user: &'a str,
    /// Program and arguments.
    pub command: &'a [String],
    /// Variables as `KEY=VALUE`.
    pub environment: Vec<String>,
    /// Working directory, or the user's home.
    pub directory: &'a str,
    /// After which everything that it started is killed.
    pub timeout: Option<Duration>,
}

/// The daemon, if it is there.
#[derive(Debug)]
pub struct Daemon<'a> {
    bus: &'a Bus,
    /// Whether the bus may start it.
    activate: bool,
}

impl<'a> Daemon<'a> {
    /// The daemon on that bus; `activate` lets the bus start it where it does not run.
    pub fn new(bus: &'a Bus, activate: bool) -> Self {
        Self { bus, activate }
    }

    /// The objects of `machinist list --json`.
    pub fn list(&self, all: bool) -> Result<Value, Refused> {
        let rows: Vec<BTreeMap<String, OwnedVariant>> = self.ask("ListMachines", &all)?;
        Ok(rows.into_iter().map(object).collect())
    }

    /// The object of `machinist status --json`.
    pub fn machine(&self, name: &str) -> Result<Value, Refused> {
        self.ask("GetMachine", &name).map(object)
    }

    /// What these machines use, or all that run if none is named.
    pub fn statistics(&self, names: &[String]) -> Result<Value, Refused> {
        let rows: Vec<BTreeMap<String, OwnedVariant>> = self.ask("GetStatistics", &names)?;
        Ok(rows.into_iter().map(object).collect())
    }

    /// Does something and gives what was told of it.
    pub fn perform(&self, request: &Request) -> Result<Vec<Event>, Refused> {
        events(&self.ask::<_, String>("Perform", &text(request)?)?)
    }

    /// The same; calls `meanwhile` once it is under way.
    ///
    /// A child of ours asks: without a daemon the caller goes on to clone itself, and must have one thread then, whatever
    /// has become of the connection.
    pub fn perform_aside(&self, request: &Request, meanwhile: impl FnOnce()) -> Result<Vec<Event>, Refused> {
        let text = text(request)?;
        let stream = self.bus.connect().map_err(|_| Refused::Absent)?;
        let worker = BusWorker::start(stream, |stream, parent| {
            let answer = self.talk_on(stream, async |bus| question::<_, String>(bus, "Perform", &text).await);
            parent.answer(&Ok(answer));
        });
        meanwhile();
        let answer: Result<String, Refused> =
            worker.and_then(|worker| worker.answer(FOR_EVER)).map_err(Refused::failed)?;
        events(&answer?)
    }

    /// Runs a command on these files (standard input, output and error) and gives its exit status.
    pub fn exec(&self, name: &str, exec: &Exec<'_>, files: [BorrowedFd<'_>; 3]) -> Result<i32, Refused> {
        let timeout = microseconds(exec.timeout);
        let body =
            (name, exec.user, exec.command, &exec.environment, exec.directory, timeout, Vec::from(files.map(Fd::from)));
        self.ask("Exec", &body)
    }

    /// Gives every event to `tell` until that returns false, or the bus goes away.
    pub fn events(&self, mut tell: impl FnMut(&str, &str, Value) -> bool) -> Result<(), Refused> {
        self.talk(async |connection| {
            let rule =
                MatchRule::builder().msg_type(MessageType::Signal).sender(NAME).interface(INTERFACE).member("Event");
            let mut stream = MessageStream::for_match_rule(rule.build().map_err(refused)?, connection, None)
                .await
                .map_err(refused)?;
            while let Some(message) = std::future::poll_fn(|cx| std::pin::Pin::new(&mut stream).poll_next(cx)).await {
                let body = message.map_err(refused)?.body();
                let (machine, event, details): (&str, &str, BTreeMap<String, OwnedVariant>) =
                    body.deserialize().map_err(refused)?;
                if !tell(machine, event, object(details)) {
                    break;
                }
            }
            Ok(())
        })
    }

    fn ask<B, R>(&self, method: &str, body: &B) -> Result<R, Refused>
    where
        B: serde::Serialize + zbus::DynamicType,
        R: serde::de::DeserializeOwned + zbus::Type,
    {
        self.talk(async |connection| question(connection, method, body).await)
    }

    /// Connects, makes sure that the daemon is there, and runs `words` on the connection.
    fn talk<T>(&self, words: impl AsyncFnOnce(&Connection) -> Result<T, Refused>) -> Result<T, Refused> {
        self.talk_on(self.bus.connect().map_err(|_| Refused::Absent)?, words)
    }

    /// The same on this connection.
    fn talk_on<T>(
        &self,
        stream: OwnedFd,
        words: impl AsyncFnOnce(&Connection) -> Result<T, Refused>,
    ) -> Result<T, Refused> {
        let stream = UnixStream::from(stream);
        zbus::block_on(async {
            // A request may take long; finding out whether the daemon is there must not.
            let runtime = zruntime::SharedRuntime::current().map_err(Refused::failed)?;
            let reached = runtime.timeout(REACHED, self.reach(stream)).await;
            let Ok(Ok((connection, there))) = reached else { return Err(Refused::Absent) };
            let result = if there { words(&connection).await } else { Err(Refused::Absent) };
            // An error here no longer matters.
            let _ = connection.close().await;
            result
        })
    }

    /// A connection to the bus, and whether the daemon is there or the bus is to start it.
    async fn reach(&self, stream: UnixStream) -> zbus::Result<(Connection, bool)> {
        let connection = zbus::connection::Builder::unix_stream(stream).build().await?;
        let there = self.activate || self.is_there(&connection).await;
        Ok((connection, there))
    }

    async fn is_there(&self, connection: &Connection) -> bool {
        let bus = "org.freedesktop.DBus";
        let reply = connection.call_method(Some(bus), "/org/freedesktop/DBus", Some(bus), "NameHasOwner", &NAME).await;
        reply.is_ok_and(|reply| reply.body().deserialize().unwrap_or(false))
    }
}

async fn question<B, R>(connection: &Connection, method: &str, body: &B) -> Result<R, Refused>
where
    B: serde::Serialize + zbus::DynamicType,
    R: serde::de::DeserializeOwned + zbus::Type,
{
    let reply = connection.call_method(Some(NAME), PATH, Some(INTERFACE), method, body).await.map_err(refused)?;
    reply.body().deserialize_ignore_signature().map_err(refused)
}

/// The bus' number for a time; the greatest stands for none.
fn microseconds(time: Option<Duration>) -> u64 {
    time.map_or(u64::MAX, |time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

fn text(request: &Request) -> Result<String, Refused> {
    serde_json::to_string(request).map_err(Refused::failed)
}

fn events(text: &str) -> Result<Vec<Event>, Refused> {
    serde_json::from_str(text).map_err(|e| Refused::failed(format!("the daemon gave an invalid reply: {e}")))
}

fn refused(error: zbus::Error) -> Refused {
    let (name, text) = match &error {
        zbus::Error::MethodError(name, text, _) => (name.to_string(), text.clone().unwrap_or_default()),
        zbus::Error::FDO(e) => (e.name().to_string(), e.description().unwrap_or_default().to_owned()),
        other => return Refused::failed(other),
    };
    let kind = match name.strip_prefix("org.freedesktop.DBus.Error.").unwrap_or_default() {
        // A daemon from before that method is as good as none.
        "ServiceUnknown" | "NameHasNoOwner" | "UnknownMethod" => return Refused::Absent,
        "AccessDenied" | "InteractiveAuthorizationRequired" => Kind::NotPermitted,
        "InvalidArgs" => Kind::BadConfig,
        _ => Kind::Failed,
    };
    Refused::Failed(OpError::of(kind, text))
}

fn object(entries: BTreeMap<String, OwnedVariant>) -> Value {
    Value::Object(entries.into_iter().map(|(key, value)| (key, json(&value))).collect())
}

/// A value of the bus as JSON.
fn json(value: &Variant<'_>) -> Value {
    match value {
        Variant::Bool(flag) => (*flag).into(),
        Variant::U64(number) => (*number).into(),
        Variant::I64(number) => (*number).into(),
        Variant::U32(number) => (*number).into(),
        Variant::F64(number) => (*number).into(),
        Variant::Str(text) => text.as_str().into(),
        Variant::Variant(inner) => json(inner),
        Variant::Array(list) => list.iter().map(json).collect(),
        Variant::Dict(entries) => {
            let entry =
                |(key, value): (&Variant<'_>, &Variant<'_>)| Some((json(key).as_str()?.to_owned(), json(value)));
            Value::Object(entries.iter().filter_map(entry).collect::<Map<_, _>>())
        }
        // Nothing of ours has other types.
        _ => Value::Null,
    }
}
