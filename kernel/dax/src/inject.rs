//! Faults on demand: which step, or which allocation, of the next attach or removal is to fail.
//!
//! # Protocol
//! A fault is armed by number and goes off once; or, armed *from* a number *on*, at it and at every one after it, until
//! it is disarmed. The latter is how memory is exhausted: each allocation fails. A step of attach that fails makes the attach fail, and everything
//! before it is undone. A step of a removal that fails is recorded and **done again**, since what follows relies on it:
//! a removal cannot fail. An allocation that fails makes an attach fail at the end of its step; a removal goes on with
//! what is put by for that, or with less.
//!
//! Whoever attaches or removes asks [`Faults::goes_off`] at each step, and at each allocation.

use core::fmt;

use mm::sync::{AtomicU64, Ordering};

/// Where a fault goes off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A step of attach, by its number.
    Attach,
    /// A step of a removal, by its number.
    Remove,
    /// An allocation inside an attach or a removal, counted from its beginning.
    Alloc,
}

impl Place {
    /// All places.
    pub const ALL: [Self; 3] = [Self::Attach, Self::Remove, Self::Alloc];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attach => "attach",
            Self::Remove => "remove",
            Self::Alloc => "alloc",
        }
    }
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// Which one there, from 1.
    pub number: u64,
    /// And all after it, until it is disarmed.
    pub and_after: bool,
}

/// The words name no fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadFault;

impl fmt::Display for BadFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a fault is attach, remove or alloc, and a number from 1, perhaps with a +")
    }
}

impl core::error::Error for BadFault {}

impl Fault {
    /// One that goes off once.
    pub const fn once(place: Place, number: u64) -> Self {
        Self { place, number, and_after: false }
    }

    /// One that goes off from a number on.
    pub const fn from_on(place: Place, number: u64) -> Self {
        Self { place, number, and_after: true }
    }

    /// From two words, such as `attach` and `3`, or `alloc` and `1+`.
    ///
    /// # Errors
    /// [`BadFault`].
    pub fn new(place: &str, number: &str) -> Result<Self, BadFault> {
        let place = Place::ALL.into_iter().find(|known| known.name() == place).ok_or(BadFault)?;
        let (digits, and_after) = match number.strip_suffix('+') {
            Some(digits) => (digits, true),
            None => (number, false),
        };
        match digits.parse() {
            Ok(number) if (1..ON).contains(&number) && digits.starts_with(|c: char| c.is_ascii_digit()) => {
                Ok(Self { place, number, and_after })
            }
            _ => Err(BadFault),
        }
    }

    /// From one word, such as `attach:3`.
    ///
    /// # Errors
    /// [`BadFault`].
    pub fn parse(word: &str) -> Result<Self, BadFault> {
        let (place, number) = word.split_once(':').ok_or(BadFault)?;
        Self::new(place, number)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}{}", self.place.name(), self.number, if self.and_after { "+" } else { "" })
    }
}

/// The bit of an armed number that says: and all after it.
const ON: u64 = 1 << 63;

/// The faults that are armed: at most one for each place.
#[derive(Debug)]
pub struct Faults {
    /// By place: the number, with [`ON`] where it is from it on; or 0.
    armed: [AtomicU64; Place::ALL.len()],
}

impl Default for Faults {
    fn default() -> Self {
        Self::new()
    }
}

impl Faults {
    /// No fault.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self { armed: [const { AtomicU64::new(0) }; Place::ALL.len()] }
    }
    /// No fault.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self { armed: core::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// Arms a fault, in the place of an earlier one for the same place.
    pub fn arm(&self, fault: Fault) {
        let on = if fault.and_after { ON } else { 0 };
        self.armed[fault.place as usize].store(fault.number | on, Ordering::Release);
    }

    /// Does a fault go off at this number? One that goes off once is armed no more then.
    pub fn goes_off(&self, place: Place, number: u64) -> bool {
        let armed = &self.armed[place as usize];
        // A look first: this is asked at each allocation.
        let found = armed.load(Ordering::Relaxed);
        if found & ON != 0 {
            return number >= found & !ON;
        }
        number != 0 && found == number && armed.compare_exchange(number, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Disarms a place. Says whether a fault was still armed there.
    pub fn disarm(&self, place: Place) -> bool {
        self.armed[place as usize].swap(0, Ordering::AcqRel) != 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_fault_goes_off_once_and_at_its_number() {
        let faults = Faults::new();
        faults.arm(Fault::parse("attach:3").unwrap());
        assert!(!faults.goes_off(Place::Attach, 2) && !faults.goes_off(Place::Remove, 3));
        assert!(faults.goes_off(Place::Attach, 3) && !faults.goes_off(Place::Attach, 3));
        faults.arm(Fault::new("alloc", "9").unwrap());
        assert!(faults.disarm(Place::Alloc) && !faults.disarm(Place::Alloc));
        assert!(!faults.goes_off(Place::Alloc, 0));
    }

    #[test]
    fn a_fault_from_a_number_on_goes_off_until_it_is_disarmed() {
        let faults = Faults::new();
        faults.arm(Fault::parse("alloc:2+").unwrap());
        let off = [1, 2, 3, 2, 1].map(|number| faults.goes_off(Place::Alloc, number));
        assert_eq!(off, [false, true, true, true, false]);
        assert!(!faults.goes_off(Place::Attach, 2));
        assert!(faults.disarm(Place::Alloc) && !faults.goes_off(Place::Alloc, 2));
    }

    #[test]
    fn what_names_no_fault_is_refused() {
        for word in [
            "",
            "attach",
            "attach:",
            "attach:0",
            "attach:x",
            "attach:-1",
            "detach:1",
            ":1",
            "alloc:1:2",
            "alloc:+",
            "alloc:+1",
            "alloc:0+",
            "alloc:1++",
        ] {
            assert_eq!(Fault::parse(word), Err(BadFault), "{word}");
        }
        for place in Place::ALL {
            for fault in [Fault::once(place, 7), Fault::from_on(place, 7)] {
                assert_eq!(Fault::parse(&alloc::format!("{fault}")), Ok(fault));
            }
        }
    }
}
