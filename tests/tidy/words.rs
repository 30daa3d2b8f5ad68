//! Words that the project no longer uses, each with the standard term that replaced it.
//!
//! Engineers look for a mechanism by its standard name. The glossary is in ARCHITECTURE.md; the lists
//! here keep older private words and phrases from coming back.

use std::fs;
use std::path::Path;

use crate::source::root;

/// A retired word or phrase, in lower case, and what to write instead.
const RETIRED: &[(&str, &str)] = &[
    ("adopted", "imported"),
    ("all places", "capacity"),
    ("anybody", "the noun"),
    ("as it comes", "unchanged"),
    ("aside", "spill, spilled"),
    ("at work on", "processing"),
    ("became due", "was scheduled"),
    ("behind with reading", "does not read fast enough"),
    ("bequeath", "export"),
    ("bequest", "transfer state"),
    ("cannot be meant", "invalid"),
    ("close_to_newcomers", "refuse_new_connections"),
    ("comes to", "the result of"),
    ("crowd", "many connections"),
    ("cure", "remedy"),
    ("deaf", "unresponsive"),
    ("died of", "failed with"),
    ("does not turn", "is stalled"),
    ("estate", "transfer"),
    ("for ever", "forever"),
    ("foretells", "calculates"),
    ("frozen", "quiescing"),
    ("garbled", "corrupted"),
    ("goes on", "continues"),
    ("graver", "more severe"),
    ("hand-over", "handover"),
    ("hasten", "request a completion"),
    ("hear_news", "handle_news"),
    ("heir", "the next process"),
    ("held back", "refused, delayed"),
    ("held up", "delayed, blocked"),
    ("hold up", "delay, block"),
    ("hold_back", "refuse_new"),
    ("holds up", "delays, blocks"),
    ("hung_up", "rdhup"),
    ("in the midst", "during"),
    ("inheritance", "handover"),
    ("is due", "is scheduled, has expired"),
    ("let in", "accepted, permitted"),
    ("let_come", "admit_new"),
    ("lets in", "accepts, permits"),
    ("melt", "merge"),
    ("mend", "correct, repair"),
    ("mended", "corrected, fixed"),
    ("newcomer", "new connection"),
    ("newcomers", "new connections"),
    ("nobody expects", "unexpected"),
    ("not there yet", "not supported yet"),
    ("one's", "the noun"),
    ("parked", "waiting for capacity"),
    ("patience", "timeout, deadline, time limit"),
    ("quiet_send", "skip-success send"),
    ("reckon", "calculate"),
    ("restless", "busy"),
    ("retune", "reconfigure"),
    ("say_goodbye", "log_final_counters"),
    ("short of memory", "out of memory"),
    ("sight", "admin (code), monitoring (manual)"),
    ("slip of the pen", "typing error"),
    ("so many", "the number"),
    ("somebody", "the noun"),
    ("sourcebook", "source limiter"),
    ("speaks nonsense", "sends invalid messages"),
    ("strayed", "of another connection"),
    ("succession", "handover"),
    ("tells of", "reports"),
    ("the house", "the project"),
    ("the process before", "the previous process"),
    ("those who", "the noun"),
    ("told apart", "distinguished"),
    ("turn its loop", "complete an iteration"),
    ("turned its loop", "completed an iteration"),
    ("turned their loop", "completed an iteration"),
    ("turns its loop", "completes an iteration"),
    ("under way", "in progress, in flight"),
    ("vault", "spill"),
    ("visitor", "client"),
    ("want of", "lack of"),
    ("who is refused", "a refused connection"),
    ("who may come", "which clients are permitted"),
    ("whoever", "the noun"),
    ("worried", "has_warned"),
    ("yardstick", "reference"),
];

/// Lines in which a retired word is plain English, or the name of something else.
const REVIEWED: &[&str] = &[
    // Of a process, by the cgroup freezer or a debugger.
    "(it is stopped, frozen or traced)",
    "stopped or frozen in the wrong instant",
    // The JSON member of a finding, as in 0.1.0.
    "\"cure\"",
    "`cure`",
    ".It Li cure",
    // A counter of the core.
    "stats.parked",
    // The mark in the file of the program, by which other versions recognise it.
    "reads hand-over states up to version",
    // A file of measurements.
    "crowds.json",
    "--works crowds",
    // The map of the code in ARCHITECTURE.md.
    "| `crates/",
    "| `src/",
    "| `tests/",
    "| `fuzz/",
];

/// What [`RETIRED`] applies to, besides the documents at the root. The changelog describes the past.
const PLACES: &[&str] =
    &[".ci", "src", "crates", "tests", "benches", "fuzz", "config", "packaging", "docs"];
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
        // Files that are not text are skipped.
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        faults.extend(retired(&name, &text));
    }
}

#[test]
fn retired_words_do_not_come_back() {
    let mut faults = Vec::new();
    for place in PLACES {
        let path = root().join(place);
        assert!(path.exists(), "{place} is not there");
        collect(&path, &mut faults);
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
    let reviewed = "a thread (it is stopped, frozen or traced) goes on";
    assert_eq!(retired("x", reviewed), [""; 0]);
    assert_eq!(retired("x", "Whoever comes is a newcomer.").len(), 2);
}
