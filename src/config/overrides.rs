//! [`Change`]: settings of `[resources]` given on a command line, read and checked as if they stood in a file.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Place, Problems, quoted};
use super::error::{ConfigError, Texts};
use super::file::{MachineFile, table_with};
use super::merge::{read_text, report_syntax};
use super::reader::{MapKey, Reader, Setting};
use super::resources::{PageSize, ResourcesTable};
use super::show::inline;
use crate::spec::{Layout, MachineName, ResourceKey, Resources, Unmet};

/// Name of the drop-in that holds what was set for later starts; no other program writes it.
const DROP_IN: &str = "50-set.toml";

/// What stands at its top.
const HEADER: &str = "# Written by `machinist set --save`, which changes it again. What is not in `[resources]` is kept;\n\
                      # comments are not, so put your own settings into another file beside this one.\n\n";

/// Settings of `[resources]`, and those to go back on.
#[derive(Debug)]
pub struct Change {
    /// Keys below `resources` that get a value.
    set: Vec<String>,
    /// Keys that go back to the definition's value.
    unset: Vec<String>,
    table: ResourcesTable,
    values: Resources,
    texts: Texts,
}

/// One argument as a line of a file.
struct Line {
    /// Without `resources.`.
    key: String,
    /// In TOML; nothing for a key to go back on.
    value: Option<String>,
}

impl Line {
    /// Reads `KEY=VALUE`; what is not TOML by its first letter is a string.
    fn of(argument: &str) -> Option<Self> {
        let (key, value) = argument.split_once('=')?;
        let key = key.trim().strip_prefix("resources.").unwrap_or(key.trim()).to_owned();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if !key.chars().all(plain) || key.split('.').any(str::is_empty) {
            return None;
        }
        let value = value.trim();
        let text = || if value.starts_with(['[', '{', '"', '\'']) { value.to_owned() } else { inline(&value.into()) };
        Some(Self { key, value: (!value.is_empty()).then(text) })
    }

    fn shown(&self) -> String {
        format!("{} = {}", self.key, self.value.as_deref().unwrap_or("\"\""))
    }
}

/// Whether the file format has a key, by its whole path.
fn exists(key: &str) -> bool {
    fn below<'a>(root: &'a Json, schema: &'a Json, key: &str) -> Option<&'a Json> {
        let schema = match schema["$ref"].as_str() {
            Some(reference) => root.pointer(&reference[1..])?,
            None => schema,
        };
        schema["properties"].get(key).or_else(|| below(root, schema.get("items")?, key))
    }
    let root = schemars::schema_for!(MachineFile).to_value();
    let mut at = &root;
    key.split('.').all(|part| below(&root, at, part).inspect(|next| at = next).is_some())
}

impl Change {
    /// Reads arguments of the form `KEY=VALUE`; without a value, a key goes back to the definition's value.
    ///
    /// # Errors
    /// Every problem of every argument.
    pub fn parse(arguments: &[String]) -> Result<Self, ConfigError> {
        let lines: Vec<Option<Line>> = arguments.iter().map(|argument| Line::of(argument)).collect();
        let shown = |(line, argument): (&Option<Line>, &String)| match line {
            Some(line) => line.shown(),
            None => argument.escape_debug().to_string(),
        };
        let shown: Vec<String> = lines.iter().zip(arguments).map(shown).collect();
        let mut problems = Problems::default();
        let file = problems.add_file(PathBuf::from("command line"), shown.join("\n"));
        let (mut set, mut unset) = (Vec::new(), Vec::new());
        // What is read as TOML: the same lines, blank where there is nothing to read.
        let mut toml = String::new();
        let mut start = 0;
        for (line, text) in lines.iter().zip(&shown) {
            let place = |len: usize| Place::new(file, start..start + len);
            let mut read = false;
            match line {
                None => {
                    let message = format!("{} is not KEY=VALUE", quoted(text));
                    problems.report(place(text.len()), message);
                }
                Some(Line { key, value }) => {
                    let top = key.split('.').next().unwrap_or_default();
                    let ours = ResourcesTable::KEYS.contains(&top);
                    if !ours && (exists(key) || table_with(key).is_some()) {
                        let message = format!("`{key}` cannot be changed while a machine runs: it needs a restart");
                        let hint = "edit its definition, stop the machine and start it again";
                        problems.report(place(key.len()), message).hint(hint);
                    } else if value.is_some() || !ours {
                        read = true;
                        set.push(key.clone());
                    } else if can_be_unset(key) {
                        unset.push(key.clone());
                    } else {
                        problems.report(place(key.len()), format!("there is no key `resources.{key}`"));
                    }
                }
            }
            toml.push_str(if read { text } else { "" });
            toml.push_str(&" ".repeat(start + text.len() - toml.len()));
            toml.push('\n');
            start += text.len() + 1;
        }
        let (table, values) = read_table(&toml, file, &mut problems);
        if let Some(twice) = unset.iter().find(|key| set.contains(key)) {
            problems.report(Place::new(file, 0..0), format!("`{twice}` is given twice"));
        }
        if !problems.is_empty() {
            return Err(ConfigError::Diagnostics(problems.into_diagnostics()));
        }
        let mut entries = Vec::new();
        table.list("resources", None, &mut entries);
        let places = entries.into_iter().filter_map(|entry| Some((entry.key, entry.place?))).collect();
        Ok(Self { set, unset, table, values, texts: Texts { problems, places, main: file } })
    }

    /// The keys that get a value, as in `hugetlb.2M`.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.set.iter().map(String::as_str)
    }

    /// What a machine is limited by after the change; `definition` is what it goes back to.
    pub fn apply(&self, now: &Resources, definition: &Resources) -> Resources {
        let mut new = now.clone();
        for (keys, from) in [(&self.unset, definition), (&self.set, &self.values)] {
            for key in keys {
                if key == "optional" {
                    new.optional.clone_from(&from.optional);
                } else if let Some(size) = page_size(key) {
                    match from.hugetlb.get(&size) {
                        Some(max) => drop(new.hugetlb.insert(size, *max)),
                        None => drop(new.hugetlb.remove(&size)),
                    }
                } else if let Some(known) = ResourceKey::ALL.into_iter().find(|known| known.as_str() == key) {
                    let before = new.clone();
                    new.take(known, from);
                    if std::ptr::eq(from, &self.values) {
                        // As where files are merged: what is not named again stays. What is named comes first, so that
                        // a row has the same number here and there.
                        let kept = |disk: &&_| !from.io_max.iter().any(|other| same_disk(disk, other));
                        new.io_max = if known == ResourceKey::IoMax {
                            from.io_max.iter().chain(before.io_max.iter().filter(kept)).cloned().collect()
                        } else {
                            new.io_max
                        };
                        for (size, max) in before.hugetlb {
                            new.hugetlb.entry(size).or_insert(max);
                        }
                    }
                }
            }
        }
        new
    }

    /// The drop-in after the change, from its text before; empty when nothing is left in it.
    ///
    /// # Errors
    /// The drop-in is none of ours any more; `path` is for that.
    pub fn saved(&self, path: &Path, before: &str) -> Result<String, ConfigError> {
        let unfit = |why: String| ConfigError::Unfit { path: path.to_owned(), why };
        let mut file: toml::Table = before.parse().map_err(|e: toml::de::Error| unfit(e.message().to_owned()))?;
        let shown = self.table.show();
        let resources = file.entry("resources").or_insert_with(|| toml::Table::new().into());
        let resources = resources.as_table_mut().ok_or_else(|| unfit("`resources` is no table".to_owned()))?;
        for key in &self.unset {
            match key.split_once('.') {
                Some((top, part)) => drop(resources.get_mut(top).and_then(|t| t.as_table_mut()?.remove(part))),
                None => drop(resources.remove(key)),
            }
        }
        for key in &self.set {
            let top = key.split('.').next().unwrap_or_default();
            let value = toml::Value::try_from(&shown[top]).map_err(|e| unfit(e.to_string()))?;
            match (resources.get_mut(top), value) {
                (Some(toml::Value::Table(old)), toml::Value::Table(new)) => old.extend(new),
                (Some(toml::Value::Array(old)), toml::Value::Array(new)) if top == "io-max" => {
                    old.retain(|row| !new.iter().any(|other| other.get("device") == row.get("device")));
                    old.extend(new);
                }
                (_, value) => drop(resources.insert(top.to_owned(), value)),
            }
        }
        resources.retain(|_, value| value.as_table().is_none_or(|table| !table.is_empty()));
        if resources.is_empty() {
            file.remove("resources");
        }
        Ok(if file.is_empty() { String::new() } else { format!("{HEADER}{file}") })
    }

    /// Reports where each limit that this host cannot enforce was given.
    pub fn refuse(self, unmet: &[Unmet]) -> ConfigError {
        self.texts.refuse(unmet)
    }
}

fn same_disk(one: &crate::spec::IoMax, other: &crate::spec::IoMax) -> bool {
    one.device == other.device
}

/// The size of huge pages that a key is for.
fn page_size(key: &str) -> Option<u64> {
    PageSize::parse(key.strip_prefix("hugetlb.")?).ok().map(PageSize::bytes)
}

fn can_be_unset(key: &str) -> bool {
    ResourcesTable::KEYS.contains(&key) || page_size(key).is_some()
}

/// Reads the lines as the inside of `[resources]`.
fn read_table(toml: &str, file: usize, problems: &mut Problems) -> (ResourcesTable, Resources) {
    let (table, errors) = DeTable::parse_recoverable(toml);
    for error in &errors {
        report_syntax(problems, Place::new(file, error.span().unwrap_or_default()), error.message());
    }
    let root = toml::Spanned::new(0..0, DeValue::Table(table.into_inner()));
    let mut reader = Reader::new(file, problems, table_with);
    let table =
        if errors.is_empty() { reader.below("resources", |reader| ResourcesTable::read(&root, reader)) } else { None };
    let table = table.unwrap_or_else(ResourcesTable::unset);
    let values = table.check(Place::new(file, 0..0), problems);
    (table, values)
}

/// Where the drop-in for later starts is: below the strongest directory of definitions, or beside a definition that
/// was given as a file.
pub fn drop_in(layout: &Layout, name: &MachineName, definition: Option<&Path>) -> PathBuf {
    let mut dir = match definition {
        Some(file) => file.to_owned().into_os_string(),
        None => layout.definition_dir().join(format!("{name}.toml")).into_os_string(),
    };
    dir.push(".d");
    PathBuf::from(dir).join(DROP_IN)
}

/// The text of the drop-in; empty if there is none.
pub fn read_drop_in(path: &Path) -> Result<String, ConfigError> {
    read_text(path).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Amount, Bound, Weight};

    fn change(arguments: &[&str]) -> Result<Change, Vec<String>> {
        let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        Change::parse(&arguments).map_err(|error| match error {
            ConfigError::Diagnostics(list) => list.iter().map(|d| format!("{}: {}", d.line(), d.message())).collect(),
            other => vec![other.to_string()],
        })
    }

    fn memory(bytes: u64) -> Option<Bound<Amount>> {
        Some(Bound::At(Amount::Bytes(bytes)))
    }

    #[test]
    fn settings_are_read_as_a_file_is() {
        let settings = ["memory-max=64M", "resources.pids-max=100", "cpu-weight = idle", "hugetlb.2M=4M", "cpus='0-1'"];
        let change = change(&settings).expect("valid");
        assert_eq!(change.values.memory_max, memory(64 << 20));
        assert_eq!(change.values.pids_max, Some(Bound::At(100)));
        assert_eq!(change.values.cpu_weight, Some(Weight::Idle));
        assert_eq!(change.values.hugetlb, [(2 << 20, Bound::At(4 << 20))].into());
        assert_eq!(change.keys().collect::<Vec<_>>(), ["memory-max", "pids-max", "cpu-weight", "hugetlb.2M", "cpus"]);
    }

    #[test]
    fn every_problem_is_found_at_its_argument() {
        let wrong = [
            "memory-max=12Q",
            "pids-max=100",
            "boot.ready=started",
            "hostname=web",
            "memroy-max=1G",
            "nonsense",
            "=5",
            "cpus=3-0",
            "hugetlb.3M=",
            "io-max=[{device=\"/dev/vda\"}]",
            "tmpfs.size=1G",
        ];
        let expected = [
            "1: `resources.memory-max`: '12Q' is no size, as in \"512M\" or \"50%\"",
            "3: `boot.ready` cannot be changed while a machine runs: it needs a restart",
            "4: `hostname` cannot be changed while a machine runs: it needs a restart",
            "5: unknown key `resources.memroy-max`",
            "6: 'nonsense' is not KEY=VALUE",
            "7: '=5' is not KEY=VALUE",
            "8: `resources.cpus`: the range '3-0' ends before it begins",
            "9: there is no key `resources.hugetlb.3M`",
            "10: `resources.io-max`: limits nothing",
            "11: `tmpfs.size` cannot be changed while a machine runs: it needs a restart",
        ];
        assert_eq!(change(&wrong).expect_err("wrong"), expected);
        for (bad, why) in [
            (&["memory-max=1G", "memory-max=2G"][..], "2: `memory-max` is given twice"),
            (&["io-max=[{"], "1: "),
            (&["memory-max=\"1G"], "1: "),
            (&["cpus=0\n1"], "1: `resources.cpus`: "),
            (&["memory-max=1G", "memory-max="], "1: `memory-max` is given twice"),
            (&["memory-max=1G", "memory-high=2G"], "2: `resources.memory-high`: is above"),
        ] {
            let found = change(bad).expect_err(why);
            assert!(found[0].starts_with(why), "{bad:?}: {found:?}");
        }
    }

    #[test]
    fn a_change_of_a_running_machine_leaves_all_else() {
        let definition = Resources { memory_max: memory(1), swap_max: memory(2), ..Resources::default() };
        let disk = |text: &str| change(&[&format!("io-max=[{{device=\"{text}\",read=\"1M\"}}]")]).expect("valid");
        let now = Resources {
            memory_max: memory(10),
            swap_max: memory(20),
            pids_max: Some(Bound::At(30)),
            hugetlb: [(2 << 20, Bound::At(0)), (1 << 30, Bound::At(0))].into(),
            io_max: disk("/a").values.io_max,
            ..Resources::default()
        };
        let new = change(&["memory-max=", "pids-max=", "hugetlb.2M=4M", "hugetlb.1G="])
            .expect("valid")
            .apply(&now, &definition);
        let expected = Resources {
            memory_max: memory(1),
            pids_max: None,
            hugetlb: [(2 << 20, Bound::At(4 << 20))].into(),
            ..now.clone()
        };
        assert_eq!(new, expected);
        let both = disk("/b").apply(&now, &definition);
        assert_eq!(both.io_max.iter().map(|d| d.device.to_str().expect("text")).collect::<Vec<_>>(), ["/b", "/a"]);
        assert_eq!(disk("/a").apply(&both, &definition).io_max.len(), 2);
        assert_eq!(change(&["hugetlb={1G=\"1G\"}"]).expect("valid").apply(&now, &definition).hugetlb.len(), 2);
    }

    #[test]
    fn the_drop_in_keeps_what_is_not_changed() {
        let save = |arguments: &[&str], before: &str| change(arguments).expect("valid").saved(Path::new("x"), before);
        let first = save(&["memory-max=1024M", "pids-max=9", "hugetlb.2M=4M"], "").expect("new");
        assert_eq!(
            first.strip_prefix(HEADER),
            Some("[resources]\nmemory-max = \"1G\"\npids-max = 9\n\n[resources.hugetlb]\n2M = \"4M\"\n")
        );
        let disk = "io-max=[{device=\"/a\",read=\"1M\"}]";
        let second =
            save(&["pids-max=", "hugetlb.1G=0", disk], &format!("{first}[boot]\nclock = \"own\"\n")).expect("more");
        let table: toml::Table = second.parse().expect("TOML");
        let expected = "[resources]\nmemory-max = '1G'\nhugetlb = {2M='4M', 1G='0'}\nio-max=[{device='/a',read='1M'}]\n[boot]\nclock='own'";
        assert_eq!(table, expected.parse().expect("TOML"));
        let third =
            save(&["io-max=[{device=\"/a\",write=\"2M\"},{device=\"/b\",write=\"1M\"}]"], &second).expect("disks");
        assert_eq!(third.matches("device").count(), 2);
        assert_eq!(save(&["memory-max=", "pids-max=", "hugetlb.2M="], &first).expect("all gone"), "");
        assert!(matches!(save(&["pids-max=9"], "resources = 1"), Err(ConfigError::Unfit { .. })));
        assert!(matches!(save(&["pids-max=9"], "["), Err(ConfigError::Unfit { .. })));
    }
}
