//! Several files that make one configuration: which kinds of file are read, which value takes
//! precedence, and the errors and warnings.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use echo_uring::config::{self, Config, Effect, Kind, Overrides};

use crate::parsed;

/// A directory of a test's own, removed at its end, with a configuration in it.
struct Place(PathBuf);

impl Place {
    fn new(name: &str, main: &str) -> Self {
        let name = format!("echo-uring-files-{name}-{}", std::process::id());
        let place = Self(std::env::temp_dir().join(name));
        fs::create_dir_all(place.0.join("main.toml.d")).unwrap();
        fs::write(place.main(), main).unwrap();
        place
    }

    fn main(&self) -> PathBuf {
        self.0.join("main.toml")
    }

    fn drop_in(&self, name: &str) -> PathBuf {
        self.0.join("main.toml.d").join(name)
    }

    fn write(&self, name: &str, text: &str) -> &Self {
        fs::write(self.drop_in(name), text).unwrap();
        self
    }

    fn load(&self) -> Config {
        self.try_load().unwrap_or_else(|lines| panic!("{lines:#?}"))
    }

    /// The configuration, or all errors, without the name of the directory.
    fn try_load(&self) -> Result<Config, Vec<String>> {
        let directory = format!("{}/", self.0.display());
        config::load(Some(&self.main()), &Overrides::default()).map_err(|invalid| {
            invalid.lines().iter().map(|line| line.replace(&directory, "")).collect()
        })
    }

    fn warnings(&self) -> Vec<String> {
        let directory = format!("{}/", self.0.display());
        let examined = config::examine(Some(&self.main()), &Overrides::default()).unwrap();
        examined.warnings.iter().map(|line| line.replace(&directory, "")).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// All lines that refuse `text`.
fn refusals(text: &str) -> Vec<String> {
    let invalid = Config::from_bytes(text.as_bytes(), Path::new("FILE")).expect_err(text);
    invalid.lines()
}

/// Asserts that there are as many lines as beginnings, and that each has its own.
fn assert_begin(lines: &[String], beginnings: &[&str]) {
    assert_eq!(lines.len(), beginnings.len(), "{lines:#?}");
    for (line, beginning) in lines.iter().zip(beginnings) {
        assert!(line.starts_with(beginning), "{beginning:?} is not how this begins: {line}");
    }
}

/// Goal: all errors of a file are reported at once, in the order of the lines, whatever section the
/// reader checks first.
#[test]
fn all_errors_of_a_file_are_reported() {
    let text = "[log]\nlevel = 1\n[server]\nworkers = 0\nnone = 1\n[access]\ndeny = [\n'a',\n'::1',\n\
                4]\n[[listener]]\n[[listener]]\nname = 'x y'\n[none]\n";
    assert_begin(
        &refusals(text),
        &[
            "FILE:2:9: log.level: 1 is not known; use ",
            "FILE:4:11: server.workers: 0 is out of range; use ",
            "FILE:5:1: server.none: unknown key; use ",
            "FILE:8:1: access.deny: \"a\" is not a network; use ",
            "FILE:10:1: access.deny: 4 is not text; use ",
            "FILE:11:1: listener.name: missing; add ",
            "FILE:13:8: listener.name: \"x y\" is not a name; use ",
            "FILE:14:2: none: unknown section; use ",
        ],
    );
    let first = parsed(text).unwrap_err();
    assert!(first.ends_with("\"off\" (and 7 more: see echo-uring check)"), "{first}");
}

/// Goal: broken TOML is reported line by line, with the errors before it. The text after it may be
/// misread, so it is not checked.
#[test]
fn broken_lines_are_reported_with_what_precedes_them() {
    let text = "[server]\nworkers = 0\n[log\nlevel = 'info'\nand more\n";
    let lines = refusals(text);
    assert_begin(&lines, &["FILE:2:11: server.workers: 0 ", "FILE:3:5: ", "FILE:5:5: "]);
}

/// Goal: a file makes a limited number of lines, and the number of omitted ones is reported.
#[test]
fn of_very_many_errors_the_first_hundred_are_reported() {
    let keys: String = (0..1000).rev().map(|number| format!("x{number} = 1\n")).collect();
    let lines = refusals(&format!("[limits]\n{keys}"));
    assert_eq!(lines.len(), 101);
    for (number, line) in (2..).zip(&lines[..100]) {
        assert!(line.starts_with(&format!("FILE:{number}:1: ")), "{line}");
    }
    assert_eq!(lines[100], "900 more errors; correct those above first");
}

#[test]
fn what_was_meant_is_guessed() {
    for (text, guess) in [
        ("[limits]\nmax-conections = 1", "unknown key; did you mean max-connections?"),
        ("[limits]\nmax_connections = 1", "unknown key; did you mean max-connections?"),
        ("[limits]\nMax-Bytse = 1", "unknown key; did you mean max-bytes?"),
        ("[timeouts]\nIDLE = 1", "unknown key; did you mean idle?"),
        ("[timeouts]\nmax-connections = 1", "did you mean max-connections in [limits]?"),
        ("[timeouts]\nkeep-alive = 1", "did you mean keepalive in [tcp]?"),
        ("[server]\nadress = 1", "did you mean address in [[listener]]?"),
        ("[limits]\nsource-prefix-ipv5 = 1", "did you mean source-prefix-ipv4?"),
        ("max-connection = 1", "unknown section; did you mean max-connections in [limits]?"),
        ("[listeners]\nname = 'a'", "unknown section; did you mean [[listener]]?"),
        ("[timeout]\nidle = '1s'", "unknown section; did you mean [timeouts]?"),
        ("[tpc]\nnodelay = true", "unknown section; did you mean [tcp]?"),
        ("[[listener]]\nname = 'a'\nport = 7", "identity-host, identity-then-echo"),
        ("[log]\nfacility = 'x'", "unknown key; use target, level"),
    ] {
        let lines = refusals(text);
        assert!(lines[0].ends_with(guess), "{lines:?}\nfor {text}");
        assert_eq!(lines.len(), 1, "{lines:?}");
    }
}

#[test]
fn a_missing_bracket_is_reported_as_such() {
    let lines = refusals("[listener]\nname = 'a'\naddress = '[::1]:1'\n");
    let expected = "FILE:1:1: listener: [listener] is one section; use [[listener]], with two \
                    brackets, for each listener";
    assert_eq!(lines, [expected]);
}

#[test]
fn numbers_beyond_64_bits_are_out_of_range() {
    for number in ["9223372036854775808", "99999999999999999999999", "0xffffffffffffffffff"] {
        let lines = refusals(&format!("[limits]\nmax-connections = {number}\n"));
        assert_eq!(lines.len(), 1, "{lines:?}");
        let end = " is out of range; use a number from 1 to 4194304";
        assert!(lines[0].starts_with("FILE:2:19: limits.max-connections: "), "{lines:?}");
        assert!(lines[0].ends_with(end), "{lines:?}");
    }
    let lines = refusals("[timeouts]\nidle = 99999999999999999999\n");
    assert!(lines[0].contains("99999999999999999999 is not a duration; use "), "{lines:?}");
}

/// Goal: the later file wins for each key that it has, and for no other; lists are replaced.
#[test]
fn later_files_win_key_by_key() {
    let main = "[limits]\nmax-connections = 1\nmax-bytes = '1B'\n[access]\ndeny = ['::1', '::2']\n";
    let place = Place::new("keys", main);
    // Written in another order than they are read.
    place.write("b.toml", "[limits]\nmax-connections = 3\n[access]\ndeny = ['::3']\n");
    place.write("a.toml", "[limits]\nmax-connections = 2\n[tcp]\nnodelay = false\n");
    place.write("B.toml", "[tcp]\nnodelay = true\n[timeouts]\nidle = '7s'\n");
    let config = place.load();
    assert_eq!((config.limits.max_connections, config.limits.max_bytes), (3, Some(1)));
    let denied: Vec<String> = config.access.deny.iter().map(ToString::to_string).collect();
    assert_eq!(denied, ["::3"]);
    assert!(!config.tcp.nodelay, "\"B\" comes before \"a\" in the order of bytes");
    assert_eq!(config.timeouts.idle.unwrap().as_secs(), 7);
    let default = Config::default();
    assert_eq!((config.log, config.listeners), (default.log, default.listeners));
}

#[test]
fn what_is_no_drop_in_is_not_read() {
    let place = Place::new("ignored", "");
    let wrong = "[none]\n";
    for name in ["a.toml~", "a.conf", ".a.toml", "a.toml.dpkg-new", "toml", "a.TOML"] {
        place.write(name, wrong);
    }
    fs::create_dir(place.drop_in("directory.toml")).unwrap();
    symlink("/", place.drop_in("link.toml")).unwrap();
    assert_eq!(place.load(), Config::default());
    fs::remove_dir_all(place.0.join("main.toml.d")).unwrap();
    assert_eq!(place.load(), Config::default());
}

/// Goal: an error anywhere makes the whole invalid, and names its own file.
#[test]
fn errors_name_their_file() {
    let place = Place::new("errors", "[limits]\nmax-connections = 0\n");
    place.write("1.toml", "\n[limits]\nmax-connections = 7\nmax-byte = 1\n");
    place.write("2.toml", "[server\n").write("3.toml", "[log]\nlevel = 'info'\n");
    let lines = place.try_load().unwrap_err();
    assert_begin(
        &lines,
        &[
            "main.toml:2:19: limits.max-connections: 0 is out of range",
            "main.toml.d/1.toml:4:1: limits.max-byte: unknown key; did you mean max-bytes?",
            "main.toml.d/2.toml:1:8: ",
        ],
    );
}

#[test]
fn listeners_of_drop_ins_are_added_or_replace_those_of_their_name() {
    let listener = |name: &str, port: u16| {
        format!("[[listener]]\nname = '{name}'\naddress = '[::1]:{port}'\n")
    };
    let found = |place: &Place| -> Vec<String> {
        let listeners = place.load().listeners;
        let told = |it: config::ListenerConfig| {
            format!("{} {} {}", it.name, it.address.unwrap(), it.kind.name())
        };
        listeners.into_iter().map(told).collect()
    };
    // A file without listeners and one that has the built-in two mean the same.
    let place = Place::new("listeners", "");
    for main in [String::new(), Config::default().to_toml()] {
        fs::write(place.main(), main).unwrap();
        place.write("1.toml", &(listener("b", 2) + &listener("local-ipv4", 1)));
        let expected = ["local-ipv4 [::1]:1 echo", "local-ipv6 [::1]:7777 echo", "b [::1]:2 echo"];
        assert_eq!(found(&place), expected);
    }
    // The kind of the earlier file is not kept: a listener is replaced as a whole.
    let kind = listener("a", 1) + "kind = 'status'\n" + &listener("c", 3);
    fs::write(place.main(), kind).unwrap();
    place.write("1.toml", &listener("a", 2));
    assert_eq!(found(&place), ["a [::1]:2 echo", "c [::1]:3 echo"]);
    // The address of a removed listener can be used by another one.
    place.write("2.toml", &(listener("a", 4) + &listener("d", 2)));
    assert_eq!(found(&place), ["a [::1]:4 echo", "c [::1]:3 echo", "d [::1]:2 echo"]);
    place.write("3.toml", "listener = []\n").write("4.toml", &listener("e", 3));
    assert_eq!(found(&place), ["e [::1]:3 echo"]);

    place.write("5.toml", &listener("f", 3));
    let lines = place.try_load().unwrap_err();
    let taken = "main.toml.d/5.toml:3:11: listener.address: [::1]:3 is listed twice; remove one";
    assert_eq!(lines, [taken]);
    fs::remove_file(place.drop_in("5.toml")).unwrap();
    fs::remove_file(place.drop_in("4.toml")).unwrap();
    let lines = place.try_load().unwrap_err();
    assert_begin(
        &lines,
        &[
            "main.toml.d/3.toml:1:12: listener: no listener of kind \"echo\" or \"identity\"; add one",
        ],
    );
}

/// Goal: several files together have no more listeners than one may have, and are checked quickly.
#[test]
fn listeners_of_all_files_together_are_limited() {
    let place = Place::new("many", "");
    for file in 0..100 {
        let listener = |number: u32| {
            format!("[[listener]]\nname = 'n{file}.{number}'\naddress = 'unix:/{file}.{number}'\n")
        };
        place.write(&format!("{file}.toml"), &(0..200).map(listener).collect::<String>());
    }
    let begin = std::time::Instant::now();
    let lines = place.try_load().unwrap_err();
    assert_begin(
        &lines,
        &["main.toml.d/99.toml:1:1: listener: more than 256 listeners in all files; "],
    );
    assert!(begin.elapsed().as_secs() < 10, "{:?}", begin.elapsed());
}

/// Goal: only regular files are read, and no other kind blocks. Method: every other kind, as the
/// file itself and as a drop-in. If one blocked, the test would not end.
#[test]
fn a_file_that_is_none_is_refused_at_once() {
    let place = Place::new("kinds", "");
    let odd = |name: &str| place.0.join(name);
    assert!(Command::new("mkfifo").arg(odd("fifo")).status().unwrap().success());
    let _socket = UnixListener::bind(odd("socket")).unwrap();
    for (file, what) in [
        (odd("fifo"), "it is a FIFO (a named pipe)"),
        (odd("socket"), "it is a socket"),
        (PathBuf::from("/dev/zero"), "it is a device"),
        (PathBuf::from("/dev/tty"), "it is a device"),
        (odd("main.toml.d"), "it is a directory"),
    ] {
        let error = config::load(Some(&file), &Overrides::default()).unwrap_err();
        let expected = format!(
            "{}: cannot be read: {what}, not a regular file; put a readable regular file in its \
             place",
            file.display()
        );
        assert_eq!((error.to_string(), error.exit_status()), (expected, 78));
        if what.contains("directory") {
            continue;
        }
        symlink(&file, place.drop_in("odd.toml")).unwrap();
        let lines = place.try_load().unwrap_err();
        let expected = format!("main.toml.d/odd.toml: cannot be read: {what}, ");
        assert_begin(&lines, &[&expected]);
        fs::remove_file(place.drop_in("odd.toml")).unwrap();
    }
    symlink("missing", place.drop_in("odd.toml")).unwrap();
    let lines = place.try_load().unwrap_err();
    assert!(lines[0].contains("it is a symbolic link to a file that is missing"), "{lines:?}");
    // The usual way to switch a drop-in off, and to ask for the defaults.
    fs::remove_file(place.drop_in("odd.toml")).unwrap();
    symlink("/dev/null", place.drop_in("odd.toml")).unwrap();
    assert_eq!(place.load(), Config::default());
    let none = config::load(Some(Path::new("/dev/null")), &Overrides::default());
    assert_eq!(none.unwrap(), Config::default());
    // A file instead of the directory.
    fs::remove_dir_all(place.0.join("main.toml.d")).unwrap();
    fs::write(place.0.join("main.toml.d"), "").unwrap();
    assert_begin(&place.try_load().unwrap_err(), &["main.toml.d: cannot be read: Not a directory"]);
}

/// Goal: a listener without an address is for sockets that are passed under its name, and its kind
/// may be left to that name.
#[test]
fn a_listener_may_have_no_address() {
    let text = "[[listener]]\nname = 'lan'\n[[listener]]\nname = 'metrics'\n\
                [[listener]]\nname = 'b'\nkind = 'agent-check'\n";
    let config = parsed(text).unwrap();
    let kinds: Vec<Kind> = config.listeners.iter().map(|listener| listener.kind).collect();
    assert_eq!(kinds, [Kind::Echo, Kind::Metrics, Kind::AgentCheck]);
    assert!(config.listeners.iter().all(|it| it.address.is_none() && !it.builtin_default));
    assert_eq!(parsed(&config.to_toml()), Ok(config));
}

#[test]
fn what_cannot_work_is_warned_of() {
    let place = Place::new("warnings", "");
    for (main, drop_in, expected) in [
        ("", "", &[][..]),
        (
            "[timeouts]\nstall = '2m'\n",
            "",
            &[
                "main.toml:2:1: timeouts.stall: \"2m\" is never reached: tcp.user-timeout ends such a \
               connection after \"1m\"; raise",
            ],
        ),
        ("[timeouts]\nstall = '2m'\n", "[tcp]\nuser-timeout = 'off'\n", &[]),
        ("", "[tcp]\nuser-timeout = '59s'\n", &["timeouts.stall: \"1m\" is never reached"]),
        (
            "[access]\nallow = ['10.0.0.0/8', '::1', '10.1.0.0/16']\n",
            "[access]\ndeny = ['10.0.0.0/8']\n",
            &[
                "main.toml:2:1: access.allow: \"10.0.0.0/8\" is denied as well, ",
                "main.toml:2:1: access.allow: \"10.1.0.0/16\" is denied as well, ",
            ],
        ),
        ("[access]\nallow = ['10.0.0.0/8']\ndeny = ['10.0.0.0/9']\n", "", &[]),
        ("[access]\ndeny = ['0.0.0.0/0']\n", "", &[]),
        (
            "[access]\ndeny = ['::/1', '0.0.0.0/0', '8000::/1']\n",
            "",
            &[
                "main.toml:2:1: access.deny: no client can connect over TCP or is answered over UDP: ",
            ],
        ),
        (
            "[access]\nallow = ['::1']\ndeny = ['::/0']\n",
            "",
            &["main.toml:3:1: access.deny: no client can connect"],
        ),
        ("[datagram]\nbytes-per-source = 'off'\n", "", &[]),
        (
            "[datagram]\ndatagrams-per-source = 'off'\n",
            "[datagram]\nbytes-per-source = 'off'\n",
            &[
                "main.toml:2:1: datagram.datagrams-per-source: \"off\", as datagram.bytes-per-source",
            ],
        ),
    ] {
        fs::write(place.main(), main).unwrap();
        place.write("1.toml", drop_in);
        assert_begin(&place.warnings(), expected);
    }
}

/// Goal: a return to the kernel's own tuning needs a new socket, another size needs a restart.
#[test]
fn a_buffer_of_an_inherited_socket_is_not_given_back() {
    let size = |text: &str| parsed(&format!("[tcp]\nsend-buffer = '{text}'\n")).unwrap();
    let effect = |before, after| config::changes(&size(before), &size(after))[0].effect;
    assert_eq!(effect("auto", "64KiB"), Effect::AtRestart);
    assert_eq!(effect("64KiB", "32KiB"), Effect::AtRestart);
    assert_eq!(effect("64KiB", "auto"), Effect::AtSocketRestart);
}
