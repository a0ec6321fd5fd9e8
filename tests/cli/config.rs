//! Machine files from the outside: the examples, the messages and the output of `check`, `show` and `schema`.

use std::fs;
use std::path::{Path, PathBuf};

use machinist::cli::config::{self as verbs, ShowStyle};
use machinist::config::{self, ConfigError, OriginSource};
use machinist::spec::Layout;

/// A host without any definitions.
fn nowhere() -> Layout {
    Layout::system("/nowhere")
}

/// Every `*.toml` of a directory of the project, by name.
pub(crate) fn files(dir: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .expect("directory of the project")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml") && path.is_file())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no files in {dir}");
    files
}

/// Compares with a recorded text; `UPDATE=1` records it instead.
fn assert_recorded(path: &Path, actual: &str) {
    if std::env::var_os("UPDATE").is_some() {
        fs::write(path, actual).expect("record");
        return;
    }
    let expected = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(actual, expected, "{} differs; UPDATE=1 records it anew", path.display());
}

fn load(path: &Path) -> Result<config::Loaded, ConfigError> {
    config::load(&nowhere(), path.to_str().expect("path of the project"))
}

#[test]
fn every_invalid_file_is_refused_with_the_recorded_text() {
    for path in files("tests/data/invalid") {
        match load(&path) {
            Ok(_) => panic!("{} was accepted", path.display()),
            Err(error) => assert_recorded(&path.with_extension("txt"), &format!("{}\n", error.render(false))),
        }
    }
}

#[test]
fn every_recorded_text_has_its_file() {
    for entry in fs::read_dir("tests/data/invalid").expect("directory of the project") {
        let path = entry.expect("entry").path();
        assert!(
            path.extension().is_none_or(|e| e != "txt") || path.with_extension("toml").exists(),
            "{}",
            path.display()
        );
    }
}

#[test]
fn every_example_loads() {
    for path in files("machines").into_iter().chain(files("tests/data/valid")) {
        if let Err(error) = load(&path) {
            panic!("{error}");
        }
    }
}

#[test]
fn the_example_of_everything_sets_every_key_that_can_be_set_together() {
    let loaded = load(Path::new("machines/everything.toml")).expect("example");
    let unset = loaded.origins.iter().filter(|origin| origin.source == OriginSource::Default);
    let unset: Vec<&str> = unset.map(|origin| origin.key.as_str()).collect();
    assert_eq!(unset, ["boot.command", "root.directory"]);
    let text = fs::read_to_string("machines/everything.toml").expect("example");
    assert!(text.contains("# command = ") && text.contains("# directory = "));
}

#[test]
fn the_shown_definition_gives_the_same_machine() {
    let dir = tempfile::tempdir().expect("temporary directory");
    for path in files("machines").into_iter().chain(files("tests/data/valid")) {
        let loaded = load(&path).expect("example");
        let copy = dir.path().join(path.file_name().expect("file name"));
        fs::write(&copy, loaded.to_toml()).expect("write");
        assert_eq!(load(&copy).expect("shown definition").spec, loaded.spec, "{}", path.display());
    }
}

#[test]
fn show_prints_what_is_recorded() {
    let record = |name: &str, style| {
        let mut out = Vec::new();
        let file = format!("tests/data/valid/{}.toml", name.split('.').next().expect("name"));
        verbs::show(&nowhere(), &file, style, &mut out).expect("valid");
        let text = String::from_utf8(out).expect("text");
        assert_recorded(Path::new(&format!("tests/data/valid/{name}")), &text);
    };
    record("layers.show", ShowStyle::Toml);
    record("layers.origin", ShowStyle::Origin { width: None, color: false });
    record("layers.origin-80", ShowStyle::Origin { width: Some(80), color: false });
    record("layers.json", ShowStyle::Json);
    record("command.show", ShowStyle::Toml);
    record("command.origin-60", ShowStyle::Origin { width: Some(60), color: true });
    record("layers.origin-json", ShowStyle::OriginJson);
}

#[test]
fn check_without_names_checks_all_and_counts_the_bad() {
    let root = tempfile::tempdir().expect("temporary directory");
    let machines = root.path().join("etc/machinist/machines");
    fs::create_dir_all(&machines).expect("create");
    let good = "[root]\ndirectory = \"/srv/tree\"\n";
    for (name, text) in
        [("web.toml", good), ("db.toml", "[rot]\n"), ("a b.toml", good), (".hidden.toml", "?"), ("x", "?")]
    {
        fs::write(machines.join(name), text).expect("write");
    }
    let layout = Layout::system(root.path());
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    let bad = verbs::check(&layout, &[], false, &mut out, &mut errors).expect("write");
    let at_root =
        |text: Vec<u8>| String::from_utf8(text).expect("text").replace(&root.path().display().to_string(), "");
    assert_eq!(bad, 2);
    assert_eq!(at_root(out), "bad  db   2 problems\nok   web  /etc/machinist/machines/web.toml\n");
    let errors = at_root(errors);
    let stray = "error: '/etc/machinist/machines/a b.toml' can never be started: machine name 'a b' may hold only \
                 letters, digits, `-`, `_` and `.`\n\n";
    assert!(errors.starts_with(stray), "{errors}");
    assert!(errors.contains("error: unknown key `rot`\n --> /etc/machinist/machines/db.toml:1:2\n"), "{errors}");
}

#[test]
fn a_missing_machine_is_told_with_the_places_and_the_likely_name() {
    let root = tempfile::tempdir().expect("temporary directory");
    fs::create_dir_all(root.path().join("usr/lib/machinist/machines")).expect("create");
    fs::write(root.path().join("usr/lib/machinist/machines/database.toml"), "").expect("write");
    let error = config::load(&Layout::system(root.path()), "databse").expect_err("missing");
    let text = error.render(false).replace(&root.path().display().to_string(), "");
    let expected = "error: there is no machine 'databse'\n  |\n  \
                    = note: looked for '/etc/machinist/machines/databse.toml'\n  \
                    = note: looked for '/run/machinist/config/machines/databse.toml'\n  \
                    = note: looked for '/usr/lib/machinist/machines/databse.toml'\n  \
                    = hint: did you mean 'database'?"
        .replace("\n  ", "\n ");
    assert_eq!(text, expected);
}

#[test]
fn the_schema_is_the_recorded_one() {
    let mut out = Vec::new();
    verbs::schema(&mut out).expect("write");
    assert_recorded(Path::new("tests/data/machine.schema.json"), &String::from_utf8(out).expect("text"));
}
