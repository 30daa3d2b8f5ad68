//! The open loop: messages are scheduled at fixed times, whatever the server does.
//!
//! The scheduled time of message `k` of the run is `k` periods after the start. Threads alternate,
//! and so do the connections within a thread. The scheduled time of each message, and the number of
//! messages scheduled until a given time, can therefore be computed. There is no state or work for
//! each scheduled message, however far the echoes fall behind and however high the rate is.

use crate::arguments::{Mode, Plan};

const NANOSECONDS: f64 = 1e9;

/// The schedule of one thread.
#[derive(Debug)]
pub(crate) struct Schedule {
    /// Nanoseconds of the run.
    start: u64,
    /// The number of messages in a burst.
    burst: u64,
    /// Nanoseconds between two bursts of the run.
    period: f64,
    thread: u64,
    threads: u64,
    connections: u64,
    /// The distance from one connection to the next in turn.
    stride: u64,
    /// Bursts of this thread whose scheduled time has come.
    due: u64,
}

impl Schedule {
    /// The schedule of `thread`, which has `connections`, if the plan has a rate.
    pub(crate) fn new(plan: &Plan, thread: u32, connections: u64) -> Option<Self> {
        let burst = u64::from(plan.burst);
        Some(Self {
            start: 0,
            burst,
            period: NANOSECONDS / plan.rate_per_second? * burst as f64,
            thread: thread.into(),
            threads: plan.threads.into(),
            connections,
            stride: if plan.mode == Mode::Idle { far_stride(connections) } else { 1 },
            due: 0,
        })
    }

    /// Starts the schedule at `start`, in nanoseconds of the run.
    pub(crate) fn begin(&mut self, start: u64) {
        self.start = start;
    }

    /// The number of connections of this thread.
    pub(crate) fn connections(&self) -> u64 {
        self.connections
    }

    /// The connection with the turn `rank`.
    pub(crate) fn connection(&self, rank: u64) -> usize {
        (rank * self.stride % self.connections) as usize
    }

    /// The scheduled time of message `count` (from 0) of the connection with the turn `rank`.
    pub(crate) fn moment(&self, rank: u64, count: u64) -> u64 {
        self.moment_of(count / self.burst * self.connections + rank)
    }

    /// Nanoseconds between two messages of one connection, on average.
    pub(crate) fn step(&self) -> f64 {
        self.period * self.threads as f64 * self.connections as f64 / self.burst as f64
    }

    /// Advances the schedule to `now`. Returns the turns of the connections with newly scheduled
    /// messages, each once: the first of them and their number.
    pub(crate) fn advance(&mut self, now: u64) -> (u64, u64) {
        let before = self.due;
        if self.next_moment() <= now {
            let global = (now - self.start) as f64 / self.period;
            let guess = ((global - self.thread as f64) / self.threads as f64).max(0.0) as u64;
            self.due = self.due.max(guess.saturating_sub(1));
            // Rounding can be off by one.
            while self.next_moment() <= now {
                self.due += 1;
            }
        }
        let fresh = (self.due - before).min(self.connections);
        ((self.due - fresh) % self.connections, fresh)
    }

    /// How many messages of this thread have been scheduled until now.
    pub(crate) fn due(&self) -> u64 {
        self.due * self.burst
    }

    /// How many messages of the connection with the turn `rank` have been scheduled until now.
    pub(crate) fn due_of(&self, rank: u64) -> u64 {
        let behind = self.connections - 1 - rank;
        (self.due + behind) / self.connections * self.burst
    }

    /// The scheduled time of the next message.
    pub(crate) fn next_moment(&self) -> u64 {
        self.moment_of(self.due)
    }

    fn moment_of(&self, burst: u64) -> u64 {
        let global = burst * self.threads + self.thread;
        self.start + (global as f64 * self.period) as u64
    }
}

/// A stride that visits all of `count` connections, with neighbours far apart.
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

    fn schedule(thread: u64, period: f64) -> Schedule {
        Schedule {
            start: 1000,
            burst: 1,
            period,
            thread,
            threads: 2,
            connections: 3,
            stride: 1,
            due: 0,
        }
    }

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
        let (mut first, mut second) = (schedule(0, 10.0), schedule(1, 10.0));
        assert_eq!(first.advance(999).1, 0);
        assert_eq!((first.advance(1000), second.advance(1000).1), ((0, 1), 0));
        assert_eq!((first.next_moment(), second.next_moment()), (1020, 1010));
        assert_eq!(
            (first.moment(0, 0), first.moment(0, 1), second.moment(2, 1)),
            (1000, 1060, 1110)
        );
    }

    #[test]
    fn what_is_due_is_what_moments_say() {
        for period in [0.7, 1.0, 3.3, 10.0, 1234.5] {
            let mut schedule = schedule(1, period);
            let mut now = 900;
            while now < 20_000 {
                let before = schedule.due();
                let (rank, fresh) = schedule.advance(now);
                assert!(schedule.next_moment() > now);
                assert!(schedule.due() == 0 || schedule.moment_of(schedule.due() - 1) <= now);
                assert_eq!(fresh, (schedule.due() - before).min(3));
                assert_eq!((rank + fresh) % 3, schedule.due() % 3);
                let by_rank: u64 = (0..3).map(|rank| schedule.due_of(rank)).sum();
                assert_eq!(by_rank, schedule.due());
                for rank in 0..3 {
                    let due = schedule.due_of(rank);
                    assert!(due == 0 || schedule.moment(rank, due - 1) <= now);
                    assert!(schedule.moment(rank, due) > now);
                }
                now += 1 + now % 97;
            }
        }
    }

    #[test]
    fn a_burst_has_one_moment() {
        let mut schedule = Schedule { burst: 4, ..schedule(1, 10.0) };
        schedule.advance(1070);
        assert_eq!((schedule.due(), schedule.step()), (16, 15.0));
        assert_eq!([0, 1, 2].map(|rank| schedule.due_of(rank)), [8, 4, 4]);
        let moments = [0, 3, 4, 7].map(|count| schedule.moment(0, count));
        assert_eq!(moments, [1010, 1010, 1070, 1070]);
    }

    #[test]
    fn a_rate_that_nobody_can_keep_costs_no_more_than_another() {
        let mut schedule = schedule(0, 1.0);
        assert_eq!(schedule.advance(3_600_000_001_000).1, 3);
        assert_eq!(schedule.due(), 1_800_000_000_001);
    }
}
