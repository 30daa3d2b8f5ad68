//! Datagrams: received into the buffers of a separate pool, and answered from the same buffer.
//!
//! One multishot receive brings all datagrams of a socket: a header, the sender, control messages
//! and the payload, all in one buffer. A reply points into that buffer: to the sender as its
//! destination, to the control messages, which are converted in place to those of the reply
//! (`control`), and to the payload. Nothing is copied, and nothing allocated.
//!
//! No reply ever waits. A waiting send would hold its buffer for as long as a link is down, and to
//! a full Unix peer it delivers an empty datagram (seen on Linux 6.1 to 6.18). A reply is complete
//! when the kernel has taken its entry. Only its failure has a completion, as for a skip-success
//! send.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use echo_proxy_header::Peer;
use io_uring::{cqueue, opcode, squeue, types};

use super::Driver;
use super::send::TRIES;
use crate::buffers::{BufferRing, DATAGRAM_GROUP};
use crate::control;
use crate::datagram_socket::{self, DATAGRAM_BUFFERS, DatagramSocket, Layout};
use crate::errno;
use crate::identity::Facts;
use crate::peer;
use crate::token::Token;
use echo_core::datagram::Datagram;
use echo_core::datagram::op::{BufferId, Event, Header, Op, ReceiveEnd, ReplyError, SocketId};

/// `MSG_TRUNC` and `MSG_CTRUNC` in the header of a received datagram.
const TRUNCATED: u32 = (libc::MSG_TRUNC | libc::MSG_CTRUNC) as u32;
/// On a Unix socket `MSG_CTRUNC` means that credentials or descriptors were sent along. There is
/// deliberately no room for them: the kernel drops them, so that no descriptor stays open here.
const TRUNCATED_UNIX: u32 = libc::MSG_TRUNC as u32;

const OPEN: &str = "invariant: the core names open sockets only";
const NONE: &str = "invariant: the core has datagram sockets only if the driver has";

/// The positions of the parts of a received datagram in its buffer, and of those that a reply uses.
#[derive(Clone, Copy, Debug, Default)]
struct Parts {
    socket: u16,
    name_length: u8,
    /// Where the control messages of the reply begin, and how many bytes they have.
    control: (u16, u8),
    /// How many of these bytes mark it as a burst.
    burst_length: u8,
    payload: u16,
    length: u32,
    segment: u16,
}

/// What a reply points to. It has the lifetime of the pool, not of the reply.
struct Message {
    header: libc::msghdr,
    payload: libc::iovec,
}

/// The datagram side of a driver.
pub(super) struct Datagrams {
    /// Present exactly until they are closed.
    sockets: Vec<Option<Arc<DatagramSocket>>>,
    pool: BufferRing,
    /// The template for the receives of each socket.
    templates: Box<[libc::msghdr]>,
    /// One for each buffer.
    messages: Box<[Message]>,
    /// One for each buffer: those of the datagram in it exactly while it is lent.
    parts: Box<[Parts]>,
    /// One for each buffer: what an identity reports of the datagram in it. Present from the
    /// receive of a datagram that an identity answers until the answer. If the datagram is recycled
    /// unanswered, a stale entry stays. It is never read: the next such receive replaces it.
    facts: Box<[Option<Facts>]>,
    /// Replies whose success has no completion: present exactly from their submission to the turn
    /// that answers them.
    replies: Vec<BufferId>,
    /// What has happened: present exactly until [`Driver::move_datagrams`] reports it.
    events: Vec<Event>,
}

impl Datagrams {
    pub(super) fn new(sockets: Vec<Arc<DatagramSocket>>, pool: BufferRing) -> Self {
        let template = |socket: &Arc<DatagramSocket>| {
            let mut template = empty_header();
            template.msg_namelen = socket.layout.name as libc::socklen_t;
            template.msg_controllen = socket.layout.control as _;
            template
        };
        let message = || Message {
            header: empty_header(),
            payload: libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 },
        };
        let count = usize::from(DATAGRAM_BUFFERS.count);
        Self {
            templates: sockets.iter().map(template).collect(),
            sockets: sockets.into_iter().map(Some).collect(),
            pool,
            messages: (0..count).map(|_| message()).collect(),
            parts: vec![Parts::default(); count].into(),
            facts: vec![None; count].into(),
            replies: Vec::new(),
            events: Vec::new(),
        }
    }

    /// To be called before each turn.
    pub(super) fn fill_up(&mut self) {
        self.pool.fill_up();
    }

    fn socket(&self, socket: u16) -> &DatagramSocket {
        self.sockets[usize::from(socket)].as_ref().expect(OPEN)
    }

    /// Points the message of a lent buffer into the buffer, and to `length` bytes of its payload
    /// from `offset` on. If `plain`, without the mark of a burst.
    fn address(&mut self, buffer: BufferId, offset: u32, length: u32, plain: bool) -> &Message {
        let parts = &self.parts[usize::from(buffer.0)];
        let end = u32::from(parts.payload) + offset + length;
        assert!(end <= u32::from(parts.payload) + parts.length, "{buffer:?} is shorter");
        let start = self.pool.buffers.lent_bytes(buffer.0, end).cast_mut();
        let (control, mut control_length) = (parts.control.0, parts.control.1);
        let mut control = usize::from(control);
        if plain {
            control += usize::from(parts.burst_length);
            control_length -= parts.burst_length;
        }
        let message = &mut self.messages[usize::from(buffer.0)];
        // In front of the payload, as `received` has checked.
        let at = |offset: usize| start.wrapping_add(offset);
        message.payload.iov_base = at(usize::from(parts.payload) + offset as usize).cast();
        message.payload.iov_len = length as usize;
        message.header.msg_name = at(datagram_socket::HEADER).cast();
        message.header.msg_namelen = parts.name_length.into();
        message.header.msg_iov = &raw mut message.payload;
        message.header.msg_iovlen = 1;
        message.header.msg_control = at(control).cast();
        message.header.msg_controllen = control_length.into();
        message
    }

    /// Sends `length` bytes of the payload in a lent buffer as one datagram, by a system call.
    fn send_part(&mut self, buffer: BufferId, offset: u32, length: u32) -> Result<(), ReplyError> {
        let socket = self.parts[usize::from(buffer.0)].socket;
        let fd = self.socket(socket).as_fd().as_raw_fd();
        let message = self.address(buffer, offset, length, true);
        // SAFETY: the message points to itself and into a lent buffer, both of which stay as they
        // are for the call.
        let outcome = unsafe { libc::sendmsg(fd, &raw const message.header, TRIES) };
        if outcome >= 0 {
            return Ok(());
        }
        let cause = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        Err(errno::of_reply(cause))
    }
}

/// An empty header.
fn empty_header() -> libc::msghdr {
    // SAFETY: it holds pointers and integers only, for which zeroes are values.
    unsafe { MaybeUninit::<libc::msghdr>::zeroed().assume_init() }
}

impl Driver {
    /// See [`echo_core::kernel::Kernel::take_datagrams`].
    pub(super) fn move_datagrams(&mut self, events: &mut Vec<Event>) {
        if let Some(datagrams) = &mut self.pools.datagrams {
            events.append(&mut datagrams.events);
        }
    }

    pub(super) fn carry_out_datagram(&mut self, op: Op) {
        match op {
            Op::Receive { socket } => self.receive_datagrams(socket),
            Op::CancelReceive { socket } => self.ring.cancel(Token::ReceiveDatagrams(socket)),
            Op::Reply { buffer } => self.reply(buffer),
            Op::ReplySegments { buffer } => self.reply_segments(buffer),
            Op::Identify { buffer, length_max } => self.reply_identity(buffer, length_max),
            Op::Recycle { buffer } => self.datagrams_mut().pool.buffers.recycle(buffer.0),
            Op::Close { socket } => self.datagrams_mut().sockets[usize::from(socket.0)] = None,
        }
    }

    fn datagrams_mut(&mut self) -> &mut Datagrams {
        self.pools.datagrams.as_mut().expect(NONE)
    }

    fn receive_datagrams(&mut self, socket: SocketId) {
        let datagrams = self.pools.datagrams.as_ref().expect(NONE);
        let fd = types::Fd(datagrams.socket(socket.0).as_fd().as_raw_fd());
        let template = &raw const datagrams.templates[usize::from(socket.0)];
        let entry = opcode::RecvMsgMulti::new(fd, template, DATAGRAM_GROUP).build();
        let entry = entry.user_data(Token::ReceiveDatagrams(socket).pack());
        self.in_flight += 1;
        // SAFETY: the template lives as long as the driver and is not changed; the buffers it may
        // pick from outlive it, see `Buffers` and `Drop`.
        unsafe { self.ring.push(entry) };
    }

    /// Handles a completion of a receive of a datagram socket.
    pub(super) fn received_datagram(&mut self, socket: SocketId, result: i32, flags: u32) {
        let armed = cqueue::more(flags);
        if !armed {
            self.in_flight -= 1;
        }
        let datagrams = self.pools.datagrams.as_mut().expect(NONE);
        let buffer = datagrams.pool.note_receive(flags);
        let (Some(index), 0..) = (buffer, result) else {
            // A kernel may hand out a buffer and then find nothing to put into it.
            if let Some(index) = buffer {
                datagrams.pool.buffers.recycle(index);
            }
            assert!(!armed, "a multishot receive continues after result {result}");
            let reason = end_of_receive(-result);
            return datagrams.events.push(Event::ReceiveEnded { socket, reason });
        };
        let open = datagrams.sockets[usize::from(socket.0)].as_ref().expect(OPEN);
        let bytes = datagrams.pool.buffers.bytes_mut(index, result as u32);
        let (mut parts, mut datagram) = examine(bytes, open, socket.0);
        if open.headers || open.identity.is_some() {
            let announced = match open.headers {
                true => read_header(bytes, &mut parts, &mut datagram),
                false => None,
            };
            let name = datagram_socket::HEADER..;
            let name = bytes.get(name).and_then(|it| it.get(..parts.name_length.into()));
            let name = name.unwrap_or_default();
            datagrams.facts[usize::from(index)] = open.facts(name, &datagram, announced);
        }
        datagrams.parts[usize::from(index)] = parts;
        let buffer = BufferId(index);
        datagrams.events.push(Event::Received { socket, buffer, datagram, armed });
    }

    fn reply(&mut self, buffer: BufferId) {
        let datagrams = self.pools.datagrams.as_mut().expect(NONE);
        let parts = datagrams.parts[usize::from(buffer.0)];
        let fd = types::Fd(datagrams.socket(parts.socket).as_fd().as_raw_fd());
        let message = datagrams.address(buffer, 0, parts.length, false);
        let entry = if parts.control.1 == 0 {
            // 3 to 7 % cheaper than a message.
            opcode::Send::new(fd, message.payload.iov_base.cast(), parts.length)
                .dest_addr(message.header.msg_name.cast())
                .dest_addr_len(message.header.msg_namelen)
                .flags(TRIES)
                .build()
        } else {
            opcode::SendMsg::new(fd, &raw const message.header).flags(TRIES as u32).build()
        };
        datagrams.replies.push(buffer);
        self.in_flight += 1;
        let token = Token::Reply(buffer);
        let entry = entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(token.pack());
        // SAFETY: it points to the message of the buffer and into the buffer, which live as long as
        // the driver, see `Buffers` and `Drop`; both are left alone while the buffer is lent. A
        // core that recycled it meanwhile would corrupt its own echo, but the memory stays ours.
        unsafe { self.ring.push(entry) };
    }

    /// Whether there are events to report.
    pub(super) fn has_datagram_events(&self) -> bool {
        self.pools.datagrams.as_ref().is_some_and(|it| !it.events.is_empty())
    }

    /// Answers the replies that the kernel has taken without a completion: they were sent. To be
    /// called when a turn is settled and all its completions have been taken.
    pub(super) fn answer_replies(&mut self) {
        let Some(datagrams) = &mut self.pools.datagrams else { return };
        self.in_flight -= datagrams.replies.len() as u64;
        let replied = datagrams.replies.drain(..).map(|buffer| Event::Replied { buffer });
        datagrams.events.extend(replied);
    }

    pub(super) fn reply_failed(&mut self, buffer: BufferId, result: i32) {
        self.in_flight -= 1;
        let datagrams = self.pools.datagrams.as_mut().expect(NONE);
        datagrams.replies.retain(|&reply| reply != buffer);
        datagrams.events.push(if result >= 0 {
            Event::Replied { buffer }
        } else {
            Event::ReplyFailed { buffer, error: errno::of_reply(-result) }
        });
    }

    /// Sends the identity by a system call, from where the payload was.
    fn reply_identity(&mut self, buffer: BufferId, length_max: u32) {
        let worker = self.worker;
        let datagrams = self.pools.datagrams.as_mut().expect(NONE);
        let index = usize::from(buffer.0);
        let Parts { socket, payload, length, .. } = datagrams.parts[index];
        let identity = &datagrams.sockets[usize::from(socket)].as_ref().expect(OPEN).identity;
        let (Some((identity, _)), Some(facts)) = (identity, datagrams.facts[index].take()) else {
            unreachable!("the core knows which sockets have an identity")
        };
        let line = identity.line(worker, &facts);
        let line_length = line.len() as u32;
        let sent = if line_length > length_max.min(length) {
            Err(ReplyError::TooShort)
        } else {
            let bytes =
                datagrams.pool.buffers.bytes_mut(buffer.0, u32::from(payload) + line_length);
            bytes[payload.into()..].copy_from_slice(line.as_bytes());
            datagrams.send_part(buffer, 0, line_length)
        };
        datagrams.events.push(match sent {
            Ok(()) => Event::Identified { buffer, length: line_length },
            Err(error) => Event::ReplyFailed { buffer, error },
        });
    }

    /// Sends the datagrams of a burst one by one, by system calls: this happens if a route does not
    /// carry bursts.
    fn reply_segments(&mut self, buffer: BufferId) {
        let datagrams = self.pools.datagrams.as_mut().expect(NONE);
        let Parts { length, segment, .. } = datagrams.parts[usize::from(buffer.0)];
        let (mut sent, mut bytes, mut error) = (0, 0, None);
        for offset in (0..length).step_by(usize::from(segment.max(1))) {
            let part = u32::from(segment).min(length - offset);
            match datagrams.send_part(buffer, offset, part) {
                Ok(()) => (sent, bytes) = (sent + 1, bytes + part),
                Err(cause) => error = Some(cause),
            }
        }
        datagrams.events.push(Event::SegmentsReplied { buffer, datagrams: sent, bytes, error });
    }
}

/// The content of a buffer, by the header that the kernel wrote. Converts its control messages to
/// those of the reply.
fn examine(bytes: &mut [u8], open: &DatagramSocket, socket: u16) -> (Parts, Datagram) {
    let Layout { name, control } = open.layout;
    let fields: [u32; 4] = std::array::from_fn(|index| {
        let field = bytes.get(4 * index..4 * index + 4).and_then(|it| it.first_chunk());
        field.map_or(0, |field| u32::from_ne_bytes(*field))
    });
    let [name_length, control_length, _, flags] = fields;
    let control_start = datagram_socket::HEADER + name;
    let payload = control_start + control;
    // The length in the header may be that of more than was stored.
    let length = bytes.len().saturating_sub(payload);
    let too_short = bytes.len() < payload;
    let bytes = if too_short { &mut [][..] } else { bytes };
    let name_length = if too_short { 0 } else { name.min(name_length as usize) };
    let control_length = if too_short { 0 } else { control.min(control_length as usize) };
    let name = bytes.get(datagram_socket::HEADER..).map_or(&[][..], |it| &it[..name_length]);
    let (source, own) = (control::source(name), open.is_ours(name));
    let told = match bytes.get_mut(control_start..) {
        Some(rest) => control::turn_around(&mut rest[..control_length], length),
        None => control::turn_around(&mut [], length),
    };
    let truncated = if open.is_unix() { TRUNCATED_UNIX } else { TRUNCATED };
    let parts = Parts {
        socket,
        name_length: name_length as u8,
        control: (control_start as u16, told.length as u8),
        burst_length: told.burst_length as u8,
        payload: payload as u16,
        length: length as u32,
        segment: told.segment,
    };
    let datagram = Datagram {
        source,
        destination: told.destination,
        local: told.local,
        header: Header::Absent,
        length: length as u32,
        segment: told.segment,
        truncated: too_short || flags & truncated != 0,
        own,
    };
    (parts, datagram)
}

/// Reads the header (PROXY protocol) of a datagram that is not part of a merged burst. Its payload
/// begins behind the header. Returns the address that is announced.
fn read_header(bytes: &[u8], parts: &mut Parts, datagram: &mut Datagram) -> Option<SocketAddr> {
    let payload = bytes.get(parts.payload.into()..).unwrap_or_default();
    let Ok((length, peer)) = echo_proxy_header::datagram(payload) else {
        datagram.header = Header::Invalid;
        return None;
    };
    let announced = match peer {
        Peer::Announced(address) => Some(address),
        Peer::Real => None,
    };
    datagram.header = announced
        .map_or(Header::Unannounced, |address| Header::Announced(peer::of_address(address)));
    // A header is at most some 4,096 bytes long.
    parts.payload += length as u16;
    parts.length -= length as u32;
    datagram.length -= length as u32;
    announced
}

fn end_of_receive(errno: i32) -> ReceiveEnd {
    match errno {
        libc::ENOBUFS => ReceiveEnd::NoBuffer,
        // 0: the kernel had a buffer for nothing.
        0 | libc::ECANCELED | libc::EINTR => ReceiveEnd::Stopped,
        libc::ENOMEM => ReceiveEnd::Memory,
        // EAGAIN is one: another process that holds the socket has made it non-blocking.
        errno => ReceiveEnd::Unexpected(errno),
    }
}
