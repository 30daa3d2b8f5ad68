//! Files that are nearly configurations: existing keys with values that are right, almost right, of
//! another type or absurd, in sections spelled in every way of TOML; and damaged files.
//!
//! Every decision is a query: a test answers with a random number generator, a fuzzer with its
//! input. The keys come from the output of `check`, so a new key is included automatically.

use echo_uring::config::Config;

/// Answers a query: a number from 0 to the bound, which is excluded and never 0.
pub(crate) type Choose<'a> = &'a mut dyn FnMut(usize) -> usize;

/// What a value may look like, whatever the key.
const VALUES: &[&str] = &[
    // Durations.
    "\"10ms\"",
    "\"1h 30m\"",
    "\"1.5h\"",
    "\"1year\"",
    "\"24days\"",
    "\"0s\"",
    "\"off\"",
    "\"1M\"",
    "\"0\"",
    "\"30\"",
    "\"1 30m\"",
    "\"10500us\"",
    "\"200us\"",
    "\"1µs\"",
    "\"-1s\"",
    "\"1e3s\"",
    "\"18446744073709551615s 500ms 500ms\"",
    "\"340282366920938463463374607431768211456s\"",
    "\"0.0000000000000000001s\"",
    "\"999999999999999999years\"",
    // Sizes.
    "\"64KiB\"",
    "\"1MiB\"",
    "\"64kB\"",
    "\"64M\"",
    "\"1.9B\"",
    "\"1.5MiB\"",
    "\"1B\"",
    "\"64\"",
    "\"auto\"",
    "\"1TiB\"",
    "\"99999999EiB\"",
    "\".5KiB\"",
    "\"0.1KiB\"",
    // Numbers.
    "0",
    "1",
    "3",
    "7",
    "32",
    "64",
    "100",
    "128",
    "1024",
    "32767",
    "32768",
    "65536",
    "100000",
    "4194304",
    "4194305",
    "-1",
    "+5",
    "1_000",
    "0x10",
    "0b1",
    "0o17",
    "1.5",
    "1e400",
    "nan",
    "-inf",
    "9223372036854775807",
    "9223372036854775808",
    "99999999999999999999999999999999999999999",
    // Words.
    "true",
    "false",
    "\"echo\"",
    "\"status\"",
    "\"metrics\"",
    "\"agent-check\"",
    "\"require\"",
    "\"syslog\"",
    "\"stderr\"",
    "\"debug\"",
    "\"Info\"",
    "'lan'",
    "\"\"",
    "''",
    "\"a b\"",
    "\"\\u0000\"",
    "\"\\n\\u001b[31m\\u202e\"",
    "\"\"\"\nlong\ntext\"\"\"",
    "'''\n'''",
    // Addresses.
    "\"127.0.0.1:7777\"",
    "\"[::1]:7777\"",
    "\"[::]:1\"",
    "\"0.0.0.0:1\"",
    "\"127.0.0.1:0\"",
    "\"localhost:7\"",
    "\"unix:/run/a\"",
    "\"unix:/\"",
    "\"unix:a\"",
    "\"unix:/a\\nb\"",
    "\"unix:/\\u0000\"",
    "\"[fe80::1%1]:7\"",
    "\"127.0.0.1:65536\"",
    "\"010.0.0.1:7\"",
    "\"udp:127.0.0.1:7777\"",
    "\"udp:[::]:1\"",
    "\"udp:[fe80::1%1]:7\"",
    "\"udp:unix:/a\"",
    "\"unix-datagram:/a\"",
    "\"unix-seqpacket:@a\"",
    "\"unix:@\"",
    "\"udp:\"",
    // Networks.
    "[]",
    "[\"10.0.0.0/8\"]",
    "[\"::1\", '10.0.0.1']",
    "[\"010.0.0.0/8\"]",
    "[\"10.0.0.0/08\"]",
    "[\"10.0.0.0/+8\"]",
    "[\"10.0.0.0/33\"]",
    "[\"10.0.0.1/8\"]",
    "[\"::ffff:0:0/96\"]",
    "[\"::/0\"]",
    "[\"::/129\"]",
    "[\"2001:db8::/032\"]",
    "[4]",
    "[[\"10.0.0.0/8\"]]",
    "[{}]",
    "[\"::1\", 4,\n # no network\n]",
    "[\"fe80::1%eth0\"]",
    "[\"/8\"]",
    "[\"10.0.0.0/\"]",
    // Ports.
    "[7]",
    "[65535, 1, 7, 7]",
    "[7, 13, 17, 19, 37, 53, 69, 111, 123, 137, 161, 389, 500, 520, 1900, 5353, 11211, 60000]",
    "[0]",
    "[65536, 7,\n # no port\n -1]",
    "[\"7\"]",
    "[7.0]",
    "[[7]]",
    "[99999999999999999999999999999999999999999]",
    // Structures.
    "{}",
    "{ a = 1 }",
    "{ idle = \"1s\" }",
    "{ a.b.c = [] }",
    "[1, \"a\", 2026-11-29]",
    "[{ name = \"a\", address = \"[::1]:1\" }]",
    "[{ name = \"a\" }, 4]",
    "{ name = \"a\" }",
    "[\"a\", \"[::1]:1\", \"echo\"]",
    "[[\"a\", \"[::1]:1\", \"echo\"]]",
    "2026-11-29T12:00:00Z",
    "12:00:00",
    "1979-13-99",
    "[",
    "{",
    "\"",
    "'",
    "\"\\x\"",
    "",
];

/// Text between values.
const TOKENS: &[&str] = &[
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    ".",
    ",",
    "\n",
    "\r\n",
    "\r",
    "#",
    "\"",
    "'",
    "\"\"\"",
    "'''",
    "\\",
    "\\u",
    "\t",
    "\0",
    "\u{feff}",
    "\u{e4}",
    "\u{202e}",
    "limits",
    "access.allow",
    "listener",
    "server",
    "[[access.allow]]\n",
    "[access]\n",
    "[listener]\n",
    "name = ",
    "1",
    "\"off\"",
    "_",
    "-",
    "+",
    "e",
    "x = 1\n",
    "[limits]\nmax-connections.a.b = 1\n",
];

/// Every section with its keys, as `check` prints them.
#[derive(Debug)]
pub(crate) struct Grammar {
    sections: Vec<(String, Vec<String>)>,
}

impl Grammar {
    /// Of the keys that there are today.
    pub(crate) fn new() -> Self {
        let mut sections: Vec<(String, Vec<String>)> = Vec::new();
        for line in Config::default().to_toml().lines() {
            if let Some(name) = line.strip_prefix('[') {
                sections.push((name.trim_matches(['[', ']']).to_owned(), Vec::new()));
            } else if let Some((key, _)) = line.split_once(" = ") {
                sections.last_mut().expect("a section before its keys").1.push(key.to_owned());
            }
        }
        Self { sections }
    }

    /// A file, damaged or not.
    pub(crate) fn file(&self, choose: Choose<'_>) -> Vec<u8> {
        let mut text = String::new();
        if choose(8) == 0 {
            text += &Config::default().to_toml();
        }
        for _ in 0..choose(6) {
            self.section(choose, &mut text);
        }
        let mut bytes = text.into_bytes();
        if choose(2) == 0 {
            for _ in 0..=choose(4) {
                damage(choose, &mut bytes);
            }
        }
        bytes
    }

    fn section(&self, choose: Choose<'_>, text: &mut String) {
        let (name, keys) = &self.sections[choose(self.sections.len())];
        let listed = name == "listener";
        // Right in two of three.
        let form = if choose(3) > 0 { usize::from(listed) } else { choose(8) };
        match form {
            0 => *text += &format!("[{name}]\n"),
            1 => *text += &format!("[[{name}]]\n"),
            2 => *text += &format!("[{name}.{}]\n", keys[choose(keys.len())]),
            3 => *text += &format!("[[{name}.{}]]\n", keys[choose(keys.len())]),
            4 => return *text += &format!("{name} = {}\n", value(choose)),
            5 => return *text += &format!("{name} = [{}, {}]\n", value(choose), value(choose)),
            6 => {
                let key = &keys[choose(keys.len())];
                return *text += &format!("{name} = {{ {key} = {} }}\n", value(choose));
            }
            _ => {
                let key = &keys[choose(keys.len())];
                return *text += &format!("{name}.{key} = {}\n", value(choose));
            }
        }
        if listed && choose(4) > 0 {
            let (port, name) = (choose(4), choose(3));
            *text += &format!("name = \"n{name}\"\n");
            // Without one it is for inherited sockets.
            if port > 0 {
                *text += &format!("address = \"[::1]:{port}\"\n");
            }
        }
        for _ in 0..choose(4) {
            let keys = if choose(8) > 0 { keys } else { &self.sections[choose(7)].1 };
            *text += &format!("{} = {}\n", keys[choose(keys.len())], value(choose));
        }
    }
}

fn value(choose: Choose<'_>) -> String {
    match choose(40) {
        0 => format!("\"{}\"", "x".repeat(1 << choose(14))),
        1 => format!("[{}]", "\"10.0.0.1\", ".repeat(1 << choose(10))),
        2 => "[".repeat(1 << choose(12)),
        3 => "9".repeat(1 << choose(12)),
        _ => VALUES[choose(VALUES.len())].to_owned(),
    }
}

fn damage(choose: Choose<'_>, bytes: &mut Vec<u8>) {
    let place = choose(bytes.len().max(1));
    match choose(6) {
        0 => bytes.truncate(place),
        1 | 2 if !bytes.is_empty() => bytes[place] ^= 1 << choose(8),
        3 => {
            let token = TOKENS[choose(TOKENS.len())];
            bytes.splice(place..place, token.bytes()).for_each(drop);
        }
        4 => {
            let end = bytes.len().min(place + choose(16));
            bytes.drain(place..end);
        }
        _ => {
            let end = bytes.len().min(place + choose(200));
            bytes.extend_from_within(place..end);
        }
    }
}
