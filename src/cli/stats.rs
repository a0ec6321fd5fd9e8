//! `stats`, and what `top` shares with it: samples, and what a machine did between two of them.

use std::collections::HashMap;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::output::{Printer, clean, note, print_json, size, status, table, written};
use crate::cgroup::Stall;
use crate::ops::{Ops, machine_name};
use crate::report::OpError;
use crate::running::state;
use crate::running::view::Statistics;

#[derive(Debug, Args)]
pub(crate) struct StatsArguments {
    /// Machines; all that run if there are none
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Time between the two looks that percentages and rates come from; with 0 there is one, and totals only
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_interval)]
    interval: Duration,
}

/// Seconds, also with a part, or a time with units as in `500ms`.
pub(super) fn parse_interval(text: &str) -> Result<Duration, String> {
    const MOST: Duration = Duration::from_secs(24 * 3600);
    let time = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        let seconds = text.parse().map_err(|_| format!("'{text}' is no number of seconds"))?;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    } else {
        super::words::parse_time(text)?
    };
    if time > MOST { Err("it is a day at most".to_owned()) } else { Ok(time) }
}

/// What these machines use now, or all that run if none is named.
pub(super) fn sample(ops: &Ops, names: &[String]) -> Result<Vec<Statistics>, OpError> {
    if let Some(rows) = ops.statistics_via_daemon(names)? {
        return Ok(rows);
    }
    let mut rows = Vec::new();
    if names.is_empty() {
        for name in state::names(ops.layout()) {
            rows.extend(ops.state_of(&name)?.as_ref().map(Statistics::of));
        }
    }
    for name in names {
        rows.push(Statistics::of(&ops.running(name)?.1));
    }
    Ok(rows)
}

/// A machine, and what it did since it was looked at before.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) now: Statistics,
    /// What of it can be told: a machine may have begun meanwhile.
    pub(super) rates: Rates,
}

/// Differences, by time.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Rates {
    /// Between the two looks.
    pub(super) interval_usec: Option<u64>,
    /// Of one processor.
    pub(super) cpu_percent: Option<f64>,
    /// Bytes per second.
    pub(super) read: Option<u64>,
    /// Bytes per second.
    pub(super) written: Option<u64>,
}

/// What each machine did since `before`.
pub(super) fn compare(before: &[Statistics], now: Vec<Statistics>) -> Vec<Row> {
    let before: HashMap<&str, &Statistics> = before.iter().map(|row| (row.name.as_str(), row)).collect();
    let row = |now: Statistics| {
        let before = before.get(now.name.as_str()).filter(|b| (b.leader, b.since) == (now.leader, now.since));
        Row { rates: before.map(|before| rates(before, &now)).unwrap_or_default(), now }
    };
    now.into_iter().map(row).collect()
}

fn rates(before: &Statistics, now: &Statistics) -> Rates {
    let Some(interval) = now.monotonic_usec.checked_sub(before.monotonic_usec).filter(|usec| *usec > 0) else {
        return Rates::default();
    };
    let done = |before: Option<u64>, now: Option<u64>| now?.checked_sub(before?);
    let per_second = |bytes: u64| {
        let rate = u128::from(bytes) * 1_000_000 / u128::from(interval);
        u64::try_from(rate).unwrap_or(u64::MAX)
    };
    let (then, now) = (&before.usage, &now.usage);
    Rates {
        interval_usec: Some(interval),
        cpu_percent: done(then.cpu_usec, now.cpu_usec).map(|usec| ratio(usec, interval) * 100.0),
        read: done(then.io_read_bytes, now.io_read_bytes).map(per_second),
        written: done(then.io_written_bytes, now.io_written_bytes).map(per_second),
    }
}

/// A part of a whole that is not 0.
#[expect(clippy::cast_precision_loss, reason = "percentages are shown with four digits")]
pub(super) fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

impl Row {
    /// The objects of `stats --json`.
    fn to_json(&self) -> Value {
        let mut value = serde_json::to_value(&self.now).unwrap_or_default();
        let rounded = self.rates.cpu_percent.map(|percent| (percent * 100.0).round() / 100.0);
        if let (Some(object), Value::Object(rates)) = (
            value.as_object_mut(),
            json!({
                "interval-usec": self.rates.interval_usec,
                "cpu-percent": rounded,
                "io-read-bytes-per-second": self.rates.read,
                "io-written-bytes-per-second": self.rates.written,
            }),
        ) {
            object.extend(rates);
        }
        value
    }
}

/// `machinist stats`
pub(super) fn stats(ops: &Ops, args: &StatsArguments, printer: &Printer) -> Result<u8, OpError> {
    args.names.iter().try_for_each(|name| machine_name(name).map(drop))?;
    let mut rows = compare(&[], sample(ops, &args.names)?);
    if !args.interval.is_zero() && !rows.is_empty() {
        std::thread::sleep(args.interval);
        let before: Vec<Statistics> = rows.into_iter().map(|row| row.now).collect();
        rows = compare(&before, sample(ops, &args.names)?);
    }
    if printer.json() {
        return print_json(&rows.iter().map(Row::to_json).collect());
    }
    if rows.is_empty() {
        note("No machines are running.");
        return Ok(status::OK);
    }
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    written(|out| out.write_all(table(&HEAD, &rows).as_bytes()))
}

const HEAD: [&str; 14] = [
    "NAME", "STATE", "CPU%", "CPU TIME", "MEMORY", "MAX", "SWAP", "TASKS", "READ", "WRITTEN", "READ/S", "WRITE/S",
    "PRESSURE", "OOM",
];

/// One machine's line of the table.
fn cells(row: &Row) -> Vec<String> {
    let (usage, rates) = (&row.now.usage, &row.rates);
    let bytes = |bytes: Option<u64>| or_dash(bytes.map(size));
    let count = |count: Option<u64>| or_dash(count.map(|n| n.to_string()));
    let pressure = [&usage.pressure.cpu, &usage.pressure.memory, &usage.pressure.io];
    vec![
        clean(&row.now.name),
        clean(&row.now.state),
        or_dash(rates.cpu_percent.map(percent)),
        or_dash(usage.cpu_usec.map(cpu_time)),
        bytes(usage.memory_bytes),
        bytes(usage.memory_max_bytes),
        bytes(usage.swap_bytes),
        count(usage.tasks),
        bytes(usage.io_read_bytes),
        bytes(usage.io_written_bytes),
        bytes(rates.read),
        bytes(rates.written),
        pressure.map(|stall| or_dash(waited(stall.as_ref()).map(percent))).join("/"),
        count(usage.oom_kills),
    ]
}

pub(super) fn or_dash(cell: Option<String>) -> String {
    cell.unwrap_or_else(|| "-".into())
}

/// The share of the time in which anything waited.
pub(super) fn waited(stall: Option<&Stall>) -> Option<f64> {
    stall?.some_percent
}

/// A percentage in at most five characters.
pub(super) fn percent(value: f64) -> String {
    if value < 999.95 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// Processor time, in at most eight characters below a thousand days.
pub(super) fn cpu_time(usec: u64) -> String {
    let seconds = usec / 1_000_000;
    match seconds {
        0..60 => format!("{seconds}.{:02}s", usec / 10_000 % 100),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::{Pressure, Usage};

    fn machine(name: &str, second: u64, usage: Usage) -> Statistics {
        let monotonic_usec = 5_000_000 + second * 1_000_000;
        Statistics { name: name.into(), state: "running".into(), leader: Some(7), since: 1000, monotonic_usec, usage }
    }

    fn used(cpu: u64, read: u64) -> Usage {
        Usage { cpu_usec: Some(cpu), io_read_bytes: Some(read), ..Usage::default() }
    }

    #[test]
    fn rates_are_differences_by_the_time_that_passed() {
        let before = [machine("a", 0, used(1000, 0)), machine("gone", 0, used(0, 0))];
        let rows = compare(&before, vec![machine("a", 2, used(3_001_000, 4096))]);
        assert_eq!(rows.len(), 1);
        let expected =
            Rates { interval_usec: Some(2_000_000), cpu_percent: Some(150.0), read: Some(2048), written: None };
        assert_eq!(rows[0].rates, expected);
    }

    #[test]
    fn a_machine_that_began_meanwhile_has_no_rates() {
        let before = [machine("a", 0, used(9000, 0)), machine("c", 1, used(0, 0))];
        let again = Statistics { leader: Some(8), ..machine("a", 1, used(10_000, 0)) };
        let rows = compare(&before, vec![again, machine("b", 1, used(1, 1)), machine("c", 1, used(5, 5))]);
        // The last was looked at twice in one microsecond.
        rows.iter().for_each(|row| assert_eq!(row.rates, Rates::default(), "{}", row.now.name));
    }

    #[test]
    fn counters_that_go_back_are_no_rates() {
        let rows = compare(&[machine("a", 0, used(9000, 50))], vec![machine("a", 1, used(8000, 60))]);
        assert_eq!((rows[0].rates.cpu_percent, rows[0].rates.read), (None, Some(10)));
    }

    #[test]
    fn scripts_find_every_key_also_of_what_is_not_known() {
        let [before, now] = [(0, used(0, 0)), (3, used(1_000_000, 30))].map(|(s, usage)| machine("a", s, usage));
        let value = compare(&[before], vec![now])[0].to_json();
        assert_eq!((&value["cpu-percent"], &value["io-read-bytes-per-second"]), (&json!(33.33), &json!(10)));
        let keys = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>().join(" ");
        let all = "cpu-percent interval-usec io-read-bytes-per-second io-written-bytes-per-second leader \
                   monotonic-usec name since state usage";
        assert_eq!(keys(&value), all);
        let all = "cpu-system-usec cpu-throttled-usec cpu-usec cpu-user-usec io-read-bytes io-reads io-writes \
                   io-written-bytes memory-bytes memory-max-bytes memory-peak-bytes oom-kills pressure swap-bytes \
                   tasks tasks-max";
        assert_eq!(keys(&value["usage"]), all);
        assert_eq!(value["usage"]["pressure"], json!({ "cpu": null, "memory": null, "io": null }));
        assert_eq!(compare(&[], vec![machine("a", 0, used(0, 0))])[0].to_json()["cpu-percent"], Value::Null);
    }

    #[test]
    fn a_line_has_a_cell_for_every_column() {
        let usage = Usage {
            memory_bytes: Some(12 << 20),
            pressure: Pressure {
                cpu: Some(Stall { some_percent: Some(12.34), full_percent: None }),
                ..Pressure::default()
            },
            ..used(61_000_000, 2048)
        };
        let cells = cells(&Row { now: machine("a\x1b", 0, usage), rates: Rates::default() });
        let expected = "a\u{fffd} running - 1m01s 12.0M - - - 2.0K - - - 12.3/-/- -";
        assert_eq!((cells.len(), cells.join(" ").as_str()), (HEAD.len(), expected));
    }

    #[test]
    fn intervals_are_seconds_or_times() {
        let parsed = ["0", "0.25", "2", "500ms", "1min"].map(|text| parse_interval(text).expect(text).as_millis());
        assert_eq!(parsed, [0, 250, 2000, 500, 60_000]);
        for wrong in ["", "-1", "nan", "inf", "infinity", "1.2.3", "1e9", "99999999999999999999999", "2d"] {
            assert!(parse_interval(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([percent(0.0), percent(99.96), percent(999.96)], ["0.0", "100.0", "1000"]);
        let times = [0, 1_239_999, 61_000_000, 7_380_000_000, 100 * 86_400_000_000].map(cpu_time);
        assert_eq!(times, ["0.00s", "1.23s", "1m01s", "2h03m", "100d00h"]);
    }
}
