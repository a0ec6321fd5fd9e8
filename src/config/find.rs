//! Which definitions there are, and where.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::spec::{Layout, MachineName, WordError};

/// Every definition there is, by name; of those with the same name the strongest.
///
/// Directories that cannot be read and files whose names are no machine names are passed over.
pub fn list(layout: &Layout) -> Vec<(MachineName, PathBuf)> {
    let mut found = BTreeMap::new();
    for (name, path) in candidates(layout) {
        if let Ok(name) = name {
            found.entry(name).or_insert(path);
        }
    }
    found.into_iter().collect()
}

/// The file that defines a machine; it may be wrong.
pub fn definition(layout: &Layout, name: &MachineName) -> Option<PathBuf> {
    layout.definition_dirs().map(|dir| dir.join(format!("{name}.toml"))).find(|file| file.exists())
}

/// Files that look like definitions but can never be one, because their names are no machine names.
pub fn strays(layout: &Layout) -> Vec<(PathBuf, WordError)> {
    candidates(layout).into_iter().filter_map(|(name, path)| Some((path, name.err()?))).collect()
}

/// Every `*.toml` of the definition directories, strongest directory first.
fn candidates(layout: &Layout) -> Vec<(Result<MachineName, WordError>, PathBuf)> {
    let entries = layout.definition_dirs().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten();
    let files = entries.filter(|entry| is_definition(&entry.file_name()));
    files
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (MachineName::parse(name.strip_suffix(".toml").unwrap_or(&name)), entry.path())
        })
        .collect()
}

/// Whether a directory entry counts: `*.toml` and not hidden.
pub(super) fn is_definition(name: &std::ffi::OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.ends_with(b".toml") && !name.starts_with(b".")
}
