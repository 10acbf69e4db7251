//! Deliberate faults, so that the tests can be tested.
//!
//! A test that never failed proves little. Each package lists the faults that its protocols must not have, by
//! [`mutants!`] in its `src/mutant.rs`; the code asks `Mutant::is_on` at the one place where the fault would be. In the
//! kernel the answer is the constant `false` and nothing of it is compiled. With the feature `environment`, which the
//! packages' tests turn on, the fault is the one that the package's variable names (`MM_MUTANT`, …), read once: so one
//! build of the tests runs against every fault. `./run-qemu.sh test --full` reads the lists, runs the tests that each
//! fault names, with it and without, and prints the table.
//!
//! With the feature `zoo`, and without `environment`, a fault is switched on and off while the program runs, by
//! `Mutant::switch`: so a kernel that is built for it shows what the fault does. Each place that asks for a fault that is on
//! tells the listener of `watch` first, because just there another CPU would have to come in between.
//!
//! ```
//! mutants::mutants! {
//!     "EXAMPLE_MUTANT";
//!     /// The sum is one too high. Caught by `sums::two_and_two_are_four`.
//!     OneTooHigh = "one_too_high",
//! }
//!
//! fn sum(a: u32, b: u32) -> u32 {
//!     a + b + u32::from(Mutant::OneTooHigh.is_on())
//! }
//! assert_eq!(sum(2, 2), 4);
//! ```
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "environment")]
extern crate std;

use core::fmt::Debug;
use core::marker::PhantomData;
#[cfg(all(feature = "zoo", not(feature = "environment")))]
use core::sync::atomic::{AtomicUsize, Ordering};

/// Makes the enumeration `Mutant` from the name of the variable that chooses one, and a list of faults. Each has a word,
/// and a comment that ends in `Caught by` and the tests that catch it: `file::test`, those of unit tests with their path.
#[macro_export]
macro_rules! mutants {
    ($variable:literal; $($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A deliberate fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutant { $($(#[$doc])* $name,)* }

        impl Mutant {
            /// All faults.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The word that switches the fault on.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
            /// Is this fault built in?
            #[inline(always)]
            pub fn is_on(self) -> bool {
                // The constant first: nothing of the rest reaches the compiler's later stages, so that it costs gup-fast
                // no register.
                $crate::SWITCHABLE && $crate::Choice::<Self>::default().has(self)
            }
            /// Switches the fault of this word on, and any other of this list off; `None`: all of them. Answers whether there
            /// is such a fault. Only a build with `zoo` has any to switch on: another answers `false` to every word.
            pub fn switch(word: Option<&str>) -> bool {
                <Self as $crate::Fault>::chosen_by().switch(Self::ALL, Self::name, word)
            }
        }

        impl $crate::Fault for Mutant {
            #[inline(always)]
            fn chosen_by() -> &'static $crate::Chosen<Self> {
                static CHOSEN: $crate::Chosen<Mutant> = $crate::Chosen::new($variable);
                &CHOSEN
            }
            #[inline(always)]
            fn chosen() -> $crate::Choice<Self> {
                Self::chosen_by().get(Mutant::ALL, Mutant::name)
            }
        }
    };
}

/// Can a fault be switched on at all?
pub const SWITCHABLE: bool = cfg!(any(feature = "environment", feature = "zoo"));

/// A list of faults, as [`mutants!`] makes it.
pub trait Fault: Copy + Debug + Eq + 'static {
    /// The one that is on.
    fn chosen() -> Choice<Self>;
    /// What has chosen it.
    #[doc(hidden)]
    fn chosen_by() -> &'static Chosen<Self>;
}

/// The fault that something has, if any. Without the features `environment` and `zoo` it has no size, and there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice<M> {
    #[cfg(any(feature = "environment", feature = "zoo"))]
    fault: Option<M>,
    of: PhantomData<M>,
}

impl<M: Fault> Default for Choice<M> {
    /// The one that is on: that the environment names, or that was switched on.
    #[inline(always)]
    fn default() -> Self {
        M::chosen()
    }
}

impl<M: Fault> Choice<M> {
    /// None, whatever is on.
    pub const fn none() -> Self {
        Self {
            #[cfg(any(feature = "environment", feature = "zoo"))]
            fault: None,
            of: PhantomData,
        }
    }
    /// This one, whatever is on.
    #[cfg(any(feature = "environment", feature = "zoo"))]
    pub const fn with(fault: M) -> Self {
        Self { fault: Some(fault), of: PhantomData }
    }
    /// Is this fault built in?
    #[cfg(feature = "environment")]
    pub fn has(self, fault: M) -> bool {
        self.fault == Some(fault)
    }
    /// Is this fault on? If so, who [watches](watch) has its turn first.
    #[cfg(all(feature = "zoo", not(feature = "environment")))]
    #[inline]
    pub fn has(self, fault: M) -> bool {
        let is_on = self.fault == Some(fault);
        if is_on {
            strike_here();
        }
        is_on
    }
    /// Is this fault built in? Never, here.
    #[cfg(not(any(feature = "environment", feature = "zoo")))]
    #[inline(always)]
    pub const fn has(self, _fault: M) -> bool {
        false
    }
}

/// Who is told where a fault that is on is asked for.
#[cfg(all(feature = "zoo", not(feature = "environment")))]
static WATCHER: spin::Once<fn()> = spin::Once::new();

/// From now on `listener` is called at each place that asks for a fault that is on, before the fault has its way. The first
/// call counts.
#[cfg(all(feature = "zoo", not(feature = "environment")))]
pub fn watch(listener: fn()) {
    WATCHER.call_once(|| listener);
}

#[cfg(all(feature = "zoo", not(feature = "environment")))]
#[cold]
fn strike_here() {
    if let Some(listener) = WATCHER.get() {
        listener();
    }
}

/// What the environment has chosen, once somebody has looked, or what was switched on: a part of [`mutants!`].
#[doc(hidden)]
#[derive(Debug)]
pub struct Chosen<M> {
    #[cfg(feature = "environment")]
    variable: &'static str,
    #[cfg(feature = "environment")]
    found: std::sync::OnceLock<Choice<M>>,
    /// Which of the list, counted from 1; 0: none.
    #[cfg(all(feature = "zoo", not(feature = "environment")))]
    nth: AtomicUsize,
    of: PhantomData<fn() -> M>,
}

impl<M: Fault> Chosen<M> {
    /// Nobody has looked.
    pub const fn new(variable: &'static str) -> Self {
        #[cfg(not(feature = "environment"))]
        let _ = variable;
        Self {
            #[cfg(feature = "environment")]
            variable,
            #[cfg(feature = "environment")]
            found: std::sync::OnceLock::new(),
            #[cfg(all(feature = "zoo", not(feature = "environment")))]
            nth: AtomicUsize::new(0),
            of: PhantomData,
        }
    }

    /// Switches that of this name on, and no other; see `Mutant::switch`.
    #[cfg(all(feature = "zoo", not(feature = "environment")))]
    pub fn switch(&self, all: &[M], name: fn(M) -> &'static str, word: Option<&str>) -> bool {
        let nth = match word {
            None => Some(0),
            Some(word) => all.iter().position(|fault| name(*fault) == word).map(|nth| nth + 1),
        };
        // Relaxed: who switches makes sure by other means that nobody is in the middle of what the fault is about.
        nth.inspect(|&nth| self.nth.store(nth, Ordering::Relaxed)).is_some()
    }

    /// There is nothing to switch on, here.
    #[cfg(not(all(feature = "zoo", not(feature = "environment"))))]
    pub fn switch(&self, _all: &[M], _name: fn(M) -> &'static str, word: Option<&str>) -> bool {
        word.is_none()
    }

    /// The one that is on.
    #[cfg(all(feature = "zoo", not(feature = "environment")))]
    #[inline]
    pub fn get(&self, all: &[M], _name: fn(M) -> &'static str) -> Choice<M> {
        let nth = self.nth.load(Ordering::Relaxed);
        Choice { fault: nth.checked_sub(1).and_then(|nth| all.get(nth)).copied(), of: PhantomData }
    }

    /// None, here.
    #[cfg(not(any(feature = "environment", feature = "zoo")))]
    #[inline(always)]
    pub fn get(&self, _all: &[M], _name: fn(M) -> &'static str) -> Choice<M> {
        Choice::none()
    }

    /// What the variable names.
    ///
    /// # Panics
    /// Where that is none of `all`: a run that tests nothing must not pass for one that does.
    #[cfg(feature = "environment")]
    pub fn get(&self, all: &[M], name: fn(M) -> &'static str) -> Choice<M> {
        *self.found.get_or_init(|| {
            let wanted = std::env::var(self.variable).ok().filter(|wanted| !wanted.is_empty());
            let Some(wanted) = wanted else { return Choice::none() };
            let known = all.iter().copied().find(|fault| name(*fault) == wanted);
            Choice::with(known.unwrap_or_else(|| panic!("{}={wanted} names no fault", self.variable)))
        })
    }
}

#[cfg(all(test, feature = "environment"))]
mod tests {
    use super::Choice;

    mutants! {
        "MUTANTS_TEST_UNSET";
        /// The first thing is wrong. Caught by nobody: an example.
        First = "first",
        /// The second is. Caught by nobody: an example.
        Second = "second",
    }

    #[test]
    fn without_a_word_there_is_no_fault_and_with_one_there_is_that_fault() {
        assert!(Mutant::ALL.iter().all(|fault| !fault.is_on() && !Choice::none().has(*fault)));
        assert!(
            Mutant::switch(None) && !Mutant::switch(Some("first")),
            "only a build for the zoo has any to switch on"
        );
        let chosen = Choice::with(Mutant::Second);
        assert!(chosen.has(Mutant::Second) && !chosen.has(Mutant::First));
        assert_eq!(Mutant::ALL.iter().map(|fault| fault.name()).collect::<std::vec::Vec<_>>(), ["first", "second"]);
    }
}
