//! Resource limits: open files, since each connection is one, and locked memory for the rings. For
//! an installed service these are the limits of its unit, as far as systemd can set them.

use std::fs;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::finding::{Finding, Topic};
use super::service::{Service, is_of_echo};
use crate::capacity::{self, Sockets};
use crate::config::{Config, Workers};

/// `CAP_SYS_RESOURCE` of include/uapi/linux/capability.h: without it systemd cannot raise a limit.
const CAP_SYS_RESOURCE: u32 = 24;

pub(super) fn findings(
    config: &Config,
    service: Option<&Service>,
    with_datagrams: bool,
    findings: &mut Vec<Finding>,
) {
    let (limits, sockets) = match service {
        Some(service) => (Limits::of_service(service), sockets_of(service)),
        None => (Limits::of_this_process(), sockets_configured(config)),
    };
    findings.push(files(config, &limits, sockets));
    findings.push(locked_memory(config, &limits, with_datagrams));
}

/// The limits that apply now, or will apply after the start.
struct Limits {
    /// The process or unit that they belong to.
    whose: String,
    files: Limit,
    locked: Limit,
}

/// One limit.
#[derive(Clone, Copy)]
struct Limit {
    /// `None` means unlimited.
    value: Option<u64>,
    setter: Setter,
}

/// Where a higher limit is to be set.
#[derive(Clone, Copy)]
enum Setter {
    /// The shell that the process is started from.
    Shell,
    /// The unit.
    Unit,
    /// The container around systemd, which cannot set the higher value of the unit.
    Container,
}

impl Limits {
    fn of_this_process() -> Self {
        let hard = |resource| {
            let (_, hard) = getrlimit(resource).unwrap_or((0, RLIM_INFINITY));
            Limit { value: Some(hard).filter(|hard| *hard != RLIM_INFINITY), setter: Setter::Shell }
        };
        Self {
            whose: "this process".to_owned(),
            files: hard(Resource::RLIMIT_NOFILE),
            locked: Limit { value: echo_ring::locked_memory_limit(), setter: Setter::Shell },
        }
    }

    /// The limits of its process or, without a process, those that systemd will set.
    fn of_service(service: &Service) -> Self {
        let unit = &service.unit;
        let (wanted_files, wanted_locked) = (unit.limit("LimitNOFILE"), unit.limit("LimitMEMLOCK"));
        let (whose, bounds) = match unit.process() {
            Some(pid) => (format!("{} (process {pid})", unit.name()), read(&pid.to_string())),
            None => (unit.name().to_owned(), if systemd_raises() { None } else { read("1") }),
        };
        let (files, locked) = bounds.unwrap_or((None, None));
        Self {
            whose,
            files: Limit::between(wanted_files, files),
            locked: Limit::between(wanted_locked, locked),
        }
    }
}

impl Limit {
    /// The effective limit if the unit requests `wanted` and `bound` is the maximum.
    fn between(wanted: Option<u64>, bound: Option<u64>) -> Self {
        let infinite = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
        match infinite(bound) < infinite(wanted) {
            true => Self { value: bound, setter: Setter::Container },
            false => Self { value: wanted, setter: Setter::Unit },
        }
    }

    /// What to do: in the unit set `directive` to `value`, in a shell run `command`.
    fn remedy(self, directive: &str, value: &str, command: &str) -> String {
        match self.setter {
            Setter::Shell => format!("raise the limit before the start: {command}"),
            Setter::Unit => format!("set {directive}={value} in the unit"),
            Setter::Container => format!(
                "{directive}= of the unit is higher, but systemd lacks CAP_SYS_RESOURCE to set it; \
                 raise the limit of the container"
            ),
        }
    }
}

/// The hard limits on open files and locked memory of a process.
fn read(process: &str) -> Option<(Option<u64>, Option<u64>)> {
    let text = fs::read_to_string(format!("/proc/{process}/limits")).ok()?;
    let hard = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Some((hard("Max open files"), hard("Max locked memory")))
}

fn systemd_raises() -> bool {
    let status = fs::read_to_string("/proc/1/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    effective.is_none_or(|set| set & (1 << CAP_SYS_RESOURCE) != 0)
}

fn sockets_of(service: &Service) -> Sockets {
    let open = service.sockets.iter().filter(|unit| unit.value("ActiveState") == "active");
    let mut sockets = Sockets::default();
    for unit in open {
        let count = unit.values("Listen").count();
        match is_of_echo(unit) {
            true => sockets.echo += count,
            false => sockets.admin += count,
        }
    }
    sockets
}

fn sockets_configured(config: &Config) -> Sockets {
    let echo = config.listeners.iter().filter(|it| !it.kind.is_monitoring()).count();
    Sockets { echo, admin: config.listeners.len() - echo }
}

/// Too few files are a note and not a problem: the daemon serves as many connections as the limit
/// permits, and logs a warning.
fn files(config: &Config, limits: &Limits, sockets: Sockets) -> Finding {
    let workers = capacity::workers(config);
    let wanted = config.limits.max_connections;
    let room = capacity::room(limits.files.value.unwrap_or(u64::MAX), workers, sockets);
    let (whose, limit) = (&limits.whose, bound(limits.files.value));
    if room < wanted {
        let needed = u64::from(wanted) + capacity::files_besides_connections(workers, sockets);
        return Finding::note(
            Topic::Limits,
            format!(
                "open files: {limit} for {whose}, enough for {room} connections but not \
                 for limits.max-connections = {wanted}"
            ),
            &format!(
                "{}, or lower limits.max-connections",
                limits.files.remedy(
                    "LimitNOFILE",
                    &format!("{needed} or more"),
                    &format!("ulimit -n {needed}")
                )
            ),
        );
    }
    Finding::ok(
        Topic::Limits,
        format!("open files: {limit} for {whose}, enough for limits.max-connections = {wanted}"),
    )
}

/// With an automatic number of workers too little memory is a note, because the daemon starts as
/// many as the limit permits. With a configured number the daemon does not start.
fn locked_memory(config: &Config, limits: &Limits, with_datagrams: bool) -> Finding {
    let workers = capacity::workers(config);
    let needed = capacity::locked_bytes(config, workers, with_datagrams);
    let need = format!("the rings of {workers} workers need {} KiB", needed.div_ceil(1024));
    let Some(limit) = limits.locked.value else {
        let what = format!("locked memory: unlimited for {}; {need}", limits.whose);
        return Finding::ok(Topic::Limits, what);
    };
    let what = format!("locked memory: at most {} KiB for {}; {need}", limit / 1024, limits.whose);
    if echo_ring::charges_locked_memory() == Some(false) {
        return Finding::ok(Topic::Limits, format!("{what}, but this kernel does not charge them"));
    }
    if needed <= limit {
        return Finding::ok(Topic::Limits, what);
    }
    let fitting = limit / capacity::locked_bytes(config, 1, with_datagrams);
    let remedy = limits.locked.remedy("LimitMEMLOCK", "infinity", "ulimit -l unlimited");
    match config.server.workers {
        Workers::Auto if fitting > 0 => {
            let what = format!("{what}; only {fitting} start");
            Finding::note(Topic::Limits, what, &remedy)
        }
        Workers::Auto | Workers::Count(_) => Finding::problem(
            Topic::Limits,
            format!("{what}; the service does not start"),
            &format!("{remedy}, or lower server.workers"),
        ),
    }
}

fn bound(limit: Option<u64>) -> String {
    limit.map_or("unlimited".to_owned(), |limit| format!("at most {limit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_cut_where_systemd_has_less_than_the_unit_wants() {
        let limit = |wanted, bound| {
            let limit = Limit::between(wanted, bound);
            (limit.value, matches!(limit.setter, Setter::Container))
        };
        assert_eq!(limit(None, None), (None, false));
        assert_eq!(limit(None, Some(8)), (Some(8), true));
        assert_eq!(limit(Some(20), Some(8)), (Some(8), true));
        assert_eq!(limit(Some(8), Some(20)), (Some(8), false));
        assert_eq!(limit(Some(8), None), (Some(8), false));
    }
}
