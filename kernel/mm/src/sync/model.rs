//! What a model is made of, whoever runs it: loom, shuttle, or plain threads (which Miri watches).
//!
//! | | loom | shuttle | neither |
//! |---|---|---|---|
//! | [`explore`] | every interleaving within a bound | so many at random | so many as they come |
//! | loads | every value, within limits | the newest value | what the machine (or Miri) gives |
//! | [`UnsafeCell`] | finds uses out of order | finds uses that overlap | Miri finds uses out of order |
//!
//! See `docs/proofs.md` for the limits of each, and for how a model is written.

#[cfg(not(any(loom, shuttle)))]
pub use core::sync::atomic::AtomicBool;

#[cfg(loom)]
pub use super::counted::AtomicBool;
#[cfg(loom)]
pub use loom::cell::UnsafeCell;
#[cfg(loom)]
pub use loom::thread_local;
#[cfg(shuttle)]
pub use shuttle::sync::atomic::AtomicBool;
#[cfg(shuttle)]
pub use shuttle::thread_local;
#[cfg(not(any(loom, shuttle)))]
pub use std::thread_local;

#[cfg(loom)]
pub use self::by_loom::explore_as;
#[cfg(not(any(loom, shuttle)))]
pub use self::by_threads::explore_as;
#[cfg(not(loom))]
pub use self::cell::UnsafeCell;
#[cfg(shuttle)]
pub use super::sampled::explore_as;

/// How far loom goes. (shuttle is told by the environment: see `docs/testing.md`.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// At most so many switches away from a thread that could go on.
    Preemptions(usize),
    /// Every interleaving.
    None,
}

/// Runs `model` again and again, each time with other interleavings. Its name is that of the function around it.
#[track_caller]
pub fn explore<F: Fn() + Send + Sync + 'static>(bound: Bound, model: F) {
    let name = core::any::type_name::<F>();
    explore_as(name.trim_end_matches("::{{closure}}"), bound, model);
}

/// `exhaustive` for loom, which has to come to an end; `sampled` for others, which may do with a larger model.
pub const fn sized(exhaustive: usize, sampled: usize) -> usize {
    if cfg!(loom) { exhaustive } else { sampled }
}

#[cfg(any(loom, shuttle))]
std::thread_local! {
    // The threads of a model are coroutines of one thread.
    static KEPT: core::cell::RefCell<std::vec::Vec<alloc::boxed::Box<dyn core::any::Any>>> = const {
        core::cell::RefCell::new(std::vec::Vec::new())
    };
}

/// Keeps what was freed until the next execution of the model begins, so that a late use is found and not undefined.
#[cfg(any(loom, shuttle))]
pub(crate) fn keep(freed: alloc::boxed::Box<dyn core::any::Any>) {
    KEPT.with_borrow_mut(|kept| kept.push(freed));
}

/// The next execution begins: what the last one freed goes. A million would fill the memory otherwise.
#[cfg(any(loom, shuttle))]
pub(super) fn drop_kept() {
    drop(KEPT.take());
}

/// Threads of a model.
pub mod thread {
    #[cfg(loom)]
    pub use self::counted::{JoinHandle, spawn};
    #[cfg(loom)]
    pub use loom::thread::yield_now;
    #[cfg(shuttle)]
    pub use shuttle::thread::{JoinHandle, spawn, yield_now};
    #[cfg(not(any(loom, shuttle)))]
    pub use std::thread::{JoinHandle, spawn, yield_now};

    #[cfg(loom)]
    mod counted {
        use crate::sync::counted;

        /// Joins a thread.
        #[derive(Debug)]
        pub struct JoinHandle<T>(loom::thread::JoinHandle<T>);

        impl<T> JoinHandle<T> {
            /// Waits for the end of the thread.
            ///
            /// # Errors
            /// It panicked.
            pub fn join(self) -> std::thread::Result<T> {
                let result = self.0.join();
                counted::joined();
                result
            }
        }

        /// Begins a thread.
        #[track_caller]
        pub fn spawn<T: 'static>(f: impl FnOnce() -> T + 'static) -> JoinHandle<T> {
            counted::spawned();
            JoinHandle(loom::thread::spawn(f))
        }
    }
}

#[cfg(loom)]
mod by_loom {
    use super::Bound;
    use crate::sync::counted;

    /// As [`explore`](super::explore), under a name of its own: for a function that makes models of several sizes.
    #[track_caller]
    pub fn explore_as(name: &str, bound: Bound, model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        // Where threads wait in loops some schedules are long.
        builder.max_branches = 20_000;
        if let Bound::Preemptions(most) = bound {
            builder.preemption_bound = Some(most);
        }
        counted::take_most();
        builder.check(move || {
            counted::begin();
            super::drop_kept();
            model();
        });
        let most = counted::take_most();
        let place = most.made_at.map_or(String::new(), |place| format!(" (made at {place})"));
        println!("model {name}: a load had at most {} stores of its atomic behind it{place}", most.stores);
    }
}

#[cfg(not(any(loom, shuttle)))]
mod by_threads {
    use super::Bound;

    /// Runs of a model as plain threads. Miri repeats them with other seeds.
    const RUNS: usize = if cfg!(miri) { 2 } else { 200 };

    /// As [`explore`](super::explore), under a name of its own: for a function that makes models of several sizes.
    pub fn explore_as(_name: &str, _bound: Bound, model: impl Fn() + Sync + Send + 'static) {
        (0..RUNS).for_each(|_| model());
    }
}

#[cfg(not(loom))]
mod cell {
    #[cfg(not(shuttle))]
    use core::sync::atomic::AtomicU64;
    use core::sync::atomic::Ordering;

    #[cfg(shuttle)]
    use shuttle::sync::atomic::AtomicU64;

    /// Who is in the cell alone.
    const ALONE: u64 = 1 << 32;

    /// A cell, with the signatures of loom's. Of two uses that overlap, one being alone, the second panics; a use is
    /// an interval, at both ends of which others may run. Plain threads touch plain memory: Miri, too, sees where two
    /// are not ordered.
    #[derive(Debug, Default)]
    pub struct UnsafeCell<T> {
        value: core::cell::UnsafeCell<T>,
        /// Read and written for Miri, whatever `T` is: it may be nothing.
        touched: core::cell::UnsafeCell<u8>,
        users: AtomicU64,
    }

    impl<T> UnsafeCell<T> {
        /// Holds `value`.
        pub fn new(value: T) -> Self {
            Self {
                value: core::cell::UnsafeCell::new(value),
                touched: core::cell::UnsafeCell::new(0),
                users: AtomicU64::new(0),
            }
        }
        /// A use beside others.
        pub fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            self.enter(1, |users| users < ALONE);
            // SAFETY: nobody writes it: that is what is checked, here and by Miri.
            let _touched = unsafe { self.touched.get().read_volatile() };
            let result = f(self.value.get());
            self.leave(1);
            result
        }
        /// A use alone.
        pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            self.enter(ALONE, |users| users == 0);
            // SAFETY: nobody else reads or writes it: that is what is checked, here and by Miri.
            unsafe { self.touched.get().write_volatile(1) };
            let result = f(self.value.get());
            self.leave(ALONE);
            result
        }
        /// Relaxed: it must not order what it watches.
        fn enter(&self, weight: u64, fits: impl FnOnce(u64) -> bool) {
            let users = self.users.fetch_add(weight, Ordering::Relaxed);
            assert!(fits(users), "used by two at once, of whom one has to be alone");
        }
        fn leave(&self, weight: u64) {
            self.users.fetch_sub(weight, Ordering::Relaxed);
        }
    }
}
