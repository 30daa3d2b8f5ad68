//! A handover by a worker without capacity: what waits for it is handed over too.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::*;
use crate::op::TransferState;
use crate::parameters::AfterIdentity;
use crate::reason::{AcceptError, ReceiveEnd};
use crate::stream::resources::tests::{accepted, small};

const NOW: Timestamp = Timestamp(1);
const DEADLINE: Timestamp = Timestamp(5_000);

/// A server with capacity for one connection.
fn server(listeners: u16, identities: &[Option<AfterIdentity>]) -> Server {
    let parameters = Parameters { identities: Arc::from(identities), ..small(listeners, 1) };
    let mut server = Server::new(parameters);
    server.start(NOW, &mut Vec::new());
    server
}

/// Answers the accept of `listener` that is in flight.
fn accept(server: &mut Server, listener: u16) {
    let connection = server.listeners.with_kernel(ListenerId(listener)).expect("an accept");
    server.handle(NOW, accepted(connection, PeerAddr::Unknown), &mut Vec::new());
}

/// The kernel has canceled everything that it had.
fn cancel_all(server: &mut Server, listeners: u16) {
    for listener in 0..listeners {
        if let Some(connection) = server.listeners.with_kernel(ListenerId(listener)) {
            let error = AcceptError::Canceled;
            server.handle(NOW, Event::AcceptFailed { connection, error }, &mut Vec::new());
        }
    }
    for slot in 0..server.slots.len() {
        let connection = server.id_of(slot);
        if !server.slots[slot].is_quiescent() {
            let reason = ReceiveEnd::Stopped;
            server.handle(NOW, Event::ReceiveEnded { connection, reason }, &mut Vec::new());
        }
    }
}

/// Goal: a connection that lost the race for the last capacity, and then waits for it, is handed
/// over like any other, also if it has to be told the identity of its listener first.
#[test]
fn what_waits_for_capacity_is_handed_over() {
    for identity in [None, Some(AfterIdentity::Echo), Some(AfterIdentity::End)] {
        let mut server = server(2, &[None, identity]);
        let armed: Vec<_> =
            (0..2).filter_map(|id| server.listeners.armed(ListenerId(id))).collect();
        assert_eq!(armed.len(), 1, "no more than there is capacity for in a turn");
        server.tick(NOW, &mut Vec::new());
        server.use_capacity(NOW, &mut Vec::new());
        accept(&mut server, 0);
        accept(&mut server, 1);
        assert_eq!((server.stats().connections, server.waiting_for_capacity.len()), (1, 1));
        let mut ops = Vec::new();
        server.hand_over(NOW, DEADLINE, &mut ops);
        let told = ops.iter().any(|op| matches!(op, Op::Identify { .. }));
        assert_eq!(told, identity.is_some(), "{ops:?}");
        server.tick(NOW, &mut ops);
        cancel_all(&mut server, 2);
        assert!(server.is_quiescent());
        let released: Vec<TransferState> =
            server.release(NOW).into_iter().map(|(_, transfer)| transfer).collect();
        assert_eq!(released.len(), 2, "{released:?}");
        server.check_invariants();
    }
}

/// Goal: a worker without capacity empties a listener that ends before it hands over, as no
/// capacity can become free any more; it does not wait for its deadline.
#[test]
fn a_worker_without_capacity_empties_its_listener() {
    let mut server = server(1, &[]);
    accept(&mut server, 0);
    assert!(server.is_full());
    server.end_listener(NOW, ListenerId(0), &mut Vec::new());
    assert_eq!(server.listeners.with_kernel(ListenerId(0)), None, "there is no capacity");
    server.hand_over(NOW, DEADLINE, &mut Vec::new());
    // Two more wait in the backlog.
    accept(&mut server, 0);
    accept(&mut server, 0);
    let connection = server.listeners.with_kernel(ListenerId(0)).expect("the backlog is read on");
    let mut ops = Vec::new();
    let empty = Event::AcceptFailed { connection, error: AcceptError::Empty };
    server.handle(NOW, empty, &mut ops);
    assert!(ops.contains(&Op::CloseListener { listener: ListenerId(0) }), "{ops:?}");
    server.tick(NOW, &mut ops);
    cancel_all(&mut server, 1);
    assert!(server.is_quiescent());
    assert_eq!(server.release(NOW).len(), 3);
}
