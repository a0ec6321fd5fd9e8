use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::*;

fn name(text: &str) -> MachineName {
    MachineName::parse(text).unwrap()
}

/// A host of its own below a temporary directory.
fn host() -> (tempfile::TempDir, Layout) {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::system(dir.path());
    (dir, layout)
}

fn files_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|e| e.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn candidates_are_every_block_once_and_begin_where_the_name_says() {
    let all: Vec<u32> = candidates(&name("web")).collect();
    assert!(all.iter().all(|b| (FIRST_BLOCK..=LAST_BLOCK).contains(b) && b % ID_RANGE_SIZE == 0));
    let unique: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(unique.len(), 28_664);
    // Pinned: trees on disk may belong to these ids.
    let first = |text| candidates(&name(text)).next().unwrap();
    assert_eq!([first("web"), first("db"), first("a")], [524_288_000, 95_682_560, 1_058_013_184]);
}

#[test]
fn a_range_locks_every_block_it_touches() {
    let touched = |shift, size| blocks(IdRange { shift, size }).collect::<Vec<_>>();
    assert_eq!(touched(524_288, 65_536), [524_288]);
    assert_eq!(touched(524_289, 65_536), [524_288, 589_824]);
    assert_eq!(touched(65_536, 1), [65_536]);
    assert_eq!(touched(4_294_901_760, 65_535), [4_294_901_760]);
}

#[test]
fn only_a_range_we_could_have_picked_is_remembered() {
    assert_eq!(parse_range(b"524288 65536\n"), Some(IdRange { shift: 524_288, size: 65_536 }));
    for bad in [
        "",
        "524288",
        "0 65536",
        "65536 65536",
        "524289 65536",
        "524288 1",
        "4294901760 65536",
        "x y",
        "524288 65536 1",
    ] {
        assert_eq!(parse_range(bad.as_bytes()), None, "{bad}");
    }
}

#[test]
fn a_machine_gets_the_same_range_again_and_leaves_no_lock() {
    let (_dir, layout) = host();
    let first = acquire(&layout, &name("web"), UserMode::Auto).unwrap();
    let range = first.range();
    assert_eq!(files_in(&layout.uid_locks()), [range.shift.to_string()]);
    first.release().unwrap();
    assert!(files_in(&layout.uid_locks()).is_empty());
    assert_eq!(files_in(&layout.state_dir(&name("web"))), ["uid-range"]);

    // Not by its name this time: another range is in the file.
    let other = IdRange { shift: range.shift ^ 0x0001_0000, ..range };
    remember(&layout, &name("web"), other).unwrap();
    assert_eq!(acquire(&layout, &name("web"), UserMode::Auto).unwrap().range(), other);
    assert!(files_in(&layout.uid_locks()).is_empty());
}

#[test]
fn a_remembered_range_that_is_taken_is_replaced() {
    let (_dir, layout) = host();
    let mine = acquire(&layout, &name("web"), UserMode::Auto).unwrap();
    let again = acquire(&layout, &name("web"), UserMode::Auto).unwrap();
    assert_eq!(again.range().shift, candidates(&name("web")).nth(1).unwrap());
    assert_eq!(remembered(&layout, &name("web")), Ok(Some(again.range())));
    assert_eq!(mine.range().shift, candidates(&name("web")).next().unwrap());
}

#[test]
fn a_damaged_memory_is_replaced() {
    let (_dir, layout) = host();
    make_dir(&layout.state_dir(&name("web")), 0o700).unwrap();
    std::fs::write(memory_path(&layout, &name("web")), "5242").unwrap();
    let lock = acquire(&layout, &name("web"), UserMode::Auto).unwrap();
    assert_eq!(remembered(&layout, &name("web")), Ok(Some(lock.range())));
}

#[test]
fn a_configured_range_in_use_is_refused_with_its_holder() {
    let (_dir, layout) = host();
    let range = IdRange { shift: 524_288, size: 65_536 };
    let held = acquire(&layout, &name("web"), UserMode::Range(range)).unwrap();
    let half_over = IdRange { shift: 500_000, size: 65_536 };
    let error = acquire(&layout, &name("db"), UserMode::Range(half_over)).unwrap_err();
    let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
    let (pid, comm) = (std::process::id(), comm.trim_end());
    assert_eq!(
        error.to_string(),
        format!("id range 500000..565536 is in use by another machine (process {pid}, {comm})")
    );
    assert_eq!(files_in(&layout.uid_locks()), ["524288"]);
    held.release().unwrap();
    acquire(&layout, &name("db"), UserMode::Range(half_over)).unwrap();
}

#[test]
fn a_range_of_half_the_world_is_refused() {
    let (_dir, layout) = host();
    let range = IdRange { shift: 65_536, size: 0x8000_0000 };
    let error = acquire(&layout, &name("web"), UserMode::Range(range)).unwrap_err();
    assert_eq!(error.to_string(), "id range 65536..2147549184 is too large: a machine can hold 16777216 ids");
}

#[test]
fn identity_needs_no_lock() {
    let (_dir, layout) = host();
    let lock = acquire(&layout, &name("web"), UserMode::Identity).unwrap();
    assert_eq!((lock.range(), lock.locks.len()), (IdRange { shift: 0, size: 65_536 }, 0));
    assert!(!layout.uid_locks().exists());
}

#[test]
fn reap_removes_the_lock_of_the_dead_and_spares_that_of_the_living() {
    let (_dir, layout) = host();
    let lock = acquire(&layout, &name("web"), UserMode::Auto).unwrap();
    let file = lock.range().shift.to_string();
    reap(&layout, &name("web"), UserMode::Auto).unwrap();
    assert_eq!(files_in(&layout.uid_locks()), std::slice::from_ref(&file));
    drop(lock);
    std::fs::write(layout.uid_locks().join(&file), "").unwrap();
    reap(&layout, &name("web"), UserMode::Auto).unwrap();
    assert!(files_in(&layout.uid_locks()).is_empty());
}

/// Starts systemd-nspawn on the host's /usr and returns its range; it runs until its input ends.
fn start_nspawn(tree: &Path) -> (Child, IdRange) {
    let mut child = Command::new("systemd-nspawn")
        .args(["--quiet", "--register=no", "--keep-unit", "-U", "--pipe", "--machine=machinist-test-idmap"])
        .args(["--private-users-ownership=auto", "--bind-ro=/usr", "--directory"])
        .arg(tree)
        .args(["sh", "-c", "cat /proc/self/uid_map; read wait"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("this test needs systemd-nspawn");
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let fields: Vec<u32> = line.split_whitespace().map(|field| field.parse().unwrap()).collect();
    assert_eq!((fields[0], fields[2]), (0, ID_RANGE_SIZE));
    (child, IdRange { shift: fields[1], size: ID_RANGE_SIZE })
}

fn stop_nspawn(mut child: Child) {
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn systemd_nspawn_and_we_keep_off_each_other() {
    let (dir, layout) = host();
    let tree = dir.path().join("tree");
    for part in ["usr", "etc", "proc", "sys", "dev", "run", "tmp", "var", "root"] {
        make_dir(&tree.join(part), 0o755).unwrap();
    }
    for link in ["bin", "sbin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{link}"), tree.join(link)).unwrap();
    }
    std::fs::write(tree.join("etc/os-release"), "ID=test\n").unwrap();
    // The one real place in a host that is otherwise of our own.
    make_dir(layout.uid_locks().parent().unwrap(), 0o755).unwrap();
    make_dir(Path::new("/run/systemd/nspawn-uid"), 0o755).unwrap();
    std::os::unix::fs::symlink("/run/systemd/nspawn-uid", layout.uid_locks()).unwrap();
    let before = files_in(&layout.uid_locks());

    let (nspawn, first) = start_nspawn(&tree);
    let error = acquire(&layout, &name("web"), UserMode::Range(first)).unwrap_err().to_string();
    assert!(error.ends_with(&format!("(process {}, systemd-nspawn)", nspawn.id())), "{error}");
    remember(&layout, &name("web"), first).unwrap();
    let picked = acquire(&layout, &name("web"), UserMode::Auto).unwrap();
    assert_ne!(picked.range(), first);
    stop_nspawn(nspawn);

    let held = acquire(&layout, &name("db"), UserMode::Range(first)).unwrap();
    let (nspawn, second) = start_nspawn(&tree);
    stop_nspawn(nspawn);
    assert_ne!(second, first);
    held.release().unwrap();

    let (nspawn, third) = start_nspawn(&tree);
    stop_nspawn(nspawn);
    assert_eq!(third, first, "with the block free again, nspawn takes it by name");
    picked.release().unwrap();
    assert_eq!(files_in(&layout.uid_locks()), before);
}
