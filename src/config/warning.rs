//! Warnings: values that are valid but cannot work as written.

use std::net::IpAddr;

use super::{Config, Network};

/// A warning: the key, as in `access.allow`, and the problem with its remedy.
pub(super) type Warning = (&'static str, String);

/// The warnings about `config`.
pub(super) fn warnings(config: &Config) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let denied = Ranges::of(&config.access.deny);
    let allow = &config.access.allow;
    let all_addresses = [(Family::V4, 0, u32::MAX.into()), (Family::V6, 0, u128::MAX)];
    let is_any_allowed = match allow[..] {
        [] => all_addresses.iter().any(|range| !denied.cover(*range)),
        _ => allow.iter().any(|network| !denied.cover(range(network))),
    };
    if !is_any_allowed {
        let problem = "no client can connect over TCP or is answered over UDP: all are denied; \
                       remove networks from this list";
        warnings.push(("access.deny", problem.to_owned()));
    } else {
        let both = allow.iter().filter(|network| denied.cover(range(network)));
        warnings.extend(both.map(|network| {
            let problem = format!(
                "\"{network}\" is denied as well, and access.deny wins; \
                 remove it from one of the lists"
            );
            ("access.allow", problem)
        }));
    }
    if let (Some(stall), Some(user_timeout)) = (config.timeouts.stall, config.tcp.user_timeout)
        && stall > user_timeout
    {
        let [stall, user_timeout] = [stall, user_timeout].map(humantime::format_duration);
        let problem = format!(
            "\"{stall}\" is never reached: tcp.user-timeout ends such a connection after \
             \"{user_timeout}\"; raise that as well"
        );
        warnings.push(("timeouts.stall", problem));
    }
    warnings.extend(unbounded_datagrams(config));
    warnings
}

/// Without a limit nothing ends an exchange with another service that answers everything, whatever
/// ports are listed.
fn unbounded_datagrams(config: &Config) -> Option<Warning> {
    let datagram = &config.datagram;
    if datagram.datagrams_per_source.is_some() || datagram.bytes_per_source.is_some() {
        return None;
    }
    let problem = "\"off\", as datagram.bytes-per-source is: a forged datagram can start an \
                   endless exchange between this and another UDP service; set one of the two";
    Some(("datagram.datagrams-per-source", problem.to_owned()))
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    V4,
    V6,
}

/// The first and the last address, as numbers.
type Range = (Family, u128, u128);

fn range(network: &Network) -> Range {
    let number = |address: IpAddr| match address {
        IpAddr::V4(address) => (Family::V4, u128::from(u32::from(address))),
        IpAddr::V6(address) => (Family::V6, u128::from(address)),
    };
    let (first, last) = network.range();
    let (family, first) = number(first);
    (family, first, number(last).1)
}

/// Ranges in order that neither overlap nor touch.
struct Ranges(Vec<Range>);

impl Ranges {
    fn of(networks: &[Network]) -> Self {
        let mut ranges: Vec<Range> = networks.iter().map(range).collect();
        ranges.sort_unstable();
        let mut merged: Vec<Range> = Vec::new();
        for (family, first, last) in ranges {
            match merged.last_mut() {
                Some((same, _, end)) if *same == family && first <= end.saturating_add(1) => {
                    *end = last.max(*end);
                }
                _ => merged.push((family, first, last)),
            }
        }
        Self(merged)
    }

    /// Whether they contain all of `range`.
    fn cover(&self, (family, first, last): Range) -> bool {
        let after = self.0.partition_point(|(kin, begin, _)| (*kin, *begin) <= (family, first));
        let before = after.checked_sub(1).map(|index| self.0[index]);
        before.is_some_and(|(kin, _, end)| kin == family && last <= end)
    }
}
