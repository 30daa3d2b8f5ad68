//! Classifies a wrong echo. From the first wrong byte on, the rest of the stream is collected and
//! matched against all streams that were sent.
//!
//! It knows bytes and offsets only. If a byte equals its neighbour, the start of a piece is
//! ambiguous; the fault is then reported at the first byte that differs.

use crate::fault::{Detail, Fault, Kind};
use crate::pattern::{CONNECTIONS, Pattern, Place};

/// The data about a connection with a wrong echo.
pub(crate) struct Case<'a> {
    pub(crate) pattern: Pattern,
    pub(crate) connection: u64,
    /// The number of connections in the run so far.
    pub(crate) connections: u64,
    /// The total number of bytes sent.
    pub(crate) sent: u64,
    /// The offset of the first wrong byte.
    pub(crate) offset: u64,
    /// The bytes received from there on.
    pub(crate) tail: &'a [u8],
}

/// A contiguous part of one stream.
struct Piece {
    source: Option<Place>,
    length: u64,
}

impl Case<'_> {
    /// Classifies the first fault.
    pub(crate) fn diagnose(&self) -> Fault {
        let pieces = self.pieces();
        let own = self.connection % CONNECTIONS;
        let first = pieces.first();
        let (kind, length) = match first.and_then(|piece| piece.source) {
            Some(place) if place.connection != own => {
                (Kind::CrossTalk, first.map_or(0, |piece| piece.length))
            }
            Some(Place { offset, .. }) if offset < self.offset => {
                let length = first.map_or(0, |piece| piece.length);
                (Kind::Duplicated, length.min(self.offset - offset))
            }
            Some(Place { offset, .. }) => {
                (self.lost_or_late(&pieces, offset), offset - self.offset)
            }
            None => match self.missing_before_the_end() {
                Some(missing) => (Kind::Lost, missing),
                None => (Kind::Corrupted, first.map_or(0, |piece| piece.length)),
            },
        };
        let source = first
            .and_then(|piece| piece.source)
            .filter(|_| matches!(kind, Kind::Duplicated | Kind::CrossTalk));
        Fault {
            kind,
            connection: self.connection,
            detail: Detail::Bytes { offset: self.offset, length, source },
        }
    }

    /// The bytes from `self.offset` to `resumed` are missing: whether they are lost or arrived
    /// later.
    fn lost_or_late(&self, pieces: &[Piece], resumed: u64) -> Kind {
        let own = self.connection % CONNECTIONS;
        let missing = self.offset..resumed;
        let late = |piece: &Piece| {
            let place = piece.source;
            place.is_some_and(|it| it.connection == own && missing.contains(&it.offset))
        };
        if pieces.iter().any(late) { Kind::Reordered } else { Kind::Lost }
    }

    /// If the received bytes are the end of the stream, too short to contain a whole word that
    /// identifies them: the number of missing bytes before them.
    fn missing_before_the_end(&self) -> Option<u64> {
        let start = self.sent.checked_sub(self.tail.len() as u64)?;
        let fits = self.pattern.matches(self.connection, start, self.tail);
        (fits && start > self.offset).then(|| start - self.offset)
    }

    fn pieces(&self) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut rest = self.tail;
        while !rest.is_empty() {
            let source = self.source(rest);
            let length = source.map_or(1, |place| {
                self.pattern.matching(place.connection, place.offset, rest).max(1)
            });
            match pieces.last_mut() {
                Some(last) if last.source.is_none() && source.is_none() => last.length += 1,
                _ => pieces.push(Piece { source, length: length as u64 }),
            }
            rest = &rest[length..];
        }
        pieces
    }

    /// The origin of the first of `bytes`, from the first whole word after it.
    fn source(&self, bytes: &[u8]) -> Option<Place> {
        (0..8).find_map(|before| {
            let word = bytes.get(before..before + 8)?;
            let place = self.pattern.locate(word.try_into().expect("invariant: eight bytes"));
            let offset = place.offset.checked_sub(before as u64)?;
            let is_own = place.connection == self.connection % CONNECTIONS;
            let sensible = match is_own {
                true => place.offset < self.sent,
                false => place.connection < self.connections,
            };
            // The bytes before the word must match too. For another connection, where any offset is
            // possible, the bytes after it must match as well; otherwise the match is a
            // coincidence.
            let near = &bytes[..bytes.len().min(before + if is_own { 8 } else { 16 })];
            (sensible && self.pattern.matches(place.connection, offset, near))
                .then_some(Place { connection: place.connection, offset })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFSET: usize = 1003;

    /// The diagnosis for a stream of 4,000 bytes of connection 5, corrupted by `garble`.
    fn fault(garble: impl Fn(&mut Vec<u8>)) -> Fault {
        let pattern = Pattern::new(99);
        let mut stream = vec![0; 4000];
        pattern.fill(5, 0, &mut stream);
        garble(&mut stream);
        let right = pattern.matching(5, 0, &stream);
        let case = Case {
            pattern,
            connection: 5,
            connections: 10,
            sent: 4000,
            offset: right as u64,
            tail: &stream[right..],
        };
        case.diagnose()
    }

    /// Offset, length and source.
    fn bytes(fault: &Fault) -> (u64, u64, Option<Place>) {
        match fault.detail {
            Detail::Bytes { offset, length, source } => (offset, length, source),
            Detail::Message { .. } | Detail::Datagram { .. } => {
                panic!("no fault of a stream: {fault}")
            }
        }
    }

    fn assert_fault(fault: &Fault, kind: Kind, offset: usize, length: u64) {
        let (at, told, _) = bytes(fault);
        assert_eq!((fault.kind, at, told), (kind, offset as u64, length), "{fault}");
    }

    #[test]
    fn a_lost_byte() {
        assert_fault(&fault(|it| it.drain(OFFSET..=OFFSET).for_each(drop)), Kind::Lost, OFFSET, 1);
    }

    #[test]
    fn lost_bytes_near_the_end() {
        assert_fault(&fault(|it| drop(it.drain(3990..3996))), Kind::Lost, 3990, 6);
    }

    #[test]
    fn swapped_chunks() {
        let told = fault(|it| it[OFFSET..OFFSET + 128].rotate_left(64));
        assert_fault(&told, Kind::Reordered, OFFSET, 64);
    }

    #[test]
    fn the_same_chunk_twice() {
        let told = fault(|it| {
            let chunk = it[OFFSET - 100..OFFSET].to_vec();
            drop(it.splice(OFFSET..OFFSET, chunk));
        });
        assert_fault(&told, Kind::Duplicated, OFFSET, 100);
        let (_, _, source) = bytes(&told);
        assert_eq!(source.map(|it| it.offset), Some(OFFSET as u64 - 100));
    }

    #[test]
    fn an_older_chunk_again() {
        let told = fault(|it| {
            let chunk = it[200..250].to_vec();
            drop(it.splice(OFFSET..OFFSET, chunk));
        });
        assert_fault(&told, Kind::Duplicated, OFFSET, 50);
    }

    #[test]
    fn bytes_of_another_connection() {
        let told = fault(|it| Pattern::new(99).fill(8, 640, &mut it[OFFSET..OFFSET + 64]));
        assert_fault(&told, Kind::CrossTalk, OFFSET, 64);
        let (_, _, source) = bytes(&told);
        assert_eq!(source, Some(Place { connection: 8, offset: 640 }));
    }

    #[test]
    fn changed_bytes() {
        assert_fault(&fault(|it| it[OFFSET] ^= 1), Kind::Corrupted, OFFSET, 1);
        let told = fault(|it| it[OFFSET..].iter_mut().for_each(|byte| *byte = 0));
        assert_fault(&told, Kind::Corrupted, OFFSET, 4000 - OFFSET as u64);
    }
}
