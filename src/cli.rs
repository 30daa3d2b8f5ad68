//! The command line: parses the arguments into one [`Command`].
//!
//! This file knows only the syntax of options, and is the only one that knows clap. `config`
//! decides what an address or a file means, so this file must never open, bind or resolve anything.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser, ValueHint};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use log::LevelFilter;

use crate::instance;
use echo_ring::output;

/// `EX_USAGE` of sysexits.h: command line usage error.
const EXIT_USAGE: u8 = 64;

/// The command to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Run the service.
    Serve(Options),
    /// Validate the configuration and print the result.
    Check(CheckOptions),
    /// Make the daemon reload its configuration, and validate it.
    Reload(Options),
    /// Query the status of a running daemon.
    Status(StatusOptions),
    /// Examine machine, configuration and sandbox, and report problems.
    Doctor(DoctorOptions),
}

/// What is validated, and how the result is printed.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// The configuration to validate.
    #[command(flatten)]
    pub options: Options,

    /// Print errors, warnings and the configuration as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// What the doctor examines, and how it reports.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct DoctorOptions {
    /// The configuration to examine.
    #[command(flatten)]
    pub options: Options,

    /// Print the findings as one JSON object
    #[arg(long)]
    pub json: bool,

    /// Examine the instance echo-uring@NAME
    #[arg(long, value_name = "NAME", value_parser = instance_name, conflicts_with = "listen")]
    pub instance: Option<String>,
}

/// Options of the service; they may precede or follow the command.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Read the configuration from FILE and FILE.d/*.toml [default: /etc/echo-uring.toml if it
    /// exists]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,

    #[allow(rustdoc::broken_intra_doc_links, reason = "clap shows this text unchanged")]
    /// Listen on ADDRESS instead of the configured listeners: 127.0.0.1:7777, [::1]:7777,
    /// udp:127.0.0.1:7777, unix:/path, unix-seqpacket:/path or unix-datagram:/path (or :@name);
    /// repeatable
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Vec<String>,

    /// Serve metrics and health over HTTP at ADDRESS as well: 127.0.0.1:17007 or unix:/path
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<String>,

    /// Serve the status at the Unix socket PATH as well, for "echo-uring status --socket PATH"
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub status: Option<PathBuf>,

    /// Log messages of severity LEVEL and more severe, regardless of the configured level
    #[arg(long, value_name = "LEVEL", value_parser = level_parser())]
    pub log_level: Option<LevelFilter>,
}

/// The socket to query, and how the answer is shown.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct StatusOptions {
    /// Print the answer unchanged as JSON
    #[arg(long)]
    pub json: bool,

    /// Repeat every second until interrupted
    #[arg(long)]
    pub watch: bool,

    /// Query the Unix socket PATH
    #[arg(long, value_name = "PATH", default_value = "/run/echo-uring/status.sock")]
    pub socket: PathBuf,

    /// Query the instance echo-uring@NAME
    #[arg(long, value_name = "NAME", value_parser = instance_name, conflicts_with = "socket")]
    pub instance: Option<String>,
}

fn instance_name(name: &str) -> Result<String, &'static str> {
    instance::is_name(name).then(|| name.to_owned()).ok_or(instance::NAME_RULE)
}

#[derive(Parser)]
#[command(
    name = "echo-uring",
    version,
    about = "TCP and UDP echo service (RFC 862) on io_uring",
    after_help = "See echo-uring(8) and echo-uring.toml(5).",
    disable_help_subcommand = true
)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// A command with the options that may follow it. Commands that do not run the service have their
/// own options instead of [`Options`].
#[derive(Subcommand)]
enum Verb {
    /// Run the service (the default)
    Serve(Options),
    /// Validate the configuration, print it with all defaults as TOML, and exit
    Check(CheckOptions),
    /// Make the service reload its configuration (for ExecReload= of its unit)
    Reload(Options),
    /// Show connections, traffic and errors of a running daemon, per listener and worker
    Status(StatusOptions),
    /// Examine kernel, limits, sockets, sandbox and configuration; the exit status is 1 if there is
    /// a problem
    Doctor(DoctorOptions),
}

fn level_parser() -> impl TypedValueParser<Value = LevelFilter> {
    PossibleValuesParser::new(["error", "warn", "info", "debug", "trace", "off"])
        .map(|word| word.parse().expect("invariant: the words above are those of the log facade"))
}

/// Parses the arguments of this process. If it prints help, the version or a one-line error, `Err`
/// holds the exit status: 0 for help and version, 64 for a usage error.
pub fn parse() -> Result<Command, ExitCode> {
    parse_from(std::env::args_os()).map_err(|refusal| ExitCode::from(refusal.print()))
}

/// Why there is no command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The exit status: 0 if text was requested, 64 for a usage error.
    pub status: u8,
    /// The text to print: to standard output with status 0, else to standard error.
    pub text: String,
}

impl Refusal {
    /// Returns the exit status.
    fn print(&self) -> u8 {
        if self.status != 0 {
            output::complain(self.text.trim_end());
            return self.status;
        }
        match output::print(&self.text) {
            Ok(()) => self.status,
            Err(error) => {
                output::complain(&format!("echo-uring: {}", output::unwritten(&error)));
                output::EXIT_OUTPUT
            }
        }
    }
}

/// Parses `arguments`, the first of which is the program's own name.
pub fn parse_from<I, T>(arguments: I) -> Result<Command, Refusal>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let parsed = Arguments::try_parse_from(arguments).and_then(|arguments| {
        let before = arguments.options;
        Ok(match arguments.verb.unwrap_or_else(|| Verb::Serve(Options::default())) {
            Verb::Serve(after) => Command::Serve(before.joined(after)?),
            Verb::Check(check) => {
                let options = before.joined(check.options)?;
                Command::Check(CheckOptions { options, ..check })
            }
            Verb::Reload(after) => Command::Reload(before.joined(after)?),
            Verb::Status(_) if before != Options::default() => return Err(misplaced()),
            Verb::Status(options) => Command::Status(options),
            Verb::Doctor(doctor) => {
                let options = before.joined(doctor.options)?;
                Command::Doctor(DoctorOptions { options, ..doctor })
            }
        })
    });
    parsed.map_err(|error| refusal(&error))
}

/// The error for an option of the service before a command that does not accept it.
fn misplaced() -> clap::Error {
    let problem = "this command does not accept options of the service";
    Arguments::command().error(ErrorKind::ArgumentConflict, problem)
}

/// The command line as data, for the tests of completions and manual pages.
pub fn command() -> clap::Command {
    Arguments::command()
}

impl Options {
    /// Merges these options, which preceded the command, with those that came `after` it. Only
    /// --listen may be given more than once.
    fn joined(self, after: Self) -> Result<Self, clap::Error> {
        let mut listen = self.listen;
        listen.extend(after.listen);
        Ok(Self {
            config: either("--config <FILE>", self.config, after.config)?,
            listen,
            metrics: either("--metrics <ADDRESS>", self.metrics, after.metrics)?,
            status: either("--status <PATH>", self.status, after.status)?,
            log_level: either("--log-level <LEVEL>", self.log_level, after.log_level)?,
        })
    }
}

fn either<T>(option: &str, before: Option<T>, after: Option<T>) -> Result<Option<T>, clap::Error> {
    if before.is_some() && after.is_some() {
        let fault = format!("the argument '{option}' cannot be used multiple times");
        return Err(Arguments::command().error(ErrorKind::ArgumentConflict, fault));
    }
    Ok(before.or(after))
}

fn refusal(error: &clap::Error) -> Refusal {
    let text = error.to_string();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return Refusal { status: 0, text };
    }
    // Like every other failure at start, a usage error is one line: clap's message without its
    // explanation of the usage.
    let words: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .filter(|line| !line.is_empty())
        .collect();
    let problem = words.join(" ");
    let problem = problem.trim_start_matches("error: ");
    Refusal { status: EXIT_USAGE, text: format!("echo-uring: {problem}; see echo-uring --help\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Command, Refusal> {
        parse_from(["echo-uring"].iter().chain(arguments))
    }

    #[test]
    fn serving_is_the_default_command() {
        assert_eq!(parsed(&[]), Ok(Command::Serve(Options::default())));
        assert_eq!(parsed(&["serve"]), Ok(Command::Serve(Options::default())));
        assert_eq!(parsed(&["check"]), Ok(Command::Check(CheckOptions::default())));
    }

    #[test]
    fn options_stand_before_or_after_the_command() {
        let options = Options {
            config: Some("/x".into()),
            listen: vec!["127.0.0.1:0".into(), "unix:/y".into()],
            metrics: Some("127.0.0.1:1".into()),
            status: Some("/z".into()),
            log_level: Some(LevelFilter::Off),
        };
        let given = "--config /x --listen 127.0.0.1:0 --listen unix:/y --metrics 127.0.0.1:1 \
                     --status /z --log-level off";
        let given: Vec<&str> = given.split(' ').collect();
        let check = CheckOptions { options: options.clone(), json: true };
        let words = ["check", "--json"];
        assert_eq!(parsed(&[&given[..], &words].concat()), Ok(Command::Check(check)));
        assert_eq!(parsed(&[&["serve"], &given[..]].concat()), Ok(Command::Serve(options.clone())));
        let (before, after) = given.split_at(4);
        assert_eq!(parsed(&[before, &["serve"], after].concat()), Ok(Command::Serve(options)));
    }

    #[test]
    fn help_and_version_are_no_failures() {
        let version = parsed(&["--version"]).unwrap_err();
        assert_eq!(version.status, 0);
        assert_eq!(version.text, format!("echo-uring {}\n", env!("CARGO_PKG_VERSION")));
        let help = parsed(&["--help"]).unwrap_err();
        assert_eq!(help.status, 0);
        for word in ["--config", "--listen", "--log-level", "--version", "serve", "check"] {
            assert!(help.text.contains(word), "{word} is missing in:\n{}", help.text);
        }
    }

    #[test]
    fn wrong_usage_is_one_line_and_status_64() {
        for (arguments, expected) in [
            (&["--fast"][..], "--fast"),
            (&["run"], "run"),
            (&["--config"], "--config"),
            (&["--log-level", "loud"], "[possible values: error, warn, info, debug, trace, off]"),
            (&["--config", "a", "--config", "b"], "multiple times"),
            (
                &["--config", "a", "check", "--config", "b"],
                "'--config <FILE>' cannot be used multi",
            ),
            (&["--log-level", "off", "serve", "--log-level", "off"], "multiple times"),
            (&["--metrics", "[::1]:1", "serve", "--metrics", "[::1]:1"], "multiple times"),
            (&["--status", "/a", "status"], "does not accept options of the service"),
        ] {
            let Refusal { status, text } = parsed(arguments).unwrap_err();
            assert_eq!(status, 64, "{arguments:?}");
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(text.starts_with("echo-uring: "), "{text}");
            assert!(text.contains(expected), "{text}");
            assert!(text.ends_with("; see echo-uring --help\n"), "{text}");
        }
    }
}
