//! A stand-in for the system bus with systemd on it: answers queries about the daemon's unit.
//!
//! It follows the D-Bus specification and the answers of systemd, and does not share code with the
//! daemon's client, since both would then have the same errors.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What it answers.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// The unit has this job, or none if it is empty.
    Job(&'static str),
    /// The same, and so has the socket unit of the listeners called `test`.
    Ending(&'static str),
    /// The first, with each answer delayed.
    Slow(Duration, &'static str),
    /// The first, without an answer to further queries.
    Curt(&'static str),
    /// It refuses the authentication.
    Closed,
    /// It accepts the connection and sends nothing.
    Mute,
    /// These bytes instead of any answer.
    Nonsense(Vec<u8>),
}

/// The stand-in. Its thread ends with the process.
pub(crate) struct Bus {
    path: PathBuf,
    answer: Arc<Mutex<Answer>>,
}

impl Bus {
    /// Listens at `path`, which must not exist.
    pub(crate) fn start(path: &Path, answer: Answer) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let answer = Arc::new(Mutex::new(answer));
        let shared = Arc::clone(&answer);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answer = shared.lock().unwrap().clone();
                // A client that closes early is no failure of the bus.
                std::thread::spawn(move || drop(converse(stream, &answer)));
            }
        });
        Self { path: path.to_owned(), answer }
    }

    /// Changes its answer.
    pub(crate) fn say(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    /// The value for `DBUS_SYSTEM_BUS_ADDRESS`.
    pub(crate) fn address(&self) -> String {
        format!("unix:path={}", self.path.display())
    }
}

fn converse(mut stream: UnixStream, answer: &Answer) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let word = String::from_utf8_lossy(&line);
        match word.trim_start_matches('\0').trim_end() {
            "AUTH EXTERNAL" => stream.write_all(b"DATA\r\n")?,
            "DATA" => match answer {
                Answer::Closed => stream.write_all(b"REJECTED EXTERNAL\r\n")?,
                _ => stream.write_all(b"OK 0123456789abcdef0123456789abcdef\r\n")?,
            },
            "BEGIN" => break,
            other => panic!("the bus received {other:?}"),
        }
    }
    loop {
        let mut head = [0; 16];
        reader.read_exact(&mut head)?;
        let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap()) as usize;
        let (body, serial, fields) = (number(4), number(8), number(12));
        let mut rest = vec![0; fields.next_multiple_of(8) + body];
        reader.read_exact(&mut rest)?;
        let call = String::from_utf8_lossy(&rest).into_owned();
        match answer {
            Answer::Mute => {}
            Answer::Nonsense(bytes) => stream.write_all(bytes)?,
            Answer::Closed => return Ok(()),
            Answer::Curt(_) if call.contains("TriggeredBy") => {}
            Answer::Job(job) | Answer::Curt(job) | Answer::Ending(job) | Answer::Slow(_, job) => {
                if let Answer::Slow(delay, _) = answer {
                    std::thread::sleep(*delay);
                }
                // A signal without an addressee, as the real bus sends after the greeting.
                stream.write_all(&message(4, 0, "s", &string(":1.7")))?;
                let (signature, body) = reply(&call, job, matches!(answer, Answer::Ending(_)));
                stream.write_all(&message(2, serial as u32, signature, &body))?;
            }
        }
    }
}

fn reply(call: &str, job: &str, sockets_end: bool) -> (&'static str, Vec<u8>) {
    const UNIT: &str = "/org/freedesktop/systemd1/unit/echo_2during_2eservice";
    const SOCKET: &str = "/org/freedesktop/systemd1/unit/test_2esocket";
    if call.contains("Hello") {
        return ("s", string(":1.7"));
    }
    if call.contains("GetUnitByPID") {
        return ("o", string(UNIT));
    }
    if call.contains("GetUnit\0") {
        assert!(call.contains("test.socket"), "an unknown unit: {call:?}");
        return ("o", string(SOCKET));
    }
    let variant = |signature: &str, boundary: usize, value: Vec<u8>| {
        let mut bytes = vec![signature.len() as u8];
        bytes.extend(signature.bytes().chain([0]));
        bytes.resize(bytes.len().next_multiple_of(boundary), 0);
        bytes.extend(value);
        ("v", bytes)
    };
    if call.contains("JobType") {
        return variant("s", 4, string(job));
    }
    if call.contains("FileDescriptorStoreMax") {
        return variant("u", 4, 64_u32.to_le_bytes().to_vec());
    }
    if call.contains("TriggeredBy") {
        // Nothing else is asked of the path unit.
        let mut names = string("test.path");
        names.resize(names.len().next_multiple_of(4), 0);
        names.extend(string("test.socket"));
        let mut array = (names.len() as u32).to_le_bytes().to_vec();
        array.extend(names);
        return variant("as", 4, array);
    }
    if call.contains("FileDescriptorName") {
        return variant("s", 4, string("test"));
    }
    assert!(call.contains("Job\0"), "an unknown question: {call:?}");
    let job = if call.contains(SOCKET) && !sockets_end { "" } else { job };
    let mut pair = u32::from(!job.is_empty()).to_le_bytes().to_vec();
    pair.extend(string(if job.is_empty() { "/" } else { "/org/freedesktop/systemd1/job/1" }));
    variant("(uo)", 8, pair)
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_le_bytes().to_vec();
    bytes.extend(text.bytes().chain([0]));
    bytes
}

fn message(kind: u8, reply_to: u32, signature: &str, body: &[u8]) -> Vec<u8> {
    let mut fields = Vec::new();
    if reply_to > 0 {
        fields.extend([5, 1, b'u', 0]);
        fields.extend(reply_to.to_le_bytes());
    }
    fields.extend([8, 1, b'g', 0, signature.len() as u8]);
    fields.extend(signature.bytes().chain([0]));
    let mut bytes = vec![b'l', kind, 1, 1];
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(7_u32.to_le_bytes());
    bytes.extend((fields.len() as u32).to_le_bytes());
    bytes.extend(fields);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend(body);
    bytes
}
