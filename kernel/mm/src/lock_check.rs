//! In debug builds: how many locks the running task holds. One that waits with a lock held stops the kernel.
//!
//! # The rule
//! A CPU that is asked to flush must always be able to answer, and whoever is waited for must be able to go on. Hence:
//!
//! 1. Nobody waits with interrupts off: `dispatch` and `sync` of a shootdown check that, in every build.
//! 2. Nobody waits with a [`Mutex`](crate::sync::Mutex) held: not for a shootdown, a lock of an address space, a pin, a
//!    use, a reader or a [`SleepLock`](crate::sync::SleepLock). A `Mutex` is spun for, perhaps by the one that is waited
//!    for. [`might_sleep`] checks that, in debug builds: before each wait, whether or not there is something to wait for,
//!    and in each `relax` of a machine.
//! 3. What may be held while waiting is taken by trying and `relax` only: the locks of address spaces, and
//!    [`SleepLock`](crate::sync::SleepLock)s, which have no operation that spins.
//!
//! So what is called under a lock (a visitor of the page metadata, say) and waits after all is found by the first test
//! that gets there, not by the first deadlock.
//!
//! Linux: `might_sleep`, and lockdep's wait types.

#[cfg(all(debug_assertions, not(any(loom, shuttle))))]
mod counting {
    #[cfg(any(test, feature = "hosted"))]
    mod counter {
        use core::cell::Cell;

        std::thread_local! {
            /// A thread is a task on the host.
            static HELD: Cell<i64> = const { Cell::new(0) };
        }

        pub fn add(change: i64) -> i64 {
            // While a thread ends it counts no more.
            HELD.try_with(|held| held.replace(held.get() + change) + change).unwrap_or(0)
        }
    }

    #[cfg(not(any(test, feature = "hosted")))]
    mod counter {
        use spin::Once;

        pub static COUNTER: Once<fn(i64) -> i64> = Once::new();

        #[inline]
        pub fn add(change: i64) -> i64 {
            COUNTER.get().map_or(0, |counter| counter(change))
        }
    }

    pub use counter::add;

    /// See [`super::count_by`].
    pub fn count_by(counter: fn(i64) -> i64) {
        #[cfg(not(any(test, feature = "hosted")))]
        counter::COUNTER.call_once(|| counter);
        #[cfg(any(test, feature = "hosted"))]
        let _ = counter;
    }
}

#[cfg(not(all(debug_assertions, not(any(loom, shuttle)))))]
mod counting {
    #[inline(always)]
    pub fn add(_: i64) -> i64 {
        0
    }
    pub fn count_by(_: fn(i64) -> i64) {}
}

/// From now on `counter` keeps the number of the running task: it adds to it, and answers what there is then. Where it
/// was never called nothing is counted. Only the first call counts; none does on a host
/// (feature `hosted`), where there is a counter for each thread.
pub fn count_by(counter: fn(i64) -> i64) {
    counting::count_by(counter);
}

/// How many locks the running task holds; always 0 in a release build.
#[inline]
pub fn locks_held() -> i64 {
    counting::add(0)
}

/// Another task goes on that holds so many; answers how many the one held that ran so far. For one who runs several on one
/// thread of a host.
#[cfg(feature = "hosted")]
pub fn exchange(held: i64) -> i64 {
    let before = locks_held();
    counting::add(held - before);
    before
}

/// The running task is about to wait for `what`, or may have to.
///
/// # Panics
/// In debug builds, when it holds a [`Mutex`](crate::sync::Mutex).
#[inline(always)]
#[track_caller]
pub fn might_sleep(what: &str) {
    if cfg!(debug_assertions) {
        let nr = locks_held();
        assert!(nr == 0, "waits for {what} with a lock held ({nr} in all)");
    }
}

/// A lock that the running task holds.
#[cfg(not(any(loom, shuttle)))]
#[derive(Debug)]
pub(crate) struct HeldLock(());

#[cfg(not(any(loom, shuttle)))]
impl HeldLock {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        counting::add(1);
        Self(())
    }
}

#[cfg(not(any(loom, shuttle)))]
impl Drop for HeldLock {
    #[inline(always)]
    fn drop(&mut self) {
        counting::add(-1);
    }
}
