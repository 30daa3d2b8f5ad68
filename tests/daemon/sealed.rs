//! What the process can no longer do once it serves.

use std::fs;
use std::time::Duration;

use crate::daemon::Launch;
use crate::machine::in_company;
use crate::place::ping;

/// A field of /proc/PID/status of each thread of a process.
fn fields(process: u32, name: &str) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    threads
        .map(|thread| {
            let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
            let prefix = format!("{name}:");
            let line = status.lines().find_map(|line| line.strip_prefix(&prefix));
            line.unwrap_or_else(|| panic!("no {name} in\n{status}")).trim().to_owned()
        })
        .collect()
}

/// The daemon tries it itself, on the rings that it serves with, and does not start where anything
/// else than EACCES and EPERM comes back.
#[test]
fn its_rings_and_the_process_refuse_what_an_echo_does_not_need() {
    let _quiet = in_company();
    let config = "[server]\nworkers = 2\n[log]\nlevel = \"debug\"\n";
    let daemon = Launch::with_config(config).start();
    let line = daemon.lines.wait_for("sealed: ", Duration::from_secs(5));
    for word in ["OPENAT", "SOCKET", "registrations", "another ring"] {
        assert!(line.contains(word), "{line}");
    }
    let peer = daemon.place().connect();
    assert!(ping(&peer, b"sealed, and still at work"));
    drop(peer);
    daemon.stop();
}

/// A filter on the main thread alone would be a door beside the lock.
#[test]
fn every_thread_has_the_filter_and_no_new_privileges() {
    let _quiet = in_company();
    let daemon = Launch::with_config("[server]\nworkers = 2\n").start();
    let ours: u32 = fields(std::process::id(), "Seccomp_filters")[0].parse().unwrap();
    let wanted = (ours + 1).to_string();
    let filters = fields(daemon.process.0, "Seccomp_filters");
    assert!(filters.len() >= 3, "a main thread and two workers: {filters:?}");
    assert!(filters.iter().all(|count| *count == wanted), "{filters:?} instead of {wanted}");
    for (name, value) in [("Seccomp", "2"), ("NoNewPrivs", "1")] {
        let found = fields(daemon.process.0, name);
        assert!(found.iter().all(|it| it == value), "{name}: {found:?}");
    }
    daemon.stop();
}
