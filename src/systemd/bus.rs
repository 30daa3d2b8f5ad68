//! A query that sd_notify does not support: is this a stop or a restart?
//!
//! systemd sends the same SIGTERM for both, and only its current job distinguishes them. The job is
//! queried over the system bus, with a few calls of the D-Bus protocol (D-Bus specification). They
//! are implemented here because a crate would add many dependencies. Nothing is trusted: a message
//! is read completely, up to a limit, before it is parsed, and the whole query has one deadline.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

/// The standard address of the system bus.
pub const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";

/// The maximum length of an answer; the expected ones have some hundred bytes.
const MESSAGE_MAX: usize = 64 << 10;
/// The maximum number of other messages, such as signals, that are skipped.
const SKIPPED_MAX: u32 = 64;

/// How often the connection to a bus with a full backlog is retried.
const CONNECT_RETRY: Duration = Duration::from_millis(10);
/// The maximum number of units that trigger ours, which are its socket units.
const TRIGGERS_MAX: usize = 64;

const MANAGER: &str = "/org/freedesktop/systemd1";

/// The state of the unit of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The type of its job: `restart`, `stop`, …; none if there is none.
    pub job: Option<String>,
    /// The maximum number of stored file descriptors (`FileDescriptorStoreMax=`).
    pub store_max: u32,
    /// The names (`FileDescriptorName=`) of the listening sockets that systemd is about to close:
    /// their socket units will be stopped or restarted when this unit has stopped.
    pub ending_sockets: Vec<String>,
}

/// Queries systemd over the bus at `bus` for the unit of the process `pid`.
///
/// # Errors
/// When there is no bus, systemd is not on it, or there is no answer within `timeout`.
pub fn ask(bus: &Path, pid: u32, timeout: Duration) -> io::Result<Unit> {
    let mut bus = Bus::connect(bus, Instant::now() + timeout)?;
    let unit = bus.manager("GetUnitByPID", Arguments::Number(pid))?;
    let job = bus.job(&unit)?;
    let service = "org.freedesktop.systemd1.Service";
    let store_max = bus.property(&unit, service, "FileDescriptorStoreMax")?;
    let store_max = store_max.variant("u", Body::number)?;
    // This part is optional: a missing answer must not invalidate or delay the rest.
    let now = Instant::now();
    bus.deadline = now + bus.deadline.saturating_duration_since(now) / 2;
    let ending_sockets = bus.ending_sockets(&unit).unwrap_or_default();
    Ok(Unit { job, store_max, ending_sockets })
}

/// A method call.
struct Call<'a> {
    destination: &'a str,
    path: &'a str,
    interface: &'a str,
    member: &'a str,
    arguments: Arguments<'a>,
}

/// The arguments of our calls.
#[derive(Clone, Copy)]
enum Arguments<'a> {
    None,
    Number(u32),
    Text(&'a str),
    Strings(&'a str, &'a str),
}

/// A connection to a message bus.
struct Bus {
    stream: UnixStream,
    deadline: Instant,
    serial: u32,
}

impl Bus {
    fn connect(path: &Path, deadline: Instant) -> io::Result<Self> {
        let mut bus = Self { stream: reach(path, deadline)?, deadline, serial: 0 };
        // The socket carries the credentials. Our own user id is omitted, because a user namespace
        // may change it.
        bus.write(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")?;
        for expected in ["DATA", "OK "] {
            let line = bus.line()?;
            if !line.starts_with(expected.as_bytes()) {
                return Err(refused("the bus rejects this user"));
            }
        }
        let destination = "org.freedesktop.DBus";
        bus.ask(&Call {
            destination,
            path: "/org/freedesktop/DBus",
            interface: destination,
            member: "Hello",
            arguments: Arguments::None,
        })?;
        Ok(bus)
    }

    /// Queries systemd for the unit that `arguments` identify.
    fn manager(&mut self, member: &str, arguments: Arguments<'_>) -> io::Result<String> {
        let call = Call {
            destination: "org.freedesktop.systemd1",
            path: MANAGER,
            interface: "org.freedesktop.systemd1.Manager",
            member,
            arguments,
        };
        self.ask(&call)?.string()
    }

    /// The type of the job of `unit`.
    fn job(&mut self, unit: &str) -> io::Result<Option<String>> {
        let job = self.property(unit, "org.freedesktop.systemd1.Unit", "Job")?;
        let pair = |body: &mut Body| Ok((body.struct_start()?.number()?, body.string()?));
        match job.variant("(uo)", pair)? {
            (0, _) => Ok(None),
            (_, job) => {
                let kind = self.property(&job, "org.freedesktop.systemd1.Job", "JobType")?;
                Ok(Some(kind.variant("s", Body::string)?))
            }
        }
    }

    fn ending_sockets(&mut self, unit: &str) -> io::Result<Vec<String>> {
        let triggers = self.property(unit, "org.freedesktop.systemd1.Unit", "TriggeredBy")?;
        let mut names = Vec::new();
        for trigger in triggers.variant("as", Body::strings)? {
            if !trigger.ends_with(".socket") {
                continue;
            }
            let path = self.manager("GetUnit", Arguments::Text(&trigger))?;
            if matches!(self.job(&path)?.as_deref(), Some("stop" | "restart")) {
                let socket = "org.freedesktop.systemd1.Socket";
                let name = self.property(&path, socket, "FileDescriptorName")?;
                names.push(name.variant("s", Body::string)?);
            }
        }
        Ok(names)
    }

    fn property(&mut self, path: &str, interface: &str, name: &str) -> io::Result<Body> {
        self.ask(&Call {
            destination: "org.freedesktop.systemd1",
            path,
            interface: "org.freedesktop.DBus.Properties",
            member: "Get",
            arguments: Arguments::Strings(interface, name),
        })
    }

    /// Sends a call and waits for the answer.
    fn ask(&mut self, call: &Call<'_>) -> io::Result<Body> {
        self.serial += 1;
        self.write(&spell(call, self.serial))?;
        for _ in 0..SKIPPED_MAX {
            let message = self.message()?;
            let Some((kind, reply_serial, body)) = understand(message) else {
                return Err(refused("invalid message on the bus"));
            };
            match kind {
                _ if reply_serial != Some(self.serial) => {}
                METHOD_RETURN => return Ok(body),
                _ => return Err(refused("systemd returned an error")),
            }
        }
        Err(refused("too many unrelated messages on the bus"))
    }

    fn message(&mut self) -> io::Result<Vec<u8>> {
        let mut message = vec![0; HEAD];
        self.fill(&mut message)?;
        let length = length_of(&message).filter(|length| *length <= MESSAGE_MAX);
        let length = length.ok_or_else(|| refused("invalid message on the bus"))?;
        message.resize(length, 0);
        self.fill(&mut message[HEAD..])?;
        Ok(message)
    }

    fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() > 256 {
                return Err(refused("invalid message on the bus"));
            }
            let mut byte = [0];
            self.fill(&mut byte)?;
            line.push(byte[0]);
        }
        Ok(line)
    }

    fn fill(&mut self, mut bytes: &mut [u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.set_read_timeout(Some(self.left()?))?;
            match self.stream.read(bytes) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => bytes = &mut bytes[length..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write_all(bytes)
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

/// Connects to the bus. If the backlog of a Unix socket is full, connect(2) waits regardless of the
/// timeouts of the socket, or fails if it is non-blocking. This therefore retries until `deadline`.
fn reach(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let address = UnixAddr::new(path)?;
    loop {
        match connect(stream.as_raw_fd(), &address) {
            Ok(()) => break,
            Err(Errno::EAGAIN | Errno::EINTR) if Instant::now() < deadline => {
                thread::sleep(CONNECT_RETRY);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => return Err(ErrorKind::TimedOut.into()),
            Err(errno) => return Err(errno.into()),
        }
    }
    // The standard library would use ioctl(2), which is not in the unit's list of system calls.
    fcntl(&stream, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(UnixStream::from(stream))
}

fn refused(why: &'static str) -> io::Error {
    io::Error::other(why)
}

/// The first bytes of a message, which contain its length.
const HEAD: usize = 16;
const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;

/// Encodes a call, little-endian.
fn spell(call: &Call<'_>, serial: u32) -> Vec<u8> {
    let mut body = Vec::new();
    let signature = match call.arguments {
        Arguments::None => "",
        Arguments::Number(number) => {
            body.extend(number.to_le_bytes());
            "u"
        }
        Arguments::Text(text) => {
            put_string(&mut body, text);
            "s"
        }
        Arguments::Strings(first, second) => {
            put_string(&mut body, first);
            put_string(&mut body, second);
            "ss"
        }
    };
    let mut message = vec![b'l', METHOD_CALL, 0, 1];
    message.extend((body.len() as u32).to_le_bytes());
    message.extend(serial.to_le_bytes());
    message.extend([0; 4]);
    for (code, kind, value) in [
        (1, b'o', call.path),
        (2, b's', call.interface),
        (3, b's', call.member),
        (6, b's', call.destination),
    ] {
        pad(&mut message, 8);
        message.extend([code, 1, kind, 0]);
        put_string(&mut message, value);
    }
    if !signature.is_empty() {
        pad(&mut message, 8);
        message.extend([8, 1, b'g', 0, signature.len() as u8]);
        message.extend(signature.bytes().chain([0]));
    }
    let fields = (message.len() - HEAD) as u32;
    message[12..HEAD].copy_from_slice(&fields.to_le_bytes());
    pad(&mut message, 8);
    message.extend(body);
    message
}

fn put_string(bytes: &mut Vec<u8>, text: &str) {
    pad(bytes, 4);
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes.extend(text.bytes().chain([0]));
}

fn pad(bytes: &mut Vec<u8>, boundary: usize) {
    bytes.resize(bytes.len().next_multiple_of(boundary), 0);
}

/// The length of the message with this head.
fn length_of(head: &[u8]) -> Option<usize> {
    let mut reader = Body { bytes: head.to_vec(), at: 4, big: is_big(head)? };
    let body = reader.number().ok()? as usize;
    reader.at = 12;
    let fields = reader.number().ok()? as usize;
    HEAD.checked_add(fields)?.checked_next_multiple_of(8)?.checked_add(body)
}

fn is_big(message: &[u8]) -> Option<bool> {
    match message.first()? {
        b'l' => Some(false),
        b'B' => Some(true),
        _ => None,
    }
}

/// The kind of a message, the serial number that it answers, and its body.
fn understand(message: Vec<u8>) -> Option<(u8, Option<u32>, Body)> {
    let (big, kind) = (is_big(&message)?, *message.get(1)?);
    let mut reader = Body { bytes: message, at: 12, big };
    let end = HEAD.checked_add(reader.number().ok()? as usize)?;
    let mut reply_serial = None;
    while reader.at < end {
        reader.align(8);
        let code = reader.byte()?;
        match reader.signature().ok()?.as_str() {
            "u" => {
                let number = reader.number().ok()?;
                reply_serial = if code == 5 { Some(number) } else { reply_serial };
            }
            "s" | "o" => drop(reader.string().ok()?),
            "g" => drop(reader.signature().ok()?),
            _ => return None,
        }
    }
    reader.align(8);
    Some((kind, reply_serial, reader))
}

/// A message and a read position.
struct Body {
    bytes: Vec<u8>,
    at: usize,
    big: bool,
}

impl Body {
    fn align(&mut self, boundary: usize) {
        self.at = self.at.next_multiple_of(boundary);
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn struct_start(&mut self) -> io::Result<&mut Self> {
        self.align(8);
        Ok(self)
    }

    fn number(&mut self) -> io::Result<u32> {
        self.align(4);
        let bytes = self.take(4)?;
        let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
        Ok(if self.big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    fn string(&mut self) -> io::Result<String> {
        let length = self.number()? as usize;
        self.text(length)
    }

    fn strings(&mut self) -> io::Result<Vec<String>> {
        let length = self.number()? as usize;
        let end = self.at.saturating_add(length);
        let mut strings = Vec::new();
        while self.at < end && strings.len() < TRIGGERS_MAX {
            strings.push(self.string()?);
        }
        Ok(strings)
    }

    fn signature(&mut self) -> io::Result<String> {
        let length = self.take(1)?[0];
        self.text(usize::from(length))
    }

    /// Reads text of this length and the terminating zero.
    fn text(&mut self, length: usize) -> io::Result<String> {
        let text = self.take(length)?.to_vec();
        self.take(1)?;
        String::from_utf8(text).map_err(|_| refused("invalid message on the bus"))
    }

    fn take(&mut self, length: usize) -> io::Result<&[u8]> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| refused("an answer on the bus is truncated"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// Reads the value of a variant, which must have this type.
    fn variant<T>(
        mut self,
        signature: &str,
        read: impl FnOnce(&mut Self) -> io::Result<T>,
    ) -> io::Result<T> {
        if self.signature()? != signature {
            return Err(refused("a property has an unexpected type"));
        }
        read(&mut self)
    }
}
