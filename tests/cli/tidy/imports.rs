//! Which file uses which: paths are read from the text and followed through re-exports to the file that defines.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

/// A path that a file names, and how.
#[derive(Debug, Clone)]
pub(super) struct Named {
    /// Segments as written; `crate`, `super` and `self` stay.
    pub(super) path: Vec<String>,
    pub(super) line: usize,
    /// Of a `use`: the name it has in this file, `*` for all.
    bound: Option<String>,
    /// Of a `use`: with `pub`, so that others may mean it.
    exported: bool,
}

/// A file's paths and what it defines.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) file: PathBuf,
    /// Paths in the order of the text.
    pub(super) named: Vec<Named>,
    defined: BTreeSet<String>,
    /// Names that stand alone, outside of `use`.
    words: BTreeSet<String>,
}

impl Module {
    /// What `use` brings in by this name.
    fn imports<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Named> {
        self.named.iter().filter(move |named| named.bound.as_deref() == Some(name))
    }
}

/// All files by the path of their module; `[]` is the crate.
pub(super) type Tree = BTreeMap<Vec<String>, Module>;

#[derive(Debug, Clone)]
struct Token {
    text: String,
    line: usize,
}

/// Takes a text apart; comments and what stands in quotes are left out.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (mut i, mut line, mut found) = (0, 1, Vec::new());
    while i < chars.len() {
        let start = i;
        match (at(i), at(i + 1)) {
            ('/', '/') => i += chars[i..].iter().take_while(|c| **c != '\n').count(),
            ('r', '"' | '#') if at(i + 1) == '"' || matches!(at(i + 2), '"' | '#') => {
                let hashes = chars[i + 1..].iter().take_while(|c| **c == '#').count();
                let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
                i += hashes + 2;
                i += chars[i..].windows(end.len()).position(|w| w == end).expect("closed") + end.len();
            }
            ('"', _) => {
                i += 1;
                while at(i) != '"' {
                    i += if at(i) == '\\' { 2 } else { 1 };
                }
                i += 1;
            }
            ('\'', '\\') => i += 3 + chars[i + 3..].iter().take_while(|c| **c != '\'').count() + 1,
            ('\'', _) if at(i + 2) == '\'' => i += 3,
            (c, _) if is_word(c) => {
                i += chars[i..].iter().take_while(|c| is_word(**c)).count();
                found.push(Token { text: chars[start..i].iter().collect(), line });
            }
            (':', ':') => {
                i += 2;
                found.push(Token { text: "::".into(), line });
            }
            (c, _) => {
                i += 1;
                if !c.is_whitespace() {
                    found.push(Token { text: c.into(), line });
                }
            }
        }
        line += chars[start..i.min(chars.len())].iter().filter(|c| **c == '\n').count();
    }
    found
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

/// Reads the tree behind `use`, from `at` on; gives where it ends.
fn use_tree(tokens: &[Token], mut at: usize, prefix: &[String], exported: bool, named: &mut Vec<Named>) -> usize {
    let mut path = prefix.to_vec();
    let line = tokens[at].line;
    loop {
        match tokens[at].text.as_str() {
            "::" => at += 1,
            "{" => {
                at += 1;
                while tokens[at].text != "}" {
                    at = use_tree(tokens, at, &path, exported, named);
                    at += usize::from(tokens[at].text == ",");
                }
                return at + 1;
            }
            "*" => {
                named.push(Named { path, line, bound: Some("*".into()), exported });
                return at + 1;
            }
            "as" => {
                named.push(Named { path, line, bound: Some(tokens[at + 1].text.clone()), exported });
                return at + 2;
            }
            "self" if !path.is_empty() => at += 1,
            name if is_name(name) => {
                path.push(name.to_owned());
                at += 1;
            }
            _ => {
                named.push(Named { bound: path.last().cloned(), path, line, exported });
                return at;
            }
        }
    }
}

/// Reads one file; without its tests if `tests` is not set.
pub(super) fn read(file: PathBuf, tests: bool) -> Module {
    let text = fs::read_to_string(&file).expect("text");
    // By our habit the test module is the last thing in a file.
    let end = text.find("mod tests {\n").filter(|_| !tests).unwrap_or(text.len());
    let text = &text[..end];
    let tokens = tokens(text);
    let word = |at: usize| tokens.get(at).map_or("", |t: &Token| t.text.as_str());
    let mut module = Module { file, named: Vec::new(), defined: BTreeSet::new(), words: BTreeSet::new() };
    let mut at = 0;
    while at < tokens.len() {
        let before = if at == 0 { "" } else { word(at - 1) };
        match word(at) {
            // `+ use<'a>` bounds what an opaque type captures.
            "use" if word(at + 1) != "<" => {
                let exported = before == "pub" || before == ")";
                at = use_tree(&tokens, at + 1, &[], exported, &mut module.named);
            }
            "fn" | "struct" | "enum" | "trait" | "type" | "const" | "static" | "union" => {
                module.defined.insert(word(at + 1).to_owned());
                at += 1;
            }
            "macro_rules" => {
                module.defined.insert(word(at + 2).to_owned());
                at += 1;
            }
            name if is_name(name) && before != "::" && before != "." && before != "fn" => {
                let line = tokens[at].line;
                let mut path = vec![name.to_owned()];
                while word(at + 1) == "::" && is_name(word(at + 2)) {
                    path.push(word(at + 2).to_owned());
                    at += 2;
                }
                match path.len() {
                    1 => module.words.extend(path),
                    _ => module.named.push(Named { path, line, bound: None, exported: false }),
                }
                at += 1;
            }
            _ => at += 1,
        }
    }
    module
}

/// Where something is: its module, and its name there if it is no module itself.
type Place = (Vec<String>, Option<String>);

/// Follows a path from a module to the one that defines what it names; `None` if that is not ours.
fn find(tree: &Tree, from: &[String], path: &[String], depth: usize) -> Option<Place> {
    if depth > 16 {
        return None;
    }
    let (first, mut rest) = path.split_first()?;
    let mut here = match first.as_str() {
        "crate" => Vec::new(),
        "self" => from.to_vec(),
        "super" => from.split_last()?.1.to_vec(),
        _ => {
            rest = path;
            from.to_vec()
        }
    };
    // A bare name may as well be another crate's, or something in the file itself.
    let mut bare = rest.len() == path.len();
    while let Some((name, more)) = rest.split_first() {
        let child = [&here[..], std::slice::from_ref(name)].concat();
        if name == "super" {
            here.pop()?;
        } else if tree.contains_key(&child) {
            here = child;
        } else {
            let module = &tree[&here];
            if let Some(import) = module.imports(name).find(|n| n.path != [name.clone()]) {
                let (place, item) = find(tree, &here, &import.path, depth + 1)?;
                let item: Vec<String> = item.into_iter().chain(more.iter().cloned()).collect();
                let full: Vec<String> = std::iter::once("crate".into()).chain(place).chain(item).collect();
                return find(tree, &[], &full, depth + 1);
            }
            if !module.defined.contains(name) {
                for all in module.imports("*") {
                    let (place, _) = find(tree, &here, &all.path, depth + 1)?;
                    if tree[&place].defined.contains(name) {
                        return Some((place, Some(name.clone())));
                    }
                }
                if bare {
                    return None;
                }
            }
            return Some((here, Some(name.clone())));
        }
        bare = false;
        rest = more;
    }
    Some((here, None))
}

/// Each use of one file by another: who, whom, and what of it.
pub(super) fn uses(tree: &Tree) -> Vec<(&Vec<String>, &Vec<String>, String)> {
    let mut found = Vec::new();
    for (from, module) in tree {
        for named in &module.named {
            let Some((to, item)) = find(tree, from, &named.path, 0) else { continue };
            // What is only passed on is not used; a module that is named counts where something of it is.
            let passed_on = named.exported && !named.bound.as_ref().is_some_and(|name| module.words.contains(name));
            let of_module = item.is_none() && named.bound.as_deref() != Some("*");
            if to != *from && !passed_on && !of_module {
                let (to, _) = tree.get_key_value(&to).expect("in the tree");
                found.push((from, to, item.unwrap_or_else(|| "*".into())));
            }
        }
    }
    found
}
