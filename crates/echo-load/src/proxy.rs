//! The client in the role of a proxy: the PROXY header that each connection begins with, or each
//! datagram. Headers are not part of what is echoed. Only this file knows `echo_proxy_header`.

use std::net::{Ipv4Addr, SocketAddr};

use echo_proxy_header::{
    Transport, V1_LEN_MAX, WRITTEN_LEN_MAX, write_v1, write_v2, write_v2_local,
};

use crate::announced::{Source, with_bits};
use crate::arguments::{Plan, ProxyVersion};

/// What is known of a connection or a flow of the client itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) number: u64,
    /// The addresses of the client and of the server; none for a Unix socket.
    pub(crate) local: Option<SocketAddr>,
    pub(crate) server: Option<SocketAddr>,
}

/// The header that a connection begins with. It is empty without `--proxy-protocol`.
pub(crate) fn stream_header(plan: &Plan, ends: Ends) -> Vec<u8> {
    let Some(version) = plan.proxy else { return Vec::new() };
    let (source, destination) = addresses(plan.proxy_source.as_ref(), ends);
    match version {
        ProxyVersion::V1 => write_v1(&mut [0; V1_LEN_MAX], source, destination).to_vec(),
        ProxyVersion::V2 => binary(Transport::Stream, source, destination),
    }
}

/// The header that each datagram of a flow begins with. It is empty without `--proxy-protocol`.
pub(crate) fn datagram_header(plan: &Plan, ends: Ends) -> Vec<u8> {
    if plan.proxy.is_none() {
        return Vec::new();
    }
    let (source, destination) = addresses(plan.proxy_source.as_ref(), ends);
    binary(Transport::Datagram, source, destination)
}

/// The header of a datagram of the proxy itself, for a probe. It is empty without
/// `--proxy-protocol`.
pub(crate) fn probe_header(plan: &Plan) -> Vec<u8> {
    match plan.proxy {
        Some(_) => write_v2_local(&mut [0; WRITTEN_LEN_MAX]).to_vec(),
        None => Vec::new(),
    }
}

fn binary(transport: Transport, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    write_v2(&mut [0; WRITTEN_LEN_MAX], transport, source, destination, false).to_vec()
}

/// The addresses to announce, of one family. If that is not the family of the connection, the
/// address at which the proxy was reached is unknown, and the unspecified one is announced.
fn addresses(announced: Option<&Source>, ends: Ends) -> (SocketAddr, SocketAddr) {
    let unspecified = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
    let local = ends.local.unwrap_or(unspecified);
    let source = announced.map_or(local, |source| source.address(ends.number, local.port()));
    let port = ends.server.map_or(0, |server| server.port());
    let same_family = ends.server.filter(|server| server.is_ipv4() == source.is_ipv4());
    let unknown = SocketAddr::new(with_bits(source.ip(), 0), port);
    (source, same_family.unwrap_or(unknown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_addresses_are_of_one_family() {
        let tcp = ("127.0.0.1:4000".parse().ok(), "127.0.0.1:7".parse().ok());
        for (source, (local, server), expected) in [
            (None, tcp, ("127.0.0.1:4000", "127.0.0.1:7")),
            (Some("10.0.0.1"), tcp, ("10.0.0.1:4000", "127.0.0.1:7")),
            (Some("[2001:db8::1]:9"), tcp, ("[2001:db8::1]:9", "[::]:7")),
            (Some("10.0.0.1"), (None, None), ("10.0.0.1:0", "0.0.0.0:0")),
        ] {
            let source: Option<Source> = source.map(|text| text.parse().unwrap());
            let (from, to) = addresses(source.as_ref(), Ends { number: 0, local, server });
            assert_eq!((from.to_string().as_str(), to.to_string().as_str()), expected);
        }
    }
}
