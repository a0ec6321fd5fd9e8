//! Whole definitions on a host of files: which files count, in what order, and what comes out.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;
use crate::spec::{BindIdmap, Layout, Payload, RootSource, Upper};

const TREE: &str = "root.directory = \"/srv/tree\"\n";

/// A host with these files below its root.
fn host(files: &[(&str, &str)]) -> (TempDir, Layout) {
    let root = tempfile::tempdir().expect("temporary directory");
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().expect("parent")).expect("create");
        fs::write(path, text).expect("write");
    }
    let layout = Layout::system(root.path());
    (root, layout)
}

fn etc(name: &str) -> String {
    format!("etc/machinist/{name}")
}

/// Files of a loaded definition, as paths below the root.
fn files(root: &TempDir, loaded: &Loaded) -> Vec<String> {
    let below = |path: &PathBuf| path.strip_prefix(root.path()).expect("below the root").display().to_string();
    loaded.files.iter().map(below).collect()
}

fn origin<'a>(loaded: &'a Loaded, key: &str) -> &'a Origin {
    loaded.origins.iter().find(|origin| origin.key == key).unwrap_or_else(|| panic!("no key {key}"))
}

/// What is wrong, one line each, with the file's name and the line.
fn problems(error: &ConfigError) -> Vec<String> {
    let ConfigError::Diagnostics(found) = error else { panic!("{error}") };
    let name = |path: &Path| path.file_name().expect("name").to_string_lossy().into_owned();
    found.iter().map(|d| format!("{}:{}: {}", name(d.path()), d.line(), d.message())).collect()
}

#[test]
fn the_strongest_directory_with_the_definition_counts() {
    let text = |who: &str| format!("{TREE}description = \"{who}\"\n");
    let (etc, run, usr) = (text("etc"), text("run"), text("usr"));
    let (root, layout) = host(&[
        ("usr/lib/machinist/machines/web.toml", &usr),
        ("run/machinist/config/machines/web.toml", &run),
        ("etc/machinist/machines/web.toml", &etc),
    ]);
    let described = || load(&layout, "web").expect("valid").spec.description;
    assert_eq!(described().as_deref(), Some("etc"));
    fs::remove_file(root.path().join("etc/machinist/machines/web.toml")).expect("remove");
    assert_eq!(described().as_deref(), Some("run"));
    fs::remove_file(root.path().join("run/machinist/config/machines/web.toml")).expect("remove");
    assert_eq!(described().as_deref(), Some("usr"));
}

#[test]
fn drop_ins_of_all_directories_are_laid_in_the_order_of_their_names() {
    let set = |value: &str| format!("boot.environment.{value} = \"{value}\"\nboot.environment.LAST = \"{value}\"\n");
    let [a, b, b_etc, c] = [set("A"), set("B_USR"), set("B_ETC"), set("C")];
    let (root, layout) = host(&[
        ("usr/lib/machinist/machines/web.toml", TREE),
        ("usr/lib/machinist/machines/web.toml.d/20-b.toml", &b),
        ("etc/machinist/machines/web.toml.d/20-b.toml", &b_etc),
        ("etc/machinist/machines/web.toml.d/10-a.toml", &a),
        ("run/machinist/config/machines/web.toml.d/30-c.toml", &c),
        ("etc/machinist/machines/web.toml.d/.40-hidden.toml", "?"),
        ("etc/machinist/machines/web.toml.d/50-other.conf", "?"),
    ]);
    let loaded = load(&layout, "web").expect("valid");
    assert_eq!(
        files(&root, &loaded),
        [
            "usr/lib/machinist/machines/web.toml",
            "etc/machinist/machines/web.toml.d/10-a.toml",
            "etc/machinist/machines/web.toml.d/20-b.toml",
            "run/machinist/config/machines/web.toml.d/30-c.toml"
        ]
    );
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let expected = [pair("A", "A"), pair("B_ETC", "B_ETC"), pair("C", "C"), pair("LAST", "C")];
    assert_eq!(loaded.spec.boot.environment, expected);
}

#[test]
fn a_profile_is_laid_once_below_everything_that_extends_it() {
    let (root, layout) = host(&[
        (&etc("machines/web.toml"), "extends = [\"left\", \"right\"]\nroot.directory = \"/srv/tree\"\n"),
        (&etc("profiles/left.toml"), "extends = [\"base\"]\nconsole.log-size = \"2M\"\n"),
        (&etc("profiles/right.toml"), "extends = [\"base\"]\nboot.stop-timeout = \"3s\"\n"),
        ("usr/lib/machinist/profiles/base.toml", "console.log-size = \"1G\"\nboot.stop-timeout = \"1s\"\n"),
        ("usr/lib/machinist/profiles/left.toml", "?"),
    ]);
    let loaded = load(&layout, "web").expect("valid");
    assert_eq!(
        files(&root, &loaded),
        [
            "usr/lib/machinist/profiles/base.toml",
            "etc/machinist/profiles/left.toml",
            "etc/machinist/profiles/right.toml",
            "etc/machinist/machines/web.toml"
        ]
    );
    assert_eq!(loaded.spec.console.log_size, 2 << 20);
    assert_eq!(loaded.spec.boot.stop_timeout, Some(std::time::Duration::from_secs(3)));
}

#[test]
fn a_drop_in_can_change_what_is_extended() {
    let (_root, layout) = host(&[
        (&etc("machines/web.toml"), "extends = [\"gone\"]\nroot.directory = \"/srv/tree\"\n"),
        (&etc("machines/web.toml.d/a.toml"), "extends = [\"here\"]\n"),
        (&etc("profiles/here.toml"), "description = \"from the profile\"\n"),
    ]);
    assert_eq!(load(&layout, "web").expect("valid").spec.description.as_deref(), Some("from the profile"));
}

#[test]
fn profiles_in_a_circle_are_refused_with_the_circle() {
    let (_root, layout) = host(&[
        (&etc("machines/web.toml"), "extends = [\"out\"]\nroot.directory = \"/srv/tree\"\n"),
        (&etc("profiles/out.toml"), "extends = [\"a\"]\n"),
        (&etc("profiles/a.toml"), "description = \"x\"\nextends = [\"b\"]\n"),
        (&etc("profiles/b.toml"), "extends = [\"b\", \"a\"]\n"),
    ]);
    let error = load(&layout, "web").expect_err("cycle");
    assert_eq!(
        problems(&error),
        [
            "b.toml:1: `extends`: profiles extend each other in a cycle: b → b",
            "b.toml:1: `extends`: profiles extend each other in a cycle: a → b → a"
        ]
    );
}

#[test]
fn a_stronger_choice_removes_the_one_it_excludes() {
    let (_root, layout) = host(&[
        (
            &etc("machines/web.toml"),
            "extends = [\"p\"]\nboot.command = [\"/bin/true\"]\nroot.overlay.lower = [\"a\"]\n",
        ),
        (&etc("machines/web.toml.d/a.toml"), "root.directory = \"/srv/tree\"\n"),
        (&etc("profiles/p.toml"), "boot.init = \"systemd\"\nboot.args = [\"x\"]\nroot.directory = \"/srv/old\"\n"),
        (&etc("machines/back.toml"), "extends = [\"c\"]\nroot.overlay.lower = [\"a\"]\nboot.args = [\"y\"]\n"),
        (&etc("profiles/c.toml"), "boot.command = [\"/bin/true\"]\nroot.directory = \"/srv/old\"\n"),
    ]);
    let web = load(&layout, "web").expect("valid");
    assert_eq!(web.spec.root.source, RootSource::Directory("/srv/tree".into()));
    assert_eq!(web.spec.boot.payload, Payload::Command { argv: vec!["/bin/true".into()] });
    assert!(web.origins.iter().all(|origin| origin.key != "boot.init" && origin.key != "boot.args"));
    let back = load(&layout, "back").expect("valid");
    assert_eq!(back.spec.boot.payload, Payload::Auto { args: vec!["y".into()] });
    assert!(matches!(back.spec.root.source, RootSource::Overlay { upper: Upper::Persistent, .. }));
}

#[test]
fn rows_with_the_same_target_are_replaced_whole() {
    let (_root, layout) = host(&[
        (
            &etc("machines/web.toml"),
            "root.directory = \"/srv/tree\"\n[[bind]]\nsource = \"/a\"\nread-only = true\nidmap = \"owner\"\n\
             [[bind]]\nsource = \"/b\"\ntarget = \"/x/\"\n",
        ),
        (&etc("machines/web.toml.d/1.toml"), "[[bind]]\nsource = \"/c\"\ntarget = \"//a\"\n"),
        (&etc("machines/web.toml.d/2.toml"), "[[bind]]\nsource = \"/x\"\noptional = true\n"),
    ]);
    let spec = load(&layout, "web").expect("valid").spec;
    let binds: Vec<(&str, &str, bool)> =
        spec.binds.iter().map(|b| (b.source.to_str().expect("text"), b.target.as_str(), b.read_only)).collect();
    assert_eq!(binds, [("/c", "/a", false), ("/x", "/x", false)]);
    assert_eq!(spec.binds[0].idmap, BindIdmap::Private);
}

#[test]
fn an_empty_array_or_table_of_a_drop_in_replaces_or_adds() {
    let (_root, layout) = host(&[
        (
            &etc("machines/web.toml"),
            "root.directory = \"/srv/tree\"\nboot.args = [\"x\"]\n[boot.environment]\nA = \"1\"\n[[tmpfs]]\ntarget = \"/t\"\n",
        ),
        (&etc("machines/web.toml.d/a.toml"), "boot.args = []\nboot.environment = {}\ntmpfs = []\n"),
    ]);
    let spec = load(&layout, "web").expect("valid").spec;
    assert_eq!(spec.boot.payload, Payload::Auto { args: Vec::new() });
    assert_eq!((spec.boot.environment.len(), spec.tmpfs.len()), (1, 1));
}

#[test]
fn every_key_has_an_origin() {
    let (root, layout) = host(&[
        (&etc("machines/web.toml"), "\nroot.directory = \"/srv/tree\"\n[boot]\nready = \"notify\"\n"),
        (&etc("machines/web.toml.d/a.toml"), "\n\nboot.stop-timeout = \"120s\"\n"),
    ]);
    let loaded = load(&layout, "web").expect("valid");
    let at = |file: &str, line| OriginSource::File { path: root.path().join(etc(file)), line };
    let table = [
        ("root.directory", "\"/srv/tree\"", at("machines/web.toml", 2)),
        ("boot.ready", "\"notify\"", at("machines/web.toml", 4)),
        ("boot.stop-timeout", "\"120s\"", at("machines/web.toml.d/a.toml", 3)),
        ("boot.clock", "\"host\"", OriginSource::Default),
        ("identity.hostname", "\"web\"", OriginSource::Default),
        ("identity.machine-id", "unset", OriginSource::Default),
        ("root.overlay", "unset", OriginSource::Default),
        ("security.capabilities.add", "[]", OriginSource::Default),
    ];
    for (key, text, source) in table {
        let origin = origin(&loaded, key);
        assert_eq!((origin.text().as_str(), &origin.source), (text, &source), "{key}");
    }
}

#[test]
fn capabilities_named_on_one_side_are_exceptions_from_all_on_the_other() {
    let all = |but: &[u8]| -> Vec<u8> { (0..41).filter(|bit| !but.contains(bit)).collect() };
    let table = [
        ("add = [\"KILL\"], drop = [\"MKNOD\"]", vec![5], vec![27]),
        ("add = [\"KILL\", \"CAP_KILL\", \"CHOWN\"], drop = [\"all\"]", vec![0, 5], all(&[0, 5])),
        ("add = [\"all\"], drop = [\"MKNOD\"]", all(&[27]), vec![27]),
        ("add = [\"all\"]", all(&[]), vec![]),
        ("drop = [\"all\", \"MKNOD\"]", vec![], all(&[])),
    ];
    for (text, add, drop) in table {
        let text = format!("{TREE}security.capabilities = {{ {text} }}\n");
        let (_root, layout) = host(&[(&etc("machines/web.toml"), &text)]);
        let security = load(&layout, "web").expect("valid").spec.security;
        assert_eq!((security.capabilities_add, security.capabilities_drop), (add, drop), "{text}");
    }
}

#[test]
fn an_overlay_has_no_more_layers_than_the_kernel_stacks() {
    let text = |count| {
        let layers: Vec<String> = (0..count).map(|i| format!("\"i{i}\"")).collect();
        format!("root.overlay.lower = [{}]\n", layers.join(", "))
    };
    let (_root, layout) = host(&[(&etc("machines/good.toml"), &text(500)), (&etc("machines/bad.toml"), &text(501))]);
    assert!(load(&layout, "good").is_ok());
    let error = load(&layout, "bad").expect_err("too many");
    assert_eq!(problems(&error), ["bad.toml:1: `root.overlay.lower`: 501 layers, and the kernel stacks 500"]);
}

#[test]
fn a_file_brings_its_own_drop_ins_and_profiles() {
    let (root, layout) = host(&[
        ("my/web.toml", "extends = [\"near\", \"far\"]\nroot.directory = \"/srv/tree\"\n"),
        ("my/web.toml.d/a.toml", "boot.clock = \"own\"\n"),
        ("my/profiles/near.toml", "network.mode = \"host\"\n"),
        (&etc("profiles/near.toml"), "?"),
        (&etc("profiles/far.toml"), "root.read-only = true\n"),
        (&etc("machines/web.toml.d/a.toml"), "?"),
    ]);
    let loaded = load(&layout, root.path().join("my/web.toml").to_str().expect("text")).expect("valid");
    assert_eq!(loaded.spec.name.as_str(), "web");
    assert_eq!(
        files(&root, &loaded),
        ["my/profiles/near.toml", "etc/machinist/profiles/far.toml", "my/web.toml", "my/web.toml.d/a.toml"]
    );
}

#[test]
fn what_is_no_name_is_refused_before_any_file_is_opened() {
    let layout = Layout::system("/nowhere");
    let long = "x".repeat(65);
    for name in ["", "..", ".", "a b", "-a", &long, "a/..", "a/b c.toml", "./.toml", "ü"] {
        let error = load(&layout, name).expect_err(name);
        assert!(matches!(error, ConfigError::Name(_)), "{name}: {error}");
    }
    let error = load(&layout, &long).expect_err("long");
    assert_eq!(error.to_string(), format!("machine name '{long}' is longer than 64 bytes"));
}

#[test]
fn what_is_no_text_file_is_refused_without_reading_it() {
    let (root, layout) = host(&[(&etc("machines/latin.toml"), "x")]);
    let path = |name: &str| root.path().join(etc("machines")).join(name);
    fs::write(path("latin.toml"), b"# one\n# caf\xe9\n").expect("write");
    fs::create_dir(path("dir.toml")).expect("create");
    std::os::unix::fs::symlink("loop.toml", path("loop.toml")).expect("link");
    std::os::unix::fs::symlink("/dev/null", path("null.toml")).expect("link");
    // A sparse file: were it read, the test would need its memory.
    fs::File::create(path("big.toml")).expect("create").set_len(1 << 40).expect("grow");
    fs::write(path("full.toml"), vec![b'\n'; (1 << 20) + 1]).expect("write");
    nix::unistd::mkfifo(&path("fifo.toml"), nix::sys::stat::Mode::S_IRWXU).expect("fifo");
    let table = [
        ("latin", "cannot use '%latin.toml' as a machine file: line 2 byte 6 is not UTF-8"),
        ("dir", "cannot use '%dir.toml' as a machine file: it is a directory"),
        ("null", "cannot use '%null.toml' as a machine file: it is no regular file"),
        ("fifo", "cannot use '%fifo.toml' as a machine file: it is no regular file"),
        (
            "big",
            "cannot use '%big.toml' as a machine file: it has 1099511627776 bytes; a machine file has at most 1048576",
        ),
        ("full", "cannot use '%full.toml' as a machine file: it has 1048577 bytes; a machine file has at most 1048576"),
        ("loop", "cannot open '%loop.toml': Too many levels of symbolic links"),
    ];
    for (name, expected) in table {
        let error = load(&layout, name).expect_err(name);
        let expected = expected.replace('%', &format!("{}/", path("").display()).replace("//", "/"));
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.render(false), format!("error: {expected}"));
    }
    fs::write(path("full.toml"), [TREE.as_bytes(), &vec![b'\n'; (1 << 20) - TREE.len()]].concat()).expect("write");
    assert!(load(&layout, "full").is_ok(), "exactly the limit");
}

#[test]
fn a_missing_file_is_named() {
    let error = load(&Layout::system("/nowhere"), "no/such.toml").expect_err("missing");
    assert_eq!(error.to_string(), "cannot open 'no/such.toml': No such file or directory");
}

#[test]
fn the_list_has_each_name_once_and_its_strongest_file() {
    let (root, layout) = host(&[
        (&etc("machines/web.toml"), ""),
        (&etc("machines/db.toml.d/a.toml"), ""),
        (&etc("machines/a b.toml"), ""),
        ("usr/lib/machinist/machines/web.toml", ""),
        ("usr/lib/machinist/machines/db.toml", ""),
        ("usr/lib/machinist/machines/.x.toml", ""),
    ]);
    let listed: Vec<(String, PathBuf)> =
        list(&layout).into_iter().map(|(name, path)| (name.to_string(), path)).collect();
    let at = |path: &str| root.path().join(path);
    let expected = [
        ("db".to_owned(), at("usr/lib/machinist/machines/db.toml")),
        ("web".to_owned(), at("etc/machinist/machines/web.toml")),
    ];
    assert_eq!(listed, expected);
    assert_eq!(
        strays(&layout).into_iter().map(|(path, _)| path).collect::<Vec<_>>(),
        [at("etc/machinist/machines/a b.toml")]
    );
    assert!(list(&Layout::system("/nowhere")).is_empty());
}

#[test]
fn a_syntax_error_hides_nothing_but_its_own_line_and_what_is_missing() {
    let text = "bogus = 1\nboot.ready = maybe\nboot.clock = \"moon\"\n";
    let (_root, layout) = host(&[(&etc("machines/web.toml"), text)]);
    let error = load(&layout, "web").expect_err("wrong");
    assert_eq!(
        problems(&error),
        [
            "web.toml:1: unknown key `bogus`",
            "web.toml:2: text must be in quotes",
            "web.toml:3: `boot.clock`: 'moon' is not one of \"host\", \"own\""
        ]
    );
}

#[test]
fn a_damaged_file_is_loaded_or_refused_but_never_upsets_the_program() {
    let whole = fs::read_to_string("machines/everything.toml").expect("example");
    let whole = whole.replace("extends = [\"small\"]", "").replace("web", "ü漢");
    let (root, layout) = host(&[(&etc("machines/web.toml"), &whole)]);
    let path = root.path().join(etc("machines/web.toml"));
    let mut refused = 0;
    for (at, letter) in whole.char_indices().step_by(11) {
        let (before, after) = (&whole[..at], &whole[at + letter.len_utf8()..]);
        for damaged in [before.to_owned(), format!("{before}{after}"), format!("{before}[\"{{\n={letter}{after}")] {
            fs::write(&path, damaged).expect("write");
            if let Err(error) = load(&layout, "web") {
                assert!(error.render(true).contains("error"));
                refused += 1;
            }
        }
    }
    assert!(refused > 300, "only {refused}");
}
