//! The differences between two configurations, key by key, and which of them can take effect at run
//! time.

use super::keys::{Effect, SECTIONS};
use super::value::Value;
use super::{Config, echoed};

/// A key whose value has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// As in `timeouts.idle`.
    pub key: &'static str,
    /// When it takes effect. Never [`Effect::AtSocketRestart`] if the next start is enough.
    pub effect: Effect,
}

/// The keys in which `after` differs from `before`, in the order of the file.
#[must_use]
pub fn changes(before: &Config, after: &Config) -> Vec<Change> {
    let mut list = Vec::new();
    for section in &SECTIONS {
        if section.is_list() && before.listeners != after.listeners {
            list.push(Change { key: section.name, effect: Effect::AtRestart });
        }
        for key in section.keys {
            let Some(cell) = &key.cell else { continue };
            let value = (cell.value)(after);
            if value != (cell.value)(before) {
                let sized = key.effect == Effect::AtSocketRestart && value != Value::None;
                let effect = if sized { Effect::AtRestart } else { key.effect };
                list.push(Change { key: key.path, effect });
            }
        }
    }
    list
}

/// The configuration in force after a process that was started with `before` has reloaded `wanted`:
/// the new values of keys for which a reload is enough, and the old values of the others.
#[must_use]
pub fn in_force(before: &Config, wanted: &Config) -> Config {
    let mut present = before.clone();
    let keys = SECTIONS.iter().flat_map(|section| section.keys);
    for cell in keys.filter(|key| key.effect == Effect::AtReload).filter_map(|it| it.cell.as_ref())
    {
        (cell.set)(&mut present, (cell.value)(wanted));
    }
    present
}

/// The value of `key`, as in `timeouts.idle`, in the form of the file. Truncated visibly if it has
/// more than 80 characters; none for a key that takes more than one line.
#[must_use]
pub fn spelled(config: &Config, key: &str) -> Option<String> {
    let key = SECTIONS.iter().flat_map(|section| section.keys).find(|it| it.path == key)?;
    key.spelled(config).map(|text| echoed::cut(&text))
}
