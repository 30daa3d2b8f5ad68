//! The state of a half-read header, as another process finds it: whatever its bytes are, it is
//! refused or continued, and what cannot have been written is refused.

use echo_proxy_header::{HEADER_LEN_MAX, Parser, Progress, STATE_LEN};

use super::{IPV4, Numbers, v2};

/// Headers that come to every kind of state.
fn headers() -> Vec<Vec<u8>> {
    let crc = [3, 0, 4, 0x4d, 0x5d, 0x18, 0x5b];
    let id = [&[5, 0, 100][..], &[b'i'; 100]].concat();
    vec![
        b"PROXY TCP4 10.0.0.1 10.0.0.2 8080 443\r\n".to_vec(),
        b"PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ignored\r\n".to_vec(),
        v2(0x20, 0, &[0xff; 100]),
        v2(0x21, 0x11, &[&IPV4[..], &id, &crc, &id].concat()),
        v2(0x21, 0x11, &[&IPV4[..], &crc, &id].concat()),
        v2(0x21, 0x21, &[&[1; 36][..], &crc, &id].concat()),
        v2(0x21, 0x31, &[&[1; 216][..], &id, &crc].concat()),
        v2(0x21, 0x31, &[&[1; 216][..], &[4, 0x0e, 0]].concat())[..15].to_vec(),
    ]
}

/// The state after each byte of each header.
fn states() -> Vec<[u8; STATE_LEN]> {
    let mut states = vec![Parser::new().to_bytes()];
    for header in headers() {
        let mut parser = Parser::new();
        for byte in header {
            if parser.push(&[byte]) == Progress::Partial {
                states.push(parser.to_bytes());
            }
        }
    }
    states
}

#[test]
fn every_state_of_a_header_is_continued() {
    let states = states();
    assert!(states.len() > 800, "{}", states.len());
    for state in states {
        assert_eq!(Parser::from_bytes(&state).unwrap().to_bytes(), state);
    }
}

/// A parser from anywhere behaves like one that has read a header so far.
fn drive(mut parser: Parser, numbers: &mut Numbers) {
    assert!(parser.consumed() < HEADER_LEN_MAX);
    for _ in 0..2 * HEADER_LEN_MAX {
        let before = parser.consumed();
        let piece = vec![numbers.below(256) as u8; numbers.below(40)];
        match parser.push(&piece) {
            Progress::Partial => assert_eq!(parser.consumed(), before + piece.len()),
            Progress::Complete { consumed, .. } => {
                assert_eq!(parser.consumed(), before + consumed);
                return;
            }
            Progress::Invalid(_) => return,
        }
        assert_eq!(Parser::from_bytes(&parser.to_bytes()).unwrap().to_bytes(), parser.to_bytes());
    }
    panic!("a header without end: {parser:?}");
}

#[test]
fn any_bytes_are_refused_or_continued() {
    let mut numbers = Numbers(3);
    let states = states();
    let mut continued = 0;
    for round in 0..100_000 {
        let mut state = states[round % states.len()];
        for _ in 0..=numbers.below(4) {
            // Mostly where positions and lengths are.
            let bound = [3, 17, 72, STATE_LEN][numbers.below(4)];
            state[numbers.below(bound)] =
                [0, 1, 2, 3, 0x7f, 0xff, numbers.below(256) as u8][numbers.below(7)];
        }
        if let Some(parser) = Parser::from_bytes(&state) {
            assert_eq!(parser.to_bytes(), state);
            continued += 1;
            drive(parser, &mut numbers);
        }
    }
    assert!(continued > 5_000, "{continued}");
    for byte in 0..=u8::MAX {
        let parser = Parser::from_bytes(&[byte; STATE_LEN]);
        assert_eq!(parser.is_some(), byte == 0, "{byte}");
    }
}

/// Offsets of a binary state; see `Binary::export`.
const CONSUMED: usize = 1;
const TLV_HEADER: usize = 3 + 52;
const TLV_CONSUMED: usize = TLV_HEADER + 3;
const HAS_ANNOUNCED: usize = TLV_CONSUMED + 2 + 4;
const ANNOUNCED: usize = HAS_ANNOUNCED + 1;

#[test]
fn what_cannot_have_been_written_is_refused() {
    let header =
        v2(0x21, 0x11, &[&IPV4[..], &[5, 0, 60], &[7; 60], &[3, 0, 4, 1, 2, 3, 4]].concat());
    let after = |length: usize| {
        let mut parser = Parser::new();
        assert_eq!(parser.push(&header[..length]), Progress::Partial);
        parser.to_bytes()
    };
    let refused = |length: usize, what: &str, changes: &[(usize, u8)]| {
        let mut state = after(length);
        assert!(Parser::from_bytes(&state).is_some(), "{what}, unchanged");
        for (at, value) in changes {
            assert_ne!(state[*at], *value, "{what}: no change");
            state[*at] = *value;
        }
        assert!(Parser::from_bytes(&state).is_none(), "{what}");
    };
    refused(60, "beyond its end", &[(CONSUMED, 200)]);
    refused(60, "at its end", &[(CONSUMED, header.len() as u8)]);
    refused(60, "a bit of the signature", &[(3 + 4, 1)]);
    refused(60, "another family", &[(3 + 13, 0x12)]);
    refused(60, "a value longer than the rest", &[(TLV_HEADER + 1, 1)]);
    refused(60, "more of a TLV than there was", &[(TLV_CONSUMED, 33)]);
    refused(60, "a TLV that has ended", &[(TLV_HEADER + 2, 29)]);
    refused(60, "a TLV with a part of its header", &[(TLV_CONSUMED, 2)]);
    refused(60, "a checksum without one", &[(ANNOUNCED, 1)]);
    refused(60, "neither yes nor no", &[(HAS_ANNOUNCED, 2)]);
    refused(60, "a checksum that began elsewhere", &[(TLV_HEADER, 3)]);
    refused(60, "what is not used", &[(STATE_LEN - 1, 1)]);
    refused(96, "a checksum that has not begun", &[(HAS_ANNOUNCED, 0), (ANNOUNCED, 0)]);
    refused(96, "more of a checksum than was received", &[(ANNOUNCED + 2, 1)]);
    refused(96, "a checksum of another length", &[(TLV_HEADER + 2, 3)]);
    // Too little of it for the header of a TLV, if the end were there.
    refused(92, "a TLV without room", &[(3 + 15, (93 - 16) as u8)]);
    refused(20, "bytes that have not been received", &[(3 + 30, 1)]);

    let mut local = Parser::new();
    assert_eq!(local.push(&v2(0x20, 0, &[9; 100])[..80]), Progress::Partial);
    for at in [TLV_HEADER, TLV_CONSUMED, HAS_ANNOUNCED] {
        let mut state = local.to_bytes();
        state[at] = 1;
        assert!(Parser::from_bytes(&state).is_none(), "a TLV of LOCAL, {at}");
    }
}
