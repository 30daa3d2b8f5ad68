//! The cost of each echo, or of each connection, of a recording.

use std::fmt;

use crate::sharing::Line;
use crate::stepper::Recording;

/// Costs of one of several equal things that were done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cost {
    /// Instructions of our own code, the libraries included.
    pub(crate) instructions: f64,
    /// Locked instructions among them.
    pub(crate) locked: f64,
    /// System calls.
    pub(crate) calls: f64,
    /// Cache lines written.
    pub(crate) written: f64,
    /// Cache lines written that another thread reads or writes as well.
    pub(crate) shared: f64,
    /// How often a line had to come from another thread's CPU, or had to be taken from it.
    pub(crate) moves: f64,
}

impl Cost {
    /// The costs of each of `count` things that `recording` contains.
    pub(crate) fn of(recording: &Recording, count: usize) -> Self {
        let each = |total: u64| total as f64 / count as f64;
        let lines = |of: fn(&Line) -> u64| recording.lines.iter().map(|(_, line)| of(line)).sum();
        Self {
            instructions: each(recording.instructions),
            locked: each(recording.locked.values().sum()),
            calls: each(recording.calls.values().sum()),
            written: each(lines(|line| line.writes)),
            shared: each(lines(|line| if line.is_shared() { line.writes } else { 0 })),
            moves: each(lines(|line| line.moves)),
        }
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{:.0} instructions, {:.3} locked, {:.2} system calls; {:.1} lines written, {:.3} of \
             them shared, {:.3} moves",
            self.instructions, self.locked, self.calls, self.written, self.shared, self.moves
        )
    }
}
