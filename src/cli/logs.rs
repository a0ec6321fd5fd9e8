//! `logs`: what a machine has written to its console.

use std::io::IsTerminal as _;

use super::output::status;
use crate::ops::machine_name;
use crate::report::OpError;
use crate::spec::Layout;
use crate::supervisor::console::{Shown, print_log};
use crate::sys::Errno;

/// `machinist logs`
pub(super) fn logs(layout: &Layout, name: &str, follow: bool, lines: Option<usize>) -> Result<u8, OpError> {
    let name = machine_name(name)?;
    let dir = layout.state_dir(&name);
    let shown = if std::io::stdout().is_terminal() { Shown::Safe } else { Shown::Raw };
    match print_log(&dir, lines, follow, shown, &mut std::io::stdout().lock()) {
        Ok(()) => Ok(status::OK),
        Err(e) if e.errno == Errno::ENOENT => Err(OpError::new(format!("there is no console log of machine '{name}'"))
            .hint("`machinist list --all` shows which machines there are")),
        Err(e) => Err(OpError::call(format!("cannot show the console log of machine '{name}'"), &e)),
    }
}
