//! Where every accident of the simulated world comes from: one seed, or one branch of a complete
//! enumeration.
//!
//! Nothing in the simulator may be decided by anything else (no clock, no address, no hash order),
//! so that a seed or a branch replays exactly. Knows nothing of connections.

/// A source of decisions.
pub(crate) enum Choice {
    /// Each decision is drawn from a seed.
    Drawn(Prng),
    /// Each decision is the next branch of an enumeration that visits all of them.
    Enumerated(Enumeration),
}

impl Choice {
    /// All decisions from `seed`.
    pub(crate) fn from_seed(seed: u64) -> Self {
        Self::Drawn(Prng::new(seed))
    }

    /// One of `0..bound`; nothing is drawn where there is nothing to decide.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        assert!(bound > 0, "a choice among nothing");
        if bound == 1 {
            return 0;
        }
        match self {
            Self::Drawn(prng) => prng.below(bound),
            Self::Enumerated(enumeration) => enumeration.below(bound),
        }
    }

    /// Whether a fault of this probability strikes. When enumerating, any probability but 0 means
    /// both branches, as long as the budget of faults lasts.
    pub(crate) fn strikes(&mut self, per_mille: u16) -> bool {
        if per_mille == 0 {
            return false;
        }
        match self {
            Self::Drawn(prng) => prng.below(1000) < usize::from(per_mille),
            Self::Enumerated(enumeration) => enumeration.strikes(),
        }
    }
}

/// splitmix64: small, quick, and good enough to decide accidents.
#[derive(Debug)]
pub(crate) struct Prng(u64);

impl Prng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// One of `0..bound`. The bias of the multiplication is below 2^-32 for the bounds used here.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let wide = u128::from(self.next()) * (bound as u128);
        (wide >> 64) as usize
    }
}

/// The finaliser of splitmix64: every input bit reaches every output bit.
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Walks every sequence of decisions once: a sequence is written down as it is asked for, and
/// [`Enumeration::advance`] turns to the next one, last decision first, as a counter does.
pub(crate) struct Enumeration {
    /// Each decision made so far, with the largest value it can take.
    decisions: Vec<(usize, usize)>,
    /// How many of them the present run has asked for.
    position: usize,
    /// How many faults a run may suffer.
    faults_max: usize,
    /// How many it may still suffer.
    faults_left: usize,
}

impl Enumeration {
    pub(crate) fn new(faults_max: usize) -> Self {
        Self { decisions: Vec::new(), position: 0, faults_max, faults_left: faults_max }
    }

    /// Goes to the next sequence; false when every one has been seen.
    pub(crate) fn advance(&mut self) -> bool {
        self.position = 0;
        self.faults_left = self.faults_max;
        while let Some((value, largest)) = self.decisions.pop() {
            if value < largest {
                self.decisions.push((value + 1, largest));
                return true;
            }
        }
        false
    }

    /// The present sequence, for a failure report.
    pub(crate) fn describe(&self) -> String {
        let digits: Vec<String> =
            self.decisions.iter().take(self.position).map(|(value, _)| value.to_string()).collect();
        digits.join(".")
    }

    fn below(&mut self, bound: usize) -> usize {
        if self.position == self.decisions.len() {
            self.decisions.push((0, bound - 1));
        }
        let (value, largest) = self.decisions[self.position];
        assert_eq!(largest, bound - 1, "the same decisions led to another question");
        self.position += 1;
        value
    }

    fn strikes(&mut self) -> bool {
        if self.faults_left == 0 {
            return false;
        }
        let struck = self.below(2) == 1;
        self.faults_left -= usize::from(struck);
        struck
    }
}
