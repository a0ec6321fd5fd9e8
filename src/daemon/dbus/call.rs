//! One method call, its answer, and what can go wrong between them.

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use zbus::message::{Builder, Flags, Header};
use zbus::wire::{DynamicType, Type, Variant};
use zbus::{Connection, Message};

use crate::daemon::core::caller::{Caller, Sender};
use crate::daemon::core::error::{Failure, Kind};
use crate::sys::Errno;
use crate::sys::message::Body;

/// Reads the arguments of a method that an object has, and its manager, too: there the name of the object comes first.
///
/// `$name` is the object's name, or none for the manager; it and the arguments are bound to what they are called.
macro_rules! arguments {
    ($call:expr, $name:ident $(, $argument:ident: $kind:ty)*) => {
        let ($name, $($argument,)*): (String, $($kind,)*) = match $name {
            Some($name) => {
                let ($($argument,)*): ($($kind,)*) = $call.arguments()?;
                ($name.to_owned(), $($argument,)*)
            }
            None => $call.arguments()?,
        };
    };
}
pub(crate) use arguments;

/// Properties as they are read, with the interface's own order.
pub(crate) type Properties = Vec<(&'static str, Variant<'static>)>;

/// An error as the caller sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Name of the error on the bus.
    name: Cow<'static, str>,
    /// One line.
    text: String,
}

/// What a handler gives.
pub(crate) type Answer<T = Message> = Result<T, Refusal>;

/// Errors that only this face knows, after `org.freedesktop.DBus.Error.`.
macro_rules! refusals {
    ($($function:ident = $name:literal;)*) => {
        $(
            #[doc = concat!("`org.freedesktop.DBus.Error.", $name, "`")]
            pub(crate) fn $function(text: impl fmt::Display) -> Self {
                Self { name: Cow::Borrowed(concat!("org.freedesktop.DBus.Error.", $name)), text: text.to_string() }
            }
        )*
    };
}

impl Refusal {
    refusals! {
        failed = "Failed";
        invalid_args = "InvalidArgs";
        unknown_method = "UnknownMethod";
        unknown_object = "UnknownObject";
        unknown_interface = "UnknownInterface";
        unknown_property = "UnknownProperty";
        read_only = "PropertyReadOnly";
    }
}

/// The name of a failure on the bus.
fn name(kind: Kind) -> Cow<'static, str> {
    Cow::Borrowed(match kind {
        Kind::NoSuchMachine => "org.freedesktop.machine1.NoSuchMachine",
        Kind::MachineExists => "org.freedesktop.machine1.MachineExists",
        Kind::NoMachineForPid => "org.freedesktop.machine1.NoMachineForPID",
        Kind::NoSuchImage => "org.freedesktop.machine1.NoSuchImage",
        Kind::NoPrivateNetworking => "org.freedesktop.machine1.NoPrivateNetworking",
        Kind::NoSuchUserMapping => "org.freedesktop.machine1.NoSuchUserMapping",
        Kind::NoSuchGroupMapping => "org.freedesktop.machine1.NoSuchGroupMapping",
        Kind::NoSuchUnit => "org.freedesktop.systemd1.NoSuchUnit",
        Kind::NoUnitForPid => "org.freedesktop.systemd1.NoUnitForPID",
        Kind::JobFailed => "org.freedesktop.systemd1.JobFailed",
        Kind::Failed => "org.freedesktop.DBus.Error.Failed",
        Kind::InvalidArgs => "org.freedesktop.DBus.Error.InvalidArgs",
        Kind::AccessDenied => "org.freedesktop.DBus.Error.AccessDenied",
        Kind::NeedsInteraction => "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
        Kind::NotSupported => "org.freedesktop.DBus.Error.NotSupported",
        Kind::LimitsExceeded => "org.freedesktop.DBus.Error.LimitsExceeded",
        Kind::Errno(number) => return errno_name(Errno::from_raw(number)),
        Kind::Service(name) => return name.into(),
    })
}

/// The name that sd-bus gives an errno, so that clients of machined turn it back into the same errno.
fn errno_name(errno: Errno) -> Cow<'static, str> {
    Cow::Borrowed(match errno {
        Errno::ENOMEM => "org.freedesktop.DBus.Error.NoMemory",
        Errno::EPERM | Errno::EACCES => "org.freedesktop.DBus.Error.AccessDenied",
        Errno::EINVAL => "org.freedesktop.DBus.Error.InvalidArgs",
        Errno::ENOENT => "org.freedesktop.DBus.Error.FileNotFound",
        Errno::EEXIST => "org.freedesktop.DBus.Error.FileExists",
        Errno::ETIMEDOUT => "org.freedesktop.DBus.Error.Timeout",
        Errno::EIO => "org.freedesktop.DBus.Error.IOError",
        Errno::EOPNOTSUPP => "org.freedesktop.DBus.Error.NotSupported",
        other => return format!("System.Error.{other:?}").into(),
    })
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self { name: name(failure.kind), text: failure.text }
    }
}

impl From<zbus::Error> for Refusal {
    fn from(e: zbus::Error) -> Self {
        Failure::from(e).into()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text, self.name)
    }
}

/// A method call that came over the bus.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    message: Message,
    connection: Connection,
}

impl Call {
    pub(crate) fn new(message: Message, connection: Connection) -> Self {
        Self { message, connection }
    }

    /// Who called.
    pub(crate) fn caller(&self) -> Caller {
        let interactive = self.header().primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
        Caller { sender: Sender::Bus(self.sender()), interactive }
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

    /// Unique name of the caller, which the bus puts there.
    pub(crate) fn sender(&self) -> String {
        self.header().sender().map_or_else(String::new, ToString::to_string)
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
    pub(crate) fn arguments<T>(&self) -> Answer<T>
    where
        T: Type + DeserializeOwned,
    {
        self.message.body().deserialize_ignore_signature().map_err(Refusal::invalid_args)
    }

    /// An answer.
    pub(crate) fn reply<T: Serialize + DynamicType>(&self, body: &T) -> Answer {
        self.ours(Message::method_return(&self.header())).build(body).map_err(Refusal::from)
    }

    /// An answer with a body that was kept.
    pub(crate) fn reply_with(&self, body: &Body) -> Answer {
        body.build(self.ours(Message::method_return(&self.header()))).map_err(Refusal::from)
    }

    /// An error as an answer.
    pub(crate) fn refuse(&self, refusal: &Refusal) -> zbus::Result<Message> {
        self.ours(Message::error(&self.header(), refusal.name.as_ref())).build(&refusal.text)
    }

    /// The refusal of a method that the interface or its module does not have.
    pub(crate) fn unknown_method(&self) -> Refusal {
        Refusal::unknown_method(format!("Unknown method '{}' or interface '{}'.", self.member(), self.interface()))
    }

    fn ours<'m>(&'m self, builder: Builder<'m>) -> Builder<'m> {
        match self.connection.unique_name() {
            Some(name) => builder.sender(name),
            None => builder,
        }
    }
}
