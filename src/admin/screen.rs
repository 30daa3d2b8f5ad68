//! The terminal of `status --watch`: another screen without cursor and echo for as long as a
//! [`Screen`] lives, pictures cut to its size, and all as it was before in the end.
//!
//! It must never know what is in a picture.

use std::io::{self, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios};
use rustix::termios::{tcgetattr, tcgetwinsize, tcsetattr};

/// The key that ends it, as in pagers and other tables.
const END: u8 = b'q';

/// The terminal that standard output leads to.
pub(super) struct Screen {
    /// How keys were treated before, if they come from a terminal.
    keys: Option<Termios>,
}

impl Screen {
    /// Takes the terminal. Signals must not end the process from now on, or nobody gives it back.
    pub(super) fn new() -> Self {
        let keys = tcgetattr(io::stdin()).ok();
        if let Some(before) = &keys {
            let mut quiet = before.clone();
            // Each key comes at once and is not shown; those that make signals still make them.
            quiet.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &quiet);
        }
        print!("\x1b[?1049h\x1b[?25l");
        Self { keys }
    }

    /// Replaces what is shown.
    pub(super) fn draw(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let size = tcgetwinsize(&out).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
        let lines = match size {
            Some(size) => fit(text, usize::from(size.ws_row), usize::from(size.ws_col)),
            None => text.lines().map(str::to_owned).collect(),
        };
        // Each line is written over the old one, so that nothing flickers. No end of line after the
        // last: on the lowest row that would scroll.
        let picture = lines.join("\x1b[K\n");
        write!(out, "\x1b[H{picture}\x1b[K\x1b[J").and_then(|()| out.flush())
    }

    /// Whether keys come from a terminal too, so that there is something to listen to.
    pub(super) fn has_keys(&self) -> bool {
        self.keys.is_some()
    }
}

/// Takes the keys that have come; true if the one that ends it is among them, or none will come any
/// more.
pub(super) fn is_ended_by_key() -> bool {
    let mut keys = [0; 64];
    // Not by the standard library, which would keep for later what does not fit.
    rustix::io::read(io::stdin(), &mut keys)
        .map_or(true, |count| count == 0 || keys[..count].contains(&END))
}

/// As much of `text` as a terminal of this size shows; its last row says if there is more.
fn fit(text: &str, rows: usize, columns: usize) -> Vec<String> {
    let count = text.lines().count();
    let shown = if count > rows { rows - 1 } else { count };
    let mut lines: Vec<String> = text.lines().take(shown).map(str::to_owned).collect();
    if count > rows {
        lines.push(format!("({} more lines)", count - shown));
    }
    lines.into_iter().map(|line| line.chars().take(columns).collect()).collect()
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Some(before) = &self.keys {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
        print!("\x1b[?25h\x1b[?1049l");
        let _ = io::stdout().flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_the_size_of_its_terminal() {
        let text = "12345\n\nabcde\nvwxyz\n";
        assert_eq!(fit(text, 4, 80), ["12345", "", "abcde", "vwxyz"]);
        assert_eq!(fit(text, 4, 3), ["123", "", "abc", "vwx"]);
        assert_eq!(fit(text, 3, 80), ["12345", "", "(2 more lines)"]);
        assert_eq!(fit(text, 1, 6), ["(4 mor"]);
    }
}
