//! The open loop: messages become due at fixed moments, whatever the server does.
//!
//! Message `k` of the run is due `k` periods after the start. Threads take turns, and within a
//! thread its connections do; so the moment of each message can be computed, and nothing has to be
//! remembered however far the answers fall behind.

use crate::arguments::{Mode, Plan};

const NANOSECONDS: f64 = 1e9;

/// The schedule of one thread.
#[derive(Debug)]
pub(crate) struct Schedule {
    /// Nanoseconds of the run.
    start: u64,
    /// Nanoseconds between two messages of the run.
    period: f64,
    thread: u64,
    threads: u64,
    connections: u64,
    /// From one connection to the next to be served.
    stride: u64,
    /// The next message of this thread.
    next: u64,
}

impl Schedule {
    /// If the plan has a rate: the schedule of `thread`, which has `connections` of its own.
    pub(crate) fn new(plan: &Plan, thread: u32, connections: u64) -> Option<Self> {
        let period = NANOSECONDS / plan.rate_per_second?;
        Some(Self {
            start: 0,
            period,
            thread: thread.into(),
            threads: plan.threads.into(),
            connections,
            stride: if plan.mode == Mode::Idle { far_stride(connections) } else { 1 },
            next: 0,
        })
    }

    /// Begins at `start`, in nanoseconds of the run.
    pub(crate) fn begin(&mut self, start: u64) {
        self.start = start;
    }

    /// Which connection takes the turn `rank`.
    pub(crate) fn connection(&self, rank: u64) -> usize {
        (rank * self.stride % self.connections) as usize
    }

    /// The moment of message `count` (from 0) of the connection with the turn `rank`.
    pub(crate) fn moment(&self, rank: u64, count: u64) -> u64 {
        self.moment_of(count * self.connections + rank)
    }

    /// The connection whose message is due at `now`, if one is; call it again until none is.
    pub(crate) fn due(&mut self, now: u64) -> Option<usize> {
        if self.next_moment() > now {
            return None;
        }
        let rank = self.next % self.connections;
        self.next += 1;
        Some(self.connection(rank))
    }

    /// When the next message becomes due.
    pub(crate) fn next_moment(&self) -> u64 {
        self.moment_of(self.next)
    }

    fn moment_of(&self, message: u64) -> u64 {
        let global = message * self.threads + self.thread;
        self.start + (global as f64 * self.period) as u64
    }
}

/// A step that visits all of `count` places, neighbours far apart.
fn far_stride(count: u64) -> u64 {
    let golden = (count as f64 * 0.618) as u64;
    (golden.max(1)..).find(|&stride| gcd(stride, count) == 1).unwrap_or(1)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_has_its_turn() {
        for count in 1..200 {
            let stride = far_stride(count);
            let mut seen: Vec<u64> = (0..count).map(|rank| rank * stride % count).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn moments_are_even_over_threads() {
        let schedule = |thread| Schedule {
            start: 1000,
            period: 10.0,
            thread,
            threads: 2,
            connections: 3,
            stride: 1,
            next: 0,
        };
        let (mut first, mut second) = (schedule(0), schedule(1));
        assert_eq!(first.due(999), None);
        assert_eq!((first.due(1000), second.due(1000)), (Some(0), None));
        assert_eq!((first.next_moment(), second.next_moment()), (1020, 1010));
        assert_eq!(
            (first.moment(0, 0), first.moment(0, 1), second.moment(2, 1)),
            (1000, 1060, 1110)
        );
    }
}
