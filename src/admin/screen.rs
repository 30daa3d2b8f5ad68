//! The terminal of `status --watch`. While a [`Screen`] exists, the terminal uses the alternate
//! screen, without cursor and echo, and text is cut to its size. Dropping it restores the terminal.
//!
//! It must never know the content of the text.

use std::io::{self, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios};
use rustix::termios::{tcgetattr, tcgetwinsize, tcsetattr};

/// The key that ends the command, as in pagers.
const END: u8 = b'q';

/// The terminal on standard output.
pub(super) struct Screen {
    /// The previous mode of standard input, if it is a terminal.
    keys: Option<Termios>,
}

impl Screen {
    /// Switches the terminal. From now on signals must not end the process, or it would not be
    /// restored.
    pub(super) fn new() -> Self {
        let keys = tcgetattr(io::stdin()).ok();
        if let Some(before) = &keys {
            let mut quiet = before.clone();
            // Each key is available at once and is not shown. Keys for signals still work.
            quiet.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &quiet);
        }
        print!("\x1b[?1049h\x1b[?25l");
        Self { keys }
    }

    /// Shows `text`.
    pub(super) fn draw(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let size = tcgetwinsize(&out).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
        let lines = match size {
            Some(size) => fit(text, usize::from(size.ws_row), usize::from(size.ws_col)),
            None => text.lines().map(str::to_owned).collect(),
        };
        // Each line overwrites the old one, so that nothing flickers. There is no line end after
        // the last line, because on the lowest row it would scroll.
        let picture = lines.join("\x1b[K\n");
        write!(out, "\x1b[H{picture}\x1b[K\x1b[J").and_then(|()| out.flush())
    }

    /// Whether standard input is a terminal, so that there are keys.
    pub(super) fn has_keys(&self) -> bool {
        self.keys.is_some()
    }
}

/// Reads the pressed keys; true if the end key is among them, or standard input is closed.
pub(super) fn is_ended_by_key() -> bool {
    let mut keys = [0; 64];
    // The standard library would buffer more than was read here.
    rustix::io::read(io::stdin(), &mut keys)
        .map_or(true, |count| count == 0 || keys[..count].contains(&END))
}

/// The part of `text` that fits a terminal of this size. The last row shows if there is more.
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
    fn text_is_cut_to_the_size_of_the_terminal() {
        let text = "12345\n\nabcde\nvwxyz\n";
        assert_eq!(fit(text, 4, 80), ["12345", "", "abcde", "vwxyz"]);
        assert_eq!(fit(text, 4, 3), ["123", "", "abc", "vwx"]);
        assert_eq!(fit(text, 3, 80), ["12345", "", "(2 more lines)"]);
        assert_eq!(fit(text, 1, 6), ["(4 mor"]);
    }
}
