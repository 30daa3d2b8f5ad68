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
    ("aside", "spill, spilled"),
    ("bequeath", "export"),
    ("bequest", "transfer state"),
    ("became due", "was scheduled"),
    ("cannot be meant", "invalid"),
    ("close_to_newcomers", "refuse_new_connections"),
    ("does not turn", "is stalled"),
    ("estate", "transfer"),
    ("frozen", "quiescing"),
    ("garbled", "corrupted"),
    ("graver", "more severe"),
    ("hasten", "request a completion"),
    ("hear_news", "handle_news"),
    ("heir", "the next process"),
    ("hold_back", "refuse_new"),
    ("hung_up", "rdhup"),
    ("in the midst", "during"),
    ("inheritance", "handover"),
    ("let_come", "admit_new"),
    ("lets in", "accepts, permits"),
    ("melt", "merge"),
    ("not there yet", "not supported yet"),
    ("patience", "timeout, deadline, time limit"),
    ("quiet_send", "skip-success send"),
    ("retune", "reconfigure"),
    ("say_goodbye", "log_final_counters"),
    ("sight", "admin (code), monitoring (manual)"),
    ("sourcebook", "source limiter"),
    ("speaks nonsense", "sends invalid messages"),
    ("strayed", "of another connection"),
    ("succession", "handover"),
    ("turned their loop", "completed an iteration"),
    ("turns its loop", "completes an iteration"),
    ("vault", "spill"),
    ("visitor", "client"),
    ("who may come", "which clients are permitted"),
    ("worried", "has_warned"),
];

/// The same for the texts that users read and for the source files that were rewritten with them, see
/// [`DOCUMENTS`]. Other files still contain these words.
const RETIRED_IN_DOCUMENTS: &[(&str, &str)] = &[
    ("all places", "capacity"),
    ("anybody", "the noun"),
    ("as it comes", "unchanged"),
    ("at work on", "processing"),
    ("behind with reading", "does not read fast enough"),
    ("comes to", "the result of"),
    ("crowd", "many connections"),
    ("cure", "remedy"),
    ("deaf", "unresponsive"),
    ("died of", "failed with"),
    ("for ever", "forever"),
    ("foretells", "calculates"),
    ("goes on", "continues"),
    ("hand-over", "handover"),
    ("held back", "refused, delayed"),
    ("held up", "delayed, blocked"),
    ("hold up", "delay, block"),
    ("holds up", "delays, blocks"),
    ("is due", "is scheduled, has expired"),
    ("let in", "accepted, permitted"),
    ("mend", "correct, repair"),
    ("mended", "corrected, fixed"),
    ("newcomer", "new connection"),
    ("newcomers", "new connections"),
    ("nobody expects", "unexpected"),
    ("one's", "the noun"),
    ("parked", "waiting for capacity"),
    ("reckon", "calculate"),
    ("restless", "busy"),
    ("short of memory", "out of memory"),
    ("slip of the pen", "typing error"),
    ("so many", "the number"),
    ("somebody", "the noun"),
    ("tells of", "reports"),
    ("the house", "the project"),
    ("the process before", "the previous process"),
    ("those who", "the noun"),
    ("told apart", "distinguished"),
    ("turn its loop", "complete an iteration"),
    ("turned its loop", "completed an iteration"),
    ("under way", "in progress, in flight"),
    ("want of", "lack of"),
    ("who is refused", "a refused connection"),
    ("whoever", "the noun"),
    ("yardstick", "reference"),
];

/// What [`RETIRED_IN_DOCUMENTS`] applies to, besides the documents at the root. Other files are not
/// included yet.
const DOCUMENTS: &[&str] = &[
    ".ci",
    "benches",
    "config",
    "crates/echo-core",
    "crates/echo-load/src",
    "crates/echo-load/tests",
    "crates/echo-ring",
    "docs",
    "fuzz",
    "packaging/admin",
    "packaging/completions",
    "packaging/container",
    "packaging/deb",
    "packaging/echo-uring.service",
    "packaging/echo-uring.socket",
    "packaging/echo-uring@.service",
    "packaging/echo-uring@.socket",
    "packaging/examples",
    "packaging/grafana",
    "packaging/journal",
    "packaging/man/echo-load.1",
    "packaging/man/echo-uring.8",
    "packaging/man/echo-uring.toml.5",
    "packaging/prometheus",
    "packaging/rpm",
    "packaging/sysusers",
    "src/admin",
    "src/admin.rs",
    "src/capacity.rs",
    "src/cli.rs",
    "src/config",
    "src/config.rs",
    "src/daemon",
    "src/daemon.rs",
    "src/doctor",
    "src/doctor.rs",
    "src/handover.rs",
    "src/handover/format.rs",
    "src/handover/store.rs",
    "src/lib.rs",
    "src/listen",
    "src/listen.rs",
    "src/logging",
    "src/logging.rs",
    "src/main.rs",
    "src/metrics.rs",
    "src/rate_limiter.rs",
    "src/source_limiter.rs",
    "src/systemd",
    "src/systemd.rs",
    "src/worker.rs",
    "tests",
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
    &["src", "crates", "tests", "benches", "fuzz", "config", "packaging", "docs"];
const SKIPPED: &[&str] = &["target", "words.rs", "CHANGELOG.md", "Cargo.lock"];

type Words = [(&'static str, &'static str)];

/// Retired words in a text, each with what to write instead.
fn retired(words: &Words, name: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if REVIEWED.iter().any(|reviewed| line.contains(reviewed)) {
            continue;
        }
        let line = line.to_lowercase();
        for (word, instead) in words {
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

fn collect(words: &Words, path: &Path, faults: &mut Vec<String>) {
    let name = path.file_name().unwrap().to_string_lossy();
    if SKIPPED.contains(&&*name) {
        return;
    }
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            collect(words, &entry.unwrap().path(), faults);
        }
    } else if let Ok(text) = fs::read_to_string(path) {
        // Files that are not text are skipped.
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        faults.extend(retired(words, &name, &text));
    }
}

fn check(words: &Words, places: &[&str]) {
    let mut faults = Vec::new();
    for place in places {
        let path = root().join(place);
        assert!(path.exists(), "{place} is not there");
        collect(words, &path, &mut faults);
    }
    for entry in fs::read_dir(root()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "md") {
            collect(words, &path, &mut faults);
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn retired_words_do_not_come_back() {
    check(RETIRED, PLACES);
}

#[test]
fn documents_use_standard_terms() {
    check(RETIRED_IN_DOCUMENTS, DOCUMENTS);
}

#[test]
fn a_retired_word_is_found() {
    for text in ["Bytes are set aside.", "fn set_aside() {}", "an Heir", "lines of it and graver"] {
        assert_eq!(retired(RETIRED, "x", text).len(), 1, "{text}");
    }
    for text in ["their", "insight", "besides", "it is stopped, frozen or traced"] {
        let expected = usize::from(text.contains("frozen"));
        assert_eq!(retired(RETIRED, "x", text).len(), expected, "{text}");
    }
    let reviewed = "a thread (it is stopped, frozen or traced) goes on";
    assert_eq!(retired(RETIRED, "x", reviewed), [""; 0]);
    assert_eq!(retired(RETIRED_IN_DOCUMENTS, "x", "Whoever comes is a newcomer.").len(), 2);
}
