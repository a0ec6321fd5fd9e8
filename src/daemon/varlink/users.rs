//! `io.systemd.UserDatabase`: names for the ids that the processes of machines have on the host.
//!
//! `vu-MACHINE-UID` and `vg-MACHINE-GID` for machines with a user namespace, as `ps` and `ls` show them through
//! `nss-systemd(8)`. They cannot log in.

use serde_json::{Value, json};

use super::context::Context;
use super::wire::{Answer, Refusal, Reply};
use crate::daemon::core::inspect::{self, HOST_IDS};
use crate::daemon::core::registry::Class;
use crate::spec::MachineName;
use crate::sys::namespace::Ids;

/// What callers must say they ask.
const SERVICE: &str = "io.systemd.Machine";
/// Group of users that have none of their own.
const OVERFLOW: u32 = 65534;

/// Answers a call.
pub(super) fn serve(context: &mut Context<'_>, method: &str) -> Answer<Vec<Reply>> {
    let group = match method {
        "GetUserRecord" => false,
        "GetGroupRecord" => true,
        _ => return memberships(context),
    };
    let (id_field, name_field) = if group { ("gid", "groupName") } else { ("uid", "userName") };
    let id: Option<u32> = context.parameters.get(id_field)?;
    let name: Option<String> = context.parameters.get(name_field)?;
    service(context)?;
    let found = match (id, name) {
        (None, None) => return Err(error("EnumerationNotSupported")),
        (Some(id), None) => by_id(context, group, id)?,
        (None, Some(name)) => by_name(context, group, &name)?,
        (Some(id), Some(name)) => {
            let found = by_name(context, group, &name)?;
            if found.id != id {
                return Err(error("ConflictingRecordFound"));
            }
            found
        }
    };
    Ok(vec![json!({ "record": found.record(group) }).into()])
}

fn error(name: &str) -> Refusal {
    Refusal::named(format!("io.systemd.UserDatabase.{name}"))
}

fn service(context: &mut Context<'_>) -> Answer<()> {
    let service: String = context.parameters.need("service")?;
    context.no_more()?;
    if service == SERVICE { Ok(()) } else { Err(error("BadService")) }
}

fn memberships(context: &mut Context<'_>) -> Answer<Vec<Reply>> {
    let _: Option<String> = context.parameters.get("userName")?;
    let _: Option<String> = context.parameters.get("groupName")?;
    service(context)?;
    Err(error("NoRecordFound"))
}

/// A user or group of a machine.
struct Found {
    machine: String,
    /// In the machine.
    inner: u32,
    /// On the host.
    id: u32,
}

impl Found {
    fn record(&self, group: bool) -> Value {
        let Self { machine, inner, id } = self;
        if group {
            return json!({
                "groupName": format!("vg-{machine}-{inner}"),
                "gid": id,
                "description": format!("GID {inner} of Container {machine}"),
                "service": SERVICE,
                "disposition": "container",
            });
        }
        json!({
            "userName": format!("vu-{machine}-{inner}"),
            "uid": id,
            "gid": OVERFLOW,
            "realName": format!("UID {inner} of Container {machine}"),
            "homeDirectory": "/",
            "shell": "/usr/sbin/nologin",
            "locked": true,
            "service": SERVICE,
            "disposition": "container",
        })
    }
}

fn ids(group: bool) -> Ids {
    if group { Ids::Groups } else { Ids::Users }
}

fn by_id(context: &Context<'_>, group: bool, id: u32) -> Answer<Found> {
    if id < HOST_IDS {
        return Err(error("NoRecordFound"));
    }
    let found = inspect::owner_of_id(context.daemon, ids(group), id);
    let (machine, inner) = found.map_err(|_| error("NoRecordFound"))?;
    Ok(Found { machine: machine.name.clone(), inner, id })
}

fn by_name(context: &Context<'_>, group: bool, name: &str) -> Answer<Found> {
    let none = || error("NoRecordFound");
    let (machine, inner) = parse(name, group).ok_or_else(none)?;
    let known = context.daemon.registry().get(machine).is_some_and(|m| m.class == Class::Container);
    if !known {
        return Err(none());
    }
    let id = inspect::id_on_host(context.daemon, machine, ids(group), inner).map_err(|_| none())?;
    // Machines without a user namespace have the users of the host.
    if id < HOST_IDS {
        return Err(none());
    }
    Ok(Found { machine: machine.to_owned(), inner, id })
}

/// Machine and id of a name; there is one way to write each.
fn parse(name: &str, group: bool) -> Option<(&str, u32)> {
    let rest = name.strip_prefix(if group { "vg-" } else { "vu-" })?;
    let (machine, digits) = rest.rsplit_once('-')?;
    let plain = digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    MachineName::parse(machine).ok()?;
    Some((machine, digits.parse().ok().filter(|_| plain)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_users_say_machine_and_id() {
        assert_eq!(parse("vu-web-0", false), Some(("web", 0)));
        assert_eq!(parse("vu-my-web-33", false), Some(("my-web", 33)));
        assert_eq!(parse("vg-web-65534", true), Some(("web", 65534)));
        for name in ["vu-web", "vu--0", "vg-web-0", "web-0", "vu-web-", "vu-web-00", "vu-web-+1", "vu-web-4294967296"] {
            assert_eq!(parse(name, false), None, "{name}");
        }
        assert_eq!(parse("vu-../x-1", false), None);
    }
}
