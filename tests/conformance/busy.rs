//! What makes a driver's connections alternate: few of them, that always have something to say.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use echo_core::op::{
    BufferId, ConnectionId, Event, Expectation, Kernel, Op, ReceiveEnd, ReceiveMode, SizeClass,
};
use echo_ring::Driver;

use crate::world::Setup;

/// Few even for the smallest pool that is roomy.
const TALKERS: u32 = 15;

/// Turns for which they talk. After 256 they alternate, and after 256 more it has proved to pay.
const TURNS: u32 = 700;

/// The slot of the first talker: above those of all scripts.
const FIRST_SLOT: u32 = 1_000;

const MESSAGE: [u8; 64] = [b'x'; 64];

/// Talks to the driver until its connections alternate, and until that has proved to pay; leaves it
/// without connections. With a pool too small for that, leaves it as it is.
pub(crate) fn make_busy(driver: &mut Driver, setup: Setup) {
    if u32::from(setup.buffers[0]) < 2 * (TALKERS + 1) {
        return;
    }
    let mut talkers: Vec<Talker> = (0..TALKERS).map(|number| Talker::new(driver, number)).collect();
    let mut pacemaker = Talker::new(driver, TALKERS);
    let beat = take_buffer(driver, &mut pacemaker);
    for talker in &mut talkers {
        talker.say();
        talker.listen(driver);
    }
    for _ in 0..TURNS {
        pacemaker.send(driver, beat, 1);
        turn(driver, &mut talkers);
        pacemaker.peer.read_exact(&mut [0]).expect("a beat");
    }
    for talker in &talkers {
        assert!(talker.alternates, "after {TURNS} busy turns {:?} does not alternate", talker.name);
    }
    while talkers.iter().any(|talker| talker.speaks) {
        talkers.iter_mut().for_each(|talker| talker.is_tired = true);
        turn(driver, &mut talkers);
    }
    let names: Vec<_> = talkers.iter().map(|talker| talker.name).collect();
    for talker in &talkers {
        talker.peer.shutdown(std::net::Shutdown::Write).expect("an open socket");
    }
    while talkers.iter().any(|talker| talker.listens) {
        turn(driver, &mut talkers);
    }
    let mut ops = vec![Op::Recycle { buffer: beat }, Op::Close { connection: pacemaker.name }];
    ops.extend(names.into_iter().map(|connection| Op::Close { connection }));
    driver.submit(&mut ops);
    turn(driver, &mut talkers);
}

struct Talker {
    name: ConnectionId,
    peer: UnixStream,
    /// What is being echoed.
    buffer: Option<BufferId>,
    /// Whether a message is under way, in whatever direction.
    speaks: bool,
    is_tired: bool,
    /// Whether a receive is with the driver.
    listens: bool,
    /// Whether that receive has brought nothing yet.
    is_new: bool,
    /// Whether the last multishot receive ended with its first bytes.
    alternates: bool,
}

impl Talker {
    fn new(driver: &mut Driver, number: u32) -> Self {
        let (ours, peer) = UnixStream::pair().expect("a pair of sockets");
        let name = ConnectionId::new(FIRST_SLOT + number, 0);
        driver.import(name, OwnedFd::from(ours), &[]);
        Self {
            name,
            peer,
            buffer: None,
            speaks: false,
            is_tired: false,
            listens: false,
            is_new: false,
            alternates: false,
        }
    }

    fn say(&mut self) {
        self.peer.write_all(&MESSAGE).expect("an empty socket has room");
        self.speaks = true;
    }

    fn listen(&mut self, driver: &mut Driver) {
        (self.listens, self.is_new) = (true, true);
        driver.submit(&mut vec![Op::Receive {
            connection: self.name,
            class: SizeClass::Small,
            mode: ReceiveMode::Multishot,
            expectation: Expectation::Silence,
        }]);
    }

    fn send(&self, driver: &mut Driver, buffer: BufferId, length: u32) {
        let connection = self.name;
        driver.submit(&mut vec![Op::Send { connection, buffer, length, needs_completion: true }]);
    }

    fn on_event(&mut self, driver: &mut Driver, event: Event) {
        match event {
            Event::Received { buffer, length, armed, .. } => {
                if std::mem::take(&mut self.is_new) {
                    self.alternates = !armed;
                }
                self.buffer = Some(buffer);
                self.send(driver, buffer, length);
                if !armed {
                    self.listen(driver);
                }
            }
            Event::Sent { length, .. } => {
                assert_eq!(length as usize, MESSAGE.len());
                let buffer = self.buffer.take().expect("an echo");
                driver.submit(&mut vec![Op::Recycle { buffer }]);
                self.peer.read_exact(&mut [0; MESSAGE.len()]).expect("an echo");
                self.speaks = false;
                if !self.is_tired {
                    self.say();
                }
            }
            Event::ReceiveEnded { reason: ReceiveEnd::Stopped, .. } => self.listen(driver),
            Event::ReceiveEnded { reason: ReceiveEnd::EndOfStream, .. } => self.listens = false,
            other => panic!("a talker talks: {other:?}"),
        }
    }
}

/// One turn, and what follows from it for the talkers; what is not theirs is the pacemaker's.
fn turn(driver: &mut Driver, talkers: &mut [Talker]) {
    let mut events = Vec::new();
    driver.turn(Some(driver.now().plus(5)), &mut events).expect("the ring works");
    for event in events {
        let (Event::Received { connection, .. }
        | Event::Sent { connection, .. }
        | Event::ReceiveEnded { connection, .. }) = event
        else {
            panic!("talkers talk: {event:?}")
        };
        if let Some(talker) = talkers.iter_mut().find(|talker| talker.name == connection) {
            talker.on_event(driver, event);
        }
    }
}

/// A buffer lent to this connection.
fn take_buffer(driver: &mut Driver, talker: &mut Talker) -> BufferId {
    talker.say();
    let (connection, class, mode) = (talker.name, SizeClass::Small, ReceiveMode::Once);
    let expectation = Expectation::Data;
    driver.submit(&mut vec![Op::Receive { connection, class, mode, expectation }]);
    let mut events = Vec::new();
    driver.turn(Some(driver.now().plus(1_000)), &mut events).expect("the ring works");
    match events[..] {
        [Event::Received { buffer, .. }] => buffer,
        _ => panic!("bytes were expected, not {events:?}"),
    }
}
