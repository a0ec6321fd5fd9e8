//! The settings of a machine's unit `machinist@NAME.service` beyond the template: a drop-in that the generator writes.
//! Pure.
//!
//! All settings come from the definition; none is stored in `/etc/systemd`, where it would have to be kept up to date.

use std::path::Path;

use crate::spec::{MachineName, MachineSpec, Restart, service_unit};

/// The file's name in the directory of drop-ins.
pub const DROP_IN: &str = "50-machine.conf";

/// The unit of which every machine's is an instance.
pub const TEMPLATE: &str = "machinist@.service";

/// The unit of a machine.
pub fn name(machine: &MachineName) -> String {
    service_unit(machine.as_str())
}

/// The drop-in of a machine's unit, if it needs one.
///
/// What is wanted or ordered after and not defined is left out, as systemd would start a unit for it. What is required
/// stays: systemd must refuse to start the machine without it.
pub fn drop_in(spec: &MachineSpec, definition: &Path, defined: impl Fn(&MachineName) -> bool) -> Option<String> {
    let order = &spec.boot.order;
    let known = |list: &[MachineName]| list.iter().filter(|other| defined(other)).cloned().collect::<Vec<_>>();
    let (wants, after) = (known(&order.wants), known(&order.after));
    let mut before_it: Vec<&MachineName> = Vec::new();
    for other in order.requires.iter().chain(&wants).chain(&after) {
        if !before_it.contains(&other) {
            before_it.push(other);
        }
    }
    let mut text = String::new();
    let mut line = |key: &str, machines: &mut dyn Iterator<Item = &MachineName>| {
        let units: Vec<String> = machines.map(name).collect();
        if !units.is_empty() {
            text.push_str(&format!("{key}={}\n", units.join(" ")));
        }
    };
    line("Requires", &mut order.requires.iter());
    line("Wants", &mut wants.iter());
    line("After", &mut before_it.into_iter());
    let mut sections = Vec::new();
    if !text.is_empty() {
        sections.push(format!("[Unit]\n{text}"));
    }
    let mut service = String::new();
    if spec.boot.restart.when != Restart::No {
        // The supervisor starts its machine again; this is for a supervisor that was killed.
        service.push_str("Restart=on-abnormal\n");
    }
    if spec.resources.pids_max.is_some() {
        // The template's limit, which is for machines that set none, would apply beside theirs.
        service.push_str("TasksMax=infinity\n");
    }
    if !service.is_empty() {
        sections.push(format!("[Service]\n{service}"));
    }
    let head = format!("# Made from {}; `systemctl daemon-reload` regenerates it.\n", definition.display());
    (!sections.is_empty()).then(|| format!("{head}\n{}", sections.join("\n")))
}
