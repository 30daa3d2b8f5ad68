//! Properties of every configuration file: it is valid, and then means the same when it is printed
//! and read again; or it is refused in one line that names position and remedy.

use std::path::Path;

use echo_uring::config::{self, Config, Effect, Invalid};

/// The longest error, in bytes: a status line that systemd takes.
const ERROR_LENGTH_MAX: usize = 1024;
/// The longest spelling of a value in a log line, in characters.
const SPELLED_LENGTH_MAX: usize = 80;

/// Panics if a file is neither valid nor refused correctly. Returns which of the two it is.
pub(crate) fn judge(bytes: &[u8]) -> Result<Config, String> {
    match Config::from_bytes(bytes, Path::new("FILE")) {
        Ok(config) => {
            judge_config(&config);
            Ok(config)
        }
        Err(invalid) => {
            judge_errors(&invalid, bytes);
            let line = invalid.to_string();
            judge_error(&line, bytes);
            Err(line)
        }
    }
}

/// Everything that the daemon does with a valid file when it starts or reloads.
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
    let present = config::in_force(&default, config);
    let left = config::changes(&present, config);
    assert!(left.iter().all(|change| change.effect != Effect::AtReload), "{left:?}");
}

/// All errors are reported in the order of the file, up to a limit.
fn judge_errors(invalid: &Invalid, bytes: &[u8]) {
    let lines = invalid.lines();
    let told = invalid.errors.len();
    assert_eq!(told, invalid.count.min(Invalid::ERRORS_MAX));
    assert_eq!(lines.len(), told + usize::from(invalid.count > told));
    let mut last = (0, 0);
    for line in &lines[..told] {
        let place = judge_error(line, bytes);
        assert!(last <= place, "out of order: {lines:#?}");
        last = place;
    }
}

/// Panics if a file with a drop-in does not have the value of the later file for each key, or if an
/// error of one is not an error of both.
#[allow(dead_code, reason = "the fuzzer judges single files")]
pub(crate) fn judge_pair(main: &[u8], drop_in: &[u8]) {
    let alone = |bytes| Config::from_bytes(bytes, Path::new("FILE"));
    let merged =
        Config::from_files(&[(Path::new("FILE"), main), (Path::new("FILE.d/1.toml"), drop_in)]);
    let merged = match (alone(main), alone(drop_in), merged) {
        (Ok(main), Ok(drop_in), Ok(merged)) => {
            let default = Config::default();
            let spelled = |config, key: &'static str| config::spelled(config, key);
            let set = config::changes(&default, &drop_in);
            for key in set.iter().map(|change| change.key).filter(|key| *key != "listener") {
                assert_eq!(spelled(&merged, key), spelled(&drop_in, key), "{key}");
            }
            for key in config::changes(&main, &merged).iter().map(|change| change.key) {
                let later = [&drop_in, &default].map(|config| spelled(config, key));
                assert!(key == "listener" || later.contains(&spelled(&merged, key)), "{key}");
            }
            return;
        }
        (Err(_), _, Ok(merged)) => panic!("an error of the file is lost: {merged:?}"),
        // Without listeners in the drop-in those of the file are used; none need be an echo
        // listener.
        (Ok(_), Err(error), Ok(_)) => {
            let line = error.to_string();
            assert!(line.contains(" listener: "), "an error of the drop-in is lost: {line}");
            return;
        }
        (_, _, Err(merged)) => merged,
    };
    let told: Vec<String> = merged.errors.iter().map(ToString::to_string).collect();
    assert!(told.is_sorted_by_key(|line| line.starts_with("FILE.d/1.toml:")), "{told:#?}");
    assert!(told.iter().all(|line| line.starts_with("FILE")), "{told:#?}");
}

/// The line and the column that it names.
fn judge_error(line: &str, bytes: &[u8]) -> (usize, usize) {
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
    (row.unwrap_or(0), column.unwrap_or(0))
}
