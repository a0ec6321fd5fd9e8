mod cloning;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use super::*;
use crate::sys::lock::{Hold, LockFile};

/// A store with some images, and what must not be taken for one.
fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(&Layout::system(dir.path()));
    fs::create_dir_all(store.path()).unwrap();
    for name in ["web", ".hidden", ".#temporary", "both"] {
        fs::create_dir(store.path().join(name)).unwrap();
    }
    for name in ["disk.raw", "both.raw", "web.nspawn", ".#web.lck", "file"] {
        fs::write(store.path().join(name), "1234567").unwrap();
    }
    symlink("/nowhere", store.path().join("dangling")).unwrap();
    symlink("web", store.path().join("link")).unwrap();
    (dir, store)
}

fn names(store: &Store) -> Vec<String> {
    store.list().unwrap().into_iter().map(|image| image.name).collect()
}

/// What every other process gets while this process holds a lock of the image.
fn in_use<T>(name: &str) -> Result<T, ImageError> {
    let program = fs::read_to_string("/proc/self/comm").unwrap();
    let by = format!("process {}, {}", std::process::id(), program.trim_end());
    Err(ImageError::InUse { name: name.to_owned(), by: Some(by) })
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn images_are_listed_by_name_and_nothing_else_is() {
    let (_dir, store) = store();
    assert_eq!(names(&store), [".hidden", ".host", "both", "disk", "link", "web"]);
    let kinds: Vec<_> = store.list().unwrap().into_iter().map(|image| image.kind.as_str()).collect();
    assert_eq!(kinds, ["directory", "directory", "directory", "raw", "directory", "directory"]);
}

#[test]
fn a_store_that_is_not_there_holds_only_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(&Layout::system(dir.path()));
    assert_eq!(names(&store), [".host"]);
    assert_eq!(store.find("web"), Ok(None));
    assert_eq!(store.pool(), Pool { path: dir.path().join("var/lib/machines"), usage: None, limit: None });
}

#[test]
fn finding_an_image_gives_what_the_list_gives() {
    let (_dir, store) = store();
    for image in store.list().unwrap() {
        assert_eq!(store.find(&image.name), Ok(Some(image)));
    }
    for missing in ["nothing", "dangling", "file", "web.nspawn"] {
        assert_eq!(store.find(missing), Ok(None), "{missing}");
        assert_eq!(store.get(missing), Err(ImageError::NoSuchImage(missing.to_owned())));
    }
}

#[test]
fn names_that_no_image_can_have_are_refused_with_the_rule() {
    let (_dir, store) = store();
    let refused = |name: &str| store.find(name).unwrap_err().to_string();
    assert_eq!(refused(""), "image name '' must have 1 to 240 bytes");
    assert_eq!(refused("../web"), "image name '../web' must be a single component of a path");
    assert_eq!(refused(".."), "image name '..' must be a single component of a path");
    assert_eq!(refused("a\nb"), "image name 'a\\nb' may not hold control characters");
    assert_eq!(refused(".#x"), "image name '.#x' begins with `.#`, as only temporary files may");
    let long = "x".repeat(10_000);
    assert_eq!(refused(&long), format!("image name '{}' must have 1 to 240 bytes", "x".repeat(80)));
    assert_eq!(store.find(&"x".repeat(240)), Ok(None));
}

#[test]
fn a_raw_file_tells_its_size_its_times_and_its_mode() {
    let (_dir, store) = store();
    let disk = store.get("disk").unwrap();
    assert_eq!((disk.limit, disk.limit_exclusive), (Some(7), Some(7)));
    assert_eq!(disk.usage.map(|bytes| bytes % 512), Some(0));
    assert!(disk.created_us.is_some() && disk.modified_us >= disk.created_us);
    assert!(!disk.read_only);
    fs::set_permissions(&disk.path, fs::Permissions::from_mode(0o444)).unwrap();
    assert!(store.get("disk").unwrap().read_only);
}

#[test]
fn a_directory_is_read_only_while_it_is_immutable() {
    // A disk: not every version of tmpfs has the attribute.
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let store = Store::new(&Layout::system(dir.path()));
    fs::create_dir_all(store.path().join("web")).unwrap();
    let flags =
        || String::from_utf8(Command::new("lsattr").arg("-d").arg(store.path().join("web")).output().unwrap().stdout);
    assert!(!store.get("web").unwrap().read_only);

    store.set_read_only("web", true).unwrap();
    assert!(flags().unwrap().split(' ').next().unwrap().contains('i'));
    assert!(store.get("web").unwrap().read_only);
    fs::write(store.path().join("web/file"), "").unwrap_err();
    store.rename("web", "www").unwrap();
    assert!(store.get("www").unwrap().read_only);
    store.set_read_only("www", false).unwrap();
    assert!(!store.get("www").unwrap().read_only);
    fs::write(store.path().join("www/file"), "").unwrap();
}

#[test]
fn a_raw_file_is_read_only_while_it_has_no_write_bit() {
    let (_dir, store) = store();
    store.set_read_only("disk", true).unwrap();
    let mode = || fs::metadata(store.path().join("disk.raw")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o444);
    assert!(store.get("disk").unwrap().read_only);
    store.set_read_only("disk", false).unwrap();
    assert_eq!(mode(), 0o644);
}

#[test]
fn a_renamed_image_takes_along_what_lies_beside_it() {
    let (_dir, store) = store();
    fs::write(store.path().join("disk.roothash"), "hash").unwrap();
    store.rename("web", "www").unwrap();
    store.rename("disk", ".disk2").unwrap();
    assert_eq!(names(&store), [".disk2", ".hidden", ".host", "both", "www"], "the symlink dangles now");
    for (file, there) in [("www.nspawn", true), ("web.nspawn", false), (".disk2.raw", true), (".disk2.roothash", true)]
    {
        assert_eq!(store.path().join(file).exists(), there, "{file}");
    }
}

#[test]
fn a_rename_replaces_nothing_and_a_symlink_is_renamed_itself() {
    let (_dir, store) = store();
    let exists = Err(ImageError::Exists("both".to_owned()));
    assert_eq!(store.rename("web", "both"), exists);
    assert_eq!(store.rename("both", "both"), exists);
    assert_eq!(store.rename("web", "file"), Err(ImageError::Exists("file".to_owned())), "no image, and still there");
    assert_eq!(store.rename("web", HOST), Err(ImageError::Exists(HOST.to_owned())));
    assert_eq!(store.rename(HOST, "web2"), Err(ImageError::ReadOnly(HOST.to_owned())));
    assert_eq!(store.rename("none", "web2"), Err(ImageError::NoSuchImage("none".to_owned())));
    assert_eq!(
        store.rename("web", "a/b").unwrap_err().to_string(),
        "image name 'a/b' must be a single component of a path"
    );
    store.rename("link", "link2").unwrap();
    assert!(store.path().join("web").is_dir());
    assert_eq!(fs::read_link(store.path().join("link2")).unwrap(), Path::new("web"));
}

#[test]
fn an_image_that_is_read_by_a_machine_is_not_changed() {
    let (_dir, store) = store();
    let path = store.path().join("web");
    let fd = fs::File::open(&path).unwrap();
    let lock = ImageLock::try_take(&store.layout, &path, &fd, Hold::Shared, lock::Beside::Yes).unwrap().unwrap();
    assert_eq!(store.rename("web", "www"), in_use("web"));
    assert_eq!(store.set_read_only("web", true), in_use("web"));
    assert_eq!(store.rename("link", "www"), in_use("link"));
    lock.release().unwrap();
    let name = lock::try_take_name(&store.layout, "www").unwrap().unwrap();
    assert_eq!(store.rename("web", "www"), in_use("www"), "another process makes one of this name");
    name.release().unwrap();
    store.rename("web", "www").unwrap();
}

#[test]
fn limits_need_a_subvolume() {
    let (_dir, store) = store();
    let refused = store.set_limit("web", Some(1 << 30)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "cannot limit image 'web': it is a directory, and only subvolumes of btrfs can be limited"
    );
    let refused = store.set_pool_limit(None).unwrap_err();
    assert_eq!(
        refused.to_string(),
        format!("cannot limit the store: '{}' is not a subvolume of btrfs", store.path().display())
    );
    assert_eq!(store.set_limit(HOST, None), Err(ImageError::ReadOnly(HOST.to_owned())));
}

#[test]
fn an_image_tells_who_it_is() {
    let (_dir, store) = store();
    let root = store.path().join("web");
    write(&root, "etc/hostname", "# a comment\n\n web-1 \n");
    write(&root, "etc/machine-id", "0123456789abcdef0123456789abcdef\n");
    write(&root, "etc/machine-info", "ICON_NAME='computer'\n");
    write(&root, "usr/lib/os-release", "ID=debian\n");
    assert_eq!(store.hostname("web").unwrap().as_deref(), Some("web-1"));
    let id = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef];
    assert_eq!(store.machine_id("web"), Ok(Some([id, id].concat().try_into().unwrap())));
    assert_eq!(store.machine_info("web"), Ok(vec![("ICON_NAME".to_owned(), "computer".to_owned())]));
    assert_eq!(store.os_release("web"), Ok(vec![("ID".to_owned(), "debian".to_owned())]));
    assert_eq!(store.hostname("both"), Ok(None));
    assert_eq!(store.machine_id("both"), Ok(None));
    assert_eq!(store.os_release("both"), Ok(Vec::new()));
    assert!(!store.os_release(HOST).unwrap().is_empty());
    let why = "cannot read in image 'disk': it is a disk, whose files are not looked at";
    assert_eq!(store.hostname("disk").unwrap_err().to_string(), why);
}

#[test]
fn a_hostile_tree_gives_away_nothing_of_the_host() {
    let (dir, store) = store();
    let root = store.path().join("web");
    write(dir.path(), "secret", "ID=secret\n");
    write(dir.path(), "etc/os-release", "ID=secret\n");
    let put = |make: &dyn Fn(&Path)| {
        let _ = fs::remove_dir_all(root.join("etc"));
        fs::create_dir_all(root.join("etc")).unwrap();
        make(&root.join("etc/os-release"));
        store.os_release("web")
    };
    let node = |path: &Path, args: &[&str]| {
        assert!(Command::new("mknod").arg(path).args(args).status().unwrap().success());
    };
    assert_eq!(put(&|path| symlink(dir.path().join("secret"), path).unwrap()), Ok(Vec::new()));
    assert_eq!(put(&|path| symlink("../../../../../secret", path).unwrap()), Ok(Vec::new()));
    assert_eq!(put(&|path| symlink("os-release", path).unwrap()), Ok(Vec::new()));
    assert_eq!(put(&|path| symlink("/proc/self/environ", path).unwrap()), Ok(Vec::new()));
    assert_eq!(put(&|path| node(path, &["p"])), Ok(Vec::new()));
    assert_eq!(put(&|path| fs::create_dir(path).unwrap()), Ok(Vec::new()));
    let too_large = put(&|path| fs::File::create(path).unwrap().set_len(1 << 40).unwrap()).unwrap_err();
    let ImageError::Call { cause, .. } = too_large else { panic!("{too_large:?}") };
    assert_eq!(cause.to_string(), "read('/etc/os-release' in the tree): File too large");
    if nix::unistd::geteuid().is_root() {
        assert_eq!(put(&|path| node(path, &["c", "1", "5"])), Ok(Vec::new()), "/dev/zero");
    }

    fs::remove_dir_all(root.join("etc")).unwrap();
    symlink(dir.path().join("etc"), root.join("etc")).unwrap();
    assert_eq!(store.os_release("web"), Ok(Vec::new()), "/etc is a symlink to the host's");
}

#[test]
fn what_a_machine_writes_to_is_not_read_and_what_it_only_reads_is() {
    let (_dir, store) = store();
    let layout = &store.layout;
    let path = store.path().join("web");
    let fd = fs::File::open(&path).unwrap();
    let take = |hold| ImageLock::try_take(layout, &path, &fd, hold, lock::Beside::Yes).unwrap();

    let shared = take(Hold::Shared).unwrap();
    assert_eq!(store.hostname("web"), Ok(None));
    assert!(take(Hold::Exclusive).is_err());
    shared.release().unwrap();
    let alone = take(Hold::Exclusive).unwrap();
    assert_eq!(store.hostname("web"), in_use("web"));
    assert_eq!(store.hostname("link"), in_use("link"), "whatever path leads there");
    assert!(take(Hold::Shared).is_err());
    alone.release().unwrap();
    assert_eq!(store.hostname("web"), Ok(None));
}

#[test]
fn locks_have_the_names_that_systemd_gives_them_and_leave_nothing() {
    let (_dir, store) = store();
    let path = store.path().join("web");
    fs::remove_file(store.path().join(".#web.lck")).unwrap();
    let stat = rustix::fs::stat(&path).unwrap();
    let in_run = store.layout.root().join(format!("run/systemd/nspawn/locks/inode-{}:{}", stat.st_dev, stat.st_ino));
    let fd = fs::File::open(&path).unwrap();
    let lock = ImageLock::try_take(&store.layout, &path, &fd, Hold::Exclusive, lock::Beside::Yes).unwrap().unwrap();
    for file in [store.path().join(".#web.lck"), in_run.clone()] {
        assert!(LockFile::try_take_as(&file, Hold::Shared).unwrap().is_none(), "{}", file.display());
    }
    lock.release().unwrap();
    assert!(!store.path().join(".#web.lck").exists() && !in_run.exists());
}
