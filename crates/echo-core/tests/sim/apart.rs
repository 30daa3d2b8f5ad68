//! What is drawn apart from the rest of a history, so that the other histories are what their seeds
//! made them before it was drawn at all.

use std::sync::Arc;

use echo_core::parameters::AfterIdentity;

use crate::fake::choice::Choice;

/// In an eighth of the histories each listener has an identity or not, whatever else it is.
/// (Not in more of them: a connection that is told an identity alone meets little else.)
pub(crate) fn draw_identities(seed: u64, listeners: u16) -> Arc<[Option<AfterIdentity>]> {
    let mut choice = Choice::from_seed(seed.rotate_left(17) ^ 2);
    if choice.below(8) > 0 {
        return Arc::new([]);
    }
    let kinds = [None, Some(AfterIdentity::End), Some(AfterIdentity::Echo)];
    (0..listeners).map(|_| kinds[choice.below(3)]).collect()
}

/// In a third of the histories the listeners are divided among workers, once or more often, of which
/// this is one.
pub(crate) fn draw_divisions(seed: u64) -> Vec<(usize, [bool; 2])> {
    let mut choice = Choice::from_seed(seed.rotate_left(32) ^ 1);
    let count = [0, 0, 0, 0, 1, 4][choice.below(6)];
    let mut divisions: Vec<(usize, [bool; 2])> = (0..count)
        .map(|_| (choice.below(150), [choice.below(2) == 0, choice.below(2) == 0]))
        .collect();
    divisions.sort_by_key(|(turn, _)| std::cmp::Reverse(*turn));
    divisions
}
