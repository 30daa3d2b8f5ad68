//! The shipped configuration and the key sections of its manual page, made from the table of keys
//! (`src/config/keys.rs`) and from what `check` prints of the defaults.

use echo_uring::config::{Config, Effect, Key, SECTIONS, Section};

use crate::{hold, read};

const SHIPPED: &str = "config/echo-uring.toml";
const PAGE: &str = "packaging/man/echo-uring.toml.5";

/// What stands in front of the shipped keys.
const HEAD: &str = "\
Configuration of echo-uring(8). Every key stands here at its default, so an empty or absent file \
means the same. Manual: echo-uring.toml(5).

Put your own settings not here but into files of their own, /etc/echo-uring.toml.d/*.toml: they are \
read after this file, in the order of their names, and what they say wins, key by key. Then an \
upgrade of the package never asks what to do with this file because a comment changed.

Check an edit with \"echo-uring check\", put it in force with \"systemctl reload echo-uring\", which \
drops no connection; keys that need a restart say so. Durations are written as \"10ms\", \"30s\", \
\"1m\", \"2h\"; sizes as \"64KiB\", \"1MiB\" (1024) or \"64kB\", \"1MB\" (1000).";

/// Lines of the page between which the keys stand.
const BEGIN: &str =
    ".\\\" From here to the end of the keys: made from src/config/keys.rs, see tests/generated.\n";
const END: &str = ".\\\" End of the keys.\n";

/// Characters of a line of the shipped file, and of the page.
const WIDTH: usize = 100;
const PAGE_WIDTH: usize = 80;

/// When a new value counts, as a sentence.
fn effect(effect: Effect) -> &'static str {
    match effect {
        Effect::AtReload => "",
        Effect::AtRestart => "Takes effect with a restart.",
        Effect::AtSocketRestart => {
            "Takes effect with a restart; a change back to \"auto\" with one of the socket unit as well, \
             where that holds the sockets."
        }
    }
}

/// The parts of a text that are not empty, as one.
fn joined(parts: &[&str]) -> String {
    let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    parts.join(" ")
}

/// Lines of at most `width` characters, each of which begins with `margin`.
fn filled(text: &str, margin: &str, width: usize) -> String {
    let (mut lines, mut line) = (String::new(), margin.trim_end().to_owned());
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let gap = if line == margin.trim_end() { &margin[line.len()..] } else { " " };
        if line.len() + gap.len() + word.len() > width && line != margin.trim_end() {
            lines += &format!("{line}\n");
            line = format!("{margin}{word}");
        } else {
            line = format!("{line}{gap}{word}");
        }
    }
    lines + &line + "\n"
}

fn comment(text: &str) -> String {
    text.split("\n\n").map(|it| filled(it, "# ", WIDTH)).collect::<Vec<_>>().join("#\n")
}

/// The shipped file: what `check` prints of the defaults, with the texts.
fn shipped() -> String {
    let mut text = comment(HEAD) + "\n";
    let mut section: Option<&Section> = None;
    let mut keys: Vec<&Key> = Vec::new();
    for line in Config::default().to_toml().lines() {
        if let Some((name, _)) = line.split_once(" = ") {
            // The second listener needs no further text.
            if let Some(at) = keys.iter().position(|key| key.name == name) {
                let key = keys.remove(at);
                // All keys of a listener take effect together, as its section says.
                let is_listed = section.is_some_and(Section::is_list);
                let effect = if is_listed { "" } else { effect(key.effect) };
                text += &comment(&joined(&[key.text, &key.holds.sentence(), effect]));
            }
        } else if line.starts_with('[') {
            let found = SECTIONS.iter().find(|section| section.header() == line).unwrap();
            if section.is_none_or(|section| section.name != found.name) {
                section = Some(found);
                keys = found.keys.iter().collect();
                if !found.text.is_empty() {
                    text += &comment(found.text);
                }
            }
        }
        text += &format!("{line}\n");
    }
    text
}

/// How the page marks a word that is the name of something; nothing for plain text.
fn mark(word: &str) -> Option<String> {
    let is_path = word.starts_with('/') && word[1..].starts_with(char::is_alphabetic);
    let is_name =
        |text: &str| text.chars().all(|it| it.is_ascii_alphanumeric() || "-_.".contains(it));
    if let Some((page, section)) = word.strip_suffix(')').and_then(|it| it.split_once('('))
        && is_name(page)
        && section.parse::<u8>().is_ok()
    {
        // A page does not refer to itself.
        return (page != "echo-uring.toml").then(|| format!("Xr {page} {section}"));
    }
    if is_path && is_name(&word[1..].replace('/', "")) {
        return Some(format!("Pa {word}"));
    }
    let keys = || SECTIONS.iter().flat_map(|section| section.keys);
    let is_key = keys().any(|key| key.path == word || (key.name == word && word.contains('-')));
    if is_key {
        return Some(format!("Cm {word}"));
    }
    if word.len() > 1 && word.ends_with('=') && is_name(&word[..word.len() - 1]) {
        return Some(format!("Va {word}"));
    }
    if word.starts_with("net.") && is_name(word) {
        return Some(format!("Va {word}"));
    }
    let is_constant =
        word.contains('_') && word.chars().all(|it| it.is_ascii_uppercase() || it == '_');
    is_constant.then(|| format!("Dv {word}"))
}

/// A text as lines of the page: a sentence begins a line, and names are marked.
fn paragraph(text: &str) -> String {
    let (mut lines, mut plain) = (String::new(), String::new());
    let flush = |lines: &mut String, plain: &mut String| {
        if !plain.is_empty() {
            *lines += &filled(plain, "", PAGE_WIDTH);
            plain.clear();
        }
    };
    for word in text.split(' ') {
        let bare = word.trim_start_matches('(');
        let opening = &word[..word.len() - bare.len()];
        let name = bare.trim_end_matches([',', '.', ';', ':']);
        let (name, closing) = match mark(name) {
            Some(_) => (name, &bare[name.len()..]),
            None => {
                let name = name.trim_end_matches(')');
                (name, &bare[name.len()..])
            }
        };
        match mark(name) {
            Some(marked) => {
                flush(&mut lines, &mut plain);
                let marks = closing.chars().map(|it| format!(" {it}")).collect::<String>();
                lines += &match opening.is_empty() {
                    true => format!(".{marked}{marks}\n"),
                    false => format!(".Pf {opening} {marked}{marks}\n"),
                };
            }
            None => {
                let word = word.replace('\\', "\\e");
                plain += if plain.is_empty() { "" } else { " " };
                plain += &word;
            }
        }
        if word.ends_with(['.', '?']) || word.ends_with(".)") {
            flush(&mut lines, &mut plain);
        }
    }
    flush(&mut lines, &mut plain);
    lines
}

/// The key sections of the page.
fn sections() -> String {
    let defaults = Config::default().to_toml();
    let mut page = String::new();
    for section in &SECTIONS {
        let header = section.header();
        let plural = if section.is_list() { "s" } else { "" };
        page += &format!(".Ss \\&{header} section{plural}\n");
        let about = [section.text, section.more].into_iter().filter(|text| !text.is_empty());
        page += &about.map(paragraph).collect::<Vec<_>>().join(".Pp\n");
        page += ".Bl -tag -width Ds\n";
        let (_, content) = defaults.split_once(&format!("{header}\n")).unwrap();
        for key in section.keys {
            let start = format!("{} = ", key.name);
            let default = content.lines().find_map(|line| line.strip_prefix(&start)).unwrap();
            let default = match default.strip_prefix('"') {
                Some(text) => format!("Qq {}", text.trim_end_matches('"')),
                None => default.to_owned(),
            };
            page += &format!(".It Cm {} No = {default}\n", key.name);
            let effect = if section.is_list() { "" } else { effect(key.effect) };
            page += &paragraph(&joined(&[key.text, key.more, &key.holds.sentence(), effect]));
        }
        page += ".El\n";
    }
    page
}

#[test]
fn the_shipped_file_is_that_of_the_table() {
    hold(SHIPPED, &shipped());
}

#[test]
fn the_manual_of_the_file_has_the_keys_of_the_table() {
    let page = read(PAGE);
    let (head, rest) = page.split_once(BEGIN).unwrap();
    let (_, tail) = rest.split_once(END).unwrap();
    hold(PAGE, &format!("{head}{BEGIN}{}{END}{tail}", sections()));
}
