//! Finds the files of a definition and lays them over each other: profiles, main file, drop-ins.
//!
//! The only input of `config` is here. One open for each place a file may be; nothing is looked at twice.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::diagnostic::{Place, Problems, escaped, nearest};
use super::error::ConfigError;
use super::file::{MachineFile, table_with};
use super::find::{is_definition, list};
use super::reader::{At, Reader, Setting};
use super::values::ProfileName;
use crate::spec::{Layout, MachineName};

/// Largest file that is read at all.
const MAX_FILE: u64 = 1 << 20;

/// A definition with all its layers merged.
pub(super) struct Layered {
    pub(super) name: MachineName,
    pub(super) file: MachineFile,
    /// Number of the definition's own file among the problems' files.
    pub(super) main: usize,
    /// Numbers of all files, weakest first.
    pub(super) order: Vec<usize>,
    /// Whether every file is TOML; if not, what is missing may only be unreadable.
    pub(super) is_toml: bool,
    pub(super) problems: Problems,
}

/// Whether the user means a file rather than a name.
pub(super) fn is_file(name_or_file: &str) -> bool {
    name_or_file.contains('/') || name_or_file.ends_with(".toml")
}

/// Finds, reads and merges everything that defines one machine; `instead` is a drop-in that is to have another text.
pub(super) fn read(
    layout: &Layout,
    name_or_file: &str,
    instead: Option<(&Path, &str)>,
) -> Result<Layered, ConfigError> {
    let place = if is_file(name_or_file) { at_file(layout, name_or_file)? } else { by_name(layout, name_or_file)? };
    let mut reading = Reading { problems: Problems::default(), profile_dirs: place.profile_dirs, is_toml: true };
    let (main, mut top) = reading.parse(place.path, place.text);
    let mut order = vec![main];
    for path in drop_ins(&place.drop_in_dirs, instead.map(|(path, _)| path))? {
        let text = match instead.filter(|(other, _)| *other == path) {
            Some((_, text)) => Some(text.to_owned()),
            None => read_text(&path)?,
        };
        let Some(text) = text else { continue };
        let (index, file) = reading.parse(path, text);
        order.push(index);
        top.put_over(file);
    }
    let mut profiles = Profiles { chain: Vec::new(), done: Vec::new() };
    for profile in &top.extends.value {
        reading.profile(profile, &mut profiles)?;
    }
    if !profiles.done.is_empty() {
        let mut file = MachineFile::unset();
        order.splice(0..0, profiles.done.iter().map(|(_, index, _)| *index));
        profiles.done.into_iter().for_each(|(_, _, profile)| file.put_over(profile));
        file.put_over(top);
        top = file;
    }
    Ok(Layered { name: place.name, file: top, main, order, is_toml: reading.is_toml, problems: reading.problems })
}

/// Where a definition was found, and where to look for what belongs to it.
struct Found {
    name: MachineName,
    path: PathBuf,
    text: String,
    drop_in_dirs: Vec<PathBuf>,
    profile_dirs: Vec<PathBuf>,
}

fn by_name(layout: &Layout, name: &str) -> Result<Found, ConfigError> {
    let name = MachineName::parse(name).map_err(ConfigError::Name)?;
    let paths: Vec<PathBuf> = layout.definition_dirs().map(|dir| dir.join(format!("{name}.toml"))).collect();
    for path in &paths {
        if let Some(text) = read_text(path)? {
            return Ok(Found {
                path: path.clone(),
                text,
                drop_in_dirs: paths.iter().map(|path| path.with_extension("toml.d")).collect(),
                profile_dirs: layout.config_dirs().iter().map(|dir| dir.join("profiles")).collect(),
                name,
            });
        }
    }
    let known = list(layout);
    let nearest = nearest(name.as_str(), known.iter().map(|(name, _)| name.as_str())).map(str::to_owned);
    Err(ConfigError::NotFound { name: name.as_str().to_owned(), looked: paths, nearest })
}

fn at_file(layout: &Layout, file: &str) -> Result<Found, ConfigError> {
    let path = PathBuf::from(file);
    let base = file.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let name = MachineName::parse(base.strip_suffix(".toml").unwrap_or(base)).map_err(ConfigError::Name)?;
    let Some(text) = read_text(&path)? else {
        return Err(ConfigError::Io { action: "open", path, error: io::Error::from_raw_os_error(libc::ENOENT) });
    };
    let beside = path.parent().map(|dir| dir.join("profiles"));
    let profile_dirs = beside.into_iter().chain(layout.config_dirs().iter().map(|dir| dir.join("profiles"))).collect();
    let mut drop_in_dir = path.clone().into_os_string();
    drop_in_dir.push(".d");
    Ok(Found { name, path, text, drop_in_dirs: vec![drop_in_dir.into()], profile_dirs })
}

/// Drop-ins of all directories by file name; of two with the same name `more`, which need not exist, or the stronger
/// directory's.
fn drop_ins(dirs: &[PathBuf], more: Option<&Path>) -> Result<Vec<PathBuf>, ConfigError> {
    let mut found: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    found.extend(more.and_then(|path| Some((path.file_name()?.to_owned(), path.to_owned()))));
    for dir in dirs {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(ConfigError::Io { action: "list", path: dir.clone(), error }),
        };
        for entry in entries {
            let entry = entry.map_err(|error| ConfigError::Io { action: "list", path: dir.clone(), error })?;
            let name = entry.file_name();
            if is_definition(&name) {
                found.entry(name).or_insert_with(|| entry.path());
            }
        }
    }
    Ok(found.into_values().collect())
}

/// Reads a whole file as text; nothing if there is none.
pub(super) fn read_text(path: &Path) -> Result<Option<String>, ConfigError> {
    let failed = |action| move |error| ConfigError::Io { action, path: path.to_owned(), error };
    let unfit = |why: String| Err(ConfigError::Unfit { path: path.to_owned(), why });
    // Without O_NONBLOCK a FIFO of that name would make us wait for a writer.
    let mut file: File = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open")(error)),
    };
    let metadata = file.metadata().map_err(failed("read"))?;
    if metadata.is_dir() {
        return unfit("it is a directory".into());
    }
    if !metadata.is_file() {
        return unfit("it is no regular file".into());
    }
    if metadata.len() > MAX_FILE {
        return unfit(format!("it has {} bytes; a machine file has at most {MAX_FILE}", metadata.len()));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0) + 1);
    Read::by_ref(&mut file).take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed("read"))?;
    if bytes.len() as u64 > MAX_FILE {
        return unfit(format!("it has more than {MAX_FILE} bytes"));
    }
    String::from_utf8(bytes).map(Some).or_else(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = good.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
        unfit(format!("line {line} byte {column} is not UTF-8"))
    })
}

/// Records the parser's message, more clearly for the most common mistakes.
pub(super) fn report_syntax(problems: &mut Problems, place: Place, message: &str) {
    let source = Arc::clone(problems.file(place.file));
    let text = source.text.get(place.start..place.end).unwrap_or_default();
    if message.starts_with("string values must be quoted") {
        match text {
            "" => drop(problems.report(place, "a value is missing")),
            text => drop(problems.report(place, "text must be in quotes").hint(format!("write \"{}\"", escaped(text)))),
        }
    } else if message == "duplicate key" {
        problems.report(place, format!("`{}` is given twice", escaped(text)));
    } else {
        problems.report(place, message);
    }
}

/// Profiles on the way down, to see a cycle, and those already read, in the order they are laid.
struct Profiles {
    chain: Vec<String>,
    done: Vec<(String, usize, MachineFile)>,
}

/// The files read so far.
struct Reading {
    problems: Problems,
    profile_dirs: Vec<PathBuf>,
    is_toml: bool,
}

impl Reading {
    /// Parses one file; what is wrong with it is among the problems afterwards.
    fn parse(&mut self, path: PathBuf, text: String) -> (usize, MachineFile) {
        let index = self.problems.add_file(path, text);
        let source = Arc::clone(self.problems.file(index));
        let (table, mut errors) = DeTable::parse_recoverable(&source.text);
        errors.sort_by_key(|error| error.span().map(|span| span.start));
        let mut bad_lines: Vec<usize> = Vec::new();
        for error in &errors {
            // One mistake often upsets the rest of its line; the first report is the one that helps.
            let span = error.span().unwrap_or_default();
            let line = source.line(span.start);
            if bad_lines.last() != Some(&line) {
                bad_lines.push(line);
                report_syntax(&mut self.problems, Place::new(index, span), error.message());
            }
        }
        self.is_toml &= errors.is_empty();
        let mark = self.problems.len();
        let root = toml::Spanned::new(0..0, DeValue::Table(table.into_inner()));
        let file = MachineFile::read(&root, &mut Reader::new(index, &mut self.problems, table_with));
        if !bad_lines.is_empty() {
            self.problems.forget_on_lines(index, mark, &bad_lines);
        }
        (index, file.unwrap_or_else(MachineFile::unset))
    }

    /// Reads a profile after those it extends; each profile is laid once, where it is first needed.
    fn profile(&mut self, name: &At<ProfileName>, profiles: &mut Profiles) -> Result<(), ConfigError> {
        let wanted = name.value.as_str();
        if profiles.done.iter().any(|(done, ..)| done == wanted) {
            return Ok(());
        }
        if let Some(start) = profiles.chain.iter().position(|outer| outer == wanted) {
            let cycle: Vec<&str> = profiles.chain[start..].iter().map(String::as_str).chain([wanted]).collect();
            if let Some(place) = name.place {
                let message = format!("`extends`: profiles extend each other in a cycle: {}", cycle.join(" → "));
                self.problems.report(place, message);
            }
            return Ok(());
        }
        let paths: Vec<PathBuf> = self.profile_dirs.iter().map(|dir| dir.join(format!("{wanted}.toml"))).collect();
        for path in &paths {
            if let Some(text) = read_text(path)? {
                let (index, file) = self.parse(path.clone(), text);
                profiles.chain.push(wanted.to_owned());
                for inner in &file.extends.value {
                    self.profile(inner, profiles)?;
                }
                profiles.chain.pop();
                profiles.done.push((wanted.to_owned(), index, file));
                return Ok(());
            }
        }
        self.missing_profile(name, &paths);
        Ok(())
    }

    fn missing_profile(&mut self, name: &At<ProfileName>, looked: &[PathBuf]) {
        let Some(place) = name.place else { return };
        let wanted = name.value.as_str();
        let known: Vec<String> = self
            .profile_dirs
            .iter()
            .filter_map(|dir| fs::read_dir(dir).ok())
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| name.strip_suffix(".toml").map(str::to_owned))
            .collect();
        let diagnostic = self.problems.report(place, format!("`extends`: there is no profile '{wanted}'"));
        for path in looked {
            diagnostic.note(format!("looked for '{}'", path.display()));
        }
        if let Some(near) = nearest(wanted, known.iter().map(String::as_str)) {
            diagnostic.hint(format!("did you mean \"{near}\"?"));
        }
    }
}
