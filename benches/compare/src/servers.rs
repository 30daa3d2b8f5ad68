//! The programs that are compared, by name, and how one of them is started and stopped.
//!
//! A new peer is one package below `servers/` and one entry in [`CATALOGUE`]. The contract of a
//! peer: it serves on the address that its arguments name, with TCP_NODELAY, on one thread (or one
//! worker), until SIGTERM.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cpu;

/// How long a server may take to give its first echo.
const START_MAX: Duration = Duration::from_secs(5);

/// How long a server may take to end after SIGTERM.
const STOP_MAX: Duration = Duration::from_secs(5);

/// How often a server that starts or ends is looked at: this is waited for in every round.
const GLANCE: Duration = Duration::from_millis(5);

/// What the daemon is told beyond its defaults: one worker, for there is one core.
const DAEMON_CONFIGURATION: &str = "[server]\nworkers = 1\n";

/// Where a program is found.
#[derive(Clone, Copy)]
enum Program {
    /// Built by this workspace, beside the comparison itself.
    Peer(&'static str),
    /// The daemon, given by `--daemon`.
    Daemon,
}

/// A server that can be compared.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    /// What it is called on the command line and in the table.
    pub(crate) name: &'static str,
    program: Program,
    /// `{address}` and `{configuration}` stand for what is known only at the start.
    arguments: &'static [&'static str],
}

/// All servers that can be compared.
pub(crate) const CATALOGUE: &[Entry] = &[
    Entry {
        name: "epoll",
        program: Program::Peer("echo-epoll"),
        arguments: &["--listen", "{address}"],
    },
    Entry {
        name: "epoll-256k",
        program: Program::Peer("echo-epoll"),
        arguments: &["--listen", "{address}", "--buffer", "262144"],
    },
    Entry {
        name: "echo-uring",
        program: Program::Daemon,
        arguments: &["--config", "{configuration}", "--listen", "{address}"],
    },
];

/// A server that runs, on the core it was given. Dropping it ends it.
pub(crate) struct Server {
    /// Its name, made unique if it takes part more than once: `epoll`, `epoll#2`.
    pub(crate) label: String,
    /// Where it serves.
    pub(crate) address: SocketAddr,
    child: Child,
    log: PathBuf,
}

/// What every server is started with.
pub(crate) struct Stage<'a> {
    /// The daemon's binary.
    pub(crate) daemon: &'a Path,
    /// A directory for logs and configuration files.
    pub(crate) scratch: &'a Path,
    /// The core that all servers share.
    pub(crate) core: usize,
}

impl Entry {
    /// The entry of that name.
    pub(crate) fn named(name: &str) -> Result<&'static Self, String> {
        CATALOGUE.iter().find(|entry| entry.name == name).ok_or_else(|| {
            let known: Vec<_> = CATALOGUE.iter().map(|entry| entry.name).collect();
            format!("no server is called {name}; there are {}", known.join(", "))
        })
    }

    /// Starts it and returns when it has echoed for the first time.
    pub(crate) fn start(&self, label: String, stage: &Stage) -> Result<Server, String> {
        let program = match self.program {
            Program::Peer(name) => beside_this_program(name),
            Program::Daemon => Ok(stage.daemon.to_owned()),
        };
        let program = program.map_err(|error| format!("{label}: {error}"))?;
        let log = stage.scratch.join(format!("{label}.log"));
        let start = || -> io::Result<Server> {
            let address = free_address()?;
            let arguments = self.arguments(address, stage.scratch)?;
            let output = File::create(&log)?;
            let child = cpu::on_core(stage.core, || {
                Command::new(&program)
                    .args(arguments)
                    .stdin(Stdio::null())
                    .stdout(output.try_clone()?)
                    .stderr(output)
                    .spawn()
            })?;
            Ok(Server { label: label.clone(), address, child, log: log.clone() })
        };
        let mut server =
            start().map_err(|error| format!("{label}: starting {program:?}: {error}"))?;
        server.await_first_echo()?;
        Ok(server)
    }

    fn arguments(&self, address: SocketAddr, scratch: &Path) -> io::Result<Vec<String>> {
        let configuration = scratch.join("echo-uring.toml");
        fs::write(&configuration, DAEMON_CONFIGURATION)?;
        let address = address.to_string();
        let configuration = configuration.display().to_string();
        let filled = self.arguments.iter().map(|argument| {
            argument.replace("{address}", &address).replace("{configuration}", &configuration)
        });
        Ok(filled.collect())
    }
}

impl Server {
    /// CPU time of all its threads so far, read when it has come to rest.
    pub(crate) fn settled_cpu_time(&self) -> Result<Duration, String> {
        cpu::settled_time(self.child.id()).map_err(|error| self.complaint(&error.to_string()))
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
            match first_echo(self.address) {
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

/// An address nobody serves on. Another program could take it before the server does; then the
/// server says so and ends.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

fn first_echo(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, START_MAX)?;
    stream.set_read_timeout(Some(START_MAX))?;
    stream.write_all(b"!")?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    if &answer == b"!" { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}
