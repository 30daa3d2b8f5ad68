//! Tools of the scripts about datagrams: submit operations, wait for events, compare replies.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use echo_core::datagram::Datagram;
use echo_core::datagram::op::{BufferId, Event, Op, ReceiveEnd, SocketId};
use echo_core::kernel::{Kernel, Wake};

use super::world::World;

/// How long an event may take before a script fails.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long no event must come until a script assumes that none will, in milliseconds.
const SILENCE_MS: u64 = 15;

pub(crate) const SOCKET: SocketId = SocketId(0);
pub(crate) const RECEIVE: Op = Op::Receive { socket: SOCKET };
pub(crate) const CANCEL: Op = Op::CancelReceive { socket: SOCKET };
pub(crate) const CLOSE: Op = Op::Close { socket: SOCKET };

pub(crate) fn ended(reason: ReceiveEnd) -> Event {
    Event::ReceiveEnded { socket: SOCKET, reason }
}

/// A world, and the events that a script has not taken yet.
pub(crate) struct Bench<W: World> {
    pub(crate) world: W,
    events: VecDeque<Event>,
}

impl<W: World> Bench<W> {
    pub(crate) fn new() -> Self {
        Self { world: W::new(), events: VecDeque::new() }
    }

    /// In a world that answers with identities.
    pub(crate) fn identifying() -> Self {
        Self { world: W::identifying(), events: VecDeque::new() }
    }

    /// Submits these operations together.
    pub(crate) fn say(&mut self, ops: impl IntoIterator<Item = Op>) {
        let mut ops: Vec<Op> = ops.into_iter().collect();
        self.world.kernel().submit_datagrams(&mut ops);
        assert!(ops.is_empty(), "the kernel takes all");
    }

    /// One turn of at most `milliseconds`; its events are kept for `next`.
    pub(crate) fn turn(&mut self, milliseconds: u64) {
        let kernel = self.world.kernel();
        let deadline = kernel.now().plus(milliseconds);
        let (mut streams, mut events) = (Vec::new(), Vec::new());
        kernel.turn(Wake::At(deadline), &mut streams).expect("the ring works");
        assert_eq!(streams, [], "there are no streams");
        kernel.take_datagrams(&mut events);
        self.events.extend(events);
    }

    /// The next event.
    pub(crate) fn next(&mut self) -> Event {
        let began = Instant::now();
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            assert!(began.elapsed() < TIMEOUT, "an event was expected and none came");
            self.turn(20);
        }
    }

    /// Asserts that no event comes for a while.
    pub(crate) fn silence(&mut self) {
        if self.events.is_empty() {
            self.turn(SILENCE_MS);
        }
        assert_eq!(self.events.pop_front(), None, "nothing was expected");
    }

    /// The next event, which must be a datagram.
    pub(crate) fn received(&mut self) -> (BufferId, Datagram, bool) {
        match self.next() {
            Event::Received { socket: SOCKET, buffer, datagram, armed } => {
                (buffer, datagram, armed)
            }
            other => panic!("a datagram was expected, not {other:?}"),
        }
    }

    /// The next `count` datagrams, in bursts or one by one, and their buffers. A kernel may end the
    /// receive with any of them.
    pub(crate) fn received_in_all(&mut self, count: u32) -> Vec<(BufferId, Datagram)> {
        let (mut received, mut left) = (Vec::new(), count);
        while left > 0 {
            let (buffer, datagram, armed) = self.received();
            left -= datagram.count();
            received.push((buffer, datagram));
            if !armed {
                self.say([RECEIVE]);
            }
        }
        received
    }

    /// Sends the contents of these buffers back together, and returns the buffers.
    pub(crate) fn reply(&mut self, buffers: impl IntoIterator<Item = BufferId>) {
        let buffers: Vec<BufferId> = buffers.into_iter().collect();
        self.say(buffers.iter().map(|&buffer| Op::Reply { buffer }));
        let mut left = buffers.clone();
        while !left.is_empty() {
            match self.next() {
                Event::Replied { buffer } => {
                    let index = left.iter().position(|other| *other == buffer);
                    left.remove(index.expect("it was replied once"));
                }
                other => panic!("the answers to replies were expected, not {other:?}"),
            }
        }
        self.say(buffers.into_iter().map(|buffer| Op::Recycle { buffer }));
    }

    /// Cancels the receive, which is armed, and waits for its end. Nothing has been sent.
    pub(crate) fn cancel(&mut self) {
        self.say([CANCEL]);
        assert_eq!(self.next(), ended(ReceiveEnd::Stopped));
    }

    /// Asserts that the client receives this next.
    pub(crate) fn comes_back(&mut self, client: usize, payload: &[u8]) {
        let echo = self.answer(client);
        assert!(echo == payload, "{} bytes came back wrong", payload.len());
    }

    /// What the client has received next.
    pub(crate) fn answer(&mut self, client: usize) -> Vec<u8> {
        let began = Instant::now();
        loop {
            if let Some(answer) = self.world.receive(client) {
                return answer;
            }
            assert!(began.elapsed() < TIMEOUT, "nothing came back");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Asserts that the client has received nothing.
    pub(crate) fn nothing_comes_back(&mut self, client: usize) {
        std::thread::sleep(Duration::from_millis(SILENCE_MS));
        assert_eq!(self.world.receive(client), None, "nothing was to come back");
    }
}
