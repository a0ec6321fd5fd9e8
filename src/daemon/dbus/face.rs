//! What the handlers of calls share beside the core.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use zbus::wire::Variant;
use zbus::{Connection, Message};

use super::interface::{MANAGER, OWN_MANAGER};
use super::paths;
use crate::daemon::core::state::{Announce, Daemon, News};
use crate::sys::message::Body;

/// The core, the connection that its calls come by, and answers that are kept.
pub(crate) struct Face {
    pub(crate) daemon: Arc<Daemon>,
    pub(crate) connection: Connection,
    /// The answer of `ListMachines` as long as no machine comes or goes, with the count of that. All who watch machines
    /// ask for it again and again, and making it for a thousand takes longer than sending it.
    pub(crate) listed: Mutex<Option<(u64, Body)>>,
}

impl Face {
    pub(crate) fn new(daemon: Arc<Daemon>, connection: Connection) -> Self {
        Self { daemon, connection, listed: Mutex::default() }
    }

    /// Sends a message; a bus that is gone ends the daemon elsewhere.
    pub(crate) async fn send(&self, message: zbus::Result<Message>) {
        send(&self.connection, message).await;
    }
}

async fn send(connection: &Connection, message: zbus::Result<Message>) {
    if let Ok(message) = message {
        let _ = connection.send(&message).await;
    }
}

/// Sends the core's news as signals.
pub(crate) fn announcer(connection: Connection) -> Announce {
    Box::new(move |news| {
        let connection = connection.clone();
        Box::pin(async move { send(&connection, signal(&news)).await })
    })
}

fn signal(news: &News) -> zbus::Result<Message> {
    let (member, name) = match news {
        News::Added(name) => ("MachineNew", name),
        News::Removed(name) => ("MachineRemoved", name),
        News::Event { machine, event, details } => {
            let body = (machine, event, to_dictionary(details));
            return Message::signal(paths::OWN, OWN_MANAGER.name, "Event").build(&body);
        }
    };
    let path = paths::machine(name).map_err(|refusal| zbus::Error::Failure(refusal.to_string()))?;
    Message::signal(paths::MANAGER, MANAGER.name, member).build(&(name, path))
}

/// JSON as the bus has it; what is null is left out.
fn to_variant(value: &Value) -> Option<Variant<'static>> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(flag) => Variant::from(*flag),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => Variant::from(number),
            (None, Some(number)) => Variant::from(number),
            (None, None) => Variant::from(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => Variant::from(text.clone()),
        Value::Array(list) => Variant::from(list.iter().filter_map(to_variant).collect::<Vec<_>>()),
        Value::Object(_) => Variant::from(to_dictionary(value)),
    })
}

/// An object of JSON as the bus has it.
pub(crate) fn to_dictionary(value: &Value) -> BTreeMap<String, Variant<'static>> {
    let entries = value.as_object().into_iter().flatten();
    entries.filter_map(|(key, value)| Some((key.clone(), to_variant(value)?))).collect()
}
