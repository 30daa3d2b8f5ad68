//! Goal: a target is understood however it is usually written, and all addresses of a name are
//! tried. Method: servers on one address of `localhost`, on the loopback's link-local address, on
//! abstract Unix sockets.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::Stdio;

use crate::program::run;
use crate::servers::{Daemon, Wrong, daemon_program, echo_on, wrong_server};

#[test]
fn every_spelling_is_understood() {
    let daemon = Daemon::start();
    let place = daemon.tcp.strip_prefix("tcp://").unwrap();
    let path = daemon.unix.strip_prefix("unix:").unwrap();
    for target in [
        place.to_owned(),
        format!("TCP://{place}"),
        format!("{}/", daemon.tcp),
        format!("UNIX:{path}"),
    ] {
        run(&format!("{target} -d 0.2 --json")).right();
    }
    let options = "-c 0.008k --rate 1.5k --depth 1k -d 0.2s --warmup 0.5ms --size 0.5KiB --json";
    let result = run(&format!("{place} {options}")).right();
    let settings = &result["settings"];
    assert_eq!(settings["connections"], 8, "{result:#}");
    assert_eq!(settings["rate_per_second"], 1500.0, "{result:#}");
    assert_eq!(settings["depth"], 1000, "{result:#}");
}

#[test]
fn all_addresses_of_a_name_are_tried() {
    // On most machines `localhost` is ::1 first, where nothing listens.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || echo_on(listener));
    for mode in ["ping-pong", "churn"] {
        let options = format!("--mode {mode} -c 2 -d 200ms --json");
        let result = run(&format!("localhost:{} {options}", address.port())).right();
        assert_eq!(result["address"], address.to_string(), "{result:#}");
    }
    let result = run(&format!("localhost:{} --source 127.0.0.1 -d 200ms --json", address.port()));
    assert_eq!(result.right()["address"], address.to_string());
}

#[test]
fn an_abstract_socket_is_reached() {
    let name = format!("echo-load-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                std::io::copy(&mut stream.try_clone().unwrap(), &mut stream)
            });
        }
    });
    let result = run(&format!("unix:@{name} -d 200ms --json")).right();
    assert_eq!(result["address"], format!("unix:@{name}"), "{result:#}");
}

#[test]
fn the_seed_survives_json_and_repeats_the_run() {
    let seed = (1_u64 << 53) - 1;
    let target = wrong_server(Wrong::FlipsBit { at: 1234 });
    let run_with = |seed: &str| {
        run(&format!("{target}{seed} -c 1 --size 1..100 --depth 16 -d 300ms --json")).json()
    };
    let first = run_with(&format!(" --seed {seed}"));
    assert_eq!(first["settings"]["seed"].as_f64().unwrap() as u64, seed, "{first:#}");
    for _ in 0..3 {
        let random = run_with("")["settings"]["seed"].as_u64().unwrap();
        assert!(random <= seed, "{random} does not survive");
    }
}

#[test]
fn one_is_singular() {
    let daemon = Daemon::start();
    let table = run(&format!("{} -d 200ms -c 1 --size 1", daemon.tcp)).stdout;
    assert!(table.contains("1 connection, 1 thread, messages of 1 byte,"), "{table}");
    let table = run(&format!("{} -d 200ms -c 2 --threads 2", daemon.tcp)).stdout;
    assert!(table.contains("2 connections, 2 threads, messages of 64 bytes,"), "{table}");
}

/// A zone is the name of an interface, in a target and where the daemon listens.
#[test]
fn zones_name_interfaces() {
    let mut daemon = std::process::Command::new(daemon_program())
        .args(["--config", "/dev/null", "--listen", "[::1%lo]:0"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(daemon.stderr.take().unwrap()).lines().map(Result::unwrap);
    let port = lines.find_map(|line| {
        let (_, rest) = line.split_once("listening on [::1]:")?;
        Some(rest.split(' ').next()?.to_owned())
    });
    std::thread::spawn(move || lines.for_each(drop));
    let reached = port.map(|port| run(&format!("[::1%lo]:{port} -d 200ms --json")));
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    reached.unwrap().right();
    let refused = std::process::Command::new(daemon_program())
        .args(["--config", "/dev/null", "--listen", "[fe80::1%no-such-one]:7777"])
        .output()
        .unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(69), "{said}");
    let expected = "[fe80::1%no-such-one]:7777: ";
    assert!(said.contains(expected) && said.contains("no interface no-such-one"), "{said}");
    let unknown = run("[fe80::1%no-such-one]:7 -d 200ms");
    assert_eq!(unknown.code, Some(3), "{unknown:#?}");
}
