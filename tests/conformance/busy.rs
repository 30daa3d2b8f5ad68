//! What makes a driver's connections alternate: few of them, that always have something to say.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use echo_uring::echo::op::{
    ConnectionId, Event, Expectation, Kernel, Op, ReceiveEnd, ReceiveMode, SizeClass,
};
use echo_uring::uring::Driver;

use crate::world::Setup;

/// So few count as few even with the smallest pool that a script is roomy with.
const TALKERS: u32 = 4;

/// Turns until they alternate, at the latest.
const PATIENCE: u32 = 1_000;

/// A talker's slot: above those of all scripts.
const FIRST_SLOT: u32 = 1_000;

/// Talks to the driver until its connections alternate, and leaves it without connections. A pool
/// too small for that leaves it as it is.
pub(crate) fn make_busy(driver: &mut Driver, setup: Setup) {
    if u32::from(setup.buffers[0]) < 2 * TALKERS {
        return;
    }
    let mut talkers: Vec<Talker> = (0..TALKERS).map(|number| Talker::new(driver, number)).collect();
    // Two buffers full each: eight pieces a turn.
    let bytes = vec![0; 2 * setup.buffer_sizes[0] as usize];
    let mut turns = 0;
    while !talkers.iter().any(|talker| talker.alternates) {
        turns += 1;
        assert!(turns < PATIENCE, "after {PATIENCE} busy turns nobody alternates");
        for talker in &mut talkers {
            if talker.heard >= talker.said {
                talker.peer.write_all(&bytes).expect("an empty socket has room");
                talker.said += bytes.len();
            }
            talker.listen(driver);
        }
        turn(driver, &mut talkers);
    }
    for talker in &talkers {
        if talker.listens {
            driver.submit(&mut vec![Op::CancelReceive { connection: talker.name }]);
        }
    }
    while talkers.iter().any(|talker| talker.listens) {
        turn(driver, &mut talkers);
    }
    driver.submit(&mut talkers.iter().map(|it| Op::Close { connection: it.name }).collect());
    turn(driver, &mut talkers);
}

struct Talker {
    name: ConnectionId,
    peer: UnixStream,
    said: usize,
    heard: usize,
    /// Whether a receive is with the driver, and has brought something already.
    listens: bool,
    has_listened: bool,
    /// Whether a multishot receive ended with the first bytes.
    alternates: bool,
}

impl Talker {
    fn new(driver: &mut Driver, number: u32) -> Self {
        let (ours, peer) = UnixStream::pair().expect("a pair of sockets");
        let name = ConnectionId::new(FIRST_SLOT + number, 0);
        driver.adopt(name, OwnedFd::from(ours), &[]);
        let (listens, has_listened, alternates) = (false, false, false);
        Self { name, peer, said: 0, heard: 0, listens, has_listened, alternates }
    }

    fn listen(&mut self, driver: &mut Driver) {
        if !std::mem::replace(&mut self.listens, true) {
            self.has_listened = false;
            driver.submit(&mut vec![Op::Receive {
                connection: self.name,
                class: SizeClass::Small,
                mode: ReceiveMode::Multishot,
                expectation: Expectation::Silence,
            }]);
        }
    }
}

fn turn(driver: &mut Driver, talkers: &mut [Talker]) {
    let mut events = Vec::new();
    driver.turn(Some(driver.now().plus(5)), &mut events).expect("the ring works");
    for event in events {
        match event {
            Event::Received { connection, buffer, length, armed, .. } => {
                let talker = &mut talkers[(connection.slot() - FIRST_SLOT) as usize];
                talker.heard += length as usize;
                talker.alternates |= !armed && !talker.has_listened;
                (talker.listens, talker.has_listened) = (armed, true);
                driver.submit(&mut vec![Op::Recycle { buffer }]);
            }
            Event::ReceiveEnded {
                connection,
                reason: ReceiveEnd::Stopped | ReceiveEnd::NoBuffer,
            } => {
                talkers[(connection.slot() - FIRST_SLOT) as usize].listens = false;
            }
            other => panic!("a talker talks: {other:?}"),
        }
    }
}
