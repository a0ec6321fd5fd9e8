//! `console` and `login`: a terminal of a machine.

use std::os::fd::AsFd as _;

use super::output::{Printer, status};
use crate::bus::{Bus, machine1};
use crate::daemon::Login;
use crate::enter::attend;
use crate::ops::via::{Verb, Via};
use crate::ops::{self, Ops, machine_name};
use crate::report::OpError;
use crate::running::control::{self, Request};
use crate::running::state;
use crate::supervisor::console::{AttachEnd, Mode, attach};
use crate::sys::process;

/// `machinist console`
pub(super) fn console(ops: &Ops, name: &str, read_only: bool) -> Result<u8, OpError> {
    let (name, _) = ops.running(name)?;
    let mode = if read_only { Mode::ReadOnly } else { Mode::of_stdio() };
    let failed = |e: &crate::sys::Error| OpError::call(format!("cannot attach to machine '{name}'"), e);
    let connection = control::ask(ops.layout(), &name, &Request::Console).map_err(|e| failed(&e))?;
    match attach(connection, name.as_str(), mode).map_err(|e| failed(&e))? {
        AttachEnd::Signal(number) => Ok(u8::try_from(128 + number).unwrap_or(255)),
        AttachEnd::Left | AttachEnd::Closed(_) | AttachEnd::LocalGone => Ok(status::OK),
    }
}

/// `machinist login`: root's own way into our machines, else that of the daemon that serves
/// `org.freedesktop.machine1`.
pub(super) fn login(ops: &Ops, name: &str, printer: &Printer) -> Result<u8, OpError> {
    let name = machine_name(name)?;
    let failed = |why: String| OpError::new(format!("cannot log in to machine '{name}': {why}"));
    let call = |e: crate::sys::Error| failed(e.to_string());
    let layout = ops.layout();
    let may_look = ops.via(Verb::Login { ours: true }) == Via::Here;
    let own = if may_look { state::read(layout, &name).map_err(call)? } else { None };
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
    printer.say(&format!("Connected to machine '{name}'. Press ^] three times within 1s to leave."));
    let over = login.as_ref().and_then(Login::over).unwrap_or_else(|| leader.as_fd());
    match attend(master, over).map_err(|e| ops::enter(&e))? {
        Some(signal) => Ok(u8::try_from(128 + signal).unwrap_or(255)),
        None => Ok(status::OK),
    }
}
