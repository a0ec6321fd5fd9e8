//! Words that may not come back: the field has a better one, or the sentence hides who does what.
//!
//! Checked in help texts, in everything below `src/` (errors, docs, comments), and in what users read of the repository.

use std::fs;
use std::path::{Path, PathBuf};

use crate::program::Visit;

/// A word or phrase, and what to write instead.
const WORDS: [(&str, &str); 16] = [
    ("somebody", "the caller, another process, an administrator: name it"),
    ("anybody", "any user, any process: name it"),
    ("nobody", "say what does not happen, or \"no other\"; the user is written `nobody`"),
    ("whoever", "the caller, the owner, the process that: name it"),
    ("others than", "other than"),
    ("for ever", "forever, without a limit, indefinitely"),
    ("anew", "again, new"),
    ("circle", "cycle"),
    ("circles", "cycles"),
    ("carries machines", "on hosts with systemd"),
    ("asked for by polkit", "authorised by polkit"),
    ("let go on", "resume"),
    ("let frozen machines go on", "resume frozen machines"),
    ("answered nonsense", "invalid reply from"),
    ("without a word", "without a message"),
    ("as it happens", "as it occurs"),
];

/// Names of files that needed a glossary; DESIGN and the crate page have the ones in use.
const FILES: [&str; 18] = [
    "alone", "carried", "conduct", "defined", "errand", "family", "found", "inside", "kept_up", "layers", "life",
    "look", "own", "pause", "place", "remote", "seal", "slot",
];

/// Where a word stands in a text, as a whole word.
fn lines_with<'a>(text: &'a str, word: &str) -> Vec<(usize, &'a str)> {
    let found = |line: &&str| {
        let lower = line.to_ascii_lowercase();
        lower.match_indices(word).any(|(at, _)| {
            let (before, after) = (lower[..at].chars().next_back(), lower[at + word.len()..].chars().next());
            let part = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
            // A name: of a user, a file or a value.
            let quoted = |c: Option<char>| c.is_some_and(|c| "`'\":/".contains(c));
            !(part(before) || part(after) || quoted(before) && quoted(after))
        })
    };
    text.lines().enumerate().filter(|(_, line)| found(line)).map(|(index, line)| (index + 1, line.trim())).collect()
}

/// What is wrong in a text that `place` names.
fn complaints(place: &str, text: &str) -> Vec<String> {
    let of = |(word, instead): &(&str, &str)| -> Vec<String> {
        let lines = lines_with(text, word).into_iter();
        lines.map(|(number, line)| format!("{place}:{number}: \"{word}\" ({instead}): {line}")).collect()
    };
    WORDS.iter().flat_map(of).collect()
}

fn files_below(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory of the repository") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            files_below(&path, files);
        } else {
            files.push(path);
        }
    }
}

fn complaints_below(roots: &[&str]) -> Vec<String> {
    let mut files = Vec::new();
    for root in roots {
        if Path::new(root).is_dir() {
            files_below(Path::new(root), &mut files);
        } else {
            files.push(root.into());
        }
    }
    files.sort();
    let read = |file: PathBuf| Some((file.display().to_string(), fs::read_to_string(&file).ok()?));
    files.into_iter().filter_map(read).flat_map(|(place, text)| complaints(&place, &text)).collect()
}

fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "{} places:\n{}", complaints.len(), complaints.join("\n"));
}

#[test]
fn whole_words_are_found_and_names_are_not() {
    let text = "Nobody here\nthe user `nobody`\nnobody_else\n\"nobody\"\nand so nobody.";
    assert_eq!(lines_with(text, "nobody"), [(1, "Nobody here"), (5, "and so nobody.")]);
}

#[test]
fn what_users_read_has_the_words_of_the_field() {
    assert_none(&complaints_below(&["README.md", "CHANGELOG.md", "machines", "packaging", "units", "benches"]));
}

#[test]
fn help_has_the_words_of_the_field() {
    let visit = Visit::new();
    let main = visit.ok(&["--help"]);
    let mut broken = complaints("machinist --help", &main);
    for verb in crate::program::verbs(&main) {
        broken.extend(complaints(&format!("machinist {verb} --help"), &visit.ok(&[&verb, "--help"])));
    }
    assert_none(&broken);
}

#[test]
fn the_source_has_the_words_of_the_field() {
    let mut broken = complaints_below(&["src"]);
    // Interfaces of systemd, with its own comments.
    broken.retain(|line| !line.starts_with("src/daemon/varlink/io.systemd."));
    assert_none(&broken);
}

#[test]
fn files_have_the_names_of_the_field() {
    let mut files = Vec::new();
    files_below(Path::new("src"), &mut files);
    let broken: Vec<String> = files
        .iter()
        .filter(|file| {
            let parts = file.with_extension("");
            parts.iter().any(|part| FILES.iter().any(|name| part == *name))
        })
        .map(|file| file.display().to_string())
        .collect();
    assert_none(&broken);
}
