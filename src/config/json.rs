//! A configuration, or its errors, for other programs.

use super::value::quoted;
use super::{Config, ConfigError, Examined, Invalid};

/// The output of `check --json`, one line:
///
/// ```json
/// {"valid":false,"errors":[{"file":"F","line":2,"column":9,"key":"log.level","problem":"…"}],
///  "warnings":[],"configuration":null}
/// ```
///
/// `configuration` has an object for each section, and a list of them for `listener`; values are as
/// in a file. In an error, `line` and `column` are null if it concerns the whole file. `file` is
/// null if the error is in an option of the command line, which is then the `key`.
#[must_use]
pub fn judgement(outcome: &Result<Examined, Invalid>) -> String {
    let list = |items: Vec<String>| format!("[{}]", items.join(","));
    let (errors, warnings, configuration) = match outcome {
        Ok(Examined { config, warnings, .. }) => {
            (Vec::new(), warnings.iter().map(|line| quoted(line)).collect(), object_of(config))
        }
        Err(invalid) => (invalid.errors.iter().map(error).collect(), Vec::new(), "null".to_owned()),
    };
    object(&[
        ("valid", outcome.is_ok().to_string()),
        ("errors", list(errors)),
        ("warnings", list(warnings)),
        ("configuration", configuration),
    ])
}

fn object_of(config: &Config) -> String {
    let mut sections: Vec<(&str, String)> = Vec::new();
    for (section, table) in config.tables() {
        let table = object(&table);
        match sections.last_mut() {
            Some((name, list)) if *name == section.name => *list += &format!(",{table}"),
            _ => sections.push((section.name, table)),
        }
    }
    for (_, list) in sections.iter_mut().filter(|(name, _)| *name == "listener") {
        *list = format!("[{list}]");
    }
    object(&sections)
}

fn object(members: &[(&str, String)]) -> String {
    let members: Vec<String> =
        members.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", members.join(","))
}

fn error(error: &ConfigError) -> String {
    let number = |number: usize| if number > 0 { number.to_string() } else { "null".to_owned() };
    let (file, [line, column], key, problem) = match error {
        ConfigError::Read { file, cause } => (Some(file), [0, 0], "", cause.to_string()),
        ConfigError::Content { file, line, column, key, problem } => {
            (Some(file), [*line, *column], key.as_str(), problem.clone())
        }
        ConfigError::CommandLine { option, problem } => (None, [0, 0], *option, problem.clone()),
    };
    object(&[
        ("file", file.map_or("null".to_owned(), |file| quoted(&file.to_string_lossy()))),
        ("line", number(line)),
        ("column", number(column)),
        ("key", quoted(key)),
        ("problem", quoted(&problem)),
    ])
}
