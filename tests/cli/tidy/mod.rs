//! The shape of the source: who imports whom, where force is, and how long files are.
//!
//! Reads the text of `src/`, not what the compiler makes of it, so a rule can name the line that breaks it.

mod imports;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use imports::Tree;

/// Each module and what it may import; the order is from the words and the force up to the faces.
const LAYERS: [(&str, &[&str]); 17] = [
    ("spec", &[]),
    ("sys", &[]),
    ("host", &["spec", "sys"]),
    ("report", &["sys"]),
    ("bus", &["spec", "sys", "report"]),
    ("plan", &["spec", "host"]),
    // `plan::seccomp` alone: the words that a filter may be made of are known where the filter is made, and a
    // machine file with a wrong one must be refused with its line. See `only_the_words_of_the_filter_reach_up`.
    ("config", &["spec", "report", "plan"]),
    ("tree", &["spec", "sys"]),
    ("rootfs", &["spec", "sys", "host", "plan", "tree"]),
    ("cgroup", &["spec", "sys", "host", "plan"]),
    ("image", &["spec", "sys", "tree"]),
    ("running", &["spec", "sys", "plan", "config", "cgroup"]),
    ("enter", &["spec", "sys", "host", "plan", "tree", "cgroup", "running"]),
    (
        "supervisor",
        &["spec", "sys", "report", "host", "bus", "plan", "tree", "rootfs", "cgroup", "image", "running", "enter"],
    ),
    // It runs no machine, so it knows nothing of the supervisor.
    (
        "daemon",
        &["spec", "sys", "report", "host", "bus", "plan", "config", "tree", "cgroup", "image", "running", "enter"],
    ),
    (
        "ops",
        &[
            "spec",
            "sys",
            "report",
            "host",
            "bus",
            "plan",
            "config",
            "rootfs",
            "cgroup",
            "image",
            "running",
            "enter",
            "supervisor",
        ],
    ),
    (
        "cli",
        &[
            "spec",
            "sys",
            "report",
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
            "ops",
            "daemon",
        ],
    ),
];

/// What only some modules may use: words as they are written, and the modules, or files of one.
const KEPT: [(&[&str], &[&str]); 11] = [
    // Who does an operation, and what this process may do, is decided in one place each.
    (&["is_root()", "geteuid("], &["ops/via.rs", "host", "sys"]),
    (&["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "(unsafe_code"], &["sys"]),
    (&["clap::", "clap_complete::", "clap_mangen::", "indicatif::"], &["cli"]),
    (&["println!", "eprintln!", "print!(", "eprint!("], &["cli"]),
    (&["toml::", "annotate_snippets::", "strsim::"], &["config"]),
    (&["cgroups_rs::"], &["cgroup"]),
    (&["syscalls::"], &["plan"]),
    (&["zbus::", "zbus_polkit::"], &["bus", "daemon", "sys/message.rs"]),
    (&["zruntime::", "async fn", ".await"], &["daemon", "bus"]),
    // Children are made by `sys::worker`, which keeps them out of their parent's frames.
    (&["Fork::", "fork(", "clone3(", "catch_unwind("], &["sys"]),
    (&["thread::spawn", "thread::scope", "thread::Builder"], &[]),
];

/// Paths to what acts on the world or looks at it.
const ACTS: [&str; 13] = [
    "std::fs",
    "std::env",
    "std::process",
    "std::net",
    "std::thread",
    "std::io",
    "std::os",
    "nix",
    "rustix",
    "crate::host::probe",
    "crate::host::probe_for",
    "crate::host::probe_beside",
    "crate::host::systemd_runs",
];

/// Methods of paths that look at the disk.
const LOOKS: [&str; 10] = [
    ".exists()",
    ".try_exists()",
    ".is_file()",
    ".is_dir()",
    ".is_symlink()",
    ".canonicalize()",
    ".metadata()",
    ".symlink_metadata()",
    ".read_dir()",
    ".read_link()",
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
        let tests = is_test(&file);
        for (index, text) in fs::read_to_string(&file).expect("text").lines().enumerate() {
            // By our habit the test module is the last thing in a file.
            inner |= text.ends_with("mod tests {");
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

/// The path of a file's module: `[plan, mounts]` for `src/plan/mounts.rs`.
fn module_path(file: &Path) -> Vec<String> {
    let below = file.strip_prefix("src").expect("below src").with_extension("");
    let mut path: Vec<String> = below.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    path.pop_if(|last| last == "mod" || last == "lib");
    path
}

fn is_test(file: &Path) -> bool {
    file.components().any(|c| ["tests", "tests.rs"].iter().any(|t| c.as_os_str() == *t))
}

/// What is built into the library, without its tests.
fn tree() -> Tree {
    let files = files().into_iter().filter(|file| !is_test(file) && !file.ends_with("main.rs"));
    files.map(|file| (module_path(&file), imports::read(file, false))).collect()
}

/// The files that lead to each other, with the uses that do it.
fn circles(tree: &Tree) -> Vec<(BTreeSet<&Path>, Vec<String>)> {
    let uses = imports::uses(tree);
    let mut next: BTreeMap<&[String], BTreeSet<&[String]>> = BTreeMap::new();
    for (from, to, _) in &uses {
        next.entry(from).or_default().insert(to);
    }
    let reached = |from: &[String]| {
        let mut seen: BTreeSet<&[String]> = BTreeSet::new();
        let mut open: Vec<&[String]> = next.get(from).into_iter().flatten().copied().collect();
        while let Some(one) = open.pop() {
            if seen.insert(one) {
                open.extend(next.get(one).into_iter().flatten());
            }
        }
        seen
    };
    let reach: BTreeMap<&[String], BTreeSet<&[String]>> = tree.keys().map(|key| (&key[..], reached(key))).collect();
    let mut circles: BTreeMap<BTreeSet<&Path>, BTreeMap<String, BTreeSet<&str>>> = BTreeMap::new();
    for (from, to, item) in &uses {
        if reach[&to[..]].contains(&from[..]) {
            let on_it = reach[&from[..]].iter().filter(|other| reach[**other].contains(&from[..]));
            let files = on_it.map(|other| tree[*other].file.as_path()).collect();
            let (from, to) = (&tree[*from].file, &tree[*to].file);
            let items = circles.entry(files).or_default().entry(format!("{} uses of {}", from.display(), to.display()));
            items.or_default().insert(item);
        }
    }
    let told = |(from_to, items): (String, BTreeSet<&str>)| {
        format!("  {from_to}: {}", items.into_iter().collect::<Vec<_>>().join(", "))
    };
    circles.into_iter().map(|(files, uses)| (files, uses.into_iter().map(told).collect())).collect()
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
    let mut broken = Vec::new();
    for file in files().into_iter().filter(|file| !file.ends_with("main.rs") && !file.ends_with("lib.rs")) {
        let module = imports::read(file, true);
        let own = module_path(&module.file).remove(0);
        for named in module.named.iter().filter(|named| named.path[0] == "crate") {
            if named.path.get(1).is_none_or(|other| !may_import(&own, other)) {
                broken.push(format!("{}:{}: {}", module.file.display(), named.line, named.path.join("::")));
            }
        }
    }
    assert_none("imports that go up or sideways", &broken);
}

#[test]
fn no_file_leads_back_to_itself() {
    let tree = tree();
    let circles = circles(&tree).into_iter();
    let broken: Vec<String> = circles
        .map(|(files, uses)| {
            format!(
                "{} files:
{}",
                files.len(),
                uses.join(
                    "
"
                )
            )
        })
        .collect();
    assert_none("circles of files", &broken);
}

#[test]
fn what_decides_does_nothing() {
    let mut broken = Vec::new();
    for module in tree().into_values().filter(|m| m.file.starts_with("src/plan") || m.file.starts_with("src/spec")) {
        for named in &module.named {
            let path = named.path.join("::");
            let does = ACTS.iter().any(|act| path == *act || path.starts_with(&format!("{act}::")));
            if does || named.path.iter().any(|part| ["Instant", "SystemTime"].contains(&part.as_str())) {
                broken.push(format!("{}:{}: {path}", module.file.display(), named.line));
            }
        }
    }
    let acting = lines().into_iter().filter(|line| !line.test && ["plan", "spec"].contains(&line.module().as_str()));
    let acting = acting.filter(|line| LOOKS.iter().any(|method| line.text.contains(method)));
    broken.extend(acting.map(|line| line.place()));
    assert_none("`plan` and `spec` are pure: no files, environment, clock, processes or network", &broken);
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

/// Files of the daemon below its face on D-Bus that use the bus: as clients of it, of polkit and of systemd.
const BUS_CLIENTS: [&str; 5] = ["authority.rs", "error.rs", "scope.rs", "state.rs", "guest_systemd.rs"];

#[test]
fn the_daemon_speaks_d_bus_in_one_face_only() {
    let broken: Vec<String> = lines()
        .iter()
        .filter(|line| line.file.starts_with("src/daemon/core") || line.file.starts_with("src/daemon/varlink"))
        .filter(|line| {
            let client = BUS_CLIENTS.iter().any(|file| line.file.ends_with(file));
            let faces = ["daemon::dbus", "daemon::varlink"].iter().any(|face| line.text.contains(face));
            line.text.contains("zbus") && !client || faces && line.file.starts_with("src/daemon/core")
        })
        .map(Line::place)
        .collect();
    assert_none("messages of the bus below its face, or a face in the core", &broken);
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
