//! The admin thread: poll(2), short responses, and a deadline for every client.
//!
//! - Each listener serves [`CLIENTS_MAX`] clients at a time. One more replaces the oldest, so slow
//!   clients do not affect others.
//! - No client stays longer than the timeouts below.
//!
//! The memory and the descriptors of this thread are therefore bounded, whatever clients do.

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;

use super::http::{self, Page, Parsed, Refusal, Refused, Request};
use super::process::seconds_since_1970;
use super::snapshot::{Snapshot, State};
use super::{AdminListener, Service, exposition, page};

/// Connections that one listener serves at the same time.
pub const CLIENTS_MAX: usize = 32;
/// How long a client may take to send a request, and to read the response.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may take to close after it has the response.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// The minimum time between two snapshots: each costs every worker an iteration.
const INTERVAL: Duration = Duration::from_millis(1);
/// Pause after an accept that failed for lack of files or memory.
const BACKOFF: Duration = Duration::from_millis(100);

/// The snapshot for all clients of one round.
struct View<G> {
    gather: G,
    gathered: Option<Instant>,
    current: Option<(Snapshot, Arc<[u8]>)>,
}

impl<G: Fn() -> Snapshot> View<G> {
    /// The snapshot, and the same as JSON.
    fn look(&mut self) -> (&Snapshot, &Arc<[u8]>) {
        let (snapshot, json) = self.current.get_or_insert_with(|| {
            if let Some(last) = self.gathered {
                thread::sleep(INTERVAL.saturating_sub(last.elapsed()));
            }
            self.gathered = Some(Instant::now());
            let snapshot = (self.gather)();
            let json = serde_json::to_vec(&snapshot);
            let mut json = json.expect("invariant: a snapshot has string keys only");
            json.push(b'\n');
            (snapshot, json.into())
        });
        (snapshot, json)
    }
}

/// One connection.
struct Client {
    listener: usize,
    socket: Socket,
    deadline: Instant,
    stage: Stage,
}

/// The stage of a client.
enum Stage {
    /// It has just connected.
    New(Service),
    /// Its request is being received.
    Asking(Vec<u8>),
    /// Its response is being sent; the number of bytes sent so far.
    Answered(Arc<[u8]>, usize),
    /// We have sent FIN and wait for the client's: closing with unread bytes could destroy the
    /// response.
    Leaving,
    /// Finished.
    Gone,
}

/// Serves until the process ends.
pub(super) fn serve(listeners: Vec<AdminListener>, gather: impl Fn() -> Snapshot) {
    let mut view = View { gather, gathered: None, current: None };
    let mut clients: Vec<Client> = Vec::new();
    loop {
        let open = wait(&listeners, &clients);
        for (index, listener) in listeners.iter().enumerate() {
            if open[index] && !accept_clients(index, listener, &mut clients) {
                thread::sleep(BACKOFF);
            }
        }
        // A client never gets a snapshot from before it connected.
        view.current = None;
        let now = Instant::now();
        for client in &mut clients {
            client.go_on(now, &mut view);
        }
        clients.retain(|client| !matches!(client.stage, Stage::Gone));
    }
}

/// Waits until a client connects or makes progress, or a deadline passes. Returns which listeners
/// are readable.
fn wait(listeners: &[AdminListener], clients: &[Client]) -> Vec<bool> {
    let new =
        listeners.iter().map(|listener| PollFd::new(listener.socket.as_fd(), PollFlags::POLLIN));
    let moving = clients.iter().map(|client| {
        let flags = match client.stage {
            Stage::Answered(..) => PollFlags::POLLOUT,
            Stage::New(_) | Stage::Asking(_) | Stage::Leaving | Stage::Gone => PollFlags::POLLIN,
        };
        PollFd::new(client.socket.as_fd(), flags)
    });
    let mut sources: Vec<PollFd<'_>> = new.chain(moving).collect();
    let deadline = clients.iter().map(|client| client.deadline).min();
    let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
        // One millisecond more, or the wait would end just before the deadline and be repeated.
        let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    });
    if poll(&mut sources, timeout).is_err() {
        // A signal, or no memory: retry in a moment.
        thread::sleep(Duration::from_millis(1));
        return vec![false; listeners.len()];
    }
    sources[..listeners.len()].iter().map(|source| source.any().unwrap_or(false)).collect()
}

/// Accepts waiting clients of a listener, in portions. False if the system lacks files or memory.
fn accept_clients(index: usize, listener: &AdminListener, clients: &mut Vec<Client>) -> bool {
    for _ in 0..CLIENTS_MAX {
        let socket = match listener.socket.accept() {
            Ok((socket, _)) => socket,
            Err(error) => {
                use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
                return matches!(error.kind(), WouldBlock | Interrupted | ConnectionAborted);
            }
        };
        if socket.set_nonblocking(true).is_err() {
            continue;
        }
        let mut theirs = (0..clients.len()).filter(|&other| clients[other].listener == index);
        let oldest = theirs.clone().next();
        if let Some(oldest) = oldest
            && theirs.by_ref().count() >= CLIENTS_MAX
        {
            // Clients are in the order in which they connected.
            clients.remove(oldest);
        }
        let stage = Stage::New(listener.service);
        let deadline = Instant::now() + TIMEOUT;
        clients.push(Client { listener: index, socket, deadline, stage });
    }
    true
}

/// The line for HAProxy's agent-check.
fn agent_line(snapshot: &Snapshot) -> Vec<u8> {
    let line = match (snapshot.state, snapshot.stalled_worker()) {
        (State::Leaving | State::Draining, _) => "drain\n".to_owned(),
        (State::Starting, _) => "down#starting\n".to_owned(),
        (State::Ready, Some(worker)) => format!("down#worker {worker} is stalled\n"),
        (State::Ready, None) => "up ready\n".to_owned(),
    };
    line.into_bytes()
}

impl Client {
    /// Makes as much progress as possible without waiting.
    fn go_on<G: Fn() -> Snapshot>(&mut self, now: Instant, view: &mut View<G>) {
        if let Stage::New(service) = self.stage {
            let (snapshot, json) = view.look();
            self.stage = match service {
                Service::Status => Stage::Answered(Arc::clone(json), 0),
                Service::AgentCheck => Stage::Answered(agent_line(snapshot).into(), 0),
                Service::Metrics => Stage::Asking(Vec::new()),
            };
        }
        if let Stage::Asking(input) = &mut self.stage {
            match ask(&self.socket, input) {
                Ok(Parsed::Partial) if now >= self.deadline => {
                    let head_only = http::is_head(input);
                    self.answer(http::refuse(Refused { why: Refusal::Timeout, head_only }), now);
                }
                Ok(Parsed::Partial) => return,
                Ok(Parsed::Request(request)) => self.answer(response(request, view), now),
                Ok(Parsed::Refused(refused)) => self.answer(http::refuse(refused), now),
                Err(()) => self.stage = Stage::Gone,
            }
        }
        if let Stage::Answered(bytes, sent) = &mut self.stage {
            match write(&self.socket, bytes, sent) {
                Ok(true) => {
                    let _ = self.socket.shutdown(Shutdown::Write);
                    self.stage = Stage::Leaving;
                    self.deadline = now + CLOSE_TIMEOUT;
                }
                Ok(false) => {}
                Err(()) => self.stage = Stage::Gone,
            }
        }
        let goodbye = matches!(self.stage, Stage::Leaving) && has_left(&self.socket);
        if goodbye || now >= self.deadline {
            self.stage = Stage::Gone;
        }
    }

    fn answer(&mut self, bytes: Vec<u8>, now: Instant) {
        self.stage = Stage::Answered(bytes.into(), 0);
        self.deadline = now + TIMEOUT;
    }
}

/// Reads more of the request and parses it. An error ends the connection.
fn ask(mut socket: &Socket, input: &mut Vec<u8>) -> Result<Parsed, ()> {
    let mut portion = [0; 2048];
    while input.len() < http::HEAD_MAX {
        match socket.read(&mut portion) {
            Ok(0) => return Err(()),
            Ok(length) => {
                input.extend_from_slice(&portion[..length]);
                // The result can change only when bytes have arrived.
                let parsed = http::parse(input);
                if parsed != Parsed::Partial {
                    return Ok(parsed);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Parsed::Partial),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(()),
        }
    }
    Ok(http::parse(input))
}

fn response<G: Fn() -> Snapshot>(request: Request, view: &mut View<G>) -> Vec<u8> {
    let (snapshot, _) = view.look();
    let head_only = request.head_only;
    match request.page {
        Page::Home { refreshing } => {
            let now = seconds_since_1970(SystemTime::now());
            let refresh = refreshing.then_some(page::REFRESH_SECONDS);
            http::page(&page::html(snapshot, now, refreshing), refresh, head_only)
        }
        Page::Style => http::style(page::STYLE, head_only),
        Page::Metrics => {
            http::answer("200 OK", http::EXPOSITION, &exposition::text(snapshot), head_only)
        }
        Page::Health => {
            let stalled = snapshot.stalled_worker();
            let fault = stalled.map(|worker| format!("worker {worker} is stalled"));
            http::verdict(fault.as_deref(), head_only)
        }
        Page::Ready => {
            let fault = (snapshot.state != State::Ready).then_some(snapshot.state.name());
            http::verdict(fault, head_only)
        }
        Page::Serving => {
            let fault = (!snapshot.accepting).then_some(snapshot.state.name());
            http::verdict(fault, head_only)
        }
    }
}

/// Writes more of the response; true when all is written. An error ends the connection.
fn write(mut socket: &Socket, bytes: &[u8], sent: &mut usize) -> Result<bool, ()> {
    while *sent < bytes.len() {
        match socket.write(&bytes[*sent..]) {
            Ok(length) => *sent += length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(()),
        }
    }
    Ok(true)
}

/// Discards received bytes, in portions; returns whether the client has closed.
fn has_left(socket: &Socket) -> bool {
    let mut portion = [MaybeUninit::uninit(); 2048];
    match socket.recv(&mut portion) {
        Ok(length) => length == 0,
        Err(error) => {
            !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
        }
    }
}
