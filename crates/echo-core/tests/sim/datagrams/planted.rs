//! The test of the auditor of datagrams: deliberately planted bugs, each of which it must find.

use super::saboteur::{Bug, Saboteur};
use super::swarm::run;

/// The number of seeds within which each bug must be found.
const SEEDS_MAX: u64 = 2_000;

fn first_seed_that_finds(bug: Bug) -> Option<(u64, String)> {
    (1..=SEEDS_MAX).find_map(|seed| {
        let failure = run(seed, Saboteur::with(bug, seed), 0).err()?;
        let words: Vec<&str> = failure.words.lines().skip(1).map(str::trim).collect();
        Some((seed, words.join("; ").chars().take(120).collect()))
    })
}

/// Goal: the swarm would find each of these bugs if a programmer made it. (The swarm shows with the
/// same seeds that it finds nothing without a bug.)
#[test]
fn planted_datagram_bugs_are_found() {
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        match first_seed_that_finds(bug) {
            Some((seed, words)) => println!("{bug:?}: seed {seed}: {words}"),
            None => missed.push(bug),
        }
    }
    assert_eq!(missed, [], "not found within {SEEDS_MAX} seeds");
}
