//! Goal: over UDP, a correct server has no faults with every size, depth, burst and number of
//! flows, and each kind of fault is reported as such. Method: servers with exactly that fault.

use std::net::UdpSocket;
use std::time::Duration;

use serde_json::Value;

use crate::datagram_servers::{Wrong, burst_server, datagram_server, datagram_server_on};
use crate::program::{Run, number, run};

/// Some thousand datagrams on two flows: enough for each fault below.
const LOAD: &str = "--seed 1 -c 2 --depth 4 -d 300ms --timeout 200ms --json";

fn load(wrong: Wrong) -> Run {
    run(&format!("{} {LOAD}", datagram_server(wrong)))
}

/// Asserts the counts that must not be zero; all others must be.
pub(crate) fn assert_counts(result: &Value, expected: &[&str]) {
    for name in [
        "lost",
        "late",
        "reordered",
        "duplicated",
        "corrupted",
        "truncated",
        "wrong_source",
        "cross_talk",
        "send_failures",
        "split_bursts",
        "client_drops",
    ] {
        let count = number(result, &format!("/datagrams/{name}"));
        assert_eq!(count > 0.0, expected.contains(&name), "{name}: {result:#}");
    }
    let count = |pointer: &str| number(result, pointer);
    let sum = count("/messages")
        + count("/late_messages")
        + count("/unanswered_messages")
        + count("/unsent_messages");
    assert_eq!(count("/scheduled_messages"), sum, "{result:#}");
    let sent = sum - count("/unsent_messages");
    assert_eq!(count("/datagrams/sent"), sent, "{result:#}");
    assert_eq!(count("/latency_microseconds/uncorrected/count"), sent, "{result:#}");
}

/// Asserts that this kind of fault alone was found, and returns the first.
fn assert_fault(wrong: Wrong, kind: &str) -> Value {
    let run = load(wrong);
    assert_eq!(run.code, Some(1), "{run:#?}");
    let result = run.json();
    assert_counts(&result, &[kind]);
    assert_eq!(result["errors"], result["error_counts"][kind], "{result:#}");
    let detail = result["error_details"][0].clone();
    assert_eq!(detail["kind"], kind, "{result:#}");
    detail
}

#[test]
fn a_right_server_is_right() {
    let target = datagram_server(Wrong::Nothing);
    for options in [
        "-c 1",
        "--size 0",
        "--size 1 --depth 8",
        "--size 7 --depth 3",
        "--size 8 --depth 16",
        "--size 15",
        "--size 0..2000 --depth 5",
        "--size 65507",
        "--size 64:90,9000:10 --depth 16 --no-verify",
        "-c 200",
        "-c 7 --threads 3 --depth 2",
        "-c 6 --source 127.0.0.2 --source 127.0.0.3",
        "-c 2 --size 1200 --burst 32",
        "--size 100 --burst 128",
        "-c 2 --size 100 --burst 4 --depth 10",
        "--size 1000 --dont-fragment",
        "--warmup 100ms --depth 2",
        "--mode idle -c 20 --rate 100",
    ] {
        let run = run(&format!("{target} {options} -d 200ms --tolerance 20% --json"));
        let result = run.right();
        assert_counts(&result, &[]);
        assert_eq!(result["settings"]["transport"], "udp");
        assert!(result["datagrams"]["impaired_percent"] == 0.0, "{options}: {result:#}");
    }
}

#[test]
fn bursts_of_echoes_are_taken_apart() {
    let target = burst_server();
    for options in [
        "-c 2 --size 1200 --burst 32",
        "--size 1 --burst 128",
        "--size 7 --burst 3 --depth 8",
        "--size 65507",
    ] {
        let run = run(&format!("{target} {options} -d 200ms --tolerance 0 --json"));
        assert_counts(&run.right(), &[]);
    }
}

#[test]
fn the_largest_datagrams_over_ipv6() {
    let target = datagram_server_on("[::1]", Wrong::Nothing);
    run(&format!("{target} --size 65527 -d 200ms --json")).right();
    let run = run(&format!("{target} --size 65527 --dont-fragment -d 100ms --json"));
    // The MTU of the loopback interface is 65,536, with the headers.
    assert_eq!(run.code, Some(4), "{run:#?}");
    let result = run.json();
    assert_counts(&result, &["send_failures"]);
    let error = result["datagrams"]["send_error"].as_str().unwrap();
    assert!(error.contains("--dont-fragment"), "{result:#}");
}

#[test]
fn a_schedule_is_kept_with_and_without_bursts() {
    let target = datagram_server(Wrong::Nothing);
    for (options, burst) in [("-c 10", 1.0), ("-c 10 --threads 2", 1.0), ("-c 5 --burst 4", 4.0)] {
        let load = format!("{target} {options} --rate 600 -d 1s --tolerance 20% --json");
        let result = run(&load).right();
        // The last burst may be scheduled at the very end.
        let due = 600.0 * number(&result, "/elapsed_seconds");
        let answered = number(&result, "/messages");
        assert!((0.8 * due..=due + 2.0 * burst).contains(&answered), "{due}: {result:#}");
        let scheduled = number(&result, "/scheduled_messages");
        assert_eq!(number(&result, "/latency_microseconds/corrected/count"), scheduled);
    }
}

#[test]
fn lost_datagrams_are_tolerated_as_far_as_asked() {
    let target = datagram_server(Wrong::Drops { every: 20 });
    for (tolerance, code) in [("", 1), (" --tolerance 4%", 1), (" --tolerance 20%", 0)] {
        let run = run(&format!("{target} {LOAD}{tolerance}"));
        assert_eq!(run.code, Some(code), "{run:#?}");
        let result = run.json();
        assert_counts(&result, &["lost"]);
        assert_eq!(
            (&result["errors"], &result["error_details"]),
            (&0.into(), &Value::Array(vec![]))
        );
        let told = result["problems"].to_string().contains("% of the datagrams were lost");
        assert_eq!(told, code == 1, "{result:#}");
        // Lost datagrams waited for the timeout.
        let longest = number(&result, "/latency_microseconds/uncorrected/max");
        assert!((199e3..400e3).contains(&longest), "{result:#}");
    }
}

#[test]
fn a_flow_continues_after_a_loss() {
    let target = datagram_server(Wrong::Drops { every: 5 });
    let result = run(&format!("{target} -d 500ms --timeout 50ms --tolerance 90% --json")).right();
    let (sent, lost) = (number(&result, "/datagrams/sent"), number(&result, "/datagrams/lost"));
    assert!(lost >= 5.0 && (sent / lost - 5.0).abs() < 1.0, "{result:#}");
}

#[test]
fn late_and_lost_echoes_are_distinguished() {
    let by = Duration::from_millis(100);
    let target = datagram_server(Wrong::Delays { every: 10, by });
    let run = run(&format!("{target} --seed 1 -d 600ms --timeout 40ms --json"));
    assert_eq!(run.code, Some(1), "{run:#?}");
    let result = run.json();
    assert!(number(&result, "/datagrams/late") >= 3.0, "{result:#}");
    assert!(number(&result, "/datagrams/lost") <= 3.0, "{result:#}");
    assert_eq!(result["errors"], 0, "{result:#}");
}

#[test]
fn reordered_echoes_are_counted_and_not_errors() {
    let target = datagram_server(Wrong::Swaps { every: 3 });
    for (tolerance, code) in [("", 1), (" --tolerance 50%", 0)] {
        let run = run(&format!("{target} {LOAD}{tolerance}"));
        assert_eq!(run.code, Some(code), "{run:#?}");
        let result = run.json();
        let share = number(&result, "/datagrams/reordered") / number(&result, "/messages");
        assert!((0.2..0.4).contains(&share), "{result:#}");
        assert_eq!(result["errors"], 0, "{result:#}");
    }
}

#[test]
fn a_datagram_twice() {
    let detail = assert_fault(Wrong::Repeats { every: 7 }, "duplicated");
    assert_eq!(detail["sequence"], 6, "{detail:#}");
}

#[test]
fn a_flipped_bit() {
    let detail = assert_fault(Wrong::FlipsBit { every: 7, at: 40 }, "corrupted");
    assert_eq!((&detail["sequence"], &detail["offset_bytes"]), (&6.into(), &40.into()));
    assert!(detail["text"].as_str().unwrap().contains("wrong from offset 40 on"), "{detail:#}");
    // The first word names the datagram, and so do the others.
    let detail = assert_fault(Wrong::FlipsBit { every: 7, at: 3 }, "corrupted");
    assert_eq!((&detail["sequence"], &detail["offset_bytes"]), (&6.into(), &3.into()));
}

#[test]
fn a_flipped_bit_that_is_not_compared() {
    let target = datagram_server(Wrong::FlipsBit { every: 7, at: 40 });
    run(&format!("{target} {LOAD} --no-verify")).right();
}

#[test]
fn a_cut_datagram() {
    for to in [63, 17, 8, 1, 0] {
        let detail = assert_fault(Wrong::Truncates { every: 50, to }, "truncated");
        assert_eq!(detail["length_bytes"], to, "{detail:#}");
    }
}

#[test]
fn a_datagram_with_another_byte() {
    let detail = assert_fault(Wrong::Extends { every: 7 }, "corrupted");
    let place = (&detail["sequence"], &detail["offset_bytes"], &detail["length_bytes"]);
    assert_eq!(place, (&6.into(), &64.into(), &65.into()), "{detail:#}");
}

#[test]
fn an_answer_from_elsewhere() {
    let detail = assert_fault(Wrong::AnotherPort { every: 7 }, "wrong_source");
    assert_eq!(detail["sequence"], 6, "{detail:#}");
    assert!(detail["source_address"].as_str().unwrap().starts_with("127.0.0.1:"), "{detail:#}");
    let detail = assert_fault(Wrong::AnotherAddress { every: 7 }, "wrong_source");
    assert!(detail["source_address"].as_str().unwrap().starts_with("127.0.0.2:"), "{detail:#}");
}

#[test]
fn an_echo_of_another_flow() {
    let run = load(Wrong::MixesFlows { every: 7 });
    assert_eq!(run.code, Some(1), "{run:#?}");
    let result = run.json();
    assert!(number(&result, "/error_counts/cross_talk") > 0.0, "{result:#}");
    let detail = &result["error_details"][0];
    let other = 1 - detail["connection"].as_u64().unwrap();
    assert_eq!(detail["source_connection"], other, "{result:#}");
}

#[test]
fn short_datagrams_are_verified_as_far_as_they_can_be() {
    let target = datagram_server(Wrong::FlipsBit { every: 50, at: 0 });
    let result = run(&format!("{target} {LOAD} --size 3"));
    assert_eq!(result.code, Some(1), "{result:#?}");
    assert!(number(&result.json(), "/datagrams/corrupted") > 0.0, "{result:#?}");
    let target = datagram_server(Wrong::Repeats { every: 50 });
    let result = run(&format!("{target} -d 200ms --size 0 --json"));
    assert_eq!(result.code, Some(1), "{result:#?}");
    assert!(number(&result.json(), "/datagrams/duplicated") > 0.0, "{result:#?}");
}

#[test]
fn a_second_echo_of_the_last_datagram_is_seen() {
    let target = datagram_server(Wrong::Repeats { every: 1 });
    let result = run(&format!("{target} --rate 10 -d 50ms --json"));
    assert_eq!(result.code, Some(1), "{result:#?}");
    let result = result.json();
    assert_eq!(result["datagrams"]["duplicated"], result["datagrams"]["answered"], "{result:#}");
}

#[test]
fn jitter_is_the_difference_between_consecutive_echoes() {
    let by = Duration::from_millis(40);
    let target = datagram_server(Wrong::Delays { every: 2, by });
    let result = run(&format!("{target} --rate 20 -d 500ms --tolerance 20% --json")).right();
    for name in ["mean", "max"] {
        let jitter = number(&result, &format!("/datagrams/jitter_microseconds/{name}"));
        assert!((30e3..150e3).contains(&jitter), "{name}: {result:#}");
    }
    let target = datagram_server(Wrong::Nothing);
    let table = run(&format!("{target} --rate 20 -d 500ms --tolerance 20%"));
    assert!(table.stdout.contains("\njitter "), "{table:#?}");
    assert!(table.stdout.contains("sent: 0 lost, 0 echoed after the timeout"), "{table:#?}");
}

#[test]
fn the_address_that_echoes_is_used() {
    // localhost is ::1 first, where nothing listens.
    let target = datagram_server(Wrong::Nothing);
    let named = target.replace("127.0.0.1", "localhost");
    let result = run(&format!("{named} -d 100ms --json")).right();
    assert_eq!(format!("udp://{}", result["address"].as_str().unwrap()), target);
}

#[test]
fn a_port_at_which_nothing_listens_is_status_3() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let closed = socket.local_addr().unwrap();
    drop(socket);
    let result = run(&format!("udp://{closed} -d 10s"));
    assert_eq!(result.code, Some(3), "{result:#?}");
    assert!(result.stderr.contains("refused"), "{result:#?}");
}

#[test]
fn a_silent_server_is_reported() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let target = format!("udp://{}", socket.local_addr().unwrap());
    let result = run(&format!("{target} -d 200ms --timeout 100ms"));
    assert_eq!(result.code, Some(1), "{result:#?}");
    assert!(result.stdout.contains("no message was answered"), "{result:#?}");
    assert!(result.stdout.contains("100.000 % of the datagrams were lost"), "{result:#?}");
}
