//! The comparison itself: rounds, slices, and their servers.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, SystemTime};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::utsname::uname;

use crate::Arguments;
use crate::address::Transport;
use crate::cpu;
use crate::pattern::Pattern;
use crate::report::{self, Outcome, Record, Series, Slice};
use crate::servers::{Entry, Server, Stage};
use crate::steady::Waiting;
use crate::veth::FarEnd;
use crate::works::Work;

/// The fraction of a slice for which its connections are warmed up before: windows grow, and
/// servers adapt.
const WARM_UP_DIVISOR: f64 = 5.0;

/// Descriptors that client and server need beside those of connections.
const FILES_SPARE: u64 = 100;

/// The servers of the comparison, each with its own label.
type Cast = Vec<(String, &'static Entry)>;

/// Compares, prints the table as it grows, and writes the record.
pub(crate) fn compare(arguments: &Arguments) -> Result<(), String> {
    let all = ["all".to_owned()];
    let (works, servers) = match arguments.all {
        true => (&all[..], &all[..]),
        false => (&arguments.works[..], &arguments.servers[..]),
    };
    let works = Work::select(works)?;
    let files_max = prepare(arguments.client_core).map_err(|e| format!("preparing: {e}"))?;
    let scratch = std::env::temp_dir().join(format!("echo-compare-{}", std::process::id()));
    fs::create_dir(&scratch).map_err(|error| format!("{}: {error}", scratch.display()))?;
    let crosses = works.iter().any(|work| work.transport == Transport::UdpVeth);
    let far_end = if crosses { FarEnd::new().map(Some)? } else { None };
    let plan = Plan {
        stage: Stage {
            daemon: &arguments.daemon,
            scratch: &scratch,
            core: arguments.server_core,
            far_end: far_end.as_ref(),
        },
        cast: cast(&Entry::select(servers)?)?,
        pattern: Pattern::new(),
        waiting: if arguments.spin { Waiting::Spin } else { Waiting::Sleep },
        duration: Duration::try_from_secs_f64(arguments.seconds).map_err(|e| e.to_string())?,
        rounds: arguments.rounds,
        connections_max: files_max.saturating_sub(FILES_SPARE),
    };
    let mut record = Record {
        kernel: kernel_release(),
        command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        began_unix_seconds: unix_seconds(),
        load_average_before: load_average(),
        load_average_after: String::new(),
        slice_seconds: arguments.seconds,
        rounds: arguments.rounds,
        outcomes: Vec::new(),
    };
    let outcomes = plan.run_all(&works);
    // Logs and configurations are of no use any more: a complaint has quoted what matters.
    let _ = fs::remove_dir_all(&scratch);
    record.outcomes = outcomes?;
    record.load_average_after = load_average();
    if let Some(path) = &arguments.json {
        record.write(path)?;
    }
    let failures = record.outcomes.iter().map(|outcome| outcome.failures.len()).sum::<usize>();
    if failures > 0 { Err(format!("{failures} failures, see above")) } else { Ok(()) }
}

/// Sets up the client: its core, and two descriptors for every possible connection. Returns the
/// number of connections.
fn prepare(core: usize) -> std::io::Result<u64> {
    let (_, ceiling) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, ceiling, ceiling)?;
    cpu::pin(core)?;
    Ok(ceiling)
}

fn kernel_release() -> String {
    uname().map_or_else(|_| String::new(), |name| name.release().to_string_lossy().into_owned())
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Over 1, 5 and 15 minutes: what else went on. The servers' own load is in it.
fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Each with its own label: the second of a name is `name#2`. A server that is not installed is
/// left out with a note.
fn cast(entries: &[&'static Entry]) -> Result<Cast, String> {
    let mut seen = HashMap::new();
    let mut cast = Vec::new();
    for entry in entries {
        if let Some(absence) = entry.absence() {
            println!("left out: {} ({absence})", entry.name);
            continue;
        }
        let times = seen.entry(entry.name).and_modify(|times| *times += 1).or_insert(1);
        let name = entry.name.to_owned();
        let label = if *times == 1 { name } else { format!("{name}#{times}") };
        cast.push((label, *entry));
    }
    if cast.is_empty() { Err("no server is there".to_owned()) } else { Ok(cast) }
}

/// What stays the same for all works.
struct Plan<'a> {
    stage: Stage<'a>,
    /// The first server that can do a work is its reference.
    cast: Cast,
    pattern: Pattern,
    waiting: Waiting,
    /// Length of a slice.
    duration: Duration,
    rounds: u32,
    /// What the limit on open files leaves room for.
    connections_max: u64,
}

impl Plan<'_> {
    fn run_all(&self, works: &[Work]) -> Result<Vec<Outcome>, String> {
        println!(
            "kernel {}, {} rounds of {} ms slices, ratios against the first of each table",
            kernel_release(),
            self.rounds,
            self.duration.as_millis(),
        );
        println!("{}", report::head());
        let mut outcomes = Vec::new();
        for work in works {
            if work.connections() as u64 > self.connections_max {
                println!("{}: left out, ulimit -Hn is too low", work.title);
                continue;
            }
            let outcome = self.run(work)?;
            print!("{}", outcome.table());
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    /// One work on all servers that can do it, slice by slice.
    ///
    /// Every round has its own processes. The placement of a process's memory does not change
    /// during its life: of two processes of the same program one cost 4 % more for a whole run.
    ///
    /// A server that fails is left out from then on; without the reference there is no result.
    fn run(&self, work: &Work) -> Result<Outcome, String> {
        let (able, unable): (Vec<_>, Vec<_>) =
            self.cast.iter().partition(|(_, entry)| entry.excuse(work).is_none());
        if able.is_empty() {
            return Err(format!("{}: no server can do it", work.name));
        }
        let note = |(label, entry): &&(String, &Entry)| {
            format!("{label}: {}", entry.excuse(work).unwrap_or_default())
        };
        let notes = unable.iter().map(note).collect();
        let empty = |(label, _): &&(String, &Entry)| Series::new(label);
        let mut series: Vec<Series> = able.iter().map(empty).collect();
        let mut failures = Vec::new();
        let mut order: Vec<usize> = (0..series.len()).collect();
        for round in 0..=self.rounds {
            fastrand::shuffle(&mut order);
            for (index, slice) in self.round(work, &able, &order) {
                match slice {
                    // Round 0 warms up the machine.
                    Ok(_) if round == 0 => {}
                    Ok(slice) => series[index].slices.push(slice),
                    Err(failure) if index == 0 => return Err(failure),
                    Err(failure) => {
                        println!("{failure}");
                        failures.push(failure);
                        order.retain(|&other| other != index);
                    }
                }
            }
        }
        series.retain(|series| series.slices.len() == self.rounds as usize);
        Ok(Outcome::new(work.name, work.title, series, notes, failures))
    }

    /// One slice of each server in this order, or what it did wrong.
    fn round(
        &self,
        work: &Work,
        cast: &[&(String, &Entry)],
        order: &[usize],
    ) -> Vec<(usize, Result<Slice, String>)> {
        let start = |&index: &usize| {
            let (label, entry) = cast[index];
            (index, entry.start(label.clone(), &self.stage, work.transport))
        };
        let servers: Vec<_> = order.iter().map(start).collect();
        let slice = |(index, server): &(usize, Result<Server, String>)| {
            let slice = server.as_ref().map_err(Clone::clone).and_then(|server| {
                self.measure(work, server)
                    .map_err(|error| server.complaint(&format!("{}: {error}", work.name)))
            });
            (*index, slice)
        };
        servers.iter().map(slice).collect()
    }

    /// One slice with its own connections, for the same reason: the windows and buffer sizes that
    /// the kernel selects for a connection would look like a property of the server.
    fn measure(&self, work: &Work, server: &Server) -> Result<Slice, String> {
        let duration = self.duration * work.stretch;
        let mut client = work.client(&server.address, &self.pattern, self.waiting)?;
        client.slice(duration.div_f64(WARM_UP_DIVISOR))?;
        let before = server.settled_cpu_time()?;
        let work = client.slice(duration)?;
        let after = server.settled_cpu_time()?;
        drop(client);
        // It may have to close thousands of connections, which must be done before the next slice.
        server.settled_cpu_time()?;
        Ok(Slice {
            echoes: work.echoes,
            elapsed_seconds: work.elapsed.as_secs_f64(),
            server_cpu_seconds: after.saturating_sub(before).as_secs_f64(),
            latency: work.latency,
            lost: work.lost,
            most_over_least: work.most_over_least,
        })
    }
}
