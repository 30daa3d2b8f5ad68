//! A snapshot as text: a summary line, tables of listeners and of workers, and errors.
//!
//! The snapshot may be the answer of any socket, so its texts are escaped.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::escape;
use super::snapshot::{RefusedSource, Snapshot};

/// The text, with rates since the snapshot `before`, if there is one.
pub(super) fn text(snapshot: &Snapshot, before: Option<&Snapshot>) -> String {
    let mut text = heading(snapshot);
    text += "\n";
    text += &table(&listeners(snapshot, before));
    if !snapshot.datagram_listeners.is_empty() {
        text += "\n";
        text += &table(&datagram_listeners(snapshot, before));
    }
    text += "\n";
    text += &table(&workers(snapshot, before));
    let residence = snapshot.total.residence_seconds;
    if residence.count > 0 {
        let shares = [
            ("p50", residence.p50),
            ("p90", residence.p90),
            ("p99", residence.p99),
            ("p99.9", residence.p999),
            ("max", residence.max),
        ];
        let shares = shares.map(|(share, time)| format!("{share} {}", duration(time)));
        writeln!(text, "\nresidence time: {}", shares.join(", ")).expect(WRITES);
    }
    for (what, counts) in rare_events(snapshot) {
        writeln!(text, "{what}: {}", escape::terminal(&counts)).expect(WRITES);
    }
    if !snapshot.refused_sources.is_empty() {
        text += "\n";
        text += &table(&refused_sources(&snapshot.refused_sources));
    }
    text
}

const WRITES: &str = "invariant: writing to a String never fails";

fn heading(snapshot: &Snapshot) -> String {
    let uptime = humane(Duration::from_secs_f64(snapshot.uptime_seconds.max(0.0)));
    let total = &snapshot.total;
    let mut text = format!(
        "echo-uring {}: {}, up {uptime}, {} connections ({} stalled, {} B spilled), \
         {} of {} buffers lent\n",
        escape::terminal(&snapshot.version),
        snapshot.state.name(),
        total.traffic.connections,
        total.connections_stalled,
        total.stalled_bytes,
        total.buffers.lent,
        total.buffers.total,
    );
    if let Some(error) = &snapshot.configuration_error {
        writeln!(text, "{}", escape::terminal(error)).expect(WRITES);
    }
    if !snapshot.restart_needed.is_empty() {
        let keys = escape::terminal(&snapshot.restart_needed.join(", "));
        writeln!(text, "restart needed: {keys}").expect(WRITES);
    }
    if let Some(worker) = snapshot.stalled_worker() {
        writeln!(text, "worker {worker} is stalled").expect(WRITES);
    }
    text
}

type Row = Vec<String>;

fn row<const N: usize>(cells: [&str; N]) -> Row {
    cells.map(str::to_owned).into()
}

fn listeners(snapshot: &Snapshot, before: Option<&Snapshot>) -> Vec<Row> {
    let head = [
        "LISTENER", "ADDRESS", "OPEN", "ACCEPTED", "CLOSED", "REFUSED", "ECHOES", "BYTES",
        "ECHOES/S",
    ];
    let mut rows = vec![row(head)];
    for (index, it) in snapshot.listeners.iter().enumerate() {
        let earlier = before.and_then(|before| before.listeners.get(index));
        let earlier = earlier.map(|earlier| earlier.traffic.messages_sent);
        let traffic = &it.traffic;
        rows.push(vec![
            it.name.clone(),
            it.address.clone(),
            traffic.connections.to_string(),
            traffic.accepted.to_string(),
            traffic.closed.values().sum::<u64>().to_string(),
            traffic.refused.values().sum::<u64>().to_string(),
            traffic.messages_sent.to_string(),
            traffic.bytes_sent.to_string(),
            rate(snapshot, before, traffic.messages_sent, earlier),
        ]);
    }
    rows
}

fn datagram_listeners(snapshot: &Snapshot, before: Option<&Snapshot>) -> Vec<Row> {
    let head =
        ["LISTENER", "ADDRESS", "RECEIVED", "SENT", "DROPPED", "BY KERNEL", "BYTES", "SENT/S"];
    let mut rows = vec![row(head)];
    for (index, it) in snapshot.datagram_listeners.iter().enumerate() {
        let earlier = before.and_then(|before| before.datagram_listeners.get(index));
        let earlier = earlier.map(|earlier| earlier.datagrams_sent);
        rows.push(vec![
            it.name.clone(),
            it.address.clone(),
            it.datagrams_received.to_string(),
            it.datagrams_sent.to_string(),
            it.dropped.values().sum::<u64>().to_string(),
            it.kernel_dropped.to_string(),
            it.bytes_sent.to_string(),
            rate(snapshot, before, it.datagrams_sent, earlier),
        ]);
    }
    rows
}

fn workers(snapshot: &Snapshot, before: Option<&Snapshot>) -> Vec<Row> {
    let head = [
        "WORKER", "OPEN", "STALLED", "BUFFERS", "WAITS", "SHORT", "ECHOES", "TURNS", "P50", "P99",
        "ECHOES/S",
    ];
    let mut rows = vec![row(head)];
    for (index, it) in snapshot.workers.iter().enumerate() {
        let earlier = before.and_then(|before| before.workers.get(index));
        let earlier = earlier.map(|earlier| earlier.figures.traffic.messages_sent);
        let figures = &it.figures;
        rows.push(vec![
            index.to_string(),
            figures.traffic.connections.to_string(),
            figures.connections_stalled.to_string(),
            format!("{}/{}", figures.buffers.lent, figures.buffers.total),
            figures.ring.buffer_waits.to_string(),
            figures.ring.short_sends.to_string(),
            figures.traffic.messages_sent.to_string(),
            it.turns.to_string(),
            duration(figures.residence_seconds.p50),
            duration(figures.residence_seconds.p99),
            rate(snapshot, before, figures.traffic.messages_sent, earlier),
        ]);
    }
    rows
}

fn refused_sources(sources: &[RefusedSource]) -> Vec<Row> {
    let mut rows = vec![row(["REFUSED SOURCE", "LAST REASON", "COUNT"])];
    rows.extend(sources.iter().map(|it| {
        let count = match it.excess {
            0 => it.count.to_string(),
            excess => format!("{} to {}", it.count - excess.min(it.count), it.count),
        };
        vec![it.source.clone(), it.reason.clone(), count]
    }));
    rows
}

/// Events per second between the two snapshots.
fn rate(now: &Snapshot, before: Option<&Snapshot>, count: u64, earlier: Option<u64>) -> String {
    let (Some(before), Some(earlier)) = (before, earlier) else { return "-".to_owned() };
    let seconds = now.uptime_seconds - before.uptime_seconds;
    // The counters of a daemon that was restarted in between are lower.
    if seconds <= 0.0 || count < earlier {
        return "-".to_owned();
    }
    format!("{:.0}", (count - earlier) as f64 / seconds)
}

/// Counters that are shown only if they are not zero.
fn rare_events(snapshot: &Snapshot) -> Vec<(&'static str, String)> {
    let total = &snapshot.total;
    let mut dropped: BTreeMap<String, u64> = BTreeMap::new();
    for (reason, count) in snapshot.datagram_listeners.iter().flat_map(|it| &it.dropped) {
        *dropped.entry(reason.clone()).or_default() += count;
    }
    let ring = BTreeMap::from([
        ("buffer waits".to_owned(), total.ring.buffer_waits),
        ("short sends".to_owned(), total.ring.short_sends),
        ("completion overflows".to_owned(), total.ring.completion_overflows),
        ("memory retries".to_owned(), total.ring.memory_retries),
        ("spills refused".to_owned(), total.ring.spills_refused),
        ("capacity exhausted".to_owned(), total.ring.full),
    ]);
    let proxies = BTreeMap::from([
        ("announced".to_owned(), total.traffic.announced),
        ("health checks".to_owned(), total.traffic.health_checks),
    ]);
    let identities = BTreeMap::from([("told".to_owned(), total.traffic.identities)]);
    let lines = [
        ("closed", counts(&total.traffic.closed)),
        ("refused", counts(&total.traffic.refused)),
        ("proxies", counts(&proxies)),
        ("identities", counts(&identities)),
        ("accepts failed", counts(&total.accept_failures)),
        ("datagrams dropped", counts(&dropped)),
        ("ring", counts(&ring)),
    ];
    lines.into_iter().filter(|(_, text)| !text.is_empty()).collect()
}

fn counts(counts: &BTreeMap<String, u64>) -> String {
    let some = counts.iter().filter(|(_, count)| **count > 0);
    some.map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
}

/// Formats columns as wide as their widest cell, names left-aligned and numbers right-aligned.
fn table(rows: &[Row]) -> String {
    const NAMES: [&str; 4] = ["LISTENER", "ADDRESS", "REFUSED SOURCE", "LAST REASON"];
    let escaped = |row: &Row| row.iter().map(|cell| escape::terminal(cell)).collect();
    let rows: Vec<Row> = rows.iter().map(escaped).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let is_name = |column: usize| NAMES.contains(&&*rows[0][column]);
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = widths[column];
            if is_name(column) { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `820 us`, `3.1 ms`, `2.0 s`.
pub(super) fn duration(seconds: f64) -> String {
    match seconds * 1e6 {
        micros if micros < 1_000.0 => format!("{micros:.0} us"),
        micros if micros < 1_000_000.0 => format!("{:.1} ms", micros / 1_000.0),
        micros => format!("{:.1} s", micros / 1_000_000.0),
    }
}

/// Whole seconds, in at most two units.
pub(super) fn humane(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)];
    let parts = units.iter().scan(seconds, |left, (unit, size)| {
        let count = *left / size;
        *left %= size;
        Some((count, unit))
    });
    let parts: Vec<String> = parts
        .skip_while(|(count, _)| *count == 0)
        .take(2)
        .filter(|(count, _)| *count > 0)
        .map(|(count, unit)| format!("{count} {unit}"))
        .collect();
    if parts.is_empty() { "0 s".to_owned() } else { parts.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::snapshot::{
        DatagramListenerFigures, Figures, ListenerFigures, State, Traffic, WorkerFigures,
    };

    fn snapshot(messages_sent: u64, uptime_seconds: f64) -> Snapshot {
        let name = "local".to_owned();
        let traffic = Traffic { messages_sent, connections: 3, ..Traffic::default() };
        let listener =
            ListenerFigures { name, traffic: traffic.clone(), ..ListenerFigures::default() };
        let figures = Figures { traffic, ..Figures::default() };
        let worker = WorkerFigures { turning: true, figures, ..WorkerFigures::default() };
        Snapshot {
            version: "1.2.3".to_owned(),
            state: State::Ready,
            uptime_seconds,
            listeners: vec![listener],
            workers: vec![worker],
            ..Snapshot::default()
        }
    }

    #[test]
    fn rates_come_with_the_second_look() {
        let (first, second) = (snapshot(100, 3_700.0), snapshot(400, 3_702.0));
        let text = text(&first, None);
        assert!(text.starts_with("echo-uring 1.2.3: ready, up 1 h 1 min, 0 connections"), "{text}");
        let last = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
            line.split_whitespace().last().unwrap().to_owned()
        };
        assert_eq!(last(&text, "local"), "-");
        let watched = super::text(&second, Some(&first));
        assert_eq!((last(&watched, "local"), last(&watched, "0")), ("150".into(), "150".into()));
        let restarted = super::text(&first, Some(&second));
        assert_eq!(last(&restarted, "local"), "-");
    }

    #[test]
    fn datagrams_have_a_table_if_there_is_a_listener() {
        let mut snapshot = snapshot(0, 1.0);
        assert!(!text(&snapshot, None).contains("RECEIVED"));
        let dropped = BTreeMap::from([("source-port".to_owned(), 3), ("memory".to_owned(), 0)]);
        snapshot.datagram_listeners = vec![DatagramListenerFigures {
            name: "echo".to_owned(),
            address: "udp:127.0.0.1:7".to_owned(),
            datagrams_received: 45,
            datagrams_sent: 42,
            bytes_sent: 4_200,
            dropped,
            kernel_dropped: 17,
            ..DatagramListenerFigures::default()
        }];
        let shown = text(&snapshot, None);
        let line = shown.lines().find(|line| line.starts_with("echo ")).unwrap();
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(cells, ["echo", "udp:127.0.0.1:7", "45", "42", "3", "17", "4200", "-"]);
        assert!(shown.contains("\ndatagrams dropped: 3 source-port\n"), "{shown}");
        let mut later = snapshot.clone();
        later.uptime_seconds = 3.0;
        later.datagram_listeners[0].datagrams_sent = 62;
        let watched = text(&later, Some(&snapshot));
        let line = watched.lines().find(|line| line.starts_with("echo ")).unwrap();
        assert!(line.ends_with(" 10"), "{watched}");
    }

    #[test]
    fn errors_are_shown() {
        let mut snapshot = snapshot(0, 0.0);
        snapshot.workers[0].turning = false;
        snapshot.total.traffic.closed.insert("reset".to_owned(), 7);
        let text = text(&snapshot, None);
        for part in ["ready, up 0 s", "worker 0 is stalled", "closed: 7 reset\n"] {
            assert!(text.contains(part), "{part:?} is missing:\n{text}");
        }
        assert!(!text.contains("accepts failed") && !text.contains("residence"), "{text}");
    }

    /// Goal: the table names who was refused, and what waits for a restart.
    #[test]
    fn refused_sources_and_pending_restarts_are_shown() {
        let mut snapshot = snapshot(0, 0.0);
        assert!(!text(&snapshot, None).contains("REFUSED SOURCE"));
        let source = |source: &str, count, excess| RefusedSource {
            source: source.to_owned(),
            count,
            excess,
            reason: "denied".to_owned(),
        };
        snapshot.refused_sources = vec![source("192.0.2.7", 12, 0), source("2001:db8::/64", 9, 2)];
        snapshot.restart_needed = vec!["server.workers".to_owned(), "tcp.send-buffer".to_owned()];
        let text = text(&snapshot, None);
        for line in [
            "restart needed: server.workers, tcp.send-buffer",
            "REFUSED SOURCE  LAST REASON   COUNT",
            "192.0.2.7       denied           12",
            "2001:db8::/64   denied       7 to 9",
        ] {
            assert!(text.lines().any(|it| it == line), "{line:?} is missing:\n{text}");
        }
    }

    /// Goal: whatever answers at the socket cannot steer the terminal.
    #[test]
    fn foreign_text_is_escaped() {
        let evil = || "\u{1b}[2J\n\u{202e}".to_owned();
        let mut snapshot = snapshot(0, 0.0);
        snapshot.version = evil();
        snapshot.configuration_error = Some(evil());
        snapshot.restart_needed = vec![evil()];
        snapshot.listeners[0].name = evil();
        snapshot.listeners[0].address = evil();
        snapshot.total.traffic.closed.insert(evil(), 1);
        let source = RefusedSource { source: evil(), reason: evil(), ..RefusedSource::default() };
        snapshot.refused_sources = vec![source];
        let text = text(&snapshot, None);
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
        assert_eq!(text.matches("\\u{1b}[2J\\n\\u{202e}").count(), 8, "{text}");
    }

    #[test]
    fn times_have_units() {
        assert_eq!([5e-6, 3.14e-3, 2.0].map(duration), ["5 us", "3.1 ms", "2.0 s"]);
        let humane = |seconds| super::humane(Duration::from_secs(seconds));
        assert_eq!([59, 3_600, 90_000].map(humane), ["59 s", "1 h", "1 d 1 h"]);
    }
}
