//! Why bytes are not a header.

use core::fmt;

/// The first fault of a header. Its text completes the sentence "the PROXY protocol header …".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Neither `PROXY ` nor the signature of version 2. On a datagram, not the latter.
    Signature,
    /// The binary signature is followed by another version than 2.
    Version,
    /// Version 2: neither LOCAL nor PROXY.
    Command,
    /// No combination of address family and transport that is defined; version 1: neither `TCP4`,
    /// `TCP6` nor `UNKNOWN`, followed by one space.
    Family,
    /// Version 2: a defined combination for the other kind of socket.
    Transport,
    /// Longer than [`V1_LEN_MAX`](crate::V1_LEN_MAX) or [`HEADER_LEN_MAX`](crate::HEADER_LEN_MAX).
    TooLong,
    /// Version 2: the length does not include the addresses of the family.
    TooShort,
    /// Version 1: no address of the family, or not followed by one space.
    Address,
    /// Version 1: no decimal port number, or not followed by one space or CR.
    Port,
    /// Version 1: CR without LF, or something else where the line must end.
    LineEnd,
    /// Version 2: a TLV reaches beyond the end of the header.
    Tlv,
    /// Version 2: the CRC32C does not match, is not 4 bytes long, or occurs twice.
    Checksum,
    /// A datagram ends within its header. On a stream this is no fault but
    /// [`Progress::Partial`](crate::Progress::Partial).
    Incomplete,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Signature => "does not begin with the signature of the protocol",
            Self::Version => "has an unknown version",
            Self::Command => "has an unknown command",
            Self::Family => "has an unknown protocol or address family",
            Self::Transport => "announces a transport other than that of the socket",
            Self::TooLong => "is too long",
            Self::TooShort => "is too short for its addresses",
            Self::Address => "has an invalid address",
            Self::Port => "has an invalid port",
            Self::LineEnd => "does not end with CR LF where it must",
            Self::Tlv => "has a TLV that reaches beyond its end",
            Self::Checksum => "has an invalid checksum",
            Self::Incomplete => "is incomplete",
        })
    }
}

impl core::error::Error for Fault {}
