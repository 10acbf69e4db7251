//! loom's atomics, with a count of the stores that are made to each.
//!
//! loom 0.7.2 keeps the seven newest stores of an atomic (`rt::MAX_ATOMIC_HISTORY`; the value that it is made with is
//! one) and shows a load one of these, without a word about older ones that C11 would let it return. So a load from an
//! atomic that has had more stores ends the model here.
//!
//! A store counts from the moment at which two threads run: what was stored before the first of them was spawned, or by
//! those that have all been joined, comes before every load, and only the newest of that can be returned. A
//! read-modify-write reads the newest store of all, under C11 and in loom; it counts as a store where it succeeds.

use core::cell::Cell;
use core::fmt;
use core::panic::Location;
use core::sync::atomic::{AtomicU64 as Plain, Ordering as PlainOrdering};

use loom::sync::atomic::{self, Ordering};

/// `rt::MAX_ATOMIC_HISTORY` of loom 0.7.2.
pub const REMEMBERED: u64 = 7;

/// The most stores of one atomic that any load of a model had behind it.
#[derive(Clone, Copy, Debug)]
pub struct Most {
    /// Stores, the first value among them.
    pub stores: u64,
    /// Where the atomic was made.
    pub made_at: Option<&'static Location<'static>>,
}

std::thread_local! {
    // All threads of a model are coroutines of one thread.
    static EPOCH: Cell<u64> = const { Cell::new(0) };
    static SPAWNED: Cell<u64> = const { Cell::new(0) };
    static MOST: Cell<Most> = const { Cell::new(Most { stores: 0, made_at: None }) };
}

/// One more execution of the model begins, with one thread.
pub(super) fn begin() {
    SPAWNED.set(0);
    EPOCH.set(EPOCH.get() + 1);
}

/// The running thread is about to spawn another.
pub(super) fn spawned() {
    if SPAWNED.replace(SPAWNED.get() + 1) == 0 {
        EPOCH.set(EPOCH.get() + 1);
    }
}

/// A spawned thread was joined.
pub(super) fn joined() {
    SPAWNED.set(SPAWNED.get() - 1);
    if SPAWNED.get() == 0 {
        EPOCH.set(EPOCH.get() + 1);
    }
}

/// What was counted since this was last asked.
pub(super) fn take_most() -> Most {
    MOST.replace(Most { stores: 0, made_at: None })
}

/// The stores of one atomic: bits 0..16 their number, the others the epoch in which they were made.
#[derive(Debug)]
struct History {
    word: Plain,
    made_at: &'static Location<'static>,
}

impl History {
    #[track_caller]
    fn new() -> Self {
        Self { word: Plain::new(EPOCH.get() << 16 | 1), made_at: Location::caller() }
    }

    fn stores(&self) -> u64 {
        let word = self.word.load(PlainOrdering::Relaxed);
        if word >> 16 == EPOCH.get() { word & 0xffff } else { 1 }
    }

    fn stored(&self) {
        self.word.store(EPOCH.get() << 16 | (self.stores() + 1), PlainOrdering::Relaxed);
    }

    #[track_caller]
    fn loaded(&self) {
        let stores = self.stores();
        if stores > MOST.get().stores {
            MOST.set(Most { stores, made_at: Some(self.made_at) });
        }
        assert!(
            stores <= REMEMBERED,
            "the atomic made at {} had {stores} stores when it was loaded, of which loom shows the {REMEMBERED} newest \
             alone: this model is too long",
            self.made_at,
        );
    }
}

macro_rules! counted {
    ($name:ident $(<$param:ident>)?, $value:ty) => {
        /// loom's atomic, and how many stores it has had.
        pub struct $name $(<$param>)? {
            atomic: atomic::$name $(<$param>)?,
            history: History,
        }

        impl $(<$param>)? $name $(<$param>)? {
            /// Holds `value`.
            #[track_caller]
            pub fn new(value: $value) -> Self {
                Self { atomic: atomic::$name::new(value), history: History::new() }
            }
            /// As core's.
            #[track_caller]
            pub fn load(&self, order: Ordering) -> $value {
                let value = self.atomic.load(order);
                // Afterwards: others run before a load, not after it.
                self.history.loaded();
                value
            }
            /// As core's.
            #[track_caller]
            pub fn store(&self, value: $value, order: Ordering) {
                self.atomic.store(value, order);
                self.history.stored();
            }
            /// As core's.
            #[track_caller]
            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                let old = self.atomic.swap(value, order);
                self.history.stored();
                old
            }
            /// As core's.
            #[track_caller]
            pub fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                let result = self.atomic.compare_exchange(current, new, success, failure);
                result.inspect(|_| self.history.stored())
            }
            /// As core's; it never fails without a reason here.
            #[track_caller]
            pub fn compare_exchange_weak(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.compare_exchange(current, new, success, failure)
            }
            /// As core's.
            #[track_caller]
            pub fn fetch_update(
                &self,
                set_order: Ordering,
                fetch_order: Ordering,
                mut f: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                let mut old = self.load(fetch_order);
                while let Some(new) = f(old) {
                    match self.compare_exchange(old, new, set_order, fetch_order) {
                        Ok(old) => return Ok(old),
                        Err(now) => old = now,
                    }
                }
                Err(old)
            }
        }

        impl $(<$param>)? fmt::Debug for $name $(<$param>)? {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.atomic.fmt(f)
            }
        }
    };
    ($name:ident, $value:ty: $($op:ident)*) => {
        counted!($name, $value);

        impl $name {
            $(
                /// As core's.
                #[track_caller]
                pub fn $op(&self, value: $value, order: Ordering) -> $value {
                    let old = self.atomic.$op(value, order);
                    self.history.stored();
                    old
                }
            )*
        }

        impl Default for $name {
            #[track_caller]
            fn default() -> Self {
                Self::new(<$value>::default())
            }
        }
    };
}

counted!(AtomicBool, bool: fetch_and fetch_or);
counted!(AtomicI64, i64: fetch_add fetch_sub fetch_and fetch_or fetch_max fetch_min);
counted!(AtomicU32, u32: fetch_add fetch_sub fetch_and fetch_or fetch_max fetch_min);
counted!(AtomicU64, u64: fetch_add fetch_sub fetch_and fetch_or fetch_max fetch_min);
counted!(AtomicUsize, usize: fetch_add fetch_sub fetch_and fetch_or fetch_max fetch_min);
counted!(AtomicPtr<T>, *mut T);

impl AtomicU64 {
    /// Nobody else may use it any more: a use that is not ordered before this ends the model.
    #[track_caller]
    pub fn assert_alone(&mut self) {
        self.atomic.with_mut(|_| ());
    }
}
