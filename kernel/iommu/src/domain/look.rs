//! What can be seen of a domain.

use alloc::vec::Vec;

use core::fmt;

use arrayvec::ArrayVec;

use mm::addr::{PAGE_SHIFT, PAGE_SIZE, Pfn, PhysAddr};
use mm::sync::Ordering;

use super::{Domain, Record, State};
use crate::entry::{Entry, Rights};
use crate::hardware::Hardware;
use crate::{index, order};

/// How many mappings that are over are remembered.
const REMEMBERED: usize = 64;

/// What a domain has, and has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Mappings that there are.
    pub mappings: u64,
    /// Bytes that they map.
    pub bytes: u64,
    /// Table frames, the root among them; those that were lost too.
    pub tables: u64,
    /// Mappings made since the domain was.
    pub mapped: u64,
    /// Mappings ended, those among them of which nothing came.
    pub revoked: u64,
    /// Revocations that the unit did not answer: their addresses and tables are lost.
    pub lost: u64,
    /// Commands that the unit was given, without waits.
    pub commands: u64,
}

/// A mapping, as it can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingInfo {
    /// I/O virtual address of its first byte.
    pub address: u64,
    /// How many bytes.
    pub bytes: u64,
    /// What the device may do.
    pub rights: Rights,
    /// What it was mapped with.
    pub tag: u64,
    /// Leaves of 4 KiB, 2 MiB and 1 GiB.
    pub leaves: [u64; 3],
    /// It is being revoked, or could not be.
    pub revoked: bool,
}

/// Whose an address is, or was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// What the mapping was made with.
    pub tag: u64,
    /// I/O virtual address of the mapping's first byte.
    pub start: u64,
    /// Bytes of the mapping.
    pub bytes: u64,
    /// It is over, or is being revoked.
    pub revoked: bool,
}

impl Owner {
    fn of(record: &Record) -> Self {
        Self {
            tag: record.tag,
            start: record.first << PAGE_SHIFT,
            bytes: record.pages << PAGE_SHIFT,
            revoked: !record.state.has_tables(),
        }
    }
    /// Is the address in the mapping?
    const fn has(&self, address: u64) -> bool {
        address >= self.start && address - self.start < self.bytes
    }
}

/// The mappings that ended last.
#[derive(Debug)]
pub(super) struct History {
    /// With room for [`REMEMBERED`] from the beginning: a revocation asks for no memory. Not in place: a domain is made on a
    /// stack, and moved.
    past: Vec<Owner>,
    /// Which is the oldest, once there are so many.
    oldest: usize,
}

impl History {
    /// `None`: no memory.
    pub(super) fn new() -> Option<Self> {
        let mut past = Vec::new();
        past.try_reserve_exact(REMEMBERED).ok()?;
        Some(Self { past, oldest: 0 })
    }
    pub(super) fn remember(&mut self, record: &Record) {
        let owner = Owner { revoked: true, ..Owner::of(record) };
        if self.past.len() < REMEMBERED {
            self.past.push(owner);
        } else {
            self.past[self.oldest] = owner;
            self.oldest = (self.oldest + 1) % REMEMBERED;
        }
    }
    /// The latest that had this address.
    fn owner_of(&self, address: u64) -> Option<Owner> {
        let (newer, older) = self.past.split_at(self.oldest);
        newer.iter().rev().chain(older.iter().rev()).find(|owner| owner.has(address)).copied()
    }
}

/// One step of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Level of the table: 5 to 1.
    pub level: u8,
    /// The table.
    pub table: Pfn,
    /// Index of the entry.
    pub index: usize,
    /// The entry.
    pub entry: Entry,
}

/// What the unit's walker sees, from the root down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    /// Each level that it comes to; none for an address with too many bits.
    pub steps: ArrayVec<Step, 5>,
    /// Where it ends: the byte in memory, what may be done with it, and the bytes of the leaf.
    pub reaches: Option<(PhysAddr, Rights, u64)>,
}

/// One line for each step.
impl fmt::Display for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            let Step { level, table, index, entry } = step;
            writeln!(f, "level {level}: table {}, entry {index}: {entry:?}", table.addr())?;
        }
        match self.reaches {
            Some((address, rights, bytes)) => write!(f, "reaches {address}, {rights}, a leaf of {bytes} bytes"),
            None => f.write_str("reaches nothing"),
        }
    }
}

impl<H: Hardware> Domain<H> {
    /// What the walker sees at an address.
    pub fn walk(&self, address: u64) -> Walk {
        let mut walk = Walk::default();
        if address.checked_shr(self.bits.into()).unwrap_or(0) != 0 {
            return walk;
        }
        let page = address >> PAGE_SHIFT;
        // Nothing that is below the root is freed under this lock.
        let _books = self.books.lock();
        let mut table = self.root;
        for level in (1..=self.levels.count()).rev() {
            let index = index(page, level);
            let entry = Entry::from_bits(self.hw.entry(table, index).load(Ordering::Acquire));
            walk.steps.push(Step { level, table, index, entry });
            if entry.is_leaf(level) {
                let bytes = PAGE_SIZE << order(level);
                let at = entry.pfn().addr().as_u64() | address & (bytes - 1);
                walk.reaches = Some((PhysAddr::new(at), entry.rights(), bytes));
            }
            if !entry.is_table(level) {
                break;
            }
            table = entry.pfn();
        }
        walk
    }

    /// Shows each mapping, by rising address. `each` is called without a lock; what comes and goes meanwhile may be shown or
    /// not.
    pub fn for_each(&self, each: &mut dyn FnMut(&MappingInfo)) {
        let mut from = 0;
        loop {
            let mut some = ArrayVec::<MappingInfo, 16>::new();
            let books = self.books.lock();
            for (block, record) in books.blocks.range(from..).take(some.capacity()) {
                some.push(MappingInfo {
                    address: record.first << PAGE_SHIFT,
                    bytes: record.pages << PAGE_SHIFT,
                    rights: record.rights,
                    tag: record.tag,
                    leaves: record.leaves,
                    revoked: !record.state.has_tables(),
                });
                from = block + 1;
            }
            drop(books);
            some.iter().for_each(&mut *each);
            if !some.is_full() {
                return;
            }
        }
    }

    /// The mapping that has this address, or had it until lately: for a fault. Not from an interrupt handler, since it takes the
    /// domain's lock.
    pub fn owner_of(&self, address: u64) -> Option<Owner> {
        let books = self.books.lock();
        let near = books.blocks.range(..=address >> PAGE_SHIFT).next_back().map(|(_, record)| Owner::of(record));
        near.filter(|owner| owner.has(address)).or_else(|| books.history.owner_of(address))
    }

    /// Numbers.
    pub fn stats(&self) -> Stats {
        Stats { commands: self.commands.load(Ordering::Relaxed), ..self.books.lock().stats }
    }

    /// Mappings whose revocation the unit did not answer.
    pub fn nr_lost(&self) -> usize {
        let books = self.books.lock();
        books.blocks.values().filter(|record| matches!(record.state, State::Lost(_))).count()
    }
}
