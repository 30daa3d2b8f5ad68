//! The text of files, which are read one after the other into one configuration.
//!
//! 1. Each file is read into a tree of TOML values, each with its place.
//! 2. Keys in the table of keys are checked and put into the configuration. A later file overwrites
//!    the keys that it contains, and replaces listeners by name.
//! 3. Errors are recorded, and reading continues: all errors are reported, in the order of the
//!    files.
//! 4. Errors of the configuration as a whole, such as two listeners at one address, are checked
//!    last.
//!
//! After a TOML syntax error the rest may be misread, so only the part before it is checked.

use std::collections::BTreeMap;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{SECTIONS, Section};
use super::value::{Field, PROXY_PROTOCOL, Value, shown};
use super::{
    Address, Config, ConfigError, Examined, Identity, Invalid, Kind, ListenerConfig, Network,
};
use super::{IDENTITY_HOST, IDENTITY_THEN_ECHO};
use super::{builtin_listeners, conflict, echoed, guess};

/// The name of the list of listeners. It is not a key in the table of keys.
const LISTENER: &str = "listener";
const LISTENERS_MAX: usize = 256;

/// A file that has been read.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) file: PathBuf,
    pub(super) bytes: Vec<u8>,
    pub(super) role: Role,
}

/// The role of a file in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The named file. If it has listeners, they replace the built-in ones.
    Main,
    /// A later one. Its listeners are added, or replace those of the same name; an empty list
    /// removes all earlier listeners.
    DropIn,
}

/// A place in the files: the file, and the byte in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    source: usize,
    byte: usize,
}

impl Place {
    /// `FILE:LINE:COLUMN`.
    pub(super) fn shown(self, sources: &[Source]) -> String {
        let Source { file, bytes, .. } = &sources[self.source];
        let (line, column) = position(bytes, self.byte);
        format!("{}:{line}:{column}", echoed::path(file))
    }
}

struct Fault {
    place: Place,
    key: String,
    problem: String,
}

/// The problems: the first [`Invalid::ERRORS_MAX`] faults, and how many there are.
#[derive(Default)]
struct Faults {
    first: Vec<Fault>,
    count: usize,
}

impl Faults {
    fn note(&mut self, place: Place, key: String, problem: String) {
        self.count += 1;
        self.first.push(Fault { place, key, problem });
        if self.first.len() > 2 * Invalid::ERRORS_MAX {
            self.shorten();
        }
    }

    fn shorten(&mut self) {
        self.first.sort_by_key(|fault| fault.place);
        self.first.truncate(Invalid::ERRORS_MAX);
    }

    fn into_invalid(mut self, sources: &[Source]) -> Invalid {
        self.shorten();
        let errors = self.first.into_iter().map(|Fault { place, key, problem }| {
            let Source { file, bytes, .. } = &sources[place.source];
            let (line, column) = position(bytes, place.byte);
            ConfigError::Content { file: file.clone(), line, column, key, problem }
        });
        Invalid { errors: errors.collect(), count: self.count }
    }
}

/// The line of the byte at `place`, and its character in that line, both counted from 1.
fn position(text: &[u8], place: usize) -> (usize, usize) {
    let before = &text[..place.min(text.len())];
    let line = before.iter().filter(|byte| **byte == b'\n').count();
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    // In UTF-8 every character has exactly one byte that is not a continuation byte.
    let column = before[start..].iter().filter(|byte| **byte & 0xc0 != 0x80).count();
    (1 + line, 1 + column)
}

/// The place where each key was set last, if a file has it.
pub(super) type Places = BTreeMap<&'static str, Place>;

/// The merged configuration, without warnings.
///
/// # Errors
/// All errors of the files.
pub(super) fn merge(sources: Vec<Source>) -> Result<Examined, Invalid> {
    let mut merged = Merged {
        config: Config::default(),
        places: Places::new(),
        listeners: Vec::new(),
        faults: Faults::default(),
    };
    let builtin = builtin_listeners().into_iter();
    // Before the first byte of any file.
    let nowhere = Place { source: 0, byte: 0 };
    merged.listeners.extend(builtin.map(|config| Entry { config, place: nowhere }));
    for (source, Source { bytes, role, .. }) in sources.iter().enumerate() {
        Reader { source, role: *role, end: usize::MAX, merged: &mut merged }.text(bytes);
    }
    merged.judge_listeners();
    if merged.faults.count > 0 {
        return Err(merged.faults.into_invalid(&sources));
    }
    let Merged { mut config, places, listeners, .. } = merged;
    let listeners = listeners.into_iter().map(|Entry { config, place }| (config, place));
    let (found, listeners) = listeners.unzip();
    config.listeners = found;
    Ok(Examined { config, warnings: Vec::new(), sources, places, listeners })
}

/// An error for each of `listeners` that has neither an address nor a name among `names`.
pub(super) fn unnamed<'a>(
    listeners: impl Iterator<Item = (&'a ListenerConfig, &'a Place)>,
    names: &[String],
    sources: &[Source],
) -> Result<(), Invalid> {
    let mut faults = Faults::default();
    for (ListenerConfig { name, .. }, place) in
        listeners.filter(|(it, _)| it.address.is_none() && !names.contains(&it.name))
    {
        let problem = format!(
            "no socket of the name \"{name}\" was passed; add an address, or \
             FileDescriptorName={name} to a socket unit of this service"
        );
        faults.note(*place, LISTENER.to_owned(), problem);
    }
    if faults.count > 0 { Err(faults.into_invalid(sources)) } else { Ok(()) }
}

/// A listener, and the place of its address, or of its section if it has no address.
struct Entry {
    config: ListenerConfig,
    place: Place,
}

struct Merged {
    config: Config,
    places: Places,
    /// At most one more than permitted.
    listeners: Vec<Entry>,
    faults: Faults,
}

impl Merged {
    /// Checks all listeners together. Their number is not checked if there are other errors.
    fn judge_listeners(&mut self) {
        let Some(&place) = self.places.get(LISTENER) else { return };
        self.places.remove(LISTENER);
        let mut earlier: Vec<&ListenerConfig> = Vec::new();
        let mut in_order: Vec<&Entry> = self.listeners.iter().collect();
        in_order.sort_by_key(|entry| entry.place);
        for Entry { config, place } in in_order {
            let address = config.address.as_ref();
            let problem = address.and_then(|address| conflict(&earlier, address));
            if let Some(problem) = problem {
                self.faults.note(*place, "listener.address".to_owned(), problem);
            }
            earlier.push(config);
        }
        let problem = if self.faults.count > 0 {
            return;
        } else if self.listeners.len() > LISTENERS_MAX {
            format!(
                "more than {LISTENERS_MAX} listeners in all files; list {LISTENERS_MAX} at most"
            )
        } else if self.listeners.iter().all(|entry| entry.config.kind.is_monitoring()) {
            "no listener of kind \"echo\" or \"identity\"; add one, for example with name = \
             \"echo\" and address = \"[::1]:7777\""
                .to_owned()
        } else {
            return;
        };
        self.faults.note(place, LISTENER.to_owned(), problem);
    }
}

/// The problem of a list of `count` listeners: none, or too many.
fn wrong_count(count: usize) -> String {
    match count {
        0 => format!(
            "an empty list; list 1 to {LISTENERS_MAX} listeners, or omit [[listener]] for the \
             built-in two"
        ),
        _ => format!("{count} listeners; list {LISTENERS_MAX} at most"),
    }
}

/// One file that is being read.
struct Reader<'m> {
    source: usize,
    role: Role,
    /// The place of its first TOML syntax error.
    end: usize,
    merged: &'m mut Merged,
}

type Table<'t> = DeTable<'t>;
type Spot<'t> = Spanned<DeValue<'t>>;

impl Reader<'_> {
    fn place(&self, byte: usize) -> Place {
        Place { source: self.source, byte }
    }

    /// Records a problem of a key of `section`, or of the section itself.
    fn note(&mut self, byte: usize, section: &str, key: &str, problem: String) {
        if byte < self.end {
            let dot = if section.is_empty() || key.is_empty() { "" } else { "." };
            let key = format!("{section}{dot}{}", echoed::bare(key));
            self.merged.faults.note(self.place(byte), key, problem);
        }
    }

    fn text(&mut self, bytes: &[u8]) {
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let problem = "not UTF-8 text; save the file as UTF-8".to_owned();
                return self.note(error.valid_up_to(), "", "", problem);
            }
        };
        let (table, errors) = DeTable::parse_recoverable(text);
        self.broken(text, errors);
        for (name, value) in table.into_inner() {
            let byte = name.span().start;
            match SECTIONS.iter().find(|section| section.name == name.get_ref()) {
                None => self.note(byte, "", name.get_ref(), guess::unknown(name.get_ref(), None)),
                Some(section) if section.is_list() => self.listeners(section, value),
                Some(section) => self.section(section, value),
            }
        }
    }

    /// Records TOML syntax errors, one per line: later errors in a line are mostly consequences.
    fn broken(&mut self, text: &str, errors: Vec<toml::de::Error>) {
        let byte_of = |error: &toml::de::Error| error.span().map_or(0, |span| span.start);
        let mut errors: Vec<_> = errors.iter().map(|error| (byte_of(error), error)).collect();
        errors.sort_by_key(|(byte, _)| *byte);
        let mut last = None;
        for (byte, error) in &errors {
            let same_line = |last| text.get(last..*byte).is_some_and(|it| !it.contains('\n'));
            if !last.is_some_and(same_line) {
                let problem =
                    format!("{}; see echo-uring.toml(5)", echoed::bare(error.message().trim()));
                // Finding the header is a scan, and errors beyond `ERRORS_MAX` are not printed.
                let few = self.merged.faults.count < Invalid::ERRORS_MAX;
                let header = if few { header_before(text, *byte) } else { "" };
                self.note(*byte, "", header, problem);
            }
            last = Some(*byte);
        }
        self.end = errors.first().map_or(usize::MAX, |(byte, _)| *byte);
    }

    fn section(&mut self, section: &Section, value: Spot<'_>) {
        let byte = value.span().start;
        let table = match value.into_inner() {
            DeValue::Table(table) => table,
            other => {
                let (other, header) = (shown(&other), section.header());
                let problem = format!(
                    "{other} is not a section; use {header}, once, with its keys on the lines below"
                );
                return self.note(byte, section.name, "", problem);
            }
        };
        for (name, value) in table {
            let Some(key) = section.keys.iter().find(|key| key.name == name.get_ref()) else {
                self.unknown(section, name.get_ref(), name.span().start);
                continue;
            };
            match (key.holds.read(&value), &key.cell) {
                (Ok(value), Some(cell)) => {
                    (cell.set)(&mut self.merged.config, value);
                    let place = self.place(name.span().start);
                    self.merged.places.insert(key.path, place);
                }
                (Ok(_), None) => unreachable!("a key of a listener in {}", section.name),
                (Err(problems), _) => self.wrong(section, key.name, problems),
            }
        }
    }

    fn unknown(&mut self, section: &Section, name: &str, byte: usize) {
        self.note(byte, section.name, name, guess::unknown(name, Some(section)));
    }

    fn wrong(&mut self, section: &Section, key: &str, problems: Vec<(usize, String)>) {
        for (byte, problem) in problems {
            self.note(byte, section.name, key, problem);
        }
    }

    fn listeners(&mut self, section: &Section, list: Spot<'_>) {
        let byte = list.span().start;
        let not_sections = |other: &DeValue<'_>| match other {
            DeValue::Table(_) => "[listener] is one section; use [[listener]], with two brackets, \
                                  for each listener"
                .to_owned(),
            other => format!(
                "{} is not a list of sections; use [[listener]] for each, with its keys below",
                shown(other)
            ),
        };
        let entries = match list.into_inner() {
            DeValue::Array(entries) => entries,
            other => return self.note(byte, LISTENER, "", not_sections(&other)),
        };
        if entries.is_empty() && self.role == Role::Main || entries.len() > LISTENERS_MAX {
            return self.note(byte, LISTENER, "", wrong_count(entries.len()));
        }
        if entries.is_empty() || self.role == Role::Main {
            self.merged.listeners.clear();
        }
        let place = self.place(byte);
        self.merged.places.insert(LISTENER, place);
        let mut names = Vec::new();
        for entry in entries {
            match (entry.span().start, entry.into_inner()) {
                (byte, DeValue::Table(table)) => {
                    let found = self.listener(section, byte, table, &mut names);
                    found.into_iter().for_each(|entry| self.put(entry));
                }
                (byte, other) => self.note(byte, LISTENER, "", not_sections(&other)),
            }
        }
    }

    /// One listener, unless it has an error. `names` are those of this file.
    fn listener(
        &mut self,
        section: &Section,
        byte: usize,
        table: Table<'_>,
        names: &mut Vec<String>,
    ) -> Option<Entry> {
        let before = self.merged.faults.count;
        let (mut name, mut address, mut kind) = (None, None, None);
        let (mut proxies, mut identity) = (Proxies::default(), Identity::default());
        let mut place = self.place(byte);
        for (key, value) in table {
            let Some(known) = section.keys.iter().find(|it| it.name == key.get_ref()) else {
                self.unknown(section, key.get_ref(), key.span().start);
                continue;
            };
            match known.holds.read(&value) {
                Ok(value) if known.name == IDENTITY_HOST => identity.host = Option::of(value),
                Ok(Value::Flag(flag)) => identity.then_echo = flag,
                Ok(Value::Name(text)) if names.contains(&text) => {
                    let problem = format!(
                        "{} is the name of two listeners; rename one",
                        echoed::quoted(&text)
                    );
                    self.note(value.span().start, section.name, known.name, problem);
                }
                Ok(Value::Name(text)) => name = Some(text),
                Ok(Value::Address(found)) => {
                    address = Some(found);
                    place = self.place(value.span().start);
                }
                Ok(Value::Networks(networks)) => proxies.trusted = Some(networks),
                Ok(Value::Word(word)) if PROXY_PROTOCOL.contains(&word) => {
                    proxies.required = word == PROXY_PROTOCOL[1];
                }
                Ok(value) => kind = Some(Kind::of(value)),
                Err(problems) => self.wrong(section, known.name, problems),
            }
        }
        // The listener with the error may be the one with this name.
        if self.merged.faults.count > before {
            return None;
        }
        let Some(name) = name else {
            let problem = "missing; add one such as name = \"lan\"".to_owned();
            self.note(byte, section.name, "name", problem);
            return None;
        };
        names.push(name.clone());
        let usual = || if address.is_some() { Kind::Echo } else { Kind::of_name(&name) };
        let kind = kind.unwrap_or_else(usual);
        if let Some(problem) = unserved(kind, address.as_ref()) {
            self.note(byte, section.name, "kind", problem);
            return None;
        }
        let judged = judge_identity(&identity, kind, address.as_ref());
        let proxies = match judged.and_then(|()| proxies.judge(kind, address.as_ref())) {
            Ok(proxies) => proxies,
            Err((key, problem)) => {
                self.note(byte, section.name, key, problem.to_owned());
                return None;
            }
        };
        let builtin_default = true;
        let mut config = ListenerConfig { name, address, kind, proxies, identity, builtin_default };
        config.builtin_default = builtin_listeners().contains(&config);
        Some(Entry { config, place })
    }

    /// Replaces the listener of the same name, or adds one. Beyond the maximum only one is added,
    /// which shows that there are too many.
    fn put(&mut self, entry: Entry) {
        let listeners = &mut self.merged.listeners;
        match listeners.iter().position(|other| other.config.name == entry.config.name) {
            Some(index) => listeners[index] = entry,
            None if listeners.len() > LISTENERS_MAX => {}
            None => listeners.push(entry),
        }
    }
}

/// Why this kind cannot be served at this address, if so.
fn unserved(kind: Kind, address: Option<&Address>) -> Option<String> {
    let streams = address.is_none_or(Address::is_stream);
    (kind.is_monitoring() && !streams).then(|| {
        let name = kind.name();
        format!("\"{name}\" is served over streams only; use a TCP address or \"unix:\"")
    })
}

/// Whether what a listener says of its identity has an effect.
///
/// # Errors
/// What has none: the key and the problem.
fn judge_identity(
    identity: &Identity,
    kind: Kind,
    address: Option<&Address>,
) -> Result<(), (&'static str, &'static str)> {
    let problem = "of no effect; add kind = \"identity\", or remove it";
    match (kind, identity) {
        (Kind::Identity, Identity { then_echo: true, .. })
            if address.is_some_and(Address::is_datagram) =>
        {
            Err((IDENTITY_THEN_ECHO, "of no effect on datagrams; remove it"))
        }
        (Kind::Identity, _) => Ok(()),
        (_, Identity { host: Some(_), .. }) => Err((IDENTITY_HOST, problem)),
        (_, Identity { then_echo: true, .. }) => Err((IDENTITY_THEN_ECHO, problem)),
        (_, Identity { host: None, then_echo: false }) => Ok(()),
    }
}

/// The settings of a listener for proxies.
#[derive(Default)]
struct Proxies {
    required: bool,
    trusted: Option<Vec<Network>>,
}

impl Proxies {
    /// The proxies that are trusted, if the connections of the listener come from proxies.
    ///
    /// # Errors
    /// The key and the problem.
    fn judge(
        self,
        kind: Kind,
        address: Option<&Address>,
    ) -> Result<Option<Vec<Network>>, (&'static str, &'static str)> {
        const MODE: &str = "proxy-protocol";
        const TRUSTED: &str = "trusted-proxies";
        let is_unix = matches!(address, Some(Address::Unix(..)));
        let has_messages = is_unix && address.is_some_and(|address| !address.is_stream());
        match (self.required, self.trusted) {
            (false, None) => Ok(None),
            (false, Some(list)) if list.is_empty() => Ok(None),
            (false, Some(_)) => {
                let problem = "has no effect; add proxy-protocol = \"require\", or remove it";
                Err((TRUSTED, problem))
            }
            (true, _) if kind.is_monitoring() => {
                Err((MODE, "\"require\" is for an echo or an identity; use \"off\""))
            }
            (true, _) if has_messages => {
                Err((MODE, "\"require\" is not for Unix sockets with messages; use \"off\""))
            }
            (true, Some(list)) if list.is_empty() && !is_unix && address.is_some() => Err((
                TRUSTED,
                "empty, so that every connection is refused; name the proxies, as in \
                 [\"10.0.0.1\"]",
            )),
            (true, None) if !is_unix => Err((
                TRUSTED,
                "missing; name the proxies whose headers are believed, as in \
                 trusted-proxies = [\"10.0.0.1\"]",
            )),
            (true, trusted) => Ok(Some(trusted.unwrap_or_default())),
        }
    }
}

/// The name of the section that contains the byte at `place`: the last header before it.
fn header_before(text: &str, place: usize) -> &str {
    let before = text.get(..place).unwrap_or("");
    let header = before.lines().rev().find_map(|line| {
        let (name, rest) = line.trim().strip_prefix('[')?.split_once(']')?;
        (!rest.contains('=')).then(|| name.trim_start_matches('[').trim())
    });
    header.unwrap_or("")
}
