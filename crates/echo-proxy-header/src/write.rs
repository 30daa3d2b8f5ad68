//! Headers of a proxy, or of a client that acts as one.

use core::fmt::{self, Write};
use core::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::binary::{
    CRC32C_LEN, FIXED_LEN, INET6_LEN, LOCAL, PROXY, SIGNATURE, TCP4, TCP6, TLV_HEADER_LEN,
    TYPE_CRC32C, UDP4, UDP6, UNSPEC,
};
use crate::checksum::Crc32c;
use crate::header::{Transport, V1_LEN_MAX};

/// The longest header of version 2 that is written: with IPv6 addresses and a checksum.
pub const WRITTEN_LEN_MAX: usize = (FIXED_LEN + INET6_LEN + TLV_HEADER_LEN + CRC32C_LEN) as usize;

/// Bytes that are written one behind the other.
struct Cursor<'a> {
    buffer: &'a mut [u8],
    length: usize,
}

impl<'a> Cursor<'a> {
    fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, length: 0 }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.buffer[self.length..][..bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }

    fn written(self) -> &'a [u8] {
        &self.buffer[..self.length]
    }
}

impl Write for Cursor<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.put(text.as_bytes());
        Ok(())
    }
}

/// Two addresses of one family. If only one is IPv4, it is written as IPv4-mapped IPv6 (RFC 4291,
/// 2.5.5.2), since a header has one family for both.
fn same_family(source: SocketAddr, destination: SocketAddr) -> (IpAddr, IpAddr) {
    let mapped = |address: IpAddr| -> Ipv6Addr {
        match address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        }
    };
    match (source.ip(), destination.ip()) {
        (source @ IpAddr::V4(_), destination @ IpAddr::V4(_)) => (source, destination),
        (source, destination) => (mapped(source).into(), mapped(destination).into()),
    }
}

/// Writes a header of version 1, and returns it. The zone of an IPv6 address has no place in it.
//= proxy-protocol.txt 2.1
//# It consists in one line of US-ASCII text matching exactly the following block, sent immediately
//# and at once upon the connection establishment and prepended before any data flowing from the
//# sender to the receiver
pub fn write_v1(
    buffer: &mut [u8; V1_LEN_MAX],
    source: SocketAddr,
    destination: SocketAddr,
) -> &[u8] {
    let (from, to) = same_family(source, destination);
    let protocol = if from.is_ipv4() { "TCP4" } else { "TCP6" };
    let mut cursor = Cursor::new(buffer);
    write!(cursor, "PROXY {protocol} {from} {to} {} {}\r\n", source.port(), destination.port())
        .expect("the longest addresses and ports fit, and the cursor does not fail");
    cursor.written()
}

/// Writes a header of version 2 with the command PROXY, and returns it; with `crc`, a checksum is
/// its only TLV. The zone of an IPv6 address has no place in it.
pub fn write_v2(
    buffer: &mut [u8; WRITTEN_LEN_MAX],
    transport: Transport,
    source: SocketAddr,
    destination: SocketAddr,
    crc: bool,
) -> &[u8] {
    let (from, to) = same_family(source, destination);
    let family = match (from, transport) {
        (IpAddr::V4(_), Transport::Stream) => TCP4,
        (IpAddr::V4(_), Transport::Datagram) => UDP4,
        (IpAddr::V6(_), Transport::Stream) => TCP6,
        (IpAddr::V6(_), Transport::Datagram) => UDP6,
    };
    let mut cursor = Cursor::new(buffer);
    cursor.put(&SIGNATURE);
    cursor.put(&[PROXY, family, 0, 0]);
    for address in [from, to] {
        match address {
            IpAddr::V4(address) => cursor.put(&address.octets()),
            IpAddr::V6(address) => cursor.put(&address.octets()),
        }
    }
    cursor.put(&source.port().to_be_bytes());
    cursor.put(&destination.port().to_be_bytes());
    if crc {
        cursor.put(&[TYPE_CRC32C]);
        cursor.put(&CRC32C_LEN.to_be_bytes());
        cursor.put(&[0; CRC32C_LEN as usize]);
    }
    let length = cursor.length;
    buffer[14..16].copy_from_slice(&(length as u16 - FIXED_LEN).to_be_bytes());
    if crc {
        //= proxy-protocol.txt 2.2.3
        //# calculate the CRC32c checksum of the PROXY header as described in RFC4960, Appendix B
        let mut checksum = Crc32c::new();
        buffer[..length].iter().for_each(|byte| checksum.update(*byte));
        let value = checksum.value().to_be_bytes();
        buffer[length - value.len()..length].copy_from_slice(&value);
    }
    &buffer[..length]
}

/// Writes a header of version 2 with the command LOCAL, and returns it: a connection of the proxy
/// itself, such as a health check.
//= proxy-protocol.txt 2.2
//# When a sender presents a LOCAL connection, it should not present any address so it sets this
//# field to zero.
pub fn write_v2_local(buffer: &mut [u8; WRITTEN_LEN_MAX]) -> &[u8] {
    let mut cursor = Cursor::new(buffer);
    cursor.put(&SIGNATURE);
    cursor.put(&[LOCAL, UNSPEC, 0, 0]);
    cursor.written()
}
