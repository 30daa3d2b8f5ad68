//! Tables and sections of HTML. Text becomes HTML here and nowhere else, and is always escaped.

use std::fmt::Write as _;

use super::escape;

const WRITES: &str = "invariant: writing to a String never fails";

/// A cell of a table.
#[derive(Clone, Debug)]
pub(super) enum Cell {
    /// Text, left-aligned.
    Text(String),
    /// A value with its unit, right-aligned.
    Value(String),
    /// How much of something is in use: the value and the maximum. Shown as a bar.
    Meter(u64, u64),
    /// A word for a state, with its colour.
    State(&'static str, Tone),
}

/// The colour of a state or a notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// All is well.
    Good,
    /// Something is to be done, or about to happen.
    Warning,
    /// Something is broken.
    Bad,
}

impl Tone {
    /// The class in the style sheet.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Warning => "warning",
            Self::Bad => "bad",
        }
    }
}

impl Cell {
    /// A count, in groups of three digits.
    pub(super) fn count(count: u64) -> Self {
        Self::Value(grouped(count))
    }

    fn render(&self, html: &mut String) {
        match self {
            Self::Text(text) => write!(html, "<td>{}</td>", escape::html(text)),
            Self::Value(text) => write!(html, "<td class=\"value\">{}</td>", escape::html(text)),
            Self::Meter(value, most) => {
                let most = (*most).max(1);
                // The colour changes at two thirds and at nine tenths.
                let (low, high) = (most.saturating_mul(2) / 3, most.saturating_mul(9) / 10);
                write!(
                    html,
                    "<td><meter min=\"0\" max=\"{most}\" low=\"{low}\" high=\"{high}\" \
                     optimum=\"0\" value=\"{value}\">{value} of {most}</meter></td>"
                )
            }
            Self::State(word, tone) => {
                write!(html, "<td><span class=\"state {}\">{word}</span></td>", tone.class())
            }
        }
        .expect(WRITES);
    }
}

/// A section with one table. Columns of values have their heading on the right; `head` says which
/// by a leading `>`. Without any there is no row of headings.
pub(super) fn section(title: &str, head: &[&str], rows: &[Vec<Cell>]) -> String {
    let mut html = format!("<section>\n<h2>{}</h2>\n", escape::html(title));
    html.push_str("<div class=\"wide\"><table>\n");
    if !head.is_empty() {
        html.push_str("<thead><tr>");
    }
    for name in head {
        match name.strip_prefix('>') {
            Some(name) => {
                write!(html, "<th scope=\"col\" class=\"value\">{}</th>", escape::html(name))
            }
            None => write!(html, "<th scope=\"col\">{}</th>", escape::html(name)),
        }
        .expect(WRITES);
    }
    if !head.is_empty() {
        html.push_str("</tr></thead>\n");
    }
    html.push_str("<tbody>\n");
    for row in rows {
        html.push_str("<tr>");
        row.iter().for_each(|cell| cell.render(&mut html));
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table></div>\n</section>\n");
    html
}

/// A paragraph above the tables.
pub(super) fn notice(tone: Tone, text: &str) -> String {
    format!("<p class=\"notice {}\">{}</p>\n", tone.class(), escape::html(text))
}

/// `12 345 678`, with narrow spaces that do not break.
pub(super) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() * 2);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_groups() {
        let plain = |count| grouped(count).replace('\u{202f}', "_");
        let counts = [0, 999, 1_000, 1_234_567].map(plain);
        assert_eq!(counts, ["0", "999", "1_000", "1_234_567"]);
    }

    #[test]
    fn every_text_is_escaped() {
        let evil = "<i onclick='x'>&";
        let rows = [vec![Cell::Text(evil.to_owned()), Cell::Value(evil.to_owned())]];
        let html = section(evil, &[evil, &format!(">{evil}")], &rows) + &notice(Tone::Bad, evil);
        assert!(!html.contains("<i"), "{html}");
        assert_eq!(html.matches("&lt;i onclick=&#39;x&#39;&gt;&amp;").count(), 6, "{html}");
    }

    #[test]
    fn a_meter_has_sensible_bounds() {
        let mut html = String::new();
        Cell::Meter(5, 0).render(&mut html);
        assert!(html.contains("max=\"1\"") && html.contains("value=\"5\""), "{html}");
        let mut html = String::new();
        Cell::Meter(1, u64::MAX).render(&mut html);
        assert!(html.contains(&format!("max=\"{}\"", u64::MAX)), "{html}");
    }
}
