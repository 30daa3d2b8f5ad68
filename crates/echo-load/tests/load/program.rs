//! Runs echo-load to its end.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

/// The result of a run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The program with these arguments, to be started.
pub(crate) fn command(arguments: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_echo-load"));
    command.args(arguments);
    command
}

/// Runs it with these arguments, separated by blanks.
pub(crate) fn run(arguments: &str) -> Run {
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let output = command(&arguments).output().unwrap();
    Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Run {
    /// The object that `--json` printed.
    pub(crate) fn json(&self) -> Value {
        let lines: Vec<&str> = self.stdout.lines().collect();
        assert_eq!(lines.len(), 1, "one object was expected: {self:#?}");
        serde_json::from_str(lines[0]).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    /// Asserts that every echo was correct and nothing was written to stderr; returns the object.
    pub(crate) fn right(&self) -> Value {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{self:#?}");
        let result = self.json();
        assert_eq!(result["errors"], 0, "{self:#?}");
        assert!(number(&result, "/messages") > 0.0, "{self:#?}");
        result
    }
}

/// A number somewhere in an object.
pub(crate) fn number(object: &Value, pointer: &str) -> f64 {
    let value = object.pointer(pointer).and_then(Value::as_f64);
    value.unwrap_or_else(|| panic!("{pointer} is no number in {object:#}"))
}

/// Asserts that as many messages came back as a schedule of `rate` per second asks for, but for
/// what a busy machine has not got round to at the end.
pub(crate) fn assert_rate(result: &Value, rate: f64) {
    let scheduled = rate * number(result, "/elapsed_seconds");
    let messages = number(result, "/messages");
    assert!((0.8 * scheduled..=scheduled + 2.0).contains(&messages), "{scheduled}: {result:#}");
}

/// A directory that is removed at the end of the test.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("echo-load-test-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file with this text.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let path: &Path = &self.0;
        drop(std::fs::remove_dir_all(path));
    }
}
