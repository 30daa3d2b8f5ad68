//! The references for UDP: plain, careful echo servers with epoll and socket calls, on one thread.
//!
//! `sendto` receives and answers one datagram with each call (recvfrom(2), sendto(2)); on a
//! wildcard socket, where the reply must have the destination of the request as its source,
//! recvmsg(2) and sendmsg(2) with IP_PKTINFO. `mmsg` takes and answers up to 32 at once
//! (recvmmsg(2), sendmmsg(2)). `mmsg-gso` does so with bursts, which the kernel merges (UDP_GRO)
//! and takes apart again (UDP_SEGMENT).
//!
//! It must stay plain, as the other reference. It drops datagrams that it cannot send, and no
//! others: it has no access lists and no limits. The receive is level-triggered: after a wait the
//! socket is read until it is empty, but with at most [`TURN_MAX`] calls.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::null_mut;

use clap::{Parser, ValueEnum};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};

/// Datagrams, or bursts, of one call.
const BATCH: usize = 32;

/// Calls between two waits.
const TURN_MAX: usize = 64;

/// Room for the longest datagram, and for the longest burst.
const ROOM: usize = 65_536;

/// Room for control messages: IP_PKTINFO and UDP_GRO, with 16 bytes of head each.
const CONTROL_ROOM: usize = 64;

/// `CMSG_SPACE` and `CMSG_LEN` of what is sent of a burst, a `u16`.
const SEGMENT_SPACE: usize = 24;
const SEGMENT_LENGTH: usize = 18;

/// Bytes that the socket should be able to keep in each direction, as far as the machine allows.
const KEPT: usize = 4 << 20;

/// A plain UDP echo server, as a reference.
#[derive(Parser)]
struct Arguments {
    /// Address to receive on, such as 127.0.0.1:7777. On 0.0.0.0 replies leave from the address
    /// that was asked.
    #[arg(long)]
    listen: SocketAddr,
    /// The calls it is made of.
    #[arg(long, value_enum, default_value_t = Calls::Sendto)]
    calls: Calls,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Calls {
    /// A call for each datagram.
    Sendto,
    /// A call for up to 32 datagrams.
    Mmsg,
    /// A call for up to 32 bursts.
    MmsgGso,
}

fn main() -> io::Result<()> {
    let Arguments { listen, calls } = Arguments::parse();
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    // More than net.core.rmem_max is cut down to that.
    socket.set_recv_buffer_size(KEPT)?;
    socket.set_send_buffer_size(KEPT)?;
    let wildcard = listen.ip().is_unspecified();
    if wildcard && listen.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    } else if wildcard {
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    }
    if calls == Calls::MmsgGso {
        setsockopt(&socket, sockopt::UdpGroSegment, &true)?;
    }
    socket.bind(&listen.into())?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    let descriptor = socket.as_raw_fd();
    let mut buffers = Buffers::new(if calls == Calls::Sendto { 1 } else { BATCH });
    let controls = wildcard || calls == Calls::MmsgGso;
    loop {
        match epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            outcome => outcome?,
        };
        for _ in 0..TURN_MAX {
            let more = match calls {
                Calls::Sendto if wildcard => buffers.echo_message(descriptor),
                Calls::Sendto => buffers.echo_plain(descriptor),
                Calls::Mmsg | Calls::MmsgGso => buffers.echo_messages(descriptor, controls),
            };
            if !more {
                break;
            }
        }
    }
}

/// Room for a batch, made once; the headers point into it.
struct Buffers {
    payloads: Vec<[u8; ROOM]>,
    names: Vec<libc::sockaddr_storage>,
    /// In words, for the alignment of their heads.
    controls: Vec<[u64; CONTROL_ROOM / 8]>,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

impl Buffers {
    fn new(count: usize) -> Self {
        // SAFETY: all of these are integers and pointers, for which zeroes are values.
        let (name, header): (libc::sockaddr_storage, libc::mmsghdr) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let mut buffers = Self {
            payloads: vec![[0; ROOM]; count],
            names: vec![name; count],
            controls: vec![[0; CONTROL_ROOM / 8]; count],
            vectors: vec![libc::iovec { iov_base: null_mut(), iov_len: 0 }; count],
            headers: vec![header; count],
        };
        for index in 0..count {
            buffers.vectors[index].iov_base = buffers.payloads[index].as_mut_ptr().cast();
            let header = &mut buffers.headers[index].msg_hdr;
            header.msg_name = (&raw mut buffers.names[index]).cast();
            header.msg_iov = &raw mut buffers.vectors[index];
            header.msg_iovlen = 1;
        }
        buffers
    }

    /// Makes a header ask for a datagram.
    fn ask(&mut self, index: usize, controls: bool) {
        self.vectors[index].iov_len = ROOM;
        let header = &mut self.headers[index].msg_hdr;
        header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        if controls {
            header.msg_control = self.controls[index].as_mut_ptr().cast();
            header.msg_controllen = CONTROL_ROOM as _;
        }
    }

    /// Makes a header that was filled answer: the name and IP_PKTINFO are as they came, the size
    /// of segments is said in another way.
    fn answer(&mut self, index: usize, length: usize) {
        self.vectors[index].iov_len = length;
        let header = &mut self.headers[index].msg_hdr;
        if header.msg_controllen == 0 {
            header.msg_control = null_mut();
            return;
        }
        // SAFETY: the kernel has filled the header and its control messages, which stay in place.
        unsafe {
            let mut message = libc::CMSG_FIRSTHDR(header);
            while let Some(head) = message.as_mut() {
                let data = libc::CMSG_DATA(message);
                if (head.cmsg_level, head.cmsg_type) == (libc::SOL_UDP, libc::UDP_GRO) {
                    let segment = data.cast::<libc::c_int>().read_unaligned();
                    head.cmsg_type = libc::UDP_SEGMENT;
                    head.cmsg_len = SEGMENT_LENGTH as _;
                    data.cast::<u16>().write_unaligned(segment as u16);
                    debug_assert_eq!(libc::CMSG_SPACE(4) as usize, SEGMENT_SPACE);
                } else if (head.cmsg_level, head.cmsg_type) == (libc::IPPROTO_IP, libc::IP_PKTINFO)
                {
                    // The route decides on the interface.
                    (*data.cast::<libc::in_pktinfo>()).ipi_ifindex = 0;
                }
                message = libc::CMSG_NXTHDR(header, message);
            }
        }
    }

    /// One datagram by recvfrom(2) and sendto(2). False if there was none.
    fn echo_plain(&mut self, socket: RawFd) -> bool {
        let payload = self.payloads[0].as_mut_ptr().cast();
        let name: *mut libc::sockaddr = (&raw mut self.names[0]).cast();
        let mut name_length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        // SAFETY: the kernel writes to both as much as they have room for.
        let length =
            unsafe { libc::recvfrom(socket, payload, ROOM, 0, name, &raw mut name_length) };
        let Ok(length) = usize::try_from(length) else { return false };
        // SAFETY: it reads what was just written. What cannot be sent is lost.
        unsafe { libc::sendto(socket, payload, length, 0, name, name_length) };
        true
    }

    /// One datagram by recvmsg(2) and sendmsg(2). False if there was none.
    fn echo_message(&mut self, socket: RawFd) -> bool {
        self.ask(0, true);
        // SAFETY: the header points to room that lives as long as these buffers.
        let length = unsafe { libc::recvmsg(socket, &raw mut self.headers[0].msg_hdr, 0) };
        let Ok(length) = usize::try_from(length) else { return false };
        self.answer(0, length);
        // SAFETY: as above. What cannot be sent is lost.
        unsafe { libc::sendmsg(socket, &raw const self.headers[0].msg_hdr, 0) };
        true
    }

    /// A batch of datagrams or bursts. False if it was not full, so that there are no more.
    fn echo_messages(&mut self, socket: RawFd, controls: bool) -> bool {
        for index in 0..self.headers.len() {
            self.ask(index, controls);
        }
        let headers = self.headers.as_mut_ptr();
        // SAFETY: the headers point to room that lives as long as these buffers.
        let count = unsafe { libc::recvmmsg(socket, headers, BATCH as u32, 0, null_mut()) };
        let Ok(count) = usize::try_from(count) else { return false };
        for index in 0..count {
            let length = self.headers[index].msg_len as usize;
            self.answer(index, length);
        }
        let mut sent = 0;
        while sent < count {
            // SAFETY: as above; these are `count - sent` headers.
            let taken = unsafe {
                libc::sendmmsg(socket, self.headers[sent..].as_mut_ptr(), (count - sent) as u32, 0)
            };
            // It stops at one that cannot be sent, which is lost.
            sent += usize::try_from(taken).unwrap_or(0).max(1);
        }
        count == BATCH
    }
}
