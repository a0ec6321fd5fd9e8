//! `enable` and `disable`: whether a machine starts with the host.

use std::path::Path;

use clap::Args;

use super::carried;
use super::machine::machine_name;
use super::output::{self, Failure, Failures, say};
use super::start::StartArguments;
use super::stop::StopArguments;
use crate::bus::Bus;
use crate::bus::systemd1;
use crate::config;
use crate::plan::unit;
use crate::running::autostart;
use crate::running::state;
use crate::spec::{Layout, MachineName};

#[derive(Debug, Args)]
pub(crate) struct EnableArguments {
    /// Machines
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Also start or stop them now
    #[arg(long)]
    now: bool,
}

/// `machinist enable`
pub(super) fn enable(layout: &Layout, args: &EnableArguments, quiet: bool) -> Result<u8, Failure> {
    let mut failures = Failures::default();
    let mut names = Vec::new();
    for name in &args.names {
        match machine_name(name).and_then(|name| Ok(config::load(layout, name.as_str())?.spec.name)) {
            Ok(name) => names.push(name),
            Err(failure) => failures.add(failure),
        }
    }
    change(layout, &names, true)?;
    names.iter().for_each(|name| say(quiet, &format!("Machine '{name}' starts with the host.")));
    if args.now {
        let stopped = names.iter().filter(|name| !runs(layout, name)).map(ToString::to_string).collect();
        let args = StartArguments { names: stopped, autostart: false, alone: false, no_wait: false, jobs: None };
        later(&mut failures, super::start::start(layout, &args, quiet));
    }
    failures.result()
}

/// `machinist disable`
pub(super) fn disable(layout: &Layout, args: &EnableArguments, quiet: bool) -> Result<u8, Failure> {
    let mut failures = Failures::default();
    let names = args.names.iter().map(|name| machine_name(name)).collect::<Result<Vec<_>, _>>()?;
    change(layout, &names, false)?;
    for name in &names {
        match config::load(layout, name.as_str()) {
            Ok(loaded) if loaded.spec.boot.autostart => output::warn(&format!(
                "machine '{name}' still starts with the host: `boot.autostart` says so in '{}'",
                loaded.definition.display()
            )),
            _ => say(quiet, &format!("Machine '{name}' does not start with the host.")),
        }
    }
    if args.now {
        let running = names.iter().filter(|name| runs(layout, name)).map(ToString::to_string).collect::<Vec<_>>();
        if !running.is_empty() {
            let args = StopArguments { names: running, all: false, timeout: None };
            later(&mut failures, super::stop::stop(layout, &args, quiet));
        }
    }
    failures.result()
}

fn later(failures: &mut Failures, result: Result<u8, Failure>) {
    if let Err(failure) = result {
        failures.add(failure);
    }
}

fn runs(layout: &Layout, name: &MachineName) -> bool {
    state::read(layout, name).is_ok_and(|state| state.is_some())
}

/// Asks systemd, or our own stand-in for it if we are not root; else makes or removes links ourselves.
fn change(layout: &Layout, names: &[MachineName], on: bool) -> Result<(), Failure> {
    let doing = |name: &MachineName| format!("cannot {} machine '{name}'", if on { "enable" } else { "disable" });
    let Some(first) = names.first() else { return Ok(()) };
    if carried::by_systemd(layout) || !nix::unistd::geteuid().is_root() {
        let mut files: Vec<String> = names.iter().map(unit::name).collect();
        // Machines are started by it, and it may be there and not be enabled.
        let target = "machines.target";
        if on && carried::installed(Path::new("/"), target).is_some() {
            files.push(target.to_owned());
        }
        systemd1::enable(&Bus::of(layout), &files, on).map_err(|e| carried::failed(&doing(first), &e))?;
        return Ok(());
    }
    for name in names {
        let call = |e| Failure::call(doing(name), &e);
        if on {
            autostart::enable(layout, name, false).map_err(call)?;
        } else {
            autostart::disable(layout, name, false).map_err(call)?;
            autostart::disable(layout, name, true).map_err(call)?;
        }
    }
    Ok(())
}
