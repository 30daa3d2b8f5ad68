//! Foreign text on a terminal and in HTML: names, addresses and messages that were not written
//! here.
//!
//! The daemon escapes what it logs, but `status` shows the answer of any socket, and the page shows
//! whatever the snapshot contains.

use std::fmt::Write as _;

const WRITES: &str = "invariant: writing to a String never fails";

/// `text` for a terminal, on one line: control characters and bidirectional controls are escaped.
pub(super) fn terminal(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if steers(character) {
            write!(shown, "{}", character.escape_default()).expect(WRITES);
        } else {
            shown.push(character);
        }
    }
    shown
}

/// `text` for HTML, as content of an element or as a quoted value of an attribute.
pub(super) fn html(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in terminal(text).chars() {
        match character {
            '&' => shown.push_str("&amp;"),
            '<' => shown.push_str("&lt;"),
            '>' => shown.push_str("&gt;"),
            '"' => shown.push_str("&quot;"),
            '\'' => shown.push_str("&#39;"),
            other => shown.push(other),
        }
    }
    shown
}

/// Whether a character changes how others are shown, or where.
fn steers(character: char) -> bool {
    let bidirectional =
        matches!(character as u32, 0x061c | 0x200e | 0x200f | 0x2028..=0x202e | 0x2066..=0x2069);
    character.is_control() || bidirectional
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_a_terminal() {
        assert_eq!(
            terminal("grün\u{1b}[31m\n\u{202e}\u{9b}"),
            "grün\\u{1b}[31m\\n\\u{202e}\\u{9b}"
        );
    }

    #[test]
    fn nothing_is_markup() {
        let text = html("<script>alert(\"x\" & 'y')</script>\u{1b}");
        let escaped = "&lt;script&gt;alert(&quot;x&quot; &amp; &#39;y&#39;)&lt;/script&gt;\\u{1b}";
        assert_eq!(text, escaped);
    }
}
