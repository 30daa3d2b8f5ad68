//! The live table on a terminal and its end, and a daemon that was started on a terminal and ends
//! with it.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::daemon::{Launch, program};
use crate::lines::Lines;
use crate::machine::{Scratch, in_company, time_limit, wait_until};
use crate::place::{Listening, Place, ping};

/// A pseudo-terminal.
struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
}

impl Terminal {
    fn new(rows: u16, columns: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC);
        let master = master.unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let terminal = Self { master, slave: open(name, flags, Mode::empty()).unwrap() };
        terminal.resize(rows, columns);
        terminal
    }

    fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).unwrap();
    }

    fn stdio(&self) -> Stdio {
        self.slave.try_clone().unwrap().into()
    }

    fn press(&self, keys: &[u8]) {
        rustix::io::write(&self.master, keys).unwrap();
    }

    fn modes(&self) -> LocalModes {
        tcgetattr(&self.slave).unwrap().local_modes
    }

    /// Everything that is written there from now on.
    fn watch(&self) -> Arc<Mutex<String>> {
        let seen = Arc::new(Mutex::new(String::new()));
        let (seen_there, mut master) =
            (Arc::clone(&seen), File::from(self.master.try_clone().unwrap()));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            // The read fails when the other side has been closed.
            while let Ok(count @ 1..) = master.read(&mut bytes) {
                seen_there.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        seen
    }
}

/// A program that was started by hand in this terminal, as the leader of its session.
fn in_session(terminal: &Terminal) -> Command {
    let mut command = Command::new("setsid");
    command.arg("--ctty").arg(program()).env_clear().env("PATH", "/usr/bin:/bin");
    command.stdin(terminal.stdio()).stdout(terminal.stdio());
    command
}

fn end_of(mut child: Child, limit: Duration) -> ExitStatus {
    let begin = Instant::now();
    while begin.elapsed() < limit {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    panic!("it did not end within {limit:?}");
}

/// The tables drawn so far: each begins at the upper left corner.
fn pictures(seen: &Mutex<String>) -> Vec<String> {
    let seen = seen.lock().unwrap();
    seen.split("\x1b[H").skip(1).map(|picture| picture.replace("\x1b[K", "")).collect()
}

/// Goal: the live table is drawn again every second, and at once for another size, within that
/// size; Ctrl-C and `q` end it, and the terminal is as it was. Method: a terminal of our own.
#[test]
fn the_live_table_keeps_to_its_terminal_and_gives_it_back() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let admin_sockets = vec![("status", Listening::unix(&scratch.path("status")))];
    let daemon = Launch { admin_sockets, ..Launch::with_config("") }.start();
    let socket = scratch.path("status");
    for (key, name) in [(&b"\x03"[..], "Ctrl-C"), (b"q", "q")] {
        let terminal = Terminal::new(50, 200);
        let (seen, before) = (terminal.watch(), terminal.modes());
        let mut watching = in_session(&terminal);
        watching.args(["status", "--watch", "--socket"]).arg(&socket).stderr(terminal.stdio());
        let child = watching.spawn().unwrap();
        let drawn = |count| pictures(&seen).len() >= count;
        wait_until("two pictures", time_limit(10.0), || drawn(2));
        assert!(!terminal.modes().intersects(LocalModes::ICANON | LocalModes::ECHO));
        for picture in pictures(&seen) {
            assert!(
                picture.starts_with("echo-uring ") && picture.contains("LISTENER"),
                "{picture}"
            );
        }
        let count = pictures(&seen).len();
        terminal.resize(4, 30);
        wait_until("the picture for the other size", time_limit(10.0), || drawn(count + 2));
        let picture = pictures(&seen)[count + 1].clone();
        let lines: Vec<&str> = picture.trim_end_matches("\x1b[J").split("\r\n").collect();
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines.iter().all(|line| line.chars().count() <= 30), "{lines:?}");
        assert!(lines[3].ends_with(" more lines)"), "{lines:?}");

        // A key without a function is not shown and ends nothing.
        terminal.press(b"x");
        let count = pictures(&seen).len();
        wait_until("a picture after another key", time_limit(10.0), || drawn(count + 2));
        terminal.press(key);
        let status = end_of(child, time_limit(5.0));
        assert!(status.success(), "after {name} it ended with {status:?}");
        assert_eq!(terminal.modes(), before, "{name} left the terminal in other modes");
        let whole = || seen.lock().unwrap().clone();
        assert!(whole().starts_with("\x1b[?1049h\x1b[?25l"), "{:?}", whole());
        wait_until("the former screen", time_limit(5.0), || {
            whole().ends_with("\x1b[?25h\x1b[?1049l")
        });
    }
    daemon.stop();
}

/// A daemon started by hand: a port that the kernel selects, log lines on standard error.
fn by_hand(mut command: Command, scratch: &Scratch) -> (Child, Lines, Place) {
    let config = scratch.path("by-hand.toml");
    std::fs::write(&config, "").unwrap();
    let arguments = ["--listen", "127.0.0.1:0", "--config"];
    let mut child = command.args(arguments).arg(config).stderr(Stdio::piped()).spawn().unwrap();
    let lines = Lines::read(child.stderr.take().unwrap());
    lines.wait_for("info ready", time_limit(10.0));
    let line = lines.wait_for("info listening on ", time_limit(1.0));
    let address: SocketAddr = line.split(' ').nth(3).unwrap().parse().unwrap();
    (child, lines, Place::Tcp(address))
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

/// Goal: closing the terminal window in which the daemon runs ends it, in order.
#[test]
fn a_daemon_ends_with_the_terminal_it_was_started_on() {
    let _quiet = in_company();
    let (scratch, terminal) = (Scratch::new(), Terminal::new(24, 80));
    let (child, lines, place) = by_hand(in_session(&terminal), &scratch);
    assert!(ping(&place.connect(), b"still open"));
    drop(terminal);
    let status = end_of(child, time_limit(10.0));
    lines.wait_for("info the terminal is closed", time_limit(5.0));
    lines.wait_for("info stopped: accepted=1 ", time_limit(5.0));
    assert!(status.success(), "{:?}, {:#?}", status.signal(), lines.all());
}

/// Goal: SIGHUP is a reload while the terminal is open, and the end when it is closed, as a shell
/// sends SIGHUP when its own terminal closes. Method: the terminal is not the controlling one, so
/// the kernel sends nothing.
#[test]
fn a_sighup_is_a_reload_until_the_terminal_is_closed() {
    let _quiet = in_company();
    let (scratch, terminal) = (Scratch::new(), Terminal::new(24, 80));
    let mut command = Command::new(program());
    command.env_clear().stdin(terminal.stdio()).stdout(Stdio::null());
    let (child, lines, place) = by_hand(command, &scratch);
    send(&child, Signal::SIGHUP);
    lines.wait_for("info reloaded: nothing changed", time_limit(5.0));
    drop(terminal);
    assert!(ping(&place.connect(), b"nobody has told it"));
    send(&child, Signal::SIGHUP);
    lines.wait_for("info the terminal is closed", time_limit(5.0));
    assert!(end_of(child, time_limit(10.0)).success());
}
