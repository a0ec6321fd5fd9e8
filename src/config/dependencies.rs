//! [`Family`]: definitions together with all that they name in `boot.after`, `requires` and `wants`.
//!
//! One definition alone may name machines that do not exist; whether they do is looked at here, where it matters.

use std::collections::BTreeMap;
use std::path::Path;

use super::diagnostic::{Diagnostic, nearest};
use super::error::ConfigError;
use super::find::{definition, list};
use super::links::Link;
use super::load::{Loaded, load};
use super::merge;
use crate::spec::{Layout, MachineName};

/// One definition of a family.
#[derive(Debug)]
pub struct Member {
    /// The definition's name or file, as [`load`] takes it.
    pub source: String,
    /// The definition by itself, or what is wrong with it.
    pub alone: Result<Loaded, ConfigError>,
    /// What it requires and no file defines.
    missing: Option<ConfigError>,
    /// What it names and does without, one sentence each.
    pub warnings: Vec<String>,
}

impl Member {
    /// The definition, or what is wrong with it: what it requires is there if it is right.
    pub fn loaded(&self) -> Result<&Loaded, &ConfigError> {
        self.missing.as_ref().map_or(self.alone.as_ref(), Err)
    }
}

/// Definitions with all that they name.
#[derive(Debug, Default)]
pub struct Family {
    members: BTreeMap<MachineName, Member>,
}

impl Family {
    /// Loads definitions by name or file, and everything that they lead to; for each requested one its machine, or
    /// why it has none.
    ///
    /// What a definition names that was given as a file is looked for beside it first, as its profiles are.
    pub fn gather(layout: &Layout, names_or_files: &[String]) -> (Self, Vec<Result<MachineName, ConfigError>>) {
        let mut family = Self::default();
        let mut open: Vec<MachineName> = Vec::new();
        let asked = names_or_files.iter().map(|source| {
            let loaded = load(layout, source)?;
            let name = loaded.spec.name.clone();
            if !family.members.contains_key(&name) {
                family.insert(name.clone(), source.clone(), Ok(loaded));
                open.push(name.clone());
            }
            Ok(name)
        });
        let asked: Vec<Result<MachineName, ConfigError>> = asked.collect();
        while let Some(name) = open.pop() {
            open.extend(family.follow(layout, &name));
        }
        (family, asked)
    }

    fn insert(&mut self, name: MachineName, source: String, alone: Result<Loaded, ConfigError>) {
        self.members.insert(name, Member { source, alone, missing: None, warnings: Vec::new() });
    }

    /// Loads what a member names; gives those that are new.
    fn follow(&mut self, layout: &Layout, name: &MachineName) -> Vec<MachineName> {
        let Some(Member { source, alone: Ok(loaded), .. }) = self.members.get(name) else { return Vec::new() };
        let beside = if merge::is_file(source) { Path::new(source).parent() } else { None };
        let located = loaded.links.iter().map(|link| (link, locate(layout, beside, &link.name)));
        let (mut found, mut missing, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
        for (link, source) in located {
            match source {
                Some(source) => found.push((link.name.clone(), source)),
                None if link.key == "requires" => missing.push(missing_machine(layout, link)),
                None if link.key == "wants" => {
                    let (path, line) = (link.at.path().display(), link.at.line());
                    warnings
                        .push(format!("machine '{name}' wants '{}', which is not defined ({path}:{line})", link.name));
                }
                // As in systemd, an order among machines asks for none of them.
                None => {}
            }
        }
        if let Some(member) = self.members.get_mut(name) {
            member.warnings = warnings;
            member.missing = (!missing.is_empty()).then_some(ConfigError::Diagnostics(missing));
        }
        let mut new = Vec::new();
        for (name, source) in found {
            if !self.members.contains_key(&name) {
                let loaded = load(layout, &source);
                self.insert(name.clone(), source, loaded);
                new.push(name);
            }
        }
        new
    }

    /// A member.
    pub fn get(&self, name: &MachineName) -> Option<&Member> {
        self.members.get(name)
    }

    /// Takes a member's definition out of the family, if nothing is wrong with it.
    pub fn take(&mut self, name: &MachineName) -> Option<Loaded> {
        self.members.remove(name).filter(|member| member.missing.is_none())?.alone.ok()
    }

    /// Every member, by name.
    pub fn members(&self) -> impl Iterator<Item = (&MachineName, &Member)> {
        self.members.iter()
    }

    /// The error for a dependency cycle of machines: `cycle` ends where it begins.
    pub fn cycle(&self, cycle: &[MachineName]) -> ConfigError {
        let steps = cycle.iter().zip(cycle.iter().skip(1));
        let mut links = steps.filter_map(|(from, to)| {
            let loaded = self.members.get(from)?.loaded().ok()?;
            Some((from, loaded.links.iter().find(|link| link.name == *to)?))
        });
        let words: Vec<&str> = cycle.iter().map(MachineName::as_str).collect();
        let words = words.join(" -> ");
        let Some((_, first)) = links.next() else {
            let why = format!("machines wait for each other in a cycle: {words}");
            return ConfigError::Unfit { path: words.into(), why };
        };
        let mut problem = first.at.clone();
        problem.say(format!("`boot.{}`: machines wait for each other in a cycle: {words}", first.key));
        for (from, link) in links {
            problem.also(&link.at, format!("'{from}' waits for '{}'", link.name));
        }
        ConfigError::Diagnostics(vec![problem])
    }
}

/// Where a machine is defined, as [`load`] takes it.
fn locate(layout: &Layout, beside: Option<&Path>, name: &MachineName) -> Option<String> {
    let file = beside.map(|dir| dir.join(format!("{name}.toml"))).filter(|file| file.exists());
    if let Some(file) = file.and_then(|file| file.to_str().map(str::to_owned)) {
        return Some(file);
    }
    definition(layout, name).map(|_| name.to_string())
}

fn missing_machine(layout: &Layout, link: &Link) -> Diagnostic {
    let mut problem = link.at.clone();
    let known = list(layout);
    if let Some(near) = nearest(link.name.as_str(), known.iter().map(|(name, _)| name.as_str())) {
        problem.hint(format!("did you mean \"{near}\"?"));
    } else {
        problem.hint("`wants` asks for a machine that may be missing");
    }
    problem
}
