//! Goal: the driver of the client fulfils its contract with any caller. Method: a listener of the
//! standard library at the other end, and callers that violate the contract.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use echo_core::op::{ConnectionId, ReceiveEnd};
use echo_ring::client::{Client, Closing, Event, Settings};
use nix::sys::eventfd::EventFd;
use socket2::{SockAddr, Type};

use crate::servers::closed_port;

struct World {
    client: Client,
    listener: TcpListener,
    wake: Arc<EventFd>,
}

/// For stream sockets and this many small buffers.
fn settings(target: SockAddr, wake: &Arc<EventFd>, buffers: u16) -> Settings {
    let wake = wake.clone();
    Settings { target, socket_type: Type::STREAM, wake, buffers, buffer_bytes: 16 }
}

fn world() -> World {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().into();
    let wake = Arc::new(EventFd::new().unwrap());
    let settings = settings(target, &wake, 4);
    World { client: Client::new(settings).unwrap(), listener, wake }
}

impl World {
    fn next(&mut self) -> Event {
        let since = Instant::now();
        loop {
            if let Some(event) = self.client.next_event() {
                return event;
            }
            assert!(since.elapsed() < Duration::from_secs(20), "nothing happens");
            self.client.wait(Some(Duration::from_millis(100))).unwrap();
        }
    }

    /// A connection in slot 0 with a receive armed, and the other end.
    fn connect(&mut self) -> (ConnectionId, TcpStream) {
        self.connect_in(0)
    }

    fn connect_in(&mut self, slot: u32) -> (ConnectionId, TcpStream) {
        let id = self.client.connect(slot, None).unwrap();
        let Event::Connected { connection } = self.next() else { panic!("not connected") };
        assert_eq!(connection, id);
        self.client.receive(id);
        (id, self.listener.accept().unwrap().0)
    }

    fn send(&mut self, id: ConnectionId, text: &[u8]) {
        let message = self.client.message(id);
        message.clear();
        message.extend_from_slice(text);
        self.client.send(id);
    }
}

fn refuses<T>(action: impl FnOnce() -> T) {
    assert!(catch_unwind(AssertUnwindSafe(action)).is_err(), "it was not refused");
}

#[test]
fn messages_go_out_whole_and_echoes_come_in_pieces() {
    let mut world = world();
    let (id, mut peer) = world.connect();
    let text: Vec<u8> = (0..100).collect();
    world.send(id, &text);
    assert!(world.client.is_sending(id));
    assert!(matches!(world.next(), Event::Sent { length: 100, .. }));
    assert!(!world.client.is_sending(id));
    let mut copy = vec![0; 100];
    peer.read_exact(&mut copy).unwrap();
    assert_eq!(copy, text);
    peer.write_all(&copy).unwrap();
    // The pool has less room than this, so the receive has to wait for buffers.
    let mut received = Vec::new();
    while received.len() < text.len() {
        match world.next() {
            Event::Received { connection, buffer, length, armed } => {
                received.extend_from_slice(world.client.bytes(buffer, length));
                world.client.recycle(buffer);
                if !armed {
                    world.client.receive(connection);
                }
            }
            other => panic!("unexpected: {other:?}"),
        }
    }
    assert_eq!(received, text);
    world.client.finish(id);
    assert_eq!(peer.read(&mut copy).unwrap(), 0);
    drop(peer);
    let end = world.next();
    let is_end = matches!(end, Event::ReceiveEnded { reason: ReceiveEnd::EndOfStream, .. });
    assert!(is_end, "{end:?}");
    assert_eq!(world.client.close(id), Closing::Done);
}

#[test]
fn a_close_waits_for_the_kernel_and_the_peer_sees_it() {
    let mut world = world();
    let (first, mut peer) = world.connect();
    assert_eq!(world.client.close(first), Closing::Pending);
    assert!(matches!(world.next(), Event::Closed { connection } if connection == first));
    // The descriptor is closed with the next turn.
    world.client.wait(Some(Duration::from_millis(1))).unwrap();
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    // The socket is closed: what the peer writes is answered with a reset.
    peer.write_all(b"x").unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(peer.write_all(b"x").is_err(), "the socket is still open");
    let (second, _peer) = world.connect();
    assert_eq!((second.slot(), first.slot()), (0, 0));
    assert_ne!(second, first, "a late completion could hit the wrong tenant");
    refuses(|| world.client.finish(first));
}

#[test]
fn misuse_is_refused() {
    let mut world = world();
    let (id, mut peer) = world.connect();
    refuses(|| world.client.receive(id));
    refuses(|| world.client.connect(0, None));
    refuses(|| world.client.bytes(0, 1));
    refuses(|| world.client.recycle(0));
    refuses(|| world.client.bytes(99, 1));
    refuses(|| world.client.finish(ConnectionId::new(7, 0)));
    refuses(|| world.client.finish(ConnectionId::new(0, 1)));
    peer.write_all(b"abc").unwrap();
    let Event::Received { buffer, length: 3, .. } = world.next() else { panic!("no bytes") };
    assert_eq!(world.client.bytes(buffer, 3), b"abc");
    refuses(|| world.client.bytes(buffer, 17));
    world.client.recycle(buffer);
    refuses(|| world.client.bytes(buffer, 3));
    refuses(|| world.client.recycle(buffer));
}

#[test]
fn the_memory_of_a_message_is_out_of_reach_while_it_is_sent() {
    let mut world = world();
    let (id, _peer) = world.connect();
    // The peer reads nothing, so this cannot be sent.
    world.send(id, &vec![b'x'; 64 << 20]);
    refuses(|| world.client.message(id).clear());
    refuses(|| world.client.send(id));
    for _ in 0..3 {
        world.client.wait(Some(Duration::from_millis(20))).unwrap();
        assert!(world.client.is_sending(id));
        refuses(|| world.client.message(id).clear());
        assert!(world.client.next_event().is_none());
    }
    assert_eq!(world.client.close(id), Closing::Pending);
    assert!(matches!(world.next(), Event::Closed { .. }));
    refuses(|| world.client.message(id).clear());
}

#[test]
fn an_empty_message_is_refused_and_harms_nothing() {
    let mut world = world();
    let (id, _peer) = world.connect();
    refuses(|| world.client.send(id));
    world.send(id, b"x");
    assert!(matches!(world.next(), Event::Sent { length: 1, .. }));
}

#[test]
fn a_message_that_waits_for_room_continues_where_it_stopped() {
    let mut world = world();
    let (id, mut peer) = world.connect();
    let text: Vec<u8> = (0..32_u32 << 20).map(|it| (it / 7) as u8).collect();
    world.send(id, &text);
    world.client.wait(Some(Duration::ZERO)).unwrap();
    assert!(world.client.is_sending(id));
    let length = text.len();
    let reader = std::thread::spawn(move || {
        let mut copy = vec![0; length];
        peer.read_exact(&mut copy).map(|()| copy).unwrap()
    });
    assert!(matches!(world.next(), Event::Sent { connection, .. } if connection == id));
    assert!(!world.client.is_sending(id));
    assert!(reader.join().unwrap() == text, "the peer got something else");
}

#[test]
fn a_close_right_after_a_send_waits_for_it() {
    let mut world = world();
    let (id, _peer) = world.connect();
    world.send(id, b"x");
    assert_eq!(world.client.close(id), Closing::Pending);
    assert!(matches!(world.next(), Event::Closed { connection } if connection == id));
    // The same without a receive.
    let id = world.client.connect(0, None).unwrap();
    assert!(matches!(world.next(), Event::Connected { .. }));
    world.send(id, b"x");
    assert_eq!(world.client.close(id), Closing::Pending);
    assert!(matches!(world.next(), Event::Closed { connection } if connection == id));
}

/// Ten peers send, and there are four buffers.
#[test]
fn receives_wait_for_buffers_unseen() {
    let mut world = world();
    let mut connections: Vec<_> = (0..10).map(|slot| world.connect_in(slot)).collect();
    for (_, peer) in &mut connections {
        peer.write_all(b"x").unwrap();
    }
    let mut lent = Vec::new();
    for _ in 0..20 {
        world.client.wait(Some(Duration::from_millis(1))).unwrap();
        while let Some(event) = world.client.next_event() {
            let Event::Received { connection, buffer, .. } = event else { panic!("{event:?}") };
            lent.push((connection, buffer));
        }
    }
    assert_eq!(lent.len(), 4, "all others wait");
    let mut heard: Vec<_> = lent.iter().map(|(connection, _)| *connection).collect();
    // One that waits is closed.
    let waits = |id: &ConnectionId| !heard.contains(id);
    let closed = connections.iter().map(|(id, _)| *id).find(waits).unwrap();
    assert_eq!(world.client.close(closed), Closing::Pending);

    lent.iter().for_each(|&(_, buffer)| world.client.recycle(buffer));
    let mut is_closed = false;
    while heard.len() < 9 || !is_closed {
        match world.next() {
            Event::Received { connection, buffer, .. } => {
                world.client.recycle(buffer);
                heard.push(connection);
            }
            Event::Closed { connection } if connection == closed => is_closed = true,
            other => panic!("unexpected: {other:?}"),
        }
    }
    heard.push(closed);
    heard.sort_by_key(|id| id.slot());
    assert!(heard.iter().eq(connections.iter().map(|(id, _)| id)), "each once: {heard:?}");
}

#[test]
fn it_can_be_dropped_in_the_middle_of_everything() {
    let mut world = world();
    let (id, _peer) = world.connect();
    world.send(id, &vec![b'x'; 64 << 20]);
    world.client.connect(1, None).unwrap();
    world.client.wait(Some(Duration::from_millis(10))).unwrap();
    drop(world.client);
}

#[test]
fn a_connect_that_fails_frees_its_slot() {
    let mut world = world();
    let (_reserved, closed) = closed_port();
    let settings = settings(closed.into(), &world.wake, 1);
    world.client = Client::new(settings).unwrap();
    for _ in 0..2 {
        world.client.connect(0, None).unwrap();
        let Event::ConnectFailed { error, .. } = world.next() else { panic!("it is connected") };
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn it_can_be_woken_again_and_again() {
    let mut world = world();
    for _ in 0..3 {
        world.wake.write(1).unwrap();
        assert!(matches!(world.next(), Event::Woken));
    }
}
