//! Emulated physical memory: table pages with stable addresses, and data frames that hold one stamp each.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use mm::addr::{ENTRIES, PageSize, Pfn};
use mm::entry::{Entry, Prot};
use mm::sync::{AtomicU64, Ordering};

/// First frame of the slab of table pages. Low, so that device frames of a test are never table pages.
const FIRST_TABLE: u64 = 0x100;
/// What every entry of a freed table page holds: a present pointer to a frame that is no table page, so that a
/// walk through it is caught at its next step.
const POISON: u64 = 0x0000_dead_dead_d000 | 1;
/// A kernel frame that every root maps in its upper half.
const KERNEL_FRAME: Pfn = Pfn::new(0x40000);

pub(super) type Table = [AtomicU64; ENTRIES];

#[derive(Debug, Default)]
struct Slab {
    /// Indices of table pages never used so far start here.
    fresh: usize,
    /// Freed ones, oldest first: they are used again only when there is no fresh one, so that they stay poisoned
    /// for as long as can be.
    freed: VecDeque<usize>,
    /// Use freed pages first, newest first, as a real allocator would.
    reuse_at_once: bool,
    nr_live: usize,
    /// Of the live ones, those of the kernel half.
    kernel_pages: usize,
    /// Most pages that may be live at once besides.
    limit: usize,
}

/// One frame of the slab.
#[derive(Debug, Default)]
struct Frame {
    table: OnceLock<Box<Table>>,
    live: AtomicBool,
}

#[derive(Debug)]
pub(super) struct Memory {
    tables: Vec<Frame>,
    slab: Mutex<Slab>,
    stamps: Mutex<HashMap<Pfn, u64>>,
    /// The table that every root's last entry points to.
    kernel: OnceLock<Pfn>,
}

impl Memory {
    pub fn new(table_pages: usize) -> Self {
        let slab = Slab { limit: table_pages, ..Slab::default() };
        Self {
            tables: (0..table_pages).map(|_| Frame::default()).collect(),
            slab: Mutex::new(slab),
            stamps: Mutex::default(),
            kernel: OnceLock::new(),
        }
    }

    fn slab(&self) -> MutexGuard<'_, Slab> {
        self.slab.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self, table: Pfn) -> Option<usize> {
        let index = usize::try_from(table.as_u64().checked_sub(FIRST_TABLE)?).ok()?;
        (index < self.tables.len()).then_some(index)
    }

    fn table(&self, index: usize) -> &Table {
        self.tables[index].table.get_or_init(|| Box::new(core::array::from_fn(|_| AtomicU64::new(POISON))))
    }

    /// A zeroed table page, `None` when there is none left; the error names a page that was written to while it
    /// was free.
    pub fn alloc_table(&self) -> Result<Option<Pfn>, Pfn> {
        let mut slab = self.slab();
        if slab.nr_live - slab.kernel_pages >= slab.limit {
            return Ok(None);
        }
        let index = if slab.reuse_at_once && !slab.freed.is_empty() {
            slab.freed.pop_back()
        } else if slab.fresh < self.tables.len() {
            slab.fresh += 1;
            Some(slab.fresh - 1)
        } else {
            slab.freed.pop_front()
        };
        let Some(index) = index else { return Ok(None) };
        let pfn = Pfn::new(FIRST_TABLE + index as u64);
        // Relaxed: nobody may have it, and the store that says that it is in use comes after.
        if self.table(index).iter().any(|entry| entry.load(Ordering::Relaxed) != POISON) {
            return Err(pfn);
        }
        self.table(index).iter().for_each(|entry| entry.store(0, Ordering::Relaxed));
        self.tables[index].live.store(true, Ordering::SeqCst);
        slab.nr_live += 1;
        Ok(Some(pfn))
    }

    /// Poisons and frees; `false` where the page is not in use.
    pub fn free_table(&self, table: Pfn) -> bool {
        let mut slab = self.slab();
        let Some(index) = self.index(table).filter(|_| self.is_live(table)) else {
            return false;
        };
        // Relaxed: the store after it, and the lock, order them.
        self.table(index).iter().for_each(|entry| entry.store(POISON, Ordering::Relaxed));
        self.tables[index].live.store(false, Ordering::SeqCst);
        slab.nr_live -= 1;
        slab.freed.push_back(index);
        true
    }

    /// The live entry, or `None` where `table` is no table page in use.
    pub fn entry(&self, table: Pfn, index: usize) -> Option<&AtomicU64> {
        self.page(table).map(|page| &page[index])
    }

    /// The whole live table page, or `None` where `table` is none in use.
    pub fn page(&self, table: Pfn) -> Option<&Table> {
        let slot = self.index(table).filter(|_| self.is_live(table))?;
        Some(self.table(slot))
    }

    pub fn is_live(&self, table: Pfn) -> bool {
        self.index(table).is_some_and(|slot| self.tables[slot].live.load(Ordering::SeqCst))
    }

    pub fn live_tables(&self) -> usize {
        let slab = self.slab();
        slab.nr_live - slab.kernel_pages
    }

    pub fn set_table_limit(&self, limit: usize) {
        self.slab().limit = limit;
    }

    pub fn set_reuse_at_once(&self, reuse: bool) {
        self.slab().reuse_at_once = reuse;
    }

    /// Maps one kernel page, without user rights, at the very top of the address space. It is there so that tests
    /// see whether the kernel half is left alone.
    pub fn init_root(&self, root: Pfn, levels: u8) {
        let kernel = *self.kernel.get_or_init(|| {
            let mut below = None;
            for _ in 1..levels {
                let table = self.alloc_table().ok().flatten().expect("the slab has room for the kernel's tables");
                let entry = match below {
                    None => Entry::leaf(KERNEL_FRAME, PageSize::Size4K, Prot { write: true, exec: false, user: false }),
                    Some(below) => Entry::table(below, false),
                };
                let last = self.entry(table, ENTRIES - 1).expect("just allocated");
                last.store(entry.bits(), Ordering::SeqCst);
                below = Some(table);
            }
            self.slab().kernel_pages = usize::from(levels) - 1;
            below.expect("a page table has at least two levels")
        });
        let last = self.entry(root, ENTRIES - 1).expect("the root is in use");
        last.store(Entry::table(kernel, false).bits(), Ordering::SeqCst);
    }

    fn stamps(&self) -> MutexGuard<'_, HashMap<Pfn, u64>> {
        self.stamps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn stamp(&self, pfn: Pfn) -> u64 {
        self.stamps().get(&pfn).copied().unwrap_or(0)
    }

    pub fn set_stamp(&self, pfn: Pfn, stamp: u64) {
        self.stamps().insert(pfn, stamp);
    }
}
