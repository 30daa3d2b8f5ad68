//! A snapshot as Prometheus metrics, in the text format.
//!
//! The only labels are listener, protocol and reason. Their values are few: there is never a series
//! for each peer.

use std::collections::BTreeMap;

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};
use prometheus::{Encoder, TextEncoder};

use super::snapshot::{DatagramListenerFigures, ListenerFigures, Ring, Snapshot, State, Traffic};

/// Upper bounds of the residence time buckets, in microseconds as powers of two: 4 µs to 17 s.
const BUCKETS: [u32; 20] = [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 22, 24];

/// The body of `/metrics`.
pub(super) fn text(snapshot: &Snapshot) -> Vec<u8> {
    let mut families = of_process(snapshot);
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

fn of_process(snapshot: &Snapshot) -> Vec<MetricFamily> {
    let total = &snapshot.total;
    let ready = f64::from(u8::from(snapshot.state == State::Ready));
    let turning = snapshot.workers.iter().filter(|worker| worker.turning).count();
    let build = vec![gauge(&[("version", &snapshot.version)], 1.0)];
    let failures = total.accept_failures.iter();
    let failures = failures.map(|(reason, count)| counter(&[("reason", reason)], *count));
    let mut families = vec![
        family("build_info", "The version of the daemon; always 1.", MetricType::GAUGE, build),
        one_gauge(
            "ready",
            "1 while serving, 0 before that and from the start of a stop or a handover.",
            ready,
        ),
        one_gauge("uptime_seconds", "Time since the start.", snapshot.uptime_seconds),
        one_gauge(
            "configuration_valid",
            "0 while the file is invalid and an earlier configuration is in force, else 1.",
            f64::from(u8::from(snapshot.configuration_error.is_none())),
        ),
        one_gauge("workers", "Worker threads.", snapshot.workers.len() as f64),
        one_gauge("workers_turning", "Workers that are not stalled.", turning as f64),
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
            "Memory held for peers that do not read.",
            total.stalled_bytes as f64,
        ),
        one_gauge("buffers", "Receive buffers.", total.buffers.total as f64),
        one_gauge("buffers_lent", "Receive buffers in use.", total.buffers.lent as f64),
        one_counter("dropped_bytes_total", "Bytes that could not be echoed.", total.bytes_dropped),
        family(
            "accept_failures_total",
            "Accepts that failed, by reason.",
            MetricType::COUNTER,
            failures.collect(),
        ),
    ];
    families.extend(of_ring(&total.ring));
    families
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
            let [name, protocol] = labels(it);
            let counts = counts(&it.traffic).iter();
            counts
                .map(move |(reason, count)| counter(&[name, protocol, ("reason", reason)], *count))
        };
        listeners.iter().flat_map(of_one).collect()
    };
    let count = |name, help, metrics| family(name, help, MetricType::COUNTER, metrics);
    vec![
        family("connections", "Open connections.", MetricType::GAUGE, open.collect()),
        count("accepted_connections_total", "Connections accepted.", each(|it| it.accepted)),
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
        count("received_bytes_total", "Payload received.", each(|it| it.bytes_received)),
        count("sent_bytes_total", "Payload echoed.", each(|it| it.bytes_sent)),
        count("received_messages_total", "Chunks received.", each(|it| it.messages_received)),
        count("sent_messages_total", "Echoes completed.", each(|it| it.messages_sent)),
    ]
}

/// None of these exists if there is no listener for datagrams.
fn of_datagrams(listeners: &[DatagramListenerFigures]) -> Vec<MetricFamily> {
    fn labels(it: &DatagramListenerFigures) -> [(&'static str, &str); 2] {
        [("listener", &it.name), ("protocol", &it.protocol)]
    }
    let count = |name, help, value: fn(&DatagramListenerFigures) -> u64| {
        let each = listeners.iter().map(|it| counter(&labels(it), value(it)));
        family(name, help, MetricType::COUNTER, each.collect())
    };
    let dropped = listeners.iter().flat_map(|it| {
        let [name, protocol] = labels(it);
        let counts = it.dropped.iter();
        counts.map(move |(reason, count)| counter(&[name, protocol, ("reason", reason)], *count))
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

/// Makes one metric of those with the same labels: several listeners may have one name, as those of
/// a socket unit with several addresses do. Prometheus rejects a series that comes twice.
fn merge(family: &mut MetricFamily) {
    let kind = family.get_field_type();
    let mut merged: Vec<Metric> = Vec::new();
    for metric in family.take_metric() {
        let same = merged.iter_mut().find(|known| known.get_label() == metric.get_label());
        match (same, kind) {
            (Some(known), MetricType::COUNTER) => {
                let sum = known.get_counter().get_value() + metric.get_counter().get_value();
                known.set_counter(counter_of(sum));
            }
            (Some(known), MetricType::GAUGE) => {
                let sum = known.get_gauge().get_value() + metric.get_gauge().get_value();
                known.set_gauge(gauge_of(sum));
            }
            (None | Some(_), _) => merged.push(metric),
        }
    }
    family.set_metric(merged);
}

fn labels(listener: &ListenerFigures) -> [(&'static str, &str); 2] {
    [("listener", &listener.name), ("protocol", &listener.protocol)]
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

fn one_gauge(name: &str, help: &str, value: f64) -> MetricFamily {
    family(name, help, MetricType::GAUGE, vec![gauge(&[], value)])
}

fn one_counter(name: &str, help: &str, value: u64) -> MetricFamily {
    family(name, help, MetricType::COUNTER, vec![counter(&[], value)])
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(format!("echo_uring_{name}"));
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn gauge(labels: &[(&str, &str)], value: f64) -> Metric {
    let mut metric = labelled(labels);
    metric.set_gauge(gauge_of(value));
    metric
}

fn gauge_of(value: f64) -> Gauge {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    gauge
}

fn counter(labels: &[(&str, &str)], value: u64) -> Metric {
    let mut metric = labelled(labels);
    metric.set_counter(counter_of(value as f64));
    metric
}

fn counter_of(value: f64) -> Counter {
    let mut counter = Counter::default();
    counter.set_value(value);
    counter
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    let mut metric = Metric::default();
    metric.set_label(labels.iter().map(pair).collect());
    metric
}

#[cfg(test)]
mod tests {
    use echo_core::datagram::DatagramTraffic;

    use super::*;

    fn page(snapshot: &Snapshot) -> String {
        String::from_utf8(text(snapshot)).unwrap()
    }

    /// Goal: listeners of one name, as those of a socket unit with two addresses, are one series.
    #[test]
    fn a_series_comes_once() {
        let listener = |address: &str, bytes_sent| ListenerFigures {
            name: "echo".to_owned(),
            address: address.to_owned(),
            protocol: "tcp".to_owned(),
            traffic: Traffic { bytes_sent, connections: 1, ..Traffic::default() },
        };
        let listeners = vec![listener("127.0.0.1:7", 3), listener("[::1]:7", 4)];
        let page = page(&Snapshot { listeners, ..Snapshot::default() });
        for series in [
            "echo_uring_sent_bytes_total{listener=\"echo\",protocol=\"tcp\"} 7",
            "echo_uring_connections{listener=\"echo\",protocol=\"tcp\"} 2",
        ] {
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
        let labels = "listener=\"echo\",protocol=\"udp\"";
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
}
