//! Finds a user in the machine's own `/etc/passwd` and `/etc/group`.
//!
//! The files are the machine's and may contain anything, so lines that do not follow the format to the letter are
//! skipped, sizes are limited and nothing falls back to root: a user that is not there is an error. No name
//! service of the host or the machine is asked.

use super::error::Shown;
use crate::sys;
use crate::sys::path::RootFd;

/// Larger files are refused instead of read in part, for a cut line could name another id.
const FILE_LIMIT: usize = 4 << 20;
const LINE_LIMIT: usize = 64 << 10;
/// `chown(2)` and others take this id for "do not change".
const NO_ID: u32 = u32::MAX;

/// Who a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups.
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
    pub(super) shell: String,
}

/// Why there is no such user.
#[derive(Debug)]
pub(super) enum UserProblem {
    /// The request itself, or the files' contents for it.
    Refused(String),
    /// A file could not be read.
    Unreadable(sys::Error),
}

impl From<sys::Error> for UserProblem {
    fn from(error: sys::Error) -> Self {
        Self::Unreadable(error)
    }
}

/// One line of a passwd file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
    shell: String,
}

/// One line of a group file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// A name or a number, as written.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Id<'a> {
    Name(&'a str),
    Number(u32),
}

/// Finds who `wanted` is in the tree `root`; `None` asks for root.
pub(super) fn resolve(root: &RootFd, wanted: Option<&str>) -> Result<User, UserProblem> {
    let read = |path: &str| match read(root, path) {
        // Root is root whatever the files contain, or do to keep us out.
        Err(_) if wanted.is_none() => Ok(Vec::new()),
        other => other,
    };
    let accounts = parse_accounts(&read("etc/passwd")?);
    let groups = parse_groups(&read("etc/group")?);
    select(&accounts, &groups, wanted).map_err(UserProblem::Refused)
}

fn read(root: &RootFd, path: &str) -> Result<Vec<u8>, UserProblem> {
    let data = root.read(path, FILE_LIMIT + 1)?.unwrap_or_default();
    if data.len() > FILE_LIMIT {
        return Err(UserProblem::Refused(format!("/{path} is larger than {} MiB", FILE_LIMIT >> 20)));
    }
    Ok(data)
}

fn select(accounts: &[Account], groups: &[Group], wanted: Option<&str>) -> Result<User, String> {
    let (user, group) = match wanted {
        None => (Id::Number(0), None),
        Some(text) => split(text)?,
    };
    let account = accounts.iter().find(|a| match user {
        Id::Name(name) => a.name == name,
        Id::Number(uid) => a.uid == uid,
    });
    let gid = match group {
        None => None,
        Some(Id::Number(gid)) => Some(gid),
        Some(Id::Name(name)) => {
            let group = groups.iter().find(|g| g.name == name);
            Some(group.ok_or_else(|| format!("no group '{}' in /etc/group", Shown(name)))?.gid)
        }
    };
    let account = match (account, user, gid) {
        (Some(account), ..) => account.clone(),
        (None, Id::Number(0), _) => Account::bare("root", 0, 0, "/root"),
        (None, Id::Number(uid), Some(gid)) => Account::bare(&uid.to_string(), uid, gid, "/"),
        (None, Id::Number(uid), None) => {
            return Err(format!("no user {uid} in /etc/passwd, so its group must be given, as in '{uid}:{uid}'"));
        }
        (None, Id::Name(name), _) => return Err(format!("no user '{}' in /etc/passwd", Shown(name))),
    };
    // A requested group is the only one, as with other tools of this kind.
    let others = match gid {
        Some(_) => Vec::new(),
        None => memberships(groups, &account),
    };
    let Account { name, uid, gid: primary, home, shell } = account;
    Ok(User { name, uid, gid: gid.unwrap_or(primary), groups: others, home, shell })
}

impl Account {
    fn bare(name: &str, uid: u32, gid: u32, home: &str) -> Self {
        Self { name: name.into(), uid, gid, home: home.into(), shell: "/bin/sh".into() }
    }
}

fn memberships(groups: &[Group], account: &Account) -> Vec<u32> {
    let mut gids: Vec<u32> =
        groups.iter().filter(|g| g.members.contains(&account.name)).map(|g| g.gid).chain([account.gid]).collect();
    gids.sort_unstable();
    gids.dedup();
    gids
}

/// Splits `USER` or `USER:GROUP`, each a name or a number.
fn split(text: &str) -> Result<(Id<'_>, Option<Id<'_>>), String> {
    let (user, group) = match text.split_once(':') {
        None => (text, None),
        Some((user, group)) => (user, Some(group)),
    };
    Ok((id(user, text)?, group.map(|group| id(group, text)).transpose()?))
}

fn id<'a>(part: &'a str, whole: &str) -> Result<Id<'a>, String> {
    if let Some(number) = number(part) {
        return Ok(Id::Number(number));
    }
    let looks_like_number = part.bytes().all(|b| b.is_ascii_digit());
    if looks_like_number || !is_name(part) {
        return Err(format!("'{}' is not USER or USER:GROUP, each a name or a number", Shown(whole)));
    }
    Ok(Id::Name(part))
}

/// The machine's root, whatever its files contain.
pub(super) fn machine_root() -> User {
    let Account { name, uid, gid, home, shell } = Account::bare("root", 0, 0, "/root");
    User { name, uid, gid, groups: Vec::new(), home, shell }
}

/// Whether `text` can be a user's name or number, alone.
pub fn is_user(text: &str) -> bool {
    number(text).is_some() || !text.bytes().all(|b| b.is_ascii_digit()) && is_name(text)
}

/// Reads an id written in decimal digits only; the id that means "none" is not one.
fn number(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|id| *id != NO_ID)
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 256
        && !text.starts_with(['-', '+'])
        && !text.chars().any(|c| c.is_control() || c.is_whitespace() || matches!(c, ':' | ',' | '/'))
}

/// The lines of a file that are text of sensible length, each split at its colons into exactly `N` fields.
fn records<const N: usize>(data: &[u8]) -> impl Iterator<Item = [&str; N]> {
    data.split(|byte| *byte == b'\n')
        .filter(|line| line.len() <= LINE_LIMIT)
        .filter_map(|line| std::str::from_utf8(line).ok())
        .filter(|line| !line.chars().any(char::is_control))
        .filter_map(|line| {
            let mut fields = line.split(':');
            let mut record = [""; N];
            for field in &mut record {
                *field = fields.next()?;
            }
            fields.next().is_none().then_some(record)
        })
}

fn parse_accounts(data: &[u8]) -> Vec<Account> {
    records::<7>(data)
        .filter_map(|[name, _, uid, gid, _, home, shell]| {
            if !is_name(name) {
                return None;
            }
            let home = if home.starts_with('/') { home } else { "/" };
            let shell = if shell.starts_with('/') { shell } else { "/bin/sh" };
            Some(Account {
                name: name.into(),
                uid: number(uid)?,
                gid: number(gid)?,
                home: home.into(),
                shell: shell.into(),
            })
        })
        .collect()
}

fn parse_groups(data: &[u8]) -> Vec<Group> {
    records::<4>(data)
        .filter_map(|[name, _, gid, members]| {
            let members = members.split(',').filter(|m| is_name(m)).map(str::to_owned).collect();
            is_name(name).then_some(Group { name: name.into(), gid: number(gid)?, members })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\n\
        bad line\n\
        alice:x:1000:1000:Alice,,,:/home/alice:/bin/zsh\n\
        alice:x:0:0:second alice:/root:/bin/sh\n\
        short:x:5:5::/\n\
        minus:x:-1:5::/:/bin/sh\n\
        plus:x:+5:5::/:/bin/sh\n\
        none:x:4294967295:5::/:/bin/sh\n\
        wide:x:4294967296:5::/:/bin/sh\n\
        odd\xff:x:5:5::/:/bin/sh\n\
        svc:x:33:33::var:\n";
    const GROUP: &[u8] = b"root:x:0:\nalice:x:1000:\nwww:x:33:alice,bob\naudio:x:29:bob, alice\nbroken:x::alice\n\
        cdrom:x:24:alice\n";

    fn find(wanted: Option<&str>) -> Result<User, String> {
        select(&parse_accounts(PASSWD), &parse_groups(GROUP), wanted)
    }

    fn ids(wanted: &str) -> Result<(u32, u32, Vec<u32>), String> {
        find(Some(wanted)).map(|u| (u.uid, u.gid, u.groups))
    }

    #[test]
    fn users_are_found_by_name_and_by_number_with_their_groups() {
        assert_eq!(ids("alice"), Ok((1000, 1000, vec![24, 33, 1000])));
        assert_eq!(ids("1000"), ids("alice"));
        assert_eq!(ids("alice:www"), Ok((1000, 33, vec![])));
        assert_eq!(ids("alice:4"), Ok((1000, 4, vec![])));
        assert_eq!(ids("7:8"), Ok((7, 8, vec![])));
        assert_eq!(ids("7:www"), Ok((7, 33, vec![])));
        assert_eq!(ids("0"), Ok((0, 0, vec![0])));
    }

    #[test]
    fn no_user_means_root_even_where_no_file_says_so() {
        assert_eq!(find(None).map(|u| (u.uid, u.shell)), Ok((0, "/bin/bash".to_owned())));
        let bare = select(&[], &[], None).map(|u| (u.uid, u.gid, u.groups, u.home, u.shell));
        assert_eq!(bare, Ok((0, 0, vec![0], "/root".to_owned(), "/bin/sh".to_owned())));
    }

    #[test]
    fn cve_2026_30892_a_user_that_is_not_there_never_becomes_root() {
        for wanted in ["carol", "carol:0", "alice:carol", "7", "root2", "minus", "plus", "none", "wide", "short"] {
            assert!(find(Some(wanted)).is_err(), "{wanted}");
        }
        for wanted in ["", ":", "alice:", ":alice", "a:b:c", "1:2:3", " 0", "+0", "-1", "0x0", "4294967295", "1e3"] {
            assert!(find(Some(wanted)).is_err(), "{wanted}");
        }
        for wanted in ["4294967296", "4294967295:0", "0:4294967296", "alice\0", "al\nice", "1000 "] {
            assert!(find(Some(wanted)).is_err(), "{wanted}");
        }
        assert_eq!(
            find(Some("7")).err().as_deref(),
            Some("no user 7 in /etc/passwd, so its group must be given, as in '7:7'")
        );
    }

    #[test]
    fn a_relative_home_or_shell_is_replaced() {
        assert_eq!(find(Some("svc")).map(|u| (u.home, u.shell)), Ok(("/".to_owned(), "/bin/sh".to_owned())));
    }
}
