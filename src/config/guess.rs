//! Suggestions for an unknown key or section: the known name that is nearest to it.

use super::keys::{SECTIONS, Section};

/// A longer word is not a typing error.
const LENGTH_MAX: usize = 40;

/// The problem and the remedy for `name`, which is not a key of `section`, or neither a key nor a
/// section at the top of the file.
pub(super) fn unknown(name: &str, section: Option<&Section>) -> String {
    let what = if section.is_some() { "unknown key" } else { "unknown section" };
    match meant(name, section) {
        Some(meant) => format!("{what}; did you mean {meant}?"),
        None => format!("{what}; use {}", known(section).join(", ")),
    }
}

/// The known names.
fn known(section: Option<&Section>) -> Vec<String> {
    match section {
        Some(section) => section.keys.iter().map(|key| key.name.to_owned()).collect(),
        None => SECTIONS.iter().map(Section::header).collect(),
    }
}

fn meant(name: &str, own: Option<&Section>) -> Option<String> {
    if name.chars().count() > LENGTH_MAX {
        return None;
    }
    let name = name.to_ascii_lowercase().into_bytes();
    // The best name so far, with its rank: the lowest wins. Of two equally near names, a key of the
    // same section is better.
    let mut best: Option<(usize, String)> = None;
    let mut consider = |known: &str, foreign: usize, said: &dyn Fn() -> String| {
        let allowed = (known.len() / 3).max(1);
        let Some(distance) = distance(&name, known.as_bytes(), allowed) else { return };
        let rank = 2 * distance + foreign;
        if best.as_ref().is_none_or(|(least, _)| rank < *least) {
            best = Some((rank, said()));
        }
    };
    for section in &SECTIONS {
        if own.is_none() {
            consider(section.name, 0, &|| section.header());
        }
        let is_own = own.is_some_and(|own| own.name == section.name);
        for key in section.keys {
            consider(key.name, usize::from(!is_own), &|| match is_own {
                true => key.name.to_owned(),
                false => format!("{} in {}", key.name, section.header()),
            });
        }
    }
    best.map(|(_, said)| said)
}

/// How many letters must be added, dropped, changed or swapped with the next one to turn one word
/// into the other, if that is at most `allowed` (optimal string alignment distance).
fn distance(one: &[u8], two: &[u8], allowed: usize) -> Option<usize> {
    if one.len().abs_diff(two.len()) > allowed {
        return None;
    }
    // Rows of the table for the letter before the previous, the previous, and this one.
    let mut before = vec![0; two.len() + 1];
    let mut last: Vec<usize> = (0..=two.len()).collect();
    for row in 1..=one.len() {
        let mut this = vec![row; two.len() + 1];
        for column in 1..=two.len() {
            let differs = usize::from(one[row - 1] != two[column - 1]);
            let changed = last[column - 1] + differs;
            this[column] = changed.min(last[column] + 1).min(this[column - 1] + 1);
            let swapped = row > 1
                && column > 1
                && one[row - 1] == two[column - 2]
                && one[row - 2] == two[column - 1];
            if swapped {
                this[column] = this[column].min(before[column - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, this);
    }
    Some(last[two.len()]).filter(|distance| *distance <= allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_between_words_are_counted() {
        for (one, two, expected) in [
            ("", "", Some(0)),
            ("idle", "idle", Some(0)),
            ("idel", "idle", Some(1)),
            ("idl", "idle", Some(1)),
            ("idlee", "idle", Some(1)),
            ("iqle", "idle", Some(1)),
            ("dile", "idle", Some(1)),
            ("", "ab", Some(2)),
            ("abcd", "wxyz", None),
        ] {
            assert_eq!(distance(one.as_bytes(), two.as_bytes(), 2), expected, "{one} {two}");
        }
    }
}
