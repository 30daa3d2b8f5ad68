//! Goal: each kind of fault is reported as such, with the byte where it begins and exit status 1.
//! Method: a server with exactly that fault. The seed is fixed, so that chance (a byte that equals
//! its neighbour) cannot move an offset.

use serde_json::Value;

use crate::program::{Run, run};
use crate::servers::{Wrong, wrong_server};

/// 16 messages of 64 bytes in flight: the streams run past all offsets below at once.
const LOAD: &str = "--seed 1 -c 1 --size 64 --depth 16 -d 2s --timeout 1s --json";

fn load(wrong: Wrong) -> Run {
    run(&format!("{} {LOAD}", wrong_server(wrong)))
}

/// Asserts that there is one fault, of this kind, at this place.
fn assert_fault(run: &Run, kind: &str, offset: usize, length: usize) -> Value {
    assert_eq!(run.code, Some(1), "{run:#?}");
    let result = run.json();
    assert_eq!(result["errors"], 1, "{result:#}");
    assert_eq!(result["error_counts"][kind], 1, "{result:#}");
    let detail = &result["error_details"][0];
    assert_eq!(detail["kind"], kind, "{result:#}");
    assert_eq!(detail["connection"], 0, "{result:#}");
    assert_eq!(detail["offset_bytes"], offset, "{result:#}");
    assert_eq!(detail["length_bytes"], length, "{result:#}");
    detail.clone()
}

#[test]
fn a_right_server_is_right() {
    load(Wrong::Nothing).right();
}

#[test]
fn a_lost_byte() {
    assert_fault(&load(Wrong::DropsByte { at: 1000 }), "lost", 1000, 1);
}

#[test]
fn a_lost_byte_at_the_end_of_a_message() {
    // In ping-pong with one message in flight nothing follows, so that it shows at the end only.
    let target = wrong_server(Wrong::DropsByte { at: 1023 });
    let run = run(&format!("{target} --seed 1 -c 1 --size 64 -d 300ms --timeout 1s --json"));
    // Nothing came after it, and the end came in order: that it was lost is not known.
    assert_fault(&run, "truncated", 1023, 1);
}

#[test]
fn a_lost_byte_near_the_end_of_a_message() {
    // What follows is too short to hold a whole word that could name it.
    let target = wrong_server(Wrong::DropsByte { at: 1018 });
    let run = run(&format!("{target} --seed 1 -c 1 --size 64 -d 300ms --timeout 1s --json"));
    assert_fault(&run, "lost", 1018, 1);
}

#[test]
fn swapped_chunks() {
    let run = load(Wrong::SwapsChunks { at: 1500, length: 64 });
    assert_fault(&run, "reordered", 1500, 64);
}

#[test]
fn a_chunk_twice() {
    let run = load(Wrong::Repeats { at: 1500, length: 100 });
    let detail = assert_fault(&run, "duplicated", 1500, 100);
    assert_eq!(detail["source_offset_bytes"], 1400);
}

#[test]
fn a_message_twice_in_ping_pong() {
    // The second copy comes when nothing is expected.
    let target = wrong_server(Wrong::Repeats { at: 640, length: 64 });
    let run = run(&format!("{target} --seed 1 -c 1 --size 64 -d 2s --json"));
    assert_fault(&run, "duplicated", 640, 64);
}

#[test]
fn a_flipped_bit() {
    assert_fault(&load(Wrong::FlipsBit { at: 1234 }), "corrupted", 1234, 1);
}

#[test]
fn bytes_of_another_connection() {
    let target = wrong_server(Wrong::MixesConnections { at: 1500, length: 64 });
    let run = run(&format!("{target} {}", LOAD.replace("-c 1 ", "-c 2 ")));
    assert_eq!(run.code, Some(1), "{run:#?}");
    let result = run.json();
    assert_eq!(result["error_counts"]["cross_talk"], 2, "{result:#}");
    for detail in result["error_details"].as_array().unwrap() {
        let other = 1 - detail["connection"].as_u64().unwrap();
        assert_eq!(detail["offset_bytes"], 1500, "{result:#}");
        assert_eq!(detail["length_bytes"], 64, "{result:#}");
        assert_eq!(detail["source_connection"], other, "{result:#}");
        assert_eq!(detail["source_offset_bytes"], 1500, "{result:#}");
    }
}

#[test]
fn an_early_end() {
    let run = load(Wrong::ClosesAfter { bytes: 1000 });
    let detail = &run.json()["error_details"][0];
    let length = detail["length_bytes"].as_u64().unwrap();
    assert!((1..=1024).contains(&length), "{run:#?}");
    assert_fault(&run, "closed_early", 1000, length as usize);
}

/// Goal: a reset is told from an early end, whether a receive or a send finds it. Method: often
/// enough that both do.
#[test]
fn a_reset() {
    for _ in 0..30 {
        let run = load(Wrong::ResetsAfter { bytes: 1000 });
        assert_eq!(run.code, Some(1), "{run:#?}");
        let result = run.json();
        assert_eq!(result["error_counts"]["reset"], 1, "{result:#}");
        // A reset may overtake bytes that were echoed before.
        assert!(result["error_details"][0]["offset_bytes"].as_u64().unwrap() <= 1000, "{result:#}");
    }
}

#[test]
fn silence() {
    let run = load(Wrong::FallsSilentAfter { bytes: 1000 });
    let length = run.json()["error_details"][0]["length_bytes"].as_u64().unwrap();
    assert_fault(&run, "unanswered", 1000, length as usize);
}

#[test]
fn without_verification_bytes_are_still_counted() {
    let flipped = wrong_server(Wrong::FlipsBit { at: 1234 });
    run(&format!("{flipped} {LOAD} --no-verify")).right();
    let target = wrong_server(Wrong::Repeats { at: 640, length: 64 });
    let run = run(&format!("{target} -c 1 --size 64 -d 2s --no-verify --json"));
    assert_eq!(run.json()["error_counts"]["duplicated"], 1, "{run:#?}");
    assert_eq!(run.code, Some(1), "{run:#?}");
}

#[test]
fn a_fault_in_one_connection_of_a_churn_is_found() {
    let target = wrong_server(Wrong::FlipsBit { at: 40 });
    let run = run(&format!("{target} -c 2 --size 64 -d 300ms --mode churn --json"));
    assert_eq!(run.code, Some(1), "{run:#?}");
    let result = run.json();
    assert!(result["error_counts"]["corrupted"].as_u64().unwrap() >= 2, "{result:#}");
    assert_eq!(result["error_details"][0]["offset_bytes"], 40, "{result:#}");
}

#[test]
fn the_table_names_the_fault() {
    let target = wrong_server(Wrong::DropsByte { at: 1000 });
    let run = run(&format!("{target} {}", LOAD.trim_end_matches(" --json")));
    assert_eq!(run.code, Some(1), "{run:#?}");
    assert!(run.stdout.contains("connection 0, offset 1000: 1 byte lost"), "{run:#?}");
}
