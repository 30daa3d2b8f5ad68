//! Goal: information that is in several shipped files has a single source. Completions are made
//! from the command lines, template units from the units, the seccomp profile of the container from
//! the unit of the service, the shipped configuration and the keys of its manual from the table of
//! keys. Other manual pages are written by hand; the tests check that they describe every command
//! and option, and no others.
//!
//! A file that differs from its source fails its test. This command writes all of them:
//!
//! ```console
//! $ ECHO_WRITE=1 cargo test --test generated
//! ```

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[allow(dead_code, reason = "as below: the command line names its type")]
#[path = "../../crates/echo-load/src/announced.rs"]
mod announced;
#[allow(dead_code, reason = "of the client's own file, its command line alone is wanted here")]
#[path = "../../crates/echo-load/src/arguments.rs"]
mod arguments;
mod completions;
mod configuration;
mod container;
mod manual;
#[allow(dead_code, reason = "as above: the command line names its type")]
#[path = "../../crates/echo-load/src/size.rs"]
mod size;
#[allow(dead_code, reason = "as above")]
#[path = "../../crates/echo-load/src/status.rs"]
mod status;
#[allow(dead_code, reason = "as above")]
#[path = "../../crates/echo-load/src/target.rs"]
mod target;
mod units;
#[allow(dead_code, reason = "as above")]
#[path = "../../crates/echo-load/src/values.rs"]
mod values;

use std::fs;
use std::path::{Path, PathBuf};

/// Both command lines, each with the page that describes it.
fn programs() -> [(clap::Command, &'static str); 2] {
    [
        (echo_uring::cli::command(), "packaging/man/echo-uring.8"),
        (arguments::command(), "packaging/man/echo-load.1"),
    ]
}

fn place(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(place(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Asserts that the file at `path` is `wanted`, or writes it.
fn hold(path: &str, wanted: &str) {
    if std::env::var_os("ECHO_WRITE").is_some() {
        fs::write(place(path), wanted).unwrap();
        return;
    }
    let found = read(path);
    let differing = found.lines().zip(wanted.lines()).position(|(found, wanted)| found != wanted);
    let line = differing.unwrap_or_else(|| found.lines().count().min(wanted.lines().count())) + 1;
    assert!(
        found == wanted,
        "{path}:{line} is not what its source makes of it; \
         run ECHO_WRITE=1 cargo test --test generated"
    );
}
