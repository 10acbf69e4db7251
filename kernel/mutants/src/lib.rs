//! Deliberate faults, so that the tests can be tested.
//!
//! A test that never failed proves little. Each package lists the faults that its protocols must not have, by
//! [`mutants!`] in its `src/mutant.rs`; the code asks `Mutant::is_on` at the one place where the fault would be. In the
//! kernel the answer is the constant `false` and nothing of it is compiled. With the feature `environment`, which the
//! packages' tests turn on, the fault is the one that the package's variable names (`MM_MUTANT`, …), read once: so one
//! build of the tests runs against every fault. `./run-qemu.sh test --full` reads the lists, runs the tests that each
//! fault names, with it and without, and prints the table.
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
        }

        impl $crate::Fault for Mutant {
            #[inline(always)]
            fn chosen() -> $crate::Choice<Self> {
                static CHOSEN: $crate::Chosen<Mutant> = $crate::Chosen::new($variable);
                CHOSEN.get(Mutant::ALL, Mutant::name)
            }
        }
    };
}

/// Can a fault be switched on at all?
pub const SWITCHABLE: bool = cfg!(feature = "environment");

/// A list of faults, as [`mutants!`] makes it.
pub trait Fault: Copy + Debug + Eq + 'static {
    /// The one that the environment names.
    fn chosen() -> Choice<Self>;
}

/// The fault that something has, if any. Without the feature `environment` it has no size, and there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice<M> {
    #[cfg(feature = "environment")]
    fault: Option<M>,
    of: PhantomData<M>,
}

impl<M: Fault> Default for Choice<M> {
    /// The one that the environment names.
    #[inline(always)]
    fn default() -> Self {
        M::chosen()
    }
}

impl<M: Fault> Choice<M> {
    /// None, whatever the environment says.
    pub const fn none() -> Self {
        Self {
            #[cfg(feature = "environment")]
            fault: None,
            of: PhantomData,
        }
    }
    /// This one, whatever the environment says.
    #[cfg(feature = "environment")]
    pub const fn with(fault: M) -> Self {
        Self { fault: Some(fault), of: PhantomData }
    }
    /// Is this fault built in?
    #[cfg(feature = "environment")]
    pub fn has(self, fault: M) -> bool {
        self.fault == Some(fault)
    }
    /// Is this fault built in? Never, here.
    #[cfg(not(feature = "environment"))]
    #[inline(always)]
    pub const fn has(self, _fault: M) -> bool {
        false
    }
}

/// What the environment has chosen, once somebody has looked: a part of [`mutants!`].
#[doc(hidden)]
#[derive(Debug)]
pub struct Chosen<M> {
    #[cfg(feature = "environment")]
    variable: &'static str,
    #[cfg(feature = "environment")]
    found: std::sync::OnceLock<Choice<M>>,
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
            of: PhantomData,
        }
    }

    /// None, here.
    #[cfg(not(feature = "environment"))]
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
        let chosen = Choice::with(Mutant::Second);
        assert!(chosen.has(Mutant::Second) && !chosen.has(Mutant::First));
        assert_eq!(Mutant::ALL.iter().map(|fault| fault.name()).collect::<std::vec::Vec<_>>(), ["first", "second"]);
    }
}
