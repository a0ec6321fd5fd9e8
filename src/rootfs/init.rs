//! Finds a tree's init and its kind.

use rustix::fs::OFlags;

use crate::spec::{InitKind, Payload};
use crate::sys::path::RootFd;
use crate::sys::{Doing as _, StepError};

/// The init of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Init {
    /// Path inside the tree.
    pub path: String,
    /// What kind it is; `None` if it is none we know.
    pub kind: Option<InitKind>,
}

/// Where an init may be, best first. `/sbin/init` is what the tree's administrator chose.
const PLACES: [&str; 5] = ["sbin/init", "usr/sbin/init", "usr/lib/systemd/systemd", "lib/systemd/systemd", "init"];

/// Usual places of each kind, tried when the file asks for it.
fn places(kind: InitKind) -> &'static [&'static str] {
    match kind {
        InitKind::Systemd => &["usr/lib/systemd/systemd", "lib/systemd/systemd"],
        InitKind::Sysvinit => &["sbin/init"],
        InitKind::Openrc => &["sbin/openrc-init", "usr/sbin/openrc-init"],
        InitKind::Runit => &["sbin/runit-init", "usr/sbin/runit-init", "lib/runit/runit-init"],
        InitKind::Busybox => &["sbin/init", "bin/busybox", "usr/bin/busybox"],
        InitKind::S6 => &["sbin/init", "bin/init", "etc/s6-linux-init/current/bin/init"],
        InitKind::Dinit => &["sbin/dinit", "usr/sbin/dinit", "usr/bin/dinit"],
        InitKind::Finit => &["sbin/finit", "usr/sbin/finit"],
    }
}

/// Looks the payload up in the tree; `None` for a command, which is looked up when it is executed.
pub fn find(root: &RootFd, payload: &Payload) -> Result<Option<Init>, StepError> {
    match payload {
        Payload::Command { .. } => Ok(None),
        Payload::Path { init, .. } => {
            if !is_program(root, init.relative())? {
                return Err(StepError::refused(format!("the tree has no program '{init}', which `boot.init` names")));
            }
            Ok(Some(Init { path: init.as_str().to_owned(), kind: classify(root, init.relative())? }))
        }
        Payload::Kind { init, .. } => {
            let found = first_program(root, places(*init))?;
            let path = found.ok_or_else(|| no_init(&format!("{} init", init.as_str()), places(*init)))?;
            Ok(Some(Init { path, kind: Some(*init) }))
        }
        Payload::Auto { .. } => {
            let path = first_program(root, &PLACES)?.ok_or_else(|| {
                no_init("init", &PLACES)
                    .hint("install one in the tree, name it with `boot.init`, or set `boot.command`")
            })?;
            let kind = classify(root, &path[1..])?;
            Ok(Some(Init { path, kind }))
        }
    }
}

fn no_init(what: &str, places: &[&str]) -> StepError {
    let places: Vec<String> = places.iter().map(|p| format!("/{p}")).collect();
    StepError::refused(format!("the tree has no {what} (looked for {})", places.join(", ")))
}

fn first_program(root: &RootFd, places: &[&str]) -> Result<Option<String>, StepError> {
    for place in places {
        if is_program(root, place)? {
            return Ok(Some(format!("/{place}")));
        }
    }
    Ok(None)
}

fn is_program(root: &RootFd, path: &str) -> Result<bool, StepError> {
    let stat = root.stat(path).doing(|| format!("cannot look at '/{path}' in the tree"))?;
    Ok(stat.is_some_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFREG && s.st_mode & 0o111 != 0))
}

/// Finds the kind by the name the program really has, and for a plain `/sbin/init` by its contents.
fn classify(root: &RootFd, path: &str) -> Result<Option<InitKind>, StepError> {
    let real = root.real_path(path).doing(|| format!("cannot resolve '/{path}' in the tree"))?;
    let name = real.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let by_name = match name.as_str() {
        "systemd" => Some(InitKind::Systemd),
        "busybox" => Some(InitKind::Busybox),
        "openrc-init" => Some(InitKind::Openrc),
        "runit-init" | "runit" => Some(InitKind::Runit),
        "dinit" => Some(InitKind::Dinit),
        "finit" => Some(InitKind::Finit),
        n if n.starts_with("s6-linux-init") => Some(InitKind::S6),
        _ => None,
    };
    if by_name.is_some() {
        return Ok(by_name);
    }
    let text = root.read(path, 512 << 10).doing(|| format!("cannot read '/{path}' of the tree"))?.unwrap_or_default();
    Ok(classify_content(&text))
}

fn classify_content(content: &[u8]) -> Option<InitKind> {
    let has = |needle: &str| memchr::memmem::find(content, needle.as_bytes()).is_some();
    if content.starts_with(b"#!") {
        return has("s6-linux-init").then_some(InitKind::S6);
    }
    [
        ("/run/initctl", InitKind::Sysvinit),
        ("/dev/initctl", InitKind::Sysvinit),
        ("BusyBox", InitKind::Busybox),
        ("finit.conf", InitKind::Finit),
        ("/etc/runit/", InitKind::Runit),
        ("init.ctl", InitKind::Openrc),
        ("dinit", InitKind::Dinit),
    ]
    .into_iter()
    .find_map(|(needle, kind)| has(needle).then_some(kind))
}

/// Refuses a tree that does not identify its system.
pub fn check_os_release(root: &RootFd) -> Result<(), StepError> {
    for path in ["etc/os-release", "usr/lib/os-release"] {
        if root.open_inside(path, OFlags::PATH).is_ok() {
            return Ok(());
        }
    }
    Err(StepError::refused("the tree has neither /etc/os-release nor /usr/lib/os-release, so it is no system's root")
        .hint("is the path right? To boot it nevertheless set `boot.check-os-release = false`"))
}

/// Refuses a tree whose `/etc` leads out of it: inside it would lead nowhere, and every program would miss it.
pub fn check_etc(root: &RootFd) -> Result<(), StepError> {
    let Ok(to) = rustix::fs::readlinkat(root, "etc", Vec::new()) else { return Ok(()) };
    if root.open_inside("etc", OFlags::PATH | OFlags::DIRECTORY).is_ok() {
        return Ok(());
    }
    Err(StepError::refused(format!(
        "'/etc' of the tree is a symlink to '{}', which is not in it",
        to.to_string_lossy()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn tree(files: &[(&str, &str)], links: &[(&str, &str)]) -> (tempfile::TempDir, RootFd) {
        let dir = tempfile::tempdir().expect("temporary directory");
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("has a parent")).expect("mkdir");
            std::fs::write(&path, text).expect("write");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        }
        for (path, to) in links {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("has a parent")).expect("mkdir");
            symlink(to, path).expect("symlink");
        }
        let root = RootFd::open(dir.path()).expect("open");
        (dir, root)
    }

    fn found(root: &RootFd) -> Option<(String, Option<InitKind>)> {
        let init = find(root, &Payload::Auto { args: Vec::new() }).ok().flatten()?;
        Some((init.path, init.kind))
    }

    #[test]
    fn the_chosen_init_wins_over_an_installed_systemd() {
        let (_dir, root) = tree(&[("usr/lib/systemd/systemd", ""), ("sbin/init", "ELF /run/initctl")], &[]);
        assert_eq!(found(&root), Some(("/sbin/init".into(), Some(InitKind::Sysvinit))));
    }

    #[test]
    fn symlinks_tell_the_kind_and_are_resolved_inside_the_tree() {
        for (program, kind) in [
            ("usr/lib/systemd/systemd", InitKind::Systemd),
            ("bin/busybox", InitKind::Busybox),
            ("usr/sbin/runit-init", InitKind::Runit),
            ("usr/sbin/dinit", InitKind::Dinit),
            ("sbin/finit", InitKind::Finit),
            ("sbin/openrc-init", InitKind::Openrc),
        ] {
            let (_dir, root) = tree(&[(program, "")], &[("usr/sbin/init", &format!("/{program}"))]);
            assert_eq!(found(&root), Some(("/usr/sbin/init".into(), Some(kind))), "{program}");
        }
    }

    #[test]
    fn an_init_outside_of_the_tree_is_none() {
        let (_dir, root) = tree(&[], &[("sbin/init", "../../../../../../../bin/sh")]);
        let error = find(&root, &Payload::Auto { args: Vec::new() }).expect_err("no init");
        assert!(error.to_string().starts_with("the tree has no init (looked for /sbin/init,"), "{error}");
        assert!(error.hint.is_some());
    }

    #[test]
    fn a_tree_without_os_release_is_refused() {
        let (_dir, root) = tree(&[("etc/passwd", "")], &[]);
        assert!(check_os_release(&root).is_err());
        let (_dir, root) = tree(&[("usr/lib/os-release", "")], &[]);
        assert!(check_os_release(&root).is_ok());
    }
}
