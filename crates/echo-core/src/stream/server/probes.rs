//! Many silent connections over a long time. No connection of a responsive peer is ended, no
//! connection of a dead peer is kept, and probes are never sent in a burst that the network would
//! drop.

use super::*;
use crate::id::BufferId;
use crate::limits;
use crate::parameters::RuntimeLimits;
use alloc::vec;

use crate::id::SizeClass;
use crate::reason::{CloseReason, ReceiveEnd};
use crate::stream::resources::tests::{accepted, small};

const MINUTE: u64 = 60_000;
const SILENCE: u64 = 2 * MINUTE;

/// The reaction of a connection's peer to a probe.
#[derive(Clone, Copy, PartialEq)]
enum Peer {
    /// Answers probes, except one in `lost_of`, at random.
    Answers { lost_of: u32 },
    /// Is gone.
    Gone,
}

/// A server, its peers by slot, and the operations that it has submitted.
struct World {
    server: Server,
    now: Timestamp,
    ops: Vec<Op>,
    peers: Vec<Peer>,
    heard: Vec<u64>,
    random: u64,
    probes: Vec<u64>,
    looks: usize,
    /// Slot and moment of each end.
    ends: Vec<(usize, u64)>,
    turns: usize,
}

impl World {
    /// All connections are opened at once, at 1 s.
    fn new(peers: Vec<Peer>, workers: usize) -> Self {
        let count = peers.len() as u32;
        let keepalive = Some(Keepalive::new(SILENCE, workers));
        let mut parameters = small(1, count);
        parameters.linger_timeout = limits::LINGER_MS;
        parameters.runtime_limits.keepalive = keepalive;
        let mut server = Server::new(parameters);
        let (now, mut ops) = (Timestamp(1_000), Vec::new());
        server.start(now, &mut ops);
        for _ in &peers {
            let armed = ops.iter().rev().find_map(|op| {
                if let Op::Accept { connection, .. } = op { Some(*connection) } else { None }
            });
            let connection = armed.expect("an accept is armed");
            ops.clear();
            server.handle(now, accepted(connection, PeerAddr::Unknown), &mut ops);
        }
        let heard = vec![now.0; peers.len()];
        let (probes, ends) = (Vec::new(), Vec::new());
        ops.clear();
        Self { server, now, ops, peers, heard, random: 7, probes, looks: 0, ends, turns: 0 }
    }

    fn chance(&mut self, of: u32) -> bool {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.random >> 33).is_multiple_of(u64::from(of))
    }

    /// Carries out the operations of the server. Returns the events of the kernel.
    fn carry_out(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        for op in std::mem::take(&mut self.ops) {
            if let Op::Probe { connection, silent_s, .. } = op {
                self.ask(connection.slot() as usize, u64::from(silent_s));
            }
            if let Op::EndProbe { connection, .. } = op {
                self.looks += 1;
                let heard = Timestamp(self.heard[connection.slot() as usize]);
                events.push(Event::ProbeEnded { connection, heard });
            }
            if let Op::Shutdown { connection, .. } = op {
                self.ends.push((connection.slot() as usize, self.now.0));
                let reason = ReceiveEnd::EndOfStream;
                events.push(Event::ReceiveEnded { connection, reason });
            }
        }
        events
    }

    fn ask(&mut self, slot: usize, silent_s: u64) {
        self.probes.push(self.now.0);
        let silent = self.now.0 - self.heard[slot];
        assert!(silent >= SILENCE - 1, "probed after {silent} ms");
        assert!(silent_s * 1_000 <= silent);
        let lost = match self.peers[slot] {
            Peer::Answers { lost_of } => self.chance(lost_of),
            Peer::Gone => true,
        };
        if !lost {
            self.heard[slot] = self.now.0 + 1;
        }
    }

    fn run_until(&mut self, end: u64) {
        while self.now.0 < end {
            self.turns += 1;
            let events = self.carry_out();
            for event in &events {
                self.server.handle(self.now, *event, &mut self.ops);
            }
            match self.server.wake() {
                wake if wake.is_due(self.now) => {
                    self.server.tick(self.now, &mut self.ops);
                }
                _ if !events.is_empty() || !self.ops.is_empty() => {}
                Wake::Now => unreachable!("it is now"),
                Wake::At(due) => self.now = due.min(Timestamp(end)),
                Wake::Never => self.now = Timestamp(end),
            }
        }
        self.server.check_invariants();
    }

    /// The largest number of probes within `span` milliseconds.
    fn densest(&self, span: u64) -> usize {
        let mut first = 0;
        let density = |(index, at): (usize, &u64)| {
            while self.probes[first] + span <= *at {
                first += 1;
            }
            index + 1 - first
        };
        self.probes.iter().enumerate().map(density).max().unwrap_or(0)
    }
}

/// Goal: 20,000 connections that were opened at once stay open although one in 50 probes or answers
/// is lost. Each is probed once per silence, and no burst exceeds what a queue of 1,000 can hold.
#[test]
fn silent_connections_stay_and_are_probed_at_a_bounded_pace() {
    const CONNECTIONS: usize = 20_000;
    let mut world = World::new(vec![Peer::Answers { lost_of: 50 }; CONNECTIONS], 1);
    world.run_until(1_000 + 60 * MINUTE);
    assert_eq!(world.server.stats().connections, CONNECTIONS as u64);
    assert_eq!(world.ends, []);
    assert!(world.densest(80) <= 2 * limits::PROBES_PER_BURST as usize, "{}", world.densest(80));
    // 30 silences, each a little longer because of the rounding; one in 50 is probed again.
    let each = world.probes.len() as f64 / CONNECTIONS as f64;
    assert!((27.0..=31.0).contains(&each), "{each} probes for each connection");
    assert_eq!(world.looks, world.probes.len());
}

/// Goal: peers that are gone are detected in the promised time, neither earlier nor later,
/// regardless of other silent peers. Responsive peers are not mistaken for them.
#[test]
fn peers_that_are_gone_are_found_in_time() {
    const CONNECTIONS: usize = 10_000;
    let gone = |slot: usize| slot.is_multiple_of(3);
    let peer = |slot| if gone(slot) { Peer::Gone } else { Peer::Answers { lost_of: 50 } };
    let mut world = World::new((0..CONNECTIONS).map(peer).collect(), 1);
    world.run_until(1_000 + 20 * MINUTE);
    let count = (0..CONNECTIONS).filter(|slot| gone(*slot)).count();
    assert_eq!(world.ends.len(), count);
    let interval = Keepalive::new(SILENCE, 1).interval();
    let earliest = 1_000 + SILENCE + u64::from(limits::PROBES) * interval;
    // The pace, for each probe; the steps in which silence is counted; ticks of the wheel.
    let pace = u64::from(limits::PROBES) * CONNECTIONS as u64 / 400 * limits::PROBE_BURST_MS;
    let latest = earliest + pace + SILENCE / 32 + 10 * 1_000;
    for (slot, at) in &world.ends {
        assert!(gone(*slot), "slot {slot} is there");
        assert!((earliest..=latest).contains(at), "{at}: not in {earliest}..={latest}");
    }
    let unreachable = CloseReason::Unreachable as usize;
    assert_eq!(world.server.stats().traffic.closed[unreachable], count as u64);
}

/// Goal: an outage of the network for less than the promised time ends no connection, although all
/// probes of many connections were lost at the same time.
#[test]
fn an_outage_ends_no_connection() {
    const CONNECTIONS: usize = 20_000;
    let mut world = World::new(vec![Peer::Gone; CONNECTIONS], 1);
    world.run_until(1_000 + SILENCE + 70_000);
    assert!(world.probes.len() > 2 * CONNECTIONS, "all were probed during the outage");
    world.peers = vec![Peer::Answers { lost_of: u32::MAX }; CONNECTIONS];
    world.run_until(60 * MINUTE);
    assert_eq!(world.ends, []);
    assert!(world.densest(80) <= 2 * limits::PROBES_PER_BURST as usize);
}

/// Goal: the pace holds for all workers together.
#[test]
fn workers_share_the_pace() {
    let each = |workers| Keepalive::new(SILENCE, workers).burst;
    assert_eq!([each(1), each(4), each(64), each(1_024)], [400, 100, 6, 1]);
    let interval = |silence| Keepalive::new(silence, 1).interval();
    assert_eq!([interval(1_000), interval(SILENCE)], [1_000, 30_000]);
}

/// Goal: a connection with traffic is never probed, and costs no more visits than without probing.
/// Method: a byte every minute, for hours.
#[test]
fn a_connection_that_talks_is_not_probed() {
    let mut world = World::new(vec![Peer::Gone], 1);
    let connection = ConnectionId::new(0, 0);
    let buffer = BufferId { class: SizeClass::Small, index: 0 };
    for minute in 1..180 {
        world.run_until(minute * MINUTE);
        let received = Event::Received {
            connection,
            buffer,
            length: 1,
            armed: false,
            rest: Expectation::Silence,
        };
        world.server.handle(world.now, received, &mut world.ops);
        world.server.handle(world.now, Event::Sent { connection, length: 1 }, &mut world.ops);
        world.heard[0] = world.now.0;
    }
    assert_eq!((world.probes.len(), world.ends.len()), (0, 0));
    // The events of each minute, and one check of the timer in each silence.
    assert!(world.turns < 180 * 8, "{} turns", world.turns);
}

/// Goal: a reload counts at once, also for peers that are being probed.
#[test]
fn a_reload_switches_it_off_and_on() {
    let mut world = World::new(vec![Peer::Gone; 100], 1);
    let on = world.server.resources.parameters.runtime_limits.clone();
    world.run_until(1_000 + SILENCE + 20_000);
    assert_eq!(world.probes.len(), 100);
    world.server.reconfigure(world.now, RuntimeLimits { keepalive: None, ..on.clone() });
    world.run_until(60 * MINUTE);
    assert_eq!((world.probes.len(), world.ends.len()), (100, 0));
    assert_eq!(world.looks, 100, "no connection is left in the middle of a probe");
    assert_eq!(world.server.wake(), Wake::Never);
    world.server.reconfigure(world.now, on);
    world.run_until(60 * MINUTE + 3 * SILENCE);
    assert_eq!(world.ends.len(), 100);
}
