//! The source of every random decision in the simulated world: one seed, or one branch of a
//! complete enumeration.
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

    /// One of `0..bound`. Nothing is drawn if there is only one possibility.
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

    /// Whether a fault with this probability occurs. When enumerating, any probability except 0
    /// means both branches, as long as the budget of faults lasts.
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

/// splitmix64: small, fast, and good enough for this purpose.
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

/// Visits every sequence of decisions once: a sequence is recorded as decisions are requested, and
/// [`Enumeration::advance`] goes to the next one, last decision first, like a counter.
pub(crate) struct Enumeration {
    /// Each decision made so far, with the largest value it can take.
    decisions: Vec<(usize, usize)>,
    /// How many of them the present run has requested.
    position: usize,
    /// The maximum number of faults in a run.
    faults_max: usize,
    /// How many faults are left.
    faults_left: usize,
}

impl Enumeration {
    pub(crate) fn new(faults_max: usize) -> Self {
        Self { decisions: Vec::new(), position: 0, faults_max, faults_left: faults_max }
    }

    /// Goes to the next sequence. False when all have been visited.
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
