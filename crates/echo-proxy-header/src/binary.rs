//! Version 2: sixteen fixed bytes, addresses, and vectors of type, length and value (TLVs).
//!
//! Each byte is judged when it comes. Of a header, only what follows from its first 52 bytes is
//! kept, since no address that is used reaches further, and of TLVs only the one being read and the
//! checksum.

use crate::checksum::Crc32c;
use crate::fault::Fault;
use crate::header::{HEADER_LEN_MAX, Peer, Transport};

//= proxy-protocol.txt 2.2
//# \x0D \x0A \x0D \x0A \x00 \x0D \x0A \x51 \x55 \x49 \x54 \x0A
/// What every header begins with.
pub(crate) const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The first byte of every header.
pub(crate) const FIRST: u8 = SIGNATURE[0];
/// Version in the upper, command in the lower four bits of the byte after the signature.
pub(crate) const LOCAL: u8 = 0x20;
pub(crate) const PROXY: u8 = 0x21;
/// Address family in the upper, transport in the lower four bits of the next byte.
pub(crate) const UNSPEC: u8 = 0x00;
pub(crate) const TCP4: u8 = 0x11;
pub(crate) const UDP4: u8 = 0x12;
pub(crate) const TCP6: u8 = 0x21;
pub(crate) const UDP6: u8 = 0x22;
const UNIX_STREAM: u8 = 0x31;
const UNIX_DATAGRAM: u8 = 0x32;

/// What precedes the addresses: signature, command, family, and the length of what follows.
pub(crate) const FIXED_LEN: u16 = 16;
/// Source and destination address, then source and destination port.
pub(crate) const INET_LEN: u16 = 4 + 4 + 2 + 2;
pub(crate) const INET6_LEN: u16 = 16 + 16 + 2 + 2;
const UNIX_LEN: u16 = 108 + 108;
/// The bytes of a header that are kept.
pub(crate) const HEAD_LEN: usize = (FIXED_LEN + INET6_LEN) as usize;

/// Type and length of a TLV.
pub(crate) const TLV_HEADER_LEN: u16 = 3;
pub(crate) const TYPE_CRC32C: u8 = 0x03;
pub(crate) const CRC32C_LEN: u16 = 4;

/// A header that has begun.
#[derive(Clone, Debug)]
pub(crate) struct Binary {
    /// Bytes so far.
    consumed: u16,
    /// The first of them.
    head: [u8; HEAD_LEN],
    /// Of all bytes so far, with zeroes for a checksum among them.
    calculated: Crc32c,
    /// The checksum among the TLVs, as far as it was received.
    announced: Option<u32>,
    tlv: Tlv,
}

/// A state without the number of bytes so far; see [`Binary::export`].
pub(crate) type Exported = [u8; HEAD_LEN + TLV_HEADER_LEN as usize + 2 + 4 + 1 + 4];

/// The TLV that is being read.
#[derive(Clone, Copy, Debug, Default)]
struct Tlv {
    /// Type and length, as far as they were received; the rest is zero.
    header: [u8; TLV_HEADER_LEN as usize],
    /// Its bytes so far. Zero exactly when no TLV has begun.
    consumed: u16,
}

/// Reads the header of version 2 at the start of one whole datagram, and returns its length and
/// what it announces. Version 1 is not defined for datagrams.
///
/// # Errors
/// The first fault, which includes that the datagram ends within its header.
//= proxy-protocol.txt 2
//# The sender MUST NOT split the PROXY protocol header across multiple UDP datagrams, and the
//# receiver MUST parse the header independently for each received datagram.
pub fn datagram(bytes: &[u8]) -> Result<(usize, Peer), Fault> {
    Binary::new().push(bytes, Transport::Datagram)?.ok_or(Fault::Incomplete)
}

impl Binary {
    pub(crate) const fn new() -> Self {
        Self {
            consumed: 0,
            head: [0; HEAD_LEN],
            calculated: Crc32c::new(),
            announced: None,
            tlv: Tlv { header: [0; TLV_HEADER_LEN as usize], consumed: 0 },
        }
    }

    /// Bytes of the header so far.
    pub(crate) fn consumed(&self) -> usize {
        self.consumed.into()
    }

    /// Continues with `piece`. Returns how much of it belongs to the header, and what the header
    /// announces, if it ends there.
    pub(crate) fn push(
        &mut self,
        piece: &[u8],
        transport: Transport,
    ) -> Result<Option<(usize, Peer)>, Fault> {
        for (index, &byte) in piece.iter().enumerate() {
            self.take(byte, transport)?;
            if self.remaining() == Some(0) {
                return self.verify_checksum().map(|()| Some((index + 1, self.peer())));
            }
        }
        Ok(None)
    }

    fn take(&mut self, byte: u8, transport: Transport) -> Result<(), Fault> {
        if let Some(kept) = self.head.get_mut(usize::from(self.consumed)) {
            *kept = byte;
        }
        match self.consumed {
            at @ 0..12 if byte != SIGNATURE[usize::from(at)] => return Err(Fault::Signature),
            //= proxy-protocol.txt 2.2
            //# As of this specification, it must always be sent as \x2 and the receiver must only
            //# accept this value.
            12 if byte >> 4 != PROXY >> 4 => return Err(Fault::Version),
            //= proxy-protocol.txt 2.2
            //# other values are unassigned and must not be emitted by senders. Receivers must drop
            //# connections presenting unexpected values here.
            12 if !matches!(byte, LOCAL | PROXY) => return Err(Fault::Command),
            13 if !self.is_local() => judge_family(byte, transport)?,
            15 => self.judge_length()?,
            _ => {}
        }
        let is_of_tlv = self.tlvs_at().is_some_and(|start| self.consumed >= start);
        let summed = if is_of_tlv { self.take_tlv(byte)? } else { byte };
        self.calculated.update(summed);
        self.consumed += 1;
        Ok(())
    }

    //= proxy-protocol.txt 2.2
    //# The receiver must accept this connection as valid and must use the real connection endpoints
    //# and discard the protocol block including the family which is ignored.
    fn is_local(&self) -> bool {
        self.head[12] == LOCAL
    }

    //= proxy-protocol.txt 2.2
    //# Thus the length of the protocol header in bytes is always exactly 16 + this value.
    /// The length of the whole header, once its length field is complete.
    fn length(&self) -> usize {
        usize::from(FIXED_LEN) + usize::from(u16::from_be_bytes([self.head[14], self.head[15]]))
    }

    /// How many bytes the header still has, if that is known.
    fn remaining(&self) -> Option<usize> {
        (self.consumed >= FIXED_LEN).then(|| self.length() - self.consumed())
    }

    fn judge_length(&self) -> Result<(), Fault> {
        if self.length() > HEADER_LEN_MAX {
            Err(Fault::TooLong)
        } else if self.tlvs_at().is_some_and(|start| self.length() < start.into()) {
            //= proxy-protocol.txt 2.2
            //# It is used so that the receiver knows how many address bytes to skip even when it
            //# does not implement the presented protocol.
            // A length that does not include the addresses contradicts the family.
            Err(Fault::TooShort)
        } else {
            Ok(())
        }
    }

    /// Where the TLVs begin. `None` where the addresses are ignored: their length is then unknown
    /// as well, so all behind the length field is skipped, a checksum included.
    fn tlvs_at(&self) -> Option<u16> {
        let addresses_len = match self.head[13] {
            _ if self.is_local() => return None,
            TCP4 | UDP4 => INET_LEN,
            TCP6 | UDP6 => INET6_LEN,
            UNIX_STREAM | UNIX_DATAGRAM => UNIX_LEN,
            //= proxy-protocol.txt 2.2
            //# The receiver is free to accept the connection anyway and use the real endpoint
            //# addresses or to reject it. The receiver should ignore address information.
            _ => return None,
        };
        Some(FIXED_LEN + addresses_len)
    }

    //= proxy-protocol.txt 2.2
    //# The first byte is the Type of the vector. The second two bytes represent the length in bytes
    //# of the value (not included the Type and Length bytes), and following the length field is the
    //# number of bytes specified by the length.
    /// Takes one byte of a TLV, and returns the byte that the checksum is calculated of.
    fn take_tlv(&mut self, byte: u8) -> Result<u8, Fault> {
        let at = self.tlv.consumed;
        self.tlv.consumed += 1;
        let mut summed = byte;
        if at < TLV_HEADER_LEN {
            self.tlv.header[usize::from(at)] = byte;
            // Its own bytes, without the one that is being taken.
            let header_rest = usize::from(TLV_HEADER_LEN - at);
            let remaining = self.length() - self.consumed();
            if header_rest > remaining {
                return Err(Fault::Tlv);
            }
            if header_rest == 1 {
                self.begin_value(remaining - header_rest)?;
            }
        } else if self.tlv.header[0] == TYPE_CRC32C {
            self.announced = self.announced.map(|value| value << 8 | u32::from(byte));
            //= proxy-protocol.txt 2.2.3
            //# replace the 32 bits of the checksum field in the received PROXY header with all '0's
            //# and calculate a CRC32c checksum value of the whole PROXY header.
            summed = 0;
        }
        if self.tlv.is_complete() {
            self.tlv = Tlv::default();
        }
        Ok(summed)
    }

    /// Judges type and length of a TLV, behind which the header has `remaining` bytes.
    fn begin_value(&mut self, remaining: usize) -> Result<(), Fault> {
        if usize::from(self.tlv.value_len()) > remaining {
            return Err(Fault::Tlv);
        }
        if self.tlv.header[0] == TYPE_CRC32C {
            //= proxy-protocol.txt 2.2.3
            //# The value of the type PP2_TYPE_CRC32C is a 32-bit number storing the CRC32c checksum
            //# of the PROXY protocol header.
            // With two of them, it is undefined which bytes are zeroes for which checksum.
            if self.tlv.value_len() != CRC32C_LEN || self.announced.is_some() {
                return Err(Fault::Checksum);
            }
            self.announced = Some(0);
        }
        Ok(())
    }

    //= proxy-protocol.txt 2.2.3
    //# verify that the calculated CRC32c checksum is the same as the received CRC32c checksum. If
    //# it is not, the receiver MUST treat the TCP connection providing the header as invalid.
    fn verify_checksum(&self) -> Result<(), Fault> {
        let differs = self.announced.is_some_and(|value| value != self.calculated.value());
        if differs { Err(Fault::Checksum) } else { Ok(()) }
    }

    //= proxy-protocol.txt 2.2
    //# The address order is always the same :
    //#  - source layer 3 address in network byte order
    //#  - destination layer 3 address in network byte order
    //#  - source layer 4 address if any, in network byte order (port)
    //#  - destination layer 4 address if any, in network byte order (port)
    /// What a complete header announces.
    fn peer(&self) -> Peer {
        let head = &self.head;
        match head[13] {
            _ if self.is_local() => Peer::Real,
            TCP4 | UDP4 => {
                let address = [head[16], head[17], head[18], head[19]];
                Peer::announced(address, u16::from_be_bytes([head[24], head[25]]))
            }
            TCP6 | UDP6 => {
                let mut address = [0; 16];
                address.copy_from_slice(&head[16..32]);
                Peer::announced(address, u16::from_be_bytes([head[48], head[49]]))
            }
            // No family, or Unix sockets, whose addresses are of no use on another machine.
            _ => Peer::Real,
        }
    }

    /// Writes all but the number of bytes so far.
    pub(crate) fn export(&self, state: &mut Exported) {
        let mut rest = state.as_mut_slice();
        let mut put = |bytes: &[u8]| {
            let (place, behind) = core::mem::take(&mut rest).split_at_mut(bytes.len());
            place.copy_from_slice(bytes);
            rest = behind;
        };
        put(&self.head);
        put(&self.tlv.header);
        put(&self.tlv.consumed.to_le_bytes());
        put(&self.calculated.register().to_le_bytes());
        put(&[self.announced.is_some().into()]);
        put(&self.announced.unwrap_or(0).to_le_bytes());
    }

    /// The header of a stream of which `state` was written after `consumed` bytes, or `None` if
    /// that cannot be.
    pub(crate) fn import(consumed: u16, state: &Exported) -> Option<Self> {
        let (head, rest) = state.split_first_chunk::<HEAD_LEN>()?;
        let mut header = Self::new();
        let kept = &head[..head.len().min(consumed.into())];
        let Ok(None) = header.push(kept, Transport::Stream) else {
            return None;
        };
        if kept.len() == usize::from(consumed) {
            return Some(header);
        }
        let (tlv_header, rest) = rest.split_first_chunk()?;
        let (tlv_consumed, rest) = rest.split_first_chunk()?;
        let (register, rest) = rest.split_first_chunk()?;
        let (has_announced, announced) = rest.split_first()?;
        let announced = u32::from_le_bytes(*announced.first_chunk()?);
        header.consumed = consumed;
        header.tlv = Tlv { header: *tlv_header, consumed: u16::from_le_bytes(*tlv_consumed) };
        header.calculated = Crc32c::from_register(u32::from_le_bytes(*register));
        header.announced = (*has_announced == 1).then_some(announced);
        header.is_possible().then_some(header)
    }

    /// Whether bytes beyond those that are kept can have led here.
    fn is_possible(&self) -> bool {
        let remaining = self.length().saturating_sub(self.consumed());
        // Bytes of TLVs so far.
        let of_tlvs = self.tlvs_at().map_or(0, |start| self.consumed.saturating_sub(start));
        let has_begun = of_tlvs > 0 || self.announced.is_none();
        remaining > 0
            && has_begun
            && self.tlv.consumed <= of_tlvs
            && self.tlv.is_possible(remaining, self.announced)
    }
}

//= proxy-protocol.txt 2.2
//# Only the UNSPEC protocol byte (\x00) is mandatory to implement on the receiver. A receiver is
//# not required to implement other ones, provided that it automatically falls back to the UNSPEC
//# mode for the valid combinations above that it does not support.
/// Judges family and transport of a PROXY command on a socket of `transport`. A datagram announced
/// on a stream, or the reverse, is refused: no proxy turns one into the other, so one of its two
/// sides is set up wrongly.
fn judge_family(byte: u8, transport: Transport) -> Result<(), Fault> {
    match (byte, transport) {
        (UNSPEC, _)
        | (TCP4 | TCP6 | UNIX_STREAM, Transport::Stream)
        | (UDP4 | UDP6 | UNIX_DATAGRAM, Transport::Datagram) => Ok(()),
        (TCP4 | TCP6 | UNIX_STREAM | UDP4 | UDP6 | UNIX_DATAGRAM, _) => Err(Fault::Transport),
        //= proxy-protocol.txt 2.2
        //# other values are unspecified and must not be emitted in version 2 of this protocol and
        //# must be rejected as invalid by receivers.
        // A family without transport, or the reverse, is not among the values that are "expected".
        _ => Err(Fault::Family),
    }
}

impl Tlv {
    /// The length of its value. Its header must be complete.
    fn value_len(&self) -> u16 {
        u16::from_be_bytes([self.header[1], self.header[2]])
    }

    /// Its length in bytes, header included. Its header must be complete.
    fn length(&self) -> usize {
        usize::from(TLV_HEADER_LEN) + usize::from(self.value_len())
    }

    /// Whether it can be what is being read, with `remaining` bytes of the header to come.
    fn is_possible(&self, remaining: usize, announced: Option<u32>) -> bool {
        let consumed = usize::from(self.consumed);
        if self.consumed < TLV_HEADER_LEN {
            let is_unread = self.header.iter().skip(consumed).all(|byte| *byte == 0);
            let rest = usize::from(TLV_HEADER_LEN - self.consumed);
            return is_unread && (consumed == 0 || rest <= remaining);
        }
        if consumed >= self.length() || self.length() - consumed > remaining {
            return false;
        }
        // Of a checksum, no more than was received.
        let bits = 8 * (self.consumed - TLV_HEADER_LEN);
        self.header[0] != TYPE_CRC32C
            || self.value_len() == CRC32C_LEN && announced.is_some_and(|value| value >> bits == 0)
    }

    fn is_complete(&self) -> bool {
        self.consumed >= TLV_HEADER_LEN && usize::from(self.consumed) == self.length()
    }
}
