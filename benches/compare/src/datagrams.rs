//! Load by datagrams: each flow keeps a number of them in flight, and checks every byte that comes
//! back.
//!
//! A datagram begins with its number in its flow. So the order does not matter, and a datagram that
//! is of another flow, changed, doubled or never sent is detected. A datagram that does not come
//! back in time is sent again and counted as lost: UDP permits that, and a comparison has to show
//! it.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use socket2::Socket;

use crate::address::Address;
use crate::latency::Stopwatch;
use crate::pattern::{Pattern, origin};
use crate::steady::Waiting;
use crate::veth;
use crate::works::Yield;

/// After this time a datagram counts as lost and is sent again. If it still arrives, it does not
/// count.
const LOST_AFTER: Duration = Duration::from_millis(250);

/// How often such datagrams are looked for.
const LOOK: Duration = Duration::from_millis(50);

/// If nothing comes back for this time, the server has failed.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// The receive buffer of a flow, as far as the machine permits.
const KEPT: usize = 4 << 20;

/// Events fetched by one wait.
const EVENTS_MAX: usize = 1024;

/// Receives from one flow before the others are served.
const RECEIVES_MAX: usize = 64;

/// Bytes of the number that a datagram begins with.
const NUMBER: usize = 8;

/// The datagrams in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Sockets of the client, each with a port of its own.
    pub(crate) flows: usize,
    /// How many of these have datagrams in flight at a time; they take turns.
    pub(crate) active: usize,
    /// Bytes of a datagram.
    pub(crate) message_length: usize,
    /// Datagrams of a flow in flight.
    pub(crate) in_flight: usize,
    /// They are sent by one call which has the kernel cut it (UDP_SEGMENT), and the next ones when
    /// all are back.
    pub(crate) bursts: bool,
}

impl Load {
    /// All flows always have datagrams in flight, and each is sent by itself.
    pub(crate) const fn new(flows: usize, message_length: usize, in_flight: usize) -> Self {
        Self { flows, active: flows, message_length, in_flight, bursts: false }
    }
}

/// Flows to one server, and the load on them.
pub(crate) struct Datagrams<'a> {
    epoll: Epoll,
    flows: Vec<Flow>,
    pattern: &'a Pattern,
    load: Load,
    buffer: Vec<u8>,
    message: Vec<u8>,
    waiting: Waiting,
    /// Measures the time of each echo if only one is in flight.
    stopwatch: Option<Stopwatch>,
    /// The flow whose turn is next, if not all are active.
    next: usize,
    echoes: u64,
    lost: u64,
}

/// A flow, and its datagrams in flight.
struct Flow {
    socket: Socket,
    origin: u64,
    /// Number of the next datagram.
    next: u64,
    under_way: usize,
    /// Datagram `n` has the place `n % in_flight`: its number, and when it was sent.
    places: Vec<Option<(u64, Instant)>>,
    /// Datagrams that were sent again: this number may arrive twice.
    repeats: u64,
}

impl<'a> Datagrams<'a> {
    /// Opens all flows. They come from one address each if a first one is given.
    pub(crate) fn open(
        address: &Address,
        pattern: &'a Pattern,
        load: Load,
        first: Option<Ipv4Addr>,
        waiting: Waiting,
    ) -> Result<Self, String> {
        let open = || -> io::Result<Self> {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            let mut flows = Vec::with_capacity(load.flows);
            for index in 0..load.flows {
                let source = first.map_or(Ipv4Addr::LOCALHOST, |first| {
                    Ipv4Addr::from(u32::from(first) + index as u32 % veth::SOURCES)
                });
                let socket = address.connect(source, SILENCE_MAX)?;
                socket.set_nonblocking(true)?;
                socket.set_recv_buffer_size(KEPT)?;
                if load.bursts {
                    socket.set_send_buffer_size(KEPT)?;
                    setsockopt(&socket, sockopt::UdpGsoSegment, &(load.message_length as i32))?;
                    setsockopt(&socket, sockopt::UdpGroSegment, &true)?;
                }
                epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
                flows.push(Flow {
                    socket,
                    origin: origin(index),
                    next: 0,
                    under_way: 0,
                    places: vec![None; load.in_flight],
                    repeats: 0,
                });
            }
            Ok(Self {
                epoll,
                flows,
                pattern,
                load,
                buffer: vec![0; 1 << 16],
                message: vec![0; load.message_length * load.in_flight],
                waiting,
                stopwatch: (load.in_flight == 1).then(|| Stopwatch::new(load.flows)),
                next: load.active % load.flows,
                echoes: 0,
                lost: 0,
            })
        };
        open().map_err(|error| format!("opening flows: {error}"))
    }

    /// See [`crate::works::Client::slice`].
    pub(crate) fn slice(&mut self, duration: Duration) -> Result<Yield, String> {
        let began = Instant::now();
        let deadline = began + duration;
        (self.echoes, self.lost) = (0, 0);
        for _ in 0..self.load.active {
            let index = self.turn();
            if let Some(stopwatch) = &mut self.stopwatch {
                stopwatch.start(index);
            }
            self.send_more(index, self.load.in_flight)?;
        }
        let mut events = vec![EpollEvent::empty(); EVENTS_MAX];
        let mut busy = self.load.active;
        let (mut heard, mut looked) = (Instant::now(), Instant::now());
        while busy > 0 {
            let count = self.wait(&mut events).map_err(|error| format!("waiting: {error}"))?;
            let now = Instant::now();
            let more = now < deadline;
            if count > 0 {
                heard = now;
            } else if now - heard > SILENCE_MAX {
                return Err(format!("{busy} flows wait for datagrams that do not come back"));
            }
            for event in &events[..count] {
                busy -= self.serve(event.data() as usize, more)?;
            }
            if now - looked > LOOK {
                looked = now;
                self.repeat_lost(now)?;
            }
        }
        let elapsed = began.elapsed();
        let latency = self.stopwatch.as_mut().and_then(Stopwatch::reset);
        self.await_late(&mut events)?;
        Ok(Yield { latency, lost: self.lost, ..Yield::of(self.echoes, elapsed) })
    }

    /// Waits for datagrams that were sent again to arrive twice: then they were late and not lost.
    fn await_late(&mut self, events: &mut [EpollEvent]) -> Result<(), String> {
        let began = Instant::now();
        while self.lost > 0 && began.elapsed() < LOST_AFTER {
            let count = self.wait(events).map_err(|error| format!("waiting: {error}"))?;
            for event in &events[..count] {
                self.receive(event.data() as usize)?;
            }
        }
        Ok(())
    }

    /// Events, or none after a moment.
    fn wait(&self, events: &mut [EpollEvent]) -> io::Result<usize> {
        let moment = match self.waiting {
            Waiting::Sleep => EpollTimeout::try_from(LOOK)
                .expect("invariant: so short a time fits into the timeout of epoll_wait(2)"),
            Waiting::Spin => EpollTimeout::ZERO,
        };
        Ok(self.epoll.wait(events, moment)?)
    }

    /// The flow whose turn it is. With all of them active each keeps to itself.
    fn turn(&mut self) -> usize {
        let index = self.next;
        self.next = (self.next + 1) % self.flows.len();
        index
    }

    /// Receives what is there for a flow, and keeps the load up if there is to be more. Returns how
    /// many flows have come to rest: 1 or none.
    fn serve(&mut self, index: usize, more: bool) -> Result<usize, String> {
        let was_busy = self.flows[index].under_way > 0;
        let received = self.receive(index)?;
        if received == 0 || !was_busy {
            return Ok(0);
        }
        let left = self.flows[index].under_way;
        if !more {
            return Ok(usize::from(left == 0));
        }
        if !self.load.bursts {
            self.send_more(index, received)?;
        } else if left == 0 {
            let next = if self.load.active < self.load.flows { self.turn() } else { index };
            self.send_more(next, self.load.in_flight)?;
        }
        Ok(0)
    }

    /// Receives and checks; returns how many datagrams came back for the first time.
    fn receive(&mut self, index: usize) -> Result<usize, String> {
        let mut received = 0;
        let length = self.load.message_length;
        for _ in 0..RECEIVES_MAX {
            let descriptor = self.flows[index].socket.as_raw_fd();
            let count = match recv(descriptor, &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(count) => count,
                Err(Errno::EAGAIN) => break,
                // The server is gone, or refuses; silence will show.
                Err(Errno::ECONNREFUSED) => break,
                Err(error) => return Err(format!("receiving on flow {index}: {error}")),
            };
            if count == 0 || count % length != 0 {
                return Err(format!("flow {index} gives {count} bytes instead of {length}"));
            }
            for start in (0..count).step_by(length) {
                received += usize::from(self.check(index, start)?);
            }
            if self.flows[index].under_way == 0 {
                break;
            }
        }
        self.echoes += received as u64;
        Ok(received)
    }

    /// Checks the datagram at `start` of the buffer. False if it had come back before.
    fn check(&mut self, index: usize, start: usize) -> Result<bool, String> {
        let flow = &mut self.flows[index];
        let bytes = &self.buffer[start..start + self.load.message_length];
        let (number, rest) = bytes.split_first_chunk::<NUMBER>().expect("invariant: longer");
        let number = u64::from_ne_bytes(*number);
        if number >= flow.next {
            return Err(format!("flow {index} gives other bytes, or what was never sent"));
        }
        let offset = flow.origin + number * rest.len() as u64;
        if self.pattern.stretch(offset, rest.len()) != rest {
            return Err(format!("flow {index} gives other bytes in datagram {number}"));
        }
        let place = &mut flow.places[number as usize % self.load.in_flight];
        if place.is_none_or(|(waited_for, _)| waited_for != number) {
            let Some(left) = flow.repeats.checked_sub(1) else {
                return Err(format!("flow {index} gives datagram {number} twice"));
            };
            flow.repeats = left;
            // It was late, not lost.
            self.lost = self.lost.saturating_sub(1);
            return Ok(false);
        }
        *place = None;
        flow.under_way -= 1;
        if let Some(stopwatch) = &mut self.stopwatch {
            stopwatch.lap(index);
        }
        Ok(true)
    }

    /// Sends this number of new datagrams, as far as there are places for them: a late one keeps
    /// its place, and the following ones wait.
    fn send_more(&mut self, index: usize, count: usize) -> Result<(), String> {
        let length = self.load.message_length;
        let now = Instant::now();
        let mut filled = 0;
        // Datagrams that a late one has delayed follow with it.
        let free = self.load.in_flight - self.flows[index].under_way;
        for _ in 0..count.max(free) {
            let flow = &mut self.flows[index];
            let number = flow.next;
            let place = &mut flow.places[number as usize % self.load.in_flight];
            if place.is_some() {
                break;
            }
            *place = Some((number, now));
            flow.next += 1;
            flow.under_way += 1;
            self.write(index, number, filled);
            if self.load.bursts {
                filled += 1;
            } else {
                self.send(index, length)?;
            }
        }
        if filled > 0 { self.send(index, filled * length) } else { Ok(()) }
    }

    /// Sends datagrams again that have been in flight for too long.
    fn repeat_lost(&mut self, now: Instant) -> Result<(), String> {
        for index in 0..self.flows.len() {
            for place in 0..self.load.in_flight {
                let flow = &mut self.flows[index];
                let Some((number, sent)) = &mut flow.places[place] else { continue };
                if now - *sent < LOST_AFTER {
                    continue;
                }
                *sent = now;
                let number = *number;
                flow.repeats += 1;
                self.lost += 1;
                self.write(index, number, 0);
                self.send(index, self.load.message_length)?;
            }
        }
        Ok(())
    }

    /// Writes a datagram to one of the places of a message.
    fn write(&mut self, index: usize, number: u64, place: usize) {
        let length = self.load.message_length;
        let bytes = &mut self.message[place * length..][..length];
        let (head, rest) = bytes.split_at_mut(NUMBER);
        head.copy_from_slice(&number.to_ne_bytes());
        let offset = self.flows[index].origin + number * rest.len() as u64;
        rest.copy_from_slice(self.pattern.stretch(offset, rest.len()));
    }

    /// Sends the beginning of the message. Datagrams without room are lost, and will be sent again.
    fn send(&mut self, index: usize, length: usize) -> Result<(), String> {
        let descriptor = self.flows[index].socket.as_raw_fd();
        match send(descriptor, &self.message[..length], MsgFlags::MSG_DONTWAIT) {
            Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ECONNREFUSED) => Ok(()),
            Err(error) => Err(format!("sending on flow {index}: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::thread;

    /// Serves one flow; `spoil` may change what goes back to the datagram of that number.
    fn verdict(spoil: fn(usize, &mut Vec<u8>)) -> Result<Yield, String> {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = Address::Udp(server.local_addr().unwrap());
        thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            for number in 0.. {
                let Ok((count, source)) = server.recv_from(&mut buffer) else { return };
                let mut answer = buffer[..count].to_vec();
                spoil(number, &mut answer);
                if !answer.is_empty() {
                    server.send_to(&answer, source).unwrap();
                }
            }
        });
        let pattern = Pattern::new();
        let load = Load::new(1, 64, 4);
        let mut client = Datagrams::open(&address, &pattern, load, None, Waiting::Sleep).unwrap();
        client.slice(Duration::from_millis(20))
    }

    #[test]
    fn an_honest_server_yields_echoes() {
        let slice = verdict(|_, _| {}).unwrap();
        assert!(slice.echoes >= 4);
        assert_eq!(slice.lost, 0);
    }

    /// Each kind of fault is detected.
    #[test]
    fn a_server_that_is_wrong_is_found_out() {
        let complaint = |spoil| verdict(spoil).unwrap_err();
        assert!(complaint(|_, answer| answer[40] ^= 1).contains("other bytes"));
        assert!(complaint(|_, answer| answer[7] ^= 1).contains("never sent"));
        assert!(complaint(|_, answer| answer.push(0)).contains("instead of 64"));
    }

    /// Lost datagrams are sent again and shown, and the slice ends.
    #[test]
    fn a_lost_datagram_is_counted() {
        let slice = verdict(|number, answer| {
            if number == 2 {
                answer.clear();
            }
        });
        assert_eq!(slice.unwrap().lost, 1);
    }
}
