//! Set-aside bytes: what a slow peer did not take yet, in exact-size pieces of memory that belong
//! to its connection alone.

use std::collections::VecDeque;

use super::vault::Piece;

/// The pieces of one connection, oldest first.
#[derive(Debug, Default)]
pub(super) struct Aside {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that have been sent.
    sent: usize,
    /// Whether the kernel reads the first piece now: it must stay where it is.
    in_flight: bool,
}

impl Aside {
    /// Adds a piece at the end.
    pub(super) fn push(&mut self, piece: Piece) {
        self.pieces.push_back(piece);
    }

    /// Lends the unsent rest of the first piece to the kernel.
    ///
    /// # Panics
    /// If it is lent already or there is none.
    pub(super) fn lend(&mut self) -> &[u8] {
        assert!(!self.in_flight, "the first piece is being sent already");
        self.in_flight = true;
        let first = self.pieces.front().expect("invariant: the core sends what it set aside");
        &first[self.sent..]
    }

    /// The kernel is done with the first piece and sent `length` more bytes of it. True if nothing
    /// is left.
    pub(super) fn take_back(&mut self, length: usize) -> bool {
        assert!(self.in_flight, "nothing was being sent");
        self.in_flight = false;
        self.sent += length;
        let whole = self.pieces.front().expect("invariant: the piece in flight is the first").len();
        assert!(self.sent <= whole, "sent {} of {whole} bytes", self.sent);
        if self.sent == whole {
            self.pieces.pop_front();
            self.sent = 0;
        }
        self.pieces.is_empty()
    }

    /// A copy of all that is unsent, on its way out of here.
    ///
    /// # Panics
    /// If the kernel reads some of it now.
    pub(super) fn into_unsent(self) -> Box<[u8]> {
        assert!(!self.in_flight, "the first piece is being sent");
        let bytes = self.pieces.iter().flat_map(|piece| piece.iter().copied());
        bytes.skip(self.sent).collect()
    }

    /// Whether the kernel reads the first piece now.
    pub(super) fn is_in_flight(&self) -> bool {
        self.in_flight
    }
}
