//! Something that is to be looked at again and again within a bound, whatever the tasks do: memory that leaves without a
//! word, of which no interrupt tells.
//!
//! CPU 0's timer looks, from its handler, so that no task that keeps its CPU, and no number of tasks, comes in between.
//! While nobody watches, no timer is armed for it.

use core::sync::atomic::{AtomicBool, Ordering};

use spin::Once;

/// At most this long between two looks, in nanoseconds, but for what keeps interrupts off on CPU 0.
pub const PERIOD_NS: u64 = 400_000;

/// Who looks: in an interrupt handler.
static LOOK: Once<fn()> = Once::new();
static ON: AtomicBool = AtomicBool::new(false);

/// From now on `look` is what is called while somebody watches. Called once.
pub fn init(look: fn()) {
    LOOK.call_once(|| look);
}

/// Does anybody watch? `sched::rearm` makes the timers follow a change.
pub fn set(on: bool) {
    ON.store(on, Ordering::SeqCst);
}

/// Does anybody watch?
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// CPU 0's timer has run out.
pub(super) fn look() {
    if is_on()
        && let Some(look) = LOOK.get()
    {
        look();
    }
}
