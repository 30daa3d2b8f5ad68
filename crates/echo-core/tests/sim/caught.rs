//! Catches the panic of one history, with its message and its place, and does not print it.

use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
    static WORDS: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs `act`. Returns its panic as text, if it panics.
pub(crate) fn caught(act: impl FnOnce()) -> Result<(), String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if CATCHING.get() {
                WORDS.with_borrow_mut(|words| *words = info.to_string());
            } else {
                usual(info);
            }
        }));
    });
    CATCHING.set(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(act));
    CATCHING.set(false);
    outcome.map_err(|_| WORDS.with_borrow_mut(std::mem::take))
}
