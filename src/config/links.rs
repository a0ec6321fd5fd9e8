//! The machines that a definition names.

use super::diagnostic::{Diagnostic, Problems};
use super::file::BootTable;
use super::reader::At;
use crate::spec::MachineName;

/// One machine that a definition names, and where it does.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) key: &'static str,
    pub(super) name: MachineName,
    pub(super) at: Diagnostic,
}

/// Every machine that a definition names, the strongest tie first.
pub(super) fn links(boot: &BootTable, problems: &Problems) -> Vec<Link> {
    let lists: [(&'static str, &[At<MachineName>]); 3] =
        [("requires", &boot.requires.value), ("wants", &boot.wants.value), ("after", &boot.after.value)];
    let links = lists.into_iter().flat_map(|(key, list)| {
        list.iter().filter_map(move |other| {
            let message = format!("`boot.{key}`: there is no machine '{}'", other.value);
            Some(Link { key, name: other.value.clone(), at: problems.quoting(other.place?, message) })
        })
    });
    links.collect()
}
