//! A machine made of namespaces, a busybox tree and a control group, with as little of our own code as possible.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use machinist::sys::mount::{self, Attributes, Option as FsOption, Propagation};
use machinist::sys::path::RootFd;
use machinist::sys::process::{self, ns};
use machinist::sys::socket;
use machinist::sys::worker::{Child, Worker};

/// First host id of a machine with a user namespace.
pub(crate) const SHIFT: u32 = 1_879_048_192;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    alice:x:1000:1000:Alice:/home/alice:/bin/sh\n\
    homeless:x:1001:1001::/nowhere:/bin/sh\n";
const GROUP: &str = "root:x:0:\nalice:x:1000:\nwww:x:33:alice\naudio:x:29:alice,homeless\n";

/// What the machine has of its own beside the namespaces that all have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) user: bool,
    pub(crate) network: bool,
    pub(crate) time: bool,
}

impl Kind {
    pub(crate) const USERNS: Self = Self { user: true, network: true, time: false };
    pub(crate) const PRIVILEGED: Self = Self { user: false, network: false, time: true };
    pub(crate) const BOTH: [Self; 2] = [Self::USERNS, Self::PRIVILEGED];
}

#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) kind: Kind,
    pub(crate) pid: i32,
    pub(crate) leader: Child,
    pub(crate) cgroup: PathBuf,
    pub(crate) tree: tempfile::TempDir,
}

impl Machine {
    pub(crate) fn start(kind: Kind) -> Self {
        let tree = make_tree(if kind.user { SHIFT } else { 0 });
        let cgroup = make_cgroup();
        let group = fs::File::open(&cgroup).expect("opening the group");
        let mut namespaces = ns::MOUNT | ns::PID | ns::UTS | ns::IPC | ns::CGROUP;
        for (on, flag) in [(kind.user, ns::USER), (kind.network, ns::NET), (kind.time, ns::TIME)] {
            namespaces |= if on { flag } else { 0 };
        }
        let (ours, theirs) = socket::pair().expect("socket pair");
        let worker = Worker::unnamed(c"leader").namespaces(namespaces).cgroup(Some(group.as_fd()));
        let (ours, leader) = worker.spawn_with(ours, |ours| {
            drop(ours);
            let error = become_leader(kind, tree.path(), &theirs);
            let _ = std::io::stderr().write_all(format!("cannot start the machine: {error}\n").as_bytes());
            1
        });
        let mut leader = leader.expect("clone3 (needs root)");
        let pid = leader.pid();
        drop(theirs);
        if kind.user {
            for map in ["uid_map", "gid_map"] {
                fs::write(format!("/proc/{pid}/{map}"), format!("0 {SHIFT} 65536")).expect("writing an id map");
            }
        }
        socket::send(&ours, b"go", &[]).expect("the child waits");
        let mut end = [0; 8];
        // The other end is closed by exec.
        assert_eq!(socket::receive(&ours, &mut end).expect("receiving").len, 0);
        assert!(leader.try_wait().expect("looking at the leader").is_none(), "it did not start");
        Self { kind, pid: pid.as_raw(), leader, cgroup, tree }
    }

    /// The control groups of commands that are there now.
    pub(crate) fn leaves(&self) -> Vec<PathBuf> {
        let all = fs::read_dir(&self.cgroup).expect("reading the group").map(|e| e.expect("an entry").path());
        let is_leaf =
            |path: &PathBuf| path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"machinist-exec-"));
        all.filter(is_leaf).collect()
    }

    /// A path of the tree, as the host reaches it. Our trees are not hostile to us.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.tree.path().join(path)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        let _ = self.leader.wait();
        for _ in 0..1000 {
            for dir in fs::read_dir(&self.cgroup).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(dir.path());
            }
            if fs::remove_dir(&self.cgroup).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        eprintln!("control group {} cannot be removed", self.cgroup.display());
    }
}

fn make_cgroup() -> PathBuf {
    let facts = machinist::host::probe().expect("probing the host").cgroup.expect("a host with cgroup2");
    let name = format!("machinist-test-{}", std::process::id());
    let path = facts.mount.join(facts.own.trim_start_matches('/')).join(name);
    fs::create_dir(&path).expect("making a control group (needs root)");
    path
}

/// Copies the busybox tree, and adds users and what the cases run.
fn make_tree(owner: u32) -> tempfile::TempDir {
    let trees = std::env::var("MACHINIST_TREES").unwrap_or_else(|_| "/var/tmp/machinist-trees".into());
    let source = Path::new(&trees).join("trixie-busybox");
    let tree = tempfile::tempdir().expect("a temporary directory");
    let root = tree.path();
    let copied = Command::new("cp").arg("-a").arg(source.join(".")).arg(root).status().expect("running cp");
    assert!(copied.success(), "no tree '{}': run `tests/trees/build trixie-busybox`", source.display());
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).expect("chmod");
    fs::write(root.join("etc/passwd"), PASSWD).expect("writing passwd");
    fs::write(root.join("etc/group"), GROUP).expect("writing group");
    fs::create_dir_all(root.join("home/alice")).expect("mkdir");
    let script = |name: &str, mode: u32, text: &str| {
        fs::write(root.join(name), text).expect("writing a script");
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).expect("chmod");
    };
    script("usr/bin/plain", 0o644, "#!/bin/sh\n");
    script("usr/bin/lost", 0o755, "#!/no/such/interpreter\n");
    script("usr/bin/bare", 0o755, "echo no first line\n");
    symlink("/proc/self/exe", root.join("usr/bin/evil")).expect("symlink");
    let chown = Command::new("chown").args(["-hR", &format!("{owner}:{owner}")]).arg(root).status();
    assert!(chown.expect("running chown").success());
    tree
}

fn become_leader(kind: Kind, tree: &Path, socket: &OwnedFd) -> machinist::sys::Error {
    match prepare(kind, tree, socket) {
        Ok(()) => {
            let text = |text: &str| process::c_string(text).expect("no zero byte");
            process::exec(&text("/bin/busybox"), &[text("sleep"), text("100000")], &[])
        }
        Err(error) => error,
    }
}

fn prepare(kind: Kind, tree: &Path, socket: &OwnedFd) -> machinist::sys::Result<()> {
    socket::receive(socket, &mut [0; 8])?;
    if kind.user {
        process::become_user(0, 0, &[])?;
    }
    process::die_with_parent()?;
    mount::set_propagation(RootFd::open(Path::new("/"))?, true, Propagation::Private)?;
    mount::attach(mount::copy_host_tree(tree, false)?, RootFd::open(tree)?)?;
    std::env::set_current_dir(tree).expect("entering the tree");
    let here = rustix::fs::CWD;
    mount::attach_at(mount::create("proc", &[], Attributes::DATA)?, here, "proc")?;
    let mode = [FsOption::Text("mode", "755")];
    mount::attach_at(mount::create("tmpfs", &mode, Attributes::default())?, here, "dev")?;
    for node in ["null", "zero", "tty"] {
        let host = Path::new("/dev").join(node);
        let place = format!("dev/{node}");
        fs::write(&place, "").expect("making a place for a device");
        mount::attach_at(mount::copy_host_tree(&host, false)?, here, &place)?;
    }
    fs::create_dir("dev/pts").expect("mkdir");
    let options = [FsOption::Text("ptmxmode", "0666"), FsOption::Text("mode", "0620"), FsOption::Text("gid", "5")];
    mount::attach_at(mount::create("devpts", &options, Attributes::default())?, here, "dev/pts")?;
    for (link, target) in [("ptmx", "pts/ptmx"), ("fd", "/proc/self/fd"), ("stderr", "/proc/self/fd/2")] {
        symlink(target, Path::new("dev").join(link)).expect("symlink");
    }
    mount::pivot_into_current_directory()
}
