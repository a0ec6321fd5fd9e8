//! The interfaces as text: what introspection shows and which methods there are; and the two that every service has.

use serde_json::json;

use super::context::{Context, nothing};
use super::wire::{Answer, Refusal, Reply};
use crate::daemon::core::state::Level;

/// What is served on a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    /// Machines and images.
    Machines,
    /// Users and groups of machines.
    Users,
}

/// One interface.
#[derive(Debug)]
pub(super) struct Interface {
    pub(super) name: &'static str,
    text: &'static str,
}

impl Interface {
    /// Whether it has a method of that name.
    pub(super) fn has(&self, method: &str) -> bool {
        self.text.lines().filter_map(|l| l.strip_prefix("method ")).any(|l| l.split('(').next() == Some(method))
    }
}

const ERRORS: Interface = Interface { name: "io.systemd", text: include_str!("io.systemd.varlink") };
const MACHINE: Interface = Interface { name: "io.systemd.Machine", text: include_str!("io.systemd.Machine.varlink") };
const IMAGE: Interface =
    Interface { name: "io.systemd.MachineImage", text: include_str!("io.systemd.MachineImage.varlink") };
const USERS: Interface =
    Interface { name: "io.systemd.UserDatabase", text: include_str!("io.systemd.UserDatabase.varlink") };
const CONTROL: Interface = Interface { name: "io.systemd.service", text: include_str!("io.systemd.service.varlink") };
const SERVICE: Interface = Interface { name: "org.varlink.service", text: include_str!("org.varlink.service.varlink") };

/// The interfaces of a socket, by name.
pub(super) fn of(service: Service) -> &'static [Interface] {
    match service {
        Service::Machines => &[ERRORS, MACHINE, IMAGE, CONTROL, SERVICE],
        Service::Users => &[ERRORS, USERS, CONTROL, SERVICE],
    }
}

/// `org.varlink.service`.
pub(super) fn describe(context: &mut Context<'_>, method: &str, served: &[Interface]) -> Answer<Vec<Reply>> {
    if method == "GetInfo" {
        context.no_more()?;
        let names: Vec<&str> = served.iter().map(|i| i.name).collect();
        return Ok(vec![
            json!({
                "vendor": "Machinist",
                "product": "Machinist",
                "version": env!("CARGO_PKG_VERSION"),
                "url": env!("CARGO_PKG_REPOSITORY"),
                "interfaces": names,
            })
            .into(),
        ]);
    }
    let wanted: String = context.parameters.need("interface")?;
    context.no_more()?;
    let found = served.iter().find(|i| i.name == wanted).ok_or_else(|| Refusal {
        name: "org.varlink.service.InterfaceNotFound".into(),
        parameters: json!({ "interface": wanted }),
    })?;
    Ok(vec![json!({ "description": found.text }).into()])
}

/// `io.systemd.service`.
pub(super) fn control(context: &mut Context<'_>, method: &str) -> Answer<Vec<Reply>> {
    match method {
        "Ping" => {
            context.no_more()?;
            Ok(nothing())
        }
        "GetLogLevel" => {
            context.no_more()?;
            Ok(vec![json!({ "level": context.daemon.level() as u8 }).into()])
        }
        _ => {
            let number: usize = context.parameters.need("level")?;
            context.no_more()?;
            let level = Level::from_number(number).ok_or_else(|| Refusal::invalid("level"))?;
            if context.peer.uid != 0 {
                return Err(Refusal::named("org.varlink.service.PermissionDenied"));
            }
            context.daemon.set_level(level);
            Ok(nothing())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_interface_says_its_name_and_ends_its_lines() {
        for interface in of(Service::Machines).iter().chain(of(Service::Users)) {
            let first = interface.text.lines().find(|l| !l.is_empty() && !l.starts_with('#')).expect("a line");
            assert_eq!(first, format!("interface {}", interface.name));
            assert!(interface.text.ends_with('\n') && !interface.text.contains('\r'), "{}", interface.name);
            assert_eq!(interface.text.matches('(').count(), interface.text.matches(')').count(), "{}", interface.name);
        }
    }

    #[test]
    fn methods_are_found_by_their_whole_name() {
        assert!(MACHINE.has("List") && MACHINE.has("OpenRootDirectory") && MACHINE.has("Open"));
        assert!(!MACHINE.has("Lis") && !MACHINE.has("NoSuchMachine") && !MACHINE.has(""));
        assert!(SERVICE.has("GetInfo") && CONTROL.has("Ping") && USERS.has("GetMemberships"));
    }
}
