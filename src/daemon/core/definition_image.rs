//! Machines that are defined and have no image of their name, as images: machinectl asks for the image of a machine
//! before it starts or enables it.
//!
//! Such an image is not listed and cannot be changed: it is a definition that an administrator wrote, over trees that
//! others may use, too.

use std::path::{Path, PathBuf};

use zbus::wire::Variant;

use super::state::Daemon;
use crate::config;
use crate::daemon::dbus::call::{Call, Failure, Outcome};
use crate::daemon::dbus::image;
use crate::daemon::dbus::objects::{self, Properties};
use crate::spec::{MachineName, MachineSpec, RootSource};

/// A definition whose name is no image's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Defined {
    name: MachineName,
    definition: PathBuf,
}

/// Looks for the definition of that name, unless there is an image of it.
pub(crate) fn find(daemon: &Daemon, name: &str) -> Option<Defined> {
    if image::exists(daemon, name) {
        return None;
    }
    let name = MachineName::parse(name).ok()?;
    let definition = config::definition(&daemon.layout, &name)?;
    Some(Defined { name, definition })
}

impl Defined {
    fn refuse(&self, member: &str) -> Failure {
        let Self { name, definition } = self;
        let text = format!(
            "There is no image '{name}': a machine of that name is defined by '{}', which {member} does not change.",
            definition.display()
        );
        Failure::not_supported(text)
    }

    /// Where the machine's files are: its root, the directory of its writes, or the uppermost layer.
    fn path(&self, daemon: &Daemon, spec: &MachineSpec) -> PathBuf {
        match &spec.root.source {
            RootSource::Directory(path) => path.clone(),
            RootSource::Overlay { lower, upper } => {
                let lower = || lower.first().map(|layer| daemon.layout.layer(layer)).unwrap_or_default();
                daemon.layout.upper(&self.name, upper, "root").map_or_else(lower, |dir| dir.join("upper"))
            }
        }
    }

    pub(crate) fn properties(&self, daemon: &Daemon) -> Properties {
        let spec = config::load(&daemon.layout, self.name.as_str()).ok().map(|loaded| loaded.spec);
        // With faults in it, the definition is all that is known; starting the machine tells them.
        let path = spec.as_ref().map_or_else(|| self.definition.clone(), |spec| self.path(daemon, spec));
        let unknown = || Variant::from(u64::MAX);
        vec![
            ("Name", Variant::from(self.name.as_str().to_owned())),
            ("Path", Variant::from(path.display().to_string())),
            ("Type", Variant::from("directory")),
            ("ReadOnly", Variant::from(spec.is_some_and(|spec| spec.root.read_only))),
            ("CreationTimestamp", Variant::from(changed(&self.definition))),
            ("ModificationTimestamp", Variant::from(changed(&self.definition))),
            ("Usage", unknown()),
            ("Limit", unknown()),
            ("UsageExclusive", unknown()),
            ("LimitExclusive", unknown()),
        ]
    }

    /// Methods of the image's object, and those of the manager about it.
    pub(crate) fn call(&self, call: &Call, member: &str) -> Outcome {
        let without_image = member.replace("Image", "");
        match without_image.as_str() {
            // What is in its layers is told of their images.
            "GetHostname" => call.reply(&""),
            "GetMachineID" => call.reply(&Vec::<u8>::new()),
            "GetMachineInfo" | "GetOSRelease" => call.reply(&std::collections::BTreeMap::<&str, &str>::new()),
            "Remove" | "Rename" | "Clone" | "MarkReadOnly" | "SetLimit" => Err(self.refuse(member)),
            _ => Err(objects::unknown_method(call)),
        }
    }
}

/// The image that a method of the manager is about, if it is only a definition.
pub(crate) fn subject(daemon: &Daemon, call: &Call, member: &str) -> Outcome<Option<Defined>> {
    let name: String = match member {
        "RenameImage" => call.arguments::<(String, String)>()?.0,
        "CloneImage" => call.arguments::<(String, String, bool)>()?.0,
        "MarkImageReadOnly" => call.arguments::<(String, bool)>()?.0,
        "SetImageLimit" => call.arguments::<(String, u64)>()?.0,
        "RemoveImage" | "GetImageHostname" | "GetImageMachineID" | "GetImageMachineInfo" | "GetImageOSRelease" => {
            call.arguments()?
        }
        _ => return Ok(None),
    };
    Ok(find(daemon, &name))
}

/// Time of the last change of a file, in microseconds since 1970.
fn changed(path: &Path) -> u64 {
    let time = std::fs::metadata(path).and_then(|m| m.modified()).ok();
    let since = time.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    since.map_or(0, |t| u64::try_from(t.as_micros()).unwrap_or(u64::MAX))
}
