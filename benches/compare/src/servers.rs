//! The programs that are compared, by name, and how one of them is started and stopped.
//!
//! A new peer is one package below `servers/` and one entry in [`CATALOGUE`]. The contract of a
//! peer: it serves on the address that its arguments name, with TCP_NODELAY, on one thread (or one
//! worker), until SIGTERM.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::address::{Address, Transport};
use crate::cpu::{self, Crew};
use crate::veth::{self, FarEnd};
use crate::works::Work;

/// How long a server may take to give its first echo.
const START_MAX: Duration = Duration::from_secs(5);

/// How long a server may take to end after SIGTERM.
const STOP_MAX: Duration = Duration::from_secs(5);

/// How often a server that starts or ends is looked at: this is waited for in every round.
const GLANCE: Duration = Duration::from_millis(5);

/// The configuration of the daemon beyond its defaults: one worker, for there is one core.
const DAEMON_CONFIGURATION: &str = "[server]\nworkers = 1\n";

/// The same for lowest latency on a quiet line.
const SPINNING_CONFIGURATION: &str = "[server]\nworkers = 1\nbusy-poll = \"200us\"\n";

/// The same for two workers, which share the core: each has those connections that it accepted.
const TWO_WORKERS_CONFIGURATION: &str = "[server]\nworkers = 2\n";

/// The configuration of xinetd: its built-in echo, without its protection against many connections.
const XINETD_CONFIGURATION: &str = "\
service echo
{
    type = INTERNAL UNLISTED
    id = echo-stream
    socket_type = stream
    protocol = tcp
    port = {port}
    bind = 127.0.0.1
    user = root
    wait = no
    instances = UNLIMITED
    per_source = UNLIMITED
    cps = 1000000 1
    flags = NODELAY
}
";

/// The same for datagrams; it answers them by itself.
const XINETD_UDP_CONFIGURATION: &str = "\
service echo
{
    type = INTERNAL UNLISTED
    id = echo-dgram
    socket_type = dgram
    protocol = udp
    port = {port}
    bind = {host}
    user = root
    wait = yes
    instances = UNLIMITED
    cps = 1000000 1
}
";

/// Connections that a server with a process for each is asked to keep.
const PROCESSES_MAX: usize = 64;

/// Where a program is found.
#[derive(Clone, Copy)]
enum Program {
    /// Built by this workspace, beside the comparison itself.
    Peer(&'static str),
    /// The daemon, given by `--daemon`.
    Daemon,
    /// Another build of the daemon, named by its path.
    Build(&'static str),
    /// Installed on this machine, or not.
    Installed(&'static str),
}

/// A server that can be compared.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    /// What it is called on the command line and in the table.
    pub(crate) name: &'static str,
    program: Program,
    /// `{address}`, `{port}`, `{configuration}` and `{scratch}` stand for what is known only at the
    /// start.
    arguments: &'static [&'static str],
    /// The text of its configuration file, with the same to be filled in.
    configuration: &'static str,
    /// Connections that it can be asked to keep.
    connections_max: usize,
    /// What it serves over.
    transports: &'static [Transport],
    /// The longest message that it is asked to echo.
    message_max: usize,
    /// Messages of a connection that it can have in flight.
    in_flight_max: usize,
    crew: Crew,
}

/// Servers of connections over TCP only.
const TCP: &[Transport] = &[Transport::Tcp];
/// Servers of connections.
const STREAMS: &[Transport] = &[Transport::Tcp, Transport::Unix];
/// Servers of datagrams.
const UDP: &[Transport] = &[Transport::Udp, Transport::UdpVeth];
/// Servers of both.
const ALL: &[Transport] = &[Transport::Tcp, Transport::Unix, Transport::Udp, Transport::UdpVeth];

const fn peer(
    name: &'static str,
    binary: &'static str,
    arguments: &'static [&'static str],
) -> Entry {
    Entry {
        name,
        program: Program::Peer(binary),
        arguments,
        configuration: "",
        connections_max: usize::MAX,
        transports: TCP,
        message_max: usize::MAX,
        in_flight_max: usize::MAX,
        crew: Crew::Threads,
    }
}

/// A reference server for UDP, made of these calls.
const fn udp(name: &'static str, arguments: &'static [&'static str]) -> Entry {
    Entry { transports: UDP, ..peer(name, "echo-udp", arguments) }
}

const DAEMON_ARGUMENTS: &[&str] = &["--config", "{configuration}", "--listen", "{prefix}{address}"];

const LISTEN: &[&str] = &["--listen", "{address}"];

/// All servers that can be compared.
pub(crate) const CATALOGUE: &[Entry] = &[
    Entry { transports: STREAMS, ..peer("epoll", "echo-epoll", LISTEN) },
    Entry {
        transports: STREAMS,
        ..peer("epoll-256k", "echo-epoll", &["--listen", "{address}", "--buffer", "262144"])
    },
    Entry {
        program: Program::Daemon,
        configuration: DAEMON_CONFIGURATION,
        transports: ALL,
        ..peer("echo-uring", "", DAEMON_ARGUMENTS)
    },
    Entry {
        program: Program::Daemon,
        configuration: SPINNING_CONFIGURATION,
        transports: ALL,
        ..peer("echo-uring-spin", "", DAEMON_ARGUMENTS)
    },
    Entry {
        program: Program::Daemon,
        configuration: TWO_WORKERS_CONFIGURATION,
        transports: ALL,
        ..peer("echo-uring-two", "", DAEMON_ARGUMENTS)
    },
    Entry { transports: STREAMS, ..peer("bare", "echo-bare", LISTEN) },
    peer("threads", "echo-threads", LISTEN),
    peer("tokio", "echo-tokio", LISTEN),
    peer("monoio", "echo-monoio", LISTEN),
    peer("compio", "echo-compio", LISTEN),
    peer("glommio", "echo-glommio", LISTEN),
    peer("tokio-uring", "echo-tokio-uring", LISTEN),
    Entry {
        program: Program::Installed("xinetd"),
        configuration: XINETD_CONFIGURATION,
        connections_max: PROCESSES_MAX,
        crew: Crew::Children,
        ..peer(
            "xinetd",
            "",
            &["-dontfork", "-f", "{configuration}", "-pidfile", "{scratch}/xinetd.pid"],
        )
    },
    Entry {
        program: Program::Installed("socat"),
        connections_max: PROCESSES_MAX,
        crew: Crew::Children,
        ..peer("socat", "", &["TCP-LISTEN:{port},bind=127.0.0.1,fork,nodelay,backlog=4096", "PIPE"])
    },
    udp("udp-sendto", &["--listen", "{address}", "--calls", "sendto"]),
    udp("udp-mmsg", &["--listen", "{address}", "--calls", "mmsg"]),
    udp("udp-mmsg-gso", &["--listen", "{address}", "--calls", "mmsg-gso"]),
    udp("udp-sendto-any", &["--listen", "{wildcard}", "--calls", "sendto"]),
    udp("udp-mmsg-any", &["--listen", "{wildcard}", "--calls", "mmsg"]),
    udp("udp-mmsg-gso-any", &["--listen", "{wildcard}", "--calls", "mmsg-gso"]),
    Entry {
        program: Program::Daemon,
        configuration: DAEMON_CONFIGURATION,
        transports: UDP,
        ..peer(
            "echo-uring-any",
            "",
            &["--config", "{configuration}", "--listen", "{prefix}{wildcard}"],
        )
    },
    Entry {
        program: Program::Installed("xinetd"),
        configuration: XINETD_UDP_CONFIGURATION,
        // After each answer it discards the datagrams that have arrived; its buffer has 8 KiB.
        connections_max: 1,
        message_max: 8_192,
        in_flight_max: 1,
        transports: UDP,
        ..peer(
            "udp-xinetd",
            "",
            &["-dontfork", "-f", "{configuration}", "-pidfile", "{scratch}/xinetd-udp.pid"],
        )
    },
    Entry {
        program: Program::Installed("socat"),
        connections_max: PROCESSES_MAX,
        // A process for each datagram. (With one for each flow, UDP-LISTEN, datagrams that other
        // flows send during an accept are returned to the accepted flow.)
        message_max: 8_192,
        in_flight_max: 1,
        transports: UDP,
        crew: Crew::Children,
        ..peer("udp-socat", "", &["UDP-RECVFROM:{port},bind={host},fork", "PIPE"])
    },
];

/// Names that stand for several servers.
const SETS: &[(&str, &[&str])] = &[
    ("usual", &["epoll", "epoll-256k", "echo-uring"]),
    ("udp", &["udp-sendto", "udp-mmsg", "udp-mmsg-gso", "echo-uring", "udp-xinetd", "udp-socat"]),
    ("udp-any", &["udp-sendto-any", "udp-mmsg-any", "udp-mmsg-gso-any", "echo-uring-any"]),
    ("runtimes", &["tokio", "monoio", "compio", "glommio", "tokio-uring"]),
];

/// A server that runs, on the core it was given. Dropping it ends it.
pub(crate) struct Server {
    /// Its name, made unique if it takes part more than once: `epoll`, `epoll#2`.
    pub(crate) label: String,
    /// Where it serves.
    pub(crate) address: Address,
    /// Where the first client comes from.
    source: Ipv4Addr,
    child: Child,
    crew: Crew,
    log: PathBuf,
}

/// What every server is started with.
pub(crate) struct Stage<'a> {
    /// The daemon's binary.
    pub(crate) daemon: &'a Path,
    /// A directory for logs, sockets and configuration files.
    pub(crate) scratch: &'a Path,
    /// The core that all servers share.
    pub(crate) core: usize,
    /// The namespace at the other end of a pair of interfaces, once there is one.
    pub(crate) far_end: Option<&'a FarEnd>,
}

impl Entry {
    /// The entries of these names, in that order; `all`, or a set's name, stands for several.
    pub(crate) fn select(names: &[String]) -> Result<Vec<&'static Self>, String> {
        let mut wanted: Vec<&str> = Vec::new();
        for name in names {
            match SETS.iter().find(|(set, _)| set == name) {
                Some((_, members)) => wanted.extend(*members),
                None if name == "all" => wanted.extend(CATALOGUE.iter().map(|entry| entry.name)),
                None => wanted.push(name),
            }
        }
        let entry = |name: &str| {
            if name.contains('/') {
                return Ok(Self::build(name));
            }
            CATALOGUE.iter().find(|entry| entry.name == name).ok_or_else(|| {
                let known: Vec<_> = CATALOGUE.iter().map(|entry| entry.name).collect();
                let sets: Vec<_> = SETS.iter().map(|(set, _)| *set).collect();
                format!(
                    "no server is called {name}; there are {}, the sets {} and all, and any \
                     build of the daemon by its path",
                    known.join(", "),
                    sets.join(", ")
                )
            })
        };
        wanted.into_iter().map(entry).collect()
    }

    /// The daemon as built at `path`, called by that path. It lives as long as the program, like
    /// the entries of the catalogue.
    fn build(path: &str) -> &'static Self {
        let path: &'static str = Box::leak(path.to_owned().into_boxed_str());
        let daemon = CATALOGUE.iter().find(|entry| matches!(entry.program, Program::Daemon));
        let daemon = daemon.expect("invariant: the catalogue has the daemon");
        Box::leak(Box::new(Self { name: path, program: Program::Build(path), ..*daemon }))
    }

    /// Why it cannot take part at all, if so.
    pub(crate) fn absence(&self) -> Option<String> {
        match self.program {
            Program::Installed(name) if installed(name).is_none() => {
                Some(format!("{name} is not installed"))
            }
            Program::Build(path) if !Path::new(path).exists() => {
                Some("there is no such file".into())
            }
            Program::Installed(_) | Program::Peer(_) | Program::Daemon | Program::Build(_) => None,
        }
    }

    /// Why it cannot do a work, if so.
    pub(crate) fn excuse(&self, work: &Work) -> Option<String> {
        if !self.transports.contains(&work.transport) {
            return Some(format!("it does not serve over {:?}", work.transport));
        }
        let (longest, most) = (self.message_max, self.in_flight_max);
        if work.message_length() > longest {
            return Some(format!("it is asked for messages of {longest} bytes at most"));
        }
        if work.in_flight() > most {
            return Some(format!("it is asked for {most} messages at a time on a connection"));
        }
        let most = self.connections_max;
        (work.connections() > most).then(|| format!("it is asked for {most} connections at most"))
    }

    /// Starts it and returns when it has echoed for the first time.
    pub(crate) fn start(
        &self,
        label: String,
        stage: &Stage,
        transport: Transport,
    ) -> Result<Server, String> {
        let program = match self.program {
            Program::Peer(name) => beside_this_program(name),
            Program::Daemon => Ok(stage.daemon.to_owned()),
            Program::Build(path) => Ok(PathBuf::from(path)),
            Program::Installed(name) => installed(name).ok_or(io::ErrorKind::NotFound.into()),
        };
        let program = program.map_err(|error| format!("{label}: {error}"))?;
        let log = stage.scratch.join(format!("{label}.log"));
        let start = || -> io::Result<Server> {
            let address = Address::free(transport, &label, stage.scratch)?;
            let arguments = self.arguments(&label, &address, stage.scratch)?;
            let output = File::create(&log)?;
            let mut command = match (transport, stage.far_end) {
                (Transport::UdpVeth, Some(far_end)) => far_end.command(&program),
                (Transport::UdpVeth, None) => return Err(io::ErrorKind::NetworkUnreachable.into()),
                (Transport::Tcp | Transport::Unix | Transport::Udp, _) => Command::new(&program),
            };
            let child = cpu::on_core(stage.core, || {
                command
                    .args(arguments)
                    .stdin(Stdio::null())
                    .stdout(output.try_clone()?)
                    .stderr(output)
                    .spawn()
            })?;
            let (label, crew, log) = (label.clone(), self.crew, log.clone());
            let source = match transport {
                Transport::UdpVeth => veth::CLIENT,
                Transport::Tcp | Transport::Unix | Transport::Udp => Ipv4Addr::LOCALHOST,
            };
            Ok(Server { label, address, source, child, crew, log })
        };
        let mut server =
            start().map_err(|error| format!("{label}: starting {program:?}: {error}"))?;
        server.await_first_echo()?;
        Ok(server)
    }

    fn arguments(&self, label: &str, address: &Address, scratch: &Path) -> io::Result<Vec<String>> {
        let configuration = scratch.join(format!("{label}.conf"));
        let fill = |text: &str| {
            let prefix = if let Address::Udp(_) = address { "udp:" } else { "" };
            let wildcard = format!("0.0.0.0:{}", address.port().unwrap_or_default());
            let host = address.host().map_or_else(String::new, |host| host.to_string());
            text.replace("{address}", &address.to_string())
                .replace("{prefix}", prefix)
                .replace("{wildcard}", &wildcard)
                .replace("{host}", &host)
                .replace("{port}", &address.port().unwrap_or_default().to_string())
                .replace("{configuration}", &configuration.display().to_string())
                .replace("{scratch}", &scratch.display().to_string())
        };
        fs::write(&configuration, fill(self.configuration))?;
        Ok(self.arguments.iter().map(|argument| fill(argument)).collect())
    }
}

impl Server {
    /// CPU time that it has spent so far, read when it has come to rest.
    pub(crate) fn settled_cpu_time(&self) -> Result<Duration, String> {
        cpu::settled_time(self.child.id(), self.crew)
            .map_err(|error| self.complaint(&error.to_string()))
    }

    /// A message about this server, with the end of what it wrote itself.
    pub(crate) fn complaint(&self, what: &str) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(5)..].join("\n    | ");
        format!("{}: {what}\n    | {tail}", self.label)
    }

    fn await_first_echo(&mut self) -> Result<(), String> {
        let began = Instant::now();
        loop {
            match first_echo(&self.address, self.source) {
                Ok(()) => return Ok(()),
                Err(error) if began.elapsed() > START_MAX => {
                    return Err(self.complaint(&format!("no first echo: {error}")));
                }
                Err(_) => thread::sleep(GLANCE),
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.complaint(&format!("ended at once, {status}")));
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A server that is gone already cannot be signalled, and need not be.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let began = Instant::now();
        while began.elapsed() < STOP_MAX {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(GLANCE);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn beside_this_program(name: &str) -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}

/// In one of the directories where Debian keeps servers and tools.
fn installed(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin"]
        .map(|place| Path::new(place).join(name))
        .into_iter()
        .find(|path| path.exists())
}

fn first_echo(address: &Address, source: Ipv4Addr) -> io::Result<()> {
    // A datagram to a closed port is not refused in every case.
    let datagram = matches!(address, Address::Udp(_));
    let silence_max = if datagram { Duration::from_millis(50) } else { START_MAX };
    let mut stream = address.connect(source, silence_max)?;
    stream.write_all(b"!")?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    if &answer == b"!" { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A set must only name existing servers; a name given twice is two servers.
    #[test]
    fn sets_are_made_of_entries() {
        let count = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            Entry::select(&names).map(|entries| entries.len())
        };
        for (set, members) in SETS {
            assert_eq!(count(&[set]), Ok(members.len()), "{set}");
        }
        assert_eq!(count(&["epoll", "usual"]), Ok(4));
        assert_eq!(count(&["all"]), Ok(CATALOGUE.len()));
        assert!(count(&["nginx"]).unwrap_err().contains("nginx"));
    }
}
