//! The types of keys: permitted values, their spelling, and the errors for invalid values.
//!
//! Every error is a phrase of the form `PROBLEM; REMEDY`. Nothing here knows a key or a file.

use std::time::Duration;

use log::LevelFilter;
use toml::Spanned;
use toml::de::{DeArray, DeValue};

use super::quantity::{Fault, duration, size};
use super::{Address, Kind, ListeningSockets, LogTarget, Network, Workers, echoed};

/// Long enough for any word, short enough for a log line.
const NAME_LENGTH_MAX: usize = 64;

const TARGETS: [(&str, LogTarget); 3] =
    [("auto", LogTarget::Auto), ("syslog", LogTarget::Syslog), ("stderr", LogTarget::Stderr)];
pub(super) const LOG_TARGETS: [&str; 3] = words(&TARGETS);
const SOCKETS: [(&str, ListeningSockets); 3] = [
    ("auto", ListeningSockets::Auto),
    ("shared", ListeningSockets::Shared),
    ("per-worker", ListeningSockets::PerWorker),
];
pub(super) const LISTENING_SOCKETS: [&str; 3] = words(&SOCKETS);
pub(super) const LOG_LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
pub(super) const KINDS: [&str; 5] = words(&Kind::ALL);
/// No host is named.
pub(super) const NO_HOST: &str = "off";
/// Without a header, and with one.
pub(super) const PROXY_PROTOCOL: [&str; 2] = ["off", "require"];

const fn words<T, const N: usize>(pairs: &[(&'static str, T); N]) -> [&'static str; N] {
    let mut words = [""; N];
    let mut index = 0;
    while index < N {
        words[index] = pairs[index].0;
        index += 1;
    }
    words
}

/// What a key may hold.
#[derive(Clone, Copy, Debug)]
pub enum Type {
    /// A whole number between these two.
    Number(u64, u64),
    /// Such a number that is a power of two.
    PowerOfTwo(u64, u64),
    /// A duration between the first two, and a multiple of the third.
    Time(Duration, Duration, Duration),
    /// A number of bytes between these two.
    Size(u64, u64),
    /// True or false.
    Flag,
    /// One of these.
    Word(&'static [&'static str]),
    /// A list of networks.
    Networks,
    /// A list of ports.
    Ports,
    /// The name of a listener.
    Name,
    /// The address of a listener.
    Address,
    /// A value of this type, or this word for none: "off", or "auto".
    Or(&'static Type, &'static str),
}

/// The value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// The meaning of the word of the type.
    None,
    /// A number, or bytes.
    Number(u64),
    Duration(Duration),
    Flag(bool),
    Word(&'static str),
    Networks(Vec<Network>),
    Ports(Vec<u16>),
    Name(String),
    Address(Address),
}

impl Type {
    /// The permitted values, for a message with `use …`.
    #[must_use]
    pub fn allowed(self) -> String {
        let time = |duration| humantime::format_duration(duration);
        match self {
            Self::Number(least, most) | Self::PowerOfTwo(least, most) => {
                format!("a number from {least} to {most}")
            }
            Self::Time(least, most, _) => {
                format!("a duration from \"{}\" to \"{}\"", time(least), time(most))
            }
            Self::Size(least, most) => {
                format!("a size from \"{}\" to \"{}\"", exact_size(least), exact_size(most))
            }
            Self::Flag => "true or false".to_owned(),
            Self::Word(words) => {
                words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
            }
            Self::Networks => "one such as [\"10.0.0.0/8\", \"::1\"]".to_owned(),
            Self::Ports => "one such as [7, 53]".to_owned(),
            Self::Name => format!("1 to {NAME_LENGTH_MAX} of the characters A-Z a-z 0-9 - _ ."),
            Self::Address => "one such as \"127.0.0.1:7777\"".to_owned(),
            Self::Or(main, word) => format!("{} or \"{word}\"", main.allowed()),
        }
    }

    /// The same as a sentence of the manual. Empty if the text of the key contains it.
    #[must_use]
    pub fn sentence(self) -> String {
        let allowed = self.allowed();
        let main = if let Self::Or(main, _) = self { *main } else { self };
        match main {
            Self::Flag => format!("Either {allowed}."),
            Self::Word(_) => format!("One of {allowed}."),
            Self::Networks => format!("A list, {allowed}.").replace(", one", ""),
            Self::Ports => "A list of numbers from 1 to 65535.".to_owned(),
            Self::PowerOfTwo(..) => format!("A{}, which is a power of two.", &allowed[1..]),
            Self::Time(_, _, unit) if unit.as_secs() > 0 => {
                format!("A{}, in whole seconds.", &allowed[1..])
            }
            Self::Number(..) | Self::Time(..) | Self::Size(..) => format!("A{}.", &allowed[1..]),
            Self::Name | Self::Address | Self::Or(..) => String::new(),
        }
    }

    /// The value in a file.
    ///
    /// # Errors
    /// The problems, each with its place in the file.
    pub(super) fn read(self, value: &Spanned<DeValue<'_>>) -> Result<Value, Vec<(usize, String)>> {
        if let (Self::Networks, DeValue::Array(entries)) = (self, value.get_ref()) {
            return network_list(entries);
        }
        if let (Self::Ports, DeValue::Array(entries)) = (self, value.get_ref()) {
            return port_list(entries);
        }
        let refuse =
            |what: &str| Err(format!("{} {what}; use {}", shown(value.get_ref()), self.allowed()));
        let read = self.single(value.get_ref(), &refuse);
        read.map_err(|problem| vec![(value.span().start, problem)])
    }

    /// The same for a value that is not a list. `refuse` turns a problem into an error with its
    /// remedy.
    fn single(
        self,
        value: &DeValue<'_>,
        refuse: &dyn Fn(&str) -> Result<Value, String>,
    ) -> Result<Value, String> {
        let text = value.as_str();
        let quantity = |fault, what| match fault {
            Fault::Shape => refuse(what),
            Fault::Meaning(problem) => Err(format!("{} {problem}", shown(value))),
        };
        match self {
            Self::Or(_, word) if text == Some(word) => Ok(Value::None),
            Self::Or(main, _) => main.single(value, refuse),
            Self::Number(least, most) | Self::PowerOfTwo(least, most) => {
                let Some(number) = value.as_integer() else {
                    return refuse("is not a whole number");
                };
                // Numbers may have any length: one that does not fit is out of every range.
                let number = i64::from_str_radix(number.as_str(), number.radix()).ok();
                let number = number.and_then(|number| u64::try_from(number).ok());
                match number.filter(|number| (least..=most).contains(number)) {
                    Some(number) => self.power_of_two(number),
                    None => refuse("is out of range"),
                }
            }
            Self::Time(least, most, unit) => match text.map_or(Err(Fault::Shape), duration) {
                Ok(time) if (least..=most).contains(&time) => whole(time, unit),
                Ok(_) => refuse("is out of range"),
                Err(fault) => quantity(fault, "is not a duration"),
            },
            Self::Size(least, most) => match text.map_or(Err(Fault::Shape), size) {
                Ok(bytes) if (least..=most).contains(&bytes) => Ok(Value::Number(bytes)),
                Ok(_) => refuse("is out of range"),
                Err(fault) => quantity(fault, "is not a size"),
            },
            Self::Flag => value
                .as_bool()
                .map_or_else(|| refuse("is neither true nor false"), |it| Ok(Value::Flag(it))),
            Self::Word(words) => match words.iter().find(|word| text == Some(**word)) {
                Some(word) => Ok(Value::Word(word)),
                None => refuse("is not known"),
            },
            Self::Networks | Self::Ports => refuse("is not a list"),
            Self::Name => match text.filter(|text| is_name(text)) {
                Some(text) => Ok(Value::Name(text.to_owned())),
                None => refuse("is not a name"),
            },
            Self::Address => match text {
                Some(text) => text.parse().map(Value::Address),
                None => refuse("is not text"),
            },
        }
    }

    fn power_of_two(self, number: u64) -> Result<Value, String> {
        if matches!(self, Self::Number(..)) || number.is_power_of_two() {
            return Ok(Value::Number(number));
        }
        let above = number.next_power_of_two();
        Err(format!("{number} is not a power of two; use {} or {above}", above / 2))
    }

    /// The spelling of `value` in a file.
    pub(super) fn spelled(self, value: &Value) -> String {
        match (value, self) {
            (Value::None, Self::Or(_, word)) => quoted(word),
            (Value::None, _) => unreachable!("{self:?} has no word for none"),
            (_, Self::Or(main, _)) => main.spelled(value),
            (Value::Number(bytes), Self::Size(..)) => quoted(&exact_size(*bytes)),
            (Value::Number(number), _) => number.to_string(),
            (Value::Duration(time), _) => quoted(&humantime::format_duration(*time).to_string()),
            (Value::Flag(flag), _) => flag.to_string(),
            (Value::Word(word), _) => quoted(word),
            (Value::Networks(list), _) => networks(list),
            (Value::Ports(list), _) => {
                let entries: Vec<_> = list.iter().map(u16::to_string).collect();
                format!("[{}]", entries.join(", "))
            }
            (Value::Name(name), _) => quoted(name),
            (Value::Address(address), _) => quoted(&address.to_string()),
        }
    }
}

/// The kernel counts some times in seconds and some in milliseconds; a value is never rounded
/// silently, because the operator would not notice.
fn whole(time: Duration, unit: Duration) -> Result<Value, String> {
    if time.as_nanos().is_multiple_of(unit.as_nanos()) {
        return Ok(Value::Duration(time));
    }
    let problem = match unit.as_secs() {
        0 => "has a fraction of a millisecond; use whole milliseconds",
        _ => "has a fraction; use whole seconds",
    };
    Err(format!("\"{}\" {problem}", humantime::format_duration(time)))
}

/// An invalid entry is reported with its own place.
fn network_list(entries: &DeArray<'_>) -> Result<Value, Vec<(usize, String)>> {
    let (mut networks, mut problems) = (Vec::with_capacity(entries.len()), Vec::new());
    for entry in entries {
        match entry.get_ref().as_str().map(str::parse) {
            Some(Ok(network)) => networks.push(network),
            Some(Err(problem)) => problems.push((entry.span().start, problem)),
            None => {
                let entry_shown = shown(entry.get_ref());
                let problem = format!("{entry_shown} is not text; use one such as \"10.0.0.0/8\"");
                problems.push((entry.span().start, problem));
            }
        }
    }
    if problems.is_empty() { Ok(Value::Networks(networks)) } else { Err(problems) }
}

/// The same for ports.
fn port_list(entries: &DeArray<'_>) -> Result<Value, Vec<(usize, String)>> {
    let (mut ports, mut problems) = (Vec::with_capacity(entries.len()), Vec::new());
    let port = Type::Number(1, u16::MAX.into());
    for entry in entries {
        match port.read(entry) {
            Ok(value) => ports.push(u16::of(value)),
            Err(problem) => problems.extend(problem),
        }
    }
    if problems.is_empty() { Ok(Value::Ports(ports)) } else { Err(problems) }
}

fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=NAME_LENGTH_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

/// A value as a message shows it: on one line, and short.
pub(super) fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => echoed::quoted(text),
        DeValue::Integer(number) => echoed::bare(&number.to_string()),
        DeValue::Float(number) => echoed::bare(number.as_str()),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a section".to_owned(),
    }
}

/// A list of networks as in a file.
pub(super) fn networks(list: &[Network]) -> String {
    let entries: Vec<_> = list.iter().map(|it| quoted(&it.to_string())).collect();
    format!("[{}]", entries.join(", "))
}

/// A string that is valid in TOML and in JSON.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = "\"".to_owned();
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            _ if character.is_control() => {
                quoted += &format!("\\u{:04x}", u32::from(character));
            }
            _ => quoted.push(character),
        }
    }
    quoted + "\""
}

/// In the largest unit that needs no fraction, because a rounded size would be read back as a
/// different value.
fn exact_size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.iter().find(|(shift, _)| bytes > 0 && bytes.trailing_zeros() >= *shift) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => format!("{bytes}B"),
    }
}

/// A field of `Config`, as a value and back.
pub(super) trait Field: Sized {
    /// The value of the field.
    fn value(&self) -> Value;
    /// The field for a value. Panics if the value is not of the type that the table has for this
    /// field.
    fn of(value: Value) -> Self;
}

/// A field that corresponds to one variant of [`Value`], with both conversions.
macro_rules! field {
    ($($type:ty: $it:ident => $value:expr, $pattern:pat => $field:expr;)*) => {
        $(impl Field for $type {
            fn value(&self) -> Value {
                let $it = self;
                $value
            }

            fn of(value: Value) -> Self {
                match value {
                    $pattern => $field,
                    other => unreachable!("{other:?} is of another type than its field"),
                }
            }
        })*
    };
}

const FITS: &str = "invariant: the range of a key fits its field";

field! {
    u8: it => Value::Number((*it).into()), Value::Number(number) => number.try_into().expect(FITS);
    u16: it => Value::Number((*it).into()), Value::Number(number) => number.try_into().expect(FITS);
    u32: it => Value::Number((*it).into()), Value::Number(number) => number.try_into().expect(FITS);
    u64: it => Value::Number(*it), Value::Number(number) => number;
    bool: it => Value::Flag(*it), Value::Flag(flag) => flag;
    Duration: it => Value::Duration(*it), Value::Duration(time) => time;
    String: it => Value::Name(it.clone()), Value::Name(name) => name;
    Vec<Network>: it => Value::Networks(it.clone()), Value::Networks(list) => list;
    Vec<u16>: it => Value::Ports(it.clone()), Value::Ports(list) => list;
    LogTarget: it => Value::Word(word_of(&TARGETS, *it)),
        Value::Word(word) => meaning(&TARGETS, word);
    ListeningSockets: it => Value::Word(word_of(&SOCKETS, *it)),
        Value::Word(word) => meaning(&SOCKETS, word);
    Kind: it => Value::Word(it.name()), Value::Word(word) => meaning(&Kind::ALL, word);
    LevelFilter: it => Value::Word(LOG_LEVELS
        .into_iter()
        .find(|word| word.eq_ignore_ascii_case(it.as_str()))
        .expect("invariant: every level has a word")),
        Value::Word(word) => word.parse().expect("invariant: every word is a level");
}

impl<T: Field> Field for Option<T> {
    fn value(&self) -> Value {
        self.as_ref().map_or(Value::None, Field::value)
    }

    fn of(value: Value) -> Self {
        if value == Value::None { None } else { Some(T::of(value)) }
    }
}

impl Field for Workers {
    fn value(&self) -> Value {
        match self {
            Self::Auto => Value::None,
            Self::Count(count) => count.value(),
        }
    }

    fn of(value: Value) -> Self {
        Option::of(value).map_or(Self::Auto, Self::Count)
    }
}

fn word_of<T: Copy + PartialEq>(words: &[(&'static str, T)], meant: T) -> &'static str {
    let found = words.iter().find(|(_, meaning)| *meaning == meant);
    found.expect("invariant: every meaning has a word").0
}

fn meaning<T: Copy>(words: &[(&'static str, T)], word: &str) -> T {
    let found = words.iter().find(|(known, _)| *known == word);
    found.expect("invariant: the type of the key has these words alone").1
}
