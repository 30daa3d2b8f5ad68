//! The sources that the rules are applied to.

use std::fs;
use std::path::{Path, PathBuf};

use crate::lexer::Code;

/// One source file.
pub(crate) struct Source {
    /// Relative to the root of the workspace.
    path: String,
    /// The package it belongs to.
    pub(crate) package: String,
    /// The module it belongs to: the first name below `src`.
    pub(crate) module: String,
    /// Whether it is the file of that module itself, not of a part of it.
    pub(crate) top_level: bool,
    /// As it stands.
    pub(crate) text: String,
    /// Without what is no code.
    pub(crate) code: Code,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let (package, below) = match path.strip_prefix("crates/") {
            Some(below) => below.split_once("/src/").unwrap(),
            None => ("echo-uring", path.trim_start_matches("src/")),
        };
        let parts: Vec<&str> = below.trim_end_matches(".rs").split('/').collect();
        Self {
            path: path.to_owned(),
            package: package.to_owned(),
            module: parts[0].to_owned(),
            top_level: parts.len() == 1 || parts[1..] == ["mod"],
            text: text.to_owned(),
            code: Code::new(text),
        }
    }

    /// Its module in the graph of imports: see `graph`.
    pub(crate) fn node(&self) -> String {
        let below = self.path.split("src/").nth(1).unwrap().trim_end_matches(".rs");
        match below.split_once('/') {
            Some((folder @ ("stream" | "datagram"), inner)) => {
                format!("{folder}::{}", inner.split('/').next().unwrap())
            }
            _ => self.module.clone(),
        }
    }

    /// Whether it is the daemon's.
    pub(crate) fn is_daemon(&self) -> bool {
        self.package == "echo-uring"
    }

    /// One fault, in the form in which compilers name a place.
    pub(crate) fn fault(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.path)
    }
}

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Where the packages are.
const PACKAGES: [&str; 5] =
    [".", "crates/echo-core", "crates/echo-ring", "crates/echo-load", "crates/echo-proxy-header"];

/// All sources of all packages.
pub(crate) fn tree() -> Vec<Source> {
    let mut sources = Vec::new();
    for package in PACKAGES {
        let before = sources.len();
        collect(&root().join(package).join("src"), &mut sources);
        assert!(sources.len() >= before + 3, "the sources of {package} were not found");
    }
    sources
}

fn collect(directory: &Path, sources: &mut Vec<Source>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let relative = path.strip_prefix(root()).unwrap().to_str().unwrap();
            let relative = relative.trim_start_matches("./");
            sources.push(Source::new(relative, &fs::read_to_string(&path).unwrap()));
        }
    }
}
