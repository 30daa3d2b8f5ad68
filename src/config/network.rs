//! Networks, as access lists spell them: `10.0.0.0/8`, `2001:db8::/32`, or a single address.
//!
//! IPv4 addresses in their mapped form (`::ffff:10.0.0.1`) are IPv4 addresses here, as they are
//! where peers are judged.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Bits of a mapped IPv4 address in front of the IPv4 address itself.
const MAPPED_PREFIX: u8 = 96;

/// All addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(IpNet);

impl Network {
    /// Its first and last address; both are of the same family.
    #[must_use]
    pub fn range(&self) -> (IpAddr, IpAddr) {
        (self.0.network(), self.0.broadcast())
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            self.0.addr().fmt(formatter)
        } else {
            self.0.fmt(formatter)
        }
    }
}

impl FromStr for Network {
    /// What is wrong, and the cure.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let network = match text.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address),
            Err(_) => text.parse::<IpNet>().map_err(|_| {
                format!(
                    "{text:?} is no network; use one such as \"10.0.0.0/8\", \"2001:db8::/32\" or \
                     a single address (numbers, not host names)"
                )
            })?,
        };
        if network.trunc() != network {
            return Err(format!(
                "{text:?} has bits beyond its prefix; use \"{}\" or \"{}\"",
                network.trunc(),
                network.addr()
            ));
        }
        Ok(Self(match network {
            IpNet::V6(network) => unmapped(network),
            IpNet::V4(_) => network,
        }))
    }
}

/// The IPv4 network that `network` is the mapped form of, or itself.
fn unmapped(network: Ipv6Net) -> IpNet {
    let Some(address) = network.addr().to_ipv4_mapped() else { return IpNet::V6(network) };
    let length = network.prefix_len().checked_sub(MAPPED_PREFIX);
    match length.and_then(|length| Ipv4Net::new(address, length).ok()) {
        Some(mapped) => IpNet::V4(mapped),
        None => IpNet::V6(network),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn printed(text: &str) -> String {
        text.parse::<Network>().map_or_else(|problem| problem, |network| network.to_string())
    }

    #[test]
    fn networks_are_read_and_written() {
        for (text, meaning) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1/32", "192.0.2.1"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("2001:DB8:0::1", "2001:db8::1"),
            ("::/0", "::/0"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::/64", "::/64"),
        ] {
            assert_eq!(printed(text), meaning, "{text}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused_with_the_cure() {
        for (text, cure) in [
            (
                "10.0.0.5/8",
                "\"10.0.0.5/8\" has bits beyond its prefix; use \"10.0.0.0/8\" or \"10.0.0.5\"",
            ),
            ("2001:db8::1/32", "use \"2001:db8::/32\" or \"2001:db8::1\""),
            ("10.0.0.0/33", "is no network"),
            ("10.0.0/8", "is no network"),
            ("localhost", "(numbers, not host names)"),
            ("fe80::1%eth0", "is no network"),
            ("", "is no network"),
            ("10.0.0.0/08 ", "is no network"),
        ] {
            assert!(printed(text).contains(cure), "{text}: {}", printed(text));
        }
    }

    #[test]
    fn a_network_is_a_range() {
        let range = |text: &str| text.parse::<Network>().map(|network| network.range());
        let [first, last] = ["10.1.0.0", "10.1.255.255"].map(|text| text.parse().expect("IPv4"));
        assert_eq!(range("10.1.0.0/16"), Ok((first, last)));
        let last = IpAddr::V6(Ipv6Addr::from([255; 16]));
        assert_eq!(range("::/0"), Ok((IpAddr::V6(Ipv6Addr::UNSPECIFIED), last)));
    }
}
