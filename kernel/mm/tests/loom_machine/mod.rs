//! The machine of the loom models: a few table pages, CPUs with a TLB, and an interrupt that is a flag.
//!
//! What the checker watches: the flag, the entries of the tables (all of them its atomics), and two kinds of cells that
//! stand for memory. Each data page has one that every access through a translation reads and that the next owner
//! writes; each table page has one that every walk reads (again at the end of the time for which the CPU may use
//! it) and that freeing writes. Where a use is not ordered before the next owner (shuttle: where they overlap), the
//! model ends. Besides, under loom freeing takes each entry of the page for itself alone, so that every load and store of
//! one is a use, whoever still has a reference to the entry and however he came by it.
//!
//! A TLB belongs to one CPU, so it is plain data. An interrupt is taken where interrupts come on, in `relax`, and
//! where a model says so by `poll`: anywhere else it has not arrived yet.
#![allow(dead_code, reason = "each model uses its own part")]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use mm::addr::{ENTRIES, Pfn, PhysAddr, VirtAddr};
use mm::entry::Entry;
use mm::machine::{CpuId, CpuMask, IrqOff, Machine, Point};
use mm::shootdown::Shootdown;
use mm::sync::model::{self, AtomicBool, Bound, UnsafeCell, thread};
use mm::sync::{Arc, AtomicU64, Ordering};
use mm::tlb::TlbState;

/// Table pages that there are; frame numbers from [`FIRST_TABLE`] on.
const TABLES: usize = 6;
const FIRST_TABLE: u64 = 0x1000;
/// Data pages that are watched: frames 0 and 1 of a chunk, and those of the next 2 MiB.
pub const DATA: [u64; 4] = [0, 1, 512, 513];

model::thread_local! {
    static CPU: Cell<CpuId> = Cell::new(0);
}

/// The address of entry `low` of the page table behind entry `high` of the root (two levels).
pub const fn va(high: u64, low: u64) -> VirtAddr {
    VirtAddr::new(high << 21 | low << 12)
}

struct Table {
    entries: [EntryCell; ENTRIES],
    /// Read by who may walk through the page, written by who frees it.
    memory: UnsafeCell<()>,
    live: Mutex<bool>,
}

/// One entry.
struct EntryCell(core::cell::UnsafeCell<AtomicU64>);

// SAFETY: the atomic is shared; it is taken alone in `end` only, where loom ends the model if anybody uses it meanwhile.
unsafe impl Sync for EntryCell {}

impl EntryCell {
    fn atomic(&self) -> &AtomicU64 {
        // SAFETY: as said above.
        unsafe { &*self.0.get() }
    }
    /// Its page is freed: all loads and stores so far come before this, and what comes later is ordered after it.
    fn end(&self) {
        // SAFETY: loom's threads take turns, and this one does not let go within; that nobody else has a right to the
        // entry is what loom checks here.
        #[cfg(loom)]
        unsafe { &mut *self.0.get() }.assert_alone();
    }
}

/// What belongs to one CPU alone; the lock is not the checker's and never contended.
#[derive(Default)]
struct Own {
    irqs_off: bool,
    loaded: PhysAddr,
    root: Option<Pfn>,
    tlb: BTreeMap<u64, Entry>,
    /// Table pages that the paging-structure caches lead to.
    paths: Vec<Pfn>,
    /// Table pages that were walked since interrupts went off.
    walked: Vec<Pfn>,
}

type Handler = Box<dyn Fn(&LoomMachine) + Send + Sync>;
type Watcher = Box<dyn Fn(&LoomMachine, Point) + Send + Sync>;

/// See the module.
pub struct LoomMachine {
    levels: u8,
    tables: Vec<Table>,
    data: Vec<UnsafeCell<()>>,
    /// Not the checker's, for it must not order anything: the page belongs to somebody else now.
    reused: Vec<std::sync::atomic::AtomicBool>,
    pending: Vec<AtomicBool>,
    own: Vec<Mutex<Own>>,
    handler: OnceLock<Handler>,
    watcher: OnceLock<Watcher>,
}

// SAFETY: the cells are the checker's, which ends the model where two threads use one without order between them; all
// other fields are made for sharing.
unsafe impl Sync for LoomMachine {}
// SAFETY: as above.
unsafe impl Send for LoomMachine {}

impl LoomMachine {
    /// A machine whose page tables have `levels` levels.
    pub fn new(cpus: usize, levels: u8) -> Self {
        let table = |_| Table {
            entries: std::array::from_fn(|_| EntryCell(core::cell::UnsafeCell::new(AtomicU64::new(0)))),
            memory: UnsafeCell::new(()),
            live: Mutex::new(false),
        };
        Self {
            levels,
            tables: (0..TABLES).map(table).collect(),
            data: DATA.iter().map(|_| UnsafeCell::new(())).collect(),
            reused: DATA.iter().map(|_| std::sync::atomic::AtomicBool::new(false)).collect(),
            pending: (0..cpus).map(|_| AtomicBool::new(false)).collect(),
            own: (0..cpus).map(|_| Mutex::default()).collect(),
            handler: OnceLock::new(),
            watcher: OnceLock::new(),
        }
    }

    /// What the interrupt does. With interrupts off.
    pub fn set_handler(&self, handler: impl Fn(&LoomMachine) + Send + Sync + 'static) {
        assert!(self.handler.set(Box::new(handler)).is_ok());
    }

    /// Called where a protocol reaches one of its [`Point`]s.
    pub fn set_watcher(&self, watcher: impl Fn(&LoomMachine, Point) + Send + Sync + 'static) {
        assert!(self.watcher.set(Box::new(watcher)).is_ok());
    }

    fn own<R>(&self, f: impl FnOnce(&mut Own) -> R) -> R {
        f(&mut self.own[self.cpu()].lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn table(&self, pfn: Pfn) -> &Table {
        let table = &self.tables[(pfn.as_u64() - FIRST_TABLE) as usize];
        assert!(*table.live.lock().unwrap(), "a walk through a table page that is not in use");
        table
    }

    /// The CPU may have used these table pages until now.
    fn used(&self, tables: &[Pfn]) {
        for &table in tables {
            self.table(table).memory.with(|_| ());
        }
    }

    /// Has this CPU an address space loaded?
    pub fn has_root(&self) -> bool {
        self.own(|own| own.root.is_some())
    }

    /// Takes the interrupt if there is one and interrupts are on.
    pub fn poll(&self) {
        let cpu = self.cpu();
        if self.own(|own| own.irqs_off) {
            return;
        }
        if self.pending[cpu].swap(false, Ordering::AcqRel) {
            self.own(|own| own.irqs_off = true);
            if let Some(handler) = self.handler.get() {
                handler(self);
            }
            self.own(|own| own.irqs_off = false);
        }
    }

    /// Has an interrupt been sent to this CPU? Whoever sees it sees what the sender did before.
    pub fn interrupt_is_pending(&self) -> bool {
        self.pending[self.cpu()].load(Ordering::Acquire)
    }

    /// A load by a user program on this CPU: through the TLB, else by a walk that fills it. Answers the frame. An
    /// interrupt that is on its way has not arrived yet: see [`poll`](Self::poll).
    pub fn access(&self, va: VirtAddr) -> Option<Pfn> {
        let cached = self.own(|own| own.tlb.get(&va.as_u64()).copied());
        let pfn = cached.or_else(|| self.fill(va))?.pfn();
        self.use_data(pfn);
        Some(pfn)
    }

    /// Uses a data page: by a translation, or by a pin.
    pub fn use_data(&self, pfn: Pfn) {
        let index = DATA.iter().position(|&data| data == pfn.as_u64()).expect("a data page of the model");
        let mine = || !self.reused[index].load(Ordering::Relaxed);
        // Inside, where it counts: others may run before a use begins.
        self.data[index].with(|_| assert!(mine(), "frame {pfn} is used, but it belongs to another owner"));
    }

    /// The next owner of a data page writes to it.
    pub fn reuse_data(&self, pfn: Pfn) {
        let index = DATA.iter().position(|&data| data == pfn.as_u64()).expect("a data page of the model");
        self.data[index].with_mut(|_| self.reused[index].store(true, Ordering::Relaxed));
    }

    /// The walker, with two levels or more and leaves in the lowest.
    pub fn fill(&self, va: VirtAddr) -> Option<Entry> {
        let mut table = self.own(|own| own.root)?;
        for level in (1..=self.levels).rev() {
            let entry = self.table(table).entries[va.index(level)].atomic();
            let seen = Entry::from_bits(entry.load(Ordering::Acquire));
            if seen.is_leaf(level) {
                self.own(|own| own.tlb.insert(va.as_u64(), seen));
                return Some(seen);
            }
            if !seen.is_table(level) {
                return None;
            }
            table = seen.pfn();
            self.table(table).memory.with(|_| ());
            self.own(|own| own.paths.push(table));
        }
        None
    }

    fn forget(&self, all: bool, va: VirtAddr) {
        let paths = self.own(|own| {
            if all {
                own.tlb.clear();
            } else {
                own.tlb.remove(&va.as_u64());
            }
            std::mem::take(&mut own.paths)
        });
        self.used(&paths);
    }
}

impl Machine for LoomMachine {
    fn cpu(&self) -> CpuId {
        CPU.with(Cell::get)
    }
    fn irq_disable(&self) -> bool {
        self.own(|own| !std::mem::replace(&mut own.irqs_off, true))
    }
    fn irq_enable(&self) {
        let walked = self.own(|own| std::mem::take(&mut own.walked));
        self.used(&walked);
        self.own(|own| own.irqs_off = false);
        self.poll();
    }
    fn irqs_on(&self) -> bool {
        self.own(|own| !own.irqs_off)
    }
    fn relax(&self) {
        assert!(self.irqs_on(), "waits with its interrupts off");
        self.poll();
        thread::yield_now();
    }
    fn loaded(&self) -> PhysAddr {
        self.own(|own| own.loaded)
    }
    fn set_loaded(&self, root: PhysAddr) {
        self.own(|own| own.loaded = root);
    }
    fn alloc_table(&self) -> Option<Pfn> {
        let index = self.tables.iter().position(|table| !*table.live.lock().unwrap())?;
        *self.tables[index].live.lock().unwrap() = true;
        self.tables[index].memory.with_mut(|_| ());
        self.tables[index].entries.iter().for_each(|entry| entry.atomic().store(0, Ordering::Relaxed));
        Some(Pfn::new(FIRST_TABLE + index as u64))
    }
    fn free_table(&self, table: Pfn) {
        self.table(table).memory.with_mut(|_| ());
        self.table(table).entries.iter().for_each(EntryCell::end);
        *self.table(table).live.lock().unwrap() = false;
    }
    fn entry(&self, table: Pfn, index: usize) -> &AtomicU64 {
        self.table(table).memory.with(|_| ());
        self.own(|own| {
            if own.irqs_off {
                own.walked.push(table);
            }
        });
        self.table(table).entries[index].atomic()
    }
    fn init_root(&self, _root: Pfn) {}
    fn levels(&self) -> u8 {
        self.levels
    }
    fn load_root(&self, root: Option<Pfn>) {
        self.forget(true, VirtAddr::new(0));
        self.own(|own| own.root = root);
    }
    fn flush_page(&self, va: VirtAddr) {
        self.forget(false, va);
    }
    fn flush_all(&self) {
        self.forget(true, VirtAddr::new(0));
    }
    fn flush_global(&self) {
        self.flush_all();
    }
    fn send_shootdown_ipi(&self, cpus: CpuMask) {
        // A swap, not a store: an interrupt controller does not lose an interrupt that comes while another is taken,
        // but a store may be ordered before the target's own swap.
        cpus.iter().for_each(|cpu| _ = self.pending[cpu].swap(true, Ordering::AcqRel));
    }
    fn now_ns(&self) -> u64 {
        0
    }
    fn reached(&self, point: Point) {
        if let Some(watcher) = self.watcher.get() {
            watcher(self, point);
        }
    }
}

/// Explores interleavings: loom all of those with at most `preemptions` preemptions.
#[track_caller]
pub fn explore<F: Fn() + Sync + Send + 'static>(preemptions: usize, model: F) {
    model::explore(Bound::Preemptions(preemptions), model);
}

/// The rest of the thread runs on `cpu`.
pub fn be(cpu: CpuId) {
    CPU.with(|current| current.set(cpu));
}

/// Every CPU takes part from now on; the caller is CPU 0 afterwards.
pub fn bring_up(machine: &LoomMachine, shootdown: &Shootdown) {
    for cpu in (0..machine.own.len()).rev() {
        be(cpu);
        shootdown.cpu_online(&IrqOff::new(machine));
    }
}

/// A machine and its shootdowns, without address spaces: for the models of the shootdown alone.
pub struct Bare {
    /// The machine.
    pub machine: LoomMachine,
    /// Its shootdowns.
    pub shootdown: Shootdown,
}

impl Bare {
    /// With `cpus` CPUs and two levels of tables.
    pub fn new(cpus: usize) -> Arc<Self> {
        let bare = Arc::new(Self { machine: LoomMachine::new(cpus, 2), shootdown: Shootdown::new(cpus) });
        let weak = Arc::downgrade(&bare);
        bare.machine.set_handler(move |machine| {
            if let Some(bare) = weak.upgrade() {
                bare.shootdown.handle_ipi(&IrqOff::new(machine));
            }
        });
        bring_up(&bare.machine, &bare.shootdown);
        bare
    }

    /// A space of one page table that maps `(address, data frame)` pairs.
    pub fn space(&self, id: u64, pages: &[(VirtAddr, u64)]) -> Arc<TlbState> {
        let root = self.machine.alloc_table().unwrap();
        let table = self.machine.alloc_table().unwrap();
        let user = mm::entry::Prot::USER_READ;
        self.machine.entry(root, 0).store(Entry::table(table, true).bits(), Ordering::Relaxed);
        for &(va, frame) in pages {
            let leaf = Entry::leaf(Pfn::new(frame), mm::addr::PageSize::Size4K, user);
            self.machine.entry(table, va.index(1)).store(leaf.bits(), Ordering::Relaxed);
        }
        Arc::new(TlbState::new(id, root))
    }

    /// Loads a space on this CPU.
    pub fn load(&self, space: Option<&Arc<TlbState>>) {
        self.shootdown.switch_to(&IrqOff::new(&self.machine), space);
    }

    /// The page table of a space of [`Bare::space`].
    pub fn page_table(&self, space: &TlbState) -> Pfn {
        Entry::from_bits(self.machine.entry(space.root(), 0).load(Ordering::Relaxed)).pfn()
    }
}
