//! Where a listener listens, as it is spelled in the file, on the command line and in the log.
//!
//! It must never know whether the address exists: that is found out when it is bound.

use std::fmt;
use std::net::{SocketAddr, SocketAddrV6};
use std::path::PathBuf;
use std::str::FromStr;

use super::echoed;

/// `sun_path` has 108 bytes (unix(7)), one of them for the closing NUL.
const UNIX_PATH_LENGTH_MAX: usize = 107;
/// `IFNAMSIZ` is 16, one of them for the closing NUL.
const INTERFACE_LENGTH_MAX: usize = 15;

/// What runs over IP at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

/// How the address of a UDP socket begins.
const UDP: &str = "udp:";

/// Where a listener listens: `127.0.0.1:7777`, `[::1]:7777`, `[fe80::1%eth0]:7777`, the same after
/// `udp:`, or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// IPv4 or IPv6. Port 0 lets the kernel choose.
    Inet(Protocol, SocketAddr),
    /// IPv6 on one interface, as link-local addresses need it: the address without its zone, and
    /// the zone, which is the name of the interface (RFC 4007, section 11.2). Which number it has
    /// is asked when it is bound.
    Zoned(Protocol, SocketAddrV6, String),
    /// A Unix stream socket: an absolute path of at most 107 bytes, without control
    /// characters.
    Unix(PathBuf),
}

impl Address {
    /// Whether both cannot be bound at once. Port 0 never collides: the kernel finds a free one.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let (one, two) = match (self, other) {
            (Self::Unix(one), Self::Unix(two)) => return one == two,
            (Self::Unix(_), _) | (_, Self::Unix(_)) => return false,
            // The same address on two interfaces is two.
            (Self::Zoned(.., one), Self::Zoned(.., two)) if one != two => return false,
            (one, two) => (one.without_zone(), two.without_zone()),
        };
        let (Some((first, one)), Some((second, two))) = (one, two) else { return false };
        if first != second {
            return false;
        }
        // `[::]` is dual stack here, so it takes every IPv4 address too; `0.0.0.0` takes those
        // only.
        let takes = |wide: &SocketAddr, narrow: &SocketAddr| {
            wide.ip().is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4())
        };
        one.port() == two.port()
            && one.port() != 0
            && (one == two || takes(&one, &two) || takes(&two, &one))
    }

    /// Protocol and address alone; None of a Unix socket.
    fn without_zone(&self) -> Option<(Protocol, SocketAddr)> {
        match self {
            Self::Inet(protocol, address) => Some((*protocol, *address)),
            Self::Zoned(protocol, address, _) => Some((*protocol, (*address).into())),
            Self::Unix(_) => None,
        }
    }

    /// Whether datagrams come there, and no connections.
    #[must_use]
    pub fn is_udp(&self) -> bool {
        matches!(self, Self::Inet(Protocol::Udp, _) | Self::Zoned(Protocol::Udp, ..))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_udp() {
            formatter.write_str(UDP)?;
        }
        match self {
            Self::Inet(_, address) => address.fmt(formatter),
            Self::Zoned(_, address, zone) => {
                write!(formatter, "[{}%{zone}]:{}", address.ip(), address.port())
            }
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Address {
    /// What is wrong, and the remedy.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let quoted = echoed::quoted(text);
        let Some(path) = text.strip_prefix("unix:") else {
            let (protocol, bare) = match text.strip_prefix(UDP) {
                Some(bare) => (Protocol::Udp, bare),
                None => (Protocol::Tcp, text),
            };
            let inet = bare.parse().map(|inet| Self::Inet(protocol, inet)).ok();
            return inet.or_else(|| zoned(protocol, bare)).ok_or_else(|| {
                format!(
                    "{quoted} is not an address; use one such as \"127.0.0.1:7777\", \
                     \"[::1]:7777\", \"udp:127.0.0.1:7777\" or \"unix:/run/echo.sock\" (numbers, \
                     not host names)"
                )
            });
        };
        if !path.starts_with('/') || path.ends_with('/') {
            return Err(format!(
                "{quoted} names no socket; use an absolute path such as \"unix:/run/echo.sock\""
            ));
        }
        // It stands in the log, in the status and in metrics.
        if path.contains(char::is_control) {
            return Err(format!("{quoted} has control characters; use a path without"));
        }
        if path.len() > UNIX_PATH_LENGTH_MAX {
            return Err(format!(
                "the path has {} bytes; use at most {UNIX_PATH_LENGTH_MAX}, the kernel's limit",
                path.len()
            ));
        }
        Ok(Self::Unix(path.into()))
    }
}

/// `[fe80::1%eth0]:7777`.
fn zoned(protocol: Protocol, text: &str) -> Option<Address> {
    let (address, rest) = text.split_once('%')?;
    let (zone, port) = rest.split_once(']')?;
    // As the kernel names interfaces (dev_valid_name).
    let wrong =
        |it: char| it.is_control() || it.is_whitespace() || it == '/' || it == ':' || it == '%';
    if zone.is_empty() || zone.len() > INTERFACE_LENGTH_MAX || zone.contains(wrong) {
        return None;
    }
    let inet = format!("{address}]{port}").parse().ok()?;
    Some(Address::Zoned(protocol, inet, zone.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn a_zone_is_kept_as_it_is_written() {
        let text = "[fe80::1%eth0]:7777";
        assert_eq!(address(text).to_string(), text);
        assert!(matches!(address(text), Address::Zoned(Protocol::Tcp, inet, zone)
            if inet.port() == 7777 && zone == "eth0"));
        for wrong in ["[fe80::1%]:7", "[fe80::1%a b]:7", "[fe80::1%a/b]:7", "1.2.3.4%eth0:7"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn tcp_and_udp_may_have_the_same_port() {
        for text in ["udp:127.0.0.1:7777", "udp:[::]:7", "udp:[fe80::1%eth0]:7"] {
            let udp = address(text);
            assert!(udp.is_udp());
            assert_eq!(udp.to_string(), text);
            let tcp = address(&text[4..]);
            assert!(!tcp.is_udp() && !udp.overlaps(&tcp) && udp.overlaps(&udp.clone()));
        }
        assert!(address("udp:[::]:7").overlaps(&address("udp:127.0.0.1:7")));
        assert!("udp:unix:/a".parse::<Address>().is_err());
    }

    #[test]
    fn the_same_address_on_two_interfaces_is_two() {
        let zones = ["[fe80::1%a]:7", "[fe80::1%b]:7", "[::]:7"].map(address);
        assert!(zones[0].overlaps(&zones[0].clone()));
        assert!(!zones[0].overlaps(&zones[1]));
        assert!(zones[0].overlaps(&zones[2]));
    }
}
