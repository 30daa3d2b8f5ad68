//! Goal: an output that cannot be written is reported, and affects neither the other outputs nor
//! the load. Method: full devices, closed descriptors, readers that close, files that exist
//! already.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::program::{Scratch, command, run};
use crate::servers::{Daemon, closed_port};

/// Runs a line of shell, in which `$0` is echo-load.
fn shell(line: &str) -> Output {
    let program = env!("CARGO_BIN_EXE_echo-load");
    Command::new("sh").args(["-c", line, program]).output().unwrap()
}

#[test]
fn a_full_disk_and_a_closed_descriptor_are_errors() {
    let daemon = Daemon::start();
    let load = format!("{} -d 200ms", daemon.tcp);
    for what in
        [&load, &format!("{load} --json"), &format!("{load} --json-stream"), "--help", "--version"]
    {
        for redirection in ["> /dev/full", ">&-"] {
            let output = shell(&format!("$0 {what} {redirection}"));
            assert_eq!(output.status.code(), Some(5), "{what} {redirection}: {output:?}");
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(said.contains("standard output"), "{what} {redirection}: {said}");
        }
        // A device that takes everything is none, however it was opened.
        assert_eq!(shell(&format!("$0 {what} <> /dev/null >&0")).status.code(), Some(0));
        // There is no panic either when the error cannot be written.
        let output = shell(&format!("$0 {what} > /dev/full 2>&1"));
        assert_eq!(output.status.code(), Some(5), "{what}: {output:?}");
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_load_quietly() {
    let daemon = Daemon::start();
    let mut child = command(&[&daemon.tcp, "-d", "1h", "--interval", "20ms", "--json-stream"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let since = Instant::now();
    let first = BufReader::new(child.stdout.take().unwrap()).lines().next();
    assert!(first.unwrap().unwrap().contains("interval"));
    let output = child.wait_with_output().unwrap();
    assert!(since.elapsed() < Duration::from_secs(20), "the load went on");
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0), "{output:?}");
}

#[test]
fn a_failing_histogram_log_does_not_cost_the_result() {
    let (daemon, scratch) = (Daemon::start(), Scratch::new());
    let plot = scratch.path("plot.svg").display().to_string();
    for option in ["--hdr /dev/full", "--plot /dev/full", &format!("--hdr /dev/full --plot {plot}")]
    {
        let run = run(&format!("{} -d 300ms --interval 100ms --json {option}", daemon.tcp));
        assert_eq!(run.code, Some(5), "{option}: {run:#?}");
        assert!(run.json()["messages"].as_u64().unwrap() > 0, "{option}: {run:#?}");
        assert!(run.stderr.contains("No space left"), "{option}: {run:#?}");
        assert_eq!(run.stderr.lines().count(), 1, "{option}: {run:#?}");
    }
    assert!(fs::read_to_string(plot).unwrap().contains("</svg>"));
}

#[test]
fn files_of_an_earlier_run_are_replaced_by_those_of_a_later_one() {
    let (daemon, scratch) = (Daemon::start(), Scratch::new());
    let names = ["a.hlog", "a.svg"].map(|name| scratch.file(name, "of an earlier run"));
    let options = format!("--hdr {} --plot {}", names[0].display(), names[1].display());
    let inodes = || names.each_ref().map(|path| fs::metadata(path).unwrap().ino());
    let (_reserved, closed) = closed_port();
    let before = inodes();
    assert_eq!(run(&format!("{closed} -d 200ms {options}")).code, Some(3));
    for path in &names {
        assert_eq!(fs::read_to_string(path).unwrap(), "of an earlier run");
    }
    assert_eq!(inodes(), before);
    assert_eq!(run(&format!("{} -d 200ms {options}", daemon.tcp)).code, Some(0));
    for (path, text) in names.iter().zip(["HIST", "</svg>"]) {
        assert!(fs::read_to_string(path).unwrap().contains(text), "{path:?}");
    }
    for (old, new) in before.iter().zip(inodes()) {
        assert_ne!(*old, new, "it was written over");
    }
    let directory = names[0].parent().unwrap();
    assert_eq!(fs::read_dir(directory).unwrap().count(), 2, "something is left over");
}
