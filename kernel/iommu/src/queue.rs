//! The ring through which commands go to the unit (VT-d §6.5.2): its arithmetic, without its memory and registers.
//!
//! Head and tail are indices of 128-bit descriptors. The unit reads from the head on and stops at the tail; head = tail is
//! an empty ring, so one place stays free. Behind what somebody wants done goes a wait descriptor, by which the unit stores
//! a number into the status word: numbers rise by one, so that one word serves everybody who waits.

use core::fmt;

/// Why an invalidation was not done, or may not have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// The unit has stopped at a descriptor.
    Stuck {
        /// The fault status register.
        status: u32,
        /// Index of the descriptor.
        head: u32,
    },
    /// The unit did not answer in time.
    NoAnswer,
    /// The unit says that its head is where no command is.
    BadHead {
        /// What it says.
        head: u32,
    },
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Stuck { status, head } => {
                write!(f, "the invalidation queue has stopped at descriptor {head} (fault status {status:#x})")
            }
            Self::NoAnswer => f.write_str("the invalidation queue did not answer in time"),
            Self::BadHead { head } => write!(f, "the invalidation queue's head is {head}, where no command is"),
        }
    }
}

impl core::error::Error for QueueError {}

/// What the unit has done once its status word says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u32);

impl Ticket {
    /// The number that the wait descriptor stores.
    pub const fn value(self) -> u32 {
        self.0
    }
    /// Is it done, by the status word? Numbers wrap; two that are compared are never half of all apart.
    pub const fn is_done(self, status: u32) -> bool {
        status.wrapping_sub(self.0) as i32 >= 0
    }
}

/// Places in the ring for some commands and the wait behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    first: u32,
    /// With the wait.
    nr: u32,
    mask: u32,
    /// What the wait descriptor, which goes into the last place, is to store.
    pub ticket: Ticket,
}

impl Places {
    /// Indices of descriptors, in order: those of the commands, then that of the wait.
    pub fn indices(self) -> impl Iterator<Item = u32> {
        (0..self.nr).map(move |nth| self.first.wrapping_add(nth) & self.mask)
    }
}

/// Head, tail and numbers of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Places, a power of two.
    len: u32,
    head: u32,
    tail: u32,
    last: u32,
}

impl Ring {
    /// A ring of `2^order` pages of 256 descriptors; `order` is 0 to 7. The status word is to hold 0.
    pub const fn new(order: u8) -> Self {
        Self { len: 256 << if order > 7 { 7 } else { order }, head: 0, tail: 0, last: 0 }
    }
    /// How many places there are.
    pub const fn len(&self) -> u32 {
        self.len
    }
    /// Is nothing under way?
    pub const fn is_empty(&self) -> bool {
        self.head == self.tail
    }
    /// How many commands can be handed over at once now, a wait behind them.
    pub const fn room(&self) -> u32 {
        (self.len - 1 - self.under_way()).saturating_sub(1)
    }
    const fn under_way(&self) -> u32 {
        self.tail.wrapping_sub(self.head) & (self.len - 1)
    }
    /// Index of the place that the next command gets: the tail, once those before it are written.
    pub const fn tail(&self) -> u32 {
        self.tail
    }
    /// The tail as its register wants it, in bytes.
    pub const fn tail_register(&self) -> u64 {
        (self.tail as u64) << 4
    }
    /// The index in the head's register, which holds bytes.
    pub const fn index_of_register(register: u64) -> u32 {
        (register >> 4 & 0x7fff) as u32
    }

    /// Places for `nr` commands and the wait behind them; `None` while there is no [room](Self::room). Once the
    /// descriptors are in memory the tail register is told [the new tail](Self::tail_register).
    pub const fn claim(&mut self, nr: u32) -> Option<Places> {
        if nr >= self.len - 1 - self.under_way() {
            return None;
        }
        self.last = self.last.wrapping_add(1);
        let places = Places { first: self.tail, nr: nr + 1, mask: self.len - 1, ticket: Ticket(self.last) };
        self.tail = self.tail.wrapping_add(nr + 1) & (self.len - 1);
        Some(places)
    }

    /// The unit has read up to `head`, by its register: those places are free.
    ///
    /// # Errors
    /// It says something that cannot be: nothing has changed then.
    pub const fn retire(&mut self, head: u32) -> Result<(), QueueError> {
        let done = head.wrapping_sub(self.head) & (self.len - 1);
        if head >= self.len || done > self.under_way() {
            return Err(QueueError::BadHead { head });
        }
        self.head = head;
        Ok(())
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::vec::Vec;

    #[test]
    fn one_place_stays_free_and_a_wait_goes_behind_every_batch() {
        let mut ring = Ring::new(0);
        assert_eq!((ring.len(), ring.room(), ring.is_empty()), (256, 254, true));
        assert_eq!(ring.claim(255), None);
        let places = ring.claim(254).unwrap();
        assert_eq!(places.indices().collect::<Vec<_>>(), (0..255).collect::<Vec<_>>());
        assert_eq!((ring.room(), ring.claim(0), ring.tail_register()), (0, None, 255 << 4));
        assert_eq!(ring.retire(Ring::index_of_register(255 << 4)), Ok(()));
        let places = ring.claim(1).unwrap();
        assert_eq!((places.indices().collect::<Vec<_>>(), ring.tail()), ([255, 0].into(), 1), "it goes round");
        assert!(!places.ticket.is_done(1) && places.ticket.is_done(2) && places.ticket.value() == 2);
    }

    #[test]
    fn a_head_that_cannot_be_is_refused() {
        let mut ring = Ring::new(1);
        let _ = ring.claim(3);
        for head in [5, 511, 512, u32::MAX] {
            assert_eq!(ring.retire(head), Err(QueueError::BadHead { head }));
        }
        assert_eq!(ring.retire(4), Ok(()));
        assert_eq!(ring.retire(3), Err(QueueError::BadHead { head: 3 }), "it never goes back");
    }

    #[test]
    fn numbers_may_wrap() {
        let mut ring = Ring { last: u32::MAX - 1, ..Ring::new(0) };
        let (before, after) = (ring.claim(0).unwrap().ticket, ring.claim(0).unwrap().ticket);
        assert_eq!((before.value(), after.value()), (u32::MAX, 0));
        assert!(!before.is_done(u32::MAX - 1) && before.is_done(u32::MAX) && before.is_done(0));
        assert!(!after.is_done(u32::MAX) && after.is_done(0));
    }

    proptest! {
        /// No place is given twice before the unit has read it, and none is left out.
        #[test]
        fn places_are_given_in_turn(steps in proptest::collection::vec((0u32..300, 0u32..300), 1..60)) {
            let mut ring = Ring::new(0);
            let mut under_way = VecDeque::new();
            let mut next = 0;
            for (nr, read) in steps {
                let room = ring.room();
                match ring.claim(nr) {
                    Some(places) => {
                        prop_assert!(nr <= room);
                        for index in places.indices() {
                            prop_assert_eq!(index, next);
                            prop_assert!(!under_way.contains(&index));
                            under_way.push_back(index);
                            next = (next + 1) % 256;
                        }
                    }
                    None => prop_assert!(nr > room && nr as usize + 1 + under_way.len() > 255),
                }
                prop_assert_eq!(ring.tail(), next);
                let read = (read as usize).min(under_way.len());
                under_way.drain(..read);
                let head = under_way.front().copied().unwrap_or(next);
                prop_assert_eq!(ring.retire(head), Ok(()));
                prop_assert_eq!(ring.is_empty(), under_way.is_empty());
            }
        }
    }
}
