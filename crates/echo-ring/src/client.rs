//! The driver of a client: it connects, sends messages and receives echoes, with the same ring,
//! pool and tokens as the daemon's driver.
//!
//! It does not know what the bytes mean, and nothing of load or time. The driver owns the memory of
//! messages, one for each slot, and it cannot be accessed while the kernel reads it. Received bytes
//! are lent as slices that end before their buffer can be recycled. Closing is a join: the
//! descriptor is closed when no operation is left on it.
//!
//! ```
//! # use echo_ring::client::{Client, Event};
//! # fn example(mut client: Client) -> std::io::Result<()> {
//! client.connect(0, None)?;
//! client.wait(None)?;
//! while let Some(event) = client.next_event() {
//!     if let Event::Connected { connection } = event {
//!         client.receive(connection);
//!         client.message(connection).extend_from_slice(b"hello");
//!         client.send(connection);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{cqueue, opcode, types};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::buffers::BufferRing;
use super::entry;
use super::errno;
use super::locked::{self, Maker};
use super::ring::{self, Ring};
use super::token::Token;
use super::unusable::{Call, Unusable};
use echo_core::buffer_offer::BufferOffer;
use echo_core::op::BufferClass;
use echo_core::op::{ConnectionId, SizeClass};

mod events;
mod slot;

pub use events::Event;
use slot::Slot;

/// The settings of a client.
pub struct Settings {
    /// The address that it connects to, of TCP or a Unix socket.
    pub target: SockAddr,
    /// The type of the sockets: [`Type::STREAM`], or over Unix sockets also [`Type::SEQPACKET`].
    /// Over the latter each message is sent whole. A receive brings one message, cut to the size of
    /// a buffer, and an empty message is taken as the end of the stream.
    pub socket_type: Type,
    /// Becomes readable when a wait is to end; the client empties it.
    pub wake: Arc<EventFd>,
    /// Buffers to receive into: a power of two up to 32768.
    pub buffers: u16,
    /// Bytes of each.
    pub buffer_bytes: u32,
}

/// The result of a close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// It is closed, its slot free.
    Done,
    /// The kernel still holds operations of it. [`Event::Closed`] will follow.
    Pending,
}

/// A ring with the connections, the messages and the buffers of one client thread.
pub struct Client {
    // Declared first, so dropped first: the kernel must release the memory before it is freed. See
    // `Drop`.
    ring: Ring,
    /// None only in `drop`.
    pool: Option<BufferRing>,
    slots: Vec<Slot>,
    /// Read by the kernel when it connects; never changed, and boxed, so it stays where it is.
    target: Option<Box<SockAddr>>,
    is_unix: bool,
    socket_type: Type,
    wake: Arc<EventFd>,
    /// How many buffers are offered.
    offer: BufferOffer,
    /// Connects, receives and sends in the kernel. They point into our memory.
    in_flight: u64,
    /// Receives that found no buffer, oldest first, to be armed again.
    waiting: VecDeque<ConnectionId>,
    /// Completions of the last wait, and how many of them have been reported.
    reaped: Vec<cqueue::Entry>,
    told: usize,
}

impl Client {
    /// A client for the calling thread, which is the only one that may use it.
    ///
    /// # Errors
    /// When io_uring cannot be used, and why.
    ///
    /// # Panics
    /// If the number of buffers is not a power of two up to 32768.
    pub fn new(settings: Settings) -> Result<Self, Unusable> {
        let buffers = settings.buffers;
        let class = BufferClass { count: buffers, size: settings.buffer_bytes };
        let charge = locked::charge(ring::SUBMISSIONS, ring::COMPLETIONS, buffers);
        let (ring, pool) = Maker::new(charge).make(|| {
            let ring = Ring::new().map_err(Unusable::from_setup)?;
            let pool = BufferRing::register(ring.inner(), GROUP, class);
            Ok((ring, pool.map_err(|error| Unusable::from_call(Call::Register, error))?))
        })?;
        Ok(Self {
            ring,
            pool: Some(pool),
            slots: Vec::new(),
            is_unix: settings.target.is_unix(),
            socket_type: settings.socket_type,
            target: Some(Box::new(settings.target)),
            wake: settings.wake,
            offer: BufferOffer::new(buffers),
            in_flight: 0,
            waiting: VecDeque::new(),
            reaped: Vec::new(),
            told: 0,
        })
    }

    /// Begins to connect, from `source` if one is given; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// When the socket cannot be made or bound.
    ///
    /// # Panics
    /// If `slot` is in use.
    pub fn connect(&mut self, slot: u32, source: Option<SocketAddr>) -> io::Result<ConnectionId> {
        let target = self.target.as_deref().expect("invariant: kept until dropped");
        let domain = Domain::from(i32::from(target.family()));
        let socket = Socket::new(domain, self.socket_type, None)?;
        if !self.is_unix {
            socket.set_tcp_nodelay(true)?;
        }
        if let Some(source) = source {
            // connect(2) chooses the port, which need only be free for this target; bind(2)
            // requires that no socket uses it. From one address, 14,400 connections per second were
            // possible instead of 720, once the ports of the first second were in TIME_WAIT.
            setsockopt(&socket, IpBindAddressNoPort, &true)?;
            socket.bind(&source.into())?;
        }
        let (address, length) = (target.as_ptr(), target.len());
        let index = slot as usize;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, Slot::default);
        }
        let slot_state = &mut self.slots[index];
        assert!(slot_state.socket.is_none(), "slot {slot} is in use");
        let connection = ConnectionId::new(slot, slot_state.generation);
        let fd = types::Fd(socket.as_raw_fd());
        slot_state.socket = Some(socket.into());
        slot_state.connecting = true;
        self.in_flight += 1;
        let entry = opcode::Connect::new(fd, address.cast(), length)
            .build()
            .user_data(Token::Connect(connection).pack());
        // SAFETY: the address is boxed, never changed, and outlives the operation, see `Drop`.
        unsafe { self.ring.push(entry) };
        Ok(connection)
    }

    /// Arms a receive. On TCP it continues by itself as long as its events have `armed` set. A
    /// receive that has to wait for a buffer reports no event meanwhile.
    ///
    /// # Panics
    /// If one is armed already.
    pub fn receive(&mut self, connection: ConnectionId) {
        let slot = self.slot(connection);
        assert!(!slot.receiving && !slot.connecting, "{connection:?} receives or connects already");
        slot.receiving = true;
        self.submit_receive(connection);
    }

    fn submit_receive(&mut self, connection: ConnectionId) {
        let fd = self.slot(connection).fd();
        // On Unix sockets a multishot receive may never report the end of the stream, see
        // `super::Transport::Unix`.
        let entry = if self.is_unix {
            entry::receive(fd, GROUP, entry::POLL_FIRST)
        } else {
            entry::multishot_receive(fd, GROUP, UNBOUNDED)
        };
        self.in_flight += 1;
        let entry = entry.user_data(Token::Receive(connection, SizeClass::Small).pack());
        // SAFETY: it points to no memory of its own; the buffers it may pick from outlive it, see
        // `Buffers` and `Drop`.
        unsafe { self.ring.push(entry) };
    }

    /// The message of a connection, to be written before it is sent. It keeps its bytes until they
    /// are changed.
    ///
    /// # Panics
    /// While it is being sent.
    pub fn message(&mut self, connection: ConnectionId) -> &mut Vec<u8> {
        let slot = self.slot(connection);
        assert!(!slot.sending, "{connection:?} is sending");
        &mut slot.message
    }

    /// The address that the connection has on this side; `None` for a Unix socket, or if the kernel
    /// does not report it.
    pub fn local_address(&mut self, connection: ConnectionId) -> Option<SocketAddr> {
        let socket = self.slot(connection).socket.as_ref()?;
        SockRef::from(socket).local_addr().ok()?.as_socket()
    }

    /// Whether the message is still being sent: until [`Event::Sent`] or [`Event::SendFailed`].
    pub fn is_sending(&mut self, connection: ConnectionId) -> bool {
        self.slot(connection).sending
    }

    /// Sends the message, all of it.
    ///
    /// Two optimizations did not pay (CPU of the client for 64 bytes on 64 and on 1,000
    /// connections, medians of six paired runs, Linux 6.18): omitting the completion of a
    /// successful send (MSG_DONTWAIT, MSG_WAITALL and SKIP_SUCCESS), 1.013 and 0.986; registering
    /// the sockets with the ring, 0.997 and 1.004.
    ///
    /// # Panics
    /// If the last one is still being sent (the kernel may reorder two sends), is empty, or has 4
    /// GiB or more.
    pub fn send(&mut self, connection: ConnectionId) {
        let slot = self.slot(connection);
        assert!(!slot.connecting, "{connection:?} is not connected yet");
        assert!(!slot.sending, "{connection:?} sends already");
        let length = u32::try_from(slot.message.len()).expect("invariant: shorter than 4 GiB");
        assert!(length > 0, "an empty message of {connection:?}");
        slot.sending = true;
        // MSG_WAITALL: the kernel itself continues after a short send.
        let entry = opcode::Send::new(slot.fd(), slot.message.as_ptr(), length)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build()
            .user_data(Token::Send(connection).pack());
        self.in_flight += 1;
        // SAFETY: the bytes are on the heap and belong to the slot; until the completion
        // (`sending`) they are not accessed: `message` and `send` refuse, `close` waits, `Drop`
        // leaks them.
        unsafe { self.ring.push(entry) };
    }

    /// The bytes of a buffer that an event reported.
    ///
    /// # Panics
    /// If it has been recycled or is shorter than that.
    #[must_use]
    pub fn bytes(&self, buffer: u16, length: u32) -> &[u8] {
        self.pool.as_ref().expect("invariant: kept until dropped").buffers.bytes(buffer, length)
    }

    /// Gives a buffer back.
    ///
    /// # Panics
    /// If it has been given back already.
    pub fn recycle(&mut self, buffer: u16) {
        self.pool_mut().buffers.recycle(buffer);
    }

    /// Ends our side of the stream (FIN). The peer is expected to echo the rest and then end its
    /// side.
    pub fn finish(&mut self, connection: ConnectionId) {
        self.shut_down(connection, Shutdown::Write);
    }

    /// Closes a connection in any state. It reports no further event except [`Event::Closed`], if
    /// that is still to come.
    ///
    /// # Panics
    /// If it is closing already.
    pub fn close(&mut self, connection: ConnectionId) -> Closing {
        let slot = self.slot(connection);
        assert!(!mem::replace(&mut slot.closing, true), "{connection:?} is closing already");
        if slot.is_at_rest() {
            self.release(connection);
            return Closing::Done;
        }
        if slot.connecting {
            self.ring.cancel(Token::Connect(connection));
        }
        self.shut_down(connection, Shutdown::Both);
        Closing::Pending
    }

    /// Hands everything to the kernel and waits for an event, but no longer than `timeout` (`None`:
    /// without limit).
    ///
    /// # Errors
    /// When io_uring_enter(2) fails in a way that no retry remedies.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.arm_waiting_receives();
        let waits = self.waiting.is_empty() && timeout != Some(Duration::ZERO);
        if waits && let Some(timeout) = timeout {
            self.ring.set_alarm(Instant::now() + timeout);
        }
        self.ring.arm_wake(&self.wake);
        let waited = self.ring.submit_and_wait(waits);
        self.reaped.drain(..mem::take(&mut self.told));
        self.reaped.extend(self.ring.completions());
        ring::outcome(waited, self.reaped.is_empty())
    }

    /// Fills the pool, and arms receives that wait for a buffer: no more than there are buffers, as
    /// further ones would find none again. (Closing a million connections took 276 s of CPU time
    /// when all were armed at once, and 79 s with this limit; Linux 6.12 in an emulator.)
    fn arm_waiting_receives(&mut self) {
        let waiting = self.waiting.len();
        if let Some(count) = self.offer.end_turn(waiting as u64) {
            self.pool_mut().offer_up_to(count);
        }
        let offered = self.pool_mut().fill_up();
        for _ in 0..waiting.min(offered) {
            let connection = self.waiting.pop_front().expect("invariant: there are as many");
            self.submit_receive(connection);
        }
    }

    /// Closes the descriptor and frees the slot for its next tenant.
    fn release(&mut self, connection: ConnectionId) {
        let slot = self.slot(connection);
        assert!(slot.is_at_rest(), "{connection:?} is closed while it has operations in flight");
        let socket = slot.socket.take().expect("invariant: `slot` found it");
        slot.generation = (slot.generation + 1) & ConnectionId::GENERATION_MASK;
        slot.closing = false;
        self.ring.close(socket);
    }

    fn shut_down(&mut self, connection: ConnectionId, how: Shutdown) {
        let socket = self.slot(connection).socket.as_ref();
        let socket = socket.expect("invariant: `slot` found it");
        // It fails only if the connection is gone. Then there is nothing to shut down.
        let _ = SockRef::from(socket).shutdown(how);
    }

    /// The slot of an open connection.
    ///
    /// # Panics
    /// If the connection is closed: a slot has one tenant at a time.
    fn slot(&mut self, connection: ConnectionId) -> &mut Slot {
        let slot = &mut self.slots[connection.slot() as usize];
        let open = slot.socket.is_some() && slot.generation == connection.generation();
        assert!(open, "{connection:?} is not open");
        slot
    }

    fn pool_mut(&mut self) -> &mut BufferRing {
        self.pool.as_mut().expect("invariant: kept until dropped")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.in_flight > 0 {
            // The kernel tears a ring down asynchronously, and may use the memory until then. The
            // memory is leaked: this happens only when a client fails, at the end of the process.
            mem::forget((self.pool.take(), self.target.take(), mem::take(&mut self.slots)));
        }
    }
}

/// The only buffer group.
const GROUP: u16 = 0;

/// A multishot receive without a bound: the bytes in flight are bounded by the bytes sent.
const UNBOUNDED: u32 = 0;
