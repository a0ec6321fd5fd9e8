//! [`Check`]: what the entries of a file may not be together.

use std::collections::HashMap;
use std::path::PathBuf;

use super::diagnostic::{Diagnostic, Place, Problems};
use super::reader::At;
use crate::spec::GuestPath;

/// Places in the machine that are ours: with everything below, or only the place itself.
const RESERVED: [(&str, bool); 6] =
    [("/proc", true), ("/sys", true), ("/dev", false), ("/dev/pts", true), ("/dev/console", true), ("/run/host", true)];

/// What is seen so far of things that may exist only once.
pub(super) struct Check<'p> {
    pub(super) problems: &'p mut Problems,
    main: usize,
    pub(super) targets: HashMap<GuestPath, Option<Place>>,
    pub(super) uppers: HashMap<PathBuf, Option<Place>>,
}

impl<'p> Check<'p> {
    pub(super) fn new(problems: &'p mut Problems, main: usize) -> Self {
        Self { problems, main, targets: HashMap::new(), uppers: HashMap::new() }
    }

    /// Records a problem of a value, or of the whole file when nothing in it set the value.
    pub(super) fn report(&mut self, place: Option<Place>, message: impl Into<String>) -> &mut Diagnostic {
        match place {
            Some(place) => self.problems.report(place, message),
            None => self.problems.report_file(self.main, message),
        }
    }

    pub(super) fn clash(
        &mut self,
        place: Option<Place>,
        message: impl Into<String>,
        earlier: Option<Place>,
        text: &str,
    ) {
        match place {
            Some(place) => drop(self.problems.clash(place, message, earlier, text)),
            None => drop(self.problems.report_file(self.main, message)),
        }
    }

    /// Checks that a target is given, is not one of ours and is not taken.
    pub(super) fn target(
        &mut self,
        key: &str,
        target: &At<Option<GuestPath>>,
        row: Option<Place>,
    ) -> Option<GuestPath> {
        let place = target.place.or(row);
        let Some(path) = &target.value else {
            if !target.is_set() {
                self.report(row, format!("`{key}`: missing key `target`"));
            }
            return None;
        };
        let is_ours = |(ours, below): &&(&str, bool)| path.as_str() == *ours || *below && path.is_at_or_below(ours);
        if let Some((ours, _)) = RESERVED.iter().find(is_ours) {
            self.report(place, format!("`{key}.target`: '{path}' belongs to the {ours} that every machine gets"));
        } else if let Some(earlier) = self.targets.insert(path.clone(), place) {
            let (first, second) = if earlier <= place { (earlier, place) } else { (place, earlier) };
            self.clash(second, format!("`target`: '{path}' is given twice"), first, "first here");
        }
        Some(path.clone())
    }
}
