//! The page at `/`: a snapshot as HTML, for people.
//!
//! It has no script and nothing from elsewhere. The browser reloads it every [`REFRESH_SECONDS`],
//! unless the reader has paused that.

use std::collections::BTreeMap;
use std::time::Duration;

use super::escape;
use super::html::{Cell, Tone, grouped, notice, section};
use super::snapshot::{
    DatagramListenerFigures, ListenerFigures, RefusedSource, Snapshot, State, Warning,
    WorkerFigures,
};
use super::table::{duration, humane};

/// The style sheet, at `/style.css`.
pub(super) const STYLE: &str = include_str!("page.css");
/// How often the browser reloads the page.
pub(super) const REFRESH_SECONDS: u32 = 5;

/// The page of `snapshot`, which was made at `now`, in seconds since 1970.
pub(super) fn html(snapshot: &Snapshot, now: f64, refreshing: bool) -> String {
    let state = state(snapshot);
    let title = format!("echo-uring: {}", state.0);
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<link rel=\"stylesheet\" href=\"/style.css\">\n\
         <link rel=\"icon\" href=\"data:,\">\n</head>\n<body>\n"
    );
    html += &heading(snapshot, state, refreshing);
    html += "<main>\n";
    html += &limits(snapshot);
    html += &process(snapshot);
    html += "<div class=\"full\">\n";
    if !snapshot.listeners.is_empty() {
        html += &listeners(&snapshot.listeners);
    }
    if !snapshot.datagram_listeners.is_empty() {
        html += &datagram_listeners(&snapshot.datagram_listeners);
    }
    html += &workers(&snapshot.workers);
    html += "</div>\n";
    html += &reasons(snapshot);
    html += &refused_sources(&snapshot.refused_sources);
    html += "<div class=\"full\">\n";
    html += &warnings(&snapshot.warnings, now);
    html += "</div>\n</main>\n<footer>Also here: <a href=\"/metrics\">metrics</a>, \
             <a href=\"/healthz\">health</a>, <a href=\"/ready\">readiness</a>, \
             <a href=\"/serving\">serving</a>.</footer>\n</body>\n</html>\n";
    html
}

/// The state in a word.
fn state(snapshot: &Snapshot) -> (&'static str, Tone) {
    match snapshot.state {
        _ if snapshot.stalled_worker().is_some() => ("a worker is stalled", Tone::Bad),
        State::Ready => ("ready", Tone::Good),
        state @ (State::Starting | State::Leaving | State::Draining) => {
            (state.name(), Tone::Warning)
        }
    }
}

fn heading(snapshot: &Snapshot, (word, tone): (&str, Tone), refreshing: bool) -> String {
    let uptime = humane(Duration::from_secs_f64(snapshot.uptime_seconds.max(0.0)));
    let refresh = match refreshing {
        true => format!("reloaded every {REFRESH_SECONDS} s, <a href=\"/?pause\">pause</a>"),
        false => "paused, <a href=\"/\">continue</a>".to_owned(),
    };
    let mut html = format!(
        "<header>\n<h1>echo-uring {}</h1>\n<span class=\"state {}\">{word}</span>\n\
         <p>up {uptime}, {refresh}</p>\n</header>\n",
        escape::html(&snapshot.version),
        tone.class(),
    );
    if let Some(error) = &snapshot.configuration_error {
        html += &notice(Tone::Bad, error);
    }
    if !snapshot.restart_needed.is_empty() {
        let keys = snapshot.restart_needed.join(", ");
        html += &notice(Tone::Warning, &format!("restart needed: {keys}"));
    }
    html
}

fn limits(snapshot: &Snapshot) -> String {
    let Snapshot { total, limits, process, .. } = snapshot;
    let row = |name: &str, used: u64, most: u64, shown: fn(u64) -> String| {
        vec![
            Cell::Text(name.to_owned()),
            Cell::Value(shown(used)),
            Cell::Value(shown(most)),
            Cell::Meter(used, most),
        ]
    };
    let rows = [
        row("connections", total.traffic.connections, limits.connections, grouped),
        row("memory of stalled peers", total.stalled_bytes, limits.stalled_bytes, bytes),
        row("receive buffers", total.buffers.lent, total.buffers.total, grouped),
        row("open files", process.open_fds, process.max_fds, grouped),
    ];
    section("Limits in use", &["limit", ">used", ">maximum", "use"], &rows)
}

fn process(snapshot: &Snapshot) -> String {
    let process = &snapshot.process;
    let residence = snapshot.total.residence_seconds;
    let row = |name: &str, value: String| vec![Cell::Text(name.to_owned()), Cell::Value(value)];
    let mut rows = vec![
        row("CPU time", format!("{:.1} s", process.cpu_seconds)),
        row("memory", bytes(process.resident_memory_bytes)),
        row("threads", process.threads.to_string()),
        row("stalled connections", grouped(snapshot.total.connections_stalled)),
        row("waiting for capacity", grouped(snapshot.total.connections_waiting)),
    ];
    if residence.count > 0 {
        let shares = [residence.p50, residence.p99, residence.max].map(duration);
        rows.push(row("residence time: p50, p99, max", shares.join(", ")));
    }
    section("Process", &[], &rows)
}

fn listeners(listeners: &[ListenerFigures]) -> String {
    let head = [
        "listener",
        "address",
        ">open",
        ">accepted",
        ">closed",
        ">refused",
        ">echoes",
        ">received",
        ">echoed",
    ];
    let rows = listeners.iter().map(|it| {
        let traffic = &it.traffic;
        vec![
            Cell::Text(it.name.clone()),
            Cell::Text(it.address.clone()),
            Cell::count(traffic.connections),
            Cell::count(traffic.accepted + traffic.taken_over),
            Cell::count(traffic.closed.values().sum()),
            Cell::count(traffic.refused.values().sum()),
            Cell::count(traffic.messages_sent),
            Cell::Value(bytes(traffic.bytes_received)),
            Cell::Value(bytes(traffic.bytes_sent)),
        ]
    });
    section("Listeners", &head, &rows.collect::<Vec<_>>())
}

fn datagram_listeners(listeners: &[DatagramListenerFigures]) -> String {
    let head = [
        "listener",
        "address",
        ">received",
        ">sent",
        ">dropped",
        ">by kernel",
        ">received",
        ">sent",
    ];
    let rows = listeners.iter().map(|it| {
        vec![
            Cell::Text(it.name.clone()),
            Cell::Text(it.address.clone()),
            Cell::count(it.datagrams_received),
            Cell::count(it.datagrams_sent),
            Cell::count(it.dropped.values().sum()),
            Cell::count(it.kernel_dropped),
            Cell::Value(bytes(it.bytes_received)),
            Cell::Value(bytes(it.bytes_sent)),
        ]
    });
    section("Listeners for datagrams", &head, &rows.collect::<Vec<_>>())
}

fn workers(workers: &[WorkerFigures]) -> String {
    let head =
        [">worker", "state", ">open", ">stalled", ">buffers", ">echoes", ">p50", ">p99", ">turns"];
    let rows = workers.iter().enumerate().map(|(index, it)| {
        let figures = &it.figures;
        vec![
            Cell::Value(index.to_string()),
            match it.turning {
                true => Cell::State("running", Tone::Good),
                false => Cell::State("stalled", Tone::Bad),
            },
            Cell::count(figures.traffic.connections),
            Cell::count(figures.connections_stalled),
            Cell::count(figures.buffers.lent),
            Cell::count(figures.traffic.messages_sent),
            Cell::Value(duration(figures.residence_seconds.p50)),
            Cell::Value(duration(figures.residence_seconds.p99)),
            Cell::count(it.turns),
        ]
    });
    section("Workers", &head, &rows.collect::<Vec<_>>())
}

/// Why connections and datagrams ended, as far as there were any.
fn reasons(snapshot: &Snapshot) -> String {
    let traffic = &snapshot.total.traffic;
    let mut dropped: BTreeMap<String, u64> = BTreeMap::new();
    for (reason, count) in snapshot.datagram_listeners.iter().flat_map(|it| &it.dropped) {
        *dropped.entry(reason.clone()).or_default() += count;
    }
    let kernel = snapshot.datagram_listeners.iter().map(|it| it.kernel_dropped).sum();
    dropped.insert("by the kernel".to_owned(), kernel);
    let mut rows = Vec::new();
    for (what, counts) in [
        ("connections refused", &traffic.refused),
        ("accepts failed", &snapshot.total.accept_failures),
        ("datagrams dropped", &dropped),
        ("connections closed", &traffic.closed),
    ] {
        let some = counts.iter().filter(|(_, count)| **count > 0);
        rows.extend(some.map(|(reason, count)| {
            let texts = [what.to_owned(), reason.clone()].map(Cell::Text);
            texts.into_iter().chain([Cell::count(*count)]).collect()
        }));
    }
    or_none("Refused, dropped and closed", &["what", "reason", ">count"], rows)
}

fn refused_sources(sources: &[RefusedSource]) -> String {
    let rows = sources.iter().map(|it| {
        let count = match it.excess {
            0 => grouped(it.count),
            excess => {
                format!("{} to {}", grouped(it.count.saturating_sub(excess)), grouped(it.count))
            }
        };
        vec![Cell::Text(it.source.clone()), Cell::Text(it.reason.clone()), Cell::Value(count)]
    });
    or_none("Refused sources", &["source", "last reason", ">count"], rows.collect())
}

/// The last ones first.
fn warnings(warnings: &[Warning], now: f64) -> String {
    let rows = warnings.iter().rev().map(|it| {
        let age = Duration::from_secs_f64((now - it.timestamp_seconds).max(0.0));
        let tone = if it.level == "error" { Tone::Bad } else { Tone::Warning };
        let level = if tone == Tone::Bad { "error" } else { "warning" };
        vec![
            Cell::Value(format!("{} ago", humane(age))),
            Cell::State(level, tone),
            Cell::Text(it.text.clone()),
        ]
    });
    or_none("Recent warnings", &[">when", "level", "message"], rows.collect())
}

/// A section that says so if there is nothing to show.
fn or_none(title: &str, head: &[&str], rows: Vec<Vec<Cell>>) -> String {
    match rows.is_empty() {
        true => section(title, &[], &[vec![Cell::Text("none".to_owned())]]),
        false => section(title, head, &rows),
    }
}

/// Bytes for people, in decimal units: `812 B`, `9.8 GB`.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 1_000 {
        return format!("{count} B");
    }
    let (mut value, mut unit) = (count as f64 / 1e3, 0);
    // A value that would be rounded to 1000.0 becomes 1.0 of the next unit.
    while value >= 999.95 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1e3, unit + 1);
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::snapshot::{Figures, Traffic};

    const EVIL: &str = "<script>x</script>\"'&\u{1b}";

    /// A snapshot in which every text is hostile.
    fn hostile() -> Snapshot {
        let reasons = BTreeMap::from([(EVIL.to_owned(), 1)]);
        let traffic =
            Traffic { closed: reasons.clone(), refused: reasons.clone(), ..Traffic::default() };
        let listener = ListenerFigures {
            name: EVIL.to_owned(),
            address: EVIL.to_owned(),
            protocol: EVIL.to_owned(),
            traffic: traffic.clone(),
        };
        let datagram_listener = DatagramListenerFigures {
            name: EVIL.to_owned(),
            address: EVIL.to_owned(),
            dropped: reasons.clone(),
            ..DatagramListenerFigures::default()
        };
        let text = EVIL.to_owned();
        Snapshot {
            version: EVIL.to_owned(),
            configuration_error: Some(EVIL.to_owned()),
            restart_needed: vec![EVIL.to_owned()],
            total: Figures { traffic, accept_failures: reasons, ..Figures::default() },
            listeners: vec![listener],
            datagram_listeners: vec![datagram_listener],
            workers: vec![WorkerFigures { turning: true, ..WorkerFigures::default() }],
            refused_sources: vec![RefusedSource {
                source: EVIL.to_owned(),
                reason: EVIL.to_owned(),
                ..RefusedSource::default()
            }],
            warnings: vec![Warning { level: EVIL.to_owned(), text, ..Warning::default() }],
            ..Snapshot::default()
        }
    }

    /// Goal: no text of a snapshot becomes markup, wherever it is.
    #[test]
    fn every_text_is_escaped() {
        let page = html(&hostile(), 0.0, true);
        assert!(!page.contains("<script") && !page.contains('\u{1b}'), "{page}");
        let escaped = "&lt;script&gt;x&lt;/script&gt;&quot;&#39;&amp;\\u{1b}";
        // The version, both notices, four texts of listeners, four reasons, a source and its
        // reason, and a warning.
        assert_eq!(page.matches(escaped).count(), 14, "{page}");
    }

    #[test]
    fn the_state_is_in_the_title() {
        let mut snapshot = Snapshot { state: State::Ready, ..Snapshot::default() };
        assert!(html(&snapshot, 0.0, true).contains("<title>echo-uring: ready</title>"));
        snapshot.state = State::Draining;
        let page = html(&snapshot, 0.0, false);
        assert!(page.contains("<span class=\"state warning\">draining</span>"), "{page}");
        assert!(page.contains("paused, <a href=\"/\">continue</a>"), "{page}");
        snapshot.workers = vec![WorkerFigures::default()];
        let page = html(&snapshot, 0.0, true);
        assert!(page.contains("<span class=\"state bad\">a worker is stalled</span>"), "{page}");
    }

    #[test]
    fn warnings_are_the_last_first_with_their_age() {
        let warning = |timestamp_seconds, level: &str, text: &str| Warning {
            timestamp_seconds,
            level: level.to_owned(),
            text: text.to_owned(),
        };
        let list = [warning(10.0, "warn", "older"), warning(100.0, "error", "newer")];
        let page = warnings(&list, 130.0);
        let (older, newer) = (page.find("older").unwrap(), page.find("newer").unwrap());
        assert!(newer < older && page.contains("2 min ago") && page.contains("30 s ago"), "{page}");
        assert!(page.contains("<span class=\"state bad\">error</span>"), "{page}");
        assert!(warnings(&[], 0.0).contains("<td>none</td>"));
    }

    #[test]
    fn bytes_have_units() {
        let shown = [0, 999, 1_000, 999_949, 999_950, u64::MAX].map(bytes);
        assert_eq!(shown, ["0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "18.4 EB"]);
    }
}
