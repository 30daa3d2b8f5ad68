//! Version 1: a line of text.
//!
//! The line is kept as it was received, and judged again from its start after each piece: it has at
//! most 107 bytes and nearly always comes whole. A state machine for each byte would save nothing,
//! and would have a state that cannot be checked after a handover.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;

use crate::fault::Fault;
use crate::header::{Peer, V1_LEN_MAX};

/// The first byte of every line.
pub(crate) const FIRST: u8 = b'P';

/// A line that has begun.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    bytes: [u8; V1_LEN_MAX],
    length: u8,
}

/// Why a line gives no address.
enum Stop {
    /// Every byte can be one of a valid line, but the end is missing.
    Partial,
    Invalid(Fault),
}

impl Line {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; V1_LEN_MAX], length: 0 }
    }

    /// The bytes so far.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length.into()]
    }

    /// Continues with `piece`. Returns how much of it belongs to the line, and what the line
    /// announces, if it ends there.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Result<Option<(usize, Peer)>, Fault> {
        let before = self.bytes().len();
        let taken = piece.len().min(V1_LEN_MAX - before);
        self.bytes[before..][..taken].copy_from_slice(&piece[..taken]);
        // At most V1_LEN_MAX, which fits.
        self.length += taken as u8;
        match judge(self.bytes()) {
            Ok((length, peer)) => Ok(Some((length - before, peer))),
            Err(Stop::Invalid(fault)) => Err(fault),
            //= proxy-protocol.txt 2.1
            //# If the CRLF sequence is not found in the first 107 characters, the receiver should
            //# declare the line invalid.
            Err(Stop::Partial) => match self.bytes() {
                [.., b'\r'] if self.bytes().len() < V1_LEN_MAX => Ok(None),
                bytes if bytes.len() < V1_LEN_MAX - 1 => Ok(None),
                _ => Err(Fault::TooLong),
            },
        }
    }
}

/// Judges the bytes of a line so far, and perhaps of what follows it. Returns the length of the
/// line with its CR LF, and what it announces.
fn judge(bytes: &[u8]) -> Result<(usize, Peer), Stop> {
    let mut rest = Rest(bytes);
    //= proxy-protocol.txt 2.1
    //# Any sequence which does not exactly match the protocol must be discarded and cause the
    //# receiver to abort the connection. It is recommended to abort the connection as soon as
    //# possible so that the sender gets a chance to notice the anomaly and log it.
    rest.one_of(["PROXY "], Fault::Signature)?;
    let peer = match rest.one_of(["TCP4 ", "TCP6 ", "UNKNOWN"], Fault::Family)? {
        "TCP4 " => rest.addresses::<Ipv4Addr>()?,
        "TCP6 " => rest.addresses::<Ipv6Addr>()?,
        _ => {
            rest.ignored()?;
            Peer::Real
        }
    };
    //= proxy-protocol.txt 2.1
    //# The receiver must not tolerate a single CR or LF character to end the line when a complete
    //# CRLF sequence is expected.
    rest.one_of(["\n"], Fault::LineEnd)?;
    Ok((bytes.len() - rest.0.len(), peer))
}

/// What of a line has not been judged yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    /// Takes whichever of `texts` comes next. None of them begins with another.
    fn one_of<const N: usize>(
        &mut self,
        texts: [&'static str; N],
        fault: Fault,
    ) -> Result<&'static str, Stop> {
        for text in texts {
            if let Some(rest) = self.0.strip_prefix(text.as_bytes()) {
                self.0 = rest;
                return Ok(text);
            }
        }
        let is_partial = texts.iter().any(|text| text.as_bytes().starts_with(self.0));
        Err(if is_partial { Stop::Partial } else { Stop::Invalid(fault) })
    }

    //= proxy-protocol.txt 2.1
    //# For "UNKNOWN", the rest of the line before the CRLF may be omitted by the sender, and the
    //# receiver must ignore anything presented before the CRLF is found.
    /// Takes all behind UNKNOWN up to the LF. Where the line is not omitted, one space precedes it.
    /// A CR or LF alone is then among what is ignored: it does not end the line.
    fn ignored(&mut self) -> Result<(), Stop> {
        if self.one_of([" ", "\r"], Fault::LineEnd)? == " " {
            let end = self.0.windows(2).position(|pair| pair == b"\r\n").ok_or(Stop::Partial)?;
            self.0 = &self.0[end + 1..];
        }
        Ok(())
    }

    /// Takes source and destination addresses and ports, and the CR. They are fields with exactly
    /// one character between them; a second space is the end of an empty field, and no address.
    fn addresses<A: FromStr + Into<IpAddr>>(&mut self) -> Result<Peer, Stop> {
        let source: A = self.field(b' ', address, is_partial_address::<A>, Fault::Address)?;
        let _: A = self.field(b' ', address, is_partial_address::<A>, Fault::Address)?;
        let source_port = self.field(b' ', port, is_partial_port, Fault::Port)?;
        self.field(b'\r', port, is_partial_port, Fault::Port)?;
        Ok(Peer::announced(source, source_port))
    }

    //= proxy-protocol.txt 2.1
    //# The receiver must wait for the CRLF sequence before starting to decode the addresses in
    //# order to ensure they are complete and properly parsed.
    /// Takes one field and the character that ends it. The address is reported with the CRLF; what
    /// cannot become a field is a fault at once.
    fn field<T>(
        &mut self,
        end: u8,
        parse: fn(&'a str) -> Option<T>,
        is_partial: fn(&str) -> bool,
        fault: Fault,
    ) -> Result<T, Stop> {
        let length = self.0.iter().position(|byte| *byte == end);
        let text = str::from_utf8(&self.0[..length.unwrap_or(self.0.len())]);
        let text = text.map_err(|_| Stop::Invalid(fault))?;
        let Some(length) = length else {
            return Err(if is_partial(text) { Stop::Partial } else { Stop::Invalid(fault) });
        };
        self.0 = &self.0[length + 1..];
        parse(text).ok_or(Stop::Invalid(fault))
    }
}

//= proxy-protocol.txt 2.1
//# Heading zeroes are not permitted in front of numbers in order to avoid any possible confusion
//# with octal numbers.
/// An address in its canonical form. The parsers of `core` are as strict as the specification:
/// four decimal numbers without leading zeroes; groups of up to four hexadecimal digits, one `::`,
/// the last 32 bits in the form of IPv4 if wanted (RFC 4291, 2.2), no zone.
fn address<A: FromStr>(text: &str) -> Option<A> {
    text.parse().ok()
}

/// Whether more characters can make `text` an address: whether one of [`COMPLETIONS`] does.
fn is_partial_address<A: FromStr>(text: &str) -> bool {
    let mut completed = [0; ADDRESS_LEN_MAX + COMPLETION_LEN_MAX];
    let Some(begun) = completed[..ADDRESS_LEN_MAX].get_mut(..text.len()) else {
        return false;
    };
    begun.copy_from_slice(text.as_bytes());
    COMPLETIONS.iter().any(|completion| {
        let length = text.len() + completion.len();
        completed[text.len()..length].copy_from_slice(completion.as_bytes());
        str::from_utf8(&completed[..length]).is_ok_and(|text| text.parse::<A>().is_ok())
    })
}

/// The longest text of an IPv6 address: six groups, and IPv4.
const ADDRESS_LEN_MAX: usize = "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255".len();
const COMPLETION_LEN_MAX: usize = "0.0.0.0".len();

/// What completes every beginning of an address of either family that can be completed at all.
const COMPLETIONS: [&str; 10] =
    ["", "0", ":", "::", ".0", "0.0", ".0.0", "0.0.0", ".0.0.0", "0.0.0.0"];

//= proxy-protocol.txt 2.1
//# the TCP source port represented as a decimal integer in the range [0..65535] inclusive.
/// A port. The parser of `core` alone would take a sign and leading zeroes.
fn port(text: &str) -> Option<u16> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    let has_leading_zero = text.len() > 1 && text.starts_with('0');
    if is_number && !has_leading_zero { text.parse().ok() } else { None }
}

/// Every beginning of a port is a port itself, but for the empty one.
fn is_partial_port(text: &str) -> bool {
    text.is_empty() || port(text).is_some()
}
