//! The address of a listener, in the syntax of the file, the command line and the log.
//!
//! It must never know whether the address exists: that is determined when it is bound.

use std::fmt;
use std::net::{SocketAddr, SocketAddrV6};
use std::path::PathBuf;
use std::str::FromStr;

use super::echoed;

/// `sun_path` has 108 bytes (unix(7)), one of them for the closing NUL of a path, or for the NUL
/// that an abstract name begins with.
const UNIX_NAME_LENGTH_MAX: usize = 107;
/// `IFNAMSIZ` is 16, one of them for the closing NUL.
const INTERFACE_LENGTH_MAX: usize = 15;

/// The protocol over IP at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

/// The prefix of the address of a UDP socket.
const UDP: &str = "udp:";

/// The type of a Unix socket (unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnixKind {
    /// Streams of bytes (SOCK_STREAM).
    Stream,
    /// Connections that keep the boundaries of messages (SOCK_SEQPACKET).
    Seqpacket,
    /// Datagrams (SOCK_DGRAM).
    Datagram,
}

impl UnixKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Stream, Self::Seqpacket, Self::Datagram];

    /// The prefix of an address, before its colon. Also the protocol in status and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "unix",
            Self::Seqpacket => "unix-seqpacket",
            Self::Datagram => "unix-datagram",
        }
    }
}

/// The name that a Unix socket is bound to, of at most 107 bytes without control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnixName {
    /// A file: an absolute path.
    Path(PathBuf),
    /// A name in the network namespace, not empty. It has no file and therefore no permissions
    /// (unix(7), "abstract").
    Abstract(String),
}

impl fmt::Display for UnixName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(formatter),
            Self::Abstract(name) => write!(formatter, "@{name}"),
        }
    }
}

/// Where a listener listens: `127.0.0.1:7777`, `[::1]:7777`, `[fe80::1%eth0]:7777`, the same after
/// `udp:`; `unix:/path` or `unix:@name`, or the same after `unix-seqpacket:` or `unix-datagram:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// IPv4 or IPv6. Port 0 lets the kernel choose.
    Inet(Protocol, SocketAddr),
    /// IPv6 on one interface, as required for link-local addresses: the address without its zone,
    /// and the zone, which is the name of the interface (RFC 4007, section 11.2). Its index is
    /// looked up when it is bound.
    Zoned(Protocol, SocketAddrV6, String),
    /// A Unix socket.
    Unix(UnixKind, UnixName),
}

impl Address {
    /// Whether both cannot be bound at once. Port 0 never collides: the kernel chooses a free port.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let (one, two) = match (self, other) {
            // A path is one file. An abstract name is separate for each kind (unix_find_abstract).
            (Self::Unix(one, UnixName::Abstract(a)), Self::Unix(two, UnixName::Abstract(b))) => {
                return one == two && a == b;
            }
            (Self::Unix(_, one), Self::Unix(_, two)) => return one == two,
            (Self::Unix(..), _) | (_, Self::Unix(..)) => return false,
            // The same address on two interfaces can be bound twice.
            (Self::Zoned(.., one), Self::Zoned(.., two)) if one != two => return false,
            (one, two) => (one.without_zone(), two.without_zone()),
        };
        let (Some((first, one)), Some((second, two))) = (one, two) else { return false };
        if first != second {
            return false;
        }
        // `[::]` is dual stack here, so it includes every IPv4 address too; `0.0.0.0` includes only
        // those.
        let takes = |wide: &SocketAddr, narrow: &SocketAddr| {
            wide.ip().is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4())
        };
        one.port() == two.port()
            && one.port() != 0
            && (one == two || takes(&one, &two) || takes(&two, &one))
    }

    /// Only protocol and address; None for a Unix socket.
    fn without_zone(&self) -> Option<(Protocol, SocketAddr)> {
        match self {
            Self::Inet(protocol, address) => Some((*protocol, *address)),
            Self::Zoned(protocol, address, _) => Some((*protocol, (*address).into())),
            Self::Unix(..) => None,
        }
    }

    /// Whether it accepts byte streams, which services other than echo need.
    #[must_use]
    pub fn is_stream(&self) -> bool {
        match self {
            Self::Inet(protocol, _) | Self::Zoned(protocol, ..) => *protocol == Protocol::Tcp,
            Self::Unix(kind, _) => *kind == UnixKind::Stream,
        }
    }

    /// Whether it receives datagrams and no connections.
    #[must_use]
    pub fn is_datagram(&self) -> bool {
        self.is_udp() || matches!(self, Self::Unix(UnixKind::Datagram, _))
    }

    /// Whether it is a UDP socket.
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
            Self::Unix(kind, name) => write!(formatter, "{}:{name}", kind.name()),
        }
    }
}

impl FromStr for Address {
    /// What is wrong, and the remedy.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unix = UnixKind::ALL.into_iter().find_map(|kind| {
            let rest = text.strip_prefix(kind.name())?;
            rest.strip_prefix(':').map(|name| (kind, name))
        });
        if let Some((kind, name)) = unix {
            return unix_name(kind, name).map(|name| Self::Unix(kind, name));
        }
        let (protocol, bare) = match text.strip_prefix(UDP) {
            Some(bare) => (Protocol::Udp, bare),
            None => (Protocol::Tcp, text),
        };
        let inet = bare.parse().map(|inet| Self::Inet(protocol, inet)).ok();
        inet.or_else(|| zoned(protocol, bare)).ok_or_else(|| {
            format!(
                "{} is not an address; use one such as \"127.0.0.1:7777\", \"[::1]:7777\", \
                 \"udp:127.0.0.1:7777\" or \"unix:/run/echo.sock\" (numbers, not host names)",
                echoed::quoted(text)
            )
        })
    }
}

/// `/path` or `@name`, after the prefix of its kind.
fn unix_name(kind: UnixKind, name: &str) -> Result<UnixName, String> {
    let prefix = kind.name();
    let quoted = echoed::quoted(&format!("{prefix}:{name}"));
    let (what, bare) = match name.strip_prefix('@') {
        Some(bare) => ("name", bare),
        None => ("path", name),
    };
    let is_name = if what == "name" {
        !bare.is_empty()
    } else {
        bare.starts_with('/') && !bare.ends_with('/')
    };
    if !is_name {
        return Err(format!(
            "{quoted} names no socket; use an absolute path such as \"{prefix}:/run/echo.sock\", \
             or an abstract name such as \"{prefix}:@echo\""
        ));
    }
    // It is shown in the log, the status and metrics.
    if bare.contains(char::is_control) {
        return Err(format!("{quoted} has control characters; use a {what} without"));
    }
    if bare.len() > UNIX_NAME_LENGTH_MAX {
        let length = bare.len();
        return Err(format!(
            "the {what} has {length} bytes; use at most {UNIX_NAME_LENGTH_MAX}, the kernel's limit"
        ));
    }
    Ok(match what {
        "name" => UnixName::Abstract(bare.to_owned()),
        _ => UnixName::Path(bare.into()),
    })
}

/// `[fe80::1%eth0]:7777`.
fn zoned(protocol: Protocol, text: &str) -> Option<Address> {
    let (address, rest) = text.split_once('%')?;
    let (zone, port) = rest.split_once(']')?;
    // The kernel's rule for names of interfaces (dev_valid_name).
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
    fn unix_addresses_have_a_kind_and_a_path_or_an_abstract_name() {
        for kind in UnixKind::ALL {
            for name in ["/run/echo.sock", "@echo", "@/not/a/path", "@a:b"] {
                let text = format!("{}:{name}", kind.name());
                assert_eq!(address(&text).to_string(), text);
                let Address::Unix(found, name) = address(&text) else { panic!("{text}") };
                assert_eq!(found, kind);
                assert_eq!(matches!(name, UnixName::Abstract(_)), text.contains('@'));
                assert_eq!(address(&text).is_stream(), kind == UnixKind::Stream);
            }
            for wrong in ["", "@", "relative", "/run/", "/a\nb", "@a\0"] {
                let text = format!("{}:{wrong}", kind.name());
                assert!(text.parse::<Address>().is_err(), "{text:?}");
            }
            for first in ['@', '/'] {
                let long = |length| format!("{}:{first}{}", kind.name(), "x".repeat(length));
                let longest = 107 - usize::from(first == '/');
                assert!(long(longest).parse::<Address>().is_ok());
                let error = long(longest + 1).parse::<Address>().unwrap_err();
                assert!(error.contains("has 108 bytes; use at most 107"), "{error}");
            }
        }
    }

    /// Goal: addresses that the kernel would refuse as in use are refused beforehand: a path is one
    /// file for all kinds; abstract names of two kinds are distinct (seen on Linux 6.18).
    #[test]
    fn a_path_is_taken_once_and_an_abstract_name_once_for_each_kind() {
        let overlap = |one, two| address(one).overlaps(&address(two));
        assert!(overlap("unix:/a", "unix-seqpacket:/a"));
        assert!(!overlap("unix:@a", "unix-seqpacket:@a"));
        assert!(overlap("unix-datagram:@a", "unix-datagram:@a"));
        assert!(!overlap("unix:@a", "unix:@b") && !overlap("unix:@/a", "unix:/a"));
    }

    #[test]
    fn the_same_address_on_two_interfaces_is_two() {
        let zones = ["[fe80::1%a]:7", "[fe80::1%b]:7", "[::]:7"].map(address);
        assert!(zones[0].overlaps(&zones[0].clone()));
        assert!(!zones[0].overlaps(&zones[1]));
        assert!(zones[0].overlaps(&zones[2]));
    }
}
