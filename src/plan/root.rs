//! [`RootPlan`]: where the root tree comes from.

use std::path::PathBuf;

use serde::Serialize;

use crate::spec::{Layout, MachineSpec, RootSource, Upper, Volatile};

/// The root tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RootPlan {
    /// Directory or overlay, with every name turned into a path.
    pub source: TreePlan,
    /// No writes to it.
    pub read_only: bool,
    /// What of it forgets its writes.
    pub volatile: Volatile,
    /// Refuse a tree without os-release.
    pub check_os_release: bool,
}

/// A tree of the host or a stack of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TreePlan {
    /// This directory.
    Directory(PathBuf),
    /// This stack.
    Overlay(OverlayPlan),
}

/// An overlay mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct OverlayPlan {
    /// Topmost first.
    pub lower: Vec<PathBuf>,
    /// Where writes go; without one the overlay is read-only.
    pub upper: Option<UpperPlan>,
}

/// Where the writes of an overlay go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpperPlan {
    /// A tmpfs that lives as long as the mount.
    Memory,
    /// `upper` and `work` in this directory, which is made if missing.
    Directory(PathBuf),
}

/// How an overlay gets its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OverlayMethod {
    /// As open files (Linux 6.13).
    OpenFiles,
    /// By path: each is attached in a private mount namespace first.
    Attached,
}

/// How the file systems in memory that are made for a machine come to belong to its ids, where these are not the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TmpfsMethod {
    /// By an idmapped mount (Linux 6.3), which saves a chown for each node.
    Map,
    /// Each node is given to them.
    Chown,
}

pub(super) fn plan(spec: &MachineSpec, layout: &Layout) -> RootPlan {
    let source = match &spec.root.source {
        RootSource::Directory(path) => TreePlan::Directory(path.clone()),
        RootSource::Overlay { lower, upper } => TreePlan::Overlay(OverlayPlan {
            lower: lower.iter().map(|l| layout.layer(l)).collect(),
            upper: Some(upper_plan(spec, layout, upper, "root")),
        }),
    };
    RootPlan {
        source,
        read_only: spec.root.read_only || spec.root.volatile != Volatile::No,
        volatile: spec.root.volatile,
        check_os_release: spec.boot.check_os_release,
    }
}

pub(super) fn upper_plan(spec: &MachineSpec, layout: &Layout, upper: &Upper, which: &str) -> UpperPlan {
    layout.upper(&spec.name, upper, which).map_or(UpperPlan::Memory, UpperPlan::Directory)
}
