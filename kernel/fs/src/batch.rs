//! A list that needs no memory for its first elements.

use alloc::vec::Vec;

use arrayvec::ArrayVec;
use mm::machine::{Machine, has_room};

/// So many have room without memory.
pub(crate) const FEW: usize = 32;

/// The list: as long as memory allows, and [`FEW`] in any case.
pub(crate) struct Batch<T> {
    few: ArrayVec<T, FEW>,
    more: Vec<T>,
}

impl<T> Batch<T> {
    pub(crate) const fn new() -> Self {
        Self { few: ArrayVec::new_const(), more: Vec::new() }
    }

    /// Is there room for another one?
    pub(crate) fn has_room<M: Machine>(&mut self, machine: &M) -> bool {
        !self.few.is_full() || has_room(machine, &mut self.more)
    }

    /// Adds one, for which there [is room](Self::has_room).
    pub(crate) fn push(&mut self, value: T) {
        if let Err(full) = self.few.try_push(value) {
            self.more.push(full.element());
        }
    }

    /// The last one.
    pub(crate) fn last(&self) -> Option<&T> {
        self.more.last().or_else(|| self.few.last())
    }

    /// All of them, in their order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.few.iter().chain(&self.more)
    }
}
