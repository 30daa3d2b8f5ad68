//! The listening sockets in one worker: how many accepts are in flight, and in what order.
//!
//! Accepts are one-shot on purpose: a one-shot accept goes to the end of the socket's wait queue
//! each time, so workers that share a listener take turns exactly; a multishot stays at the head
//! and takes every connection (Linux 6.18, measured).
//!
//! If an address has as many sockets as there are workers (SO_REUSEPORT), each worker accepts from
//! one of them only. The daemon assigns it.

use alloc::vec;
use alloc::vec::Vec;

use crate::id::{ConnectionId, ListenerId, Timestamp};
use crate::kernel::Wake;
use crate::limits;
use crate::op::{Expectation, Op};
use crate::reason::AcceptError;

/// The state of the accept of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accept {
    /// Not armed: there is no capacity, the worker drains, or the accept is about to be armed.
    Off,
    /// With the kernel, for this connection id.
    Armed(ConnectionId),
    /// With the kernel, and canceled.
    Canceling(ConnectionId),
    /// Not armed: files or memory ran out. Tried again at this moment, or when a connection closes.
    BackingOff(Timestamp),
    /// With the kernel, as an accept that does not wait: the listener ends.
    Emptying(ConnectionId),
    /// Not armed, and never again: the listener has ended.
    Ended,
}

impl Accept {
    fn is_with_kernel(self) -> bool {
        match self {
            Self::Armed(_) | Self::Canceling(_) | Self::Emptying(_) => true,
            Self::Off | Self::BackingOff(_) | Self::Ended => false,
        }
    }
}

/// One listening socket.
#[derive(Clone, Debug)]
struct Listener {
    accept: Accept,
    /// Whether this worker accepts from it before it ends.
    ours: bool,
    /// Whether it ends.
    ends: bool,
    /// Consecutive accepts that found their peer gone.
    aborts: u16,
    /// What its backlog probably holds, according to its last accept. After a start or a failure,
    /// connections.
    backlog: Expectation,
}

/// What the worker accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accepting {
    /// Connections of all listeners.
    All,
    /// Only connections that wait at listeners that end: the worker drains, or hands over.
    Ending,
    /// None, because it has no share of the capacity: other workers empty the listeners that end.
    Elsewhere,
    /// None any more: the time for that is over.
    Nothing,
}

/// All listening sockets.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    all: Vec<Listener>,
    /// Accepts that were armed in this turn and not answered. Until the next passing of time, older
    /// ones may be included. At worst a listener is skipped needlessly for one turn.
    armed_this_turn: u64,
    /// The listener to be armed first.
    next: usize,
    /// Whether a listener is to be armed in the next turn.
    is_one_skipped: bool,
}

impl Listeners {
    /// `count` listeners, none of which has an accept.
    #[must_use]
    pub(crate) fn new(count: u16) -> Self {
        let backlog = Expectation::Data;
        let off = Listener { accept: Accept::Off, ours: true, ends: false, aborts: 0, backlog };
        let all = vec![off; usize::from(count)];
        Self { all, armed_this_turn: 0, next: 0, is_one_skipped: false }
    }

    /// From now on connections are accepted from listeners for which `ours` is true, and from those
    /// that end.
    pub(crate) fn accept_from(&mut self, ours: &[bool]) {
        for (listener, &ours) in self.all.iter_mut().zip(ours) {
            listener.ours = ours;
        }
    }

    /// The next moment at which there is something to do.
    #[must_use]
    pub(crate) fn wake(&self) -> Wake {
        if self.is_one_skipped {
            return Wake::Now;
        }
        let until = |listener: &Listener| match listener.accept {
            Accept::BackingOff(until) => Some(until),
            _ => None,
        };
        self.all.iter().filter_map(until).min().into()
    }

    /// Whether no accept is in flight, and every listener that ends has been emptied.
    #[must_use]
    pub(crate) fn are_quiescent(&self) -> bool {
        self.all.iter().all(|listener| {
            let ended = !listener.ends || listener.accept == Accept::Ended;
            ended && !listener.accept.is_with_kernel()
        })
    }

    /// Time has passed: those that backed off may be tried again.
    pub(crate) fn on_time(&mut self, now: Timestamp) {
        for listener in &mut self.all {
            if let Accept::BackingOff(until) = listener.accept
                && until <= now
            {
                listener.accept = Accept::Off;
            }
        }
    }

    /// A connection was closed, which frees a file and memory: those that backed off may be tried
    /// again.
    pub(crate) fn on_closed(&mut self) {
        for listener in &mut self.all {
            if let Accept::BackingOff(_) = listener.accept {
                listener.accept = Accept::Off;
            }
        }
    }

    /// Accepts that are armed from here on are of another turn.
    pub(crate) fn end_turn(&mut self) {
        self.armed_this_turn = 0;
    }

    /// From now on `listener` is emptied, possibly once more.
    pub(crate) fn end(&mut self, listener: ListenerId) {
        let listener = &mut self.all[usize::from(listener.0)];
        listener.ends = true;
        if let Accept::Ended | Accept::BackingOff(_) = listener.accept {
            listener.accept = Accept::Off;
        }
    }

    /// The accept of `listener` has brought a connection. `backlog` is what the backlog probably
    /// still holds.
    pub(crate) fn on_accepted(&mut self, listener: ListenerId, backlog: Expectation) {
        self.armed_this_turn = self.armed_this_turn.saturating_sub(1);
        let listener = &mut self.all[usize::from(listener.0)];
        listener.accept = Accept::Off;
        listener.aborts = 0;
        listener.backlog = backlog;
    }

    /// The accept of `listener` has failed.
    pub(crate) fn on_failed(
        &mut self,
        now: Timestamp,
        id: ListenerId,
        error: AcceptError,
        ops: &mut Vec<Op>,
    ) {
        self.armed_this_turn = self.armed_this_turn.saturating_sub(1);
        let listener = &mut self.all[usize::from(id.0)];
        listener.backlog = Expectation::Data;
        listener.aborts = if error == AcceptError::Aborted { listener.aborts + 1 } else { 0 };
        listener.accept = match error {
            AcceptError::Canceled => Accept::Off,
            AcceptError::Aborted if listener.aborts < limits::ACCEPT_ABORTS_MAX => Accept::Off,
            AcceptError::Empty if listener.ends => {
                ops.push(Op::CloseListener { listener: id });
                Accept::Ended
            }
            // Another worker has already closed the listener.
            AcceptError::Empty
            | AcceptError::Aborted
            | AcceptError::ProcessFiles
            | AcceptError::SystemFiles
            | AcceptError::Memory
            | AcceptError::Unexpected(_) => {
                listener.aborts = 0;
                Accept::BackingOff(now.plus(limits::ACCEPT_BACKOFF_MS))
            }
        };
    }

    /// Arms accepts for at most as many connections as there is `capacity` for in one turn. If two
    /// accepts raced for the last capacity, one connection would have to wait here, while another
    /// worker may have capacity. Listeners that are skipped are armed in the next turn. The accept
    /// of a listener from which no connection is wanted any more is canceled. `take_slot` returns a
    /// slot for an accept of a listener.
    ///
    /// A listener that ends is emptied instead, even in a drain: by accepts that do not wait, one
    /// after the other as capacity permits, until one finds the backlog empty. When nothing is
    /// accepted any more, it is closed even if its backlog is not empty.
    pub(crate) fn arm(
        &mut self,
        accepting: Accepting,
        capacity: u64,
        mut take_slot: impl FnMut(ListenerId) -> ConnectionId,
        ops: &mut Vec<Op>,
    ) {
        self.is_one_skipped = false;
        let first = self.next;
        for index in (first..self.all.len()).chain(0..first) {
            let id = ListenerId(index as u16);
            let listener = &mut self.all[index];
            let ends = listener.ends;
            let accepts = ends || accepting == Accepting::All && listener.ours;
            let wanted = capacity > 0 && accepts;
            match listener.accept {
                Accept::Off | Accept::BackingOff(_) if ends && accepting == Accepting::Nothing => {
                    listener.accept = Accept::Ended;
                    ops.push(Op::CloseListener { listener: id });
                }
                Accept::Off | Accept::BackingOff(_)
                    if ends && accepting == Accepting::Elsewhere =>
                {
                    listener.accept = Accept::Ended;
                }
                Accept::Off if wanted && self.armed_this_turn >= capacity => {
                    self.is_one_skipped = true;
                }
                Accept::Off if wanted => {
                    self.armed_this_turn += 1;
                    self.next = index + 1;
                    let connection = take_slot(id);
                    if ends {
                        listener.accept = Accept::Emptying(connection);
                        ops.push(Op::AcceptWaiting { listener: id, connection });
                    } else {
                        listener.accept = Accept::Armed(connection);
                        let backlog = listener.backlog;
                        ops.push(Op::Accept { listener: id, connection, backlog });
                    }
                }
                Accept::Armed(connection) if ends || !wanted => {
                    listener.accept = Accept::Canceling(connection);
                    ops.push(Op::CancelAccept { connection });
                }
                Accept::Off
                | Accept::Armed(_)
                | Accept::Canceling(_)
                | Accept::Emptying(_)
                | Accept::Ended
                | Accept::BackingOff(_) => {}
            }
        }
    }
}

#[cfg(test)]
impl Listeners {
    /// The connection id of the accept of `listener` that is in flight.
    pub(crate) fn with_kernel(&self, listener: ListenerId) -> Option<ConnectionId> {
        match self.all[usize::from(listener.0)].accept {
            Accept::Armed(connection)
            | Accept::Canceling(connection)
            | Accept::Emptying(connection) => Some(connection),
            Accept::Off | Accept::BackingOff(_) | Accept::Ended => None,
        }
    }

    /// The connection id of the accept that is armed on `listener`.
    pub(crate) fn armed(&self, listener: ListenerId) -> Option<ConnectionId> {
        match self.all[usize::from(listener.0)].accept {
            Accept::Armed(connection) => Some(connection),
            _ => None,
        }
    }
}
