//! [`load`]: from the name of a definition to a machine that has been checked.

use std::path::{Path, PathBuf};

use super::error::{ConfigError, Texts};
use super::links::{Link, links};
use super::{merge, validate};
use crate::spec::{Layout, MachineSpec, Unmet};

/// A definition, understood.
#[derive(Debug)]
pub struct Loaded {
    /// What the machine is asked to be.
    pub spec: MachineSpec,
    /// The definition itself.
    pub definition: PathBuf,
    /// Every file that contributed, weakest first.
    pub files: Vec<PathBuf>,
    /// Every key with its effective value and who set it, in the order of the file format.
    pub origins: Vec<Origin>,
    /// Every machine it names.
    pub(super) links: Vec<Link>,
    /// The files' texts and the places of the keys in them, for problems that only show elsewhere.
    texts: Texts,
}

impl Loaded {
    /// The same for a whole definition, whose limits these are.
    pub fn refuse(self, unmet: &[Unmet]) -> ConfigError {
        self.texts.refuse(unmet)
    }
}

/// The effective value of one key and where it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Origin {
    /// Dotted, with an index for arrays of tables: `bind[0].target`.
    pub key: String,
    /// As the file has it; null for a key that is unset and has no default.
    pub value: serde_json::Value,
    /// Who set it.
    pub source: OriginSource,
}

/// Who set a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginSource {
    /// No file; the key has its default.
    Default,
    /// This line of this file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
}

/// Finds, reads and checks one definition, by name or by file.
pub fn load(layout: &Layout, name_or_file: &str) -> Result<Loaded, ConfigError> {
    load_with(layout, name_or_file, None)
}

/// The same with another text in one of its drop-ins, which need not exist.
pub fn load_with(layout: &Layout, name_or_file: &str, instead: Option<(&Path, &str)>) -> Result<Loaded, ConfigError> {
    let layered = merge::read(layout, name_or_file, instead)?;
    let merge::Layered { name, mut file, main, order, is_toml, mut problems } = layered;
    validate::settle(&name, &mut file);
    let spec = if is_toml { validate::validate(name, &file, main, &mut problems) } else { None };
    let Some(spec) = spec.filter(|_| problems.is_empty()) else {
        return Err(ConfigError::Diagnostics(problems.into_diagnostics()));
    };
    let links = links(&file.boot.value, &problems);
    let entries = file.entries();
    let places = entries.iter().filter_map(|entry| Some((entry.key.clone(), entry.place?))).collect();
    let origins = entries.into_iter().map(|entry| Origin {
        key: entry.key,
        value: entry.value,
        source: match entry.place {
            None => OriginSource::Default,
            Some(place) => {
                let source = problems.file(place.file);
                OriginSource::File { path: source.path.clone(), line: source.line(place.start) }
            }
        },
    });
    let origins = origins.collect();
    let files = order.iter().map(|index| problems.file(*index).path.clone()).collect();
    let definition = problems.file(main).path.clone();
    Ok(Loaded { spec, origins, files, definition, links, texts: Texts { problems, places, main } })
}
