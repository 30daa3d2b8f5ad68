//! The test of the simulator: deliberately planted bugs, each of which it must find.
//!
//! Any check may find one, including the core's own assertions. Without the bug the same seeds find
//! nothing.

use crate::saboteur::{Bug, Saboteur};
use crate::swarm::run;

/// The number of seeds within which each bug must be found: at most some seconds.
const SEEDS_MAX: u64 = 5_000;

fn first_seed_that_finds(bug: Bug) -> Option<(u64, String)> {
    (1..=SEEDS_MAX).find_map(|seed| {
        let failure = run(seed, Saboteur::with(bug, seed), 0).err()?;
        let words: Vec<&str> = failure.words.lines().skip(1).map(str::trim).collect();
        Some((seed, words.join("; ").chars().take(120).collect()))
    })
}

/// Goal: the swarm would find each of these bugs if a programmer made it, and finds nothing without
/// a bug.
#[test]
fn planted_bugs_are_found() {
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        match first_seed_that_finds(bug) {
            Some((seed, words)) => println!("{bug:?}: seed {seed}: {words}"),
            None => missed.push(bug),
        }
    }
    assert_eq!(missed, [], "not found within {SEEDS_MAX} seeds");
    for seed in 1..=SEEDS_MAX {
        if let Err(failure) = run(seed, Saboteur::none(), 60) {
            panic!("found where nothing is planted: {}", failure.story);
        }
    }
}
