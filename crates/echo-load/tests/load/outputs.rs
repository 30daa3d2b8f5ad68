//! Goal: results go to stdout in the requested form, nothing else does, and the manual describes
//! the forms correctly.

use std::process::Command;

use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use serde_json::Value;

use crate::datagram_servers::{Wrong, datagram_server};
use crate::program::{Scratch, number, run};
use crate::servers::Daemon;

const MANUAL: &str = include_str!("../../../../packaging/man/echo-load.1");

/// The names of all members of an object, and of the objects in it.
fn members(value: &Value, names: &mut Vec<String>) {
    match value {
        Value::Object(object) => object.iter().for_each(|(name, value)| {
            names.push(name.clone());
            members(value, names);
        }),
        Value::Array(array) => array.iter().for_each(|value| members(value, names)),
        _ => {}
    }
}

#[test]
fn the_table_has_units_and_stderr_is_empty() {
    let daemon = Daemon::start();
    let run = run(&format!("{} -d 300ms -c 4", daemon.tcp));
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:#?}");
    for word in ["messages/s", "B/s", "µs/message", "p99.9", "every byte verified"] {
        assert!(run.stdout.contains(word), "{word} is missing: {run:#?}");
    }
}

fn assert_named(names: &[String]) {
    for name in names {
        let named = MANUAL.contains(&format!(" {name}\n")) || MANUAL.contains(&format!(" {name} "));
        assert!(named, "the manual does not know {name}");
    }
}

#[test]
fn the_manual_names_every_member_over_udp() {
    let target = datagram_server(Wrong::AnotherPort { every: 7 });
    let result = run(&format!("{target} -d 200ms --json")).json();
    let mut names = Vec::new();
    for part in ["/settings", "/datagrams", "/error_details", "/error_counts"] {
        members(result.pointer(part).unwrap(), &mut names);
    }
    assert!(names.contains(&"source_address".to_owned()), "{names:?}");
    assert_named(&names);
}

#[test]
fn the_manual_names_every_member() {
    let daemon = Daemon::start();
    let run = run(&format!("{} -d 400ms --interval 200ms --rate 100 --json-stream", daemon.tcp));
    let mut names = Vec::new();
    let lines: Vec<Value> =
        run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &lines {
        assert_eq!(line["schema"], "echo-load/1");
        members(line, &mut names);
    }
    let kinds: Vec<&str> = lines.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["interval", "interval", "result"]);
    assert!(names.len() > 40, "{names:?}");
    assert_named(&names);
    let sum: f64 = lines[..2].iter().map(|line| number(line, "/messages")).sum();
    assert_eq!(sum, number(&lines[2], "/messages"));
}

#[test]
fn the_histogram_log_has_every_message() {
    let daemon = Daemon::start();
    assert_log_is_complete(&daemon.tcp);
    assert_log_is_complete(&datagram_server(Wrong::Nothing));
}

fn assert_log_is_complete(target: &str) {
    let scratch = Scratch::new();
    let path = scratch.path("latency.hlog");
    let options = "--rate 200 -d 600ms --tolerance 20% --interval 200ms --json --hdr";
    let result = run(&format!("{target} {options} {}", path.display())).right();
    let text = std::fs::read(&path).unwrap();
    let mut counts = [0, 0];
    for entry in IntervalLogIterator::new(&text) {
        let LogEntry::Interval(interval) = entry.unwrap() else { continue };
        let tag = interval.tag().unwrap();
        let index = ["corrected", "uncorrected"].iter().position(|it| *it == tag.as_str());
        let bytes = base64(interval.encoded_histogram());
        let histogram = Deserializer::new().deserialize::<u64, _>(&mut &bytes[..]).unwrap();
        counts[index.unwrap()] += histogram.len();
    }
    // Those that came late or not at all are in it as well.
    let messages = result["scheduled_messages"].as_u64().unwrap();
    assert_eq!(counts, [messages, messages]);
    assert!(text.starts_with(b"#[echo-load"), "no head");
}

/// Decodes base 64 without a dependency of its own.
fn base64(text: &str) -> Vec<u8> {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for byte in text.bytes().filter(|&byte| byte != b'=') {
        bits = bits << 6 | digits.iter().position(|&digit| digit == byte).unwrap() as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    bytes
}

#[test]
fn the_plot_is_a_picture() {
    let (daemon, scratch) = (Daemon::start(), Scratch::new());
    let path = scratch.path("plot.svg");
    let options = "--rate 200 -d 600ms --tolerance 20% --interval 200ms --plot";
    let run = run(&format!("{} {options} {}", daemon.tcp, path.display()));
    assert_eq!(run.code, Some(0), "{run:#?}");
    let picture = std::fs::read_to_string(&path).unwrap();
    assert!(picture.starts_with("<svg"), "{picture:.100}");
    assert!(picture.trim_end().ends_with("</svg>"), "it is cut off");
    for word in ["percentile", "p99.9", "throughput", "corrected", "microseconds", "polyline"] {
        assert!(picture.contains(word), "{word} is missing");
    }
}

#[test]
fn progress_is_for_terminals() {
    let daemon = Daemon::start();
    // script(1) of bsdutils, which every Debian has, gives the program a terminal.
    let on_terminal = |options: &str| {
        let program = env!("CARGO_BIN_EXE_echo-load");
        let line = format!("{program} {} -d 600ms --interval 200ms {options}", daemon.tcp);
        let output = Command::new("script").args(["-qec", &line, "/dev/null"]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let shown = on_terminal("--warmup 300ms");
    for word in ["warming up for 300", "/s, p50 ", "[="] {
        assert!(shown.contains(word), "{word} is missing: {shown}");
    }
    assert!(!on_terminal("--no-progress").contains("/s, p50 "), "progress was shown");
}
