//! A translation domain: I/O virtual addresses, the tables behind them, and how a translation dies.
//!
//! Each mapping owns a *block* of I/O virtual addresses: a power of two of pages, naturally aligned, and nobody else is in
//! it. So a revocation clears the few entries that cover the block, whatever hangs below them, and invalidates with one
//! command. The mapping begins in its block where its address and the physical address agree modulo the largest leaf that
//! its frames allow.
//!
//! # The order
//! **Clear, invalidate, wait; then free.** One lock is held for the books and for entries of tables that blocks share;
//! nobody waits with it held.
//!
//! | | revocation | what must not be |
//! |---|---|---|
//! | 1 | under the lock: the entries that cover the block are cleared, tables that nobody else uses are unlinked | |
//! | 2 | the unit is told to forget the block, and the tables that led there; it drains what is under way | 1 after 2: it reads the entries anew |
//! | 3 | it says that it has | 4 before 3: it may be walking a table that is free, or use a page that is another's |
//! | 4 | the unlinked tables are freed, the addresses may be used again; the caller may give back the pages | |
//!
//! While this goes on nobody maps anything in the span of an entry that was cleared: the unit may remember the table that was
//! unlinked, find nothing there, and block a transfer that is allowed.

mod build;
mod look;
mod place;
mod revoke;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use mm::addr::{PAGE_SHIFT, Pfn, PfnRange};
use mm::sync::{Arc, AtomicU64, Mutex, Ordering};

use crate::caps::{Capabilities, Levels};
use crate::command::{Command, Limit};
use crate::entry::Rights;
use crate::hardware::Hardware;
use crate::queue::QueueError;
use crate::{Mutant, index, order};

use self::look::History;
pub use self::look::{MappingInfo, Owner, Stats, Step, Walk};
pub use self::place::INTERRUPT_WINDOW;
use self::place::Places;

/// Why nothing was mapped. One line; nothing is left of the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// No memory for a table, or for the books.
    NoMemory,
    /// There is nothing to map.
    NoRuns,
    /// Neither reading nor writing was asked for.
    NoRights,
    /// It is more than a domain's addresses can ever hold.
    TooLarge {
        /// Bytes of the mapping.
        bytes: u64,
        /// Bits of the I/O address space.
        bits: u8,
    },
    /// There are such addresses, but others have them.
    Full {
        /// Bytes of the block that was looked for.
        bytes: u64,
    },
    /// A run of frames beyond what entries can hold.
    TooHigh {
        /// One past its last frame.
        end: Pfn,
        /// Bits of the physical addresses that the unit reaches.
        bits: u8,
    },
    /// The domain is closed.
    Closed,
    /// The unit has to hear of new mappings, and did not answer.
    Queue(QueueError),
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoMemory => f.write_str("no memory for translation tables"),
            Self::NoRuns => f.write_str("no memory was named to be mapped for DMA"),
            Self::NoRights => f.write_str("a mapping for DMA that allows neither reading nor writing"),
            Self::TooLarge { bytes, bits } => {
                write!(f, "{bytes} bytes are more than the I/O address space of {bits} bits")
            }
            Self::Full { bytes } => write!(f, "no free block of {bytes} bytes in the I/O address space"),
            Self::TooHigh { end, bits } => {
                write!(f, "memory up to {} is beyond the {bits} bits that the IOMMU reaches", end.addr())
            }
            Self::Closed => f.write_str("the device's domain is closed"),
            Self::Queue(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for MapError {}

/// What a registration gives its owner: a range of I/O virtual addresses. Nothing is left of it once it is revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dma {
    /// The first byte.
    pub address: u64,
    /// How many bytes.
    pub bytes: u64,
    /// What the device may do there.
    pub rights: Rights,
}

impl Dma {
    /// The address `offset` bytes further on; `None` beyond the end.
    pub const fn at(&self, offset: u64) -> Option<u64> {
        if offset < self.bytes { Some(self.address + offset) } else { None }
    }
}

/// A mapping, in the hands of who may revoke it. It does not end by itself.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a mapping stays until it is revoked"]
pub struct Mapping {
    dma: Dma,
    /// Page number of its block.
    block: u64,
    serial: u64,
    domain: u16,
}

impl Mapping {
    /// What its owner is given.
    pub const fn dma(&self) -> Dma {
        self.dma
    }
    /// I/O virtual address of the first byte.
    pub const fn address(&self) -> u64 {
        self.dma.address
    }
    /// How many bytes.
    pub const fn bytes(&self) -> u64 {
        self.dma.bytes
    }
    /// What the device may do.
    pub const fn rights(&self) -> Rights {
        self.dma.rights
    }
}

/// What a revocation did. When it is there no translation of the range is left, whoever ended it, but for where `failed`
/// says something else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Revocation {
    /// Leaves that were mapped.
    pub leaves: u64,
    /// Tables that were freed.
    pub tables: u64,
    /// Commands that the unit was given, without waits.
    pub commands: u64,
    /// Ranges that were revoked.
    pub ranges: u64,
    /// This call ended the mapping, or one of them; else another had, or has meanwhile.
    pub first: bool,
    /// The unit did not say that it has forgotten the range: it may go on reaching the pages. The addresses and the tables
    /// are never used again, and the pages must not be either.
    pub failed: Option<QueueError>,
}

impl Revocation {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            leaves: self.leaves + other.leaves,
            tables: self.tables + other.tables,
            commands: self.commands + other.commands,
            ranges: self.ranges + other.ranges,
            first: self.first || other.first,
            failed: self.failed.or(other.failed),
        }
    }
}

/// Where a mapping is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Its entries are being made.
    Building,
    Live,
    /// Its entries are cleared; the unit may not have forgotten them.
    Revoking,
    /// The unit did not answer: its addresses are never used again.
    Lost(QueueError),
}

impl State {
    /// Are tables in use for it?
    const fn has_tables(self) -> bool {
        matches!(self, Self::Building | Self::Live)
    }
}

/// A mapping in the books, by the page number of its block.
#[derive(Debug)]
struct Record {
    serial: u64,
    state: State,
    /// log2 of the pages of its block.
    order: u32,
    /// Page number of its first byte.
    first: u64,
    pages: u64,
    rights: Rights,
    tag: u64,
    /// Leaves by size.
    leaves: [u64; 3],
    /// Tables right below the entries that cover the block.
    tops: Vec<Pfn>,
    /// Level of the lowest table that is its own alone; more than the highest level where there is none.
    lowest: u8,
}

impl Record {
    /// Level of the entries that cover the block: as high as it allows.
    fn level(&self) -> u8 {
        level_of(self.order)
    }
}

/// The highest level whose entries span no more than `2^order` pages.
const fn level_of(order: u32) -> u8 {
    1 + (order / crate::INDEX_BITS) as u8
}

/// Everything that is looked at under the lock.
#[derive(Debug)]
struct Books {
    /// Page number of the block, and who has it.
    blocks: BTreeMap<u64, Record>,
    places: Places,
    history: History,
    /// No mapping is made any more.
    closed: bool,
    serial: u64,
    stats: Stats,
}

/// A translation domain. Dropping it gives its tables back: no context entry may lead to it then
/// ([`Contexts`](crate::contexts::Contexts) keeps it while one does).
#[derive(Debug)]
pub struct Domain<H: Hardware> {
    hw: Arc<H>,
    id: u16,
    levels: Levels,
    root: Pfn,
    /// Bits of an I/O virtual address.
    bits: u8,
    host_bits: u8,
    /// The highest level of a leaf.
    leaf_level: u8,
    limit: Limit,
    /// Mapping needs an invalidation too.
    tell_on_map: bool,
    /// Commands that were given, for [`Stats`].
    commands: AtomicU64,
    books: Mutex<Books>,
}

impl<H: Hardware> Domain<H> {
    /// An empty domain of number `id`, which no other domain of the unit has, with tables of `levels`. `None`: no memory for
    /// its root table.
    pub fn new(hw: Arc<H>, id: u16, levels: Levels, limits: &Capabilities) -> Option<Arc<Self>> {
        let history = History::new()?;
        let root = hw.alloc_table()?;
        let bits = levels.bits().min(limits.address_bits);
        let leaf_level = if Mutant::LeafTooLarge.is_on() { 3 } else { limits.leaf_level() };
        let books = Books {
            blocks: BTreeMap::new(),
            places: Places::new(1 << (u32::from(bits).max(PAGE_SHIFT) - PAGE_SHIFT)),
            history,
            closed: false,
            serial: 0,
            stats: Stats { tables: 1, ..Stats::default() },
        };
        Some(Arc::new(Self {
            hw,
            id,
            levels,
            root,
            bits,
            host_bits: limits.host_bits,
            leaf_level: leaf_level.min(levels.count()),
            limit: if limits.page_selective { Limit::Mask(limits.max_mask) } else { Limit::DomainOnly },
            tell_on_map: limits.caching_mode || limits.write_buffer,
            commands: AtomicU64::new(0),
            books: Mutex::new(books),
        }))
    }

    /// Its number, with which the unit tags what it remembers.
    pub const fn id(&self) -> u16 {
        self.id
    }
    /// Its root table, to which a context entry leads.
    pub const fn root(&self) -> Pfn {
        self.root
    }
    /// How many levels its tables have.
    pub const fn levels(&self) -> Levels {
        self.levels
    }
    /// Bits of its addresses.
    pub const fn bits(&self) -> u8 {
        self.bits
    }
    /// The unit below it.
    pub const fn hardware(&self) -> &Arc<H> {
        &self.hw
    }

    /// Maps the frames of `runs`, one run after the other, to one range of I/O virtual addresses: all or nothing. `tag` is
    /// whatever the caller finds the owner by.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn map(&self, runs: &[PfnRange], rights: Rights, tag: u64) -> Result<Mapping, MapError> {
        mm::lock_check::might_sleep("a mapping for DMA");
        let plan = self.plan(runs, rights)?;
        self.build(&plan, runs, rights, tag)
    }

    /// Ends a mapping. When this returns no translation of its range is left, whoever has ended it: see [`Revocation`].
    ///
    /// # Panics
    /// The mapping is of another domain.
    pub fn revoke(&self, mapping: &Mapping) -> Revocation {
        assert_eq!(mapping.domain, self.id, "a mapping is revoked in another domain than its own");
        self.end(mapping.block, mapping.serial)
    }

    /// No mapping is made any more, and all that there are are revoked: clear, one invalidation of the domain, wait, free.
    /// Those that others are making or revoking are waited for.
    pub fn close(&self) -> Revocation {
        self.end_all()
    }

    /// Has it been closed?
    pub fn is_closed(&self) -> bool {
        self.books.lock().closed
    }

    /// Gives commands to the unit, and waits.
    fn invalidate(&self, commands: &[Command]) -> Result<(), QueueError> {
        self.commands.fetch_add(commands.len() as u64, Ordering::Relaxed);
        self.hw.invalidate(commands)
    }
}

impl<H: Hardware> Drop for Domain<H> {
    fn drop(&mut self) {
        // Tables of mappings whose revocation failed are not below the root any more: those are lost on purpose.
        self.free_tree(self.root, self.levels.count(), 1);
    }
}

/// Number of the entries of a table that a block of `order` takes at its level, and the first of them.
const fn slots(block: u64, order: u32) -> (usize, usize) {
    let level = level_of(order);
    (index(block, level), 1 << (order - crate::order(level)))
}

/// Page numbers that the table of `level` around `page` spans.
const fn span(page: u64, level: u8) -> (u64, u64) {
    let pages = 1 << order(level + 1);
    let first = page & !(pages - 1);
    (first, first + pages)
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
