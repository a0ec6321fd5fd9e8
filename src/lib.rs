//! Machinist boots whole Linux distributions as lightweight machines.
//!
//! # Bird's view
//!
//! A machine file says what a machine is. [`config`] reads it into a [`spec::MachineSpec`], in which everything has
//! been checked; [`host`] finds out what this host can do; [`plan::build`] decides from the two, and from nothing
//! else, everything that will be done; [`supervisor`] does it with the parts ([`rootfs`], [`cgroup`]) and all its
//! force from [`sys`]. Deciding and doing never mix: a plan is data that `machinist plan` prints without root and tests
//! compare.
//!
//! One process, the supervisor, owns one machine: its locks, its cgroup, its console and its first process, the leader.
//! Other processes find a machine through its run directory (a state file and a socket beside a lock that proves them
//! true, [`running`]), or enter it by the leader's pidfd ([`enter`]).
//!
//! ```text
//!   cli            daemon/dbus   daemon/varlink        faces: parse, call, print or reply
//!    |                  |              |
//!   ops                 daemon/core                     what can be done; who does it
//!    |  \               |        |
//!   supervisor  \       |        |                      runs one machine
//!    |           running · enter · report               what others may know of it, and how to get in
//!   rootfs  cgroup  image  tree                         parts
//!   plan  config  bus  host                             decide; read; ask
//!   spec  sys                                           words and force
//! ```
//!
//! [`ops`] is what can be done with machines: typed requests, typed results, events on the way; it decides in one place
//! whether this process, the daemon or systemd does it. [`cli`] parses and prints. The [`daemon`] knows machines, names
//! them and asks their supervisors; its core takes typed requests of a caller, and D-Bus and Varlink only translate. It runs
//! no machine, and no machine depends on it.
//!
//! # Where to find
//!
//! | question | decided | done |
//! |---|---|---|
//! | may the machine be stopped or rebooted now? | `supervisor::requests` | `supervisor::event_loop` |
//! | how is this init asked to stop? | [`running::stop`] | `supervisor::running` |
//! | is the machine started again after its end? | [`running::restart`] | `supervisor::backoff` |
//! | who carries out a verb: this process, the daemon, systemd? | [`ops::via`] | the operation of that name in [`ops`] |
//! | what is started before what? | [`plan::dependencies`] | `ops::jobs` |
//! | which mounts, rights and limits? | [`plan`] | [`rootfs::mounts`], [`supervisor::child`], [`cgroup`] |
//! | which message may come next while a machine is made? | [`supervisor::handshake`] | [`supervisor::launch`], [`supervisor::child`] |
//! | may this caller do that on the bus? | `daemon::core::authority` | the module of that subject in `daemon::core` |
//! | how is an error shown? | [`report`] (kind, causes, hints) | [`cli::output`] |
//!
//! # Code map
//!
//! From the bottom up; a module uses only what is above it in this list, and no file leads back to itself
//! (`tests/cli/tidy` checks both).
//!
//! | module | job |
//! |---|---|
//! | [`spec`] | the validated words, the description of one machine, and every place and name on the host |
//! | [`sys`] | system calls; the only `unsafe`; knows nothing of machines |
//! | [`sys::worker`] | the one way to make a child process: it runs one closure and leaves, even by a panic |
//! | [`sys::process`] | pidfds, identities, capabilities, filters, and what happens just before exec |
//! | [`sys::mount`] | trees that are built detached and live by descriptor |
//! | [`sys::path`] | [`RootFd`](sys::path::RootFd), the only way to a path inside a machine's tree |
//! | [`sys::channel`] | messages between our processes: a value, whole or an error, and descriptors |
//! | [`sys::socket`], [`sys::lock`], [`sys::bpf`] | sockets; locks that end with us; the device filter |
//! | [`sys::exe_seal`] | our own program cannot be written through a machine |
//! | [`sys::btrfs`], [`sys::block`] | subvolumes and their quotas; block devices |
//! | [`host`] | [`HostFacts`](host::HostFacts): a few small reads, no privilege; more of them for machines with limits |
//! | [`bus`] | client of the system bus, or of a user's, in a child with a time limit; [`bus::systemd1`] for all who talk to systemd |
//! | [`plan`] | pure: namespaces, ids, root, exec ([`plan::build`]); [`plan::mounts`], [`plan::privileges`], [`plan::limits`], [`plan::seccomp`] |
//! | [`plan::dependencies`], [`plan::unit`] | pure: which machine is started after and stopped before which; what systemd is told of it |
//! | [`config`] | files to definition: find, merge, check; every problem at once, with its place |
//! | [`tree`] | trees that are not trusted: walked, inspected, copied, changed and deleted by descriptor ([`tree::inode`]); [`tree::chown`] |
//! | [`rootfs`] | holds the trees and makes the root; [`rootfs::mounts`] carries out the list below it |
//! | [`rootfs::idmap`] | picks, locks and remembers an id range |
//! | [`rootfs::devices`] | what the host's devices are, and what the machine's filter permits |
//! | [`rootfs::init`] | finds a tree's init and its kind |
//! | [`cgroup`], [`cgroup::limits`] | the machine's cgroups: make, freeze, kill, remove; limits; usage ([`cgroup::usage`]) |
//! | [`image`] | the image store: list, find, read in, change; the locks shared with systemd's tools |
//! | [`running`] | what others may know of a machine that runs, and ask of its supervisor |
//! | [`running::state`], [`running::control`] | the run directory with its state file; requests |
//! | [`running::stop`], [`running::restart`] | each init's own way to be stopped and restarted; whether a machine that has ended is started again |
//! | [`running::wait_ready`], [`running::start_limit`] | waits for a machine that another process starts; how many begin at once |
//! | [`enter`] | commands in a running machine |
//! | [`enter::helper`] | our own program, re-executed for work that a machine can block; one protocol, with a time limit |
//! | [`enter::files`] | files of a running machine: read, shown, copied by a process with no more rights than its root |
//! | [`enter::process_limits`] | rlimits, nice and oom score: raised with the host's rights, set just before exec |
//! | [`report`] | requests, events and errors of operations, as they cross process borders |
//! | [`supervisor`] | runs one machine, with its diagram |
//! | [`mod@supervisor::prepare`], [`supervisor::launch`], [`supervisor::event_loop`] | take what the host gives; create and start; the one loop through all phases |
//! | `supervisor::held`, `supervisor::session`, `supervisor::boot` | what the host gave; what lasts over reboots; what ends with the leader |
//! | `supervisor::requests` | which requests are accepted when: one table |
//! | `supervisor::running`, `supervisor::backoff` | until the leader ends; the delay before the machine is started again |
//! | [`supervisor::child`], [`supervisor::handshake`] | the two children; the order of their messages |
//! | `supervisor::machine_cgroup`, `supervisor::sd_notify` | which cgroup the machine gets; messages to its service manager |
//! | `supervisor::registration` | the machine's entry in `org.freedesktop.machine1` |
//! | `supervisor::change_limits` | a change of a running machine's limits, made by a child |
//! | `supervisor::ready` | when it counts as ready: a notification of its init, or a check |
//! | [`supervisor::console`] | pty, log and viewers |
//! | [`ops`], [`ops::via`] | what can be done with machines; who does it |
//! | [`daemon`] | `org.freedesktop.machine1` on the bus and by Varlink, and `org.machinist1`; knows machines, runs none |
//! | `daemon::core` | typed requests of a caller, authorisation, and the registry of machines; no message of the bus |
//! | `daemon::dbus`, `daemon::varlink` | its faces: read requests, ask the core, write replies |
//! | [`cli`] | one verb a file, and everything that is printed |
//!
//! To read it in one go: [`spec`], [`plan`], [`supervisor::handshake`], [`supervisor::child`], [`supervisor::event_loop`].
//!
//! # The life of a start
//!
//! 1. `cli` parses `start web`; [`ops`] finds who does it. On a host with systemd that is the unit `machinist@web.service`,
//!    whose `machinist run` continues here; for a user other than root it is the daemon, which runs the verb.
//! 2. [`config::load`] finds the definition, its profiles and drop-ins and checks them; [`host::probe`] looks at the
//!    host; [`plan::build`] decides.
//! 3. [`supervisor::prepare()`] locks the machine's name, opens and locks its trees, picks or takes up its id range and
//!    makes its cgroups. What the host gave is `Held`, and given back in reverse order.
//! 4. `start` puts a background supervisor into a cgroup of its own at birth; `run` goes on in the caller's process.
//! 5. **Create.** The supervisor starts the outer child in the payload's cgroup, in a new mount namespace and with the
//!    rights of the host. That starts the inner child in the other namespaces, writes its id maps, and builds the root:
//!    layers are id-mapped, then stacked. Beside that the inner child makes the network namespace, the slowest of all.
//! 6. A helper of the inner child that shares its memory makes the file systems that belong to the machine's
//!    namespaces (`/proc`, `/sys`, `/dev/pts`, …) and hands them over; the outer child attaches everything, covers what
//!    is to be hidden, moves to the new root and exits.
//! 7. The inner child, in the new root by now, takes a mount namespace that its own user namespace owns, which locks all
//!    mounts for it. The supervisor opens the console, writes the state file, and has the machine registered by a
//!    child that has been on the bus since step 5. The machine is `Created`.
//! 8. **Start.** The supervisor sends `Go`. The inner child drops what it must not have, loads the filter and executes the
//!    init. The socket's end of file tells the supervisor that it worked. The machine is `Running`.
//! 9. The one loop runs until the leader ends. A reboot, or an end that was not requested where the definition says so
//!    (after `Backoff`), goes back to step 5 with the same locks, cgroups, ids and console; otherwise everything is given
//!    back in reverse order.
//!
//! # Invariants
//!
//! What is deliberately absent:
//!
//! - **No mount in the host's mount namespace**, not even for a moment, so a killed supervisor leaves none.
//! - **No path below a machine's root but through [`RootFd`](sys::path::RootFd).** The tree is hostile before its first
//!   start too.
//! - **No `unsafe` outside [`sys`]**, and no call there whose error does not name the call, its arguments and errno.
//! - **No fork outside [`sys::worker`]**: a child runs one closure, leaves by `_exit`, and gives back no guard of its parent.
//! - **No second thread in a supervisor**: it forks, and its children use its memory until they execute.
//! - **No I/O, clock or environment in [`plan`]**, and no decision after it.
//! - **No text of ours is parsed by us**: between our processes everything is typed ([`sys::channel`], [`report`]).
//! - **No process is moved between cgroups.** A move waits until every processor has passed through the
//!   scheduler (about 10 ms); all are born where they belong (`CLONE_INTO_CGROUP`). Exceptions: a background supervisor
//!   leaves its cgroup at its very end, when no process waits for it, so that the cgroup can be removed; and `run` from a
//!   shell on a host with systemd moves into the machine's scope, as does a unit's main process below it before systemd 254.
//! - **No file of a running machine is touched by the daemon**: a machine can block that indefinitely. [`enter::files`] does.
//! - **No change of an image, and no use of one,** without the locks by which systemd's tools know of it.
//! - **No chown of a tree** unless a definition asks for it.
//! - **No host object without a name made from the machine's.** Guards do not run on SIGKILL; `reap` and the next start
//!   find leftovers by name.
//! - **No connection to the bus and no wait for it in a supervisor**: a child speaks to it and is killed when its time is
//!   up. The machine goes on without an answer, unless its definition says otherwise.
//! - **No printing outside [`cli`]**, and no logging: what fails is returned, once, as one error with its causes.
//! - **Nothing of the machine is run or trusted to enter it**: users are looked up by us, through `RootFd`.
//!
//! # Where it departs from DESIGN.md
//!
//! - **The inner child does not begin in a mount namespace of its own.** It shares the outer child's, which the host's
//!   user namespace owns, until everything is mounted, and copies it then: the kernel locks every mount that comes
//!   into a mount namespace from a more privileged one. Masks and read-only views need no care of their own.
//!   Since such a child cannot mount what belongs to its namespaces, a process that shares its memory does, in
//!   a mount namespace made for that.
//! - **A reboot or restart is a turn of a loop in the supervisor**, not a new execution or exit status 133: locks, ids, viewers
//!   of the console and its log go on without a gap, and no other process can take the machine's place meanwhile. Under a
//!   unit too, which therefore knows no exit status that would start it again.
//! - **A machine is a unit on hosts with systemd**: the one whose main process its supervisor is, if that has `Delegate=`,
//!   else a scope, since cgroups below other units are not ours. Elsewhere `run` stays in its caller's cgroup, and only
//!   `start` gives the supervisor one.
//! - **The daemon dispatches messages itself**, not by the bus library's object server: images are objects as long as a file
//!   exists, `machine/self` is another object for each caller, and stock clients ask for the properties of all interfaces
//!   by an empty name.
//! - **Requests to `org.machinist1` are carried out by a verb of this program**, in a process of its own that reports in JSON
//!   lines: errors and results are those of the command line, and the daemon neither forks nor waits for anything of a
//!   machine.
//! - **The order among machines is systemd's on hosts with systemd**, by a generator: what definitions say is in no file of
//!   `/etc` that would have to be kept true, and the boot, `systemctl` and `machinist start` do the same. `start` and `stop`
//!   go through the graph themselves all the same, by one code on every host ([`plan::dependencies`], one process for each
//!   machine), and ask systemd for each unit: what systemd reports of a failed dependency is not why it failed. Elsewhere only
//!   these verbs start and stop machines, so no daemon is needed for it. systemd starts all that may start at once, so
//!   supervisors of units share start slots among themselves ([`running::start_limit`]); no other process could enforce
//!   that limit.
//! - **A machine that ends by itself stops no other**, as with systemd's `Requires=`: those that need it may have their own
//!   way to do without it for a while, and it may be started again.
//! - **Ephemeral uppers are a tmpfs** of the machine's mount namespace, not a directory that must be removed.
//! - **[`config`] knows the words of [`plan::seccomp`]**, so that a wrong one is refused with its line in the file.
#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "tests run programs and fail with a backtrace where a file is missing")
)]

pub mod bus;
pub mod cgroup;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod enter;
pub mod host;
pub mod image;
pub mod ops;
pub mod plan;
pub mod report;
pub mod rootfs;
pub mod running;
pub mod spec;
pub mod supervisor;
pub mod sys;
pub mod tree;
