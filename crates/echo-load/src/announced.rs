//! What is announced in PROXY headers: the addresses of `--proxy-source`. It knows neither headers
//! nor clap.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// The addresses that are announced, in turn: one, or all of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// As given on the command line.
    text: String,
    first: IpAddr,
    /// How many addresses there are, less one: the bits of the address beyond the prefix.
    mask: u128,
    /// The port to announce, if not that of the connection.
    port: Option<u16>,
}

impl FromStr for Source {
    type Err = String;

    /// `10.0.0.1`, `10.0.0.1:80`, `2001:db8::1`, `[2001:db8::1]:80`, `10.0.0.0/8` or
    /// `2001:db8::/32`.
    fn from_str(text: &str) -> Result<Self, String> {
        let new = |first, mask, port| Self { text: text.to_owned(), first, mask, port };
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(new(address.ip(), 0, Some(address.port())));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(new(address, 0, None));
        }
        let usage = "use an IP address, IP:PORT or a network such as 10.0.0.0/8";
        let (address, prefix) = text.split_once('/').ok_or(usage)?;
        let address: IpAddr = address.parse().map_err(|_| usage)?;
        let (bits, max) = (bits_of(address), if address.is_ipv4() { 32 } else { 128 });
        let prefix = prefix.parse::<u32>().ok().filter(|prefix| *prefix <= max);
        let prefix = prefix.ok_or_else(|| format!("the prefix must be from 0 to {max}"))?;
        let mask = u128::MAX.checked_shr(128 - (max - prefix)).unwrap_or(0);
        if bits & mask != 0 {
            let network = with_bits(address, bits & !mask);
            return Err(format!("it has bits beyond its prefix; use {network}/{prefix}"));
        }
        Ok(new(address, mask, None))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl Source {
    /// What is announced for a connection or a flow, which has the port `port` itself.
    pub(crate) fn address(&self, number: u64, port: u16) -> SocketAddr {
        let bits = bits_of(self.first) | u128::from(number) & self.mask;
        let address = with_bits(self.first, bits);
        SocketAddr::new(address, self.port.unwrap_or(port))
    }
}

fn bits_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// An address of the family of `like`.
pub(crate) fn with_bits(like: IpAddr, bits: u128) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::from_bits(bits as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(bits).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        text.parse().unwrap()
    }

    #[test]
    fn sources_are_announced_in_turn() {
        for (text, number, expected) in [
            ("10.0.0.1", 7, "10.0.0.1:4000"),
            ("10.0.0.1:80", 7, "10.0.0.1:80"),
            ("[2001:db8::1]:80", 7, "[2001:db8::1]:80"),
            ("2001:db8::1", 7, "[2001:db8::1]:4000"),
            ("10.0.0.0/30", 7, "10.0.0.3:4000"),
            ("10.0.0.0/8", (1 << 24) + 258, "10.0.1.2:4000"),
            ("10.0.0.1/32", 7, "10.0.0.1:4000"),
            ("0.0.0.0/0", u64::MAX, "255.255.255.255:4000"),
            ("2001:db8::/64", u64::MAX, "[2001:db8::ffff:ffff:ffff:ffff]:4000"),
            ("::/0", 1, "[::1]:4000"),
        ] {
            assert_eq!(source(text).address(number, 4000).to_string(), expected, "{text}");
            assert_eq!(source(text).to_string(), text);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "x",
            "10.0.0",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/8:80",
            "::1/",
            "10.0.0.0/-1",
            "localhost",
            "10.0.0.1:65536",
        ] {
            assert!(text.parse::<Source>().is_err(), "{text}");
        }
        let fault = "10.1.2.3/8".parse::<Source>().unwrap_err();
        assert!(fault.contains("10.0.0.0/8"), "{fault}");
    }
}
