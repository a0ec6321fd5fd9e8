use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::fs::{chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use super::super::*;
use crate::sys::lock::Hold;
use crate::tree::inode::Inode;

/// CAP_NET_RAW, as `setcap` writes it on the host.
const CAPABILITIES: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Reading for user 1000, as the kernel lays an ACL out.
fn acl() -> Vec<u8> {
    let entry = |tag: u16, perm: u16, id: u32| {
        [&tag.to_le_bytes()[..], &perm.to_le_bytes()[..], &id.to_le_bytes()[..]].concat()
    };
    let none = u32::MAX;
    let entries = [entry(1, 6, none), entry(2, 4, 1000), entry(4, 4, none), entry(0x10, 4, none), entry(0x20, 0, none)];
    [&[2, 0, 0, 0][..], &entries.concat()].concat()
}

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn node(path: &Path, kind: FileType, device: u64) {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), device).unwrap();
}

/// A store on a disk with one image in which there is one of everything.
fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let store = Store::new(&Layout::system(dir.path()));
    let root = store.path().join("web");
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    let path = |name: &str| root.join(name);
    fs::write(path("usr/bin/program"), "program").unwrap();
    chown(path("usr/bin/program"), Some(7), Some(8)).unwrap();
    fs::set_permissions(path("usr/bin/program"), fs::Permissions::from_mode(0o6755)).unwrap();
    set(&path("usr/bin/program"), "security.capability", &CAPABILITIES);
    set(&path("usr/bin/program"), "user.note", b"text");
    set(&path("usr/bin"), "trusted.note", b"");
    set(&path("usr/bin"), "system.posix_acl_default", &acl());
    fs::write(path("usr/bin/later"), "inherits the ACL").unwrap();
    fs::write(path("acl"), "text").unwrap();
    set(&path("acl"), "system.posix_acl_access", &acl());
    fs::write(path("one"), "one file").unwrap();
    fs::hard_link(path("one"), path("usr/two")).unwrap();
    symlink("/etc/shadow", path("link")).unwrap();
    lchown(path("link"), Some(5), Some(6)).unwrap();
    set(&path("link"), "trusted.note", b"of the link");
    fs::hard_link(path("link"), path("usr/link")).unwrap();
    node(&path("zero"), FileType::CharacterDevice, rustix::fs::makedev(1, 5));
    node(&path("fifo"), FileType::Fifo, 0);
    drop(UnixListener::bind(path("socket")).unwrap());
    let sparse = fs::File::create(path("sparse")).unwrap();
    sparse.write_all_at(b"middle", 5 << 20).unwrap();
    sparse.set_len(8 << 20).unwrap();
    fs::File::create(path("hole")).unwrap().set_len(1 << 40).unwrap();
    fs::write(path("empty"), "").unwrap();
    fs::write(root.join(std::ffi::OsStr::new("odd\n name")), "x").unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o711)).unwrap();
    chown(&root, Some(9), Some(9)).unwrap();
    for (file, second) in [("acl", 1_000_000_000), ("link", 1_000_000_001), ("usr/bin", 1_000_000_002), ("", 5)] {
        let time = |nanos| rustix::fs::Timespec { tv_sec: second, tv_nsec: nanos };
        let times = rustix::fs::Timestamps { last_access: time(1), last_modification: time(2) };
        rustix::fs::utimensat(CWD, path(file), &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    (dir, store)
}

/// All that can be seen of every file of a tree.
fn state(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut state = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root) {
        let entry = entry.unwrap();
        let (path, stat) = (entry.path(), entry.path().symlink_metadata().unwrap());
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW;
        let inode = Inode::from_fd(rustix::fs::open(path, flags, Mode::empty()).unwrap());
        let mut attributes = inode.attributes().unwrap();
        attributes.sort();
        let kind = stat.file_type();
        let text = if kind.is_symlink() {
            format!("{:?}", fs::read_link(path).unwrap())
        } else if kind.is_file() && stat.size() < 1 << 30 {
            String::from_utf8(fs::read(path).unwrap()).unwrap().replace('\0', "")
        } else {
            format!("{}", kind.is_block_device())
        };
        let (size, blocks) = if kind.is_dir() { (0, 0) } else { (stat.size(), stat.blocks()) };
        let times = (stat.mtime(), stat.mtime_nsec());
        let owner = (stat.uid(), stat.gid(), stat.nlink(), stat.rdev());
        let line = format!("{:o} {owner:?} {size} {blocks} {times:?} {attributes:?} {text}", stat.mode());
        state.insert(path.strip_prefix(root).unwrap().to_owned(), line);
    }
    state
}

fn go_on(_: &Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn clone(store: &Store, from: &str, to: &str, read_only: bool) -> Result<Cloned, ImageError> {
    store.clone(from, to, read_only, &mut go_on)
}

/// Everything in the store's directory.
fn files(store: &Store) -> Vec<String> {
    let entries = fs::read_dir(store.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut files: Vec<_> = entries.collect();
    files.sort();
    files
}

#[test]
fn a_clone_is_the_same_in_everything() {
    let (_dir, store) = store();
    let before = state(&store.path().join("web"));
    assert_eq!(before.len(), 17);
    let read = |name: &str| fs::metadata(store.path().join(name).join("acl")).unwrap().atime_nsec();
    let read_before = read("web");
    let mut last = Progress::default();
    let cloned = store.clone("web", "www", false, &mut |progress| {
        assert!(progress.files >= last.files && progress.bytes >= last.bytes);
        last = *progress;
        ControlFlow::Continue(())
    });
    assert_eq!(cloned, Ok(Cloned { method: CloneMethod::Copy, was_in_use: false }));
    assert_eq!(read("www"), read_before);
    assert_eq!(state(&store.path().join("www")), before);
    assert_eq!((last.files, last.files_total), (16, 16));
    assert!(last.bytes > 0 && last.bytes <= last.bytes_total, "{last:?}");
    let inode = |file: &str| fs::metadata(store.path().join("www").join(file)).unwrap().ino();
    assert_eq!(inode("one"), inode("usr/two"));
    assert_ne!(inode("one"), fs::metadata(store.path().join("web/one")).unwrap().ino());
    assert_eq!(files(&store), ["web", "www"]);
}

#[test]
fn a_clone_that_is_to_be_read_only_is() {
    let (_dir, store) = store();
    clone(&store, "web", "www", true).unwrap();
    assert!(store.get("www").unwrap().read_only && !store.get("web").unwrap().read_only);
    clone(&store, "www", "again", false).unwrap();
    assert!(!store.get("again").unwrap().read_only);
    store.remove("www").unwrap();
    assert_eq!(files(&store), ["again", "web"]);
}

#[test]
fn a_disk_is_cloned_with_its_holes_and_what_lies_beside_it() {
    let (_dir, store) = store();
    let disk = fs::File::create(store.path().join("disk.raw")).unwrap();
    disk.write_all_at(b"data", 1 << 20).unwrap();
    disk.set_len(1 << 30).unwrap();
    fs::write(store.path().join("disk.roothash"), "hash").unwrap();
    fs::write(store.path().join("disk.nspawn"), "settings").unwrap();
    fs::write(store.path().join("copy.nspawn"), "of another process").unwrap();
    clone(&store, "disk", "copy", true).unwrap();
    let (old, new) = (store.get("disk").unwrap(), store.get("copy").unwrap());
    assert_eq!((new.limit, new.usage), (old.limit, old.usage));
    assert!(new.read_only && !old.read_only);
    assert_eq!(fs::read(store.path().join("copy.roothash")).unwrap(), b"hash");
    assert_eq!(fs::read(store.path().join("copy.nspawn")).unwrap(), b"of another process");
    let all = ["copy.nspawn", "copy.raw", "copy.roothash", "disk.nspawn", "disk.raw", "disk.roothash", "web"];
    assert_eq!(files(&store), all);
}

#[test]
fn a_clone_that_is_broken_off_leaves_nothing() {
    let (_dir, store) = store();
    fs::write(store.path().join("disk.raw"), vec![1; 40 << 20]).unwrap();
    for (from, most) in [("web", 16), ("disk", 3)] {
        for stop in 1..=most {
            let mut calls = 0;
            let result = store.clone(from, "www", false, &mut |_| {
                calls += 1;
                if calls == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            assert_eq!(result, Err(ImageError::Cancelled), "{from} at {stop}");
            assert_eq!(files(&store), ["disk.raw", "web"]);
        }
    }
}

#[test]
fn what_a_killed_clone_left_is_removed_by_the_next_one_and_by_clean() {
    let (_dir, store) = store();
    let left = |name: &str| {
        let left = store.path().join(format!(".#machinist.{name}"));
        fs::create_dir_all(left.join("usr/bin")).unwrap();
        fs::write(left.join("usr/bin/program"), "half").unwrap();
    };
    left("www");
    let before = state(&store.path().join("web"));
    clone(&store, "web", "www", false).unwrap();
    assert_eq!(state(&store.path().join("www")), before);
    left("other");
    left("busy");
    let busy = lock::try_take_name(&store.layout, "busy").unwrap().unwrap();
    assert_eq!(store.clean(CleanMode::Hidden), Ok(Vec::new()));
    assert_eq!(files(&store), [".#machinist.busy", "web", "www"], "another process still works on one");
    busy.release().unwrap();
    store.clean(CleanMode::Hidden).unwrap();
    assert_eq!(files(&store), ["web", "www"]);
}

#[test]
fn what_is_in_use_is_cloned_and_that_is_said() {
    let (_dir, store) = store();
    let path = store.path().join("web");
    let fd = fs::File::open(&path).unwrap();
    let lock = ImageLock::try_take(&store.layout, &path, &fd, Hold::Exclusive, lock::Beside::Yes).unwrap().unwrap();
    assert_eq!(clone(&store, "web", "www", false), Ok(Cloned { method: CloneMethod::Copy, was_in_use: true }));
    lock.release().unwrap();
}

#[test]
fn what_cannot_be_cloned_is_refused() {
    let (_dir, store) = store();
    assert_eq!(clone(&store, HOST, "www", false), Err(ImageError::ReadOnly(HOST.to_owned())));
    assert_eq!(clone(&store, "none", "www", false), Err(ImageError::NoSuchImage("none".to_owned())));
    assert_eq!(clone(&store, "web", "web", false), Err(ImageError::Exists("web".to_owned())));
    fs::write(store.path().join("taken.raw"), "").unwrap();
    assert_eq!(clone(&store, "web", "taken", false), Err(ImageError::Exists("taken".to_owned())));
    let refused = clone(&store, "web", "../www", false).unwrap_err();
    assert_eq!(refused.to_string(), "image name '../www' must be a single component of a path");
    assert_eq!(files(&store), ["taken.raw", "web"]);
}

#[test]
fn a_tree_deeper_than_any_path_is_cloned_and_removed() {
    let (_dir, store) = store();
    let name = "d".repeat(200);
    let deep = store.path().join("deep");
    fs::create_dir(&deep).unwrap();
    let mut fd = rustix::fs::open(&deep, rustix::fs::OFlags::PATH, Mode::empty()).unwrap();
    for _ in 0..1000 {
        rustix::fs::mkdirat(&fd, &name, Mode::RWXU).unwrap();
        fd = rustix::fs::openat(&fd, &name, rustix::fs::OFlags::PATH, Mode::empty()).unwrap();
    }
    for file in ["a", "b"] {
        rustix::fs::mknodat(&fd, file, FileType::RegularFile, Mode::RUSR, 0).unwrap();
    }
    rustix::fs::linkat(&fd, "a", &fd, "c", rustix::fs::AtFlags::empty()).unwrap();
    clone(&store, "deep", "deep2", false).unwrap();
    store.remove("deep").unwrap();
    store.remove("deep2").unwrap();
    assert_eq!(files(&store), ["web"]);
}

#[test]
fn removing_an_image_follows_nothing_and_keeps_what_people_wrote() {
    let (dir, store) = store();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "kept").unwrap();
    symlink(&outside, store.path().join("web/out")).unwrap();
    symlink(&outside, store.path().join("linked")).unwrap();
    fs::write(store.path().join("web.nspawn"), "").unwrap();
    fs::write(store.path().join("web.roothash"), "").unwrap();
    fs::create_dir_all(dir.path().join("etc/systemd/nspawn")).unwrap();
    fs::write(dir.path().join("etc/systemd/nspawn/web.nspawn"), "").unwrap();
    let settings = [dir.path().join("etc/systemd/nspawn/web.nspawn"), store.path().join("web.nspawn")];

    store.remove("web").unwrap();
    store.remove("linked").unwrap();
    assert_eq!(files(&store), ["web.nspawn"]);
    assert_eq!(store.settings("web"), settings);
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"kept");
    assert_eq!(store.remove("web"), Err(ImageError::NoSuchImage("web".to_owned())));
    assert_eq!(store.remove(HOST), Err(ImageError::ReadOnly(HOST.to_owned())));
}

#[test]
fn clean_removes_what_is_hidden_or_all_but_nothing_in_use() {
    let (_dir, store) = store();
    for name in [".a", ".b", "c"] {
        fs::create_dir(store.path().join(name)).unwrap();
    }
    fs::write(store.path().join(".disk.raw"), vec![1; 8192]).unwrap();
    let path = store.path().join(".b");
    let fd = fs::File::open(&path).unwrap();
    let lock = ImageLock::try_take(&store.layout, &path, &fd, Hold::Shared, lock::Beside::Yes).unwrap().unwrap();
    let hidden = [(".a".to_owned(), None), (".disk".to_owned(), Some(8192))];
    assert_eq!(store.clean(CleanMode::Hidden), Ok(hidden.to_vec()));
    assert_eq!(files(&store), [".#.b.lck", ".b", "c", "web"]);
    lock.release().unwrap();
    let removed: Vec<_> = store.clean(CleanMode::All).unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(removed, [".b", "c", "web"]);
    assert_eq!(files(&store), Vec::<String>::new());
}

#[test]
fn a_mount_in_an_image_keeps_it_and_what_is_mounted() {
    // A thread of its own, for the mount namespace belongs to the thread.
    std::thread::spawn(check_mount).join().unwrap();
}

fn check_mount() {
    use nix::mount::{MsFlags, mount, umount};
    let (dir, store) = store();
    let none = None::<&str>;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "kept").unwrap();
    fs::create_dir(store.path().join("web/mnt")).unwrap();
    fs::write(store.path().join("web/mnt/below"), "").unwrap();
    mount(Some(&outside), &store.path().join("web/mnt"), none, MsFlags::MS_BIND, none).unwrap();

    clone(&store, "web", "www", false).unwrap();
    let inside: Vec<_> = fs::read_dir(store.path().join("www/mnt")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(inside, ["below"], "what the mount covers");
    let error = store.remove("web").unwrap_err();
    assert!(outside.join("file").exists());
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(cause, "unlinkat('mnt'): Device or resource busy");
    umount(&store.path().join(".#machinist.web/mnt")).unwrap();
    store.clean(CleanMode::Hidden).unwrap();
    assert_eq!(files(&store), ["www"]);
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"kept");
}
