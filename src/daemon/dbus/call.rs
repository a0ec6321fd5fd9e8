//! One method call, its answer, and what can go wrong between them.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use zbus::message::{Builder, Flags, Header};
use zbus::wire::{DynamicType, Type};
use zbus::{Connection, DBusError as _, Message};

use super::interface::MANAGER;
use super::objects::MANAGER_PATH;
use crate::sys::message::Body;
use crate::sys::socket::Peer;
use crate::sys::{self, Errno};

/// An error as the caller sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Name of the error on the bus.
    pub(crate) name: Cow<'static, str>,
    /// One line.
    pub(crate) text: String,
}

/// What a handler gives.
pub(crate) type Outcome<T = Message> = Result<T, Failure>;

/// Errors with a name of their own, after `org.freedesktop.`.
macro_rules! failures {
    ($($function:ident = $name:literal;)*) => {
        $(
            #[doc = concat!("`org.freedesktop.", $name, "`")]
            pub(crate) fn $function(text: impl fmt::Display) -> Self {
                Self { name: Cow::Borrowed(concat!("org.freedesktop.", $name)), text: text.to_string() }
            }
        )*
    };
}

impl Failure {
    failures! {
        machine_exists = "machine1.MachineExists";
        no_machine_for_pid = "machine1.NoMachineForPID";
        no_private_networking = "machine1.NoPrivateNetworking";
        no_such_user_mapping = "machine1.NoSuchUserMapping";
        no_such_group_mapping = "machine1.NoSuchGroupMapping";
        job_failed = "systemd1.JobFailed";
        failed = "DBus.Error.Failed";
        invalid_args = "DBus.Error.InvalidArgs";
        unknown_method = "DBus.Error.UnknownMethod";
        unknown_object = "DBus.Error.UnknownObject";
        unknown_interface = "DBus.Error.UnknownInterface";
        unknown_property = "DBus.Error.UnknownProperty";
        read_only = "DBus.Error.PropertyReadOnly";
        access_denied = "DBus.Error.AccessDenied";
        needs_interaction = "DBus.Error.InteractiveAuthorizationRequired";
        not_supported = "DBus.Error.NotSupported";
        limits_exceeded = "DBus.Error.LimitsExceeded";
    }

    /// No machine of that name.
    pub(crate) fn no_such_machine(name: &str) -> Self {
        Self {
            name: Cow::Borrowed("org.freedesktop.machine1.NoSuchMachine"),
            text: format!("No machine '{name}' known"),
        }
    }

    /// No image of that name.
    pub(crate) fn no_such_image(name: &str) -> Self {
        Self { name: Cow::Borrowed("org.freedesktop.machine1.NoSuchImage"), text: format!("No image '{name}' known") }
    }

    /// An errno under the name that sd-bus gives it, so that clients of machined turn it back into the same errno.
    pub(crate) fn errno(errno: Errno, text: impl fmt::Display) -> Self {
        let name = match errno {
            Errno::ENOMEM => "org.freedesktop.DBus.Error.NoMemory".into(),
            Errno::EPERM | Errno::EACCES => "org.freedesktop.DBus.Error.AccessDenied".into(),
            Errno::EINVAL => "org.freedesktop.DBus.Error.InvalidArgs".into(),
            Errno::ENOENT => "org.freedesktop.DBus.Error.FileNotFound".into(),
            Errno::EEXIST => "org.freedesktop.DBus.Error.FileExists".into(),
            Errno::ETIMEDOUT => "org.freedesktop.DBus.Error.Timeout".into(),
            Errno::EIO => "org.freedesktop.DBus.Error.IOError".into(),
            Errno::EOPNOTSUPP => "org.freedesktop.DBus.Error.NotSupported".into(),
            other => format!("System.Error.{other:?}").into(),
        };
        Self { name, text: text.to_string() }
    }
}

impl From<sys::Error> for Failure {
    fn from(e: sys::Error) -> Self {
        Self::errno(e.errno, &e)
    }
}

impl From<zbus::Error> for Failure {
    fn from(e: zbus::Error) -> Self {
        match e {
            zbus::Error::MethodError(name, text, _) => {
                Self { name: name.to_string().into(), text: text.unwrap_or_default() }
            }
            zbus::Error::FDO(e) => {
                Self { name: e.name().to_string().into(), text: e.description().unwrap_or_default().to_owned() }
            }
            other => Self::failed(other),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text, self.name)
    }
}

/// A method call that came over the bus, or by a socket of ours and was put into the bus's words.
///
/// Handlers need not know which: they read [`arguments`](Self::arguments), ask the daemon for credentials and
/// authorisation, and give a [`reply`](Self::reply). The other side of a socket reads that back.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    message: Message,
    connection: Connection,
    /// Who called, if it was not over the bus.
    peer: Option<Arc<Peer>>,
}

impl Call {
    pub(crate) fn new(message: Message, connection: Connection) -> Self {
        Self { message, connection, peer: None }
    }

    /// The call of a method of the manager by the process at the other end of a socket.
    ///
    /// `interactive` says whether it is ready to answer questions of polkit.
    pub(crate) fn of_peer<T: Serialize + DynamicType>(
        peer: &Arc<Peer>,
        connection: &Connection,
        member: &str,
        arguments: &T,
        interactive: bool,
    ) -> Outcome<Self> {
        let mut builder = Message::method_call(MANAGER_PATH, member).interface(MANAGER.name);
        if interactive {
            builder = builder.with_flags(Flags::ALLOW_INTERACTIVE_AUTH);
        }
        let message = builder.build(arguments)?;
        Ok(Self { message, connection: connection.clone(), peer: Some(Arc::clone(peer)) })
    }

    /// Who called, if it was not over the bus.
    pub(crate) fn peer(&self) -> Option<&Arc<Peer>> {
        self.peer.as_ref()
    }

    pub(crate) fn header(&self) -> Header<'_> {
        self.message.header()
    }

    /// The path that was called.
    pub(crate) fn path(&self) -> String {
        self.header().path().map_or_else(String::new, ToString::to_string)
    }

    /// The interface, or nothing if the caller named none.
    pub(crate) fn interface(&self) -> String {
        self.header().interface().map_or_else(String::new, ToString::to_string)
    }

    /// The method.
    pub(crate) fn member(&self) -> String {
        self.header().member().map_or_else(String::new, ToString::to_string)
    }

    /// Unique name of the caller, which the bus puts there, or the process behind a socket.
    pub(crate) fn sender(&self) -> String {
        if let Some(peer) = &self.peer {
            return format!("process {}", peer.pid);
        }
        self.header().sender().map_or_else(String::new, ToString::to_string)
    }

    /// The connection to the bus; the call came over it unless it has a [`peer`](Self::peer).
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Whether the caller is ready to answer questions of polkit.
    pub(crate) fn interactive(&self) -> bool {
        self.header().primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH)
    }

    /// Whether the caller wants an answer.
    pub(crate) fn wants_reply(&self) -> bool {
        !self.header().primary().flags().contains(Flags::NO_REPLY_EXPECTED)
    }

    /// Signature of the arguments without the parentheses that several have in the library.
    pub(crate) fn signature(&self) -> String {
        let text = self.header().signature().to_string();
        text.strip_prefix('(').and_then(|t| t.strip_suffix(')')).map_or_else(|| text.clone(), str::to_owned)
    }

    /// The arguments, whose signature has been compared with the interface's before.
    pub(crate) fn arguments<T>(&self) -> Outcome<T>
    where
        T: Type + DeserializeOwned,
    {
        self.message.body().deserialize_ignore_signature().map_err(Failure::invalid_args)
    }

    /// An answer.
    pub(crate) fn reply<T: Serialize + DynamicType>(&self, body: &T) -> Outcome {
        self.ours(Message::method_return(&self.header())).build(body).map_err(Failure::from)
    }

    /// An answer with a body that was kept.
    pub(crate) fn reply_with(&self, body: &Body) -> Outcome {
        body.build(self.ours(Message::method_return(&self.header()))).map_err(Failure::from)
    }

    /// An error as an answer.
    pub(crate) fn refuse(&self, failure: &Failure) -> zbus::Result<Message> {
        self.ours(Message::error(&self.header(), failure.name.as_ref())).build(&failure.text)
    }

    fn ours<'m>(&'m self, builder: Builder<'m>) -> Builder<'m> {
        match self.connection.unique_name() {
            Some(name) => builder.sender(name),
            None => builder,
        }
    }
}
