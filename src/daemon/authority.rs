//! Who may do what: root may, others ask polkit.
//!
//! Arguments and the existence of the object are checked before this, as machined does. The answer takes time, in
//! which a machine may end and another take its name: callers look their target up again afterwards.

use std::collections::HashMap;
use std::sync::Arc;

use zbus::names::{BusName, UniqueName};
use zbus_polkit::policykit1::{AuthorityProxy, CheckAuthorizationFlags, Subject};

use super::Daemon;
use super::call::{Call, Failure, Outcome};

/// Who called, as the bus says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) uid: u32,
    pub(super) pid: i32,
}

/// How many callers are remembered; the oldest knowledge is thrown away all at once.
const REMEMBERED: usize = 1024;

impl Daemon {
    /// Who called. Unique names are never given twice, so the answer is kept.
    pub(super) async fn credentials(&self, call: &Call) -> Outcome<Credentials> {
        let sender = call.sender();
        if let Some(known) = self.callers().get(&sender) {
            return Ok(*known);
        }
        let name = UniqueName::try_from(sender.as_str()).map_err(Failure::failed)?;
        let bus = zbus::fdo::DBusProxy::new(call.connection()).await?;
        let told = bus.get_connection_credentials(BusName::from(name)).await.map_err(Failure::failed)?;
        let uid = told.unix_user_id().ok_or_else(|| Failure::access_denied("The bus does not know your user."))?;
        let pid = told.process_id().and_then(|p| i32::try_from(p).ok()).unwrap_or(0);
        let credentials = Credentials { uid, pid };
        let mut callers = self.callers();
        if callers.len() >= REMEMBERED {
            callers.clear();
        }
        callers.insert(sender, credentials);
        Ok(credentials)
    }

    /// The process that called.
    pub(super) async fn process_of(&self, call: &Call) -> Outcome<i32> {
        let pid = self.credentials(call).await?.pid;
        if pid > 0 {
            Ok(pid)
        } else {
            Err(Failure::errno(crate::sys::Errno::ESRCH, "The bus does not know your process."))
        }
    }

    /// Refuses everybody but root.
    pub(super) async fn require_root(&self, call: &Call) -> Outcome<()> {
        if self.credentials(call).await?.uid == 0 {
            return Ok(());
        }
        Err(Failure::access_denied(format!("{} is for root only.", call.member())))
    }

    /// Lets root pass, and asks polkit about others.
    ///
    /// `details` are shown to administrators and given to polkit's rules.
    pub(super) async fn authorise(
        self: &Arc<Self>,
        call: &Call,
        action: &str,
        details: &[(&str, &str)],
    ) -> Outcome<()> {
        if self.credentials(call).await?.uid == 0 {
            return Ok(());
        }
        let denied = || Failure::access_denied(format!("Permission denied: '{action}' is for root only."));
        let authority = AuthorityProxy::new(call.connection()).await?;
        let subject = Subject::new_for_message_header(&call.header()).map_err(|_| denied())?;
        let details: HashMap<&str, &str> = details.iter().copied().collect();
        let flags = if call.interactive() {
            CheckAuthorizationFlags::ALLOW_USER_INTERACTION
        } else {
            CheckAuthorizationFlags::default()
        };
        // Without polkit only root passes.
        let result =
            authority.check_authorization(&subject, action, &details, flags, "").await.map_err(|_| denied())?;
        if result.is_authorized {
            return Ok(());
        }
        if result.is_challenge && !call.interactive() {
            return Err(Failure::needs_interaction("Interactive authentication required."));
        }
        Err(Failure::access_denied("Access denied as the requested operation requires authorization by polkit."))
    }
}
