//! Why there is no configuration, in lines for the operator.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::echoed;
use crate::instance;

/// Why there is no configuration. `Display` is one line about the first problem, with the number of
/// further ones.
#[derive(Debug)]
pub struct Invalid {
    /// The problems in the order of the files, at least one and at most [`Invalid::ERRORS_MAX`].
    pub errors: Vec<ConfigError>,
    /// How many there are, which may be more.
    pub count: usize,
}

impl Invalid {
    /// A file may have errors in a hundred thousand lines, more than anyone reads.
    pub const ERRORS_MAX: usize = 100;

    /// The exit status by sysexits, see [`ConfigError::exit_status`].
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        self.first().exit_status()
    }

    /// All problems: one line each, and one with the number of those not listed.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.errors.iter().map(ToString::to_string).collect();
        let left = self.count - self.errors.len();
        if left > 0 {
            lines.push(format!("{left} more errors; correct those above first"));
        }
        lines
    }

    fn first(&self) -> &ConfigError {
        self.errors.first().expect("invariant: what is invalid has an error")
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.first().fmt(formatter)?;
        match self.count - 1 {
            0 => Ok(()),
            more => write!(formatter, " (and {more} more: see echo-uring check)"),
        }
    }
}

impl std::error::Error for Invalid {}

impl From<Vec<ConfigError>> for Invalid {
    fn from(mut errors: Vec<ConfigError>) -> Self {
        let count = errors.len();
        errors.truncate(Self::ERRORS_MAX);
        Self { errors, count }
    }
}

impl From<ConfigError> for Invalid {
    fn from(error: ConfigError) -> Self {
        vec![error].into()
    }
}

/// One problem. `Display` is one line that ends with the remedy, of at most 1 KiB and without
/// control characters.
#[derive(Debug)]
pub enum ConfigError {
    /// A file, or the directory of drop-ins, cannot be read.
    Read {
        /// The file or directory.
        file: PathBuf,
        /// The error of the system.
        cause: io::Error,
    },
    /// The file is invalid.
    Content {
        /// Which file.
        file: PathBuf,
        /// Counted from 1; 0 if the error concerns the whole file.
        line: usize,
        /// The character in that line, counted from 1.
        column: usize,
        /// `section.key`, or empty if the text is not TOML.
        key: String,
        /// What is wrong, and the remedy.
        problem: String,
    },
    /// An option of the command line is invalid.
    CommandLine {
        /// The option, with its dashes.
        option: &'static str,
        /// What is wrong, and the remedy.
        problem: String,
    },
}

impl ConfigError {
    /// The exit status by sysexits: 64 (usage) for the command line, 78 (configuration) for the
    /// file.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::CommandLine { .. } => 64,
            Self::Read { .. } | Self::Content { .. } => 78,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { file: path, cause } => {
                let file = echoed::path(path);
                write!(formatter, "{file}: cannot be read: {cause}; ")?;
                match cause.kind() {
                    io::ErrorKind::NotFound => match instance::of_file(path) {
                        Some(name) if instance::is_name(name) => write!(
                            formatter,
                            "create an empty one: \"mkdir -p /etc/echo-uring && touch {file}\""
                        ),
                        Some(_) => formatter.write_str(instance::NAME_RULE),
                        None => formatter
                            .write_str("write it (it may be empty), or name another with --config"),
                    },
                    io::ErrorKind::PermissionDenied => write!(
                        formatter,
                        "let the user that reads it do so: chmod o+r {file}, and chmod o+x for \
                         each directory above it"
                    ),
                    _ => formatter.write_str("put a readable regular file in its place"),
                }
            }
            Self::Content { file, line, column, key, problem } => {
                write!(formatter, "{}:", echoed::path(file))?;
                if *line > 0 {
                    write!(formatter, "{line}:{column}:")?;
                }
                if !key.is_empty() {
                    write!(formatter, " {key}:")?;
                }
                write!(formatter, " {problem}")
            }
            Self::CommandLine { option, problem } => write!(formatter, "{option}: {problem}"),
        }
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: if an instance is started before its file exists, the error contains the command to
    /// create it, or the rule that its name breaks.
    #[test]
    fn an_instance_without_its_file_names_the_command_that_makes_it() {
        let text = |file: &str| {
            let cause = io::ErrorKind::NotFound.into();
            ConfigError::Read { file: file.into(), cause }.to_string()
        };
        let command = "; create an empty one: \"mkdir -p /etc/echo-uring && touch \
                       /etc/echo-uring/lab.toml\"";
        assert!(text("/etc/echo-uring/lab.toml").ends_with(command));
        for name in ["a b", "a_b", "abcdefghijklmnopqrstu", ""] {
            let wrong = text(&format!("/etc/echo-uring/{name}.toml"));
            assert!(wrong.ends_with(instance::NAME_RULE), "{wrong}");
        }
        for other in ["/etc/echo-uring.toml", "/etc/echo-uring/a/b.toml"] {
            assert!(text(other).ends_with("or name another with --config"), "{}", text(other));
        }
    }
}
