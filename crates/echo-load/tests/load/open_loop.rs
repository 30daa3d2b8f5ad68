//! Goal: in an open loop a slow server does not delay the measurement. Method: a server that
//! stops once for 200 ms. Of 1,000 messages a second on one connection one is then in flight, and
//! some 200 are late.

use std::time::Duration;

use crate::program::{assert_rate, number, run};
use crate::servers::{Daemon, Wrong, wrong_server};

const PAUSE_MICROSECONDS: f64 = 200e3;

#[test]
fn a_pause_shows_in_the_corrected_percentiles_alone() {
    let pause = Duration::from_micros(PAUSE_MICROSECONDS as u64);
    let target = wrong_server(Wrong::PausesOnce { after: 64 * 100, pause });
    let result = run(&format!("{target} -c 1 --rate 1000 -d 1s --tolerance 20% --json")).right();
    let corrected = number(&result, "/latency_microseconds/corrected/p90");
    let uncorrected = number(&result, "/latency_microseconds/uncorrected/p90");
    assert!(corrected > 0.25 * PAUSE_MICROSECONDS, "{result:#}");
    assert!(uncorrected < 0.25 * PAUSE_MICROSECONDS, "{result:#}");
    let longest = number(&result, "/latency_microseconds/uncorrected/max");
    assert!(longest >= 0.99 * PAUSE_MICROSECONDS, "{result:#}");
}

#[test]
fn the_rate_is_kept() {
    let daemon = Daemon::start();
    for options in
        ["-c 10 --rate 500", "-c 10 --threads 2 --rate 500", "--mode churn -c 10 --rate 500"]
    {
        let result = run(&format!("{} {options} -d 1s --tolerance 20% --json", daemon.tcp)).right();
        assert_rate(&result, 500.0);
        let messages = number(&result, "/scheduled_messages");
        assert!(number(&result, "/latency_microseconds/corrected/count") == messages, "{result:#}");
        let prompt = number(&result, "/client_lateness_microseconds/count");
        assert!((0.5 * messages..=messages).contains(&prompt), "{result:#}");
    }
}

#[test]
fn unsent_bytes_are_reported() {
    let target = wrong_server(Wrong::FallsSilentAfter { bytes: 6400 });
    let result = run(&format!("{target} -c 1 --rate 1000 -d 500ms --timeout 500ms --json"));
    assert_eq!(result.code, Some(1), "{result:#?}");
    // 100 were answered, one was not.
    let (json, scheduled) = (result.json(), 1000.0 * number(&result.json(), "/elapsed_seconds"));
    let unsent = number(&json, "/unsent_messages");
    assert!((0.7 * scheduled - 101.0..1.2 * scheduled).contains(&unsent), "{json:#}");
}

#[test]
fn a_closed_loop_has_nothing_to_correct() {
    let daemon = Daemon::start();
    let result = run(&format!("{} -d 200ms --json", daemon.tcp)).right();
    assert!(result["latency_microseconds"]["corrected"].is_null(), "{result:#}");
}
