//! A header at the start of a datagram.

use echo_proxy_header::{Fault, Peer, Transport, WRITTEN_LEN_MAX, datagram, write_v2};

use super::{IPV4, announced, v2};

#[test]
fn what_follows_the_header_is_payload() {
    for payload in [&b""[..], b"x", b"\r\n\r\n\0\r\nQUIT\n"] {
        let header = v2(0x21, 0x12, &IPV4);
        let bytes = [&header, payload].concat();
        assert_eq!(datagram(&bytes), Ok((header.len(), announced("10.0.0.1:8080"))));
    }
    let mut ipv6 = [0; 36];
    ipv6[15] = 1;
    ipv6[31] = 2;
    ipv6[33] = 7;
    assert_eq!(datagram(&v2(0x21, 0x22, &ipv6)), Ok((52, announced("[::1]:7"))));
    assert_eq!(datagram(&v2(0x21, 0x32, &[0; 216])), Ok((232, Peer::Real)));
}

#[test]
fn local_and_unspec_hold_for_any_transport() {
    for family in [0x00, 0x11, 0x12, 0xff] {
        assert_eq!(datagram(&v2(0x20, family, &[])), Ok((16, Peer::Real)), "{family:#x}");
    }
    assert_eq!(datagram(&v2(0x21, 0x00, b"junk")), Ok((20, Peer::Real)));
}

#[test]
fn a_stream_is_not_announced_in_a_datagram() {
    for family in [0x11, 0x21, 0x31] {
        assert_eq!(datagram(&v2(0x21, family, &[0; 216])), Err(Fault::Transport), "{family:#x}");
    }
}

#[test]
fn a_header_ends_in_its_datagram() {
    let mut buffer = [0; WRITTEN_LEN_MAX];
    let [source, destination] =
        ["[2001:db8::1]:1", "[2001:db8::2]:2"].map(|it| it.parse().unwrap());
    let header = write_v2(&mut buffer, Transport::Datagram, source, destination, true);
    for length in 0..header.len() {
        assert_eq!(datagram(&header[..length]), Err(Fault::Incomplete), "{length}");
    }
    assert_eq!(datagram(header), Ok((header.len(), Peer::Announced(source))));
}

#[test]
fn version_1_is_not_defined_for_datagrams() {
    assert_eq!(datagram(b"PROXY UNKNOWN\r\n"), Err(Fault::Signature));
    assert_eq!(datagram(b"hello"), Err(Fault::Signature));
}

#[test]
fn vectors_and_checksum_are_judged() {
    let [right, wrong] = [0x5b, 0x5a].map(|last| {
        let mut header = v2(0x21, 0x12, &[&IPV4[..], &[3, 0, 4, 0, 0, 0, last]].concat());
        // The same as in the table of cases, but for the transport.
        header[31..35].copy_from_slice(&[0x4d, 0x5d, 0x18, last]);
        header
    });
    assert_eq!(datagram(&wrong), Err(Fault::Checksum));
    assert_eq!(datagram(&right), Err(Fault::Checksum), "of the header of a stream");
    let overrun = v2(0x21, 0x12, &[&IPV4[..], &[4, 0, 9, 1]].concat());
    assert_eq!(datagram(&overrun), Err(Fault::Tlv));
}
