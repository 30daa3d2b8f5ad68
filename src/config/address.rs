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

/// Where a listener listens: `127.0.0.1:7777`, `[::1]:7777`, `[fe80::1%eth0]:7777` or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// TCP over IPv4 or IPv6. Port 0 lets the kernel choose.
    Inet(SocketAddr),
    /// TCP over IPv6 on one interface, as link-local addresses need it: the address without its
    /// zone, and the zone, which is the name of the interface (RFC 4007, section 11.2). Which
    /// number it has is asked when it is bound.
    Zoned(SocketAddrV6, String),
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
            (Self::Zoned(_, one), Self::Zoned(_, two)) if one != two => return false,
            (one, two) => (one.without_zone(), two.without_zone()),
        };
        let (Some(one), Some(two)) = (one, two) else { return false };
        // `[::]` is dual stack here, so it takes every IPv4 address too; `0.0.0.0` takes those
        // only.
        let takes = |wide: &SocketAddr, narrow: &SocketAddr| {
            wide.ip().is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4())
        };
        one.port() == two.port()
            && one.port() != 0
            && (one == two || takes(&one, &two) || takes(&two, &one))
    }

    /// The address alone; None of a Unix socket.
    fn without_zone(&self) -> Option<SocketAddr> {
        match self {
            Self::Inet(address) => Some(*address),
            Self::Zoned(address, _) => Some((*address).into()),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(formatter),
            Self::Zoned(address, zone) => {
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
            let inet = text.parse().map(Self::Inet).ok().or_else(|| zoned(text));
            return inet.ok_or_else(|| {
                format!(
                    "{quoted} is not an address; use one such as \"127.0.0.1:7777\", \
                     \"[::1]:7777\" or \"unix:/run/echo.sock\" (numbers, not host names)"
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
fn zoned(text: &str) -> Option<Address> {
    let (address, rest) = text.split_once('%')?;
    let (zone, port) = rest.split_once(']')?;
    // As the kernel names interfaces (dev_valid_name).
    let wrong =
        |it: char| it.is_control() || it.is_whitespace() || it == '/' || it == ':' || it == '%';
    if zone.is_empty() || zone.len() > INTERFACE_LENGTH_MAX || zone.contains(wrong) {
        return None;
    }
    format!("{address}]{port}").parse().ok().map(|inet| Address::Zoned(inet, zone.to_owned()))
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
        assert!(matches!(address(text), Address::Zoned(inet, zone)
            if inet.port() == 7777 && zone == "eth0"));
        for wrong in ["[fe80::1%]:7", "[fe80::1%a b]:7", "[fe80::1%a/b]:7", "1.2.3.4%eth0:7"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_same_address_on_two_interfaces_is_two() {
        let zones = ["[fe80::1%a]:7", "[fe80::1%b]:7", "[::]:7"].map(address);
        assert!(zones[0].overlaps(&zones[0].clone()));
        assert!(!zones[0].overlaps(&zones[1]));
        assert!(zones[0].overlaps(&zones[2]));
    }
}
