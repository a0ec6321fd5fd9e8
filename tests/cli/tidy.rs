//! The shape of the source: who imports whom, where force is, and how long files are.
//!
//! Reads the text of `src/`, not what the compiler makes of it, so a rule can name the line that breaks it.

use std::fs;
use std::path::{Path, PathBuf};

/// Each module and what it may import; the order is from the words and the force up to the faces.
const LAYERS: [(&str, &[&str]); 15] = [
    ("spec", &[]),
    ("sys", &[]),
    ("host", &["spec", "sys"]),
    ("bus", &["spec", "sys"]),
    ("plan", &["spec", "host"]),
    // `plan::seccomp` alone: the words that a filter may be made of are known where the filter is made, and a
    // machine file with a wrong one must be refused with its line. See `only_the_words_of_the_filter_reach_up`.
    ("config", &["spec", "plan"]),
    ("tree", &["spec", "sys"]),
    ("rootfs", &["spec", "sys", "host", "plan", "tree"]),
    ("cgroup", &["spec", "sys", "host", "plan"]),
    ("image", &["spec", "sys", "tree"]),
    ("running", &["spec", "sys", "plan", "config", "cgroup"]),
    ("enter", &["spec", "sys", "host", "plan", "tree", "cgroup", "running"]),
    ("supervisor", &["spec", "sys", "host", "bus", "plan", "tree", "rootfs", "cgroup", "image", "running", "enter"]),
    // It runs no machine, so it knows nothing of the supervisor.
    ("daemon", &["spec", "sys", "host", "bus", "plan", "config", "tree", "cgroup", "image", "running", "enter"]),
    (
        "cli",
        &[
            "spec",
            "sys",
            "host",
            "bus",
            "plan",
            "config",
            "tree",
            "rootfs",
            "cgroup",
            "image",
            "running",
            "enter",
            "supervisor",
            "daemon",
        ],
    ),
];

/// What only some modules may use: words as they are written, and the modules, or files of one.
const KEPT: [(&[&str], &[&str]); 9] = [
    (&["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "(unsafe_code"], &["sys"]),
    (&["clap::", "clap_complete::", "clap_mangen::", "indicatif::"], &["cli"]),
    (&["println!", "eprintln!", "print!(", "eprint!("], &["cli"]),
    (&["toml::", "annotate_snippets::", "strsim::"], &["config"]),
    (&["cgroups_rs::"], &["cgroup"]),
    (&["syscalls::"], &["plan"]),
    (&["zbus::", "zbus_polkit::"], &["bus", "daemon", "sys/message.rs"]),
    (&["zruntime::", "async fn", ".await"], &["daemon", "bus"]),
    (&["thread::spawn", "thread::scope", "thread::Builder"], &[]),
];

const LONGEST: usize = 650;
const LONGEST_MEDIAN: usize = 350;

/// One line of code of the project.
struct Line {
    /// `src/…`
    file: PathBuf,
    number: usize,
    text: String,
    /// In a test module or a file of tests.
    test: bool,
    /// In a module inside of the file.
    inner: bool,
}

impl Line {
    /// Top-level module the line belongs to: `plan` for `src/plan/mounts.rs`.
    fn module(&self) -> String {
        let first = self.file.components().nth(1).expect("below src").as_os_str().to_string_lossy().into_owned();
        first.trim_end_matches(".rs").to_owned()
    }

    /// How many modules deep the line is: 1 in `src/cgroup.rs` and `src/plan/mod.rs`.
    fn depth(&self) -> usize {
        self.file.components().count() - 1 - usize::from(self.file.ends_with("mod.rs")) + usize::from(self.inner)
    }

    fn place(&self) -> String {
        format!("{}:{}: {}", self.file.display(), self.number, self.text.trim())
    }
}

fn source_files(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("source") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            source_files(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

fn files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    source_files(Path::new("src"), &mut files);
    files.sort();
    assert!(files.len() > 30, "the source is not where it was");
    files
}

/// Every line that is not a comment.
fn lines() -> Vec<Line> {
    let mut lines = Vec::new();
    for file in files() {
        let mut inner = false;
        let tests = file.components().any(|c| ["tests", "tests.rs"].iter().any(|t| c.as_os_str() == *t));
        for (index, text) in fs::read_to_string(&file).expect("text").lines().enumerate() {
            // By our habit the test module is the last thing in a file.
            inner |= text == "mod tests {";
            if !text.trim_start().starts_with("//") {
                lines.push(Line {
                    file: file.clone(),
                    number: index + 1,
                    text: text.to_owned(),
                    test: tests || inner,
                    inner,
                });
            }
        }
    }
    lines
}

/// The modules that a line names behind `crate::`, one by one or as a list in braces.
fn imports(text: &str) -> Vec<String> {
    let word = |text: &str| text.trim().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    let mut found = Vec::new();
    for (at, start) in text.match_indices("crate::") {
        // `other_crate::` and `$crate::` are something else.
        if text[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &text[at + start.len()..];
        match rest.strip_prefix('{') {
            Some(list) => found.extend(list.split('}').next().unwrap_or(list).split(',').map(word)),
            None => found.push(word(rest)),
        }
    }
    found.retain(|name: &String| !name.is_empty());
    found
}

fn may_import(module: &str, other: &str) -> bool {
    module == other || LAYERS.iter().any(|(name, below)| *name == module && below.contains(&other))
}

fn assert_none(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}:\n{}", broken.join("\n"));
}

#[test]
fn every_module_has_its_layer() {
    let mut modules: Vec<String> = lines().iter().map(Line::module).collect();
    modules.dedup();
    modules.retain(|m| m != "main" && m != "lib");
    let mut known: Vec<&str> = LAYERS.iter().map(|(name, _)| *name).collect();
    known.sort_unstable();
    assert_eq!(modules, known);
    for (index, (name, below)) in LAYERS.iter().enumerate() {
        for other in *below {
            assert!(LAYERS[..index].iter().any(|(lower, _)| lower == other), "{name} is below {other} or unordered");
        }
    }
}

#[test]
fn modules_import_only_what_is_below_them() {
    let broken: Vec<String> = lines()
        .iter()
        .filter(|line| line.module() != "main" && line.module() != "lib")
        .filter(|line| imports(&line.text).iter().any(|other| !may_import(&line.module(), other)))
        .map(Line::place)
        .collect();
    assert_none("imports that go up or sideways", &broken);
}

#[test]
fn only_the_words_of_the_filter_reach_up() {
    let broken: Vec<String> = lines()
        .iter()
        .filter(|line| line.module() == "config" && line.text.contains("crate::plan"))
        .filter(|line| !line.text.contains("crate::plan::seccomp::"))
        .map(Line::place)
        .collect();
    assert_none("`config` decides nothing and knows of the plan only what a filter can be made of", &broken);
}

#[test]
fn no_import_hides_behind_super() {
    let broken: Vec<String> = lines()
        .iter()
        .filter(|line| {
            let chain = (1..).take_while(|n| line.text.contains(&"super::".repeat(*n))).count();
            chain >= line.depth()
        })
        .map(Line::place)
        .collect();
    assert_none("paths that reach the crate by `super::`; write `crate::`", &broken);
}

#[test]
fn force_libraries_and_printing_stay_where_they_belong() {
    let mut broken = Vec::new();
    for line in lines().iter().filter(|line| !line.test) {
        for (words, homes) in KEPT {
            let uses = words.iter().any(|word| {
                line.text.match_indices(word).any(|(at, _)| {
                    let before = line.text[..at].chars().next_back();
                    word.starts_with('(') || before.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_' && c != '"')
                })
            });
            if uses && !homes.iter().any(|home| line.module() == *home || line.file.ends_with(home)) {
                broken.push(line.place());
            }
        }
    }
    assert_none("used outside of where it belongs", &broken);
}

#[test]
fn files_are_short() {
    let mut lengths: Vec<(usize, PathBuf)> =
        files().into_iter().map(|file| (fs::read_to_string(&file).expect("text").lines().count(), file)).collect();
    lengths.sort();
    let long: Vec<String> = lengths
        .iter()
        .filter(|(lines, _)| *lines > LONGEST)
        .map(|(lines, file)| format!("{}: {lines} lines", file.display()))
        .collect();
    assert_none("files to split", &long);
    let median = lengths[lengths.len() / 2].0;
    assert!(median <= LONGEST_MEDIAN, "the median file has {median} lines");
}
