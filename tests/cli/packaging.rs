//! Units, policies and the install script: that they hold together, and leave nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A host's root, as far as an installation sees it.
struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("temporary directory"))
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path.trim_start_matches('/'))
    }

    fn script(&self, args: &[&str]) -> Output {
        let mut command = Command::new("packaging/install");
        command.args(args).args(["--program", env!("CARGO_BIN_EXE_machinist")]).env("DESTDIR", self.0.path());
        command.output().expect("run the script")
    }

    /// Runs the script, which must work, and gives what it says.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.script(args);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), errors.as_str()), (Some(0), ""), "packaging/install {args:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Every file and directory with its mode.
    fn everything(&self) -> BTreeMap<String, u32> {
        let mut found = BTreeMap::new();
        for entry in walkdir::WalkDir::new(self.0.path()).min_depth(1) {
            let entry = entry.expect("readable");
            let name = entry.path().strip_prefix(self.0.path()).expect("below").to_string_lossy().into_owned();
            found.insert(format!("/{name}"), entry.metadata().expect("metadata").permissions().mode() & 0o7777);
        }
        found
    }

    fn files(&self) -> Vec<String> {
        self.everything().into_keys().filter(|name| self.path(name).is_file()).collect()
    }
}

fn run(program: &str, args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("run {program}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

/// Files of the project below `dir`, not only directly.
fn sources(dir: &str) -> Vec<PathBuf> {
    let files = walkdir::WalkDir::new(dir).into_iter().map(|entry| entry.expect("readable"));
    let files: Vec<PathBuf> = files.filter(|e| e.file_type().is_file()).map(walkdir::DirEntry::into_path).collect();
    assert!(files.len() > 3, "{dir} is not where it was");
    files
}

/// Names of the verbs that help lists.
fn verbs() -> Vec<String> {
    let (_, help) = run(env!("CARGO_BIN_EXE_machinist"), &["--help"]);
    let list = help.split("Commands:\n").nth(1).expect("verbs").split("\n\n").next().expect("a list").to_owned();
    let verbs = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let verbs: Vec<String> = verbs.filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect();
    assert!(verbs.len() >= 18, "{verbs:?}");
    verbs
}

/// The manual pages by name, as they are written.
fn pages() -> BTreeMap<String, String> {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (status, said) = run(env!("CARGO_BIN_EXE_machinist"), &["man", dir.path().to_str().expect("text")]);
    assert_eq!((status, said.as_str()), (Some(0), ""));
    let files = fs::read_dir(dir.path()).expect("readable").map(|entry| entry.expect("entry").path());
    files
        .map(|file| {
            let name = file.file_name().expect("a name").to_string_lossy().into_owned();
            (name, fs::read_to_string(file).expect("text"))
        })
        .collect()
}

/// A page as it is read: without escapes, font changes and requests' names.
fn plain(page: &str) -> String {
    let page = ["\\fB", "\\fR", "\\fI", "\\fP"].iter().fold(page.to_owned(), |text, font| text.replace(font, ""));
    page.replace("\\-", "-").replace("\\*(Aq", "'").replace("\\(aq", "'").replace("\\&", "")
}

#[test]
fn every_verb_has_a_page_with_its_options() {
    let pages = pages();
    let main = plain(&pages["machinist.1"]);
    for verb in verbs() {
        let page = plain(pages.get(&format!("machinist-{verb}.1")).unwrap_or_else(|| panic!("no page of `{verb}`")));
        assert!(main.contains(&format!("machinist-{verb}(1)")), "machinist(1) does not name `{verb}`");
        let (_, help) = run(env!("CARGO_BIN_EXE_machinist"), &[&verb, "--help"]);
        let options = help.split_whitespace().filter(|word| word.starts_with("--") && word.len() > 2);
        for option in options.map(|word| word.trim_end_matches([',', '.', ']', '`', ';'])) {
            assert!(page.contains(option), "`{verb}`: {option}");
        }
    }
    for (name, page) in &pages {
        let title = name.rsplit_once('.').expect("a section");
        assert!(plain(page).contains(&format!(".TH {} {} ", title.0, title.1)), "{name}: {page:.200}");
    }
}

#[test]
fn every_key_of_the_schema_is_in_its_manual_page() {
    let page = plain(&pages()["machinist.toml.5"]);
    let schema = fs::read_to_string("tests/data/machine.schema.json").expect("recorded");
    let schema: serde_json::Value = serde_json::from_str(&schema).expect("JSON");
    let tables = schema["$defs"].as_object().expect("tables").values().chain([&schema]);
    let mut keys = 0;
    for table in tables.filter(|table| table["properties"].is_object()) {
        let described: Vec<(&String, &str)> = table["properties"]
            .as_object()
            .expect("keys")
            .iter()
            .map(|(key, property)| (key, property["description"].as_str().expect("described")))
            .collect();
        // One section holds all of a table's keys, each with its words.
        let holds = |section: &str| {
            described
                .iter()
                .all(|(key, text)| section.contains(&format!("\n{key} = ")) && section.contains(&text.replace('`', "")))
        };
        assert!(page.split("\n.SH ").any(holds), "{described:?}\n{page}");
        keys += described.len();
    }
    assert!(keys > 40, "only {keys} keys");
}

/// What the shell would offer for the last of these words.
fn offered(root: &Path, words: &[&str]) -> Vec<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_machinist"));
    command.args(["--", "machinist"]).args(words).env("MACHINIST_ROOT", root).env("MACHINIST_COMPLETE", "bash");
    command.env("_CLAP_IFS", "\n").env("_CLAP_COMPLETE_INDEX", words.len().to_string());
    let output = command.output().expect("run");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{words:?}");
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

#[test]
fn machines_are_completed_from_directories() {
    let host = Host::new();
    for dir in ["etc/machinist/machines", "usr/lib/machinist/machines", "run/machinist/machines/db"] {
        fs::create_dir_all(host.path(dir)).expect("mkdir");
    }
    for file in ["etc/machinist/machines/web.toml", "usr/lib/machinist/machines/worker.toml"] {
        fs::write(host.path(file), "").expect("write");
    }
    let root = host.0.path();
    assert_eq!(offered(root, &["sta"]), ["start", "status", "stats"]);
    assert_eq!(offered(root, &["start", "w"]), ["web", "worker"]);
    assert_eq!(offered(root, &["start", "./machines/min"]), ["./machines/minimal.toml"]);
    assert_eq!(offered(root, &["stop", ""]).iter().filter(|word| !word.starts_with('-')).collect::<Vec<_>>(), ["db"]);
    assert_eq!(offered(root, &["shell", "root@"]), ["root@db"]);
    assert_eq!(offered(root, &["run", "--console", "n"]), ["none"]);
    assert_eq!(offered(root, &["man", "x"]), [""; 0]);
}

#[test]
fn completion_scripts_are_shell() {
    for shell in ["bash", "fish", "zsh"] {
        let (status, script) = run(env!("CARGO_BIN_EXE_machinist"), &["completion", shell]);
        assert_eq!(status, Some(0), "{script}");
        assert!(script.contains("MACHINIST_COMPLETE"), "{script}");
        if shell == "bash" {
            let dir = tempfile::tempdir().expect("temporary directory");
            let file = dir.path().join("script");
            fs::write(&file, script).expect("write");
            assert_eq!(run("bash", &["-n", file.to_str().expect("text")]), (Some(0), String::new()));
        }
    }
    assert_eq!(run(env!("CARGO_BIN_EXE_machinist"), &["completion", "tcsh"]).0, Some(2));
}

#[test]
fn an_installation_has_what_its_kind_of_host_needs() {
    let common = |prefix: &str, bus: &str| {
        let mut files = [
            "/etc/default/machinist",
            "/usr/share/polkit-1/actions/org.freedesktop.machine1.policy",
            "/usr/share/polkit-1/actions/org.machinist1.policy",
        ]
        .map(str::to_owned)
        .to_vec();
        files.extend(["org.freedesktop.machine1.conf", "org.machinist1.conf"].map(|file| format!("{bus}/{file}")));
        let below = [
            "bin/machinist",
            "lib/machinist/install.manifest",
            "share/dbus-1/system-services/org.freedesktop.machine1.service",
            "share/dbus-1/system-services/org.machinist1.service",
            "share/bash-completion/completions/machinist",
            "share/fish/vendor_completions.d/machinist.fish",
            "share/zsh/site-functions/_machinist",
        ];
        files.extend(below.map(|file| format!("{prefix}/{file}")));
        let pages = pages().into_keys();
        files.extend(pages.map(|page| format!("{prefix}/share/man/man{}/{page}", &page[page.len() - 1..])));
        files
    };
    let scripts = ["/etc/init.d/machinist", "/etc/init.d/machinist-machines"].map(str::to_owned);
    let units = [
        "/usr/lib/machinist/machines.target",
        "/usr/lib/systemd/system-generators/machinist-generator",
        "/usr/lib/systemd/system/machinist-machine1.socket",
        "/usr/lib/systemd/system/machinist.service",
        "/usr/lib/systemd/system/machinist.service.d/machine1.conf",
        "/usr/lib/systemd/system/machinist.socket",
        "/usr/lib/systemd/system/machinist@.service",
        "/usr/lib/systemd/system/machinist@.service.d/machine1.conf",
        "/usr/lib/tmpfiles.d/machinist.conf",
    ]
    .map(str::to_owned);
    for (args, extra) in [
        (&["--systemd", "--prefix", "/usr"][..], &units[..]),
        (&["--openrc"], &scripts),
        (&["--sysvinit", "--prefix=/usr/local/"], &scripts),
    ] {
        let host = Host::new();
        host.ok(args);
        let (prefix, bus) = if args.contains(&"/usr") {
            ("/usr", "/usr/share/dbus-1/system.d")
        } else {
            ("/usr/local", "/etc/dbus-1/system.d")
        };
        let mut expected = common(prefix, bus);
        expected.extend_from_slice(extra);
        expected.sort();
        assert_eq!(host.files(), expected, "{args:?}");
        for file in expected {
            let text = String::from_utf8_lossy(&fs::read(host.path(&file)).expect("readable")).into_owned();
            if !file.ends_with("bin/machinist") && prefix != "/usr" {
                assert!(!text.contains("/usr/bin/machinist"), "{file} names the program of another prefix");
            }
            let mode = fs::metadata(host.path(&file)).expect("metadata").permissions().mode() & 0o777;
            let program = ["/bin/", "/init.d/", "-generators/"].iter().any(|dir| file.contains(dir));
            assert_eq!(mode, if program { 0o755 } else { 0o644 }, "{file}");
        }
    }
}

#[test]
fn uninstalling_removes_exactly_what_was_installed() {
    let host = Host::new();
    for dir in ["etc/init.d", "usr/share/dbus-1/system-services", "usr/lib"] {
        fs::create_dir_all(host.path(dir)).expect("mkdir");
    }
    fs::write(host.path("etc/init.d/other"), "not ours").expect("write");
    let before = host.everything();
    for (prefix, first, second) in [
        ("--prefix=/usr/local", "--systemd", "--openrc"),
        ("--prefix=/usr/local", "--sysvinit", "--sysvinit"),
        ("--prefix=/usr", "--openrc", "--systemd"),
    ] {
        host.ok(&[prefix, first]);
        assert_ne!(host.everything(), before);
        // Over the first, and as another kind of host: what the first had goes, too.
        host.ok(&[prefix, second, "--no-machine1"]);
        let expected = "Machinist is removed. What belongs to machines stays: /var/lib/machines, /var/lib/machinist, \
                        /etc/machinist.\n";
        assert_eq!(host.ok(&[prefix, "--uninstall"]), expected);
        assert_eq!(host.everything(), before, "{prefix} {first} {second}");
    }
}

#[test]
fn what_an_administrator_wrote_survives_reinstalling_and_uninstalling() {
    let host = Host::new();
    host.ok(&["--systemd"]);
    fs::write(host.path("etc/default/machinist"), "MACHINES=web\n").expect("write");
    fs::write(host.path("etc/machinist/machines/web.toml"), "[root]\n").expect("write");
    host.ok(&["--systemd"]);
    let said = host.ok(&["--uninstall"]);
    let kept = ["/etc/default", "/etc/machinist", "/etc/machinist/machines", "/etc"];
    assert!(said.starts_with("kept, as it was changed: /etc/default/machinist\n"), "{said}");
    for dir in kept {
        assert!(said.contains(&format!("kept, as it is not empty: {dir}\n")), "{dir}: {said}");
    }
    assert!(!said.contains("not empty: \n"), "f27: the root itself is not ours: {said}");
    assert_eq!(host.files(), ["/etc/default/machinist", "/etc/machinist/machines/web.toml"]);
    assert_eq!(fs::read_to_string(host.path("etc/default/machinist")).expect("text"), "MACHINES=web\n");
}

#[test]
fn files_of_systemd_container_are_not_touched() {
    let host = Host::new();
    let theirs = host.path("usr/share/dbus-1/system-services/org.freedesktop.machine1.service");
    fs::create_dir_all(theirs.parent().expect("a parent")).expect("mkdir");
    fs::write(&theirs, "theirs").expect("write");
    let refused = host.script(&["--systemd", "--machine1"]);
    assert_eq!(refused.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(errors.ends_with("is there already; it belongs to systemd-container\n"), "{errors}");
    assert_eq!(host.files().len(), 1, "a refused installation has put something");
    host.ok(&["--systemd", "--prefix", "/usr"]);
    assert_eq!(fs::read_to_string(&theirs).expect("text"), "theirs");
    assert!(!host.files().iter().any(|f| f.contains("machine1.conf") && !f.contains("machinist1")));
    host.ok(&["--uninstall", "--prefix", "/usr"]);
    assert_eq!(host.files().len(), 1);
}

#[test]
fn wrong_options_install_nothing() {
    let host = Host::new();
    for args in [
        &["--systemd", "--openrc"][..],
        &["--prefix", "relative"],
        &["--prefix=/with space"],
        &["--fly"],
        &["--uninstall"],
        &["--systemd", "--program=/nonexistent"],
        &["--program"],
        &[],
    ] {
        // The program comes last, so it must not be named twice.
        let mut command = Command::new("packaging/install");
        let output = command.args(args).env("DESTDIR", host.0.path()).output().expect("run the script");
        assert!(matches!(output.status.code(), Some(1 | 2)), "{args:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("install: "), "{args:?}: {output:?}");
    }
    assert_eq!(host.files(), Vec::<String>::new());
}

#[test]
fn packages_have_the_version_of_the_program() {
    let version = env!("CARGO_PKG_VERSION");
    for (file, line) in [
        ("packaging/rpm/machinist.spec", format!("Version:        {version}")),
        ("packaging/arch/PKGBUILD", format!("pkgver={version}")),
    ] {
        let text = fs::read_to_string(file).expect("text");
        assert!(text.lines().any(|l| l == line), "{file} lacks `{line}`");
    }
}

#[test]
fn the_rpm_takes_every_file_that_is_installed() {
    let spec = fs::read_to_string("packaging/rpm/machinist.spec").expect("text");
    let files = spec.split("\n%files").skip(1).collect::<String>().replace("%{unitdir}", "/usr/lib/systemd/system");
    let host = Host::new();
    host.ok(&["--prefix", "/usr", "--systemd", "--no-manifest"]);
    for file in host.files() {
        let known = files.lines().filter_map(|line| line.split_whitespace().last()).any(|pattern| {
            let dir = pattern == "/usr/lib/machinist" && file.starts_with(pattern);
            dir || pattern == file
                || pattern.strip_suffix(".1*").is_some_and(|p| file.starts_with(p.trim_end_matches('*')))
                || pattern.strip_suffix('*') == Some(file.as_str())
        });
        assert!(known, "%files lacks {file}");
    }
}

#[test]
fn debian_packages_hold_what_is_installed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let out = dir.path().to_str().expect("text");
    let build = ["--program", env!("CARGO_BIN_EXE_machinist"), "--output", out];
    let mut command = Command::new("packaging/deb/build");
    let output = command.args(build).env("DPKG_DEB_COMPRESSOR_TYPE", "none").output().expect("run the script");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let packages: Vec<&str> = said.lines().collect();
    assert_eq!(packages.len(), 2, "{said}");
    let contents = |package: &str| -> BTreeSet<String> {
        let (status, list) = run("dpkg-deb", &["--contents", package]);
        assert_eq!(status, Some(0), "{list}");
        let names =
            list.lines().filter(|line| !line.starts_with('d')).map(|line| line.split(" ./").nth(1).expect("a name"));
        names.map(|name| format!("/{}", name.split(" -> ").next().unwrap_or(name))).collect()
    };
    let (main, machine1) = (contents(packages[0]), contents(packages[1]));
    assert!(main.is_disjoint(&machine1), "{:?}", main.intersection(&machine1));
    let host = Host::new();
    host.ok(&["--prefix", "/usr", "--systemd", "--no-manifest"]);
    for file in host.files() {
        let file = file.replace("zsh/site-functions", "zsh/vendor-completions");
        let file = if file.contains("/man/") { format!("{file}.gz") } else { file };
        assert!(main.contains(&file) || machine1.contains(&file), "neither has {file}");
    }
    for file in ["/etc/init.d/machinist", "/usr/lib/systemd/system/machinist-machines.service"] {
        assert!(main.contains(file), "{file}");
    }
    let field = |package: &str, field: &str| run("dpkg-deb", &["--field", package, field]).1.trim().to_owned();
    assert!(field(packages[0], "Depends").contains("libc6 (>= "), "{}", field(packages[0], "Depends"));
    assert_eq!(field(packages[1], "Conflicts"), "systemd-container");
    let (_, conffiles) = run("dpkg-deb", &["--info", packages[0], "conffiles"]);
    assert_eq!(conffiles, "/etc/default/machinist\n/etc/init.d/machinist\n/etc/init.d/machinist-machines\n");
}

/// The verbs and options that units and scripts use, each line of them that runs the program.
fn calls() -> Vec<(PathBuf, String)> {
    let mut calls = Vec::new();
    let dirs = ["units", "packaging/openrc", "packaging/sysvinit"];
    for file in dirs.iter().flat_map(walkdir::WalkDir::new).map(|e| e.expect("readable").into_path()) {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        for line in text.lines().filter(|line| !line.trim_start().starts_with('#') && !line.contains("[ -x ")) {
            for word in ["/usr/bin/machinist ", "\"$PROGRAM\" "] {
                calls.extend(line.split(word).skip(1).map(|call| (file.clone(), call.to_owned())));
            }
        }
    }
    calls
}

#[test]
fn units_and_scripts_call_verbs_that_exist() {
    let calls = calls();
    assert!(calls.len() >= 9, "{calls:?}");
    for (file, call) in calls {
        let mut words = call.split([' ', ';', ')', '|', '&']).filter(|word| !word.is_empty());
        let verb = words.find(|word| !word.starts_with('-')).unwrap_or_default();
        let (status, help) = run(env!("CARGO_BIN_EXE_machinist"), &[verb, "--help"]);
        assert_eq!(status, Some(0), "{}: {call}: {help}", file.display());
        for option in call.split([' ', ')']).filter(|word| word.starts_with("--")) {
            let option = option.split('=').next().unwrap_or(option);
            assert!(help.contains(option), "{}: `{verb}` has no {option}", file.display());
        }
    }
}

#[test]
fn shell_files_are_posix_and_xml_is_well_formed() {
    let mut shell = 0;
    for file in sources("units").into_iter().chain(sources("packaging")) {
        let text = fs::read_to_string(&file).expect("text");
        let path = file.to_str().expect("text");
        if text.starts_with("#!/bin/sh") || text.starts_with("#!/sbin/openrc-run") {
            shell += 1;
            assert_eq!(run("sh", &["-n", path]), (Some(0), String::new()), "{path}");
            let mode = fs::metadata(&file).expect("metadata").permissions().mode() & 0o777;
            assert_eq!(mode & 0o111, 0o111, "{path} is no program");
        }
        if text.starts_with("<?xml") {
            well_formed(path, &text);
        }
    }
    assert!(shell >= 6, "only {shell} shell files");
}

/// Every element is closed in the right order, and comments hold no `--`.
fn well_formed(path: &str, text: &str) {
    let mut rest = text;
    let mut open = Vec::new();
    while let Some(at) = rest.find('<') {
        rest = &rest[at + 1..];
        if let Some(comment) = rest.strip_prefix("!--") {
            let end = comment.find("--").expect("an end of the comment");
            assert!(comment[end..].starts_with("-->"), "{path}: `--` in a comment: {}", &comment[end..end + 20]);
            rest = &comment[end + 3..];
            continue;
        }
        let (tag, after) = rest.split_once('>').expect("an end of the tag");
        rest = after;
        if tag.starts_with(['?', '!']) || tag.ends_with('/') {
            continue;
        }
        let name = tag.trim_start_matches('/').split_whitespace().next().unwrap_or_default();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "{path}");
        } else {
            open.push(name);
        }
    }
    assert_eq!(open, [""; 0], "{path}: not closed");
}

#[test]
fn units_are_what_systemd_understands() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut args = vec!["verify".to_owned(), "--man=no".to_owned()];
    for file in sources("units") {
        let name = file.file_name().expect("a name").to_string_lossy().replace("@.", "@web.");
        let unit = [".service", ".socket", ".target"].iter().any(|kind| name.ends_with(kind));
        if !unit || file.parent() != Some(Path::new("units")) {
            continue;
        }
        let text = fs::read_to_string(&file).expect("text").replace("/usr/bin/machinist", "/bin/true");
        let copy = dir.path().join(&name);
        fs::write(&copy, text).expect("write");
        args.push(copy.to_str().expect("text").to_owned());
    }
    assert_eq!(args.len(), 7, "{args:?}");
    let (status, said) = run("systemd-analyze", &args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(status, Some(0), "{said}");
    // Since systemd 254; older ones go on without it.
    let strange: Vec<&str> = said.lines().filter(|line| !line.contains("'DelegateSubgroup'")).collect();
    assert_eq!(strange, [""; 0]);
}

#[test]
fn the_machine_unit_keeps_its_contract() {
    let unit = fs::read_to_string("units/machinist@.service").expect("text");
    for line in [
        "Type=notify",
        "KillMode=mixed",
        "Slice=machine.slice",
        "Delegate=yes",
        "DelegateSubgroup=supervisor",
        "WatchdogSec=3min",
        "TimeoutStartSec=infinity",
        "PartOf=machines.target",
        "WantedBy=machines.target",
    ] {
        assert!(unit.lines().any(|l| l == line), "{line}");
    }
    // A payload's exit status is its own affair: none of them has systemd start the machine again.
    assert!(!unit.contains("ExitStatus="), "{unit}");
}

/// Ids of the actions in a policy file.
fn actions(path: &str) -> Vec<String> {
    let text = fs::read_to_string(path).expect("text");
    let ids = text.split("<action id=\"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()));
    ids.collect()
}

#[test]
fn actions_are_of_their_interface_and_say_who_may() {
    for (path, prefix, count) in [
        ("packaging/polkit/org.machinist1.policy", "org.machinist1.", 4),
        ("packaging/machine1/org.freedesktop.machine1.policy", "org.freedesktop.machine1.", 12),
    ] {
        let ids = actions(path);
        assert_eq!(ids.len(), count, "{path}");
        assert!(ids.iter().all(|id| id.starts_with(prefix)), "{ids:?}");
        let text = fs::read_to_string(path).expect("text");
        for (id, body) in ids.iter().zip(text.split("<action ").skip(1)) {
            for element in ["allow_any", "allow_inactive", "allow_active", "description", "message"] {
                assert_eq!(body.matches(&format!("<{element}>")).count(), 1, "{id} {element}");
            }
            let everybody = body.contains("<allow_any>yes<");
            assert_eq!(everybody, id == "org.machinist1.inspect", "{id} for everybody");
        }
    }
}

/// Interfaces and members that a bus policy lets everybody send, as `interface.member`.
fn members_for_all(path: &str) -> Vec<String> {
    let text = fs::read_to_string(path).expect("text");
    let value = |line: &str, key: &str| Some(line.split_once(&format!("{key}=\""))?.1.split('"').next()?.to_owned());
    let rules = text.lines().filter(|line| line.contains("<allow send_destination"));
    rules
        .filter_map(|line| Some(format!("{}.{}", value(line, "send_interface")?, value(line, "send_member")?)))
        .filter(|member| !member.starts_with("org.freedesktop.DBus."))
        .collect()
}

/// Methods of an interface as the daemon declares it, in its order.
fn declared_methods(interface: &str) -> Vec<String> {
    let source = fs::read_to_string("src/daemon/dbus/interface.rs").expect("text");
    let (_, rest) = source.split_once(&format!("\"{interface}\",")).expect("declared");
    let body = rest.split("\",").next().expect("an end");
    let methods = body.lines().filter_map(|line| line.trim().trim_start_matches('"').strip_prefix("method "));
    methods.filter_map(|line| Some(format!("{interface}.{}", line.split_whitespace().next()?))).collect()
}

#[test]
fn bus_policies_name_every_method_that_is_not_only_for_root() {
    let own = [declared_methods("org.machinist1.Manager"), declared_methods("org.machinist1.Machine")].concat();
    assert!(own.len() >= 12, "{own:?}");
    assert_eq!(members_for_all("packaging/dbus/org.machinist1.conf"), own);

    // systemd 262 lets others send all of machine1 but this one.
    let mut machine1: Vec<String> = ["Manager", "Machine", "Image"]
        .iter()
        .flat_map(|interface| declared_methods(&format!("org.freedesktop.machine1.{interface}")))
        .filter(|method| method != "org.freedesktop.machine1.Manager.CreateMachineEx")
        .collect();
    assert!(machine1.len() >= 60, "{machine1:?}");
    machine1.sort();
    let mut allowed = members_for_all("packaging/machine1/org.freedesktop.machine1.conf");
    allowed.sort();
    assert_eq!(allowed, machine1);
}

#[test]
fn every_action_that_the_daemon_asks_for_is_declared() {
    let known: BTreeSet<String> =
        ["packaging/polkit/org.machinist1.policy", "packaging/machine1/org.freedesktop.machine1.policy"]
            .iter()
            .flat_map(|path| actions(path))
            .collect();
    let mut asked = BTreeSet::new();
    for file in sources("src/daemon") {
        let text = fs::read_to_string(&file).expect("text");
        for constant in text.lines().filter(|line| line.starts_with("const ") || line.contains("authorise(")) {
            asked.extend(
                constant
                    .split('"')
                    .skip(1)
                    .step_by(2)
                    .filter(|word| word.starts_with("org.machinist1."))
                    .map(str::to_owned),
            );
        }
    }
    assert!(asked.len() >= 3, "{asked:?}");
    assert!(asked.is_subset(&known), "{asked:?}");
}

#[test]
fn the_generator_makes_a_target_only_where_there_is_none() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let late = dir.path().join("late");
    fs::create_dir(&late).expect("mkdir");
    // The script with our directories in place of the host's.
    let root = dir.path().join("host");
    let text = fs::read_to_string("units/machinist-generator").expect("text");
    let script = dir.path().join("generator");
    let list = "/etc /run /usr/local/lib /usr/lib /lib";
    assert!(text.contains(list) && text.contains("target=/usr/lib/"), "{text}");
    let r = root.to_str().expect("text");
    let ours = list.split(' ').map(|d| format!("{r}{d}")).collect::<Vec<_>>().join(" ");
    let text = text.replace(list, &ours).replace("target=/usr/lib/", &format!("target={r}/usr/lib/"));
    let program = format!("{} --root {r}", env!("CARGO_BIN_EXE_machinist"));
    assert!(text.contains("/usr/bin/machinist generate"), "{text}");
    fs::write(&script, text.replace("/usr/bin/machinist", &program)).expect("write");
    fs::create_dir_all(root.join("usr/lib/machinist")).expect("mkdir");
    fs::write(root.join("usr/lib/machinist/machines.target"), "").expect("write");
    let normal = dir.path().join("normal");
    fs::create_dir(&normal).expect("mkdir");
    fs::create_dir_all(root.join("etc/machinist/machines")).expect("mkdir");
    let definition = "root.directory = \"/srv/a\"\nboot.autostart = true\n";
    fs::write(root.join("etc/machinist/machines/a.toml"), definition).expect("write");
    let (n, l) = (normal.to_str().expect("text"), late.to_str().expect("text"));
    let generate = || run("sh", &[script.to_str().expect("text"), n, "e", l]);

    assert_eq!(generate(), (Some(0), String::new()));
    let link = fs::read_link(late.join("machines.target")).expect("a link");
    assert_eq!(link, root.join("usr/lib/machinist/machines.target"));
    assert!(late.join("multi-user.target.wants/machines.target").exists());

    fs::remove_dir_all(&late).expect("remove");
    fs::create_dir(&late).expect("mkdir");
    fs::create_dir_all(root.join("lib/systemd/system")).expect("mkdir");
    fs::write(root.join("lib/systemd/system/machines.target"), "").expect("write");
    assert_eq!(generate(), (Some(0), String::new()));
    assert_eq!(fs::read_dir(&late).expect("readable").count(), 0, "systemd-container's target was doubled");
    assert!(normal.join("machines.target.wants/machinist@a.service").is_symlink());
}
