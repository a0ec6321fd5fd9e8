//! Machines that are defined and have no image of their name, as images: machinectl asks for the image of a machine
//! before it starts or enables it.
//!
//! Such an image is not listed and cannot be changed: it is a definition that an administrator wrote, over trees that
//! others may use, too.

use std::path::{Path, PathBuf};

use super::error::Failure;
use super::state::Daemon;
use crate::config;
use crate::image::{Image, ImageKind};
use crate::spec::{MachineName, MachineSpec, RootSource};
use crate::sys::file;

/// A definition whose name is no image's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Defined {
    name: MachineName,
    definition: PathBuf,
}

/// Looks for the definition of that name.
pub(crate) fn find(daemon: &Daemon, name: &str) -> Option<Defined> {
    let name = MachineName::parse(name).ok()?;
    let definition = config::definition(&daemon.layout, &name)?;
    Some(Defined { name, definition })
}

impl Defined {
    /// Why an image that is none is not changed.
    pub(crate) fn refuse(&self, verb: &str) -> Failure {
        let Self { name, definition } = self;
        let text = format!(
            "There is no image '{name}': a machine of that name is defined by '{}', which {verb} does not change.",
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

    /// The definition as an image.
    pub(crate) fn image(&self, daemon: &Daemon) -> Image {
        let spec = config::load(&daemon.layout, self.name.as_str()).ok().map(|loaded| loaded.spec);
        // With faults in it, the definition is all that is known; starting the machine reports them.
        let path = spec.as_ref().map_or_else(|| self.definition.clone(), |spec| self.path(daemon, spec));
        let changed = changed(&self.definition);
        Image {
            name: self.name.as_str().to_owned(),
            path,
            kind: ImageKind::Directory,
            read_only: spec.is_some_and(|spec| spec.root.read_only),
            created_us: changed,
            modified_us: changed,
            usage: None,
            limit: None,
            usage_exclusive: None,
            limit_exclusive: None,
        }
    }
}

/// Time of the last change of a file, in microseconds since 1970.
fn changed(path: &Path) -> Option<u64> {
    let time = file::metadata(path).ok()?.modified().ok();
    let since = time.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    since.and_then(|t| u64::try_from(t.as_micros()).ok())
}
