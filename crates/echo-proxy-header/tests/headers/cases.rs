//! The table of cases (`cases.tsv`): every input has its verdict, however it is cut into pieces,
//! and with the state handed to another process after every byte.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use echo_proxy_header::{Parser, Peer, Progress};

/// What a row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Complete { consumed: usize, peer: Peer },
    Partial,
    Invalid,
}

struct Case {
    name: &'static str,
    wanted: Verdict,
    input: Vec<u8>,
}

fn verdict(text: &str) -> Verdict {
    let mut words = text.split([' ', ',', ';']);
    match (words.next(), words.next(), words.next()) {
        (Some("ok"), Some(consumed), Some(address)) => Verdict::Complete {
            consumed: consumed.parse().unwrap(),
            peer: match address {
                "real" | "unix" => Peer::Real,
                address => Peer::Announced(address.parse::<SocketAddr>().unwrap()),
            },
        },
        (Some("incomplete"), ..) => Verdict::Partial,
        (Some("invalid"), ..) => Verdict::Invalid,
        other => panic!("no verdict: {other:?}"),
    }
}

fn cases() -> Vec<Case> {
    let table = include_str!("../cases.tsv").lines().filter(|line| !line.starts_with('#'));
    let cases: Vec<Case> = table
        .map(|line| {
            let [name, wanted, hex] = line.split('\t').collect::<Vec<_>>()[..] else {
                panic!("not three columns: {line}");
            };
            let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            let input = (0..hex.len()).step_by(2).map(byte).collect();
            Case { name, wanted: verdict(wanted), input }
        })
        .collect();
    assert_eq!(cases.len(), 54);
    cases
}

/// Pushes all pieces; between them, `between` may replace the parser.
fn push_all<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    between: impl Fn(Parser) -> Parser,
) -> Verdict {
    let mut parser = Parser::new();
    for piece in pieces {
        let before = parser.consumed();
        match parser.push(piece) {
            Progress::Partial => assert_eq!(parser.consumed(), before + piece.len()),
            Progress::Complete { consumed, peer } => {
                assert!(consumed > 0 && consumed <= piece.len());
                assert_eq!(parser.consumed(), before + consumed);
                assert_eq!(parser.push(piece), Progress::Complete { consumed: 0, peer });
                return Verdict::Complete { consumed: before + consumed, peer };
            }
            Progress::Invalid(fault) => {
                assert_eq!(parser.consumed(), before);
                assert_eq!(parser.push(b"PROXY UNKNOWN\r\n"), Progress::Invalid(fault));
                return Verdict::Invalid;
            }
        }
        parser = between(parser);
    }
    Verdict::Partial
}

#[test]
fn whole() {
    for Case { name, wanted, input } in cases() {
        assert_eq!(push_all([&input[..]], |parser| parser), wanted, "{name}");
    }
}

#[test]
fn byte_by_byte() {
    for Case { name, wanted, input } in cases() {
        assert_eq!(push_all(input.chunks(1), |parser| parser), wanted, "{name}");
    }
}

#[test]
fn cut_in_two_anywhere() {
    for Case { name, wanted, input } in cases() {
        for at in 0..=input.len() {
            let (left, right) = input.split_at(at);
            assert_eq!(push_all([left, right], |parser| parser), wanted, "{name}, cut at {at}");
        }
    }
}

#[test]
fn handed_over_after_every_byte() {
    for Case { name, wanted, input } in cases() {
        let hand_over = |parser: Parser| {
            let state = parser.to_bytes();
            let next = Parser::from_bytes(&state).unwrap();
            assert_eq!(next.to_bytes(), state);
            next
        };
        assert_eq!(push_all(input.chunks(1), hand_over), wanted, "{name}");
    }
}

#[test]
fn a_header_that_has_ended_is_not_handed_over() {
    for Case { name, wanted, input } in cases() {
        let mut parser = Parser::new();
        parser.push(&input);
        let is_handed_over = Parser::from_bytes(&parser.to_bytes()).is_some();
        assert_eq!(is_handed_over, wanted == Verdict::Partial, "{name}");
    }
}

/// Every case is a seed for the fuzzer; `ECHO_WRITE=1` writes those that are missing.
#[test]
fn every_case_is_a_seed() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/proxy_header");
    let mut names = BTreeSet::new();
    for Case { name, input, .. } in cases() {
        let name = name.to_lowercase().replace(|it: char| !it.is_ascii_alphanumeric(), "-");
        if std::env::var_os("ECHO_WRITE").is_some() {
            fs::create_dir_all(&seeds).unwrap();
            fs::write(seeds.join(&name), &input).unwrap();
        }
        assert_eq!(fs::read(seeds.join(&name)).ok(), Some(input), "{name}");
        names.insert(name);
    }
    let found = fs::read_dir(&seeds).unwrap();
    let found: BTreeSet<String> =
        found.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(found, names);
}
