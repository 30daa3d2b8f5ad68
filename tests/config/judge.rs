//! What must hold whatever a configuration file says: it is valid, and then means the same when it
//! is printed and read again; or it is refused in one line that names place and remedy.

use std::path::Path;

use echo_uring::config::{self, Config, Effect};

/// The longest error, in bytes: a status line that systemd takes.
const ERROR_LENGTH_MAX: usize = 1024;
/// The longest spelling of a value in a log line, in characters.
const SPELLED_LENGTH_MAX: usize = 80;

/// Panics if the content of a file is neither valid nor refused as it should be. Says which of them
/// it is.
pub(crate) fn judge(bytes: &[u8]) -> Result<Config, String> {
    match Config::from_bytes(bytes, Path::new("FILE")) {
        Ok(config) => {
            judge_config(&config);
            Ok(config)
        }
        Err(error) => {
            let line = error.to_string();
            judge_error(&line, bytes);
            Err(line)
        }
    }
}

/// Whatever the daemon does with a valid file when it starts or reloads.
fn judge_config(config: &Config) {
    let printed = config.to_toml();
    let again = Config::from_bytes(printed.as_bytes(), Path::new("PRINTED"));
    let again = again.unwrap_or_else(|error| panic!("{error}\n{printed}"));
    assert_eq!(again, *config, "{printed}");
    let default = Config::default();
    for change in config::changes(&default, config) {
        let Some(spelled) = config::spelled(config, change.key) else {
            assert_eq!(change.key, "listener");
            continue;
        };
        let length = spelled.chars().count();
        assert!(length <= SPELLED_LENGTH_MAX, "{}: {length} characters", change.key);
        assert!(!spelled.contains(char::is_control), "{}: {spelled:?}", change.key);
    }
    let present = config::in_force(&default, config.clone());
    let left = config::changes(&present, config);
    assert!(left.iter().all(|change| change.effect == Effect::AtRestart), "{left:?}");
}

fn judge_error(line: &str, bytes: &[u8]) {
    assert!(line.len() <= ERROR_LENGTH_MAX, "{} bytes: {line}", line.len());
    assert!(!line.contains(char::is_control), "more than a line: {line:?}");
    let place = line.strip_prefix("FILE:").unwrap_or_else(|| panic!("no file: {line}"));
    let mut numbers = place.splitn(3, ':');
    let mut number = || numbers.next().and_then(|text| text.parse::<usize>().ok());
    let (row, column) = (number(), number());
    let rows = bytes.split(|byte| *byte == b'\n').count();
    assert!(row.is_some_and(|row| (1..=rows).contains(&row)), "no such line: {line}");
    assert!(column.is_some_and(|column| column >= 1), "no column: {line}");
    assert!(line.contains("; "), "no remedy: {line}");
}
