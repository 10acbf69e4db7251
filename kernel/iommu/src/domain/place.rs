//! Which I/O virtual addresses a mapping gets.
//!
//! Blocks are powers of two of pages, naturally aligned, each free or somebody's. A free one is looked for from where the
//! last was found on: an address is used again as late as can be, so that a transfer that comes late meets nothing rather
//! than another's pages. Small blocks and large ones have parts of the address space of their own, while there is room: else
//! a few small ones, spread by this, would be in the way of every large one.

use alloc::collections::BTreeMap;

use arrayvec::ArrayVec;
use mm::addr::PAGE_SHIFT;

use super::Record;
use crate::Mutant;

/// Where a store is an interrupt and no store, whatever the tables say (VT-d §3.14): never mapped. First byte and one past
/// the last.
pub const INTERRUPT_WINDOW: (u64, u64) = (0xfee0_0000, 0xfef0_0000);

/// log2 of the pages of the largest block that is a small one: 1 GiB.
const SMALL: u32 = 18;

/// Page numbers that are never mapped.
const NEVER: [(u64, u64); 2] = [(0, 1), (INTERRUPT_WINDOW.0 >> PAGE_SHIFT, INTERRUPT_WINDOW.1 >> PAGE_SHIFT)];

/// A part of the address space, in page numbers.
#[derive(Clone, Copy, Debug)]
struct Zone {
    first: u64,
    end: u64,
    /// Where the last block that was found ended.
    next: u64,
}

/// What is free is what nobody has: there is no list of it.
#[derive(Debug)]
pub(super) struct Places {
    zones: [Zone; 2],
    /// Spans of entries that were cleared, while the unit may remember what was below: nothing is mapped there meanwhile.
    /// For ever where the unit did not answer.
    barred: ArrayVec<(u64, u64), BARRED>,
}

/// Most spans that are barred at a time. A revocation that finds no room for its own unlinks nothing.
const BARRED: usize = 32;

impl Places {
    /// Of an address space of `pages`.
    pub(super) const fn new(pages: u64) -> Self {
        // One of less than 64 GiB has no parts.
        let split = if pages >= 1 << 24 { pages / 4 } else { 0 };
        let small = Zone { first: 0, end: if split > 0 { split } else { pages }, next: 0 };
        Self { zones: [small, Zone { first: split, end: pages, next: split }], barred: ArrayVec::new_const() }
    }

    /// Page number of a free block of `2^order` pages, which the caller enters in `blocks`.
    pub(super) fn find(&mut self, blocks: &BTreeMap<u64, Record>, order: u32) -> Option<u64> {
        let large = usize::from(order > SMALL);
        let zone = self.zones[large];
        let pages = 1 << order;
        let end = self.zones[1].end;
        let found = self
            .find_in(blocks, pages, zone.next, zone.end)
            .or_else(|| self.find_in(blocks, pages, zone.first, zone.end))
            .or_else(|| self.find_in(blocks, pages, 0, end))?;
        if (zone.first..zone.end).contains(&found) {
            self.zones[large].next = found + pages;
        }
        Some(found)
    }

    /// The first free one from `from` on that ends by `end`.
    fn find_in(&self, blocks: &BTreeMap<u64, Record>, pages: u64, from: u64, end: u64) -> Option<u64> {
        let mut at = from.next_multiple_of(pages);
        loop {
            let next = at.checked_add(pages).filter(|next| *next <= end)?;
            match self.taken(blocks, at, next) {
                None => return Some(at),
                Some(taken) => at = taken.next_multiple_of(pages),
            }
        }
    }

    /// Where that ends which lies in `at..next`, if something does.
    fn taken(&self, blocks: &BTreeMap<u64, Record>, at: u64, next: u64) -> Option<u64> {
        // Blocks do not overlap, so the last that begins before the end also ends last.
        let last = blocks.range(..next).next_back().map(|(block, record)| (*block, *block + (1 << record.order)));
        let never = if Mutant::WindowHandedOut.is_on() { &NEVER[..1] } else { &NEVER[..] };
        let all = last.into_iter().chain(never.iter().copied()).chain(self.barred.iter().copied());
        all.filter(|(first, end)| *first < next && at < *end).map(|(_, end)| end).max()
    }

    /// Will the next small block, or the next large one, lie in this span?
    pub(super) fn is_next(&self, (first, end): (u64, u64)) -> bool {
        self.zones.iter().any(|zone| (first..end).contains(&zone.next))
    }

    /// Is there room for one more barred span?
    pub(super) const fn can_bar(&self) -> bool {
        self.barred.len() < BARRED
    }
    /// From now on nothing is mapped in `span`.
    pub(super) fn bar(&mut self, span: (u64, u64)) {
        self.barred.push(span);
    }
    /// `span` may be mapped again.
    pub(super) fn unbar(&mut self, span: (u64, u64)) {
        if let Some(at) = self.barred.iter().position(|barred| *barred == span) {
            self.barred.swap_remove(at);
        }
    }
}
