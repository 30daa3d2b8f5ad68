//! The state that one process leaves to the next, as bytes: what was written can be read, and all
//! other bytes are refused without a panic and without more memory than there are bytes.
//!
//! `ECHO_HANDOVER_SECONDS=N` mutates for longer; `fuzz/` does the same guided by coverage.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use echo_core::op::CloseReason;
use echo_core::op::{ListenerId, PrefaceProgress, TransferPhase, TransferState};
use echo_uring::handover::format::{self, Head, Record, State, Unreadable, Version, read};

/// splitmix64.
struct Prng(u64);

impl Prng {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((value ^ (value >> 31)) % bound as u64) as usize
    }
}

/// What a header announces, if anything.
const ADDRESSES: [Option<&str>; 3] = [None, Some("192.0.2.1:4000"), Some("[2001:db8::1]:65535")];

fn sample(prng: &mut Prng, version: Version) -> (Head, Vec<Record>) {
    let reasons = [
        CloseReason::Idle,
        CloseReason::Drained,
        CloseReason::Lifetime,
        CloseReason::ByteLimit,
        CloseReason::Identified,
    ];
    let head = Head {
        saved_at_ms: prng.below(1 << 40) as u64,
        listeners: vec!["127.0.0.1:7".to_owned(), "[::1]:7".to_owned()],
        configuration: match version {
            Version::V1 => String::new(),
            Version::V2 | Version::V3 => "[timeouts]\nidle = \"1h\"\n".repeat(prng.below(3)),
        },
    };
    let quiet_bound = match version {
        Version::V1 => 1 << 32,
        Version::V2 | Version::V3 => 1 << 40,
    };
    let records = (0..prng.below(6)).map(|_| {
        let reason = reasons[prng.below(if version.has_headers() { 5 } else { 4 })];
        let (phase, least) = [
            (TransferPhase::Open, 0),
            (TransferPhase::HalfClosed, 1),
            (TransferPhase::Flushing(reason), 1),
            (TransferPhase::Lingering(reason), 0),
            (TransferPhase::Preface(PrefaceProgress::Awaited), 0),
            (TransferPhase::Preface(PrefaceProgress::Begun), 0),
        ][prng.below(if version.has_headers() { 6 } else { 4 })];
        let none = matches!(phase, TransferPhase::Lingering(_) | TransferPhase::Preface(_));
        let most = if none { 0 } else { 40 };
        let preface = match phase {
            TransferPhase::Preface(PrefaceProgress::Begun) => 1 + prng.below(120),
            _ => 0,
        };
        let preface = (0..preface).map(|_| prng.below(256) as u8).collect();
        let may_have_records = version.has_headers()
            && matches!(phase, TransferPhase::Open | TransferPhase::Lingering(_));
        let has_records = may_have_records && prng.below(3) == 0;
        let most = if has_records { 0 } else { most };
        let announced = match phase {
            TransferPhase::Preface(_) => None,
            _ if !version.has_headers() => None,
            _ => ADDRESSES[prng.below(3)].map(|address| address.parse().unwrap()),
        };
        let unsent: Vec<u8> =
            (0..least + prng.below(most + 1)).map(|_| prng.below(256) as u8).collect();
        let transfer = TransferState {
            listener: ListenerId(prng.below(2) as u16),
            records: has_records,
            phase,
            unsent: unsent.len() as u32,
            quiet_ms: prng.below(quiet_bound) as u64,
            age_ms: prng.below(1 << 40) as u64,
            received: prng.below(1 << 40) as u64,
        };
        Record { transfer, announced, preface, unsent: unsent.into() }
    });
    (head, records.collect())
}

fn written(version: Version, head: &Head, records: &[Record]) -> Vec<u8> {
    let records: Vec<_> = records.iter().map(Record::as_ref).collect();
    let mut bytes = Vec::new();
    format::write(version, head, &records, &mut bytes).unwrap();
    bytes
}

fn reread(bytes: &[u8]) -> Result<State, Unreadable> {
    read(&mut &*bytes, bytes.len() as u64)
}

#[test]
fn what_was_written_is_read() {
    let mut prng = Prng(1);
    for version in Version::ALL.into_iter().cycle().take(500) {
        let (head, records) = sample(&mut prng, version);
        let state = reread(&written(version, &head, &records)).unwrap();
        assert_eq!((state.version, &state.head), (version, &head));
        assert_eq!(state.records, records);
    }
}

/// Goal: for a program that only reads an older version, a state is written that it can read:
/// without announced addresses, in version 1 without the configuration, and with a silence
/// truncated to the size of the field.
#[test]
fn what_a_version_has_no_place_for_is_left_out() {
    let head = Head {
        saved_at_ms: 7,
        listeners: vec!["unix:@a".to_owned()],
        configuration: "[log]\n".to_owned(),
    };
    let transfer = TransferState {
        listener: ListenerId(0),
        records: false,
        phase: TransferPhase::Open,
        unsent: 3,
        quiet_ms: (1 << 32) + 5,
        age_ms: 1 << 40,
        received: 3,
    };
    let announced = ADDRESSES[1].map(|address| address.parse().unwrap());
    let unsent: Box<[u8]> = Box::from(*b"abc");
    let full = Record { transfer, announced, preface: Box::default(), unsent };
    let records = [full.clone()];
    let state = reread(&written(Version::V1, &head, &records)).unwrap();
    assert_eq!(state.version, Version::V1);
    assert_eq!(state.head, Head { configuration: String::new(), ..head.clone() });
    let cut = TransferState { quiet_ms: u64::from(u32::MAX), ..transfer };
    let left = Record { announced: None, ..full.clone() };
    assert_eq!(state.records, [Record { transfer: cut, ..left.clone() }]);
    let state = reread(&written(Version::V2, &head, &records)).unwrap();
    assert_eq!((&state.head, state.records), (&head, vec![left]));
    let state = reread(&written(Version::V3, &head, &records)).unwrap();
    assert_eq!((state.head, state.records), (head, vec![full]));
}

/// Goal: a connection that has been told an identity waits for its end in the next process as well,
/// and in an older one as if it had been ended by a drain.
#[test]
fn what_ends_a_connection_is_told_as_far_as_it_is_known() {
    let head = Head {
        saved_at_ms: 7,
        listeners: vec!["unix:@a".to_owned()],
        configuration: String::new(),
    };
    let record = |reason| Record {
        transfer: TransferState {
            listener: ListenerId(0),
            records: false,
            phase: TransferPhase::Lingering(reason),
            unsent: 0,
            quiet_ms: 5,
            age_ms: 6,
            received: 0,
        },
        announced: None,
        preface: Box::default(),
        unsent: Box::default(),
    };
    for (version, reason) in [
        (Version::V1, CloseReason::Drained),
        (Version::V2, CloseReason::Drained),
        (Version::V3, CloseReason::Identified),
    ] {
        let bytes = written(version, &head, &[record(CloseReason::Identified)]);
        assert_eq!(reread(&bytes).unwrap().records, [record(reason)]);
    }
}

#[test]
fn another_version_and_every_truncation_are_reported() {
    let mut prng = Prng(2);
    for version in Version::ALL {
        let (mut head, mut records) = sample(&mut prng, version);
        while records.is_empty() || (version != Version::V1 && head.configuration.is_empty()) {
            (head, records) = sample(&mut prng, version);
        }
        every_change_is_reported(&written(version, &head, &records));
    }
}

fn every_change_is_reported(bytes: &[u8]) {
    let mut newer = bytes.to_vec();
    let next = Version::PRESENT.number() + 1;
    newer[16..20].copy_from_slice(&next.to_le_bytes());
    assert!(matches!(reread(&newer), Err(Unreadable::Version(version)) if version == next));
    for length in 0..bytes.len() {
        assert!(reread(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
    }
    let longer = [bytes, &[0]].concat();
    assert!(matches!(reread(&longer), Err(Unreadable::Length)));
    assert!(matches!(read(&mut &*longer, bytes.len() as u64), Err(Unreadable::Length)));
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut wrong = bytes.to_vec();
            wrong[at] ^= 1 << bit;
            assert!(reread(&wrong).is_err(), "bit {bit} of byte {at} does not matter");
        }
    }
}

/// Goal: the fuzzer begins with interesting inputs, states of every version. Method: its seeds are
/// made here; `ECHO_WRITE=1 cargo test --test handover` writes them again.
#[test]
fn the_seeds_of_the_fuzzer_are_states_of_all_versions() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/handover_state");
    let mut prng = Prng(5);
    for (index, version) in Version::ALL.into_iter().cycle().take(6).enumerate() {
        let (head, records) = sample(&mut prng, version);
        let bytes = written(version, &head, &records);
        let path = directory.join(format!("{index}"));
        if std::env::var_os("ECHO_WRITE").is_some() {
            fs::write(&path, &bytes).unwrap();
        }
        assert_eq!(fs::read(&path).unwrap(), bytes, "{}: see this test", path.display());
    }
}

/// Any bytes get an answer. Headers with huge lengths come with few bytes, so a reader that trusted
/// them would run out of memory.
#[test]
fn no_bytes_bring_it_down() {
    let seconds = std::env::var("ECHO_HANDOVER_SECONDS").map_or(2, |text| text.parse().unwrap());
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut prng = Prng(3);
    let mut refused = 0_u64;
    while Instant::now() < until {
        let version = Version::ALL[prng.below(3)];
        let (head, records) = sample(&mut prng, version);
        let mut bytes = written(version, &head, &records);
        for _ in 0..=prng.below(6) {
            let at = prng.below(bytes.len().max(1));
            match prng.below(5) {
                0 => bytes.truncate(at),
                1 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][prng.below(5)],
                2 if bytes.len() >= at + 4 => bytes[at..at + 4].fill(0xff),
                3 => bytes.splice(at..at, (0..prng.below(64)).map(|n| n as u8)).for_each(drop),
                _ if !bytes.is_empty() => bytes[at] ^= 1 << prng.below(8),
                _ => {}
            }
        }
        let stated = match prng.below(4) {
            0 => u64::MAX >> prng.below(64),
            _ => bytes.len() as u64,
        };
        refused += u64::from(read(&mut &*bytes, stated).is_err());
    }
    assert!(refused > 1_000, "only {refused} were refused");
}
