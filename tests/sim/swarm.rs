//! Many seeds, each another world: tens of thousands of histories in every `cargo test`.
//!
//! `ECHO_SIM_SEEDS=N` sets how many, `ECHO_SIM_FIRST=N` where to begin, `ECHO_SIM_SEED=N` replays one and tells its story.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::caught::caught;
use crate::history::History;
use crate::saboteur::Saboteur;

const SEEDS: u64 = 40_000;

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

/// Runs the history of one seed; its failure, if it fails, with the end of its story.
pub(crate) fn fails(seed: u64, saboteur: Saboteur, story_lines: usize) -> Result<usize, String> {
    let mut history = History::from_seed(seed, saboteur);
    caught(|| history.run()).map(|()| history.turns).map_err(|words| {
        let story = history.kernel.trace.tail(story_lines);
        format!("{story}{:#?}\n{words}\nseed {seed}, turn {}", history.scenario(), history.turns)
    })
}

/// Tries `seeds` on all processors until one fails; the first failure found, and how many were tried.
fn search(seeds: std::ops::Range<u64>) -> (Option<u64>, u64, u64) {
    let next = AtomicU64::new(seeds.start);
    let turns = AtomicU64::new(0);
    let failed: Mutex<Option<u64>> = Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || failed.lock().expect("no panic holds it").is_some() {
                        return;
                    }
                    match fails(seed, Saboteur::none(), 0) {
                        Ok(took) => drop(turns.fetch_add(took as u64, Ordering::Relaxed)),
                        Err(_) => *failed.lock().expect("no panic holds it") = Some(seed),
                    }
                }
            });
        }
    });
    let tried = next.load(Ordering::Relaxed).min(seeds.end) - seeds.start;
    (failed.into_inner().expect("no panic holds it"), tried, turns.into_inner())
}

/// Goal: no seed finds a byte lost, doubled or misplaced, a buffer leaked, a limit passed, a connection stuck or ended
/// without cause, or an operation against the contract.
#[test]
fn swarm() {
    let (first, count) = match from_environment("ECHO_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (
            from_environment("ECHO_SIM_FIRST").unwrap_or(1),
            from_environment("ECHO_SIM_SEEDS").unwrap_or(SEEDS),
        ),
    };
    let began = Instant::now();
    let (failed, tried, turns) = search(first..first + count);
    if let Some(seed) = failed {
        let lines = if count == 1 { 400 } else { 60 };
        let story = fails(seed, Saboteur::none(), lines).expect_err("what failed fails again");
        panic!("{story}\nreplay: ECHO_SIM_SEED={seed} cargo test --test sim swarm -- --nocapture");
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{tried} seeds, {turns} turns in {seconds:.1} s: {:.0} seeds/s",
        tried as f64 / seconds
    );
}
