//! All small cases of datagrams, instead of a sample: every order and every outcome within a budget
//! of faults; see [`crate::exhaustive`].

use std::time::Instant;

use echo_core::datagram::op::Header;
use echo_core::datagram::op::SocketId;
use echo_core::datagram::{Datagram, Endpoint, SocketParameters};
use echo_core::op::PeerAddr;

use super::clients::Clients;
use super::history::{History, Scenario};
use super::rules::Rules;
use super::saboteur::Saboteur;
use crate::caught::caught;
use crate::fake::choice::{Choice, Enumeration};
use crate::fake::datagrams::DatagramFaults;

/// A world with more cases than this takes too long for every `cargo test`.
const CASES_MAX: usize = 100_000;

/// Any probability except 0 makes the enumeration take both branches.
const ON: u16 = 1;

/// A world so small that all of it can be visited.
struct World {
    name: &'static str,
    faults: DatagramFaults,
    faults_max: usize,
    buffers: u16,
    drain: Option<usize>,
    handover: Option<(usize, bool)>,
    /// The packets, and the turn before which each arrives.
    packets: Vec<(usize, Kind)>,
}

/// The possible packets.
#[derive(Clone, Copy)]
enum Kind {
    Whole,
    Empty,
    Burst,
    Forged,
}

impl World {
    fn scenario(&self, outlives_us: bool) -> Scenario {
        let own = Endpoint { address: PeerAddr::Unknown, port: 7 };
        let planned = self.packets.iter().map(|(turn, kind)| (*turn, SocketId(0), packet(*kind)));
        Scenario {
            sockets: vec![SocketParameters { own, listener: 0, outlives_us, identifies: false }],
            listeners: 1,
            buffers: self.buffers,
            queue_max: 10,
            faults: self.faults,
            rules: Rules { prefix: 32, ..Rules::default() },
            sources_max: 100,
            clients: Clients {
                sockets: vec![own],
                often: 0,
                most: 1,
                odd: 0,
                bursts: 0,
                length_max: 1,
                headers: false,
                planned: planned.collect(),
                left: 0,
                sent: 0,
            },
            chaos_turns: 8,
            drain: self.drain,
            handovers: self.handover.into_iter().collect(),
            changes: Vec::new(),
            clock: 1_000,
            peers: 0,
            time_jump: 0,
            drains_busy: false,
        }
    }

    /// Runs every case. Returns how many there are.
    fn visit(&self, outlives_us: bool) -> usize {
        let mut choice = Choice::Enumerated(Enumeration::new(self.faults_max));
        let mut cases = 0;
        loop {
            let mut history = History::new(self.scenario(outlives_us), choice, Saboteur::none());
            let outcome = caught(|| history.run());
            cases += 1;
            assert!(cases < CASES_MAX, "world {:?} is not small", self.name);
            let story = history.kernel.tail(200);
            let Choice::Enumerated(mut enumeration) = history.kernel.datagrams.choice else {
                unreachable!("an enumeration was put in")
            };
            if let Err(words) = outcome {
                let case = enumeration.describe();
                panic!("{story}{words}\nworld {:?}, case {case}", self.name);
            }
            if !enumeration.advance() {
                return cases;
            }
            choice = Choice::Enumerated(enumeration);
        }
    }
}

fn packet(kind: Kind) -> Datagram {
    let local = PeerAddr::Ipv4([10, 0, 0, 250]);
    let source = Endpoint { address: PeerAddr::Ipv4([10, 0, 0, 1]), port: 40_000 };
    let header = Header::Absent;
    let whole = Datagram {
        source,
        destination: local,
        local,
        header,
        length: 10,
        segment: 0,
        truncated: false,
        own: false,
    };
    match kind {
        Kind::Whole => whole,
        Kind::Empty => Datagram { length: 0, ..whole },
        Kind::Burst => Datagram { length: 15, segment: 10, ..whole },
        Kind::Forged => Datagram { source: Endpoint { port: 0, ..source }, ..whole },
    }
}

fn worlds() -> Vec<World> {
    let none = DatagramFaults::default();
    let receives =
        DatagramFaults { disarmed: ON, dry: ON, stopped: ON, memory: ON, unexpected: ON, ..none };
    let replies = DatagramFaults {
        late_reply: ON,
        reply_error: ON,
        burst_refused: ON,
        segment_error: ON,
        ..none
    };
    let order = DatagramFaults {
        late: ON,
        late_event: ON,
        late_reply: ON,
        cancel_loses: ON,
        disarmed: ON,
        ..none
    };
    let mut worlds = vec![
        World {
            name: "every way in which a receive can end",
            faults: receives,
            faults_max: 3,
            buffers: 1,
            drain: None,
            handover: None,
            packets: vec![(1, Kind::Whole), (1, Kind::Empty), (3, Kind::Whole)],
        },
        World {
            name: "every way in which a reply can fail",
            faults: replies,
            faults_max: 4,
            buffers: 2,
            drain: Some(5),
            handover: None,
            packets: vec![(1, Kind::Burst), (1, Kind::Forged), (2, Kind::Whole)],
        },
    ];
    let packets = vec![(1, Kind::Whole), (2, Kind::Empty), (3, Kind::Burst), (4, Kind::Whole)];
    for turn in 0..5 {
        let drain = |name, drain, handover| {
            let packets = packets.clone();
            World { name, faults: order, faults_max: 3, buffers: 1, drain, handover, packets }
        };
        worlds.push(drain("a drain at any moment", Some(turn), None));
        worlds.push(drain("another process takes over", None, Some((turn, false))));
        worlds.push(drain("no process takes over", None, Some((turn, true))));
    }
    worlds
}

/// Goal: in worlds small enough to visit all of, nothing that the swarm forbids happens in any
/// case.
#[test]
fn all_small_datagram_cases() {
    let began = Instant::now();
    let mut total = 0;
    for world in worlds() {
        for outlives_us in [false, true] {
            let cases = world.visit(outlives_us);
            println!("{cases:>8} cases, outlives us {outlives_us}: {}", world.name);
            assert!(cases > 50, "this world leaves nothing to choose");
            total += cases;
        }
    }
    println!("{total:>8} cases in {:.1} s", began.elapsed().as_secs_f64());
}
