//! Enough of Rust's lexical syntax to distinguish code from comments and text, and to find names,
//! functions and matches.
//!
//! It is no parser: it relies on rustfmt and the compiler.

/// Source text of the same shape, in which comments and the content of literals are blanks.
pub(crate) struct Code {
    text: Vec<char>,
}

impl Code {
    pub(crate) fn new(source: &str) -> Self {
        let mut text: Vec<char> = source.chars().collect();
        let mut at = 0;
        while at < text.len() {
            let end = skip(&text, at);
            if end > at {
                text[at..end].iter_mut().filter(|it| **it != '\n').for_each(|it| *it = ' ');
                at = end;
            } else {
                at += 1;
            }
        }
        Self { text }
    }

    /// The lines with their numbers, from 1.
    pub(crate) fn numbered(&self) -> Vec<(usize, String)> {
        let text: String = self.text.iter().collect();
        (1..).zip(text.lines().map(str::to_owned)).collect()
    }

    /// What follows `root::`, wherever it stands, with its line; each element of a group by itself.
    pub(crate) fn paths(&self, root: &str) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        for at in self.places(root) {
            let after = at + root.chars().count();
            let qualified = at >= 2 && self.text[at - 2..at] == [':', ':'];
            if qualified || !self.starts_with(after, "::") {
                continue;
            }
            let start = after + 2;
            if self.text.get(start) != Some(&'{') {
                found.push((self.line(at), self.name_at(start)));
                continue;
            }
            let end = self.closing(start);
            let mut depth = 0;
            let mut begins = true;
            for place in start..end {
                match self.text[place] {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 1 => begins = true,
                    it if it.is_whitespace() => continue,
                    _ if begins && depth == 1 => {
                        found.push((self.line(place), self.name_at(place)));
                        begins = false;
                    }
                    _ => {}
                }
            }
        }
        found
    }

    /// All functions with a body: line, name, and the number of lines from `fn` to the closing
    /// brace.
    pub(crate) fn functions(&self) -> Vec<(usize, String, usize)> {
        let mut found = Vec::new();
        for at in self.places("fn") {
            let name = self.name_at(at + 3);
            let mut depth = 0;
            for place in at..self.text.len() {
                match self.text[place] {
                    '(' | '[' => depth += 1,
                    ')' | ']' => depth -= 1,
                    ';' if depth == 0 => break,
                    '{' if depth == 0 => {
                        let (first, last) = (self.line(at), self.line(self.closing(place)));
                        found.push((first, name, last + 1 - first));
                        break;
                    }
                    _ => {}
                }
            }
        }
        found
    }

    /// The arms `_ =>` with their lines, each with the text of the match before it.
    pub(crate) fn wildcard_arms(&self) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        for at in self.places("_") {
            let rest: String = self.text[at + 1..].iter().take(40).collect();
            if !rest.trim_start().starts_with("=>") && !rest.trim_start().starts_with("if ") {
                continue;
            }
            let mut depth = 0;
            let start = self.text[..at].iter().rposition(|it| {
                depth += i32::from(*it == '}') - i32::from(*it == '{');
                depth < 0
            });
            let before: String = self.text[start.unwrap_or(0)..at].iter().collect();
            found.push((self.line(at), patterns(&before)));
        }
        found
    }

    /// How many `unsafe { … }` there are.
    pub(crate) fn unsafe_blocks(&self) -> usize {
        let opens = |at: &usize| {
            self.text[at + 6..].iter().find(|it| !it.is_whitespace()).is_some_and(|it| *it == '{')
        };
        self.places("unsafe").iter().filter(|at| opens(at)).count()
    }

    fn places(&self, word: &str) -> Vec<usize> {
        let length = word.chars().count();
        let boundary = |at: Option<&char>| !at.is_some_and(|it| is_name(*it));
        (0..self.text.len())
            .filter(|at| self.starts_with(*at, word))
            .filter(|at| boundary(self.text.get(at + length)))
            .filter(|at| *at == 0 || boundary(self.text.get(at - 1)))
            .collect()
    }

    fn starts_with(&self, at: usize, word: &str) -> bool {
        word.chars().zip(at..).all(|(it, place)| self.text.get(place) == Some(&it))
    }

    /// The path that begins at `at`, such as `echo_core::op`.
    fn name_at(&self, at: usize) -> String {
        let rest = &self.text[at.min(self.text.len())..];
        rest.iter().take_while(|it| is_name(**it) || **it == ':').collect()
    }

    /// The place of the brace that closes the one at `open`.
    fn closing(&self, open: usize) -> usize {
        let mut depth = 0;
        for (place, it) in self.text.iter().enumerate().skip(open) {
            depth += i32::from(*it == '{') - i32::from(*it == '}');
            if depth == 0 {
                return place;
            }
        }
        self.text.len() - 1
    }

    fn line(&self, at: usize) -> usize {
        1 + self.text[..at].iter().filter(|it| **it == '\n').count()
    }
}

/// What stands left of `=>` in the arms of a match, roughly: each arm's last line before the arrow.
fn patterns(arms: &str) -> String {
    let mut patterns = String::new();
    for before in arms.split("=>").collect::<Vec<_>>().split_last().map_or(&[][..], |it| it.1) {
        let start = before.rfind([';', '}', ',']).map_or(0, |at| at + 1);
        // Fields of a pattern end with a brace; take what stands before them, too.
        let whole = before.rfind('\n').map_or(0, |at| at + 1).min(start);
        patterns.push_str(&before[whole..]);
        patterns.push(' ');
    }
    patterns
}

fn is_name(it: char) -> bool {
    it.is_alphanumeric() || it == '_'
}

/// Where the comment or literal ends that begins at `at`; `at` itself if none begins there.
fn skip(text: &[char], at: usize) -> usize {
    let next = text.get(at + 1).copied();
    match (text[at], next) {
        ('/', Some('/')) => find(text, at, |place| text[place] == '\n'),
        ('/', Some('*')) => skip_block_comment(text, at),
        ('"', _) => skip_text(text, at),
        ('r', Some('"' | '#')) if at == 0 || !is_name(text[at - 1]) || text[at - 1] == 'b' => {
            skip_raw_text(text, at)
        }
        ('\'', Some('\\')) => find(text, at + 3, |place| text[place] == '\'') + 1,
        ('\'', Some(_)) if text.get(at + 2) == Some(&'\'') => at + 3,
        _ => at,
    }
}

fn find(text: &[char], from: usize, wanted: impl Fn(usize) -> bool) -> usize {
    (from..text.len()).find(|place| wanted(*place)).unwrap_or(text.len())
}

fn skip_block_comment(text: &[char], at: usize) -> usize {
    let mut depth = 0;
    let mut place = at;
    while place + 1 < text.len() {
        match (text[place], text[place + 1]) {
            ('/', '*') => (depth, place) = (depth + 1, place + 2),
            ('*', '/') => (depth, place) = (depth - 1, place + 2),
            _ => place += 1,
        }
        if depth == 0 {
            return place;
        }
    }
    text.len()
}

fn skip_text(text: &[char], at: usize) -> usize {
    let mut place = at + 1;
    while place < text.len() {
        match text[place] {
            '\\' => place += 2,
            '"' => return place + 1,
            _ => place += 1,
        }
    }
    text.len()
}

fn skip_raw_text(text: &[char], at: usize) -> usize {
    let hashes = text[at + 1..].iter().take_while(|it| **it == '#').count();
    if text.get(at + 1 + hashes) != Some(&'"') {
        // A raw name such as r#type.
        return at;
    }
    let ends = |place: usize| {
        text[place] == '"'
            && text.len() > place + hashes
            && text[place + 1..=place + hashes].iter().all(|it| *it == '#')
    };
    (find(text, at + 2 + hashes, ends) + 1 + hashes).min(text.len())
}

#[test]
fn comments_and_literals_are_no_code() {
    let source = "a /* b /* c */ d */ e // f\ng \"h\\\" i\" r#\"j \" k\"# 'l' '\\'' &'m n";
    let code: String = Code::new(source).text.iter().collect();
    let words: Vec<&str> = code.split_whitespace().collect();
    assert_eq!(words, ["a", "e", "g", "&'m", "n"]);
    assert_eq!(code.len(), source.len());
}

#[test]
fn groups_are_taken_apart() {
    let code = Code::new("use std::{\n    fmt,\n    net::{self, IpAddr},\n};\nuse std::io;");
    let paths: Vec<(usize, String)> = code.paths("std");
    let names: Vec<&str> = paths.iter().map(|(_, path)| path.as_str()).collect();
    assert_eq!(names, ["fmt", "net::", "io"]);
    assert_eq!(paths[2].0, 5);
}
