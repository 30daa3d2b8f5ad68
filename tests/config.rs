//! The configuration as the operator meets it: the shipped file, the errors, and the manual.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use echo_uring::cli;
use echo_uring::config::{self, Address, Config, ConfigError, LogTarget, Overrides, Workers};
use log::LevelFilter;

const SHIPPED: &str = include_str!("../config/echo-uring.toml");
const MANUAL_OF_FILE: &str = include_str!("../packaging/man/echo-uring.toml.5");
const MANUAL_OF_DAEMON: &str = include_str!("../packaging/man/echo-uring.8");

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

    fn load(&self, overrides: &Overrides) -> Result<Config, ConfigError> {
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
    assert_eq!(parsed("[server]\n[limits]\n[timeouts]\n[tcp]\n[log]\n"), Ok(Config::default()));
}

#[test]
fn the_defaults_are_what_the_manual_promises() {
    let config = Config::default();
    assert_eq!(config.server.workers, Workers::Auto);
    assert_eq!(config.server.buffers, 256);
    let addresses: Vec<String> =
        config.listeners.iter().map(|listener| listener.address.to_string()).collect();
    assert_eq!(addresses, ["127.0.0.1:7777", "[::1]:7777"]);
    assert!(config.listeners.iter().all(|listener| listener.builtin_default));
    assert_eq!(config.limits.max_connections, 100_000);
    assert_eq!(config.limits.stalled_memory, 64 * 1024 * 1024);
    assert_eq!(config.timeouts.idle, Some(Duration::from_secs(3600)));
    assert_eq!(config.timeouts.stall, Some(Duration::from_secs(60)));
    assert_eq!(config.timeouts.drain, Duration::from_secs(10));
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
        server = { workers = 3, buffers = 1024 }
        [[listener]]
        name = 'a.b-c_D'
        address = '[::]:0'
        [[listener]]
        name = 'file'
        address = 'unix:/run/\u{e4} \"x\\y\".sock'
        [limits]
        max-connections = 1
        stalled-memory = '1000001B'
        [timeouts]
        idle = 'off'
        stall = '1h 2m 3s 4ms'
        drain = '0s'
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

/// Each pair: a file, and the whole line that refuses it.
#[test]
fn each_error_names_line_key_and_cure() {
    let limits = "use a number from 1 to 4194304";
    let idle = "use a duration from \"10ms\" to \"1year\" or \"off\"";
    let memory = "use a size from \"64KiB\" to \"1TiB\"";
    let buffer = "use a size from \"2KiB\" to \"1GiB\" or \"auto\"";
    let workers = "use a number from 1 to 1024 or \"auto\"";
    let levels = "use \"error\", \"warn\", \"info\", \"debug\", \"trace\", \"off\"";
    let keepalive = "use a duration from \"1s\" to \"9h\" or \"off\"";
    for (text, expected) in [
        ("\n[limits]\nmax-connections = 0", format!("3: limits.max-connections: 0 is out of range; {limits}")),
        ("[limits]\nmax-connections = 99999999999", format!("2: limits.max-connections: 99999999999 is out of range; {limits}")),
        ("[limits]\nmax-connections = \"many\"", format!("2: limits.max-connections: \"many\" is not a whole number; {limits}")),
        ("[limits]\nmax-connections = 1.5", format!("2: limits.max-connections: 1.5 is not a whole number; {limits}")),
        ("[limits]\nstalled-memory = 4096", format!("2: limits.stalled-memory: 4096 is not a size; {memory}")),
        ("[limits]\nstalled-memory = '4KiB'", format!("2: limits.stalled-memory: \"4KiB\" is out of range; {memory}")),
        ("[server]\nworkers = 0", format!("2: server.workers: 0 is out of range; {workers}")),
        ("[server]\nworkers = 1025", format!("2: server.workers: 1025 is out of range; {workers}")),
        ("[server]\nworkers = 'all'", format!("2: server.workers: \"all\" is not a whole number; {workers}")),
        ("[server]\nbuffers = 100", "2: server.buffers: 100 is not a power of two; use 64 or 128".into()),
        ("[server]\nbuffers = 4", "2: server.buffers: 4 is out of range; use a number from 8 to 32768".into()),
        ("[timeouts]\nidle = '0s'", format!("2: timeouts.idle: \"0s\" is out of range; {idle}")),
        ("[timeouts]\nidle = 30", format!("2: timeouts.idle: 30 is not a duration; {idle}")),
        ("[timeouts]\nstall = 'soon'", format!("2: timeouts.stall: \"soon\" is not a duration; {idle}")),
        ("[timeouts]\ndrain = 'off'", "2: timeouts.drain: \"off\" is not a duration; use a duration from \"0s\" to \"1h\"".into()),
        ("[timeouts]\ndrain = '61m'", "2: timeouts.drain: \"61m\" is out of range; use a duration from \"0s\" to \"1h\"".into()),
        ("[tcp]\nnodelay = 'yes'", "2: tcp.nodelay: \"yes\" is neither true nor false; use true or false".into()),
        ("[tcp]\nkeepalive = '10h'", format!("2: tcp.keepalive: \"10h\" is out of range; {keepalive}")),
        ("[tcp]\nkeepalive = '1s 500ms'", "2: tcp.keepalive: \"1s 500ms\" has a fraction; use whole seconds".into()),
        ("[tcp]\nuser-timeout = '25days'", "2: tcp.user-timeout: \"25days\" is out of range; use a duration from \"1s\" to \"24days\" or \"off\"".into()),
        ("[tcp]\nreceive-buffer = '1KiB'", format!("2: tcp.receive-buffer: \"1KiB\" is out of range; {buffer}")),
        ("[tcp]\nsend-buffer = '2GiB'", format!("2: tcp.send-buffer: \"2GiB\" is out of range; {buffer}")),
        ("[log]\ntarget = 'file'", "2: log.target: \"file\" is not known; use \"auto\", \"syslog\", \"stderr\"".into()),
        ("[log]\nlevel = 'Info'", format!("2: log.level: \"Info\" is not known; {levels}")),
        ("[limits]\n\nmax-conections = 5", "3: limits.max-conections: unknown key; use max-connections or stalled-memory".into()),
        ("[limit]\n", "1: limit: unknown key; use server, listener, limits, timeouts, tcp, log".into()),
        ("server = 3\n", "1: invalid type: integer `3`, expected a section [server]; see echo-uring.toml(5)".into()),
    ] {
        assert_eq!(refusal(text), format!("FILE:{expected}"), "for {text:?}");
    }
}

#[test]
fn broken_listeners_are_refused_with_line_and_cure() {
    let listener = |name: &str, address: &str| {
        format!("[[listener]]\nname = \"{name}\"\naddress = \"{address}\"\n")
    };
    let pair = |one, two| listener("a", one) + &listener("b", two);
    for (text, line, expected) in [
        (
            "listener = []".to_owned(),
            1,
            "listener: 0 listeners; list 1 to 256, or leave the key out",
        ),
        ("[[listener]]\nname = 'a'".into(), 1, "listener.address: missing; add one such as"),
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
        (
            listener("a", "unix:run/x"),
            3,
            "listener.address: \"unix:run/x\" does not name a socket; use",
        ),
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
        (pair("unix:/x", "unix:/x"), 6, "listener.address: unix:/x is listed twice; remove one"),
    ] {
        let error = refusal(&text);
        assert!(error.starts_with(&format!("FILE:{line}: {expected}")), "{error}\nfor {text}");
    }
    for (one, two) in [
        ("[::]:0", "127.0.0.1:0"),
        ("127.0.0.1:1", "127.0.0.1:2"),
        ("127.0.0.1:1", "[::1]:1"),
        ("0.0.0.0:1", "[::1]:1"),
        ("unix:/x", "127.0.0.1:1"),
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
        assert!(error.starts_with(&format!("FILE:{line}: ")), "{error}");
        assert!(error.ends_with("; see echo-uring.toml(5)"), "{error}");
    }
    let twice = refusal("[log]\nlevel = 'info'\nlevel = 'warn'\n");
    assert!(twice.starts_with("FILE:3: log: duplicate key"), "{twice}");
    let error = Config::from_bytes(b"[log]\n# \xff\n", Path::new("FILE")).unwrap_err();
    assert_eq!(error.to_string(), "FILE:2: not UTF-8 text; save the file as UTF-8");
    assert_eq!(error.exit_status(), 78);
}

#[test]
fn a_named_file_must_be_readable() {
    let missing = Path::new("/nonexistent/echo-uring.toml");
    for (path, cause) in [
        (missing, "No such file"),
        (Path::new("/"), "Is a directory"),
        (Path::new("/dev/zero"), "1 MiB"),
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
    };
    let config = file.load(&overrides).unwrap();
    assert_eq!((config.log.level, config.log.target), (LevelFilter::Debug, LogTarget::Stderr));
    let addresses: Vec<Address> =
        config.listeners.iter().map(|listener| listener.address.clone()).collect();
    let expected: Vec<Address> =
        overrides.listen.iter().map(|address| address.parse().unwrap()).collect();
    assert_eq!(addresses, expected);
    assert!(!config.listeners.iter().any(|listener| listener.builtin_default));

    for (listen, expected) in [
        (vec!["here"], "--listen: \"here\" is not an address; use one such as "),
        (vec!["[::1]:7", "[::1]:7"], "--listen: [::1]:7 is listed twice; remove one"),
    ] {
        let listen = listen.into_iter().map(ToOwned::to_owned).collect();
        let error = file.load(&Overrides { listen, log_level: None }).unwrap_err();
        assert_eq!(error.exit_status(), 64);
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}

/// The page has a subsection for each section, in it an item for each key, and in that the default.
#[test]
fn every_key_of_the_shipped_file_is_in_the_manual() {
    let keys = shipped_keys();
    assert_eq!(keys.len(), 16, "a key was added or lost: {keys:?}");
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

#[test]
fn every_option_and_command_is_in_the_manual() {
    let help = cli::parse_from(["echo-uring", "--help"]).unwrap_err().text;
    let options: BTreeSet<&str> = help
        .split(|character: char| !(character.is_ascii_alphanumeric() || character == '-'))
        .filter_map(|word| word.strip_prefix("--"))
        .collect();
    assert_eq!(options, BTreeSet::from(["config", "listen", "log-level", "help", "version"]));
    for option in options {
        let item = format!("\n.It Fl Fl {option}");
        assert!(MANUAL_OF_DAEMON.contains(&item), "echo-uring(8) lacks --{option}");
    }
    for command in ["serve", "check"] {
        let item = format!("\n.It Cm {command}\n");
        assert!(MANUAL_OF_DAEMON.contains(&item), "echo-uring(8) lacks {command}");
    }
}
