//! What a killed supervisor left behind.

use super::context::{Ops, machine_name};
use super::error;
use crate::config::{self, ConfigError};
use crate::host;
use crate::report::{OpError, What};
use crate::spec::Resources;
use crate::supervisor::{self, MachineError};

impl Ops {
    /// Removes what a killed supervisor left of a machine.
    pub fn reap(&self, name: &str) -> Result<(), OpError> {
        let name = machine_name(name)?;
        let facts = host::probe().map_err(|e| OpError::call("cannot look at this host", &e))?;
        // A definition that is gone or broken only leaves less to go by.
        let loaded = config::load(&self.layout, name.as_str());
        let unknown = matches!(loaded, Err(ConfigError::NotFound { .. })) && !self.layout.state_dir(&name).exists();
        let mut spec = loaded.as_ref().ok().map(|loaded| loaded.spec.clone());
        // Nor does a limit that this host cannot enforce keep anything.
        spec.iter_mut().for_each(|spec| spec.resources = Resources::default());
        let found = supervisor::reap(&self.layout, &facts, &name, spec.as_ref()).map_err(|e| match e {
            MachineError::AlreadyRunning(_) => {
                OpError::new(format!("machine '{name}' is running")).hint(format!("`machinist stop {name}` ends it"))
            }
            e => error::machine(&format!("cannot clear machine '{name}' away"), &e),
        })?;
        if let Err(error) = loaded
            && unknown
            && !found
        {
            return Err(error.into());
        }
        self.events.done(&name, if found { What::Reaped } else { What::NothingLeft });
        Ok(())
    }
}
