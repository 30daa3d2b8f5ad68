//! A header is refused at its first wrong byte, and with the right reason.

use std::net::{Ipv4Addr, Ipv6Addr};

use echo_proxy_header::{Fault, HEADER_LEN_MAX, Parser, Peer, Progress, V1_LEN_MAX};

use super::{IPV4, SIGNATURE, announced, v2};

/// The last byte of `input` is its first wrong one, for the reason `fault`.
fn assert_last_is_wrong(input: &[u8], fault: Fault) {
    let text = input.escape_ascii();
    let (last, before) = input.split_last().unwrap();
    let mut parser = Parser::new();
    assert_eq!(parser.push(before), Progress::Partial, "{text}: refused too early");
    assert_eq!(parser.push(&[*last]), Progress::Invalid(fault), "{text}");
    let mut parser = Parser::new();
    assert_eq!(parser.push(input), Progress::Invalid(fault), "{text}, whole");
}

fn assert_line(line: &str, peer: Peer) {
    let consumed = line.len();
    let progress = Parser::new().push(line.as_bytes());
    assert_eq!(progress, Progress::Complete { consumed, peer }, "{line}");
}

#[test]
fn the_first_byte_decides() {
    for byte in 0..=u8::MAX {
        let progress = Parser::new().push(&[byte]);
        let expected = match byte {
            b'P' | b'\r' => Progress::Partial,
            _ => Progress::Invalid(Fault::Signature),
        };
        assert_eq!(progress, expected, "{byte:#x}");
    }
}

#[test]
fn lines() {
    for (line, fault) in [
        ("PROXX", Fault::Signature),
        ("PROXY\t", Fault::Signature),
        ("PROXY\r", Fault::Signature),
        ("PROXY  ", Fault::Family),
        ("PROXY t", Fault::Family),
        ("PROXY TCP5", Fault::Family),
        ("PROXY TCP4\t", Fault::Family),
        ("PROXY UNKNOWNX", Fault::LineEnd),
        ("PROXY UNKNOWN\n", Fault::LineEnd),
        ("PROXY UNKNOWN\rX", Fault::LineEnd),
        ("PROXY TCP4  ", Fault::Address),
        ("PROXY TCP4 01", Fault::Address),
        ("PROXY TCP4 00", Fault::Address),
        ("PROXY TCP4 256", Fault::Address),
        ("PROXY TCP4 1.2.3.4.", Fault::Address),
        ("PROXY TCP4 1..", Fault::Address),
        ("PROXY TCP4 1.2.3 ", Fault::Address),
        ("PROXY TCP4 .", Fault::Address),
        ("PROXY TCP4 +", Fault::Address),
        ("PROXY TCP4 0x", Fault::Address),
        ("PROXY TCP4 :", Fault::Address),
        ("PROXY TCP4 1.2.3.4\r", Fault::Address),
        ("PROXY TCP4 1.2.3.4 :", Fault::Address),
        ("PROXY TCP6 1.", Fault::Address),
        ("PROXY TCP6 12345", Fault::Address),
        ("PROXY TCP6 :1", Fault::Address),
        ("PROXY TCP6 :::", Fault::Address),
        ("PROXY TCP6 1::2::", Fault::Address),
        ("PROXY TCP6 1:2:3:4:5:6:7:8:", Fault::Address),
        ("PROXY TCP6 1:2:3:4:5:6:7::8", Fault::Address),
        ("PROXY TCP6 ::g", Fault::Address),
        ("PROXY TCP6 ::1.2.3.256", Fault::Address),
        ("PROXY TCP6 fe80::1%", Fault::Address),
        ("PROXY TCP6 [", Fault::Address),
        ("PROXY TCP4 1.2.3.4 5.6.7.8  ", Fault::Port),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 00", Fault::Port),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 +", Fault::Port),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 -", Fault::Port),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 65536", Fault::Port),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 123456", Fault::Port),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1\r", Fault::Port),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1 \r", Fault::Port),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n", Fault::Port),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1 2 ", Fault::Port),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\r", Fault::LineEnd),
    ] {
        assert_last_is_wrong(line.as_bytes(), fault);
    }
    assert_last_is_wrong(b"PROXY TCP4 \xff", Fault::Address);
    assert_last_is_wrong(b"PROXY TCP6 \xc3", Fault::Address);
    assert_last_is_wrong(b"PROXY TCP4 \0", Fault::Address);
}

#[test]
fn lines_that_are_valid() {
    assert_line("PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n", announced("0.0.0.0:0"));
    assert_line("PROXY TCP6 :: ::1.2.3.4 1 2\r\n", announced("[::]:1"));
    assert_line("PROXY TCP6 FFFF::abcd 1:2:3:4:5:6:7:8 1 2\r\n", announced("[ffff::abcd]:1"));
    assert_line("PROXY TCP6 0001:0:0:0:0:0:0:1 1::8 1 2\r\n", announced("[1::1]:1"));
    assert_line("PROXY TCP6 ::FFFF:1.2.3.4 ::1 1 2\r\n", announced("1.2.3.4:1"));
    assert_line("PROXY TCP6 ::ffff:102:304 ::1 1 2\r\n", announced("1.2.3.4:1"));
    // Not mapped but "compatible", which is deprecated (RFC 4291, 2.5.5.1), and no form of IPv4.
    assert_line("PROXY TCP6 ::1.2.3.4 ::1 1 2\r\n", announced("[::1.2.3.4]:1"));
    assert_line("PROXY UNKNOWN \r\n", Peer::Real);
    assert_line("PROXY UNKNOWN \n\r a\0\u{e4}\r\r\n", Peer::Real);
    assert_line("PROXY UNKNOWN TCP4 1.2.3.4 5.6.7.8 1 2\r\n", Peer::Real);
    // The longest of each kind: 56, 104 and 107 bytes.
    let ipv4 = "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n";
    assert_line(ipv4, announced("255.255.255.255:65535"));
    let address = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    let ipv6 = format!("PROXY TCP6 {address} {address} 65535 65535\r\n");
    assert_line(&ipv6, announced(&format!("[{address}]:65535")));
    assert_line(&ipv6.replace("TCP6", "UNKNOWN"), Peer::Real);
}

/// The limit holds for a line of any kind: this one has nothing wrong but its length.
#[test]
fn a_line_longer_than_the_limit() {
    let address = "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255";
    let line = format!("PROXY TCP6 {address} {address} 65535 65535\r\n");
    assert!(line.len() > V1_LEN_MAX);
    assert_eq!(Parser::new().push(line.as_bytes()), Progress::Invalid(Fault::TooLong));
    assert_last_is_wrong(&line.as_bytes()[..V1_LEN_MAX - 1], Fault::TooLong);
    let junk = format!("PROXY UNKNOWN {}", "x".repeat(V1_LEN_MAX - 1 - 14));
    assert_last_is_wrong(junk.as_bytes(), Fault::TooLong);
    let cr = format!("PROXY UNKNOWN {}\rx", "x".repeat(V1_LEN_MAX - 2 - 14));
    assert_last_is_wrong(cr.as_bytes(), Fault::TooLong);
}

/// No beginning of a valid address is refused, nor one that is cut and continued.
#[test]
fn every_beginning_of_an_address_can_be_continued() {
    let groups = ["", "0", "1", "db8", "ffff", "0001"];
    let tails = ["", "0.0.0.0", "1.20.255.9", "10.0.0.1"];
    let mut addresses: Vec<String> = Vec::new();
    for before in 0..=8 {
        for after in 0..=8 {
            for (index, tail) in (0..).zip(tails) {
                let group = |at| groups[1 + (at * 7 + before * 3 + index) % 5];
                let list = |range: std::ops::Range<usize>| range.map(group).collect::<Vec<_>>();
                let mut last = list(before..before + after).join(":");
                if !tail.is_empty() {
                    last = if last.is_empty() { tail.to_owned() } else { format!("{last}:{tail}") };
                }
                let first = list(0..before).join(":");
                addresses.push(format!("{first}::{last}"));
                addresses.push(format!("{first}:{last}"));
            }
        }
    }
    let valid: Vec<&String> =
        addresses.iter().filter(|text| text.parse::<Ipv6Addr>().is_ok()).collect();
    assert!(valid.len() > 100, "{}", valid.len());
    for address in valid {
        let line = format!("PROXY TCP6 {address} ::1 1 2\r\n");
        let mut parser = Parser::new();
        for (at, byte) in line.bytes().enumerate().take(line.len() - 1) {
            assert_eq!(parser.push(&[byte]), Progress::Partial, "{line:?}, byte {at}");
        }
        assert_line(&line, announced(&format!("[{address}]:1")).canonical());
    }
    for address in ["0.0.0.0", "1.10.100.255", "255.255.255.255", "9.99.200.249"] {
        assert!(address.parse::<Ipv4Addr>().is_ok());
        let line = format!("PROXY TCP4 {address} 0.0.0.0 0 0\r\n");
        let mut parser = Parser::new();
        for byte in line.bytes().take(line.len() - 1) {
            assert_eq!(parser.push(&[byte]), Progress::Partial, "{line:?}");
        }
    }
}

trait Canonical {
    fn canonical(self) -> Self;
}

impl Canonical for Peer {
    fn canonical(self) -> Self {
        match self {
            Self::Announced(address) => {
                Self::Announced((address.ip().to_canonical(), address.port()).into())
            }
            Self::Real => self,
        }
    }
}

#[test]
fn binary_headers() {
    for at in 1..SIGNATURE.len() {
        for bit in 0..8 {
            let mut input = SIGNATURE[..=at].to_vec();
            input[at] ^= 1 << bit;
            assert_last_is_wrong(&input, Fault::Signature);
        }
    }
    let fixed = |bytes: &[u8]| [SIGNATURE, bytes].concat();
    for byte in 0..=u8::MAX {
        match byte {
            0x20 | 0x21 => assert_eq!(Parser::new().push(&fixed(&[byte])), Progress::Partial),
            0x22..0x30 => assert_last_is_wrong(&fixed(&[byte]), Fault::Command),
            _ => assert_last_is_wrong(&fixed(&[byte]), Fault::Version),
        }
        assert_eq!(Parser::new().push(&fixed(&[0x20, byte])), Progress::Partial);
        let family = fixed(&[0x21, byte]);
        match byte {
            0x00 | 0x11 | 0x21 | 0x31 => {
                assert_eq!(Parser::new().push(&family), Progress::Partial, "{byte:#x}");
            }
            0x12 | 0x22 | 0x32 => assert_last_is_wrong(&family, Fault::Transport),
            _ => assert_last_is_wrong(&family, Fault::Family),
        }
    }
    for (family, short) in [(0x11, 11), (0x21, 35), (0x31, 215)] {
        for length in [0, 1, short] {
            assert_last_is_wrong(&fixed(&[0x21, family, 0, length]), Fault::TooShort);
        }
        assert_eq!(
            Parser::new().push(&fixed(&[0x21, family, 0, short + 1])),
            Progress::Partial,
            "{family:#x}"
        );
    }
}

#[test]
fn a_binary_header_longer_than_the_limit() {
    for command in [0x20, 0x21] {
        for family in [0x00, 0x11] {
            let mut header = v2(command, family, &[0; HEADER_LEN_MAX - 16]);
            header.splice(16..28, IPV4);
            // One vector that fills the rest.
            header[28..31].copy_from_slice(&[4, 0x0f, 0xe1]);
            let consumed = header.len();
            assert_eq!(consumed, HEADER_LEN_MAX);
            let progress = Parser::new().push(&header);
            let peer = match (command, family) {
                (0x21, 0x11) => announced("10.0.0.1:8080"),
                _ => Peer::Real,
            };
            assert_eq!(progress, Progress::Complete { consumed, peer });
            header[15] += 1;
            assert_last_is_wrong(&header[..16], Fault::TooLong);
        }
    }
}

#[test]
fn every_fault_has_a_text_of_its_own() {
    let faults = [
        Fault::Signature,
        Fault::Version,
        Fault::Command,
        Fault::Family,
        Fault::Transport,
        Fault::TooLong,
        Fault::TooShort,
        Fault::Address,
        Fault::Port,
        Fault::LineEnd,
        Fault::Tlv,
        Fault::Checksum,
        Fault::Incomplete,
    ];
    let texts: std::collections::BTreeSet<String> = faults.iter().map(Fault::to_string).collect();
    assert_eq!(texts.len(), faults.len());
}
