//! The target of the load: its syntax and its addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, ToSocketAddrs};

use nix::net::if_::if_nametoindex;
use socket2::{SockAddr, Type};

/// The target, as text and parsed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Target {
    /// As given on the command line.
    pub(crate) text: String,
    transport: Transport,
    place: Place,
}

#[derive(Clone, Debug, PartialEq)]
enum Place {
    /// A name or an address, and a port.
    Internet {
        host: String,
        port: u16,
    },
    Unix(SockAddr),
}

/// What messages are sent over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    /// Unix sockets of type SOCK_STREAM.
    Unix,
    /// Unix sockets of type SOCK_SEQPACKET: connections that keep the bounds of messages.
    UnixSeqpacket,
    Udp,
    /// Unix sockets of type SOCK_DGRAM.
    UnixDatagram,
}

impl Transport {
    /// The word for it in JSON.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
            Self::UnixSeqpacket => "unix-seqpacket",
            Self::Udp => "udp",
            Self::UnixDatagram => "unix-datagram",
        }
    }

    /// The type of its sockets.
    pub(crate) fn socket_type(self) -> Type {
        match self {
            Self::Tcp | Self::Unix => Type::STREAM,
            Self::UnixSeqpacket => Type::SEQPACKET,
            Self::Udp | Self::UnixDatagram => Type::DGRAM,
        }
    }

    /// Whether its sockets are Unix sockets.
    pub(crate) fn is_unix(self) -> bool {
        matches!(self, Self::Unix | Self::UnixSeqpacket | Self::UnixDatagram)
    }

    /// Whether each message is a datagram, and there are flows instead of connections.
    pub(crate) fn sends_datagrams(self) -> bool {
        matches!(self, Self::Udp | Self::UnixDatagram)
    }
}

/// What a target begins with, and the transport that it selects; without any of these, TCP.
const SCHEMES: [(&str, Transport); 5] = [
    ("tcp://", Transport::Tcp),
    ("udp://", Transport::Udp),
    ("unix:", Transport::Unix),
    ("unix-seqpacket:", Transport::UnixSeqpacket),
    ("unix-datagram:", Transport::UnixDatagram),
];

/// Why there is no address to connect to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Unresolved {
    /// The name cannot be resolved.
    Name(String),
    /// It has no address in the family of `--source`.
    Family(String),
}

/// One address of a target.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Address {
    pub(crate) socket: SockAddr,
    transport: Transport,
}

impl Target {
    /// Parses `tcp://HOST:PORT`, `HOST:PORT`, `udp://HOST:PORT`, `unix:PATH`,
    /// `unix-seqpacket:PATH` or `unix-datagram:PATH`. `@NAME` instead of a path is in the abstract
    /// namespace. An IPv6 address is in brackets, with its zone if it needs one:
    /// `[fe80::1%eth0]:7`.
    ///
    /// # Errors
    /// A text with the error and the syntax.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!(
                "TARGET {text:?}: {why}; use HOST:PORT, tcp://HOST:PORT, udp://HOST:PORT, \
                 unix:PATH, unix-seqpacket:PATH or unix-datagram:PATH"
            )
        };
        let schemed = SCHEMES.iter().find_map(|(prefix, transport)| {
            without_prefix(text, prefix).map(|rest| (rest, *transport))
        });
        let (rest, transport) = schemed.unwrap_or((text, Transport::Tcp));
        let place = if transport.is_unix() {
            unix(rest).map_err(|why| wrong(&why))?
        } else {
            if rest.contains("//") {
                return Err(wrong("the scheme is unknown"));
            }
            let (host, port) = internet(rest.strip_suffix('/').unwrap_or(rest)).map_err(wrong)?;
            Place::Internet { host, port }
        };
        Ok(Self { text: text.to_owned(), transport, place })
    }

    pub(crate) fn transport(&self) -> Transport {
        self.transport
    }

    /// All its addresses, in the order in which they are tried; with `sources`, only those of the
    /// same family.
    ///
    /// # Errors
    /// When the name cannot be resolved, or has no address in the family of the sources.
    pub(crate) fn resolve(&self, sources: &[IpAddr]) -> Result<Vec<Address>, Unresolved> {
        let transport = self.transport;
        let (host, port) = match &self.place {
            Place::Unix(socket) => return Ok(vec![Address { socket: socket.clone(), transport }]),
            Place::Internet { host, port } => (host.as_str(), *port),
        };
        let mut found = match host.split_once('%') {
            Some((address, zone)) => vec![in_zone(address, zone, port)?],
            None => (host, port)
                .to_socket_addrs()
                .map(Iterator::collect)
                .map_err(|error| Unresolved::Name(error.to_string()))?,
        };
        found.dedup();
        if found.is_empty() {
            return Err(Unresolved::Name("the name has no address".to_owned()));
        }
        if let Some(source) = sources.first() {
            found.retain(|address| address.is_ipv4() == source.is_ipv4());
            if found.is_empty() {
                let family = if source.is_ipv4() { "IPv4" } else { "IPv6" };
                let text = format!("it has no {family} address, which --source {source} needs");
                return Err(Unresolved::Family(text));
            }
        }
        if transport == Transport::Udp {
            found.iter_mut().for_each(replace_wildcard);
        }
        Ok(found.into_iter().map(|it| Address { socket: it.into(), transport }).collect())
    }
}

/// Datagrams to the wildcard address go to the loopback address, and are answered from there.
fn replace_wildcard(address: &mut SocketAddr) {
    match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.socket.as_socket() {
            return address.fmt(formatter);
        }
        let scheme = self.transport.word();
        match (self.socket.as_pathname(), self.socket.as_abstract_namespace()) {
            (Some(path), _) => write!(formatter, "{scheme}:{}", path.display()),
            (None, Some(name)) => write!(formatter, "{scheme}:@{}", String::from_utf8_lossy(name)),
            (None, None) => write!(formatter, "{scheme}:"),
        }
    }
}

/// An address on the interface with the name or number `zone`.
fn in_zone(address: &str, zone: &str, port: u16) -> Result<SocketAddr, Unresolved> {
    let address = address.parse::<Ipv6Addr>().map_err(|_| {
        Unresolved::Name(format!("{address} has a zone but is not an IPv6 address"))
    })?;
    let scope = zone.parse().or_else(|_| if_nametoindex(zone));
    let scope = scope.map_err(|_| Unresolved::Name(format!("there is no interface {zone}")))?;
    Ok(SocketAddrV6::new(address, port, 0, scope).into())
}

/// The rest of `text` after `prefix`, ignoring case.
fn without_prefix<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let start = text.get(..prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then(|| &text[prefix.len()..])
}

fn unix(path: &str) -> Result<Place, String> {
    if path.is_empty() || path == "@" {
        return Err("the path is empty".to_owned());
    }
    // A NUL in front makes it abstract (unix(7)).
    let path = path.strip_prefix('@').map_or(path.to_owned(), |name| format!("\0{name}"));
    SockAddr::unix(path).map(Place::Unix).map_err(|error| error.to_string())
}

fn internet(text: &str) -> Result<(String, u16), &'static str> {
    let (host, port) = text.rsplit_once(':').ok_or("the port is missing")?;
    let port = port.parse::<u16>().ok().filter(|port| *port != 0);
    let port = port.ok_or("the port must be a number from 1 to 65535")?;
    let host = match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']').ok_or("a bracket is missing")?,
        None if host.contains(':') => return Err("an IPv6 address must be in brackets"),
        None => host,
    };
    if host.is_empty() {
        return Err("the host is missing");
    }
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(text: &str) -> Vec<String> {
        let found = Target::parse(text).unwrap().resolve(&[]);
        found.unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_spelling_is_understood() {
        for (text, expected) in [
            ("tcp://127.0.0.1:7", "127.0.0.1:7"),
            ("TCP://127.0.0.1:7/", "127.0.0.1:7"),
            ("127.0.0.1:7", "127.0.0.1:7"),
            ("udp://127.0.0.1:7", "127.0.0.1:7"),
            ("Udp://[::1]:7/", "[::1]:7"),
            ("udp://0.0.0.0:7", "127.0.0.1:7"),
            ("udp://[::]:7", "[::1]:7"),
            ("[::1]:7", "[::1]:7"),
            ("tcp://[fe80::1%1]:7", "[fe80::1%1]:7"),
            ("tcp://[fe80::1%lo]:7", "[fe80::1%1]:7"),
            ("unix:/run/x", "unix:/run/x"),
            ("UNIX:/run/x", "unix:/run/x"),
            ("unix:@name", "unix:@name"),
            ("unix-seqpacket:/run/x", "unix-seqpacket:/run/x"),
            ("Unix-SeqPacket:@name", "unix-seqpacket:@name"),
            ("unix-datagram:/run/x", "unix-datagram:/run/x"),
            ("unix-datagram:@name", "unix-datagram:@name"),
        ] {
            assert_eq!(addresses(text), [expected], "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "x",
            "http://x:7",
            "udp:x:7",
            "udp://x",
            "tcp://x",
            "tcp://x:0",
            "tcp://x:70000",
            "::1:7",
            "[::1:7",
            ":7",
            "unix:",
            "unix:@",
            "unix-seqpacket:",
            "unix-datagram:@",
            "unix-stream:/x",
        ] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_scheme_selects_the_transport() {
        for (text, transport) in [
            ("x:7", Transport::Tcp),
            ("tcp://x:7", Transport::Tcp),
            ("udp://x:7", Transport::Udp),
            ("unix:/x", Transport::Unix),
            ("unix-seqpacket:/x", Transport::UnixSeqpacket),
            ("unix-datagram:/x", Transport::UnixDatagram),
        ] {
            assert_eq!(Target::parse(text).unwrap().transport(), transport, "{text}");
        }
    }

    #[test]
    fn a_source_picks_the_family() {
        let target = Target::parse("127.0.0.1:7").unwrap();
        assert!(target.resolve(&["127.0.0.2".parse().unwrap()]).is_ok());
        assert!(target.resolve(&["::1".parse().unwrap()]).is_err());
    }
}
