//! Many seeds, each a different world: tens of thousands of histories in every `cargo test`.
//!
//! `ECHO_SIM_SEEDS=N` sets how many, `ECHO_SIM_FIRST=N` where to begin, `ECHO_SIM_SEED=N` replays
//! one and prints its history.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::caught::caught;
use crate::coverage::Coverage;
use crate::history::History;
use crate::saboteur::Saboteur;

const SEEDS: u64 = 40_000;

/// With this many seeds, every situation must have occurred.
const SEEDS_THAT_MEET_ALL: u64 = 10_000;

pub(crate) fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

/// The failure of one seed.
pub(crate) struct Failure {
    /// The message of the check that found it.
    pub(crate) words: String,
    /// The same with the end of the history and everything that was drawn.
    pub(crate) story: String,
}

/// Runs the history of one seed to its end.
pub(crate) fn run(seed: u64, saboteur: Saboteur, lines: usize) -> Result<History, Failure> {
    let mut history = History::from_seed(seed, saboteur);
    match caught(|| history.run()) {
        Ok(()) => Ok(history),
        Err(words) => {
            let (story, turn) = (history.kernel.kernel.trace.tail(lines), history.turns);
            let story =
                format!("{story}{:#?}\n{words}\nseed {seed}, turn {turn}", history.scenario());
            Err(Failure { words, story })
        }
    }
}

/// The result of a search.
#[derive(Default)]
struct Findings {
    failed: Option<u64>,
    tried: u64,
    turns: u64,
    coverage: Coverage,
}

/// Tries `seeds` on all processors until one fails.
fn search(seeds: std::ops::Range<u64>) -> Findings {
    let next = AtomicU64::new(seeds.start);
    let findings = Mutex::new(Findings::default());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut mine = Findings::default();
                while mine.failed.is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    mine.tried += 1;
                    match run(seed, Saboteur::none(), 0) {
                        Ok(history) => {
                            mine.turns += history.turns as u64;
                            mine.coverage.add(&history);
                        }
                        Err(_) => mine.failed = Some(seed),
                    }
                }
                // One failure ends all threads.
                next.fetch_max(mine.failed.map_or(0, |_| seeds.end), Ordering::Relaxed);
                let mut all = findings.lock().expect("no panic holds it");
                all.failed = all.failed.or(mine.failed);
                all.tried += mine.tried;
                all.turns += mine.turns;
                all.coverage.merge(&mine.coverage);
            });
        }
    });
    findings.into_inner().expect("no panic holds it")
}

/// Goal: no seed finds a byte lost, duplicated or misplaced, a buffer leaked, a limit exceeded, a
/// connection stuck or ended without cause, or an operation that violates the contract.
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
    let Findings { failed, tried, turns, coverage } = search(first..first + count);
    if let Some(seed) = failed {
        let lines = if count == 1 { 400 } else { 60 };
        let failure = run(seed, Saboteur::none(), lines).err().expect("what failed fails again");
        let replay = format!("ECHO_SIM_SEED={seed} cargo test --test sim swarm -- --nocapture");
        panic!("{}\nreplay: {replay}", failure.story);
    }
    let seconds = began.elapsed().as_secs_f64();
    for (occasion, times) in coverage.lines() {
        println!("{times:>9} {occasion}");
        assert!(times > 0 || tried < SEEDS_THAT_MEET_ALL, "no seed has met {occasion}");
    }
    println!(
        "{tried} seeds, {turns} turns in {seconds:.1} s: {:.0} seeds/s",
        tried as f64 / seconds
    );
}
