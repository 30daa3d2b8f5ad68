//! The contract between core and kernel from the core's side, and a small model of each connection.
//!
//! It reads events and operations in the order in which the core handles them: each event before it
//! is handled, then the resulting operations. Therefore it knows exactly what the core knew at each
//! operation. A violation is a panic. It also checks the promises of the core: no connection is
//! ended without a cause, no limit is exceeded, no failed accept spins.

use std::sync::Arc;

use echo_core::command::Command;
use echo_core::limits::PROBES;
use echo_core::op::{
    AcceptError, BufferId, BufferPlan, ConnectionId, Event, ListenerId, Op, ReceiveEnd,
    ReceiveMode, SendError, Shutdown, SizeClass, Timestamp, When,
};
use echo_core::parameters::{AfterIdentity, RuntimeLimits};

pub(crate) mod admission;
mod bulk;
mod handover;
mod identity;
mod line;
mod preface;
mod promises;

use admission::Admission;
use bulk::Bulk;
use identity::Identity;
use line::Waiter;
use preface::Preface;

/// The configuration of the core.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) connections_max: usize,
    pub(crate) listeners: usize,
    /// The pooled buffers.
    pub(crate) buffers: BufferPlan,
    /// Chunks that may wait in one connection before its receive is stopped.
    pub(crate) chunks_max: usize,
    pub(crate) idle_timeout: Option<u64>,
    pub(crate) stall_timeout: Option<u64>,
    pub(crate) linger_timeout: u64,
    pub(crate) preface_timeout: u64,
    pub(crate) lifetime: Option<u64>,
    /// The maximum number of bytes that one connection may have echoed.
    pub(crate) bytes_max: Option<u64>,
}

/// How long no accept is tried on a listener that found no descriptor or memory, unless a
/// connection closes.
const ACCEPT_PAUSE_MS: u64 = 100;

/// The number of consecutive accepts that may find their peer gone before the listener backs off.
const ABORTS_MAX: u16 = 1024;

/// The auditor of one history.
pub(crate) struct Audit {
    limits: Limits,
    tenants: Vec<(ConnectionId, Tenant)>,
    lent: Vec<Lent>,
    /// Connections that found no small buffer and wait in the queue for one.
    line: Vec<Waiter>,
    /// The model of admission.
    pub(crate) admission: Admission,
    /// How many of them were armed after the present event, and the number of free buffers.
    served: usize,
    /// Ids that have been used by a connection: none may be used again within a history.
    retired: Vec<ConnectionId>,
    /// For each listener, until when a failed accept forbids the next one.
    pauses: Vec<u64>,
    /// For each listener, how many consecutive accepts found their peer gone.
    aborts: Vec<u16>,
    /// For each listener, the progress of its end, if it ends.
    ends: Vec<Option<ListenerEnd>>,
    /// For each listener, whether the worker is to accept from it.
    ours: Vec<bool>,
    drain_deadline: Option<u64>,
    draining: bool,
    /// Connections that got back everything that they sent, and then a FIN; with the era.
    complete: Vec<(u32, ConnectionId)>,
    /// How many processes there have been before this one.
    era: u32,
    /// Until when a handover waits for connections to become quiescent, once it has begun.
    quiesce_deadline: Option<u64>,
    /// Connections that the present process took over. Limits do not count them.
    imported: usize,
    pub(crate) accepted: u64,
    pub(crate) closed: u64,
    /// Connections that may have been closed or refused, because two causes coincided.
    pub(crate) closed_or_refused: u64,
    /// Connections whose header announced their peer.
    pub(crate) announced: u64,
    /// What follows the identity of each listener, if it has one.
    identities: Arc<[Option<AfterIdentity>]>,
    /// Connections that were told the identity of their listener.
    pub(crate) identified: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
}

/// The progress of the end of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ListenerEnd {
    /// Waiting connections are accepted.
    Emptied,
    /// The last accept found no connection.
    Empty,
    /// No connection is accepted any more.
    Closed,
}

#[derive(Debug)]
enum Tenant {
    Accepting(ListenerId),
    Open(Open),
}

#[derive(Debug)]
struct Lent {
    buffer: BufferId,
    connection: ConnectionId,
    length: u32,
}

#[derive(Debug)]
struct Open {
    receive: Option<ReceiveMode>,
    /// Its header, while it is not complete.
    preface: Option<Preface>,
    /// Whether its peer is told an identity first.
    identity: Identity,
    /// Its header was read, so it has been opened.
    was_asked: bool,
    /// The class of buffers of the last receive.
    class: SizeClass,
    bulk: Bulk,
    receive_canceled: bool,
    /// Whether that receive is a relay, and what happens to its bytes.
    relay: Option<Relay>,
    /// The peer does not read relayed bytes fast enough.
    blocked: bool,
    send: Option<Sending>,
    send_canceled: bool,
    /// Spilled bytes that are still unsent.
    spilled: u64,
    received: u64,
    /// How many of them count towards the byte limit, if there is one.
    counted: u64,
    /// The maximum number of echoed bytes, once the byte limit has been reached.
    echoed_max: Option<u64>,
    sent: u64,
    ended: bool,
    dead: bool,
    /// The core may have decided to end it, at one of several moments. Bytes that were received
    /// until then are owed; later bytes may be dropped. The number of owed bytes for each moment,
    /// ascending. A moment is removed when later bytes are echoed nevertheless.
    decided: Vec<u64>,
    write_shut_at: Option<u64>,
    both_shut: bool,
    accepted_at: u64,
    /// The last time that bytes moved in either direction.
    active_at: u64,
    /// The last time that bytes were sent, or that the first unsent bytes appeared.
    progress_at: u64,
    /// When its peer was probed, if the result has not been reported.
    asked_at: Option<u64>,
    /// Consecutive probes that were not answered.
    unanswered: u8,
}

#[derive(Clone, Copy, Debug)]
enum Sending {
    Buffer(BufferId, u32),
    Held(BufferId, u32),
    Spilled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relay {
    Echo,
    Discard,
}

impl Open {
    fn accepted(now: u64) -> Self {
        Self {
            receive: None,
            preface: None,
            identity: Identity::None,
            was_asked: false,
            class: SizeClass::Small,
            bulk: Bulk::default(),
            receive_canceled: false,
            relay: None,
            blocked: false,
            send: None,
            send_canceled: false,
            spilled: 0,
            received: 0,
            counted: 0,
            echoed_max: None,
            sent: 0,
            ended: false,
            dead: false,
            decided: Vec::new(),
            write_shut_at: None,
            both_shut: false,
            accepted_at: now,
            active_at: now,
            progress_at: now,
            asked_at: None,
            unanswered: 0,
        }
    }

    /// `length` bytes were received; by a relay, if they have been `echoed` already. Bytes beyond
    /// the byte limit are not echoed.
    fn count_received(&mut self, length: u32, limit: Option<u64>, echoed: bool) {
        let before = self.received;
        self.received += u64::from(length);
        let Some(limit) = limit.filter(|_| length > 0) else { return };
        let left = limit.saturating_sub(self.counted);
        self.counted += u64::from(length);
        if left <= u64::from(length) {
            let kept = if echoed { u64::from(length) } else { left };
            let most = *self.echoed_max.get_or_insert(before + kept);
            if most >= self.sent + self.spilled {
                self.decided.push(most);
            }
        }
    }

    fn check_echoed(&self, connection: ConnectionId, handed: u64) {
        let within = self.echoed_max.is_none_or(|most| handed <= most);
        assert!(within, "limit: {handed} bytes of {connection:?} are echoed");
    }
}

impl Audit {
    pub(crate) fn new(limits: Limits, admission: Admission) -> Self {
        Self {
            limits,
            tenants: Vec::new(),
            lent: Vec::new(),
            line: Vec::new(),
            admission,
            served: 0,
            retired: Vec::new(),
            pauses: vec![0; limits.listeners],
            aborts: vec![0; limits.listeners],
            ends: vec![None; limits.listeners],
            ours: vec![true; limits.listeners],
            drain_deadline: None,
            draining: false,
            complete: Vec::new(),
            era: 0,
            quiesce_deadline: None,
            imported: 0,
            accepted: 0,
            closed: 0,
            closed_or_refused: 0,
            announced: 0,
            identities: Arc::new([]),
            identified: 0,
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    /// The core is about to get new limits and timeouts.
    fn reconfigure(&mut self, runtime_limits: &RuntimeLimits) {
        let limits = &mut self.limits;
        // Slots that were needed once may be used again.
        limits.connections_max =
            limits.connections_max.max(runtime_limits.connections_max as usize);
        limits.idle_timeout = runtime_limits.idle_timeout;
        limits.stall_timeout = runtime_limits.stall_timeout;
        limits.lifetime = runtime_limits.lifetime;
        limits.bytes_max = runtime_limits.bytes_max;
        if limits.bytes_max.is_none() {
            for (_, tenant) in &mut self.tenants {
                if let Tenant::Open(open) = tenant {
                    open.counted = 0;
                }
            }
        }
    }

    /// The core is about to handle this event.
    pub(crate) fn event(&mut self, now: u64, event: &Event) {
        self.served = 0;
        match *event {
            Event::Accepted { connection, peer, .. } => {
                let listener = self.end_accept(connection);
                self.aborts[usize::from(listener.0)] = 0;
                let proxied = self.admission.accepted(now, listener, connection, peer);
                let preface = proxied.then(Preface::default);
                let decided = self.is_drained(now).then_some(0).into_iter().collect();
                let identity = self.identity_of(listener);
                let open = Open { decided, preface, identity, ..Open::accepted(now) };
                self.tenants.push((connection, Tenant::Open(open)));
                self.accepted += 1;
            }
            Event::AcceptFailed { connection, error } => {
                self.accept_failed(now, connection, error);
            }
            Event::Received { connection, buffer, length, armed, .. } => {
                self.received(now, connection, buffer, length, armed);
            }
            Event::PrefacePartial { connection, received } => {
                self.preface_partial(connection, received);
            }
            Event::PrefaceComplete { connection, peer, origin } => {
                self.preface_complete(now, connection, peer, origin);
            }
            Event::PrefaceInvalid { connection } => self.preface_invalid(connection),
            Event::IdentifyFailed { connection, .. } => self.identify_failed(connection),
            Event::Readable { connection } => {
                let open = self.open(connection);
                let polls = open.receive.take() == Some(ReceiveMode::WhenReadable);
                assert!(polls && open.relay.is_none(), "seam: {connection:?} was not polled");
                open.receive_canceled = false;
            }
            Event::ReceiveEnded { connection, reason } => {
                let open = self.open(connection);
                assert!(open.receive.take().is_some(), "seam: {connection:?} was not receiving");
                open.receive_canceled = false;
                let relayed = open.relay.take().is_some();
                open.blocked = false;
                open.ended |= reason == ReceiveEnd::EndOfStream;
                open.dead |= matches!(reason, ReceiveEnd::Failed(_));
                let small = open.class == SizeClass::Small;
                if reason == ReceiveEnd::NoBuffer && small && !relayed {
                    self.line.push(Waiter { connection, overtakers: Vec::new() });
                }
                if reason == ReceiveEnd::EndOfStream {
                    self.ended_in_preface(connection);
                }
            }
            Event::Relayed { connection, length, chunks, next } => {
                self.relayed(now, connection, (length, chunks), next);
            }
            Event::Sent { connection, length } => self.sent(now, connection, length, false),
            Event::SentSpilled { connection, length } => self.sent(now, connection, length, true),
            Event::ProbeEnded { connection, heard } => self.probe_ended(connection, heard),
            Event::SendFailed { connection, error } => {
                let open = self.open(connection);
                assert!(open.send.take().is_some(), "seam: {connection:?} was not sending");
                open.dead |= matches!(error, SendError::Failed(_));
            }
        }
    }

    /// Time has passed: the core may have made the decisions that depend on time.
    pub(crate) fn time_passed(&mut self, now: u64) {
        self.served = 0;
        self.note_decisions(now);
    }

    /// The core is about to get this command.
    pub(crate) fn command(&mut self, command: &Command) {
        match command {
            Command::EndListeners(listeners) => {
                for listener in &**listeners {
                    let index = usize::from(listener.0);
                    self.ends[index] = Some(ListenerEnd::Emptied);
                    self.pauses[index] = 0;
                }
            }
            Command::Drain { deadline } => {
                self.draining = true;
                self.drain_deadline = Some(deadline.0);
            }
            Command::HandOver { deadline } => self.begin_hand_over(deadline.0),
            Command::AcceptFrom(ours) => self.ours = ours.to_vec(),
            Command::Reconfigure(runtime_limits) => self.reconfigure(runtime_limits),
        }
    }

    /// An answer that is missing to the last probe is a reason to end a connection.
    fn probe_ended(&mut self, connection: ConnectionId, heard: Timestamp) {
        // It may have been closed since.
        let tenant = self.tenants.iter_mut().find(|(name, _)| *name == connection);
        let Some((_, Tenant::Open(open))) = tenant else { return };
        let asked = open.asked_at.take().expect("seam: a result that was not requested");
        open.unanswered = if heard.0 >= asked { 0 } else { open.unanswered + 1 };
        open.dead |= open.unanswered >= PROBES;
    }

    /// The core has submitted this operation.
    pub(crate) fn op(&mut self, now: u64, op: &Op) {
        self.check_bulk(op);
        self.check_told(op);
        match *op {
            Op::Accept { listener, connection, .. } => {
                let ends = self.draining || self.quiesce_deadline.is_some();
                assert!(!ends, "promise: {connection:?} is accepted while draining");
                let ours = self.ours[usize::from(listener.0)];
                assert!(
                    ours,
                    "promise: {connection:?} is accepted from a listener of another worker"
                );
                self.accept(now, listener, connection);
            }
            Op::AcceptWaiting { listener, connection } => {
                let end = self.ends[usize::from(listener.0)];
                assert_eq!(end, Some(ListenerEnd::Emptied), "contract: {listener:?} does not end");
                self.accept(now, listener, connection);
            }
            Op::CloseListener { listener } => self.close_listener(now, listener),
            Op::ReportPeers | Op::OmitPeers | Op::FlushSends | Op::OfferBuffers { .. } => {}
            Op::CancelAccept { connection } => {
                let armed =
                    self.tenant(connection).is_some_and(|t| matches!(t, Tenant::Accepting(_)));
                assert!(armed, "contract: {connection:?} is not being accepted");
            }
            Op::Receive { connection, class, mode, .. } => {
                self.check_line(connection, class);
                let open = self.open(connection);
                assert!(open.receive.is_none(), "contract: {connection:?} has two receives");
                assert!(!open.ended, "contract: {connection:?} receives after its end");
                assert_eq!(open.spilled, 0, "promise: {connection:?} receives while it is stalled");
                open.receive = Some(mode);
                open.class = class;
                open.receive_canceled = false;
                self.check_thawed(connection);
            }
            Op::ReadPreface { connection, .. } => self.read_preface(now, connection),
            Op::Identify { connection, listener } => self.identify(connection, listener),
            Op::AwaitReadable { connection } => {
                // A poll takes no buffer, so it overtakes no other connection.
                self.line.retain(|waiter| waiter.connection != connection);
                let open = self.open(connection);
                assert!(open.receive.is_none(), "contract: {connection:?} has two receives");
                assert!(!open.ended, "contract: {connection:?} is polled after its end");
                assert_eq!(
                    open.spilled, 0,
                    "promise: {connection:?} is polled while it is stalled"
                );
                open.receive = Some(ReceiveMode::WhenReadable);
                open.class = SizeClass::Large;
                open.receive_canceled = false;
                self.check_thawed(connection);
            }
            Op::Relay { connection, when, .. } => {
                self.begin_relay(now, connection, Relay::Echo, when);
            }
            Op::Discard { connection, when } => {
                self.begin_relay(now, connection, Relay::Discard, when);
            }
            Op::CancelReceive { connection } => {
                let open = self.open(connection);
                assert!(open.receive.is_some(), "contract: {connection:?} is not receiving");
                open.receive_canceled = true;
            }
            Op::Send { connection, buffer, length, .. } => {
                self.check_lent(connection, buffer, 0, length);
                self.begin_send(connection, Sending::Buffer(buffer, length));
                // It is tried at once, even if the answer comes late.
                let open = self.open(connection);
                open.active_at = now;
                open.progress_at = now;
            }
            Op::Spill { connection, buffer, offset, length } => {
                self.check_lent(connection, buffer, offset, length);
                let open = self.open(connection);
                open.spilled += u64::from(length);
                let handed = open.sent + open.spilled;
                open.check_echoed(connection, handed);
                open.decided.retain(|owed| handed <= *owed);
            }
            Op::ReleaseSpilled { .. } => {}
            Op::SendHeld { connection, buffer, offset, length } => {
                self.check_lent(connection, buffer, offset, length);
                self.begin_send(connection, Sending::Held(buffer, length));
                self.check_thawed(connection);
            }
            Op::SendSpilled { connection } => {
                assert!(
                    self.open(connection).spilled > 0,
                    "contract: {connection:?} has nothing spilled"
                );
                self.begin_send(connection, Sending::Spilled);
                self.check_thawed(connection);
            }
            Op::CancelSend { connection } => {
                let open = self.open(connection);
                let waits = matches!(open.send, Some(Sending::Spilled | Sending::Held(..)));
                assert!(waits, "contract: {connection:?} waits for no room");
                open.send_canceled = true;
            }
            Op::Probe { connection, .. } => {
                let open = self.open(connection);
                let asked = open.asked_at.replace(now);
                assert_eq!(
                    asked, None,
                    "contract: {connection:?} is probed twice at the same time"
                );
            }
            Op::EndProbe { connection, .. } => {
                let asked = self.open(connection).asked_at;
                assert!(asked.is_some(), "contract: {connection:?} was not probed");
            }
            Op::Recycle { buffer } => self.recycle(buffer),
            Op::Shutdown { connection, how: Shutdown::Write } => {
                self.check_write_shutdown(connection);
                self.open(connection).write_shut_at.get_or_insert(now);
            }
            Op::Shutdown { connection, how: Shutdown::Both } => {
                if !self.is_header_late(now, connection) {
                    self.check_cause(now, connection);
                }
                self.open(connection).both_shut = true;
            }
            Op::Close { connection } => self.close(now, connection),
            Op::Abort { connection } => {
                self.check_cause(now, connection);
                self.close(now, connection);
            }
        }
    }

    /// The handling of an event has ended.
    pub(crate) fn settle(&mut self) {
        self.leave_line();
        self.admission.settle();
        let limits = &self.limits;
        for (connection, tenant) in &self.tenants {
            let Tenant::Open(open) = tenant else { continue };
            let chunks = self.lent.iter().filter(|lent| lent.connection == *connection).count();
            let stopped = open.receive != Some(ReceiveMode::Multishot) || open.receive_canceled;
            // The chunk that reaches the byte limit is the last one that is kept.
            let cut = open.echoed_max.is_some();
            let most = limits.chunks_max + usize::from(cut);
            let within = chunks <= most || stopped || open.both_shut || open.dead;
            assert!(within, "limit: {connection:?} holds {chunks} chunks and still receives");
            open.check_ended_behind_identity(*connection);
        }
    }

    /// The connections that are open for the core and whose peer it knows.
    pub(crate) fn judged_connections(&self) -> Vec<ConnectionId> {
        let open = self
            .tenants
            .iter()
            .filter(|(_, tenant)| matches!(tenant, Tenant::Open(open) if open.preface.is_none()));
        open.map(|(connection, _)| *connection).collect()
    }

    /// Whether a drain was requested.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining
    }

    /// How many connections are open for the core.
    pub(crate) fn open_count(&self) -> usize {
        self.tenants.iter().filter(|(_, tenant)| matches!(tenant, Tenant::Open(_))).count()
    }

    /// At the end: no buffer and no connection may be left.
    pub(crate) fn quiescent(&self) {
        assert!(self.lent.is_empty(), "rest: {:?} was never given back", self.lent);
        let ended = self.closed + self.admission.refused + self.closed_or_refused;
        assert_eq!(self.accepted, ended, "rest: connections are still open");
    }

    fn accept(&mut self, now: u64, listener: ListenerId, connection: ConnectionId) {
        let twin = self.tenants.iter().find(|(name, _)| name.slot() == connection.slot());
        assert!(twin.is_none(), "contract: {connection:?} is accepted into the slot of {twin:?}");
        let mut accepting = self.tenants.iter().map(|(_, tenant)| tenant);
        let again = accepting.any(|t| matches!(t, Tenant::Accepting(other) if *other == listener));
        assert!(!again, "contract: {listener:?} has two accepts");
        let known = self.retired.contains(&connection);
        assert!(!known, "contract: the id {connection:?} is used a second time");
        assert!(now >= self.pauses[usize::from(listener.0)], "promise: {listener:?} spins");
        let limits = &self.limits;
        let slots = limits.connections_max.max(self.imported) + limits.listeners;
        // At the end of a drain, and in a handover, listeners that end are emptied beyond capacity.
        let exceeds = self.is_drained(now) || self.quiesce_deadline.is_some();
        let within = exceeds || (connection.slot() as usize) < slots;
        assert!(within, "limit: {connection:?} is beyond the slots");
        self.tenants.push((connection, Tenant::Accepting(listener)));
    }

    fn accept_failed(&mut self, now: u64, connection: ConnectionId, error: AcceptError) {
        let index = usize::from(self.end_accept(connection).0);
        self.aborts[index] = if error == AcceptError::Aborted { self.aborts[index] + 1 } else { 0 };
        match error {
            AcceptError::Canceled => {}
            AcceptError::Empty => self.ends[index] = Some(ListenerEnd::Empty),
            AcceptError::Aborted if self.aborts[index] < ABORTS_MAX => {}
            AcceptError::Aborted
            | AcceptError::ProcessFiles
            | AcceptError::SystemFiles
            | AcceptError::Memory
            | AcceptError::Unexpected(_) => {
                self.aborts[index] = 0;
                self.pauses[index] = now + ACCEPT_PAUSE_MS;
            }
        }
    }

    /// Connections that wait there are lost. Therefore none may wait, or the time for them must be
    /// over.
    fn close_listener(&mut self, now: u64, listener: ListenerId) {
        let linger = self.limits.linger_timeout;
        let over = now >= linger && self.is_drained(now - linger)
            || self.quiesce_deadline.is_some_and(|deadline| now >= deadline);
        let end = &mut self.ends[usize::from(listener.0)];
        let empty = *end == Some(ListenerEnd::Empty);
        assert!(empty || over, "promise: {listener:?} is closed before it is empty: {end:?}");
        *end = Some(ListenerEnd::Closed);
    }

    /// The next process has its own listeners.
    pub(crate) fn reopen_listeners(&mut self) {
        self.ends.fill(None);
        self.ours.fill(true);
    }

    /// Whether every listener that ends has been closed.
    pub(crate) fn are_ends_complete(&self) -> bool {
        self.ends.iter().flatten().all(|end| *end == ListenerEnd::Closed)
    }

    fn received(
        &mut self,
        now: u64,
        name: ConnectionId,
        buffer: BufferId,
        length: u32,
        armed: bool,
    ) {
        let limit = self.limits.bytes_max;
        let open = self.open(name);
        assert!(open.receive.is_some(), "seam: {name:?} was not receiving");
        assert!(length > 0, "seam: {name:?} received nothing");
        assert!(!open.ended, "seam: {name:?} received after its end");
        if !armed {
            open.receive = None;
            open.receive_canceled = false;
        }
        if open.received == open.sent {
            open.progress_at = now;
        }
        open.active_at = now;
        open.bulk.last = length;
        open.count_received(length, limit, false);
        self.bytes_in += u64::from(length);
        let twice = self.lent.iter().any(|lent| lent.buffer == buffer);
        assert!(!twice, "seam: {buffer:?} is lent twice");
        self.lent.push(Lent { buffer, connection: name, length });
    }

    fn sent(&mut self, now: u64, connection: ConnectionId, length: u32, from_spill: bool) {
        let open = self.open(connection);
        let mut moved = length > 0;
        match (open.send.take(), from_spill) {
            (Some(Sending::Buffer(_, asked)), false) => {
                assert!(length <= asked, "seam: too much sent");
                moved &= length < asked;
            }
            (Some(Sending::Spilled), true) => {
                assert!(length > 0, "seam: nothing was sent from the spill");
                open.spilled =
                    open.spilled.checked_sub(length.into()).expect("seam: too much sent");
            }
            (Some(Sending::Held(_, asked)), false) => {
                assert!(length <= asked, "seam: too much sent");
            }
            (sending, _) => panic!("seam: {connection:?} answers another send than {sending:?}"),
        }
        open.sent += u64::from(length);
        if moved {
            open.active_at = now;
            open.progress_at = now;
        }
        self.bytes_out += u64::from(length);
    }

    fn begin_relay(&mut self, now: u64, connection: ConnectionId, relay: Relay, when: When) {
        self.line.retain(|waiter| waiter.connection != connection);
        self.check_thawed(connection);
        let owns = self.lent.iter().any(|lent| lent.connection == connection);
        assert!(!owns, "contract: {connection:?} relays before older bytes");
        let open = self.open(connection);
        assert!(open.receive.is_none(), "contract: {connection:?} has two receives");
        assert!(open.send.is_none() && open.spilled == 0, "contract: {connection:?} sends already");
        assert!(!open.ended, "contract: {connection:?} receives after its end");
        let fin = open.write_shut_at.is_some();
        assert_eq!(fin, relay == Relay::Discard, "contract: {relay:?} of {connection:?}");
        let blocked = when == When::Writable;
        if blocked && !open.blocked {
            open.progress_at = now;
        }
        open.receive = Some(ReceiveMode::Now);
        open.receive_canceled = false;
        open.relay = Some(relay);
        open.blocked = blocked;
    }

    fn relayed(
        &mut self,
        now: u64,
        connection: ConnectionId,
        (length, chunks): (u32, u32),
        next: When,
    ) {
        let limit = self.limits.bytes_max;
        let open = self.open(connection);
        let relay = open.relay.take();
        let relay = relay.unwrap_or_else(|| panic!("seam: {connection:?} was not relaying"));
        open.receive = None;
        let canceled = std::mem::take(&mut open.receive_canceled);
        assert!(chunks > 0 || length == 0, "seam: bytes of {connection:?} in no chunk");
        if chunks > 0 {
            open.active_at = now;
            open.progress_at = now;
        }
        open.count_received(length, limit, relay == Relay::Echo);
        if relay == Relay::Echo {
            open.sent += u64::from(length);
            let handed = open.sent;
            // Bytes that are relayed in spite of a cancel do not revoke the decision behind it.
            open.decided.retain(|owed| canceled || handed <= *owed);
        }
        open.blocked &= next == When::Writable;
        self.bytes_in += u64::from(length);
        self.bytes_out += if relay == Relay::Echo { u64::from(length) } else { 0 };
    }

    fn begin_send(&mut self, connection: ConnectionId, sending: Sending) {
        let open = self.open(connection);
        assert!(open.send.is_none(), "contract: {connection:?} has two sends");
        assert!(open.write_shut_at.is_none(), "contract: {connection:?} sends after its FIN");
        assert!(open.relay.is_none(), "contract: {connection:?} sends while it relays");
        if let Sending::Buffer(_, length) | Sending::Held(_, length) = sending {
            let handed = open.sent + u64::from(length);
            open.check_echoed(connection, handed);
            open.decided.retain(|owed| handed <= *owed);
        }
        open.send = Some(sending);
        open.send_canceled = false;
    }

    fn check_lent(&self, connection: ConnectionId, buffer: BufferId, offset: u32, length: u32) {
        let lent = self.lent.iter().find(|lent| lent.buffer == buffer);
        let lent = lent.unwrap_or_else(|| panic!("contract: {buffer:?} is not lent"));
        assert_eq!(lent.connection, connection, "contract: the bytes of another connection");
        let within = length > 0 && offset + length <= lent.length;
        assert!(within, "contract: {offset}+{length} of {} bytes", lent.length);
    }

    fn recycle(&mut self, buffer: BufferId) {
        let index = self.lent.iter().position(|lent| lent.buffer == buffer);
        let index =
            index.unwrap_or_else(|| panic!("contract: {buffer:?} is recycled but not lent"));
        let lent = self.lent.swap_remove(index);
        if let Some(Tenant::Open(open)) = self.tenant(lent.connection) {
            let used = matches!(
                open.send,
                Some(Sending::Buffer(name, _) | Sending::Held(name, _)) if name == buffer
            );
            assert!(!used, "contract: {buffer:?} is recycled while it is sent");
        }
    }

    fn end_accept(&mut self, connection: ConnectionId) -> ListenerId {
        let index = self.tenants.iter().position(|(name, _)| *name == connection);
        match index.map(|index| self.tenants.swap_remove(index)) {
            Some((_, Tenant::Accepting(listener))) => listener,
            other => panic!("seam: {connection:?} was not being accepted but is {other:?}"),
        }
    }

    fn tenant(&self, connection: ConnectionId) -> Option<&Tenant> {
        self.tenants.iter().find(|(name, _)| *name == connection).map(|(_, tenant)| tenant)
    }

    fn open(&mut self, connection: ConnectionId) -> &mut Open {
        match self.tenants.iter_mut().find(|(name, _)| *name == connection) {
            Some((_, Tenant::Open(open))) => open,
            other => panic!("contract: {connection:?} is not open but {other:?}"),
        }
    }
}
