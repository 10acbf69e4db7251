//! What `mm` needs of the machine below it.
//!
//! The kernel implements [`Machine`] with real instructions, `testkit` with an emulated machine, the loom models
//! with a handful of loom atomics. All of them are reached by static dispatch: gup-fast pays for no indirection.

use core::fmt;
use core::marker::PhantomData;

use crate::addr::{ENTRIES, Pfn, PhysAddr, VirtAddr};
use crate::entry::Entry;
use crate::meta::Recent;
use crate::sync::{AtomicU64, Ordering};
use crate::trace::Mark;

/// Most CPUs that the kernel can run: one bit each in a [`CpuMask`].
pub const MAX_CPUS: usize = 64;

/// Entries of a table that are looked at together where many are: see [`Machine::entries`].
pub const GROUP: usize = if ENTRIES < 4 { ENTRIES } else { 4 };

/// Number of a CPU, dense from 0, less than [`MAX_CPUS`].
pub type CpuId = usize;

/// A set of CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuMask(u64);

impl CpuMask {
    /// No CPU.
    pub const EMPTY: Self = Self(0);
    /// From bits, bit n for CPU n.
    #[inline]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
    /// The bits.
    #[inline]
    pub const fn bits(self) -> u64 {
        self.0
    }
    /// Only `cpu`.
    #[inline]
    pub const fn single(cpu: CpuId) -> Self {
        Self(1 << cpu)
    }
    /// The CPUs of both.
    #[inline]
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    /// All but `cpu`.
    #[inline]
    #[must_use]
    pub const fn without(self, cpu: CpuId) -> Self {
        Self(self.0 & !(1 << cpu))
    }
    /// Is `cpu` in the set?
    #[inline]
    pub const fn contains(self, cpu: CpuId) -> bool {
        self.0 & (1 << cpu) != 0
    }
    /// How many CPUs.
    #[inline]
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }
    /// Is the set empty?
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// The CPUs in rising order.
    #[inline]
    pub fn iter(self) -> impl Iterator<Item = CpuId> {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            (rest != 0).then(|| {
                let cpu = rest.trailing_zeros() as CpuId;
                rest &= rest - 1;
                cpu
            })
        })
    }
}

impl fmt::Debug for CpuMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// Proof that interrupts are off on this CPU for as long as the value lives.
///
/// A function that takes `&IrqOff` cannot be interrupted, and no shootdown can complete while it runs (G2).
/// The value is neither `Send` nor copyable; dropping it restores what was before.
///
/// ```
/// use testkit::emu;
/// use mm::machine::{IrqOff, Machine};
///
/// let mm = emu::context(1);
/// let outer = IrqOff::new(&mm.machine);
/// drop(IrqOff::new(&mm.machine));
/// assert!(!mm.machine.irqs_on(), "they were off before");
/// drop(outer);
/// assert!(mm.machine.irqs_on());
/// ```
#[must_use = "interrupts come back on when this is dropped"]
pub struct IrqOff<'m, M: Machine> {
    machine: &'m M,
    was_on: bool,
    _not_send: PhantomData<*const ()>,
}

impl<'m, M: Machine> IrqOff<'m, M> {
    /// Turns interrupts off on this CPU.
    #[inline]
    pub fn new(machine: &'m M) -> Self {
        let was_on = machine.irq_disable();
        Self { machine, was_on, _not_send: PhantomData }
    }
    /// The machine whose interrupts are off.
    #[inline]
    pub fn machine(&self) -> &'m M {
        self.machine
    }
    /// This CPU; it cannot change while interrupts are off.
    #[inline]
    pub fn cpu(&self) -> CpuId {
        self.machine.cpu()
    }
}

impl<M: Machine> Drop for IrqOff<'_, M> {
    #[inline]
    fn drop(&mut self) {
        if self.was_on {
            self.machine.irq_enable();
        }
    }
}

/// A place between two steps of a lock-free protocol. The kernel's machine does nothing there; a test machine may
/// let other CPUs act, so that a race is forced instead of hoped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// gup-fast has read a present leaf, and has no reference yet.
    GupLeafRead,
    /// gup-fast has taken its reference, and has not yet read the entries again.
    GupPinned,
    /// A CPU that changes its address space has loaded the new root, and has not yet said so.
    SwitchLoaded,
    /// The tables on the way to a leaf are there, and the leaf is not installed yet.
    InstallReady,
    /// Who maps a range has been listed, and no address space is locked yet.
    UsersListed,
    /// The pages of a registration are pinned, and it is on no list yet.
    RegionPinned,
    /// A provider has let a range be mapped, and the mapping is not in its reverse map yet.
    MapAdmitted,
}

/// Makes room for one more element of `list`, or answers that it must not grow: see [`Machine::may_grow`].
#[inline]
pub fn has_room<M: Machine, T>(machine: &M, list: &mut alloc::vec::Vec<T>) -> bool {
    list.len() < list.capacity() || (machine.may_grow() && list.try_reserve(1).is_ok())
}

/// The machine: frames for tables, live entries, flushes, IPIs.
///
/// # Contract
/// - [`entry`](Self::entry) gives the *live* entry, the one that the CPU's walker reads and whose accessed and
///   dirty bits it writes. It stays valid until the table page is given to [`free_table`](Self::free_table).
/// - After [`send_shootdown_ipi`](Self::send_shootdown_ipi) each named CPU runs
///   [`Shootdown::handle_ipi`](crate::shootdown::Shootdown::handle_ipi) once or more, as soon as its interrupts
///   are on. Several sends may melt into one run.
/// - The flush verbs act on this CPU alone and are complete when they return.
pub trait Machine: Send + Sync + Sized + 'static {
    /// This CPU. Stable only while the caller cannot migrate (interrupts off, or a pinned task).
    fn cpu(&self) -> CpuId;
    /// Turns interrupts off on this CPU; answers whether they were on. Use [`IrqOff`], not this.
    fn irq_disable(&self) -> bool;
    /// Turns interrupts on on this CPU. Use [`IrqOff`], not this.
    fn irq_enable(&self);
    /// Are interrupts on, on this CPU?
    fn irqs_on(&self) -> bool;
    /// The root table of the address space that is loaded and in use on this CPU, 0 for none: what was last
    /// [set](Self::set_loaded) here. One load: gup-fast asks it each time.
    fn loaded(&self) -> PhysAddr;
    /// Keeps it for this CPU. With interrupts off.
    fn set_loaded(&self, root: PhysAddr);
    /// Of what each CPU of this machine's context has looked up last, that of this CPU; a machine may know a shorter way.
    /// With interrupts off.
    #[inline(always)]
    fn recent<'a>(&self, all: impl FnOnce() -> &'a [Recent]) -> &'a Recent {
        &all()[self.cpu()]
    }
    /// Called in every wait loop: executes `pause`, and lets another task run where that helps. Not called with
    /// interrupts off, nor with a lock held ([`crate::lock_check`]).
    fn relax(&self);

    /// A zeroed frame for a table page, or `None` when memory is exhausted.
    fn alloc_table(&self) -> Option<Pfn>;
    /// Gives back a table page. The caller has waited for the shootdown that followed its unlinking (G3).
    fn free_table(&self, table: Pfn);
    /// The live entry `index` (< 512) of the table page `table`.
    fn entry(&self, table: Pfn, index: usize) -> &AtomicU64;
    /// What the live entry says, for a check of a debug build: a look that a test machine does not count.
    fn peek(&self, table: Pfn, index: usize) -> u64 {
        self.entry(table, index).load(Ordering::Acquire)
    }
    /// As [`entry`](Self::entry), by the table's address; a machine may know a shorter way.
    #[inline(always)]
    fn entry_at(&self, table: PhysAddr, index: usize) -> &AtomicU64 {
        self.entry(table.pfn(), index)
    }
    /// The live entries of group `group` (< 512 / [`GROUP`]) of the table page `table`. As [`entry`](Self::entry) for
    /// each; a machine may know a shorter way.
    #[inline(always)]
    fn entries(&self, table: Pfn, group: usize) -> [&AtomicU64; GROUP] {
        core::array::from_fn(|nth| self.entry(table, group * GROUP + nth))
    }
    /// Which bits all entries of a table page have in common, and which any of them has. The table is detached, and the
    /// shootdown that followed is done: nobody else, no CPU's walker either, can reach it any more.
    #[inline]
    fn all_and_any(&self, detached: Pfn) -> (Entry, Entry) {
        let mut bits = (u64::MAX, 0);
        for group in 0..ENTRIES / GROUP {
            for entry in self.entries(detached, group) {
                let entry = entry.load(Ordering::Relaxed);
                bits = (bits.0 & entry, bits.1 | entry);
            }
        }
        (Entry::from_bits(bits.0), Entry::from_bits(bits.1))
    }
    /// Fills the kernel half of a new root table so that the kernel stays mapped in it.
    fn init_root(&self, root: Pfn);
    /// Forgets a root table that [`init_root`](Self::init_root) has filled: it is freed next.
    fn drop_root(&self, _root: Pfn) {}
    /// Levels of the page table: 4 or 5.
    fn levels(&self) -> u8 {
        4
    }
    /// Are 1 GiB leaves available?
    fn has_1g_leaves(&self) -> bool {
        true
    }

    /// Loads `root` on this CPU (CR3), which flushes all its non-global translations; `None`: the kernel's own.
    fn load_root(&self, root: Option<Pfn>);
    /// Drops the translation of the page at `va` on this CPU, and every paging-structure-cache entry
    /// (`invlpg`; SDM vol. 3A §4.10.4.1).
    fn flush_page(&self, va: VirtAddr);
    /// Drops every non-global translation on this CPU.
    fn flush_all(&self);
    /// Drops every translation on this CPU, those of the kernel half (global) included.
    fn flush_global(&self);
    /// Interrupts every CPU of `cpus` (never the sender itself) so that it runs the shootdown handler.
    fn send_shootdown_ipi(&self, cpus: CpuMask);

    /// May a list grow that can also do without? Asked before each growth of a list whose length follows from what
    /// is mapped. `false` while memory is short: what is left is for allocations that cannot do without.
    #[inline]
    fn may_grow(&self) -> bool {
        true
    }

    /// Time for ages and reports, in nanoseconds since boot. Monotonic on one CPU.
    fn now_ns(&self) -> u64;
    /// A lock-free protocol has reached `point`. Only a test machine does anything here.
    #[inline]
    fn reached(&self, _point: Point) {}
    /// Something that other CPUs may care about has happened, for a machine that keeps [traces](crate::trace).
    #[inline(always)]
    fn mark(&self, _mark: Mark) {}
    /// Does it keep any? Where it does not, nothing of a [`mark`](Self::mark) is compiled, nor of what it would say.
    const TRACES: bool = false;
}
