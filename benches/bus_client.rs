//! Times `ListMachines` and `GetMachine` of the owner of `org.freedesktop.machine1` on each of some buses, in turn, so
//! that a noisy host is as noisy for one as for the other; run by `benches/daemon`. On the last of them a server that has
//! nothing to do gives the same answers again: what he takes is what the bus and the caller take.
//!
//! ```text
//! bus_client ROUNDS DAEMON=ADDRESS... COUNT...      COUNTs ascending; a line of JSON for each daemon and count, and for the bus
//! ```
#![allow(clippy::disallowed_methods, reason = "tests run programs and fail with a backtrace where a file is missing")]
#![allow(
    unsafe_code,
    clippy::print_stdout,
    clippy::unwrap_used,
    missing_docs,
    reason = "a program that measures and fails where it cannot"
)]

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_core::Stream as _;
use zbus::wire::OwnedObjectPath;
use zbus::{Connection, Message, MessageStream};

const NAME: &str = "org.freedesktop.machine1";
const PATH: &str = "/org/freedesktop/machine1";
const MANAGER: &str = "org.freedesktop.machine1.Manager";
/// Who has nothing to do.
const ECHO: &str = "org.machinist1.Echo";

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

async fn owner(connection: &Connection, name: &str) -> u32 {
    let bus = "org.freedesktop.DBus";
    let reply = connection
        .call_method(Some(bus), "/org/freedesktop/DBus", Some(bus), "GetConnectionUnixProcessID", &name)
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
    /// Name on the bus.
    name: &'static str,
    connection: Connection,
    leaders: Vec<Leader>,
    list: Vec<Duration>,
    get: Vec<Duration>,
}

impl Subject {
    async fn connect(daemon: &str, name: &'static str, address: &str) -> Self {
        let connection = zbus::connection::Builder::address(address).build().await.unwrap();
        Self { daemon: daemon.to_owned(), name, connection, leaders: Vec::new(), list: Vec::new(), get: Vec::new() }
    }

    async fn call(&self, member: &str, argument: Option<&str>) -> Message {
        let connection = &self.connection;
        match argument {
            None => connection.call_method(Some(self.name), PATH, Some(MANAGER), member, &()).await,
            Some(name) => connection.call_method(Some(self.name), PATH, Some(MANAGER), member, &name).await,
        }
        .unwrap()
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

    async fn round(&mut self, round: usize, machines: usize) {
        let begin = Instant::now();
        self.call("ListMachines", None).await;
        self.list.push(begin.elapsed());
        let name = self.machine(round * 7 % machines);
        let begin = Instant::now();
        self.call("GetMachine", Some(&name)).await;
        self.get.push(begin.elapsed());
    }

    async fn report(&mut self, machines: usize) {
        let pid = owner(&self.connection, self.name).await;
        println!(
            "{{\"daemon\": \"{}\", \"machines\": {machines}, \"list_us\": {:.1}, \"get_us\": {:.1}, \"rss_kib\": {}, \"pss_kib\": {}}}",
            self.daemon,
            median(std::mem::take(&mut self.list)),
            median(std::mem::take(&mut self.get)),
            memory(pid, "Rss:"),
            memory(pid, "Pss:")
        );
    }
}

/// Answers of a daemon, to `ListMachines` and to `GetMachine`.
type Answers = Arc<Mutex<Option<[Message; 2]>>>;

/// Gives these answers to everybody.
async fn echo(connection: Connection, answers: Answers) {
    let mut calls = MessageStream::from(&connection);
    while let Some(call) = std::future::poll_fn(|context| Pin::new(&mut calls).poll_next(context)).await {
        let call = call.unwrap();
        let header = call.header();
        let which = match header.member().map(|member| member.as_str()) {
            Some("ListMachines") => 0,
            Some("GetMachine") => 1,
            _ => continue,
        };
        let reply = {
            let answers = answers.lock().unwrap();
            let body = answers.as_ref().unwrap()[which].body();
            let data = body.data();
            // SAFETY: these bytes have come as a body of this signature, in the byte order of all on this host.
            unsafe {
                Message::method_return(&header).build_raw_body(data.bytes(), body.signature().clone(), Vec::new())
            }
        };
        connection.send(&reply.unwrap()).await.unwrap();
    }
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
        let answers = Answers::default();
        let mut daemons = Vec::new();
        let mut last = "";
        for (name, address) in subjects.iter().map(|subject| subject.split_once('=').unwrap()) {
            daemons.push(Subject::connect(name, NAME, address).await);
            last = address;
        }
        let connection = zbus::connection::Builder::address(last).name(ECHO).build().await.unwrap();
        let given = Arc::clone(&answers);
        std::thread::spawn(move || zbus::block_on(echo(connection, given)));
        let mut bus = Subject::connect("(the bus alone)", ECHO, last).await;
        for count in counts.iter().map(|count| count.parse::<usize>().unwrap()) {
            for daemon in &mut daemons {
                while daemon.leaders.len() < count {
                    daemon.add_machine().await;
                }
                let list = daemon.call("ListMachines", None).await;
                // `.host` is always there.
                assert_eq!(rows(&list), count + 1);
                let get = daemon.call("GetMachine", Some(&daemon.machine(0))).await;
                *answers.lock().unwrap() = Some([list, get]);
            }
            for round in 0..rounds {
                for daemon in daemons.iter_mut().chain([&mut bus]) {
                    daemon.round(round, count).await;
                }
            }
            for daemon in daemons.iter_mut().chain([&mut bus]) {
                daemon.report(count).await;
            }
        }
        daemons.into_iter().flat_map(|daemon| daemon.leaders).for_each(Leader::end);
    });
}
