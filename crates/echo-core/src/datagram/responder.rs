//! The datagram sockets of one worker.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use super::guard;
use super::op::{BufferId, Datagram, Endpoint, Event, Op, ReceiveEnd, ReplyError, SocketId};
use super::rate_limit::{Amount, Leases, RateLimiter};
use super::traffic::{DatagramTraffic, DropReason};
use crate::admission::IpSet;
use crate::id::Timestamp;
use crate::kernel::Wake;
use crate::parameters::RuntimeLimits;
use crate::peer::PeerAddr;

/// Delay before a failed receive is armed again, in milliseconds.
const RETRY_MS: u64 = 100;

/// In a drain a socket is closed after a turn without datagrams, at the latest after this many
/// turns: peers may keep sending.
const DRAIN_TURNS_MAX: u32 = 64;

/// The configuration of the datagram side of a worker.
#[derive(Clone, Debug)]
pub struct DatagramParameters {
    /// The sockets of this worker, named 0, 1, 2, …
    pub sockets: Vec<SocketParameters>,
    /// Listeners, over all workers; see [`SocketParameters::listener`].
    pub listeners: u16,
    /// Buffers of the pool.
    pub buffers: u16,
    /// The proxies whose datagrams each listener accepts, in the order of the listeners; none if
    /// its datagrams have no headers. Listeners that are missing at the end have none.
    pub proxies: Arc<[Option<IpSet>]>,
    /// Where sources are limited, over all workers.
    pub limiter: Arc<dyn RateLimiter>,
}

/// A datagram socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketParameters {
    /// What it is bound to.
    pub own: Endpoint,
    /// The listener whose traffic it counts for.
    pub listener: u16,
    /// Whether another process also holds it and continues to hold it after this one ends. What is
    /// not received then waits for the next process.
    pub outlives_us: bool,
    /// Whether a datagram is answered by the identity of the listener, and not by an echo.
    pub identifies: bool,
}

/// Where the receive of a socket stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receive {
    /// To be armed at the end of this turn.
    Wanted,
    /// With the kernel.
    Armed,
    /// With the kernel, and canceled.
    Stopping,
    /// Not armed because it failed. To be armed again at this moment.
    Retrying(Timestamp),
    /// Over: the socket is closed.
    Closed,
}

#[derive(Debug)]
struct Socket {
    parameters: SocketParameters,
    receive: Receive,
    /// Whether this turn received anything from it.
    busy: bool,
}

/// A reply in flight.
#[derive(Clone, Copy, Debug)]
struct Reply {
    listener: u16,
    datagram: Datagram,
}

/// Answers the datagrams of one worker.
#[derive(Debug)]
pub(crate) struct Responder {
    sockets: Vec<Socket>,
    /// The reply of each buffer. Present exactly while it is in flight.
    replies: Vec<Option<Reply>>,
    replies_count: usize,
    leases: Leases,
    proxies: Arc<[Option<IpSet>]>,
    limiter: Arc<dyn RateLimiter>,
    limits: RuntimeLimits,
    listeners: Vec<DatagramTraffic>,
    /// Turns that the drain may still last; none without a drain.
    drain: Option<u32>,
}

impl Responder {
    /// No socket is armed yet.
    pub(crate) fn new(parameters: DatagramParameters, limits: RuntimeLimits) -> Self {
        let DatagramParameters { sockets, listeners, buffers, proxies, limiter } = parameters;
        let socket = |parameters| Socket { parameters, receive: Receive::Wanted, busy: false };
        Self {
            sockets: sockets.into_iter().map(socket).collect(),
            replies: vec![None; usize::from(buffers)],
            replies_count: 0,
            leases: Leases::new(),
            proxies,
            limiter,
            limits,
            listeners: vec![DatagramTraffic::default(); usize::from(listeners)],
            drain: None,
        }
    }

    /// What the sockets of each listener did in this worker.
    pub(crate) fn traffic(&self) -> &[DatagramTraffic] {
        &self.listeners
    }

    /// Whether replies are in flight, so that the counters are not final.
    pub(crate) fn is_replying(&self) -> bool {
        self.replies_count > 0
    }

    /// From now on, apply these limits.
    pub(crate) fn reconfigure(&mut self, limits: RuntimeLimits) {
        self.leases.give_back(&self.limits.datagram_rates, &*self.limiter);
        self.limits = limits;
    }

    /// Answers what has been received, and closes the sockets.
    pub(crate) fn drain(&mut self) {
        self.drain.get_or_insert(DRAIN_TURNS_MAX);
    }

    /// Whether the kernel holds no operation of it any more.
    pub(crate) fn is_over(&self) -> bool {
        self.replies_count == 0
            && self.sockets.iter().all(|socket| socket.receive == Receive::Closed)
    }

    /// When the next turn is to end at the latest.
    pub(crate) fn wake(&self) -> Wake {
        let wake = |socket: &Socket| match socket.receive {
            Receive::Wanted => Wake::Now,
            Receive::Retrying(at) => Wake::At(at),
            // A drain polls without waiting.
            Receive::Armed if self.drain.is_some() => Wake::Now,
            Receive::Armed | Receive::Stopping | Receive::Closed => Wake::Never,
        };
        if self.drain.is_some() && self.is_replying() {
            return Wake::Now;
        }
        self.sockets.iter().map(wake).min().unwrap_or(Wake::Never)
    }

    pub(crate) fn handle(&mut self, clock_us: u64, event: Event, ops: &mut Vec<Op>) {
        match event {
            Event::Received { socket, buffer, datagram, armed } => {
                let socket = &mut self.sockets[usize::from(socket.0)];
                socket.busy = true;
                if !armed {
                    socket.receive = Receive::Wanted;
                }
                let parameters = socket.parameters;
                self.received(clock_us, parameters, buffer, datagram, ops);
            }
            Event::ReceiveEnded { socket, reason } => {
                let socket = &mut self.sockets[usize::from(socket.0)];
                // More datagrams may wait, unless the receive was canceled because none came.
                socket.busy |= socket.receive == Receive::Armed;
                socket.receive = match reason {
                    ReceiveEnd::NoBuffer | ReceiveEnd::Stopped => Receive::Wanted,
                    ReceiveEnd::Memory | ReceiveEnd::Unexpected(_) => {
                        Receive::Retrying(Timestamp(clock_us / 1_000).plus(RETRY_MS))
                    }
                };
                let traffic = &mut self.listeners[usize::from(socket.parameters.listener)];
                match reason {
                    ReceiveEnd::NoBuffer | ReceiveEnd::Stopped => {}
                    ReceiveEnd::Memory => traffic.receive_failures += 1,
                    ReceiveEnd::Unexpected(errno) => {
                        traffic.receive_failures += 1;
                        traffic.unexpected_errno = errno;
                    }
                }
            }
            Event::Replied { buffer } => {
                let datagram = self.datagram(buffer);
                self.end_reply(buffer, datagram.count(), datagram.length, None, ops);
            }
            Event::Identified { buffer, length } => self.end_reply(buffer, 1, length, None, ops),
            Event::ReplyFailed { buffer, error } => self.on_reply_failed(buffer, error, ops),
            Event::SegmentsReplied { buffer, datagrams, bytes, error } => {
                self.end_reply(buffer, datagrams, bytes, error, ops);
            }
        }
    }

    fn received(
        &mut self,
        clock_us: u64,
        socket: SocketParameters,
        buffer: BufferId,
        datagram: Datagram,
        ops: &mut Vec<Op>,
    ) {
        let count = datagram.count();
        let traffic = &mut self.listeners[usize::from(socket.listener)];
        traffic.datagrams_in += u64::from(count);
        traffic.bytes_in += u64::from(datagram.length);
        let limits = &self.limits;
        let access = &limits.admission.access;
        let proxies = self.proxies.get(usize::from(socket.listener)).and_then(Option::as_ref);
        let guard = &limits.datagram_guard;
        let verdict = guard::judge(&datagram, socket.own, proxies, guard, access);
        match verdict.and_then(|client| self.charge(clock_us, client, &datagram)) {
            Ok(()) => {
                let reply = Reply { listener: socket.listener, datagram };
                let former = self.replies[usize::from(buffer.0)].replace(reply);
                assert!(former.is_none(), "{buffer:?} was filled while it was lent");
                self.replies_count += 1;
                // More bytes must not go out than came in.
                ops.push(match socket.identifies {
                    false => Op::Reply { buffer },
                    true => Op::Identify { buffer, length_max: datagram.length },
                });
            }
            Err(reason) => {
                self.listeners[usize::from(socket.listener)].count_dropped(reason, count);
                ops.push(Op::Recycle { buffer });
            }
        }
    }

    /// Charges the client for a datagram, or a burst as a whole. Loopback addresses are not
    /// limited: this machine itself uses them, not a network.
    fn charge(
        &mut self,
        clock_us: u64,
        client: PeerAddr,
        datagram: &Datagram,
    ) -> Result<(), DropReason> {
        let rates = &self.limits.datagram_rates;
        if !rates.limit() || guard::is_loopback(client) {
            return Ok(());
        }
        let source_limits = &self.limits.admission.source_limits;
        let Some(key) = source_limits.key(client) else { return Ok(()) };
        let amount = Amount { datagrams: datagram.count().into(), bytes: datagram.length.into() };
        self.leases.charge(clock_us, key, rates, &*self.limiter, amount)
    }

    fn on_reply_failed(&mut self, buffer: BufferId, error: ReplyError, ops: &mut Vec<Op>) {
        if self.datagram(buffer).segment > 0 && error == ReplyError::Unsendable {
            // The route does not carry bursts, or its MTU is smaller than the segments. Sent one by
            // one, the kernel fragments them.
            return ops.push(Op::ReplySegments { buffer });
        }
        self.end_reply(buffer, 0, 0, Some(error), ops);
    }

    /// The datagram in a buffer from which a reply is in flight.
    fn datagram(&self, buffer: BufferId) -> Datagram {
        let reply = self.replies[usize::from(buffer.0)];
        reply.expect("invariant: a reply is answered once").datagram
    }

    /// A reply has ended: the kernel took `bytes` in `datagrams` datagrams, and the others failed
    /// with `error`, if there is one.
    fn end_reply(
        &mut self,
        buffer: BufferId,
        datagrams: u32,
        bytes: u32,
        error: Option<ReplyError>,
        ops: &mut Vec<Op>,
    ) {
        let reply = self.replies[usize::from(buffer.0)].take();
        let Reply { listener, datagram } = reply.expect("invariant: a reply is answered once");
        self.replies_count -= 1;
        let traffic = &mut self.listeners[usize::from(listener)];
        traffic.datagrams_out += u64::from(datagrams);
        traffic.bytes_out += u64::from(bytes);
        if let Some(error) = error {
            traffic.count_failed(error, datagram.count() - datagrams);
        }
        ops.push(Op::Recycle { buffer });
    }

    /// The events of a turn have been handled: arms receives, at most once per turn, or ends them.
    pub(crate) fn end_turn(&mut self, now: Timestamp, ops: &mut Vec<Op>) {
        let last_turn = match &mut self.drain {
            None => None,
            Some(left) => {
                *left = left.saturating_sub(1);
                Some(*left == 0)
            }
        };
        // A closed socket must not be sent from.
        let replying = self.is_replying();
        for (index, socket) in (0..).zip(&mut self.sockets) {
            let busy = core::mem::take(&mut socket.busy);
            let id = SocketId(index);
            let failed = matches!(socket.receive, Receive::Retrying(_));
            let ends = last_turn
                .is_some_and(|last| last || !busy || failed || socket.parameters.outlives_us);
            match socket.receive {
                Receive::Wanted | Receive::Retrying(_) if ends && replying => {}
                Receive::Wanted | Receive::Retrying(_) if ends => {
                    socket.receive = Receive::Closed;
                    ops.push(Op::Close { socket: id });
                }
                Receive::Armed if ends => {
                    socket.receive = Receive::Stopping;
                    ops.push(Op::CancelReceive { socket: id });
                }
                Receive::Wanted => {
                    socket.receive = Receive::Armed;
                    ops.push(Op::Receive { socket: id });
                }
                Receive::Retrying(at) if at <= now => {
                    socket.receive = Receive::Armed;
                    ops.push(Op::Receive { socket: id });
                }
                Receive::Armed | Receive::Stopping | Receive::Retrying(_) | Receive::Closed => {}
            }
        }
    }

    /// Panics if the state contradicts itself.
    pub(crate) fn check_invariants(&self) {
        let replies = self.replies.iter().flatten().count();
        assert_eq!(replies, self.replies_count, "replies are miscounted");
        for traffic in &self.listeners {
            let told = traffic.datagrams_out + traffic.dropped_total();
            assert!(told <= traffic.datagrams_in, "more is counted than was received");
            assert!(traffic.bytes_out <= traffic.bytes_in, "more was sent than received");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datagram::Unmetered;

    const SOCKET: SocketId = SocketId(0);

    /// One socket of our own, which is received from.
    fn serving() -> Responder {
        let own = Endpoint { address: PeerAddr::Unknown, port: 7 };
        let socket = SocketParameters { own, listener: 0, outlives_us: false, identifies: false };
        let parameters = DatagramParameters {
            sockets: vec![socket],
            listeners: 1,
            buffers: 2,
            proxies: Arc::new([]),
            limiter: Arc::new(Unmetered),
        };
        let mut responder = Responder::new(parameters, RuntimeLimits::unlimited(1));
        assert_eq!(end_turn(&mut responder), [Op::Receive { socket: SOCKET }]);
        responder
    }

    fn end_turn(responder: &mut Responder) -> Vec<Op> {
        let mut ops = Vec::new();
        responder.end_turn(Timestamp(0), &mut ops);
        responder.check_invariants();
        ops
    }

    /// Goal: a drain answers what waits in a socket, even if the receive has just ended for any
    /// reason. Only a receive that stayed armed and brought nothing proves that nothing waits.
    #[test]
    fn a_drain_receives_again_after_an_end() {
        for reason in [ReceiveEnd::Stopped, ReceiveEnd::NoBuffer] {
            let mut responder = serving();
            let mut ops = Vec::new();
            responder.drain();
            responder.handle(0, Event::ReceiveEnded { socket: SOCKET, reason }, &mut ops);
            assert_eq!(ops, []);
            assert_eq!(end_turn(&mut responder), [Op::Receive { socket: SOCKET }]);
            assert_eq!(end_turn(&mut responder), [Op::CancelReceive { socket: SOCKET }]);
            let canceled = Event::ReceiveEnded { socket: SOCKET, reason: ReceiveEnd::Stopped };
            responder.handle(0, canceled, &mut ops);
            assert_eq!(end_turn(&mut responder), [Op::Close { socket: SOCKET }]);
            assert!(responder.is_over());
        }
    }
}
