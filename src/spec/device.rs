//! Devices of the host that a machine may use.

use std::fmt;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::GuestPath;

/// `[[device]]`: a node, who owns it, and what may be done with it, in one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Device {
    /// The host's node; symlinks to it are followed, so that `/dev/disk/by-id/…` works.
    pub node: PathBuf,
    /// Where the machine has it, below `/dev`.
    pub target: GuestPath,
    /// What the machine's processes may do with the device, whatever their ids and capabilities.
    pub permission: Permission,
    /// Owner of the node, as an id in the machine.
    pub uid: u32,
    /// Its group, as an id in the machine.
    pub gid: u32,
    /// Permission bits of the node.
    pub mode: u32,
    /// Go on without it where the host has no such node.
    pub optional: bool,
}

/// What may be done with a device, as the kernel's device control tells it apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permission {
    /// Open it for reading.
    pub read: bool,
    /// Open it for writing.
    pub write: bool,
    /// Make further nodes of it, which takes a machine without a user namespace.
    pub make: bool,
}

impl Permission {
    /// Reading and writing.
    pub const DEFAULT: Self = Self { read: true, write: true, make: false };
}

/// The letters of the kernel: `r`, `w`, `m`.
impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = [(self.read, 'r'), (self.write, 'w'), (self.make, 'm')];
        letters.iter().filter(|(on, _)| *on).try_for_each(|(_, letter)| write!(f, "{letter}"))
    }
}

impl Serialize for Permission {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
