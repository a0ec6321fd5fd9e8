//! `reap`: what a killed supervisor left behind.

use super::machine::machine_name;
use super::output::{Failure, say};
use crate::spec::{Layout, Resources};
use crate::supervisor::{self, MachineError};
use crate::{config, host};

/// `machinist reap`
pub(super) fn reap(layout: &Layout, name: &str, quiet: bool) -> Result<(), Failure> {
    let name = machine_name(name)?;
    let facts = host::probe().map_err(|e| Failure::call("cannot look at this host", &e))?;
    // A definition that is gone or broken only leaves less to go by.
    let mut spec = config::load(layout, name.as_str()).ok().map(|loaded| loaded.spec);
    // Nor does a limit that this host cannot enforce keep anything.
    spec.iter_mut().for_each(|spec| spec.resources = Resources::default());
    let found = match supervisor::reap(layout, &facts, &name, spec.as_ref()) {
        Ok(found) => found,
        Err(MachineError::AlreadyRunning(_)) => {
            return Err(
                Failure::new(format!("machine '{name}' is running")).hint(format!("`machinist stop {name}` ends it"))
            );
        }
        Err(e) => return Err(Failure::machine(&format!("cannot clear machine '{name}' away"), &e)),
    };
    say(
        quiet,
        &if found {
            format!("Machine '{name}' has been cleared away.")
        } else {
            format!("Nothing is left of machine '{name}'.")
        },
    );
    Ok(())
}
