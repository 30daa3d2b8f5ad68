//! The state of one connection in a worker: how much of its stream has been sent and echoed, and
//! which messages are in flight.

use std::collections::VecDeque;

use echo_core::op::ConnectionId;

/// The state of a connection.
#[derive(Debug, Default)]
pub(crate) enum State {
    /// There is no connection.
    #[default]
    Closed,
    Connecting,
    Open,
    /// Half-closed: we have sent FIN and wait for the rest of the echo and its end.
    Finishing,
    /// A wrong byte was received; the following bytes are collected for the diagnosis.
    Suspect(Box<Suspicion>),
    /// Closed by us; the kernel has not completed the close yet.
    Closing,
}

/// The collected bytes of a wrong stream.
#[derive(Debug)]
pub(crate) struct Suspicion {
    /// The bytes received from the first wrong byte on.
    pub(crate) tail: Vec<u8>,
    /// When it began, in nanoseconds of the run.
    pub(crate) since: u64,
}

/// A message in flight. Times are nanoseconds of the run. Its scheduled time is in the schedule.
#[derive(Debug)]
pub(crate) struct Message {
    /// The offset of its end in the stream; in churn mode it is unknown before the message is sent.
    pub(crate) end: u64,
    /// When it was submitted to the kernel (churn: when the connect began).
    pub(crate) started: u64,
}

/// One slot, which holds one connection after another.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    pub(crate) id: Option<ConnectionId>,
    pub(crate) state: State,
    /// Its number in the run, from which its stream is computed.
    pub(crate) number: u64,
    /// When the connect began, in nanoseconds of the run.
    pub(crate) began: u64,
    /// Bytes submitted to the kernel.
    pub(crate) sent: u64,
    /// Bytes received that were correct.
    pub(crate) received: u64,
    /// Oldest first.
    pub(crate) in_flight: VecDeque<Message>,
    /// Its turn among the connections of its thread, in an open loop.
    pub(crate) rank: u64,
    /// The total number of messages started, to find the scheduled time of each.
    pub(crate) started: u64,
    /// True exactly when a send has found that the server reset the connection. The kernel reports
    /// that once, so the receive then ends as if the stream had ended.
    pub(crate) is_reset: bool,
    /// True exactly while it waits to reconnect after a failure.
    pub(crate) is_resting: bool,
    /// Echoes completed in the measured time, and their total latency in nanoseconds.
    pub(crate) echoes: u64,
    pub(crate) echo_time: u64,
    /// When the first message ended after the measured time: messages that were never sent waited
    /// at least until then.
    pub(crate) freed: Option<u64>,
}

impl Connection {
    /// Resets the slot for a new connection.
    pub(crate) fn begin(&mut self, number: u64, now: u64) {
        self.state = State::Connecting;
        self.number = number;
        self.began = now;
        (self.sent, self.received) = (0, 0);
        self.is_reset = false;
        self.in_flight.clear();
    }

    /// The id of a connection that is not closed.
    pub(crate) fn id(&self) -> ConnectionId {
        self.id.expect("invariant: a connection that is not closed has its id")
    }

    /// How many messages were started before the oldest one in flight.
    pub(crate) fn completed(&self) -> u64 {
        self.started - self.in_flight.len() as u64
    }

    /// The length of the message whose echo is next, in bytes, if all echoes before it were
    /// received as whole messages. None if there is no message in flight.
    pub(crate) fn next_length(&self) -> Option<u64> {
        self.in_flight.front().map(|message| message.end - self.received)
    }

    /// Bytes that have not been echoed yet.
    pub(crate) fn missing(&self) -> u64 {
        self.sent - self.received
    }
}
