//! What a worker knows of one connection: how far its stream has been sent and echoed, and which
//! messages are under way.

use std::collections::VecDeque;

use echo_core::op::ConnectionId;

/// Where a connection is in its life.
#[derive(Debug, Default)]
pub(crate) enum State {
    /// There is none: not yet, not again, or no more.
    #[default]
    Closed,
    Connecting,
    Open,
    /// We have ended our stream (FIN) and wait for the rest of the echo and its end.
    Finishing,
    /// Something came that should not; what follows is collected for the diagnosis.
    Suspect(Box<Suspicion>),
    /// Closed as far as we are concerned; the kernel has yet to let go.
    Closing,
}

/// What is collected of a stream that went wrong.
#[derive(Debug)]
pub(crate) struct Suspicion {
    /// What came, from the first wrong byte on.
    pub(crate) tail: Vec<u8>,
    /// When it began, in nanoseconds of the run.
    pub(crate) since: u64,
}

/// A message under way. Times are nanoseconds of the run. When it was due the schedule tells.
#[derive(Debug)]
pub(crate) struct Message {
    /// Where it ends in the stream; in a churn it has no end before it is sent.
    pub(crate) end: u64,
    /// When it was handed to the kernel (churn: when the connect began).
    pub(crate) started: u64,
}

/// One connection, or the place where one follows another.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    pub(crate) id: Option<ConnectionId>,
    pub(crate) state: State,
    /// Its number in the run, which its stream is made from.
    pub(crate) number: u64,
    /// When the connect began, in nanoseconds of the run.
    pub(crate) began: u64,
    /// Bytes handed to the kernel.
    pub(crate) sent: u64,
    /// Bytes that came back and were right.
    pub(crate) received: u64,
    /// Oldest first.
    pub(crate) in_flight: VecDeque<Message>,
    /// Its turn among the connections of its thread, in an open loop.
    pub(crate) rank: u64,
    /// Messages started in all, to find each one's moment on the schedule.
    pub(crate) started: u64,
    /// True exactly when it is among those that connect again after a failure.
    pub(crate) is_resting: bool,
    /// Echoes completed in the measured time, and the nanoseconds that they took in all.
    pub(crate) echoes: u64,
    pub(crate) echo_time: u64,
    /// When the first message ended after the measured time was over: one that was never sent
    /// waited at least until then.
    pub(crate) freed: Option<u64>,
}

impl Connection {
    /// Forgets the last tenant of the place.
    pub(crate) fn begin(&mut self, number: u64, now: u64) {
        self.state = State::Connecting;
        self.number = number;
        self.began = now;
        (self.sent, self.received) = (0, 0);
        self.in_flight.clear();
    }

    /// The id of a connection that is not closed.
    pub(crate) fn id(&self) -> ConnectionId {
        self.id.expect("invariant: a connection that is not closed has its id")
    }

    /// How many messages were started before the oldest one under way.
    pub(crate) fn completed(&self) -> u64 {
        self.started - self.in_flight.len() as u64
    }

    /// Bytes that have yet to come back.
    pub(crate) fn missing(&self) -> u64 {
        self.sent - self.received
    }
}
