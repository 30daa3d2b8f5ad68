//! Arguments, configuration files and exit statuses: what the program prints before it serves, or
//! instead of serving.

use std::fs;
use std::process::Command;

use crate::daemon::{Launch, Refusal, run_to_end};
use crate::machine::{Scratch, in_company};

fn refusal(config: &str) -> Refusal {
    Launch::with_config(config).fail()
}

/// The configuration is refused with status 78, and the one line of output has the file, the line
/// number and these words.
fn assert_refused(config: &str, line: usize, words: &[&str]) {
    let _quiet = in_company();
    let refusal = refusal(config);
    let place = format!("echo-uring: {}:{line}:", refusal.config_path.display());
    let mut all = vec![place.as_str()];
    all.extend(words);
    refusal.assert(78, &all);
}

#[test]
fn an_unknown_key_is_refused() {
    let config = "[server]\nworkers = 1\n\n[limits]\nmax-connection = 5\n";
    assert_refused(config, 5, &["limits.max-connection: ", "; did you mean max-connections?"]);
}

#[test]
fn an_unknown_section_is_refused() {
    assert_refused("\n[limit]\nmax-connections = 5\n", 2, &["limit"]);
}

#[test]
fn a_number_out_of_range_is_refused() {
    assert_refused("[limits]\nmax-connections = 0\n", 2, &["limits.max-connections: ", "; use "]);
    assert_refused("[server]\nworkers = 1025\n", 2, &["server.workers: ", "; use "]);
}

#[test]
fn a_pool_that_is_no_power_of_two_is_refused() {
    assert_refused("[server]\nbuffers = 100\n", 2, &["server.buffers: ", "128"]);
    assert_refused("[server]\nbuffers = 4\n", 2, &["server.buffers: ", "8"]);
}

#[test]
fn a_value_of_the_wrong_kind_is_refused() {
    assert_refused("[timeouts]\nidle = 30\n", 2, &["timeouts.idle: "]);
    assert_refused("[timeouts]\n\ndrain = \"soon\"\n", 3, &["timeouts.drain: "]);
    assert_refused("[timeouts]\ndrain = \"off\"\n", 2, &["timeouts.drain: "]);
    assert_refused("[limits]\nstalled-memory = \"much\"\n", 2, &["limits.stalled-memory: "]);
    assert_refused("[tcp]\nnodelay = \"yes\"\n", 2, &["tcp.nodelay: "]);
    assert_refused("[log]\ntarget = \"file\"\n", 2, &["log.target: "]);
    assert_refused("[log]\n# comment\nlevel = \"loud\"\n", 3, &["log.level: "]);
}

#[test]
fn an_invalid_address_is_refused() {
    let config = "[[listener]]\nname = \"a\"\naddress = \"localhost\"\n";
    assert_refused(config, 3, &["address"]);
}

#[test]
fn invalid_toml_is_refused() {
    assert_refused("[server]\nworkers = 1\nthis is prose\n", 3, &[]);
}

#[test]
fn a_named_file_that_is_absent_is_refused() {
    let scratch = Scratch::new();
    let path = scratch.path("absent.toml");
    for verb in ["serve", "check"] {
        let output = run_to_end(&["--config", path.to_str().unwrap(), verb], None);
        assert_eq!(output.status.code(), Some(78), "{output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.starts_with(&format!("echo-uring: {}: ", path.display())), "{text}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn wrong_usage_is_one_line_and_status_64() {
    for arguments in [&["--fast"][..], &["dance"], &["--log-level", "loud"], &["--config"]] {
        let output = run_to_end(arguments, None);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.starts_with("echo-uring: "), "{text}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn version_and_help_go_to_stdout() {
    let output = run_to_end(&["--version"], None);
    assert!(output.status.success());
    let version = format!("echo-uring {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), version);
    let output = run_to_end(&["--help"], None);
    assert!(output.status.success() && output.stderr.is_empty());
    let help = String::from_utf8(output.stdout).unwrap();
    for word in ["--config", "--listen", "--log-level", "--version", "--help", "serve", "check"] {
        assert!(help.contains(word), "{word} is missing:\n{help}");
    }
}

fn checked(path: &std::path::Path) -> String {
    let output = run_to_end(&["check", "--config", path.to_str().unwrap()], None);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn check_prints_what_is_in_force() {
    let scratch = Scratch::new();
    let path = scratch.path("some.toml");
    fs::write(&path, "[limits]\nmax-connections = 5\n[timeouts]\nidle = \"off\"\n").unwrap();
    let text = checked(&path);
    for line in [
        "workers = \"auto\"",
        "buffers = 256",
        "name = \"local-ipv4\"",
        "address = \"127.0.0.1:7777\"",
        "name = \"local-ipv6\"",
        "address = \"[::1]:7777\"",
        "max-connections = 5",
        "stalled-memory = \"64MiB\"",
        "idle = \"off\"",
        "stall = \"1m\"",
        "drain = \"10s\"",
        "nodelay = true",
        "keepalive = \"2m\"",
        "user-timeout = \"1m\"",
        "receive-buffer = \"auto\"",
        "send-buffer = \"auto\"",
        "target = \"auto\"",
        "level = \"info\"",
    ] {
        assert!(text.lines().any(|it| it == line), "{line} is missing:\n{text}");
    }
}

#[test]
fn what_check_prints_is_a_configuration_of_the_same_meaning() {
    let scratch = Scratch::new();
    let (first, second) = (scratch.path("first.toml"), scratch.path("second.toml"));
    fs::write(&first, "[server]\nworkers = 3\n[tcp]\nsend-buffer = \"100KiB\"\n").unwrap();
    let text = checked(&first);
    fs::write(&second, &text).unwrap();
    assert_eq!(checked(&second), text);
    fs::write(&first, "").unwrap();
    assert!(!checked(&first).is_empty(), "an empty file is valid");
}

#[test]
fn check_refuses_what_serve_refuses() {
    let scratch = Scratch::new();
    let path = scratch.path("bad.toml");
    fs::write(&path, "[limits]\nmax-connections = -1\n").unwrap();
    let output = run_to_end(&["check", "--config", path.to_str().unwrap()], None);
    assert_eq!(output.status.code(), Some(78));
    let text = String::from_utf8(output.stderr).unwrap();
    let start = format!("echo-uring: {}:2:19: limits.max-connections: ", path.display());
    assert!(text.starts_with(&start), "{text}");
    assert!(output.stdout.is_empty());
}

#[test]
fn the_log_level_of_the_command_line_overrides_that_of_the_file() {
    let _quiet = in_company();
    let launch = Launch::with_config("[log]\nlevel = \"debug\"\n");
    let arguments = vec!["--log-level".to_owned(), "error".to_owned()];
    let mut daemon = Launch { arguments, ..launch }.start();
    assert!(daemon.place().answers(crate::machine::time_limit(10.0)));
    daemon.settle();
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    let status = daemon.wait(crate::machine::time_limit(20.0));
    assert_eq!(status.code(), Some(0));
    daemon.lines.wait_for_end(crate::machine::time_limit(5.0));
    assert_eq!(daemon.lines.all(), Vec::<String>::new());
}

/// Output that cannot be written is a failure; a reader that has closed the pipe is not.
#[test]
fn output_is_never_lost_in_silence() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let config = scratch.path("config.toml");
    fs::write(&config, "").unwrap();
    let check = format!("check --config {}", config.display());
    for command in ["--help", "--version", "doctor", &check] {
        let run = |redirection: &str| {
            let line = format!("\"$0\" {command} {redirection}");
            let program = env!("CARGO_BIN_EXE_echo-uring");
            Command::new("sh").args(["-c", &line, program]).output().unwrap()
        };
        for redirection in ["> /dev/full", ">&-"] {
            let output = run(redirection);
            assert_eq!(output.status.code(), Some(74), "{command} {redirection}: {output:?}");
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(said.contains("cannot write to standard output"), "{said}");
        }
        assert_eq!(run("> /dev/full 2>&1").status.code(), Some(74), "{command}");
        assert_ne!(run("> /dev/null").status.code(), Some(74), "{command}");
    }
}

/// An error message that cannot be written does not change the exit status.
#[test]
fn a_full_standard_error_changes_no_exit_status() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let config = scratch.path("config.toml");
    fs::write(&config, "nonsense = 1\n").unwrap();
    for (command, status) in
        [("serve", 78), ("check", 78), ("reload", 64), ("serve --nonsense", 64)]
    {
        let line = format!("\"$0\" {command} --config {} 2> /dev/full", config.display());
        let program = env!("CARGO_BIN_EXE_echo-uring");
        let ended = Command::new("sh").args(["-c", &line, program]).env_remove("MAINPID").status();
        assert_eq!(ended.unwrap().code(), Some(status), "{command}");
    }
}
