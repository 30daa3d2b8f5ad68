//! The TOML text as sections, of which key after key is taken, each with its place in the file.
//!
//! It knows no key. What is wrong is noted, and reading goes on with the default in its place, so
//! that of several faults the one that stands first in the file is told, whatever is read first.

use std::collections::BTreeMap;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::value::shown;
use super::{ConfigError, echoed};

/// The first fault of a file.
pub(super) struct Fault {
    /// Where in the text, in bytes.
    place: usize,
    key: String,
    problem: String,
}

/// Where faults are noted.
#[derive(Default)]
pub(super) struct Faults {
    first: Option<Fault>,
    count: usize,
}

impl Faults {
    /// How many have been noted.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    fn note(&mut self, fault: Fault) {
        self.count += 1;
        if self.first.as_ref().is_none_or(|first| fault.place < first.place) {
            self.first = Some(fault);
        }
    }

    /// What `config` is worth.
    ///
    /// # Errors
    /// The first fault, with its line.
    pub(super) fn settle<T>(self, config: T, text: &str, file: &Path) -> Result<T, ConfigError> {
        let Some(Fault { place, key, problem }) = self.first else { return Ok(config) };
        Err(error(text.as_bytes(), file, place, key, problem))
    }
}

/// What is wrong at `place`, a byte of `text`.
pub(super) fn error(
    text: &[u8],
    file: &Path,
    place: usize,
    key: String,
    problem: String,
) -> ConfigError {
    let (line, column) = position(text, place);
    ConfigError::Content { file: file.to_owned(), line, column, key, problem }
}

/// The line that the byte at `place` stands in, and the character in it, both counted from 1.
fn position(text: &[u8], place: usize) -> (usize, usize) {
    let before = &text[..place.min(text.len())];
    let line = before.iter().filter(|byte| **byte == b'\n').count();
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    // In UTF-8 every character has one byte that is no continuation.
    let column = before[start..].iter().filter(|byte| **byte & 0xc0 != 0x80).count();
    (1 + line, 1 + column)
}

/// A section of which keys are taken. What is left at its [`Section::end`] is unknown.
pub(super) struct Section<'f, 't> {
    faults: &'f mut Faults,
    /// Nothing for the file itself.
    name: &'static str,
    place: usize,
    left: BTreeMap<String, (usize, Spanned<DeValue<'t>>)>,
    /// The keys that have been asked for.
    known: Vec<&'static str>,
    /// The keys that it must have and has not, each with an example.
    missing: Vec<(&'static str, String)>,
}

impl<'f, 't> Section<'f, 't> {
    /// The section of this name whose header stands at `place`; the file itself has no name.
    pub(super) fn new(
        name: &'static str,
        place: usize,
        table: DeTable<'t>,
        faults: &'f mut Faults,
    ) -> Self {
        let left = table.into_iter().map(|(key, value)| {
            let place = key.span().start;
            (key.into_inner().into_owned(), (place, value))
        });
        Self { faults, name, place, left: left.collect(), known: Vec::new(), missing: Vec::new() }
    }

    /// The value of `key` as it stands in the file, if it does.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Spanned<DeValue<'t>>> {
        self.known.push(key);
        self.left.remove(key).map(|(_, value)| value)
    }

    /// The checked value of `key`, or `default` if the file does not have it.
    pub(super) fn value<T>(
        &mut self,
        key: &'static str,
        default: T,
        check: impl FnOnce(&DeValue<'t>) -> Result<T, String>,
    ) -> T {
        let Some(value) = self.take(key) else { return default };
        self.checked(key, &value, check).unwrap_or(default)
    }

    /// The checked value of `key`, which has no default.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        example: &str,
        check: impl FnOnce(&DeValue<'t>) -> Result<T, String>,
    ) -> Option<T> {
        let Some(value) = self.take(key) else {
            self.missing.push((key, format!("{key} = \"{example}\"")));
            return None;
        };
        self.checked(key, &value, check)
    }

    fn checked<T>(
        &mut self,
        key: &'static str,
        value: &Spanned<DeValue<'t>>,
        check: impl FnOnce(&DeValue<'t>) -> Result<T, String>,
    ) -> Option<T> {
        check(value.get_ref()).map_err(|problem| self.note(key, value.span().start, problem)).ok()
    }

    /// What `read` makes of the section `key` of this one; of an empty one if there is none.
    pub(super) fn section<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Section<'_, 't>) -> T,
    ) -> T {
        let (place, table) = match self.take(key) {
            None => (0, DeTable::new()),
            Some(value) => match (value.span().start, value.into_inner()) {
                (place, DeValue::Table(table)) => (place, table),
                (place, other) => {
                    let problem = format!(
                        "{} is not a section; use [{key}], once, with its keys on the lines below",
                        shown(&other)
                    );
                    self.note(key, place, problem);
                    (place, DeTable::new())
                }
            },
        };
        let mut section = Section::new(key, place, table, self.faults);
        let found = read(&mut section);
        section.end();
        found
    }

    /// Notes what is wrong with `key`.
    pub(super) fn note(&mut self, key: &str, place: usize, problem: String) {
        let dot = if self.name.is_empty() { "" } else { "." };
        let key = format!("{}{dot}{}", self.name, echoed::bare(key));
        self.faults.note(Fault { place, key, problem });
    }

    /// Where the faults of this section are noted.
    pub(super) fn faults(&mut self) -> &mut Faults {
        self.faults
    }

    /// Nothing more will be taken.
    pub(super) fn end(mut self) {
        let problem = format!("unknown key; use {}", self.known.join(", "));
        for (key, (place, _)) in std::mem::take(&mut self.left) {
            self.note(&key, place, problem.clone());
            // It may be a slip of the pen for one that is missing.
            self.missing.clear();
        }
        for (key, example) in std::mem::take(&mut self.missing) {
            self.note(key, self.place, format!("missing; add one such as {example}"));
        }
    }
}
