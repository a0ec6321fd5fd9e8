//! `[[device]]`: its keys, how they are read, and what the entries may not be together.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::Value as Json;

use super::check::Check;
use super::complaint::Complaint;
use super::diagnostic::{Place, quoted};
use super::quantities::Mode;
use super::reader::{At, Entry, Keyed, Reader, Setting, Value, table};
use super::values::{HostPath, read_text};
use crate::spec::{Device, GuestPath, ID_RANGE_SIZE, Permission, UserMode};

table! {
    /// A device of the host that the machine may use: its node, its owner and what may be done with it. "Operation not
    /// permitted" (EPERM) from a device in the machine means that it has no entry here, or one whose `permission` lacks the
    /// letter; "Permission denied" (EACCES) is about `owner` and `mode`, or about a device that comes from elsewhere, such as
    /// a bind. What a device can do to the host, a machine that has it can do.
    DeviceTable {
        /// Absolute path of the device's node on the host, such as "/dev/fuse". Symlinks are followed.
        "node" node: Option<HostPath> = None,
        /// Absolute path in the machine, below /dev; the same as the node unless set.
        "target" target: Option<GuestPath> = None,
        /// What may be done: letters of read, write and mknod (which takes a machine without a user namespace).
        "permission" permission: Permission = Permission::DEFAULT,
        /// User and group of the node, as ids in the machine or "root".
        "owner" owner: Owner = Owner { uid: 0, gid: 0 },
        /// Mode of the node, in octal digits.
        "mode" mode: Mode = Mode(0o660),
        /// Start the machine without the device if the host has no such node.
        "optional" optional: bool = false,
    }
}

impl Keyed for DeviceTable {
    fn identity(&self) -> Option<&str> {
        let target = self.target.value.as_ref().map(GuestPath::as_str);
        if self.target.is_set() { target } else { self.node.value.as_ref().map(HostPath::as_str) }
    }
}

fn parse_permission(text: &str) -> Result<Permission, Complaint> {
    let mut read = Permission { read: false, write: false, make: false };
    for letter in text.chars() {
        let on = match letter {
            'r' => &mut read.read,
            'w' => &mut read.write,
            'm' => &mut read.make,
            _ => return Err(Complaint::new(format!("{} is more than the letters r, w and m", quoted(text)))),
        };
        if std::mem::replace(on, true) {
            return Err(Complaint::new(format!("{} has a letter twice", quoted(text))));
        }
    }
    if text.is_empty() {
        let hint = "\"r\" for reading, \"w\" for writing, \"m\" for mknod, together as in \"rw\"";
        return Err(Complaint::new("allows nothing").hint(hint));
    }
    Ok(read)
}

impl Setting for Permission {
    fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        read_text(value, reader, "letters as a string, as in \"rw\"", parse_permission)
    }

    fn show(&self) -> Json {
        self.to_string().into()
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[rwm]{1,3}$" })
    }
}

/// User and group of a node, as ids in the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    fn parse(text: &str) -> Result<Self, Complaint> {
        let id = |word: &str| match word {
            "root" => Some(0),
            _ if word.is_empty() || !word.bytes().all(|b| b.is_ascii_digit()) => None,
            _ => word.parse().ok().filter(|id| *id != u32::MAX),
        };
        let ids = text.split_once(':').and_then(|(user, group)| Some(Self { uid: id(user)?, gid: id(group)? }));
        ids.ok_or_else(|| {
            Complaint::new(format!("{} is no user and group, as in \"root:root\" or \"0:44\"", quoted(text)))
                .hint("names other than root belong to the machine's own files; give their ids")
        })
    }
}

impl Setting for Owner {
    fn read(value: &Value<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        read_text(value, reader, "a user and a group as a string, as in \"root:root\"", Self::parse)
    }

    fn show(&self) -> Json {
        let word = |id: u32| if id == 0 { "root".to_owned() } else { id.to_string() };
        format!("{}:{}", word(self.uid), word(self.gid)).into()
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^(root|[0-9]+):(root|[0-9]+)$" })
    }
}

/// What `/dev` always holds beside mounts: none of it can be replaced, nor hold a device.
const STANDARD: [&str; 14] = [
    "null", "zero", "full", "random", "urandom", "tty", "ptmx", "fd", "stdin", "stdout", "stderr", "core", "shm",
    "mqueue",
];

/// Fills in targets that follow from the node.
pub(super) fn settle(rows: &mut [At<DeviceTable>]) {
    for row in rows {
        let DeviceTable { node, target, .. } = &mut row.value;
        if !target.is_set() {
            target.value = node.value.as_ref().and_then(|node| GuestPath::parse(node.as_str()).ok());
        }
    }
}

impl Check<'_> {
    /// Checks the entries, each by itself and against all that is mounted; to be called when the mounts are known.
    pub(super) fn devices(&mut self, rows: &[At<DeviceTable>], users: UserMode) -> Option<Vec<Device>> {
        let mounts: Vec<(GuestPath, Option<Place>)> =
            self.targets.iter().map(|(target, place)| (target.clone(), *place)).collect();
        let devices: Vec<Option<(Device, Option<Place>)>> = rows.iter().map(|row| self.device(row, users)).collect();
        let devices: Vec<(Device, Option<Place>)> = devices.into_iter().collect::<Option<_>>()?;
        for (device, place) in &devices {
            let target = &device.target;
            let is_below = |other: &GuestPath| target != other && target.is_at_or_below(other.as_str());
            if let Some((mount, earlier)) = mounts.iter().find(|(mount, _)| is_below(mount)) {
                let message = format!("`device.target`: '{target}' is hidden by what is mounted on '{mount}'");
                self.clash(*place, message, *earlier, "mounted here");
            }
            if let Some((other, earlier)) = devices.iter().find(|(other, _)| is_below(&other.target)) {
                let message = format!("`device.target`: '{}' is a device and no directory", other.target);
                self.clash(*place, message, *earlier, "the device");
            }
        }
        Some(devices.into_iter().map(|(device, _)| device).collect())
    }

    fn device(&mut self, row: &At<DeviceTable>, users: UserMode) -> Option<(Device, Option<Place>)> {
        let table = &row.value;
        let Some(node) = &table.node.value else {
            if !table.node.is_set() {
                self.report(row.place, "`device`: missing key `node`");
            }
            return None;
        };
        let place = table.target.place.or(table.node.place);
        let target = self.target("device", &table.target, table.node.place)?;
        match target.as_str().strip_prefix("/dev/") {
            None => {
                let hint = "set `target` to a path below /dev; programs look for devices there";
                let diagnostic = self.report(place, format!("`device.target`: '{target}' is not below /dev"));
                if !table.target.is_set() {
                    diagnostic.hint(hint);
                }
            }
            Some(name) if STANDARD.contains(&name.split('/').next().unwrap_or(name)) => {
                self.report(place, format!("`device.target`: '{target}' belongs to the /dev that every machine gets"));
            }
            Some(_) => {}
        }
        let Owner { uid, gid } = table.owner.value;
        let ids = match users {
            UserMode::Host => u32::MAX,
            UserMode::Auto | UserMode::Identity => ID_RANGE_SIZE,
            UserMode::Range(range) => range.size,
        };
        if let Some(id) = [uid, gid].into_iter().find(|id| *id >= ids) {
            self.report(
                table.owner.place,
                format!("`device.owner`: the machine has no id {id}, only 0 to {}", ids - 1),
            );
        }
        let mode = table.mode.value.0;
        if mode > 0o777 {
            self.report(table.mode.place, format!("`device.mode`: {mode:o} has bits that mean nothing for a device"));
        }
        let device = Device {
            node: node.as_str().into(),
            target,
            permission: table.permission.value,
            uid,
            gid,
            mode,
            optional: table.optional.value,
        };
        Some((device, place))
    }
}

#[cfg(test)]
mod tests {
    use super::super::reader::tests::shown;
    use super::*;

    #[test]
    fn permissions_are_letters_in_any_order_and_shown_in_one() {
        for (text, canonical) in [("rw", "rw"), ("r", "r"), ("wr", "rw"), ("mwr", "rwm"), ("m", "m")] {
            assert_eq!(shown::<Permission>(&format!("\"{text}\"")), Ok(format!("\"{canonical}\"")), "{text}");
        }
        for bad in ["", "R", "rx", "rr", "r w", "read"] {
            assert!(parse_permission(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn owners_are_ids_of_the_machine() {
        for (text, canonical) in [("root:root", "root:root"), ("0:44", "root:44"), ("1000:root", "1000:root")] {
            assert_eq!(shown::<Owner>(&format!("\"{text}\"")), Ok(format!("\"{canonical}\"")), "{text}");
        }
        for bad in
            ["", ":", "0", "root", "0:", ":0", "0:video", "0:-1", "+0:0", "0:4294967295", "0:0:0", "0:9999999999"]
        {
            assert!(Owner::parse(bad).is_err(), "{bad}");
        }
    }
}
