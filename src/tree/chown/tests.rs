use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::process::Command;

use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;
use rustix::fs::XattrFlags;

use super::*;

const RANGE: IdRange = IdRange { shift: 0x0009_0000, size: ID_RANGE_SIZE };
const BACK: IdRange = IdRange { shift: 0, size: ID_RANGE_SIZE };

/// CAP_NET_RAW, as `setcap` writes it on the host.
const HOST_CAPS: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn give(tree: &Path, range: IdRange) -> Result<u64, ChownError> {
    give_to(&RootFd::open(tree).unwrap(), range, &mut |_| {})
}

/// Everything a change of owner could alter: owner, mode, and the attributes that matter.
type State = BTreeMap<String, (u32, u32, u32, Vec<(String, Vec<u8>)>)>;

fn state(tree: &Path) -> State {
    let mut state = State::new();
    for entry in walkdir::WalkDir::new(tree) {
        let entry = entry.unwrap();
        let stat = entry.path().symlink_metadata().unwrap();
        let mut attributes = Vec::new();
        for name in [KEPT, CAPABILITIES, ACLS[0], ACLS[1]] {
            let mut value = Vec::with_capacity(1000);
            if rustix::fs::lgetxattr(entry.path(), name, rustix::buffer::spare_capacity(&mut value)).is_ok() {
                attributes.push((name.to_string_lossy().into_owned(), value));
            }
        }
        let path = entry.path().strip_prefix(tree).unwrap().display().to_string();
        state.insert(path, (stat.uid(), stat.gid(), stat.mode(), attributes));
    }
    state
}

fn set(path: &Path, name: &CStr, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn acl(user: u32) -> Vec<u8> {
    let entry = |tag: u8, perm: u8, id: u32| [&[tag, 0, perm, 0][..], &id.to_le_bytes()].concat();
    let none = u32::MAX;
    let entries = [entry(1, 7, none), entry(2, 5, user), entry(4, 5, none), entry(16, 5, none), entry(32, 5, none)];
    [&[2, 0, 0, 0][..], &entries.concat()].concat()
}

/// One of everything that a distribution's tree can hold.
fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    fs::create_dir_all(root.join("home/alice/.cache")).unwrap();
    for (file, uid, gid, mode) in [
        ("usr/bin/true", 0, 0, 0o755),
        ("usr/bin/su", 0, 0, 0o4755),
        ("usr/bin/wall", 0, 5, 0o2755),
        ("usr/bin/ping", 0, 0, 0o755),
        ("usr/bin/both", 7, 8, 0o6711),
        ("home/alice/notes", 1000, 100, 0o640),
        ("home/alice/nobody", 65_534, 65_534, 0o600),
    ] {
        let path = root.join(file);
        fs::write(&path, file).unwrap();
        chown(&path, Some(uid), Some(gid)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    chown(root.join("home/alice"), Some(1000), Some(100)).unwrap();
    fs::set_permissions(root.join("home/alice"), fs::Permissions::from_mode(0o2770)).unwrap();
    fs::set_permissions(root.join("home"), fs::Permissions::from_mode(0o1777)).unwrap();
    set(&root.join("usr/bin/ping"), CAPABILITIES, &HOST_CAPS);
    set(&root.join("usr/bin/both"), CAPABILITIES, &HOST_CAPS);
    set(&root.join("home/alice/notes"), ACLS[0], &acl(1001));
    set(&root.join("home/alice"), ACLS[0], &acl(1002));
    set(&root.join("home/alice"), ACLS[1], &acl(1003));
    fs::hard_link(root.join("usr/bin/su"), root.join("usr/bin/sudo")).unwrap();
    symlink("/etc/passwd", root.join("usr/link")).unwrap();
    lchown(root.join("usr/link"), Some(1000), Some(1000)).unwrap();
    nix::unistd::mkfifo(&root.join("usr/fifo"), Mode::from_bits_truncate(0o600)).unwrap();
    std::os::unix::net::UnixListener::bind(root.join("usr/socket")).unwrap();
    let null = nix::sys::stat::makedev(1, 3);
    let kind = nix::sys::stat::SFlag::S_IFCHR;
    nix::sys::stat::mknod(&root.join("usr/null"), kind, Mode::from_bits_truncate(0o600), null).unwrap();
    dir
}

#[test]
fn every_file_moves_and_keeps_its_mode_and_meaning_and_comes_back() {
    let dir = tree();
    let before = state(dir.path());
    let passwd = fs::metadata("/etc/passwd").unwrap();
    assert_eq!(give(dir.path(), RANGE), Ok(before.len() as u64));

    let after = state(dir.path());
    for (path, (uid, gid, mode, attributes)) in &before {
        let (new_uid, new_gid, new_mode, new_attributes) = &after[path];
        assert_eq!((*new_uid, *new_gid, *new_mode), (RANGE.shift + uid, RANGE.shift + gid, *mode), "{path}");
        assert_eq!(new_attributes.len(), attributes.len(), "{path}");
    }
    let value = |path: &str, index: usize| after[path].3[index].1.clone();
    let caps = [&[1, 0, 0, 3][..], &HOST_CAPS[4..], &RANGE.shift.to_le_bytes()].concat();
    assert_eq!(value("usr/bin/ping", 0), caps);
    assert_eq!(value("usr/bin/both", 0), caps);
    assert_eq!(value("home/alice/notes", 0), acl(RANGE.shift + 1001));
    assert_eq!(value("home/alice", 0), acl(RANGE.shift + 1002));
    assert_eq!(value("home/alice", 1), acl(RANGE.shift + 1003));
    let now = fs::metadata("/etc/passwd").unwrap();
    assert_eq!((now.uid(), now.ctime_nsec()), (passwd.uid(), passwd.ctime_nsec()), "the symlink was followed");
    assert!(fs::metadata(dir.path().join("usr/fifo")).unwrap().file_type().is_fifo());

    assert_eq!(give(dir.path(), RANGE), Ok(0), "a finished tree is not walked");
    assert_eq!(give(dir.path(), BACK), Ok(before.len() as u64));
    assert_eq!(state(dir.path()), before);
}

#[test]
fn an_interrupted_change_is_completed_by_the_next_one_to_whatever_range() {
    let want = |range| {
        let dir = tree();
        give(dir.path(), range).unwrap();
        state(dir.path())
    };
    let other = IdRange { shift: 0x000A_0000, ..RANGE };
    let (in_range, in_other, back) = (want(RANGE), want(other), state(tree().path()));
    for stop_at in 1..=in_range.len() as u64 {
        for (second, want) in [(RANGE, &in_range), (other, &in_other), (BACK, &back)] {
            let dir = tree();
            let root = RootFd::open(dir.path()).unwrap();
            let first = std::panic::catch_unwind(|| {
                give_to(&root, RANGE, &mut |done| {
                    if done == stop_at {
                        std::panic::resume_unwind(Box::new(()))
                    }
                })
            });
            assert!(first.is_err());
            give(dir.path(), second).unwrap();
            assert_eq!(&state(dir.path()), want, "stopped after {stop_at}");
        }
    }
}

#[test]
fn bits_lost_to_a_kill_right_after_the_change_of_owner_come_back() {
    let dir = tree();
    let both = dir.path().join("usr/bin/both");
    // What is on disk between the calls: kept, owner changed, nothing given back yet.
    let kept = Kept { mode: 0o6711, capabilities: Some(HOST_CAPS.to_vec()) };
    set(&both, KEPT, &kept.encode());
    chown(&both, Some(RANGE.shift + 7), Some(RANGE.shift + 8)).unwrap();
    assert_eq!(fs::metadata(&both).unwrap().mode() & 0o7777, 0o711);

    give(dir.path(), RANGE).unwrap();
    let whole = tree();
    give(whole.path(), RANGE).unwrap();
    assert_eq!(state(dir.path()), state(whole.path()));
}

#[test]
fn ids_beyond_the_range_fold_into_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    chown(&file, Some(70_000), Some(0x7000_0001)).unwrap();
    give(dir.path(), RANGE).unwrap();
    let stat = fs::metadata(&file).unwrap();
    assert_eq!((stat.uid(), stat.gid()), (RANGE.shift + 4464, RANGE.shift + 1));
}

#[test]
fn other_mounts_in_the_tree_are_left_alone() {
    // A thread of its own, for the mount namespace belongs to the thread.
    std::thread::spawn(check_other_mounts).join().unwrap();
}

fn check_other_mounts() {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("file"), "").unwrap();
    for name in ["same-disk", "tmpfs"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("over"), "").unwrap();
    let target = |name: &str| dir.path().join(name);
    let bind = MsFlags::MS_BIND;
    nix::mount::mount(Some(outside.path()), &target("same-disk"), none, bind, none).unwrap();
    nix::mount::mount(Some(&outside.path().join("file")), &target("over"), none, bind, none).unwrap();
    nix::mount::mount(Some("x"), &target("tmpfs"), Some("tmpfs"), MsFlags::empty(), none).unwrap();
    fs::write(target("tmpfs/file"), "").unwrap();

    assert_eq!(give(dir.path(), RANGE), Ok(1), "only the root is on the mount");
    for path in ["same-disk", "same-disk/file", "over", "tmpfs", "tmpfs/file"] {
        assert_eq!(fs::metadata(target(path)).unwrap().uid(), 0, "{path}");
    }
    for name in ["over", "same-disk", "tmpfs"] {
        nix::mount::umount(&target(name)).unwrap();
    }
}

#[test]
fn a_directory_moved_out_meanwhile_does_not_lead_the_walk_outside() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
    fs::create_dir_all(tree.join("a/b")).unwrap();
    fs::write(tree.join("a/b/file"), "").unwrap();
    fs::create_dir(&outside).unwrap();
    let mut move_it = |done| {
        if done == 3 {
            fs::rename(tree.join("a/b"), outside.join("b")).unwrap();
        }
    };
    let error = give_to(&RootFd::open(&tree).unwrap(), RANGE, &mut move_it).unwrap_err();
    assert_eq!(error.to_string(), "cannot change the owner of '/a' in the tree");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(cause, "leaving a directory that was moved meanwhile: Stale file handle");
    assert_eq!(fs::metadata(&outside).unwrap().uid(), 0);
}

#[test]
fn a_tree_deeper_than_any_path_or_limit_is_walked() {
    let dir = tempfile::tempdir().unwrap();
    let name = CString::new("d".repeat(200)).unwrap();
    let mut fd = rustix::fs::open(dir.path(), OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    for _ in 0..2000 {
        rustix::fs::mkdirat(&fd, &name, rustix::fs::Mode::RWXU).unwrap();
        fd = rustix::fs::openat(&fd, &name, OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    }
    assert_eq!(give(dir.path(), RANGE), Ok(2001));
    assert_eq!(rustix::fs::fstat(&fd).unwrap().st_uid, RANGE.shift);
    assert!(Command::new("rm").arg("-rf").arg(dir.path()).status().unwrap().success());
}

#[test]
fn a_file_that_cannot_be_changed_is_named_and_the_tree_stays_unfinished() {
    let dir = tree();
    let chattr = |flag| Command::new("chattr").arg(flag).arg(dir.path().join("usr/bin/true")).status().unwrap();
    assert!(chattr("+i").success());
    let error = give(dir.path(), RANGE).unwrap_err();
    assert!(chattr("-i").success());
    assert_eq!(error.to_string(), "cannot change the owner of '/usr/bin/true' in the tree");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(cause, "fchownat(589824, 589824): Operation not permitted");
    assert_eq!(fs::metadata(dir.path()).unwrap().uid(), UNFINISHED);
    give(dir.path(), BACK).unwrap();
    assert_eq!(state(dir.path()), state(tree().path()));
}

#[test]
fn a_range_that_would_lose_ids_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (shift, size) in [(100_000, 65_536), (65_536, 1000), (65_536, 131_072), (UNFINISHED, 65_536)] {
        let range = IdRange { shift, size };
        assert_eq!(give(dir.path(), range), Err(ChownError::Range(range)));
    }
    assert_eq!(fs::metadata(dir.path()).unwrap().uid(), 0);
}
