//! The kernel as `mm`'s machine: real registers, live page tables, real interrupts.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::{cpu, percpu as area, tlb};
use mm::addr::{Pfn, PhysAddr, VirtAddr};
use mm::context::MmContext;
use mm::entry::Entry;
use mm::lock_check;
#[cfg(feature = "zoo")]
use mm::machine::Point;
use mm::machine::{CpuId, CpuMask, GROUP, IrqOff, Machine};
use mm::meta::Recent;
use mm::shootdown::Round;
use mm::trace::Mark;
use spin::Once;

use crate::cpu::{ipi, percpu, time, trace};
use crate::mem::{memory, paging, reserve};

/// The machine that this kernel runs on. There is one; its state is the hardware's.
#[derive(Debug)]
pub struct KernelMachine(());

/// A waiter gives its CPU to another task once in so many rounds. Rarely: a turn of the other tasks takes milliseconds,
/// another CPU's answer microseconds; and the timer takes the CPU away in any case.
const RELAXES_PER_YIELD: u64 = 1024;

/// An address space of this kernel.
pub type Space = mm::space::AddressSpace<KernelMachine>;

static CONTEXT: Once<Arc<MmContext<KernelMachine>>> = Once::new();

/// Makes the context for `nr_cpus` CPUs. Called once, when the heap works and the CPUs are counted.
pub fn init(nr_cpus: usize) {
    CONTEXT.call_once(|| MmContext::new(KernelMachine(()), nr_cpus)).pins.switch(true);
}

/// What a waiter does now and then: it lets other tasks of its CPU run, once there are tasks.
static YIELD: Once<fn()> = Once::new();

/// From now on a waiter calls `yield_if_allowed` now and then. For the scheduler, when it starts.
pub fn yield_by(yield_if_allowed: fn()) {
    YIELD.call_once(|| yield_if_allowed);
}

/// The context.
///
/// # Panics
/// Before [`init`].
pub fn mm() -> &'static Arc<MmContext<KernelMachine>> {
    CONTEXT.get().expect("the context is not made yet")
}

/// The CPU that calls takes part in shootdowns and may load address spaces from now on.
pub fn go_online() {
    let mm = mm();
    area::set_recent(core::ptr::from_ref(&mm.meta.recents()[area::cpu()]).cast());
    mm.shootdown.cpu_online(&IrqOff::new(&mm.machine));
}

/// The context, if it is made.
pub fn try_mm() -> Option<&'static Arc<MmContext<KernelMachine>>> {
    CONTEXT.get()
}

/// Every CPU drops every translation of the kernel half. When it returns, all have. Call from a task.
pub fn flush_kernel() {
    match try_mm() {
        Some(mm) if ipi::is_up() => {
            let mut round = Round::new();
            round.issue_kernel(&mm.shootdown);
            round.dispatch(&mm.shootdown, &mm.machine).sync();
        }
        _ => tlb::flush_everything(),
    }
}

/// What the CPUs do, step by step, for who decides which of them goes on: in a kernel with faults alone.
#[cfg(feature = "zoo")]
pub mod steps {
    use mm::addr::Pfn;
    use mm::machine::Point;
    use spin::Once;

    /// A step.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Step {
        /// Is about to read or write an entry of this table page, in which something stands.
        Entry(Pfn),
        /// Has turned interrupts on.
        IrqsOn,
        /// Waits.
        Waits,
        /// Has loaded a root table.
        RootLoaded,
        /// Is about to flush.
        Flush,
        /// Has flushed.
        Flushed,
        /// Is about to send a shootdown interrupt.
        SendIpi,
        /// Has sent it.
        IpiSent,
        /// Is about to free this table page.
        FreeTable(Pfn),
        /// Has come to a place of a protocol.
        At(Point),
    }

    static LISTENER: Once<fn(Step)> = Once::new();

    /// From now on `listener` is told of each step, on the CPU that takes it. The first call counts.
    pub fn tell(listener: fn(Step)) {
        LISTENER.call_once(|| listener);
    }

    pub(super) fn took(step: Step) {
        if let Some(listener) = LISTENER.get() {
            listener(step);
        }
    }
}

/// A step that somebody may want to know of: nothing, but in a kernel with faults.
macro_rules! step {
    ($($step:tt)+) => {
        #[cfg(feature = "zoo")]
        steps::took(steps::Step::$($step)+)
    };
}

impl Machine for KernelMachine {
    #[inline]
    fn cpu(&self) -> CpuId {
        area::cpu()
    }
    #[inline]
    fn irq_disable(&self) -> bool {
        cpu::irq_disable()
    }
    #[inline]
    fn irq_enable(&self) {
        cpu::irq_enable();
        step!(IrqsOn);
    }
    #[inline]
    fn irqs_on(&self) -> bool {
        cpu::irqs_on()
    }
    #[inline(always)]
    fn loaded(&self) -> PhysAddr {
        PhysAddr::new(area::loaded())
    }
    #[inline(always)]
    fn set_loaded(&self, root: PhysAddr) {
        debug_assert!(!area::recent().is_null(), "this CPU has not gone online");
        area::set_loaded(root.as_u64());
    }
    #[inline(always)]
    #[expect(clippy::transmute_ptr_to_ref, reason = "`&*` asks at run time whether the pointer is null, for every pin")]
    fn recent<'a>(&self, _all: impl FnOnce() -> &'a [Recent]) -> &'a Recent {
        let recent = area::recent();
        // SAFETY: `go_online` has set it before an address space was loaded on this CPU, which whoever asks has seen; it is
        // one of the cells of the only context, which lives for ever.
        unsafe { core::mem::transmute::<*const (), &'a Recent>(recent) }
    }
    fn relax(&self) {
        lock_check::might_sleep("something");
        cpu::pause();
        step!(Waits);
        // What is waited for is mostly on another CPU and soon done; now and then it is a task of this one.
        if percpu::this().relaxed.fetch_add(1, Ordering::Relaxed).is_multiple_of(RELAXES_PER_YIELD)
            && let Some(yield_if_allowed) = YIELD.get()
        {
            yield_if_allowed();
        }
    }

    fn may_grow(&self) -> bool {
        !memory::is_short() && reserve::may_grow()
    }

    fn alloc_table(&self) -> Option<Pfn> {
        // None of those that are put by: whoever faults can be refused.
        if memory::is_short() { None } else { memory::alloc_zeroed() }
    }
    fn free_table(&self, table: Pfn) {
        step!(FreeTable(table));
        memory::free(table, 0);
    }
    #[inline]
    fn entry(&self, table: Pfn, index: usize) -> &AtomicU64 {
        let entry = paging::entry(table, index);
        #[cfg(feature = "zoo")]
        if entry.load(Ordering::Relaxed) != 0 {
            steps::took(steps::Step::Entry(table));
        }
        entry
    }
    #[inline(always)]
    fn entry_at(&self, table: PhysAddr, index: usize) -> &AtomicU64 {
        let entry = paging::entry_at(table, index);
        #[cfg(feature = "zoo")]
        if entry.load(Ordering::Relaxed) != 0 {
            steps::took(steps::Step::Entry(table.pfn()));
        }
        entry
    }
    #[inline(always)]
    fn entries(&self, table: Pfn, group: usize) -> [&AtomicU64; GROUP] {
        paging::entries(table, group)
    }
    #[inline]
    fn all_and_any(&self, detached: Pfn) -> (Entry, Entry) {
        paging::all_and_any(detached)
    }
    fn init_root(&self, root: Pfn) {
        paging::init_root(root);
    }
    fn drop_root(&self, root: Pfn) {
        paging::drop_root(root);
    }
    fn has_1g_leaves(&self) -> bool {
        paging::has_gib_leaves()
    }

    fn load_root(&self, root: Option<Pfn>) {
        let root = root.unwrap_or_else(paging::root);
        // SAFETY: every root has the same kernel half (`init_root`), so code, stack and data stay where they are.
        unsafe { tlb::load_root(root.addr().as_u64()) };
        step!(RootLoaded);
    }
    #[inline]
    fn flush_page(&self, va: VirtAddr) {
        step!(Flush);
        tlb::flush_page(va.as_u64());
        step!(Flushed);
    }
    #[inline]
    fn flush_all(&self) {
        step!(Flush);
        tlb::flush_non_global();
        step!(Flushed);
    }
    fn flush_global(&self) {
        tlb::flush_everything();
    }
    fn send_shootdown_ipi(&self, cpus: CpuMask) {
        step!(SendIpi);
        ipi::send_to(cpus, ipi::VECTOR_SHOOTDOWN);
        step!(IpiSent);
    }
    #[cfg(feature = "zoo")]
    fn reached(&self, point: Point) {
        step!(At(point));
    }

    fn now_ns(&self) -> u64 {
        time::since_first_line_ns()
    }
    const TRACES: bool = trace::BUILT_IN;
    #[inline(always)]
    fn mark(&self, mark: Mark) {
        trace::mark(mark);
    }
}
