//! The crate as its callers see it.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod cases;
mod datagrams;
mod faults;
mod states;
mod tlvs;
mod written;

use std::net::SocketAddr;

use echo_proxy_header::Peer;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// 10.0.0.1:8080 to 10.0.0.2:443.
const IPV4: [u8; 12] = [10, 0, 0, 1, 10, 0, 0, 2, 0x1f, 0x90, 1, 0xbb];

/// A header of version 2.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family][..], &length, rest].concat()
}

fn announced(address: &str) -> Peer {
    Peer::Announced(address.parse::<SocketAddr>().unwrap())
}

/// A generator of numbers (SplitMix64), so that a failure happens again.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((number ^ number >> 31) % bound as u64) as usize
    }
}
