//! io_uring refused by real seccomp filters, also with a restricted /proc: the daemon must name
//! what refuses it, and the calls to allow.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;

use nix::libc::{self, SYS_io_uring_enter, SYS_io_uring_register, SYS_io_uring_setup};
use nix::unistd::Uid;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

use crate::daemon::program;
use crate::faults::strace;
use crate::machine::in_company;

/// The calls that a profile must allow.
pub(crate) const CALLS: [libc::c_long; 3] =
    [SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register];

/// Runs the program to its end under a real filter, like that of a container, which answers `calls`
/// with `errno`. The filter is installed on a thread, which then starts the program.
pub(crate) fn under_a_filter(calls: &[libc::c_long], errno: i32, mut command: Command) -> Output {
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno.unsigned_abs()),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let filter: BpfProgram = filter.unwrap().try_into().unwrap();
    let run = move || {
        apply_filter(&filter).unwrap();
        command.env_clear().stdin(Stdio::null()).output().unwrap()
    };
    thread::spawn(run).join().unwrap()
}

/// The program, by itself or run by `wrapper`, with these arguments.
pub(crate) fn run_by(wrapper: &[&str], arguments: &[&str]) -> Command {
    let mut words: Vec<PathBuf> = wrapper.iter().map(PathBuf::from).collect();
    words.push(program());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).args(arguments);
    command
}

/// A command that runs a program with a /proc that only has processes, as with `ProcSubset=pid`;
/// none without root.
const HIDING: [&str; 5] = [
    "unshare",
    "--mount",
    "sh",
    "-c",
    "mount -t proc -o subset=pid proc /proc && PATH=/usr/bin:/bin exec \"$0\" \"$@\"",
];

fn hiding() -> Option<&'static [&'static str]> {
    if !Uid::effective().is_root() {
        println!("skipped: only root may mount another /proc");
        return None;
    }
    Some(&HIDING)
}

/// Asserts a refusal to start in one line, with all these words.
fn assert_refused(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), text.lines().count()), (Some(78), 1), "{output:?}");
    for word in words {
        assert!(text.contains(word), "{word:?} is missing: {text}");
    }
}

/// Whether the sysctl of this machine forbids io_uring, which changes the results.
fn is_switched_off() -> bool {
    let sysctl = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let off = !matches!(sysctl.trim(), "" | "0");
    if off {
        println!("skipped: sysctl kernel.io_uring_disabled is {}", sysctl.trim());
    }
    off
}

const SERVE: [&str; 2] = ["--listen", "127.0.0.1:0"];
/// What the message of a filter says in any case.
const FILTER: [&str; 4] = [
    "a seccomp filter refuses io_uring",
    "allow io_uring_setup, io_uring_enter and io_uring_register",
    "Docker, Podman",
    "SystemCallFilter=",
];

/// Goal: Docker returns EPERM and Podman ENOSYS for all three calls, and an incomplete profile for
/// some of them. Each time the message names a filter and not an old kernel.
#[test]
fn a_filter_is_named_whatever_it_answers() {
    let _quiet = in_company();
    if is_switched_off() {
        return;
    }
    let some: [&[libc::c_long]; 4] = [&CALLS, &CALLS[..1], &CALLS[1..2], &CALLS[2..]];
    for calls in some {
        for (errno, name) in
            [(libc::EPERM, "fails with EPERM"), (libc::ENOSYS, "fails with ENOSYS")]
        {
            let output = under_a_filter(calls, errno, run_by(&[], &SERVE));
            assert_refused(&output, &FILTER);
            assert_refused(&output, &[name]);
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(!text.contains("Linux 6.1"), "{text}");
        }
    }
}

/// Goal: the same where the sysctl cannot be read, as in the sandbox of the unit.
#[test]
fn a_filter_is_named_where_the_sysctl_is_hidden() {
    let _quiet = in_company();
    let Some(hiding) = hiding() else { return };
    let output = under_a_filter(&CALLS, libc::EPERM, run_by(hiding, &SERVE));
    assert_refused(&output, &FILTER);
    // It cannot be distinguished from a kernel without io_uring, so both are named, the more likely
    // one first.
    let output = under_a_filter(&CALLS, libc::ENOSYS, run_by(hiding, &SERVE));
    assert_refused(&output, &["seccomp filter", "io_uring_register", "or run Linux 6.1"]);
    // A filter on setup alone: the kernel answers the other calls, so it has io_uring.
    let output = under_a_filter(&CALLS[..1], libc::ENOSYS, run_by(hiding, &SERVE));
    assert_refused(&output, &FILTER);
}

/// Goal: EPERM from setup, while io_uring_enter(2) works, is attributed to the sysctl, although
/// that cannot be read.
#[test]
fn the_sysctl_is_named_where_it_is_hidden() {
    let _quiet = in_company();
    let (Some(hiding), Some(tracer)) = (hiding(), strace("io_uring_setup", "error=EPERM")) else {
        return;
    };
    // What the sysctl does, without switching io_uring off for the whole machine.
    let tracer: Vec<&str> = tracer.iter().map(String::as_str).filter(|it| *it != "-D").collect();
    let wrapper = [hiding, &tracer].concat();
    let output = run_by(&wrapper, &SERVE).output().unwrap();
    let words = ["no seccomp filter refuses io_uring_enter(2)", "sysctl kernel.io_uring_disabled"];
    assert_refused(&output, &words);
    assert_refused(&output, &["set it to 0", "kernel.io_uring_group"]);
}
