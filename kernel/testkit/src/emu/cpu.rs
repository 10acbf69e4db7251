//! One emulated CPU: its TLB, its paging-structure caches, its interrupt flag.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mm::addr::{PAGE_SHIFT, PageSize, Pfn, VirtAddr};
use mm::entry::Entry;

/// log2 of the bytes that one entry of a table of `level` covers.
pub(super) const fn shift(level: u8) -> u32 {
    PAGE_SHIFT + 9 * (level as u32 - 1)
}

/// A TLB entry: the leaf as it was read, with the rights of all levels combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TlbEntry {
    pub leaf: Entry,
    pub size: PageSize,
    pub write: bool,
    pub user: bool,
    pub global: bool,
}

/// A paging-structure-cache entry: the table that the walk goes on in, with the rights of the levels above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PathEntry {
    pub table: Pfn,
    pub write: bool,
    pub user: bool,
}

/// What a CPU remembers of the page tables.
#[derive(Debug, Default)]
pub(super) struct Caches {
    pub root: Option<Pfn>,
    /// By page size and page number in units of that size.
    pub tlb: HashMap<(PageSize, u64), TlbEntry>,
    /// By level of the table that the entry leads to, and the address bits above that table's reach.
    pub paths: HashMap<(u8, u64), PathEntry>,
}

impl Caches {
    pub fn load_root(&mut self, root: Option<Pfn>) {
        self.root = root;
        self.flush_all();
    }

    pub fn flush_all(&mut self) {
        self.tlb.retain(|_, entry| entry.global);
        self.paths.clear();
    }

    pub fn flush_global(&mut self) {
        self.tlb.clear();
        self.paths.clear();
    }

    pub fn flush_page(&mut self, va: VirtAddr) {
        for size in PageSize::ALL {
            self.tlb.remove(&(size, va.as_u64() >> shift(size.level())));
        }
        self.paths.clear();
    }

    pub fn lookup(&self, va: VirtAddr) -> Option<TlbEntry> {
        PageSize::ALL.into_iter().find_map(|size| self.tlb.get(&(size, va.as_u64() >> shift(size.level()))).copied())
    }

    /// An address whose walk the paging-structure caches would continue in `table`.
    pub fn leads_to(&self, table: Pfn) -> Option<VirtAddr> {
        let (&(level, prefix), _) = self.paths.iter().find(|(_, path)| path.table == table)?;
        Some(VirtAddr::new(prefix << shift(level + 1)))
    }
}

/// An emulated CPU.
#[derive(Debug)]
pub(super) struct Cpu {
    caches: Mutex<Caches>,
    /// Table pages that this CPU has walked through since its interrupts went off.
    walked: Mutex<Vec<Pfn>>,
    pub irqs_on: AtomicBool,
    /// A shootdown interrupt waits.
    pub pending: AtomicBool,
    /// Token of the thread that plays this CPU; 0: nobody.
    pub player: AtomicU64,
    /// How often this CPU waited in vain.
    pub waits: AtomicU64,
    /// Root of the address space that it has loaded and uses.
    pub loaded: AtomicU64,
}

impl Default for Cpu {
    fn default() -> Self {
        Self {
            caches: Mutex::default(),
            walked: Mutex::default(),
            irqs_on: AtomicBool::new(true),
            pending: AtomicBool::new(false),
            player: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            loaded: AtomicU64::new(0),
        }
    }
}

impl Cpu {
    /// A panic elsewhere must not hide behind a second one here, so a poisoned lock is taken all the same.
    pub fn caches(&self) -> MutexGuard<'_, Caches> {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn walked(&self) -> MutexGuard<'_, Vec<Pfn>> {
        self.walked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn note_walk(&self, table: Pfn) {
        let mut walked = self.walked();
        if !walked.contains(&table) {
            walked.push(table);
        }
    }

    pub fn forget_walk(&self) {
        self.walked().clear();
    }

    pub fn may_be_walking(&self, table: Pfn) -> bool {
        !self.irqs_on.load(Ordering::SeqCst) && self.walked().contains(&table)
    }
}
