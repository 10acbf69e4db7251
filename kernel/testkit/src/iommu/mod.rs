//! An IOMMU, as VT-d has it, whose stale translations persist until they are invalidated; and devices behind it.
//!
//! What it refuses by itself, with a message that names the table: a table that is freed twice, or while a cache of the unit
//! leads to it; a table that is free and that the walker, or anybody, reads or writes; a command with a reserved bit; a second
//! wait on a queue that has stopped.
//!
//! What it keeps, until a command says otherwise:
//!
//! | cache | tagged with | dropped by |
//! |---|---|---|
//! | context cache | device, domain | a context command that names it, its domain, or everything |
//! | IOTLB, by leaf or by 4 KiB piece of one | device, domain, address | an IOTLB command that names the domain and an address in it |
//! | paging-structure caches: which table an entry leads to | domain, address | the same, unless it says that only leaves changed |
//! | that nothing is mapped, with [`Make::caching_mode`] | device, domain, address | the same |
//!
//! As in QEMU, a translation is found in the IOTLB without a look at the context entry.

mod caches;
mod walk;

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64 as Plain, Ordering::Relaxed};

use iommu::caps::Capabilities;
use iommu::command::Command;
use iommu::fault::Fault;
use iommu::hardware::Hardware;
use iommu::queue::QueueError;
use mm::addr::{ENTRIES, Pfn, PhysAddr};
use mm::sync::{Arc, AtomicU64, Mutex, Ordering};

use self::caches::Caches;

/// Frame number of the first table: what 39 bits reach. Data that a test has at the same address is not in its way.
const TABLES: u64 = 1 << 26;

/// What a unit is to be like.
#[derive(Clone, Copy, Debug)]
pub struct Make {
    /// Frames for tables.
    pub tables: u64,
    /// The IOTLB keeps 4 KiB pieces, of whatever leaf.
    pub pieces: bool,
    /// It has paging-structure caches.
    pub paging_caches: bool,
    /// It remembers that nothing is mapped.
    pub caching_mode: bool,
    /// Its walker sees stores once they are written back, and not before.
    pub coherent: bool,
    /// Leaves of 2 MiB.
    pub large_2m: bool,
    /// Leaves of 1 GiB.
    pub large_1g: bool,
    /// Bits of address, of what it translates and of memory.
    pub bits: u8,
    /// log2 of the pages of the largest range of a command; `None`: it has no commands by range.
    pub max_mask: Option<u8>,
    /// Fault records.
    pub records: usize,
}

impl Default for Make {
    fn default() -> Self {
        Self::WHOLE
    }
}

impl Make {
    /// QEMU's, with the caches that hardware has beside.
    pub const WHOLE: Self = Self {
        tables: 4096,
        pieces: false,
        paging_caches: true,
        caching_mode: false,
        coherent: false,
        large_2m: true,
        large_1g: true,
        bits: 48,
        max_mask: Some(18),
        records: 1,
    };

    /// What its registers say.
    pub fn capabilities(&self) -> Capabilities {
        let bit = |set: bool, at: u32| u64::from(set) << at;
        let width = [(39, 9), (48, 10), (57, 11)].into_iter().filter(|(bits, _)| *bits <= self.bits);
        let sagaw = width.fold(0, |sagaw, (_, at)| sagaw | 1 << at);
        let cap = 6
            | bit(self.caching_mode, 7)
            | sagaw
            | u64::from(self.bits - 1) << 16
            | 0x22 << 24
            | bit(self.large_2m, 34)
            | bit(self.large_1g, 35)
            | bit(self.max_mask.is_some(), 39)
            | (self.records as u64 - 1) << 40
            | u64::from(self.max_mask.unwrap_or(0)) << 48;
        Capabilities::decode(cap, bit(self.coherent, 0) | 2 | 0xf << 8, 0x10)
    }
    /// The unit.
    pub fn build(self) -> Arc<Unit> {
        Arc::new(Unit {
            make: self,
            frames: (0..self.tables).map(|_| OnceLock::new()).collect(),
            free: Mutex::new((0..self.tables).rev().collect()),
            root: Plain::new(0),
            state: Mutex::new(State::default()),
            touched: Plain::new(0),
            fail: AtomicBool::new(false),
            watcher: Mutex::new(None),
        })
    }
}

/// A point at which a test may look, or let a device do something: see [`Unit::watch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Commands have come; nothing is forgotten yet.
    Commands,
    /// They are done; who waits does not know yet.
    Done,
    /// A table is about to be freed.
    Freeing(Pfn),
    /// A table was allocated.
    Allocated(Pfn),
    /// Somebody waits for another.
    Relax,
}

type Watcher = Arc<dyn Fn(&Unit, Point) + Send + Sync>;

/// What the unit was told, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Batches: each is one wait.
    pub waits: u64,
    /// Context commands.
    pub contexts: u64,
    /// IOTLB commands for a range.
    pub ranges: u64,
    /// IOTLB commands for a domain.
    pub domains: u64,
    /// IOTLB commands for everything.
    pub globals: u64,
    /// Commands whose range is too large: they are ignored.
    pub ignored: u64,
}

/// What is behind the lock.
#[derive(Default)]
struct State {
    caches: Caches,
    counts: Counts,
    records: Vec<Fault>,
    overflow: bool,
    nr_faults: u64,
    memory: HashMap<u64, u64>,
}

/// A table's memory: what CPUs see, what the walker sees, and whether it is anybody's.
struct Frame {
    entries: [AtomicU64; ENTRIES],
    seen: [AtomicU64; ENTRIES],
    used: AtomicBool,
}

/// The unit, and the memory of its tables.
pub struct Unit {
    make: Make,
    frames: Vec<OnceLock<Box<Frame>>>,
    free: Mutex<Vec<u64>>,
    root: Plain,
    state: Mutex<State>,
    /// How often an entry was read or written by CPUs.
    touched: Plain,
    fail: AtomicBool,
    watcher: Mutex<Option<Watcher>>,
}

impl Unit {
    /// Tells it where the root table is.
    pub fn set_root(&self, root: Pfn) {
        self.root.store(root.as_u64(), Relaxed);
    }
    /// From now on `watcher` is called at each [`Point`].
    pub fn watch(&self, watcher: impl Fn(&Self, Point) + Send + Sync + 'static) {
        *self.watcher.lock() = Some(Arc::new(watcher));
    }
    /// Nobody watches any more.
    pub fn unwatch(&self) {
        *self.watcher.lock() = None;
    }
    fn at(&self, point: Point) {
        let watcher = self.watcher.lock().clone();
        if let Some(watcher) = watcher {
            watcher(self, point);
        }
    }
    /// From now on it answers no command, and forgets nothing; or it does again.
    pub fn fail(&self, fail: bool) {
        self.fail.store(fail, Relaxed);
    }
    /// What it was told so far.
    pub fn counts(&self) -> Counts {
        self.state.lock().counts
    }
    /// How often CPUs have read or written an entry.
    pub fn touched(&self) -> u64 {
        self.touched.load(Relaxed)
    }
    /// Table frames that are somebody's.
    pub fn tables_in_use(&self) -> u64 {
        self.make.tables - self.free.lock().len() as u64
    }
    /// Leaves only so many table frames free, so that memory runs out; gives the others back with what it returned.
    pub fn hold_back(&self, leave: usize) -> Vec<u64> {
        let mut free = self.free.lock();
        let keep = free.len().saturating_sub(leave);
        free.drain(..keep).collect()
    }
    /// Gives back what [`hold_back`](Self::hold_back) took.
    pub fn give_back(&self, held: Vec<u64>) {
        self.free.lock().extend(held);
    }
    /// Takes the fault records, and whether more came than there is room for.
    pub fn take_faults(&self) -> (Vec<Fault>, bool) {
        let mut state = self.state.lock();
        (std::mem::take(&mut state.records), std::mem::take(&mut state.overflow))
    }
    /// Transfers that were blocked so far.
    pub fn nr_faults(&self) -> u64 {
        self.state.lock().nr_faults
    }
    /// The word in memory at an address.
    pub fn memory(&self, at: PhysAddr) -> u64 {
        self.state.lock().memory.get(&(at.as_u64() & !7)).copied().unwrap_or(0)
    }
    /// A CPU stores a word.
    pub fn store(&self, at: PhysAddr, value: u64) {
        self.state.lock().memory.insert(at.as_u64() & !7, value);
    }

    fn frame(&self, table: Pfn) -> &Frame {
        let nth = table.as_u64().checked_sub(TABLES).map(|nth| nth as usize);
        let frame = nth.and_then(|nth| self.frames.get(nth)).and_then(OnceLock::get);
        frame.unwrap_or_else(|| panic!("{table} is no table"))
    }
    fn used_frame(&self, table: Pfn, who: &str) -> &Frame {
        let frame = self.frame(table);
        assert!(frame.used.load(Ordering::Acquire), "{who} uses the table {table}, which is free");
        frame
    }
    /// What the walker reads.
    fn read(&self, table: Pfn, index: usize) -> u64 {
        let frame = self.used_frame(table, "the walker");
        let word = if self.make.coherent { &frame.entries } else { &frame.seen };
        word[index].load(Ordering::Acquire)
    }
}

impl Hardware for Unit {
    fn alloc_table(&self) -> Option<Pfn> {
        let nth = self.free.lock().pop()?;
        let words = || [const { AtomicU64::new(0) }; ENTRIES];
        let new = || Box::new(Frame { entries: words(), seen: words(), used: AtomicBool::new(false) });
        let frame = self.frames[nth as usize].get_or_init(new);
        frame.entries.iter().chain(&frame.seen).for_each(|word| word.store(0, Ordering::Relaxed));
        assert!(!frame.used.swap(true, Ordering::AcqRel));
        self.at(Point::Allocated(Pfn::new(TABLES + nth)));
        Some(Pfn::new(TABLES + nth))
    }

    fn free_table(&self, table: Pfn) {
        self.at(Point::Freeing(table));
        let frame = self.used_frame(table, "who frees it");
        if let Some(cache) = self.state.lock().caches.leads_to(table) {
            panic!("the table {table} is freed while the {cache} leads to it");
        }
        assert!(frame.used.swap(false, Ordering::AcqRel), "the table {table} is freed twice");
        // Whoever reads it now, and is not noticed otherwise, reads nonsense.
        frame.entries.iter().chain(&frame.seen).for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
        self.free.lock().push(table.as_u64() - TABLES);
    }

    fn entry(&self, table: Pfn, index: usize) -> &AtomicU64 {
        self.touched.fetch_add(1, Relaxed);
        &self.used_frame(table, "a CPU").entries[index]
    }

    fn write_back(&self, table: Pfn, first: usize, count: usize) {
        let frame = self.used_frame(table, "a CPU");
        for nth in first..first + count {
            frame.seen[nth].store(frame.entries[nth].load(Ordering::Acquire), Ordering::Release);
        }
    }

    fn invalidate(&self, commands: &[Command]) -> Result<(), QueueError> {
        mm::lock_check::might_sleep("the invalidation queue");
        self.at(Point::Commands);
        if self.fail.load(Relaxed) {
            return Err(QueueError::NoAnswer);
        }
        let mut state = self.state.lock();
        let state_ref = &mut *state;
        state_ref.counts.waits += 1;
        for command in commands {
            state_ref.caches.obey(command.descriptor(), self.make.max_mask, &mut state_ref.counts);
        }
        drop(state);
        self.at(Point::Done);
        Ok(())
    }

    fn relax(&self) {
        mm::lock_check::might_sleep("another CPU");
        self.at(Point::Relax);
        std::thread::yield_now();
    }
}
