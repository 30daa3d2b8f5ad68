//! What the process can no longer do once it serves.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use nix::sys::signal::Signal;
use socket2::Socket;

use crate::daemon::{Daemon, Launch};
use crate::ending::Losses;
use crate::machine::{Scratch, in_company, time_limit};
use crate::place::{ping, reset};

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

/// The daemon tests this itself on the rings that it uses, and does not start if it gets another
/// error than EACCES or EPERM.
#[test]
fn its_rings_and_the_process_refuse_what_an_echo_does_not_need() {
    let _quiet = in_company();
    let config = "[server]\nworkers = 2\n[log]\nlevel = \"debug\"\n";
    let daemon = Launch::with_config(config).start();
    let line = daemon.lines.wait_for("sealed: ", Duration::from_secs(5));
    for word in ["OPENAT", "SOCKET", "registrations", "further ring"] {
        assert!(line.contains(word), "{line}");
    }
    let peer = daemon.place().connect();
    assert!(ping(&peer, b"sealed, and still at work"));
    drop(peer);
    daemon.stop();
}

/// A filter on the main thread alone would not restrict the workers.
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

/// A string that no other memory contains. In two halves, so that this program's own text does not
/// match.
fn canary() -> Vec<u8> {
    ["tell nobody: ", "the geese fly on Thursday; "].concat().into_bytes()
}

fn count(haystack: &[u8], needle: &[u8]) -> usize {
    haystack.windows(needle.len()).filter(|window| *window == needle).count()
}

/// How often the needle is found in the memory that a core dump would contain, and in the mappings
/// that it excludes, those with the flag `dd` (proc_pid_smaps(5)).
fn found_in_memory(process: u32, needle: &[u8]) -> (usize, usize) {
    let smaps = fs::read_to_string(format!("/proc/{process}/smaps")).unwrap();
    let memory = fs::File::open(format!("/proc/{process}/mem")).unwrap();
    let (mut dumped, mut left_out, mut range) = (0, 0, (0, 0));
    for line in smaps.lines() {
        let first = line.split(' ').next().unwrap();
        if let Some((start, end)) = first.split_once('-') {
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            range = (number(start), number(end));
        } else if first == "VmFlags:" {
            let mut bytes = vec![0; (range.1 - range.0) as usize];
            // Unreadable memory ([vvar], guard pages) is not dumped either.
            if memory.read_exact_at(&mut bytes, range.0).is_ok() {
                let flagged = line.split(' ').any(|flag| flag == "dd");
                *(if flagged { &mut left_out } else { &mut dumped }) += count(&bytes, needle);
            }
        }
    }
    (dumped, left_out)
}

/// A daemon whose small and large buffers have received the canary, and that holds stalled bytes.
fn with_secrets(launch: Launch) -> (Daemon, Vec<Socket>) {
    let daemon = launch.start();
    let secret = canary().repeat(4000);
    let quiet = daemon.place().connect();
    assert!(ping(&quiet, &canary()));
    let non_reader = daemon.place().connect_narrow();
    non_reader.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    while (&non_reader).write(&secret).is_ok() {}
    let odd = daemon.place().connect_narrow();
    odd.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    // Small pieces as well as large ones.
    while (&odd).write(&secret[..600]).is_ok() {}
    (daemon, vec![quiet, non_reader, odd])
}

#[test]
fn what_peers_sent_is_in_no_dumpable_memory() {
    let _quiet = in_company();
    let (daemon, peers) = with_secrets(Launch::with_config(""));
    let (dumped, left_out) = found_in_memory(daemon.process.0, &canary());
    assert_eq!(dumped, 0, "{dumped} canaries in memory that is dumped, {left_out} outside");
    assert!(left_out > 1000, "only {left_out} canaries: nothing was stalled");
    peers.into_iter().for_each(reset);
    daemon.stop_with(Losses::Allowed);
}

/// The same with a real core, where the kernel writes one beside the program.
#[test]
fn what_peers_sent_is_in_no_core() {
    let _quiet = in_company();
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    if pattern.trim() != "core" {
        println!("skipped: core dumps go to {}", pattern.trim());
        return;
    }
    let scratch = Scratch::new();
    let directory = scratch.path("dump");
    fs::create_dir(&directory).unwrap();
    let words = ["env", "-C", directory.to_str().unwrap(), "prlimit", "--core=unlimited"];
    let wrapper = words.iter().map(ToString::to_string).collect();
    let (mut daemon, peers) =
        with_secrets(Launch { wrapper, ..Launch::with_config("# not a secret") });
    daemon.signal(Signal::SIGABRT);
    assert_eq!(daemon.wait(time_limit(20.0)).signal(), Some(Signal::SIGABRT as i32));
    let core = fs::read_dir(&directory).unwrap().next().expect("no core").unwrap().path();
    let core = fs::read(core).unwrap();
    // The core is useful: it contains strings of the program's own memory.
    assert!(count(&core, b"not a secret") + count(&core, b"worker-0") > 0, "an empty core");
    let memory = &core[memory_begins(&core)..];
    assert_eq!(count(memory, &canary()), 0, "in {} bytes", memory.len());
    drop(peers);
}

/// Where the memory begins in a core (elf(5)): the first segment to load. Before it are notes, such
/// as the threads' registers; a vector register may contain some bytes of the last copy.
fn memory_begins(core: &[u8]) -> usize {
    let number = |at: usize, size: usize| {
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(&core[at..at + size]);
        usize::from_le_bytes(bytes)
    };
    let (table, entry_size, entries) = (number(32, 8), number(54, 2), number(56, 2));
    let mut headers = (0..entries).map(|index| table + index * entry_size);
    let load = headers.find(|&at| number(at, 4) == 1).expect("no memory in the core");
    number(load + 8, 8)
}
