//! A snapshot as Prometheus metrics, in the text format.
//!
//! The labels are listener, protocol, address and reason, beside `version` and `le`. Their values
//! are few: there is never a series for each peer. The address is that of the listener, because
//! several may have one name.

use std::collections::BTreeMap;

use prometheus::proto::{Bucket, Histogram, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

use super::family::{
    counter, family, fractional_counter, gauge, merge, one_counter, one_gauge, standard_family,
};
use super::snapshot::{
    DatagramListenerFigures, Figures, Limits, ListenerFigures, Process, Ring, Snapshot, State,
    Traffic,
};

/// Upper bounds of the residence time buckets, in microseconds as powers of two: 4 µs to 17 s.
const BUCKETS: [u32; 20] = [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 22, 24];

/// The body of `/metrics`.
pub(super) fn text(snapshot: &Snapshot) -> Vec<u8> {
    let mut families = of_daemon(snapshot);
    families.extend(of_configuration(snapshot));
    families.extend(of_limits(&snapshot.limits));
    families.extend(of_figures(&snapshot.total));
    families.extend(of_ring(&snapshot.total.ring));
    families.extend(of_process(&snapshot.process));
    families.extend(of_listeners(&snapshot.listeners));
    families.extend(of_datagrams(&snapshot.datagram_listeners));
    families.push(residence(snapshot));
    families.iter_mut().for_each(merge);
    // A family without a metric (no listener yet) is an error to the encoder.
    families.retain(|family| !family.get_metric().is_empty());
    let mut text = Vec::new();
    let encoded = TextEncoder::new().encode(&families, &mut text);
    encoded.expect(
        "invariant: every family has a name and a metric, and writing to memory never fails",
    );
    text
}

fn of_daemon(snapshot: &Snapshot) -> Vec<MetricFamily> {
    let ready = f64::from(u8::from(snapshot.state == State::Ready));
    let turning = snapshot.workers.iter().filter(|worker| worker.turning).count();
    let build = vec![gauge(&[("version", &snapshot.version)], 1.0)];
    vec![
        family("build_info", "The version of the daemon; always 1.", MetricType::GAUGE, build),
        one_gauge(
            "ready",
            "1 while serving, 0 before that and from the start of a stop or a handover.",
            ready,
        ),
        one_gauge("uptime_seconds", "Time since the start.", snapshot.uptime_seconds),
        one_gauge("workers", "Worker threads.", snapshot.workers.len() as f64),
        one_gauge("workers_turning", "Workers that are not stalled.", turning as f64),
    ]
}

fn of_configuration(snapshot: &Snapshot) -> Vec<MetricFamily> {
    let truth = |value: bool| f64::from(u8::from(value));
    vec![
        one_gauge(
            "configuration_valid",
            "0 while the file is invalid and an earlier configuration is in force, else 1.",
            truth(snapshot.configuration_error.is_none()),
        ),
        one_gauge(
            "configuration_last_reload_successful",
            "1 if the file was valid when it was read last, at the start or at a reload, else 0.",
            truth(snapshot.reload.successful),
        ),
        one_gauge(
            "configuration_last_reload_success_timestamp_seconds",
            "When a valid file was read last, in seconds since 1970; 0 if none was.",
            snapshot.reload.success_timestamp_seconds,
        ),
        one_gauge(
            "restart_needed",
            "1 while changed keys wait for a restart of the service, else 0.",
            truth(!snapshot.restart_needed.is_empty()),
        ),
    ]
}

/// A limit that is off has no metric.
fn of_limits(limits: &Limits) -> Vec<MetricFamily> {
    let limit = |name, help, value: Option<u64>| {
        let metrics = value.map(|value| gauge(&[], value as f64)).into_iter().collect();
        family(name, help, MetricType::GAUGE, metrics)
    };
    vec![
        limit(
            "max_connections",
            "Connections that are served at the same time, at most.",
            Some(limits.connections),
        ),
        limit(
            "max_stalled_bytes",
            "Memory for peers that do not read, at most.",
            Some(limits.stalled_bytes),
        ),
        limit(
            "max_connections_per_source",
            "Connections of one source, at most.",
            limits.connections_per_source,
        ),
        limit(
            "max_accepts_per_source",
            "Accepts of one source in a second, at most.",
            limits.accepts_per_source,
        ),
        limit(
            "max_datagrams_per_source",
            "Datagrams of one source in a second, at most.",
            limits.datagrams_per_source,
        ),
        limit(
            "max_datagram_bytes_per_source",
            "Payload in datagrams of one source in a second, at most.",
            limits.datagram_bytes_per_source,
        ),
    ]
}

fn of_figures(total: &Figures) -> Vec<MetricFamily> {
    let failures = total.accept_failures.iter();
    let failures = failures.map(|(reason, count)| counter(&[("reason", reason)], *count));
    vec![
        one_gauge(
            "stalled_connections",
            "Connections whose peers do not read.",
            total.connections_stalled as f64,
        ),
        one_gauge(
            "waiting_connections",
            "Connections accepted and waiting for capacity.",
            total.connections_waiting as f64,
        ),
        one_gauge(
            "stalled_bytes",
            "Spilled bytes: memory for echoes that peers have not read.",
            total.stalled_bytes as f64,
        ),
        one_gauge("buffers", "Receive buffers.", total.buffers.total as f64),
        one_gauge("buffers_lent", "Receive buffers in use.", total.buffers.lent as f64),
        one_counter("dropped_bytes_total", "Bytes that could not be echoed.", total.bytes_dropped),
        one_counter(
            "taken_over_bytes_total",
            "Payload that the previous process received and this one echoes.",
            total.bytes_taken_over,
        ),
        one_counter(
            "handed_over_bytes_total",
            "Payload that was left to the next process.",
            total.bytes_handed_over,
        ),
        family(
            "accept_failures_total",
            "Accepts that failed, by reason.",
            MetricType::COUNTER,
            failures.collect(),
        ),
    ]
}

/// The names and texts are those of the client libraries of Prometheus.
fn of_process(process: &Process) -> Vec<MetricFamily> {
    let one = |name, help, kind, value: f64| {
        let metric = match kind {
            MetricType::COUNTER => fractional_counter(value),
            _ => gauge(&[], value),
        };
        standard_family(name, help, kind, vec![metric])
    };
    let gauge = MetricType::GAUGE;
    vec![
        one(
            "process_cpu_seconds_total",
            "Total user and system CPU time spent in seconds.",
            MetricType::COUNTER,
            process.cpu_seconds,
        ),
        one("process_open_fds", "Number of open file descriptors.", gauge, process.open_fds as f64),
        one(
            "process_max_fds",
            "Maximum number of open file descriptors.",
            gauge,
            process.max_fds as f64,
        ),
        one(
            "process_virtual_memory_bytes",
            "Virtual memory size in bytes.",
            gauge,
            process.virtual_memory_bytes as f64,
        ),
        one(
            "process_resident_memory_bytes",
            "Resident memory size in bytes.",
            gauge,
            process.resident_memory_bytes as f64,
        ),
        one(
            "process_threads",
            "Number of OS threads in the process.",
            gauge,
            process.threads as f64,
        ),
        one(
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
            gauge,
            process.start_time_seconds,
        ),
    ]
}

fn of_ring(ring: &Ring) -> Vec<MetricFamily> {
    vec![
        one_counter(
            "buffer_waits_total",
            "Receives that found no buffer (ENOBUFS) and waited.",
            ring.buffer_waits,
        ),
        one_counter(
            "short_sends_total",
            "Sends that the socket accepted only in part.",
            ring.short_sends,
        ),
        one_counter(
            "completion_overflows_total",
            "Event loop iterations with an overflowed completion queue.",
            ring.completion_overflows,
        ),
        one_counter(
            "memory_retries_total",
            "Operations retried because the kernel was out of memory.",
            ring.memory_retries,
        ),
        one_counter(
            "spills_refused_total",
            "Times that limits.stalled-memory was exhausted when bytes had to be spilled.",
            ring.spills_refused,
        ),
        one_counter(
            "full_total",
            "Times that the capacity (limits.max-connections) was exhausted.",
            ring.full,
        ),
    ]
}

fn of_listeners(listeners: &[ListenerFigures]) -> Vec<MetricFamily> {
    let each = |value: fn(&Traffic) -> u64| -> Vec<Metric> {
        listeners.iter().map(|it| counter(&labels(it), value(&it.traffic))).collect()
    };
    let open = listeners.iter().map(|it| gauge(&labels(it), it.traffic.connections as f64));
    let by_reason = |counts: fn(&Traffic) -> &BTreeMap<String, u64>| -> Vec<Metric> {
        let of_one = |it| {
            let [name, protocol, address] = labels(it);
            let counts = counts(&it.traffic).iter();
            counts.map(move |(reason, count)| {
                counter(&[name, protocol, address, ("reason", reason)], *count)
            })
        };
        listeners.iter().flat_map(of_one).collect()
    };
    let count = |name, help, metrics| family(name, help, MetricType::COUNTER, metrics);
    vec![
        family("connections", "Open connections.", MetricType::GAUGE, open.collect()),
        count("accepted_connections_total", "Connections accepted.", each(|it| it.accepted)),
        count(
            "taken_over_connections_total",
            "Connections taken over from the previous process.",
            each(|it| it.taken_over),
        ),
        count(
            "closed_connections_total",
            "Connections closed, by reason.",
            by_reason(|it| &it.closed),
        ),
        count(
            "refused_connections_total",
            "Connections closed right after their accept or their header, by reason.",
            by_reason(|it| &it.refused),
        ),
        count(
            "announced_connections_total",
            "Connections of proxies whose header announced an address.",
            each(|it| it.announced),
        ),
        count(
            "health_checks_total",
            "Connections of proxies that ended without a byte of a client.",
            each(|it| it.health_checks),
        ),
        count(
            "identities_total",
            "Connections that were told the identity of the listener.",
            each(|it| it.identities),
        ),
        count("received_bytes_total", "Payload received.", each(|it| it.bytes_received)),
        count("sent_bytes_total", "Payload echoed.", each(|it| it.bytes_sent)),
        count("received_messages_total", "Chunks received.", each(|it| it.messages_received)),
        count("sent_messages_total", "Echoes completed.", each(|it| it.messages_sent)),
    ]
}

/// None of these exists if there is no listener for datagrams.
fn of_datagrams(listeners: &[DatagramListenerFigures]) -> Vec<MetricFamily> {
    fn labels(it: &DatagramListenerFigures) -> [(&'static str, &str); 3] {
        [("listener", &it.name), ("protocol", &it.protocol), ("address", &it.address)]
    }
    let count = |name, help, value: fn(&DatagramListenerFigures) -> u64| {
        let each = listeners.iter().map(|it| counter(&labels(it), value(it)));
        family(name, help, MetricType::COUNTER, each.collect())
    };
    let dropped = listeners.iter().flat_map(|it| {
        let [name, protocol, address] = labels(it);
        let counts = it.dropped.iter();
        counts.map(move |(reason, count)| {
            counter(&[name, protocol, address, ("reason", reason)], *count)
        })
    });
    let dropped = family(
        "datagrams_dropped_total",
        "Datagrams received and not answered, by reason.",
        MetricType::COUNTER,
        dropped.collect(),
    );
    vec![
        count("datagrams_received_total", "Datagrams received.", |it| it.datagrams_received),
        count("datagrams_sent_total", "Datagrams sent back.", |it| it.datagrams_sent),
        count("datagram_bytes_received_total", "Payload of datagrams received.", |it| {
            it.bytes_received
        }),
        count("datagram_bytes_sent_total", "Payload of datagrams sent back.", |it| it.bytes_sent),
        dropped,
        count(
            "datagrams_kernel_dropped_total",
            "Datagrams that the kernel dropped at a full receive buffer, since the socket exists.",
            |it| it.kernel_dropped,
        ),
    ]
}

fn labels(listener: &ListenerFigures) -> [(&'static str, &str); 3] {
    [("listener", &listener.name), ("protocol", &listener.protocol), ("address", &listener.address)]
}

fn residence(snapshot: &Snapshot) -> MetricFamily {
    let counted = &snapshot.total.histogram;
    let buckets = BUCKETS.map(|exponent| {
        let bound = 1_u64 << exponent;
        let mut bucket = Bucket::default();
        // Microseconds are rounded down, so times below the bound are at most one less.
        bucket.set_upper_bound(bound as f64 / 1e6);
        bucket.set_cumulative_count(counted.count_up_to(bound - 1));
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.into());
    histogram.set_sample_count(counted.count());
    histogram.set_sample_sum(counted.sum() as f64 / 1e6);
    let mut metric = Metric::default();
    metric.set_histogram(histogram);
    let help = "Time from the receipt of a chunk to the completion of its echo, for one in 16.";
    family("residence_seconds", help, MetricType::HISTOGRAM, vec![metric])
}

#[cfg(test)]
mod tests {
    use echo_core::datagram::DatagramTraffic;

    use super::*;

    fn page(snapshot: &Snapshot) -> String {
        String::from_utf8(text(snapshot)).unwrap()
    }

    /// Goal: the two addresses of a socket unit are two series, and several sockets of one address
    /// are one.
    #[test]
    fn a_series_comes_once() {
        let listener = |address: &str, bytes_sent| ListenerFigures {
            name: "echo".to_owned(),
            address: address.to_owned(),
            protocol: "tcp".to_owned(),
            traffic: Traffic { bytes_sent, connections: 1, ..Traffic::default() },
        };
        let listeners =
            vec![listener("127.0.0.1:7", 3), listener("[::1]:7", 4), listener("127.0.0.1:7", 5)];
        let page = page(&Snapshot { listeners, ..Snapshot::default() });
        for series in [
            "sent_bytes_total{listener=\"echo\",protocol=\"tcp\",address=\"127.0.0.1:7\"} 8",
            "sent_bytes_total{listener=\"echo\",protocol=\"tcp\",address=\"[::1]:7\"} 4",
            "connections{listener=\"echo\",protocol=\"tcp\",address=\"127.0.0.1:7\"} 2",
        ] {
            let series = format!("echo_uring_{series}");
            assert_eq!(page.lines().filter(|line| *line == series).count(), 1, "{page}");
        }
        let mut series: Vec<&str> =
            page.lines().filter_map(|line| line.rsplit_once(' ').map(|it| it.0)).collect();
        series.retain(|line| !line.starts_with('#'));
        let count = series.len();
        series.sort_unstable();
        series.dedup();
        assert_eq!(series.len(), count, "{page}");
    }

    #[test]
    fn datagrams_have_their_own_metrics() {
        assert!(!page(&Snapshot::default()).contains("datagram"));
        let mut traffic = DatagramTraffic {
            datagrams_in: 9,
            bytes_in: 900,
            datagrams_out: 7,
            bytes_out: 700,
            ..DatagramTraffic::default()
        };
        traffic.dropped[4] = 2;
        let listener = DatagramListenerFigures::new(("echo", "udp:0.0.0.0:7", "udp"), &traffic, 5);
        let datagram_listeners = vec![listener];
        let page = page(&Snapshot { datagram_listeners, ..Snapshot::default() });
        let labels = "listener=\"echo\",protocol=\"udp\",address=\"udp:0.0.0.0:7\"";
        for (name, more, count) in [
            ("datagrams_received_total", "", 9),
            ("datagrams_sent_total", "", 7),
            ("datagram_bytes_received_total", "", 900),
            ("datagram_bytes_sent_total", "", 700),
            ("datagrams_dropped_total", ",reason=\"source-port\"", 2),
            ("datagrams_dropped_total", ",reason=\"send-buffer\"", 0),
            ("datagrams_kernel_dropped_total", "", 5),
        ] {
            let line = format!("echo_uring_{name}{{{labels}{more}}} {count}\n");
            assert!(page.contains(&line), "{line:?} is missing:\n{page}");
        }
    }
    /// Goal: a limit that is off, and a key that waits for a restart, can be told from zero.
    #[test]
    fn limits_and_reloads_are_gauges() {
        let mut snapshot = Snapshot::default();
        snapshot.limits.connections = 100;
        snapshot.limits.accepts_per_source = Some(20);
        snapshot.process.cpu_seconds = 1.25;
        let text = page(&snapshot);
        for line in [
            "echo_uring_max_connections 100",
            "echo_uring_max_accepts_per_source 20",
            "echo_uring_restart_needed 0",
            "echo_uring_configuration_last_reload_successful 0",
            "echo_uring_taken_over_bytes_total 0",
            "# TYPE process_cpu_seconds_total counter",
            "process_cpu_seconds_total 1.25",
            "process_open_fds 0",
        ] {
            assert!(text.lines().any(|it| it == line), "{line:?} is missing:\n{text}");
        }
        assert!(!text.contains("max_connections_per_source"), "{text}");
        snapshot.restart_needed = vec!["server.workers".to_owned()];
        snapshot.reload.successful = true;
        snapshot.reload.success_timestamp_seconds = 1_700_000_000.5;
        let text = page(&snapshot);
        for line in [
            "restart_needed 1",
            "configuration_last_reload_successful 1",
            "configuration_last_reload_success_timestamp_seconds 1700000000.5",
        ] {
            assert!(text.contains(&format!("\necho_uring_{line}\n")), "{line:?}:\n{text}");
        }
    }
}
