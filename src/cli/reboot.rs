//! `reboot`: a machine in its init's own way.

use super::machine::{ask, machine_name, remarked, running};
use super::output::{self, Failure, say};
use super::remote;
use crate::running::control::{Answer, Request};
use crate::spec::Layout;

/// `machinist reboot`
pub(super) fn reboot(layout: &Layout, name: &str, quiet: bool) -> Result<(), Failure> {
    if let Some(remark) = remote::restart(layout, machine_name(name)?.as_str()) {
        remarked(&remark?);
        say(quiet, &format!("Machine '{name}' has been rebooted."));
        return Ok(());
    }
    let (name, _) = running(layout, name)?;
    match ask(layout, &name, &Request::Reboot, format!("rebooting machine '{name}'"), quiet)? {
        Some(Answer::Rebooted { killed }) => {
            if killed {
                output::warn(&format!("machine '{name}' did not stop in time and was killed"));
            }
            say(quiet, &format!("Machine '{name}' has been rebooted."));
            Ok(())
        }
        Some(Answer::Refused(why)) => Err(Failure::new(format!("cannot reboot machine '{name}': {why}"))),
        _ => Err(Failure::new(format!("machine '{name}' ended instead of rebooting"))),
    }
}
