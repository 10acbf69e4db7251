//! Roots: every address space has one, and the upper halves of all are the same. They are on a list, so that the tables right
//! below them can be taken out of all of them, and put back: half a TiB of a device goes with one store for each root, and not
//! with one for each of its 512 leaves.
//!
//! A table that was taken out is *parked*: it keeps its leaves, and where the same device comes back it is as if it had been
//! filled. No CPU gets there any more once the translations of the range were flushed.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::cpu::IrqSave;
use mm::addr::{Pfn, VirtAddr};
use mm::entry::Entry;
use mm::sync::Mutex;

use super::{ENTRIES, all, entry, load, root};
use crate::mem::layout;

/// Root entries of the kernel half.
pub const KERNEL_ROOT: Range<usize> = 256..512;
/// Root entries that point to nothing: a CPU that walks there finds them not present. They name the next and the previous root
/// of the list, by frame.
const NEXT: usize = (layout::ROOT_LINKS >> 39) as usize % ENTRIES;
const PREV: usize = NEXT + 1;
const SHIFT: u32 = 12;

/// Does a root's entry of this number link it to others?
pub fn is_link(index: usize) -> bool {
    index == NEXT || index == PREV
}

/// The list of roots, and what all of them have: taken with interrupts off, since a space may end in any task's last moments.
static ROOTS: Mutex<Option<Pfn>> = Mutex::new(None);
/// The table below each root entry, in or out of the roots; 0: none. Changes at boot alone.
static TABLES: [AtomicU64; KERNEL_ROOT.end - KERNEL_ROOT.start] =
    [const { AtomicU64::new(0) }; KERNEL_ROOT.end - KERNEL_ROOT.start];

fn link(of: Pfn, which: usize) -> Option<Pfn> {
    let frame = entry(of, which).load(Ordering::Relaxed) >> SHIFT;
    (frame != 0).then(|| Pfn::new(frame))
}

fn set_link(of: Pfn, which: usize, to: Option<Pfn>) {
    entry(of, which).store(to.map_or(0, |to| to.as_u64() << SHIFT), Ordering::Relaxed);
}

fn slot(va: VirtAddr) -> usize {
    va.index(4) - KERNEL_ROOT.start
}

/// Copies the kernel half into a new root. It is kept the same as the others' until [`drop_root`].
pub fn init_root(new: Pfn) {
    let _irq = IrqSave::new();
    let mut first = ROOTS.lock();
    for index in KERNEL_ROOT {
        entry(new, index).store(load(root(), index).bits(), Ordering::Relaxed);
    }
    set_link(new, PREV, None);
    set_link(new, NEXT, *first);
    if let Some(next) = *first {
        set_link(next, PREV, Some(new));
    }
    *first = Some(new);
}

/// Forgets a root, which no CPU has loaded.
pub fn drop_root(old: Pfn) {
    let _irq = IrqSave::new();
    let mut first = ROOTS.lock();
    let (next, prev) = (link(old, NEXT), link(old, PREV));
    match prev {
        Some(prev) => set_link(prev, NEXT, next),
        None => *first = next,
    }
    if let Some(next) = next {
        set_link(next, PREV, prev);
    }
}

/// Calls `each` with every root: the kernel's own first, then those that are copies of it.
pub fn for_each_root(mut each: impl FnMut(Pfn)) {
    let _irq = IrqSave::new();
    let first = ROOTS.lock();
    let mut next = Some(root());
    let mut after = *first;
    while let Some(root) = next {
        each(root);
        next = after;
        after = after.and_then(|root| link(root, NEXT));
    }
}

/// Makes `table` the one below the root entry of `va`, at boot.
pub fn set_table(va: VirtAddr, table: Pfn) {
    TABLES[slot(va)].store(table.as_u64(), Ordering::Relaxed);
    entry(root(), va.index(4)).store(Entry::table(table, false).bits(), Ordering::Relaxed);
}

/// The table below the root entry of `va`, and whether the roots have it; `None`: there is none.
pub fn table_of(va: VirtAddr) -> Option<(Pfn, bool)> {
    let table = TABLES[slot(va)].load(Ordering::Relaxed);
    (table != 0).then(|| (Pfn::new(table), load(root(), va.index(4)).is_table(4)))
}

fn set_in_all(va: VirtAddr, bits: u64) {
    // Release; pairs with the Acquire of every walk: what the table leads to is complete. A root that is made meanwhile copies the
    // kernel's under the list's lock.
    let set = |root| entry(root, va.index(4)).store(bits, Ordering::Release);
    for_each_root(set);
}

/// Puts the table of `va` into all roots. Under the writers' lock.
pub fn put_in(va: VirtAddr, table: Pfn) {
    set_in_all(va, Entry::table(table, false).bits());
}

/// Takes the table of `va` out of all roots; it keeps what it has. Under the writers' lock; the flush is the caller's.
pub fn park(va: VirtAddr) {
    set_in_all(va, 0);
}

/// Empties a parked table and puts it into all roots.
pub fn put_in_empty(va: VirtAddr, table: Pfn) {
    all(table).iter().for_each(|entry| entry.store(0, Ordering::Relaxed));
    put_in(va, table);
}
