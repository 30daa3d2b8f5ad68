//! The state that one process leaves to the next, as bytes.
//!
//! Little-endian: a header, a record for each connection in the order of their descriptors, the
//! addresses of the listeners, one per line, the configuration as TOML, then the unsent bytes of
//! all connections, one after the other.
//!
//! ```text
//! header    magic 16 | version 4 | connections 4 | unsent bytes 8 | saved at 8
//!           | bytes of addresses 4 | bytes of configuration 4 | checksum 8
//! record    phase 1 | reason 1 | listener 2 | unsent 4 | quiet 8 | age 8 | received 8
//!           | announced 1 | flags 1 | port 2 | preface 2 | zero 2 | address 16
//! ```
//!
//! `announced` is the family of the address that a header (PROXY protocol) has announced: 4, 6, or
//! 0 if there is none. An IPv4 address has the last four bytes of `address`. If a part of the PROXY
//! header of the connection has arrived, `preface` is the number of bytes of the parser's state,
//! which precede the unsent bytes of the connection. The header of the state counts them as unsent
//! bytes. Bit 0 of `flags` means that the connection has records (SOCK_SEQPACKET). It then has no
//! unsent bytes, since its messages are never owned.
//!
//! Version 2 has records of 32 bytes, which end after `received`: no connection has a header, only
//! the type of the socket tells whether it has records, and an identity ends no connection.
//!
//! Version 1, which 0.1.0 writes and reads, differs from that in two places: it has no
//! configuration (zero), and the upper half of `quiet` is zero.
//!
//! Reading is total: for any input, the result is a state or the reason of the failure, and no more
//! memory is used than there are bytes to read. The next process may be older or newer than this
//! one, so any change of the layout or of a meaning is a new [`Version`]. Every version that a
//! release has written stays readable forever (`tests/fixtures/handover` has one of each), and the
//! previous version is written for a program that reads no later one. This module knows no
//! descriptor.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};

use echo_core::op::CloseReason;
use echo_core::op::{ListenerId, PrefaceProgress, TransferPhase, TransferState};

/// The first bytes of a state.
const MAGIC: [u8; 16] = *b"echo-uring state";

/// The layout of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// The version of 0.1.0: no configuration, and silence of up to 2^32 ms, some 49 days.
    V1 = 1,
    /// Without headers: no connection comes from a proxy.
    V2 = 2,
    /// The present version.
    V3 = 3,
}

impl Version {
    /// The version that is written unless the reader is known to be older.
    pub const PRESENT: Self = Self::V3;
    /// All versions that are read and written, oldest first.
    pub const ALL: [Self; 3] = [Self::V1, Self::V2, Self::V3];

    /// The newest version that the program in a file reads, according to the mark in it. 0.1.0 has
    /// no mark.
    #[must_use]
    pub fn newest_read_by(program: &[u8]) -> Self {
        let words = &MARK.as_bytes()[..MARK.len() - 1];
        // Most positions are skipped by a comparison of the first letter alone.
        let marks = program.windows(MARK.len());
        let marks = marks.filter(|window| window[0] == words[0] && window.starts_with(words));
        let digits = marks.map(|mark| mark[words.len()]).filter(u8::is_ascii_digit);
        match digits.map(|digit| u32::from(digit - b'0')).max() {
            None => Self::V1,
            // A program that is newer than this one reads everything that this one writes.
            Some(number) => Self::of_number(number).unwrap_or(Self::PRESENT),
        }
    }

    /// Its number in the header.
    #[must_use]
    pub fn number(self) -> u32 {
        self as u32
    }

    /// Whether it has fields for what a header announces.
    #[must_use]
    pub fn has_headers(self) -> bool {
        match self {
            Self::V1 | Self::V2 => false,
            Self::V3 => true,
        }
    }

    /// Bytes of a record.
    fn record(self) -> usize {
        if self.has_headers() { RECORD } else { RECORD_WITHOUT_HEADER }
    }

    fn of_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.number() == number)
    }
}

/// The mark in the file of this program that states which versions it reads, for
/// [`Version::newest_read_by`]. The last character is the number of the newest.
pub const MARK: &str = "echo-uring reads hand-over states up to version 3";
/// Bytes of the header.
const HEADER: usize = 56;
/// The offset of the checksum in the header, which it ends.
pub const CHECKSUM_AT: usize = 48;
/// Bytes of a record.
const RECORD: usize = 56;
/// Bytes of a record of a version without headers.
const RECORD_WITHOUT_HEADER: usize = 32;

/// The state of one connection besides its socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its transfer state.
    pub transfer: TransferState,
    /// The address that its header has announced.
    pub announced: Option<SocketAddr>,
    /// The state of the parser of its header; present exactly if a part of the header has arrived,
    /// but not all.
    pub preface: Box<[u8]>,
    /// The bytes that are still to be sent.
    pub unsent: Box<[u8]>,
}

impl Record {
    /// The same, in the form in which it is written.
    #[must_use]
    pub fn as_ref(&self) -> RecordRef<'_> {
        let Self { transfer, announced, preface, unsent } = self;
        RecordRef { transfer: *transfer, announced: *announced, preface, unsent }
    }
}

/// A [`Record`] that is about to be written.
#[derive(Clone, Copy, Debug)]
pub struct RecordRef<'a> {
    /// The transfer state of the connection.
    pub transfer: TransferState,
    /// See [`Record::announced`].
    pub announced: Option<SocketAddr>,
    /// See [`Record::preface`].
    pub preface: &'a [u8],
    /// See [`Record::unsent`].
    pub unsent: &'a [u8],
}

impl RecordRef<'_> {
    /// Its bytes after all records.
    fn bytes(&self) -> usize {
        self.preface.len() + self.unsent.len()
    }
}

/// State of the process as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// When it was written, in milliseconds of the monotonic clock of this boot.
    pub saved_at_ms: u64,
    /// The addresses of the listeners, in the order of their ids.
    pub listeners: Vec<String>,
    /// The last valid configuration, as TOML; empty if there is none, as in [`Version::V1`].
    pub configuration: String,
}

/// Everything that is left to the next process, except descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The version in which it was written.
    pub version: Version,
    /// State of the process.
    pub head: Head,
    /// The connections, in the order of their descriptors.
    pub records: Vec<Record>,
}

/// Why a state cannot be read.
#[derive(Debug)]
pub enum Unreadable {
    /// It does not begin like a state.
    Foreign,
    /// It has a version that this program does not know.
    Version(u32),
    /// It is longer or shorter than its header states.
    Length,
    /// It differs from what was written. The checksum that it should have.
    Checksum(u64),
    /// The addresses or the configuration are not text.
    Text,
    /// The record with this index, counted from 0, is invalid.
    Record(usize),
    /// It could not be read.
    System(io::Error),
}

impl fmt::Display for Unreadable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign => write!(formatter, "it is not a state of echo-uring"),
            Self::Version(version) => {
                let newest = Version::PRESENT.number();
                write!(formatter, "it is of version {version}, and this reads 1 to {newest}")
            }
            Self::Length => write!(formatter, "its length is not the one in its header"),
            Self::Checksum(right) => write!(formatter, "its checksum is not {right:016x}"),
            Self::Text => write!(formatter, "its addresses or its configuration are not text"),
            Self::Record(index) => write!(formatter, "its record {index} is invalid"),
            Self::System(error) => write!(formatter, "{error}"),
        }
    }
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::UnexpectedEof => Self::Length,
            _ => Self::System(error),
        }
    }
}

/// Writes a state: the state of each connection, with its unsent bytes. Data without a field in
/// this version is omitted, and silence that is too long for it is reduced to the maximum.
///
/// # Errors
/// Those of `writer`.
///
/// # Panics
/// If a record does not fit its bytes, a connection has a close reason that does not end
/// connections with a FIN, or the header of a connection is being read and the version has no field
/// for that.
pub fn write(
    version: Version,
    state: &Head,
    records: &[RecordRef<'_>],
    writer: &mut impl Write,
) -> io::Result<()> {
    let addresses = state.listeners.join("\n");
    let (configuration, quiet_max) = match version {
        Version::V1 => ("", u64::from(u32::MAX)),
        Version::V2 | Version::V3 => (&*state.configuration, u64::MAX),
    };
    let mut head = Vec::with_capacity(HEADER + version.record() * records.len());
    let total: u64 = records.iter().map(|record| record.bytes() as u64).sum();
    head.extend(MAGIC);
    head.extend(version.number().to_le_bytes());
    head.extend((records.len() as u32).to_le_bytes());
    head.extend(total.to_le_bytes());
    head.extend(state.saved_at_ms.to_le_bytes());
    head.extend((addresses.len() as u32).to_le_bytes());
    head.extend((configuration.len() as u32).to_le_bytes());
    head.extend([0; HEADER - CHECKSUM_AT]);
    records.iter().for_each(|record| write_record(version, record, quiet_max, &mut head));
    head.extend(addresses.bytes());
    head.extend(configuration.bytes());
    let mut checksum = Checksum::new();
    checksum.add(&head[..HEADER]);
    let (table, texts) = head[HEADER..].split_at(version.record() * records.len());
    let (addresses, configuration) = texts.split_at(addresses.len());
    table.chunks(version.record()).for_each(|record| checksum.add(record));
    checksum.add(addresses);
    checksum.add(configuration);
    for record in records {
        checksum.add(record.preface);
        checksum.add(record.unsent);
    }
    head[CHECKSUM_AT..HEADER].copy_from_slice(&checksum.0.to_le_bytes());
    writer.write_all(&head)?;
    records.iter().try_for_each(|record| {
        writer.write_all(record.preface)?;
        writer.write_all(record.unsent)
    })
}

fn write_record(version: Version, record: &RecordRef<'_>, quiet_max: u64, head: &mut Vec<u8>) {
    let RecordRef { transfer, announced, preface, unsent } = record;
    assert_eq!(transfer.unsent as usize, unsent.len(), "a record does not match its bytes");
    let (phase, reason) = phase_codes(version, transfer.phase);
    head.extend([phase, reason]);
    head.extend(transfer.listener.0.to_le_bytes());
    head.extend(transfer.unsent.to_le_bytes());
    head.extend(transfer.quiet_ms.min(quiet_max).to_le_bytes());
    head.extend(transfer.age_ms.to_le_bytes());
    head.extend(transfer.received.to_le_bytes());
    if !version.has_headers() {
        assert_ne!(phase, PREFACE, "{version:?} has no field for a header");
        return;
    }
    let mut address = [0; 16];
    let (family, port) = match announced {
        None => (0, 0),
        Some(SocketAddr::V4(client)) => {
            address[12..].copy_from_slice(&client.ip().octets());
            (4, client.port())
        }
        Some(SocketAddr::V6(client)) => {
            address = client.ip().octets();
            (6, client.port())
        }
    };
    let flags = if transfer.records { HAS_RECORDS } else { 0 };
    head.extend([family, flags]);
    head.extend(port.to_le_bytes());
    let preface = u16::try_from(preface.len()).expect("invariant: a parser's state is short");
    head.extend(preface.to_le_bytes());
    head.extend([0, 0]);
    head.extend(address);
}

/// Reads a state of `length` bytes.
///
/// # Errors
/// If it is not exactly what [`write()`] wrote.
pub fn read(reader: &mut impl Read, length: u64) -> Result<State, Unreadable> {
    let mut header = [0; HEADER];
    reader.read_exact(&mut header)?;
    let (magic, rest) = header.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(Unreadable::Foreign);
    }
    let number = u32_at(rest, 0);
    let version = Version::of_number(number).ok_or(Unreadable::Version(number))?;
    let (count, total, saved_at_ms) = (u32_at(rest, 4), u64_at(rest, 8), u64_at(rest, 16));
    let (addresses, configuration) = (u32_at(rest, 24), u32_at(rest, 28));
    if version == Version::V1 && configuration != 0 {
        return Err(Unreadable::Foreign);
    }
    let texts = u64::from(addresses) + u64::from(configuration);
    let tables = HEADER as u64 + version.record() as u64 * u64::from(count);
    let stated = u128::from(total) + u128::from(tables + texts);
    if stated != u128::from(length) {
        return Err(Unreadable::Length);
    }
    let said = u64_at(rest, CHECKSUM_AT - MAGIC.len());
    header[CHECKSUM_AT..].fill(0);
    let mut checksum = Checksum::new();
    checksum.add(&header);
    let mut outlines = Vec::new();
    for index in 0..count as usize {
        // Fields that a version does not have are zero.
        let mut record = [0; RECORD];
        reader.read_exact(&mut record[..version.record()])?;
        checksum.add(&record[..version.record()]);
        outlines.push(outline(version, &record).ok_or(Unreadable::Record(index))?);
    }
    let listeners = text(reader, addresses, &mut checksum)?;
    let listeners: Vec<String> = listeners.split('\n').map(str::to_owned).collect();
    let configuration = text(reader, configuration, &mut checksum)?;
    let bytes =
        |outline: &Outline| u64::from(outline.preface_length) + u64::from(outline.transfer.unsent);
    if outlines.iter().map(bytes).sum::<u64>() != total {
        return Err(Unreadable::Length);
    }
    let mut records = Vec::with_capacity(outlines.len());
    for Outline { transfer, announced, preface_length } in outlines {
        // `total` bounds the sum of these, and the length of the state bounds `total`.
        let mut preface = vec![0; preface_length.into()].into_boxed_slice();
        let mut unsent = vec![0; transfer.unsent as usize].into_boxed_slice();
        for part in [&mut preface, &mut unsent] {
            reader.read_exact(part)?;
            checksum.add(part);
        }
        records.push(Record { transfer, announced, preface, unsent });
    }
    if checksum.0 != said {
        return Err(Unreadable::Checksum(checksum.0));
    }
    if reader.read(&mut [0])? > 0 {
        return Err(Unreadable::Length);
    }
    Ok(State { version, head: Head { saved_at_ms, listeners, configuration }, records })
}

fn text(
    reader: &mut impl Read,
    length: u32,
    checksum: &mut Checksum,
) -> Result<String, Unreadable> {
    let mut bytes = Vec::new();
    // Grows with the bytes that are read, not with the stated length.
    reader.take(length.into()).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != u64::from(length) {
        return Err(Unreadable::Length);
    }
    checksum.add(&bytes);
    String::from_utf8(bytes).map_err(|_| Unreadable::Text)
}

/// A record without its bytes.
struct Outline {
    transfer: TransferState,
    announced: Option<SocketAddr>,
    preface_length: u16,
}

fn outline(version: Version, record: &[u8; RECORD]) -> Option<Outline> {
    let (preface_length, announced) = (u16_at(record, 36), announced(record)?);
    let transfer = transfer(version, record, preface_length)?;
    let is_known = !matches!(transfer.phase, TransferPhase::Preface(_)) || announced.is_none();
    is_known.then_some(Outline { transfer, announced, preface_length })
}

/// A flag: the connection has records.
const HAS_RECORDS: u8 = 1;

/// The address that a header has announced, if any.
fn announced(record: &[u8; RECORD]) -> Option<Option<SocketAddr>> {
    let (family, flags, port, zero) =
        (record[32], record[33], u16_at(record, 34), u16_at(record, 38));
    let address: [u8; 16] = record[40..].try_into().expect("invariant: a record ends with it");
    let (rest, ipv4) = address.split_last_chunk::<4>().expect("invariant: 16 are more than 4");
    let address: Option<IpAddr> = match family {
        0 if port == 0 && address == [0; 16] => None,
        4 if rest == [0; 12] => Some((*ipv4).into()),
        6 => Some(address.into()),
        _ => return None,
    };
    (flags & !HAS_RECORDS == 0 && zero == 0)
        .then(|| address.map(|address| SocketAddr::new(address, port)))
}

fn transfer(version: Version, record: &[u8; RECORD], preface_length: u16) -> Option<TransferState> {
    let [phase, reason, listener @ ..] = *record;
    let listener = ListenerId(u16::from_le_bytes([listener[0], listener[1]]));
    let phase = phase_of(version, phase, reason, preface_length)?;
    let (unsent, quiet_ms) = (u32_at(record, 4), u64_at(record, 8));
    let records = version.has_headers() && record[33] & HAS_RECORDS != 0;
    let possible = match phase {
        // Its messages wait in the kernel, and it has no header.
        TransferPhase::HalfClosed | TransferPhase::Flushing(_) | TransferPhase::Preface(_)
            if records =>
        {
            false
        }
        _ if records && unsent > 0 => false,
        _ if version == Version::V1 && quiet_ms > u64::from(u32::MAX) => false,
        TransferPhase::Open => true,
        // A connection in this phase always has bytes to send.
        TransferPhase::HalfClosed | TransferPhase::Flushing(_) => unsent > 0,
        TransferPhase::Lingering(_) => unsent == 0,
        TransferPhase::Preface(_) => unsent == 0 && version.has_headers(),
    };
    possible.then(|| TransferState {
        listener,
        records,
        phase,
        unsent,
        quiet_ms,
        age_ms: u64_at(record, 16),
        received: u64_at(record, 24),
    })
}

fn phase_codes(version: Version, phase: TransferPhase) -> (u8, u8) {
    let code = |reason| {
        let reason = match reason {
            // It waits for the FIN of its peer, for whatever reason.
            CloseReason::Identified if !version.has_headers() => CloseReason::Drained,
            reason => reason,
        };
        let known = REASONS.iter().find(|(_, known)| *known == reason);
        known.unwrap_or_else(|| panic!("{reason:?} ends no connection with a FIN")).0
    };
    match phase {
        TransferPhase::Open => (0, 0),
        TransferPhase::HalfClosed => (1, 0),
        TransferPhase::Flushing(reason) => (2, code(reason)),
        TransferPhase::Lingering(reason) => (3, code(reason)),
        TransferPhase::Preface(_) => (PREFACE, 0),
    }
}

/// The code of a connection whose header is being read.
const PREFACE: u8 = 4;

fn phase_of(version: Version, phase: u8, code: u8, preface_length: u16) -> Option<TransferPhase> {
    let is_known = |reason| version.has_headers() || reason != CloseReason::Identified;
    let reason = || {
        let reason = REASONS.iter().find(|(known, _)| *known == code).map(|(_, reason)| *reason);
        reason.filter(|reason| is_known(*reason))
    };
    match (phase, code) {
        (PREFACE, 0) if preface_length > 0 => Some(TransferPhase::Preface(PrefaceProgress::Begun)),
        (PREFACE, 0) => Some(TransferPhase::Preface(PrefaceProgress::Awaited)),
        _ if preface_length > 0 => None,
        (0, 0) => Some(TransferPhase::Open),
        (1, 0) => Some(TransferPhase::HalfClosed),
        (2, _) => reason().map(TransferPhase::Flushing),
        (3, _) => reason().map(TransferPhase::Lingering),
        _ => None,
    }
}

/// The reasons for which a connection is ended with a FIN, and their numbers.
const REASONS: [(u8, CloseReason); 5] = [
    (1, CloseReason::Idle),
    (2, CloseReason::Drained),
    (3, CloseReason::Lifetime),
    (4, CloseReason::ByteLimit),
    (5, CloseReason::Identified),
];

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let bytes = bytes[at..at + 2].try_into();
    u16::from_le_bytes(bytes.expect("invariant: a slice of two has two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes[at..at + 4].try_into();
    u32::from_le_bytes(bytes.expect("invariant: a slice of four has four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes[at..at + 8].try_into();
    u64::from_le_bytes(bytes.expect("invariant: a slice of eight has eight bytes"))
}

/// FNV-1a over words instead of bytes. It detects accidental changes, not attacks, and is as fast
/// as memory.
struct Checksum(u64);

impl Checksum {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        let mut mix = |word: u64| self.0 = (self.0 ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| mix(u64::from_le_bytes(*word)));
        rest.iter().for_each(|byte| mix(u64::from(*byte) | 0x100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the file of a program states which versions it reads, and a file without the mark is
    /// treated as 0.1.0.
    #[test]
    fn a_program_tells_what_it_reads() {
        let newest = Version::PRESENT.number().to_string();
        assert!(MARK.ends_with(&newest) && MARK.len() > newest.len(), "{MARK}");
        let program = |number: &str| {
            let words = &MARK[..MARK.len() - 1];
            format!("\x7fELF\0\0echo-uring reads\0{words}{number}\0{words}?\0")
        };
        assert_eq!(Version::newest_read_by(b""), Version::V1);
        assert_eq!(Version::newest_read_by(b"\x7fELF echo-uring state, version 2"), Version::V1);
        for (number, version) in
            [("1", Version::V1), ("2", Version::V2), ("3", Version::V3), ("9", Version::PRESENT)]
        {
            assert_eq!(Version::newest_read_by(program(number).as_bytes()), version, "{number}");
        }
    }
}
