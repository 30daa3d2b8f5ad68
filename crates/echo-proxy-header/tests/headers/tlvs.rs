//! What follows the addresses in version 2: skipped, but well-formed, and with the right checksum.

use echo_proxy_header::{Fault, HEADER_LEN_MAX, Parser, Progress};

use super::{IPV4, Numbers, announced, v2};

/// CRC32C, bit by bit, as in RFC 3309.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 }
        })
    })
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind][..], &u16::try_from(value.len()).unwrap().to_be_bytes(), value].concat()
}

/// A header for IPv4 with these TLVs. The checksum is written into the first TLV of type 3.
fn header(tlvs: &[Vec<u8>]) -> Vec<u8> {
    let mut header = v2(0x21, 0x11, &[&IPV4[..], &tlvs.concat()].concat());
    let mut at = 28;
    for tlv in tlvs {
        if tlv[0] == 3 && tlv.len() == 7 {
            let value = crc32c(&header).to_be_bytes();
            header[at + 3..at + 7].copy_from_slice(&value);
            break;
        }
        at += tlv.len();
    }
    header
}

fn verdict(header: &[u8]) -> Progress {
    let whole = Parser::new().push(header);
    let mut parser = Parser::new();
    let mut progress = Progress::Partial;
    for (at, byte) in header.iter().enumerate() {
        progress = parser.push(&[*byte]);
        if progress != Progress::Partial {
            break;
        }
        let state = parser.to_bytes();
        parser = Parser::from_bytes(&state).unwrap_or_else(|| panic!("refused after byte {at}"));
    }
    match (whole, progress) {
        (Progress::Complete { consumed, .. }, Progress::Complete { .. }) => {
            assert_eq!(consumed, parser.consumed());
        }
        _ => assert_eq!(whole, progress),
    }
    whole
}

fn assert_valid(header: &[u8]) {
    let peer = announced("10.0.0.1:8080");
    assert_eq!(verdict(header), Progress::Complete { consumed: header.len(), peer });
}

#[test]
fn the_checksum_may_be_anywhere() {
    let crc = || tlv(3, &[0; 4]);
    let id = || tlv(5, b"0123456789abcdef");
    let long = || tlv(0xe0, &[7; 1000]);
    assert_valid(&header(&[crc()]));
    assert_valid(&header(&[crc(), id()]));
    assert_valid(&header(&[id(), crc()]));
    assert_valid(&header(&[id(), crc(), long(), tlv(4, b"")]));
    assert_valid(&header(&[long(), long(), long(), crc()]));
    assert_valid(&header(&[tlv(4, b""), tlv(4, b"x"), crc()]));
    // A checksum within the value of another TLV is none.
    assert_valid(&header(&[tlv(0x20, &crc())]));
}

#[test]
fn every_changed_bit_is_noticed() {
    let header = header(&[tlv(2, b"example.com"), tlv(3, &[0; 4]), tlv(5, b"id")]);
    assert_valid(&header);
    // But for its type: as any other vector it is no checksum.
    for at in (16..header.len()).filter(|at| *at != 42) {
        for bit in 0..8 {
            let mut changed = header.clone();
            changed[at] ^= 1 << bit;
            assert!(matches!(verdict(&changed), Progress::Invalid(_)), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn a_checksum_that_is_none() {
    let invalid = Progress::Invalid(Fault::Checksum);
    for length in [0, 1, 3, 5, 8] {
        assert_eq!(verdict(&header(&[tlv(3, &[0; 8][..length])])), invalid);
    }
    // Two of them, each right if both are zeroes in the calculation.
    for between in [0, 5] {
        let tlvs = [tlv(3, &[0; 4]), vec![4, 0, 2, 0, 0][..between].to_vec(), tlv(3, &[0; 4])];
        let mut header = v2(0x21, 0x11, &[&IPV4[..], &tlvs.concat()].concat());
        let value = crc32c(&header).to_be_bytes();
        for at in [31, 38 + between] {
            header[at..at + 4].copy_from_slice(&value);
        }
        assert_eq!(verdict(&header), invalid);
    }
}

/// As soon as it shows: at the first byte for which its header has no room, or with its length.
#[test]
fn a_vector_that_reaches_beyond_the_end() {
    for room in 1..3 {
        let input = v2(0x21, 0x11, &[&IPV4[..], &[4, 0, 0][..room]].concat());
        let mut parser = Parser::new();
        assert_eq!(parser.push(&input[..28]), Progress::Partial);
        assert_eq!(parser.push(&input[28..29]), Progress::Invalid(Fault::Tlv));
    }
    for (length, room) in [(1_u16, 0_usize), (2, 1), (256, 255), (0xffff, 3000)] {
        let tlv = [&[4][..], &length.to_be_bytes(), &vec![0; room]].concat();
        let input = v2(0x21, 0x11, &[&IPV4[..], &tlv].concat());
        let mut parser = Parser::new();
        assert_eq!(parser.push(&input[..30]), Progress::Partial);
        assert_eq!(parser.push(&input[30..31]), Progress::Invalid(Fault::Tlv));
    }
}

/// Of LOCAL and UNSPEC, the length of the addresses is unknown, so nothing can be told from a TLV.
#[test]
fn what_is_ignored_is_not_judged() {
    for (command, family) in [(0x20, 0x00), (0x20, 0x11), (0x21, 0x00)] {
        let wrong = [&IPV4[..], &tlv(3, &[0; 4]), &[3, 0xff, 0xff]].concat();
        let input = v2(command, family, &wrong);
        let Progress::Complete { consumed, peer } = verdict(&input) else {
            panic!("{command:#x} {family:#x}: {:?}", verdict(&input));
        };
        assert_eq!(consumed, input.len());
        assert_eq!(peer, echo_proxy_header::Peer::Real);
    }
}

/// Any vectors in any order, in headers of every family, cut anywhere and handed over at every byte.
#[test]
fn any_vectors() {
    let mut numbers = Numbers(17);
    for _ in 0..500 {
        let mut tlvs = Vec::new();
        let mut room = HEADER_LEN_MAX - 28;
        loop {
            let kind = numbers.below(256) as u8;
            let length = [0, 1, 4, 50, 700][numbers.below(5)];
            if kind == 3 || room < length + 3 + 7 || numbers.below(8) == 0 {
                break;
            }
            room -= length + 3;
            tlvs.push(tlv(kind, &vec![kind; length]));
        }
        if numbers.below(2) == 0 {
            tlvs.insert(numbers.below(tlvs.len() + 1), tlv(3, &[0; 4]));
        }
        assert_valid(&header(&tlvs));
    }
}
