//! An emulated machine for host tests, in which stale translations really persist until they are flushed.
//!
//! # Protocol
//! - **Physical memory.** Table pages live in a slab with stable addresses, so that [`Machine::entry`] hands out
//!   the live entry. A data frame holds one `u64`, its *stamp*: enough to betray a wrong translation.
//! - **CPUs.** Each has a TLB and paging-structure caches (Intel SDM vol. 3A §4.10). An entry stays in them until
//!   [`flush_page`](Machine::flush_page) (which also drops *every* paging-structure-cache entry),
//!   [`flush_all`](Machine::flush_all) or [`load_root`](Machine::load_root) drops it. [`EmuMachine::read`] and
//!   [`EmuMachine::write`] go through them as a CPU's loads and stores would.
//! - **Which CPU am I?** [`EmuMachine::on_cpu`] makes the calling thread a CPU for the duration of a closure. One
//!   thread may play all CPUs in turn, or each CPU may be a thread of its own; a thread that never says so is
//!   CPU 0.
//! - **Interrupts.** [`send_shootdown_ipi`](Machine::send_shootdown_ipi) only marks the interrupt as pending. It is
//!   taken where the target's interrupts are on and the target reaches one of: interrupts coming back on,
//!   [`relax`](Machine::relax), a load or store, [`EmuMachine::deliver`]. A CPU that nobody plays at the moment is
//!   played by whoever waits in `relax`.
//! - **Races are forced, not hoped for.** [`EmuMachine::at`] runs an action when a CPU reaches the n-th event of a
//!   kind; [`EmuMachine::start`] runs code on another CPU until it finishes or waits. Or a
//!   [conductor](EmuMachine::set_conductor) decides at each event which CPU goes on.
//!
//! # What the machine itself checks
//! It panics, naming the CPU and the page, when a table page is freed twice; while a CPU has it loaded as its
//! root; while a CPU's paging-structure caches lead to it; or while a CPU that has had its interrupts off ever
//! since it walked through the page may still be walking there (G2, G3). It panics when a freed table page is
//! walked, was written to, or when a CPU waits with its interrupts off (invariant 4 of the design).
//!
//! # What is simplified
//! A load or store is one step that no interrupt divides. Memory is sequentially consistent here as far as the
//! host makes it so: orderings are the loom models' subject. There is no speculation unless a test asks for it by
//! [`EmuMachine::prefetch`]. Caches have no capacity limit, which only makes stale entries live longer.

mod cpu;
mod hooks;
mod memory;
mod run;
mod small;
mod walk;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use self::cpu::Cpu;
pub use self::hooks::Event;
use self::hooks::Hooks;
use self::memory::Memory;
pub use self::run::{Background, Seat};
pub use self::small::{Frames, Task, context, context_on};
pub use self::walk::{Cached, Fault};
use mm::addr::{Pfn, PhysAddr, VirtAddr};
use mm::lock_check;
use mm::machine::{CpuId, CpuMask, MAX_CPUS, Machine, Point};
use mm::sync::AtomicU64 as LiveEntry;

/// Who decides which CPU goes on.
type Conductor = Box<dyn Fn(CpuId, Event) -> bool + Send + Sync>;
/// What the interrupt handler of a shootdown does; runs on the target CPU with interrupts off.
type IpiHandler = Box<dyn Fn() + Send + Sync>;

/// The shape of an emulated machine.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Number of CPUs, 1 to [`MAX_CPUS`].
    pub cpus: usize,
    /// Levels of the page table: 4 or 5.
    pub levels: u8,
    /// Are there 1 GiB leaves?
    pub has_1g_leaves: bool,
    /// Table pages that exist, in frames.
    pub table_pages: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { cpus: 4, levels: 4, has_1g_leaves: true, table_pages: 4096 }
    }
}

/// What the machine has done since it was made, or since [`EmuMachine::reset_stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Shootdown interrupts sent (one for each target CPU).
    pub ipis_sent: u64,
    /// Calls of [`Machine::send_shootdown_ipi`].
    pub ipi_broadcasts: u64,
    /// Shootdown interrupts taken.
    pub ipis_taken: u64,
    /// Single-page flushes, on all CPUs.
    pub page_flushes: u64,
    /// Full flushes, on all CPUs.
    pub full_flushes: u64,
    /// Loads of a root.
    pub root_loads: u64,
    /// Looks at an entry by software.
    pub entry_looks: u64,
}

#[derive(Debug, Default)]
struct Counters {
    ipis_sent: AtomicU64,
    ipi_broadcasts: AtomicU64,
    ipis_taken: AtomicU64,
    page_flushes: AtomicU64,
    full_flushes: AtomicU64,
    root_loads: AtomicU64,
    entry_looks: AtomicU64,
}

struct Inner {
    config: Config,
    memory: Memory,
    cpus: Vec<Cpu>,
    hooks: Hooks,
    conductor: std::sync::OnceLock<Conductor>,
    conducting: AtomicBool,
    handler: std::sync::OnceLock<IpiHandler>,
    counters: Counters,
    clock_ns: AtomicU64,
    /// How many lists may still grow.
    growths: AtomicU64,
    /// Token of the thread that broke a rule, so that CPUs played by others stop too; 0: none.
    broken: AtomicU64,
    /// Token of the thread that made the machine.
    maker: u64,
}

/// A handle on an emulated machine; clones are the same machine.
#[derive(Clone)]
pub struct EmuMachine {
    inner: Arc<Inner>,
}

impl Default for EmuMachine {
    fn default() -> Self {
        Self::new(Config::default())
    }
}

impl EmuMachine {
    /// A machine of the given shape, with empty memory and caches, interrupts on.
    ///
    /// # Panics
    /// Where `config` has no CPU or too many, or neither 4 nor 5 levels.
    pub fn new(config: Config) -> Self {
        assert!((1..=MAX_CPUS).contains(&config.cpus), "an emulated machine has 1 to {MAX_CPUS} CPUs");
        assert!(matches!(config.levels, 4 | 5), "a page table has 4 or 5 levels");
        let inner = Inner {
            config,
            memory: Memory::new(config.table_pages),
            cpus: (0..config.cpus).map(|_| Cpu::default()).collect(),
            hooks: Hooks::default(),
            conductor: std::sync::OnceLock::new(),
            conducting: AtomicBool::new(false),
            handler: std::sync::OnceLock::new(),
            counters: Counters::default(),
            clock_ns: AtomicU64::new(0),
            growths: AtomicU64::new(u64::MAX),
            broken: AtomicU64::new(0),
            maker: run::thread_token(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// A machine with `cpus` CPUs and the usual rest.
    pub fn with_cpus(cpus: usize) -> Self {
        Self::new(Config { cpus, ..Config::default() })
    }

    /// Lets lists grow so many times more, and then no more: memory is short. `u64::MAX` ends the shortage.
    pub fn limit_growth(&self, times: u64) {
        self.inner.growths.store(times, Ordering::SeqCst);
    }

    /// Connects the interrupt to its handler: a closure that calls `Shootdown::handle_ipi` of the context that owns
    /// this machine. It runs on the target CPU with interrupts off.
    ///
    /// # Panics
    /// When a handler is connected already.
    pub fn set_ipi_handler(&self, handler: impl Fn() + Send + Sync + 'static) {
        assert!(self.inner.handler.set(Box::new(handler)).is_ok(), "the interrupt has a handler already");
    }

    /// Number of CPUs.
    pub fn cpu_count(&self) -> usize {
        self.inner.cpus.len()
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        let c = &self.inner.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            ipis_sent: read(&c.ipis_sent),
            ipi_broadcasts: read(&c.ipi_broadcasts),
            ipis_taken: read(&c.ipis_taken),
            page_flushes: read(&c.page_flushes),
            full_flushes: read(&c.full_flushes),
            root_loads: read(&c.root_loads),
            entry_looks: read(&c.entry_looks),
        }
    }

    /// Starts counting from zero.
    pub fn reset_stats(&self) {
        let c = &self.inner.counters;
        let taken = [&c.ipis_sent, &c.ipi_broadcasts, &c.ipis_taken];
        let done = [&c.page_flushes, &c.full_flushes, &c.root_loads, &c.entry_looks];
        for counter in taken.into_iter().chain(done) {
            counter.store(0, Ordering::Relaxed);
        }
    }

    /// Moves the clock forward by `ns` nanoseconds.
    pub fn advance_clock(&self, ns: u64) {
        self.inner.clock_ns.fetch_add(ns, Ordering::Relaxed);
    }

    fn cpu_state(&self, cpu: CpuId) -> &Cpu {
        &self.inner.cpus[cpu]
    }

    fn count(&self, counter: impl Fn(&Counters) -> &AtomicU64, nr: u64) {
        counter(&self.inner.counters).fetch_add(nr, Ordering::Relaxed);
    }

    /// A rule of the machine was broken: says so and stops every CPU at its next wait.
    #[track_caller]
    fn broken_rule(&self, what: core::fmt::Arguments<'_>) -> ! {
        self.inner.broken.store(run::thread_token(), Ordering::SeqCst);
        panic!("CPU {}: {what}", run::playing().unwrap_or(0));
    }

    /// `table` may be freed: no CPU has it loaded, leads to it, or may be walking in it.
    fn check_may_free(&self, table: Pfn) {
        for (id, cpu) in self.inner.cpus.iter().enumerate() {
            let caches = cpu.caches();
            if caches.root == Some(table) {
                drop(caches);
                self.broken_rule(format_args!("table page {table} is freed while CPU {id} has it loaded as its root"));
            }
            if let Some(va) = caches.leads_to(table) {
                drop(caches);
                self.broken_rule(format_args!(
                    "table page {table} is freed while the paging-structure caches of CPU {id} lead to it (at {va})"
                ));
            }
            drop(caches);
            if id != self.cpu() && cpu.may_be_walking(table) {
                self.broken_rule(format_args!(
                    "table page {table} is freed while CPU {id}, with interrupts off, may be walking in it"
                ));
            }
        }
    }
}

impl Machine for EmuMachine {
    fn cpu(&self) -> CpuId {
        self.current_cpu()
    }

    fn irq_disable(&self) -> bool {
        let was_on = self.cpu_state(self.cpu()).irqs_on.swap(false, Ordering::SeqCst);
        self.not_waiting();
        self.event(Event::IrqDisable);
        was_on
    }

    fn irq_enable(&self) {
        self.event(Event::IrqEnable);
        let cpu = self.cpu();
        self.cpu_state(cpu).forget_walk();
        self.cpu_state(cpu).irqs_on.store(true, Ordering::SeqCst);
        self.deliver(cpu);
    }

    fn irqs_on(&self) -> bool {
        self.cpu_state(self.cpu()).irqs_on.load(Ordering::SeqCst)
    }

    fn relax(&self) {
        lock_check::might_sleep("something");
        self.wait_a_little();
    }

    fn may_grow(&self) -> bool {
        let less = |left: u64| (left != u64::MAX).then(|| left.saturating_sub(1));
        self.inner.growths.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less) != Ok(0)
    }

    fn loaded(&self) -> PhysAddr {
        PhysAddr::new(self.cpu_state(self.cpu()).loaded.load(Ordering::SeqCst))
    }

    fn set_loaded(&self, root: PhysAddr) {
        self.cpu_state(self.cpu()).loaded.store(root.as_u64(), Ordering::SeqCst);
    }

    fn alloc_table(&self) -> Option<Pfn> {
        self.event(Event::AllocTable);
        match self.inner.memory.alloc_table() {
            Ok(table) => table,
            Err(written) => self.broken_rule(format_args!("table page {written} was written to after it was freed")),
        }
    }

    fn free_table(&self, table: Pfn) {
        self.event(Event::FreeTable);
        // While a failed test unwinds, what it drops breaks rules that nobody needs to hear of.
        if !std::thread::panicking() {
            self.check_may_free(table);
        }
        if !self.inner.memory.free_table(table) {
            self.broken_rule(format_args!("table page {table} is freed, but it is not in use"));
        }
    }

    fn entry(&self, table: Pfn, index: usize) -> &LiveEntry {
        self.event(Event::Entry);
        self.count(|c| &c.entry_looks, 1);
        let cpu = self.cpu_state(self.cpu());
        if !cpu.irqs_on.load(Ordering::SeqCst) {
            cpu.note_walk(table);
        }
        match self.inner.memory.entry(table, index) {
            Some(entry) => entry,
            None => self.broken_rule(format_args!("a walk reached {table}, which is no table page in use")),
        }
    }

    fn peek(&self, table: Pfn, index: usize) -> u64 {
        match self.inner.memory.entry(table, index) {
            Some(entry) => entry.load(Ordering::SeqCst),
            None => self.broken_rule(format_args!("a check reached {table}, which is no table page in use")),
        }
    }

    fn init_root(&self, root: Pfn) {
        self.inner.memory.init_root(root, self.inner.config.levels);
    }

    fn levels(&self) -> u8 {
        self.inner.config.levels
    }

    fn has_1g_leaves(&self) -> bool {
        self.inner.config.has_1g_leaves
    }

    fn load_root(&self, root: Option<Pfn>) {
        if let Some(root) = root
            && self.inner.memory.entry(root, 0).is_none()
        {
            self.broken_rule(format_args!("{root} is loaded as a root, but it is no table page in use"));
        }
        self.cpu_state(self.cpu()).caches().load_root(root);
        self.count(|c| &c.root_loads, 1);
        self.event(Event::LoadRoot);
    }

    fn flush_page(&self, va: VirtAddr) {
        self.event(Event::Flush);
        self.cpu_state(self.cpu()).caches().flush_page(va);
        self.count(|c| &c.page_flushes, 1);
        self.event(Event::Flushed);
    }

    fn flush_all(&self) {
        self.event(Event::Flush);
        self.cpu_state(self.cpu()).caches().flush_all();
        self.count(|c| &c.full_flushes, 1);
        self.event(Event::Flushed);
    }

    fn flush_global(&self) {
        self.event(Event::Flush);
        self.cpu_state(self.cpu()).caches().flush_global();
        self.count(|c| &c.full_flushes, 1);
        self.event(Event::Flushed);
    }

    fn send_shootdown_ipi(&self, cpus: CpuMask) {
        let me = self.cpu();
        if cpus.contains(me) {
            self.broken_rule(format_args!("a CPU sends a shootdown interrupt to itself"));
        }
        for cpu in cpus.iter() {
            if cpu >= self.cpu_count() {
                self.broken_rule(format_args!("a shootdown interrupt is sent to CPU {cpu}, which does not exist"));
            }
            self.cpu_state(cpu).pending.store(true, Ordering::SeqCst);
        }
        self.count(|c| &c.ipis_sent, u64::from(cpus.len()));
        self.count(|c| &c.ipi_broadcasts, 1);
        self.event(Event::IpiSent);
    }

    fn now_ns(&self) -> u64 {
        self.inner.clock_ns.fetch_add(1, Ordering::Relaxed)
    }

    fn reached(&self, point: Point) {
        self.event(Event::At(point));
    }
}
