//! The parser of a stream: which version it is, where its header ends, and its state as bytes.

use crate::binary::{self, Binary};
use crate::fault::Fault;
use crate::header::{Peer, Transport, V1_LEN_MAX};
use crate::line::{self, Line};

/// Reads the header at the start of one stream. It needs no memory but its own, of at most 128
/// bytes.
#[derive(Clone, Debug)]
pub struct Parser(State);

/// What is known after a piece of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All bytes so far belong to the header, and it continues.
    Partial,
    /// The header ends in this piece.
    Complete {
        /// How many bytes of this piece belong to the header. What follows is payload.
        consumed: usize,
        /// Whose address holds from now on.
        peer: Peer,
    },
    /// Whatever follows, this is no header.
    Invalid(Fault),
}

/// The version is known after the first byte.
///
/// ```text
/// Start ─ 'P' ──► Line ───┐
///   │                     ├─ end of the header, or first fault ──► Ended
///   ├── CR ─────► Binary ─┘                                          ▲
///   └── any other byte ──────────────────────────────────────────────┘
/// ```
#[derive(Clone, Debug)]
enum State {
    Start,
    Line(Line),
    Binary(Binary),
    Ended { consumed: u16, progress: Progress },
}

const _: () = assert!(size_of::<Parser>() <= 128);

/// The length of the state of a [`Parser`] as bytes.
pub const STATE_LEN: usize = 1 + 2 + V1_LEN_MAX;

/// First byte of a state: which one it is. Two bytes follow, the number of bytes of the header so
/// far, least significant first.
const START: u8 = 0;
const LINE: u8 = 1;
const BINARY: u8 = 2;
const ENDED: u8 = 3;

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// The parser of a stream of which nothing has been read.
    #[must_use]
    pub const fn new() -> Self {
        Self(State::Start)
    }

    /// The parser whose [`to_bytes`](Self::to_bytes) was written, perhaps by another process.
    /// `None` if no parser within a header can have written it, as far as that can be known: the
    /// bytes that it keeps are judged again, and what it keeps of bytes that it has skipped must be
    /// consistent. The checksum of skipped bytes cannot be known.
    #[must_use]
    pub fn from_bytes(state: &[u8; STATE_LEN]) -> Option<Self> {
        let &[kind, low, high, ref rest @ ..] = state;
        let consumed = u16::from_le_bytes([low, high]);
        let parser = match kind {
            START => Self::new(),
            LINE => {
                let mut line = Line::new();
                let Ok(None) = line.push(rest.get(..consumed.into())?) else {
                    return None;
                };
                Self(State::Line(line))
            }
            BINARY => Self(State::Binary(Binary::import(consumed, rest.first_chunk()?)?)),
            _ => return None,
        };
        // One state has one form: what is not used is zero.
        (parser.to_bytes() == *state).then_some(parser)
    }

    /// Continues with the next piece of the stream. A piece may have any length, none included.
    ///
    /// After the end of the header or its first fault nothing is read anymore: the same result is
    /// returned again, with `consumed` 0.
    //= proxy-protocol.txt 2
    //# The receiver may be tolerant to partial headers or may simply drop the connection when
    //# receiving a partial header. Recommendation is to be tolerant
    pub fn push(&mut self, piece: &[u8]) -> Progress {
        if let State::Start = self.0 {
            //= proxy-protocol.txt 2.2
            //# otherwise the protocol is not covered by this specification and the connection must
            //# be dropped.
            match piece.first().copied() {
                None => return Progress::Partial,
                Some(line::FIRST) => self.0 = State::Line(Line::new()),
                Some(binary::FIRST) => self.0 = State::Binary(Binary::new()),
                Some(_) => return self.end(0, Err(Fault::Signature)),
            }
        }
        let before = self.consumed();
        let result = match &mut self.0 {
            State::Line(line) => line.push(piece),
            State::Binary(binary) => binary.push(piece, Transport::Stream),
            State::Ended { progress, .. } => return *progress,
            State::Start => unreachable!("the first byte ended it"),
        };
        match result.transpose() {
            None => Progress::Partial,
            Some(end) => self.end(before, end),
        }
    }

    /// Ends after `before` bytes of earlier pieces.
    fn end(&mut self, before: usize, end: Result<(usize, Peer), Fault>) -> Progress {
        let (consumed, progress, again) = match end {
            Ok((consumed, peer)) => (
                consumed,
                Progress::Complete { consumed, peer },
                Progress::Complete { consumed: 0, peer },
            ),
            Err(fault) => (0, Progress::Invalid(fault), Progress::Invalid(fault)),
        };
        // A header is at most HEADER_LEN_MAX bytes long, which fits.
        let consumed = (before + consumed) as u16;
        self.0 = State::Ended { consumed, progress: again };
        progress
    }

    /// Bytes of the header so far, in all pieces. After a fault, those of the pieces before it.
    #[must_use]
    pub fn consumed(&self) -> usize {
        match &self.0 {
            State::Start => 0,
            State::Line(line) => line.bytes().len(),
            State::Binary(binary) => binary.consumed(),
            State::Ended { consumed, .. } => usize::from(*consumed),
        }
    }

    /// The state, to be continued by another process. That of a parser that has ended is not
    /// continued: [`from_bytes`](Self::from_bytes) refuses it.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; STATE_LEN] {
        let mut state = [0; STATE_LEN];
        let [kind, low, high, rest @ ..] = &mut state;
        // At most HEADER_LEN_MAX, which fits.
        [*low, *high] = (self.consumed() as u16).to_le_bytes();
        *kind = match &self.0 {
            State::Start => START,
            State::Line(line) => {
                rest[..line.bytes().len()].copy_from_slice(line.bytes());
                LINE
            }
            State::Binary(binary) => {
                if let Some(rest) = rest.first_chunk_mut() {
                    binary.export(rest);
                }
                BINARY
            }
            State::Ended { .. } => ENDED,
        };
        state
    }
}
