//! Words that the project no longer uses, each with the standard term that took its place.
//!
//! An engineer of the field finds a mechanism by the name that it has everywhere. ARCHITECTURE.md has
//! the glossary; this list keeps the older private words from coming back.

use std::fs;
use std::path::Path;

use crate::source::root;

/// A retired word or phrase, in lower case, and what to write instead.
const RETIRED: &[(&str, &str)] = &[
    ("adopted", "imported"),
    ("aside", "spill, spilled"),
    ("bequeath", "export"),
    ("bequest", "transfer state"),
    ("cannot be meant", "invalid"),
    ("estate", "transfer"),
    ("frozen", "quiescing"),
    ("graver", "more severe"),
    ("hasten", "request a completion"),
    ("heir", "the next process"),
    ("hung_up", "rdhup"),
    ("inheritance", "handover"),
    ("melt", "merge"),
    ("patience", "timeout, deadline, time limit"),
    ("quiet_send", "skip-success send"),
    ("retune", "reconfigure"),
    ("sight", "admin (code), monitoring (manual)"),
    ("sourcebook", "source limiter"),
    ("succession", "handover"),
    ("vault", "spill"),
    ("visitor", "client"),
];

/// Lines in which a retired word is plain English, or the name of something else.
const REVIEWED: &[&str] = &[
    // Of a process, by the cgroup freezer or a debugger.
    "(it is stopped, frozen or traced)",
    "stopped or frozen in the wrong instant",
];

/// Where words count: what people read or write here. The changelog tells of the past.
const PLACES: &[&str] =
    &["src", "crates", "tests", "benches", "fuzz", "config", "packaging", "docs"];
const SKIPPED: &[&str] = &["target", "words.rs", "CHANGELOG.md", "Cargo.lock"];

/// Retired words in a text, each with what to write instead.
fn retired(name: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if REVIEWED.iter().any(|reviewed| line.contains(reviewed)) {
            continue;
        }
        let line = line.to_lowercase();
        for (word, instead) in RETIRED {
            let is_whole = |(at, _): (usize, &str)| {
                let before = line[..at].chars().next_back();
                let after = line[at + word.len()..].chars().next();
                ![before, after].into_iter().flatten().any(char::is_alphabetic)
            };
            if line.match_indices(word).any(is_whole) {
                faults.push(format!("{name}:{number}: {word:?} is retired; write: {instead}"));
            }
        }
    }
    faults
}

fn collect(path: &Path, faults: &mut Vec<String>) {
    let name = path.file_name().unwrap().to_string_lossy();
    if SKIPPED.contains(&&*name) {
        return;
    }
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            collect(&entry.unwrap().path(), faults);
        }
    } else if let Ok(text) = fs::read_to_string(path) {
        // What is no text has no words.
        faults.extend(retired(&path.strip_prefix(root()).unwrap().display().to_string(), &text));
    }
}

#[test]
fn retired_words_do_not_come_back() {
    let mut faults = Vec::new();
    for place in PLACES {
        collect(&root().join(place), &mut faults);
    }
    for entry in fs::read_dir(root()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "md") {
            collect(&path, &mut faults);
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn a_retired_word_is_found() {
    for text in ["Bytes are set aside.", "fn set_aside() {}", "an Heir", "lines of it and graver"] {
        assert_eq!(retired("x", text).len(), 1, "{text}");
    }
    for text in ["their", "insight", "besides", "it is stopped, frozen or traced"] {
        let expected = usize::from(text.contains("frozen"));
        assert_eq!(retired("x", text).len(), expected, "{text}");
    }
    assert_eq!(retired("x", "a thread (it is stopped, frozen or traced) goes on"), [""; 0]);
}
