//! What the main thread tells the admin thread: the state of the daemon, and how its configuration
//! stands.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::admin::State;
use crate::admin::process::seconds_since_1970;
use crate::admin::snapshot::{Limits, Reload};
use crate::config::{self, Config};

/// The state of the daemon, shared with the admin thread.
#[derive(Clone)]
pub(super) struct Life {
    phase: Arc<AtomicU8>,
    configuration: Arc<Mutex<Standing>>,
}

/// The state of the daemon, with both kinds of [`State::Leaving`] distinguished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not every worker accepts yet.
    Starting,
    /// Serving.
    Ready,
    /// `timeouts.drain-lead`: not ready, but still accepting.
    Lead,
    /// Connections are handed over: not accepting any more.
    HandingOver,
    /// Not accepting any more.
    Draining,
}

impl Phase {
    const ALL: [Self; 5] =
        [Self::Starting, Self::Ready, Self::Lead, Self::HandingOver, Self::Draining];

    /// The state that clients are told.
    pub(super) fn state(self) -> State {
        match self {
            Self::Starting => State::Starting,
            Self::Ready => State::Ready,
            Self::Lead | Self::HandingOver => State::Leaving,
            Self::Draining => State::Draining,
        }
    }

    /// Whether new connections are served.
    pub(super) fn accepts(self) -> bool {
        match self {
            Self::Ready | Self::Lead => true,
            Self::Starting | Self::HandingOver | Self::Draining => false,
        }
    }
}

/// How the configuration stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    /// Why the configuration in force differs from the file, if it does.
    pub(super) trouble: Option<String>,
    /// The keys whose new values wait for a restart.
    pub(super) restart_needed: Vec<&'static str>,
    /// The last time that the file was read.
    pub(super) reload: Reload,
    /// The limits in force.
    pub(super) limits: Limits,
}

impl Life {
    /// The phase at the start; `trouble` says why the configuration differs from the file, if it
    /// does.
    pub(super) fn new(trouble: Option<String>, limits: Limits) -> Self {
        let life = Self { phase: Arc::default(), configuration: Arc::default() };
        life.note_reload(trouble);
        life.standing_mut().limits = limits;
        life
    }

    /// Changes the phase.
    pub(super) fn set(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// The phase.
    pub(super) fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Ordering::Acquire))]
    }

    fn standing_mut(&self) -> MutexGuard<'_, Standing> {
        self.configuration.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the configuration stands.
    pub(super) fn standing(&self) -> Standing {
        self.standing_mut().clone()
    }

    /// The file was read, and what is in force is that of the file unless there is `trouble`.
    pub(super) fn note_reload(&self, trouble: Option<String>) {
        let mut standing = self.standing_mut();
        standing.reload.successful = trouble.is_none();
        if trouble.is_none() {
            standing.reload.success_timestamp_seconds = seconds_since_1970(SystemTime::now());
        }
        standing.trouble = trouble;
    }

    /// A reload has put `present` in force, with these limits, and `wanted` after a restart.
    pub(super) fn set_present(&self, present: &Config, wanted: &Config, limits: Limits) {
        let mut standing = self.standing_mut();
        standing.restart_needed =
            config::changes(present, wanted).into_iter().map(|change| change.key).collect();
        standing.limits = limits;
    }

    /// `status`, preceded by what is wrong with the configuration and what waits for a restart.
    pub(super) fn with_standing(&self, status: String) -> String {
        let standing = self.standing_mut();
        let mut parts: Vec<String> = standing.trouble.iter().cloned().collect();
        if !standing.restart_needed.is_empty() {
            parts.push(format!("restart needed: {}", standing.restart_needed.join(", ")));
        }
        parts.push(status);
        parts.join("; ")
    }
}

/// The limits of `config`, if the limit on open files permits `capacity` connections of those that
/// are configured. Those on datagrams are none if there is no listener for them.
pub(super) fn limits(config: &Config, capacity: u32, has_datagrams: bool) -> Limits {
    let datagram = Some(&config.datagram).filter(|_| has_datagrams);
    Limits {
        connections: capacity.into(),
        stalled_bytes: config.limits.stalled_memory,
        connections_per_source: config.limits.max_connections_per_source.map(u64::from),
        accepts_per_source: config.limits.accepts_per_source.map(u64::from),
        datagrams_per_source: datagram.and_then(|it| it.datagrams_per_source),
        datagram_bytes_per_source: datagram.and_then(|it| it.bytes_per_source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Workers;

    /// Goal: what waits for a restart is told until it does not wait any more.
    #[test]
    fn a_pending_restart_is_in_the_status_until_it_is_taken_back() {
        let present = Config::default();
        let mut wanted = Config::default();
        let limits = limits(&present, 9, false);
        let life = Life::new(None, limits);
        assert!(life.standing().reload.successful);
        wanted.server.workers = Workers::Count(3);
        life.set_present(&present, &wanted, limits);
        assert_eq!(life.with_standing("idle".to_owned()), "restart needed: server.workers; idle");
        life.note_reload(Some("reload failed: x".to_owned()));
        let status = "reload failed: x; restart needed: server.workers; idle";
        assert_eq!(life.with_standing("idle".to_owned()), status);
        let loaded_at = life.standing().reload.success_timestamp_seconds;
        assert!(!life.standing().reload.successful && loaded_at > 0.0);
        life.note_reload(None);
        life.set_present(&present, &present.clone(), limits);
        assert_eq!(life.with_standing("idle".to_owned()), "idle");
        assert!(life.standing().reload.success_timestamp_seconds >= loaded_at);
    }

    #[test]
    fn every_phase_is_read_as_it_was_set() {
        let life = Life::new(None, Limits::default());
        assert_eq!(life.phase(), Phase::Starting);
        for phase in Phase::ALL {
            life.set(phase);
            assert_eq!(life.phase(), phase);
        }
    }

    #[test]
    fn a_start_with_an_invalid_file_has_read_none() {
        let life = Life::new(Some("invalid".to_owned()), Limits::default());
        assert_eq!(life.standing().reload, Reload::default());
    }
}
