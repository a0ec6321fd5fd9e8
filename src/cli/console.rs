//! `console` and `login`: a terminal of a machine.

use std::os::fd::AsFd as _;

use super::machine::{machine_name, running};
use super::output::{Failure, say, status};
use crate::bus::{Bus, machine1};
use crate::daemon::Login;
use crate::enter::attend;
use crate::running::control::{self, Request};
use crate::running::state;
use crate::spec::Layout;
use crate::supervisor::console::{AttachEnd, Mode, attach};
use crate::sys::process;

/// `machinist console`
pub(super) fn console(layout: &Layout, name: &str, read_only: bool) -> Result<u8, Failure> {
    let (name, _) = running(layout, name)?;
    let mode = if read_only { Mode::ReadOnly } else { Mode::of_stdio() };
    let failed = |e: &crate::sys::Error| Failure::call(format!("cannot attach to machine '{name}'"), e);
    let connection = control::ask(layout, &name, &Request::Console).map_err(|e| failed(&e))?;
    match attach(connection, name.as_str(), mode).map_err(|e| failed(&e))? {
        AttachEnd::Signal(number) => Ok(u8::try_from(128 + number).unwrap_or(255)),
        AttachEnd::Left | AttachEnd::Closed(_) | AttachEnd::LocalGone => Ok(status::OK),
    }
}

/// `machinist login`: root's own way into our machines, else that of whoever serves `org.freedesktop.machine1`.
pub(super) fn login(layout: &Layout, name: &str, quiet: bool) -> Result<u8, Failure> {
    let name = machine_name(name)?;
    let failed = |why: String| Failure::new(format!("cannot log in to machine '{name}': {why}"));
    let call = |e: crate::sys::Error| failed(e.to_string());
    let own = if nix::unistd::geteuid().is_root() { state::read(layout, &name).map_err(call)? } else { None };
    let mut login = None;
    let (master, leader) = match own {
        Some(state) => {
            let leader = state.open_leader().map_err(call)?;
            let mut opened = Login::open(layout, &name, &leader, state.ids.is_none()).map_err(failed)?;
            let master = opened.take_master();
            login = Some(opened);
            (master.ok_or_else(|| failed("the helper sent no terminal".into()))?, leader)
        }
        None => {
            let bus = Bus::of(layout);
            let (master, pid) = machine1::open_login(&bus, name.as_str()).map_err(|e| failed(e.to_string()))?;
            let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap_or(0));
            (master, process::pidfd_open(pid).map_err(call)?)
        }
    };
    say(quiet, &format!("Connected to machine '{name}'. Press ^] three times within 1s to leave."));
    let over = login.as_ref().and_then(Login::over).unwrap_or_else(|| leader.as_fd());
    match attend(master, over).map_err(|e| Failure::enter(&e))? {
        Some(signal) => Ok(u8::try_from(128 + signal).unwrap_or(255)),
        None => Ok(status::OK),
    }
}
