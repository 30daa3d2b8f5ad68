//! Sender and control messages (cmsg(3)) of a datagram, in the layout of the kernel, and their
//! conversion to the control messages of the reply. Bytes in, bytes out; no system call.

use std::net::Ipv6Addr;

use super::peer;
use echo_core::datagram::Endpoint;
use echo_core::op::PeerAddr;

/// `UDP_SEGMENT` and `UDP_GRO` of include/uapi/linux/udp.h.
const UDP_SEGMENT: i32 = 103;
const UDP_GRO: i32 = 104;

const HEADER: usize = size_of::<libc::cmsghdr>();
const PKTINFO: usize = size_of::<libc::in_pktinfo>();
const PKTINFO6: usize = size_of::<libc::in6_pktinfo>();

/// Room that a control message with `data` bytes of data takes (CMSG_SPACE(3)).
const fn space(data: usize) -> usize {
    HEADER.next_multiple_of(size_of::<usize>()) + data.next_multiple_of(size_of::<usize>())
}

/// Room for the length of the segments of a burst.
pub(super) const SPACE_GRO: usize = space(size_of::<i32>());
/// The same, and for an IPv4 destination.
pub(super) const SPACE_IPV4: usize = SPACE_GRO + space(PKTINFO);
/// The same, and for an IPv6 destination.
pub(super) const SPACE_IPV6: usize = SPACE_GRO + space(PKTINFO6);

/// The content of the control messages of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Control {
    /// Bytes of each datagram of a burst; 0 if there is no burst.
    pub(super) segment: u16,
    /// See [`echo_core::datagram::Datagram::destination`].
    pub(super) destination: PeerAddr,
    /// See [`echo_core::datagram::Datagram::local`].
    pub(super) local: PeerAddr,
    /// Bytes of the control messages of the reply.
    pub(super) length: usize,
    /// Bytes of the mark of a burst, which is the first control message of the reply.
    pub(super) burst_length: usize,
}

/// Reads the control messages of a datagram of `payload` bytes, and replaces them by those of the
/// reply: a burst is sent in segments of the same size, and from the address that the datagram was
/// sent to.
///
/// The interface is kept only for a link-local address. With other addresses, a reply to a source
/// without a route would be sent to the link that the datagram came from instead of being refused.
pub(super) fn turn_around(control: &mut [u8], payload: usize) -> Control {
    let mut copy = [0; SPACE_IPV6];
    let length = control.len().min(copy.len());
    let received = &mut copy[..length];
    received.copy_from_slice(&control[..length]);
    let (mut destination, mut local) = (PeerAddr::Unknown, PeerAddr::Unknown);
    let mut burst = 0;
    let mut reply = Reply { control, length: 0 };
    for message in messages(received) {
        if (message.level, message.kind) == (libc::SOL_UDP, UDP_GRO) && message.data.len() >= 4 {
            let segment = i32::from_ne_bytes(array(message.data));
            burst = u16::try_from(segment).unwrap_or(0);
        }
    }
    // A burst of one datagram is a plain datagram.
    let segment = if usize::from(burst) < payload { burst } else { 0 };
    if segment > 0 {
        reply.push(libc::SOL_UDP, UDP_SEGMENT, &segment.to_ne_bytes());
    }
    let burst_length = reply.length;
    for message in messages(received) {
        match (message.level, message.kind) {
            // The interface (4 bytes), our address, and the destination in the header.
            (libc::IPPROTO_IP, libc::IP_PKTINFO) if message.data.len() == PKTINFO => {
                local = PeerAddr::Ipv4(array(&message.data[4..]));
                destination = PeerAddr::Ipv4(array(&message.data[8..]));
                let mut data: [u8; PKTINFO] = array(message.data);
                data[..4].fill(0);
                reply.push(message.level, message.kind, &data);
            }
            // The address, and the interface.
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if message.data.len() == PKTINFO6 => {
                let address = Ipv6Addr::from(array::<16>(message.data));
                destination = peer::of_ip(address.into());
                local = destination;
                let mut data: [u8; PKTINFO6] = array(message.data);
                if !address.is_unicast_link_local() {
                    data[16..].fill(0);
                }
                reply.push(message.level, message.kind, &data);
            }
            _ => {}
        }
    }
    Control { segment, destination, local, length: reply.length, burst_length }
}

/// The sender of a datagram, from a socket address of the kernel (ip(7), ipv6(7), unix(7)).
pub(super) fn source(name: &[u8]) -> Endpoint {
    let none = Endpoint { address: PeerAddr::Unknown, port: 0 };
    let Some((family, rest)) = name.split_first_chunk::<2>() else { return none };
    let address = match i32::from(u16::from_ne_bytes(*family)) {
        libc::AF_UNIX if !rest.is_empty() => {
            return Endpoint { address: PeerAddr::Local, port: 0 };
        }
        libc::AF_INET if name.len() >= size_of::<libc::sockaddr_in>() => {
            PeerAddr::Ipv4(array(&rest[2..]))
        }
        libc::AF_INET6 if name.len() >= size_of::<libc::sockaddr_in6>() => {
            peer::of_ip(array::<16>(&rest[6..]).into())
        }
        _ => return none,
    };
    Endpoint { address, port: u16::from_be_bytes(array(rest)) }
}

/// The control messages of a reply, as they are written.
struct Reply<'a> {
    control: &'a mut [u8],
    length: usize,
}

impl Reply<'_> {
    /// Adds a message, which is no longer than the one that it answers.
    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let (start, data_start) = (self.length, self.length + space(0));
        let end = start + space(data.len());
        let Some(room) = self.control.get_mut(start..end) else { return };
        room.fill(0);
        let length = space(0) + data.len();
        room[..size_of::<usize>()].copy_from_slice(&length.to_ne_bytes());
        room[size_of::<usize>()..][..4].copy_from_slice(&level.to_ne_bytes());
        room[size_of::<usize>() + 4..][..4].copy_from_slice(&kind.to_ne_bytes());
        self.control[data_start..data_start + data.len()].copy_from_slice(data);
        self.length = end;
    }
}

/// A control message.
struct Message<'a> {
    level: i32,
    kind: i32,
    data: &'a [u8],
}

/// The messages of `control`, as far as they are whole.
fn messages(mut control: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = control.get(..space(0))?;
        let length = usize::from_ne_bytes(array(header));
        let data = control.get(space(0)..length)?;
        let level = i32::from_ne_bytes(array(&header[size_of::<usize>()..]));
        let kind = i32::from_ne_bytes(array(&header[size_of::<usize>() + 4..]));
        control = control.get(length.next_multiple_of(size_of::<usize>())..).unwrap_or(&[]);
        Some(Message { level, kind, data })
    })
}

/// The first `N` bytes of `bytes`, which has at least as many.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    *bytes.first_chunk().expect("invariant: the length was checked")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut room = vec![0; space(data.len())];
        let mut reply = Reply { control: &mut room, length: 0 };
        reply.push(level, kind, data);
        room
    }

    #[test]
    fn room_is_that_of_the_system() {
        // SAFETY: these compute.
        let system = [4, 12, 20].map(|data| unsafe { libc::CMSG_SPACE(data) } as usize);
        assert_eq!([4, 12, 20].map(space), system);
    }

    #[test]
    fn a_burst_leaves_as_it_came() {
        let mut control = message(libc::SOL_UDP, UDP_GRO, &500_i32.to_ne_bytes());
        let pktinfo = [7, 0, 0, 0, 10, 0, 0, 1, 10, 0, 0, 255];
        control.extend(message(libc::IPPROTO_IP, libc::IP_PKTINFO, &pktinfo));
        let told = turn_around(&mut control, 1_200);
        assert_eq!((told.segment, told.burst_length), (500, SPACE_GRO));
        assert_eq!(told.local, PeerAddr::Ipv4([10, 0, 0, 1]));
        assert_eq!(told.destination, PeerAddr::Ipv4([10, 0, 0, 255]));
        let mut expected = message(libc::SOL_UDP, UDP_SEGMENT, &500_u16.to_ne_bytes());
        let bare = [0, 0, 0, 0, 10, 0, 0, 1, 10, 0, 0, 255];
        expected.extend(message(libc::IPPROTO_IP, libc::IP_PKTINFO, &bare));
        assert_eq!(control[..told.length], expected);
    }

    #[test]
    fn a_burst_of_one_is_none() {
        let mut control = message(libc::SOL_UDP, UDP_GRO, &500_i32.to_ne_bytes());
        let told = turn_around(&mut control, 500);
        assert_eq!((told.segment, told.length, told.burst_length), (0, 0, 0));
    }

    #[test]
    fn only_a_link_local_address_keeps_its_interface() {
        for (address, keeps) in [("fe80::1", true), ("2001:db8::1", false), ("::1", false)] {
            let address: Ipv6Addr = address.parse().unwrap();
            let mut data = address.octets().to_vec();
            data.extend(7_u32.to_ne_bytes());
            let mut control = message(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &data);
            let told = turn_around(&mut control, 1);
            assert_eq!(told.local, PeerAddr::Ipv6(address.octets()));
            data[16..].copy_from_slice(&(if keeps { 7_u32 } else { 0 }).to_ne_bytes());
            assert_eq!(control, message(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &data));
        }
    }

    /// Goal: no content of a buffer makes this code panic or read beyond the buffer. Method:
    /// lengths of every kind in the headers, in areas of every length.
    #[test]
    fn garbage_is_harmless() {
        for claimed in [0, 1, 15, 16, 17, 20, 28, 36, 60, 4096, usize::MAX] {
            for length in 0..80 {
                let mut control = vec![0xa5; length];
                if length >= size_of::<usize>() {
                    control[..size_of::<usize>()].copy_from_slice(&claimed.to_ne_bytes());
                }
                let told = turn_around(&mut control, 100);
                assert!(told.length <= length);
                source(&control);
            }
        }
    }

    #[test]
    fn a_unix_source_has_a_name_or_is_none() {
        let family = (libc::AF_UNIX as u16).to_ne_bytes();
        let local = Endpoint { address: PeerAddr::Local, port: 0 };
        for name in [&b"/run/client"[..], b"\0abcde"] {
            assert_eq!(source(&[&family[..], name].concat()), local);
        }
        // The kernel reports an unbound sender by the length 0.
        for unbound in [&[][..], &family[..]] {
            assert_eq!(source(unbound).address, PeerAddr::Unknown);
        }
    }

    #[test]
    fn a_mapped_source_is_an_ipv4_source() {
        let mut name = vec![0; 28];
        name[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
        name[2..4].copy_from_slice(&7_u16.to_be_bytes());
        name[18..24].copy_from_slice(&[255, 255, 192, 0, 2, 7]);
        let expected = Endpoint { address: PeerAddr::Ipv4([192, 0, 2, 7]), port: 7 };
        assert_eq!(source(&name), expected);
        assert_eq!(source(&[]), Endpoint { address: PeerAddr::Unknown, port: 0 });
    }
}
