//! Peers cannot flood the log, and a blocked log cannot stop the echo.

use std::fs;
use std::io::{PipeReader, PipeWriter, Write, pipe};
use std::os::fd::AsFd;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::daemon::{Daemon, Launch};
use crate::ending::{Counters, Losses};
use crate::lines::Lines;
use crate::machine::{in_company, time_limit, wait_until};
use crate::place::{Place, ping, reset, send_tape};
use crate::tape::Tape;

fn resets(place: &Place, count: u32) {
    for _ in 0..count {
        let socket = place.connect();
        send_tape(&socket, Tape::new(1), 0, 16);
        reset(socket);
    }
}

#[test]
fn twenty_thousand_resets_make_a_handful_of_lines() {
    let _quiet = in_company();
    let daemon = Launch::with_config("").start();
    let before = daemon.log().len();
    let peer = daemon.place().connect();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| resets(daemon.place(), 10_000));
        }
        for _ in 0..100 {
            assert!(ping(&peer, b"still there?"));
            thread::sleep(Duration::from_millis(10));
        }
    });
    drop(peer);
    let remains = daemon.stop_with(Losses::Allowed);
    let lines = &remains.lines[before..];
    assert!(lines.len() <= 10, "{} lines, such as {:#?}", lines.len(), &lines[..10]);
    assert!(remains.counters.accepted > 10_000, "{:?}", remains.counters);
}

/// A full pipe of one page whose other end is not read.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = pipe().unwrap();
    fcntl(writer.as_fd(), FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    fill(&writer);
    (reader, writer)
}

/// A pipe takes a whole page or nothing, so what poll(2) allows cannot block.
fn fill(mut writer: &PipeWriter) {
    let room = || {
        let mut fds = [PollFd::new(writer.as_fd(), PollFlags::POLLOUT)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
    };
    while room() {
        writer.write_all(&[b'\n'; 4096]).unwrap();
    }
}

/// The start may wait until its first lines are written, but afterwards a blocked log does not stop
/// the service.
#[test]
fn a_blocked_log_does_not_stop_the_echo() {
    let _quiet = in_company();
    let (reader, writer) = pipe().unwrap();
    fcntl(writer.as_fd(), FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let stderr = Some(Stdio::from(writer.try_clone().unwrap()));
    // At this level there are several lines for every connection.
    let launch = Launch::with_config("[log]\nlevel = \"trace\"\n");
    let daemon = Launch { stderr, ..launch }.start();
    fill(&writer);
    drop(writer);

    let peer = daemon.place().connect();
    for _ in 0..20 {
        resets(daemon.place(), 100);
        assert!(ping(&peer, b"still there?"));
    }
    daemon.process.assert_at_rest(Duration::from_secs(1), "with a full log");
    drop(peer);
    daemon.settle();

    // The pipe is read again: the last lines are written.
    let lines = Lines::read(reader);
    let mut daemon = daemon;
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(time_limit(20.0)).code(), Some(0));
    lines.wait_for_end(time_limit(5.0));
    let texts = lines.all();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    Counters::judge(&texts, Losses::Allowed).unwrap_or_else(|fault| panic!("{fault}: {texts:#?}"));
}

/// Goal: a change of the target that a blocked log refuses is made by the next reload.
#[test]
fn a_target_that_could_not_be_changed_is_changed_later() {
    let _quiet = in_company();
    let (reader, writer) = pipe().unwrap();
    let stderr = Some(Stdio::from(writer.try_clone().unwrap()));
    let config = |target: &str| {
        format!("[server]\nworkers = 8\n[log]\nlevel = \"debug\"\ntarget = \"{target}\"\n")
    };
    let launch = Launch::with_config(&config("stderr"));
    let mut daemon = Launch { stderr, ..launch }.start();
    fill(&writer);
    drop(writer);
    // More lines than the queue holds: each worker may have 128 connections listed in a second.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        resets(daemon.place(), 200);
    }
    let reload = |daemon: &Daemon| {
        let before = daemon.manager.values("READY").len();
        daemon.signal(Signal::SIGHUP);
        wait_until("the end of a reload", time_limit(10.0), || {
            daemon.manager.values("READY").len() > before
        });
    };
    // Outside a service it is standard error as well.
    fs::write(daemon.config_path(), config("auto")).unwrap();
    reload(&daemon);
    let lines = Lines::read(reader);
    lines.wait_for("log lines dropped", time_limit(10.0));
    let done = "reloaded: log.target = \"auto\"";
    wait_until("the target to be changed", time_limit(10.0), || {
        reload(&daemon);
        lines.all().iter().any(|line| line.ends_with(done))
    });
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(time_limit(20.0)).code(), Some(0));
}

#[test]
fn a_blocked_log_does_not_delay_the_end() {
    let _quiet = in_company();
    let (reader, writer) = pipe().unwrap();
    let stderr = Some(Stdio::from(writer.try_clone().unwrap()));
    let launch = Launch::with_config("");
    let mut daemon = Launch { stderr, ..launch }.start();
    fill(&writer);
    assert!(daemon.place().answers(time_limit(10.0)));
    daemon.settle();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(time_limit(15.0)).code(), Some(0));
    drop((reader, writer));
}

#[test]
fn a_full_pipe_is_full() {
    let (reader, writer) = full_pipe();
    let mut fds = [PollFd::new(writer.as_fd(), PollFlags::POLLOUT)];
    assert_eq!(poll(&mut fds, PollTimeout::ZERO).unwrap(), 0);
    drop(reader);
}
