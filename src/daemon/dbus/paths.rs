//! Where objects are on the bus.

use zbus::wire::OwnedObjectPath;

use super::call::{Answer, Refusal};
use crate::bus::label::escape;

/// Path of the manager of machine1.
pub(crate) const MANAGER: &str = "/org/freedesktop/machine1";
/// Below it, all machines.
pub(crate) const MACHINES: &str = "/org/freedesktop/machine1/machine";
/// Below it, all images.
pub(crate) const IMAGES: &str = "/org/freedesktop/machine1/image";
/// Path of our own manager.
pub(crate) const OWN: &str = "/org/machinist1";
/// Below it, all machines of ours.
pub(crate) const OWN_MACHINES: &str = "/org/machinist1/machine";
/// Path of the log's settings.
pub(crate) const LOG_CONTROL: &str = "/org/freedesktop/LogControl1";
/// Path of systemd's manager.
pub(crate) const SYSTEMD: &str = "/org/freedesktop/systemd1";
/// Below it, all units.
pub(crate) const UNITS: &str = "/org/freedesktop/systemd1/unit";

/// A path as it is sent.
pub(crate) fn object_path(path: String) -> Answer<OwnedObjectPath> {
    OwnedObjectPath::try_from(path).map_err(Refusal::failed)
}

/// The path of a machine's object.
pub(crate) fn machine(name: &str) -> Answer<OwnedObjectPath> {
    object_path(format!("{MACHINES}/{}", escape(name)))
}

/// The path of an image's object.
pub(crate) fn image(name: &str) -> Answer<OwnedObjectPath> {
    object_path(format!("{IMAGES}/{}", escape(name)))
}

/// The path of a unit's object.
pub(crate) fn unit(name: &str) -> Answer<OwnedObjectPath> {
    object_path(format!("{UNITS}/{}", escape(name)))
}
