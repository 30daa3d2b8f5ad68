//! Which size of buffer a connection gets for its next receive.

use super::Connection;
use crate::echo::limits;
use crate::echo::op::{Expectation, SizeClass};
use crate::echo::resources::Resources;

impl Connection {
    /// Learns from a receive which size of buffer and how much trust the next one deserves.
    pub(super) fn classify(
        &mut self,
        resources: &Resources,
        class: SizeClass,
        length: u32,
        more: bool,
    ) {
        self.probation = self.probation.saturating_sub(1);
        self.expectation = if more { Expectation::Data } else { Expectation::Silence };
        if length < resources.pool.size(SizeClass::Small) {
            return self.shrink();
        }
        // Whoever needs more than a small buffer keeps a large one.
        if class == SizeClass::Small {
            self.full_buffers = self.full_buffers.saturating_add(1);
        }
        if self.full_buffers >= limits::FULL_BUFFERS_TO_GROW
            && self.probation == 0
            && resources.pool.exists(SizeClass::Large)
        {
            self.class = SizeClass::Large;
        }
    }

    pub(super) fn shrink(&mut self) {
        self.class = SizeClass::Small;
        self.full_buffers = 0;
    }
}
