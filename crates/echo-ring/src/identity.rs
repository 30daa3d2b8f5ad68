//! The identity of a listener: one line of JSON that tells a peer which of many servers it has
//! reached, and as whom.
//!
//! ```text
//! {"host":"web-1","listener":"lan","worker":3,"peer":"192.0.2.1:40000","local":"192.0.2.7:7"}
//! ```
//!
//! What the peer may have chosen is the name of its Unix socket. All text is ASCII in the end, and
//! as short as it takes for the longest line to fit [`IDENTITY_LENGTH_MAX`]. No system call here.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;

use socket2::SockAddr;

/// No line has more bytes, so each fits an empty send buffer of any size, and a datagram of this
/// number of bytes is long enough for any answer.
pub const IDENTITY_LENGTH_MAX: usize = 512;

/// Bytes of one text of a line, escaped; what is longer is cut.
const TEXT_LENGTH_MAX: usize = 64;

const CUT: &str = "...";
const UNIX: &str = "unix";

/// The longest address: IPv6 with its zone and its port.
const INET_LENGTH_MAX: usize = "[1111:2222:3333:4444:5555:6666:7777:8888%4294967295]:65535".len();
/// The names of all fields, with their punctuation.
const FRAME: &str = concat!(
    r#"{"host":"","instance":"","listener":"","worker":,"peer":"","announced":"","local":""}"#,
    "\n"
);
const NUMBER_LENGTH_MAX: usize = 20;

const _: () = {
    let text = TEXT_LENGTH_MAX + CUT.len();
    let address = UNIX.len() + 1 + text;
    assert!(INET_LENGTH_MAX <= address);
    let longest = FRAME.len() + 3 * text + NUMBER_LENGTH_MAX + 2 * address + INET_LENGTH_MAX;
    assert!(longest <= IDENTITY_LENGTH_MAX);
};

const WRITES: &str = "invariant: writing to a String never fails";

/// What is always the same on the lines of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The name of this machine, if peers are to know it.
    pub host: Option<String>,
    /// The name of the instance, if it is one of several.
    pub instance: Option<String>,
    /// The name of the listener.
    pub listener: String,
}

/// What is known of one connection or datagram.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// Where it comes from, as the socket tells it.
    pub(super) peer: Address,
    /// Where it comes from, as its header (PROXY protocol) tells it.
    pub(super) announced: Option<SocketAddr>,
    /// What it was sent to.
    pub(super) local: Address,
}

/// The address of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// The kernel does not tell it: the peer has gone.
    Unknown,
    Inet(SocketAddr),
    /// The name of a Unix socket, as [`unix_name`] tells it; empty if there is none.
    Unix(Box<[u8]>),
}

impl Address {
    pub(super) fn of(address: &SockAddr) -> Self {
        if let Some(inet) = address.as_socket() {
            return Self::inet(inet);
        }
        Self::Unix(unix_name(address).unwrap_or_default())
    }

    /// An IPv4 peer of a socket for both families is an IPv4 peer.
    pub(super) fn inet(address: SocketAddr) -> Self {
        let canonical = address.ip().to_canonical();
        Self::Inet(match canonical == address.ip() {
            true => address,
            false => SocketAddr::new(canonical, address.port()),
        })
    }
}

/// The name of a Unix socket as `sun_path` has it (unix(7)): a path, or an abstract name behind a
/// NUL.
pub(super) fn unix_name(address: &SockAddr) -> Option<Box<[u8]>> {
    let path = address.as_pathname().map(|path| path.as_os_str().as_bytes().into());
    path.or_else(|| address.as_abstract_namespace().map(|name| [b"\0", name].concat().into()))
}

impl Identity {
    /// The line for this peer, which reached this worker.
    pub(super) fn line(&self, worker: usize, facts: &Facts) -> String {
        let mut line = String::with_capacity(IDENTITY_LENGTH_MAX);
        line.push('{');
        for (name, text) in [("host", &self.host), ("instance", &self.instance)] {
            if let Some(text) = text {
                field(&mut line, name, "", text);
                line.push(',');
            }
        }
        field(&mut line, "listener", "", &self.listener);
        write!(line, r#","worker":{worker}"#).expect(WRITES);
        address(&mut line, "peer", &facts.peer);
        if let Some(announced) = facts.announced {
            address(&mut line, "announced", &Address::inet(announced));
        }
        address(&mut line, "local", &facts.local);
        line.push_str("}\n");
        line
    }
}

fn address(line: &mut String, name: &str, address: &Address) {
    match address {
        Address::Unknown => {}
        Address::Inet(inet) => write!(line, r#","{name}":"{inet}""#).expect(WRITES),
        Address::Unix(path) => {
            let (prefix, path) = match **path {
                [] => (UNIX, &path[..]),
                [0, ..] => ("unix:@", &path[1..]),
                _ => ("unix:", &path[..]),
            };
            line.push(',');
            field(line, name, prefix, &String::from_utf8_lossy(path));
        }
    }
}

/// Appends a field whose text may be anything: as ASCII, and cut.
fn field(line: &mut String, name: &str, prefix: &str, text: &str) {
    write!(line, r#""{name}":"{prefix}"#).expect(WRITES);
    let begin = line.len() - usize::from(prefix.ends_with('@'));
    for character in text.chars() {
        let end = line.len();
        match character {
            '"' | '\\' => line.extend(['\\', character]),
            ' '..='~' => line.push(character),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(line, r"\u{unit:04x}").expect(WRITES);
                }
            }
        }
        if line.len() - begin > TEXT_LENGTH_MAX {
            line.truncate(end);
            line.push_str(CUT);
            break;
        }
    }
    line.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity { host: None, instance: None, listener: "lan".into() }
    }

    fn inet(text: &str) -> Address {
        Address::inet(text.parse().expect("an address"))
    }

    fn facts() -> Facts {
        let (peer, local) = (inet("192.0.2.1:40000"), inet("[2001:db8::7]:7"));
        Facts { peer, announced: None, local }
    }

    #[test]
    fn a_line_has_what_is_known_and_names_no_host_unless_told() {
        assert_eq!(
            identity().line(3, &facts()),
            "{\"listener\":\"lan\",\"worker\":3,\"peer\":\"192.0.2.1:40000\",\
             \"local\":\"[2001:db8::7]:7\"}\n"
        );
        let announced = Some("[::ffff:198.51.100.9]:5".parse().expect("an address"));
        let identity =
            Identity { host: Some("web-1".into()), instance: Some("lab".into()), ..identity() };
        assert_eq!(
            identity.line(0, &Facts { announced, peer: Address::Unknown, ..facts() }),
            "{\"host\":\"web-1\",\"instance\":\"lab\",\"listener\":\"lan\",\"worker\":0,\
             \"announced\":\"198.51.100.9:5\",\"local\":\"[2001:db8::7]:7\"}\n"
        );
    }

    /// Goal: whatever a peer calls its socket, the line stays one line of JSON, and ASCII.
    #[test]
    fn the_name_of_a_unix_socket_is_escaped() {
        for (name, shown) in [
            (&b""[..], "unix"),
            (b"/run/a", "unix:/run/a"),
            (b"\0a\0b", r"unix:@a\u0000b"),
            (b"/\"},{\\\n", r#"unix:/\"},{\\\u000a"#),
            ("/\u{202e}\u{1f600}".as_bytes(), r"unix:/\u202e\ud83d\ude00"),
            (b"/\xff", r"unix:/\ufffd"),
        ] {
            let line = identity().line(0, &Facts { peer: Address::Unix(name.into()), ..facts() });
            assert!(line.contains(&format!("\"peer\":\"{shown}\",\"local\"")), "{line}");
        }
    }

    /// Goal: the longest line has no more bytes than it may have, and is cut between characters.
    #[test]
    fn the_longest_line_fits() {
        let long = |character: &str| Some(character.repeat(200));
        for character in ["a", "\"", "\u{1f600}", "\u{1}"] {
            let identity = Identity {
                host: long(character),
                instance: long(character),
                listener: character.repeat(200),
            };
            let name = |first: &str| {
                Address::Unix(format!("{first}{}", character.repeat(107)).into_bytes().into())
            };
            let announced = "[1111:2222:3333:4444:5555:6666:7777:8888%4294967295]:65535";
            let announced = Some(announced.parse().expect("an address"));
            let facts = Facts { peer: name("\0"), announced, local: name("/") };
            let line = identity.line(usize::MAX, &facts);
            assert!(line.len() <= IDENTITY_LENGTH_MAX && line.is_ascii(), "{}: {line}", line.len());
            assert!(line.ends_with("...\"}\n"), "{line}");
        }
    }
}
