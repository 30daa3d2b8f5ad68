//! The style of the project as a test: boundaries between the modules of the daemon, the interface
//! between core and ring, and sizes. The compiler enforces the boundaries between packages and the
//! purity of the core (`no_std`, no unsafe code).
//!
//! Each rule is a function from a source to the faults it finds, and each is shown to find a
//! planted fault. A rule without a check is not enforced, and neither is a check that cannot fail.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[path = "tidy/lexer.rs"]
mod lexer;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/words.rs"]
mod words;

use std::collections::{BTreeMap, BTreeSet};

use source::{Source, tree};

/// What each module of the daemon may name of the others, and of the crates below it. Arrows point
/// down only; the leaves do not know each other. What a crate may name, its manifest says.
const WALLS: &[(&str, &[&str])] = &[
    ("lib", &[]),
    ("main", &["cli", "daemon", "doctor", "admin"]),
    // It uses the modules of the daemon and needs no running daemon; a running one is asked for its
    // status.
    ("doctor", &["capacity", "cli", "config", "listen", "admin", "systemd", "echo_ring"]),
    (
        "daemon",
        &[
            "capacity",
            "cli",
            "config",
            "handover",
            "instance",
            "listen",
            "logging",
            "metrics",
            "rate_limiter",
            "source_limiter",
            "admin",
            "systemd",
            "worker",
            "echo_core",
            "echo_ring",
        ],
    ),
    // The daemon's need of locked memory, so that daemon and doctor calculate alike.
    ("capacity", &["config", "admin", "echo_ring"]),
    ("worker", &["metrics", "echo_core"]),
    // The locks around what the core counts.
    ("rate_limiter", &["echo_core"]),
    ("source_limiter", &["echo_core"]),
    // It carries what the core says of a connection.
    ("handover", &["echo_core"]),
    ("cli", &["instance", "echo_ring"]),
    ("config", &["instance"]),
    ("instance", &[]),
    // It takes the addresses and socket options that were configured, as plain values.
    ("listen", &["config"]),
    ("logging", &[]),
    // What workers publish are the counters of the core.
    ("metrics", &["echo_core"]),
    // It shows what the core counted; the daemon hands it the rest as plain values.
    ("admin", &["echo_core", "echo_ring"]),
    ("systemd", &[]),
];

/// Where each dependency of the daemon may be named: those that are a mechanism of one module, in
/// that module alone.
const CRATES: &[(&str, &[&str])] = &[
    ("clap", &["cli"]),
    ("humantime", &["config"]),
    ("httparse", &["admin"]),
    ("ipnet", &["config"]),
    ("listenfd", &["listen"]),
    ("prometheus", &["admin"]),
    ("sd_notify", &["systemd"]),
    ("rustix", &["handover", "admin"]),
    ("serde", &["admin"]),
    ("serde_json", &["doctor", "admin"]),
    ("syslog", &["logging"]),
    ("toml", &["config"]),
    (
        "log",
        &["main", "daemon", "worker", "cli", "config", "listen", "logging", "metrics", "systemd"],
    ),
    (
        "nix",
        &[
            "main", "config", "daemon", "doctor", "worker", "listen", "logging", "metrics",
            "admin", "systemd",
        ],
    ),
    ("socket2", &["daemon", "doctor", "listen", "admin"]),
];

/// How many `unsafe` blocks echo-ring has. The number may only fall: lower it when one goes. Three
/// of them are the submissions of the client's driver that point to memory, three keep payload out
/// of core dumps and prove the restrictions of a ring, seven are the memory of spilled bytes
/// (`spill`): an allocator is used through pointers. One asks whether standard output is open,
/// before the start-up code of Rust can hide that it is not (`output`). Six are datagrams: a
/// header of zeroes, a receive, a reply and a system call that point to buffers of the pool, the
/// bytes of a buffer, and one in a test.
const UNSAFE_BLOCKS: usize = 40;

const COLUMNS_MAX: usize = 100;
/// One type and what belongs to it is one file; more than this is more than one concept.
const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;

fn walls(source: &Source) -> Vec<String> {
    if !source.is_daemon() {
        return Vec::new();
    }
    let Some((_, allowed)) = WALLS.iter().find(|(module, _)| *module == source.module) else {
        return vec![source.fault(1, "is of a module that WALLS does not know")];
    };
    let mut faults = Vec::new();
    let mut named = source.code.paths("echo_uring");
    named.extend(source.code.paths("crate"));
    for name in ["echo_core", "echo_ring"] {
        named.extend(source.code.paths(name).into_iter().map(|(line, _)| (line, name.to_owned())));
    }
    for (line, path) in named {
        let target = path.split("::").next().unwrap();
        // What is not a module is an item of the root, of which there are none but modules.
        if target != source.module && !allowed.contains(&target) {
            faults.push(source.fault(line, &format!("{} may not use {target}", source.module)));
        }
    }
    if source.top_level {
        let climbs = |line: &&(usize, String)| line.1.starts_with("use super::");
        let lines = source.code.numbered();
        let fault = |line: &(usize, String)| source.fault(line.0, "reaches up to the root");
        faults.extend(lines.iter().filter(climbs).map(fault));
    }
    faults
}

/// Of the core, echo-ring and echo-load know the words alone.
fn seam(source: &Source) -> Vec<String> {
    if !["echo-ring", "echo-load"].contains(&source.package.as_str()) {
        return Vec::new();
    }
    let paths = source.code.paths("echo_core").into_iter();
    let foreign = paths.filter(|(_, path)| {
        !["op", "datagram", "kernel", "buffer_offer"].contains(&path.split("::").next().unwrap())
    });
    let what = "of the core, op, datagram, kernel and buffer_offer alone are known here";
    foreign.map(|(line, _)| source.fault(line, what)).collect()
}

/// Headers of the PROXY protocol are read by the driver and written by the client. To the core and
/// the daemon, half a header is bytes, and an announced address one like any other.
fn proxy_headers(source: &Source) -> Vec<String> {
    let may = match source.package.as_str() {
        "echo-load" | "echo-proxy-header" => true,
        "echo-ring" => source.module == "driver",
        _ => false,
    };
    let paths = source.code.paths("echo_proxy_header");
    let foreign = paths.iter().filter(|_| !may);
    foreign.map(|(line, _)| source.fault(*line, "may not know echo_proxy_header")).collect()
}

/// Which modules each module of each package names, by package. A module with a folder of its own
/// is one with it; the modules of `stream` and of `datagram` in the core are distinguished.
fn graph(sources: &[Source]) -> BTreeMap<(String, String), BTreeSet<String>> {
    let mut graph: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for source in sources {
        let node = source.node();
        let inner = node.split_once("::").map(|(folder, _)| folder);
        let mut named: Vec<String> =
            source.code.paths("crate").into_iter().map(|(_, path)| path).collect();
        if source.top_level && inner.is_none() {
            named.extend(source.code.paths("super").into_iter().map(|(_, path)| path));
        }
        if let Some(folder) = inner {
            let siblings = source.code.paths("super").into_iter();
            named.extend(siblings.map(|(_, path)| format!("{folder}::{path}")));
        }
        let targets = named.iter().map(|path| {
            let mut parts = path.split("::");
            match (parts.next().unwrap(), parts.next()) {
                (folder @ ("stream" | "datagram"), Some(inner)) if !inner.is_empty() => {
                    format!("{folder}::{inner}")
                }
                (module, _) => module.to_owned(),
            }
        });
        let targets = targets.filter(|target| *target != node).collect::<Vec<_>>();
        graph.entry((source.package.clone(), node)).or_default().extend(targets);
    }
    graph
}

/// Modules that name each other, directly or by way of others.
fn circles(sources: &[Source]) -> Vec<String> {
    let graph = graph(sources);
    let mut faults = Vec::new();
    for (package, start) in graph.keys() {
        let mut reached = BTreeSet::new();
        let mut next = vec![start.clone()];
        while let Some(module) = next.pop() {
            for target in graph.get(&(package.clone(), module)).into_iter().flatten() {
                if reached.insert(target.clone()) {
                    next.push(target.clone());
                }
            }
        }
        if reached.contains(start) {
            let back = graph.iter().filter(|((of, module), targets)| {
                of == package && targets.contains(start) && reached.contains(module)
            });
            let back: Vec<&str> = back.map(|((_, module), _)| module.as_str()).collect();
            faults.push(format!("{package}: {start} is named by what it names: {back:?}"));
        }
    }
    faults
}

fn crates(source: &Source) -> Vec<String> {
    let mut faults = Vec::new();
    if !source.is_daemon() {
        return faults;
    }
    for (name, modules) in CRATES {
        for (line, _) in source.code.paths(name) {
            if !modules.contains(&source.module.as_str()) {
                faults.push(source.fault(line, &format!("{} may not use {name}", source.module)));
            }
        }
    }
    faults
}

fn form(source: &Source) -> Vec<String> {
    let mut faults = Vec::new();
    if !source.text.starts_with("//!") {
        faults.push(source.fault(1, "does not open with what it is for (//!)"));
    }
    let count = source.text.lines().count();
    if count > FILE_LINES_MAX {
        faults.push(source.fault(count, &format!("has more than {FILE_LINES_MAX} lines")));
    }
    for (number, line) in (1..).zip(source.text.lines()) {
        // An address of the web cannot be broken.
        if line.chars().count() > COLUMNS_MAX && !line.contains("://") {
            faults.push(source.fault(number, &format!("has more than {COLUMNS_MAX} columns")));
        }
        for word in LEFTOVERS {
            if line.contains(word) {
                faults.push(source.fault(number, &format!("left over: {word}")));
            }
        }
    }
    faults
}

/// What is not merged.
const LEFTOVERS: &[&str] = &["todo!", "TODO", "FIXME", "XXX", "dbg!", "unimplemented!"];

fn functions(source: &Source) -> Vec<String> {
    let long = |(_, _, length): &(usize, String, usize)| *length > FUNCTION_LINES_MAX;
    let all = source.code.functions().into_iter().filter(long);
    all.map(|(line, name, length)| source.fault(line, &format!("{name} has {length} lines")))
        .collect()
}

/// In the core a match over these names every case, so that a new case cannot be passed over in
/// silence.
fn exhaustive_matches(source: &Source) -> Vec<String> {
    if source.package != "echo-core" {
        return Vec::new();
    }
    let mut faults = Vec::new();
    for (line, arms) in source.code.wildcard_arms() {
        for name in ["Event::", "Op::", "Phase::"] {
            if arms.contains(name) {
                faults.push(source.fault(line, &format!("a match over {name} ends with _")));
            }
        }
    }
    faults
}

/// Links of a document to files beside it.
fn links(document: &str, text: &str) -> Vec<String> {
    let root = source::root();
    let mut faults = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap();
            let foreign = target.contains("://") || target.starts_with("mailto:");
            if !foreign && !path.is_empty() && !root.join(path).exists() {
                faults.push(format!("{document}:{number}: {target} does not exist"));
            }
        }
    }
    faults
}

/// Fails with all faults that `rule` finds in the project.
fn assert_tidy(rule: fn(&Source) -> Vec<String>) {
    let faults: Vec<String> = tree().iter().flat_map(rule).collect();
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn arrows_point_down() {
    assert_tidy(walls);
}

#[test]
fn no_modules_name_each_other() {
    let faults = circles(&tree());
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn each_crate_is_used_in_its_place() {
    assert_tidy(crates);
}

#[test]
fn every_dependency_has_its_place() {
    let manifest = std::fs::read_to_string(source::root().join("Cargo.toml")).unwrap();
    let (_, rest) = manifest.split_once("\n[dependencies]\n").unwrap();
    let section = rest.split("\n[").next().unwrap();
    for line in section.lines().filter(|line| line.contains('=') && !line.starts_with("echo-")) {
        let name = line.split('.').next().unwrap().trim().replace('-', "_");
        assert!(CRATES.iter().any(|(known, _)| *known == name), "CRATES does not know {name}");
    }
}

#[test]
fn the_seam_is_all_that_is_known_of_the_core() {
    assert_tidy(seam);
}

#[test]
fn the_driver_and_the_client_alone_know_proxy_headers() {
    assert_tidy(proxy_headers);
}

#[test]
fn unsafe_blocks_grow_fewer() {
    let sources = tree();
    let count: usize = sources.iter().map(|source| source.code.unsafe_blocks()).sum();
    println!("unsafe blocks: {count}");
    assert!(count <= UNSAFE_BLOCKS, "{count} unsafe blocks; there were {UNSAFE_BLOCKS}");
    assert_eq!(count, UNSAFE_BLOCKS, "well done: now lower UNSAFE_BLOCKS to {count}");
}

#[test]
fn files_have_their_form() {
    assert_tidy(form);
}

#[test]
fn functions_fit_on_a_page() {
    assert_tidy(functions);
}

#[test]
fn the_core_matches_exhaustively() {
    assert_tidy(exhaustive_matches);
}

#[test]
fn links_lead_somewhere() {
    for entry in std::fs::read_dir(source::root()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "md") {
            let text = std::fs::read_to_string(&path).unwrap();
            let faults = links(&path.display().to_string(), &text);
            assert!(faults.is_empty(), "{}", faults.join("\n"));
        }
    }
}

/// Each rule finds what it is there for, and passes what is right.
mod planted {
    use super::*;

    fn faults(rule: fn(&Source) -> Vec<String>, path: &str, text: &str) -> usize {
        rule(&Source::new(path, text)).len()
    }

    #[test]
    fn a_breach_of_a_wall_is_found() {
        assert_eq!(faults(walls, "src/admin/x.rs", "use crate::config::Config;"), 1);
        assert_eq!(faults(walls, "src/config/x.rs", "use echo_core::op::Op;"), 1);
        assert_eq!(
            faults(walls, "src/worker.rs", "use crate::{\n    metrics::Board,\n    cli,\n};"),
            1
        );
        assert_eq!(faults(walls, "src/systemd.rs", "fn a() { crate::logging::b() }"), 1);
        assert_eq!(faults(walls, "src/config.rs", "use super::cli;"), 1);
        assert_eq!(faults(walls, "src/main.rs", "use echo_uring::worker;"), 1);
        assert_eq!(faults(walls, "src/unlisted.rs", ""), 1);
        let server = "use echo_core::server::Server;";
        assert_eq!(faults(seam, "crates/echo-ring/src/x.rs", server), 1);
        assert_eq!(faults(seam, "crates/echo-load/src/x.rs", server), 1);
    }

    #[test]
    fn a_proxy_header_out_of_place_is_found() {
        let text = "use echo_proxy_header::Parser;";
        assert_eq!(faults(proxy_headers, "src/worker.rs", text), 1);
        assert_eq!(faults(proxy_headers, "crates/echo-core/src/op.rs", text), 1);
        assert_eq!(faults(proxy_headers, "crates/echo-ring/src/ring.rs", text), 1);
        assert_eq!(faults(proxy_headers, "crates/echo-ring/src/driver/receive.rs", text), 0);
        assert_eq!(faults(proxy_headers, "crates/echo-load/src/worker.rs", text), 0);
    }

    #[test]
    fn an_arrow_down_is_none() {
        let seen = "// see crate::config\nuse echo_core::op::{Event, Op};";
        assert_eq!(faults(seam, "crates/echo-ring/src/x.rs", seen), 0);
        assert_eq!(faults(walls, "src/handover/x.rs", seen), 0);
        let nested = "mod tests {\n    use super::*;\n}";
        assert_eq!(faults(walls, "src/config.rs", nested), 0);
        assert_eq!(faults(walls, "src/config/file.rs", "use super::Config;"), 0);
    }

    #[test]
    fn a_circle_is_found() {
        let source = |path: &str, text: &str| Source::new(path, text);
        let there = source("crates/echo-core/src/op.rs", "use crate::id::Id;");
        let back = source("crates/echo-core/src/id.rs", "use crate::stream::a::A;");
        let on = source("crates/echo-core/src/stream/a.rs", "use super::b::B;");
        let end = source("crates/echo-core/src/stream/b.rs", "use crate::op::Op;");
        assert_eq!(circles(&[there, back]).len(), 0);
        let there = source("crates/echo-core/src/op.rs", "use crate::id::Id;");
        let back = source("crates/echo-core/src/id.rs", "use crate::stream::a::A;");
        assert_eq!(circles(&[there, back, on, end]).len(), 4);
    }

    #[test]
    fn a_crate_out_of_place_is_found() {
        assert_eq!(faults(crates, "src/daemon.rs", "use toml::Table;"), 1);
        assert_eq!(faults(crates, "src/config.rs", "use serde_json::json;"), 1);
        assert_eq!(faults(crates, "src/config/file.rs", "use toml::Table;"), 0);
        assert_eq!(faults(crates, "src/daemon.rs", "fn a() { catalog::open(); }"), 0);
    }

    #[test]
    fn an_unsafe_block_is_counted() {
        let bare = "fn a() {\n    unsafe { b() }\n}";
        assert_eq!(Source::new("crates/echo-ring/src/x.rs", bare).code.unsafe_blocks(), 1);
        let function = "unsafe fn a() {}";
        assert_eq!(Source::new("crates/echo-ring/src/x.rs", function).code.unsafe_blocks(), 0);
    }

    #[test]
    fn bad_form_is_found() {
        assert_eq!(faults(form, "src/a.rs", "use std::fmt;\n"), 1);
        assert_eq!(faults(form, "src/a.rs", &format!("//! {}\n", "x".repeat(97))), 1);
        assert_eq!(faults(form, "src/a.rs", &format!("//! {}\n", "ä".repeat(96))), 0);
        assert_eq!(faults(form, "src/a.rs", &"//! x\n".repeat(801)), 1);
        for word in LEFTOVERS {
            assert_eq!(faults(form, "src/a.rs", &format!("//! x\nfn a() {{ {word} }}\n")), 1);
        }
    }

    #[test]
    fn a_long_function_is_found() {
        let body =
            |lines: usize| format!("fn a(x: [u8; 2]) {{\n{}}}\n", "    b();\n".repeat(lines));
        assert_eq!(faults(functions, "src/a.rs", &body(69)), 1);
        assert_eq!(faults(functions, "src/a.rs", &body(68)), 0);
        let declared = format!("trait A {{\n    fn a();\n}}\nmod b {{\n{}}}\n", "\n".repeat(100));
        assert_eq!(faults(functions, "src/a.rs", &declared), 0);
    }

    #[test]
    fn a_match_with_a_way_out_is_found() {
        let open = "match event {\n    Event::Sent { length } => a(length),\n    _ => {}\n}";
        let other = "match length {\n    0 => Event::Nothing,\n    1.. => b(),\n}\n\
                     match c { 1 => 2, _ => 3 }";
        assert_eq!(faults(exhaustive_matches, "crates/echo-core/src/x.rs", open), 1);
        assert_eq!(faults(exhaustive_matches, "src/daemon.rs", open), 0);
        assert_eq!(faults(exhaustive_matches, "crates/echo-core/src/x.rs", other), 0);
    }

    #[test]
    fn a_dead_link_is_found() {
        assert_eq!(
            links("X.md", "see [the map](src/lib.rs) and [more](https://example.org/a)").len(),
            0
        );
        assert_eq!(
            links("X.md", "see [this](src/lib.rs#L1), [that](#below), [it](src/none.rs)").len(),
            1
        );
    }
}
