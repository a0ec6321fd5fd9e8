//! Times `ListMachines` and `GetMachine` of whoever owns `org.freedesktop.machine1`; run by `benches/daemon`.
//!
//! ```text
//! bus_client ROUNDS COUNT...      COUNTs ascending; a line of JSON for each
//! ```
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    missing_docs,
    reason = "a program that measures and fails where it cannot"
)]

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

async fn register(connection: &Connection, index: usize, leader: u32) {
    // In a unit of its own where there is systemd: machined knows no two machines in one.
    let none: Vec<(&str, zbus::Variant<'_>)> = Vec::new();
    let body = (format!("bench{index:04}"), &[0_u8; 0][..], "bench", "container", leader, "", none);
    connection.call_method(Some(NAME), PATH, Some(MANAGER), "CreateMachine", &body).await.unwrap();
}

async fn list(connection: &Connection) -> Message {
    connection.call_method(Some(NAME), PATH, Some(MANAGER), "ListMachines", &()).await.unwrap()
}

/// Rows of an answer; not timed, as reading it is the caller's cost and not the daemon's.
fn rows(reply: &Message) -> usize {
    let rows: Vec<(String, String, String, OwnedObjectPath)> = reply.body().deserialize().unwrap();
    rows.len()
}

async fn get(connection: &Connection, index: usize) {
    let name = format!("bench{index:04}");
    connection.call_method(Some(NAME), PATH, Some(MANAGER), "GetMachine", &name).await.unwrap();
}

async fn measure(connection: &Connection, rounds: usize, count: usize) {
    let pid = owner(connection).await;
    // `.host` is always there.
    assert_eq!(rows(&list(connection).await), count + 1);
    let mut times = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let begin = Instant::now();
        list(connection).await;
        times.0.push(begin.elapsed());
        let begin = Instant::now();
        get(connection, round * 7 % count).await;
        times.1.push(begin.elapsed());
    }
    println!(
        "{{\"machines\": {count}, \"list_us\": {:.1}, \"get_us\": {:.1}, \"rss_kib\": {}, \"pss_kib\": {}}}",
        median(times.0),
        median(times.1),
        memory(pid, "Rss:"),
        memory(pid, "Pss:")
    );
}

fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let Some((rounds, counts)) = numbers.split_first() else { return };
    let mut leaders: Vec<Child> = Vec::new();
    zbus::block_on(async {
        let connection = Connection::system().await.unwrap();
        for count in counts {
            while leaders.len() < *count {
                let leader = Command::new("sleep").arg("100000").stdin(Stdio::null()).spawn().unwrap();
                register(&connection, leaders.len(), leader.id()).await;
                leaders.push(leader);
            }
            measure(&connection, *rounds, *count).await;
        }
    });
    for leader in &mut leaders {
        leader.kill().unwrap();
        leader.wait().unwrap();
    }
}
