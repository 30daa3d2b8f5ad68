//! Whatever bytes come where a PROXY header is expected: a verdict, no panic, and the same verdict
//! however the bytes are cut into pieces and however often the parser is handed over. Two parsers
//! of others are the oracles: where they decide otherwise, the reason is listed here, with the
//! clause of the specification that decides.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use echo_proxy_header::{
    Fault, Parser, Peer, Progress, STATE_LEN, Transport, V1_LEN_MAX, WRITTEN_LEN_MAX, datagram,
    write_v1, write_v2,
};
use libfuzzer_sys::fuzz_target;
use proxy_header::{ParseConfig, ProxyHeader};
use proxy_protocol_rs::{AddressFamily, ParseError, TransportProtocol};

/// What a parser says of the first bytes of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Partial,
    Complete { consumed: usize, peer: Peer },
    Invalid(Option<Fault>),
}

/// The bytes at which an input is cut and handed over come from its end, so that the fuzzer
/// decides them.
fn pieces(input: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = input;
    let mut lengths = input.iter().rev().map(|byte| usize::from(byte % 29));
    std::iter::from_fn(move || {
        let length = lengths.next()?.min(rest.len());
        let piece;
        (piece, rest) = rest.split_at(length);
        Some(piece)
    })
    .chain(std::iter::once(input).filter(|input| input.is_empty()))
}

fn ours<'a>(pieces: impl Iterator<Item = &'a [u8]>, hands_over: bool) -> Verdict {
    let mut parser = Parser::new();
    for piece in pieces {
        let before = parser.consumed();
        match parser.push(piece) {
            Progress::Partial => assert_eq!(parser.consumed(), before + piece.len()),
            Progress::Complete { consumed, peer } => {
                assert!(consumed <= piece.len());
                assert_eq!(parser.consumed(), before + consumed);
                return Verdict::Complete { consumed: before + consumed, peer };
            }
            Progress::Invalid(fault) => return Verdict::Invalid(Some(fault)),
        }
        if hands_over {
            let state = parser.to_bytes();
            parser = Parser::from_bytes(&state).expect("a state that was written is read");
            assert_eq!(parser.to_bytes(), state);
        }
    }
    Verdict::Partial
}

/// An address as we report it.
fn announced(address: SocketAddr) -> Peer {
    Peer::Announced(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// The crate proxy-header, and the transport of the addresses.
fn first_oracle(input: &[u8]) -> (Verdict, Option<proxy_header::Protocol>) {
    match ProxyHeader::parse(input, ParseConfig::default()) {
        Ok((header, consumed)) => {
            let address = header.proxied_address();
            let peer = address.map_or(Peer::Real, |it| announced(it.source));
            (Verdict::Complete { consumed, peer }, address.map(|it| it.protocol))
        }
        Err(proxy_header::Error::BufferTooShort) => (Verdict::Partial, None),
        Err(_) => (Verdict::Invalid(None), None),
    }
}

/// The crate proxy-protocol-rs, with its error, and whether it read the header of a datagram.
fn second_oracle(input: &[u8]) -> (Verdict, Option<ParseError>, bool) {
    match proxy_protocol_rs::parse(input) {
        Ok((info, consumed)) => {
            let peer = info.source_inet().map_or(Peer::Real, announced);
            let is_datagram = info.transport.is_some_and(|transport| {
                assert_eq!(transport.family == AddressFamily::Unix, peer == Peer::Real);
                transport.protocol == TransportProtocol::Datagram
            });
            (Verdict::Complete { consumed, peer }, None, is_datagram)
        }
        Err(ParseError::Incomplete) => (Verdict::Partial, None, false),
        Err(error) => (Verdict::Invalid(None), Some(error), false),
    }
}

fn is_v2(input: &[u8]) -> bool {
    input.first() == Some(&b'\r')
}

fn is_local(input: &[u8]) -> bool {
    is_v2(input) && input.get(12) == Some(&0x20)
}

/// Whether a line announces UNKNOWN.
fn is_unknown(input: &[u8]) -> bool {
    input.starts_with(b"PROXY UNKNOWN")
}

/// Whether the ignored part of such a line has a CR without LF.
fn has_lone_cr(input: &[u8]) -> bool {
    let line = &input[..input.len().min(V1_LEN_MAX)];
    let end = line.windows(2).position(|pair| pair == b"\r\n").unwrap_or(line.len());
    line[..end].contains(&b'\r')
}

/// Whether a line has a number with a sign or a leading zero.
fn has_odd_number(input: &[u8]) -> bool {
    let line = input.split(|byte| *byte == b'\r').next().unwrap_or_default();
    line.split(|byte| *byte == b' ').skip(4).any(|field| {
        field.first() == Some(&b'+') || field.len() > 1 && field.first() == Some(&b'0')
    })
}

/// The vectors of a header of version 2 whose addresses have `addresses_len` bytes: type and value.
fn vectors(input: &[u8], addresses_len: usize) -> Vec<(u8, &[u8])> {
    let length = 16 + usize::from(u16::from_be_bytes([input[14], input[15]]));
    let mut rest = input.get(16 + addresses_len..length).unwrap_or_default();
    let mut vectors = Vec::new();
    while let [kind, high, low, behind @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(behind.len());
        let value;
        (value, rest) = behind.split_at(length);
        vectors.push((*kind, value));
    }
    vectors
}

fn addresses_len(input: &[u8]) -> usize {
    match input[13] >> 4 {
        _ if is_local(input) => 0,
        1 => 12,
        2 => 36,
        3 => 216,
        _ => 0,
    }
}

fn crc_vectors(input: &[u8]) -> usize {
    vectors(input, addresses_len(input)).iter().filter(|(kind, _)| *kind == 3).count()
}

/// Where proxy-header 0.1.3 deviates from the specification.
fn compare_with_first(input: &[u8], ours: Verdict) {
    let (theirs, protocol) = first_oracle(input);
    let is_known = match (ours, theirs) {
        (Verdict::Invalid(_), Verdict::Invalid(_)) => true,
        // It detects errors later, or waits for more bytes forever.
        (Verdict::Invalid(_), Verdict::Partial) => true,
        (Verdict::Invalid(Some(fault)), Verdict::Complete { .. }) => match fault {
            // 2.1, "exactly one space": it takes any byte there.
            Fault::Signature => input.starts_with(b"PROXY") && input.get(5) != Some(&b' '),
            // 2.1: it takes all that begins with UNKNOWN.
            Fault::LineEnd => is_unknown(input),
            // 2.1, "Heading zeroes are not permitted": it takes them, and a sign.
            Fault::Port => has_odd_number(input),
            // 2.1, "in the first 107 characters": it takes longer lines that come at once. The
            // limit of version 2 is ours.
            Fault::TooLong => true,
            // It has no opinion on the transport.
            Fault::Transport => protocol != Some(proxy_header::Protocol::Stream),
            // 2.2: it judges vectors when they are asked for, and no checksum (2.2.3).
            Fault::Tlv | Fault::Checksum => is_v2(input),
            _ => false,
        },
        // 2.1, "the receiver must ignore anything presented before the CRLF": it ends at any CR.
        (_, Verdict::Invalid(_)) if is_unknown(input) => has_lone_cr(input),
        // 2.2, "discard the protocol block including the family": it judges both of LOCAL.
        (Verdict::Complete { .. }, Verdict::Invalid(_) | Verdict::Partial) => is_local(input),
        _ => ours == theirs,
    };
    assert!(is_known, "ours {ours:?}, proxy-header {theirs:?}");
}

/// Where proxy-protocol-rs 0.8.0 deviates from the specification, or decides otherwise where it
/// leaves a choice.
fn compare_with_second(input: &[u8], ours: Verdict) {
    let (theirs, error, is_datagram) = second_oracle(input);
    let is_known = match (ours, theirs) {
        (Verdict::Invalid(_), Verdict::Invalid(_)) => true,
        // It detects errors later.
        (Verdict::Invalid(_), Verdict::Partial) => true,
        (Verdict::Invalid(Some(fault)), Verdict::Complete { .. }) => match fault {
            // 2.1, "Heading zeroes are not permitted": it takes them, and a sign.
            Fault::Port => has_odd_number(input),
            // The limit is ours.
            Fault::TooLong => is_v2(input),
            // It has no opinion on the transport.
            Fault::Transport => is_datagram,
            // 2.2.3 has one checksum: of several, it takes the last.
            Fault::Checksum => crc_vectors(input) > 1,
            _ => false,
        },
        (Verdict::Complete { .. }, Verdict::Invalid(_)) => match error {
            // 2.2, "discard the protocol block": it judges a checksum of LOCAL.
            Some(ParseError::CrcMismatch { .. }) => is_local(input),
            // 2.1, "must ignore anything": it wants UTF-8 there.
            Some(_) if !is_v2(input) => is_unknown(input) && str::from_utf8(input).is_err(),
            // 2.2: "free to accept the connection anyway" with UNSPEC, or to reject it.
            Some(_) if input[13] == 0 => true,
            // 2.2, "A receiver may choose to skip over and ignore the TLVs": it judges the values
            // of UNIQUE_ID (2.2.5, "up to 128 bytes") and of SSL (2.2.6).
            Some(_) => vectors(input, addresses_len(input))
                .iter()
                .any(|(kind, value)| *kind == 0x20 || *kind == 5 && value.len() > 128),
            None => false,
        },
        _ => ours == theirs,
    };
    assert!(is_known, "ours {ours:?}, proxy-protocol-rs {theirs:?}, {error:?}");
}

/// The same with the right checksum, if that is all that is wrong. No fuzzer guesses it.
fn with_the_right_checksum(input: &[u8]) -> Option<Vec<u8>> {
    let Err(ParseError::CrcMismatch { actual, .. }) = proxy_protocol_rs::parse(input) else {
        return None;
    };
    if is_local(input) || input[13] & 0xf != 1 || crc_vectors(input) != 1 {
        return None;
    }
    let mut at = 16 + addresses_len(input);
    for (kind, value) in vectors(input, addresses_len(input)) {
        if kind == 3 {
            let mut right = input.to_vec();
            right[at + 3..at + 7].copy_from_slice(&actual.to_be_bytes());
            return Some(right);
        }
        at += 3 + value.len();
    }
    None
}

/// One datagram: the same as the header of a stream, but for its transport.
fn judge_datagram(input: &[u8]) {
    let verdict = datagram(input);
    let (theirs, _) = first_oracle(input);
    match verdict {
        Ok((consumed, peer)) => {
            assert!(consumed <= input.len() && is_v2(input));
            assert!(is_local(input) || theirs == Verdict::Complete { consumed, peer });
        }
        Err(Fault::Incomplete) => {
            let end = [&input[..], &[0; 65_551]].concat();
            assert_ne!(datagram(&end), Err(Fault::Incomplete));
        }
        Err(_) => {}
    }
}

/// What we write, both read, and read the same.
fn write(bytes: &[u8; 38]) {
    let address = |bytes: &[u8], is_ipv4: bool| -> SocketAddr {
        let ip: IpAddr = if is_ipv4 {
            Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()
        } else {
            Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[..16]).expect("sixteen")).into()
        };
        SocketAddr::new(ip, u16::from_be_bytes([bytes[16], bytes[17]]))
    };
    let flags = bytes[36];
    let source = address(&bytes[..18], flags & 1 == 1);
    let destination = address(&bytes[18..36], flags & 2 == 2);
    let check = |header: &[u8], consumed: usize| {
        let expected = Verdict::Complete { consumed, peer: announced(source) };
        assert_eq!(ours([header].into_iter(), false), expected);
        assert_eq!(first_oracle(header).0, expected);
        assert_eq!(second_oracle(header).0, expected);
    };
    let mut line = [0; V1_LEN_MAX];
    let length = write_v1(&mut line, source, destination).len();
    check(&line[..length], length);
    let mut buffer = [0; WRITTEN_LEN_MAX];
    let crc = flags & 4 == 4;
    let header = write_v2(&mut buffer, Transport::Stream, source, destination, crc);
    check(header, header.len());
}

fuzz_target!(|input: &[u8]| {
    let verdict = ours(std::iter::once(input), false);
    assert_eq!(ours(input.chunks(1), false), verdict);
    if input.len() <= 600 {
        assert_eq!(ours(input.chunks(1), true), verdict);
    }
    let cut = ours(pieces(input), true);
    if pieces(input).map(<[u8]>::len).sum::<usize>() == input.len() {
        assert_eq!(cut, verdict);
    }
    compare_with_first(input, verdict);
    compare_with_second(input, verdict);
    judge_datagram(input);
    if let Some(right) = with_the_right_checksum(input) {
        let verdict = ours(std::iter::once(&right[..]), false);
        if verdict != Verdict::Invalid(Some(Fault::TooLong)) {
            assert!(matches!(verdict, Verdict::Complete { .. }), "{verdict:?}");
            assert_eq!(ours(right.chunks(1), true), verdict);
        }
    }
    if let Some((state, rest)) = input.split_first_chunk::<STATE_LEN>()
        && let Some(mut parser) = Parser::from_bytes(state)
    {
        assert_eq!(parser.to_bytes(), *state);
        let mut whole = parser.clone();
        let mut last = Progress::Partial;
        for byte in rest {
            last = parser.push(&[*byte]);
            if last != Progress::Partial {
                break;
            }
        }
        match (whole.push(rest), last) {
            (Progress::Complete { .. }, Progress::Complete { .. }) => {
                assert_eq!(whole.consumed(), parser.consumed());
            }
            (whole, last) => assert_eq!(whole, last),
        }
    }
    if let Some(bytes) = input.first_chunk() {
        write(bytes);
    }
});
