//! The interface of the core to the driver, which carries out operations and reports events.

use alloc::vec::Vec;
use core::fmt;

use crate::command::Command;
use crate::datagram::op as datagram;
use crate::id::{ConnectionId, Timestamp};
use crate::op::{Event, Op};
use crate::peer::PeerAddr;

/// Until when a turn may wait for an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wake {
    /// Not at all: there is work left.
    Now,
    /// Until this moment at the latest.
    At(Timestamp),
    /// Until an event.
    Never,
}

impl Wake {
    /// Whether there is something to do at the moment `now`.
    #[must_use]
    pub fn is_due(self, now: Timestamp) -> bool {
        match self {
            Self::Now => true,
            Self::At(moment) => moment <= now,
            Self::Never => false,
        }
    }
}

impl From<Option<Timestamp>> for Wake {
    fn from(moment: Option<Timestamp>) -> Self {
        moment.map_or(Self::Never, Self::At)
    }
}

/// The cause of operations.
#[derive(Clone, Copy, Debug)]
pub enum Cause<'a> {
    /// The start of the worker.
    Start,
    /// A connection of the previous process.
    Import,
    /// A command of the daemon.
    Command(&'a Command),
    /// An event.
    Event(&'a Event),
    /// The passing of time.
    Time,
    /// The end of a turn: all of the above has been handled.
    TurnEnd,
}

/// The only interface of the core to the kernel. `echo-ring` implements it on a real ring, the
/// simulator on a fake that injects faults.
pub trait Kernel {
    /// What [`Kernel::turn`] may fail with.
    type Error: fmt::Debug;

    /// Now.
    fn now(&self) -> Timestamp {
        Timestamp(self.now_us() / 1_000)
    }

    /// The same reading of the clock in microseconds, as far as the resolution of the clock
    /// permits.
    fn now_us(&self) -> u64;

    /// How many turns found the completion queue overflowed; 0 if the implementation has none.
    fn overflows(&self) -> u64 {
        0
    }

    /// The address of the peer of an open connection, if it can still be determined. For
    /// connections that were accepted before [`Op::ReportPeers`]. It costs a system call.
    fn peer_of(&self, connection: ConnectionId) -> PeerAddr;

    /// Records the cause of operations before they are submitted. For tracing and simulation; by
    /// default it does nothing.
    fn trace(&mut self, _cause: Cause<'_>, _ops: &[Op]) {}

    /// Takes all of `ops`, in order, and leaves it empty. They reach the kernel at the next turn at
    /// the latest.
    fn submit(&mut self, ops: &mut Vec<Op>);

    /// Hands everything submitted to the kernel. Waits for an event, for the moment of `wake`, or
    /// until another thread wakes the worker. Appends the events to `events`, in order for each
    /// connection.
    ///
    /// # Errors
    /// Only when the ring itself fails. An error of a connection is an event.
    fn turn(&mut self, wake: Wake, events: &mut Vec<Event>) -> Result<(), Self::Error>;

    /// Moves the datagram events of the last turn to the end of `events`. By default there are
    /// none.
    fn take_datagrams(&mut self, _events: &mut Vec<datagram::Event>) {}

    /// As [`Kernel::submit`], for datagram sockets. Called only if there are any.
    fn submit_datagrams(&mut self, ops: &mut Vec<datagram::Op>) {
        unreachable!("there is no datagram socket: {ops:?}")
    }

    /// As [`Kernel::trace`]: `ops` follow from `event`, or from the end of a turn.
    fn trace_datagrams(&mut self, _event: Option<&datagram::Event>, _ops: &[datagram::Op]) {}
}
