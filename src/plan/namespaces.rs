//! [`Namespaces`] and [`IdPlan`]: what is the machine's own, and which ids it has.

use std::path::PathBuf;

use serde::Serialize;

use crate::spec::IdRange;

/// The namespaces of a machine besides that of mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the kernel's names")]
pub struct Namespaces {
    /// Ids and capabilities. The children cannot join one: they need the rights of the host until the end.
    pub user: Namespace,
    pub network: Namespace,
    pub pid: Namespace,
    pub uts: Namespace,
    pub ipc: Namespace,
    pub cgroup: Namespace,
    /// Boot clock.
    pub time: Namespace,
}

/// Where a machine gets a namespace from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Namespace {
    /// It is made for the machine.
    New,
    /// The host's.
    Host,
    /// The one that this file stands for, as `ip netns` makes them.
    Join(PathBuf),
}

impl Namespace {
    pub(super) fn new_if(new: bool) -> Self {
        if new { Self::New } else { Self::Host }
    }

    /// Whether it is made for the machine.
    pub fn is_new(&self) -> bool {
        *self == Self::New
    }

    /// Whether it is another one than the host's.
    pub fn is_own(&self) -> bool {
        *self != Self::Host
    }
}

/// Which host ids a machine gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum IdPlan {
    /// Those of the host: no user namespace.
    Host,
    /// A user namespace onto the host's first 65,536 ids.
    Identity,
    /// The remembered range, or one picked by the machine's name.
    Picked,
    /// Exactly this range.
    Fixed(IdRange),
}
