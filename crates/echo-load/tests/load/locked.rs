//! Goal: if the rings of all threads exceed the limit on locked memory, the error names the limit,
//! the required and the available memory.

use std::process::Command;

use nix::unistd::Uid;

use crate::servers::closed_port;

/// What echo-load prints with this number of threads and a limit of `bytes`, without the capability
/// that exempts root.
fn complaint(threads: usize, bytes: u64) -> (Option<i32>, String) {
    let (_reserved, closed) = closed_port();
    let drop = ["setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"];
    let mut words: Vec<String> = match Uid::effective().is_root() {
        true => drop.iter().map(ToString::to_string).collect(),
        false => Vec::new(),
    };
    words.extend(["prlimit".to_owned(), format!("--memlock={bytes}:{bytes}")]);
    words.push(env!("CARGO_BIN_EXE_echo-load").to_owned());
    let load = format!("tcp://{closed} -d 1s -c {threads} --threads {threads}");
    words.extend(load.split(' ').map(str::to_owned));
    let output = Command::new(&words[0]).args(&words[1..]).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn too_many_threads_for_the_locked_memory_are_refused_with_need_and_limit() {
    if !complaint(1, 0).1.contains("RLIMIT_MEMLOCK") {
        println!("skipped: this kernel charges no locked memory for rings");
        return;
    }
    let (code, text) = complaint(64, 8 << 20);
    assert_ne!(code, Some(0), "{text}");
    for word in
        ["1 ring needs ", "RLIMIT_MEMLOCK is 8192 KiB", "enough for ", "ulimit -l", "thread"]
    {
        assert!(text.contains(word), "{word:?} is missing: {text}");
    }
}
