//! Peers that do not read, and hold large buffers because no memory is left for their bytes.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::*;
use crate::buffer_pool::BufferPlan;
use crate::id::{BufferId, SizeClass};
use crate::op::Expectation;
use crate::stream::resources::tests::{Blocks, accepted, small};

const NOW: Timestamp = Timestamp(1);
const SMALL: u32 = 8;
const LARGE: u32 = 64;

fn server() -> Server {
    let buffers = BufferPlan::new([8, 2], [SMALL, LARGE]);
    let budget = Arc::new(Blocks::of(SMALL, 0));
    let mut server = Server::new(Parameters { buffers, budget, ..small(1, 3) });
    server.start(NOW, &mut Vec::new());
    server
}

fn received(server: &mut Server, connection: ConnectionId, buffer: BufferId) -> Vec<Op> {
    let length = match buffer.class {
        SizeClass::Small => server.resources.parameters.buffers.small.size,
        SizeClass::Large => server.resources.parameters.buffers.large.size,
    };
    let (armed, rest) = (false, Expectation::Data);
    let mut ops = Vec::new();
    server.handle(NOW, Event::Received { connection, buffer, length, armed, rest }, &mut ops);
    ops
}

/// A connection that has brought bulk: its next receive gets a large buffer, if there is one.
fn bulky(server: &mut Server) -> (ConnectionId, Vec<Op>) {
    let connection = server.listeners.armed(ListenerId(0)).expect("an accept is armed");
    server.handle(NOW, accepted(connection, PeerAddr::Unknown), &mut Vec::new());
    let mut ops = Vec::new();
    for _ in 0..crate::limits::BULKY_RECEIVES_TO_GROW {
        received(server, connection, BufferId { class: SizeClass::Small, index: 0 });
        ops.clear();
        server.handle(NOW, Event::Sent { connection, length: SMALL }, &mut ops);
    }
    (connection, ops)
}

fn receives_large(ops: &[Op]) -> bool {
    ops.iter().any(|op| matches!(op, Op::Receive { class: SizeClass::Large, .. }))
}

/// Goal: a peer that stops reading does not affect other connections. Method: two peers hold all
/// large buffers, for whose bytes there is no memory; a third transfers bulk and waits for one of
/// them.
#[test]
fn bulk_goes_on_while_slow_peers_hold_the_large_buffers() {
    let mut server = server();
    let slow = [(); 2].map(|()| bulky(&mut server));
    assert!(slow.iter().all(|(_, ops)| receives_large(ops)), "{slow:?}");
    let (third, ops) = bulky(&mut server);
    assert!(!receives_large(&ops), "no large buffer is left");
    for (index, (connection, _)) in (0..).zip(slow) {
        received(&mut server, connection, BufferId { class: SizeClass::Large, index });
        // The socket takes a part: the peer does not read.
        let part = Event::Sent { connection, length: LARGE / 2 };
        server.handle(NOW, part, &mut Vec::new());
    }
    let mut ops = Vec::new();
    server.end_turn(NOW, &mut ops);
    let relayed = |op: &Op| matches!(op, Op::Relay { connection, .. } if *connection == third);
    assert!(ops.iter().any(relayed), "{ops:?}");
    server.check_invariants();
}
