//! What is written can be read, and says the same.

use std::net::SocketAddr;

use echo_proxy_header::{
    Fault, Parser, Peer, Progress, Transport, V1_LEN_MAX, WRITTEN_LEN_MAX, datagram, write_v1,
    write_v2, write_v2_local,
};

const ADDRESSES: [&str; 8] = [
    "0.0.0.0:0",
    "10.0.0.1:8080",
    "255.255.255.255:65535",
    "[::]:0",
    "[::1]:7",
    "[2001:db8::1]:443",
    "[::ffff:10.0.0.1]:8080",
    "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
];

fn pairs() -> impl Iterator<Item = (SocketAddr, SocketAddr)> {
    let all = || ADDRESSES.iter().map(|text| text.parse().unwrap());
    all().flat_map(move |source| all().map(move |destination| (source, destination)))
}

fn canonical(address: SocketAddr) -> Peer {
    Peer::Announced((address.ip().to_canonical(), address.port()).into())
}

#[test]
fn version_1() {
    for (source, destination) in pairs() {
        let mut buffer = [0; V1_LEN_MAX];
        let line = write_v1(&mut buffer, source, destination);
        let expected = Progress::Complete { consumed: line.len(), peer: canonical(source) };
        assert_eq!(Parser::new().push(line), expected, "{}", line.escape_ascii());
    }
    let line = |source: &str, destination: &str| {
        let mut buffer = [0; V1_LEN_MAX];
        let addresses = (source.parse().unwrap(), destination.parse().unwrap());
        String::from_utf8(write_v1(&mut buffer, addresses.0, addresses.1).to_vec()).unwrap()
    };
    assert_eq!(
        line("192.168.0.1:56324", "192.168.0.11:443"),
        "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
    );
    assert_eq!(line("10.0.0.1:1", "[::1]:2"), "PROXY TCP6 ::ffff:10.0.0.1 ::1 1 2\r\n");
}

#[test]
fn version_2() {
    for (source, destination) in pairs() {
        for crc in [false, true] {
            let mut buffer = [0; WRITTEN_LEN_MAX];
            let header = write_v2(&mut buffer, Transport::Stream, source, destination, crc);
            let (consumed, peer) = (header.len(), canonical(source));
            assert_eq!(Parser::new().push(header), Progress::Complete { consumed, peer });
            assert_eq!(datagram(header), Err(Fault::Transport));

            let header = write_v2(&mut buffer, Transport::Datagram, source, destination, crc);
            assert_eq!(datagram(header), Ok((consumed, peer)));
            assert_eq!(Parser::new().push(header), Progress::Invalid(Fault::Transport));
        }
    }
}

/// The vector of the table of cases, which was not calculated here.
#[test]
fn the_checksum_is_that_of_others() {
    let mut buffer = [0; WRITTEN_LEN_MAX];
    let [source, destination] = ["10.0.0.1:8080", "10.0.0.2:443"].map(|it| it.parse().unwrap());
    let header = write_v2(&mut buffer, Transport::Stream, source, destination, true);
    let expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x13\x0a\0\0\x01\x0a\0\0\x02\x1f\x90\x01\xbb\
                     \x03\0\x04\x5d\x4d\x18\x5b";
    assert_eq!(header, expected);
}

#[test]
fn local() {
    let mut buffer = [0xff; WRITTEN_LEN_MAX];
    let header = write_v2_local(&mut buffer);
    let expected = Progress::Complete { consumed: 16, peer: Peer::Real };
    assert_eq!((header.len(), Parser::new().push(header)), (16, expected));
    assert_eq!(datagram(header), Ok((16, Peer::Real)));
}
