//! Locked memory (`RLIMIT_MEMLOCK`), which Linux 6.14 to 7.1 charges for rings: too little, just
//! enough, and memory still charged to another process of the same user.
//!
//! What is charged counts for all processes of a user, so nothing else runs meanwhile. Root is
//! charged only without `CAP_IPC_LOCK`, which the daemon does not get here. On a kernel that
//! charges nothing these tests are skipped with a note.

use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::Uid;

use crate::daemon::{Launch, program};
use crate::machine::alone;

/// Bytes that a worker with the usual number of buffers is charged for: 260 KiB of completions, 64
/// KiB of submissions and a page of buffers.
pub(crate) const WORKER: u64 = 82 * 4096;

/// A wrapper that lowers the limit to `bytes`.
pub(crate) fn limited(bytes: u64) -> Vec<String> {
    let drop = ["setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"];
    let mut words: Vec<String> = match Uid::effective().is_root() {
        true => drop.iter().map(ToString::to_string).collect(),
        false => Vec::new(),
    };
    words.extend(["prlimit".to_owned(), format!("--memlock={bytes}:{bytes}")]);
    words
}

/// Whether this kernel charges rings at all, tested with a daemon whose limit is 0.
pub(crate) fn is_charged() -> bool {
    let wrapper = limited(0);
    let mut command = Command::new(&wrapper[0]);
    command.args(&wrapper[1..]).arg(program()).args(["--listen", "127.0.0.1:0"]);
    let mut child = command.env_clear().stderr(Stdio::piped()).spawn().unwrap();
    let (mut line, stderr) = (String::new(), child.stderr.take().unwrap());
    let mut reader = std::io::BufReader::new(stderr);
    let refused = loop {
        line.clear();
        let read = std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
        if read == 0 || line.contains("ready") {
            break read == 0;
        }
    };
    child.kill().unwrap();
    child.wait().unwrap();
    if !refused {
        println!("skipped: this kernel charges no locked memory for rings");
    }
    refused
}

fn with_workers(workers: &str, bytes: u64) -> Launch {
    let launch = Launch::with_config(&format!("[server]\nworkers = {workers}\n"));
    Launch { wrapper: limited(bytes), ..launch }
}

/// Goal: 25 workers need a little more than the 8 MiB that Debian gives; the error says how much,
/// and what there is.
#[test]
fn a_configured_number_that_does_not_fit_is_refused_with_need_and_limit() {
    let _quiet = alone();
    if !is_charged() {
        return;
    }
    let words = [
        "25 rings need 8200 KiB",
        "RLIMIT_MEMLOCK is 8192 KiB",
        "enough for 24",
        "LimitMEMLOCK=infinity",
        "ulimit -l",
        "fewer workers",
    ];
    // Another try would not help: the limit must be raised first.
    with_workers("25", 8 << 20).fail().assert(78, &words);
}

/// Goal: with an automatic number the daemon starts as many workers as fit, and reports how much is
/// missing.
#[test]
fn an_automatic_number_is_as_many_as_fit() {
    let _quiet = alone();
    let cpus = std::thread::available_parallelism().unwrap().get();
    if cpus < 2 || !is_charged() {
        return;
    }
    let daemon = with_workers("\"auto\"", WORKER * 3 / 2).start();
    let warning = daemon.lines.wait_for("LimitMEMLOCK=infinity", crate::machine::time_limit(5.0));
    let need = format!("need {} KiB", WORKER * cpus as u64 / 1024);
    for word in ["warn", "only 1 of", "RLIMIT_MEMLOCK", &need] {
        assert!(warning.contains(word), "{word:?} is missing: {warning}");
    }
    let status = daemon.manager.values("STATUS").pop().unwrap().1;
    assert!(status.contains("1 worker"), "{status}");
    daemon.stop();
}

/// Goal: the calculation agrees with that of the kernel, to the page.
#[test]
fn two_workers_start_with_just_enough_and_not_with_a_page_less() {
    let _quiet = alone();
    if !is_charged() {
        return;
    }
    with_workers("2", 2 * WORKER).start().stop();
    with_workers("2", 2 * WORKER - 4096).fail().assert(78, &["2 rings need 656 KiB", "652 KiB"]);
}

/// Goal: the start waits until the kernel has released the memory of a process that has just ended.
#[test]
fn a_start_right_after_an_end_waits_for_what_is_given_back() {
    let _quiet = alone();
    if !is_charged() {
        return;
    }
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGKILL, Signal::SIGKILL] {
        let mut daemon = with_workers("8", 8 * WORKER).start();
        daemon.signal(signal);
        daemon.wait(crate::machine::time_limit(10.0));
    }
    with_workers("8", 8 * WORKER).start().stop();
}
