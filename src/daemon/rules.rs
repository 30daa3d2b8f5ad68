//! The admission rules of a configuration.

use std::net::IpAddr;

use crate::config::{Config, Network};
use echo_core::admission::{Access, Caps, Ranges, Rules};

/// The minimum number of sources whose buckets are kept, however small the capacity is.
const KEPT_MIN: u32 = 1024;

/// The admission rules of `config`.
pub(super) fn rules(config: &Config) -> Rules {
    let limits = &config.limits;
    Rules {
        access: Access { allow: ranges(&config.access.allow), deny: ranges(&config.access.deny) },
        caps: Caps {
            connections: limits.max_connections_per_source,
            accepts_per_second: limits.accepts_per_source,
            ipv4_prefix: limits.source_prefix_ipv4,
            ipv6_prefix: limits.source_prefix_ipv6,
            kept_max: limits.max_connections.max(KEPT_MIN),
        },
    }
}

fn ranges(networks: &[Network]) -> Ranges {
    let mut ranges = Ranges::default();
    for network in networks {
        match network.range() {
            (IpAddr::V4(first), IpAddr::V4(last)) => ranges.add_ipv4(first.octets(), last.octets()),
            (IpAddr::V6(first), IpAddr::V6(last)) => ranges.add_ipv6(first.octets(), last.octets()),
            mixed => unreachable!("a network of two families: {mixed:?}"),
        }
    }
    ranges.settle()
}
