//! A machine restarted in its init's own way.

use super::context::{Ops, machine_name};
use super::via::{Verb, Via};
use crate::report::{self, OpError, What};
use crate::running::control::{Answer, Request};

impl Ops {
    /// Restarts a machine and comes back when it is ready again.
    pub fn reboot(&self, name: &str) -> Result<(), OpError> {
        let name = machine_name(name)?;
        if self.via(Verb::Reboot) == Via::Daemon
            && self.perform(&report::Request::Reboot { name: name.to_string() })?.is_some()
        {
            return Ok(());
        }
        let (name, _) = self.running(name.as_str())?;
        match self.ask(&name, &Request::Reboot, Some(format!("rebooting machine '{name}'")))? {
            Some(Answer::Rebooted { killed }) => {
                self.warn_killed(&name, killed);
                self.events.done(&name, What::Rebooted);
                Ok(())
            }
            Some(Answer::Refused(why)) => Err(OpError::new(format!("cannot reboot machine '{name}': {why}"))),
            _ => Err(OpError::new(format!("machine '{name}' ended instead of rebooting"))),
        }
    }
}
