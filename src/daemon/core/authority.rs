//! Who may do what: root may, others ask polkit.
//!
//! Arguments and the existence of the object are checked before this, as machined does. The answer takes time, in
//! which a machine may end and another take its name: callers look their target up again afterwards.

use std::collections::HashMap;
use std::sync::Arc;

use zbus::names::{BusName, UniqueName};
use zbus_polkit::policykit1::{AuthorityProxy, CheckAuthorizationFlags, Subject};

use super::state::Daemon;
use crate::daemon::dbus::call::{Call, Failure, Outcome};
use crate::sys::process;

/// Who called, as the bus says or the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) uid: u32,
    pub(crate) pid: i32,
    /// In the group that may read.
    pub(crate) reader: bool,
}

/// Actions that change nothing.
const READING: [&str; 3] =
    ["org.machinist1.inspect", "org.freedesktop.machine1.inspect-machines", "org.freedesktop.machine1.inspect-images"];

/// The caller as polkit knows it; several ways to say it if older versions do not understand the first.
fn subjects(call: &Call) -> Vec<Subject> {
    let Some(peer) = call.peer() else {
        return Subject::new_for_message_header(&call.header()).into_iter().collect();
    };
    let Some(pidfd) = &peer.pidfd else { return Vec::new() };
    let mut subjects: Vec<Subject> = Subject::new_for_owner(pidfd, peer.uid).into_iter().collect();
    // polkit before 124 has no pidfds. The time of its start is that of our caller if it still lives now.
    let by_number = u32::try_from(peer.pid).map(|pid| Subject::new_for_pid(pid, None, Some(peer.uid)));
    if process::pidfd_send_signal(pidfd, 0).is_ok() {
        subjects.extend(by_number.into_iter().flatten());
    }
    subjects
}

/// How many callers are remembered; the oldest knowledge is thrown away all at once.
const REMEMBERED: usize = 1024;

impl Daemon {
    /// Who called. Unique names are never given twice, so the answer is kept.
    pub(crate) async fn credentials(&self, call: &Call) -> Outcome<Credentials> {
        if let Some(peer) = call.peer() {
            return Ok(Credentials { uid: peer.uid, pid: peer.pid, reader: false });
        }
        let sender = call.sender();
        if let Some(known) = self.callers().get(&sender) {
            return Ok(*known);
        }
        let name = UniqueName::try_from(sender.as_str()).map_err(Failure::failed)?;
        let bus = zbus::fdo::DBusProxy::new(call.connection()).await?;
        let told = bus.get_connection_credentials(BusName::from(name)).await.map_err(Failure::failed)?;
        let uid = told.unix_user_id().ok_or_else(|| Failure::access_denied("The bus does not know your user."))?;
        let pid = told.process_id().and_then(|p| i32::try_from(p).ok()).unwrap_or(0);
        let groups = told.unix_group_ids().map(Vec::as_slice).unwrap_or_default();
        let reader = self.read_group.is_some_and(|group| groups.contains(&group));
        let credentials = Credentials { uid, pid, reader };
        let mut callers = self.callers();
        if callers.len() >= REMEMBERED {
            callers.clear();
        }
        callers.insert(sender, credentials);
        Ok(credentials)
    }

    /// The process that called.
    pub(crate) async fn process_of(&self, call: &Call) -> Outcome<i32> {
        let pid = self.credentials(call).await?.pid;
        if pid > 0 {
            Ok(pid)
        } else {
            Err(Failure::errno(crate::sys::Errno::ESRCH, "The bus does not know your process."))
        }
    }

    /// Refuses everybody but root.
    pub(crate) async fn require_root(&self, call: &Call) -> Outcome<()> {
        if self.credentials(call).await?.uid == 0 {
            return Ok(());
        }
        Err(Failure::access_denied(format!("{} is for root only.", call.member())))
    }

    /// Lets root pass, and the group of readers where nothing is changed, and asks polkit about others.
    ///
    /// `details` are shown to administrators and given to polkit's rules.
    pub(crate) async fn authorise(
        self: &Arc<Self>,
        call: &Call,
        action: &str,
        details: &[(&str, &str)],
    ) -> Outcome<()> {
        let caller = self.credentials(call).await?;
        if caller.uid == 0 || caller.reader && READING.contains(&action) {
            return Ok(());
        }
        let denied = || Failure::access_denied(format!("Permission denied: '{action}' is for root only."));
        let authority = AuthorityProxy::new(call.connection()).await?;
        let details: HashMap<&str, &str> = details.iter().copied().collect();
        let flags = if call.interactive() {
            CheckAuthorizationFlags::ALLOW_USER_INTERACTION
        } else {
            CheckAuthorizationFlags::default()
        };
        // Without polkit only root passes.
        let mut result = Err(zbus::Error::Unsupported);
        for subject in subjects(call) {
            result = authority.check_authorization(&subject, action, &details, flags, "").await;
            if result.is_ok() {
                break;
            }
        }
        let result = result.map_err(|_| denied())?;
        if result.is_authorized {
            return Ok(());
        }
        if result.is_challenge && !call.interactive() {
            return Err(Failure::needs_interaction("Interactive authentication required."));
        }
        Err(Failure::access_denied("Access denied as the requested operation requires authorization by polkit."))
    }
}
