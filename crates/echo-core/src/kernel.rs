//! The one seam: what carries out operations and tells what happened.

use alloc::vec::Vec;
use core::fmt;

use crate::command::Command;
use crate::datagram::op as datagram;
use crate::id::{ConnectionId, Timestamp};
use crate::op::{Event, Op};
use crate::peer::PeerAddr;

/// Until when a turn may wait for something to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wake {
    /// Not at all: there is work left.
    Now,
    /// Until this moment at the latest.
    At(Timestamp),
    /// For as long as nothing happens.
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

/// What operations follow from.
#[derive(Clone, Copy, Debug)]
pub enum Cause<'a> {
    /// The start of the worker.
    Start,
    /// A connection of the process before us.
    Import,
    /// What the daemon asks for.
    Command(&'a Command),
    /// What happened.
    Event(&'a Event),
    /// That time has passed.
    Time,
    /// That all of this has been handled in a turn.
    TurnEnd,
}

/// The one seam of the daemon. `echo-ring` implements it on a real ring, the simulator on a fake
/// that injects faults.
pub trait Kernel {
    /// What [`Kernel::turn`] may fail with.
    type Error: fmt::Debug;

    /// Now.
    fn now(&self) -> Timestamp {
        Timestamp(self.now_us() / 1_000)
    }

    /// The same reading of the clock in microseconds, as far as the clock has them.
    fn now_us(&self) -> u64;

    /// How many turns found the completion queue overflowed, if there is one that can.
    fn overflows(&self) -> u64 {
        0
    }

    /// The address of the peer of an open connection, as far as it can still be told. For
    /// connections that were accepted before [`Op::ReportPeers`]; it costs a system call.
    fn peer_of(&self, connection: ConnectionId) -> PeerAddr;

    /// Takes note of which operations follow from what, before they are submitted. For tracing and
    /// simulation; by default it does nothing.
    fn trace(&mut self, _cause: Cause<'_>, _ops: &[Op]) {}

    /// Takes all of `ops`, in order, and leaves it empty. They reach the kernel at the next turn at
    /// the latest.
    fn submit(&mut self, ops: &mut Vec<Op>);

    /// Hands everything submitted to the kernel, waits until something happened, the moment of
    /// `wake` has come or another thread woke the worker, and appends what happened to `events` in
    /// the order in which it happened to each connection.
    ///
    /// # Errors
    /// Only when the ring itself is broken; what befalls a connection is an event.
    fn turn(&mut self, wake: Wake, events: &mut Vec<Event>) -> Result<(), Self::Error>;

    /// Moves what the last turn brought to datagram sockets to the end of `events`. By default
    /// there are none.
    fn take_datagrams(&mut self, _events: &mut Vec<datagram::Event>) {}

    /// As [`Kernel::submit`], of what concerns datagram sockets. Called only with some.
    fn submit_datagrams(&mut self, ops: &mut Vec<datagram::Op>) {
        unreachable!("there is no datagram socket: {ops:?}")
    }

    /// As [`Kernel::trace`]: `ops` follow from `event`, or from the end of a turn.
    fn trace_datagrams(&mut self, _event: Option<&datagram::Event>, _ops: &[datagram::Op]) {}
}
