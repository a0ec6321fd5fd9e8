//! Who may do what: root may, others ask polkit.
//!
//! Arguments and the existence of the object are checked before this, as machined does. The answer takes time, in
//! which a machine may end and another take its name: callers look their target up again afterwards.

use std::collections::HashMap;

use zbus::Message;
use zbus::names::{BusName, UniqueName};
use zbus_polkit::policykit1::{AuthorityProxy, CheckAuthorizationFlags, Subject};

use super::caller::{Caller, Credentials, Sender};
use super::error::{Failure, Outcome};
use super::state::Daemon;
use crate::sys::{Errno, process};

/// Actions that change nothing.
const READING: [&str; 3] =
    ["org.machinist1.inspect", "org.freedesktop.machine1.inspect-machines", "org.freedesktop.machine1.inspect-images"];

/// The caller as polkit knows it; several ways to say it if older versions do not understand the first.
fn subjects(sender: &Sender) -> Vec<Subject> {
    let peer = match sender {
        Sender::Bus(name) => return bus_name(name).into_iter().collect(),
        Sender::Process(peer) => peer,
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

/// A connection of the bus. The library takes its name from nothing but a message.
fn bus_name(name: &str) -> Option<Subject> {
    let message = Message::method_call("/", "Check").sender(name).build(&()).ok()?;
    Subject::new_for_message_header(&message.header()).ok()
}

/// How many callers are remembered; the oldest knowledge is thrown away all at once.
const REMEMBERED: usize = 1024;

impl Daemon {
    /// Who called. Unique names are never given twice, so the answer is kept.
    pub(crate) async fn credentials(&self, caller: &Caller) -> Outcome<Credentials> {
        let sender = match &caller.sender {
            Sender::Process(peer) => return Ok(Credentials { uid: peer.uid, pid: peer.pid, reader: false }),
            Sender::Bus(name) => name,
        };
        if let Some(known) = self.callers().get(sender) {
            return Ok(*known);
        }
        let name = UniqueName::try_from(sender.as_str()).map_err(Failure::failed)?;
        let bus = zbus::fdo::DBusProxy::new(&self.connection).await?;
        let known = bus.get_connection_credentials(BusName::from(name)).await.map_err(Failure::failed)?;
        let uid = known.unix_user_id().ok_or_else(|| Failure::access_denied("The bus does not know your user."))?;
        let pid = known.process_id().and_then(|p| i32::try_from(p).ok()).unwrap_or(0);
        let groups = known.unix_group_ids().map(Vec::as_slice).unwrap_or_default();
        let reader = self.read_group.is_some_and(|group| groups.contains(&group));
        let credentials = Credentials { uid, pid, reader };
        let mut callers = self.callers();
        if callers.len() >= REMEMBERED {
            callers.clear();
        }
        callers.insert(sender.clone(), credentials);
        Ok(credentials)
    }

    /// The process that called.
    pub(crate) async fn process_of(&self, caller: &Caller) -> Outcome<i32> {
        let pid = self.credentials(caller).await?.pid;
        if pid > 0 { Ok(pid) } else { Err(Failure::errno(Errno::ESRCH, "The bus does not know your process.")) }
    }

    /// Refuses all users but root. `what` is what they asked for.
    pub(crate) async fn require_root(&self, caller: &Caller, what: &str) -> Outcome {
        if self.credentials(caller).await?.uid == 0 {
            return Ok(());
        }
        Err(Failure::access_denied(format!("{what} is for root only.")))
    }

    /// Lets root pass, and the group of readers where nothing is changed, and asks polkit about others.
    ///
    /// `details` are shown to administrators and given to polkit's rules.
    pub(crate) async fn authorise(&self, caller: &Caller, action: &str, details: &[(&str, &str)]) -> Outcome {
        let credentials = self.credentials(caller).await?;
        if credentials.uid == 0 || credentials.reader && READING.contains(&action) {
            return Ok(());
        }
        let denied = || Failure::access_denied(format!("Permission denied: '{action}' is for root only."));
        let authority = AuthorityProxy::new(&self.connection).await?;
        let details: HashMap<&str, &str> = details.iter().copied().collect();
        let flags = if caller.interactive {
            CheckAuthorizationFlags::ALLOW_USER_INTERACTION
        } else {
            CheckAuthorizationFlags::default()
        };
        // Without polkit only root passes.
        let mut result = Err(zbus::Error::Unsupported);
        for subject in subjects(&caller.sender) {
            result = authority.check_authorization(&subject, action, &details, flags, "").await;
            if result.is_ok() {
                break;
            }
        }
        let result = result.map_err(|_| denied())?;
        if result.is_authorized {
            return Ok(());
        }
        if result.is_challenge && !caller.interactive {
            return Err(Failure::needs_interaction("Interactive authentication required."));
        }
        Err(Failure::access_denied("Access denied as the requested operation requires authorization by polkit."))
    }
}
