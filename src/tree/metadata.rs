//! What a tree contains about itself: host name, machine id, os-release. The tree is hostile.

use crate::spec::{Hostname, MachineId};
use crate::sys::path::RootFd;
use crate::sys::{Errno, Error, Result};

/// More than any such file has.
const LARGEST: usize = 64 << 10;

/// The name in `/etc/hostname`; `None` if there is none or it is no host name.
pub fn hostname(root: &RootFd) -> Result<Option<String>> {
    let text = read(root, "etc/hostname")?.unwrap_or_default();
    let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(line.and_then(|name| Hostname::parse(name).ok()).map(|name| name.as_str().to_owned()))
}

/// The id in `/etc/machine-id`; `None` if it has not been given yet.
pub fn machine_id(root: &RootFd) -> Result<Option<[u8; 16]>> {
    let text = read(root, "etc/machine-id")?.unwrap_or_default();
    Ok(MachineId::parse(text.trim()).ok().map(|id| id.0))
}

/// The variables of `/etc/machine-info`, in order.
pub fn machine_info(root: &RootFd) -> Result<Vec<(String, String)>> {
    Ok(parse_variables(&read(root, "etc/machine-info")?.unwrap_or_default()))
}

/// The variables of `/etc/os-release`, or else of `/usr/lib/os-release`, in order.
pub fn os_release(root: &RootFd) -> Result<Vec<(String, String)>> {
    for path in ["etc/os-release", "usr/lib/os-release"] {
        if let Some(text) = read(root, path)? {
            return Ok(parse_variables(&text));
        }
    }
    Ok(Vec::new())
}

/// Reads a file of the tree; `None` if it is missing or no regular file.
fn read(root: &RootFd, path: &str) -> Result<Option<String>> {
    let Some(data) = root.read(path, LARGEST + 1)? else { return Ok(None) };
    if data.len() > LARGEST {
        return Err(Error { call: format!("read('/{path}' in the tree)"), errno: Errno::EFBIG });
    }
    Ok(Some(String::from_utf8_lossy(&data).into_owned()))
}

/// Takes variables from a file in the form of `os-release(5)`: assignments with a shell's quotes, nothing expanded.
/// Lines that are none are left out, and control characters never come through.
pub fn parse_variables(text: &str) -> Vec<(String, String)> {
    text.lines().filter_map(parse_assignment).collect()
}

fn parse_assignment(line: &str) -> Option<(String, String)> {
    let (key, value) = line.trim().split_once('=')?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if key.is_empty() || !key.chars().all(is_name) || key.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    Some((key.to_owned(), unquote(value)?))
}

/// Removes a shell's quotes; `None` if one is not closed.
fn unquote(text: &str) -> Option<String> {
    let mut value = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            ('\\', None) => value.extend(chars.next()),
            ('\\', Some('"')) => match chars.next()? {
                escaped @ ('"' | '\\' | '$' | '`') => value.push(escaped),
                other => value.extend(['\\', other]),
            },
            (c, None) if c.is_whitespace() => break,
            (c, _) => value.push(c),
        }
    }
    value.retain(|c| !c.is_control());
    quote.is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_removed_as_a_shell_does() {
        let text =
            "# comment\nID=debian\nNAME=\"Debian \\\"GNU\\\" \\$x \\n\"\nQ='it''s \"x\"'\nE=a\\ b\nT=x y\nEMPTY=\n";
        let expected =
            [("ID", "debian"), ("NAME", "Debian \"GNU\" $x \\n"), ("Q", "its \"x\""), ("E", "a b"), ("T", "x")];
        let mut expected: Vec<_> = expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        expected.push(("EMPTY".to_owned(), String::new()));
        assert_eq!(parse_variables(text), expected);
    }

    #[test]
    fn lines_that_are_no_assignment_are_left_out() {
        assert_eq!(parse_variables("no\n=x\n1A=x\nA B=x\nA-B=x\nOPEN=\"x\nOPEN='x\n"), []);
        assert_eq!(parse_variables("A=\"x\u{1b}[2J\"\n"), [("A".to_owned(), "x[2J".to_owned())]);
    }
}
