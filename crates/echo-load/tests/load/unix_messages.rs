//! Goal: over seqpacket and Unix datagram sockets, the daemon has no faults with every size, depth
//! and number of connections or flows, and each kind of fault is reported as such. Method: the
//! daemon, and servers with exactly that fault.

use serde_json::Value;

use crate::datagrams::assert_counts;
use crate::program::{Run, number, run};
use crate::servers::Daemon;
use crate::unix_servers::{Wrong, seqpacket_server, unix_datagram_server};

/// Four messages of 64 bytes in flight, of which the tenth is at offset 576.
const SEQPACKET: &str = "--seed 1 -c 1 --size 64 --depth 4 -d 2s --timeout 1s --json";
/// Some thousand datagrams on two flows: enough for each fault below.
const DATAGRAMS: &str = "--seed 1 -c 2 --depth 4 -d 300ms --timeout 200ms --json";

fn load(wrong: Wrong) -> Run {
    run(&format!("{} {SEQPACKET}", seqpacket_server(wrong)))
}

/// Asserts that there is one fault, of this kind, at this place.
fn assert_fault(run: &Run, kind: &str, offset: u64, length: u64) -> Value {
    assert_eq!(run.code, Some(1), "{run:#?}");
    let result = run.json();
    assert_eq!((&result["errors"], &result["error_counts"][kind]), (&1.into(), &1.into()));
    let detail = &result["error_details"][0];
    let place = (&detail["offset_bytes"], &detail["length_bytes"]);
    assert_eq!(place, (&offset.into(), &length.into()), "{result:#}");
    detail.clone()
}

#[test]
fn seqpacket_messages_keep_their_bounds() {
    let daemon = Daemon::start();
    for options in [
        "--size 1",
        "--size 1..100KiB --depth 3",
        "--size 64:90,16KiB:10 --depth 16",
        "--size 200000",
        "-c 7 --threads 3 --depth 2",
        "-c 300",
        "--rate 200 --tolerance 20%",
        "--no-verify --depth 8",
    ] {
        let run = run(&format!("{} {options} -d 200ms --json", daemon.seqpacket));
        let result = run.right();
        assert_eq!(result["settings"]["transport"], "unix-seqpacket");
        assert_eq!(result["address"], daemon.seqpacket.as_str(), "{result:#}");
        assert!(result["datagrams"].is_null(), "{result:#}");
        assert_eq!(number(&result, "/connections_left_open"), 0.0, "{result:#}");
    }
}

#[test]
fn a_right_seqpacket_server_is_right() {
    let target = seqpacket_server(Wrong::Nothing);
    run(&format!("{target} --seed 1 --depth 4 -d 200ms --json")).right();
}

#[test]
fn merged_messages() {
    let run = load(Wrong::Merges { every: 10 });
    let detail = assert_fault(&run, "boundary", 576, 128);
    let text = "connection 0, offset 576: a message of 64 bytes came back as one of 128 bytes";
    assert_eq!(detail["text"], text);
}

#[test]
fn a_divided_message() {
    assert_fault(&load(Wrong::Splits { every: 10 }), "boundary", 576, 32);
    // Its length alone shows it.
    let target = seqpacket_server(Wrong::Splits { every: 10 });
    assert_fault(&run(&format!("{target} {SEQPACKET} --no-verify")), "boundary", 576, 32);
}

#[test]
fn a_cut_message() {
    assert_fault(&load(Wrong::Truncates { every: 10, to: 63 }), "boundary", 576, 63);
}

#[test]
fn a_lost_message() {
    assert_fault(&load(Wrong::Drops { every: 10 }), "lost", 576, 64);
    // Without another message in flight nothing follows it.
    let target = seqpacket_server(Wrong::Drops { every: 10 });
    let run = run(&format!("{target} --seed 1 --size 64 -d 2s --timeout 200ms --json"));
    assert_fault(&run, "unanswered", 576, 64);
}

#[test]
fn wrong_bytes_of_messages_are_named_as_those_of_streams() {
    assert_fault(&load(Wrong::Repeats { every: 10 }), "duplicated", 640, 64);
    assert_fault(&load(Wrong::Swaps { every: 10 }), "reordered", 576, 64);
    assert_fault(&load(Wrong::FlipsBit { every: 10, at: 5 }), "corrupted", 581, 1);
    assert_fault(&load(Wrong::Extends { every: 10 }), "corrupted", 640, 1);
}

#[test]
fn unix_datagrams_come_back() {
    let daemon = Daemon::start();
    for options in [
        "--size 0",
        "--size 1",
        "--size 65527",
        "--size 0..20000 --depth 3",
        "--size 64:90,16KiB:10 --depth 4",
        "-c 7 --threads 3 --depth 2",
        "-c 100 --depth 4",
        "--rate 200 --tolerance 20%",
        "--mode idle -c 50 --rate 200 --tolerance 20%",
        "--no-verify --depth 4",
        "--warmup 100ms",
    ] {
        let run = run(&format!("{} {options} -d 200ms --json", daemon.datagram));
        let result = run.right();
        assert_counts(&result, &[]);
        assert_eq!(result["settings"]["transport"], "unix-datagram");
        assert_eq!(result["address"], daemon.datagram.as_str(), "{result:#}");
    }
}

#[test]
fn wrong_unix_datagrams() {
    for (wrong, kind) in [
        (Wrong::Repeats { every: 7 }, "duplicated"),
        (Wrong::FlipsBit { every: 7, at: 40 }, "corrupted"),
        (Wrong::Extends { every: 7 }, "corrupted"),
        (Wrong::Truncates { every: 7, to: 63 }, "truncated"),
    ] {
        let run = run(&format!("{} {DATAGRAMS}", unix_datagram_server(wrong)));
        assert_eq!(run.code, Some(1), "{run:#?}");
        let result = run.json();
        assert_counts(&result, &[kind]);
        assert_eq!(result["errors"], result["error_counts"][kind], "{result:#}");
        assert_eq!(result["error_details"][0]["sequence"], 6, "{result:#}");
    }
}

#[test]
fn lost_unix_datagrams_are_counted() {
    for (tolerance, code) in [("0", 1), ("60%", 0)] {
        let target = unix_datagram_server(Wrong::Drops { every: 100 });
        let run = run(&format!("{target} {DATAGRAMS} --tolerance {tolerance}"));
        assert_eq!(run.code, Some(code), "{run:#?}");
        let result = run.json();
        assert_counts(&result, &["lost"]);
        assert_eq!(result["errors"], 0, "{result:#}");
    }
}

#[test]
fn unix_datagrams_out_of_order_are_counted() {
    let target = unix_datagram_server(Wrong::Swaps { every: 3 });
    let run = run(&format!("{target} {DATAGRAMS}"));
    assert_eq!(run.code, Some(1), "{run:#?}");
    let result = run.json();
    let share = number(&result, "/datagrams/reordered") / number(&result, "/messages");
    assert!((0.2..0.4).contains(&share), "{result:#}");
    // The server may hold the last one of each flow back at the end.
    assert!(number(&result, "/datagrams/lost") <= 2.0, "{result:#}");
    assert_eq!(result["errors"], 0, "{result:#}");
}

#[test]
fn a_socket_of_another_type_is_status_3() {
    let daemon = Daemon::start();
    let path = daemon.unix.strip_prefix("unix:").unwrap();
    for scheme in ["unix-seqpacket", "unix-datagram"] {
        let run = run(&format!("{scheme}:{path} -d 10s"));
        assert_eq!(run.code, Some(3), "{run:#?}");
        assert!(run.stderr.contains("wrong type for socket"), "{run:#?}");
    }
}

#[test]
fn the_end_of_a_datagram_server_is_reported() {
    let daemon = Daemon::start();
    let target = daemon.datagram.clone();
    let end = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        drop(daemon);
    });
    let run = run(&format!("{target} --depth 2 -d 800ms --timeout 200ms --json"));
    end.join().unwrap();
    assert!(matches!(run.code, Some(1 | 4)), "{run:#?}");
    let result = run.json();
    assert!(number(&result, "/datagrams/send_failures") > 0.0, "{result:#}");
    assert!(result["datagrams"]["send_error"].as_str().unwrap().contains("refused"), "{result:#}");
}
