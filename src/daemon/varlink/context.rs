//! One call while it is answered.

use std::sync::Arc;

use serde_json::json;

use super::wire::{Answer, Parameters, Refusal, Reply};
use crate::daemon::core::caller::Caller;
use crate::daemon::core::error::{Failure, Kind, Outcome};
use crate::daemon::core::state::Daemon;
use crate::sys::Errno;
use crate::sys::socket::Peer;

/// The call, and what it needs.
pub(super) struct Context<'a> {
    pub(super) daemon: &'a Arc<Daemon>,
    pub(super) caller: Caller,
    pub(super) peer: &'a Peer,
    pub(super) interface: &'a str,
    pub(super) parameters: Parameters,
    /// Whether the caller takes many answers.
    pub(super) more: bool,
}

impl Context<'_> {
    /// Reads the parameter that many methods have.
    pub(super) fn interaction(&mut self) -> Answer<()> {
        self.caller.interactive = self.parameters.get("allowInteractiveAuthentication")?.unwrap_or(false);
        Ok(())
    }

    /// Ends the reading of parameters.
    pub(super) fn no_more(&mut self) -> Answer<()> {
        std::mem::take(&mut self.parameters).finish()
    }

    /// What the core gave, with its failure in the words of the interface.
    pub(super) fn translate<T>(&self, outcome: Outcome<T>) -> Answer<T> {
        outcome.map_err(|failure| refusal(failure, self.interface))
    }
}

/// The answer of methods that give nothing.
pub(super) fn nothing() -> Vec<Reply> {
    vec![json!({}).into()]
}

/// A failure of the core in the words of `interface`.
fn refusal(failure: Failure, interface: &str) -> Refusal {
    let own = |name: &str| Refusal::named(format!("{interface}.{name}"));
    match failure.kind {
        Kind::NoSuchMachine | Kind::NoMachineForPid => Refusal::named("io.systemd.Machine.NoSuchMachine"),
        Kind::NoSuchImage => Refusal::named("io.systemd.MachineImage.NoSuchImage"),
        Kind::MachineExists => own("MachineExists"),
        Kind::NoPrivateNetworking => own("NoPrivateNetworking"),
        Kind::NoSuchUserMapping => own("NoSuchUser"),
        Kind::NoSuchGroupMapping => own("NoSuchGroup"),
        Kind::NotSupported => own("NotSupported"),
        Kind::AccessDenied => Refusal::named("org.varlink.service.PermissionDenied"),
        Kind::NeedsInteraction => Refusal::named("io.systemd.InteractiveAuthenticationRequired"),
        Kind::LimitsExceeded if interface.ends_with("MachineImage") => own("TooManyOperations"),
        Kind::LimitsExceeded => Refusal::errno(Errno::EAGAIN),
        Kind::InvalidArgs => Refusal::errno(Errno::EINVAL),
        Kind::Errno(number) => match Errno::from_raw(number) {
            Errno::EPERM | Errno::EACCES => Refusal::named("org.varlink.service.PermissionDenied"),
            Errno::EOPNOTSUPP => own("NotSupported"),
            errno => Refusal::errno(errno),
        },
        Kind::Failed | Kind::JobFailed | Kind::NoSuchUnit | Kind::NoUnitForPid | Kind::Service(_) => {
            Refusal::errno(Errno::EIO)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::varlink::wire;

    #[test]
    fn failures_keep_their_meaning() {
        let text =
            |failure: Failure| String::from_utf8(wire::refusal(&refusal(failure, "io.systemd.Machine"))).expect("text");
        assert_eq!(
            text(Failure::no_such_machine("x")),
            "{\"error\":\"io.systemd.Machine.NoSuchMachine\",\"parameters\":{}}\0"
        );
        let errno = text(Failure::errno(Errno::EBUSY, "in use"));
        assert!(errno.contains(r#""errnoName":"EBUSY""#) && errno.contains(r#""errno":16"#), "{errno}");
        assert!(text(Failure::errno(Errno::EPERM, "no")).contains("org.varlink.service.PermissionDenied"));
    }
}
