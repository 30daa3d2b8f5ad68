//! What differs between two configurations, key by key, and what of it can be had at run time.
//!
//! Every struct of [`Config`] is taken apart here without `..`: a new key does not compile until
//! somebody has decided whether a reload is enough for it.

use super::{Access, Config, Limits, Log, Server, Tcp, Timeouts, echoed};

/// When a new value of a key takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// With a reload.
    AtReload,
    /// With the next start.
    AtRestart,
}

use Effect::{AtReload, AtRestart};

/// A key whose value has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// As in `timeouts.idle`.
    pub key: &'static str,
    /// When it counts.
    pub effect: Effect,
}

/// The keys in which `after` differs from `before`, in the order of the file.
#[must_use]
pub fn changes(before: &Config, after: &Config) -> Vec<Change> {
    let Config { server, listeners, access, limits, timeouts, tcp, log } = before;
    let mut list = Vec::new();
    let mut note = |key, effect, same: bool| {
        if !same {
            list.push(Change { key, effect });
        }
    };
    let Server { workers, buffers, busy_poll } = server;
    note("server.workers", AtRestart, *workers == after.server.workers);
    note("server.buffers", AtRestart, *buffers == after.server.buffers);
    note("server.busy-poll", AtRestart, *busy_poll == after.server.busy_poll);
    note("listener", AtRestart, *listeners == after.listeners);
    let Access { allow, deny } = access;
    note("access.allow", AtReload, *allow == after.access.allow);
    note("access.deny", AtReload, *deny == after.access.deny);
    let Limits {
        max_connections,
        stalled_memory,
        max_connections_per_source,
        accepts_per_source,
        max_bytes,
        source_prefix_ipv4,
        source_prefix_ipv6,
    } = limits;
    let new = &after.limits;
    note("limits.max-connections", AtReload, *max_connections == new.max_connections);
    note("limits.stalled-memory", AtReload, *stalled_memory == new.stalled_memory);
    let same = *max_connections_per_source == new.max_connections_per_source;
    note("limits.max-connections-per-source", AtReload, same);
    note("limits.accepts-per-source", AtReload, *accepts_per_source == new.accepts_per_source);
    note("limits.max-bytes", AtReload, *max_bytes == new.max_bytes);
    note("limits.source-prefix-ipv4", AtReload, *source_prefix_ipv4 == new.source_prefix_ipv4);
    note("limits.source-prefix-ipv6", AtReload, *source_prefix_ipv6 == new.source_prefix_ipv6);
    let Timeouts { idle, stall, lifetime, drain, drain_lead } = timeouts;
    note("timeouts.idle", AtReload, *idle == after.timeouts.idle);
    note("timeouts.stall", AtReload, *stall == after.timeouts.stall);
    note("timeouts.lifetime", AtReload, *lifetime == after.timeouts.lifetime);
    note("timeouts.drain", AtReload, *drain == after.timeouts.drain);
    note("timeouts.drain-lead", AtReload, *drain_lead == after.timeouts.drain_lead);
    let Tcp { nodelay, keepalive, user_timeout, receive_buffer, send_buffer } = tcp;
    note("tcp.nodelay", AtReload, *nodelay == after.tcp.nodelay);
    note("tcp.keepalive", AtReload, *keepalive == after.tcp.keepalive);
    note("tcp.user-timeout", AtReload, *user_timeout == after.tcp.user_timeout);
    // A listener that was once given a size never goes back to the kernel's own tuning.
    note("tcp.receive-buffer", AtRestart, *receive_buffer == after.tcp.receive_buffer);
    note("tcp.send-buffer", AtRestart, *send_buffer == after.tcp.send_buffer);
    let Log { target, level } = log;
    note("log.target", AtReload, *target == after.log.target);
    note("log.level", AtReload, *level == after.log.level);
    list
}

/// What is in force once a process that was started by `before` has reloaded `wanted`: the new
/// values where a reload is enough, the old ones elsewhere.
#[must_use]
pub fn in_force(before: &Config, wanted: Config) -> Config {
    let Config { server: _, listeners: _, access, limits, timeouts, tcp, log } = wanted;
    let Tcp { receive_buffer, send_buffer, .. } = before.tcp;
    Config {
        server: before.server.clone(),
        listeners: before.listeners.clone(),
        access,
        limits,
        timeouts,
        tcp: Tcp { receive_buffer, send_buffer, ..tcp },
        log,
    }
}

/// How the file spells the value of `key`, as in `timeouts.idle`, cut visibly if it has more than
/// 80 characters; nothing for a key that is more than one line.
#[must_use]
pub fn spelled(config: &Config, key: &str) -> Option<String> {
    let (section, key) = key.split_once('.')?;
    let text = config.to_toml();
    let header = format!("[{section}]");
    let mut lines = text.lines().skip_while(|line| *line != header).skip(1);
    lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(" = ").map(echoed::cut))
}
