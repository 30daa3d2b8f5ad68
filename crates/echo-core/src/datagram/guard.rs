//! Which datagrams are answered. They are judged by their addresses alone, before a byte is sent.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::op::{Datagram, Endpoint, Header};
use super::traffic::DropReason;
use crate::admission::{AccessList, IpSet};
use crate::peer::PeerAddr;

/// Ports of services that answer datagrams from any sender (IANA's registry): echo, daytime, qotd,
/// chargen, time, domain, tftp, sunrpc, ntp, netbios-ns, snmp, ldap (CLDAP), isakmp, router (RIP),
/// ssdp, mdns, memcache. A datagram from such a port is most likely an answer, or forged to start
/// an exchange that never ends. The list does not contain all ports below 1024, because TWAMP (862)
/// and privileged probes are clients with such ports.
pub const REFLECT_SOURCE_PORTS: [u16; 17] =
    [7, 13, 17, 19, 37, 53, 69, 111, 123, 137, 161, 389, 500, 520, 1900, 5353, 11211];

/// Source ports whose datagrams are not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardPolicy {
    /// In order, each once.
    ports: Arc<[u16]>,
}

impl GuardPolicy {
    /// Datagrams from these ports, in any order, are not answered. Our own listening ports should
    /// be among them.
    #[must_use]
    pub fn new(ports: impl IntoIterator<Item = u16>) -> Self {
        let mut ports: Vec<u16> = ports.into_iter().collect();
        ports.sort_unstable();
        ports.dedup();
        Self { ports: ports.into() }
    }
}

impl Default for GuardPolicy {
    fn default() -> Self {
        Self::new(REFLECT_SOURCE_PORTS)
    }
}

/// Judges a datagram that was received by a socket bound to `own`. If `proxies` are given, the
/// socket accepts datagrams of these proxies only. Returns the address of the client: the sender's,
/// or the one that a proxy has announced. The answer goes to the sender, so the sender must not be
/// the victim of a forgery. Access lists apply to the client.
///
/// # Errors
/// Why it is dropped.
pub(super) fn judge(
    datagram: &Datagram,
    own: Endpoint,
    proxies: Option<&IpSet>,
    policy: &GuardPolicy,
    access: &AccessList,
) -> Result<PeerAddr, DropReason> {
    let Datagram { source, destination, local, truncated, .. } = *datagram;
    if truncated {
        return Err(DropReason::Truncated);
    }
    if own.address == PeerAddr::Local {
        return judge_local(datagram);
    }
    if destination != local || !is_unicast(destination) || !is_unicast(own.address) {
        return Err(DropReason::Destination);
    }
    if source.port == 0 || source.address == PeerAddr::Unknown || !is_unicast(source.address) {
        return Err(DropReason::Source);
    }
    let asked = if own.address == PeerAddr::Unknown { local } else { own.address };
    if source == (Endpoint { address: asked, port: own.port }) {
        return Err(DropReason::Own);
    }
    if policy.ports.binary_search(&source.port).is_ok() {
        return Err(DropReason::SourcePort);
    }
    let client = client(datagram, proxies)?;
    if access.denies(client) {
        return Err(DropReason::Denied);
    }
    Ok(client)
}

fn client(datagram: &Datagram, proxies: Option<&IpSet>) -> Result<PeerAddr, DropReason> {
    let sender = datagram.source.address;
    let Some(trusted) = proxies else { return Ok(sender) };
    if sender != PeerAddr::Local && !trusted.contains(sender) {
        return Err(DropReason::Untrusted);
    }
    match datagram.header {
        Header::Announced(client) => Ok(client),
        Header::Unannounced => Ok(sender),
        Header::Invalid | Header::Absent => Err(DropReason::InvalidHeader),
    }
}

/// Judges a datagram that was received by a Unix socket. Its source is the name of a socket and
/// cannot be forged. It has no port and no address, so ports and access lists are not checked.
fn judge_local(datagram: &Datagram) -> Result<PeerAddr, DropReason> {
    match datagram.source.address {
        // There is no address to send a reply to.
        PeerAddr::Unknown => Err(DropReason::Source),
        // A path can be redirected to one of our sockets after the datagram was sent: an endless
        // exchange.
        _ if datagram.own => Err(DropReason::Own),
        PeerAddr::Local | PeerAddr::Ipv4(_) | PeerAddr::Ipv6(_) => Ok(PeerAddr::Local),
    }
}

/// Whether an address can be that of one host, as far as the address alone shows. (The broadcast
/// address of a network looks like any other. The kernel drops datagrams from it, and reports a
/// different local address for datagrams sent to it.)
fn is_unicast(address: PeerAddr) -> bool {
    match address {
        // Not reported, because the socket is bound to one address; or not an IP address.
        PeerAddr::Unknown | PeerAddr::Local => true,
        // 0.0.0.0/8 is "this network" (RFC 1122), 224.0.0.0/4 multicast, 240.0.0.0/4 reserved,
        // whose last address is the limited broadcast address.
        PeerAddr::Ipv4([first, ..]) => first != 0 && first < 224,
        PeerAddr::Ipv6(address) => address != [0; 16] && address[0] != 0xff,
    }
}

/// Whether it is an address that a packet on a network never has (RFC 1122, RFC 4291).
pub(super) fn is_loopback(address: PeerAddr) -> bool {
    match address {
        PeerAddr::Unknown | PeerAddr::Local => false,
        PeerAddr::Ipv4([first, ..]) => first == 127,
        PeerAddr::Ipv6(address) => u128::from_be_bytes(address) == 1,
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    const CLIENT: PeerAddr = PeerAddr::Ipv4([192, 0, 2, 1]);
    const US: PeerAddr = PeerAddr::Ipv4([192, 0, 2, 7]);
    const ANY: Endpoint = Endpoint { address: PeerAddr::Unknown, port: 7777 };

    fn sent(source: PeerAddr, port: u16, destination: PeerAddr, local: PeerAddr) -> Datagram {
        let source = Endpoint { address: source, port };
        let (header, segment) = (Header::Absent, 0);
        let (length, truncated, own) = (1, false, false);
        Datagram { source, destination, local, header, length, segment, truncated, own }
    }

    fn verdict(datagram: &Datagram, own: Endpoint) -> Result<(), DropReason> {
        let policy = GuardPolicy::new([7, 53]);
        judge(datagram, own, None, &policy, &AccessList::default()).map(drop)
    }

    #[test]
    fn a_datagram_from_host_to_host_is_answered() {
        assert_eq!(verdict(&sent(CLIENT, 862, US, US), ANY), Ok(()));
        let bound = Endpoint { address: US, port: 7777 };
        let unreported = sent(CLIENT, 40_000, PeerAddr::Unknown, PeerAddr::Unknown);
        assert_eq!(verdict(&unreported, bound), Ok(()));
    }

    #[test]
    fn datagrams_to_many_hosts_are_not_answered() {
        let many = [
            PeerAddr::Ipv4([192, 0, 2, 255]),
            PeerAddr::Ipv4([255, 255, 255, 255]),
            PeerAddr::Ipv4([239, 1, 1, 1]),
        ];
        for destination in many {
            let datagram = sent(CLIENT, 4000, destination, US);
            assert_eq!(verdict(&datagram, ANY), Err(DropReason::Destination), "{destination:?}");
        }
        let mut group = [0; 16];
        group[0] = 0xff;
        let group = PeerAddr::Ipv6(group);
        let datagram = sent(PeerAddr::Ipv6([0x20; 16]), 4000, group, group);
        assert_eq!(verdict(&datagram, ANY), Err(DropReason::Destination));
        let bound = Endpoint { address: group, port: 7777 };
        let unreported = sent(CLIENT, 4000, PeerAddr::Unknown, PeerAddr::Unknown);
        assert_eq!(verdict(&unreported, bound), Err(DropReason::Destination));
    }

    #[test]
    fn a_source_that_is_not_one_host_is_not_answered() {
        let mut group = [0; 16];
        group[0] = 0xff;
        let no_hosts = [
            PeerAddr::Unknown,
            PeerAddr::Ipv4([0, 0, 0, 0]),
            PeerAddr::Ipv4([224, 0, 0, 1]),
            PeerAddr::Ipv4([240, 0, 0, 1]),
            PeerAddr::Ipv4([255, 255, 255, 255]),
            PeerAddr::Ipv6([0; 16]),
            PeerAddr::Ipv6(group),
        ];
        for source in no_hosts {
            let datagram = sent(source, 4000, US, US);
            assert_eq!(verdict(&datagram, ANY), Err(DropReason::Source), "{source:?}");
        }
        assert_eq!(verdict(&sent(CLIENT, 0, US, US), ANY), Err(DropReason::Source));
    }

    #[test]
    fn services_that_answer_by_themselves_are_not_answered() {
        assert_eq!(verdict(&sent(CLIENT, 53, US, US), ANY), Err(DropReason::SourcePort));
        assert_eq!(verdict(&sent(US, 7777, US, US), ANY), Err(DropReason::Own));
        let bound = Endpoint { address: US, port: 7777 };
        let unreported = sent(US, 7777, PeerAddr::Unknown, PeerAddr::Unknown);
        assert_eq!(verdict(&unreported, bound), Err(DropReason::Own));
        assert_eq!(verdict(&sent(US, 7778, US, US), ANY), Ok(()));
    }

    #[test]
    fn a_named_unix_socket_is_answered_unless_it_is_ours() {
        let own = Endpoint { address: PeerAddr::Local, port: 0 };
        let unknown = PeerAddr::Unknown;
        let named = sent(PeerAddr::Local, 0, unknown, unknown);
        assert_eq!(verdict(&named, own), Ok(()));
        assert_eq!(verdict(&Datagram { own: true, ..named }, own), Err(DropReason::Own));
        assert_eq!(verdict(&sent(unknown, 0, unknown, unknown), own), Err(DropReason::Source));
        let cut = Datagram { truncated: true, ..named };
        assert_eq!(verdict(&cut, own), Err(DropReason::Truncated));
    }

    #[test]
    fn access_lists_and_truncation() {
        let deny = IpSet::new(alloc::vec![([192, 0, 2, 0], [192, 0, 2, 3])], Vec::new());
        let access = AccessList { deny, ..AccessList::default() };
        let policy = GuardPolicy::new([]);
        let datagram = sent(CLIENT, 4000, US, US);
        assert_eq!(judge(&datagram, ANY, None, &policy, &access), Err(DropReason::Denied));
        let datagram = Datagram { truncated: true, ..datagram };
        assert_eq!(judge(&datagram, ANY, None, &policy, &access), Err(DropReason::Truncated));
    }

    /// Goal: a datagram of a proxy is judged by its client and answered to the proxy. Therefore the
    /// proxy must be trusted, and must not be a reflecting port.
    #[test]
    fn a_datagram_of_a_proxy_is_judged_by_its_client() {
        let proxy = PeerAddr::Ipv4([192, 0, 2, 9]);
        let trusted = IpSet::new(vec![([192, 0, 2, 9], [192, 0, 2, 9])], Vec::new());
        let denied = IpSet::new(vec![([192, 0, 2, 1], [192, 0, 2, 1])], Vec::new());
        let access = AccessList { deny: denied, ..AccessList::default() };
        let verdict = |source, port, header| {
            let datagram = Datagram { header, ..sent(source, port, US, US) };
            judge(&datagram, ANY, Some(&trusted), &GuardPolicy::new([53]), &access)
        };
        let other = PeerAddr::Ipv4([192, 0, 2, 2]);
        assert_eq!(verdict(proxy, 4000, Header::Announced(other)), Ok(other));
        assert_eq!(verdict(proxy, 4000, Header::Announced(CLIENT)), Err(DropReason::Denied));
        assert_eq!(verdict(proxy, 4000, Header::Unannounced), Ok(proxy));
        assert_eq!(verdict(proxy, 53, Header::Announced(other)), Err(DropReason::SourcePort));
        assert_eq!(verdict(other, 4000, Header::Announced(other)), Err(DropReason::Untrusted));
        for header in [Header::Invalid, Header::Absent] {
            assert_eq!(verdict(proxy, 4000, header), Err(DropReason::InvalidHeader));
        }
    }
}
