//! [`HostIds`]: which ids already belong to users and groups of the host.
//!
//! Asking the C library for an id loads every NSS module: 0.8 ms, 340 system calls and 0.8 MiB that stay in the
//! supervisor. So the files are read here, and the library is asked only where `nsswitch.conf` names a source
//! that could know more than the files do.

use std::path::Path;

use nix::unistd::{Gid, Group, Uid, User};

use crate::spec::IdRange;
use crate::sys::{self, Context};
use crate::sys::{Errno, file};

/// Directories in which the `systemd` source finds users that are in no other place.
const USERDB_DROP_INS: [&str; 5] =
    ["/etc/userdb", "/run/userdb", "/run/host/userdb", "/usr/local/lib/userdb", "/usr/lib/userdb"];

/// Sockets of services that the `systemd` source asks.
const USERDB_SERVICES: &str = "/run/systemd/userdb";

/// The service of systemd's PID 1; its ids (61184 to 65519) are below every range of ours.
const USERDB_OF_PID1: &str = "io.systemd.DynamicUser";

/// The ids of the host's users and groups, and those delegated to users for containers of their own.
#[derive(Debug)]
pub(super) struct HostIds {
    taken: Vec<IdRange>,
    ask_nss: bool,
}

impl HostIds {
    /// Reads the user database of the host.
    pub(super) fn read() -> sys::Result<Self> {
        let mut taken = Vec::new();
        for file in ["/etc/passwd", "/etc/group"] {
            taken.extend(read(file)?.lines().filter_map(parse_account));
        }
        for file in ["/etc/subuid", "/etc/subgid"] {
            taken.extend(read(file)?.lines().filter_map(parse_delegation));
        }
        let ask_nss = match sources(&read("/etc/nsswitch.conf")?) {
            Sources::Files => false,
            Sources::FilesAndSystemd => userdb_knows_more()?,
            Sources::Other => true,
        };
        Ok(Self { taken, ask_nss })
    }

    /// Whether a user or group has an id of `range`; for the sources other than files its two ends decide.
    pub(super) fn hold(&self, range: IdRange) -> sys::Result<bool> {
        if self.taken.iter().any(|taken| overlap(*taken, range)) {
            return Ok(true);
        }
        if !self.ask_nss {
            return Ok(false);
        }
        for id in [range.shift, range.shift.saturating_add(range.size.saturating_sub(1))] {
            let user = User::from_uid(Uid::from_raw(id)).call(|| format!("getpwuid({id})"))?;
            let group = Group::from_gid(Gid::from_raw(id)).call(|| format!("getgrgid({id})"))?;
            if user.is_some() || group.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether two ranges share an id.
fn overlap(a: IdRange, b: IdRange) -> bool {
    let end = |range: IdRange| u64::from(range.shift) + u64::from(range.size);
    u64::from(a.shift) < end(b) && u64::from(b.shift) < end(a)
}

/// The text of a file; none at all is an empty one.
fn read(path: &str) -> sys::Result<String> {
    match file::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) if e.errno == Errno::ENOENT => Ok(String::new()),
        Err(e) => Err(e),
    }
}

/// The id of a line of `passwd(5)` or `group(5)`.
fn parse_account(line: &str) -> Option<IdRange> {
    let shift = line.split(':').nth(2)?.parse().ok()?;
    Some(IdRange { shift, size: 1 })
}

/// The ids of a line of `subuid(5)`.
fn parse_delegation(line: &str) -> Option<IdRange> {
    let mut fields = line.split(':').skip(1);
    let shift = fields.next()?.trim().parse().ok()?;
    let size = fields.next()?.trim().parse().ok()?;
    Some(IdRange { shift, size })
}

/// Where users and groups come from, by `nsswitch.conf(5)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sources {
    Files,
    FilesAndSystemd,
    Other,
}

fn sources(nsswitch: &str) -> Sources {
    let mut found = Sources::Files;
    for line in nsswitch.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let Some(("passwd" | "group", words)) = line.split_once(':').map(|(key, words)| (key.trim(), words)) else {
            continue;
        };
        for word in words.split_whitespace() {
            found = found.max(match word {
                "files" => Sources::Files,
                "systemd" => Sources::FilesAndSystemd,
                // What to do after an answer, as in `[SUCCESS=merge]`; one with blanks inside counts as unknown.
                action if action.starts_with('[') && action.ends_with(']') => Sources::Files,
                _ => Sources::Other,
            });
        }
    }
    found
}

fn userdb_knows_more() -> sys::Result<bool> {
    if USERDB_DROP_INS.iter().any(|dir| Path::new(dir).exists()) {
        return Ok(true);
    }
    match file::list(USERDB_SERVICES) {
        Ok(entries) => Ok(entries.flatten().any(|entry| entry.file_name() != USERDB_OF_PID1)),
        Err(e) if e.errno == Errno::ENOENT => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sources_that_know_more_than_files_are_asked() {
        for (text, want) in [
            ("", Sources::Files),
            ("passwd: files\nhosts: files mymachines dns\n", Sources::Files),
            ("passwd:\tfiles systemd # sss\n", Sources::FilesAndSystemd),
            ("group: files [SUCCESS=merge] systemd", Sources::FilesAndSystemd),
            ("passwd: files systemd\ngroup: sss files", Sources::Other),
            ("passwd: compat", Sources::Other),
            ("passwd: files [NOTFOUND = return] systemd", Sources::Other),
            (" passwd : files ldap", Sources::Other),
        ] {
            assert_eq!(sources(text), want, "{text}");
        }
    }

    #[test]
    fn accounts_and_delegations_are_read() {
        assert_eq!(parse_account("web:x:524300:7::/:/bin/sh"), Some(IdRange { shift: 524_300, size: 1 }));
        assert_eq!(parse_account("+::::::"), None);
        assert_eq!(parse_delegation("alice:524288:65536"), Some(IdRange { shift: 524_288, size: 65_536 }));
        assert_eq!(parse_delegation("# comment"), None);
    }

    #[test]
    fn a_range_is_held_when_one_id_of_it_is() {
        let ids = HostIds { taken: vec![IdRange { shift: 589_823, size: 2 }], ask_nss: false };
        for (shift, want) in [(458_752, false), (524_288, true), (589_824, true), (655_360, false)] {
            assert_eq!(ids.hold(IdRange { shift, size: 65_536 }), Ok(want), "{shift}");
        }
    }

    #[test]
    fn root_is_found_both_ways_and_a_free_id_in_neither() {
        let files = HostIds::read().unwrap();
        let nss = HostIds { taken: Vec::new(), ask_nss: true };
        for ids in [&files, &nss] {
            assert_eq!(ids.hold(IdRange { shift: 0, size: 1 }), Ok(true));
            assert_eq!(ids.hold(IdRange { shift: 0x6FFE_1234, size: 1 }), Ok(false));
        }
    }
}
