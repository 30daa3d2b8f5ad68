//! The history, for the reader of a failure. Recorded as values, and formatted only when needed.

use std::fmt::Write as _;

use echo_core::op::{Event, Op, TransferState};

use super::peer::PeerId;

/// One line of history.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Note {
    /// The kernel reported this event.
    Event(Event),
    /// This operation was submitted.
    Op(Op),
    /// A connection was imported.
    Import(TransferState),
    /// A peer did this, with this many bytes.
    Peer(PeerId, &'static str, usize),
    /// The simulator itself did this.
    World(&'static str),
}

/// The notes of one history, oldest first.
#[derive(Default)]
pub(crate) struct Trace {
    notes: Vec<(u64, Note)>,
}

impl Trace {
    pub(crate) fn note(&mut self, now: u64, note: Note) {
        self.notes.push((now, note));
    }

    /// Shows every note, oldest first.
    pub(crate) fn visit(&self, see: impl FnMut(&Note)) {
        self.notes.iter().map(|(_, note)| note).for_each(see);
    }

    /// The last `count` notes, one per line.
    pub(crate) fn tail(&self, count: usize) -> String {
        let skipped = self.notes.len().saturating_sub(count);
        let mut text = String::new();
        for (now, note) in &self.notes[skipped..] {
            let _ = match note {
                Note::Event(event) => writeln!(text, "{now:>7} -> {event:?}"),
                Note::Op(op) => writeln!(text, "{now:>7} <-   {op:?}"),
                Note::Import(transfer) => writeln!(text, "{now:>7} -> {transfer:?}"),
                Note::Peer(peer, verb, bytes) => {
                    writeln!(text, "{now:>7}        {peer:?} {verb} {bytes}")
                }
                Note::World(word) => writeln!(text, "{now:>7}        -- {word}"),
            };
        }
        text
    }
}
