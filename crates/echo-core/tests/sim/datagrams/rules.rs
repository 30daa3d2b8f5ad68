//! Which datagrams must not be answered, and how much one source may have: a second, independent
//! specification of the rules of the service.
//!
//! Written in a simple way, with lists and sums, so that it shares no idea with the core.

use std::sync::Arc;

use echo_core::admission::{AccessList, AdmissionPolicy, IpSet, SourceLimits};
use echo_core::datagram::op::Header;
use echo_core::datagram::{Datagram, DropReason, Endpoint, GuardPolicy, Rates};
use echo_core::op::PeerAddr;
use echo_core::parameters::RuntimeLimits;

/// The configuration of the operator.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    /// Source ports whose datagrams are not answered.
    pub(crate) ports: Vec<u16>,
    /// Addresses that are denied, all of IPv4.
    pub(crate) denied: Vec<[u8; 4]>,
    /// If there are any, all other addresses are denied as well.
    pub(crate) allowed: Vec<[u8; 4]>,
    /// If datagrams have headers: the trusted proxies, all IPv4.
    pub(crate) trusted: Option<Vec<[u8; 4]>>,
    pub(crate) rates: Rates,
    /// Leading bits of an IPv4 address that identify its source.
    pub(crate) prefix: u8,
}

impl Rules {
    /// The trusted proxies, in the form for the core.
    pub(crate) fn proxies(&self) -> Option<IpSet> {
        let ranges = |hosts: &Vec<[u8; 4]>| hosts.iter().map(|host| (*host, *host)).collect();
        self.trusted.as_ref().map(|hosts| IpSet::new(ranges(hosts), Vec::new()))
    }

    /// The address for which a datagram is counted.
    fn client(&self, datagram: &Datagram) -> PeerAddr {
        match datagram.header {
            Header::Announced(client) if self.trusted.is_some() => client,
            _ => datagram.source.address,
        }
    }

    /// The same in the form for the core.
    pub(crate) fn limits(&self, streams: &RuntimeLimits) -> RuntimeLimits {
        let set = |addresses: &[[u8; 4]]| {
            IpSet::new(addresses.iter().map(|address| (*address, *address)).collect(), Vec::new())
        };
        let access = AccessList { allow: set(&self.allowed), deny: set(&self.denied) };
        let source_limits =
            SourceLimits { ipv4_prefix: self.prefix, ..streams.admission.source_limits.clone() };
        RuntimeLimits {
            admission: Arc::new(AdmissionPolicy {
                access,
                source_limits,
                ..AdmissionPolicy::default()
            }),
            datagram_guard: GuardPolicy::new(self.ports.iter().copied()),
            datagram_rates: self.rates,
            ..streams.clone()
        }
    }

    /// Every reason for which this datagram, received by a socket bound to `own`, must not be
    /// answered.
    pub(crate) fn reasons(&self, datagram: &Datagram, own: Endpoint) -> Vec<DropReason> {
        let Datagram { source, destination, local, truncated, .. } = *datagram;
        let asked = if own.address == PeerAddr::Unknown { local } else { own.address };
        let to_many = destination != local || is_group(destination) || is_group(own.address);
        let no_host = match source.address {
            PeerAddr::Unknown => true,
            PeerAddr::Local => false,
            // 0/8, and everything from 224.0.0.0 on.
            PeerAddr::Ipv4(address) => {
                let number = u32::from_be_bytes(address);
                !(0x0100_0000..0xe000_0000).contains(&number)
            }
            PeerAddr::Ipv6(address) => address == [0; 16] || is_group(source.address),
        };
        let is_trusted = match (&self.trusted, source.address) {
            (None, _) | (_, PeerAddr::Local) => true,
            (Some(hosts), PeerAddr::Ipv4(address)) => hosts.contains(&address),
            (Some(_), _) => false,
        };
        let wants_header = self.trusted.is_some();
        let no_header = matches!(datagram.header, Header::Absent | Header::Invalid);
        let denied = match self.client(datagram) {
            PeerAddr::Unknown | PeerAddr::Local => false,
            PeerAddr::Ipv4(address) => {
                let listed = self.allowed.is_empty() || self.allowed.contains(&address);
                self.denied.contains(&address) || !listed
            }
            PeerAddr::Ipv6(_) => !self.allowed.is_empty(),
        };
        let all = [
            (truncated, DropReason::Truncated),
            (to_many, DropReason::Destination),
            (no_host || source.port == 0, DropReason::Source),
            (source == Endpoint { address: asked, port: own.port }, DropReason::Own),
            (self.ports.contains(&source.port), DropReason::SourcePort),
            (!is_trusted, DropReason::Untrusted),
            (wants_header && no_header, DropReason::InvalidHeader),
            (denied, DropReason::Denied),
        ];
        all.into_iter().filter(|(applies, _)| *applies).map(|(_, reason)| reason).collect()
    }

    /// The source under which the datagrams of this address are counted; none if they are not
    /// limited.
    fn group(&self, address: PeerAddr) -> Option<String> {
        match address {
            PeerAddr::Unknown | PeerAddr::Local => None,
            // This machine itself.
            PeerAddr::Ipv4([127, ..]) => None,
            PeerAddr::Ipv6([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]) => None,
            PeerAddr::Ipv4(address) => {
                let digits: String = address.iter().map(|byte| format!("{byte:08b}")).collect();
                Some(format!("4:{}", &digits[..usize::from(self.prefix)]))
            }
            PeerAddr::Ipv6(address) => Some(format!("6:{:?}", &address[..8])),
        }
    }
}

fn is_group(address: PeerAddr) -> bool {
    match address {
        PeerAddr::Unknown | PeerAddr::Local => false,
        PeerAddr::Ipv4([first, ..]) => (224..).contains(&first) || first == 0,
        PeerAddr::Ipv6(address) => address[0] == 0xff || address == [0; 16],
    }
}

/// A second in the unit of allowances. A token is a million units, so that a microsecond of any
/// rate is a whole number.
const SECOND: i128 = 1_000_000;

/// How much all workers of a process may answer to each source.
#[derive(Default)]
pub(crate) struct Allowances {
    workers: u64,
    /// Whether every source is remembered, so that limits hold exactly.
    is_strict: bool,
    sources: Vec<(String, Source)>,
    /// How often a source was refused.
    pub(crate) refused: u64,
}

/// One kind of token of one source.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    /// The answered amount that time has not compensated yet.
    spent: i128,
    /// The amount that is certainly left.
    left: i128,
}

#[derive(Clone, Debug)]
struct Source {
    accounts: [Account; 2],
    at_us: u64,
    /// The last refusals: moment and amount.
    refusals: Vec<(u64, [u64; 2])>,
}

impl Allowances {
    pub(crate) fn new(workers: u64, is_strict: bool) -> Self {
        Self { workers, is_strict, sources: Vec::new(), refused: 0 }
    }

    /// Other rates or prefixes come into force. How much a source has used before is then not known
    /// exactly: at most its full allowance, at least nothing.
    pub(crate) fn change(&mut self) {
        for (_, source) in &mut self.sources {
            source.accounts = [Account::default(); 2];
            source.refusals.clear();
        }
    }

    /// Another process begins, in which every source has its full allowance.
    pub(crate) fn forget(&mut self) {
        self.sources.clear();
    }

    fn source(&mut self, rules: &Rules, address: PeerAddr, now_us: u64) -> Option<&mut Source> {
        if rates(rules) == [None, None] {
            return None;
        }
        let name = rules.group(address)?;
        let known = self.sources.iter().position(|(other, _)| *other == name);
        let index = known.unwrap_or_else(|| {
            let full = rates(rules)
                .map(|rate| Account { spent: 0, left: i128::from(rate.unwrap_or(0)) * SECOND });
            let source = Source { accounts: full, at_us: now_us, refusals: Vec::new() };
            self.sources.push((name, source));
            self.sources.len() - 1
        });
        let source = &mut self.sources[index].1;
        let elapsed = i128::from(now_us.saturating_sub(source.at_us));
        for (account, rate) in source.accounts.iter_mut().zip(rates(rules)) {
            let rate = i128::from(rate.unwrap_or(0));
            account.spent = (account.spent - rate * elapsed).max(0);
            account.left = (account.left + rate * elapsed).min(rate * SECOND);
        }
        source.at_us = now_us.max(source.at_us);
        source.refusals.retain(|(when, _)| now_us < when + SECOND as u64 / 64 + 1_000);
        Some(source)
    }

    /// A worker answers this datagram. The allowance of its source must be sufficient.
    pub(crate) fn answered(&mut self, rules: &Rules, now_us: u64, datagram: &Datagram) {
        let (workers, is_strict) = (self.workers, self.is_strict);
        let Some(source) = self.source(rules, rules.client(datagram), now_us) else { return };
        for ((account, rate), amount) in
            source.accounts.iter_mut().zip(rates(rules)).zip(amounts(datagram))
        {
            let Some(rate) = rate else { continue };
            account.spent += i128::from(amount) * SECOND;
            account.left -= i128::from(amount) * SECOND;
            // One second's worth, and the lease of each worker.
            let most = i128::from(rate + workers * (rate / 64 + 1)) * SECOND;
            assert!(
                account.spent <= most || !is_strict,
                "rates: {} has {} of {most}",
                datagram.source.port,
                account.spent
            );
        }
    }

    /// A worker refuses this datagram. Returns which of the two limits may have been exceeded. None
    /// means that the refusal is wrong.
    pub(crate) fn refused(
        &mut self,
        rules: &Rules,
        now_us: u64,
        datagram: &Datagram,
    ) -> Vec<DropReason> {
        let workers = self.workers;
        let Some(source) = self.source(rules, rules.client(datagram), now_us) else {
            return Vec::new();
        };
        source.refusals.push((now_us, amounts(datagram)));
        let mut reasons = Vec::new();
        let kinds = [DropReason::SourceDatagrams, DropReason::SourceBytes];
        for (index, (rate, reason)) in rates(rules).into_iter().zip(kinds).enumerate() {
            let Some(rate) = rate else { continue };
            // A worker requests no tokens until a 64th of a second after a refusal.
            let asked = source.refusals.iter().map(|(_, amounts)| amounts[index]).max();
            let held = workers * (rate / 64 + 1) + rate / 32 + 2;
            let needed = i128::from(asked.unwrap_or(0) + held) * SECOND;
            if source.accounts[index].left < needed {
                reasons.push(reason);
            }
        }
        self.refused += 1;
        reasons
    }
}

fn rates(rules: &Rules) -> [Option<u64>; 2] {
    [rules.rates.datagrams, rules.rates.bytes]
}

/// Datagrams and bytes.
fn amounts(datagram: &Datagram) -> [u64; 2] {
    [pieces(datagram), datagram.length.into()]
}

/// How many datagrams a burst is.
pub(crate) fn pieces(datagram: &Datagram) -> u64 {
    let (mut left, mut count) = (datagram.length, 1);
    while datagram.segment > 0 && left > u32::from(datagram.segment) {
        left -= u32::from(datagram.segment);
        count += 1;
    }
    count
}
