//! Service managers with faults: they do not read, do not answer, have gone or are slow; and a
//! system without a free descriptor. None of them delays the daemon, and the required notifications
//! are sent in the end.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::bus::{Answer, Bus};
use crate::daemon::Launch;
use crate::ending::Losses;
use crate::machine::{Scratch, alone, in_company, time_limit, wait_until};
use crate::place::ping;

/// If READY=1 were lost, the start would fail.
#[test]
fn a_manager_that_is_busy_at_the_start_gets_ready_later() {
    let _quiet = in_company();
    let not_reading_for = Some(Duration::from_secs(2));
    let began = Instant::now();
    let daemon = Launch { not_reading_for, ..Launch::with_config("") }.start();
    assert!(began.elapsed() >= Duration::from_secs(2), "the manager was reading");
    daemon.stop();
}

/// The manager does not read: the daemon still drains at once and ends soon.
#[test]
fn a_manager_that_does_not_read_does_not_delay_a_stop() {
    let _quiet = alone();
    let daemon = Launch::with_config("").start();
    let peer = daemon.place().connect();
    assert!(ping(&peer, b"here"));
    daemon.manager.stop_reading();
    // A status each second, for a while.
    for _ in 0..20 {
        assert!(ping(&peer, b"still here"));
        thread::sleep(Duration::from_millis(150));
    }
    let signaled = Instant::now();
    daemon.signal(Signal::SIGTERM);
    daemon.lines.wait_for("info draining: 1 connection", time_limit(2.0));
    assert!(signaled.elapsed() < time_limit(1.0), "{:?}", signaled.elapsed());
    drop(peer);
    daemon.finish(Losses::None);
    assert!(signaled.elapsed() < time_limit(3.0), "{:?}", signaled.elapsed());
}

/// A bus with a full backlog blocks connect(2) without an error.
#[test]
fn a_bus_with_a_full_backlog_does_not_hang_a_stop() {
    let _quiet = alone();
    let scratch = Scratch::new();
    let path = scratch.path("bus");
    let address = SockAddr::unix(&path).unwrap();
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    listener.bind(&address).unwrap();
    listener.listen(0).unwrap();
    let listener = UnixListener::from(listener);
    let mut waiting = Vec::new();
    loop {
        let client = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        client.set_nonblocking(true).unwrap();
        match client.connect(&address) {
            Ok(()) => waiting.push(client),
            Err(_) => break,
        }
    }
    let bus = format!("unix:path={}", path.display());
    let config = "[timeouts]\ndrain = \"4s\"\n";
    let watchdog = Some(Duration::from_secs(1));
    let daemon = Launch { bus, watchdog, ..Launch::with_config(config) }.start();
    let peer = daemon.place().connect();
    assert!(ping(&peer, b"here"));
    let signaled = Instant::now();
    daemon.signal(Signal::SIGTERM);
    // Meanwhile the daemon serves as before, new connections too, and notifies the watchdog.
    assert!(daemon.place().answers(time_limit(1.0)));
    daemon.lines.wait_for("info draining: 1 connection", time_limit(4.0));
    let took = signaled.elapsed();
    assert!(took > Duration::from_millis(1500), "it did not ask: {took:?}");
    assert!(took < time_limit(3.0), "it waited too long: {took:?}");
    let pings = daemon.manager.values("WATCHDOG");
    assert!(pings.iter().filter(|(at, _)| *at > signaled).count() >= 3, "no pings meanwhile");
    drop((peer, waiting, listener));
    daemon.finish(Losses::None);
}

/// With a bus that answers so, a daemon with one connection hands it over.
fn assert_hands_over(answer: Answer) {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), answer);
    let daemon = Launch { bus: bus.address(), ..Launch::with_config("") }.start();
    let peer = daemon.place().connect();
    assert!(ping(&peer, b"here"));
    daemon.signal(Signal::SIGTERM);
    daemon.lines.wait_for("handed over 1 connection", time_limit(8.0));
}

/// The answer decides whether connections are kept, so the daemon waits for it.
#[test]
fn a_slow_bus_is_waited_for() {
    assert_hands_over(Answer::Slow(Duration::from_millis(300), "restart"));
}

/// Further queries without an answer do not lose the answer that decides whether connections are
/// kept.
#[test]
fn a_bus_that_answers_only_the_first_question_suffices() {
    assert_hands_over(Answer::Curt("restart"));
}

/// After a second signal the daemon does not wait for the bus.
#[test]
fn a_second_signal_skips_the_question() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Mute);
    let daemon = Launch { bus: bus.address(), ..Launch::with_config("") }.start();
    let peer = daemon.place().connect();
    assert!(ping(&peer, b"here"));
    daemon.signal(Signal::SIGTERM);
    thread::sleep(Duration::from_millis(300));
    assert!(!daemon.lines.all().iter().any(|line| line.contains("draining")));
    let signaled = Instant::now();
    daemon.signal(Signal::SIGTERM);
    daemon.lines.wait_for("info draining: 1 connection", time_limit(2.0));
    assert!(signaled.elapsed() < time_limit(1.0));
    drop(peer);
    daemon.finish(Losses::None);
}

/// Without a free descriptor connections wait in the backlog, and the watchdog is still notified.
#[test]
fn without_a_free_descriptor_the_watchdog_is_notified() {
    let _quiet = alone();
    let interval = Duration::from_millis(500);
    let daemon = Launch { watchdog: Some(interval), ..Launch::with_config("") }.start();
    let peer = daemon.place().connect();
    assert!(ping(&peer, b"here"));
    if !daemon.process.limit_open_files(daemon.process.open_files()) {
        println!("skipped: there is no prlimit(1)");
        return;
    }
    let began = Instant::now();
    let waiting: Vec<Socket> = (0..3).map(|_| daemon.place().connect()).collect();
    thread::sleep(6 * interval);
    let pings = daemon.manager.values("WATCHDOG");
    let pings = pings.iter().filter(|(at, _)| *at > began).count();
    assert!(pings >= 10, "{pings} pings in six intervals: {}", daemon.transcript());
    assert!(ping(&peer, b"still here"));
    drop((peer, waiting));
    daemon.lines.wait_for("no file descriptor is free", time_limit(5.0));
    daemon.stop();
}

/// systemd ignores a message of more than 4,096 bytes, including the READY=1 that ends a reload.
#[test]
fn a_long_error_of_a_reload_ends_the_reload() {
    let _quiet = in_company();
    let daemon = Launch::with_config("").start();
    let value = "soon \\n \\u0007 ".repeat(1_000);
    fs::write(daemon.config_path(), format!("[timeouts]\nstall = \"{value}\"\n")).unwrap();
    let before = daemon.manager.values("READY").len();
    daemon.signal(Signal::SIGHUP);
    wait_until("READY=1", time_limit(5.0), || daemon.manager.values("READY").len() > before);
    let said = daemon.manager.received().pop().unwrap();
    assert!(said.text.len() < 2_000, "{} bytes", said.text.len());
    let status = said.field("STATUS").unwrap();
    assert!(status.starts_with("reload failed: ") && status.len() <= 1024, "{status}");
    assert!(!status.chars().any(char::is_control), "{status:?}");
    daemon.stop();
}

/// The daemon reaches a service manager again that was re-executed or, in a container, restarted.
#[test]
fn a_manager_that_has_gone_is_found_again() {
    let _quiet = in_company();
    let mut daemon = Launch::with_config("").start();
    daemon.manager.end();
    assert!(UnixStream::connect(daemon.manager.path()).is_err());
    assert!(daemon.place().answers(time_limit(5.0)));
    daemon.lines.wait_for("cannot notify the service manager", time_limit(5.0));
    daemon.stop();
}
