//! Families of metrics as the crate `prometheus` has them, from names, labels and values.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

/// Makes one metric of those with the same labels: several listeners may have one name and address,
/// as those of a socket unit with `ReusePort=` do. Prometheus rejects a series that comes twice.
pub(super) fn merge(family: &mut MetricFamily) {
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

/// A gauge without labels.
pub(super) fn one_gauge(name: &str, help: &str, value: f64) -> MetricFamily {
    family(name, help, MetricType::GAUGE, vec![gauge(&[], value)])
}

/// A counter without labels.
pub(super) fn one_counter(name: &str, help: &str, value: u64) -> MetricFamily {
    family(name, help, MetricType::COUNTER, vec![counter(&[], value)])
}

/// A family of the daemon.
pub(super) fn family(
    name: &str,
    help: &str,
    kind: MetricType,
    metrics: Vec<Metric>,
) -> MetricFamily {
    standard_family(&format!("echo_uring_{name}"), help, kind, metrics)
}

/// A family whose name has no prefix of ours, because it is the same for all programs.
pub(super) fn standard_family(
    name: &str,
    help: &str,
    kind: MetricType,
    metrics: Vec<Metric>,
) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

/// A gauge with these labels.
pub(super) fn gauge(labels: &[(&str, &str)], value: f64) -> Metric {
    let mut metric = labelled(labels);
    metric.set_gauge(gauge_of(value));
    metric
}

fn gauge_of(value: f64) -> Gauge {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    gauge
}

/// A counter with these labels.
pub(super) fn counter(labels: &[(&str, &str)], value: u64) -> Metric {
    let mut metric = labelled(labels);
    metric.set_counter(counter_of(value as f64));
    metric
}

/// A counter without labels that does not count in whole numbers.
pub(super) fn fractional_counter(value: f64) -> Metric {
    let mut metric = Metric::default();
    metric.set_counter(counter_of(value));
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
