//! Times `ListMachines` and `GetMachine` of whoever owns `org.freedesktop.machine1` on each of some buses, in turn, so
//! that a noisy host is as noisy for one as for the other; run by `benches/daemon`.
//!
//! ```text
//! bus_client ROUNDS DAEMON=ADDRESS... COUNT...      COUNTs ascending; a line of JSON for each daemon and count
//! ```
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    missing_docs,
    reason = "a program that measures and fails where it cannot"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use zbus::wire::OwnedObjectPath;
use zbus::{Connection, Message};

const NAME: &str = "org.freedesktop.machine1";
const PATH: &str = "/org/freedesktop/machine1";
const MANAGER: &str = "org.freedesktop.machine1.Manager";

/// Middle of the sorted times in microseconds.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

/// Kilobytes of a field of `/proc/PID/smaps_rollup`.
fn memory(pid: u32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(field)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

async fn owner(connection: &Connection) -> u32 {
    let bus = "org.freedesktop.DBus";
    let reply = connection
        .call_method(Some(bus), "/org/freedesktop/DBus", Some(bus), "GetConnectionUnixProcessID", &NAME)
        .await
        .unwrap();
    reply.body().deserialize().unwrap()
}

/// A process that is taken for a machine, in a group that looks like a unit's: machined knows no two machines in one,
/// and a thousand real scopes would take longer to make than all that is measured.
struct Leader {
    process: Child,
    group: Option<PathBuf>,
}

impl Leader {
    fn start(name: &str) -> Self {
        let process = Command::new("sleep").arg("100000").stdin(Stdio::null()).spawn().unwrap();
        let slice = Path::new("/sys/fs/cgroup/machine.slice");
        let group = slice.is_dir().then(|| slice.join(format!("{name}.scope")));
        if let Some(group) = &group {
            std::fs::create_dir(group).unwrap();
            std::fs::write(group.join("cgroup.procs"), process.id().to_string()).unwrap();
        }
        Self { process, group }
    }

    fn end(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        if let Some(group) = self.group {
            // Who is dead for us may not be for the group yet.
            while std::fs::remove_dir(&group).is_err_and(|e| e.kind() == std::io::ErrorKind::ResourceBusy) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// A daemon on a bus of its own, and its machines.
struct Subject {
    daemon: String,
    connection: Connection,
    leaders: Vec<Leader>,
    list: Vec<Duration>,
    get: Vec<Duration>,
}

impl Subject {
    async fn connect(argument: &str) -> Self {
        let (daemon, address) = argument.split_once('=').unwrap();
        let connection = zbus::connection::Builder::address(address).build().await.unwrap();
        Self { daemon: daemon.to_owned(), connection, leaders: Vec::new(), list: Vec::new(), get: Vec::new() }
    }

    fn machine(&self, index: usize) -> String {
        format!("{}-{index:04}", self.daemon)
    }

    async fn add_machine(&mut self) {
        let name = self.machine(self.leaders.len());
        let leader = Leader::start(&name);
        let body = (name, &[0_u8; 0][..], "bench", "container", leader.process.id(), "");
        self.connection.call_method(Some(NAME), PATH, Some(MANAGER), "RegisterMachine", &body).await.unwrap();
        self.leaders.push(leader);
    }

    async fn round(&mut self, round: usize) {
        let begin = Instant::now();
        list(&self.connection).await;
        self.list.push(begin.elapsed());
        let name = self.machine(round * 7 % self.leaders.len());
        let begin = Instant::now();
        self.connection.call_method(Some(NAME), PATH, Some(MANAGER), "GetMachine", &name).await.unwrap();
        self.get.push(begin.elapsed());
    }

    async fn report(&mut self) {
        let pid = owner(&self.connection).await;
        println!(
            "{{\"daemon\": \"{}\", \"machines\": {}, \"list_us\": {:.1}, \"get_us\": {:.1}, \"rss_kib\": {}, \"pss_kib\": {}}}",
            self.daemon,
            self.leaders.len(),
            median(std::mem::take(&mut self.list)),
            median(std::mem::take(&mut self.get)),
            memory(pid, "Rss:"),
            memory(pid, "Pss:")
        );
    }
}

async fn list(connection: &Connection) -> Message {
    connection.call_method(Some(NAME), PATH, Some(MANAGER), "ListMachines", &()).await.unwrap()
}

/// Rows of an answer; not timed, as reading it is the caller's cost and not the daemon's.
fn rows(reply: &Message) -> usize {
    let rows: Vec<(String, String, String, OwnedObjectPath)> = reply.body().deserialize().unwrap();
    rows.len()
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let rounds: usize = arguments.next().unwrap().parse().unwrap();
    let (subjects, counts): (Vec<String>, Vec<String>) = arguments.partition(|argument| argument.contains('='));
    zbus::block_on(async {
        let mut daemons = Vec::new();
        for subject in &subjects {
            daemons.push(Subject::connect(subject).await);
        }
        for count in counts.iter().map(|count| count.parse::<usize>().unwrap()) {
            for daemon in &mut daemons {
                while daemon.leaders.len() < count {
                    daemon.add_machine().await;
                }
                // `.host` is always there.
                assert_eq!(rows(&list(&daemon.connection).await), count + 1);
            }
            for round in 0..rounds {
                for daemon in &mut daemons {
                    daemon.round(round).await;
                }
            }
            for daemon in &mut daemons {
                daemon.report().await;
            }
        }
        daemons.into_iter().flat_map(|daemon| daemon.leaders).for_each(Leader::end);
    });
}
