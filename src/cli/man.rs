//! Manual pages: one for each verb, from what help says, and one for the machine file, from its schema.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, line_break, roman};
use serde_json::Value;

use super::output::status;
use crate::config;
use crate::report::OpError;
use crate::sys::file;

/// Name of the page of the machine file.
const FILE_PAGE: &str = "machinist.toml";

/// More words than this are not listed.
const LISTED_WORDS: usize = 12;

/// `machinist man`: writes every page into this directory.
pub(super) fn man(directory: &Path) -> Result<u8, OpError> {
    let write = |name: &str, text: &[u8]| {
        let path = directory.join(name);
        file::write(&path, text).map_err(|e| OpError::new(format!("cannot write a page: {e}")))
    };
    let rendering = |e: io::Error| OpError::new(format!("cannot write a page: {e}"));
    for (name, text) in verb_pages().map_err(rendering)? {
        write(&format!("{name}.1"), &text)?;
    }
    write(&format!("{FILE_PAGE}.5"), file_page(&config::schema()).to_roff().as_bytes())?;
    Ok(status::OK)
}

fn source() -> String {
    concat!("machinist ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// The program's page and one for each verb, by name.
fn verb_pages() -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut command = super::Arguments::command();
    command.build();
    let mut pages = BTreeMap::new();
    add_pages(&command, &mut pages)?;
    Ok(pages)
}

fn add_pages(command: &Command, pages: &mut BTreeMap<String, Vec<u8>>) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let mut text = Vec::new();
    Man::new(command.clone()).source(source()).manual("Machinist").render(&mut text)?;
    let mut end = Roff::new();
    if name == "machinist" {
        places(&mut end);
        exit_statuses(&mut end);
    }
    see_also(&mut end, if name == "machinist" { &[(FILE_PAGE, 5)] } else { &[("machinist", 1), (FILE_PAGE, 5)] });
    text.extend(end.to_roff().into_bytes());
    pages.insert(name, text);
    command.get_subcommands().filter(|verb| !verb.is_hide_set()).try_for_each(|verb| add_pages(verb, pages))
}

fn see_also(page: &mut Roff, pages: &[(&str, u8)]) {
    page.control("SH", ["SEE ALSO"]);
    let last = pages.len() - 1;
    for (index, (name, section)) in pages.iter().enumerate() {
        let comma = if index < last { "," } else { "" };
        page.control("BR", [*name, &format!("({section}){comma}")]);
    }
}

/// One entry of a list: a term and what it means.
fn entry(page: &mut Roff, term: impl Into<Vec<Inline>>, meaning: &str) {
    page.control("TP", []);
    page.text(term);
    page.text(prose(meaning));
}

fn places(page: &mut Roff) {
    page.control("SH", ["FILES"]);
    for (place, meaning) in [
        (
            "/etc/machinist/machines/*.toml",
            "Definitions; also in /run/machinist/config and /usr/lib/machinist. See machinist.toml(5).",
        ),
        ("/etc/machinist/profiles/*.toml", "What definitions build on with `extends`."),
        ("/var/lib/machines", "Images, shared with systemd's tools."),
        ("/var/lib/machinist/NAME", "What a machine writes, its id range and the log of its console."),
        ("/run/machinist", "State and sockets of running machines."),
    ] {
        entry(page, [italic(place)], meaning);
    }
}

fn exit_statuses(page: &mut Roff) {
    page.control("SH", ["EXIT STATUS"]);
    for (number, meaning) in [
        ("0", "Done."),
        ("1", "It failed; what and why is on standard error."),
        ("2", "The command line is wrong."),
        ("77", "The caller may not do this."),
        ("78", "A definition is wrong."),
        ("other", "Of `run`, `exec` and `shell`: the status of what ran in the machine."),
    ] {
        entry(page, [bold(number)], meaning);
    }
}

/// Text with what stands in backticks set bold.
fn prose(text: &str) -> Vec<Inline> {
    text.split('`').enumerate().map(|(i, part)| if i % 2 == 0 { roman(part) } else { bold(part) }).collect()
}

/// The page of the machine file.
fn file_page(schema: &Value) -> Roff {
    let mut page = Roff::new();
    page.control("TH", [FILE_PAGE, "5", "", &source(), "Machinist"]);
    page.control("SH", ["NAME"]);
    page.text([roman(format!("{FILE_PAGE} - definition of a machine"))]);
    page.control("SH", ["SYNOPSIS"]);
    let dirs = ["/etc/machinist", "/run/machinist/config", "/usr/lib/machinist"];
    for (index, dir) in dirs.iter().enumerate() {
        let end = if index + 1 < dirs.len() { vec![line_break()] } else { Vec::new() };
        page.text([vec![italic(format!("{dir}/machines/NAME.toml"))], end].concat());
    }
    page.control("SH", ["DESCRIPTION"]);
    for (index, paragraph) in [
        "A machine is defined by one file, whose name is the machine's. If several of the directories have one of the \
         same name, the first counts.",
        "Files in `NAME.toml.d` beside any of the places are laid over it in the order of their names, and the profiles \
         that `extends` names, NAME.toml in `profiles`, under it. A value replaces one below; entries of `[[bind]]` and \
         the like replace those with the same target and are added otherwise.",
        "A key that is not set has its default, here or below. A key that does not exist is an error, and \
         `machinist check` reports all errors at once. Sizes are written as \"512M\", times as \"90s\" or \"infinity\".",
        "`machinist show --origin` says what a definition comes to and which file said so.",
    ]
    .iter()
    .enumerate()
    {
        if index > 0 {
            page.control("PP", []);
        }
        page.text(prose(paragraph));
    }
    let mut tables = Vec::new();
    collect_tables(schema, schema, String::new(), &mut tables);
    for (path, table) in tables {
        let heading = if path.is_empty() { "TOP OF THE FILE".to_owned() } else { path.clone() };
        page.control("SH", [heading.as_str()]);
        if let Some(text) = table["description"].as_str().filter(|_| !path.is_empty()) {
            page.text(prose(text));
        }
        for (key, property) in table["properties"].as_object().into_iter().flatten() {
            describe_key(&mut page, schema, key, property);
        }
    }
    page.control("SH", ["EXAMPLE"]);
    page.control("EX", []);
    for line in EXAMPLE.lines() {
        page.text([roman(line)]);
    }
    page.control("EE", []);
    see_also(&mut page, &[("machinist", 1), ("machinist-check", 1), ("machinist-show", 1), ("machinist-schema", 1)]);
    page
}

const EXAMPLE: &str = r#"description = "Web server"

[root]
overlay = { lower = ["trixie"] }

[[bind]]
source = "/srv/www"
target = "/var/www"
read-only = true"#;

/// Follows a reference of the schema to its definition.
fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let target = schema["$ref"].as_str().and_then(|reference| root.pointer(reference.trim_start_matches('#')));
    target.unwrap_or(schema)
}

/// Every table below a schema, with its heading in the file.
fn collect_tables<'a>(root: &'a Value, schema: &'a Value, path: String, found: &mut Vec<(String, &'a Value)>) {
    let schema = resolve(root, schema);
    if let Some(properties) = schema["properties"].as_object() {
        found.push((path.clone(), schema));
        let name = path.trim_matches(['[', ']']);
        for (key, property) in properties {
            let below = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
            collect_tables(root, property, format!("[{below}]"), found);
        }
    }
    if let Some(items) = schema.get("items") {
        collect_tables(root, items, format!("[{path}]"), found);
    }
    for choice in schema["anyOf"].as_array().into_iter().flatten() {
        collect_tables(root, choice, path.clone(), found);
    }
}

fn describe_key(page: &mut Roff, root: &Value, key: &str, property: &Value) {
    page.control("TP", []);
    page.text([bold(key), roman(format!(" = {}", kind(root, property)))]);
    let text = property["description"].as_str().unwrap_or_default();
    let default = match property.get("default") {
        None => String::new(),
        Some(Value::Array(list)) if list.is_empty() => String::new(),
        Some(default) => format!(" Default: `{default}`."),
    };
    page.text(prose(&format!("{text}{default}")));
}

/// What a key takes, in a few words.
fn kind(root: &Value, schema: &Value) -> String {
    let schema = resolve(root, schema);
    if schema["properties"].is_object() {
        return "a table, see below".to_owned();
    }
    if let Some(words) = schema["enum"].as_array() {
        if words.len() > LISTED_WORDS {
            return "a word".to_owned();
        }
        return words.iter().map(Value::to_string).collect::<Vec<_>>().join(" | ");
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        let mut kinds: Vec<String> = choices.iter().map(|choice| kind(root, choice)).collect();
        kinds.dedup();
        return kinds.join(" | ");
    }
    match (schema["type"].as_str(), schema["pattern"].as_str()) {
        (_, Some("^/")) => "an absolute path".to_owned(),
        (Some("boolean"), _) => "true | false".to_owned(),
        (Some("integer"), _) => "a number".to_owned(),
        (Some("array"), _) => format!("a list: {}", kind(root, &schema["items"])),
        (Some("object"), _) => "a table of names and strings".to_owned(),
        _ => "a string".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_key_takes_is_told_in_words() {
        let schema = config::schema();
        let boot = resolve(&schema, &schema["properties"]["boot"]);
        let of = |table: &Value, key: &str| kind(&schema, &table["properties"][key]);
        assert_eq!(of(&schema, "boot"), "a table, see below");
        assert_eq!(of(&schema, "bind"), "a list: a table, see below");
        assert_eq!(of(boot, "ready"), "\"auto\" | \"notify\" | \"started\" | a table, see below");
        assert_eq!(of(boot, "check-os-release"), "true | false");
        assert_eq!(of(boot, "command"), "a list: a string");
        assert_eq!(of(boot, "environment"), "a table of names and strings");
        assert_eq!(of(boot, "stop-timeout"), "a string");
    }
}
