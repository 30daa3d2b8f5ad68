//! Which thread has which cache line: what caches of the CPUs would hold if each thread had a CPU
//! of its own.
//!
//! A line is held by one thread that may write it, or by any number of threads that only read it
//! (the protocol MSI). A line *moves* when a thread touches it that does not hold it, because
//! another has written it meanwhile; or writes it while others hold it as well.

use std::collections::{BTreeMap, BTreeSet};

/// Bytes of a cache line.
const LINE: u64 = 64;

/// The number of a thread.
pub(crate) type Thread = i32;

/// How memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// One cache line.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// The threads that have the line in their caches.
    holders: BTreeSet<Thread>,
    /// Whether it was written since it had one holder only.
    is_modified: bool,
    /// The threads that have touched it, and whether they wrote.
    touched: BTreeMap<Thread, bool>,
    /// The turn in which it was written last.
    written_in: Option<(Thread, u64)>,
    /// In how many turns it was written.
    pub(crate) writes: u64,
    /// How often it has moved.
    pub(crate) moves: u64,
    /// The instructions that have written it.
    pub(crate) writers: BTreeSet<u64>,
}

impl Line {
    fn touch(&mut self, thread: Thread, turn: u64, access: Access, instruction: u64) {
        let holds = self.holders.contains(&thread);
        let alone = self.holders.len() == usize::from(holds);
        match access {
            Access::Read => {
                if !holds {
                    self.moves += u64::from(self.is_modified);
                    self.is_modified = false;
                }
                self.holders.insert(thread);
                self.touched.entry(thread).or_default();
            }
            Access::Write => {
                self.moves += u64::from(!alone);
                self.holders = BTreeSet::from([thread]);
                self.is_modified = true;
                self.touched.insert(thread, true);
                self.writers.insert(instruction);
                if self.written_in.replace((thread, turn)) != Some((thread, turn)) {
                    self.writes += 1;
                }
            }
        }
    }

    /// Whether one thread writes it and another one touches it.
    pub(crate) fn is_shared(&self) -> bool {
        self.touched.len() > 1 && self.touched.values().any(|&wrote| wrote)
    }
}

/// All lines that were touched, by their addresses.
#[derive(Debug, Default)]
pub(crate) struct Lines(BTreeMap<u64, Line>);

impl Lines {
    /// The instruction at `instruction` accesses `bytes` bytes from `address`.
    pub(crate) fn touch(
        &mut self,
        (thread, turn): (Thread, u64),
        access: Access,
        (address, bytes): (u64, u64),
        instruction: u64,
    ) {
        let last = address.saturating_add(bytes.max(1) - 1);
        for number in address / LINE..=last / LINE {
            self.0.entry(number * LINE).or_default().touch(thread, turn, access, instruction);
        }
    }

    /// Each line with its address.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Line)> {
        self.0.iter().map(|(&address, line)| (address, line))
    }

    /// The line at this address, if it was touched.
    pub(crate) fn at(&self, address: u64) -> Option<&Line> {
        self.0.get(&address)
    }
}

#[test]
fn a_line_moves_when_another_thread_writes_or_reads_it() {
    let mut lines = Lines::default();
    let mut touch = |thread, turn, access| {
        lines.touch((thread, turn), access, (100, 8), 7);
        let line = lines.at(64).unwrap();
        (line.moves, line.writes, line.is_shared())
    };
    assert_eq!(touch(1, 1, Access::Read), (0, 0, false));
    assert_eq!(touch(1, 1, Access::Write), (0, 1, false));
    assert_eq!(touch(1, 1, Access::Write), (0, 1, false), "the same turn");
    assert_eq!(touch(2, 1, Access::Read), (1, 1, true));
    assert_eq!(touch(1, 2, Access::Read), (1, 1, true), "both hold it");
    assert_eq!(touch(1, 2, Access::Write), (2, 2, true));
    assert_eq!(touch(2, 2, Access::Write), (3, 3, true));
}

#[test]
fn an_access_may_touch_two_lines() {
    let mut lines = Lines::default();
    lines.touch((1, 0), Access::Read, (60, 8), 7);
    assert_eq!(lines.iter().map(|(address, _)| address).collect::<Vec<_>>(), [0, 64]);
}
