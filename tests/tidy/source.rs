//! The sources that the rules are applied to.

use std::fs;
use std::path::{Path, PathBuf};

use crate::lexer::Code;

/// One file of `src`.
pub(crate) struct Source {
    /// Relative to the root of the package.
    path: String,
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
        let below = path.trim_start_matches("src/").trim_end_matches(".rs");
        let parts: Vec<&str> = below.split('/').collect();
        Self {
            path: path.to_owned(),
            module: parts[0].to_owned(),
            top_level: parts.len() == 1 || parts[1..] == ["mod"],
            text: text.to_owned(),
            code: Code::new(text),
        }
    }

    /// One fault, in the form in which compilers name a place.
    pub(crate) fn fault(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.path)
    }
}

/// The root of the package.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All sources of the daemon. Companion programs under `src/bin` are none.
pub(crate) fn tree() -> Vec<Source> {
    let mut sources = Vec::new();
    collect(&root().join("src"), &mut sources);
    assert!(sources.len() >= 3, "the sources were not found");
    sources
}

fn collect(directory: &Path, sources: &mut Vec<Source>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "bin") {
            collect(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let relative = path.strip_prefix(root()).unwrap().to_str().unwrap();
            sources.push(Source::new(relative, &fs::read_to_string(&path).unwrap()));
        }
    }
}
