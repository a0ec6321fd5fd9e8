//! What can go wrong with a request, in words that belong to no face.

use std::fmt;

use serde::{Deserialize, Serialize};
use zbus::DBusError as _;

use crate::image::ImageError;
use crate::sys::{self, Errno};

/// What kind of failure it is. Each face has its own name for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    NoSuchMachine,
    MachineExists,
    NoMachineForPid,
    NoSuchImage,
    NoPrivateNetworking,
    NoSuchUserMapping,
    NoSuchGroupMapping,
    NoSuchUnit,
    NoUnitForPid,
    JobFailed,
    Failed,
    InvalidArgs,
    AccessDenied,
    /// Polkit would have to ask the user, and the caller does not allow that.
    NeedsInteraction,
    NotSupported,
    LimitsExceeded,
    /// A call of the kernel failed.
    Errno(i32),
    /// Another service on the bus failed; its name for that.
    Service(String),
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    /// One line.
    pub(crate) text: String,
}

/// What a request gives.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

macro_rules! failures {
    ($($function:ident = $kind:ident;)*) => {
        $(
            #[doc = concat!("[`Kind::", stringify!($kind), "`]")]
            pub(crate) fn $function(text: impl fmt::Display) -> Self {
                Self { kind: Kind::$kind, text: text.to_string() }
            }
        )*
    };
}

impl Failure {
    failures! {
        machine_exists = MachineExists;
        no_machine_for_pid = NoMachineForPid;
        no_private_networking = NoPrivateNetworking;
        no_such_user_mapping = NoSuchUserMapping;
        no_such_group_mapping = NoSuchGroupMapping;
        no_such_unit = NoSuchUnit;
        no_unit_for_pid = NoUnitForPid;
        job_failed = JobFailed;
        failed = Failed;
        invalid_args = InvalidArgs;
        access_denied = AccessDenied;
        needs_interaction = NeedsInteraction;
        not_supported = NotSupported;
        limits_exceeded = LimitsExceeded;
    }

    /// No machine of that name.
    pub(crate) fn no_such_machine(name: &str) -> Self {
        Self { kind: Kind::NoSuchMachine, text: format!("No machine '{name}' known") }
    }

    /// No image of that name.
    pub(crate) fn no_such_image(name: &str) -> Self {
        Self { kind: Kind::NoSuchImage, text: format!("No image '{name}' known") }
    }

    /// The kernel's error.
    pub(crate) fn errno(errno: Errno, text: impl fmt::Display) -> Self {
        Self { kind: Kind::Errno(errno as i32), text: text.to_string() }
    }

    /// The process that a request is about has ended.
    pub(crate) fn leader_ended() -> Self {
        Self::errno(Errno::ESRCH, "The leader has ended.")
    }

    /// The error of another service, by its name on the bus.
    fn of_service(name: &str, text: String) -> Self {
        let kind = match name.strip_prefix("org.freedesktop.DBus.Error.") {
            Some("Failed") => Kind::Failed,
            Some("InvalidArgs") => Kind::InvalidArgs,
            Some("AccessDenied") => Kind::AccessDenied,
            Some("InteractiveAuthorizationRequired") => Kind::NeedsInteraction,
            Some("NotSupported") => Kind::NotSupported,
            Some("LimitsExceeded") => Kind::LimitsExceeded,
            Some("NoMemory") => Kind::Errno(Errno::ENOMEM as i32),
            Some("FileNotFound") => Kind::Errno(Errno::ENOENT as i32),
            Some("FileExists") => Kind::Errno(Errno::EEXIST as i32),
            Some("Timeout") => Kind::Errno(Errno::ETIMEDOUT as i32),
            _ => Kind::Service(name.to_owned()),
        };
        Self { kind, text }
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
            zbus::Error::MethodError(name, text, _) => Self::of_service(name.as_str(), text.unwrap_or_default()),
            zbus::Error::FDO(e) => Self::of_service(e.name().as_str(), e.description().unwrap_or_default().to_owned()),
            other => Self::failed(other),
        }
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        let errno = |errno: Errno| {
            let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
            Self::errno(errno, format!("{error}{hint}"))
        };
        match &error {
            ImageError::NoSuchImage(name) => Self::no_such_image(name),
            ImageError::InvalidName { name, .. } => Self::invalid_args(format!("Image name '{name}' is invalid.")),
            ImageError::Exists(_) => errno(Errno::EEXIST),
            ImageError::InUse { .. } => errno(Errno::EBUSY),
            ImageError::ReadOnly(_) => errno(Errno::EROFS),
            ImageError::NotSupported { .. } => errno(Errno::EOPNOTSUPP),
            ImageError::Cancelled => errno(Errno::ECANCELED),
            ImageError::Call { cause, .. } => Self::errno(cause.errno, format!("{error}: {cause}")),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
