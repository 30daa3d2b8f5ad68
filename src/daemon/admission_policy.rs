//! The admission policy of a configuration.

use std::net::IpAddr;

use crate::config::{Config, Network};
use echo_core::admission::{AccessList, AdmissionPolicy, IpSet, SourceLimits};

/// The minimum number of sources whose buckets are kept, however small the capacity is.
const KEPT_MIN: u32 = 1024;

/// The admission policy of `config`.
pub(super) fn admission_policy(config: &Config) -> AdmissionPolicy {
    let limits = &config.limits;
    AdmissionPolicy {
        access: AccessList {
            allow: ip_set(&config.access.allow),
            deny: ip_set(&config.access.deny),
        },
        source_limits: SourceLimits {
            connections: limits.max_connections_per_source,
            accepts_per_second: limits.accepts_per_source,
            ipv4_prefix: limits.source_prefix_ipv4,
            ipv6_prefix: limits.source_prefix_ipv6,
            kept_max: limits.max_connections.max(KEPT_MIN),
        },
    }
}

/// All addresses of these networks.
pub(super) fn ip_set(networks: &[Network]) -> IpSet {
    let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
    for network in networks {
        match network.range() {
            (IpAddr::V4(first), IpAddr::V4(last)) => ipv4.push((first.octets(), last.octets())),
            (IpAddr::V6(first), IpAddr::V6(last)) => ipv6.push((first.octets(), last.octets())),
            mixed => unreachable!("a network of two families: {mixed:?}"),
        }
    }
    IpSet::new(ipv4, ipv6)
}
