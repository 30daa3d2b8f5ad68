//! Any configuration file is valid or refused in one clear line, and none makes the reader panic,
//! as that would end the running daemon and every connection.
//!
//! `ECHO_CONFIG_SECONDS=N` runs for longer; `fuzz/` does the same guided by coverage.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[path = "config/grammar.rs"]
mod grammar;
#[path = "config/judge.rs"]
mod judge;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use echo_uring::config::{self, Config, Overrides};
use grammar::Grammar;
use judge::{judge, judge_pair};

const SHIPPED: &str = include_str!("../config/echo-uring.toml");

/// splitmix64.
struct Prng(u64);

impl Prng {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((value ^ (value >> 31)) % bound as u64) as usize
    }
}

/// The file that a seed stands for.
fn generated(grammar: &Grammar, seed: u64) -> Vec<u8> {
    let mut prng = Prng(seed);
    grammar.file(&mut |bound| prng.below(bound))
}

/// Names the file with which the reader panicked, if it does.
struct Culprit<'a>(u64, &'a [u8]);

impl Drop for Culprit<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}:\n{}", self.0, String::from_utf8_lossy(self.1));
        }
    }
}

/// Goal: thousands of files, most of them damaged, have one of two outcomes. Method: the grammar,
/// with seeds in order, so that a failure names its seed and comes again.
#[test]
fn every_file_is_valid_or_refused_in_one_clear_line() {
    let seconds = std::env::var("ECHO_CONFIG_SECONDS").map_or(0, |text| text.parse().unwrap());
    let until = Instant::now() + Duration::from_secs(seconds);
    let grammar = Grammar::new();
    let (mut valid, mut refused) = (0_u64, 0_u64);
    for seed in 0.. {
        if seed >= 20_000 && Instant::now() >= until {
            break;
        }
        let bytes = generated(&grammar, seed);
        let culprit = Culprit(seed, &bytes);
        *if judge(&bytes).is_ok() { &mut valid } else { &mut refused } += 1;
        drop(culprit);
    }
    println!("{valid} files were valid, {refused} refused");
    assert!(valid > 1_000 && refused > 10_000, "{valid} valid, {refused} refused");
}

/// Goal: a drop-in only changes the keys that it sets, and neither file hides an error of the
/// other. Method: any two files of the grammar, most of them damaged; and pairs of valid, non-empty
/// ones.
#[test]
fn every_pair_of_files_is_what_the_later_one_makes_of_it() {
    let grammar = Grammar::new();
    let mut valid = Vec::new();
    let judge_both = |seed: u64, files: [&[u8]; 2]| {
        let culprits = files.map(|file| Culprit(seed, file));
        judge_pair(files[0], files[1]);
        drop(culprits);
    };
    let mut last = Vec::new();
    for seed in 0..20_000 {
        let file = generated(&grammar, seed);
        judge_both(seed, [&last, &file]);
        let meaning = Config::from_bytes(&file, Path::new("FILE"));
        if meaning.is_ok_and(|config| config != Config::default()) {
            valid.push((seed, file.clone()));
        }
        last = file;
    }
    assert!(valid.len() > 80, "{} valid files that say something", valid.len());
    for (index, (seed, file)) in valid.iter().enumerate() {
        for (_, other) in &valid[index + 1..] {
            judge_both(*seed, [file, other]);
            judge_both(*seed, [other, file]);
        }
    }
}

/// Goal: damage to a real file, bit by bit, in every place.
#[test]
fn no_flipped_bit_of_the_shipped_file_brings_it_down() {
    // Comments concern only the TOML reader.
    let lines =
        SHIPPED.lines().filter(|line| !line.starts_with('#')).map(|line| line.to_owned() + "\n");
    let text = lines.collect::<String>().into_bytes();
    for place in 0..text.len() {
        for bit in 0..8 {
            let mut bytes = text.clone();
            bytes[place] ^= 1 << bit;
            let _ = judge(&bytes);
        }
        let _ = judge(&text[..place]);
    }
}

/// Files that once made the daemon panic or were misread, with the words of their errors. They are
/// seeds of the fuzzer as well.
const CASES: &[(&str, &str, &[&str])] = &[
    (
        "access-allow-as-tables",
        "[[access.allow]]\n",
        &["FILE:1:1: access.allow: ", "use one such as \"10.0.0.0/8\""],
    ),
    (
        "access-deny-as-tables",
        "[access]\n[[access.deny]]\na = 1\n[[access.deny]]\n",
        &["FILE:2:1: access.deny: ", "use one such as \"10.0.0.0/8\""],
    ),
    (
        "sum-of-durations-overflows",
        "[timeouts]\nidle = \"18446744073709551615s 500ms 500ms\"\n",
        &[
            "FILE:2:8: timeouts.idle: ",
            "is out of range; use a duration from \"10ms\" to \"1year\"",
        ],
    ),
    ("section-by-position", "limits = [1]\n", &["FILE:1:10: limits: ", "; use [limits]"]),
    (
        "section-by-position-of-all-keys",
        "server = [4, 64, \"1ms\"]\n",
        &["FILE:1:10: server: ", "; use [server]"],
    ),
    (
        "section-as-tables",
        "\n[[limits]]\nmax-connections = 5\n",
        &["FILE:2:1: limits: ", "; use [limits]"],
    ),
    ("section-as-number", "timeouts = 5\n", &["FILE:1:12: timeouts: 5 is", "; use [timeouts]"]),
    (
        "listener-by-position",
        "listener = [[\"a\", \"[::1]:1\", \"echo\"]]\n",
        &["FILE:1:13: listener: ", "; use [[listener]]"],
    ),
    (
        "listener-as-section",
        "[listener]\nname = \"a\"\naddress = \"[::1]:1\"\n",
        &["FILE:1:1: listener: ", "; use [[listener]]"],
    ),
    (
        "network-with-leading-zero",
        "[access]\nallow = [\"010.0.0.0/8\"]\n",
        &["FILE:2:10: access.allow: \"010.0.0.0/8\" ", "; use \"10.0.0.0/8\""],
    ),
    (
        "prefix-with-leading-zero",
        "[access]\ndeny = [\"10.0.0.0/08\"]\n",
        &["FILE:2:9: access.deny: \"10.0.0.0/08\" ", "; use \"10.0.0.0/8\""],
    ),
    (
        "minute-or-month",
        "[timeouts]\nidle = \"1M\"\n",
        &["FILE:2:8: timeouts.idle: \"1M\" ", "; use \"1m\" ", "\"1month\""],
    ),
    ("duration-without-unit", "[timeouts]\nidle = \"30\"\n", &["\"30\" has no unit; use \"30s\""]),
    ("zero-without-unit", "[timeouts]\ndrain = \"0\"\n", &["\"0\" has no unit; use \"0s\""]),
    (
        "number-lost-in-a-duration",
        "[timeouts]\nidle = \"1 30m\"\n",
        &["\"1 30m\" has a number without a unit; use \"1s 30m\""],
    ),
    (
        "duration-finer-than-the-clock",
        "[timeouts]\nstall = \"10500us\"\n",
        &["\"10ms 500us\" has a fraction of a millisecond; use whole milliseconds"],
    ),
    (
        "user-timeout-finer-than-the-kernel",
        "[tcp]\nuser-timeout = \"1.0005s\"\n",
        &["\"1s 500us\" has a fraction of a millisecond; use whole milliseconds"],
    ),
    (
        "decimal-or-binary",
        "[limits]\nstalled-memory = \"64M\"\n",
        &["\"64M\" ", "; use \"64MiB\" ", "\"64MB\""],
    ),
    (
        "size-without-unit",
        "[limits]\nmax-bytes = \"512\"\n",
        &["\"512\" has no unit; use \"512B\""],
    ),
    (
        "fraction-of-a-byte",
        "[limits]\nmax-bytes = \"1.9B\"\n",
        &["\"1.9B\" is not a whole number of bytes; use \"1B\" or \"2B\""],
    ),
    (
        "fraction-that-does-not-come-out-even",
        "[tcp]\nsend-buffer = \"2.1KiB\"\n",
        &["\"2.1KiB\" is not a whole number of bytes; use \"2150B\" or \"2151B\""],
    ),
    (
        "path-of-two-lines",
        "[[listener]]\nname = \"a\"\naddress = \"unix:/run/a\\nb\"\n",
        &["FILE:3:11: listener.address: \"unix:/run/a\\nb\" "],
    ),
    (
        "key-of-another-section",
        "[timeouts]\nmax-connections = 5\n",
        &["FILE:2:1: timeouts.max-connections: ", "; did you mean max-connections in [limits]?"],
    ),
    (
        "section-of-another-name",
        "[listeners]\nname = \"a\"\n",
        &["FILE:1:2: listeners: ", "; did you mean [[listener]]?"],
    ),
    (
        "errors-before-and-behind-broken-lines",
        "[log]\nlevel = 1\nthis is prose\nlevel = \"info\"\nand more\n",
        &["FILE:2:9: log.level: ", " (and 2 more: see echo-uring check)"],
    ),
    (
        "number-of-many-digits",
        "[limits]\nmax-connections = 99999999999999999999\n",
        &["out of range"],
    ),
];

#[test]
fn what_was_misread_is_refused_with_what_to_write() {
    for (name, text, words) in CASES {
        let line = judge(text.as_bytes()).expect_err(name);
        for word in *words {
            assert!(line.contains(word), "{name}: {word:?} is missing: {line}");
        }
    }
}

/// Goal: the examples of the manual, and files accepted so far because they are clear, stay valid.
#[test]
fn what_is_clear_stays_valid() {
    for (key, values) in [
        (
            "timeouts.idle",
            &[
                "10ms",
                "30s",
                "1m",
                "2h",
                "1h 30m",
                "7days",
                "1year",
                "1month",
                "2weeks",
                "1.5h",
                "1h30m",
                "90 min",
                "3600sec",
                "1day 12hours",
                "off",
                "500millis",
                "1w",
                "1y",
                "10000us",
                "2months",
                "31557600s",
            ][..],
        ),
        ("timeouts.drain", &["0s", "1h", "0ms"]),
        ("server.busy-poll", &["1us", "10ms", "200us", "1500ns", "1.5us", "200µs"]),
        (
            "limits.stalled-memory",
            &["64KiB", "1MiB", "100kB", "1MB", "1TiB", "64 MiB", "1.5MiB", "64Mi", "64mib"],
        ),
        ("limits.max-bytes", &["1B", "1b", "1TiB", "off", "1.5kB"]),
        ("tcp.keepalive", &["1s", "9h", "2m", "off"]),
        ("tcp.user-timeout", &["24days", "1s 1ms"]),
    ] {
        let (section, name) = key.split_once('.').unwrap();
        for value in values {
            let text = format!("[{section}]\n{name} = \"{value}\"\n");
            judge(text.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
        }
    }
    for text in [
        "listener = [{ name = 'a', address = '[::1]:1' }]\n",
        "limits = { max-connections = 5 }\n",
        "limits.max-connections = 5\ntimeouts.idle = 'off'\n",
        "[limits]\nmax-connections = 0x10\n",
    ] {
        judge(text.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Goal: an error is one readable line, however long or strange the quoted text. Method: for each
/// key and each position of a file, a very long word, and one that moves the cursor.
#[test]
fn what_an_error_echoes_is_short_and_harmless() {
    let long = "x".repeat(100_000);
    let odd = "\\n\\u001b[2J\\u0007\\u202e".repeat(1_000);
    for word in [long.as_str(), &odd] {
        let mut texts = vec![
            format!("\"{word}\" = 1\n"),
            format!("[\"{word}\"]\n"),
            format!("[limits]\n\"{word}\" = 1\n"),
            format!("[\"{word}\"]\n= 1\n"),
            format!("limits = \"{word}\"\n"),
            format!("listener = \"{word}\"\n"),
            format!("[[listener]]\nname = \"{word}\"\naddress = \"[::1]:1\"\n"),
            format!("[[listener]]\nname = \"a\"\naddress = \"{word}\"\n"),
            format!("[[listener]]\nname = \"a\"\naddress = \"unix:/{word}\"\n"),
            format!("[access]\nallow = [\"{word}\"]\n"),
            format!("[access]\nallow = [\"10.0.0.0/{word}\"]\n"),
        ];
        let printed = Config::default().to_toml();
        let mut section = "";
        for line in printed.lines() {
            match line.split_once(" = ") {
                Some((key, _)) if section != "[[listener]]" => {
                    texts.push(format!("{section}\n{key} = \"{word}\"\n"));
                    texts.push(format!("{section}\n{key} = [\"{word}\"]\n"));
                }
                Some(_) => {}
                None => section = line,
            }
        }
        for text in &texts {
            let line = judge(text.as_bytes()).expect_err("a word that means nothing");
            let runs = line.split(|character| character != 'x').map(str::len);
            assert!(runs.max() <= Some(80), "more than 80 characters are echoed: {line}");
            assert!(line.chars().count() <= 400, "{} characters: {line}", line.chars().count());
        }
    }
}

/// A number of a hundred thousand digits is refused as well.
#[test]
fn numbers_without_end_are_refused() {
    let digits = "9".repeat(100_000);
    for text in [
        format!("[limits]\nmax-connections = {digits}\n"),
        format!("[limits]\nmax-connections = {digits}.5\n"),
        format!("[limits]\nmax-bytes = \"{digits}B\"\n"),
        format!("[timeouts]\nidle = \"{digits}s\"\n"),
        format!("[timeouts]\nidle = \"0.{digits}s\"\n"),
    ] {
        let line = judge(text.as_bytes()).expect_err("too much");
        assert!(line.contains('\u{2026}'), "nothing shows that it was cut: {line}");
    }
}

/// Goal: the largest permitted file is checked within the service manager's timeout, and no nesting
/// exhausts the stack. Method: a mebibyte of each element that TOML can repeat.
#[test]
fn a_mebibyte_of_anything_is_judged_soon() {
    const LENGTH: usize = 1 << 20;
    let numbered = |form: fn(usize) -> String| {
        let mut text = String::new();
        for number in 0.. {
            if text.len() >= LENGTH {
                return text;
            }
            text += &form(number);
        }
        text
    };
    let filled = |part: &str| part.repeat(LENGTH / part.len());
    for text in [
        filled("["),
        filled("a=["),
        filled("{"),
        format!("a = {}", filled("{a=")),
        filled("a."),
        filled("a.") + "a = 1",
        format!("[{}a]", filled("a.")),
        format!("[[{}a]]", filled("a.")),
        filled("[a]\n"),
        filled("[[a]]\n"),
        filled("[[listener]]\n"),
        filled("[[access.allow]]\n"),
        filled("a = 1\n"),
        filled("\n"),
        filled("#"),
        filled("\""),
        filled("'"),
        filled("\\"),
        filled("\u{e4}"),
        format!("[access]\nallow = [{}]", filled("\"::1\", ")),
        format!("[access]\nallow = [{}]", filled("1,")),
        format!("[limits]\n{}", numbered(|number| format!("a{number} = 1\n"))),
        numbered(|number| format!("[a{number}]\n")),
        numbered(|number| format!("[a.b{number}]\n")),
        numbered(|number| format!("limits.a{number}.b = 1\n")),
        numbered(|number| {
            format!("[[listener]]\nname = \"n{number}\"\naddress = \"unix:/{number}\"\n")
        }),
    ] {
        let began = Instant::now();
        let _ = judge(text.as_bytes());
        let took = began.elapsed();
        println!("{took:?} for {:.20}", text.escape_debug().to_string());
        assert!(took < Duration::from_secs(20), "{took:?} for {:.60}", text);
    }
}

/// Goal: errors that quote the name of a file or the command line are also short and harmless.
#[test]
fn names_of_files_and_options_are_echoed_as_carefully() {
    let odd = format!("/none/{}\n\u{1b}[2J/file.toml", "x".repeat(3_000));
    let listen = |text: &str| Overrides { listen: vec![text.to_owned()], ..Overrides::default() };
    let overrides = Overrides::default();
    let empty = Path::new("/dev/null");
    for (path, overrides) in [(Path::new(&odd), &overrides), (empty, &listen(&odd))] {
        let line = config::load(Some(path), overrides).expect_err("no such file").to_string();
        assert!(line.len() <= 1024 && !line.contains(char::is_control), "{line:?}");
    }
    // The end of a path is the most useful part.
    let line = config::load(Some(Path::new(&odd)), &overrides).expect_err("no such file");
    assert!(line.to_string().contains("/file.toml: "), "{line}");
    let unequal = Config::from_bytes(b"a", Path::new(&odd)).expect_err("no key");
    let line = unequal.to_string();
    assert!(line.len() <= 1024 && !line.contains(char::is_control), "{line:?}");
}

/// Goal: the reported line is the first wrong one, wherever the reader starts.
#[test]
fn the_first_wrong_line_is_reported() {
    let text = "[log]\nlevel = 1\n[server]\nworkers = 0\nnone = 1\n";
    for (corrected, expected) in [
        ("", "FILE:2:9: log.level: "),
        ("level = 1", "FILE:4:11: server.workers: "),
        ("level = 1\n[server]\nworkers = 0", "FILE:3:1: log.none: "),
    ] {
        let text = if corrected.is_empty() { text.to_owned() } else { text.replace(corrected, "") };
        let line = judge(text.as_bytes()).expect_err("wrong");
        assert!(line.starts_with(expected), "{line}");
    }
}

fn seeds() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/config")
}

/// Goal: the fuzzer begins with interesting inputs. Method: its seeds are the cases above;
/// `ECHO_WRITE=1 cargo test --test config_fuzz` writes them again. Findings of the fuzzer are put
/// in the same directory with their own names, and are replayed here as well.
#[test]
fn the_seeds_of_the_fuzzer_are_judged() {
    for (name, text, _) in CASES {
        let path = seeds().join(name);
        if std::env::var_os("ECHO_WRITE").is_some() {
            fs::write(&path, text).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), *text, "{}: see this test", path.display());
    }
    for entry in fs::read_dir(seeds()).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        let culprit = Culprit(0, &bytes);
        let _ = judge(&bytes);
        drop(culprit);
    }
}
