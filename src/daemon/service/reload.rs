//! A reload: SIGHUP, read the file again, apply what can change at run time. SIGHUP from a closed
//! terminal means the end instead.

use std::os::fd::AsFd;
use std::time::Duration;

use echo_core::command::Command;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Failure, Service, Stage, warn_of_capacity};
use crate::config::{self, Config, Effect};
use crate::daemon::life;
use crate::daemon::terminal::Terminal;
use crate::daemon::workers::{self, Worker};
use crate::daemon::{load, target};
use crate::listen;
use crate::logging::events;
use echo_ring::Transport;

/// How long a reload waits for workers in a long iteration. A worker that takes longer applies the
/// changes later; the watchdog handles a stalled one.
const WORKERS_TIMEOUT: Duration = Duration::from_secs(1);

impl Service<'_> {
    /// Reloads after SIGHUP, or ends if the terminal was closed. While workers start, the signal
    /// stays pending.
    pub(super) fn handle_sighup(&mut self) -> Result<(), Failure> {
        let mut source = [PollFd::new(self.signals.reload.as_fd(), PollFlags::POLLIN)];
        if self.stage == Stage::Starting || poll(&mut source, PollTimeout::ZERO) != Ok(1) {
            return Ok(());
        }
        if self.stage == Stage::Ready {
            // The notification precedes the read of the signal: `request` relies on this order.
            self.notifier.reloading();
        }
        let signal = self.signals.reload.read_signal();
        let signal = signal.map_err(|errno| Failure::System("read a signal", errno.into()))?;
        let closed = |terminal: &Terminal| signal.is_some_and(|it| terminal.has_gone(&it));
        if self.stage != Stage::Ready {
            log::info!("reload ignored: the service is stopping");
        } else if self.terminal.as_ref().is_some_and(closed) {
            log::info!("the terminal is closed: stopping as after SIGTERM");
            self.leave();
        } else {
            self.reload();
        }
        Ok(())
    }

    /// Whether it succeeds or not, the service manager gets READY=1 at the end.
    fn reload(&mut self) {
        let trouble = match load(self.source.options, self.source.names) {
            Ok(wanted) => {
                self.apply(wanted);
                None
            }
            Err(error) => {
                let trouble = format!("reload failed: {error}; the old configuration is in force");
                log::error!(message_id = events::RELOAD_FAILED; "{trouble}");
                Some(trouble)
            }
        };
        self.life.note_reload(trouble);
        self.status = self.life.with_standing(self.serving(&workers::total(&self.workers)));
        self.notifier.ready(&self.status);
    }

    fn apply(&mut self, wanted: Config) {
        let changes = config::changes(&self.config, &wanted);
        let keys = |effect| changes.iter().filter(move |it| it.effect == effect).map(|it| it.key);
        let at_once: Vec<String> = keys(Effect::AtReload)
            .map(|key| match config::spelled(&wanted, key) {
                Some(value) => format!("{key} = {value}"),
                None => key.to_owned(),
            })
            .collect();
        let waiting = [
            (Effect::AtRestart, "a restart is needed"),
            (Effect::AtSocketRestart, "a restart is needed, of the socket unit as well,"),
        ];
        let waiting = waiting.map(|(effect, what)| (keys(effect).collect::<Vec<_>>(), what));
        let present = config::in_force(&self.config, &wanted);
        self.last_valid = wanted;
        let former = std::mem::replace(&mut self.config, present);
        let limits = life::limits(&self.config, self.capacity(), self.datagrams.is_some());
        self.life.set_present(&self.config, &self.last_valid, limits);
        if !at_once.is_empty() {
            self.put_in_force(&former);
            log::info!(message_id = events::RELOADED; "reloaded: {}", at_once.join(", "));
        } else if changes.is_empty() {
            log::info!(message_id = events::RELOADED; "reloaded: nothing changed");
        } else {
            log::info!(
                message_id = events::RELOADED;
                "reloaded: all changed keys need a restart"
            );
        }
        for (keys, what) in waiting.into_iter().filter(|(keys, _)| !keys.is_empty()) {
            let keys = keys.join(", ");
            log::warn!(
                message_id = events::RESTART_NEEDED, keys;
                "{what} to apply the changes of {keys}"
            );
        }
    }

    /// How many connections all workers together serve.
    fn capacity(&self) -> u32 {
        self.plan.room.min(self.config.limits.max_connections)
    }

    fn put_in_force(&mut self, former: &Config) {
        self.source.log.set_level(self.config.log.level);
        if self.config.log.target != former.log.target
            && !self.source.log.set_target(target(self.config.log.target))
        {
            // The next reload finds the difference again.
            self.config.log.target = former.log.target;
            log::warn!("log.target was not changed because the log is stalled; reload again");
        }
        let (config, plan) = (&self.config, self.plan);
        if config.tcp != former.tcp {
            for listener in plan.listeners.iter().filter(|it| it.transport == Transport::Tcp) {
                if let Err(error) = listen::tune(listener.socket.as_fd(), &config.tcp) {
                    log::warn!("new connections keep the old values of [tcp]: {error}");
                }
            }
        }
        let capacity = self.capacity();
        if config.limits.max_connections != former.limits.max_connections {
            warn_of_capacity(config, capacity);
        }
        plan.memory.set_limit(config.limits.stalled_memory);
        for (index, worker) in self.workers.iter().enumerate() {
            let runtime_limits = workers::runtime_limits(plan, config, capacity, index);
            worker.post(Command::Reconfigure(Box::new(runtime_limits)));
        }
        // So that the new limits are in force when the service manager gets READY=1.
        let is_told = |_, worker: &Worker| !worker.shared.has_commands();
        workers::wait_for(&self.workers, WORKERS_TIMEOUT, is_told);
    }
}
