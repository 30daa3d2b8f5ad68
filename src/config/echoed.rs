//! Text from a file in a message: on one line, and of limited length.
//!
//! The text may be a megabyte long and contain bytes that move the cursor of a terminal. An error
//! is shown in `systemctl status`, for which systemd reads 4,096 bytes in all.

use std::path::Path;

/// The maximum length of a value in characters, with quotes and the mark of a truncation.
const VALUE_LENGTH_MAX: usize = 80;
/// The maximum length of the name of a file in bytes, with the mark of a truncation: a message may
/// contain it twice.
const PATH_LENGTH_MAX: usize = 255;
/// The mark of a truncation.
const CUT: char = '\u{2026}';

/// `text` in quotes.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", head(text, VALUE_LENGTH_MAX - 2, escaped))
}

/// `text` with control characters escaped, truncated at the end if it is too long.
pub(super) fn bare(text: &str) -> String {
    head(text, VALUE_LENGTH_MAX, escaped)
}

/// `text` that needs no escape, truncated at the end if it is too long.
pub(super) fn cut(text: &str) -> String {
    head(text, VALUE_LENGTH_MAX, String::from)
}

/// The name of a file, truncated at the front, because its end is most informative.
pub(super) fn path(path: &Path) -> String {
    let text = path.to_string_lossy();
    let (mut pieces, mut length, mut whole) = (Vec::new(), 0, true);
    for piece in text.chars().rev().map(escaped) {
        length += piece.len();
        if length > PATH_LENGTH_MAX - CUT.len_utf8() {
            whole = false;
            break;
        }
        pieces.push(piece);
    }
    if !whole {
        pieces.push(CUT.to_string());
    }
    pieces.into_iter().rev().collect()
}

/// The beginning of `text`, with each character as `spelled`, in at most `length_max` characters.
fn head(text: &str, length_max: usize, spelled: fn(char) -> String) -> String {
    let mut shown = String::new();
    // Where it would be truncated if it is too long: there is room for the mark.
    let (mut length, mut cut) = (0, 0);
    for piece in text.chars().map(spelled) {
        length += piece.chars().count();
        if length > length_max {
            shown.truncate(cut);
            shown.push(CUT);
            return shown;
        }
        shown += &piece;
        if length < length_max {
            cut = shown.len();
        }
    }
    shown
}

/// As in a string of Rust or TOML: `\n`, `\u{1b}`, `\"`. Also invisible characters, such as marks
/// that change the direction of a line.
fn escaped(character: char) -> String {
    match character {
        '\'' => character.to_string(),
        _ => character.escape_debug().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_where_it_is_too_long_and_not_before() {
        for (text, shown) in [
            ("", ""),
            ("it's", "it's"),
            ("abcd", "abcd"),
            ("abcde", "abc\u{2026}"),
            ("ab\nd", "ab\u{2026}"),
            ("ab\n", "ab\\n"),
            ("\u{1b}", "\u{2026}"),
            ("a\u{202e}", "a\u{2026}"),
            ("\u{e4}\u{e4}\u{e4}\u{e4}", "\u{e4}\u{e4}\u{e4}\u{e4}"),
        ] {
            assert_eq!(head(text, 4, escaped), shown, "{text:?}");
        }
        assert_eq!(quoted("a\"b\\"), "\"a\\\"b\\\\\"");
        for text in ["x".repeat(1_000), "\u{1b}".repeat(1_000)] {
            for shown in [quoted(&text), bare(&text)] {
                assert!(shown.chars().count() <= VALUE_LENGTH_MAX, "{shown}");
                assert!(shown.contains(CUT), "{shown}");
            }
        }
    }

    #[test]
    fn of_a_path_the_end_is_shown() {
        assert_eq!(path(Path::new("/etc/a\nb.toml")), "/etc/a\\nb.toml");
        let long = format!("/{}/b.toml", "x".repeat(4_000));
        let shown = path(Path::new(&long));
        assert!(shown.starts_with(CUT) && shown.ends_with("x/b.toml"), "{shown}");
        assert_eq!(shown.len(), PATH_LENGTH_MAX);
        let wide = path(Path::new(&"\u{1f980}".repeat(1_000)));
        assert!(wide.len() <= PATH_LENGTH_MAX && wide.starts_with(CUT), "{wide}");
    }
}
