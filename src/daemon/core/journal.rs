//! Entries of the journal about machines, with the fields that other programs look for (`sd-messages(3)`).
//!
//! `journalctl MESSAGE_ID=…` and `machinectl status` find these; a host without a journal has no socket and
//! gets none.

use crate::spec::Layout;
use crate::sys::socket;

use super::registry::Machine;

/// Message of a machine that was registered.
const STARTED: &str = "24d8d4452573402496068381a6312df2";
/// Message of a machine that has gone.
const STOPPED: &str = "58432bd3bace477cb514b56381b8a758";

/// Sends an entry; whether the journal took it.
pub(crate) fn machine(layout: &Layout, machine: &Machine, started: bool) -> bool {
    let path = layout.journal_socket();
    path.to_str().is_some_and(|path| socket::notify(path, &text(machine, started)).is_ok())
}

/// The entry: one field a line. Names of machines have no line ends.
fn text(machine: &Machine, started: bool) -> String {
    let (id, message) = if started { (STARTED, "New machine") } else { (STOPPED, "Machine") };
    let end = if started { "." } else { " terminated." };
    let (name, leader) = (&machine.name, machine.leader.pid);
    format!(
        "MESSAGE={message} {name}{end}\nMESSAGE_ID={id}\nPRIORITY=6\nSYSLOG_IDENTIFIER=machinist\nNAME={name}\n\
         LEADER={leader}\n"
    )
}
