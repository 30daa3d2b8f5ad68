//! Networks, in the syntax of access lists: `10.0.0.0/8`, `2001:db8::/32`, or a single address.
//!
//! IPv4 addresses in their mapped form (`::ffff:10.0.0.1`) are IPv4 addresses here, as in the
//! admission of peers.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::echoed;

/// Bits of a mapped IPv4 address before the IPv4 address itself.
const MAPPED_PREFIX: u8 = 96;

/// All addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(IpNet);

impl Network {
    /// Its first and last address. Both are of the same family.
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
    /// The problem, and the remedy.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let quoted = echoed::quoted(text);
        let Some(network) = strict(text) else {
            return Err(match strict(&without_leading_zeros(text)) {
                // inet_aton(3) would read 010 as 8, so nothing is guessed.
                Some(network) => format!(
                    "{quoted} has a number with a leading zero; use \"{network}\" if that is meant"
                ),
                None => format!(
                    "{quoted} is not a network; use one such as \"10.0.0.0/8\", \"2001:db8::/32\" \
                     or a single address (numbers, not host names)"
                ),
            });
        };
        if network.trunc() != network {
            return Err(format!(
                "{quoted} has bits beyond its prefix; use \"{}\" or \"{}\"",
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

/// A network as it is written everywhere: no leading zero, no sign. The standard library parses the
/// address, and is as strict. A single address is a network of one address.
fn strict(text: &str) -> Option<IpNet> {
    let Some((address, prefix)) = text.split_once('/') else {
        return text.parse::<IpAddr>().ok().map(IpNet::from);
    };
    let plain = prefix == "0" || !prefix.starts_with(['0', '+']);
    let length = prefix.parse().ok().filter(|_| plain)?;
    IpNet::new(address.parse().ok()?, length).ok()
}

/// `text` without leading zeros in its numbers.
fn without_leading_zeros(text: &str) -> String {
    let is_digit = |character: Option<char>| character.is_some_and(|it| it.is_ascii_alphanumeric());
    let mut shorter = String::new();
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let leads = !is_digit(shorter.chars().next_back());
        if character != '0' || !leads || !is_digit(characters.peek().copied()) {
            shorter.push(character);
        }
    }
    shorter
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
            ("2001:0db8:0000::/32", "2001:db8::/32"),
        ] {
            assert_eq!(printed(text), meaning, "{text}");
        }
    }

    #[test]
    fn an_invalid_network_is_refused_with_the_remedy() {
        for (text, remedy) in [
            (
                "10.0.0.5/8",
                "\"10.0.0.5/8\" has bits beyond its prefix; use \"10.0.0.0/8\" or \"10.0.0.5\"",
            ),
            ("2001:db8::1/32", "use \"2001:db8::/32\" or \"2001:db8::1\""),
            ("10.0.0.0/33", "is not a network"),
            ("10.0.0/8", "is not a network"),
            ("localhost", "(numbers, not host names)"),
            ("fe80::1%eth0", "is not a network"),
            ("", "is not a network"),
            ("10.0.0.0/08 ", "is not a network"),
            ("10.0.0.0/", "is not a network"),
            ("/8", "is not a network"),
            ("10.0.0.0/8/8", "is not a network"),
            ("10.0.0.0/+8", "is not a network"),
            ("10.0.0.0/-8", "is not a network"),
            ("::/0x20", "is not a network"),
            ("010.0.0.0/8", "has a number with a leading zero; use \"10.0.0.0/8\""),
            ("10.0.0.0/08", "has a number with a leading zero; use \"10.0.0.0/8\""),
            ("192.000.002.001", "has a number with a leading zero; use \"192.0.2.1/32\""),
            ("::/064", "has a number with a leading zero; use \"::/64\""),
            ("::ffff:010.0.0.1", "has a number with a leading zero; use \"::ffff:10.0.0.1"),
        ] {
            assert!(printed(text).contains(remedy), "{text}: {}", printed(text));
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
