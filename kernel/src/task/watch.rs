//! Something that is to be looked at again and again within a bound, whatever the tasks do: memory that leaves without a
//! word, of which no interrupt tells.
//!
//! CPU 0's timer looks, from its handler, so that no task that keeps its CPU, and no number of tasks, comes in between.
//! While nobody watches, no timer is armed for it.

use core::sync::atomic::{AtomicUsize, Ordering};

use spin::Once;

/// At most this long between two looks, in nanoseconds, but for what keeps interrupts off on CPU 0.
pub const PERIOD_NS: u64 = 400_000;

/// Who looks: in an interrupt handler.
static LOOK: Once<fn()> = Once::new();
/// How many watch. This alone says whether anybody does.
static NR: AtomicUsize = AtomicUsize::new(0);

/// From now on `look` is what is called while somebody watches. Called once.
pub fn init(look: fn()) {
    LOOK.call_once(|| look);
}

/// One more watches. `sched::rearm` makes the timers follow.
pub fn begin() {
    NR.fetch_add(1, Ordering::SeqCst);
}

/// One that [began](begin) watches no more; the same.
pub fn end() {
    let before = NR.fetch_sub(1, Ordering::SeqCst);
    debug_assert!(before != 0, "nobody watches");
}

/// Does anybody watch?
pub fn is_on() -> bool {
    NR.load(Ordering::Relaxed) != 0
}

/// CPU 0's timer has run out.
pub(super) fn look() {
    if is_on()
        && let Some(look) = LOOK.get()
    {
        look();
    }
}
