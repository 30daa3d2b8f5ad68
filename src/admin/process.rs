//! The resources that this process uses, as every Prometheus client library reports them.
//!
//! The sandbox of the unit hides everything in /proc but the process itself (`ProcSubset=pid`), so
//! nothing else is read.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::snapshot::Process;

impl Process {
    /// The resources of this process, which was started `uptime` ago.
    #[must_use]
    pub fn current(uptime: Duration) -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        Self {
            cpu_seconds: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
            open_fds: open_files(),
            max_fds: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
            virtual_memory_bytes: field(&status, "VmSize:") * 1024,
            resident_memory_bytes: field(&status, "VmRSS:") * 1024,
            threads: field(&status, "Threads:"),
            start_time_seconds: seconds_since_1970(SystemTime::now()) - uptime.as_secs_f64(),
        }
    }
}

/// A moment as Prometheus has it; 0 if the clock is before 1970.
#[must_use]
pub fn seconds_since_1970(moment: SystemTime) -> f64 {
    moment.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// A number of proc_pid_status(5), in its unit: kB or none.
fn field(status: &str, name: &str) -> u64 {
    let rest = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    rest.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// The number of open files. Since Linux 6.2 it is the size of the directory; before, the entries
/// have to be counted, which takes a millisecond for some thousand connections.
fn open_files() -> u64 {
    const DIRECTORY: &str = "/proc/self/fd";
    match fs::metadata(DIRECTORY).map_or(0, |directory| directory.len()) {
        // The descriptor of the directory that is read is one of them.
        0 => fs::read_dir(DIRECTORY).map_or(0, |entries| entries.count().saturating_sub(1) as u64),
        count => count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_this_process() {
        let before = Process::current(Duration::ZERO);
        let files: Vec<_> = (0..20).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let process = Process::current(Duration::from_secs(10));
        // Other tests open and close files meanwhile.
        assert!(process.open_fds >= 20 && process.open_fds < process.max_fds, "{process:?}");
        assert!(process.threads >= 1 && process.resident_memory_bytes > 1 << 20, "{process:?}");
        assert!(process.virtual_memory_bytes >= process.resident_memory_bytes, "{process:?}");
        assert!(process.cpu_seconds > 0.0 && process.cpu_seconds >= before.cpu_seconds);
        let earlier = before.start_time_seconds - process.start_time_seconds;
        assert!((9.0..=10.0).contains(&earlier), "{earlier}");
        drop(files);
    }

    #[test]
    fn fields_are_found_by_name() {
        let status = "Name:\tx\nVmSize:\t    123 kB\nThreads:\t7\n";
        assert_eq!(["VmSize:", "Threads:", "VmRSS:"].map(|it| field(status, it)), [123, 7, 0]);
    }
}
