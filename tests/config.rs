//! The configuration as the operator meets it: the shipped file, the errors, and the manual.

#![allow(clippy::unwrap_used)] // A test says with a panic what it did not expect.

#[path = "config/files.rs"]
mod files;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use echo_uring::config::{
    self, Address, Change, Config, Effect, Invalid, Kind, LogTarget, Overrides, Workers,
};
use log::LevelFilter;

const SHIPPED: &str = include_str!("../config/echo-uring.toml");
const MANUAL_OF_FILE: &str = include_str!("../packaging/man/echo-uring.toml.5");

fn parsed(text: &str) -> Result<Config, String> {
    Config::from_bytes(text.as_bytes(), Path::new("FILE")).map_err(|error| error.to_string())
}

/// The one line that refuses `text`.
fn refusal(text: &str) -> String {
    let error = parsed(text).expect_err(text);
    assert_eq!(error.lines().count(), 1, "more than one line: {error}");
    error
}

/// A file of this test's own, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, content: &[u8]) -> Self {
        let name = format!("echo-uring-config-{name}-{}.toml", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, content).unwrap();
        Self(path)
    }

    fn load(&self, overrides: &Overrides) -> Result<Config, Invalid> {
        config::load(Some(&self.0), overrides)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Every `section.key` of the shipped file.
fn shipped_keys() -> BTreeSet<(String, String)> {
    let table: toml::Table = SHIPPED.parse().unwrap();
    let mut keys = BTreeSet::new();
    for (section, content) in table {
        let tables = match content {
            toml::Value::Table(table) => vec![table],
            toml::Value::Array(list) => {
                list.into_iter().map(|entry| entry.as_table().unwrap().clone()).collect()
            }
            other => panic!("{section} is no section: {other}"),
        };
        for key in tables.iter().flat_map(toml::Table::keys) {
            keys.insert((section.clone(), key.clone()));
        }
    }
    keys
}

#[test]
fn the_shipped_file_an_empty_file_and_the_defaults_are_one() {
    assert_eq!(parsed(SHIPPED), Ok(Config::default()));
    assert_eq!(parsed(""), Ok(Config::default()));
    assert_eq!(
        parsed("[server]\n[access]\n[limits]\n[timeouts]\n[datagram]\n[tcp]\n[log]\n"),
        Ok(Config::default())
    );
}

#[test]
fn the_defaults_are_what_the_manual_promises() {
    let config = Config::default();
    assert_eq!(config.server.workers, Workers::Auto);
    assert_eq!(config.server.buffers, 256);
    let addresses: Vec<String> =
        config.listeners.iter().map(|it| it.address.as_ref().unwrap().to_string()).collect();
    assert_eq!(addresses, ["127.0.0.1:7777", "[::1]:7777"]);
    assert!(config.listeners.iter().all(|listener| listener.builtin_default));
    assert_eq!(config.limits.max_connections, 100_000);
    assert_eq!(config.limits.stalled_memory, 64 * 1024 * 1024);
    assert_eq!((config.access.allow.len(), config.access.deny.len()), (0, 0));
    assert_eq!(config.limits.max_connections_per_source, None);
    assert_eq!(config.limits.accepts_per_source, None);
    assert_eq!((config.limits.max_bytes, config.timeouts.lifetime), (None, None));
    assert_eq!((config.limits.source_prefix_ipv4, config.limits.source_prefix_ipv6), (32, 64));
    assert_eq!(config.timeouts.idle, Some(Duration::from_secs(3600)));
    assert_eq!(config.timeouts.stall, Some(Duration::from_secs(60)));
    assert_eq!(config.timeouts.drain, Duration::from_secs(10));
    assert_eq!(config.timeouts.drain_lead, Duration::ZERO);
    assert!(config.listeners.iter().all(|listener| listener.kind == Kind::Echo));
    assert!(config.tcp.nodelay);
    assert_eq!(config.tcp.keepalive, Some(Duration::from_secs(120)));
    assert_eq!(config.tcp.user_timeout, Some(Duration::from_secs(60)));
    assert_eq!((config.tcp.receive_buffer, config.tcp.send_buffer), (None, None));
    assert_eq!((config.log.target, config.log.level), (LogTarget::Auto, LevelFilter::Info));
}

/// `check` writes every key, and what it writes means the same again.
#[test]
fn what_check_prints_reads_back_as_itself() {
    let unusual = "
        server = { workers = 3, buffers = 1024, busy-poll = '200us' }
        [[listener]]
        name = 'a.b-c_D'
        address = '[::]:0'
        [[listener]]
        name = 'file'
        address = 'unix:/run/\u{e4} \"x\\y\".sock'
        [[listener]]
        name = 'window'
        address = 'unix:/run/window'
        kind = 'agent-check'
        [access]
        allow = ['10.0.0.0/8', '::ffff:192.0.2.0/120', '2001:DB8::/32']
        deny = ['::1/128']
        [limits]
        max-connections = 1
        stalled-memory = '1000001B'
        max-connections-per-source = 7
        accepts-per-source = 1000000
        source-prefix-ipv4 = 8
        source-prefix-ipv6 = 128
        max-bytes = '1B'
        [timeouts]
        idle = 'off'
        stall = '1h 2m 3s 4ms'
        lifetime = '1year'
        drain = '0s'
        drain-lead = '1m 30s'
        [tcp]
        nodelay = false
        keepalive = 'off'
        user-timeout = '24days'
        receive-buffer = '1GiB'
        send-buffer = '3kB'
        [log]
        target = 'stderr'
        level = 'off'
    ";
    for text in [SHIPPED, unusual] {
        let config = parsed(text).unwrap();
        let printed = config.to_toml();
        assert_eq!(parsed(&printed), Ok(config), "{printed}");
        let table: toml::Table = printed.parse().unwrap();
        for (section, key) in shipped_keys() {
            let found = match &table[&section] {
                toml::Value::Array(list) => list[0].get(&key),
                other => other.get(&key),
            };
            assert!(found.is_some(), "check does not print {section}.{key}");
        }
    }
    let config = parsed(unusual).unwrap();
    assert_eq!(config.limits.stalled_memory, 1_000_001);
    assert_eq!(config.tcp.send_buffer, Some(3000));
    assert_eq!(config.timeouts.stall, Some(Duration::from_millis(3_723_004)));
}

/// For each key: the remedy, and values with what is said to be wrong with them; together they are
/// the whole line.
#[test]
fn each_error_names_line_key_and_remedy() {
    let size = "use a size from \"2KiB\" to \"1GiB\" or \"auto\"";
    let long = "use a duration from \"10ms\" to \"1year\" or \"off\"";
    for (key, remedy, values) in [
        (
            "server.workers",
            "use a number from 1 to 1024 or \"auto\"",
            &[
                ("0", "0 is out of range"),
                ("1025", "1025 is out of range"),
                ("'all'", "\"all\" is not a whole number"),
            ][..],
        ),
        ("server.buffers", "use a number from 8 to 32768", &[("4", "4 is out of range")]),
        ("server.buffers", "use 64 or 128", &[("100", "100 is not a power of two")]),
        (
            "server.busy-poll",
            "use a duration from \"1us\" to \"10ms\" or \"off\"",
            &[("'1s'", "\"1s\" is out of range"), ("'0s'", "\"0s\" is out of range")],
        ),
        (
            "limits.max-connections",
            "use a number from 1 to 4194304",
            &[
                ("0", "0 is out of range"),
                ("99999999999", "99999999999 is out of range"),
                ("'many'", "\"many\" is not a whole number"),
                ("1.5", "1.5 is not a whole number"),
            ],
        ),
        (
            "limits.stalled-memory",
            "use a size from \"64KiB\" to \"1TiB\"",
            &[("4096", "4096 is not a size"), ("'4KiB'", "\"4KiB\" is out of range")],
        ),
        (
            "limits.max-connections-per-source",
            "use a number from 1 to 4194304 or \"off\"",
            &[("0", "0 is out of range"), ("'on'", "\"on\" is not a whole number")],
        ),
        (
            "limits.accepts-per-source",
            "use a number from 1 to 1000000 or \"off\"",
            &[("1000001", "1000001 is out of range")],
        ),
        (
            "limits.source-prefix-ipv4",
            "use a number from 8 to 32",
            &[("7", "7 is out of range"), ("'off'", "\"off\" is not a whole number")],
        ),
        (
            "limits.source-prefix-ipv6",
            "use a number from 16 to 128",
            &[("129", "129 is out of range"), ("-1", "-1 is out of range")],
        ),
        (
            "limits.max-bytes",
            "use a size from \"1B\" to \"1TiB\" or \"off\"",
            &[("'0B'", "\"0B\" is out of range"), ("512", "512 is not a size")],
        ),
        ("timeouts.lifetime", long, &[("'1ms'", "\"1ms\" is out of range")]),
        (
            "access.allow",
            "use one such as [\"10.0.0.0/8\", \"::1\"]",
            &[("'10.0.0.0/8'", "\"10.0.0.0/8\" is not a list"), ("4", "4 is not a list")],
        ),
        ("access.deny", "use one such as \"10.0.0.0/8\"", &[("[4]", "4 is not text")]),
        (
            "access.deny",
            "use \"10.0.0.0/8\" or \"10.0.0.1\"",
            &[("['10.0.0.1/8']", "\"10.0.0.1/8\" has bits beyond its prefix")],
        ),
        (
            "timeouts.idle",
            long,
            &[("'0s'", "\"0s\" is out of range"), ("30", "30 is not a duration")],
        ),
        ("timeouts.stall", long, &[("'soon'", "\"soon\" is not a duration")]),
        (
            "datagram.datagrams-per-source",
            "use a number from 128 to 1000000000 or \"off\"",
            &[("127", "127 is out of range"), ("'7'", "\"7\" is not a whole number")],
        ),
        (
            "datagram.bytes-per-source",
            "use a size from \"64KiB\" to \"1TiB\" or \"off\"",
            &[("'63KiB'", "\"63KiB\" is out of range")],
        ),
        (
            "datagram.reflect-source-ports",
            "use a number from 1 to 65535",
            &[
                ("[0]", "0 is out of range"),
                ("[65536]", "65536 is out of range"),
                ("['7']", "\"7\" is not a whole number"),
            ],
        ),
        (
            "datagram.reflect-source-ports",
            "use one such as [7, 53]",
            &[("7", "7 is not a list"), ("'7'", "\"7\" is not a list")],
        ),
        (
            "timeouts.drain",
            "use a duration from \"0s\" to \"1h\"",
            &[("'off'", "\"off\" is not a duration"), ("'61m'", "\"61m\" is out of range")],
        ),
        (
            "timeouts.drain-lead",
            "use a duration from \"0s\" to \"1h\"",
            &[("'off'", "\"off\" is not a duration"), ("'61m'", "\"61m\" is out of range")],
        ),
        ("tcp.nodelay", "use true or false", &[("'yes'", "\"yes\" is neither true nor false")]),
        (
            "tcp.keepalive",
            "use a duration from \"1s\" to \"9h\" or \"off\"",
            &[("'10h'", "\"10h\" is out of range")],
        ),
        ("tcp.keepalive", "use whole seconds", &[("'1s 500ms'", "\"1s 500ms\" has a fraction")]),
        (
            "tcp.user-timeout",
            "use a duration from \"1s\" to \"24days\" or \"off\"",
            &[("'25days'", "\"25days\" is out of range")],
        ),
        ("tcp.receive-buffer", size, &[("'1KiB'", "\"1KiB\" is out of range")]),
        ("tcp.send-buffer", size, &[("'2GiB'", "\"2GiB\" is out of range")]),
        (
            "log.target",
            "use \"auto\", \"syslog\", \"stderr\"",
            &[("'file'", "\"file\" is not known")],
        ),
        (
            "log.level",
            "use \"error\", \"warn\", \"info\", \"debug\", \"trace\", \"off\"",
            &[("'Info'", "\"Info\" is not known")],
        ),
    ] {
        let (section, name) = key.split_once('.').unwrap();
        for (value, problem) in values {
            let text = format!("\n[{section}]\n# A comment.\n{name} = {value}\n");
            // In a list it is the entry that is named.
            let column = name.len() + " = ".len() + 1 + usize::from(value.starts_with('['));
            let expected = format!("FILE:4:{column}: {key}: {problem}; {remedy}");
            assert_eq!(refusal(&text), expected, "for {text}");
        }
    }
}

#[test]
fn unknown_sections_and_keys_are_refused_with_those_that_there_are() {
    for (text, expected) in [
        (
            "[limits]\n\nmax-conections = 5",
            "3:1: limits.max-conections: unknown key; did you mean max-connections?",
        ),
        (
            "[limits]\nsomething = 5",
            "2:1: limits.something: unknown key; use max-connections, stalled-memory, \
             max-connections-per-source, accepts-per-source, \
             source-prefix-ipv4, source-prefix-ipv6, max-bytes",
        ),
        ("[limit]\n", "1:2: limit: unknown section; did you mean [limits]?"),
        (
            "[something]\n",
            "1:2: something: unknown section; use [server], [[listener]], [access], [limits], \
             [timeouts], [datagram], [tcp], [log]",
        ),
        (
            "[[listener]]\nname = 'a'\nport = 7\n",
            "3:1: listener.port: unknown key; use name, address, kind, proxy-protocol, \
             trusted-proxies, identity-host, identity-then-echo",
        ),
        (
            "server = 3\n",
            "1:10: server: 3 is not a section; use [server], once, with its keys on the lines below",
        ),
    ] {
        assert_eq!(refusal(text), format!("FILE:{expected}"), "for {text}");
    }
}

/// Goal: in a long list, the entry that is wrong is named with its own line.
#[test]
fn a_broken_network_is_refused_with_its_own_line() {
    let remedy = "use one such as \"10.0.0.0/8\", \"2001:db8::/32\" or a single address \
                (numbers, not host names)";
    for (text, place, entry) in [
        ("[access]\ndeny = ['10.0.0.0/8', 'host']\n", "2:23", "host"),
        ("[access]\nallow = [\n  '::1', # 'host'\n\n  \"10.0.0.0/40\",\n]\n", "5:3", "10.0.0.0/40"),
        ("access = { allow = [\n'1.2.3' ] }", "2:1", "1.2.3"),
    ] {
        let key = if text.contains("deny") { "deny" } else { "allow" };
        let expected = format!("FILE:{place}: access.{key}: {entry:?} is not a network; {remedy}");
        assert_eq!(refusal(text), expected);
    }
}

#[test]
fn broken_listeners_are_refused_with_line_and_remedy() {
    let listener = |name: &str, address: &str| {
        format!("[[listener]]\nname = \"{name}\"\naddress = \"{address}\"\n")
    };
    let pair = |one, two| listener("a", one) + &listener("b", two);
    for (text, line, expected) in [
        (
            "listener = []".to_owned(),
            1,
            "listener: an empty list; list 1 to 256 listeners, or omit",
        ),
        (
            "\n[[listener]]\naddress = '[::1]:1'".into(),
            2,
            "listener.name: missing; add one such as",
        ),
        (listener("", "[::1]:1"), 2, "listener.name: \"\" is not a name; use 1 to 64 of"),
        (listener("a b", "[::1]:1"), 2, "listener.name: \"a b\" is not a name; use 1 to 64 of"),
        (
            listener("a", "[::1]:1").repeat(2),
            5,
            "listener.name: \"a\" is the name of two listeners; rename",
        ),
        (
            listener("a", "localhost:7"),
            3,
            "listener.address: \"localhost:7\" is not an address; use one",
        ),
        (
            listener("a", "127.0.0.1"),
            3,
            "listener.address: \"127.0.0.1\" is not an address; use one",
        ),
        (listener("a", "unix:run/x"), 3, "listener.address: \"unix:run/x\" names no socket; use"),
        (
            listener("a", &format!("unix:/{}", "x".repeat(107))),
            3,
            "listener.address: the path has 108 bytes; use at most 107",
        ),
        (pair("[::1]:1", "[::1]:1"), 6, "listener.address: [::1]:1 is listed twice; remove one"),
        (
            pair("0.0.0.0:1", "[::]:1"),
            6,
            "listener.address: [::]:1 and 0.0.0.0:1 overlap; keep the wider one",
        ),
        (
            pair("0.0.0.0:1", "127.0.0.1:1"),
            6,
            "listener.address: 127.0.0.1:1 and 0.0.0.0:1 overlap; keep",
        ),
        (
            listener("a", "unix-datagram:x"),
            3,
            "listener.address: \"unix-datagram:x\" names no socket; use an absolute path such as \
             \"unix-datagram:/run/echo.sock\", or an abstract name such as \"unix-datagram:@echo\"",
        ),
        (
            listener("a", &format!("unix-seqpacket:@{}", "x".repeat(108))),
            3,
            "listener.address: the name has 108 bytes; use at most 107",
        ),
        (
            pair("unix:/x", "unix-datagram:/x"),
            6,
            "listener.address: unix-datagram:/x and unix:/x overlap; keep",
        ),
        (pair("unix:/x", "unix:/x"), 6, "listener.address: unix:/x is listed twice; remove one"),
    ] {
        let error = refusal(&text);
        assert!(error.starts_with(&format!("FILE:{line}:")), "{error}\nfor {text}");
        let (_, rest) = error.split_once(": ").unwrap();
        assert!(rest.starts_with(expected), "{error}\nfor {text}");
    }
    for (one, two) in [
        ("[::]:0", "127.0.0.1:0"),
        ("127.0.0.1:1", "127.0.0.1:2"),
        ("127.0.0.1:1", "[::1]:1"),
        ("0.0.0.0:1", "[::1]:1"),
        ("unix:/x", "127.0.0.1:1"),
        ("unix:@x", "unix-seqpacket:@x"),
    ] {
        assert_eq!(parsed(&pair(one, two)).map(|config| config.listeners.len()), Ok(2));
    }
}

#[test]
fn a_built_in_listener_is_known_by_name_and_address() {
    let text = "[[listener]]\nname = 'local-ipv6'\naddress = '[::1]:7777'\n\
                [[listener]]\nname = 'local-ipv4'\naddress = '127.0.0.1:7'\n";
    let config = parsed(text).unwrap();
    let builtin: Vec<bool> =
        config.listeners.iter().map(|listener| listener.builtin_default).collect();
    assert_eq!(builtin, [true, false]);
}

#[test]
fn text_that_is_no_toml_is_refused_with_its_line() {
    for (text, line) in [("[server\n", 1), ("\n\nworkers\n", 3), ("[log]\nlevel = \"info\n", 2)] {
        let error = refusal(text);
        assert!(error.starts_with(&format!("FILE:{line}:")), "{error}");
        assert!(error.ends_with("; see echo-uring.toml(5)"), "{error}");
    }
    let twice = refusal("[log]\nlevel = 'info'\nlevel = 'warn'\n");
    assert!(twice.starts_with("FILE:3:1: log: duplicate key"), "{twice}");
    let error = Config::from_bytes(b"[log]\n# \xff\n", Path::new("FILE")).unwrap_err();
    assert_eq!(error.to_string(), "FILE:2:3: not UTF-8 text; save the file as UTF-8");
    assert_eq!(error.exit_status(), 78);
}

#[test]
fn a_named_file_must_be_readable() {
    let missing = Path::new("/nonexistent/echo-uring.toml");
    for (path, cause) in [
        (missing, "No such file"),
        (Path::new("/"), "it is a directory"),
        (Path::new("/dev/zero"), "it is a device"),
    ] {
        let error = config::load(Some(path), &Overrides::default()).unwrap_err();
        assert_eq!(error.exit_status(), 78);
        let error = error.to_string();
        assert!(error.starts_with(&format!("{}: cannot be read: ", path.display())), "{error}");
        assert!(error.contains(cause), "{error}");
    }
}

#[test]
fn the_command_line_wins_over_the_file() {
    let file = Scratch::new("overrides", b"[log]\nlevel = 'warn'\ntarget = 'stderr'\n");
    let plain = file.load(&Overrides::default()).unwrap();
    assert_eq!((plain.log.level, plain.listeners.len()), (LevelFilter::Warn, 2));

    let overrides = Overrides {
        listen: vec!["127.0.0.1:0".into(), "unix:/x".into(), "[::1]:7777".into()],
        log_level: Some(LevelFilter::Debug),
        ..Overrides::default()
    };
    let config = file.load(&overrides).unwrap();
    assert_eq!((config.log.level, config.log.target), (LevelFilter::Debug, LogTarget::Stderr));
    let addresses: Vec<Address> =
        config.listeners.iter().map(|it| it.address.clone().unwrap()).collect();
    let expected: Vec<Address> =
        overrides.listen.iter().map(|address| address.parse().unwrap()).collect();
    assert_eq!(addresses, expected);
    assert!(!config.listeners.iter().any(|listener| listener.builtin_default));

    for (listen, expected) in [
        (vec!["here"], "--listen: \"here\" is not an address; use one such as "),
        (vec!["[::1]:7", "[::1]:7"], "--listen: [::1]:7 is listed twice; remove one"),
    ] {
        let listen = listen.into_iter().map(ToOwned::to_owned).collect();
        let error = file.load(&Overrides { listen, ..Overrides::default() }).unwrap_err();
        assert_eq!(error.exit_status(), 64);
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}

/// Goal: a container needs no file to have probes. `--metrics` and `--status` add a listener, or
/// replace the one of that name, and leave the others alone.
#[test]
fn the_command_line_adds_metrics_and_status() {
    let text = b"[[listener]]\nname = 'metrics'\nkind = 'metrics'\naddress = '127.0.0.1:1'\n\
                 [[listener]]\nname = 'a'\naddress = '127.0.0.1:2'\n";
    let file = Scratch::new("metrics", text);
    let (metrics, status) = (Some("[::1]:3".to_owned()), Some("/run/s".into()));
    let overrides = Overrides { metrics, status, ..Overrides::default() };
    let shown = |config: &Config| -> Vec<String> {
        let shown = config.listeners.iter().map(|it| {
            let address = it.address.as_ref().unwrap();
            format!("{} {} {address}", it.name, it.kind.name())
        });
        shown.collect()
    };
    let config = file.load(&overrides).unwrap();
    let expected = ["metrics metrics [::1]:3", "a echo 127.0.0.1:2", "status status unix:/run/s"];
    assert_eq!(shown(&config), expected);
    let listen = vec!["127.0.0.1:4".to_owned()];
    let config = file.load(&Overrides { listen, ..overrides }).unwrap();
    let expected = ["command-line-1 echo 127.0.0.1:4", "metrics metrics [::1]:3"];
    assert_eq!(shown(&config)[..2], expected);
    for (metrics, status, expected) in [
        (Some("here"), None, "--metrics: \"here\" is not an address; use one such as "),
        (Some("udp:[::1]:3"), None, "--metrics: udp:[::1]:3 is not served over UDP; use a TCP "),
        (Some("127.0.0.1:2"), None, "--metrics: 127.0.0.1:2 is listed twice; remove one"),
        (None, Some("relative"), "--status: \"unix:relative\" names no socket; use an absolute "),
    ] {
        let (metrics, status) = (metrics.map(ToOwned::to_owned), status.map(Into::into));
        let error = file.load(&Overrides { metrics, status, ..Overrides::default() }).unwrap_err();
        assert_eq!(error.exit_status(), 64);
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}

/// The page has a subsection for each section, in it an item for each key, and in that the default.
#[test]
fn every_key_of_the_shipped_file_is_in_the_manual() {
    let keys = shipped_keys();
    assert_eq!(keys.len(), 36, "a key was added or lost: {keys:?}");
    let table: toml::Table = SHIPPED.parse().unwrap();
    for (section, key) in keys {
        let heading = match &table[&section] {
            toml::Value::Array(_) => format!("\n.Ss \\&[[{section}]] sections\n"),
            _ => format!("\n.Ss \\&[{section}] section\n"),
        };
        let (_, content) = MANUAL_OF_FILE
            .split_once(&heading)
            .unwrap_or_else(|| panic!("no subsection {section}"));
        let content = content.split("\n.S").next().unwrap();
        let item = format!("\n.It Cm {key} No = ");
        let (_, item) =
            content.split_once(&item).unwrap_or_else(|| panic!("no item {section}.{key}"));
        let default = item.lines().next().unwrap().replace("Qq ", "");
        if let Some(value) = table[&section].get(&key) {
            assert_eq!(default, value.to_string().trim_matches('"'), "default of {section}.{key}");
        }
    }
}

/// Goal: no key is forgotten when a reload compares. Method: every key of the file, one at a time,
/// with a value that is not its default.
#[test]
fn a_change_of_any_key_is_noticed_and_put_off_or_in_force() {
    let default = Config::default();
    let mut noticed = BTreeSet::new();
    for (key, value) in [
        ("server.workers", "3"),
        ("server.buffers", "64"),
        ("server.busy-poll", "'1ms'"),
        ("server.listening-sockets", "'per-worker'"),
        ("server.pin-workers", "true"),
        ("access.allow", "['10.0.0.0/8']"),
        ("access.deny", "['10.0.0.1', '::1']"),
        ("limits.max-connections", "7"),
        ("limits.stalled-memory", "'1MiB'"),
        ("limits.max-connections-per-source", "7"),
        ("limits.accepts-per-source", "7"),
        ("limits.max-bytes", "'7MiB'"),
        ("limits.source-prefix-ipv4", "24"),
        ("limits.source-prefix-ipv6", "48"),
        ("timeouts.idle", "'7s'"),
        ("timeouts.stall", "'7s'"),
        ("timeouts.lifetime", "'7s'"),
        ("timeouts.drain", "'7s'"),
        ("timeouts.drain-lead", "'7s'"),
        ("datagram.datagrams-per-source", "700"),
        ("datagram.bytes-per-source", "'7MiB'"),
        ("datagram.reflect-source-ports", "[7]"),
        ("tcp.nodelay", "false"),
        ("tcp.keepalive", "'7s'"),
        ("tcp.user-timeout", "'7s'"),
        ("tcp.receive-buffer", "'64KiB'"),
        ("tcp.send-buffer", "'64KiB'"),
        ("log.target", "'stderr'"),
        ("log.level", "'debug'"),
        ("listener", "{ name = 'a', address = '[::1]:1' }"),
    ] {
        let wanted = match key.split_once('.') {
            Some((section, name)) => parsed(&format!("[{section}]\n{name} = {value}\n")),
            None => parsed(&format!("{key} = [{value}]\n")),
        };
        let wanted = wanted.unwrap();
        let changes = config::changes(&default, &wanted);
        let [Change { key: found, effect }] = changes[..] else { panic!("{key}: {changes:?}") };
        assert_eq!(found, key);
        let spelled = config::spelled(&wanted, key);
        assert_eq!(spelled.is_some(), key != "listener");
        let present = config::in_force(&default, &wanted);
        let expected = if effect == Effect::AtReload { &wanted } else { &default };
        assert_eq!(present, *expected, "{key}");
        noticed.insert(key.to_owned());
    }
    let shipped = shipped_keys().into_iter().map(|(section, key)| match section.as_str() {
        "listener" => section,
        _ => format!("{section}.{key}"),
    });
    assert_eq!(noticed, shipped.collect(), "a key is not tried here");
    assert_eq!(config::spelled(&default, "timeouts.idle").as_deref(), Some("\"1h\""));
    assert_eq!(config::changes(&default, &default), []);
}

#[test]
fn a_listener_has_a_kind_and_one_at_least_is_an_echo() {
    let listener = |name: &str, port: u16, kind: &str| {
        format!("[[listener]]\nname = '{name}'\naddress = '[::1]:{port}'\nkind = {kind}\n")
    };
    let both = listener("a", 1, "'metrics'") + &listener("b", 2, "'echo'");
    let kinds: Vec<Kind> =
        parsed(&both).unwrap().listeners.iter().map(|listener| listener.kind).collect();
    assert_eq!(kinds, [Kind::Metrics, Kind::Echo]);
    for (kind, words) in [
        ("'udp'", "listener.kind: \"udp\" is not known; use \"echo\", \"identity\""),
        ("7", "listener.kind: 7 is not known"),
        ("'status'", "listener: no listener of kind \"echo\" or \"identity\"; add one"),
    ] {
        let error = parsed(&listener("a", 1, kind)).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
}

/// Goal: what an identity tells belongs to a listener of that kind, and reads back as it was.
#[test]
fn an_identity_belongs_to_a_listener_of_its_kind() {
    let listener = |address: &str, more: &str| {
        format!("[[listener]]\nname = 'a'\naddress = '{address}'\n{more}\n")
    };
    let tcp = "127.0.0.1:7";
    for (more, host, then_echo) in [
        ("", None, false),
        ("identity-host = 'off'\nidentity-then-echo = false", None, false),
        ("identity-host = 'web-1'\nidentity-then-echo = true", Some("web-1"), true),
        ("identity-host = 'auto'\nproxy-protocol = 'off'", Some("auto"), false),
    ] {
        let text = listener(tcp, &format!("kind = 'identity'\n{more}"));
        let config = parsed(&text).unwrap();
        let identity = &config.listeners[0].identity;
        assert_eq!((identity.host.as_deref(), identity.then_echo), (host, then_echo), "{text}");
        assert_eq!(config.listeners[0].kind, Kind::Identity);
        assert_eq!(parsed(&config.to_toml()).unwrap(), config, "{text}");
    }
    for (text, words) in [
        (
            listener(tcp, "identity-host = 'x'"),
            "listener.identity-host: of no effect; add kind = \"identity\", or remove it",
        ),
        (
            listener("udp:[::1]:7", "kind = 'identity'\nidentity-then-echo = true"),
            "listener.identity-then-echo: of no effect on datagrams; remove it",
        ),
    ] {
        assert!(refusal(&text).contains(words), "{}", refusal(&text));
    }
}

/// Goal: a listener for proxies says whom it trusts, unless only this machine can reach it; and
/// what it says survives being written out. Method: every combination that matters.
#[test]
fn a_listener_for_proxies_names_them() {
    let listener = |address: &str, more: &str| {
        let address =
            if address.is_empty() { String::new() } else { format!("address = '{address}'\n") };
        format!("[[listener]]\nname = 'a'\n{address}{more}\n")
    };
    let (require, trusted) = ("proxy-protocol = 'require'", "trusted-proxies = ['10.0.0.1']");
    let both = format!("{require}\n{trusted}");
    let empty = format!("{require}\ntrusted-proxies = []");
    let tcp = "127.0.0.1:7";
    for (text, proxies) in [
        (listener(tcp, "proxy-protocol = 'off'"), None),
        (listener(tcp, "trusted-proxies = []"), None),
        (listener(tcp, &both), Some(1)),
        (listener("udp:[::1]:7", &both), Some(1)),
        (listener("", &both), Some(1)),
        (listener("", &empty), Some(0)),
        (listener("unix:/run/a", require), Some(0)),
        (listener("unix:/run/a", &both), Some(1)),
    ] {
        let config = parsed(&text).unwrap();
        assert_eq!(config.listeners[0].proxies.as_ref().map(Vec::len), proxies, "{text}");
        assert_eq!(parsed(&config.to_toml()).unwrap(), config, "{text}");
    }
    for (text, words) in [
        (listener(tcp, require), "listener.trusted-proxies: missing; name the proxies"),
        (listener("", require), "listener.trusted-proxies: missing; name the proxies"),
        (listener(tcp, &empty), "listener.trusted-proxies: empty, so that"),
        (listener(tcp, trusted), "listener.trusted-proxies: has no effect; add"),
        (
            listener(tcp, "proxy-protocol = 'auto'"),
            "listener.proxy-protocol: \"auto\" is not known",
        ),
        (
            listener(tcp, &format!("{both}\nkind = 'status'")),
            "listener.proxy-protocol: \"require\" is for an echo or an identity",
        ),
    ] {
        assert!(refusal(&text).contains(words), "{}", refusal(&text));
    }
}
