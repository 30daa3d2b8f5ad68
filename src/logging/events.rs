//! Identifiers of log messages, for filters and for the message catalogue.
//!
//! Each is the `MESSAGE_ID` of its messages in the journal, and has an entry in the catalogue that
//! the package installs (`packaging/journal`). An id is never reused for another message.

/// Every worker accepts on every listener.
pub const READY: &str = "02d1ffdc3bc24f7b90520139b261b1e1";
/// Connections of the previous process were imported.
pub const TAKEN_OVER: &str = "f6ef89e068d44cebb9acea198958d7e2";
/// A reload has applied the configuration file, as far as this is possible at run time.
pub const RELOADED: &str = "14f84aaaceeb4507a4e71ac8d142c7bd";
/// A reload found changes that need a restart.
pub const RESTART_NEEDED: &str = "9022caa7f9c74dbbbf32cb3548fd6997";
/// A reload found an invalid file; nothing has changed.
pub const RELOAD_FAILED: &str = "c3b9986c3b6d4efc8cc104fdd78b9123";
/// The file was invalid at the start; the configuration of the previous process is in force.
pub const CONFIGURATION_KEPT: &str = "fb030a2dbd744cd19f35e5e4982bb70b";
/// A number of errors or refusals since the last message with the same reason.
pub const TROUBLE: &str = "f27ddb2d9a904a8aa6f21b997f0e655a";
/// A worker is stalled: it completed no iteration within a watchdog interval.
pub const HANGING: &str = "ea4b5281ee9b4e52a8108a3da7b19e98";
/// Connections were handed over to the next process.
pub const HANDED_OVER: &str = "48b90fbd238d455886393d103f62026f";
/// The drain has started.
pub const DRAINING: &str = "7ae07983438d47489e07961755d88b30";
/// The end of a graceful shutdown, with the final counters of connections and bytes.
pub const STOPPED: &str = "90ed7a8bb2564d95b641b8c4c470d2f6";
/// The service could not start, or failed.
pub const FAILED: &str = "9d7bd120abc94e328ec9c1d458830406";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_explains_every_kind_and_no_other() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/journal/echo-uring.catalog");
        let catalogue = std::fs::read_to_string(path).unwrap();
        let mut explained: Vec<&str> =
            catalogue.lines().filter_map(|line| line.strip_prefix("-- ")).collect();
        let mut kinds = [
            READY,
            TAKEN_OVER,
            RELOADED,
            RESTART_NEEDED,
            RELOAD_FAILED,
            CONFIGURATION_KEPT,
            TROUBLE,
            HANGING,
            HANDED_OVER,
            DRAINING,
            STOPPED,
            FAILED,
        ];
        explained.sort_unstable();
        kinds.sort_unstable();
        assert_eq!(explained, kinds);
        assert!(kinds.iter().all(|id| id.len() == 32), "{kinds:?}");
    }
}
