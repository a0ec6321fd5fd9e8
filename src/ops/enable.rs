//! Whether machines start with the host.

use std::path::Path;

use super::context::{Failures, Ops, machine_name};
use super::start::Start;
use super::stop::Stop;
use super::systemd;
use super::via::{Verb, Via};
use crate::bus::Bus;
use crate::bus::systemd1;
use crate::config::{self, ConfigError};
use crate::plan::unit;
use crate::report::{OpError, What};
use crate::running::autostart;
use crate::running::state;
use crate::spec::MachineName;
use crate::sys::file;

impl Ops {
    /// Has machines start with the host; with `now` they are started, too.
    pub fn enable(&self, names: &[String], now: bool) -> Result<(), OpError> {
        let mut failures = Failures::new(&self.events);
        let mut known = Vec::new();
        for name in names {
            let found = machine_name(name).and_then(|name| Ok(config::load(&self.layout, name.as_str())?.spec.name));
            match found {
                Ok(name) => known.push(name),
                Err(error) => failures.add(error),
            }
        }
        self.change_autostart(&known, true)?;
        known.iter().for_each(|name| self.events.done(name, What::Enabled));
        if now {
            let stopped = known.iter().filter(|name| !self.runs(name)).map(ToString::to_string).collect();
            failures.take(self.start(&Start { names: stopped, ..Start::default() }));
        }
        failures.result()
    }

    /// Has machines not start with the host any more; with `now` they are stopped, too.
    pub fn disable(&self, names: &[String], now: bool) -> Result<(), OpError> {
        let mut failures = Failures::new(&self.events);
        let mut names = names.iter().map(|name| machine_name(name)).collect::<Result<Vec<_>, _>>()?;
        // A name that was never there is a typing error; a link outlives its definition and must go.
        names.retain(|name| match config::load(&self.layout, name.as_str()) {
            Err(error @ ConfigError::NotFound { .. }) if !self.has_link(name) && !self.runs(name) => {
                failures.add(error.into());
                false
            }
            _ => true,
        });
        self.change_autostart(&names, false)?;
        for name in &names {
            match config::load(&self.layout, name.as_str()) {
                Ok(loaded) if loaded.spec.boot.autostart => self.events.warn(&format!(
                    "machine '{name}' still starts with the host: `boot.autostart` says so in '{}'",
                    loaded.definition.display()
                )),
                _ => self.events.done(name, What::Disabled),
            }
        }
        if now {
            let running: Vec<_> = names.iter().filter(|name| self.runs(name)).map(ToString::to_string).collect();
            if !running.is_empty() {
                failures.take(self.stop(&Stop { names: running, ..Stop::default() }));
            }
        }
        failures.result()
    }

    fn runs(&self, name: &MachineName) -> bool {
        state::read(&self.layout, name).is_ok_and(|state| state.is_some())
    }

    /// Asks systemd, or our own stand-in for it if we are not root; else makes or removes links ourselves.
    /// Whether a link of ours or of systemd has it start with the host.
    fn has_link(&self, name: &MachineName) -> bool {
        let wants = self.layout.root().join("etc/systemd/system/machines.target.wants").join(unit::name(name));
        let links = [autostart::link(&self.layout, name, false), autostart::link(&self.layout, name, true), wants];
        links.iter().any(|link| file::symlink_metadata(link).is_ok())
    }

    fn change_autostart(&self, names: &[MachineName], on: bool) -> Result<(), OpError> {
        let doing = |name: &MachineName| format!("cannot {} machine '{name}'", if on { "enable" } else { "disable" });
        let Some(first) = names.first() else { return Ok(()) };
        if self.via(Verb::Enable) == Via::Systemd {
            let mut files: Vec<String> = names.iter().map(unit::name).collect();
            // Machines are started by it, and it may be there and not be enabled.
            let target = "machines.target";
            if on && systemd::installed(Path::new("/"), target).is_some() {
                files.push(target.to_owned());
            }
            systemd1::enable(&Bus::of(&self.layout), &files, on).map_err(|e| systemd::failed(&doing(first), &e))?;
            return Ok(());
        }
        for name in names {
            let call = |e| OpError::call(doing(name), &e);
            if on {
                autostart::enable(&self.layout, name, false).map_err(call)?;
            } else {
                autostart::disable(&self.layout, name, false).map_err(call)?;
                autostart::disable(&self.layout, name, true).map_err(call)?;
            }
        }
        Ok(())
    }
}
